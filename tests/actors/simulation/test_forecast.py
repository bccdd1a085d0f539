"""What may be changed and what it means; lengths; and a run that predicts itself."""

import statistics

import pytest

from actors.simulation.costs import Costs, Line, Measured
from actors.simulation.forecast import as_it_was, changed, forecast, lengths_of, scaled
from actors.simulation.machine import Machines
from engine.config.schedule import InFlight
from engine.errors import ConfigError
from tests.actors.fake_driver import changed as configured_with

MEASURED = Measured(Costs(decode=Line(1.0), row=0.25), (3, 9, 4), 5, 1.0, 1.0, 1.0, 0.0)


@pytest.fixture
def own(config):
    return as_it_was(config, MEASURED)


def test_a_run_is_where_it_ran(config, own):
    assert own.machines is Machines.serial
    assert (own.slots, own.updates) == (config.generator.slots, 5)
    assert as_it_was(configured_with(config, {"cluster.kind": "ray"}), MEASURED).machines is Machines.shared


def test_evaluations_that_are_put_off_take_no_time_of_training(config):
    every = configured_with(config, {"evaluation.every": 3})
    assert as_it_was(every, MEASURED).evaluate_every == 3
    assert as_it_was(configured_with(every, {"evaluation.deferred": True}), MEASURED).evaluate_every == 0


def test_changes_are_made_and_give_everybody_a_machine(config, own):
    assert changed(config, own, {}) == own
    other = changed(config, own, {"generators": "64", "schedule": "async", "in_flight": "finish", "judges": "4"})
    assert (other.generators, other.machines, other.judge_speed) == (64, Machines.separate, 4.0)
    assert (other.schedule.kind, other.schedule.max_staleness) == ("async", 1)
    assert other.schedule.in_flight is InFlight.finish
    back = changed(config, other, {"schedule": "sync", "machines": "serial"})
    assert (back.schedule.rounds, back.schedule.max_staleness, back.machines) == (True, 0, Machines.serial)


@pytest.mark.parametrize("changes", [
    {"generator": "2"}, {"generators": "two"}, {"generators": "0"}, {"machines": "mine"}, {"max_staleness": "1"},
    {"schedule": "later"}, {"batch_groups": "0"},
])
def test_what_cannot_be_is_refused(config, own, changes):
    with pytest.raises(ConfigError):
        changed(config, own, changes)


def test_recorded_lengths_come_in_their_order():
    length = lengths_of("run", MEASURED, None, 0)
    assert [length(key) for key in range(4)] == [3, 9, 4, 3]
    assert lengths_of("run", MEASURED, 5, 0)(1) == 5


@pytest.mark.parametrize(("text", "spread"), [
    ("constant:mean=50", 0), ("lognormal:mean=50,sigma=0.8", 20), ("pareto:mean=50,alpha=2.5", 15),
])
def test_a_distribution_has_the_mean_it_was_given(text, spread):
    length = lengths_of(text, MEASURED, None, 3)
    drawn = [length(key) for key in range(4000)]
    assert statistics.mean(drawn) == pytest.approx(50, rel=0.08)
    assert statistics.pstdev(drawn) >= spread
    assert length(7) == length(7)
    assert max(drawn) <= 16 * 50
    assert min(drawn) >= 1


@pytest.mark.parametrize("text", [
    "normal:mean=5", "lognormal:mean=5", "pareto:mean=5,alpha=1", "constant", "constant:mean=-1",
])
def test_an_unknown_distribution_is_refused(text):
    with pytest.raises(ConfigError, match="lengths"):
        lengths_of(text, MEASURED, None, 0)(0)


def test_slots_cost_what_a_row_costs():
    assert scaled(MEASURED.costs, 12, 8).decode == Line(2.0)
    assert scaled(MEASURED.costs, 1, 8).decode == Line(0.0)


def test_a_run_predicts_itself(recorded):
    """Closer than a machine with other work allows to say; the claim itself is measured in a quiet one."""
    config = recorded.config
    found = forecast(recorded.folder, config, {})
    assert abs(found.error) < 0.5
    assert found.predicted is found.itself
    assert found.itself.updates == found.measured.updates == 4
    assert max(found.itself.staleness) <= config.schedule.max_staleness
    plain = found.as_dict()
    assert plain["error"] == found.error
    assert plain["scenario"]["schedule"]["kind"] == config.schedule.kind


def test_a_changed_run_says_what_it_assumes(recorded):
    changes = {"generators": "3", "slots": "8", "learners": "2"}
    found = forecast(recorded.folder, recorded.config, changes, "lognormal:mean=30,sigma=1")
    assert found.predicted.seconds_per_update != found.itself.seconds_per_update
    said = " ".join(found.assumptions)
    for word in ("lognormal", "machine of its own", "slot", "2 learners", "optimiser's step; publishing, ",
                 "all generators at once"):
        assert word in said
