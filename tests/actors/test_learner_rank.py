"""A rank that cannot meet or loses the others dies as the learner, by name."""

import sys
from types import SimpleNamespace

import pytest
import torch

from actors.learner_rank import LearnerRank, together
from engine.config.cluster import ClusterKind
from engine.errors import ActorError
from engine.models.ranks import ALONE, Ranks
from tests.actors.fake_driver import changed


class Lost(LearnerRank):
    @together
    def update(self, what):
        raise RuntimeError(what)


@pytest.fixture
def several(config):
    two = changed(config, {"cluster.kind": ClusterKind.ray})
    return changed(two, {"learning.num_learners": 2, "learning.rank_deadline_s": 1.0,
                         "learning.gradient_checkpointing": True})


def test_an_only_learner_can_begin_at_once(config, policy):
    learner = LearnerRank(config, policy, 0)
    assert learner.name == "learner"
    assert learner.ranks is ALONE
    assert learner.weights().keys() == learner.core.network.state_dict().keys()


def test_one_of_several_has_no_core_before_it_joined(several, policy):
    first, second = LearnerRank(several, policy, 0), LearnerRank(several, policy, 1)
    assert (first.name, second.name) == ("learner", "learner-1")
    assert not hasattr(first, "core")
    address = first.meet()
    assert address.startswith("127.0.0.1:")
    with pytest.raises(ActorError, match=r"learner-1 during join: rank 1 of 2 .*learning\.rank_deadline_s"):
        second.join(address)


def test_in_a_cluster_the_ranks_meet_where_ray_knows_the_node(several, policy, monkeypatch):
    # A stand-in: the real one reads its token settings once, when it is imported, and later tests need them.
    known = SimpleNamespace(util=SimpleNamespace(get_node_ip_address=lambda: "127.0.0.3"))
    monkeypatch.setitem(sys.modules, "ray", known)
    first = LearnerRank(changed(several, {"cluster.address": "auto"}), policy, 0)
    assert first.meet().startswith("127.0.0.3:")


def test_a_lost_collective_is_a_death_and_other_errors_are_not(config, policy):
    lost = Lost(config, policy, 0)
    lost.ranks = Ranks(0, 2)
    with pytest.raises(ActorError, match="actor learner during update: rank 0 of 2 lost the others during update"):
        lost.update("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    with pytest.raises(RuntimeError, match="out of memory"):
        lost.update("out of memory")


def test_gradient_checkpointing_reaches_the_layers(several, policy):
    network = LearnerRank(several, policy, 0)._network
    assert all("checkpoint" in str(layer.forward) for layer in network.model.layers)
    assert torch.get_num_threads() == several.cluster.threads.learner
