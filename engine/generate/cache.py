"""Slots: rows of the key-value cache that trajectories hold while they decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.records.version import PolicyVersion
from engine.records.work import Request


@dataclass(frozen=True, slots=True)
class PrefillPass:
    """F rows of one prefill pass; rows beyond what is needed have position -1."""

    tokens: NDArray[np.int64]
    """[F] token ids."""
    slots: NDArray[np.int64]
    """[F] slot of each row."""
    positions: NDArray[np.int64]
    """[F] position within the slot."""
    spans: dict[int, tuple[int, int]]
    """Slot -> first position and number of keys that the pass computes for it."""


class SlotTable:
    """Tokens, lengths and cache contents of all slots; slots are taken lowest first.

    A slot's ``filled`` counts the positions whose keys are valid; it is ready to decode when only its
    newest token has no key yet.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        """Slots of so many tokens each; their keys lie where :meth:`hold` says."""
        self.keys = self.values = torch.empty(0)
        self.slots = slots
        self.capacity = capacity
        self.tokens = np.zeros((self.slots, self.capacity + 1), np.int64)
        self.logprobs = np.zeros((self.slots, self.capacity + 1), np.float32)
        self.length = np.zeros(self.slots, np.int64)
        self.prompt_length = np.zeros(self.slots, np.int64)
        self.filled = np.zeros(self.slots, np.int64)
        self.occupied = np.zeros(self.slots, bool)
        self._prompt: list[bytes] = [b""] * self.slots

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Take over a cache, each [layers, S, C, heads, d], in which no key is valid yet."""
        assert keys.shape[1:3] == (self.slots, self.capacity), "a cache of another size"
        self.keys, self.values = keys, values

    def drop_keys(self) -> None:
        """Let go of the cache; no key is valid any more."""
        self.keys = self.values = torch.empty(0)
        self.forget_keys()

    def free(self) -> list[int]:
        """Free slots, lowest first."""
        return [int(slot) for slot in np.flatnonzero(~self.occupied)]

    def take(self, slot: int, request: Request) -> None:
        """Give a slot to a request; keys it still holds of the same tokens stay valid."""
        prompt, earlier = request.prompt_tokens, request.generated
        whole = np.concatenate([prompt, earlier]).astype(np.int64)
        total = len(whole)
        if self.length[slot] != total or not np.array_equal(self.tokens[slot, :total], whole):
            self.filled[slot] = 0
        self.tokens[slot, :total] = whole
        self.length[slot] = total
        self.prompt_length[slot] = len(prompt)
        self.occupied[slot] = True
        self._prompt[slot] = prompt.tobytes()

    def vacate(self, slot: int) -> None:
        """Free a slot, but leave its keys where they are until another request takes it."""
        self.occupied[slot] = False

    def release(self, slot: int) -> None:
        """Free a slot."""
        self.occupied[slot] = False
        self.length[slot] = 0
        self.filled[slot] = 0
        self._prompt[slot] = b""

    def response(self, slot: int) -> NDArray[np.int64]:
        """[T] response tokens so far, earlier segments included."""
        return self.tokens[slot, self.prompt_length[slot] : self.length[slot]]

    def response_logprobs(self, slot: int) -> NDArray[np.float32]:
        """[T] behaviour log-probs beside :meth:`response`; those of earlier stays are not kept here."""
        return self.logprobs[slot, self.prompt_length[slot] : self.length[slot]]

    def ready(self) -> NDArray[np.int64]:
        """Slots whose newest token is the only one without a key."""
        return np.flatnonzero(self.occupied & (self.filled == self.length - 1))

    def unready(self) -> NDArray[np.int64]:
        """Occupied slots that still need prefill."""
        return np.flatnonzero(self.occupied & (self.filled < self.length - 1))

    def forget_keys(self) -> None:
        """All keys are of older weights now: every occupied slot must be prefilled again."""
        self.filled[:] = 0

    def copy_shared_prompt(self, slot: int, fresh: NDArray[np.bool_]) -> int:
        """Copy prompt keys from a slot that already holds the same prompt; return positions gained.

        Samples of one group share their prompt; its keys are computed once. Only ``fresh`` slots, [S]
        bool, whose keys are all of the weights served now, may be copied from. Keys are computed in passes
        of one size, so a copy has the bits that the slot's own computation would give.
        """
        shared = int(self.prompt_length[slot]) - 1
        if self.filled[slot] >= shared:
            return 0
        for other in np.flatnonzero(self.occupied & fresh & (self.filled >= shared)):
            if other != slot and self._prompt[other] == self._prompt[slot]:
                self.keys[:, slot, :shared] = self.keys[:, other, :shared]
                self.values[:, slot, :shared] = self.values[:, other, :shared]
                gained = shared - int(self.filled[slot])
                self.filled[slot] = shared
                return gained
        return 0

    def plan_prefill(self, order: Sequence[int], rows: int) -> PrefillPass:
        """Fill the rows of one pass with what slots lack, in ``order``.

        A slot whose prompt is on its way through this pass for another slot waits, and copies it then.
        """
        tokens, slots = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        positions = np.full(rows, -1, np.int64)
        spans: dict[int, tuple[int, int]] = {}
        prompts: set[bytes] = set()
        used = 0
        for slot in order:
            first, last = int(self.filled[slot]), int(self.length[slot]) - 1
            waits = first < self.prompt_length[slot] - 1 and self._prompt[slot] in prompts
            count = min(last - first, rows - used)
            if waits or count <= 0:
                continue
            span = slice(used, used + count)
            tokens[span] = self.tokens[slot, first : first + count]
            slots[span] = slot
            positions[span] = np.arange(first, first + count)
            spans[slot] = (first, count)
            prompts.add(self._prompt[slot])
            used += count
        return PrefillPass(tokens, slots, positions, spans)


class ParkedSlots:
    """Free slots that still hold the keys of cut trajectories, in case these come back.

    They are given to others only when no other slot is free, those that were parked longest first.
    """

    def __init__(self, table: SlotTable, keep: bool) -> None:
        """With ``keep`` False nothing is ever parked."""
        self._table, self._keep = table, keep
        self._held: dict[int, tuple[int, PolicyVersion]] = {}

    def leave(self, slot: int, trajectory_id: int, oldest_key_version: PolicyVersion, cut: bool) -> None:
        """Free the slot of a trajectory; its keys stay if it was cut and will come back."""
        if self._keep and cut:
            self._table.vacate(slot)
            self._held[trajectory_id] = (slot, oldest_key_version)
        else:
            self._table.release(slot)

    def place(self, request: Request) -> tuple[int, PolicyVersion | None]:
        """Take a free slot, of which there must be one.

        Returns:
            The slot, and the version of the oldest key that the trajectory still had there, or None without any.
        """
        slot, version = self._held.pop(request.trajectory_id, (-1, None))
        if version is None:
            parked = {slot for slot, _ in self._held.values()}
            slot = next((slot for slot in self._table.free() if slot not in parked), -1)
            if slot < 0:
                slot, _ = self._held.pop(next(iter(self._held)))
                self._table.release(slot)
        self._table.take(slot, request)
        return slot, version if self._table.filled[slot] else None

    def clear(self) -> None:
        """Forget all keys: other weights are served now."""
        for slot, _ in self._held.values():
            self._table.release(slot)
        self._held.clear()
