"""Costs from spans that are known, in one process and over Ray, alone and beside others."""

from collections import defaultdict

import pytest

from actors.simulation.costs import Line, fit, line, measure
from actors.simulation.life import Life
from engine.config.rollout import GeneratorConfig
from engine.errors import RunFolderError
from engine.preflight import check
from engine.records.span import Span
from tests.actors.fake_driver import changed


def answers(role, seconds, out, ran, items=0, at=(0.0,)):
    return [Span(f"{role}: ask", start, start + seconds, {"out_s": out, "ran_s": ran, "items": items}) for start in at]


@pytest.mark.parametrize(("amounts", "seconds", "found"), [
    ([1, 3], [2, 4], Line(1, 1)), ([1, 3], [4, 2], Line(3, 0)), ([1, 3], [0, 4], Line(0, 1)), ([], [], Line()),
    ([5], [2], Line(2, 0)),
])
def test_a_line_has_no_part_below_nothing_and_keeps_the_mean(amounts, seconds, found):
    assert line(amounts, seconds) == found


def test_a_line_weighs():
    assert line([0, 0], [1, 4], [2, 1]) == Line(2, 0)
    assert line([0, 2], [1, 5], [9, 1]).at(2) == pytest.approx(5)


@pytest.fixture
def life():
    """A decode step takes 10 ms, twice that while the learner computes."""
    work = defaultdict(list)
    for index in range(20):
        beside = index % 2
        start = float(index)
        work["generator-0#1"].append(Span("decode", start, start + 0.1 * (1 + beside), {"steps": 10, "tokens": 40}))
        if beside:
            work["learner"].append(Span("forward", start, start + 0.5, {}))
    work["learner"] += [Span("optimiser", 19.5, 19.6, {}), Span("publish", 19.6, 19.7, {})]
    work["judge#1"] += [Span("judge", 1.0, 1.5, {"items": 2}), Span("judge", 2.0, 2.7, {"items": 4})]
    life = Life(work=work)
    life.answers = defaultdict(list, {
        "generator": answers("generator", 0.01, 0.16, 0.15, at=[float(i) + 0.3 for i in range(20)]),
        "learner": answers("learner", 0.02, 5.3, 5.2, at=[19.8]), "evaluator": answers("evaluator", 0, 3, 2, at=[25.0]),
    })
    life.commits = [Span("version 1", 20.0, 20.0, {"tokens": 100, "groups": 1, "committed": True})]
    life.checkpoints = [Span("checkpoint", 19.9, 19.95)]
    life.first_look = [Span("prefill", -4.0, -3.5, {"tokens": 16, "passes": 1, "prompts": 2}),
                       Span("prefill", -2.0, -1.0, {"tokens": 44, "passes": 2, "prompts": 4})]
    return life


def test_costs_are_those_of_an_actor_alone(config, life):
    ray = changed(config, {"cluster.kind": "ray", "generator": GeneratorConfig(slots=16), "evaluation.slots": 16})
    costs = fit(life, ray)
    assert costs.contention == pytest.approx(1.0, rel=0.01)
    # Steps took 15 ms on average, two thirds of that time beside the learner.
    assert costs.decode.at(4) == pytest.approx(0.015 / (1 + 2 / 3), rel=0.02)
    assert costs.transport["generator"] == pytest.approx(0.01)
    assert costs.handle["learner"].at(3) == pytest.approx(0.02)
    assert costs.judge == Line(pytest.approx(0.3), pytest.approx(0.1))
    assert costs.checkpoint == pytest.approx(0.05)
    assert costs.prompt_tokens == 10.0, "of six prompts, however many the options name"
    assert costs.row == pytest.approx(0.015 / 16 / (1 + 2 / 3), rel=0.02), "nothing tells what a slot costs"
    assert 0 < costs.learn.base < 0.1
    assert costs.learn.slope == pytest.approx(5.0 / 100 * costs.learn.base / 0.1, rel=0.01)


def test_prompts_that_nobody_saw_prefilled_are_guessed(config, life):
    life.first_look = []
    assert fit(life, config).prompt_tokens == config.rollout.max_prompt_tokens / 2


def test_in_one_process_the_driver_is_not_charged_with_what_others_do_meanwhile(config, life):
    life.answers["generator"] = answers("generator", 0.3, 0.3, 0.2, at=[0.0])
    life.work["generator-0#1"] = [Span("decode", 0.05, 0.25, {"steps": 1, "tokens": 1})]
    costs = fit(life, config)
    assert costs.handle["generator"].at(0) == pytest.approx(0.1)
    assert costs.contention == 0.0
    assert costs.transport["generator"] == costs.transport["learner"] > 0


def test_a_run_is_measured_by_its_own_files(recorded):
    config, summary = recorded.config, recorded.summary
    measured = measure(recorded.folder, config)
    assert measured.updates == 4
    assert measured.seconds_per_update == pytest.approx(summary["train_seconds"] / 4, rel=0.1)
    assert len(measured.lengths) >= 4 * config.schedule.batch_groups * config.rollout.samples_per_prompt
    assert sum(measured.lengths) <= summary["generated_tokens"]
    trained = summary["trained_tokens"]
    assert measured.tokens_per_second * 4 * measured.seconds_per_update > 0.99 * trained
    assert measured.staleness == {int(age): pytest.approx(count / trained)
                                  for age, count in summary["staleness_histogram"].items()}
    assert measured.idle.keys() >= {"generator", "learner", "judge"}
    assert all(0 <= share <= 1 for share in measured.idle.values())
    costs = measured.costs
    assert min(costs.decode.at(1), costs.prefill_pass, costs.receive, costs.publish, costs.learn.slope) > 0
    assert costs.handle.keys() >= {"generator", "judge", "learner"}
    checked = check(config)
    lengths = [len(checked.tokenizer.render(prompt)) for prompt in checked.prompts.heldout]
    # The last token of a prompt is decoded, not prefilled.
    assert costs.prompt_tokens == pytest.approx(sum(lengths) / len(lengths) - 1)


def test_a_folder_without_an_update_is_refused(config, tmp_path):
    with pytest.raises(RunFolderError, match="does not exist"):
        measure(tmp_path, config)
    (tmp_path / "trace.json").write_text("[\n")
    with pytest.raises(RunFolderError, match="holds no update"):
        measure(tmp_path, config)
