from __future__ import annotations

import pytest

from engine.errors import ConfigError
from engine.generate.slotted import Slotted
from engine.records.version import PolicyVersion
from engine.records.work import Request
from tests.small_models import Staged, ask, random_prompt


class Keeper(Slotted[int, str]):
    """Slots that somebody else fills."""

    def hold(self, slot: int, what: str) -> None:
        self._open[slot] = what

    def leave(self, slot: int) -> None:
        del self._open[slot]

    def wait_for(self, staged: Staged | None) -> None:
        self._pending = staged

    def sampled(self, sampled: int, delivered: int) -> None:
        self._counts["sampled_tokens"] += sampled
        self._counts["delivered_tokens"] += delivered


def weights(updates: int) -> Staged:
    return Staged(PolicyVersion(0, updates), f"digest {updates}", {})


def request(trajectory_id: int, prompt_tokens: int) -> Request:
    return ask(trajectory_id, random_prompt(trajectory_id, prompt_tokens), 7)


def test_requests_wait_all_or_none() -> None:
    keeper = Keeper(slots=2, context_tokens=10)
    with pytest.raises(ConfigError, match="trajectory 1 may need 11 tokens"):
        keeper.submit([request(0, 3), request(1, 4)])
    assert (keeper.open_requests, keeper.idle) == (0, True)
    keeper.submit([request(0, 3), request(1, 1)])
    assert (keeper.open_requests, keeper.idle) == (2, False)
    back = keeper._hand_back()
    assert [(delivery.trajectory_id, delivery.segments, delivery.finish_reason) for delivery in back] == [
        (0, (), None), (1, (), None)
    ]
    assert keeper.idle


def test_nobody_is_admitted_without_weights_or_before_those_that_wait() -> None:
    keeper = Keeper(slots=2, context_tokens=10)
    assert not keeper._admits()
    keeper._serves(weights(3))
    assert (keeper._admits(), keeper.version, keeper.digest) == (True, PolicyVersion(0, 3), "digest 3")
    keeper.wait_for(weights(4))
    assert (keeper._admits(), keeper.swap_pending) == (False, True)
    keeper.wait_for(None)
    keeper._serves_nothing()
    assert (keeper._admits(), keeper.digest) == (False, "")


def test_whoever_holds_work_does_not_let_go_of_its_weights() -> None:
    keeper = Keeper(slots=2, context_tokens=10)
    keeper._serves(weights(3))
    keeper.hold(0, "work")
    with pytest.raises(AssertionError, match="whoever sleeps holds no work"):
        keeper._serves_nothing()
    keeper.leave(0)
    keeper.wait_for(weights(4))
    with pytest.raises(AssertionError, match="weights wait for slots to empty"):
        keeper._serves_nothing()


def test_occupancy_counts_the_steps_at_which_somebody_waited() -> None:
    keeper = Keeper(slots=4, context_tokens=10)
    assert keeper.metrics() == {"occupancy_fraction": 1.0}
    keeper._serves(weights(0))
    keeper._count_contention(1)
    keeper.submit([request(0, 1)])
    keeper._count_contention(4)
    keeper._count_contention(3)
    keeper.wait_for(weights(1))
    keeper._count_contention(1)
    keeper.sampled(9, 5)
    assert keeper.tokens_in_slots == 4
    assert keeper.metrics()["occupancy_fraction"] == 7 / 8
    successor = Keeper(slots=4, context_tokens=10)
    successor.load_state_dict(keeper.state_dict())
    assert successor.metrics() == keeper.metrics()
