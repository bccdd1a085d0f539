"""Values between two writes, reduced by kind."""

import math

import pytest

from engine.meters import Meters


def test_meters_reduce_by_kind_and_start_anew():
    meters = Meters()
    for value in (1.0, 5.0, 3.0):
        meters.sum("learn/trained_tokens", value)
        meters.mean("rollout/reward_mean", value)
        meters.max("schedule/staleness_max_versions", value - 9)
        meters.last("learn/learning_rate", value)
    assert meters.reduce() == {
        "learn/learning_rate": 3.0,
        "learn/trained_tokens": 9.0,
        "rollout/reward_mean": 3.0,
        "schedule/staleness_max_versions": -4.0,
    }
    assert meters.reduce() == {}


def test_a_mean_is_weighted_and_weight_zero_says_nothing():
    meters = Meters()
    meters.mean("learn/entropy", 1.0, weight=1)
    meters.mean("learn/entropy", 5.0, weight=3)
    meters.mean("learn/loss", 7.0, weight=0)
    assert meters.reduce() == {"learn/entropy": 4.0}
    with pytest.raises(ValueError, match="negative"):
        meters.mean("learn/loss", 1.0, weight=-1)


@pytest.mark.parametrize("values", [(float("nan"), 1.0), (1.0, float("nan"))])
def test_a_nan_is_never_lost_in_a_maximum(values):
    meters = Meters()
    for value in values:
        meters.max("schedule/staleness_max_versions", value)
    assert math.isnan(meters.reduce()["schedule/staleness_max_versions"])


def test_one_name_has_one_kind():
    meters = Meters()
    meters.sum("learn/loss", 1.0)
    with pytest.raises(ValueError, match="is a sum, not a mean"):
        meters.mean("learn/loss", 1.0)
