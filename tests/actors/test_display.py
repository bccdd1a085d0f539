"""What is printed, and that a quiet run prints nothing."""

from dataclasses import replace

import pytest

from actors.display import Display

VALUES = {"rollout/total_reward_mean": 0.5, "rollout/length_mean_tokens": 12.0,
          "schedule/staleness_mean_versions": 1.0, "generate/tokens_per_second": 200.0}
SUMMARY = {"name": "tiny", "updates": 3, "train_seconds": 7.0, "accuracy_before": None, "accuracy_after": 0.75}


@pytest.fixture
def display(config):
    return Display(replace(config, run=replace(config.run, quiet=False)))


def test_the_line_tells_progress_and_the_time_left(display, capsys):
    display.progress(1, VALUES, 0.25, seconds=60.0)
    assert capsys.readouterr().out == (
        "update 1/3  reward 0.50  held-out 0.25  length 12.0  staleness 1.00  200 tokens/s  left 2:00\n")


def test_a_live_line_is_overwritten_and_a_sentence_begins_a_new_one(display, capsys):
    display._live = True
    display.progress(1, VALUES, None, 1.0)
    display.progress(2, VALUES, None, 1.0)
    display.say("a sentence")
    shown = capsys.readouterr().out
    assert shown.count("\r") == 2
    assert shown.endswith("\na sentence\n")
    display.close()
    assert capsys.readouterr().out == ""


def test_the_table_holds_accuracies_and_examples(display, capsys, tmp_path):
    examples = {"before": [("1 + 1?", "3", False)], "after": [("1 + 1?", "2", True)]}
    display.table(SUMMARY, examples, tmp_path)
    shown = capsys.readouterr().out
    for text in ("0.75", "-", "1 + 1?", "tiny: 3 updates in 7 s", "run folder"):
        assert text in shown


def test_a_quiet_run_prints_nothing(config, capsys, tmp_path):
    quiet = Display(config)
    quiet.progress(1, VALUES, 0.5, 1.0)
    quiet.say("a sentence")
    quiet.table(SUMMARY, {}, tmp_path)
    quiet.close()
    assert capsys.readouterr().out == ""
