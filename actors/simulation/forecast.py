"""From one recorded run to the speed of others: what is changed, what is assumed, what comes out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from actors.simulation.costs import Costs, Line, Measured, measure
from actors.simulation.machine import Machines
from actors.simulation.world import Prediction, Scenario, World
from engine.config.cluster import ClusterKind, Placement
from engine.config.run import RunConfig
from engine.config.schedule import InFlight, Refill, ScheduleConfig, Straggler
from engine.errors import ConfigError, nearest_name

SCHEDULE: dict[str, Callable[[str], Any]] = {
    "max_staleness": int, "round_budget_tokens": int, "batch_groups": int, "min_groups": int,
    "on_straggler": Straggler, "in_flight": InFlight,
}
OWN: dict[str, Callable[[str], Any]] = {
    "generators": int, "slots": int, "prefill_tokens": int, "steps_per_call": int, "learners": int,
    "samples_per_prompt": int, "updates": int, "evaluate_every": int, "checkpoint_every": int,
    "machines": Machines,
}
OTHERS = ("schedule", "judges", "max_response_tokens")
LENGTHS = "run, constant:mean=512, lognormal:mean=512,sigma=1.2 or pareto:mean=512,alpha=1.5"
_TAIL = 16
"""A distribution that is named ends at so many times its mean, unless max_response_tokens is given."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """A prediction beside the run that it was made from."""

    measured: Measured
    itself: Prediction
    """The recorded run, predicted."""
    predicted: Prediction
    scenario: Scenario
    assumptions: tuple[str, ...]

    @property
    def error(self) -> float:
        """Predicted over measured seconds per update of the recorded run, minus 1."""
        return self.itself.seconds_per_update / self.measured.seconds_per_update - 1

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        measured = {name: getattr(self.measured, name) for name in (
            "updates", "seconds_per_update", "tokens_per_second", "samples_per_second", "staleness", "idle")}
        return {
            "measured": measured, "itself": asdict(self.itself), "error": self.error,
            "predicted": asdict(self.predicted), "costs": asdict(self.measured.costs),
            "scenario": _plain(asdict(self.scenario)), "assumptions": list(self.assumptions),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return getattr(value, "value", value)


def as_it_was(config: RunConfig, measured: Measured) -> Scenario:
    """The recorded run as a scenario: on one machine, its actors were in each other's way."""
    generator, cluster = config.generator, config.cluster
    machines = Machines.serial if cluster.kind is ClusterKind.serial else Machines.shared
    return Scenario(
        config.schedule, measured.updates, config.rollout.samples_per_prompt, generator.num_generators,
        generator.slots, generator.prefill_tokens, generator.steps_per_call,
        evaluate_every=config.evaluation.every_in_training, checkpoint_every=config.learning.checkpoint_every,
        dull=measured.dull if config.schedule.no_spread is Refill.refill else 0.0, machines=machines,
        seed=config.seed,
    )


def changed(config: RunConfig, scenario: Scenario, changes: Mapping[str, str]) -> Scenario:
    """Another scenario.

    Args:
        config: of the recorded run.
        scenario: the recorded run's.
        changes: key -> value as written on a command line. Where anything is changed, actors get machines of
            their own unless ``machines`` says shared or serial.

    Raises:
        ConfigError: an unknown key, a value that is none, or a schedule that cannot work.
    """
    values: dict[str, Any] = {"machines": Machines.separate} if changes else {}
    schedule = _schedule(scenario.schedule, changes)
    for key, text in changes.items():
        if key in OWN:
            values[key] = _value(key, text, OWN[key])
        elif key == "judges":
            values["judge_speed"] = max(_value(key, text, int), 1) / max(config.reward.workers, 1)
        elif key not in SCHEDULE and key not in OTHERS:
            raise ConfigError(key, text, nearest_name(key, [*OWN, *SCHEDULE, *OTHERS]))
    for key, value in values.items():
        if isinstance(value, int) and value < (0 if key.endswith("_every") else 1):
            raise ConfigError(key, value, "give at least 1")
    return replace(scenario, schedule=schedule, **values)


def _schedule(schedule: ScheduleConfig, changes: Mapping[str, str]) -> ScheduleConfig:
    values: dict[str, Any] = {}
    if "schedule" in changes:
        kind = values["kind"] = changes["schedule"]
        if kind == "sync":
            values |= {"max_staleness": 0, "round_budget_tokens": 0}
        elif schedule.max_staleness == 0:
            values["max_staleness"] = 1
    values |= {key: _value(key, changes[key], kind) for key, kind in SCHEDULE.items() if key in changes}
    groups = values.get("batch_groups", schedule.batch_groups)
    values.setdefault("min_groups", min(schedule.min_groups, groups))
    found = replace(schedule, steps_per_update=min(schedule.steps_per_update, groups), **values)
    found.validate()
    return found


def _value(key: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(key, text, "give a whole number" if kind is int else f"give one of {list(kind)}") from None  # type: ignore[call-overload]


def lengths_of(text: str, measured: Measured, longest: int | None, seed: int) -> Callable[[int], int]:
    """Trajectory id -> sampled tokens.

    Args:
        text: ``run`` for the recorded ones in their order, or a distribution with its mean in tokens.
        measured: the recorded run.
        longest: budget of a response; None: none but what the lengths themselves have.
        seed: of the draws.

    Raises:
        ConfigError: an unknown distribution or a value that it cannot have.
    """
    name, _, rest = text.partition(":")
    if name == "run":
        recorded = measured.lengths
        most = max(recorded) if longest is None else longest
        return lambda key: min(recorded[key % len(recorded)], most)
    try:
        values = {key: float(value) for key, _, value in (part.partition("=") for part in rest.split(","))}
        quantile = _quantile(name, values)
    except (KeyError, ValueError, ZeroDivisionError):
        raise ConfigError("lengths", text, f"give {LENGTHS}") from None
    most = round(_TAIL * values["mean"]) if longest is None else longest

    def length(key: int) -> int:
        share = random.Random((seed << 40) + key).random()
        return max(1, round(min(quantile(min(max(share, 1e-9), 1 - 1e-9)), most)))

    return length


def _quantile(name: str, values: Mapping[str, float]) -> Callable[[float], float]:
    mean = values["mean"]
    if mean <= 0:
        raise ValueError(mean)
    if name == "constant":
        return lambda share: mean
    if name == "lognormal":
        sigma, normal = values["sigma"], NormalDist()
        middle = math.log(mean) - sigma**2 / 2
        return lambda share: math.exp(middle + sigma * normal.inv_cdf(share))
    if name == "pareto" and (alpha := values["alpha"]) > 1:
        least = mean * (alpha - 1) / alpha
        return lambda share: least / (1 - share) ** (1 / alpha)
    raise ValueError(name)


def scaled(costs: Costs, slots: int, measured_slots: int) -> Costs:
    """Costs of a generator with other slots."""
    more = costs.row * (slots - measured_slots)
    return replace(costs, decode=Line(max(costs.decode.base + more, 0.0), costs.decode.slope))


def forecast(folder: Path, config: RunConfig, changes: Mapping[str, str], lengths: str = "run") -> Forecast:
    """Predict a changed run, and the recorded one itself to tell how far off that is.

    Args:
        folder: run folder with a trace.
        config: of that run.
        changes: see :func:`changed`.
        lengths: see :func:`lengths_of`.

    Raises:
        RunFolderError: the folder has no trace of an update.
        ConfigError: a change or a distribution that is none.
    """
    measured = measure(folder, config)
    own = as_it_was(config, measured)
    itself = World(own, measured.costs, lengths_of("run", measured, None, own.seed)).run()
    scenario = changed(config, own, changes)
    longest = _value("max_response_tokens", changes["max_response_tokens"], int) \
        if "max_response_tokens" in changes else None
    costs = scaled(measured.costs, scenario.slots, config.generator.slots)
    if scenario == own and lengths == "run" and longest is None:
        predicted = itself
    else:
        predicted = World(scenario, costs, lengths_of(lengths, measured, longest, own.seed)).run()
    said = _assumptions(own, scenario, lengths, measured, config.cluster.placement)
    return Forecast(measured, itself, predicted, scenario, said)


def _assumptions(own: Scenario, scenario: Scenario, lengths: str, measured: Measured,
                 placement: Placement) -> tuple[str, ...]:
    """What a prediction rests on, in sentences."""
    costs = measured.costs
    said = [f"answers are as long as {'those of the run' if lengths == 'run' else lengths}"]
    if scenario.machines is Machines.separate:
        alone = f" where it was alone (one other slowed it by {costs.contention:.0%})" if costs.contention else ""
        said.append("every generator, learner and judge computes on a machine of its own, as fast as measured" + alone)
    elif scenario.machines is Machines.shared:
        said.append(f"all share one machine: every other that computes slows an actor by {costs.contention:.0%}")
    else:
        said.append("all take turns in one process")
    if scenario.machines is not Machines.separate and placement is Placement.colocated:
        said.append("turns on shared devices are not modelled: generators and learner compute side by side")
    if scenario.slots != own.slots:
        said.append(f"a slot more or less changes a decode step by {costs.row * 1e6:.3g} us")
    if scenario.learners > 1:
        said.append(f"{scenario.learners} learners share evenly what goes by tokens and the optimiser's step; "
                    f"publishing, {costs.publish:.3g} s of every update, is not shared, and talk between them is free")
    if scenario.generators > own.generators:
        said.append("weights reach all generators at once, each as fast as measured; the driver takes as long "
                    "for an answer as with the generators it had")
    return tuple(said)
