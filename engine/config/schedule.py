"""Options of group ``schedule``: three schedules that differ only in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from engine.config.base import Config, require


class ScheduleKind(Enum):
    """When work is handed out and when the learner may run."""

    sync = "sync"
    iterative = "iterative"
    free = "async"


class Straggler(Enum):
    """What the learner does about a group whose tokens the next update would push past the bound."""

    wait = "wait"
    mask = "mask"


class InFlight(Enum):
    """What happens to occupied slots when new weights arrive."""

    finish = "finish"
    keep_cache = "keep_cache"
    recompute_cache = "recompute_cache"


class SegmentsInLoss(Enum):
    """Which tokens of a trajectory sampled over several rounds carry loss."""

    within_bound = "within_bound"
    current = "current"


class Refill(Enum):
    """What replaces a group without spread."""

    none = "none"
    refill = "refill"


@dataclass
class ScheduleConfig(Config):
    """How far sampling may run ahead of learning."""

    kind: str = "sync"
    """sync, iterative or async."""
    max_staleness: int = 0
    """Bound on trained minus sampled version, in versions, for every token that carries loss."""
    round_budget_tokens: int = 0
    """Tokens one trajectory may spend in one round before it is cut; 0: no cut."""
    batch_groups: int = 8
    """Groups that one update consumes."""
    min_groups: int = 0
    """Fewest complete groups an iterative round trains on; 0: batch_groups."""
    steps_per_update: int = 1
    """Optimiser steps of one update, over minibatches of groups."""
    on_straggler: Straggler = Straggler.wait
    in_flight: InFlight = InFlight.recompute_cache
    """What occupied slots do about new weights: finish under the old ones, go on over the keys they have
    (after a cut too, above bound 0), or prefill again."""
    segments_in_loss: SegmentsInLoss = SegmentsInLoss.within_bound
    no_spread: Refill = Refill.none
    """Groups whose total rewards are all equal: trained without effect, or replaced."""
    max_attempts: int = 3
    """Generators that may die with a trajectory before it is given up."""

    @property
    def rounds(self) -> bool:
        """True where work is handed out at version boundaries only: iterative, or a bound of 0."""
        return self.kind != "async" or self.max_staleness == 0

    @property
    def cut_tokens(self) -> int | None:
        """The round budget in force; None at bound 0, where nothing may be cut."""
        if self.round_budget_tokens == 0 or self.max_staleness == 0:
            return None
        return self.round_budget_tokens

    @property
    def fewest_groups(self) -> int:
        """Complete groups that an update needs."""
        if self.kind == "iterative" and self.min_groups:
            return self.min_groups
        return self.batch_groups

    def rounds_of(self, max_response_tokens: int) -> int:
        """Rounds that the longest response takes."""
        return math.ceil(max_response_tokens / self.cut_tokens) if self.cut_tokens else 1

    def validate(self) -> None:
        """See :class:`Config`."""
        kinds = [kind.value for kind in ScheduleKind]
        require(self.kind in kinds, "schedule.kind", self.kind, "choose one of " + ", ".join(kinds))
        require(self.max_staleness >= 0, "schedule.max_staleness", self.max_staleness, "give 0 or more")
        require(self.kind != "sync" or self.max_staleness == 0, "schedule.max_staleness",
                self.max_staleness, "schedule=sync is bound 0; choose schedule=async for more")
        require(self.kind != "sync" or self.round_budget_tokens == 0, "schedule.round_budget_tokens",
                self.round_budget_tokens, "schedule=sync samples to the end; choose iterative or async")
        require(self.kind != "iterative" or self.max_staleness >= 1, "schedule.max_staleness",
                self.max_staleness, "schedule=iterative carries work over, give at least 1")
        require(self.round_budget_tokens >= 0, "schedule.round_budget_tokens",
                self.round_budget_tokens, "give 0 (no cut) or a positive number of tokens")
        require(self.batch_groups >= 1, "schedule.batch_groups", self.batch_groups, "give at least 1")
        require(0 <= self.min_groups <= self.batch_groups, "schedule.min_groups", self.min_groups,
                f"give at most schedule.batch_groups={self.batch_groups}")
        require(1 <= self.steps_per_update <= self.batch_groups, "schedule.steps_per_update",
                self.steps_per_update, "give between 1 and schedule.batch_groups steps")
        require(self.max_attempts >= 1, "schedule.max_attempts", self.max_attempts, "give at least 1")
