"""A token engine over the native sampler: it streams real tokens and log-probs where vLLM is not at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from engine.config.schedule import InFlight
from engine.generate.native import NativeSampler
from engine.generate.token_engine import Arrival, Ask
from engine.records.version import PolicyVersion
from engine.records.work import Delivery
from tests.small_models import Staged, ask


class NativeEngine:
    """Runs ``lead`` steps ahead of whoever listens, as an engine in a process of its own would."""

    def __init__(self, native: NativeSampler, lead: int = 1) -> None:
        self.native, self.lead = native, lead
        self.asked: dict[int, Ask] = {}
        self.told: dict[int, int] = {}
        self.log: list[str] = []

    def start(self, asked: Sequence[Ask]) -> None:
        for one in asked:
            number = len(self.asked)
            self.asked[number] = one
            self.told[number] = 0
            request = ask(number, np.array(one.tokens, np.int32), one.limit, temperature=one.temperature)
            self.native.submit([request])

    def receive(self) -> list[Arrival]:
        assert not self.native.idle, "nothing was asked"
        left: list[Delivery] = []
        for _ in range(self.lead):
            left += self.native.step()
        return [self._ended(one) for one in left] + self._under_way()

    def _under_way(self) -> list[Arrival]:
        arrivals = []
        for slot, held in self.native._open.items():
            table, number = self.native._table, held.request.trajectory_id
            tokens, logprobs = table.response(slot), table.response_logprobs(slot)
            arrivals.append(self._news(number, tokens, logprobs))
        return [arrival for arrival in arrivals if arrival.tokens]

    def _ended(self, delivery: Delivery) -> Arrival:
        segments = delivery.segments
        tokens = np.concatenate([s.token_ids for s in segments]) if segments else np.zeros(0, np.int32)
        logprobs = np.concatenate([s.behaviour_logprob for s in segments]) if segments else np.zeros(0)
        spans = tuple((str(s.version), s.num_sampled) for s in segments)
        return self._news(delivery.trajectory_id, tokens, logprobs, spans)

    def _news(self, number: int, tokens: np.ndarray, logprobs: np.ndarray,
              spans: tuple[tuple[str, int], ...] | None = None) -> Arrival:
        told = self.told[number]
        self.told[number] = len(tokens)
        return Arrival(self.asked[number].key, tokens[told:].tolist(), logprobs[told:].tolist(), 0, spans)

    def stop(self, keys: Sequence[str]) -> list[Arrival]:
        numbers = {number for number, one in self.asked.items() if one.key in keys}
        slots = [slot for slot, held in self.native._open.items() if held.request.trajectory_id in numbers]
        ended = [self._ended(self.native._leave(slot, None)) for slot in slots]
        waiting = [request for request in self.native._waiting if request.trajectory_id in numbers]
        for request in waiting:
            self.native._waiting.remove(request)
            ended.append(Arrival(self.asked[request.trajectory_id].key, [], [], 0, ()))
        return ended

    def serve(self, tensors: Mapping[str, Tensor], version: str, mode: InFlight) -> None:
        lineage, updates = map(int, version.split("."))
        self.native.swap(Staged(PolicyVersion(lineage, updates), "", tensors), mode)
        self.log.append(f"serve {version} {mode.value}")

    def sleep(self) -> None:
        self.log.append("sleep")

    def wake(self) -> None:
        self.log.append("wake")

    def close(self) -> None:
        self.log.append("close")
