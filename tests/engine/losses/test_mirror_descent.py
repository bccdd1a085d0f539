from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from engine.config.learning import (
    Baseline,
    ImportanceConfig,
    ImportanceKind,
    MirrorDescentConfig,
    Reference,
)
from engine.errors import ConfigError
from engine.losses.mirror_descent import MirrorDescent
from engine.losses.objective import LossInputs, LossScale

# A softmax policy over two symbols and two positions: one row of logits for the first token, one for the
# second after each first token. Three free parameters reach every distribution over the four sequences.
SEQUENCES = list(product((0, 1), repeat=2))
REWARDS = torch.tensor([1.0, 0.0, 0.25, 0.5], dtype=torch.float64)
TAU = 0.4


def token_logprobs(logits: torch.Tensor, sequences: list[tuple[int, int]]) -> torch.Tensor:
    """[3, 2] logits -> [2 * len(sequences)] log-probs."""
    table = torch.log_softmax(logits, dim=-1)
    return torch.stack([value for a, b in sequences for value in (table[0, a], table[1 + a, b])])


def inputs_for(
    learner: torch.Tensor,
    reference: torch.Tensor,
    advantage: torch.Tensor,
    behaviour: torch.Tensor | None = None,
) -> LossInputs:
    count = advantage.numel()
    return LossInputs(
        learner_logprob=learner,
        behaviour_logprob=reference if behaviour is None else behaviour,
        reference_logprob=reference,
        fixed_logprob=None,
        entropy=None,
        trajectory=torch.arange(count).repeat_interleave(2),
        advantage=advantage,
        num_tokens=torch.full((count,), 2),
    )


def one_group(samples: int) -> LossScale:
    return LossScale(groups=1, trajectories=samples, tokens=2 * samples, samples_per_prompt=samples)


def logits_of(seed: int) -> torch.Tensor:
    return torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tau", [0.0, TAU])
@pytest.mark.parametrize("length", [1.0, 7.0])
@pytest.mark.parametrize("reference", list(Reference))
def test_value_and_gradient_are_equation_3(tau, length, reference):
    loss = MirrorDescent(MirrorDescentConfig(tau=tau, length_normaliser=length, reference=reference))
    theta, start = logits_of(0).requires_grad_(), logits_of(1)
    started = token_logprobs(start, SEQUENCES)

    def equation(logits: torch.Tensor) -> torch.Tensor:
        """Written anew, over sequences: (1/K) sum_j [ -(r_j - rbar) S_j + (tau/2) D_j^2 ]."""
        total = token_logprobs(logits, SEQUENCES).view(4, 2).sum(1) / length
        drift = total - started.view(4, 2).sum(1) / length
        return (-(REWARDS - REWARDS.mean()) * total + tau / 2 * drift**2).mean()

    output = loss(
        inputs_for(token_logprobs(theta, SEQUENCES), started, loss.advantage(REWARDS)), one_group(4)
    )
    torch.testing.assert_close(output.loss, equation(theta))
    (gradient,) = torch.autograd.grad(output.loss, theta)

    differences = torch.zeros_like(gradient)
    for index in product(range(3), range(2)):
        step = torch.zeros_like(theta)
        step[index] = 1e-5
        with torch.no_grad():
            differences[index] = (equation(theta + step) - equation(theta - step)) / 2e-5
    torch.testing.assert_close(gradient, differences, rtol=1e-7, atol=1e-9)


def closed_form_optimum(reference: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """[3, 2] logits of pi* = pi_reference exp(r / tau) / Z."""
    weight = reference.view(2, 2) * torch.exp(rewards.view(2, 2) / TAU)
    return torch.cat([weight.sum(1, keepdim=True).T, weight]).log()


@pytest.mark.parametrize(("baseline", "vanishes"), [(Baseline.log_mean_exp, True), (Baseline.mean, False)])
def test_gradient_at_the_closed_form_optimum(baseline, vanishes):
    """Each sequence occurs as often in the group as the reference would draw it in sixteen, so that the
    group is the exact expectation under the reference and log-mean-exp is exactly tau log Z."""
    counts = torch.tensor([2, 2, 3, 9])
    reference = torch.tensor([[1 / 4, 3 / 4], [1 / 2, 1 / 2], [1 / 4, 3 / 4]], dtype=torch.float64).log()
    group = [sequence for sequence, n in zip(SEQUENCES, counts.tolist(), strict=True) for _ in range(n)]
    optimum = closed_form_optimum(counts / 16, REWARDS).requires_grad_()

    loss = MirrorDescent(MirrorDescentConfig(tau=TAU, baseline=baseline))
    advantage = loss.advantage(REWARDS.repeat_interleave(counts))
    inputs = inputs_for(token_logprobs(optimum, group), token_logprobs(reference, group), advantage)
    (gradient,) = torch.autograd.grad(loss(inputs, one_group(16)).loss, optimum)
    assert (gradient.norm() < 1e-12) == vanishes
    assert vanishes or gradient.norm() > 1e-2


def test_batch_loss_is_the_mean_over_groups():
    """A group without advantage at the reference adds nothing and still counts."""
    loss = MirrorDescent(MirrorDescentConfig(tau=TAU))
    logprob = token_logprobs(logits_of(0), SEQUENCES).requires_grad_()
    inputs = inputs_for(logprob, logprob.detach(), loss.advantage(REWARDS))
    alone = loss(inputs, one_group(4)).loss
    of_two = loss(inputs, LossScale(groups=2, trajectories=8, tokens=16, samples_per_prompt=4)).loss
    torch.testing.assert_close(of_two, alone / 2)


def weighted(kind: ImportanceKind, **options) -> MirrorDescent:
    return MirrorDescent(MirrorDescentConfig(tau=TAU, importance=ImportanceConfig(kind=kind, **options)))


def test_weights_multiply_the_detached_coefficient():
    loss = weighted(ImportanceKind.truncated, cap=1.5)
    learner = token_logprobs(logits_of(0), SEQUENCES).requires_grad_()
    reference, behaviour = token_logprobs(logits_of(1), SEQUENCES), token_logprobs(logits_of(2), SEQUENCES)
    inputs = inputs_for(learner, reference, loss.advantage(REWARDS), behaviour)
    output = loss(inputs, one_group(4))
    (gradient,) = torch.autograd.grad(output.loss, learner)

    weight = (reference - behaviour).exp().clamp(max=1.5)
    assert 0 < (weight == 1.5).sum() < 8
    drift = (learner.detach() - reference).view(4, 2).sum(1)
    coefficient = (REWARDS - REWARDS.mean() - TAU * drift).repeat_interleave(2)
    torch.testing.assert_close(gradient, -weight * coefficient / 4)

    plain = MirrorDescent(MirrorDescentConfig(tau=TAU))(inputs, one_group(4))
    torch.testing.assert_close(output.loss, plain.loss)


def test_weights_need_the_reference_even_without_a_pull():
    config = MirrorDescentConfig(tau=0.0, importance=ImportanceConfig(kind=ImportanceKind.truncated))
    assert MirrorDescent(config).needs_reference


def test_the_first_step_needs_no_reference_pass():
    loss = weighted(ImportanceKind.truncated)
    learner = token_logprobs(logits_of(0), SEQUENCES).requires_grad_()
    inputs = inputs_for(
        learner, learner.detach(), loss.advantage(REWARDS), token_logprobs(logits_of(2), SEQUENCES)
    )
    given = torch.autograd.grad(loss(inputs, one_group(4)).loss, learner)
    left_out = torch.autograd.grad(
        loss(replace(inputs, reference_logprob=None), one_group(4)).loss, learner
    )
    assert torch.equal(given[0], left_out[0])


@pytest.mark.parametrize(
    ("options", "first", "later"),
    [
        ({}, True, False),
        ({"tau": 0.0}, True, True),
        ({"reference": Reference.behaviour}, False, False),
        ({"tau": 0.0, "reference": Reference.behaviour}, True, True),
        ({"tau": 0.0, "kl_coefficient": 0.1}, False, False),
        ({"entropy_bonus": 0.1}, False, False),
    ],
)
def test_skip_rule(options, first, later):
    loss = MirrorDescent(MirrorDescentConfig(**options))
    assert (loss.skips_zero_advantage(True), loss.skips_zero_advantage(False)) == (first, later)


def test_drift_is_reported_in_nats():
    loss = MirrorDescent(MirrorDescentConfig(tau=TAU, length_normaliser=8.0))
    learner = torch.tensor([-1.0, -2.0, -1.0, -1.0], requires_grad=True)
    inputs = inputs_for(learner, torch.tensor([-1.5, -3.0, -0.5, -1.0]), torch.tensor([0.5, -0.5]))
    metrics = loss(inputs, one_group(2)).metrics
    assert metrics["drift_per_trajectory_sum"].item() == pytest.approx(2.0)


def test_options_that_contradict_are_refused():
    with pytest.raises(ConfigError, match="positive tau") as error:
        MirrorDescent(MirrorDescentConfig(tau=0.0, baseline=Baseline.log_mean_exp))
    assert error.value.key == "loss.tau"
    importance = ImportanceConfig(kind=ImportanceKind.masked)
    with pytest.raises(ConfigError, match="start_of_update") as error:
        MirrorDescent(MirrorDescentConfig(reference=Reference.behaviour, importance=importance))
    assert error.value.key == "loss.reference"
