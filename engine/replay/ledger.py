"""The ledger: an append-only journal of every trajectory's life, and two sums that must close.

Trajectories::

    issued = trained + dropped(reason) + buffered + in flight

Tokens::

    generated = carried loss + masked(reason) + dropped(reason) + buffered + in transit

"generated" and "in transit" come from each generator's own counters, the rest from what was delivered
and consumed, so that a token lost or counted twice on the way opens the sum. Evaluation and canary have
accounts of their own.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

from engine.errors import LedgerError
from engine.records.trajectory import DropReason


class Ledger:
    """Counts of every state, backed by a journal on disk.

    Example:
        >>> ledger = Ledger(None)
        >>> ledger.issue(7, 0, "p")
        >>> ledger.deliver(7, tokens=5, finished=True)
        >>> ledger.report("g", generated=5, in_slots=0)
        >>> ledger.consume([7], carried=4, masked={"stale": 1})
        >>> ledger.check()
    """

    def __init__(self, path: Path | None) -> None:
        """Open the journal for appending; None keeps none."""
        self._file = None if path is None else path.open("ab")
        self._position = 0 if self._file is None else self._file.tell()
        self._open: dict[int, list[Any]] = {}
        """Trajectory id -> [the generator that works on it, empty: none; delivered tokens]."""
        self._issued = 0
        self._trained = 0
        self._dropped: Counter[str] = Counter()
        self._carried = 0
        self._masked: Counter[str] = Counter()
        self._dropped_tokens: Counter[str] = Counter()
        self._generators: dict[str, tuple[int, int]] = {}
        self._past_generated = 0
        self._accounts: Counter[str] = Counter()

    # ---- entries -------------------------------------------------------------------------------

    def _write(self, *entry: Any) -> None:
        if self._file is not None:
            data = msgpack.packb(entry, use_bin_type=True)
            self._file.write(data)
            self._position += len(data)

    def issue(self, trajectory_id: int, group_id: int, prompt_id: str) -> None:
        """A trajectory exists from now on, in replay.

        Raises:
            LedgerError: it is outstanding already.
        """
        if trajectory_id in self._open:
            raise LedgerError(f"trajectory {trajectory_id} was issued twice")
        self._open[trajectory_id] = ["", 0]
        self._issued += 1
        self._write("issue", trajectory_id, group_id, prompt_id)

    def dispatch(self, trajectory_ids: Sequence[int], generator: str) -> None:
        """A generator works on these now.

        Raises:
            LedgerError: one is not outstanding.
        """
        self._require_open(trajectory_ids, "were dispatched")
        for trajectory_id in trajectory_ids:
            self._open[trajectory_id][0] = generator
        self._write("dispatch", list(trajectory_ids), generator)

    def deliver(self, trajectory_id: int, tokens: int, finished: bool) -> None:
        """Tokens of it arrived and lie in replay.

        Raises:
            LedgerError: it is not outstanding.
        """
        self._require_open([trajectory_id], "were delivered")
        state = self._open[trajectory_id]
        state[0] = ""
        state[1] += tokens
        self._write("deliver", trajectory_id, tokens, finished)

    def report(self, generator: str, generated: int, in_slots: int) -> None:
        """A generator's own cumulative count, and what it has not delivered."""
        self._generators[generator] = (generated, in_slots)

    def lose(self, generator: str) -> None:
        """A generator died: what it had not delivered, by its last report, is dropped.

        What it worked on waits in replay again. Nothing it says later may be reported or delivered.
        """
        for state in self._open.values():
            if state[0] == generator:
                state[0] = ""
        generated, in_slots = self._generators.pop(generator, (0, 0))
        self._past_generated += generated
        self._dropped_tokens[DropReason.generator_lost.value] += in_slots
        self._write("lose", generator, generated, in_slots)

    def consume(self, trajectory_ids: Sequence[int], carried: int, masked: Mapping[str, int]) -> None:
        """An update trained these; their tokens carried loss or were masked for a reason.

        Raises:
            LedgerError: the learner's account does not add up to what was delivered.
        """
        self._require_open(trajectory_ids, "were trained")
        delivered = sum(self._open[key][1] for key in trajectory_ids)
        if delivered != carried + sum(masked.values()):
            raise LedgerError(
                f"the learner accounted for {carried} + {dict(masked)} tokens, replay delivered {delivered}"
            )
        for key in trajectory_ids:
            del self._open[key]
        self._trained += len(trajectory_ids)
        self._carried += carried
        self._masked.update(masked)
        self._write("consume", list(trajectory_ids), carried, dict(masked))

    def drop(self, trajectory_ids: Sequence[int], reason: DropReason) -> None:
        """These leave without being trained.

        Raises:
            LedgerError: one is not outstanding.
        """
        self._require_open(trajectory_ids, "were dropped")
        for trajectory_id in trajectory_ids:
            tokens = self._open.pop(trajectory_id)[1]
            self._dropped[reason.value] += 1
            self._dropped_tokens[reason.value] += tokens
        self._write("drop", list(trajectory_ids), reason.value)

    def _require_open(self, trajectory_ids: Sequence[int], event: str) -> None:
        missing = [key for key in trajectory_ids if key not in self._open]
        if missing:
            raise LedgerError(f"trajectories {missing} {event}, but are not outstanding")
        if len(set(trajectory_ids)) != len(trajectory_ids):
            raise LedgerError(f"trajectories {list(trajectory_ids)} {event}, one of them twice")

    def account(self, name: str, tokens: int) -> None:
        """Tokens of evaluation or canary, outside the sums."""
        self._accounts[name] += tokens

    # ---- sums ----------------------------------------------------------------------------------

    def end(self) -> None:
        """The run is over: whatever is outstanding is dropped with that reason."""
        for generator, (_, in_slots) in list(self._generators.items()):
            self._dropped_tokens[DropReason.end_of_run.value] += in_slots
            self._past_generated += self._generators.pop(generator)[0]
        self.drop(sorted(self._open), DropReason.end_of_run)

    def counts(self) -> dict[str, Any]:
        """Trajectories and tokens by state and reason, and whether both sums close."""
        flying = sum(bool(state[0]) for state in self._open.values())
        transit = sum(in_slots for _, in_slots in self._generators.values())
        trajectories = {
            "issued": self._issued, "trained": self._trained, "dropped": dict(self._dropped),
            "buffered": len(self._open) - flying, "in_flight": flying,
        }
        tokens = {
            "generated": self._past_generated + sum(made for made, _ in self._generators.values()),
            "carried_loss": self._carried, "masked": dict(self._masked),
            "dropped": dict(self._dropped_tokens),
            "buffered": sum(state[1] for state in self._open.values()), "in_transit": transit,
        }
        return {
            "trajectories": trajectories, "tokens": tokens, "accounts": dict(self._accounts),
            "closes": self._closes(trajectories, "issued") and self._closes(tokens, "generated"),
        }

    @staticmethod
    def _closes(counts: Mapping[str, Any], total: str) -> bool:
        parts = [value for key, value in counts.items() if key != total]
        return counts[total] == sum(
            sum(part.values()) if isinstance(part, Mapping) else part for part in parts
        )

    def check(self) -> None:
        """Raise unless both sums close.

        Raises:
            LedgerError: with every count, so that the missing tokens can be looked for.
        """
        counts = self.counts()
        if not counts["closes"]:
            raise LedgerError(f"the ledger does not close: {counts}")

    # ---- state ---------------------------------------------------------------------------------

    def sync(self) -> int:
        """Force the journal to disk; returns its length in bytes, the position of a checkpoint."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._position

    def state_dict(self) -> dict[str, Any]:
        """Counts and the journal's position; generators start their counters anew after a resume.

        What lies undelivered in slots is not part of it: a resume samples those tokens again.
        """
        delivered = sum(made - in_slots for made, in_slots in self._generators.values())
        generated = self._past_generated + delivered
        return {
            "position": self.sync(), "open": {str(k): list(v) for k, v in self._open.items()},
            "issued": self._issued, "trained": self._trained, "dropped": dict(self._dropped),
            "carried": self._carried, "masked": dict(self._masked),
            "dropped_tokens": dict(self._dropped_tokens), "generated": generated,
            "accounts": dict(self._accounts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume: truncate the journal at the checkpoint's position and take up its counts.

        Raises:
            LedgerError: the journal is shorter than that, so that a part of its story is gone.
        """
        if self._file is not None:
            size = self._file.seek(0, os.SEEK_END)
            if size < state["position"]:
                raise LedgerError(
                    f"the journal {self._file.name} has {size} bytes, its checkpoint stands at "
                    f"{state['position']}: restore the file, or start anew with another run.dir"
                )
            self._file.truncate(state["position"])
            self._file.seek(0, os.SEEK_END)
            self._position = state["position"]
        self._open = {int(key): ["", value[1]] for key, value in state["open"].items()}
        self._issued, self._trained = state["issued"], state["trained"]
        self._dropped = Counter(state["dropped"])
        self._carried, self._masked = state["carried"], Counter(state["masked"])
        self._dropped_tokens = Counter(state["dropped_tokens"])
        self._past_generated = state["generated"]
        self._generators = {}
        self._accounts = Counter(state["accounts"])

    def restart(self) -> None:
        """Forget an earlier life that left no checkpoint: the journal begins anew."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.seek(0)
            self._position = 0

    def metrics(self) -> dict[str, float]:
        """The loss-carrying share of all tokens consumed, and what was dropped for which reason."""
        consumed = self._carried + sum(self._masked.values())
        return {
            "learn/loss_carrying_fraction": self._carried / consumed if consumed else 1.0,
            **{f"ledger/dropped_{reason}_trajectories": float(count) for reason, count in self._dropped.items()},
            **{f"ledger/dropped_{reason}_tokens": float(count) for reason, count in self._dropped_tokens.items()},
        }

    def close(self) -> None:
        """Flush and close the journal."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_journal(path: Path) -> list[list[Any]]:
    """Entries of a journal, for audits; a torn last entry, as a kill leaves it, is left out.

    Raises:
        LedgerError: what stands before the end is not an entry; the message says at which byte.
    """
    entries: list[list[Any]] = []
    with path.open("rb") as file:
        unpacker = msgpack.Unpacker(file, raw=False)
        while True:
            start = unpacker.tell()
            try:
                entry = unpacker.unpack()
            except msgpack.OutOfData:
                return entries
            except (msgpack.UnpackException, ValueError) as error:
                raise LedgerError(f"journal {path} is damaged at byte {start}: {error}") from error
            if not isinstance(entry, list) or not entry or not isinstance(entry[0], str):
                raise LedgerError(f"journal {path} is damaged at byte {start}: {entry!r} is no entry")
            entries.append(entry)
