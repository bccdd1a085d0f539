from __future__ import annotations

import json

import pytest
import reasoning_gym

from engine.config.rewards import RewardConfig
from engine.errors import ConfigError, JudgeError
from engine.records.prompt import Prompt
from engine.rewards.task_scorer import TaskJudge, final_answer


def prompt_of(task: str, entry: dict) -> Prompt:
    return Prompt.ask("p", entry["question"], json.dumps(entry), f"task:{task}")


@pytest.mark.parametrize(
    "form",
    [
        "{}", "The sum is {}", "2 + 1 = 3, so ... = {}.", "<answer>{}</answer>", "\\boxed{{{}}}",
        "The answer is {}.", "<think>maybe 99</think>The answer is {} apples.", "1 + 1 = 2\n... = {}\n",
    ],
)  # fmt: skip
def test_chain_sum_in_free_words(form):
    dataset = reasoning_gym.create_dataset("chain_sum", size=4, seed=7)
    judge = TaskJudge("chain_sum", RewardConfig())
    for entry in dataset:
        right = judge.judge(prompt_of("chain_sum", entry), form.format(entry["answer"]), None)
        wrong = judge.judge(prompt_of("chain_sum", entry), form.format(int(entry["answer"]) + 1), None)
        assert (right.score, right.correct) == (1.0, True)
        assert not wrong.correct


def test_naming_many_numbers_is_not_correct():
    entry = {"question": "2 + 3 =", "answer": "5", "metadata": {}}
    judge = TaskJudge("chain_sum", RewardConfig())
    for response in ("The answer is 5 or 6", "1 2 3 4 5 6", "5 = 6", "\\boxed{4, 5}", ""):
        assert not judge.judge(prompt_of("chain_sum", entry), response, None).correct


@pytest.mark.parametrize(
    "form", ["{}", "The word is {}.", "Answer: {}", "It becomes '{}'.", "<answer>{}</answer>", "**{}**"]
)
def test_letter_task_in_free_words(form):
    entry = reasoning_gym.create_dataset("spell_backward", size=1, seed=3)[0]
    judge = TaskJudge("spell_backward", RewardConfig())
    prompt = prompt_of("spell_backward", entry)
    assert judge.judge(prompt, form.format(entry["answer"]), None).correct
    assert not judge.judge(prompt, form.format(entry["answer"][:-2]), None).correct


def test_partial_scores_are_kept_and_not_correct():
    entry = {"question": "?", "answer": "alpha beta", "metadata": {}}
    verdict = TaskJudge("caesar_cipher", RewardConfig()).judge(
        prompt_of("caesar_cipher", entry), "Answer: alpha beta gamma", None
    )
    assert 0.0 < verdict.score < 1.0
    assert not verdict.correct


def test_blocks_keep_their_lines():
    assert final_answer("Let me see.\nAnswer:\n1 2\n3 4", "5 6\n7 8") == "1 2\n3 4"
    assert final_answer("So:\n```\n1 2\n3 4\n```\nDone.", "5 6\n7 8") == "1 2\n3 4"
    assert final_answer("<answer>F R U</answer>", None) == "F R U"


def test_an_answer_that_would_run_python_is_refused():
    entry = reasoning_gym.create_dataset("countdown", size=1, seed=0)[0]
    verdict = TaskJudge("countdown", RewardConfig()).judge(
        prompt_of("countdown", entry), "<answer>__import__('os').getpid()</answer>", None
    )
    assert (verdict.score, verdict.reason) == (0.0, "answer refused: it calls Python")


def test_unreadable_answers_and_keys(monkeypatch):
    judge = TaskJudge("chain_sum", RewardConfig())
    entry = {"question": "?", "answer": "5", "metadata": {}}

    def picky(answer, entry):
        return float({"5": 1}[answer])

    monkeypatch.setattr(judge, "_score", picky)
    verdict = judge.judge(prompt_of("chain_sum", entry), "6", None)
    assert (verdict.score, verdict.reason) == (0.0, "answer unreadable: KeyError")
    with pytest.raises(JudgeError, match="its own entry"):
        judge.judge(prompt_of("chain_sum", {**entry, "answer": "7"}), "6", None)


@pytest.mark.parametrize("key", ["5", "[1]", "not json", '{"answer": 5}'])
def test_a_key_that_is_no_entry_is_an_error(key):
    with pytest.raises(JudgeError, match="prompt 'p'"):
        TaskJudge("chain_sum", RewardConfig()).judge(Prompt.ask("p", "?", key), "5", None)


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ConfigError, match="chain_sum"):
        TaskJudge("chain_sums", RewardConfig())
