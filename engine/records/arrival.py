"""What a run's journal of arrivals holds beside the controller's events: all else that decided what came next.

Actors are sequential and their work is a function of what they were asked, so a run is told by three
things: which of the open calls was answered next, who died, and when the clock was looked at (``Ticked``).
Everything between two of these follows from them. Digests stand beside them, so that a run which does not
repeat says at which update.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.records.version import PolicyVersion


@dataclass(frozen=True, slots=True)
class Answered:
    """An open call was answered, or failed."""

    call: int
    """Its place among the open calls, in the order in which they were made."""


@dataclass(frozen=True, slots=True)
class Died:
    """An actor was given up; its next incarnation takes its place, unless the next entry tells otherwise."""

    actor: str


@dataclass(frozen=True, slots=True)
class Replaced:
    """Who took the place of the actor that just died, where it is not its next incarnation."""

    actor: str
    """A later incarnation, those between having died on the way; empty: nobody, there is no room."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The learner committed a version."""

    version: PolicyVersion
    digest: str
    """Of the published weights."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """Another life of the run began, from the checkpoint that was written at this place."""

    version: PolicyVersion
