"""Which actors share a place in the cluster, and what a cluster lacks for them; knows no Ray.

Disaggregated, every actor has a bundle of resources of its own: learners, replay and judge as close together
as they fit, generators and the evaluator as far apart as they can. Colocated, the learner of a rank shares one
bundle with the generator of that number, and the evaluator that of the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.config.cluster import ActorResources, ClusterConfig, Placement

_ANYWHERE = {"memory": 1.0}
"""One byte: a bundle must ask for something, and this much every node has."""
SAMPLERS = ("generator", "evaluator")
"""Roles that hold a sampler."""


def role_of(actor: str) -> str:
    """The word in ``cluster.resources`` for an actor.

    Example:
        >>> role_of("generator-3#2")
        'generator'
    """
    return actor.partition("#")[0].partition("-")[0]


def asked_by(actor: str, config: ClusterConfig) -> dict[str, float]:
    """Resources by Ray's names that an actor asks for; those it merely shares are left out."""
    asked: ActorResources = getattr(config.resources, role_of(actor))
    amounts = {"CPU": asked.cpus, "GPU": asked.gpus, **asked.custom}
    return {name: amount for name, amount in amounts.items() if amount}


@dataclass(frozen=True, slots=True)
class Place:
    """Bundles that Ray places together or apart."""

    strategy: str
    """PACK or SPREAD."""
    actors: tuple[tuple[str, ...], ...]
    """Names without incarnation, by bundle."""
    bundles: tuple[dict[str, float], ...]
    """Resources, by bundle."""


def plan(actors: Sequence[str], config: ClusterConfig) -> tuple[Place, ...]:
    """Where the actors of a run go, by their names without incarnation."""
    workers = [name for name in actors if role_of(name) in SAMPLERS]
    others = [name for name in actors if name not in workers]
    groups: list[tuple[str, list[tuple[str, ...]]]]
    if config.placement is Placement.disaggregated:
        groups = [("PACK", [(name,) for name in others]), ("SPREAD", [(name,) for name in workers])]
    else:
        shared: dict[int, list[str]] = {}
        for name in actors:
            if role_of(name) in ("learner", *SAMPLERS):
                shared.setdefault(int(name.partition("-")[2] or 0), []).append(name)
        alone = [(name,) for name in actors if role_of(name) in ("judge", "replay")]
        groups = [("PACK", [*(tuple(names) for _, names in sorted(shared.items())), *alone])]
    return tuple(
        Place(strategy, tuple(bundles), tuple(_together(names, config) or _ANYWHERE for names in bundles))
        for strategy, bundles in groups if bundles
    )


def _together(actors: Iterable[str], config: ClusterConfig) -> dict[str, float]:
    total: Counter[str] = Counter()
    for name in actors:
        total.update(asked_by(name, config))
    return {name: round(amount, 4) for name, amount in total.items()}


def lack(places: Sequence[Place], nodes: Sequence[Mapping[str, float]]) -> str:
    """What even an idle cluster lacks, in words; empty where nothing is missing.

    Args:
        places: what the run asks for.
        nodes: resources of each living node.
    """
    bundles = [(names, bundle) for place in places for names, bundle in zip(place.actors, place.bundles, strict=True)]
    for resource in sorted({name for _, bundle in bundles for name in bundle}):
        amounts = {names: bundle.get(resource, 0.0) for names, bundle in bundles}
        asked, there = sum(amounts.values()), sum(node.get(resource, 0.0) for node in nodes)
        if asked > there:
            return f"{asked:g} {resource} are asked for ({_who(amounts)}), the cluster has {there:g}"
        most = max((node.get(resource, 0.0) for node in nodes), default=0.0)
        names, largest = max(amounts.items(), key=lambda item: item[1])
        if largest > most:
            return f"{' and '.join(names)} ask for {largest:g} {resource} in one place, no node has more than {most:g}"
    return ""


def _who(amounts: Mapping[tuple[str, ...], float]) -> str:
    return ", ".join(f"{'+'.join(names)} {amount:g}" for names, amount in amounts.items() if amount)


def wanting(places: Sequence[Place], free: Mapping[str, float]) -> str:
    """What was asked beside what is free, for a cluster that would do but is taken."""
    total: Counter[str] = Counter()
    for bundle in (bundle for place in places for bundle in place.bundles):
        total.update({name: amount for name, amount in bundle.items() if name != "memory"})
    asked = {name: f"{total[name]:g} {name} (free: {free.get(name, 0.0):g})" for name in sorted(total)}
    return ", ".join(asked.values()) or "room for a process"
