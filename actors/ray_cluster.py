"""Actors as processes of their own, on a private Ray of this machine or on a running cluster."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.cluster import Cluster, Pending, SerialCluster
from actors.watchdog import start_watchdog, sweep
from engine.config.cluster import ClusterConfig, ClusterKind
from engine.errors import ActorError, ClusterError

MIB = 2**20
CLOSE_DEADLINE_S = 3.0
CONNECT_DEADLINE_S = 5.0
WATCHDOG_DEADLINE_S = 45.0
TOO_SLOW = "timed out during startup"


@functools.cache
def _token() -> str:
    # Ray reads the token once for the life of a process, so all its sessions share it.
    return os.urandom(32).hex()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put handlers back: ``ray.init`` takes SIGTERM for itself and would end without a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _require_listener(address: str) -> None:
    """Fail at once where nobody listens: Ray itself would try for a minute, then abort the process."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_DEADLINE_S).close()
    except OSError as error:
        raise ClusterError(
            f"nobody listens at cluster.address={address!r} ({error}): start that cluster, correct the "
            "address, or leave it out for a private Ray"
        ) from error


class RayCluster:
    """One process for each actor."""

    def __init__(self, config: ClusterConfig, run_id: str) -> None:
        """Start or join Ray.

        Raises:
            ClusterError: it does not come up or answer, with the reason and the remedy.
        """
        self._config = config
        self._handles: dict[str, Any] = {}
        self._cpus: dict[str, float] = {}
        self._folder: Path | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        deadline = time.monotonic() + config.start_deadline_s
        while (error := self._init(run_id)) is not None:
            # Ray grants its own processes 30 s, whatever else the machine is doing.
            if TOO_SLOW not in str(error) or time.monotonic() > deadline:
                raise ClusterError(
                    f"Ray did not start with cluster.address={config.address!r}: {error}. End a Ray session "
                    "left over from before, or try cluster=serial"
                ) from error

    def _init(self, run_id: str) -> Exception | None:
        """Start or join Ray; what it raised, once nothing of the attempt is left."""
        options: dict[str, Any] = {
            "namespace": f"perilune-{run_id}", "log_to_driver": False, "configure_logging": False,
        }
        if self._config.address == "local":
            options |= self._private(run_id)
        else:
            _require_listener(self._config.address)
            options["address"] = self._config.address
        # Ray reads its environment when it is imported, so not before this line.
        import ray

        self._ray = ray
        try:
            with _own_signals():
                ray.init(**options)
        except Exception as error:  # noqa: BLE001 - Ray raises bare ones where its processes come up late
            ray.shutdown()
            self._clean()
            return error
        return None

    def _private(self, run_id: str) -> dict[str, Any]:
        """Options of a session of our own: loopback only, with a token, gone when the driver is."""
        config, need = self._config, self._config.object_store_mib * MIB
        room = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
        if room < need:
            raise ClusterError(
                f"cluster.object_store_mib={config.object_store_mib} needs {need} bytes of /dev/shm, "
                f"{room} are free: lower it, or enlarge /dev/shm"
            )
        # Unix sockets allow about 107 characters of path, so this cannot live inside the run folder.
        self._folder = Path(tempfile.mkdtemp(prefix=f"perilune-{run_id[:8]}-", dir="/tmp"))
        token = self._folder / "token"
        token.touch(mode=0o600)
        token.write_text(_token())
        os.environ.update({
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            # The one switch that moves every port to loopback.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "5", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        })
        self._watchdog = start_watchdog(self._folder)
        return {
            "address": "local", "include_dashboard": config.dashboard, "dashboard_host": "127.0.0.1",
            "object_store_memory": need, "_temp_dir": str(self._folder / "r"),
        }

    def start(self, name: str, factory: Callable[..., Any], arguments: dict[str, Any], *,
              cpus: float = 0.0, threads: int = 1) -> None:
        """Make an actor process.

        Raises:
            ClusterError: the cluster has fewer CPUs than its actors ask for together.
        """
        total, taken = self._ray.cluster_resources().get("CPU", 0.0), sum(self._cpus.values())
        if taken + cpus > total:
            raise ClusterError(
                f"actor {name} asks for {cpus} CPUs beside {taken} of others, the cluster has {total}: "
                "lower cluster.learner_cpus or cluster.generator_cpus"
            )
        environment = {
            "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
        }
        remote = self._ray.remote(num_cpus=cpus, max_restarts=0)(factory)
        self._handles[name] = remote.options(
            name=name, max_concurrency=1, runtime_env={"env_vars": environment}
        ).remote(**arguments)
        self._cpus[name] = cpus

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
        self._cpus.pop(name, None)
        if handle is not None:
            self._ray.kill(handle, no_restart=True)

    def close(self) -> None:
        """Close every actor in its own words, then end Ray; nothing is left after it."""
        try:
            asked = [handle.close.remote() for handle in self._handles.values()]
            if asked:
                self._ray.wait(asked, num_returns=len(asked), timeout=CLOSE_DEADLINE_S)
            for name in list(self._handles):
                self.kill(name)
            with _own_signals():
                self._ray.shutdown()
        finally:
            self._clean()

    def _clean(self) -> None:
        if self._folder is not None:
            sweep(self._folder)
        if self._watchdog is not None:
            self._watchdog.communicate(timeout=WATCHDOG_DEADLINE_S)


def open_cluster(config: ClusterConfig, run_id: str) -> Cluster:
    """The cluster that ``cluster.kind`` names."""
    return SerialCluster() if config.kind is ClusterKind.serial else RayCluster(config, run_id)
