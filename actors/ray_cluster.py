"""Actors as processes of their own, on a private Ray of this machine or on a running cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors.cluster import Cluster, Pending, SerialCluster
from actors.placement import Place, asked_by, lack, plan, wanting
from actors.ray_session import GUIDE, RaySession
from engine.config.cluster import SHARED_GPUS, ClusterConfig, ClusterKind
from engine.errors import ActorError, ClusterError, PeriluneError

CLOSE_DEADLINE_S = 3.0
NODE = "ray.io/node-id"
"""Label that Ray gives every node."""
REMEDY = (
    "lower cluster.resources or generator.num_generators, or add nodes (`ray start --address=...`; docs/cluster.md)"
)


def _seen_from(_: Any, path: Path) -> tuple[str, bool]:
    """Runs inside an actor, or on its node before it is made: the machine, and whether the path exists there."""
    return socket.gethostname(), path.exists()


class RayCluster:
    """One process for each actor."""

    def __init__(self, config: ClusterConfig, run_id: str) -> None:
        """Start or join Ray.

        Raises:
            ClusterError: it does not come up or answer, with the reason and the remedy.
        """
        self._config = config
        self._handles: dict[str, Any] = {}
        self._seats: dict[str, Place] = {}
        """Actor without incarnation -> the one bundle that it lives in."""
        self._groups: dict[tuple[tuple[str, ...], ...], tuple[Any, str]] = {}
        """Actors of such a bundle -> Ray's placement group of it, while there is one, and the node it is pinned to."""
        self._sharing: set[str] = set()
        """Nodes of a cluster that is joined which see the folder of the first weights."""
        self._session = RaySession(config, run_id)
        self._ray = self._session.ray

    def reserve(self, actors: Sequence[str]) -> None:
        """Have Ray choose places for all actors of a run.

        Raises:
            ClusterError: the cluster lacks a resource, or nothing became free in time.
        """
        places = plan(actors, self._config)
        missing = lack(places, list(self._nodes().values()))
        if missing:
            raise ClusterError(f"the cluster has too little room: {missing}; {REMEDY}")
        self._settle(places)

    def _nodes(self) -> dict[str, dict[str, float]]:
        """Resources of every node that Ray believes to live, by its id."""
        return {node["NodeID"]: node["Resources"] for node in self._ray.nodes() if node["Alive"]}

    def _settle(self, places: Sequence[Place]) -> None:
        """Make each bundle a placement group of its own, pinned to the node that Ray chose for it.

        Raises:
            ClusterError: no room became free in time.
        """
        # A group that has lost a node and is not pinned costs the head a core: Ray tries to place it without a
        # pause, and its metrics agent replays every attempt (ray#65007). One with other bundles that stand could
        # not be taken back.
        for place, nodes in zip(places, self._choose(places), strict=True):
            for names, bundle, node in zip(place.actors, place.bundles, nodes, strict=True):
                seat = Place(place.strategy, (names,), (bundle,))
                self._seats.update(dict.fromkeys(names, seat))
                self._groups[seat.actors] = self._ray.util.placement_group(
                    [bundle], strategy=place.strategy, bundle_label_selector=[{NODE: node}]
                ), node

    def _choose(self, places: Sequence[Place]) -> list[list[str]]:
        """The nodes on which Ray puts bundles together or apart, by place and bundle; nothing is held after it."""
        if not self._session.joined:
            (only,) = self._nodes()
            return [[only] * len(place.bundles) for place in places]
        util = self._ray.util
        groups = [util.placement_group(list(place.bundles), strategy=place.strategy) for place in places]
        try:
            while True:
                for place, group in zip(places, groups, strict=True):
                    self._await_room(place, group)
                found = [util.placement_group_table(group)["bundles_to_node_id"] for group in groups]
                if all(all(nodes.values()) for nodes in found):  # or a node left that was chosen a moment ago
                    return [[nodes[index] for index in sorted(nodes)] for nodes in found]
        finally:
            for group in groups:
                util.remove_placement_group(group)

    def _await_room(self, place: Place, group: Any) -> None:
        """Until the group is placed."""
        deadline_s = self._config.start_deadline_s
        if group.wait(deadline_s):
            return
        asked = wanting(place, list(self._ray._private.state.available_resources_per_node().values()))
        raise ClusterError(
            f"no room became free within cluster.start_deadline_s={deadline_s:g}: "
            f"{', '.join('+'.join(names) for names in place.actors)} ask for {asked}; {REMEDY}"
        )

    def _take(self, seat: Place) -> Any:
        """The placement group of a seat, which is another one once its node has left."""
        if seat.actors not in self._groups or self._groups[seat.actors][1] not in self._nodes():
            self._give_back(seat)
            self._settle([seat])
        group, _ = self._groups[seat.actors]
        try:
            self._await_room(seat, group)
        except ClusterError:
            self._give_back(seat)  # or it took what others may need, for nobody
            raise
        return group

    def _give_back(self, seat: Place) -> None:
        if seat.actors in self._groups:
            self._ray.util.remove_placement_group(self._groups.pop(seat.actors)[0])

    def start(self, name: str, factory: Callable[..., Any], arguments: dict[str, Any], *,
              threads: int = 1) -> None:
        """Make an actor process, in the place that was reserved for it.

        Raises:
            ClusterError: its place does not become free in time, or does not see its model folder.
            ActorError: its node does not answer.
        """
        environment = {
            "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
        }
        if SHARED_GPUS in os.environ:  # what the checks of the channel went by; nodes that are joined do not know it
            environment[SHARED_GPUS] = os.environ[SHARED_GPUS]
        asked = asked_by(name, self._config)
        options: dict[str, Any] = {
            "num_cpus": asked.pop("CPU", 0.0), "num_gpus": asked.pop("GPU", 0.0), "resources": asked,
            "name": name, "max_concurrency": 1, "max_restarts": 0, "runtime_env": {"env_vars": environment},
        }
        if (seat := self._seats.get(name.partition("#")[0])) is not None:
            strategies = self._ray.util.scheduling_strategies
            options["scheduling_strategy"] = strategies.PlacementGroupSchedulingStrategy(self._take(seat), 0)
            if self._session.joined and "folder" in arguments:
                self._require(name, Path(arguments["folder"]), self._groups[seat.actors][1])
        self._handles[name] = self._ray.remote(factory).options(**options).remote(**arguments)

    def _require(self, name: str, folder: Path, node: str) -> None:
        """Refuse a machine without the folder of the first weights, before an actor loads anything there."""
        if node in self._sharing:
            return
        there = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        task = self._ray.remote(_seen_from).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        looks = Pending(name, "start", task.remote(None, folder / "config.json"))
        deadline_s = self._config.start_deadline_s
        if self.wait([looks], deadline_s) is None:
            raise ActorError(name, "start", f"its node did not answer within cluster.start_deadline_s={deadline_s:g}")
        machine, seen = self.result(looks)
        if not seen:
            raise ClusterError(
                f"{name} is to live on machine {machine}, where the folder of the first weights, {folder}, is missing: "
                f"put it on a file system that all machines share ({GUIDE})"
            )
        self._sharing.add(node)

    def look(self, name: str, path: Path) -> tuple[str, bool]:
        """The machine that an actor lives on, and whether this path exists there."""
        if not self._session.joined:
            return _seen_from(None, path)
        asked = self._handles[name].__ray_call__.remote(_seen_from, path)
        found: tuple[str, bool] = self.result(Pending(name, "look", asked))
        return found

    def call(self, name: str, method: str, *arguments: Any) -> Pending:
        """Ask an actor; pending arguments travel by reference."""
        handle = self._handles.get(name)
        if handle is None:
            return Pending(name, method, ActorError(name, method, "it was ended before"))
        values = [one.token if isinstance(one, Pending) else one for one in arguments]
        return Pending(name, method, getattr(handle, method).remote(*values))

    def wait(self, pending: Sequence[Pending], timeout_s: float) -> Pending | None:
        """The first that is done, in the order given where several are."""
        for one in pending:
            if isinstance(one.token, ActorError):
                return one
        by_reference = {one.token: one for one in pending}
        ready, _ = self._ray.wait(list(by_reference), num_returns=1, timeout=timeout_s, fetch_local=False)
        return by_reference[ready[0]] if ready else None

    def result(self, pending: Pending) -> Any:
        """Of a call that is done. What a constructor raised on purpose is told like what a call raised: no death."""
        if isinstance(pending.token, ActorError):
            raise pending.token
        errors = self._ray.exceptions
        try:
            return self._ray.get(pending.token, timeout=self._config.call_deadline_s)
        except errors.RayTaskError as error:
            if isinstance(error.cause, Exception) and not isinstance(error.cause, errors.RayError):
                raise error.cause from error
            raise ActorError(pending.actor, pending.method, str(error)) from error
        except errors.GetTimeoutError as error:
            raise ActorError(pending.actor, pending.method, "its answer did not arrive") from error
        except errors.RayError as error:
            unmade = self._unmade(error)
            if isinstance(unmade, PeriluneError):
                raise unmade from error
            why = f"its process died ({error})" if unmade is None else f"it could not be made ({unmade!r})"
            raise ActorError(pending.actor, pending.method, why) from error

    def _unmade(self, error: Any) -> Exception | None:
        """What an actor's own constructor raised, where its death was that; Ray wraps it twice."""
        inner = error.args[0] if getattr(error, "actor_init_failed", False) and error.args else None
        return inner.cause if isinstance(inner, self._ray.exceptions.RayTaskError) else None

    def kill(self, name: str) -> None:
        """End an actor process at once."""
        handle = self._handles.pop(name, None)
        if handle is not None:
            self._ray.kill(handle, no_restart=True)

    def close(self) -> None:
        """Close every actor in its own words, then end or leave Ray; nothing of the run is left after it."""
        try:
            asked = [handle.close.remote() for handle in self._handles.values()]
            if asked:
                self._ray.wait(asked, num_returns=len(asked), timeout=CLOSE_DEADLINE_S)
            for name in list(self._handles):
                self.kill(name)
            for seat in self._seats.values():
                self._give_back(seat)
        finally:
            self._session.close()


def open_cluster(config: ClusterConfig, run_id: str) -> Cluster:
    """The cluster that ``cluster.kind`` names."""
    return SerialCluster() if config.kind is ClusterKind.serial else RayCluster(config, run_id)
