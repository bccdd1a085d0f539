"""Prompts from reasoning-gym tasks, by the task's name.

The package is imported where it is used: it takes seconds, and only this source needs it. The judge of
kind ``task:<name>`` reads the answer key, which holds the whole entry as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import islice
from types import ModuleType
from typing import Any

from engine.errors import ConfigError, nearest_name
from engine.records.prompt import Prompt

# A task seeds item i with seed + i, so fixed chunks read one endless stream whatever the number wanted,
# and tasks that draw all their items at once never draw more than this.
_CHUNK = 1024
_RESERVED = ("seed", "size")
_UNMATCHED_LIMIT = 20_000


def task_prompts(
    name: str, options: Mapping[str, Any], count: int, seed: int, must_match: str = ""
) -> list[Prompt]:
    """The first ``count`` distinct questions of a task; fewer when its space is smaller.

    Args:
        name: a task of reasoning-gym, for example ``chain_sum``.
        options: that task's own options.
        count: distinct questions wanted.
        seed: seed of the generator; item i is made from ``seed + i``.
        must_match: regular expression that a question must contain; empty: every question counts.

    Raises:
        ConfigError: an unknown task or option, or an option that the task refuses.
    """
    return list(islice(task_stream(name, options, seed, max(1000, count), must_match), count))


def task_stream(
    name: str, options: Mapping[str, Any], seed: int, patience: int, must_match: str = ""
) -> Iterator[Prompt]:
    """Distinct questions in the order the task makes them, independent of how many are taken.

    The stream ends after ``patience`` questions in a row that were seen before: the space is exhausted.

    Raises:
        ConfigError: as :func:`task_prompts`.
    """
    pattern = re.compile(must_match)
    seen: set[str] = set()
    repeats = unmatched = 0
    for entry in _entries(name, options, seed):
        if not pattern.search(entry["question"]):
            unmatched += 1
            if unmatched >= _UNMATCHED_LIMIT:
                return
            continue
        unmatched = 0
        prompt = _entry_prompt(name, entry)
        if prompt.prompt_id in seen:
            repeats += 1
            if repeats >= patience:
                return
            continue
        repeats = 0
        seen.add(prompt.prompt_id)
        yield prompt


def _entries(name: str, options: Mapping[str, Any], seed: int) -> Iterator[dict[str, Any]]:
    gym = _reasoning_gym()
    _check_options(name, options)
    while True:
        try:
            dataset = gym.create_dataset(name, size=_CHUNK, seed=seed, **options)
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError(
                "prompts.task_options",
                dict(options),
                f"the task {name!r} refuses these options: {error}",
            ) from error
        for index in range(_CHUNK):
            try:
                yield dataset[index]
            except IndexError:  # word_ladder ends a data set early where no further pair is found
                break
        seed += _CHUNK


def _entry_prompt(name: str, entry: dict[str, Any]) -> Prompt:
    question = entry["question"]
    digest = Prompt.ask("", question, "").question_digest()
    asked = Prompt.ask(
        f"{name}/{digest[:16]}",
        question,
        json.dumps(entry, default=str, ensure_ascii=False),
        f"task:{name}",
    )
    return Prompt(
        asked.prompt_id,
        asked.messages,
        asked.answer_key,
        asked.kind,
        difficulty=_difficulty(entry.get("metadata", {})),
    )


def _difficulty(metadata: Mapping[str, Any]) -> float | None:
    """Where an entry lies in the ranges its task was configured with, 0..1; None where it does not say.

    ``metadata["difficulty"]`` maps a quantity to its configured (low, high), and the entry's own value
    stands in the metadata under the same name. The mean over all quantities that vary is the difficulty:
    unlike a rank within the set it does not change when other prompts join.
    """
    ranges = metadata.get("difficulty")
    if not isinstance(ranges, Mapping):
        return None
    places = []
    for quantity, bounds in ranges.items():
        value = metadata.get(quantity)
        if not _is_number(value) or not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
            continue
        low, high = bounds
        if _is_number(low) and _is_number(high) and low < high:
            places.append(min(1.0, max(0.0, (value - low) / (high - low))))
    return sum(places) / len(places) if places else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise ConfigError(
            "prompts.task", name, f"no such reasoning-gym task; {nearest_name(name, DATASETS)}"
        )
    known = {field.name for field in fields(DATASETS[name][1])} - set(_RESERVED)
    for option, value in options.items():
        if option in _RESERVED:
            remedy = "set prompts.seed, prompts.num_train and prompts.num_heldout instead"
            raise ConfigError(f"prompts.task_options.{option}", value, remedy)
        if option not in known:
            remedy = f"the task {name!r} has no such option; {nearest_name(option, known)}"
            raise ConfigError(f"prompts.task_options.{option}", value, remedy)


def _reasoning_gym() -> ModuleType:
    try:
        import reasoning_gym
    except ImportError as error:
        remedy = "needs the package reasoning-gym: pip install reasoning-gym"
        raise ConfigError("prompts.source", "task", remedy) from error
    return reasoning_gym
