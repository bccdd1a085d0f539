"""The counting generator against the native sampler: the same calls, the same tokens, cuts and versions."""

import pytest

from actors.simulation.costs import Costs, Line
from actors.simulation.generator import SimulatedGenerator, Trip
from engine.config.schedule import InFlight

COSTS = Costs(decode=Line(1.0, 0.1), prefill_pass=10.0, receive=5.0, call=0.5, prompt_tokens=4.0)


def made(slots=4, mode=InFlight.keep_cache, budget=None, rows=64, version=0):
    return SimulatedGenerator(COSTS, slots=slots, prefill_tokens=rows, mode=mode, budget=budget, version=version)


def trips(*totals, group=0):
    return [Trip(index, group, total) for index, total in enumerate(totals)]


def test_a_call_costs_its_steps_and_its_passes():
    one = made()
    answer = one.advance(trips(3, 5), None, False, 2)
    assert answer.seconds == pytest.approx(0.5 + 10.0 + 2 * 1.2), "siblings share the pass of their prompt"
    assert answer.left == []
    answer = one.advance([], None, False, 8)
    assert answer.seconds == pytest.approx(0.5 + 1.2 + 2 * 1.1)
    assert [(trip.trajectory_id, new, trip.length) for trip, new in answer.left] == [(0, 3, 3), (1, 5, 5)]
    assert (one.open_requests, one.tokens, one.steps) == (0, 8, 5)


def test_prompts_that_do_not_fit_a_pass_take_more_of_them():
    one = made(rows=4)
    work = [*trips(9), Trip(7, 1, 9), Trip(8, 2, 9), Trip(9, 3, 9)]
    # Two of four are ready after two passes, and decode before the others are filled.
    assert one.advance(work, None, False, 1).seconds == pytest.approx(0.5 + 20.0 + 1.2)
    assert one.advance([], None, False, 1).seconds == pytest.approx(0.5 + 10.0 + 1.3)


def test_who_finds_no_slot_waits_for_one():
    one = made(slots=1)
    answer = one.advance(trips(2, 2), None, False, 3)
    assert [trip.trajectory_id for trip, _ in answer.left] == [0]
    assert one.open_requests == 1


def test_a_budget_cuts_and_kept_keys_spare_a_prefill():
    one = made(budget=2)
    (trip,) = trips(5)
    (left,) = one.advance([trip], None, False, 9).left
    assert left == (trip, 2)
    assert one.advance([trip], None, False, 9).seconds == pytest.approx(0.5 + 2 * 1.1), "it went on over its keys"
    other = made(budget=2, mode=InFlight.recompute_cache)
    (trip,) = trips(5)
    other.advance([trip], None, False, 9)
    assert other.advance([trip], None, False, 9).seconds == pytest.approx(0.5 + 10.0 + 2 * 1.1)


def test_parked_keys_go_when_their_slot_is_needed():
    one = made(slots=1, budget=2)
    first, second = trips(5, 2)
    one.advance([first], None, False, 9)
    one.advance([second], None, False, 9)
    assert one.advance([first], None, False, 9).seconds == pytest.approx(0.5 + 10.0 + 2 * 1.1)


@pytest.mark.parametrize(("mode", "seconds", "parts"), [
    (InFlight.keep_cache, 0.5 + 5.0 + 2 * 1.1, [[0, 2], [1, 2]]),
    (InFlight.recompute_cache, 0.5 + 5.0 + 10.0 + 2 * 1.1, [[0, 2], [1, 2]]),
    (InFlight.finish, 0.5 + 5.0 + 2 * 1.1, [[0, 4]]),
])
def test_weights_in_flight(mode, seconds, parts):
    one = made(mode=mode)
    (trip,) = trips(4)
    one.advance([trip], None, False, 2)
    answer = one.advance([], 1, False, 9)
    assert answer.seconds == pytest.approx(seconds)
    assert (answer.version, trip.parts) == (1, parts)
    assert not one.behind


def test_a_barrier_cuts_everybody_and_hands_back_who_waits():
    one = made(slots=1)
    running, waiting = trips(9, 9)
    one.advance([running, waiting], None, False, 2)
    answer = one.advance([], None, True, 8)
    assert answer.left == [(running, 2), (waiting, 0)]
    assert one.open_requests == 0


def test_nothing_is_sampled_while_newer_weights_wait_for_the_slots_to_empty():
    one = made(slots=2, mode=InFlight.finish)
    running, late = trips(6, 2)
    one.advance([running], None, False, 1)
    answer = one.advance([late], 1, False, 3)
    assert one.behind
    assert answer.version == 0
    answer = one.advance([], None, False, 9)
    assert answer.version == 1
    assert (running.parts, late.parts) == ([[0, 6]], [[1, 2]])
