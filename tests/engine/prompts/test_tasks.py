import json
import sys

import pytest

from engine.errors import ConfigError
from engine.prompts.tasks import task_prompts, task_stream

DIGITS = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 1}


def test_prompts_carry_the_entry_and_its_place_in_the_difficulty_range():
    prompts = task_prompts("chain_sum", DIGITS, 50, seed=3)
    assert len({prompt.question_digest() for prompt in prompts}) == 50
    for prompt in prompts:
        entry = json.loads(prompt.answer_key)
        assert entry["question"] == prompt.messages[0].content
        assert int(entry["answer"]) == eval(entry["metadata"]["expression"])
        assert prompt.kind == "task:chain_sum"
        assert prompt.prompt_id == f"chain_sum/{prompt.question_digest()[:16]}"
        assert prompt.difficulty == (entry["metadata"]["num_terms"] - 2) / 2


def test_difficulty_is_unknown_where_nothing_varies():
    assert task_prompts("chain_sum", DIGITS | {"max_terms": 2}, 1, seed=0)[0].difficulty is None


def test_fewer_prompts_are_a_prefix_of_more():
    many = task_prompts("chain_sum", DIGITS, 40, seed=1)
    assert task_prompts("chain_sum", DIGITS, 10, seed=1) == many[:10]


def test_a_small_space_ends_the_stream_with_all_of_it():
    stream = task_stream("chain_sum", DIGITS | {"max_terms": 2}, seed=0, patience=2000)
    assert len({prompt.prompt_id for prompt in stream}) == 200  # 10 x 10 numbers, 2 signs


def test_must_match_leaves_the_others_out():
    prompts = task_prompts("chain_sum", DIGITS, 20, seed=0, must_match="^[^-]*$")
    assert len(prompts) == 20
    assert all("+" in p.messages[0].content and "-" not in p.messages[0].content for p in prompts)
    assert task_prompts("leg_counting", {}, 1, seed=0, must_match="no such text") == []


@pytest.mark.parametrize("options", [{}, {"min_terms": 3, "max_terms": 3}])
def test_unknown_task_names_the_nearest(options):
    with pytest.raises(ConfigError, match="did you mean 'chain_sum'") as caught:
        task_prompts("chainsum", options, 1, seed=0)
    assert caught.value.key == "prompts.task"


def test_unknown_option_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'max_terms'") as caught:
        task_prompts("chain_sum", {"max_term": 3}, 1, seed=0)
    assert caught.value.key == "prompts.task_options.max_term"


@pytest.mark.parametrize("option", ["seed", "size"])
def test_options_that_the_split_owns_are_refused(option):
    with pytest.raises(ConfigError, match=r"prompts\.seed, prompts\.num_train"):
        task_prompts("chain_sum", {option: 3}, 1, seed=0)


def test_an_option_that_the_task_refuses_keeps_its_reason():
    with pytest.raises(ConfigError, match="max_terms must be >= min_terms"):
        task_prompts("chain_sum", {"min_terms": 9}, 1, seed=0)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match="pip install reasoning-gym"):
        task_prompts("chain_sum", {}, 1, seed=0)
