"""Prompts from files: .jsonl, .parquet, and Hugging Face dataset folders.

A row holds its question as ``messages`` (a list of {role, content}; a list under ``prompt`` is the same) or
as text under ``prompt`` or ``question``, and what the judge needs under ``answer`` or ``answer_key``.
Optional: ``id``, ``kind`` (math when absent), ``tags`` (a list of text), ``difficulty`` (0..1), ``images``
(a list of bytes, base64 text, or {bytes}). Other keys are left alone. Columns that are null count as
absent; white space around a text is cut off. Dataset folders are read with pyarrow alone.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.config.prompts import BadRows, PromptSource
from engine.errors import ConfigError, PromptError
from engine.records.prompt import Message, Prompt

_LOG = logging.getLogger(__name__)
_ROLES = ("system", "user", "assistant")
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(?:-\w+)?")
_ARROW_FILE_MAGIC = b"ARROW1"
_BATCH_ROWS = 1024


def read_prompts(
    path: str, source: PromptSource, bad_rows: BadRows, key: str = "prompts.path"
) -> list[Prompt]:
    """All prompts of a file or a dataset folder, in the order they stand there.

    Args:
        path: a .jsonl or .parquet file for ``source=file``; for ``source=dataset`` a folder written by
            ``save_to_disk``, or one with .arrow or .parquet shards. ``folder/train`` names a split.
        source: file or dataset.
        bad_rows: stop at a broken row, or leave it out and say how many were.
        key: the option that gave the path, for messages.

    Raises:
        ConfigError: no such path, a format that is not read, or several splits and none chosen.
        PromptError: a broken row, named by file and line, or pyarrow is needed and missing.
    """
    place = Path(path)
    if source is PromptSource.dataset:
        return _collect(path, _folder_rows(place, key), bad_rows)
    if place.is_dir():
        raise ConfigError(key, path, "is a folder: set prompts.source=dataset, or name a file in it")
    if not place.is_file():
        raise ConfigError(key, path, "no such file")
    if place.suffix == ".jsonl":
        return _collect(path, _jsonl_rows(place), bad_rows)
    if place.suffix == ".parquet":
        return _collect(path, _table_rows([place]), bad_rows)
    raise ConfigError(
        key, path, f"a {place.suffix or 'nameless'} file is not read: give .jsonl or .parquet"
    )


def _collect(path: str, rows: Iterable[tuple[str, Any]], bad_rows: BadRows) -> list[Prompt]:
    prompts: list[Prompt] = []
    skipped: list[str] = []
    for place, row in rows:
        try:
            prompts.append(parse_row(row, Path(path).stem))
        except PromptError as error:
            message = f"{place}: {error}"
            if bad_rows is BadRows.stop:
                raise PromptError(
                    f"{message}; mend the row, or set prompts.bad_rows=skip to leave such rows out"
                ) from error
            skipped.append(message)
    if skipped:
        total = len(skipped) + len(prompts)
        _LOG.warning("%d of %d rows of %s left out; the first: %s", len(skipped), total, path, skipped[0])
    return prompts


def parse_row(row: Any, default_id: str) -> Prompt:
    """One prompt from one row: a mapping, or bytes that hold it as JSON.

    Args:
        row: see the module.
        default_id: what the id of a row without one starts with; a digest of the question follows.

    Raises:
        PromptError: what is wrong with the row, without its place.
    """
    if isinstance(row, bytes):
        row = _from_json(row)
    if not isinstance(row, Mapping):
        raise PromptError(f"expected an object with a question and an answer, got a {type(row).__name__}")
    row = {name: value for name, value in row.items() if value is not None}
    prompt_id = row.get("id", "")
    if not isinstance(prompt_id, (str, int)) or isinstance(prompt_id, bool):
        raise PromptError(f"'id' must be text or a whole number, got {prompt_id!r}")
    kind = row.get("kind", "math")
    if not isinstance(kind, str) or not kind:
        raise PromptError(f"'kind' must be text, got {kind!r}")
    messages, images = _messages(row), tuple(_image(image) for image in _list(row, "images"))
    digest = Prompt("", messages, "", images=images).question_digest()
    return Prompt(
        str(prompt_id) or f"{default_id}/{digest[:16]}",
        messages,
        _answer(row),
        kind,
        tuple(_text(tag, "tags") for tag in _list(row, "tags")),
        _difficulty(row.get("difficulty")),
        images,
    )


def _from_json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise PromptError(f"not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise PromptError(f"not JSON: {error}") from error


def _one_of(row: Mapping[str, Any], *names: str) -> Any:
    present = [name for name in names if name in row]
    if len(present) != 1:
        wanted = " or ".join(repr(name) for name in names)
        raise PromptError(f"expected exactly one of {wanted}, got {present or sorted(map(str, row))}")
    return row[present[0]]


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    question = _one_of(row, "messages", "prompt", "question")
    if isinstance(question, str) and question.strip():
        return (Message("user", question.strip()),)
    if not isinstance(question, list) or not question:
        raise PromptError(f"the question must be text or a list of messages, got {question!r}")
    messages = tuple(_message(turn) for turn in question)
    if messages[-1].role != "user":
        raise PromptError(f"the last message must be of role user, it is of role {messages[-1].role}")
    return messages


def _message(turn: Any) -> Message:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
    if role not in _ROLES or not isinstance(content, str) or not content.strip():
        raise PromptError(
            f"a message needs a role ({', '.join(_ROLES)}) and content that is text, got {turn!r}"
        )
    return Message(role, content.strip())


def _answer(row: Mapping[str, Any]) -> str:
    answer = _one_of(row, "answer", "answer_key")
    if isinstance(answer, (dict, list)):
        return json.dumps(answer, ensure_ascii=False)
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)) or not str(answer).strip():
        raise PromptError(f"the answer must be text, a number or an object, got {answer!r}")
    return str(answer)


def _difficulty(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise PromptError(f"'difficulty' must be a number from 0 to 1, got {value!r}")
    return float(value)


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    value = row.get(name, [])
    if not isinstance(value, list):
        raise PromptError(f"{name!r} must be a list, got {value!r}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f"{name!r} must hold text, got {value!r}")
    return value


def _image(value: Any) -> bytes:
    if isinstance(value, Mapping):  # the image column of a Hugging Face dataset
        value = value.get("bytes")
    if isinstance(value, bytes) and value:
        return value
    try:
        if isinstance(value, str) and value:
            return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise PromptError(f"'images' holds text that is not base64: {error}") from error
    raise PromptError(f"'images' must hold bytes or base64 text, got a {type(value).__name__}")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", line


def _folder_rows(folder: Path, key: str) -> Iterator[tuple[str, Any]]:
    return _table_rows(_shards(folder, key))


def _shards(folder: Path, key: str) -> list[Path]:
    """The data files of one split, in order."""
    if folder.is_file():
        raise ConfigError(key, str(folder), "is a file: set prompts.source=file")
    if not folder.is_dir():
        parent = [s for s in _data_files(folder.parent) if _split(s) == folder.name]
        if parent:
            return parent
        raise ConfigError(key, str(folder), "no such dataset folder, and no such split in the folder above")
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        raise ConfigError(key, str(folder), f"holds several splits: name one, as {folder / splits[0]}")
    if (folder / "state.json").is_file():
        state = json.loads((folder / "state.json").read_text())
        if state.get("_indices_data_files"):
            remedy = "holds a selection of rows: flatten_indices() it and save it again"
            raise ConfigError(key, str(folder), remedy)
        return [folder / entry["filename"] for entry in state["_data_files"]]
    shards = _data_files(folder)
    splits = sorted({_split(shard) for shard in shards} - {""})
    if not shards:
        raise ConfigError(key, str(folder), "has no .arrow or .parquet file")
    if len(splits) > 1:
        raise ConfigError(key, str(folder), f"holds several splits: name one, as {folder / splits[-1]}")
    return shards


def _data_files(folder: Path) -> list[Path]:
    found = [
        f
        for pattern in ("*.arrow", "*.parquet")
        for f in (*folder.glob(pattern), *folder.glob(f"data/{pattern}"))
    ]
    return sorted(found)


def _split(shard: Path) -> str:
    match = _SHARD.fullmatch(shard.stem)
    return match["split"] if match else ""


def _table_rows(files: list[Path]) -> Iterator[tuple[str, Any]]:
    pyarrow = _pyarrow(files[0])
    for file in files:
        number = 0
        try:
            for batch in _batches(pyarrow, file):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number}", row
        except (pyarrow.ArrowInvalid, FileNotFoundError) as error:
            raise PromptError(f"{file} cannot be read: {error}; write it again") from error


def _batches(pyarrow: ModuleType, file: Path) -> Iterator[Any]:
    if file.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(file) as table:
            yield from table.iter_batches(batch_size=_BATCH_ROWS)
        return
    with pyarrow.memory_map(str(file)) as source:
        is_file = source.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
        source.seek(0)
        if not is_file:  # save_to_disk writes the stream format
            yield from pyarrow.ipc.open_stream(source)
            return
        reader = pyarrow.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _pyarrow(file: Path) -> ModuleType:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise PromptError(
            f"reading {file} needs pyarrow: pip install pyarrow, or convert the data to .jsonl"
        ) from error
    return pyarrow
