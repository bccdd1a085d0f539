"""Who is started under which name, who is replaced, and when it is enough."""

import pytest

from actors.cluster import SerialCluster
from actors.supervisor import Restarts, Supervisor
from engine.config.cluster import WeightChannelKind
from engine.config.rollout import GeneratorKind
from engine.config.run import Only
from engine.errors import ActorError, ClusterError
from tests.actors.fake_driver import changed


class Part:
    """Stands for any actor."""

    def metrics(self):
        return {}

    def close(self):
        pass


class Stage(SerialCluster):
    """Starts stand-ins and remembers whom they stand for."""

    def __init__(self):
        super().__init__()
        self.started, self.killed = {}, []
        self.full, self.doomed, self.machines, self.reserved = set(), set(), {}, []
        self.deadlines, self.looks, self.looked_for = {}, [], set()

    def wait(self, pending, timeout_s):
        self.deadlines[pending[0].actor] = timeout_s
        return super().wait(pending, timeout_s)

    def reserve(self, actors):
        self.reserved = list(actors)

    def look(self, name, path):
        self.looks.append(name)
        self.looked_for.add(path)
        return self.machines.get(name, "here"), "nowhere" not in str(path)

    def start(self, name, factory, arguments, *, threads=1):
        if name in self.full:
            raise ClusterError("no room")
        if name in self.doomed:
            raise death(name)
        self.started[name] = factory.__name__
        super().start(name, Part, {})

    def kill(self, name):
        self.killed.append(name)
        super().kill(name)


def staff(config, limit=9, machines=()):
    stage = Stage()
    stage.machines.update(machines)
    supervisor = Supervisor(stage, config, "folder", "id", {}, Restarts(limit, 60.0, lambda: 0.0))
    supervisor.start_all()
    return stage, supervisor


def death(actor):
    return ActorError(actor, "advance", "it died")


def test_restarts_are_limited_within_a_window():
    now = [0.0]
    restarts = Restarts(2, 10.0, lambda: now[0])
    for now[0] in (0.0, 5.0):
        restarts.allow(death("judge#1"))
    now[0] = 9.0
    with pytest.raises(ActorError, match=r"judge#1.*it died; 2 restarts within 10 s.*cluster\.max_restarts"):
        restarts.allow(death("judge#1"))
    now[0] = 10.5
    restarts.allow(death("judge#1"))
    assert restarts.total == 3


def test_everybody_is_started_and_learning_alone_needs_no_generator(config):
    stage, supervisor = staff(changed(config, {"generator.num_generators": 2}))
    assert stage.started == {
        "replay": "Replay", "learner": "Learner", "judge#1": "Judge", "evaluator#1": "Generator",
        "generator-0#1": "Generator", "generator-1#1": "Generator",
    }
    assert supervisor.generators == ["generator-0#1", "generator-1#1"]
    assert stage.reserved == ["replay", "learner", "judge", "evaluator", "generator-0", "generator-1"]
    stage, supervisor = staff(changed(config, {"train.rollouts": "somewhere", "train.only": Only.learn}))
    assert supervisor.generators == []
    assert list(stage.started) == ["replay", "learner", "judge#1", "evaluator#1"]


def test_a_successor_has_a_new_name_in_the_same_place(config):
    stage, supervisor = staff(changed(config, {"generator.num_generators": 2}))
    assert supervisor.replace(death("generator-0#1")) == "generator-0#2"
    assert supervisor.generators == ["generator-0#2", "generator-1#1"]
    assert supervisor.replace(death("judge#1")) == supervisor.judge == "judge#2"
    assert supervisor.replace(death("evaluator#1")) == supervisor.evaluator == "evaluator#2"
    assert stage.killed == ["generator-0#1", "judge#1", "evaluator#1"]
    assert supervisor.replaced("generator-0#1")
    assert not supervisor.replaced("generator-0#2")
    assert not supervisor.replaced("learner")


def test_who_holds_vllm_may_take_the_time_that_its_start_is_given(config):
    stage, _ = staff(config)
    assert set(stage.deadlines.values()) == {config.cluster.start_deadline_s}
    over_vllm = {"generator.kind": GeneratorKind.vllm, "generator.vllm.start_timeout_s": 500.0,
                 "cluster.start_deadline_s": 100.0}
    stage, _ = staff(changed(config, over_vllm))
    assert stage.deadlines == {"replay": 100.0, "learner": 100.0, "judge#1": 100.0, "evaluator#1": 600.0,
                               "generator-0#1": 600.0}


def test_a_successor_is_waited_for_by_nobody_here(config):
    """Neither its first answer nor the learner's, which may be at an update."""
    stage, supervisor = staff(config)
    stage.deadlines.clear()
    stage.looks.clear()
    for name in ("generator-0#1", "evaluator#1", "judge#1"):
        supervisor.replace(death(name))
    assert (stage.deadlines, stage.looks) == ({}, [])
    supervisor.check_machines(["generator-0#2"])
    assert stage.looks == ["generator-0#2"], "where the learner lives is known"
    stage.machines["generator-0#2"] = "there"
    with pytest.raises(ClusterError, match=r"generator-0#2 lives on machine there, the learner on here"):
        supervisor.check_machines(["generator-0#2"])


def test_what_reaches_every_machine_is_looked_for_on_none(config):
    stage, supervisor = staff(changed(config, {"weights.channel": WeightChannelKind.object_store}))
    assert stage.looks == ["learner"], "whether it sees the run folder"
    stage.machines["generator-0#1"] = "there"
    supervisor.check_machines(["generator-0#1"])
    assert stage.looks == ["learner"]


@pytest.mark.parametrize("actor", ["learner", "replay"])
def test_what_cannot_be_made_again_is_not_replaced(config, actor):
    stage, supervisor = staff(config)
    with pytest.raises(ActorError, match=f"{actor} during advance: it died$"):
        supervisor.replace(death(actor))
    assert stage.killed == []


def test_a_used_up_limit_replaces_nobody(config):
    stage, supervisor = staff(config, limit=0)
    with pytest.raises(ActorError, match="max_restarts"):
        supervisor.replace(death("judge#1"))
    assert supervisor.judge == "judge#1"
    assert stage.killed == []


def test_a_successor_that_dies_on_the_way_is_replaced_too(config):
    stage, supervisor = staff(config)
    stage.doomed = {"judge#2"}
    assert supervisor.replace(death("judge#1")) == supervisor.judge == "judge#3"
    assert stage.killed == ["judge#1", "judge#2"]
    stage.doomed = {"judge#4", *(f"judge#{number}" for number in range(5, 20))}
    with pytest.raises(ActorError, match="max_restarts"):
        supervisor.replace(death("judge#3"))


def test_without_room_the_other_generators_go_on(config):
    stage, supervisor = staff(changed(config, {"generator.num_generators": 2}))
    stage.full = {"generator-0#2", "generator-1#2", "judge#2"}
    assert supervisor.replace(death("generator-0#1")) == ""
    assert (supervisor.generators, supervisor.refusal) == (["generator-1#1"], "no room")
    assert supervisor.replaced("generator-0#1")
    for last in ("generator-1#1", "judge#1"):
        with pytest.raises(ClusterError, match="no room"):
            supervisor.replace(death(last))


def test_shared_memory_ends_at_the_border_of_a_machine(config):
    with pytest.raises(ClusterError, match=r"generator-0#1 lives on machine there, .* on here: .*object_store"):
        staff(config, machines={"generator-0#1": "there"})


def test_a_learner_elsewhere_must_see_the_run_folder(config):
    with pytest.raises(ClusterError, match=r"the learner lives on machine there, where run.dir='nowhere' is missing"):
        staff(changed(config, {"run.dir": "nowhere"}), machines={"learner": "there"})


def test_a_run_folder_at_home_is_looked_for_there(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    stage, _ = staff(changed(config, {"run.dir": "~/run"}))
    assert stage.looked_for == {tmp_path / "run"}
