"""Who is started under which name, who is replaced, and when it is enough."""

import pytest

from actors.cluster import SerialCluster
from actors.supervisor import Restarts, Supervisor
from engine.config.run import Only
from engine.errors import ActorError
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

    def start(self, name, factory, arguments, *, cpus=0.0, threads=1):
        self.started[name] = factory.__name__
        super().start(name, Part, {})

    def kill(self, name):
        self.killed.append(name)
        super().kill(name)


def staff(config, limit=9):
    stage = Stage()
    supervisor = Supervisor(stage, config, "folder", "id", "", Restarts(limit, 60.0, lambda: 0.0))
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
