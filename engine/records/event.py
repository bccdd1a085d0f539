"""What reaches the controller, and what it asks for: ids, counts and versions, never tokens.

The inbox of a run is the sequence of its events; fed back, it reproduces the same commands.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.records.trajectory import DropReason, Outcome
from engine.records.version import PolicyVersion
from engine.records.work import Progress


@dataclass(frozen=True, slots=True)
class Drawn:
    """Prompts were drawn, in this order."""

    prompt_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progressed:
    """A generator answered: what it serves, and whose tokens arrived."""

    generator: str
    version: PolicyVersion
    items: tuple[Progress, ...] = ()


@dataclass(frozen=True, slots=True)
class JudgedItem:
    """One verdict without its text."""

    trajectory_id: int
    outcome: Outcome
    score: float = 0.0
    """Of a verdict that is ok."""
    correct: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """Verdicts arrived; groups without spread in their total rewards are named."""

    items: tuple[JudgedItem, ...]
    no_spread: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Updated:
    """The learner finished an update; not committed means version and weights are unchanged."""

    version: PolicyVersion
    committed: bool
    last: bool = False
    """The time for training is up: the run is complete with this update."""


@dataclass(frozen=True, slots=True)
class GeneratorLost:
    """A generator died or overran its deadline; what it held is gone."""

    generator: str


@dataclass(frozen=True, slots=True)
class NobodyFollows:
    """A lost generator has no successor: there is no room for one."""

    generator: str


@dataclass(frozen=True, slots=True)
class GeneratorJoined:
    """A generator serves this version and may be given work."""

    generator: str
    version: PolicyVersion


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """The barrier may be lifted."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed; leases look at it. Seconds of the injected clock."""

    now: float


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Checkpoint and end, from outside."""


Event = (
    Drawn | Progressed | Judged | Updated | GeneratorLost | NobodyFollows | GeneratorJoined | CheckpointWritten
    | Ticked | StopRequested
)


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw this many prompts."""

    count: int


@dataclass(frozen=True, slots=True)
class Admit:
    """Open a group: replay learns of its prompt and members."""

    group_id: int
    prompt_id: str
    trajectory_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Hand trajectories, new or unfinished, to a generator, in this order."""

    generator: str
    trajectory_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Judge:
    """Judge finished trajectories."""

    trajectory_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Train:
    """Update on these groups, sorted by id."""

    group_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    """Send the newest weights to every generator."""

    version: PolicyVersion


@dataclass(frozen=True, slots=True)
class DropGroup:
    """Forget a group; nothing of it will be trained."""

    group_id: int
    prompt_id: str
    reason: DropReason
    quarantine: bool = False
    """Never draw its prompt again."""
    age_versions: int = 0
    """Versions from its oldest token, or from its issue where nothing was sampled, to now."""


@dataclass(frozen=True, slots=True)
class CutAll:
    """Cut every slot of a generator: the barrier of a checkpoint."""

    generator: str


@dataclass(frozen=True, slots=True)
class WriteCheckpoint:
    """Everything is at rest: write it down."""


@dataclass(frozen=True, slots=True)
class Restart:
    """A lease expired: end this generator and start another in its place."""

    generator: str


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence for the person who watches."""

    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is complete, or was asked to end."""

    stopped: bool = False


Command = (
    Draw | Admit | Dispatch | Judge | Train | Publish | DropGroup | CutAll | WriteCheckpoint | Restart
    | Note | Finish
)
