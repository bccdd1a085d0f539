from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from engine.config.learning import ClippedConfig, LossConfig, MirrorDescentConfig, PositivesConfig
from engine.config.rollout import RolloutConfig
from engine.losses.objective import LossInputs, LossScale

FOLDER = Path(__file__).parents[3] / "configs" / "loss"
SCHEMAS = {
    "mirror_descent_schema": MirrorDescentConfig,
    "clipped_schema": ClippedConfig,
    "positives_schema": PositivesConfig,
}
# A dotted loss names a factory of its own, so there is no preset to build.
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "dotted")


def load_preset(name: str) -> LossConfig:
    """The config of a preset, merged over its schema as a composition would."""
    group = OmegaConf.load(FOLDER / f"{name}.yaml")
    schema, own = group.pop("defaults")
    assert own == "_self_"
    merged = OmegaConf.merge(OmegaConf.structured(SCHEMAS[schema]), group)
    root = OmegaConf.create({"loss": merged, "rollout": OmegaConf.structured(RolloutConfig)})
    return OmegaConf.to_object(root)["loss"]


def make_inputs(
    lengths: tuple[int, ...], advantage: torch.Tensor, *, drift: float, seed: int = 0
) -> LossInputs:
    """Random float64 log-probs; ``drift`` is the spread of the learner around every other policy."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)

    def noise() -> torch.Tensor:
        return torch.randn(tokens, generator=generator, dtype=torch.float64)

    learner = -noise().abs() - 0.1
    return LossInputs(
        learner_logprob=learner.clone().requires_grad_(),
        behaviour_logprob=learner + drift * noise(),
        reference_logprob=learner + drift * noise(),
        fixed_logprob=learner + drift * noise(),
        entropy=noise().abs().requires_grad_(),
        trajectory=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        advantage=advantage.double(),
        num_tokens=torch.tensor(lengths),
    )


def take(inputs: LossInputs, wanted: list[int]) -> LossInputs:
    """The micro-batch of some trajectories, over the same leaves, so that gradients add up there."""
    keep = torch.isin(inputs.trajectory, torch.tensor(wanted))
    names = ("learner_logprob", "behaviour_logprob", "reference_logprob", "fixed_logprob", "entropy")
    tokens = {name: value[keep] for name in names if (value := getattr(inputs, name)) is not None}
    return replace(
        inputs,
        **tokens,
        trajectory=torch.searchsorted(torch.tensor(wanted), inputs.trajectory[keep]),
        advantage=inputs.advantage[wanted],
        num_tokens=inputs.num_tokens[wanted],
    )


def scale_of(inputs: LossInputs, samples_per_prompt: int) -> LossScale:
    trajectories = inputs.advantage.numel()
    return LossScale(
        groups=trajectories // samples_per_prompt,
        trajectories=trajectories,
        tokens=int(inputs.num_tokens.sum()),
        samples_per_prompt=samples_per_prompt,
    )


@pytest.fixture(params=PRESETS)
def preset(request: pytest.FixtureRequest) -> LossConfig:
    return load_preset(request.param)


@pytest.fixture
def presets() -> Callable[[str], LossConfig]:
    return load_preset


@pytest.fixture
def inputs_of() -> Callable[..., LossInputs]:
    return make_inputs


@pytest.fixture
def part_of() -> Callable[[LossInputs, list[int]], LossInputs]:
    return take


@pytest.fixture
def scale() -> Callable[[LossInputs, int], LossScale]:
    return scale_of


@pytest.fixture
def gradient() -> Callable[[torch.Tensor, LossInputs], torch.Tensor]:
    """d loss / d learner log-probs, zeros where the loss does not depend on them."""

    def compute(loss: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
        return torch.autograd.grad(loss, inputs.learner_logprob, retain_graph=True)[0]

    return compute
