"""The native sampler: continuous batching over preallocated slots, with nothing but torch.

One step admits what waits, prefills in passes of fixed size, then decodes one token for every ready
slot. Decode always runs all slots and prefill always runs the same number of rows, so that neither
neighbours nor position change a bit of a trajectory. Randomness is counter-based: the key comes from
(run seed, trajectory id, attempt), the counter is the position in the response, so a trajectory that was
cut continues the same stream anywhere.

When weights are swapped, ``finish`` lets the slots empty first and admits nothing meanwhile;
``keep_cache`` goes on over the old keys and says so on the segment; ``recompute_cache`` prefills every
slot again. A swap that finds another one pending replaces it. Only ``keep_cache`` spares parked keys.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from engine.config.rollout import RepetitionConfig
from engine.config.schedule import InFlight
from engine.generate.cache import ParkedSlots, SlotTable
from engine.generate.partial import OpenTrajectory
from engine.generate.passes import Passes
from engine.generate.prefill import may_wait
from engine.generate.repetition import RepetitionWatch
from engine.generate.sampler import Abilities, StagedWeights
from engine.generate.slotted import Slotted
from engine.generate.stop import StopRule
from engine.models.decoder import Decoder
from engine.ops.sample import random_key
from engine.records.trajectory import FinishReason
from engine.records.work import Delivery


class NativeSampler(Slotted[int, OpenTrajectory]):
    """Continues trajectories of one policy; see :class:`engine.generate.sampler.Sampler`."""

    abilities = Abilities(counter_streams=True, equal_bits=True)

    def __init__(self, decoder: Decoder, slots: int, prefill_tokens: int, *, context_tokens: int,
                 stop_ids: Iterable[int], repetition: RepetitionConfig, seed: int, park: bool = False,
                 asleep: bool = False) -> None:
        """Allocate slots; nothing is admitted before weights arrived by :meth:`swap`.

        Args:
            decoder: the forward, its weights still to be loaded.
            slots: trajectories that decode at once.
            prefill_tokens: rows of a prefill pass.
            context_tokens: capacity of a slot.
            stop_ids: tokens that end a response.
            repetition: when a response is looping.
            seed: of the run; part of every random key.
            park: a cut trajectory's keys wait in its slot; it goes on over them if they are still there.
            asleep: allocate no cache before :meth:`wake`; the decoder is bare then.
        """
        super().__init__(slots, context_tokens)
        self._decoder = decoder
        self._seed = seed
        self._table = SlotTable(slots, context_tokens)
        self._passes = Passes(decoder, self._table, prefill_tokens)
        self._parked = ParkedSlots(self._table, park)
        self._stop = StopRule(stop_ids, decoder.config.vocab_size)
        self._watch = RepetitionWatch(repetition, slots) if repetition.enabled else None
        self._keys = np.zeros(slots, np.int64)
        self._temperature = np.zeros(slots, np.float32)
        self._limit = np.zeros(slots, np.int64)
        self._cut_length = np.zeros(slots, np.int64)
        if not asleep:
            self._passes.open()

    # ---- turns on a device that others use too -------------------------------------------------

    def sleep(self) -> None:
        """Free cache and weights, parked keys too; every slot must be empty."""
        self._serves_nothing()
        self._parked.clear()
        self._passes.sleep()

    def wake(self) -> None:
        """Allocate cache and weights again; the next :meth:`swap` fills these."""
        self._passes.wake()

    # ---- trajectories --------------------------------------------------------------------------

    def _admit(self) -> None:
        if not self._admits():
            return
        for _ in self._table.free()[: len(self._waiting)]:
            request = self._waiting.popleft()
            slot, key_version = self._parked.place(request)
            held = self._open[slot] = OpenTrajectory.begin(request, self.version, key_version)
            self._counts["kept_resume_tokens"] += int(self._table.filled[slot])
            self._keys[slot] = random_key(self._seed, request.trajectory_id, request.attempt)
            self._temperature[slot] = request.temperature
            self._limit[slot] = request.max_response_tokens
            self._cut_length[slot] = held.cut_length
            if self._watch is not None:
                self._watch.restart(slot, self._table.response(slot))

    def _leave(self, slot: int, reason: FinishReason | None) -> Delivery:
        held = self._open.pop(slot)
        response = self._table.response(slot)
        held.close_segment(response, self._table.response_logprobs(slot))
        saved = int(self._limit[slot]) - len(response) if reason is FinishReason.repetition else 0
        self._counts["saved_tokens"] += saved
        self._counts["delivered_tokens"] += sum(s.num_sampled for s in held.closed)
        self._parked.leave(slot, held.request.trajectory_id, held.oldest_key_version, cut=reason is None)
        return held.delivery(reason, saved)

    def cut_all(self) -> list[Delivery]:
        """Cut every slot, and hand back waiting requests as deliveries without segments."""
        deliveries = [self._leave(slot, None) for slot in sorted(self._open)]
        deliveries += self._hand_back()
        self._apply_pending()
        return deliveries

    def swap(self, staged: StagedWeights, mode: InFlight) -> None:
        """Serve other weights from the next token on; the module says what the three modes do.

        Raises:
            ModelError: the weights belong to another model.
        """
        self._pending = None
        if mode is InFlight.finish and self._open:
            self._pending = staged
            return
        kept, table = mode is InFlight.keep_cache, self._table
        self._load(staged, kept)
        if self._open:
            self._counts["swaps_while_decoding"] += 1
        for slot, held in self._open.items():
            held.close_segment(table.response(slot), table.response_logprobs(slot))
            held.swapped(staged.version, keys=int(table.filled[slot]), kept=kept)
        if not kept:
            table.forget_keys()

    def _load(self, staged: StagedWeights, kept: bool = False) -> None:
        self._decoder.load(staged.tensors)
        if not kept:
            self._parked.clear()
        self._serves(staged)

    def _apply_pending(self) -> None:
        if self._pending is not None and not self._open:
            self._load(self._pending)
            self._pending = None

    def step(self) -> list[Delivery]:
        """Sample one token for every ready slot; return the trajectories that left theirs."""
        self._apply_pending()
        self._admit()
        if not self._open:
            return []
        self._prefill()
        ready = self._table.ready()
        if len(ready) == 0:
            return []
        tokens, logprobs = self._passes.decode(ready, self._keys, self._temperature)
        table = self._table
        table.filled[ready] += 1
        table.tokens[ready, table.length[ready]] = tokens
        table.logprobs[ready, table.length[ready]] = logprobs
        table.length[ready] += 1
        self._counts["sampled_tokens"] += len(ready)
        self._counts["decode_steps"] += 1
        self._count_contention(len(ready))
        deliveries = self._settle(ready, tokens)
        self._apply_pending()
        return deliveries

    def _settle(self, ready: NDArray[np.int64], tokens: NDArray[np.int64]) -> list[Delivery]:
        table = self._table
        lengths = table.length[ready] - table.prompt_length[ready]
        looping = np.zeros(len(ready), bool) if self._watch is None else self._watch.observe(tokens, ready)
        limits = self._limit[ready]
        ended = self._stop.candidates(tokens, lengths, limits, looping)
        cut = lengths >= self._cut_length[ready]
        deliveries = []
        for row in np.flatnonzero(ended | cut):
            reason = self._stop.reason(int(tokens[row]), int(lengths[row]), int(limits[row]), bool(looping[row]))
            deliveries.append(self._leave(int(ready[row]), reason))
        return deliveries

    def _prefill(self) -> None:
        """Prefill what is due, in passes, until at least half of the occupied slots are ready."""
        while unready := self._unready():
            if may_wait(len(unready), len(self._open), self._counts["decode_steps"]):
                return
            self._prefill_pass(unready)
            if 2 * len(self._table.ready()) >= len(self._open):
                return

    def _unready(self) -> list[int]:
        """Slots that lack keys even after copying what siblings hold, longest admitted first."""
        table = self._table
        lacking = set(table.unready().tolist())
        if not lacking:
            return []
        fresh = np.zeros(table.slots, bool)
        fresh[[s for s, held in self._open.items() if held.oldest_key_version == self.version]] = True
        for slot in lacking:
            self._counts["shared_prefill_tokens"] += table.copy_shared_prompt(slot, fresh)
        lacking = set(table.unready().tolist())
        return [slot for slot in self._open if slot in lacking]

    def _prefill_pass(self, unready: list[int]) -> None:
        work = self._passes.prefill(unready)
        self._counts["prefill_passes"] += 1
        for slot, (first, count) in work.spans.items():
            self._table.filled[slot] += count
            for cause, keys in self._open[slot].prefill_causes(first, count).items():
                self._counts[f"prefilled_{cause}_tokens"] += keys

    def close(self) -> None:
        """Drop all slots and the cache."""
        self._open.clear()
        self._waiting.clear()
        self._table.drop_keys()
