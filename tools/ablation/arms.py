"""The options of an ablation: arms, seeds, and what they are matched by."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from engine.config.base import Config, require
from engine.errors import ConfigError, nearest_name
from engine.metrics import DOCUMENTED

_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


class Match(Enum):
    """What every arm gets the same amount of."""

    updates = "updates"
    samples = "samples"
    seconds = "seconds"


class Order(Enum):
    """Which run comes next."""

    interleaved = "interleaved"
    in_turn = "in_turn"


@dataclass
class ArmConfig(Config):
    """One side of the comparison."""

    name: str = ""
    overrides: list[str] = field(default_factory=list)
    """Options over those of the base; they should say everything that sets this arm apart."""
    against: str = ""
    """Name of the arm before it in the chain; empty: none."""
    cause: str = ""
    """What this arm adds to that one, in a few words."""


@dataclass
class TargetConfig(Config):
    """How far a run has to come for `time to target`."""

    metric: str = "heldout/accuracy"
    value: float = 0.8


@dataclass
class AblationConfig(Config):
    """Everything an ablation is made of."""

    name: str = ""
    about: str = ""
    """A sentence under the title."""
    dir: str = "runs/ablation"
    base: list[str] = field(default_factory=list)
    """Options that every arm starts from, as on the command line of train."""
    arms: list[ArmConfig] = field(default_factory=list)
    only: list[str] = field(default_factory=list)
    """Names of the arms to run; empty: all."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    match: Match = Match.updates
    """What every arm gets the same amount of."""
    amount: float = 0.0
    """Updates, samples or seconds of training; 0: the updates of the base."""
    order: Order = Order.interleaved
    """Seed by seed with the order of arms rotated, or arm by arm."""
    parallel: int = 1
    """Runs side by side; more than one only where each has devices of its own."""
    deadline_s: float = 1800.0
    """Seconds that one run may take, its start included."""
    target: TargetConfig = field(default_factory=TargetConfig)
    metrics: list[str] = field(default_factory=list)
    """Further metrics to compare, mean over updates."""
    report_only: bool = False
    """Run nothing: report what lies there."""

    def validate(self) -> None:
        """See :class:`Config`."""
        names = [arm.name for arm in self.arms]
        require(len(self.arms) >= 2, "arms", names, "name at least two arms to compare")
        for name in names:
            require(bool(_NAME.fullmatch(name)), "arms", name, "name arms in lower case, digits and underscores")
            require(names.count(name) == 1, "arms", name, "give every arm a name of its own")
        for key, asked in (("only", self.only), ("against", [arm.against for arm in self.arms if arm.against])):
            for name in asked:
                require(name in names, key, name, f"there is no such arm: {nearest_name(name, names)}")
        for i, arm in enumerate(self.arms):
            require(arm.against not in names[i:], "against", arm.against, f"name an arm that comes before {arm.name!r}")
        for key, metric in (("target.metric", self.target.metric), *(("metrics", name) for name in self.metrics)):
            if metric not in DOCUMENTED:
                raise ConfigError(key, metric, f"there is no such metric: {nearest_name(metric, DOCUMENTED)}")
        self._validate_numbers()

    def _validate_numbers(self) -> None:
        require(len(set(self.seeds)) == len(self.seeds) > 0, "seeds", self.seeds, "give one seed or more, each once")
        require(self.amount >= 0.0, "amount", self.amount, "give 0 or more")
        require(self.match is Match.updates or self.amount > 0.0, "amount", self.amount,
                f"say how many {self.match.value} every arm gets")
        require(self.parallel >= 1, "parallel", self.parallel, "run at least one at a time")
        require(self.deadline_s > 0.0, "deadline_s", self.deadline_s, "give seconds above 0")

    @property
    def chosen(self) -> list[ArmConfig]:
        """The arms to run, in their order."""
        return [arm for arm in self.arms if not self.only or arm.name in self.only]
