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
_EXACT = 1e-6
"""Ray counts in ten-thousandths; sums of floats are less exact."""
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
    return {name: rounded for name, amount in total.items() if (rounded := round(amount, 4))}


def lack(places: Sequence[Place], nodes: Sequence[Mapping[str, float]]) -> str:
    """What even an idle cluster lacks, in words; empty where nothing is known to be missing.

    Only what can be shown is told: sums, and for every bundle that as many as ask for that much fit beside each
    other. Different bundles may still find no arrangement; that shows when Ray seeks places for them.

    Args:
        places: what the run asks for.
        nodes: resources of each living node.
    """
    bundles = [(names, bundle) for place in places for names, bundle in zip(place.actors, place.bundles, strict=True)]
    for resource in sorted({name for _, bundle in bundles for name in bundle}):
        amounts = {names: bundle.get(resource, 0.0) for names, bundle in bundles}
        asked, there = sum(amounts.values()), sum(node.get(resource, 0.0) for node in nodes)
        if asked > there + _EXACT:
            return f"{asked:g} {resource} are asked for ({_who(amounts)}), the cluster has {there:g}"
    parts = [(names, {name: amount}) for names, bundle in bundles for name, amount in bundle.items()]
    for part_of, part in (*parts, *bundles):
        room = sum(_times(part, node) for node in nodes)
        if not room:
            return f"{' and '.join(part_of)} ask for {_listed(part)} in one place, {_nearest(part, nodes)}"
        askers = [" and ".join(names) for names, bundle in bundles if _times(part, bundle, whole=False)]
        if len(askers) > room:
            return (f"{len(askers)} places ask for {_listed(part)} or more ({', '.join(askers)}), the nodes have room "
                    f"for {room} of them")
    return ""


def _times(part: Mapping[str, float], node: Mapping[str, float], whole: bool = True) -> int:
    """How often a bundle fits into an empty node; what is less than a GPU lies within one device if they are whole."""
    counts = []
    for name, amount in part.items():
        there = node.get(name, 0.0)
        if name == "GPU" and whole and amount < 1.0 - _EXACT and there >= 1.0:
            counts.append(int(there + _EXACT) * int((1.0 + _EXACT) / amount))
        else:
            counts.append(int((there + _EXACT) / amount))
    return min(counts)


def _nearest(bundle: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str:
    """What the node has that comes nearest to a bundle, in words."""
    def shares(node: Mapping[str, float]) -> tuple[float, float]:
        found = [min(node.get(name, 0.0) / amount, 1.0) for name, amount in bundle.items()]
        return min(found), sum(found)

    node = max(nodes, key=shares, default={})
    return f"the freest node has {_listed({name: node.get(name, 0.0) for name in bundle})}"


def _listed(amounts: Mapping[str, float]) -> str:
    return " with ".join(f"{amount:g} {name}" for name, amount in sorted(amounts.items()))


def _who(amounts: Mapping[tuple[str, ...], float]) -> str:
    return ", ".join(f"{'+'.join(names)} {amount:g}" for names, amount in amounts.items() if amount)


def wanting(place: Place, free: Sequence[Mapping[str, float]]) -> str:
    """What was asked beside what is free on each node, for a cluster that would do but is taken."""
    bundles = [{name: amount for name, amount in bundle.items() if name != "memory"} for bundle in place.bundles]
    total: Counter[str] = Counter()
    for bundle in bundles:
        total.update(bundle)
    if not total:
        return "room for a process"
    together = {name: sum(node.get(name, 0.0) for node in free) for name in total}
    asked = ", ".join(f"{total[name]:g} {name} (free: {together[name]:g})" for name in sorted(total))
    largest = max(bundles, key=lambda bundle: (bundle.get("GPU", 0.0), sum(bundle.values())))
    return f"{asked}; of that {_listed(largest)} in one place, where {_nearest(largest, free)}"
