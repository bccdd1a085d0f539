import pytest

from tests.tools.run_folders import write_run
from tools.ablation.arms import TargetConfig
from tools.ablation.measures import is_share, label, measure, value_of
from tools.story.folder import RunStory


def test_the_numbers_of_a_run(tmp_path):
    found = measure(RunStory.read(write_run(tmp_path / "run")), TargetConfig(value=0.5), ["learn/seconds"])
    assert found["samples_per_second"] == 16.0
    assert found["tokens_per_second"] == 160.0
    assert found["length_tokens"] == 10.0
    assert found["accuracy"] == pytest.approx(0.8)
    # 0.2 at the start, 0.35, 0.5 after two updates of 16 samples, each a second long.
    assert found["seconds_to_target"] == pytest.approx(2.0)
    assert found["samples_to_target"] == pytest.approx(32.0)
    assert found["updates_to_target"] == pytest.approx(2.0)
    assert (found["target_after_updates"], found["target_by_updates"]) == (1.0, 2.0)
    assert found["idle/generator-0"] == 0.25
    assert found["masked/zero_advantage"] == 0.2
    assert found["staleness/0"] == 0.75
    assert found["overlap"] == 0.25
    assert found["learn/seconds"] == 0.5
    assert all(label(name) for name in found)
    assert [is_share(name) for name in ("idle/learner", "accuracy")] == [True, False]


def test_a_target_that_is_not_reached_and_a_run_that_is_cut_off(tmp_path):
    story = RunStory.read(write_run(tmp_path / "run", whole=False))
    found = measure(story, TargetConfig(value=0.9))
    assert found["seconds_to_target"] is None
    assert found["target_by_updates"] is None
    assert found["overlap"] is None
    assert found["samples_per_second"] == 16.0


def test_a_reason_that_a_run_does_not_name_is_nothing_there():
    assert value_of({}, "masked/stale") == value_of({}, "staleness/2") == 0.0
    assert value_of({}, "accuracy") is None
    assert value_of({"masked/stale": 0.5}, "masked/stale") == 0.5
