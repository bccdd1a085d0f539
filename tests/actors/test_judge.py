"""The judge's shell: tokens to text, text to verdicts."""

import numpy as np
import pytest

from actors.judge import Judge
from engine.metrics import DOCUMENTED
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Outcome, Segment, Trajectory
from engine.records.version import PolicyVersion


@pytest.fixture
def judge(config, policy):
    judge = Judge(config, policy)
    yield judge
    judge.close()


def answered(checked, trajectory_id, text):
    tokens = np.array(checked.tokenizer.encode(text), np.int32)
    version = PolicyVersion(0, 0)
    segment = Segment(tokens, np.ones(len(tokens), bool), np.full(len(tokens), -1.0, np.float32), version,
                      1.0, version)
    return Trajectory(trajectory_id, 0, "p", 0, (segment,), FinishReason.stop)


def test_verdicts_come_by_trajectory(judge, checked):
    prompt = Prompt.ask("p", "What is 1 + 1?", "2", kind="exact")
    items = [(prompt, answered(checked, 7, "2")), (prompt, answered(checked, 9, "3"))]
    report = judge.judge(items)
    verdicts = report.verdicts
    assert (report.metrics["judge/judged"], report.metrics["judge/correct"]) == (2.0, 1.0)
    assert set(report.metrics) <= set(DOCUMENTED)
    assert [(one.kind, one.amounts) for one in report.spans] == [("judge", {"items": 2})]
    assert {key: (v.correct, v.outcome) for key, v in verdicts.items()} == {
        7: (True, Outcome.ok), 9: (False, Outcome.ok),
    }


def test_responses_are_readable(judge, checked):
    assert judge.texts([answered(checked, 0, "twelve")]) == ["twelve"]


def test_its_counters_survive(judge, checked, config, policy):
    prompt = Prompt.ask("p", "What is 1 + 1?", "2", kind="exact")
    judge.judge([(prompt, answered(checked, 0, "2"))])
    other = Judge(config, policy)
    other.load_state_dict(judge.state_dict())
    assert other.metrics() == judge.metrics() != {}
    other.close()
