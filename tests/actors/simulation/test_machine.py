"""Virtual time on three kinds of machine."""

import pytest

from actors.simulation.machine import Clock, Job, Machines


def run(machines, jobs, contention=1.0, handle=0.0):
    """Start (actor, seconds, heavy, transport) together; actor -> time its answer was handled."""
    clock, done = Clock(machines, contention), {}

    def answered(actor):
        clock.work("driver", handle)
        done[actor] = clock.now

    for actor, seconds, heavy, transport in jobs:
        clock.start(Job(actor, seconds, heavy, transport, lambda actor=actor: answered(actor)))
    clock.run(lambda: len(done) == len(jobs))
    return done, clock.busy


def test_actors_on_machines_of_their_own_do_not_notice_each_other():
    done, busy = run(Machines.separate, [("a", 2.0, True, 0.5), ("b", 3.0, True, 0.0)])
    assert done == {"a": 2.5, "b": 3.0}
    assert busy == {"a": 2.0, "b": 3.0, "driver": 0.0}


def test_on_one_machine_they_slow_each_other_while_they_overlap():
    done, busy = run(Machines.shared, [("a", 1.0, True, 0.0), ("b", 2.0, True, 0.0), ("judge", 1.0, False, 0.0)])
    # Both at half speed until a is done at 2; b has 1 s of its work left.
    assert done == {"a": pytest.approx(2.0), "b": pytest.approx(3.0), "judge": 1.0}
    assert busy["b"] == pytest.approx(3.0)


def test_one_process_takes_turns_in_the_order_of_calls():
    done, busy = run(Machines.serial, [("a", 2.0, True, 0.0), ("b", 3.0, True, 0.0)], handle=0.5)
    assert done == {"a": 2.5, "b": 6.0}
    assert busy["driver"] == 1.0


def test_answers_wait_for_a_driver_that_is_busy():
    done, _ = run(Machines.separate, [("a", 1.0, True, 0.0), ("b", 1.0, True, 0.0), ("c", 1.0, True, 0.0)], handle=1.0)
    assert done == {"a": 2.0, "b": 3.0, "c": 4.0}


def test_it_ends_when_nothing_happens_any_more():
    clock = Clock(Machines.separate, 0.0)
    clock.run(lambda: False)
    assert clock.now == 0.0
