"""The exception tree and its policy.

A user's mistake raises before any process starts, as a :class:`ConfigError` with the dotted key, the
value and the remedy. A programmer's mistake is an ``assert``. The failure of one trajectory is a value
(a verdict with an outcome, a drop with a reason), never an exception. The failure of an actor travels to
``actors/supervisor.py``, which alone may restart. Every class here survives pickling, so that an error
raised inside an actor arrives whole.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class PeriluneError(Exception):
    """Root of every error that Perilune raises on purpose."""


class ConfigError(PeriluneError, ValueError):
    """An option that cannot work: its dotted key, its value, and what to do instead."""

    def __init__(self, key: str, value: Any, remedy: str) -> None:
        super().__init__(key, value, remedy)
        self.key = key
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.key}={self.value!r}: {self.remedy}"


class RecordError(PeriluneError, ValueError):
    """A record that breaks its own contract, or bytes that do not decode to one."""


class PromptError(PeriluneError, ValueError):
    """A prompt source that cannot serve: a broken row (file and line), an empty or overlapping set."""


class ModelError(PeriluneError, ValueError):
    """A model or tokenizer folder that is missing, incomplete or of an unsupported family."""


class JudgeError(PeriluneError):
    """A judge that cannot be built or reached. A failed judgement is a verdict, not this."""


class WeightChannelError(PeriluneError):
    """Weights that were not delivered whole: a digest, shape or deadline that did not hold."""


class CheckpointError(PeriluneError):
    """A checkpoint that is damaged, missing or of another format."""


class LedgerError(PeriluneError):
    """A conservation sum that does not close: tokens or trajectories were lost or counted twice."""


class StalenessError(PeriluneError):
    """A token older than the bound was about to be trained on."""


class NonFiniteError(PeriluneError):
    """A loss, gradient or log-prob that is not finite; the step was not committed."""


class RunFolderError(PeriluneError):
    """A run folder that exists, cannot be written, or has no room left."""


class DivergedError(PeriluneError):
    """A recorded run that did not repeat: where the two part, and what came instead."""


class ActorError(PeriluneError):
    """An actor that died or did not answer: which one, during what, and what was tried."""

    def __init__(self, actor: str, during: str, detail: str) -> None:
        super().__init__(actor, during, detail)
        self.actor = actor
        self.during = during
        self.detail = detail

    def __str__(self) -> str:
        return f"actor {self.actor} during {self.during}: {self.detail}"


class RankError(PeriluneError):
    """The ranks of a learner that did not meet, or lost one of them: a death of the learner."""


class ClusterError(PeriluneError):
    """A cluster without room, out of reach, or left over from another run."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A sentence that names the closest known word, or lists what is known.

    Example:
        >>> nearest_name("tua", ["tau", "baseline"])
        "did you mean 'tau'?"
    """
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(options)
