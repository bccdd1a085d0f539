"""Constructed streams: no bias, no alarm at the stated rate; starved prompts, alarm with a sentence."""

import random
from itertools import pairwise

import pytest

from engine.records.trajectory import DropReason
from engine.replay.selection_bias import (
    LEVEL,
    LeftGroup,
    SelectionBias,
    ks_distance,
    ks_threshold,
    upper_tail,
)

LOOKS = 400


def stream(rng, count, lost=lambda length, label, rng: rng.random() < 0.3):
    """Groups with log-normal lengths and one of two kinds, longer where hard; lost as a rule says."""
    groups = []
    for _ in range(count):
        label = rng.choice(["easy", "hard"])
        length = rng.lognormvariate(4.0 + (label == "hard"), 0.6)
        success = round(rng.random(), 1)
        gone = "given_up" if lost(length, label, rng) else ""
        groups.append(LeftGroup(length, success, ("math", label), 1, gone))
    return groups


def meter(groups):
    made = SelectionBias(window_groups=1024)
    for group in groups:
        made.left(group)
    return made


@pytest.mark.parametrize(("left", "right", "distance"), [
    ([], [1.0], 0.0), ([1.0], [2.0], 1.0), ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 0.0),
    ([1.0, 1.0, 2.0], [1.0, 2.0, 2.0], 1 / 3), ([1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0], 0.5),
])
def test_the_distance_is_the_largest_gap_of_the_distributions(left, right, distance):
    assert ks_distance(left, right) == pytest.approx(distance)
    assert ks_distance(right, left) == pytest.approx(distance)


def test_the_threshold_is_that_of_the_tables():
    """c(0.05) = 1.358 and c(0.01) = 1.628 in the asymptotic two-sample tables."""
    assert ks_threshold(100, 100, 0.05) == pytest.approx(1.358 * (200 / 10_000) ** 0.5, rel=1e-3)
    assert ks_threshold(50, 200, 0.01) == pytest.approx(1.628 * (250 / 10_000) ** 0.5, rel=1e-3)


def test_the_tail_counts_every_way_to_draw():
    tails = [upper_tail(12, 5, 6, k) for k in range(7)]
    assert tails[0] == pytest.approx(1.0)
    assert tails[6] == 0.0
    assert sum(k * (a - b) for k, (a, b) in enumerate(pairwise([*tails, 0.0]))) == pytest.approx(6 * 5 / 12)


def test_without_bias_there_is_no_alarm_at_the_stated_rate():
    """Three tests at each look; the bound on their sum, and room of three standard deviations."""
    rng = random.Random(1)
    alarms = sum(bool(meter(stream(rng, 120)).findings()) for _ in range(LOOKS))
    expected = 3 * LEVEL * LOOKS
    assert alarms <= expected + 3 * expected**0.5


def test_losing_long_answers_raises_the_alarm():
    rng = random.Random(2)
    for _ in range(20):
        found = meter(stream(rng, 200, lambda length, label, rng: length > 150 and rng.random() < 0.7)).findings()
        assert any("lengths of the" in text for text in found)


def test_losing_one_kind_raises_the_alarm_even_at_equal_lengths():
    rng = random.Random(3)
    groups = [LeftGroup(50.0, 0.5, ("math", label), 0, "judge_failed" if label == "rare" and rng.random() < 0.6 else "")
              for label in rng.choices(["rare", "usual"], [1, 4], k=300)]
    made = meter(groups)
    (text,) = made.findings()
    assert "'rare' makes" in text
    assert made.metrics()["selection/kind_share_min"] < 0.7
    assert made.metrics()["selection/length_distance"] == 0.0
    assert made.summary()["lost"] == {"judge_failed": sum(bool(group.lost) for group in groups)}


def test_losing_what_is_answered_wrong_raises_the_alarm():
    rng = random.Random(4)
    groups = [LeftGroup(50.0, success, ("math",), 0, "stale" if success < 0.3 and rng.random() < 0.5 else "")
              for success in (round(rng.random(), 1) for _ in range(300))]
    (text,) = meter(groups).findings()
    assert "success rates" in text


def test_groups_that_nobody_judged_say_nothing_of_success():
    made = meter([LeftGroup(50.0, float(i % 2), ("math",)) for i in range(20)])
    for success in [0.0] * 5 + [None] * 75:
        made.left(LeftGroup(50.0, success, ("math",), 0, "given_up"))
    assert made.metrics()["selection/success_distance"] == pytest.approx(0.5 * 5 / 25)


def test_a_bias_too_small_to_matter_is_not_an_alarm():
    groups = [LeftGroup(float(i % 50), None, ("math",)) for i in range(1000)]
    groups[500:500] = [LeftGroup(500.0, None, ("math",), 0, "given_up") for _ in range(10)]
    assert meter(groups).findings() == []
    assert 0 < meter(groups).metrics()["selection/length_distance"] < 0.05


def test_what_a_filter_drops_on_purpose_is_not_bias():
    groups = [LeftGroup(10.0, 0.0, ("math",)) for _ in range(50)]
    groups += [LeftGroup(999.0, 0.0, ("hard",), 0, DropReason.no_spread.value) for _ in range(50)]
    made = meter(groups)
    assert made.findings() == []
    assert made.metrics()["selection/lost_fraction"] == 0.0
    assert made.summary()["window_groups"] == 50


def test_an_alarm_is_told_once_until_it_is_over():
    made = SelectionBias(window_groups=100)
    for group in stream(random.Random(5), 100, lambda length, *_: length > 100):
        made.left(group)
    assert made.news().startswith("selection bias: lengths")
    assert made.news() == ""
    assert made.metrics()["selection/alarm"] == 1.0
    for group in stream(random.Random(6), 100, lambda *_: False):
        made.left(group)
    assert made.news() == ""
    assert made.metrics()["selection/alarm"] == 0.0
    assert made.alarms == 1
    for group in stream(random.Random(7), 100, lambda length, *_: length > 100):
        made.left(group)
    assert made.news()
    assert made.alarms == 2


def test_ages_of_what_was_lost_are_told_beside_those_of_what_was_trained():
    groups = [LeftGroup(50.0, None, ("math",), 1) for _ in range(30)]
    groups += [LeftGroup(50.0, None, ("math",), 3, "stale") for _ in range(10)]
    made = meter(groups)
    values = made.metrics()
    assert values["selection/age_distance"] == pytest.approx(10 / 40)
    assert values["selection/generated_age_mean_versions"] == pytest.approx(1.5)
    assert values["selection/trained_age_mean_versions"] == 1.0
    ages = made.distributions()["age_versions"]
    assert (ages["width"], ages["generated"], ages["trained"]) == (1.0, [0, 30, 0, 10], [0, 30])
    assert ages["distance"] > ages["chance"]
    assert made.findings() == [], "how a group leaves decides its age"


def test_ages_that_nothing_selects_stay_below_what_chance_explains():
    rng = random.Random(8)
    beyond = 0
    for _ in range(LOOKS):
        groups = [LeftGroup(50.0, None, ("math",), rng.randrange(4), rng.choice(["", "", "given_up"]))
                  for _ in range(90)]
        ages = meter(groups).distributions()["age_versions"]
        beyond += ages["distance"] > ages["chance"]
    expected = LEVEL * LOOKS
    assert beyond <= expected + 3 * expected**0.5


def test_histograms_hold_every_group_and_every_trained_one():
    left = ((0, 0.0, ""), (15, 0.3, ""), (16, 1.0, "given_up"), (31, None, "judge_failed"))
    groups = [LeftGroup(float(length), success, ("math", "hard" if lost else "easy"), 0, lost)
              for length, success, lost in left]
    told = meter(groups).summary()["distributions"]
    assert told["length_tokens"] == {"width": 2, "generated": [1, *[0] * 6, 1, 1, *[0] * 6, 1],
                                     "trained": [1, *[0] * 6, 1], "distance": 0.5, "chance": None}
    assert told["success"]["generated"] == [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1], "nobody judged the last"
    assert told["success"]["trained"] == [1, 0, 0, 1]
    assert told["kinds"] == {"math": {"generated": 4, "trained": 2}, "easy": {"generated": 2, "trained": 2},
                             "hard": {"generated": 2, "trained": 0}}


def test_an_empty_window_says_nothing():
    assert SelectionBias().metrics() == {}
    assert SelectionBias().findings() == []
    assert SelectionBias().summary()["kind_shares"] == {}
    assert SelectionBias().distributions()["length_tokens"]["generated"] == []
