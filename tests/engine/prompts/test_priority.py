import msgpack
import numpy as np
import pytest

from engine.errors import PromptError
from engine.prompts.priority import SuccessWindow, priority_weights, weighted_choice


def test_the_rate_is_of_the_newest_verdicts():
    window = SuccessWindow(size=4, initial=0.3)
    assert window.rate("a") == 0.3
    assert not window.observed("a")
    window.observe("a", 1.0, 3)
    assert window.rate("a") == 1.0
    window.observe("a", 0.0, 2)  # two of the three correct ones stay
    assert window.rate("a") == 0.5
    window.observe("a", 0.25, 8)  # fills the window alone
    assert window.rate("a") == 0.25
    window.observe("a", 1.0, 1)
    assert window.rate("a") == pytest.approx((3 * 0.25 + 1) / 4)


def test_state_is_plain_and_restores_the_rates():
    window = SuccessWindow(size=4, initial=0.3)
    window.observe("a", 1.0, 3)
    window.observe("a", 0.0, 2)
    other = SuccessWindow(size=4, initial=0.3)
    other.load_state_dict(msgpack.unpackb(msgpack.packb(window.state_dict())))
    for each in (window, other):
        each.observe("a", 1.0, 1)
    assert other.rate("a") == window.rate("a")
    assert other.state_dict() == window.state_dict()


@pytest.mark.parametrize(("fraction", "samples"), [(1.5, 2), (-0.1, 2), (float("nan"), 2), (0.5, 0)])
def test_numbers_that_are_no_success_are_refused(fraction, samples):
    with pytest.raises(PromptError, match="fraction between 0 and 1"):
        SuccessWindow(4, 0.5).observe("a", fraction, samples)


def test_weights_have_a_floor():
    weights = priority_weights(np.array([0.0, 0.4, 0.99, 1.0]), 0.05)
    np.testing.assert_allclose(weights, [1.0, 0.6, 0.05, 0.05])


def test_draws_are_different_and_follow_the_weights_that_remain():
    weights = np.array([4.0, 2.0, 1.0, 1.0])
    generator = np.random.default_rng(0)
    pairs = np.array([weighted_choice(weights, 2, generator) for _ in range(20_000)])
    assert (pairs[:, 0] != pairs[:, 1]).all()
    first = np.bincount(pairs[:, 0], minlength=4) / len(pairs)
    np.testing.assert_allclose(first, weights / 8, atol=0.012)
    after_zero = pairs[pairs[:, 0] == 0][:, 1]
    second = np.bincount(after_zero, minlength=4) / len(after_zero)
    np.testing.assert_allclose(second, [0, 0.5, 0.25, 0.25], atol=0.017)
    assert sorted(weighted_choice(weights, 4, generator)) == [0, 1, 2, 3]
