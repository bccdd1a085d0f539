import json
import re
from dataclasses import replace

import numpy as np
import pytest

from engine.errors import PromptError
from engine.prompts.tasks import task_prompts
from engine.prompts.traces import GUESS_MISSES_BY, TRACE_CHARACTERS, traces_for, write_trace
from engine.records.prompt import Prompt

DIGITS = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 1}
STEP = re.compile(r"(-?\d+) ([+-]) (-?\d+) = (?:(-?\d+)\? No, )?(-?\d+)\.")


def expression_prompt(expression, answer, kind="task:chain_sum"):
    key = json.dumps({"question": "?", "answer": answer, "metadata": {"expression": expression}})
    return Prompt.ask("sum/1", "?", key, kind)


def test_every_step_holds_and_the_end_is_the_answer():
    pairs = traces_for(task_prompts("chain_sum", DIGITS, 200, seed=0), seed=0)
    assert len(pairs) == 200
    mistakes = 0
    for prompt, trace in pairs:
        entry = json.loads(prompt.answer_key)
        assert trace.startswith("Plan: ")
        assert trace.endswith(f" Answer: {entry['answer']}")
        assert len(trace) <= TRACE_CHARACTERS
        steps = STEP.findall(trace)
        assert len(steps) == entry["metadata"]["num_terms"]  # all steps and the check
        assert "Check: " in trace
        for left, sign, right, wrong, result in steps:
            assert int(left) + int(sign + "1") * int(right) == int(result)
            assert wrong != result
            mistakes += bool(wrong)
    assert 20 <= mistakes <= 80  # one trace in four


def test_traces_depend_on_seed_and_prompt_alone():
    prompts = task_prompts("chain_sum", DIGITS, 40, seed=0)
    assert traces_for(prompts, seed=1) == traces_for(prompts[::-1], seed=1)[::-1]
    assert traces_for(prompts, seed=1) != traces_for(prompts, seed=2)


def test_hasty_traces_are_guesses_near_the_number_and_the_others_stay_as_they_are():
    prompts = task_prompts("chain_sum", DIGITS, 300, seed=0)
    careful, mixed = traces_for(prompts, seed=1), traces_for(prompts, seed=1, hasty_fraction=0.6)
    misses = [int(new.removeprefix("Answer: ")) - int(json.loads(prompt.answer_key)["answer"])
              for (prompt, old), (_, new) in zip(careful, mixed, strict=True) if new != old]
    assert 150 <= len(misses) <= 210
    assert set(misses) == set(range(-GUESS_MISSES_BY, GUESS_MISSES_BY + 1))
    assert {len(trace) < 12 for _, trace in traces_for(prompts, 1, 1.0)} == {True}


def test_the_longest_one_digit_sums_stay_short():
    prompt = expression_prompt("0 - 9 - 9 - 9", "-27")
    traces = {write_trace(prompt, np.random.default_rng(seed)) for seed in range(40)}
    assert len(traces) > 1
    assert max(map(len, traces)) <= TRACE_CHARACTERS


def test_plain_additions_of_basic_arithmetic_work():
    options = {"min_terms": 2, "max_terms": 2, "operators": ["+"], "allow_parentheses": False}
    pairs = traces_for(task_prompts("basic_arithmetic", options, 20, seed=0), seed=0)
    assert all(trace.endswith(f"Answer: {json.loads(p.answer_key)['answer']}") for p, trace in pairs)


def test_an_answer_that_is_not_the_sum_is_refused():
    with pytest.raises(PromptError, match="the terms give 5, its entry says '6'"):
        write_trace(expression_prompt("2 + 3", "6"), np.random.default_rng(0))


@pytest.mark.parametrize("expression", ["", "5", "2 * 3", "(2 + 3)", "1.5 + 2"])
def test_other_expressions_are_refused(expression):
    with pytest.raises(PromptError, match="joined by"):
        write_trace(expression_prompt(expression, "6"), np.random.default_rng(0))


def test_prompts_that_are_no_task_are_refused():
    prompt = replace(expression_prompt("2 + 3", "5"), kind="math")
    with pytest.raises(PromptError, match="of kind 'math'"):
        write_trace(prompt, np.random.default_rng(0))
