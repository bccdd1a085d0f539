"""A sampler over an engine that decodes by itself and streams tokens: slots, cuts, loops and versions.

The engine goes on decoding between two steps; a step waits until it has said something and takes in all that
is there. What a request may sample in this stay is told to the engine beforehand, so that stop tokens, the length
limit and the round budget end it there; a loop is noticed here, and tokens that the engine sampled beyond it are
dropped uncounted. Requests wait here, not in the engine, so that a pending swap admits none and a cut hands them
back.

The version of a token is what the engine said when it made it; swaps tell only how old the keys under it may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from engine.config.rollout import RepetitionConfig
from engine.config.schedule import InFlight
from engine.generate.repetition import RepetitionWatch
from engine.generate.sampler import Abilities, StagedWeights
from engine.generate.slotted import Slotted
from engine.generate.stop import StopRule
from engine.generate.token_engine import Arrival, Ask, Stay, TokenEngine
from engine.ops.sample import random_key
from engine.records.trajectory import FinishReason
from engine.records.work import Delivery, Request


class StreamingSampler(Slotted[str, Stay]):
    """Continues trajectories of one policy; see :class:`engine.generate.sampler.Sampler`."""

    abilities = Abilities(counter_streams=False, equal_bits=False)

    def __init__(self, engine: TokenEngine, slots: int, *, context_tokens: int, vocabulary: int,
                 stop_ids: Iterable[int], repetition: RepetitionConfig, seed: int) -> None:
        """Nothing is admitted before weights arrived by :meth:`swap`.

        Args:
            engine: decodes; it ends a request at ``stop_ids`` by itself.
            slots: trajectories that decode at once.
            context_tokens: prompt and response fit into so many.
            vocabulary: of the model.
            stop_ids: tokens that end a response.
            repetition: when a response is looping.
            seed: of the run; part of every random seed.
        """
        super().__init__(slots, context_tokens)
        self._engine = engine
        self._seed = seed
        self._stop = StopRule(stop_ids, vocabulary)
        self._watch = RepetitionWatch(repetition, slots) if repetition.enabled else None
        self._asleep = False
        self._asked = 0

    def _admit(self) -> None:
        if not self._admits():
            return
        taken = {held.slot for held in self._open.values()}
        free = [slot for slot in range(self._slots) if slot not in taken]
        asked = [self._take(slot, self._waiting.popleft()) for slot in free[: len(self._waiting)]]
        if asked:
            self._engine.start(asked)

    def _take(self, slot: int, request: Request) -> Ask:
        self._asked += 1
        key = f"{request.trajectory_id}.{request.attempt}.{self._asked}"
        self._open[key] = Stay(request, key, slot, {str(self.version): (self.version, self.version)})
        earlier = len(request.generated)
        if self._watch is not None:
            self._watch.restart(slot, request.generated.astype(np.int64))
        limit = request.max_response_tokens - earlier
        if request.round_budget_tokens is not None:
            limit = min(limit, request.round_budget_tokens)
        # Another place in the response starts another stream: this one can not be continued in its middle.
        seed = random_key(random_key(self._seed, request.trajectory_id, request.attempt), earlier, 0)
        tokens = np.concatenate([request.prompt_tokens, request.generated]).tolist()
        return Ask(key, tokens, limit, request.temperature, seed & (2**63 - 1), str(self.version))

    def step(self) -> list[Delivery]:
        """Take in what was sampled since the last step; return the trajectories that left their slots."""
        assert not self._asleep, "a sleeping sampler was asked to step"
        self._apply_pending()
        self._admit()
        if not self._open:
            return []
        arrivals = self._engine.receive()
        # The engine steps by itself: as often as the slot that said most has tokens.
        self._counts["decode_steps"] += max((len(arrival.tokens) for arrival in arrivals), default=0)
        self._count_contention(len({arrival.key for arrival in arrivals}))
        deliveries = self._settle(arrivals)
        self._apply_pending()
        return deliveries

    def _settle(self, arrivals: Sequence[Arrival]) -> list[Delivery]:
        self._absorb(arrivals)
        ended = {arrival.key: arrival.spans for arrival in arrivals if arrival.spans is not None}
        looping = [a.key for a in arrivals if a.key not in ended and self._open[a.key].looping]
        # What they say beyond the loop is not theirs any more.
        rests = self._engine.stop(looping) if looping else []
        ended |= {rest.key: rest.spans for rest in rests if rest.spans is not None}
        return [self._leave(key, spans) for key, spans in ended.items()]

    def _absorb(self, arrivals: Sequence[Arrival]) -> None:
        """Take in tokens place by place, so that one look for loops serves all slots."""
        for arrival in arrivals:
            if not self._open[arrival.key].heard:
                self._count_prefill(self._open[arrival.key], arrival.cached)
        for place in range(max((len(arrival.tokens) for arrival in arrivals), default=0)):
            said = [(self._open[a.key], a.tokens[place], a.logprobs[place]) for a in arrivals if place < len(a.tokens)]
            said = [each for each in said if not each[0].looping]
            for held, token, logprob in said:
                held.tokens.append(token)
                held.logprobs.append(logprob)
            self._counts["sampled_tokens"] += len(said)
            if self._watch is not None and said:
                seen = self._watch.observe(np.array([token for _, token, _ in said]),
                                           np.array([held.slot for held, _, _ in said]))
                for row in np.flatnonzero(seen):
                    said[row][0].looping = True

    def _count_prefill(self, held: Stay, cached: int) -> None:
        held.heard = True
        resumed = len(held.request.generated) > 0
        self._counts["prefilled_resume_tokens" if resumed else "prefilled_prompt_tokens"] += held.positions - cached
        self._counts["kept_resume_tokens" if resumed else "shared_prefill_tokens"] += cached

    def _leave(self, key: str, spans: Sequence[tuple[str, int]]) -> Delivery:
        held = self._open.pop(key)
        request, length = held.request, held.length
        reason = None
        if held.tokens:
            reason = self._stop.reason(held.tokens[-1], length, request.max_response_tokens, held.looping)
        saved = request.max_response_tokens - length if reason is FinishReason.repetition else 0
        self._counts["saved_tokens"] += saved
        self._counts["delivered_tokens"] += len(held.tokens)
        return Delivery(request.trajectory_id, request.attempt, tuple(held.segments(spans)), reason, saved)

    def cut_all(self) -> list[Delivery]:
        """Cut every slot, and hand back waiting requests as deliveries without segments."""
        keys = sorted(self._open, key=lambda key: self._open[key].slot)
        deliveries = self._settle(self._engine.stop(keys)) if keys else []
        deliveries += self._hand_back()
        self._apply_pending()
        return deliveries

    def swap(self, staged: StagedWeights, mode: InFlight) -> None:
        """Serve other weights from the next token on; the native sampler's module says what the modes mean.

        Raises:
            ModelError: the weights belong to another model; the ones served stay.
        """
        assert not self._asleep, "weights came to a sleeping sampler"
        self._pending = None
        if mode is InFlight.finish and self._open:
            self._pending = staged
            return
        self._load(staged, mode)

    def _load(self, staged: StagedWeights, mode: InFlight) -> None:
        kept = mode is InFlight.keep_cache
        self._engine.serve(staged.tensors, str(staged.version), mode)
        self._serves(staged)
        self._counts["swaps_while_decoding"] += bool(self._open)
        for held in self._open.values():
            held.swapped(staged.version, kept)
            if not kept:
                self._counts["prefilled_swap_tokens"] += held.positions

    def _apply_pending(self) -> None:
        if self._pending is not None and not self._open:
            staged, self._pending = self._pending, None
            self._load(staged, InFlight.finish)

    def sleep(self) -> None:
        """Free cache and weights of the device, for others that compute there; every slot must be empty."""
        self._serves_nothing()
        if not self._asleep:
            self._engine.sleep()
        self._asleep = True

    def wake(self) -> None:
        """Take the memory again; nothing is sampled before weights are swapped in."""
        if self._asleep:
            self._engine.wake()
        self._asleep = False

    def close(self) -> None:
        """Forget all requests and end the engine."""
        self._open.clear()
        self._waiting.clear()
        self._engine.close()
