"""What a cluster of processes refuses, and whose fault an error is; Ray itself starts in one test."""

import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.cluster import Pending, SerialCluster, ask
from actors.ray_cluster import RayCluster, open_cluster
from engine.config.cluster import SHARED_GPUS, ActorResources, ClusterConfig, ClusterKind, ResourcesConfig
from engine.errors import ActorError, CheckpointError, ClusterError, ConfigError, ModelError, StalenessError


class RayError(Exception):
    """As ray.exceptions has it."""


class RayTaskError(RayError):
    """As ray.exceptions has it."""

    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class ActorDiedError(RayError):
    """As ray.exceptions has it."""

    actor_init_failed = True


class GetTimeoutError(RayError):
    """As ray.exceptions has it."""


class Group:
    """As a placement group."""

    def __init__(self, bundles, strategy, bundle_label_selector):
        self.bundles, self.strategy = bundles, strategy
        self.pins = [] if bundle_label_selector is None else [one["ray.io/node-id"] for one in bundle_label_selector]
        self.ready, self.removed, self.waits = True, False, 0

    def wait(self, deadline_s):
        assert deadline_s > 0
        assert not self.removed
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

    def placement_group(bundles, strategy, bundle_label_selector=None):
        groups.append(Group(bundles, strategy, bundle_label_selector))
        groups[-1].ready = not full
        return groups[-1]

    def placement_group_table(group):
        unplaced = leaving.pop() if leaving else None
        chosen = {index: "" if index == unplaced else f"n{index}" for index in reversed(range(len(group.bundles)))}
        return {"bundles_to_node_id": chosen}

    def remove_placement_group(group):
        assert not group.removed
        group.removed = True

    def nodes():
        resources = {"n0": {"CPU": 2.0, "GPU": 1.0, "rack": 1.0, "memory": 9.0}, "n1": {}, "n2": {"GPU": 8.0}}
        return [{"NodeID": name, "Alive": name not in gone, "Resources": has} for name, has in resources.items()]

    started, groups, full, leaving, gone = [], [], set(), [], {"n2"}
    strategies = SimpleNamespace(PlacementGroupSchedulingStrategy=lambda group, bundle: (group, bundle),
                                 NodeAffinitySchedulingStrategy=lambda node, soft: (node, soft))
    return SimpleNamespace(
        exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, GetTimeoutError=GetTimeoutError),
        get=get, remote=remote, kill=lambda handle, no_restart: None, started=started, groups=groups, full=full,
        leaving=leaving, gone=gone, nodes=nodes,
        _private=SimpleNamespace(state=SimpleNamespace(available_resources_per_node=lambda: {"n0": {"GPU": 1.0}})),
        util=SimpleNamespace(
            placement_group=placement_group, scheduling_strategies=strategies,
            placement_group_table=placement_group_table, remove_placement_group=remove_placement_group,
        ),
        wait=lambda references, **options: (references[:1], references[1:]),
    )


@pytest.fixture
def cluster(ray):
    made = RayCluster.__new__(RayCluster)
    made._config, made._ray, made._session = ClusterConfig(kind=ClusterKind.ray), ray, SimpleNamespace(joined=True)
    made._handles, made._seats, made._groups, made._sharing = {}, {}, {}, set()
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


def living(ray):
    return [group for group in ray.groups if not group.removed]


def test_actors_get_what_they_ask_for_in_their_places(asking):
    asking.reserve(["replay", "learner", "generator-0"])
    packed, spread = asking._ray.groups[:2]
    assert (packed.strategy, packed.bundles) == ("PACK", [{"memory": 1.0}, {"memory": 1.0}])
    assert (spread.strategy, spread.bundles) == ("SPREAD", [{"CPU": 1.0, "GPU": 1.0, "rack": 0.5}])
    asking.start("learner", dict, {})
    asking.start("generator-0#2", dict, {}, threads=3)
    learner, generator = asking._ray.started
    assert (generator["num_cpus"], generator["num_gpus"], generator["resources"]) == (1.0, 1.0, {"rack": 0.5})
    assert generator["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "3"
    for actor, choice, node in ((learner, packed, "n1"), (generator, spread, "n0")):
        group, bundle = actor["scheduling_strategy"]
        assert (group.bundles, group.pins, bundle) == (choice.bundles[:1], [node], 0)


def test_a_node_without_the_model_folder_is_refused_before_an_actor_is_made_there(asking, tmp_path):
    asking.reserve(["replay", "learner", "generator-0"])
    asking.start("replay", dict, {})
    assert len(asking._ray.started) == 1, "it loads nothing"
    (tmp_path / "config.json").touch()
    shared, missing = {"folder": str(tmp_path)}, {"folder": "/nowhere"}
    asking.start("learner", dict, shared)
    assert asking._ray.started[1] == {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": ("n1", False)}
    asking.start("learner", dict, shared)
    assert len(asking._ray.started) == 4, "a node is asked once"
    with pytest.raises(ClusterError, match=rf"^generator-0#1 is to live on machine {socket.gethostname()}, where .*, "
                                           "/nowhere, is missing: put it on a file system that all machines share"):
        asking.start("generator-0#1", dict, missing)
    assert set(asking._handles) == {"replay", "learner"}
    asking._ray.wait = lambda references, **options: ([], references)
    with pytest.raises(ActorError, match=r"generator-0#1 during start: its node did not answer within .*=120"):
        asking.start("generator-0#1", dict, shared)
    asking._session.joined = False
    asking.start("generator-0#1", dict, missing)
    assert "generator-0#1" in asking._handles, "what this machine has was checked before"


def test_whether_nccl_may_share_a_gpu_is_told_to_actors_on_every_machine(asking, monkeypatch):
    monkeypatch.delenv(SHARED_GPUS, raising=False)
    asking.start("learner", dict, {})
    monkeypatch.setenv(SHARED_GPUS, "1")
    asking.start("generator-0#1", dict, {})
    told = [started["runtime_env"]["env_vars"].get(SHARED_GPUS) for started in asking._ray.started]
    assert told == [None, "1"]


def test_each_bundle_stays_on_the_node_that_was_chosen_for_it_among_the_others(asking):
    asking.reserve(["replay", "learner", "generator-0"])
    assert [group.pins for group in living(asking._ray)] == [["n0"], ["n1"], ["n0"]], "what chose them is gone"


def test_a_node_that_leaves_once_it_is_chosen_is_chosen_anew(asking):
    asking._ray.leaving.append(1)
    asking.reserve(["replay", "learner"])
    assert asking._ray.groups[0].waits == 2
    assert [group.pins for group in living(asking._ray)] == [["n0"], ["n1"]]


def test_a_private_session_has_one_node_to_choose(asking):
    asking._session.joined = False
    asking._ray.gone.add("n1")
    asking.reserve(["generator-0"])
    assert [group.pins for group in asking._ray.groups] == [["n0"]]


def test_a_place_that_others_hold_is_waited_for_until_the_deadline(asking):
    asking._ray.full.add("with others")
    with pytest.raises(ClusterError, match=r"no room became free within cluster.start_deadline_s=120: generator-0 ask "
                                           r"for 1 CPU \(free: 0\), 1 GPU \(free: 1\), 0.5 rack .*"
                                           r"the freest node has 0 CPU with 1 GPU"):
        asking.reserve(["generator-0"])
    assert living(asking._ray) == []


def test_a_place_whose_node_left_is_sought_anew_and_the_others_stand(asking):
    asking._config = ClusterConfig(kind=ClusterKind.ray)
    asking.reserve(["generator-0", "generator-1"])
    stays, _ = living(asking._ray)
    asking._ray.gone.add("n1")
    asking._ray.full.add("with others")
    asking.start("generator-0#2", dict, {})
    assert asking._ray.started[-1]["scheduling_strategy"] == (stays, 0)
    with pytest.raises(ClusterError, match=r"no room became free .* generator-1 ask for room"):
        asking.start("generator-1#2", dict, {})
    assert living(asking._ray) == [stays], "Ray would seek a place for the lost one without a pause"
    asking._ray.full.clear()
    asking.start("generator-1#3", dict, {})
    group, _ = asking._ray.started[-1]["scheduling_strategy"]
    assert living(asking._ray) == [stays, group]


def test_a_place_that_another_took_while_it_was_pinned_is_given_back(asking):
    asking.reserve(["generator-0"])
    (group,) = living(asking._ray)
    group.ready = False
    with pytest.raises(ClusterError, match="no room became free"):
        asking.start("generator-0#1", dict, {})
    assert living(asking._ray) == []


def test_nothing_that_was_asked_for_is_left(asking):
    closed = []
    asking._session.close = lambda: closed.append(1)
    asking.reserve(["replay", "learner", "generator-0"])
    asking.close()
    assert living(asking._ray) == []
    assert closed


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
    (ActorDiedError(RayTaskError(ModelError("no weights"))), ModelError, "^no weights$"),
    (ActorDiedError(RayTaskError(OSError("no disk"))), ActorError, r"it could not be made \(OSError\('no disk'\)\)"),
    (ActorDiedError(), ActorError, r"its process died"),
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


class Unmade(Worker):
    """An actor that finds when it is made that it cannot work here."""

    def __init__(self) -> None:
        raise ConfigError("weights.channel", "nccl", "this process sees no GPU: choose another channel")


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
        for name in ("learner", "generator-0#1"):
            cluster.kill(name)
            cluster.start(name, Unmade, {})
            with pytest.raises(ConfigError, match=r"^weights.channel='nccl': this process sees no GPU: choose another"):
                ask(cluster, name, "add", 1, deadline_s=120.0)
        stopped = ask(cluster, "judge#1", "whoami", deadline_s=120.0)[0]
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(ActorError, match="actor judge#1 during add: no answer within"):
            ask(cluster, "judge#1", "add", 1, deadline_s=0.2)
    finally:
        cluster.close()
    assert not list(Path("/tmp").glob(f"perilune-{RUN_ID[:8]}-*"))
    assert not Path(f"/proc/{stopped}").exists(), "stopped, and gone nevertheless"
