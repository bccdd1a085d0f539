"""Actors as processes of their own, on a private Ray of this machine or on a running cluster."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors.cluster import Cluster, Pending, SerialCluster
from actors.placement import Place, asked_by, lack, plan, wanting
from actors.ray_session import RaySession
from engine.config.cluster import ClusterConfig, ClusterKind
from engine.errors import ActorError, ClusterError

CLOSE_DEADLINE_S = 3.0
REMEDY = (
    "lower cluster.resources or generator.num_generators, or add nodes (`ray start --address=...`; docs/cluster.md)"
)


def _seen_from(_: Any, path: Path) -> tuple[str, bool]:
    """Runs inside an actor: its machine, and whether the path exists there."""
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
        self._places: dict[str, tuple[Place, Any, int]] = {}
        """Actor without incarnation -> its place, Ray's placement group of it, and the bundle there."""
        self._session = RaySession(config, run_id)
        self._ray = self._session.ray

    def reserve(self, actors: Sequence[str]) -> None:
        """Ask Ray for placement groups that hold all actors of a run.

        Raises:
            ClusterError: the cluster lacks a resource.
        """
        places = plan(actors, self._config)
        missing = lack(places, [node["Resources"] for node in self._ray.nodes() if node["Alive"]])
        if missing:
            raise ClusterError(f"the cluster has too little room: {missing}; {REMEDY}")
        for place in places:
            group = self._ray.util.placement_group(list(place.bundles), strategy=place.strategy)
            for index, names in enumerate(place.actors):
                self._places.update(dict.fromkeys(names, (place, group, index)))

    def _await_room(self, place: Place, group: Any, bundle: int) -> None:
        """Until the bundle is placed, at the start or anew after a node left."""
        deadline_s = self._config.start_deadline_s
        # A group that lost a node is not whole until there is room for all of it; its other bundles stand.
        if self._stands(group, bundle) or group.wait(deadline_s) or self._stands(group, bundle):
            return
        asked = wanting([place], self._ray.available_resources())
        raise ClusterError(
            f"no room became free within cluster.start_deadline_s={deadline_s:g}: "
            f"{', '.join('+'.join(names) for names in place.actors)} ask for {asked}; {REMEDY}"
        )

    def _stands(self, group: Any, bundle: int) -> bool:
        """Whether a bundle of a group that lost another one lies on a living node."""
        table = self._ray.util.placement_group_table(group)
        if table.get("state") != "RESCHEDULING":
            return False
        node = table["bundles_to_node_id"].get(bundle)
        return any(one["Alive"] and one["NodeID"] == node for one in self._ray.nodes())

    def start(self, name: str, factory: Callable[..., Any], arguments: dict[str, Any], *,
              threads: int = 1) -> None:
        """Make an actor process, in the place that was reserved for it.

        Raises:
            ClusterError: its place does not become free in time.
        """
        environment = {
            "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
        }
        asked = asked_by(name, self._config)
        options: dict[str, Any] = {
            "num_cpus": asked.pop("CPU", 0.0), "num_gpus": asked.pop("GPU", 0.0), "resources": asked,
            "name": name, "max_concurrency": 1, "max_restarts": 0, "runtime_env": {"env_vars": environment},
        }
        if (found := self._places.get(name.partition("#")[0])) is not None:
            place, group, bundle = found
            self._await_room(place, group, bundle)
            strategies = self._ray.util.scheduling_strategies
            options["scheduling_strategy"] = strategies.PlacementGroupSchedulingStrategy(group, bundle)
        self._handles[name] = self._ray.remote(factory).options(**options).remote(**arguments)

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
        """Of a call that is done."""
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
            raise ActorError(pending.actor, pending.method, f"its process died ({error})") from error

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
            for group in {id(group): group for _, group, _ in self._places.values()}.values():
                self._ray.util.remove_placement_group(group)
        finally:
            self._session.close()


def open_cluster(config: ClusterConfig, run_id: str) -> Cluster:
    """The cluster that ``cluster.kind`` names."""
    return SerialCluster() if config.kind is ClusterKind.serial else RayCluster(config, run_id)
