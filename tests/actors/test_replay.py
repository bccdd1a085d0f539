"""The replay actor is the buffer, built from a configuration."""

import numpy as np

from actors.replay import Replay
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Segment
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, GeneratorReport

PROMPT = Prompt.ask("p", "1 + 1?", "2")


def test_its_requests_follow_the_configuration(configured):
    replay = Replay(configured("schedule=async", "schedule.round_budget_tokens=5"))
    replay.admit(0, PROMPT, np.array([7], np.int32), (0, 1))
    first, second = replay.checkout("g", (0, 1))
    assert (first.round_budget_tokens, first.max_response_tokens) == (5, 24)
    assert second.trajectory_id == 1
    assert Replay(configured()).checkout("g", ()) == ()


def test_deliveries_become_progress(config):
    replay = Replay(config)
    replay.admit(0, PROMPT, np.array([7], np.int32), (0,))
    replay.checkout("g", (0,))
    version = PolicyVersion(0, 0)
    segment = Segment(np.arange(3, dtype=np.int32), np.ones(3, bool), np.zeros(3, np.float32), version, 1.0,
                      version)
    delivery = Delivery(0, 0, (segment,), FinishReason.stop)
    (progress,) = replay.deliver(GeneratorReport("g", (delivery,), version, "d"))
    assert (progress.trajectory_id, progress.new_tokens) == (0, 3)
    assert replay.deliver(GeneratorReport("g", (delivery,), version, "d")) == (), "no lease, no second time"
