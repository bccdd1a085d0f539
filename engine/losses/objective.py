"""What every objective receives and returns, and how the one named in the configuration is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from engine.config.learning import (
    ClippedConfig,
    DottedLossConfig,
    LossConfig,
    MirrorDescentConfig,
    PositivesConfig,
    Reference,
)
from engine.errors import ConfigError, nearest_name
from engine.ops.segments import partition, segment_broadcast, segment_sum


@dataclass(frozen=True, slots=True)
class LossInputs:
    """One micro-batch: the loss-carrying tokens of all its trajectories, concatenated.

    A trajectory is never split: all its loss-carrying tokens are here, so sums over a trajectory are
    complete before the backward pass. Log-probs are in nats at the temperature of the draw.
    """

    learner_logprob: Tensor
    """[M] fp32, requires grad."""
    behaviour_logprob: Tensor
    """[M] fp32, recorded when the token was drawn."""
    reference_logprob: Tensor | None
    """[M] fp32, the policy at the start of the update. None when nobody asks for it, and at the first
    step of an update, where that policy is the learner itself."""
    fixed_logprob: Tensor | None
    """[M] fp32, the fixed first policy; given when the loss ``needs_fixed``."""
    entropy: Tensor | None
    """[M] fp32 nats, requires grad; given when the loss ``needs_entropy``."""
    trajectory: Tensor
    """[M] int64, the trajectory of each token, 0..N-1, ascending."""
    advantage: Tensor
    """[N] fp32."""
    num_tokens: Tensor
    """[N] loss-carrying tokens of each trajectory."""
    cu_seqlens: Tensor = field(init=False)
    """[N + 1] int32, where each trajectory starts: worked out once for every sum and spread."""

    def __post_init__(self) -> None:
        tokens = self.learner_logprob.shape
        for name in ("behaviour_logprob", "reference_logprob", "fixed_logprob", "entropy", "trajectory"):
            value = getattr(self, name)
            assert value is None or value.shape == tokens, f"{name}: expected {tokens}, got {value.shape}"
        assert self.num_tokens.shape == self.advantage.shape, "num_tokens and advantage are both [N]"
        starts = partition(self.trajectory, None, self.trajectory, self.advantage.shape[0], None)
        object.__setattr__(self, "cu_seqlens", starts)

    def sum_per_trajectory(self, values: Tensor) -> Tensor:
        """Sums of token values: [M] -> [N], differentiable."""
        return segment_sum(values, cu_seqlens=self.cu_seqlens)

    def spread_over_tokens(self, values: Tensor) -> Tensor:
        """Each token the value of its trajectory: [N] -> [M], differentiable."""
        return segment_broadcast(values, cu_seqlens=self.cu_seqlens, total=self.trajectory.shape[0])

    def anchor_logprob(self, reference: Reference) -> Tensor:
        """[M] log-probs, detached, of the policy that the update is anchored to.

        At the first step of an update the policy at its start is the learner itself, so that a reference
        pass would return these very numbers: without one they are taken from the learner.
        """
        if reference is Reference.behaviour:
            return self.behaviour_logprob.detach()
        if self.reference_logprob is None:
            return self.learner_logprob.detach()
        return self.reference_logprob.detach()


@dataclass(frozen=True, slots=True)
class LossScale:
    """Sizes of the whole minibatch, over all micro-batches and ranks, known before the first backward.

    Trajectories that were left out of the forward pass for want of advantage count like the others.
    """

    groups: int
    """Groups of the minibatch."""
    trajectories: int
    """Trajectories of the minibatch."""
    tokens: int
    """Loss-carrying tokens of the minibatch, those of left-out trajectories included."""
    samples_per_prompt: int
    """K."""

    def __post_init__(self) -> None:
        smallest = min(self.groups, self.trajectories, self.samples_per_prompt)
        assert smallest >= 1, f"a minibatch has at least one trajectory: {self}"
        assert self.tokens >= 0, f"tokens are counted from 0: {self}"

    @property
    def per_token(self) -> float:
        """Weight of one token in a mean over tokens; 1 where the minibatch carries no token at all."""
        return 1.0 / max(self.tokens, 1)


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What one micro-batch adds to the minibatch."""

    loss: Tensor
    """Scalar to minimise; the loss of the minibatch is the sum over its micro-batches."""
    metrics: dict[str, Tensor]
    """Detached scalar sums, to be added up over micro-batches and ranks; read by :func:`mean_metrics`."""


@runtime_checkable
class Loss(Protocol):
    """An objective over the log-probs of sampled responses."""

    needs_reference: bool
    """Wants ``reference_logprob`` from the second step of an update on."""
    needs_fixed: bool
    """Wants ``fixed_logprob``."""
    needs_entropy: bool
    """Wants ``entropy``."""

    def advantage(self, rewards: Tensor) -> Tensor:
        """Advantages of one whole group from its total rewards: [K] -> [K]."""
        ...

    def skips_zero_advantage(self, first_step: bool) -> bool:
        """Whether a trajectory whose advantage is 0 has no gradient and needs no forward pass.

        ``first_step``: the learner is still the policy at the start of the update.
        """
        ...

    def selects(self, rewards: Tensor) -> Tensor:
        """Which trajectories of a group carry loss at all: [K] -> [K] bool."""
        ...

    def __call__(self, inputs: LossInputs, scale: LossScale) -> LossOutput:
        """The share of one micro-batch in the loss of its minibatch."""
        ...


# Named by path, as a loss of one's own is: one way in, and this module stays below those it names.
_FACTORIES: dict[type[LossConfig], str] = {
    MirrorDescentConfig: "engine.losses.mirror_descent.MirrorDescent",
    ClippedConfig: "engine.losses.clipped.Clipped",
    PositivesConfig: "engine.losses.positives.Positives",
}


def build_loss(config: LossConfig) -> Loss:
    """The objective that a configuration names.

    A :class:`DottedLossConfig` names a factory ``package.module.factory``, called with the config itself.

    Raises:
        ConfigError: no loss has this name, the path does not lead to a loss, or options contradict.

    Example:
        >>> build_loss(MirrorDescentConfig(tau=0.0)).needs_reference
        False
    """
    if isinstance(config, DottedLossConfig):
        return _build(config.path, config)
    for kind in type(config).__mro__:
        if kind in _FACTORIES:
            return _build(_FACTORIES[kind], config)
    raise ConfigError("loss.name", config.name, "choose a loss, for example loss=mirror_descent")


def _build(path: str, config: LossConfig) -> Loss:
    loss = _load(path)(config)
    if not isinstance(loss, Loss):
        raise ConfigError(
            "loss.path", path, f"expected an engine.losses.objective.Loss, got {type(loss).__name__}"
        )
    return loss


def _load(path: str) -> Any:
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ConfigError("loss.path", path, "give a dotted path, package.module.factory")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ConfigError("loss.path", path, f"{module_name} cannot be imported: {error}") from error
    if not hasattr(module, name):
        raise ConfigError(
            "loss.path", path, f"{module_name} has no {name!r}: {nearest_name(name, vars(module))}"
        )
    return getattr(module, name)


def batch_metrics(inputs: LossInputs) -> dict[str, Tensor]:
    """The counts that every loss reports: what :func:`mean_metrics` divides by."""
    counts = inputs.learner_logprob.new_tensor
    return {
        "tokens": counts(inputs.learner_logprob.numel()),
        "trajectories": counts(inputs.advantage.numel()),
    }


def mean_metrics(sums: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Means from metrics that were added up over micro-batches and ranks.

    ``x_sum`` is a sum over tokens and becomes ``x``; ``x_per_trajectory_sum`` is a sum over trajectories
    and becomes ``x_per_trajectory``; ``tokens`` and ``trajectories`` are the counts.

    Example:
        >>> mean_metrics({"tokens": 4, "trajectories": 2, "clip_fraction_sum": 1.0})
        {'clip_fraction': 0.25}
    """
    means = {}
    for key, value in sums.items():
        if key.endswith("_sum"):
            count = sums["trajectories" if key.endswith("_per_trajectory_sum") else "tokens"]
            means[key.removesuffix("_sum")] = float(value) / max(float(count), 1.0)
    return means


def all_selected(rewards: Tensor) -> Tensor:
    """Every trajectory of the group carries loss: [K] -> [K] bool."""
    return torch.ones_like(rewards, dtype=torch.bool)
