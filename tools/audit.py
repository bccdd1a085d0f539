"""Audit a run folder: nothing trained twice, nothing lost, every sum closed: ``perilune audit RUNDIR``."""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from engine.errors import CheckpointError, LedgerError, PeriluneError
from engine.learn.checkpoint import Checkpoint, read_checkpoint
from engine.records.codec import decode
from engine.records.trajectory import DropReason
from engine.replay.ledger import read_journal


@dataclass(slots=True)
class Books:
    """A journal read once more, from nothing."""

    open: dict[int, int] = field(default_factory=dict)
    """Outstanding trajectory id -> delivered tokens."""
    issued: set[int] = field(default_factory=set)
    trained: set[int] = field(default_factory=set)
    carried: int = 0
    masked: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_tokens: Counter[str] = field(default_factory=Counter)

    def enter(self, entry: list[Any]) -> None:
        """Follow one entry.

        Raises:
            LedgerError: it contradicts those before it.
        """
        kind, *rest = entry
        if kind == "issue":
            if rest[0] in self.issued:
                raise LedgerError(f"trajectory {rest[0]} was issued twice")
            self.issued.add(rest[0])
            self.open[rest[0]] = 0
        elif kind == "deliver":
            self.open[self._outstanding([rest[0]], entry)[0]] += rest[1]
        elif kind == "dispatch":
            self._outstanding(rest[0], entry)
        elif kind == "drop":
            delivered = self._leave(rest[0], entry)
            self.dropped.update([rest[1]] * len(delivered))
            self.dropped_tokens[rest[1]] += sum(delivered)
        elif kind == "lose":
            self.dropped_tokens[DropReason.generator_lost.value] += rest[2]
        elif kind == "consume":
            self._consume(entry)

    def _consume(self, entry: list[Any]) -> None:
        _, ids, carried, masked = entry
        delivered = sum(self._leave(ids, entry))
        if delivered != carried + sum(masked.values()):
            raise LedgerError(f"{entry} accounts for other tokens than the {delivered} delivered")
        self.trained.update(ids)
        self.carried += carried
        self.masked.update(masked)

    def _outstanding(self, ids: list[int], entry: list[Any]) -> list[int]:
        missing = [key for key in ids if key not in self.open]
        if missing or len(set(ids)) != len(ids):
            twice = sorted(set(missing) & self.trained)
            raise LedgerError(f"{entry[0]} of {missing or ids}, not outstanding; trained before: {twice}")
        return ids

    def _leave(self, ids: list[int], entry: list[Any]) -> list[int]:
        return [self.open.pop(key) for key in self._outstanding(ids, entry)]


def audit(folder: Path) -> dict[str, Any]:
    """Read a run's journal again and hold its checkpoints and its summary against it.

    Returns:
        Trajectories issued, trained and dropped, tokens that carried loss and checkpoints looked at.

    Raises:
        LedgerError: the first contradiction: a trajectory trained twice or never issued, tokens that do
            not add up, a segment that a checkpoint lacks, or a summary that says something else.
    """
    marks = dict(_held(path) for path in _whole(folder / "checkpoints"))
    books, position = Books(), 0
    for entry in read_journal(folder / "ledger.msgpack"):
        books.enter(entry)
        position += len(msgpack.packb(entry, use_bin_type=True))
        if marks.get(position, books.open) != books.open:
            raise LedgerError(f"a checkpoint holds {marks[position]}, the journal delivered {books.open}")
    if marks and max(marks) > position:
        raise LedgerError(f"the journal ends at byte {position}, a checkpoint stands at {max(marks)}")
    summary = folder / "summary.json"
    if summary.exists():
        _compare(books, json.loads(summary.read_text())["ledger"])
    return {"issued": len(books.issued), "trained": len(books.trained), "dropped": dict(books.dropped),
            "carried_loss": books.carried, "checkpoints": len(marks)}


def _whole(root: Path) -> list[Checkpoint]:
    found = []
    for path in sorted(root.glob("update-*")):
        with suppress(CheckpointError):  # a resume passes over what is damaged, and so does the audit
            found.append(read_checkpoint(path))
    return found


def _held(checkpoint: Checkpoint) -> tuple[int, dict[int, int]]:
    """Bytes of the journal before a checkpoint, and trajectory id -> tokens that it holds."""
    _, trajectories = decode(decode(checkpoint.read("replay.msgpack"))["held"])
    position = decode(checkpoint.read("driver.msgpack"))["ledger"]["position"]
    return position, {trajectory.trajectory_id: trajectory.length for trajectory in trajectories}


def _compare(books: Books, told: dict[str, Any]) -> None:
    trajectories, tokens = told["trajectories"], told["tokens"]
    pairs = {
        "issued": (len(books.issued), trajectories["issued"]),
        "trained": (len(books.trained), trajectories["trained"]),
        "dropped": (dict(books.dropped), trajectories["dropped"]),
        "carried_loss": (books.carried, tokens["carried_loss"]),
        "masked": (dict(books.masked), tokens["masked"]),
        "closes": (True, told["closes"]),
    }
    for name, (found, said) in pairs.items():
        if found != said:
            raise LedgerError(f"{name}: the journal says {found}, the summary {said}")


def main() -> None:
    """Audit the folder on the command line."""
    if len(sys.argv) != 2:
        print("usage: perilune audit RUNDIR", file=sys.stderr)
        raise SystemExit(2)
    try:
        print(json.dumps(audit(Path(sys.argv[1])), indent=2))
    except (PeriluneError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
