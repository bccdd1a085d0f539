from __future__ import annotations

import math

import pytest
import torch

from engine.config.learning import Baseline
from engine.losses.baseline import advantages, leave_one_out, log_mean_exp

REWARDS = torch.tensor([1.0, 0.0, 0.25, 0.5])


def test_mean_baseline():
    expected = REWARDS - REWARDS.mean()
    assert torch.equal(advantages(REWARDS, Baseline.mean, normalise_std=False), expected)


def test_leave_one_out_compares_with_the_others():
    for i in range(4):
        others = torch.cat([REWARDS[:i], REWARDS[i + 1 :]])
        assert leave_one_out(REWARDS)[i] == pytest.approx(others.mean().item())


def test_rloo_identity():
    """r - mean of the others = K / (K - 1) (r - mean)."""
    by_mean = advantages(REWARDS, Baseline.mean, normalise_std=False)
    by_others = advantages(REWARDS, Baseline.leave_one_out, normalise_std=False)
    torch.testing.assert_close(by_others, by_mean * 4 / 3)


def test_log_mean_exp_value_and_limits():
    exact = 0.3 * math.log(sum(math.exp(r / 0.3) for r in REWARDS.tolist()) / 4)
    assert log_mean_exp(REWARDS.double(), 0.3).item() == pytest.approx(exact)
    assert log_mean_exp(REWARDS.double(), 1e6).item() == pytest.approx(REWARDS.mean().item(), abs=1e-6)
    assert log_mean_exp(REWARDS.double(), 1e-6).item() == pytest.approx(1.0, abs=1e-5)
    assert advantages(REWARDS, Baseline.log_mean_exp, False, tau=0.3)[0].item() == pytest.approx(
        1.0 - exact
    )


def test_no_baseline_keeps_rewards():
    assert torch.equal(advantages(REWARDS, Baseline.none, normalise_std=False), REWARDS)


def test_std_normalisation():
    normalised = advantages(REWARDS, Baseline.mean, normalise_std=True)
    assert normalised.std().item() == pytest.approx(1.0, abs=1e-4)
    assert normalised.dtype == REWARDS.dtype


@pytest.mark.parametrize("baseline", [Baseline.mean, Baseline.leave_one_out, Baseline.log_mean_exp])
@pytest.mark.parametrize("normalise_std", [False, True])
def test_equal_rewards_give_exact_zeros(baseline, normalise_std):
    """0.1 has no exact mean; a rounding error over a tiny spread would become a real advantage."""
    for size in (2, 3, 7, 16):
        advantage = advantages(torch.full((size,), 0.1), baseline, normalise_std, tau=0.1)
        assert torch.equal(advantage, torch.zeros(size))


def test_one_sample_has_no_others():
    with pytest.raises(AssertionError, match="at least 2"):
        advantages(torch.tensor([1.0]), Baseline.leave_one_out, normalise_std=False)
    with pytest.raises(AssertionError, match="at least 2"):
        advantages(torch.tensor([1.0]), Baseline.none, normalise_std=True)


def test_log_mean_exp_needs_tau():
    with pytest.raises(AssertionError, match="positive tau"):
        advantages(REWARDS, Baseline.log_mean_exp, normalise_std=False)
