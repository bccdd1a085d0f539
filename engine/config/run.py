"""The whole of a run, and the checks between groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from engine.config.base import Config, require
from engine.config.cluster import ClusterConfig, ClusterKind, Device, Placement, WeightChannelKind, WeightsConfig
from engine.config.learning import Baseline, LearningConfig, LossConfig, MirrorDescentConfig
from engine.config.model import ModelConfig, ModelSource
from engine.config.prompts import PromptsConfig
from engine.config.rewards import RewardConfig
from engine.config.rollout import GeneratorConfig, RolloutConfig
from engine.config.schedule import ScheduleConfig


class Exists(Enum):
    """What to do about a run folder that is already there."""

    refuse = "refuse"
    resume = "resume"
    overwrite = "overwrite"


class Only(Enum):
    """Parts of the loop to run alone."""

    all = "all"
    rollout = "rollout"
    learn = "learn"


@dataclass
class RunSection(Config):
    """The run folder."""

    dir: str = "runs/default"
    name: str = ""
    """Shown in tables; empty: the folder's name."""
    seed: int = 0
    exists: Exists = Exists.refuse
    quiet: bool = False
    """No live progress line."""
    wandb: bool = False
    """Also log to Weights & Biases, where its package is installed."""
    max_sample_mib: int = 16
    """Size at which samples.jsonl is rotated."""
    dump_rollouts: bool = False
    """Write every consumed group to rollouts/, readable by train.only=learn."""
    trace: bool = True
    """Write trace.json: who did what, when, and who waited for what; open it with ui.perfetto.dev."""
    max_trace_mib: int = 64
    """Size at which trace.json stops growing."""

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.max_trace_mib >= 1, "run.max_trace_mib", self.max_trace_mib,
                "give at least 1 MiB, or run.trace=false")


@dataclass
class EvaluationConfig(Config):
    """Evaluation while training goes on, pinned to one version."""

    every: int = 10
    """Updates between two evaluations; 0: only before and after."""
    deferred: bool = False
    """Keep the weights of due versions in the run folder and evaluate them once training has ended: its time then
    holds no evaluation."""
    samples: int = 0
    """Further sampled answers per prompt for mean@k and pass@k; 0: greedy only."""
    temperature: float = 1.0
    """Temperature of the further samples."""
    slots: int = 64

    @property
    def every_in_training(self) -> int:
        """Updates between two evaluations while training goes on; 0: there are none."""
        return 0 if self.deferred else self.every

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.every >= 0, "evaluation.every", self.every, "give 0 or a positive number of updates")
        require(self.samples >= 0, "evaluation.samples", self.samples, "give 0 or more")
        require(self.temperature > 0.0, "evaluation.temperature", self.temperature,
                "samples need a temperature above 0; the first answer is greedy by itself")
        require(self.slots >= 1, "evaluation.slots", self.slots, "give at least 1 slot")


@dataclass
class CanaryConfig(Config):
    """Rounds at learning rate 0 on a fresh start: generator and learner must agree on log-probs."""

    prompts: int = 4
    """Prompts answered once each; 0 switches the canary off."""
    threshold_nats: float = 0.1
    """Largest mean absolute gap between behaviour and learner log-probs."""

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.prompts >= 0, "canary.prompts", self.prompts, "give 0 (off) or more")
        require(self.threshold_nats > 0.0, "canary.threshold_nats", self.threshold_nats,
                "give nats above 0, or canary.prompts=0")


@dataclass
class TrainConfig(Config):
    """Which part of the loop runs."""

    only: Only = Only.all
    rollouts: str = ""
    """Folder of rollouts that only=learn reads."""


@dataclass
class RunConfig(Config):
    """Everything a run is made of; ``config.yaml`` of a run folder holds exactly this."""

    seed: int = 0
    run: RunSection = field(default_factory=RunSection)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(source=ModelSource.packaged))
    loss: LossConfig = field(default_factory=MirrorDescentConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    canary: CanaryConfig = field(default_factory=CanaryConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def validate(self) -> None:
        """Checks between groups; each raises with the dotted key and the remedy."""
        k = self.rollout.samples_per_prompt
        require(k > 1 or self.loss.baseline is Baseline.none, "rollout.samples_per_prompt", k,
                f"one sample has no {self.loss.baseline.value} baseline: every advantage would be 0; "
                "give at least 2, or loss.baseline=none")
        learning, schedule = self.learning, self.schedule
        lone_reset = learning.reset_optimiser and schedule.steps_per_update == 1
        require(not lone_reset or learning.allow_reset_with_one_step, "learning.reset_optimiser",
                True, "with one optimiser step per update a cleared Adam moves every weight by +-lr "
                "whatever the gradient; raise schedule.steps_per_update, or set "
                "learning.allow_reset_with_one_step=true")
        rounds = schedule.rounds_of(self.rollout.max_response_tokens)
        require(schedule.kind != "iterative" or schedule.max_staleness >= rounds - 1,
                "schedule.max_staleness", schedule.max_staleness,
                f"the longest response takes {rounds} rounds, so finished siblings of slow "
                f"trajectories would lose their loss; give at least {rounds - 1}, or a larger "
                "schedule.round_budget_tokens")
        if self.cluster.placement is Placement.colocated:
            self._check_turns()
        context = self.generator.context_tokens
        need = self.rollout.max_prompt_tokens + self.rollout.max_response_tokens
        require(context == 0 or context >= need, "generator.context_tokens", context,
                f"prompt and response budgets need {need} tokens")
        require(self.train.only is not Only.learn or bool(self.train.rollouts), "train.rollouts",
                self.train.rollouts, "train.only=learn reads a folder of rollouts, name it")
        if learning.num_learners > 1:
            self._check_learners()

    def _check_learners(self) -> None:
        """What several learners need."""
        key, count = "learning.num_learners", self.learning.num_learners
        require(self.cluster.kind is ClusterKind.ray, key, count,
                "several learners are processes of their own: set cluster=ray, or give 1")
        require(self.model.adapter.rank == 0, key, count,
                "adapters are trained by one learner: give 1, or model.adapter.rank=0")
        schedule = self.schedule
        fewest = schedule.fewest_groups // schedule.steps_per_update * self.rollout.samples_per_prompt
        require(count <= fewest, key, count,
                f"an optimiser step has {fewest} trajectories and none is split: give at most {fewest}, or a "
                "larger schedule.batch_groups")
        cluster, asked = self.cluster, self.cluster.resources
        gpus = asked.learner.gpus
        # Ray gives two of them one GPU where both fit on it. Colocated, they find it in the bundle of a generator.
        taken = gpus + asked.generator.gpus * (cluster.placement is Placement.colocated)
        require(cluster.device is not Device.cuda or (gpus > 0 and taken > 0.5), "cluster.resources.learner.gpus", gpus,
                "NCCL refuses two ranks on one GPU: ask for one for each learner")

    def _check_turns(self) -> None:
        """Generators and learner must be able to take turns on a device."""
        require(self.schedule.rounds, "cluster.placement", "colocated",
                "with schedule=async generators sample while the learner learns, so they cannot take turns on a "
                "device; choose schedule=iterative, which cuts at the round budget, schedule=sync, or disaggregated")
        require(self.weights.channel is not WeightChannelKind.nccl, "weights.channel", "nccl",
                "NCCL refuses two processes on one GPU, as colocated generators and learner are; choose "
                "weights=shared_memory or weights=object_store")
