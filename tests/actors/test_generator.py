"""The generator's shell: weights, cut, admission, decoding, in this order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.generator import Generator
from actors.learner import Learner
from engine.config.cluster import Placement
from engine.records.work import GeneratorOrder, Request
from tests.actors.fake_driver import changed

PROMPT = np.arange(10, 18, dtype=np.int32)


@pytest.fixture(scope="module")
def learner(config, policy):
    learner = Learner(config, policy, "generator-test")
    yield learner
    learner.close()


@pytest.fixture
def generator(config, policy):
    generator = Generator(config, "generator-0#1", policy, "generator-test", slots=2, threads=1)
    yield generator
    generator.close()


def request(trajectory_id, tokens=6):
    return Request(trajectory_id, 0, PROMPT, np.zeros(0, np.int32), max_response_tokens=tokens)


def test_it_samples_under_the_weights_it_was_sent(generator, learner):
    manifest = learner.publish()
    report = generator.advance(GeneratorOrder((request(0), request(1)), manifest, max_steps=50))
    assert report.generator == "generator-0#1"
    assert (report.version, report.digest, report.refused) == (manifest.version, manifest.digest, "")
    assert sorted(delivery.trajectory_id for delivery in report.deliveries) == [0, 1]
    delivered = sum(s.num_sampled for d in report.deliveries for s in d.segments)
    assert report.generated_tokens == delivered > 0
    assert (report.open_requests, report.tokens_in_slots) == (0, 0)
    assert report.busy[0][0] <= report.busy[0][1]


def test_it_decodes_at_most_so_many_steps_and_cuts_when_told_to(generator, learner):
    order = GeneratorOrder((request(0, 30), request(1, 30), request(2, 30)), learner.publish(), max_steps=2)
    report = generator.advance(order)
    assert report.deliveries == ()
    assert report.open_requests == 3
    decoded = report.generated_tokens
    assert 0 < report.tokens_in_slots == decoded <= 4
    report = generator.advance(GeneratorOrder(cut_all=True, max_steps=0))
    assert [delivery.finish_reason for delivery in report.deliveries] == [None] * 3
    assert sum(s.num_sampled for d in report.deliveries for s in d.segments) == decoded
    assert report.open_requests == 0


def test_what_arrives_at_once_counts_as_the_steps_that_it_took(generator, learner, monkeypatch):
    one = generator.sampler.step
    monkeypatch.setattr(generator.sampler, "step", lambda: [*one(), *one(), *one()])
    report = generator.advance(GeneratorOrder((request(0, 30), request(1, 30)), learner.publish(), max_steps=1))
    decode = [span.amounts for span in report.spans if span.kind == "decode"]
    assert sum(amounts["steps"] for amounts in decode) == generator.metrics()["decode_steps"] == 3
    assert sum(amounts["tokens"] for amounts in decode) == report.generated_tokens


def test_it_refuses_damaged_weights_and_serves_the_old_ones(generator, learner):
    first = learner.publish()
    generator.advance(GeneratorOrder(weights=first, max_steps=0))
    learner.core.version = learner.core.version.next()
    second = learner.publish()
    with Path(second.location).open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))
    report = generator.advance(GeneratorOrder((request(0),), second, max_steps=50))
    assert "digest" in report.refused
    assert report.version == first.version
    assert {s.version for d in report.deliveries for s in d.segments} == {first.version}
    # Written once more, the same version is taken.
    again = learner.publish()
    assert generator.advance(GeneratorOrder(weights=again, max_steps=0)).version == second.version
    assert again.digest == second.digest


def test_weights_for_which_there_is_no_room_are_refused(generator, learner, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    first = learner.publish()
    monkeypatch.setattr(generator._receiver, "receive", full)
    report = generator.advance(GeneratorOrder(weights=first, max_steps=0))
    assert report.refused == f"no room to receive version {first.version}: CUDA out of memory"
    monkeypatch.undo()
    monkeypatch.setattr(generator.sampler, "swap", full)
    with pytest.raises(torch.OutOfMemoryError):
        generator.advance(GeneratorOrder(weights=first, max_steps=0))


def test_nothing_of_it_survives(generator):
    assert generator.state_dict() == {}
    generator.load_state_dict({})
    assert generator.metrics().get("sampled_tokens", 0) == 0


def test_in_turns_it_is_born_asleep_wakes_for_an_order_and_sleeps_when_told(config, policy, learner):
    shared = changed(config, {"cluster.placement": Placement.colocated})
    manifest = learner.publish()
    for name in ("generator-0#1", "evaluator#1"):
        one = Generator(shared, name, policy, "generator-test", slots=2, threads=1)
        assert one.sampler._table.keys.numel() == 0
        one.sleep()
        report = one.advance(GeneratorOrder((request(0),), manifest, max_steps=50))
        assert (len(report.deliveries), report.digest) == (1, manifest.digest)
        assert report.wake_seconds > 0
        awake = name != "evaluator#1"
        assert bool(one.sampler._table.keys.numel()) is awake, "an evaluator sleeps whenever it has answered"
        one.sleep()
        assert one.sampler._table.keys.numel() == 0
        one.close()


def test_without_any_weights_a_refusal_ends_at_once(config, policy, learner):
    manifest = learner.publish()
    learner.publish()
    stranger = Generator(config, "evaluator#1", policy, "another-run", slots=2, threads=1)
    report = stranger.advance(GeneratorOrder((request(0),), replace(manifest, digest="0"), max_steps=2**31))
    assert report.refused
    assert report.deliveries == ()
    stranger.close()
