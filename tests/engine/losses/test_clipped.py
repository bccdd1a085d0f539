from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.config.learning import (
    Aggregation,
    Baseline,
    ClippedConfig,
    ImportanceConfig,
    ImportanceKind,
    Ratio,
    Reference,
)
from engine.config.rollout import RolloutConfig
from engine.errors import ConfigError
from engine.losses.clipped import Clipped
from engine.losses.objective import LossInputs

LENGTHS = (3, 1, 5, 2)
ADVANTAGE = torch.tensor([0.5, -0.5, 1.0, -1.0])


def on_ratio(inputs: LossInputs, log_ratio: torch.Tensor) -> LossInputs:
    """The same batch with given log-ratios of learner to behaviour."""
    return replace(inputs, behaviour_logprob=inputs.learner_logprob.detach() - log_ratio)


def per_token(values: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
    return values.double()[inputs.trajectory]


@pytest.fixture
def inputs(inputs_of) -> LossInputs:
    return inputs_of(LENGTHS, ADVANTAGE, drift=0.05)


@pytest.mark.parametrize(
    ("aggregation", "weight"),
    [
        (Aggregation.token_mean, [1 / 11] * 4),
        (Aggregation.sequence_mean, [1 / 12, 1 / 4, 1 / 20, 1 / 8]),
        (Aggregation.sequence_sum, [1 / 40] * 4),
    ],
)
def test_inside_the_region_it_is_the_plain_policy_gradient(inputs, scale, gradient, aggregation, weight):
    loss = Clipped(ClippedConfig(aggregation=aggregation, aggregation_constant_tokens=10.0))
    inputs = on_ratio(inputs, torch.zeros(11, dtype=torch.float64))
    output = loss(inputs, scale(inputs, 4))
    expected = -per_token(ADVANTAGE * torch.tensor(weight), inputs)
    torch.testing.assert_close(gradient(output.loss, inputs), expected, atol=1e-8, rtol=1e-6)
    assert output.metrics["clip_fraction_sum"] == 0


def test_sequence_sum_without_a_constant_divides_by_sequences_alone(inputs, scale, gradient):
    loss = Clipped(ClippedConfig(aggregation=Aggregation.sequence_sum))
    inputs = on_ratio(inputs, torch.zeros(11, dtype=torch.float64))
    expected = -per_token(ADVANTAGE, inputs) / 4
    torch.testing.assert_close(gradient(loss(inputs, scale(inputs, 4)).loss, inputs), expected)


def test_the_clip_cuts_only_what_goes_further(inputs, scale, gradient):
    """Above the bound with a positive advantage, below it with a negative one; never the way back."""
    log_ratio = torch.tensor(
        [0.5, -0.5, 0.0, -0.5, 0.5, -0.5, 0.2, 0.0, 0.0, 0.5, -0.5], dtype=torch.float64
    )
    inputs = on_ratio(inputs, log_ratio)
    output = Clipped(ClippedConfig(clip_low=0.2, clip_high=0.3))(inputs, scale(inputs, 4))
    advantage, ratio = per_token(ADVANTAGE, inputs), log_ratio.exp()
    cut = ((advantage > 0) & (ratio > 1.3)) | ((advantage < 0) & (ratio < 0.8))
    assert cut.tolist() == [True, False, False, True, True, False, False, False, False, False, True]
    expected = torch.where(cut, 0.0, -advantage * ratio) / 11
    torch.testing.assert_close(gradient(output.loss, inputs), expected)
    assert output.metrics["clip_fraction_sum"] == 4
    bounded = torch.where(cut, ratio.clamp(0.8, 1.3), ratio)
    torch.testing.assert_close(output.loss, -(bounded * advantage).mean())


def test_cispo_keeps_the_gradient_of_clipped_tokens(inputs, scale, gradient):
    log_ratio = torch.tensor([1.0] * 9 + [0.1, 0.0], dtype=torch.float64)
    inputs = on_ratio(inputs, log_ratio)
    ppo = Clipped(ClippedConfig())(inputs, scale(inputs, 4))
    cispo = Clipped(ClippedConfig(stop_gradient_clip=True))(inputs, scale(inputs, 4))
    advantage = per_token(ADVANTAGE, inputs)
    assert torch.all(gradient(ppo.loss, inputs)[advantage > 0] == 0)
    weight = log_ratio.exp().clamp(max=1.2)
    torch.testing.assert_close(gradient(cispo.loss, inputs), -weight * advantage / 11)
    assert cispo.metrics["clip_fraction_sum"] == 9


def test_gspo_ratio_is_the_geometric_mean_of_a_sequence(inputs, scale, gradient):
    config = ClippedConfig(ratio=Ratio.sequence, aggregation=Aggregation.sequence_mean)
    output = Clipped(config)(inputs, scale(inputs, 4))
    log_ratio = (inputs.learner_logprob - inputs.behaviour_logprob).detach()
    ratio = torch.stack([part.mean().exp() for part in log_ratio.split(LENGTHS)])
    torch.testing.assert_close(output.loss, -(ratio * ADVANTAGE.double()).mean())
    lengths = torch.tensor(LENGTHS)
    expected = -per_token(ratio * ADVANTAGE / lengths, inputs) / 4
    torch.testing.assert_close(gradient(output.loss, inputs), expected)


def test_gspo_clips_whole_sequences(inputs, scale, gradient):
    log_ratio = torch.tensor([1.0, -1.0, 0.03, 0, 1.0, -1.0, 1.0, -1.0, 2.0, 0, 0], dtype=torch.float64)
    config = ClippedConfig(ratio=Ratio.sequence, clip_low=0.1, clip_high=0.1)
    inputs = on_ratio(inputs, log_ratio)
    found = gradient(Clipped(config)(inputs, scale(inputs, 4)).loss, inputs)
    assert (found != 0).tolist() == [True] * 4 + [False] * 5 + [True] * 2


def test_rloo_is_reinforce_with_the_others_as_baseline(presets, inputs, scale, gradient):
    loss = Clipped(presets("rloo"))
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.0], dtype=torch.float64)
    inputs = replace(inputs, advantage=loss.advantage(rewards))
    expected = -per_token((rewards - rewards.mean()) * 4 / 3, inputs) / 4
    torch.testing.assert_close(gradient(loss(inputs, scale(inputs, 4)).loss, inputs), expected)


def test_dr_grpo_divides_by_the_response_budget(presets):
    assert presets("dr_grpo").aggregation_constant_tokens == RolloutConfig().max_response_tokens


def test_decoupled_ppo_clips_around_the_start_and_weighs_by_the_gap(inputs_of, scale, gradient):
    inputs = inputs_of(LENGTHS, ADVANTAGE, drift=0.5)
    importance = ImportanceConfig(kind=ImportanceKind.truncated, cap=1.2)
    loss = Clipped(ClippedConfig(proximal=Reference.start_of_update, importance=importance))
    assert loss.needs_reference
    advantage = per_token(ADVANTAGE, inputs)
    learner = inputs.learner_logprob.detach()
    ratio = (learner - inputs.reference_logprob).exp()
    weight = (inputs.reference_logprob - inputs.behaviour_logprob).exp().clamp(max=1.2)
    cut = ratio.clamp(0.8, 1.2) * advantage < ratio * advantage
    assert 0 < cut.sum() < 11
    assert (weight == 1.2).any()
    expected = torch.where(cut, 0.0, -weight * advantage * ratio) / 11
    torch.testing.assert_close(gradient(loss(inputs, scale(inputs, 4)).loss, inputs), expected)

    first = loss(replace(inputs, reference_logprob=None), scale(inputs, 4))
    assert first.metrics["ratio_sum"] == 11
    weight = (learner - inputs.behaviour_logprob).exp().clamp(max=1.2)
    torch.testing.assert_close(gradient(first.loss, inputs), -weight * advantage / 11)


def test_group_normalisation_reaches_the_advantage():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    plain, scaled = (
        Clipped(ClippedConfig(normalise_std=flag)).advantage(rewards) for flag in (False, True)
    )
    torch.testing.assert_close(scaled, plain / 0.5, rtol=1e-5, atol=0)


def test_options_that_contradict_are_refused():
    with pytest.raises(ConfigError, match="mirror_descent"):
        Clipped(ClippedConfig(baseline=Baseline.log_mean_exp))
    with pytest.raises(ConfigError, match="start_of_update") as error:
        Clipped(ClippedConfig(importance=ImportanceConfig(kind=ImportanceKind.truncated)))
    assert error.value.key == "loss.proximal"
