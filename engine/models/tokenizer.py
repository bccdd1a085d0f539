"""Chat template and tokens: from a prompt to ids, from ids to text."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError, PromptError
from engine.records.prompt import Prompt

DEFAULT_ALPHABET = "\n" + string.digits + string.ascii_letters + string.punctuation + " "
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '>' }}{% endif %}"
)


class PolicyTokenizer:
    """The tokenizer of a policy: rendering, decoding, and the tokens that end a response."""

    def __init__(self, tokenizer: Any, extra_stop_ids: Iterable[int] = ()) -> None:
        self.backend = tokenizer
        stop = {tokenizer.eos_token_id, *extra_stop_ids}
        self.stop_ids = frozenset(int(token) for token in stop if token is not None)

    @classmethod
    def from_folder(cls, folder: str | Path, extra_stop_ids: Iterable[int] = ()) -> PolicyTokenizer:
        """Load from a Hugging Face folder.

        Raises:
            ModelError: no tokenizer there, no end token, no chat template, or broken generation settings.
        """
        from transformers import AutoTokenizer

        try:
            backend = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(f"no tokenizer could be loaded from {folder}: {error}") from None
        if not getattr(backend, "chat_template", None):
            raise ModelError(
                f"the tokenizer in {folder} has no chat template, so prompts cannot be rendered: use an "
                "instruct model, or add chat_template.jinja to the folder"
            )
        if backend.eos_token_id is None:
            raise ModelError(f"the tokenizer in {folder} has no end token: set eos_token in its config")
        return cls(backend, [*_end_tokens(Path(folder)), *extra_stop_ids])

    def render(self, prompt: Prompt) -> NDArray[np.int32]:
        """[T] int32 ids of the prompt in the chat template, with the opening of the answer."""
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        text = self.backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = self.backend(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise PromptError(f"prompt {prompt.prompt_id!r} renders to no tokens: check the chat template")
        return np.asarray(ids, np.int32)

    def encode(self, text: str) -> NDArray[np.int32]:
        """[T] int32 ids of plain text, without special tokens."""
        return np.asarray(self.backend(text, add_special_tokens=False)["input_ids"], np.int32)

    def decode(self, token_ids: NDArray[np.int32]) -> str:
        """Text of a response; special tokens are left out."""
        return str(self.backend.decode(token_ids.tolist(), skip_special_tokens=True))

    @property
    def end_id(self) -> int:
        """The token that ends a response."""
        return int(self.backend.eos_token_id)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer beside a model."""
        self.backend.save_pretrained(folder)


def _end_tokens(folder: Path) -> list[int]:
    """Those that the model's own generation settings name: chat models end turns with one, texts with another."""
    file = folder / "generation_config.json"
    try:
        found = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    except ValueError as error:
        raise ModelError(f"{file} is broken: {error}") from None
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def character_tokenizer(alphabet: str = "") -> PolicyTokenizer:
    """One token for each character, for small policies made from nothing.

    Example:
        >>> tokenizer = character_tokenizer("0123456789+= >")
        >>> tokenizer.decode(tokenizer.encode("1+2"))
        '1+2'
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<end>": 1, "<unknown>": 2}
    for character in dict.fromkeys(alphabet or DEFAULT_ALPHABET):
        vocabulary[character] = len(vocabulary)
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    backend = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", pad_token="<pad>", unk_token="<unknown>",
        clean_up_tokenization_spaces=False,
    )
    backend.chat_template = _CHAT_TEMPLATE
    return PolicyTokenizer(backend)
