"""What a cluster of processes refuses, and whose fault an error is; Ray itself starts in one test."""

import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.cluster import Pending, SerialCluster, ask
from actors.ray_cluster import RayCluster, open_cluster
from engine.config.cluster import ActorResources, ClusterConfig, ClusterKind, ResourcesConfig
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


class Group:
    """As a placement group."""

    def __init__(self, bundles, strategy):
        self.bundles, self.strategy, self.ready = bundles, strategy, True
        self.state, self.nodes, self.waits = "CREATED", dict.fromkeys(range(len(bundles)), "ff" * 28), 0

    def wait(self, deadline_s):
        assert deadline_s > 0
        self.waits += 1
        return self.ready


@pytest.fixture
def ray():
    """The few words of Ray that are used once it runs."""
    def get(token, timeout):
        if isinstance(token, Exception):
            raise token
        return token

    def remote(factory):
        def options(**given):
            started.append(given)
            return SimpleNamespace(remote=factory)
        return SimpleNamespace(options=options)

    def placement_group(bundles, strategy):
        groups.append(Group(bundles, strategy))
        return groups[-1]

    started, groups = [], []
    strategies = SimpleNamespace(PlacementGroupSchedulingStrategy=lambda group, bundle: (group, bundle))
    return SimpleNamespace(
        exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, GetTimeoutError=GetTimeoutError),
        get=get, remote=remote, kill=lambda handle, no_restart: None, started=started, groups=groups,
        nodes=lambda: [{"NodeID": "a1", "Alive": True,
                        "Resources": {"CPU": 2.0, "GPU": 1.0, "rack": 1.0, "memory": 9.0}},
                       {"NodeID": "b2", "Alive": False, "Resources": {"GPU": 8.0}}],
        available_resources=lambda: {"GPU": 1.0},
        util=SimpleNamespace(
            placement_group=placement_group, scheduling_strategies=strategies,
            placement_group_table=lambda group: {"state": group.state, "bundles_to_node_id": group.nodes},
        ),
        wait=lambda references, **options: (references[:1], references[1:]),
    )


@pytest.fixture
def cluster(ray):
    made = RayCluster.__new__(RayCluster)
    made._config, made._ray, made._handles, made._places = ClusterConfig(kind=ClusterKind.ray), ray, {}, {}
    return made


def test_the_configuration_chooses():
    assert isinstance(open_cluster(ClusterConfig(kind=ClusterKind.serial), "id"), SerialCluster)


@pytest.fixture
def asking(cluster):
    """A cluster whose generators ask for CPUs and a GPU each."""
    own = ActorResources(cpus=1.0, gpus=1.0, custom={"rack": 0.5})
    cluster._config = ClusterConfig(kind=ClusterKind.ray, resources=ResourcesConfig(generator=own))
    return cluster


def test_too_little_room_is_said_before_anything_starts(asking):
    with pytest.raises(ClusterError, match=r"room: 2 GPU .*generator-0 1, generator-1 1\), the cluster has 1"):
        asking.reserve(["learner", "generator-0", "generator-1"])
    assert asking._ray.groups == []


def test_actors_get_what_they_ask_for_in_their_places(asking):
    asking.reserve(["replay", "learner", "generator-0"])
    packed, spread = asking._ray.groups
    assert (packed.strategy, packed.bundles) == ("PACK", [{"memory": 1.0}, {"memory": 1.0}])
    assert (spread.strategy, spread.bundles) == ("SPREAD", [{"CPU": 1.0, "GPU": 1.0, "rack": 0.5}])
    asking.start("learner", dict, {})
    asking.start("generator-0#2", dict, {}, threads=3)
    learner, generator = asking._ray.started
    assert learner["scheduling_strategy"] == (packed, 1)
    assert generator["scheduling_strategy"] == (spread, 0)
    assert (generator["num_cpus"], generator["num_gpus"], generator["resources"]) == (1.0, 1.0, {"rack": 0.5})
    assert generator["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "3"


def test_a_place_that_others_hold_is_waited_for_until_the_deadline(asking):
    asking.reserve(["generator-0"])
    asking._ray.groups[0].ready = False
    with pytest.raises(ClusterError, match=r"no room became free within cluster.start_deadline_s=120: generator-0 ask "
                                           r"for 1 CPU \(free: 0\), 1 GPU \(free: 1\)"):
        asking.start("generator-0#1", dict, {})


def test_a_place_that_stands_is_taken_though_its_group_lost_another(asking):
    asking._config = ClusterConfig(kind=ClusterKind.ray)
    asking.reserve(["generator-0", "generator-1"])
    (group,) = asking._ray.groups
    group.ready, group.state, group.nodes = False, "RESCHEDULING", {0: "a1", 1: "ff" * 28}
    asking.start("generator-0#2", dict, {})
    assert group.waits == 0, "a wait is for the whole group"
    assert asking._ray.started[-1]["scheduling_strategy"] == (group, 0)
    with pytest.raises(ClusterError, match="no room became free"):
        asking.start("generator-1#2", dict, {})
    group.nodes[1] = "b2"  # Ray has not cleared what lay on the node that left
    with pytest.raises(ClusterError, match="no room became free"):
        asking.start("generator-1#2", dict, {})


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


RUN_ID = "0a1b2c3d-4e5f6071"


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
        cluster.reserve(["learner", "judge"])
        cluster.start("learner", Worker, {}, threads=3)
        cluster.start("judge#1", Worker, {})
        assert cluster.look("learner", Path("/dev/shm")) == (socket.gethostname(), True)
        pid, threads = ask(cluster, "learner", "whoami", deadline_s=120.0)
        assert pid != os.getpid()
        assert threads == "3"
        assert ask(cluster, "judge#1", "add", cluster.call("learner", "add", 5), deadline_s=120.0) == 7
        with pytest.raises(CheckpointError, match="no room"):
            ask(cluster, "learner", "refuse", deadline_s=120.0)
        with pytest.raises(ActorError, match="actor learner during die: its process died"):
            ask(cluster, "learner", "die", deadline_s=120.0)
        stopped = ask(cluster, "judge#1", "whoami", deadline_s=120.0)[0]
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(ActorError, match="actor judge#1 during add: no answer within"):
            ask(cluster, "judge#1", "add", 1, deadline_s=0.2)
    finally:
        cluster.close()
    assert not list(Path("/tmp").glob(f"perilune-{RUN_ID[:8]}-*"))
    assert not Path(f"/proc/{stopped}").exists(), "stopped, and gone nevertheless"
