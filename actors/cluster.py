"""Where actors live: all in this process, or each in one of its own over Ray.

Both answer the same four questions - start, call, wait, result - so the driver does not know which it
has. A pending result may be an argument of another call: over Ray it then travels through the
shared-memory object store without passing the driver.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from engine.config.cluster import ClusterConfig, ClusterKind
from engine.errors import ActorError, ClusterError

OBJECT_STORE_ROOM = 2**20


class Pending:
    """The result of a call that may not have happened yet."""

    __slots__ = ("actor", "method", "token")

    def __init__(self, actor: str, method: str, token: Any) -> None:
        self.actor = actor
        self.method = method
        self.token = token


class Cluster(Protocol):
    """Where actors live."""

    def start(self, name: str, factory: Callable[..., Any], arguments: dict[str, Any], *,
              cpus: float = 0.0, threads: int = 1) -> None:
        """Make an actor; the first call that is waited for tells whether it lives."""

    def call(self, name: str, method: str, *arguments: Any) -> Pending:
        """Ask; calls of one actor run one after another in this order."""

    def wait(self, pending: Sequence[Pending], timeout_s: float) -> Pending | None:
        """The first that is done, or None when the time is over."""

    def result(self, pending: Pending) -> Any:
        """Of a call that is done. Raises ActorError if its actor died, else what the call raised."""

    def kill(self, name: str) -> None:
        """End an actor at once; its open calls fail with ActorError."""

    def close(self) -> None:
        """End everything that was started."""


class _Thunk:
    """A call of the serial cluster, run when somebody waits for it."""

    __slots__ = ("arguments", "done", "error", "function", "value")

    def __init__(self, function: Callable[..., Any] | None, arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.done = False
        self.value: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Run it once, its pending arguments first."""
        if self.done:
            return
        values = []
        for argument in self.arguments:
            if isinstance(argument, Pending):
                argument.token.run()
                if argument.token.error is not None:
                    self.error, self.done = argument.token.error, True
                    return
                argument = argument.token.value
            values.append(argument)
        assert self.function is not None
        try:
            self.value = self.function(*values)
        except Exception as error:  # noqa: BLE001 - kept for result(), as a remote call would keep it
            self.error = error
        self.done, self.arguments = True, ()


class SerialCluster:
    """All actors in this process: one call at a time, oldest first; a debugger sees everything."""

    def __init__(self) -> None:
        self._actors: dict[str, Any] = {}
        self._open: list[Pending] = []

    def start(self, name: str, factory: Callable[..., Any], arguments: dict[str, Any], *,
              cpus: float = 0.0, threads: int = 1) -> None:
        """Build the actor here and now."""
        self._actors[name] = factory(**arguments)

    def call(self, name: str, method: str, *arguments: Any) -> Pending:
        """Remember the call; it runs when it is waited for."""
        actor = self._actors.get(name)
        thunk = _Thunk(None if actor is None else getattr(actor, method), arguments)
        pending = Pending(name, method, thunk)
        if actor is None:
            thunk.done, thunk.error = True, ActorError(name, method, "it was ended before")
        self._open.append(pending)
        return pending

    def wait(self, pending: Sequence[Pending], timeout_s: float) -> Pending | None:
        """Run calls, oldest first, until one of these is done."""
        wanted = {id(one): one for one in pending}
        for one in pending:
            if one.token.done:
                return one
        while self._open:
            oldest = self._open.pop(0)
            oldest.token.run()
            if id(oldest) in wanted:
                return oldest
        return None

    def result(self, pending: Pending) -> Any:
        """Of a call that is done."""
        if pending.token.error is not None:
            raise pending.token.error
        return pending.token.value

    def kill(self, name: str) -> None:
        """Forget the actor; what was asked of it fails."""
        actor = self._actors.pop(name, None)
        for one in self._open:
            if one.actor == name and not one.token.done:
                one.token.done, one.token.error = True, ActorError(name, one.method, "it was ended")
        if actor is not None:
            actor.close()

    def close(self) -> None:
        """Close every actor."""
        for name in list(self._actors):
            self._actors.pop(name).close()
        self._open.clear()


def _private_folder() -> Path:
    # Unix sockets allow about 107 characters of path, so this cannot live inside the run folder.
    return Path(tempfile.mkdtemp(prefix="perilune-", dir="/tmp"))


class RayCluster:
    """One process for each actor, on a private Ray of this machine or on a running cluster."""

    def __init__(self, config: ClusterConfig, run_id: str) -> None:
        """Start or join Ray.

        Raises:
            ClusterError: it does not come up or answer, with the reason and the remedy.
        """
        self._config = config
        self._handles: dict[str, Any] = {}
        self._private = config.address == "local"
        self._folder = _private_folder() if self._private else None
        options: dict[str, Any] = {
            "namespace": f"perilune-{run_id}", "log_to_driver": False, "configure_logging": False,
        }
        if self._private:
            options |= self._local_options()
        else:
            options["address"] = config.address
        # Ray reads its environment when it is imported, so not before this line.
        import ray

        self._ray = ray
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
            self._remove_folder()
            raise ClusterError(
                f"Ray did not start with cluster.address={config.address!r}: {error}. End a Ray session "
                "left over from before, or try cluster=serial"
            ) from error

    def _local_options(self) -> dict[str, Any]:
        config, folder = self._config, self._folder
        assert folder is not None
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(os.urandom(32).hex())
        # Everything on loopback, token auth on, and a short wait for a head that died.
        os.environ.update({
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        })
        room = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
        need = config.object_store_mib * OBJECT_STORE_ROOM
        if room < need:
            raise ClusterError(
                f"cluster.object_store_mib={config.object_store_mib} needs {need} bytes of /dev/shm, "
                f"{room} are free: lower it, or enlarge /dev/shm"
            )
        return {
            "address": "local", "include_dashboard": config.dashboard, "dashboard_host": "127.0.0.1",
            "object_store_memory": need, "_temp_dir": str(folder / "ray"),
        }

    def start(self, name: str, factory: Callable[..., Any], arguments: dict[str, Any], *,
              cpus: float = 0.0, threads: int = 1) -> None:
        """Make an actor process.

        Raises:
            ClusterError: the cluster has too few CPUs for what it asks.
        """
        free = self._ray.cluster_resources().get("CPU", 0.0)
        if cpus > free:
            raise ClusterError(
                f"actor {name} asks for {cpus} CPUs, the cluster has {free}: lower cluster.*_cpus"
            )
        environment = {
            "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
        }
        remote = self._ray.remote(num_cpus=cpus, max_restarts=0)(factory)
        self._handles[name] = remote.options(
            name=name, max_concurrency=1, runtime_env={"env_vars": environment}
        ).remote(**arguments)

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
        except (errors.RayActorError, errors.ObjectLostError, errors.WorkerCrashedError) as error:
            raise ActorError(pending.actor, pending.method, f"its process died ({error})") from error
        except errors.GetTimeoutError as error:
            raise ActorError(pending.actor, pending.method, "its answer did not arrive") from error
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, Exception) and not isinstance(cause, errors.RayError):
                raise cause from error
            raise ActorError(pending.actor, pending.method, str(error)) from error

    def kill(self, name: str) -> None:
        """End an actor process at once."""
        handle = self._handles.pop(name, None)
        if handle is not None:
            self._ray.kill(handle, no_restart=True)

    def close(self) -> None:
        """Close every actor in its own words, then end Ray; nothing is left after it."""
        asked = [handle.close.remote() for handle in self._handles.values()]
        if asked:
            self._ray.wait(asked, num_returns=len(asked), timeout=3.0)
        for name in list(self._handles):
            self.kill(name)
        self._ray.shutdown()
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def open_cluster(config: ClusterConfig, run_id: str) -> Cluster:
    """The cluster that ``cluster.kind`` names."""
    return SerialCluster() if config.kind is ClusterKind.serial else RayCluster(config, run_id)


def ask(cluster: Cluster, name: str, method: str, *arguments: Any, deadline_s: float) -> Any:
    """Call and wait for the answer.

    Raises:
        ActorError: the actor died, or did not answer within ``deadline_s`` seconds.
    """
    pending = cluster.call(name, method, *arguments)
    began = time.monotonic()
    if cluster.wait([pending], deadline_s) is None:
        waited = time.monotonic() - began
        raise ActorError(name, method, f"no answer within {waited:.0f} s")
    return cluster.result(pending)
