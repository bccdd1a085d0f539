"""The prompts of a run: loaded, framed, and split into training and held-out questions.

The split goes by the digest of the question text, never by generator seed: task generators seed item i with
seed + i and repeat questions in small spaces, so another seed is not another set.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash

from engine.config.prompts import PromptsConfig, PromptSource
from engine.errors import ConfigError, PromptError
from engine.prompts.prompt_file import read_prompts
from engine.prompts.tasks import task_stream
from engine.records.prompt import Message, Prompt

_LOG = logging.getLogger(__name__)
# One question in eight of a task may be held out, decided by its digest alone: a larger num_train
# then never moves a question from one side to the other.
_HELDOUT_SHARE = 8
_Split = tuple[list[Prompt], list[Prompt]]


@dataclass(frozen=True)
class PromptSet:
    """Training and held-out prompts that share neither an id nor a question.

    Raises:
        PromptError: a side is empty, an id stands twice, or a question stands on both sides.
    """

    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    by_id: Mapping[str, Prompt] = field(init=False, repr=False, compare=False)
    """Every prompt of both sides."""

    def __post_init__(self) -> None:
        for name, side in (("training", self.train), ("held-out", self.heldout)):
            if not side:
                raise PromptError(f"there are no {name} prompts: a run needs at least one")
        self._require_disjoint()
        by_id: dict[str, Prompt] = {}
        for prompt in (*self.train, *self.heldout):
            if prompt.prompt_id in by_id:
                raise PromptError(f"two prompts have the id {prompt.prompt_id!r}: give each its own")
            by_id[prompt.prompt_id] = prompt
        object.__setattr__(self, "by_id", by_id)

    def digest(self) -> str:
        """Of every prompt in its order, with its id, messages, images, answer and judge: 32 hexadecimal digits.

        Equal for the same questions on the same sides, whatever options led to them; files may have changed meanwhile.
        """
        found = xxhash.xxh3_128()
        for side in (self.train, self.heldout):
            found.update(f"{len(side)} prompts".encode())
            for prompt in side:
                told = (prompt.prompt_id, prompt.messages, prompt.images, prompt.answer_key, prompt.kind)
                found.update(repr(told).encode())
        return found.hexdigest()

    def _require_disjoint(self) -> None:
        heldout = {prompt.question_digest(): prompt for prompt in self.heldout}
        for prompt in self.train:
            twin = heldout.get(prompt.question_digest())
            if twin is not None:
                raise PromptError(
                    f"training prompt {prompt.prompt_id!r} and held-out prompt {twin.prompt_id!r} ask the "
                    f"same question ({prompt.messages[-1].content[:60]!r}): remove one of them"
                )


def load_prompts(config: PromptsConfig) -> PromptSet:
    """The prompt set that the options describe; the same options give the same set.

    ``config.system`` comes first in every prompt (joined with a system message that is there already) and
    ``config.instruction`` follows every user message after a blank line. ``num_train`` limits tasks only.

    Raises:
        ConfigError: an option that names nothing: task, task option, path, function.
        PromptError: broken rows, too few questions, overlapping sides.
    """
    loaders: dict[PromptSource, Callable[[PromptsConfig], _Split]] = {
        PromptSource.task: _from_task,
        PromptSource.file: _from_path,
        PromptSource.dataset: _from_path,
        PromptSource.dotted: _from_dotted,
    }
    train, heldout = loaders[config.source](config)
    return PromptSet(
        tuple(_framed(prompt, config) for prompt in train),
        tuple(_framed(prompt, config) for prompt in heldout),
    )


def _from_task(config: PromptsConfig) -> _Split:
    pool: list[Prompt] = []
    others: list[Prompt] = []
    patience = max(1000, config.num_train + config.num_heldout)
    exhausted = True
    for prompt in task_stream(config.task, config.task_options, config.seed, patience, config.must_match):
        (pool if _rank(prompt, config.seed) % _HELDOUT_SHARE == 0 else others).append(prompt)
        if len(pool) >= config.num_heldout and len(others) >= config.num_train:
            exhausted = False
            break
    found = len(pool) + len(others)
    if found <= config.num_heldout:
        raise PromptError(
            f"the task {config.task!r} has {found} different questions with these options, "
            f"prompts.num_heldout={config.num_heldout} needs at least {config.num_heldout + 1}: widen "
            "prompts.task_options or prompts.must_match, or hold out fewer"
        )
    heldout, spare = pool[: config.num_heldout], pool[config.num_heldout :]
    if exhausted:
        others.sort(key=lambda prompt: _rank(prompt, config.seed))
        missing = config.num_heldout - len(heldout)
        heldout, others = heldout + others[:missing], others[missing:] + spare
    train = others[: config.num_train]
    if len(train) < config.num_train:
        _LOG.warning(
            "the task %s has %d different questions: %d held out, %d left to train on (asked for %d)",
            config.task, found, len(heldout), len(train), config.num_train,
        )  # fmt: skip
    return train, heldout


def _from_path(config: PromptsConfig) -> _Split:
    prompts = _distinct(read_prompts(config.path, config.source, config.bad_rows), config.path)
    if not config.heldout_path:
        return _split(prompts, config, config.path)
    rows = read_prompts(config.heldout_path, config.source, config.bad_rows, "prompts.heldout_path")
    return prompts, _distinct(rows, config.heldout_path)


def _from_dotted(config: PromptsConfig) -> _Split:
    key = "prompts.dotted_path"
    module_name, _, function_name = config.dotted_path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(key, config.dotted_path, f"cannot be imported: {error}") from error
    if not callable(function):
        raise ConfigError(key, config.dotted_path, f"names a {type(function).__name__}, not a function")
    made: Any = function(config)
    if not isinstance(made, (list, tuple)) or not all(isinstance(item, Prompt) for item in made):
        kinds = sorted({type(item).__name__ for item in made}) if isinstance(made, (list, tuple)) else made
        raise PromptError(f"{config.dotted_path} must return a list of Prompt, it returned {kinds!r}")
    return _split(_distinct(made, config.dotted_path), config, config.dotted_path)


def _distinct(prompts: Iterable[Prompt], origin: str) -> list[Prompt]:
    """The first prompt of every question; a repeated one would weigh twice or cross the split."""
    prompts = list(prompts)
    firsts: dict[str, Prompt] = {}
    for prompt in prompts:
        firsts.setdefault(prompt.question_digest(), prompt)
    if len(firsts) < len(prompts):
        _LOG.warning(
            "%d prompts of %s repeat an earlier question: left out", len(prompts) - len(firsts), origin
        )
    return list(firsts.values())


def _split(prompts: list[Prompt], config: PromptsConfig, origin: str) -> _Split:
    """Hold out the ``num_heldout`` questions that rank first; both sides keep their order."""
    if len(prompts) <= config.num_heldout:
        raise PromptError(
            f"{origin} has {len(prompts)} different questions, prompts.num_heldout={config.num_heldout} "
            f"needs at least {config.num_heldout + 1}: hold out fewer, or give prompts.heldout_path"
        )
    ranked = sorted(prompts, key=lambda prompt: _rank(prompt, config.seed))
    chosen = {prompt.question_digest() for prompt in ranked[: config.num_heldout]}
    sides: _Split = ([], [])
    for prompt in prompts:
        sides[prompt.question_digest() in chosen].append(prompt)
    return sides


def _rank(prompt: Prompt, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(prompt.question_digest().encode(), seed=seed & (2**64 - 1))


def _framed(prompt: Prompt, config: PromptsConfig) -> Prompt:
    messages = list(prompt.messages)
    if config.instruction:
        messages = [
            Message(m.role, f"{m.content}\n\n{config.instruction}") if m.role == "user" else m
            for m in messages
        ]
    if config.system and messages[0].role == "system":
        messages[0] = Message("system", f"{config.system}\n\n{messages[0].content}")
    elif config.system:
        messages.insert(0, Message("system", config.system))
    return replace(prompt, messages=tuple(messages))
