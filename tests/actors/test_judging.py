"""Verdicts on their way, and those that are known of groups not trained yet."""

import numpy as np
import pytest

from actors.judging import Judging, pieces
from engine.records import event as ev
from engine.records.prompt import Prompt
from engine.records.trajectory import Segment, Trajectory, Verdict
from engine.records.version import PolicyVersion
from engine.records.work import JudgeReport
from tests.actors.fake_driver import fake_driver

PROMPT = Prompt.ask("p", "1 + 1?", "2")
RIGHT, WRONG = (Verdict(float(good), good, "", "math") for good in (True, False))


@pytest.fixture
def driver(config):
    return fake_driver(config)


@pytest.fixture
def judging(driver):
    driver.supervisor.judge = "judge#1"
    answers = {
        "to_judge": lambda ids: tuple((PROMPT, Trajectory(key, 0, "p")) for key in ids),
        "judged": lambda verdicts: ("event", sorted(verdicts)),
    }
    driver.replay.side_effect = lambda method, *arguments: answers[method](*arguments)
    return Judging(driver)


def test_verdicts_reach_replay_the_observer_and_the_controller(driver, judging):
    judging.judge(ev.Judge((1, 2, 3)))
    (asked,) = driver.asked
    assert (asked.actor, asked.method) == ("judge#1", "judge")
    assert [trajectory.trajectory_id for _, trajectory in asked.arguments[0]] == [1, 2, 3]
    asked.answer(JudgeReport({1: RIGHT, 2: WRONG, 3: Verdict.failed("math", "died")}))
    driver.feed.assert_called_once_with(("event", [1, 2, 3]))
    assert [row[3].score for row in driver.observer.judged.call_args.args[0]][:2] == [1.0, 0.0]
    assert judging.forget((1, 2, 3)) == [True, False], "a failed judgement is neither"
    assert judging.forget((1, 2, 3)) == []


def test_a_successor_is_asked_what_its_predecessor_left_open(driver, judging):
    judging.judge(ev.Judge((2, 1)))
    judging.judge(ev.Judge((3,)))
    driver.asked.pop().answer(JudgeReport({3: RIGHT}))
    driver.supervisor.judge = "judge#2"
    judging.again()
    assert driver.asked[-1].actor == "judge#2"
    assert [trajectory.trajectory_id for _, trajectory in driver.asked[-1].arguments[0]] == [1, 2]
    driver.asked[-1].answer(JudgeReport({1: RIGHT, 2: RIGHT}))
    driver.asked.clear()
    judging.again()
    assert driver.asked == []


def test_the_text_of_a_response_falls_into_its_segments():
    def written(*tokens):
        versions = [PolicyVersion(0, i) for i in range(len(tokens))]
        return Trajectory(0, 0, "p", segments=tuple(
            Segment(np.array(ids, np.int32), np.ones(len(ids), bool), np.zeros(len(ids), np.float32), version, 1.0,
                    version) for ids, version in zip(tokens, versions, strict=True)
        ))

    def read(ids):
        return bytes(ids.tolist()).decode("utf-8", "replace")

    umlaut = list("\u00fc".encode())
    assert pieces(written([72, 105], [33]), read) == ["Hi", "!"]
    assert pieces(written([72, umlaut[0]], [umlaut[1], 33], [63]), read) == ["H", "\u00fc!", "?"]
    assert "".join(pieces(written([umlaut[0]], [umlaut[0]], [umlaut[1]]), read)) == "\ufffd\u00fc"


def test_nobody_keeps_verdicts_of_a_dropped_group(driver, judging):
    judging.judge(ev.Judge((1,)))
    assert judging.forget((1,)) == []
    driver.asked[0].answer(JudgeReport({1: RIGHT}))
    assert judging.correct == {}
