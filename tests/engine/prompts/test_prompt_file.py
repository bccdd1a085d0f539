import base64
import json
import logging
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.config.prompts import BadRows, PromptSource
from engine.errors import ConfigError, PromptError
from engine.prompts.prompt_file import parse_row, read_prompts
from engine.records.prompt import Message

ROWS = [
    {"question": "What is 1 + 1?", "answer": "2", "id": "a", "tags": ["sum"], "difficulty": 0.25},
    {"question": "What is 2 + 2?", "answer": "4", "id": "b", "tags": [], "difficulty": None},
]


def write_jsonl(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def read_file(path, bad_rows=BadRows.stop):
    return read_prompts(str(path), PromptSource.file, bad_rows)


def read_folder(path):
    return read_prompts(str(path), PromptSource.dataset, BadRows.stop)


def write_arrow(path, rows, opener=pa.ipc.new_stream):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, opener(sink, table.schema) as writer:
        writer.write_table(table)


def save_to_disk(folder, rows):
    write_arrow(folder / "data-00000-of-00002.arrow", rows[:1])
    write_arrow(folder / "data-00001-of-00002.arrow", rows[1:])
    files = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text("{}")


def check_rows(prompts):
    first, second = prompts
    assert (first.prompt_id, second.prompt_id) == ("a", "b")
    assert first.messages == (Message("user", "What is 1 + 1?"),)
    assert (first.answer_key, first.kind, first.tags, first.difficulty) == ("2", "math", ("sum",), 0.25)
    assert (second.tags, second.difficulty) == ((), None)


def test_jsonl(tmp_path):
    check_rows(read_file(write_jsonl(tmp_path / "p.jsonl", [ROWS[0], "", ROWS[1]])))


def test_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "p.parquet")
    check_rows(read_file(tmp_path / "p.parquet"))


def test_dataset_saved_to_disk(tmp_path):
    save_to_disk(tmp_path / "set", ROWS)
    write_arrow(tmp_path / "set" / "cache-1.arrow", ROWS)  # left by the library, not named by state.json
    check_rows(read_folder(tmp_path / "set"))


def test_dataset_of_several_splits_wants_one_named(tmp_path):
    save_to_disk(tmp_path / "set" / "train", ROWS)
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(ConfigError, match=r"name one, as .*set/train"):
        read_folder(tmp_path / "set")
    check_rows(read_folder(tmp_path / "set" / "train"))


def test_dataset_that_is_a_selection_is_refused(tmp_path):
    save_to_disk(tmp_path, ROWS)
    state = {"_data_files": [], "_indices_data_files": [{"filename": "indices.arrow"}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="flatten_indices"):
        read_folder(tmp_path)


def test_arrow_file_format(tmp_path):
    write_arrow(tmp_path / "set" / "rows.arrow", ROWS, pa.ipc.new_file)
    check_rows(read_folder(tmp_path / "set"))


def test_parquet_shards_by_split(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name, rows in (("train-00000-of-00002", ROWS[:1]), ("train-00001-of-00002", ROWS[1:])):
        pq.write_table(pa.Table.from_pylist(rows), data / f"{name}.parquet")
    check_rows(read_folder(tmp_path))
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), data / "test-00000-of-00001.parquet")
    with pytest.raises(ConfigError, match="several splits"):
        read_folder(tmp_path)
    check_rows(read_folder(tmp_path / "train"))
    assert len(read_folder(tmp_path / "test")) == 1


def test_messages_and_images_through_arrow(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is this?"}]
    row = {"messages": turns, "answer_key": "a cat", "images": [{"bytes": b"\x89PNG", "path": None}]}
    write_arrow(tmp_path / "set" / "rows.arrow", [row])
    (prompt,) = read_folder(tmp_path / "set")
    assert prompt.messages == (Message("system", "Be brief."), Message("user", "What is this?"))
    assert prompt.images == (b"\x89PNG",)
    assert prompt.prompt_id == f"set/{prompt.question_digest()[:16]}"


def test_rows_take_their_optional_forms():
    row = {"prompt": [{"role": "user", "content": "?"}], "answer": 7, "kind": "exact", "id": 3, "extra": 1}
    row["images"] = [base64.b64encode(b"picture").decode()]
    prompt = parse_row(row, "file")
    assert (prompt.answer_key, prompt.kind, prompt.prompt_id) == ("7", "exact", "3")
    assert prompt.images == (b"picture",)
    assert parse_row({"prompt": "?", "answer": {"x": 1}}, "file").answer_key == '{"x": 1}'


GOOD = {"question": "?", "answer": "1"}
BROKEN = [
    ("{not json", "not JSON"),
    ("[1]", "expected an object"),
    ({"answer": "1"}, "exactly one of 'messages' or 'prompt' or 'question'"),
    (GOOD | {"prompt": "??"}, "exactly one of"),
    ({"question": "?"}, "exactly one of 'answer' or 'answer_key'"),
    ({"question": " ", "answer": "1"}, "the question must be text"),
    ({"question": "?", "answer": ""}, "the answer must be"),
    ({"messages": [], "answer": "1"}, "list of messages"),
    ({"messages": [{"role": "bot", "content": "?"}], "answer": "1"}, "needs a role"),
    ({"messages": [{"role": "user", "content": ["?"]}], "answer": "1"}, "content that is text"),
    (
        {"messages": [{"role": "assistant", "content": "?"}], "answer": "1"},
        "last message must be of role user",
    ),
    (GOOD | {"id": [1]}, "'id' must be"),
    (GOOD | {"kind": 3}, "'kind' must be"),
    (GOOD | {"tags": "sum"}, "'tags' must be a list"),
    (GOOD | {"tags": [1]}, "'tags' must hold text"),
    (GOOD | {"difficulty": 3}, "'difficulty' must be a number from 0 to 1"),
    (GOOD | {"images": ["no base64!"]}, "not base64"),
    (GOOD | {"images": [3]}, "bytes or base64 text"),
]


@pytest.mark.parametrize(("row", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_row_is_named_by_file_and_line(tmp_path, row, message):
    path = write_jsonl(tmp_path / "p.jsonl", [GOOD, "", row])
    with pytest.raises(PromptError, match=message) as caught:
        read_file(path)
    assert f"{path}:3: " in str(caught.value)
    assert "prompts.bad_rows=skip" in str(caught.value)


def test_bytes_that_are_not_text_are_named(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(PromptError, match=r"p\.jsonl:1: not UTF-8"):
        read_file(tmp_path / "p.jsonl")


def test_a_broken_row_of_a_table_is_named_by_its_row(tmp_path):
    pq.write_table(pa.Table.from_pylist([GOOD, {"question": "?", "answer": None}]), tmp_path / "p.parquet")
    with pytest.raises(PromptError, match=r"p\.parquet, row 2: expected exactly one of 'answer'"):
        read_file(tmp_path / "p.parquet")


def test_skipped_rows_are_counted(tmp_path, caplog):
    path = write_jsonl(tmp_path / "p.jsonl", ["{", GOOD, "[]"])
    with caplog.at_level(logging.WARNING):
        assert len(read_file(path, BadRows.skip)) == 1
    assert f"2 of 3 rows of {path} left out" in caplog.text
    assert f"{path}:1: not JSON" in caplog.text


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "p.parquet").write_bytes(b"not a table")
    with pytest.raises(PromptError, match=r"p\.parquet cannot be read"):
        read_file(tmp_path / "p.parquet")
    (tmp_path / "rows.arrow").write_bytes(b"not a table either")
    (tmp_path / "p.parquet").unlink()
    with pytest.raises(PromptError, match=r"rows\.arrow cannot be read"):
        read_folder(tmp_path)


def test_missing_pyarrow_is_named_with_its_remedy(tmp_path, monkeypatch):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "p.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PromptError, match=r"pip install pyarrow, or convert the data to \.jsonl"):
        read_file(tmp_path / "p.parquet")


def test_paths_that_cannot_be_read_say_why(tmp_path):
    (tmp_path / "p.csv").write_text("")
    for path, source, message in (
        (tmp_path / "none.jsonl", PromptSource.file, "no such file"),
        (tmp_path, PromptSource.file, "source=dataset"),
        (tmp_path / "p.csv", PromptSource.file, "a .csv file is not read"),
        (tmp_path / "p.csv", PromptSource.dataset, "source=file"),
        (tmp_path / "none", PromptSource.dataset, "no such dataset folder"),
        (tmp_path, PromptSource.dataset, "no .arrow or .parquet"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            read_prompts(str(path), source, BadRows.stop, "prompts.heldout_path")
        assert caught.value.key == "prompts.heldout_path"
