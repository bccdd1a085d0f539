"""A run folder read once: its options, lines, samples, books, and what is missing of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from actors.status import COMPLETE, is_live, read_status
from actors.status import FILE as STATUS_FILE
from engine.errors import LedgerError, RunFolderError
from engine.replay.ledger import read_journal
from engine.trace import is_full
from tools.audit import Books
from tools.story.curves import Curves, read_lines


@dataclass(frozen=True)
class RunStory:
    """What is there of a run."""

    path: Path
    config: dict[str, Any]
    curves: Curves
    summary: dict[str, Any] | None
    """None: the run has not reached its end."""
    ledger: dict[str, Any]
    """``trajectories`` and ``tokens`` by state and reason, as the summary has them."""
    missing: tuple[str, ...]
    """What is not there, one sentence each."""

    @classmethod
    def read(cls, path: Path) -> RunStory:
        """Read a folder, as far as it goes.

        Raises:
            RunFolderError: it is no run folder, or a file in it is damaged.
        """
        if not (path / "config.yaml").is_file():
            raise RunFolderError(f"{path} holds no config.yaml, so it is no run folder: give the run.dir of a run")
        config = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        assert isinstance(config, dict)
        curves = Curves(read_lines(path / "metrics.jsonl"))
        summary = _summary(path)
        missing = _unfinished(path, config["learning"], curves, summary)
        if is_full(path / "trace.json"):
            missing.append("trace.json was full before the run ended (run.max_trace_mib): its lanes stop there, and "
                           "idle shares are those of the summary.")
        if not curves["heldout/accuracy"]:
            missing.append("No version was evaluated.")
        ledger = summary["ledger"] if summary else _books(path / "ledger.msgpack", missing)
        return cls(path, {str(key): value for key, value in config.items()}, curves, summary, ledger, tuple(missing))

    @property
    def name(self) -> str:
        """What tables call the run."""
        return self.config["run"]["name"] or self.path.name

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Judged responses, oldest first, as far as they were kept."""
        return read_lines(self.path / "samples.1.jsonl") + read_lines(self.path / "samples.jsonl")

    @property
    def seconds(self) -> float:
        """Training time."""
        return float(self.summary["train_seconds"]) if self.summary else self.curves.seconds


def reached_end(summary: Mapping[str, Any], updates: int, max_seconds: float) -> bool:
    """Whether a run made all its updates, or used all its time."""
    return bool(summary["updates"] >= updates or (max_seconds and summary["train_seconds"] >= max_seconds))


def _unfinished(path: Path, learning: Mapping[str, Any], curves: Curves,
                summary: Mapping[str, Any] | None) -> list[str]:
    """A sentence where the run has not reached its end."""
    planned = learning["updates"]
    if summary is None:
        # A summary is written before the folder is let go, so a live run is one without.
        if is_live(path):
            return [f"The run is still running: {curves.updates} of {planned} updates so far, no summary yet."]
        return [f"The run was cut off: {curves.updates} of {planned} updates are there, no summary."]
    # Batches that are only written, and those learned from such, are not counted as the updates of the options.
    told = read_status(path)["state"] if (path / STATUS_FILE).exists() else ""
    if told == COMPLETE or reached_end(summary, planned, learning["max_seconds"]):
        return []
    done = max(summary["updates"], curves.updates)
    return [f"The run was stopped at {done} of {planned} updates; a resume goes on from there."]


def _summary(path: Path) -> dict[str, Any] | None:
    file = path / "summary.json"
    if not file.exists():
        return None
    try:
        summary: dict[str, Any] = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise RunFolderError(f"{file} is damaged ({error.msg}): remove it and resume the run") from error
    return summary


def _books(journal: Path, missing: list[str]) -> dict[str, Any]:
    """The ledger of a run without summary, from its journal."""
    books = Books()
    try:
        for entry in read_journal(journal) if journal.exists() else ():
            books.enter(entry)
    except LedgerError as error:
        missing.append(f"The ledger is told as far as it can be followed: {error}.")
    if not books.issued:
        missing.append("The ledger is empty.")
    waiting = sum(books.open.values())
    generated = books.carried + books.masked.total() + books.dropped_tokens.total() + waiting
    tokens = {"generated": generated, "carried_loss": books.carried, "masked": dict(books.masked),
              "dropped": dict(books.dropped_tokens), "buffered": waiting, "in_transit": 0}
    trajectories = {"issued": len(books.issued), "trained": len(books.trained), "dropped": dict(Counter(books.dropped)),
                    "buffered": len(books.open), "in_flight": 0}
    return {"trajectories": trajectories, "tokens": tokens}
