from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from engine.config.learning import (
    DottedLossConfig,
    LossConfig,
    MirrorDescentConfig,
    Reference,
)
from engine.errors import ConfigError
from engine.losses.clipped import Clipped
from engine.losses.mirror_descent import MirrorDescent
from engine.losses.objective import Loss, LossScale, build_loss, mean_metrics
from engine.losses.positives import Positives

REWARDS = torch.tensor(
    [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64
)
LENGTHS = (3, 1, 5, 2, 4, 2, 2, 1, 0, 6, 3, 2)

EXPECTED = {
    "cispo": Clipped,
    "dapo": Clipped,
    "decoupled_ppo": Clipped,
    "dr_grpo": Clipped,
    "gspo": Clipped,
    "grpo": Clipped,
    "kimi": MirrorDescent,
    "mirror_descent": MirrorDescent,
    "positives": Positives,
    "ppo": Clipped,
    "rloo": Clipped,
    "tis": MirrorDescent,
}


def batch(loss: Loss, inputs_of, **options):
    advantage = torch.cat([loss.advantage(rewards) for rewards in REWARDS])
    return inputs_of(LENGTHS, advantage, **options)


@pytest.mark.parametrize(("name", "kind"), EXPECTED.items())
def test_every_preset_builds_its_loss(presets, name, kind):
    loss = build_loss(presets(name))
    assert type(loss) is kind
    assert isinstance(loss, Loss)


def test_every_preset_is_listed():
    folder = Path(__file__).parents[3] / "configs" / "loss"
    assert {path.stem for path in folder.glob("*.yaml")} == {*EXPECTED, "dotted"}


@pytest.mark.parametrize("terms", [{}, {"kl_coefficient": 0.3, "entropy_bonus": 0.2}])
def test_loss_does_not_depend_on_micro_batches(preset, terms, inputs_of, part_of, scale):
    loss = build_loss(replace(preset, **terms))
    inputs = batch(loss, inputs_of, drift=0.6)
    size = scale(inputs, 4)
    leaves = (inputs.learner_logprob, inputs.entropy)
    whole = loss(inputs, size)
    expected = torch.autograd.grad(whole.loss, leaves, allow_unused=True)
    for parts in (
        [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11]],
        [[j] for j in range(12)],
        [[0, 11], [1, *range(2, 11)]],
    ):
        outputs = [loss(part_of(inputs, part), size) for part in parts]
        total = sum(output.loss for output in outputs)
        torch.testing.assert_close(total, whole.loss)
        torch.testing.assert_close(torch.autograd.grad(total, leaves, allow_unused=True), expected)
        for key, value in whole.metrics.items():
            torch.testing.assert_close(sum(output.metrics[key] for output in outputs), value)


@pytest.mark.parametrize("first_step", [True, False])
@pytest.mark.parametrize("terms", [{}, {"kl_coefficient": 0.3}, {"entropy_bonus": 0.2}, {"tau": 0.0}])
def test_skipping_zero_advantage_changes_no_gradient(preset, terms, first_step, inputs_of, part_of, scale):
    known = {name: value for name, value in terms.items() if hasattr(preset, name)}
    loss = build_loss(replace(preset, **known))
    inputs = batch(loss, inputs_of, drift=0.6)
    if first_step:
        inputs = replace(inputs, reference_logprob=None)
    size = scale(inputs, 4)
    leaves = (inputs.learner_logprob, inputs.entropy)
    kept = torch.nonzero(inputs.advantage).flatten().tolist()
    assert len(kept) < 12
    whole = torch.autograd.grad(loss(inputs, size).loss, leaves, allow_unused=True)
    less = torch.autograd.grad(loss(part_of(inputs, kept), size).loss, leaves, allow_unused=True)
    same = all(a is b or torch.allclose(a, b) for a, b in zip(whole, less, strict=True))
    assert loss.skips_zero_advantage(first_step) == same


def test_metrics_are_detached_scalars(preset, inputs_of, scale):
    loss = build_loss(replace(preset, kl_coefficient=0.3, entropy_bonus=0.2))
    inputs = batch(loss, inputs_of, drift=0.3)
    output = loss(inputs, scale(inputs, 4))
    assert output.loss.shape == ()
    for key, value in output.metrics.items():
        assert key.endswith("_sum") or key in {"tokens", "trajectories"}
        assert value.shape == ()
        assert not value.requires_grad
    assert output.metrics["tokens"] == sum(LENGTHS)
    assert output.metrics["trajectories"] == 12


def test_mean_metrics_divide_by_their_own_count():
    sums = {"tokens": torch.tensor(8.0), "trajectories": 2.0, "a_sum": 4.0, "b_per_trajectory_sum": 4.0}
    assert mean_metrics(sums) == {"a": 0.5, "b_per_trajectory": 2.0}


def test_needs_follow_the_options():
    def needs(**options):
        loss = build_loss(MirrorDescentConfig(**options))
        return loss.needs_reference, loss.needs_fixed, loss.needs_entropy

    assert needs() == (True, False, False)
    assert needs(tau=0.0) == (False, False, False)
    assert needs(reference=Reference.behaviour) == (False, False, False)
    assert needs(tau=0.0, kl_coefficient=0.1) == (False, True, False)
    assert needs(tau=0.0, entropy_bonus=0.1) == (False, False, True)


def test_all_but_positives_select_everything(preset):
    chosen = build_loss(preset).selects(REWARDS[0])
    assert chosen.dtype == torch.bool
    assert chosen.tolist() == ([True, False, False, True] if preset.name == "positives" else [True] * 4)


def test_anchor_without_a_reference_pass_is_the_learner(inputs_of):
    inputs = inputs_of((2, 1), torch.zeros(2), drift=1.0)
    start = replace(inputs, reference_logprob=None).anchor_logprob(Reference.start_of_update)
    assert torch.equal(start, inputs.learner_logprob)
    assert not start.requires_grad
    assert torch.equal(inputs.anchor_logprob(Reference.start_of_update), inputs.reference_logprob)
    assert torch.equal(inputs.anchor_logprob(Reference.behaviour), inputs.behaviour_logprob)


def test_sums_per_trajectory_know_empty_ones(inputs_of):
    inputs = inputs_of((2, 0, 1), torch.zeros(3), drift=1.0)
    assert inputs.sum_per_trajectory(torch.tensor([1.0, 2.0, 4.0])).tolist() == [3.0, 0.0, 4.0]
    assert inputs.spread_over_tokens(torch.tensor([1.0, 2.0, 4.0])).tolist() == [1.0, 1.0, 4.0]


def test_inputs_of_unequal_length_are_refused(inputs_of):
    inputs = inputs_of((2, 1), torch.zeros(2), drift=1.0)
    with pytest.raises(AssertionError, match="behaviour_logprob"):
        replace(inputs, behaviour_logprob=inputs.behaviour_logprob[:-1])


def test_scale_counts_something():
    with pytest.raises(AssertionError, match="at least one trajectory"):
        LossScale(groups=0, trajectories=0, tokens=0, samples_per_prompt=4)
    assert LossScale(groups=1, trajectories=4, tokens=0, samples_per_prompt=4).per_token == 1.0


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("", "dotted path"),
        ("nowhere", "dotted path"),
        ("engine.losses.nowhere.Loss", "cannot be imported"),
        ("engine.losses.clipped.Clippd", "did you mean 'Clipped'"),
        ("builtins.repr", "expected an engine.losses.objective.Loss, got str"),
    ],
)
def test_a_path_that_leads_to_no_loss_is_named(path, hint):
    with pytest.raises(ConfigError, match=hint) as error:
        build_loss(DottedLossConfig(path=path))
    assert error.value.key == "loss.path"
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_dotted_factory_is_called_with_the_config(monkeypatch):
    class Own:
        needs_reference = needs_fixed = needs_entropy = False

        def __init__(self, config):
            self.config = config

        def advantage(self, rewards): ...
        def skips_zero_advantage(self, first_step): ...
        def selects(self, rewards): ...
        def __call__(self, inputs, scale): ...

    module = ModuleType("losses_of_my_own")
    module.Own = Own
    monkeypatch.setitem(sys.modules, module.__name__, module)
    config = DottedLossConfig(path="losses_of_my_own.Own", kl_coefficient=0.5)
    loss = build_loss(config)
    assert isinstance(loss, Own)
    assert loss.config is config


def test_a_config_of_a_known_kind_may_be_extended():
    @dataclass
    class Mine(MirrorDescentConfig):
        extra: int = 1

    assert type(build_loss(Mine())) is MirrorDescent


def test_an_unnamed_loss_is_refused():
    with pytest.raises(ConfigError, match="choose a loss"):
        build_loss(LossConfig())
