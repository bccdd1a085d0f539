"""From the rewards of a group to advantages: what a reward is compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.config.learning import Baseline

STD_FLOOR = 1e-6
"""Added to the standard deviation before the division, as GRPO's implementations do."""


def mean(rewards: Tensor) -> Tensor:
    """Mean of the group, the baseline of Kimi k1.5 (section 2.3.2): [K] -> scalar."""
    return rewards.mean()


def leave_one_out(rewards: Tensor) -> Tensor:
    """Mean of the others (RLOO, arXiv 2402.14740): [K] -> [K], K >= 2.

    Example:
        >>> leave_one_out(torch.tensor([0.0, 1.0, 2.0]))
        tensor([1.5000, 1.0000, 0.5000])
    """
    assert rewards.numel() >= 2, "leave-one-out needs at least 2 samples of a prompt"
    return (rewards.sum() - rewards) / (rewards.numel() - 1)


def log_mean_exp(rewards: Tensor, tau: float) -> Tensor:
    """The sample form of mirror descent's exact normaliser, tau log mean exp(r / tau): [K] -> scalar.

    It estimates tau log Z of the closed-form optimum pi* = pi_reference exp(r / tau) / Z (Kimi k1.5,
    section 2.3.2), where the gradient of the squared surrogate then vanishes; with the mean it does not.
    tau > 0; it tends to the mean as tau grows and to the maximum as tau goes to 0.
    """
    assert tau > 0.0, f"log-mean-exp needs a positive tau, got {tau}"
    return tau * (torch.logsumexp(rewards / tau, dim=0) - math.log(rewards.numel()))


def advantages(rewards: Tensor, baseline: Baseline, normalise_std: bool, tau: float = 0.0) -> Tensor:
    """Rewards of one group less their baseline: [K] -> [K], in the type of ``rewards``.

    ``tau`` is read by ``log_mean_exp`` only. ``normalise_std`` divides by the sample standard deviation
    plus 1e-6 (GRPO, arXiv 2402.03300, section 4.1.2). A group without spread has advantages of exactly 0,
    except with ``Baseline.none``.

    Example:
        >>> advantages(torch.tensor([0.0, 1.0]), Baseline.mean, normalise_std=False)
        tensor([-0.5000,  0.5000])
    """
    exact = rewards.double()
    advantage = exact if baseline is Baseline.none else exact - _value(exact, baseline, tau)
    # The mean of equal rewards is off by a rounding error, which the division below would blow up.
    if baseline is not Baseline.none and bool(torch.all(rewards == rewards[0])):
        return torch.zeros_like(rewards)
    if normalise_std:
        assert rewards.numel() >= 2, "a standard deviation needs at least 2 samples of a prompt"
        advantage = advantage / (exact.std() + STD_FLOOR)
    return advantage.to(rewards.dtype)


def _value(rewards: Tensor, baseline: Baseline, tau: float) -> Tensor:
    if baseline is Baseline.mean:
        return mean(rewards)
    if baseline is Baseline.leave_one_out:
        return leave_one_out(rewards)
    return log_mean_exp(rewards, tau)
