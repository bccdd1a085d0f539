"""Options of groups ``loss`` and ``learning``: by which objective the policy learns, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from engine.config.base import Config, require
from engine.config.rollout import Precision


class Baseline(Enum):
    """What a reward is compared with inside its group."""

    mean = "mean"
    leave_one_out = "leave_one_out"
    log_mean_exp = "log_mean_exp"
    none = "none"


class Reference(Enum):
    """Which policy anchors the update."""

    start_of_update = "start_of_update"
    behaviour = "behaviour"


class Ratio(Enum):
    """Level at which learner and behaviour probabilities are compared."""

    token = "token"
    sequence = "sequence"


class Aggregation(Enum):
    """How token losses become one number."""

    token_mean = "token_mean"
    sequence_mean = "sequence_mean"
    sequence_sum = "sequence_sum"


class ImportanceKind(Enum):
    """What is done about the gap between behaviour and anchor policies."""

    none = "none"
    truncated = "truncated"
    masked = "masked"


class Schedule(Enum):
    """Learning-rate schedule."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass
class ImportanceConfig(Config):
    """Importance weights between the behaviour policy and the anchor, detached."""

    kind: ImportanceKind = ImportanceKind.none
    level: Ratio = Ratio.token
    cap: float = 2.0
    """Largest weight; ``masked`` drops what lies above it."""
    floor: float = 0.0
    """Smallest weight; ``masked`` drops what lies below it."""

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.cap > self.floor >= 0.0, "loss.importance.cap", self.cap,
                "give a cap above the floor, the floor at least 0")


@dataclass
class LossConfig(Config):
    """What every objective shares; the group ``loss`` chooses a subclass."""

    name: str = ""
    baseline: Baseline = Baseline.mean
    normalise_std: bool = False
    """Divide advantages by the group's standard deviation (GRPO)."""
    kl_coefficient: float = 0.0
    """Weight of the KL to the fixed first policy, estimator k3."""
    entropy_bonus: float = 0.0
    """Weight of the mean token entropy, added to the objective."""
    importance: ImportanceConfig = field(default_factory=ImportanceConfig)

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.kl_coefficient >= 0.0, "loss.kl_coefficient", self.kl_coefficient, "give 0 or more")
        require(self.entropy_bonus >= 0.0, "loss.entropy_bonus", self.entropy_bonus, "give 0 or more")


@dataclass
class MirrorDescentConfig(LossConfig):
    """Online policy mirror descent (Kimi k1.5, eq. 3)."""

    name: str = "mirror_descent"
    tau: float = 0.1
    """Strength of the pull towards the reference."""
    reference: Reference = Reference.start_of_update
    length_normaliser: float = 1.0
    """Constant in tokens that divides S and D together; 1: plain sums."""

    def validate(self) -> None:
        """See :class:`Config`."""
        super().validate()
        require(self.tau >= 0.0, "loss.tau", self.tau, "give 0 or more")
        require(self.length_normaliser > 0.0, "loss.length_normaliser", self.length_normaliser,
                "give a positive number of tokens")


@dataclass
class ClippedConfig(LossConfig):
    """The clipped family: PPO without a critic, GRPO, Dr. GRPO, DAPO, RLOO, GSPO, CISPO as presets."""

    name: str = "clipped"
    clip_low: float = 0.2
    """The ratio may fall to 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio may rise to 1 + clip_high."""
    ratio: Ratio = Ratio.token
    aggregation: Aggregation = Aggregation.token_mean
    aggregation_constant_tokens: float = 0.0
    """Divides sequence sums (Dr. GRPO); 0: 1."""
    stop_gradient_clip: bool = False
    """Clip the detached weight of the log-prob and keep every token's gradient (CISPO)."""
    proximal: Reference = Reference.behaviour
    """Denominator of the ratio; start_of_update with importance weights is decoupled PPO."""

    def validate(self) -> None:
        """See :class:`Config`."""
        super().validate()
        for name in ("clip_low", "clip_high", "aggregation_constant_tokens"):
            value = getattr(self, name)
            require(value >= 0.0, f"loss.{name}", value, "give 0 or more")


@dataclass
class PositivesConfig(LossConfig):
    """ReST: likelihood of the correct responses only, for comparison (Kimi k1.5, fig. 10)."""

    name: str = "positives"
    baseline: Baseline = Baseline.none
    threshold: float = 1.0
    """A total reward of at least this much is fitted."""


@dataclass
class DottedLossConfig(LossConfig):
    """A loss of your own: package.module.factory, called with this config."""

    name: str = "dotted"
    path: str = ""


@dataclass
class OptimiserConfig(Config):
    """Adam with decoupled weight decay over fp32 master weights."""

    learning_rate: float = 1.0e-5
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1.0e-8
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: no clipping."""
    schedule: Schedule = Schedule.constant
    warmup_steps: int = 0
    """Optimiser steps of linear warm-up."""
    final_fraction: float = 0.0
    """Learning rate at the end of the schedule over its peak."""

    def validate(self) -> None:
        """See :class:`Config`."""
        for name in ("learning_rate", "epsilon", "weight_decay", "warmup_steps", "max_gradient_norm"):
            value = getattr(self, name)
            require(value >= 0, f"learning.optimiser.{name}", value, "give 0 or a positive number")
        for name in ("beta1", "beta2", "final_fraction"):
            value = getattr(self, name)
            fits = 0.0 <= value < 1.0 or (name == "final_fraction" and value == 1.0)
            require(fits, f"learning.optimiser.{name}", value, "give a fraction from 0 to below 1")


@dataclass
class LearningConfig(Config):
    """One update."""

    updates: int = 100
    """Updates of the whole run."""
    max_seconds: float = 0.0
    """Stop after this much training time, measured between updates; 0: no limit."""
    precision: Precision = Precision.bfloat16
    """Type of forward and backward; master weights are always fp32."""
    row_tokens: int = 4096
    """Token budget of a packed row, one row a micro-batch."""
    share_prompts: bool = True
    """Forward the prompt of a group once for all its responses."""
    reset_optimiser: bool = False
    """Clear the optimiser state at the start of every update (Kimi k1.5, section 2.3.2)."""
    allow_reset_with_one_step: bool = False
    """A freshly cleared Adam moves every weight by +-lr in one step; say so to allow it."""
    skip_zero_advantage: bool = True
    """Leave trajectories without advantage out of the forward pass where the loss allows it."""
    checkpoint_every: int = 0
    """Updates between two checkpoints; 0: only at the end and on a signal."""
    keep_checkpoints: int = 2
    num_learners: int = 1
    """Processes that share the learner's work and memory, each holding some rows of every weight."""
    rank_deadline_s: float = 300.0
    """Seconds that one of several learners may wait for the others before it counts them as dead."""
    gradient_checkpointing: bool = False
    """Keep only the input of each layer for the backward pass, which then computes the layer once more."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    @property
    def learner_names(self) -> list[str]:
        """Actor names of the learners, by rank; the first one publishes.

        Example:
            >>> LearningConfig(num_learners=2).learner_names
            ['learner', 'learner-1']
        """
        return ["learner", *(f"learner-{rank}" for rank in range(1, self.num_learners))]

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.updates >= 1, "learning.updates", self.updates, "give at least 1 update")
        require(self.max_seconds >= 0.0, "learning.max_seconds", self.max_seconds, "give 0 or seconds")
        require(self.row_tokens >= 16, "learning.row_tokens", self.row_tokens, "give at least 16 tokens")
        require(self.checkpoint_every >= 0, "learning.checkpoint_every", self.checkpoint_every,
                "give 0 or a positive number of updates")
        require(self.keep_checkpoints >= 1, "learning.keep_checkpoints", self.keep_checkpoints,
                "keep at least 1")
        require(self.num_learners >= 1, "learning.num_learners", self.num_learners, "give at least 1 learner")
        require(self.rank_deadline_s > 0.0, "learning.rank_deadline_s", self.rank_deadline_s,
                "give seconds above 0")
