"""What a cluster of processes refuses, and whose fault an error is; Ray itself starts in one test."""

import os
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.cluster import Pending, SerialCluster, ask
from actors.ray_cluster import RayCluster, _own_signals, open_cluster
from engine.config.cluster import ClusterConfig, ClusterKind
from engine.errors import ActorError, CheckpointError, ClusterError, StalenessError


class RayError(Exception):
    """As ray.exceptions has it."""


class RayTaskError(RayError):
    """As ray.exceptions has it."""

    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class GetTimeoutError(RayError):
    """As ray.exceptions has it."""


@pytest.fixture
def ray():
    """The few words of Ray that are used once it runs."""
    def get(token, timeout):
        if isinstance(token, Exception):
            raise token
        return token

    def remote(num_cpus, max_restarts):
        return lambda factory: SimpleNamespace(options=lambda **options: SimpleNamespace(remote=factory))

    return SimpleNamespace(
        exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, GetTimeoutError=GetTimeoutError),
        get=get, remote=remote, cluster_resources=lambda: {"CPU": 2.0}, kill=lambda handle, no_restart: None,
        wait=lambda references, **options: (references[:1], references[1:]),
    )


@pytest.fixture
def cluster(ray):
    made = RayCluster.__new__(RayCluster)
    made._config, made._ray, made._handles, made._cpus = ClusterConfig(kind=ClusterKind.ray), ray, {}, {}
    return made


def test_the_configuration_chooses():
    assert isinstance(open_cluster(ClusterConfig(kind=ClusterKind.serial), "id"), SerialCluster)


def test_an_address_where_nobody_listens_is_refused_at_once():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"nobody listens at cluster.address='{address}'"):
            open_cluster(ClusterConfig(kind=ClusterKind.ray, address=address), "id")


def test_an_object_store_larger_than_shared_memory_is_refused():
    with pytest.raises(ClusterError, match=r"object_store_mib=1000000000 needs .* lower it"):
        RayCluster(ClusterConfig(kind=ClusterKind.ray, object_store_mib=10**9), "id")


def test_actors_may_not_ask_for_more_cpus_than_there_are(cluster):
    cluster.start("learner", dict, {}, cpus=1.5)
    with pytest.raises(ClusterError, match=r"generator-0#1 asks for 1.0 CPUs beside 1.5 .* has 2.0"):
        cluster.start("generator-0#1", dict, {}, cpus=1.0)
    cluster.kill("learner")
    cluster.start("generator-0#1", dict, {}, cpus=1.0)


def test_an_actor_that_was_ended_answers_with_its_death(cluster):
    pending = cluster.call("judge#1", "judge")
    assert cluster.wait([Pending("a", "say", 1), pending], 1.0) is pending
    with pytest.raises(ActorError, match="judge#1 during judge: it was ended"):
        cluster.result(pending)


@pytest.mark.parametrize(("token", "error", "text"), [
    (RayTaskError(StalenessError("too old")), StalenessError, "^too old$"),
    (RayTaskError(RayError("its argument died")), ActorError, "its argument died"),
    (GetTimeoutError("late"), ActorError, "its answer did not arrive"),
    (RayError("exit 9"), ActorError, r"its process died \(exit 9\)"),
])
def test_an_error_is_the_actors_own_or_its_death(cluster, token, error, text):
    assert cluster.result(Pending("a", "say", 5)) == 5
    with pytest.raises(error, match=text):
        cluster.result(Pending("a", "say", token))


def test_signal_handlers_survive_a_start_that_takes_them():
    before = signal.getsignal(signal.SIGTERM)
    with _own_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before


RUN_ID = "0a1b2c3d-4e5f6071"


def test_a_slow_start_is_tried_again_and_leaves_nothing(monkeypatch):
    folders = []

    def init(**options):
        folders.append(Path(options["_temp_dir"]).parent)
        assert (folders[-1] / "token").stat().st_mode & 0o777 == 0o600
        if len(folders) == 1:
            raise Exception("The current node timed out during startup.")
        raise ValueError("something else")

    # A stand-in: the real one reads its token settings once, when it is imported, and later tests need them.
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: None))
    with pytest.raises(ClusterError, match="something else"):
        RayCluster(ClusterConfig(kind=ClusterKind.ray, object_store_mib=80), RUN_ID)
    assert len(set(folders)) == 2
    assert not any(folder.exists() for folder in folders)


class Worker:
    """An actor of many moods."""

    def add(self, amount: int) -> int:
        return amount + 1

    def whoami(self) -> tuple[int, str]:
        return os.getpid(), os.environ["OMP_NUM_THREADS"]

    def refuse(self) -> None:
        raise CheckpointError("no room")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        return None


@pytest.mark.ray
def test_one_session():
    """Ray starts once for all of this: it takes seconds."""
    handler = signal.getsignal(signal.SIGTERM)
    options = {"dashboard": False, "object_store_mib": 80, "call_deadline_s": 60.0}
    cluster = RayCluster(ClusterConfig(kind=ClusterKind.ray, **options), RUN_ID)
    try:
        assert signal.getsignal(signal.SIGTERM) is handler, "a checkpoint is written on SIGTERM"
        with pytest.raises(ClusterError, match=r"actor big asks for 1000\.0 CPUs"):
            cluster.start("big", Worker, {}, cpus=1000.0)
        cluster.start("one", Worker, {}, threads=3)
        cluster.start("two", Worker, {})
        pid, threads = ask(cluster, "one", "whoami", deadline_s=120.0)
        assert pid != os.getpid()
        assert threads == "3"
        assert ask(cluster, "two", "add", cluster.call("one", "add", 5), deadline_s=120.0) == 7
        with pytest.raises(CheckpointError, match="no room"):
            ask(cluster, "one", "refuse", deadline_s=120.0)
        with pytest.raises(ActorError, match="actor one during die: its process died"):
            ask(cluster, "one", "die", deadline_s=120.0)
        stopped = ask(cluster, "two", "whoami", deadline_s=120.0)[0]
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(ActorError, match="actor two during add: no answer within"):
            ask(cluster, "two", "add", 1, deadline_s=0.2)
    finally:
        cluster.close()
    assert not list(Path("/tmp").glob(f"perilune-{RUN_ID[:8]}-*"))
    assert not Path(f"/proc/{stopped}").exists(), "stopped, and gone nevertheless"
