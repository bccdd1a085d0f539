"""Which actors share a bundle, and what a cluster lacks."""

import pytest

from actors.placement import Place, lack, plan, role_of, wanting
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
    assert lack(places, halves) == "learner ask for 1 GPU in one place, the freest node has 0.5 GPU"


def bundles(*amounts):
    return [Place("SPREAD", tuple((f"a{i}",) for i in range(len(amounts))), amounts)]


@pytest.mark.parametrize("amounts", [(0.2, 0.4, 0.3, 0.1), (0.2,) * 15])
def test_fractions_that_fill_a_device_fit(amounts):
    """Their sums as floats are a little more."""
    assert sum(amounts) > round(sum(amounts))
    assert lack(bundles(*({"GPU": one} for one in amounts)), [{"GPU": float(round(sum(amounts)))}]) == ""


@pytest.mark.parametrize(("nodes", "fits"), [([1.0, 1.0], False), ([2.0], False), ([2.0, 1.0], True), ([3.0], True)])
def test_what_is_less_than_a_device_lies_within_one(nodes, fits):
    missing = lack(bundles(*({"GPU": 0.6},) * 3), [{"GPU": count} for count in nodes])
    assert missing == ("" if fits else
                       "3 places ask for 0.6 GPU or more (a0, a1, a2), the nodes have room for 2 of them")


def test_a_place_lies_on_one_node():
    apart = [{"GPU": 1.0, "CPU": 2.0}, {"CPU": 16.0}]
    assert lack(bundles({"GPU": 1.0, "CPU": 8.0}), apart) == (
        "a0 ask for 8 CPU with 1 GPU in one place, the freest node has 2 CPU with 1 GPU"
    )
    assert lack(bundles({"GPU": 1.0, "CPU": 2.0}, {"CPU": 16.0}), apart) == ""
    assert lack(bundles({"GPU": 0.5, "CPU": 2.0}, {"GPU": 0.25, "CPU": 1.5}), apart).startswith("2 places ask for 1.5 ")
    assert lack(bundles({"memory": 1.0}), []) == "1 memory are asked for (a0 1), the cluster has 0"


def test_what_is_taken_is_set_beside_what_is_free():
    packed, _ = plan(ACTORS, gpus())
    assert wanting(packed, [{"GPU": 0.5}, {"CPU": 1.0}]) == (
        "1 GPU (free: 0.5); of that 0.5 GPU in one place, where the freest node has 0.5 GPU"
    )
    (three,) = bundles(*({"GPU": 0.6},) * 3)
    assert wanting(three, [{"GPU": 0.5}] * 4) == (
        "1.8 GPU (free: 2); of that 0.6 GPU in one place, where the freest node has 0.5 GPU"
    )
    assert wanting(plan(["judge"], gpus())[0], []) == "room for a process"
