"""A Ray session: a private one of this machine, or a part in a cluster that runs already.

A private session listens on loopback alone, asks for a token, and is gone when the driver is. A cluster that is
joined is somebody else's: nothing of it is started or stopped here.
"""

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.watchdog import start_watchdog, sweep
from engine.config.cluster import ClusterConfig
from engine.errors import ClusterError

MIB = 2**20
CONNECT_DEADLINE_S = 5.0
SETTINGS = b"\4"
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS + bytes(5)
"""What a client of HTTP/2 says first: the fixed words, and a frame of no settings."""
WATCHDOG_DEADLINE_S = 45.0
TOO_SLOW = "timed out during startup"
GUIDE = "docs/cluster.md tells how"


@functools.cache
def _token() -> str:
    # Ray reads the token once for the life of a process, so all its sessions share it.
    return os.urandom(32).hex()


@contextmanager
def own_signals() -> Iterator[None]:
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


def running_address(address: str) -> str:
    """host:port of the cluster that is meant, where one answers; auto: RAY_ADDRESS, or what ``ray start`` noted.

    Ray itself would try for a minute, then abort the process.

    Raises:
        ClusterError: there is none, or it does not answer; what names it is said.
    """
    source = f"cluster.address={address!r}"
    if address == "auto":
        address, source = _known_address()
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_DEADLINE_S) as connection:
            answers = _speaks(connection)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"nobody listens at {source}, {error}: start that cluster, correct the address, or leave "
            "cluster.address out for a private Ray"
        ) from error
    if not answers:
        raise ClusterError(
            f"what listens at {source} does not answer as a Ray head does within "
            f"{CONNECT_DEADLINE_S:g} s: give the port of `ray start --head` (6379 unless told, not the dashboard's), "
            "or end that head and start it again if it hangs"
        )
    return address


def _known_address() -> tuple[str, str]:
    """What auto means, and what says so. Not Ray's own search, which may take another run's private session for one."""
    told = os.environ.get("RAY_ADDRESS", "")
    if told.startswith("ray://"):
        raise ClusterError(
            f"RAY_ADDRESS={told!r} is an address for Ray's client, through which no run can join: give "
            f"cluster.address=host:port of the head, and start the run on a machine of the cluster ({GUIDE})"
        )
    # A URL is the dashboard that `ray job submit` speaks to, and auto the word inside of a job: neither is a head.
    if told and told != "auto" and "://" not in told:
        return told, f"RAY_ADDRESS={told!r} (for cluster.address='auto')"
    noted = Path("/tmp/ray/ray_current_cluster")
    address = noted.read_text().strip() if noted.exists() else ""
    if not address:
        raise ClusterError(
            f"cluster.address='auto' finds no cluster to join, neither in RAY_ADDRESS={told!r} nor started on this "
            f"machine: start one with `ray start --head` ({GUIDE}), give cluster.address=host:port, or leave it out "
            "for a private Ray"
        )
    return address, f"{address!r} of {noted} (for cluster.address='auto')"


def _speaks(connection: socket.socket) -> bool:
    """Whether the other end greets as a gRPC server does, which a Ray head is: by its settings (RFC 9113, 3.4)."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True  # it would answer to TLS alone
    try:
        connection.sendall(HTTP2_GREETING)
        with connection.makefile("rb") as answer:
            return answer.read(9)[3:4] == SETTINGS
    except OSError:  # silence until the deadline, or it hung up
        return False


def explain(address: str, error: Exception) -> str:
    """One sentence on why Ray refused, with the remedy."""
    text, where = " ".join(str(error).split()), f"cluster.address={address!r}"
    if "Version mismatch" in text:
        return (f"{where} runs other versions than this environment ({text}): install the cluster's Ray and Python "
                "here")
    if address != "local" and isinstance(error, ConnectionError):
        return (f"{where} does not let this process in ({text}): if the cluster asks for a token, set "
                f"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file that holds it; {GUIDE}")
    return (f"Ray did not start with {where}: {text}. End a Ray session left over from before, or try "
            "cluster=serial")


class RaySession:
    """Started or joined when built; ``ray`` is the module then."""

    def __init__(self, config: ClusterConfig, run_id: str) -> None:
        """Start or join Ray.

        Raises:
            ClusterError: it does not come up or answer, with the reason and the remedy.
        """
        self._config = config
        self._folder: Path | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self.ray: Any = None
        deadline = time.monotonic() + config.start_deadline_s
        while (error := self._init(run_id)) is not None:
            # Ray grants its own processes 30 s, whatever else the machine is doing.
            if TOO_SLOW not in str(error) or time.monotonic() > deadline:
                raise ClusterError(explain(config.address, error)) from error

    @property
    def joined(self) -> bool:
        """The cluster is not ours, and may have many nodes."""
        return self._config.address != "local"

    def _init(self, run_id: str) -> Exception | None:
        """Start or join Ray; what it raised, once nothing of the attempt is left."""
        # Another one for each life of a run: actors of the last may still hold their names.
        namespace = f"perilune-{run_id}-{os.urandom(2).hex()}"
        options: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "configure_logging": False}
        options |= {"address": running_address(self._config.address)} if self.joined else self._private(run_id)
        # Ray reads its environment when it is imported, so not before this line.
        import ray

        self.ray = ray
        try:
            with own_signals():
                ray.init(**options)
        except Exception as error:  # noqa: BLE001 - Ray raises bare ones where its processes come up late
            ray.shutdown()
            self._clean()
            return error
        except SystemExit as error:  # how Ray gives up on something that listens but is not a Ray
            if not self.joined:
                raise
            return ConnectionError(f"Ray ended its attempt with {error.code}")
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

    def close(self) -> None:
        """Leave or end the session; nothing of a private one is left after it."""
        try:
            with own_signals():
                self.ray.shutdown()
        finally:
            self._clean()

    def _clean(self) -> None:
        if self._folder is not None:
            sweep(self._folder)
        if self._watchdog is not None:
            self._watchdog.communicate(timeout=WATCHDOG_DEADLINE_S)
