from __future__ import annotations

import pytest

from engine.config.rewards import RewardConfig
from engine.records.prompt import Prompt
from engine.rewards.exact_answer import (
    ExactJudge,
    after_marker,
    answer_region,
    extract_answer,
    last_boxed,
)


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("Paris", 1.0),
        ("  paris. ", 1.0),
        ("It is large.\nAnswer: PARIS!", 1.0),
        ("**Answer:** Paris", 1.0),
        ("Answer: London\nAnswer: Paris", 1.0),
        (r"so \boxed{\text{Paris}}", 1.0),
        ("<think>London</think>Paris", 1.0),
        ("<answer>Paris</answer> bye", 1.0),
        ("The final answer is Paris", 1.0),
        ("London", 0.0),
        ("Answer: Paris\nAnswer: London", 0.0),
        (r"\boxed{Paris} or rather \boxed{London}", 0.0),
        ("It might be Paris or London", 0.0),
    ],
)
def test_strings_are_equal_up_to_case_space_and_punctuation(response, score):
    prompt = Prompt.ask("p", "The capital of France?", "Paris", "exact")
    verdict = ExactJudge(RewardConfig()).judge(prompt, response, None)
    assert (verdict.score, verdict.reason) == (score, "equal" if score else "different")


@pytest.mark.parametrize("response", ["", "  \n", r"\boxed{}", "<think>Paris</think>"])
def test_an_empty_answer_is_no_answer(response):
    verdict = ExactJudge(RewardConfig()).judge(Prompt.ask("p", "?", "Paris", "exact"), response, None)
    assert (verdict.score, verdict.reason) == (0.0, "no answer found")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed{", None),
        ("no box", None),
        (r"\boxed{" * 500, None),
    ],
)
def test_the_last_complete_box_counts(text, content):
    assert last_boxed(text) == content


def test_regions_and_markers():
    assert answer_region("<answer>1</answer> <answer>2") == "2"
    assert after_marker("The answer is 4\nFinal answer:\n\n5") == "5"
    assert after_marker("no such word") is None
    assert after_marker("Answer:") is None


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("2 + 3 = 5.", "5"),
        ("2+3=5\n5+1=6\nDone", "6"),
        ("2 + 3 = 5. Hence 7 remain", "7"),
        ("The sum is 5", "5"),
        ("The result is -4.", "-4"),
        ("4 - 1 - 7 = -4", "-4"),
        ("10-3 gives 1,234 in all", "1,234"),
        ("Hence x=5 or x=6", "5 or 6"),
        ("The answer is 12 because 3*4 = 12", "12"),
        ("The answer is $x = 5$.", "5"),
        (r"So we get $\frac{3}{4}$.", r"\frac{3}{4}"),
        ("It is 3/4.", "3/4"),
        ("It grows by 50%.", "50%"),
        ("", None),
        ("I do not know how to begin with this kind of question", None),
    ],
)
def test_the_final_value_of_plain_text(response, answer):
    assert extract_answer(response) == answer
