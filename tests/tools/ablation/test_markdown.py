from tools.ablation.markdown import markdown
from tools.ablation.outcome import outcome_of, stories_of
from tools.ablation.tables import NOISE


def test_every_table_has_its_legend_and_what_it_rests_on(matrix):
    config, cells = matrix()
    outcome = outcome_of(config, cells, stories_of(cells))
    outcome["simulated"] = {"text": "SIMULATED.", "header": ["", "over"], "rows": [["sync", "1.00x sync"]],
                            "assumptions": ["lengths are as they were"]}
    text = markdown(outcome)
    assert NOISE in text
    assert "Commit: c0ffee." in text
    assert "| trained samples per second | 16.1 (15.1 to 17.1) | 32.2 \N{DAGGER} (30.1 to 34.2) |" in text
    assert "| trained samples per second | 2.00x \N{DAGGER}" in text
    assert "| overlap (ahead over sync) | 2.00x \N{DAGGER}" in text
    assert "schedule.max_staleness 0 to 2" in text
    assert "| sync | 1.00x sync |\n\n- lengths are as they were" in text
    assert "ahead over sync changes" in text.rpartition("lengths are")[2], "notes come last"
