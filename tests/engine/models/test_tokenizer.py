from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from engine.errors import ModelError, PromptError
from engine.models.tokenizer import DEFAULT_ALPHABET, PolicyTokenizer, character_tokenizer
from engine.records.prompt import Message, Prompt

QUESTION = Prompt.ask("sum/1", "What is 2 + 3?", "5")
TOKENIZER = character_tokenizer()


@given(st.text(st.sampled_from(sorted(DEFAULT_ALPHABET)), max_size=60))
@settings(deadline=None)
def test_characters_survive_the_round_trip(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids.dtype == np.int32
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids) == text


def test_the_default_alphabet_is_printable_ascii_and_the_line_break() -> None:
    assert set(DEFAULT_ALPHABET) == {*string.digits, *string.ascii_letters, *string.punctuation, " ", "\n"}


def test_an_alphabet_of_ones_own_ignores_doubles_and_marks_the_rest_unknown() -> None:
    tokenizer = character_tokenizer("abca>\n")
    assert len(tokenizer.backend) == 3 + 5
    assert tokenizer.encode("abz").tolist() == [3, 4, 2]


def test_special_tokens_end_a_response_and_are_not_text() -> None:
    assert TOKENIZER.end_id == 1
    assert TOKENIZER.stop_ids == {1}
    assert PolicyTokenizer(TOKENIZER.backend, [7, 9]).stop_ids == {1, 7, 9}
    ids = np.concatenate([TOKENIZER.encode("7"), np.array([1, 0], np.int32)])
    assert TOKENIZER.decode(ids) == "7"


def test_a_prompt_is_rendered_with_the_opening_of_its_answer() -> None:
    prompt = Prompt("p", (Message("system", "Be brief."), Message("user", "1+1?")), "2")
    assert TOKENIZER.decode(TOKENIZER.render(prompt)) == "Be brief.\n1+1?\n>"
    assert TOKENIZER.render(QUESTION).dtype == np.int32


def test_a_prompt_that_renders_to_nothing_is_refused() -> None:
    tokenizer = character_tokenizer()
    tokenizer.backend.chat_template = "{{ '' }}"
    with pytest.raises(PromptError, match="'sum/1' renders to no tokens"):
        tokenizer.render(QUESTION)


def test_it_saves_and_loads_with_its_chat_template(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    loaded = PolicyTokenizer.from_folder(tmp_path, [5])
    np.testing.assert_array_equal(loaded.render(QUESTION), TOKENIZER.render(QUESTION))
    assert loaded.stop_ids == {1, 5}
    text = "  two  spaces, and ' quotes .\n"
    assert loaded.decode(loaded.encode(text)) == text
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert plain.chat_template == TOKENIZER.backend.chat_template
    assert plain.pad_token_id == 0


@pytest.mark.parametrize(("named", "stops"), [(4, {1, 4}), ([4, 6], {1, 4, 6}), (None, {1})])
def test_the_end_tokens_of_the_generation_settings_end_a_response(
    named: object, stops: set[int], tmp_path: Path
) -> None:
    TOKENIZER.save(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    assert PolicyTokenizer.from_folder(tmp_path).stop_ids == stops


def test_broken_generation_settings_are_refused(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"generation_config\.json is broken"):
        PolicyTokenizer.from_folder(tmp_path)


def test_a_folder_without_chat_template_is_refused(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.backend.chat_template = None
    tokenizer.save(tmp_path)
    with pytest.raises(ModelError, match="has no chat template"):
        PolicyTokenizer.from_folder(tmp_path)


def test_a_folder_without_end_token_is_refused(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.backend.eos_token = None
    tokenizer.save(tmp_path)
    with pytest.raises(ModelError, match="has no end token"):
        PolicyTokenizer.from_folder(tmp_path)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        PolicyTokenizer.from_folder(tmp_path)
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        PolicyTokenizer.from_folder("some/where-else")
