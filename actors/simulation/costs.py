"""What every piece of work costs, read from the trace of a run: the numbers a simulation is made of.

Only what happened after training began is looked at, and of a resumed run only its last life. Means are
taken, not medians: what a run pays for its outliers is part of what it pays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from actors.placement import role_of
from actors.simulation.life import Busy, Life, read_life
from engine.config.cluster import ClusterKind
from engine.config.rollout import GeneratorKind
from engine.config.run import RunConfig
from engine.errors import RunFolderError
from engine.replay.ledger import read_journal
from engine.trace import read_trace

HEAVY = ("generator", "learner", "evaluator")
"""Who computes, and so slows others on the same machine."""
_IDLE_S = 0.001
"""A driver that waited so long before an answer had nothing else to do."""


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds = base + slope * amount."""

    base: float = 0.0
    slope: float = 0.0

    def at(self, amount: float) -> float:
        """Seconds of so much."""
        return self.base + self.slope * amount


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of everything that takes any, each alone on its machine."""

    decode: Line = Line()
    """One step, by occupied slots."""
    row: float = 0.0
    """What every further slot adds to a step, occupied or not."""
    prefill_pass: float = 0.0
    """One pass, however full."""
    receive: float = 0.0
    """Weights: receive, verify, swap."""
    call: float = 0.0
    """What a call to a generator takes beside these."""
    judge: Line = Line()
    """One call, by trajectories."""
    learn: Line = Line()
    """One update, by sampled tokens of its groups."""
    publish: float = 0.0
    evaluate: float = 0.0
    checkpoint: float = 0.0
    handle: Mapping[str, Line] = field(default_factory=dict)
    """What the driver does with an answer of a role, by items."""
    transport: Mapping[str, float] = field(default_factory=dict)
    """Call and answer on their way, together, by role."""
    prompt_tokens: float = 0.0
    contention: float = 0.0
    """One busy actor makes another on its machine slower by this share."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A run as it was."""

    costs: Costs
    lengths: tuple[int, ...]
    """Sampled tokens of every finished trajectory, by id."""
    updates: int
    seconds_per_update: float
    tokens_per_second: float
    samples_per_second: float
    dull: float
    """Share of groups that were replaced because their rewards were all equal."""
    staleness: Mapping[int, float] = field(default_factory=dict)
    """Versions -> share of the tokens that carried loss."""
    idle: Mapping[str, float] = field(default_factory=dict)
    """Role -> share of time in which its actors did not work."""


def line(amounts: Sequence[float], seconds: Sequence[float], weights: Sequence[float] | None = None) -> Line:
    """Least squares with neither part below 0; it passes through the means.

    Example:
        >>> line([1.0, 3.0], [2.0, 4.0])
        Line(base=1.0, slope=1.0)
        >>> line([2.0, 2.0], [3.0, 5.0])
        Line(base=4.0, slope=0.0)
    """
    if not len(seconds):
        return Line()
    x, y = np.asarray(amounts, float), np.asarray(seconds, float)
    w = np.ones_like(y) if weights is None else np.asarray(weights, float)
    mean_x, mean_y = float(np.average(x, weights=w)), float(np.average(y, weights=w))
    spread = float(np.average((x - mean_x) ** 2, weights=w))
    slope = float(np.average((x - mean_x) * (y - mean_y), weights=w)) / spread if spread > 1e-9 else 0.0
    if slope <= 0:
        return Line(mean_y, 0.0)
    if mean_y < slope * mean_x:
        return Line(0.0, mean_y / mean_x)
    return Line(mean_y - slope * mean_x, slope)


def measure(folder: Path, config: RunConfig) -> Measured:
    """Read ``trace.json`` and ``ledger.msgpack`` of a run.

    Raises:
        RunFolderError: there is no trace, or no update in it.
    """
    life = read_life(read_trace(folder / "trace.json"))
    if not life.commits:
        raise RunFolderError(f"{folder / 'trace.json'} holds no update: let the run make some, with run.trace=true")
    seconds, updates = life.commits[-1].start, len(life.commits)
    lengths, dull = _journal(folder / "ledger.msgpack")
    tokens = sum(one.amounts["tokens"] for one in life.commits)
    samples = sum(one.amounts["groups"] for one in life.commits) * config.rollout.samples_per_prompt
    staleness = {age: count / life.staleness.total() for age, count in sorted(life.staleness.items())}
    return Measured(fit(life, config), lengths, updates, seconds / updates, tokens / seconds,
                    samples / seconds, dull, staleness, _idle(life, seconds))


def _idle(life: Life, seconds: float) -> dict[str, float]:
    busy: defaultdict[str, list[float]] = defaultdict(list)
    for actor, spans in life.work.items():
        busy[role_of(actor)].append(float(Busy(spans).within(0.0, seconds)))
    return {role: 1 - sum(worked) / len(worked) / seconds for role, worked in busy.items()}


def _journal(path: Path) -> tuple[tuple[int, ...], float]:
    """Lengths of finished trajectories by id, and the share of dull groups."""
    lengths: defaultdict[int, int] = defaultdict(int)
    finished: set[int] = set()
    group_of: dict[int, int] = {}
    dull: set[int] = set()
    for kind, *rest in read_journal(path):
        if kind == "issue":
            group_of[rest[0]] = rest[1]
        elif kind == "deliver":
            lengths[rest[0]] += rest[1]
            if rest[2]:
                finished.add(rest[0])
        elif kind == "drop" and rest[1] == "no_spread":
            dull.update(group_of[key] for key in rest[0])
    return tuple(lengths[key] for key in sorted(finished)), len(dull) / max(len(set(group_of.values())), 1)


# ---- the fit ------------------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def fit(life: Life, config: RunConfig) -> Costs:
    """The costs behind a life."""
    serial = config.cluster.kind is ClusterKind.serial
    contention = 0.0 if serial else _contention(life)
    calls, judged, passes = life.answers["generator"], life.of("judge"), life.of("generator", "prefill")
    decode = life.of("generator", "decode")
    calm = {role: 1 / (1 + contention * _company(life, role)) for role in HEAVY}
    # To wake is charged to the calls that begin with it.
    inside = sum(one.seconds for one in life.of("generator") if one.kind not in ("wake", "sleep"))
    spent = sum(one.amounts["ran_s"] for one in calls)
    steps = [one.amounts["steps"] for one in decode]
    each = line([one.amounts["tokens"] / n for one, n in zip(decode, steps, strict=True)],
                [one.seconds / n for one, n in zip(decode, steps, strict=True)], steps)
    rate = calm["generator"]
    row = _row(life, config, each.at(sum(one.amounts["tokens"] for one in decode) / max(sum(steps), 1)))
    looks = [one.amounts["ran_s"] for one in life.answers["evaluator"]]
    return Costs(
        decode=Line(each.base * rate, each.slope * rate), row=row * rate,
        prefill_pass=rate * sum(o.seconds for o in passes) / max(sum(o.amounts["passes"] for o in passes), 1),
        receive=rate * _mean([one.seconds for one in life.of("generator", "receive")]),
        call=rate * max(spent - inside, 0.0) / max(len(calls), 1),
        judge=line([one.amounts["items"] for one in judged], [one.seconds for one in judged]),
        learn=_learning(life, calm["learner"]),
        publish=calm["learner"] * _mean([one.seconds for one in life.of("learner", "publish")]),
        evaluate=calm["evaluator"] * _mean(looks) or sum(one.seconds for one in life.first_look),
        checkpoint=_mean([one.seconds for one in life.checkpoints]),
        handle=_handling(life, serial), transport=_transport(life, serial),
        prompt_tokens=_prompt_tokens(life, config), contention=contention,
    )


def _row(life: Life, config: RunConfig, step: float) -> float:
    """The native sampler computes all its rows at every step; an evaluator with other slots tells what one costs."""
    if config.generator.kind is not GeneratorKind.native:
        return 0.0
    looks = [o for o in chain(life.first_look, life.of("evaluator")) if o.kind == "decode"]
    steps, threads = sum(one.amounts["steps"] for one in looks), config.cluster.threads
    more = config.generator.slots - config.evaluation.slots
    if not steps or not more or threads.generator != threads.evaluator:
        return step / config.generator.slots
    found = (step - sum(one.seconds for one in looks) / steps) / more
    return min(max(found, 0.0), step / config.generator.slots)


def _learning(life: Life, rate: float) -> Line:
    """The optimiser's step costs the same for any batch, the rest goes by its tokens."""
    updates = max(len(life.commits), 1)
    tokens = sum(one.amounts["tokens"] for one in life.commits) / updates
    step = sum(one.seconds for one in life.of("learner", "optimiser")) / updates
    ran = sum(one.amounts["ran_s"] for one in life.answers["learner"]) / updates
    rest = ran - step - sum(one.seconds for one in life.of("learner", "publish")) / updates
    return Line(rate * step, rate * max(rest, 0.0) / max(tokens, 1.0))


def _handling(life: Life, serial: bool) -> dict[str, Line]:
    """In one process actors work while the driver asks replay, which is not the driver's time."""
    not_its_own = Busy([*chain.from_iterable(life.work.values() if serial else ()), *life.checkpoints])
    found = {}
    for role, spans in life.answers.items():
        seconds = [one.seconds - float(not_its_own.within(one.start, one.stop)) for one in spans]
        found[role] = line([one.amounts["items"] for one in spans], seconds)
    return found


def _transport(life: Life, serial: bool) -> dict[str, float]:
    """Over Ray what a call lasts beyond its work; in one process what nobody can be charged with."""
    if serial:
        end = life.commits[-1].start
        known = Busy([*chain(*life.work.values(), *life.answers.values())]).within(0.0, end)
        return dict.fromkeys(life.answers, (end - float(known)) / sum(map(len, life.answers.values())))
    found: defaultdict[str, list[float]] = defaultdict(list)
    free = 0.0
    for one, role in sorted(((one, role) for role, spans in life.answers.items() for one in spans),
                            key=lambda pair: pair[0].start):
        # A driver that had other things to do first is simulated by itself; so is a judge that had.
        if one.start - free > _IDLE_S:
            found[role].append(one.amounts["out_s"] - one.amounts["ran_s"])
        free = one.stop
    return {role: max(float(np.median(times)) if role == "judge" else _mean(times), 0.0)
            for role, times in found.items()}


def _prompt_tokens(life: Life, config: RunConfig) -> float:
    """Mean tokens of a prompt that are prefilled: of those of the first evaluation."""
    passes = [one.amounts for one in life.first_look if one.kind == "prefill"]
    # Each counts where its prefill began; siblings copy its keys. A file may hold out more prompts or fewer than the
    # options name.
    prompts = sum(one.get("prompts", 0) for one in passes)
    return sum(one["tokens"] for one in passes) / prompts if prompts else config.rollout.max_prompt_tokens / 2


def _others(life: Life, actor: str) -> list[Busy]:
    return [Busy(spans) for name, spans in life.work.items() if role_of(name) in HEAVY and name != actor]


def _company(life: Life, role: str) -> float:
    """How many others compute on average while an actor of a role does."""
    mine = [(name, spans) for name, spans in life.work.items() if role_of(name) == role]
    total = sum(one.seconds for _, spans in mine for one in spans)
    shared = sum(float(busy.within([o.start for o in spans], [o.stop for o in spans]).sum())
                 for name, spans in mine for busy in _others(life, name))
    return shared / total if total else 0.0


def _contention(life: Life) -> float:
    """By what share a decode step takes longer for every other actor that computes meanwhile."""
    rows = []
    for name, spans in life.work.items():
        if role_of(name) == "generator":
            decode = [one for one in spans if one.kind == "decode" and one.seconds > 0]
            start, stop = [one.start for one in decode], [one.stop for one in decode]
            company = sum((busy.within(start, stop) for busy in _others(life, name)), np.zeros(len(decode)))
            steps = np.array([one.amounts["steps"] for one in decode])
            tokens = np.array([one.amounts["tokens"] for one in decode])
            lasted = np.subtract(stop, start)
            rows.append(np.stack([np.ones(len(decode)), tokens / steps, company / lasted, lasted / steps, steps], 1))
    table = np.concatenate(rows) if rows else np.zeros((0, 5))
    if len(table) < 8 or np.std(table[:, 2]) < 0.05:
        return 0.0
    weight = np.sqrt(table[:, 4:])
    (base, slope, more), *_ = np.linalg.lstsq(table[:, :3] * weight, table[:, 3] * weight[:, 0], rcond=None)
    alone = base + slope * float(np.average(table[:, 1], weights=table[:, 4]))
    return float(max(more / alone, 0.0)) if alone > 0 else 0.0
