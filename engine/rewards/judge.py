"""Which judge looks at which kind of prompt, and what cut-off responses are worth."""

from __future__ import annotations

import functools
import importlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from engine.config.rewards import RewardConfig
from engine.errors import ConfigError, nearest_name
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Outcome, Verdict
from engine.rewards.exact_answer import ExactJudge
from engine.rewards.math_answer import MathJudge
from engine.rewards.pool import Item, JudgeFunction, JudgePool
from engine.rewards.task_scorer import TaskJudge

TASK_PREFIX = "task:"


class Judge(Protocol):
    """The port: says of one response what it is worth.

    A judge raises, or returns ``Verdict.failed``, when it can not do its work; a wrong answer is score 0.
    """

    name: str

    def judge(self, prompt: Prompt, response: str, finish_reason: FinishReason | None) -> Verdict:
        """The raw score; ``correct`` is set by :class:`Rewarder` from its threshold."""
        ...


_BUILT_IN: dict[str, Callable[[RewardConfig], Judge]] = {"exact": ExactJudge, "math": MathJudge}


def resolve_dotted(path: str, key: str = "reward.judges") -> Any:
    """The attribute that ``package.module.attribute`` names.

    Args:
        path: where it is.
        key: the option that the error message names.

    Raises:
        ConfigError: no such module or attribute, or the module can not be imported.

    Example:
        >>> resolve_dotted("math.floor")(2.5)
        2
    """
    module_name, _, attribute = path.rpartition(".")
    if not module_name or not attribute:
        raise ConfigError(key, path, "give package.module.attribute")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(key, path, f"cannot import {module_name}: {error}; is it on the path?") from error
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise ConfigError(
            key, path, f"module {module_name} has no {attribute!r}: {nearest_name(attribute, public)}"
        )
    return getattr(module, attribute)


def check_kind(kind: str, config: RewardConfig) -> None:
    """Raise ConfigError for a kind that no judge answers to; loads no judge."""
    if kind in config.judges or kind in _BUILT_IN or kind.startswith(TASK_PREFIX):
        return
    known = [*config.judges, *_BUILT_IN, TASK_PREFIX + "<name>"]
    remedy = f"no judge for this kind of prompt, {nearest_name(kind, known)}; or map it to a dotted path"
    raise ConfigError("reward.judges", kind, remedy)


def build_judge(kind: str, config: RewardConfig) -> Judge:
    """The judge of a kind of prompt: the configured one, else the built-in one.

    Raises:
        ConfigError: an unknown kind, a dotted path that leads nowhere, a factory that returns no judge.
    """
    check_kind(kind, config)
    if kind in config.judges:
        key = f"reward.judges.{kind}"
        judge = resolve_dotted(config.judges[kind], key)(config)
        if not callable(getattr(judge, "judge", None)):
            remedy = f"the factory returned a {type(judge).__name__}: return one with name and judge()"
            raise ConfigError(key, config.judges[kind], remedy)
        return judge
    if kind.startswith(TASK_PREFIX):
        return TaskJudge(kind.removeprefix(TASK_PREFIX), config)
    return _BUILT_IN[kind](config)


def _judge_function(config: RewardConfig, kind: str) -> JudgeFunction:
    return build_judge(kind, config).judge


class Rewarder:
    """Judges responses in a pool, retries what failed, applies the rules for cut-off responses.

    Args:
        config: judges, limits and thresholds.
        repetition_penalty: added to the score of a response that was cut as a loop; 0 or negative
            (``rollout.repetition.penalty``).

    Raises:
        ConfigError: a dotted path of ``config.judges`` leads nowhere.
    """

    def __init__(self, config: RewardConfig, repetition_penalty: float = 0.0) -> None:
        for kind, path in config.judges.items():
            resolve_dotted(path, f"reward.judges.{kind}")
        self._config = config
        self._repetition_penalty = repetition_penalty
        self._pool = JudgePool(config, functools.partial(_judge_function, config))
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in order.

        Failed and overrun judgements are tried again up to ``max_retries`` times; the last such verdict is
        returned as it is (outcome not ok), and nobody may read it as reward 0.

        Raises:
            ConfigError: an item of a kind without a judge.
            JudgeError: a judge could not be built.
        """
        for kind in {prompt.kind for prompt, _, _ in items}:
            check_kind(kind, self._config)
        verdicts = self._pool.judge(items)
        for _ in range(self._config.max_retries):
            again = [i for i, verdict in enumerate(verdicts) if verdict.outcome is not Outcome.ok]
            if not again:
                break
            self._counts["retries"] += len(again)
            for i, verdict in zip(again, self._pool.judge([items[i] for i in again]), strict=True):
                verdicts[i] = verdict
        return [self._settled(verdict, item[2]) for verdict, item in zip(verdicts, items, strict=True)]

    def _settled(self, verdict: Verdict, finish_reason: FinishReason | None) -> Verdict:
        self._counts["judged"] += 1
        self._counts[f"outcome_{verdict.outcome.value}"] += 1
        if verdict.outcome is not Outcome.ok:
            return verdict
        self._seconds += verdict.seconds
        score, correct = verdict.score, verdict.score >= self._config.correct_threshold
        if finish_reason is FinishReason.repetition:
            score, correct = score + self._repetition_penalty, False
        elif finish_reason is FinishReason.length and not correct:
            score = self._config.truncated_score
        self._counts["correct"] += correct
        parts = verdict.parts if score == verdict.score else {**verdict.parts, "raw": verdict.score}
        return replace(verdict, score=score, correct=correct, parts=parts)

    def metrics(self) -> dict[str, float]:
        """Counts since the start of the run, mean seconds of a judgement, state of the pool."""
        done = self._counts["outcome_ok"]
        names = ("judged", "correct", "retries", "outcome_failed", "outcome_timeout")
        return {
            **{f"judge/{name}": float(self._counts[name]) for name in names},
            "judge/seconds_mean": self._seconds / done if done else math.nan,
            **self._pool.metrics(),
        }

    def state_dict(self) -> dict[str, Any]:
        """The counters; judges themselves hold no state."""
        return {"counts": dict(self._counts), "seconds": self._seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from a :meth:`state_dict`."""
        self._counts = Counter(state["counts"])
        self._seconds = float(state["seconds"])

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()
