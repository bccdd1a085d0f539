"""Long chains of thought for sums, for the supervised warm-up (Kimi k1.5, section 2.2).

The four moves that the paper names are there: planning (the first sentence), evaluation (one step after
the other), reflection (the last step is undone), exploration (a wrong step now and then, noticed and
corrected). A trace of up to four one-digit terms stays within ``TRACE_CHARACTERS``.

Some traces may be hasty: a guess near the right number, no thought before it. A policy that was taught both
ways is one for which thinking is a choice, and reinforcement can find that it pays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash

from engine.errors import PromptError
from engine.records.prompt import Prompt

TRACE_CHARACTERS = 110
"""Length that traces of up to four one-digit terms keep, in characters."""

GUESS_MISSES_BY = 3
"""A hasty guess lies at most this far from the right number, so that one in seven is right."""

_PLAN = "Plan: add left to right."
_ANSWER = "Answer: "
_MISTAKE_CHANCE = 0.25
_SUM = re.compile(r"-?\d+(?: [+-] -?\d+)+")
_UNDO = {"+": "-", "-": "+"}


def write_trace(prompt: Prompt, rng: np.random.Generator) -> str:
    """A worked solution that ends with ``Answer: <number>``.

    Args:
        prompt: of a reasoning-gym task whose metadata holds a sum or difference of whole numbers as
            ``expression``: ``chain_sum``, or ``basic_arithmetic`` with + and - and without parentheses.
        rng: decides whether and where a wrong step is made and corrected.

    Raises:
        PromptError: another task, another expression, or an entry whose answer is not the sum.

    Example:
        ``Plan: add left to right. 3 + 5 = 9? No, 8. 8 - 2 = 6. Check: 6 + 2 = 8. Answer: 6``
    """
    entry = _entry(prompt)
    terms = _expression(prompt, entry).split(" ")
    operations = list(zip(terms[1::2], map(int, terms[2::2]), strict=True))
    mistake = int(rng.integers(len(operations))) if rng.random() < _MISTAKE_CHANCE else -1
    total = int(terms[0])
    lines = [_PLAN]
    for number, (sign, term) in enumerate(operations):
        before, total = total, total + term if sign == "+" else total - term
        lines.append(f"{before} {sign} {term} = {_result(total, number == mistake, rng)}")
        check = f"Check: {total} {_UNDO[sign]} {term} = {before}."
    if str(total) != str(entry.get("answer")):
        raise PromptError(
            f"prompt {prompt.prompt_id!r}: the terms give {total}, its entry says {entry.get('answer')!r}: "
            "a trace must end with the entry's answer"
        )
    return " ".join([*lines, check, f"{_ANSWER}{total}"])


def traces_for(prompts: Iterable[Prompt], seed: int, hasty_fraction: float = 0.0) -> list[tuple[Prompt, str]]:
    """Each prompt with its trace, which depends on ``seed`` and the prompt's id alone.

    Args:
        prompts: as :func:`write_trace` takes them.
        seed: of the traces.
        hasty_fraction: chance that a trace is ``Answer: <guess>`` and nothing else, the guess at most
            ``GUESS_MISSES_BY`` beside the right number.

    Raises:
        PromptError: as :func:`write_trace`.
    """
    pairs = []
    for prompt in prompts:
        key = xxhash.xxh3_64_intdigest(prompt.prompt_id.encode(), seed=seed & (2**64 - 1))
        rng = np.random.Generator(np.random.Philox(key=key))
        trace = write_trace(prompt, rng)
        if rng.random() < hasty_fraction:
            right = int(trace.rpartition(_ANSWER)[2])
            trace = f"{_ANSWER}{right + int(rng.integers(-GUESS_MISSES_BY, GUESS_MISSES_BY + 1))}"
        pairs.append((prompt, trace))
    return pairs


def _result(right: int, mistaken: bool, rng: np.random.Generator) -> str:
    if not mistaken:
        return f"{right}."
    wrong = right + int(rng.choice([-2, -1, 1, 2]))
    return f"{wrong}? No, {right}."


def _entry(prompt: Prompt) -> dict[str, Any]:
    if not prompt.kind.startswith("task:"):
        raise PromptError(
            f"prompt {prompt.prompt_id!r} is of kind {prompt.kind!r}: traces are written for sums of "
            "reasoning-gym tasks, set prompts.source=task and prompts.task=chain_sum"
        )
    entry = json.loads(prompt.answer_key)
    assert isinstance(entry, dict), "the answer key of a task prompt is its entry"
    return entry


def _expression(prompt: Prompt, entry: dict[str, Any]) -> str:
    expression = str(entry.get("metadata", {}).get("expression", ""))
    if not _SUM.fullmatch(expression):
        raise PromptError(
            f"prompt {prompt.prompt_id!r} ({prompt.kind}) has the expression {expression!r}: traces are "
            "written for at least two whole numbers joined by + and -, as the task chain_sum makes them"
        )
    return expression
