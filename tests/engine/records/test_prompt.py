from __future__ import annotations

import dataclasses

import pytest

from engine.errors import RecordError
from engine.records.prompt import Message, Prompt


def test_ask_makes_one_user_turn() -> None:
    prompt = Prompt.ask("a", "1 + 1?", "2", kind="exact")
    assert prompt.messages == (Message("user", "1 + 1?"),)
    assert (prompt.answer_key, prompt.kind) == ("2", "exact")


def test_a_prompt_without_messages_is_refused() -> None:
    with pytest.raises(RecordError, match="'a' has no messages"):
        Prompt("a", (), "2")


def test_the_digest_ignores_case_spacing_and_system() -> None:
    plain = Prompt.ask("a", "What is 1 + 1?", "2")
    other = Prompt("b", (Message("system", "Be kind."), Message("user", "what  IS 1 +\n1? ")), "3")
    assert plain.question_digest() == other.question_digest()


@pytest.mark.parametrize("other", [
    Prompt.ask("a", "What is 1 + 2?", "2"),
    Prompt("a", (Message("assistant", "What is 1 + 1?"),), "2"),
    Prompt("a", (Message("user", "What is 1 + 1?"),), "2", images=(b"x",)),
])
def test_the_digest_tells_questions_apart(other: Prompt) -> None:
    assert Prompt.ask("a", "What is 1 + 1?", "2").question_digest() != other.question_digest()


def test_prompts_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Prompt.ask("a", "?", "2").answer_key = "3"  # type: ignore[misc]
