"""The learner's shell: updates, publishing, recording, and the canary's question."""

import numpy as np
import pytest
import torch

from actors.generator import Generator
from actors.learner import Learner
from actors.rollouts import read_rollouts
from engine.records.trajectory import FinishReason, Group, Outcome, Segment, Trajectory, Verdict
from engine.records.version import PolicyVersion
from engine.records.work import GeneratorOrder, Request

PROMPT = np.arange(10, 18, dtype=np.int32)


FIRST = PolicyVersion(0, 0)


def group(group_id, version=FIRST):
    """Two answers, the first of them right."""
    trajectories = []
    for member in range(2):
        tokens = np.arange(20 + member, 25 + member, dtype=np.int32)
        segment = Segment(tokens, np.ones(5, bool), np.full(5, -3.0, np.float32), version, 1.0, version)
        trajectories.append(Trajectory(2 * group_id + member, group_id, f"p{group_id}", 0, (segment,),
                                       FinishReason.stop))
    verdicts = tuple(Verdict(score, bool(score), "", "j", outcome=Outcome.ok) for score in (1.0, 0.0))
    return Group(group_id, f"p{group_id}", PROMPT, tuple(trajectories), verdicts)


@pytest.fixture
def learner(config, policy, tmp_path):
    learner = Learner(config, policy, "learner-test", str(tmp_path))
    yield learner
    learner.close()


def test_an_update_commits_publishes_and_writes_down_its_groups(learner, tmp_path):
    before = learner.digest()
    report, manifest = learner.update([group(0), group(1)])
    assert report.committed
    assert report.version == PolicyVersion(0, 1) == manifest.version
    assert report.carried_tokens + sum(report.masked_tokens.values()) == 20
    assert report.carried_tokens > 0
    assert report.metrics["publish/seconds"] >= 0
    assert report.metrics["learn/optimiser_steps"] == 1
    assert learner.digest() != before
    assert [g.group_id for g in read_rollouts(tmp_path / "update-000000.msgpack")] == [0, 1]
    assert learner.metrics()["learn/optimiser_steps"] == 1


def test_what_is_not_finite_is_not_published(learner, monkeypatch):
    learner.publish()
    monkeypatch.setattr(learner.core.optimiser, "step", lambda: float("nan"))
    report, manifest = learner.update([group(0)])
    assert not report.committed
    assert manifest is None


def test_weights_that_were_refused_are_written_again_only_while_they_are_current(learner):
    manifest = learner.publish()
    assert learner.publish(manifest.version) == manifest
    learner.core.version = manifest.version.next()
    newer = learner.publish()
    assert learner.publish(manifest.version) is None
    assert learner.publish(newer.version) == newer


def test_recording_changes_nothing(learner, tmp_path):
    before = learner.digest()
    assert learner.record(4, [group(0), group(1)]) == 20
    assert learner.digest() == before
    assert learner.core.version == PolicyVersion(0, 0)
    assert len(read_rollouts(tmp_path / "update-000004.msgpack")) == 2


def test_studying_takes_up_the_history_of_the_record(learner, config, policy, tmp_path):
    learner.record(0, [group(3, PolicyVersion(2, 0))])
    other = Learner(config, policy, "learner-test-2")
    seen, report, manifest = other.study(tmp_path / "update-000000.msgpack")
    assert seen == [(3, "p3", {6: 5, 7: 5})]
    assert report.version == manifest.version == PolicyVersion(2, 1)
    learner.core.version = PolicyVersion(2, 0)
    learner.update([group(3, PolicyVersion(2, 0))])
    assert other.digest() == learner.digest()
    other.close()


def test_a_checkpoint_holds_all_of_it(learner, config, policy, tmp_path):
    learner.update([group(0)])
    learner.write_state(tmp_path / "state")
    other = Learner(config, policy, "learner-test-2")
    other.load_state(tmp_path / "state")
    assert other.digest() == learner.digest()
    assert other.core.version == PolicyVersion(1, 1)
    for one in (learner, other):
        one.core.version = PolicyVersion(1, 1)
        one.update([group(1, PolicyVersion(0, 1))])
    assert other.digest() == learner.digest(), "the moments are part of it"
    other.close()


def test_the_canary_hears_what_generator_and_learner_disagree_on(learner, config, policy):
    generator = Generator(config, "generator-0#1", policy, "learner-test", slots=1, threads=1)
    request = Request(-1, 0, PROMPT, np.zeros(0, np.int32), max_response_tokens=8)
    (delivery,) = generator.advance(GeneratorOrder((request,), learner.publish(), max_steps=20)).deliveries
    mean, largest = learner.logprob_gap([(PROMPT, delivery)])
    assert 0 <= mean <= largest < 1e-4
    with torch.no_grad():
        next(iter(learner.core.network.parameters())).add_(0.05)
    assert learner.logprob_gap([(PROMPT, delivery)])[0] > 1e-3
    generator.close()


def test_the_model_can_be_loaded_elsewhere(learner, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    learner.save_model(tmp_path / "model")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").decode([20])
    mine = dict(learner.core.network.named_parameters())
    name, weight = next(iter(network.named_parameters()))
    assert torch.equal(weight, mine[name].to(weight.dtype))


def test_its_state_fits_into_another_one(learner, config, policy):
    learner.update([group(0)])
    other = Learner(config, policy, "learner-test-2")
    other.load_state_dict(learner.state_dict())
    assert other.digest() == learner.digest()
    other.close()
