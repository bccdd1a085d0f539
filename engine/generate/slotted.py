"""What a sampler over slots keeps whoever decodes: requests that wait, work that is open, weights to come, counts."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from engine.errors import ConfigError
from engine.generate.sampler import StagedWeights
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, Request

Key = TypeVar("Key")
Held = TypeVar("Held")

_NO_WEIGHTS = PolicyVersion(0, -1)


class Slotted(Generic[Key, Held]):
    """The base of samplers: trajectories in slots by a key of their own, at most ``slots`` at once."""

    def __init__(self, slots: int, context_tokens: int) -> None:
        """Nothing is admitted before weights are served.

        Args:
            slots: trajectories that decode at once.
            context_tokens: prompt and response fit into so many.
        """
        self._slots = slots
        self._context_tokens = context_tokens
        self._open: dict[Key, Held] = {}
        self._waiting: deque[Request] = deque()
        self._pending: StagedWeights | None = None
        self._counts: Counter[str] = Counter()
        self.version = _NO_WEIGHTS
        self.digest = ""

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, all or none.

        Raises:
            ConfigError: prompt and response budget do not fit a slot.
        """
        for request in requests:
            assert len(request.prompt_tokens), f"trajectory {request.trajectory_id} has no prompt"
            assert len(request.generated) < request.max_response_tokens, "a finished response was sent"
            need = len(request.prompt_tokens) + request.max_response_tokens
            if need > self._context_tokens:
                raise ConfigError("generator.context_tokens", self._context_tokens,
                                  f"trajectory {request.trajectory_id} may need {need} tokens")
        self._waiting.extend(requests)

    def _admits(self) -> bool:
        """Whether who waits may take a slot: weights are served, and no newer ones wait for the slots to empty."""
        return self._pending is None and self.version != _NO_WEIGHTS

    def _hand_back(self) -> list[Delivery]:
        """Who waits, as deliveries without segments."""
        deliveries = [Delivery(request.trajectory_id, request.attempt, (), None) for request in self._waiting]
        self._waiting.clear()
        return deliveries

    def _serves(self, staged: StagedWeights) -> None:
        """The next token is of these weights."""
        self.version, self.digest = staged.version, staged.digest
        self._counts["swaps"] += 1

    def _serves_nothing(self) -> None:
        """Weights and cache go; every slot must be empty."""
        assert self.idle, "whoever sleeps holds no work"
        assert self._pending is None, "weights wait for slots to empty"
        self.version, self.digest = _NO_WEIGHTS, ""

    def _count_contention(self, sampled: int) -> None:
        """A step in which so many slots sampled, while requests waited or not."""
        if self._waiting and self._pending is None:
            self._counts["contended_steps"] += 1
            self._counts["contended_tokens"] += sampled

    @property
    def idle(self) -> bool:
        """Nothing decodes and nothing waits."""
        return not self._open and not self._waiting

    @property
    def swap_pending(self) -> bool:
        """Newer weights wait for the slots to empty."""
        return self._pending is not None

    @property
    def open_requests(self) -> int:
        """Requests in a slot or waiting for one."""
        return len(self._open) + len(self._waiting)

    @property
    def tokens_in_slots(self) -> int:
        """Sampled tokens that are not delivered yet."""
        return self._counts["sampled_tokens"] - self._counts["delivered_tokens"]

    @property
    def decode_steps(self) -> int:
        """Steps that sampled a token, since this sampler was made."""
        return self._counts["decode_steps"]

    def metrics(self) -> dict[str, float]:
        """Cumulative counters since this sampler was made; tokens prefilled are listed by cause.

        ``occupancy_fraction`` is the share of slots that sampled a token, over the steps at which requests
        waited and admission was open.
        """
        counts = {name: float(value) for name, value in self._counts.items()}
        room = self._counts["contended_steps"] * self._slots
        counts["occupancy_fraction"] = self._counts["contended_tokens"] / room if room else 1.0
        return counts

    def state_dict(self) -> dict[str, Any]:
        """Counters only: slots are cut before a checkpoint."""
        return {"counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._counts = Counter(state["counts"])
