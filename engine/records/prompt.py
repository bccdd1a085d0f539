"""A question and what is needed to judge its answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

import xxhash

from engine.errors import RecordError

_WHITESPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question of a prompt set.

    Example:
        >>> Prompt.ask("sum/1", "What is 2 + 3?", "5").messages[0].role
        'user'
    """

    prompt_id: str
    """Unique within the prompt set and stable over runs."""
    messages: tuple[Message, ...]
    """A list, so that several turns fit."""
    answer_key: str
    """What the judge needs; never shown to the policy nor to a process that runs its code."""
    kind: str = "math"
    """Chooses the judge: math, exact, task:<name>, or a name that the reward config maps."""
    tags: tuple[str, ...] = ()
    difficulty: float | None = None
    """0 (easy) to 1 (hard) where known; the curriculum orders by it."""
    images: tuple[bytes, ...] = ()
    """Encoded images in the order of their placeholders."""

    def __post_init__(self) -> None:
        if not self.messages:
            raise RecordError(f"prompt {self.prompt_id!r} has no messages: give at least one")

    @classmethod
    def ask(cls, prompt_id: str, question: str, answer_key: str, kind: str = "math") -> Prompt:
        """A prompt of one user turn."""
        return cls(prompt_id, (Message("user", question),), answer_key, kind)

    def question_digest(self) -> str:
        """Digest of the normalised question text; equal for questions that differ in case or spacing.

        Held-out and training sets are split by it, so the same question never stands in both.
        """
        text = "\n".join(f"{m.role}:{m.content.strip()}" for m in self.messages if m.role != "system")
        digest = xxhash.xxh3_128(_WHITESPACE.sub(" ", text).strip().lower().encode())
        for image in self.images:
            digest.update(image)
        return digest.hexdigest()
