import pytest

from engine.errors import ConfigError
from tests.tools.run_folders import SMOKE
from tools.ablation.arms import ArmConfig, Match
from tools.ablation.matching import different, flat, match_arms, undeclared


def test_arms_get_the_same_updates_samples_or_seconds(ablation):
    smaller = [ArmConfig("a"), ArmConfig("b", ["schedule.batch_groups=2"])]
    assert [arm.config.learning.updates for arm in match_arms(ablation())] == [4, 4]
    by_samples = match_arms(ablation(match=Match.samples, amount=64, arms=smaller))
    assert [arm.config.learning.updates for arm in by_samples] == [4, 8]
    assert undeclared(ablation(match=Match.samples, amount=64, arms=smaller), by_samples) == []
    assert [arm.config.learning.max_seconds for arm in match_arms(ablation(match=Match.seconds, amount=30))] == [30, 30]


@pytest.mark.parametrize(("changes", "said"), [
    ({"match": Match.samples, "amount": 40}, "multiple of the 16 samples"), ({"amount": 2.5}, "whole updates"),
    ({"arms": [ArmConfig("a"), ArmConfig("b", ["loss.tua=1"])]}, "tua"),
])
def test_an_amount_that_does_not_divide_and_an_option_that_is_none_are_refused(ablation, changes, said):
    with pytest.raises(Exception, match=said):
        match_arms(ablation(**changes))


def test_arms_that_ask_different_questions_are_refused(ablation):
    arms = [ArmConfig("a"), ArmConfig("b", ["prompts.seed=3"])]
    with pytest.raises(ConfigError, match=r"prompts\.seed=3: .*different questions"):
        match_arms(ablation(arms=arms))
    arms = [ArmConfig("a"), ArmConfig("b", ["prompts.order=priority"])]
    assert len(match_arms(ablation(arms=arms))) == 2, "another order is the same set"


def test_what_nobody_declared_is_named(ablation):
    # A preset of learning would not say that it touches the schedule as well; an interpolation can do that.
    config = ablation(base=[*SMOKE, "learning.keep_checkpoints=${schedule.batch_groups}"],
                      arms=[ArmConfig("a"), ArmConfig("b", ["schedule.batch_groups=2"])])
    (note,) = undeclared(config, match_arms(config))
    assert note == "Arms a and b differ in more than they say: learning.keep_checkpoints (4, 2)."


def test_an_arm_is_compared_with_the_one_it_stands_against(ablation):
    base = [*SMOKE, "learning.keep_checkpoints=${schedule.batch_groups}"]
    arms = [ArmConfig("a"), ArmConfig("b", ["schedule.batch_groups=2"]),
            ArmConfig("c", ["schedule.batch_groups=2", "loss.tau=0.2"], against="b")]
    notes = undeclared(config := ablation(base=base, arms=arms), match_arms(config))
    assert [note.partition(" differ")[0] for note in notes] == ["Arms a and b"], "c has it of b"
    skipped = ablation(base=base, arms=arms, only=["a", "c"])
    assert [note.partition(" differ")[0] for note in undeclared(skipped, match_arms(skipped))] == ["Arms a and c"]


def test_a_group_declares_all_its_keys(ablation):
    config = ablation()
    first, second = match_arms(config)
    assert "schedule.max_staleness" in different(first.flat, second.flat)
    assert undeclared(config, [first, second]) == []


def test_options_by_dotted_key():
    assert flat("a: {b: 1, c: {}}\nd: [1]") == {"a.b": 1, "a.c": {}, "d": [1]}
    assert different({"a": 1, "seed": 0, "gone": 1}, {"a": 2, "seed": 1}) == ["a", "gone"]
