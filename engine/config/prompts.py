"""Options of group ``prompts``: where questions come from and in which order they are drawn."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from engine.config.base import Config, require
from engine.errors import ConfigError


class PromptSource(Enum):
    """Where prompts come from."""

    task = "task"
    file = "file"
    dataset = "dataset"
    dotted = "dotted"


class PromptOrder(Enum):
    """How the next prompt is chosen."""

    epoch = "epoch"
    curriculum = "curriculum"
    priority = "priority"


class BadRows(Enum):
    """What a broken row of a prompt file does."""

    stop = "stop"
    skip = "skip"


@dataclass
class CurriculumConfig(Config):
    """From easy to hard on a schedule of updates (Kimi k1.5, section 2.3.4)."""

    uniform_updates: int = 24
    """Updates that draw from every difficulty before the hard ones are preferred."""
    hard_quantile: float = 0.5
    """After that, only prompts at or above this quantile of difficulty are drawn, 0..1."""

    def validate(self) -> None:
        """See :class:`Config`."""
        require(0.0 <= self.hard_quantile < 1.0, "prompts.curriculum.hard_quantile",
                self.hard_quantile, "give a fraction of at least 0 and below 1")
        require(self.uniform_updates >= 0, "prompts.curriculum.uniform_updates",
                self.uniform_updates, "give 0 or more updates")


@dataclass
class PriorityConfig(Config):
    """Draw in proportion to 1 - success rate (Kimi k1.5, section 2.3.4)."""

    window: int = 16
    """Newest verdicts per prompt that the success rate looks at."""
    floor: float = 0.05
    """Smallest weight, so that a solved prompt is still seen."""
    initial_success_rate: float = 0.5
    """Assumed before the first verdict, 0..1."""

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.window >= 1, "prompts.priority.window", self.window, "give at least 1 verdict")
        require(0.0 < self.floor <= 1.0, "prompts.priority.floor", self.floor,
                "give a weight above 0 and at most 1")
        require(0.0 <= self.initial_success_rate <= 1.0, "prompts.priority.initial_success_rate",
                self.initial_success_rate, "give a fraction between 0 and 1")


@dataclass
class PromptsConfig(Config):
    """Training and held-out prompts."""

    source: PromptSource = PromptSource.task
    task: str = "chain_sum"
    """Name of a reasoning-gym task, for source=task."""
    task_options: dict[str, Any] = field(default_factory=dict)
    """Options of that task, as reasoning-gym names them."""
    path: str = ""
    """A .jsonl or .parquet file (source=file) or a Hugging Face dataset folder (source=dataset)."""
    heldout_path: str = ""
    """A second file or folder for evaluation; empty: split from ``path`` by question text."""
    dotted_path: str = ""
    """package.module.function for source=dotted; called with this config, returns a list of Prompt."""
    system: str = ""
    """System message put before every question; empty: none."""
    instruction: str = ""
    """Text appended to every question; empty: none."""
    num_train: int = 2048
    """Training prompts made from a task."""
    num_heldout: int = 64
    """Held-out prompts; never trained on."""
    seed: int = 0
    """Seed of the task generator and of the split; the order is drawn from ``seed`` of the run."""
    order: PromptOrder = PromptOrder.epoch
    bad_rows: BadRows = BadRows.stop
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    priority: PriorityConfig = field(default_factory=PriorityConfig)
    must_match: str = ""
    """Regular expression that a task's question must contain; others are left out; empty: all count."""

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.source is not PromptSource.task or bool(self.task), "prompts.task", self.task,
                "name a reasoning-gym task, for example chain_sum")
        needs_path = self.source in (PromptSource.file, PromptSource.dataset)
        require(not needs_path or bool(self.path), "prompts.path", self.path,
                f"source={self.source.value} needs a path")
        require(self.source is not PromptSource.dotted or "." in self.dotted_path,
                "prompts.dotted_path", self.dotted_path, "give package.module.function")
        require(self.num_train >= 1, "prompts.num_train", self.num_train, "give at least 1 prompt")
        require(self.num_heldout >= 1, "prompts.num_heldout", self.num_heldout,
                "give at least 1 prompt, evaluation needs it")
        try:
            re.compile(self.must_match)
        except re.error as error:
            raise ConfigError("prompts.must_match", self.must_match,
                              f"not a regular expression: {error}") from error
