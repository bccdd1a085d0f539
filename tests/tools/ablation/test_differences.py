import pytest

from tools.ablation.differences import differences, paired


def test_quantities_give_ratios_and_shares_differences_paired_by_seed():
    runs = {
        "a": {0: {"speed": 100.0, "accuracy": 0.5, "idle/learner": 0.2}, 1: {"speed": 200.0, "accuracy": 0.7},
              2: {"speed": 50.0, "accuracy": None}},
        "b": {0: {"speed": 150.0, "accuracy": 0.6, "idle/learner": 0.5}, 1: {"speed": 300.0, "accuracy": 0.8},
              3: {"speed": 1.0}},
    }
    found = differences(runs, "a")
    assert found["a"] == {}
    speed, accuracy, idle = (found["b"][name] for name in ("speed", "accuracy", "idle/learner"))
    assert (speed.ratio, speed.over.seeds, speed.outside) == (True, 2, True)
    assert speed.over.low == pytest.approx(1.5), "the same factor with both seeds, whatever the seeds themselves do"
    assert (accuracy.ratio, accuracy.over.mean) == (False, pytest.approx(0.1))
    assert (idle.over.seeds, idle.over.low, idle.outside) == (1, None, False), "one seed tells nothing from noise"
    assert speed.plain() == {"kind": "ratio", "mean": pytest.approx(1.5), "low": pytest.approx(1.5),
                             "high": pytest.approx(1.5), "seeds": 2, "outside": True}


def test_what_can_be_nothing_gives_differences_for_every_arm():
    runs = {"a": {0: {"age": 0.0}, 1: {"age": 0.0}}, "b": {0: {"age": 1.0}, 1: {"age": 2.0}}, "c": {0: {"age": 3.0}}}
    found = differences(runs, "a")
    assert not found["b"]["age"].ratio
    assert found["b"]["age"].over.mean == 1.5
    assert not found["b"]["age"].outside, "two seeds: an interval of 13 standard errors"
    assert not found["c"]["age"].ratio


def test_a_reason_that_one_arm_never_had_is_0_there_and_evaluations_around_the_target_are_no_measure():
    runs = {"a": {0: {"target_by_updates": 4.0}}, "b": {0: {"masked/stale": 0.25, "target_by_updates": 8.0}}}
    found = differences(runs, "a")
    assert found["b"].keys() == {"masked/stale"}
    assert found["b"]["masked/stale"].over.mean == 0.25
    assert paired(runs["a"], runs["b"], "speed", ratio=True) is None
