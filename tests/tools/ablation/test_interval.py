import math

import pytest

from tools.ablation.interval import interval, t_quantile


def test_three_seeds_have_a_wide_interval():
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - found.mean == pytest.approx(4.3027 / math.sqrt(3))
    assert found.holds(0.0)
    assert not found.holds(-1.0)


def test_one_seed_has_none_and_no_seed_no_mean():
    one = interval([2.0, math.nan])
    assert (one.mean, one.low, one.seeds) == (2.0, None, 1)
    assert one.holds(7.0), "nobody can tell it from noise"
    assert interval([]) is None
    assert one.mapped(math.exp).mean == math.exp(2.0)


@pytest.mark.parametrize(("freedom", "quantile"), [
    (1, 12.7062), (2, 4.3027), (30, 2.0423), (31, 2.0395), (40, 2.0211), (60, 2.0003), (1000, 1.9623),
])
def test_quantiles_of_students_t(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, abs=1e-4)
