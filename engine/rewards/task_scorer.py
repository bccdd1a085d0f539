"""Scores of reasoning-gym tasks, by the task's own scorer.

Those scorers give partial scores to any text that contains the answer, so the final answer is cut out of
the response first; the form of the task's own answer (a number, one word, a line, a block) says how.
"""

from __future__ import annotations

import json
import re
from typing import Any

from engine.config.rewards import RewardConfig
from engine.errors import ConfigError, JudgeError, nearest_name
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Verdict
from engine.rewards.exact_answer import after_marker, answer_region, extract_answer, last_boxed

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:/\d+)?")
_LEADING_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?")
_FENCE = re.compile(r"```[a-z]*\n(.*?)\n?```", re.DOTALL)
# Some scorers hand the answer to sympy's parse_expr, which evaluates Python.
_CALLS_PYTHON = re.compile(
    r"__|\b(?:eval|exec|open|compile|input|getattr|setattr|delattr|globals|locals|vars|breakpoint)\s*\("
)
_UNREADABLE = (
    ArithmeticError, AttributeError, LookupError, RecursionError, SyntaxError, TypeError, ValueError
)  # fmt: skip


def final_answer(response: str, example: str | None) -> str:
    """The final answer of a response, in the form of ``example``: the answer that the task itself gives,
    None where the task gives none and any text may do.

    Example:
        >>> final_answer("2 + 3 = 5.", "7"), final_answer("The word is 'olleh'.", "abc")
        ('5', 'olleh')
    """
    region = answer_region(response)
    if example is None:
        return last_boxed(region) or _block(region)
    if _NUMBER.fullmatch(example.strip()):
        return _number(region)
    explicit = last_boxed(region)
    if explicit is not None:
        return explicit
    if "\n" in example.strip():
        return _block(region)
    if "<answer>" in response:
        return _line(region, example)
    marked = after_marker(region)
    return _line(region if marked is None else marked, example)


def _number(region: str) -> str:
    answer = (extract_answer(region) or "").strip().strip("$*").replace("\u2212", "-")
    answer = re.sub(r"^([-+])\s+", r"\1", re.sub(r"\\frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", answer))
    plain = list(_LEADING_NUMBER.finditer(answer))
    if len(plain) == 1:  # more than one is no single answer, and is left to the scorer as it stands
        answer = plain[0].group()
    return answer.replace(",", "").replace(" ", "") if len(plain) == 1 else answer


def _block(region: str) -> str:
    fenced = _FENCE.findall(region)
    if fenced:
        return fenced[-1]
    position = max((match.end() for match in re.finditer(r"(?i)\banswer\s*(?:is)?\s*:", region)), default=0)
    return region[position:].strip("\n ")


def _line(text: str, example: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    line = lines[-1].strip("*` ")
    if len(example.split()) == 1 and len(line.split()) > 1 and example[:1] not in "[({":
        line = line.rstrip(" .!?*\"'`").rsplit(maxsplit=1)[-1]
    elif ":" not in example and ": " in line:
        line = line.rpartition(": ")[2]
    if not example.endswith((".", "!", "?")):
        line = line.rstrip(" .!?*")
    quoted = len(line) > 1 and line[0] == line[-1] and line[0] in "\"'`" and example[:1] != line[0]
    return line[1:-1] if quoted else line.lstrip("*\"'`" if example[:1] not in "\"'" else "*")


class TaskJudge:
    """The scorer of one reasoning-gym task; answer keys are the JSON of the task's entries."""

    def __init__(self, task: str, config: RewardConfig) -> None:
        """Load the task.

        Raises:
            ConfigError: reasoning-gym has no task of this name.
        """
        from reasoning_gym.factory import DATASETS, get_score_answer_fn

        if task not in DATASETS:
            remedy = f"reasoning-gym has no such task: {nearest_name(task, DATASETS)}"
            raise ConfigError("prompts.task", task, remedy)
        self.name = f"task:{task}"
        self.config = config
        self._score: Any = get_score_answer_fn(task)

    def judge(self, prompt: Prompt, response: str, finish_reason: FinishReason | None) -> Verdict:
        """The task's score, 0..1, partial scores kept; an answer that its scorer cannot read gets 0.

        Raises:
            JudgeError: the answer key is not the entry of this task.
        """
        entry = self._entry(prompt)
        answer = final_answer(response, entry["answer"])
        if not answer:
            return Verdict(0.0, False, "no answer found", self.name)
        if _CALLS_PYTHON.search(answer) and not _CALLS_PYTHON.search(entry["answer"] or ""):
            return Verdict(0.0, False, "answer refused: it calls Python", self.name)
        try:
            score = float(self._score(answer=answer, entry=entry))
        except _UNREADABLE as error:
            self._score_own_answer(prompt, entry)
            return Verdict(0.0, False, f"answer unreadable: {type(error).__name__}", self.name)
        correct = score >= self.config.correct_threshold
        return Verdict(score, correct, "equal" if correct else "different", self.name)

    def _entry(self, prompt: Prompt) -> dict[str, Any]:
        try:
            entry = json.loads(prompt.answer_key)
        except ValueError as error:
            raise JudgeError(f"prompt {prompt.prompt_id!r}: the answer key is not JSON: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("answer", 0), str | None):
            raise JudgeError(
                f"prompt {prompt.prompt_id!r}: the key of {self.name} must be the entry of the task: "
                "an object with question, answer (text or null) and metadata"
            )
        return entry

    def _score_own_answer(self, prompt: Prompt, entry: dict[str, Any]) -> None:
        """Tell an answer that the scorer cannot read from a scorer or key that does not work at all."""
        try:
            self._score(answer=entry["answer"], entry=entry)
        except _UNREADABLE as error:
            raise JudgeError(
                f"prompt {prompt.prompt_id!r}: the scorer of {self.name} cannot read its own entry: {error}"
            ) from error
