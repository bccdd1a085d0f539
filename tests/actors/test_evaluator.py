"""When a version is evaluated, what becomes of the answers, and when the canary falls silent."""

from unittest.mock import MagicMock

import numpy as np
import pytest

from actors.cluster import SerialCluster
from actors.evaluator import Evaluator
from engine.errors import NonFiniteError
from engine.records.manifest import Manifest
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Segment, Verdict
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, GeneratorReport, JudgeReport
from tests.actors.fake_driver import changed, fake_driver

MANIFEST = Manifest(PolicyVersion(0, 2), (), (), "", "", "d")
PROMPTS = [Prompt.ask(f"p{index}", f"{index} + 1?", str(index + 1)) for index in range(2)]


@pytest.fixture
def driver(config):
    fake = fake_driver(changed(config, {"evaluation.every": 2, "learning.updates": 6}))
    fake.prompts.heldout = PROMPTS
    fake.tokenizer.render.side_effect = lambda prompt: np.array([3, 4], np.int32)
    fake.tokenizer.decode.side_effect = lambda tokens: "text"
    return fake


def answers(order, version=MANIFEST.version, refused=""):
    made = []
    for request in order.requests:
        segment = Segment(np.array([5, 1], np.int32), np.ones(2, bool), np.zeros(2, np.float32), version,
                          request.temperature, version)
        made.append(Delivery(request.trajectory_id, 0, (segment,), FinishReason.stop))
    return GeneratorReport("evaluator#1", tuple(made), version, "d", refused=refused)


def test_a_version_is_evaluated_when_it_is_due_and_nothing_is_under_way(driver):
    evaluator = Evaluator(driver)
    evaluator.consider(PolicyVersion(0, 1), MANIFEST)
    evaluator.consider(PolicyVersion(0, 6), MANIFEST)
    assert driver.asked == [], "not due; and the last one is evaluated at the end"
    evaluator.consider(MANIFEST.version, MANIFEST)
    evaluator.consider(PolicyVersion(0, 4), MANIFEST)
    assert len(driver.asked) == 1
    assert driver.asked[0].arguments[0].weights is MANIFEST
    evaluator.abandon()
    driver.succession.coming = {driver.supervisor.evaluator}
    evaluator.consider(PolicyVersion(0, 4), MANIFEST)
    assert len(driver.asked) == 1, "who comes up is asked nothing yet"
    driver.succession.coming.clear()
    evaluator.consider(PolicyVersion(0, 4), MANIFEST)
    assert len(driver.asked) == 2


def test_answers_are_judged_and_scored_on_an_account_of_their_own(driver):
    evaluator = Evaluator(driver)
    evaluator.start(MANIFEST.version, MANIFEST)
    sampling = driver.asked.pop()
    sampling.answer(answers(sampling.arguments[0]))
    driver.ledger.account.assert_called_once_with("evaluation", 4)
    judging = driver.asked.pop()
    assert (judging.actor, judging.method) == (driver.supervisor.judge, "judge")
    items = judging.arguments[0]
    assert [prompt.prompt_id for prompt, _ in items] == ["p0", "p1"], "each answer with its own question"
    judging.answer(JudgeReport({
        answer.trajectory_id: Verdict(float(prompt.prompt_id == "p1"), prompt.prompt_id == "p1", "", "math")
        for prompt, answer in items
    }))
    (result,) = driver.observer.evaluated.call_args.args
    assert (result.version, result.accuracy, result.unjudged) == (MANIFEST.version, 0.5, 0)
    assert [right for _, _, right in result.examples] == [False, True]
    driver.should_stop.return_value = False
    evaluator.finish(MANIFEST.version, MANIFEST)
    assert driver.asked == [], "it is known already"


@pytest.mark.parametrize("flaw", [{"refused": "bucket 0"}, {"version": PolicyVersion(0, 1)}])
def test_answers_of_other_weights_are_left_out_and_asked_for_again(driver, flaw):
    evaluator = Evaluator(driver)
    evaluator.start(MANIFEST.version, MANIFEST)
    driver.asked[0].answer(answers(driver.asked[0].arguments[0], **flaw))
    assert len(driver.asked) == 1, "nothing to judge"
    driver.should_stop.return_value = False
    evaluator.finish(MANIFEST.version, MANIFEST)
    assert len(driver.asked) == 1 + 3, "a few tries, not for ever"


def test_what_was_kept_is_evaluated_when_training_has_ended(driver, tmp_path):
    driver.config = changed(driver.config, {"evaluation.deferred": True})
    driver.should_stop.return_value = False
    driver.observer.accuracy = {0: 0.5, 2: 0.5}
    evaluator = Evaluator(driver)
    evaluator.consider(MANIFEST.version, MANIFEST)
    assert driver.asked == [], "not while training goes on"
    for version in ("0.2", "1.4", "0.6", "0.8"):
        (tmp_path / f"{version}.safetensors").write_text("")

    def wait_for(*roles, unless_stopped):
        while driver.asked:
            asked = driver.asked.pop()
            asked.answer(answers(asked.arguments[0], PolicyVersion(1, 4)) if asked.method == "advance" else
                         JudgeReport({t.trajectory_id: Verdict(1.0, True, "", "math") for _, t in asked.arguments[0]}))

    driver.wait_for = wait_for
    evaluator.catch_up(tmp_path, PolicyVersion(1, 6))
    (result,) = driver.observer.evaluated.call_args.args
    assert result.version == PolicyVersion(1, 4), "2 is known, 6 comes at the end, 8 was rolled back"
    assert list(tmp_path.iterdir()) == []


def test_a_wish_to_stop_leaves_what_was_kept_for_the_next_life(driver, tmp_path):
    driver.should_stop.return_value = True
    driver.observer.accuracy = {}
    (tmp_path / "0.2.safetensors").write_text("")
    Evaluator(driver).catch_up(tmp_path, PolicyVersion(0, 6))
    assert driver.asked == []
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("gap", "sings"), [(0.01, True), (0.2, False), (float("nan"), False)])
def test_the_canary_stops_a_run_whose_parts_disagree(driver, gap, sings):
    driver.cluster = SerialCluster()
    parts = {"evaluator#1": MagicMock(advance=answers), "learner": MagicMock()}
    parts["learner"].logprob_gap.side_effect = lambda items: (gap, 2 * gap)
    for name, part in parts.items():
        driver.cluster.start(name, lambda part: part, {"part": part})
    driver.supervisor.evaluator = "evaluator#1"
    if sings:
        Evaluator(driver).canary(MANIFEST)
    else:
        with pytest.raises(NonFiniteError, match=r"canary\.threshold_nats"):
            Evaluator(driver).canary(MANIFEST)
    (items,) = parts["learner"].logprob_gap.call_args.args
    assert [delivery.segments[0].temperature for _, delivery in items] == [1.0, 1.0], "greedy ones tell nothing"
    driver.ledger.account.assert_called_once_with("canary", 4)


def test_the_canary_waits_for_the_successor_of_who_died(driver):
    driver.cluster = SerialCluster()
    learner = MagicMock(logprob_gap=lambda items: (0.0, 0.0))
    driver.cluster.start("learner", lambda: learner, {})
    driver.supervisor.evaluator = "evaluator#1"

    def up(role):
        driver.supervisor.evaluator = f"{role}#2"
        driver.cluster.start("evaluator#2", lambda: MagicMock(advance=answers), {})

    driver.wait_for = up
    Evaluator(driver).canary(MANIFEST)
    (error,) = driver.died.call_args.args
    assert error.actor == "evaluator#1"
    driver.observer.canary.assert_called_once_with(0.0, 0.0)
