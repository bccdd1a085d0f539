"""The controller in virtual time: what can be worked out by hand, bounds that hold, thousands of generators."""

from dataclasses import replace

import pytest

from actors.simulation.costs import Costs, Line
from actors.simulation.machine import Machines
from actors.simulation.world import Scenario, World
from engine.config.schedule import InFlight, Refill, ScheduleConfig

COSTS = Costs(decode=Line(1.0), learn=Line(10.0, 0.0))
SYNC = Scenario(ScheduleConfig(batch_groups=2), updates=3, samples_per_prompt=2, generators=1, slots=4,
                prefill_tokens=64, steps_per_call=8)
ASYNC = replace(SYNC, schedule=ScheduleConfig(kind="async", max_staleness=1, batch_groups=2))


def run(scenario, costs=COSTS, length=lambda key: 20):
    return World(scenario, costs, length).run()


def test_sync_takes_turns_whatever_the_machines():
    for machines in Machines:
        found = run(replace(SYNC, machines=machines))
        assert found.seconds_per_update == pytest.approx(20 + 10)
        assert found.staleness == {0: 1.0}
        assert found.idle["learner"] == pytest.approx(2 / 3)
        assert found.idle["generator"] == pytest.approx(1 / 3)
        assert found.samples_per_second == pytest.approx(4 / 30)
        assert found.tokens_per_second == pytest.approx(80 / 30)


def test_async_hides_the_shorter_of_sampling_and_learning():
    # New groups are issued when a generator says that it serves newer weights, at the end of a call.
    prompt = replace(ASYNC, steps_per_call=1)
    found = run(replace(prompt, updates=20))
    # The last batch is learned after the last token.
    assert found.seconds_per_update == pytest.approx((20 * 20 + 10) / 20, rel=0.05)
    assert max(found.staleness) <= 1
    slow = run(replace(prompt, updates=20), replace(COSTS, learn=Line(40.0, 0.0)))
    assert slow.seconds_per_update == pytest.approx((20 + 20 * 40) / 20, rel=0.05)
    assert slow.idle["learner"] < 0.1
    serial = run(replace(prompt, updates=20, machines=Machines.serial))
    assert serial.seconds_per_update == pytest.approx(30, rel=0.05), "one process overlaps nothing"


def test_a_tail_is_hidden_by_what_runs_ahead():
    lengths = [5, 5, 5, 80]
    tail = {"length": lambda key: lengths[key % 4]}
    hidden, waited = (run(replace(one, updates=12), **tail) for one in (ASYNC, SYNC))
    assert hidden.seconds_per_update < waited.seconds_per_update


def test_learners_share_tokens_and_the_optimisers_step_but_not_publishing():
    costs = replace(COSTS, learn=Line(4.0, 0.1), publish=1.0)
    assert run(SYNC, costs).seconds_per_update == pytest.approx(20 + 4 + 8 + 1)
    assert run(replace(SYNC, learners=4), costs).seconds_per_update == pytest.approx(20 + 1 + 2 + 1)


def test_judges_driver_transport_evaluation_and_checkpoints_take_their_time():
    costs = replace(COSTS, judge=Line(3.0, 1.0))
    assert run(SYNC, costs).seconds_per_update == pytest.approx(20 + 3 + 4 + 10)
    assert run(replace(SYNC, judge_speed=2.0), costs).seconds_per_update == pytest.approx(20 + 3 + 2 + 10)
    assert run(SYNC, replace(COSTS, transport={"learner": 2.0})).seconds_per_update == pytest.approx(32)
    handled = run(SYNC, replace(COSTS, handle={"generator": Line(1.0, 0.5)}))
    # Three calls of at most 8 steps an update, the one that takes the first weights, four answers.
    assert handled.seconds_per_update >= 20 + 10 + 3 * 1.0 + 4 * 0.5
    looks = replace(SYNC, machines=Machines.serial, evaluate_every=1)
    assert run(looks, replace(COSTS, evaluate=6.0)).seconds_per_update == pytest.approx(30 + 2 * 6 / 3)
    saves = replace(SYNC, checkpoint_every=1)
    assert run(saves, replace(COSTS, checkpoint=6.0)).seconds_per_update == pytest.approx(30 + 2 * 6 / 3)


def test_dull_groups_are_replaced():
    dull = replace(SYNC, dull=0.5, schedule=replace(SYNC.schedule, no_spread=Refill.refill))
    assert run(dull).seconds_per_update > 30
    assert run(replace(SYNC, dull=0.5)).seconds_per_update == pytest.approx(30), "unless they are kept"


@pytest.mark.parametrize("mode", list(InFlight))
@pytest.mark.parametrize("schedule", [
    ScheduleConfig(kind="iterative", max_staleness=3, round_budget_tokens=8, batch_groups=3),
    ScheduleConfig(kind="async", max_staleness=2, round_budget_tokens=7, batch_groups=3),
    ScheduleConfig(kind="async", max_staleness=0, batch_groups=2),
])
def test_every_schedule_comes_to_its_end_within_its_bound(schedule, mode):
    scenario = replace(SYNC, schedule=replace(schedule, in_flight=mode), updates=6, generators=3, slots=3,
                       checkpoint_every=2)
    costs = replace(COSTS, prefill_pass=2.0, receive=1.0, prompt_tokens=9.0, contention=0.5)
    for machines in Machines:
        found = run(replace(scenario, machines=machines), costs, lambda key: 1 + key * 7 % 29)
        assert found.updates == 6
        assert max(found.staleness) <= schedule.max_staleness
        assert sum(found.staleness.values()) == pytest.approx(1.0)
        assert 0 < found.occupied_slots <= 1


def test_a_thousand_generators():
    scenario = replace(ASYNC, generators=1000, updates=2, slots=8, schedule=replace(ASYNC.schedule, batch_groups=1000))
    found = run(scenario)
    assert found.samples_per_second == pytest.approx(2 * 2000 / (20 + 20), rel=0.3)
