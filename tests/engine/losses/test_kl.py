from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.config.learning import MirrorDescentConfig
from engine.losses.kl import Penalty, k3


def test_k3_is_never_negative_and_zero_at_equality():
    generator = torch.Generator().manual_seed(0)
    ours, other = torch.randn(2, 10_000, generator=generator)
    assert torch.all(k3(ours, other) >= 0.0)
    assert torch.all(k3(ours, ours) == 0.0)
    tiny = torch.full((100,), -1.0)
    assert torch.all(k3(tiny, tiny + torch.linspace(-1e-6, 1e-6, 100)) >= 0.0)


def test_k3_is_unbiased():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * k3(p.log(), q.log())).sum(), exact)


def test_penalty_is_a_mean_over_the_tokens_of_the_minibatch(inputs_of, scale):
    inputs = inputs_of((3, 1), torch.zeros(2), drift=0.5)
    size = replace(scale(inputs, 2), tokens=8)
    penalty, metrics = Penalty(MirrorDescentConfig(kl_coefficient=0.4, entropy_bonus=0.3))(inputs, size)
    kl = k3(inputs.learner_logprob, inputs.fixed_logprob).sum()
    entropy = inputs.entropy.sum()
    torch.testing.assert_close(penalty, (0.4 * kl - 0.3 * entropy) / 8)
    assert metrics["fixed_kl_sum"].item() == pytest.approx(kl.item())
    assert metrics["entropy_sum"].item() == pytest.approx(entropy.item())
    towards_fixed, more_entropy = torch.autograd.grad(penalty, (inputs.learner_logprob, inputs.entropy))
    gap = inputs.learner_logprob - inputs.fixed_logprob
    assert torch.equal(towards_fixed > 0, gap > 0)
    torch.testing.assert_close(more_entropy, torch.full((4,), -0.3 / 8, dtype=torch.float64))


def test_without_coefficients_there_is_no_penalty(inputs_of, scale):
    inputs = replace(inputs_of((3, 1), torch.zeros(2), drift=0.5), fixed_logprob=None, entropy=None)
    penalty = Penalty(MirrorDescentConfig())
    value, metrics = penalty(inputs, scale(inputs, 2))
    assert value == 0.0
    assert (penalty.active, penalty.needs_fixed, penalty.needs_entropy) == (False, False, False)
    expected = k3(inputs.behaviour_logprob, inputs.learner_logprob.detach()).sum()
    assert metrics == {"behaviour_kl_sum": expected}


@pytest.mark.parametrize("option", ["kl_coefficient", "entropy_bonus"])
def test_what_was_asked_for_must_be_given(option, inputs_of, scale):
    inputs = replace(inputs_of((2,), torch.zeros(1), drift=0.5), fixed_logprob=None, entropy=None)
    penalty = Penalty(MirrorDescentConfig(**{option: 0.1}))
    assert penalty.active
    with pytest.raises(AssertionError, match="this loss needs_"):
        penalty(inputs, scale(inputs, 1))
