from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.rewards import RewardConfig
from engine.records.prompt import Prompt
from engine.records.trajectory import Outcome
from engine.rewards.math_answer import MathJudge, exact_number, guard, simplified, split_unit
from engine.rewards.pool import JudgePool


@pytest.fixture(scope="module")
def judge() -> MathJudge:
    return MathJudge(RewardConfig())


EQUAL = [
    ("12", "12"), ("12.0", "12"), ("012", "12"), ("+12", "12"), ("1,234", "1234"), ("1{,}234", "1234"),
    ("$5", "5"), (r"\$5.50", "5.5"), ("12 cm", "12"), (r"12\text{ cm}", "12 cm"), ("12 apples", "12"),
    (r"90^\circ", "90"), ("50%", "50"), (r"50\%", "0.5"), ("0.5", r"\frac{1}{2}"), ("1/2", "0.5"),
    (r"\frac12", "1/2"), (r"\dfrac{2}{4}", r"\frac{1}{2}"), (r"-\frac{1}{2}", "-0.5"), ("1 1/2", "1.5"),
    (r"1\frac{1}{2}", "3/2"), ("0.333333", "1/3"), ("\u22125", "-5"), ("1.5e3", "1500"), ("x = 3", "3"),
    (r"\{1,2\}", "{1,2}"), ("2, 1", "{1,2}"), (r"\{2,1\}", r"\{1,2\}"), ("[0, 1)", "[0,1)"),
    (r"(-\infty, 1)", r"(-\infty,1)"), ("(1, 2)", "(1,2)"), (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    ("sqrt(12)", r"2\sqrt{3}"), ("pi/2", r"\frac{\pi}{2}"), ("(x+1)^2", "x^2+2x+1"),
    (r"3\times 10^{8}", "300000000"), ("2^{10}", "1024"), ("5!", "120"), (r"\text{Even}", "even"),
    ("(B)", "B"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
]  # fmt: skip
DIFFERENT = [
    ("12", "13"), ("-12", "12"), ("1234", "1235"), ("12 cm", "12 m"), ("50%", "5"), ("0.33", "1/3"),
    ("1/2", "1/3"), ("0.1234567", "0.1234568"), ("5 or 6", "5"), ("5, 6", "5"), ("{1,2,3}", "{1,2}"),
    ("[0,1]", "[0,1)"), ("(2,1)", "(1,2)"), (r"\sqrt{2}", r"\sqrt{3}"), ("(x+1)^2", "x^2+1"),
    ("3.14", r"\pi"),
    ("evne", "even"), ("A", "B"), ("x", "y"), ("2^{10}", "1025"), ("1/0", "0"), ("))", "2"), ("12", "even"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "key"), EQUAL)
def test_equal_answers(judge, answer, key):
    verdict = judge.judge(Prompt.ask("p", "?", key), rf"Hence \boxed{{{answer}}}.", None)
    assert (verdict.score, verdict.reason) == (1.0, "equal")


@pytest.mark.parametrize(("answer", "key"), DIFFERENT)
def test_different_answers(judge, answer, key):
    verdict = judge.judge(Prompt.ask("p", "?", key), rf"Hence \boxed{{{answer}}}.", None)
    assert verdict.score == 0.0
    assert verdict.reason.startswith("different")


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("2 + 3 = 5.", 1.0),
        ("The sum is 5", 1.0),
        ("The answer is 5 apples because 2 + 3 = 5.", 1.0),
        ("<think>6?</think> The total is $5$.", 1.0),
        (r"First \boxed{6}, corrected \boxed{5}", 1.0),
        (r"First \boxed{5}, corrected \boxed{6}", 0.0),
        ("<think>5</think>", 0.0),
        ("5 or 6", 0.0),
        ("x = 5 or x = 6", 0.0),
        ("", 0.0),
    ],
)
def test_free_words(judge, response, score):
    assert judge.judge(Prompt.ask("p", "What is 2 + 3?", "5"), response, None).score == score


BOMBS = [
    "9**9**9", "9^9^9", "9^{9^{9^9}}", "10^{999999999}", "((9^{999})^{999})^{999}", "(10^9)!", "9999999!",
    "((9!)!)!", r"\binom{100000000}{50000000}", "(" * 300 + "1" + ")" * 300, "1" * 4000, "{" * 400,
    r"\frac{1}{" * 60 + "1" + "}" * 60, "x^{" * 30 + "x" + "}" * 30, "$" * 300, "1+" * 1500 + "1",
]  # fmt: skip


def test_parser_bombs_are_answered_wrong_within_the_deadline():
    config = RewardConfig(workers=1, deadline_s=5.0)
    pool = JudgePool(config, _build_math)
    try:
        forms = ("The answer is {}", "\\boxed{{{}}}")
        items = [(Prompt.ask("p", "?", r"2\sqrt{3}"), f.format(b), None) for b in BOMBS for f in forms]
        verdicts = pool.judge(items)
    finally:
        pool.close()
    assert [v.outcome for v in verdicts] == [Outcome.ok] * len(items)
    assert [v.score for v in verdicts] == [0.0] * len(items)


def _build_math(kind: str):
    return MathJudge(RewardConfig()).judge


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="0123456789^{}()[]\\/.,$%=+-*!x fracboxed", max_size=120))
def test_no_text_makes_the_judge_raise(judge, text):
    verdict = judge.judge(Prompt.ask("p", "?", "123456789"), text, None)
    assert verdict.score in (0.0, 1.0)


@given(st.fractions(max_denominator=10_000))
def test_every_rational_equals_itself_however_written(value):
    top, bottom = value.numerator, value.denominator
    for text in (f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}", f"{2 * top}/{2 * bottom}"):
        assert exact_number(text) == value
    assert exact_number(f"{top:,}") == Fraction(top)


def test_no_plain_number():
    for text in ("", ".", "-", "1,23", "1//2", "x", "1/0", "9" * 500):
        assert exact_number(text) is None


def test_units_and_spelling():
    assert split_unit("12 square feet")[0] == "12"
    assert split_unit("3x") == ("3x", "")
    assert split_unit("2 sin") == ("2 sin", "")
    assert simplified(r"$\left( 1 , 2 \right)$.") == "( 1 , 2 )"


def test_harmless_powers_pass_the_guard():
    for text in ("x^2+y^2", "2^{100}", "x^{2024}-y^{2024}", "(x+1)^{10}", "10^{3}\\times 10^{4}", "(n+1)!"):
        assert guard(text) == ""
