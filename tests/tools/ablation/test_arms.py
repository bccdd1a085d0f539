import pytest

from engine.errors import ConfigError
from tools.ablation.arms import ArmConfig, Match, TargetConfig


def test_arms_may_be_chosen(ablation):
    assert [arm.name for arm in ablation(only=["ahead"]).chosen] == ["ahead"]


@pytest.mark.parametrize(("changes", "said"), [
    ({"only": ["ahed"]}, "did you mean 'ahead'"),
    ({"metrics": ["learn/los"]}, "did you mean 'learn/loss'"),
    ({"target": TargetConfig("heldout/acuracy")}, "did you mean 'heldout/accuracy'"),
    ({"arms": [ArmConfig("a")]}, "at least two"),
    ({"arms": [ArmConfig("a"), ArmConfig("a")]}, "a name of its own"),
    ({"arms": [ArmConfig("a"), ArmConfig("B/..")]}, "lower case"),
    ({"arms": [ArmConfig("a"), ArmConfig("b", against="c")]}, "no such arm"),
    ({"arms": [ArmConfig("a", against="b"), ArmConfig("b")]}, "comes before"),
    ({"seeds": []}, "one seed or more"),
    ({"seeds": [1, 1]}, "each once"),
    ({"amount": -1.0}, "0 or more"),
    ({"match": Match.seconds, "amount": 0.0}, "how many seconds"),
    ({"parallel": 0}, "at least one"),
    ({"deadline_s": 0.0}, "above 0"),
])
def test_what_cannot_work_is_refused_by_name(ablation, changes, said):
    with pytest.raises(ConfigError, match=said):
        ablation(**changes)
