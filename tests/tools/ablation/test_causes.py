import math

import pytest

from tools.ablation.arms import ArmConfig
from tools.ablation.causes import FACTORS, links

ARMS = [ArmConfig("a"), ArmConfig("b", against="a", cause="overlap"), ArmConfig("c", against="b", cause="tail"),
        ArmConfig("alone")]


def run(speed: float, length: float, samples: float | None, rest: float = 1.0) -> dict[str, float | None]:
    seconds = None if samples is None else samples * length / speed * rest
    return {"tokens_per_second": speed, "length_tokens": length, "samples_to_target": samples,
            "seconds_to_target": seconds, "accuracy": speed / 1000}


def test_a_speed_up_falls_into_its_parts_and_a_residual():
    runs = {"a": {0: run(100, 50, 1000)}, "b": {0: run(150, 50, 1250, 0.9)}, "c": {0: run(300, 60, 1250)},
            "alone": {0: run(1, 1, 1)}}
    overlap, tail, whole = links(ARMS, runs)
    assert (overlap.cause, tail.cause, whole.cause) == ("overlap", "tail", "altogether")
    assert (whole.arm, whole.against) == ("c", "a")
    parts = {name: overlap.factors[name].mean for name in FACTORS}
    assert parts == pytest.approx({"speed": 1.5, "length": 1.0, "samples": 0.8, "residual": 1 / 0.9,
                                   "time": 1.5 * 0.8 / 0.9})
    assert tail.factors["length"].mean == pytest.approx(50 / 60)
    assert whole.factors["time"].mean == pytest.approx(overlap.factors["time"].mean * tail.factors["time"].mean)
    assert [link.whole for link in (overlap, tail, whole)] == [False, False, True]
    assert overlap.accuracy.mean == pytest.approx(0.05), "a difference, not a factor"


def test_seeds_are_paired_and_a_seed_that_misses_the_target_says_nothing_of_time():
    runs = {"a": {0: run(100, 50, 1000), 1: run(200, 50, 1000), 2: run(100, 50, 900)},
            "b": {0: run(110, 50, None), 1: run(220, 50, None), 3: run(9, 9, 9)}}
    (link,) = links(ARMS, runs)
    speed = link.factors["speed"]
    assert speed.seeds == link.accuracy.seeds == 2
    assert speed.low == pytest.approx(1.1), "the same ratio at both, whatever the seeds themselves do"
    assert link.factors["time"] is None


def test_factors_multiply_to_their_product_though_a_seed_missed_the_target():
    runs = {"a": {0: run(100, 50, 1000), 1: run(100, 50, 1000), 2: run(100, 50, 900)},
            "b": {0: run(500, 40, None), 1: run(150, 50, 1200, 1.1), 2: run(130, 55, 1000, 0.8)}}
    (link,) = links(ARMS, runs)
    assert {factor.seeds for factor in link.factors.values()} == {2}
    product = math.prod(link.factors[name].mean for name in ("speed", "length", "samples", "residual"))
    assert product == pytest.approx(link.factors["time"].mean)
    assert link.accuracy.seeds == 3


def test_an_arm_that_never_ran_is_stepped_over_and_named():
    (link,) = links(ARMS, {"a": {0: run(1, 1, 1)}, "b": {}, "c": {0: run(2, 1, 1)}})
    assert (link.arm, link.against) == ("c", "a")
    assert link.cause == "tail, and overlap (no run of b)"
    assert links(ARMS, {"b": {0: run(1, 1, 1)}}) == []
