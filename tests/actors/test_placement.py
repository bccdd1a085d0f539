"""Which actors share a bundle, and what a cluster lacks."""

import pytest

from actors.placement import lack, plan, role_of, wanting
from engine.config.cluster import ActorResources, ClusterConfig, Placement, ResourcesConfig
from engine.errors import ConfigError

ACTORS = ["replay", "learner", "learner-1", "judge", "evaluator", "generator-0", "generator-1"]


def gpus(placement=Placement.disaggregated, learner=0.5, generator=0.25, evaluator=0.25):
    amounts = {"learner": learner, "generator": generator, "evaluator": evaluator}
    resources = ResourcesConfig(**{role: ActorResources(gpus=amount) for role, amount in amounts.items()})
    return ClusterConfig(placement=placement, resources=resources)


def test_roles():
    assert [role_of(name) for name in ("learner-1", "generator-0#3", "judge#1")] == ["learner", "generator", "judge"]


def test_apart_learners_are_packed_and_generators_spread():
    packed, spread = plan(ACTORS, gpus())
    assert packed.strategy == "PACK"
    assert packed.actors == (("replay",), ("learner",), ("learner-1",), ("judge",))
    assert packed.bundles == ({"memory": 1.0}, {"GPU": 0.5}, {"GPU": 0.5}, {"memory": 1.0})
    assert spread.strategy == "SPREAD"
    assert spread.actors == (("evaluator",), ("generator-0",), ("generator-1",))


def test_together_they_share_bundles():
    (place,) = plan(ACTORS, gpus(Placement.colocated))
    assert place.actors == (
        ("learner", "evaluator", "generator-0"), ("learner-1", "generator-1"), ("replay",), ("judge",),
    )
    assert place.bundles == ({"GPU": 1.0}, {"GPU": 0.75}, {"memory": 1.0}, {"memory": 1.0})


def test_more_than_one_device_cannot_be_shared():
    with pytest.raises(ConfigError, match=r"cluster.placement='colocated': .* share one GPU but ask for 1.5"):
        gpus(Placement.colocated, learner=1.0)


def test_what_a_cluster_lacks():
    places = plan(ACTORS, gpus(learner=1.0))
    node = {"GPU": 1.0, "memory": 100.0}
    assert lack(places, [node] * 3) == ""
    assert lack(places, [node]) == (
        "2.75 GPU are asked for (learner 1, learner-1 1, evaluator 0.25, generator-0 0.25, generator-1 0.25), "
        "the cluster has 1"
    )
    halves = [{"GPU": 0.5, "memory": 100.0}] * 6
    assert lack(places, halves) == "learner ask for 1 GPU in one place, no node has more than 0.5"


def test_what_is_taken_is_set_beside_what_is_free():
    packed, _ = plan(ACTORS, gpus())
    assert wanting([packed], {"GPU": 0.5}) == "1 GPU (free: 0.5)"
    assert wanting(plan(["judge"], gpus()), {}) == "room for a process"
