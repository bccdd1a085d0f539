import pytest

from tools.ablation.tables import (
    NOISE,
    differences_table,
    links_table,
    measures_table,
    sentences,
    switches,
)
from tools.pages.table import Cell


def over(mean, low=None, high=None, seeds=3, **more):
    return {"mean": mean, "low": low, "high": high, "seeds": seeds, **more}


def outcome(factor=None, **changes):
    link = {"arm": "b", "against": "a", "cause": "overlap", "whole": False, "accuracy": over(-0.02, -0.03, -0.01),
            "factors": dict.fromkeys(("speed", "length", "samples", "residual", "time"), factor),
            "differs": {"cluster.kind": ["serial", "ray"], "cluster.address": ["", None]}}
    arms = [{"name": "a", "measures": {"idle/learner": over(0.5, 0.4, 0.6)}, "differences": {}},
            {"name": "b", "measures": {"idle/learner": over(0.2, 0.1, 0.3, 2)},
             "differences": {"idle/learner": over(-0.3, -0.4, -0.2, 2, kind="difference", outside=True)}}]
    return {"seeds": [0, 1, 2], "arms": arms, "links": [link, {**link, "whole": True, "cause": "altogether"}]} | changes


@pytest.mark.parametrize(("factor", "cell"), [
    (over(1.004, 1.001, 1.006), Cell("1.00x", "1.00 to 1.01", marked=True)),
    (over(1.0, 0.997, 1.006), Cell("1.00x", "1.00 to 1.01")),
    (over(1.5, 1.2, 1.9, 2), Cell("1.50x", "1.20 to 1.90, 2 of 3 seeds", marked=True)),
    (over(1.5, seeds=1), Cell("1.50x", "one seed")), (over(1.0, 1.0, 1.0), Cell("1.00x")), (None, Cell("-")),
    (over(12345.0, 9000.0, 20000.0), Cell("12.3kx", "9000 to 20k", marked=True)),
])
def test_a_factor_has_two_decimals_its_seeds_and_a_sign_outside_the_noise(factor, cell):
    header, rows = links_table(outcome(factor))
    assert header[1] == "tokens per second"
    assert rows[0][1] == cell
    assert rows[0][0] == Cell("overlap", "b over a")


def test_the_accuracy_is_one_more_column_a_difference():
    header, rows = links_table(outcome())
    assert header[-1] == "accuracy at the end"
    assert rows[0][-1] == Cell("-0.02", "-0.03 to -0.01", marked=True)
    link = outcome()["links"][0] | {"accuracy": over(-0.0, -0.01, 0.01)}
    assert links_table(outcome(links=[link]))[1][0][-1] == Cell("0", "-0.01 to +0.01")


def test_measures_that_differ_from_the_first_arm_beyond_the_noise_carry_the_sign():
    _, rows = measures_table(outcome())
    assert rows == [["idle share of learner", Cell("50.0 %", "40.0 % to 60.0 %"),
                     Cell("20.0 %", "10.0 % to 30.0 %, 2 of 3 seeds", marked=True)]]
    header, rows = differences_table(outcome())
    assert header == ["beside a", "b"]
    assert rows == [["idle share of learner", Cell("-30.0 %", "-40.0 % to -20.0 %, 2 of 3 seeds", marked=True)]]


def test_the_legend_says_what_an_interval_does_not_show():
    assert NOISE.startswith("\N{DAGGER}: outside the noise")
    assert "not corrected for many comparisons" in NOISE
    assert "does not show that there is no difference" in NOISE


def test_what_every_step_changes_is_listed_but_not_that_of_a_whole_chain():
    assert switches(outcome()) == ["b over a: cluster.kind serial to ray; cluster.address '' to none."]
    link = outcome()["links"][0] | {"differs": {}}
    assert switches(outcome(links=[link])) == ["b over a: no option differs."]


def test_a_sentence_for_every_link():
    assert sentences(outcome(over(1.25, 1.094, 1.43)))[0] == (
        "overlap (b over a): tokens per second 1.25x (1.09 to 1.43); time to the target 1.25x (1.09 to 1.43).")
    assert "within the noise" in sentences(outcome(over(1.0, 0.9, 1.1)))[0]
    assert "not known" in sentences(outcome())[0]
