from __future__ import annotations

import dataclasses
import pickle
from collections import Counter
from contextlib import suppress
from enum import StrEnum
from typing import Any, get_args, get_type_hints

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import RecordError
from engine.records import arrival, codec, event
from engine.records.codec import decode, encode
from engine.records.manifest import Bucket, Kept, Manifest, TensorEntry
from engine.records.prompt import Message, Prompt
from engine.records.span import Span
from engine.records.trajectory import DropReason, FinishReason, Group, Outcome, Segment, Trajectory, Verdict
from engine.records.update import UpdateReport
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, GeneratorOrder, GeneratorReport, JudgeReport, Progress, Request

VERSION = PolicyVersion(1, 7)
TOKENS = np.array([3, 1, 4], np.int32)
SEGMENT = Segment(TOKENS, np.array([True, False, True]), np.array([-0.5, 0.0, -2.0], np.float32), VERSION,
                  0.7, PolicyVersion(0, 2))
TRAJECTORY = Trajectory(5, 2, "p", 1, (SEGMENT, SEGMENT), FinishReason.repetition, 9)
VERDICT = Verdict(0.5, False, "half", "math", {"a": 0.25}, 1.5, Outcome.ok)
MANIFEST = Manifest(VERSION, (TensorEntry("w", (2, 3), "float32", 0, 24, ("tied",)),),
                    (Bucket(0, 64, "ab"),), "/somewhere", "shared_memory", "cd")
REQUEST = Request(5, 1, TOKENS, np.zeros(0, np.int32), 64, 16, 0.9)
DELIVERY = Delivery(5, 1, (SEGMENT,), None, 2)
PROGRESS = Progress(5, 1, 3, 6, VERSION, FinishReason.stop, 2, 1, 4)
RECORDS: list[Any] = [
    VERSION, SEGMENT, TRAJECTORY, VERDICT, MANIFEST, *MANIFEST.tensors, *MANIFEST.buckets, Kept(VERSION, "/kept"),
    REQUEST, DELIVERY, PROGRESS, Message("user", "?"),
    Prompt("p", (Message("system", "s"), Message("user", "e\u0301")), "5", "math", ("t",), 0.2, (b"\xff",)),
    Group(2, "p", TOKENS, (TRAJECTORY,), (VERDICT,)),
    GeneratorOrder((REQUEST,), MANIFEST, True, 4),
    GeneratorReport("g", (DELIVERY,), VERSION, "d", "no", 10, 2, 1, 1, ((0.5, 1.5),), 30),
    Span("decode", 1.0, 1.5, {"steps": 4.0}),
    JudgeReport({7: Verdict(1.0, True, "", "math")}, (Span("judge", 1.0, 2.0, {"items": 1.0}),)),
    UpdateReport(VERSION, True, 3, {"stale": 2}, {"learn/loss": 0.5}, {0: 3}, (1.0, 2.0), "ef"),
    event.Drawn(("p", "q")), event.Progressed("g", VERSION, (PROGRESS,)),
    event.JudgedItem(5, Outcome.ok, 0.5, True), event.Judged((event.JudgedItem(5, Outcome.failed),), (2,)),
    event.Updated(VERSION, False), event.GeneratorLost("g"), event.NobodyFollows("g"),
    event.GeneratorJoined("g", VERSION),
    event.CheckpointWritten(), event.Ticked(1.5), event.StopRequested(), event.Draw(3),
    event.Admit(2, "p", (5, 6)), event.Dispatch("g", (5, 6)), event.Judge((5,)), event.Train((2,)),
    event.Publish(VERSION), event.DropGroup(2, "p", DropReason.poison_prompt, True), event.CutAll("g"),
    arrival.Answered(3), arrival.Died("g#1"), arrival.Replaced("g#3"), arrival.Committed(VERSION, "cd"),
    arrival.Resumed(VERSION),
    event.WriteCheckpoint(), event.Restart("g"), event.Note("n"), event.Finish(True),
]


def same(left: Any, right: Any) -> bool:
    """Equal in type and value, arrays and their dtypes included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and bool((left == right).all())
    if dataclasses.is_dataclass(left):
        names = [field.name for field in dataclasses.fields(left)]
        return all(same(getattr(left, name), getattr(right, name)) for name in names)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def test_every_record_class_has_an_example() -> None:
    assert {type(record).__name__ for record in RECORDS} == set(codec._CLASSES)
    assert set(get_args(event.Event)) | set(get_args(event.Command)) <= {type(r) for r in RECORDS}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_round_trip_and_pickle(record: Any) -> None:
    assert same(decode(encode(record)), record)
    assert same(pickle.loads(pickle.dumps(record)), record)


def test_enum_fields_come_back_as_enums() -> None:
    for record in RECORDS:
        back = decode(encode(record))
        for name, hint in get_type_hints(type(record)).items():
            if isinstance(hint, type) and issubclass(hint, StrEnum):
                assert isinstance(getattr(back, name), hint)
    assert decode(encode(dataclasses.replace(TRAJECTORY, finish_reason=None))).finish_reason is None


def test_nan_scores_survive() -> None:
    back = decode(encode(Verdict.failed("math", "gone")))
    assert np.isnan(back.score)
    assert back.outcome is Outcome.failed


def test_containers_keep_their_kind() -> None:
    value = {"a": [1, (2, 3)], 7: {"b": (TRAJECTORY,)}, "n": None, "t": True, "x": b"\x01"}
    back = decode(encode(value))
    assert back["a"] == [1, (2, 3)]
    assert same(back[7]["b"][0], TRAJECTORY)
    assert (back["n"], back["t"], back["x"]) == (None, True, b"\x01")
    assert decode(encode([np.int64(3), np.float32(0.5), np.bool_(True)])) == [3, 0.5, True]


@pytest.mark.parametrize("dtype", ["int32", "bool", "float32", "float16", "uint8", "int64", ">i4"])
def test_arrays_come_back_owned_and_writable(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)[:, ::-1]
    back = decode(encode(array))
    assert same(back, array)
    back[0, 0] = 1
    assert decode(encode(np.zeros((0, 4), np.int32))).shape == (0, 4)


class NotARecord:
    pass


@dataclasses.dataclass
class Stranger:
    value: int = 0


@dataclasses.dataclass
class PolicyVersionTwin:
    lineage: int
    updates: int


PolicyVersionTwin.__name__ = "PolicyVersion"


@pytest.mark.parametrize("value", [
    NotARecord(), Stranger(), PolicyVersionTwin(0, 1), Stranger, {1, 2}, Counter(a=1), 2**70, "\ud800",
    np.array([object()]), np.array(["text"]), np.array([1], "M8[s]"), [NotARecord()], len,
], ids=repr)
def test_what_is_no_record_is_refused(value: Any) -> None:
    with pytest.raises(RecordError):
        encode(value)


def test_endless_nesting_is_refused() -> None:
    deep: Any = ()
    for _ in range(5000):
        deep = (deep,)
    with pytest.raises(RecordError):
        encode(deep)
    packed: Any = b"\x90"
    for _ in range(2000):
        packed = msgpack.packb(msgpack.ExtType(3, b"\x91" + packed))
    with pytest.raises(RecordError):
        decode(packed)


def record_bytes(name: Any, values: Any) -> bytes:
    return msgpack.packb(msgpack.ExtType(1, msgpack.packb([name, values])))


def array_bytes(*body: Any) -> bytes:
    return msgpack.packb(msgpack.ExtType(2, msgpack.packb(list(body), use_bin_type=True)))


@pytest.mark.parametrize(("data", "says"), [
    (record_bytes("Popen", ["ls"]), "unknown record"),
    (record_bytes("PolicyVersion", [1]), "1 fields, expected 2"),
    (record_bytes("JudgedItem", [1, "splendid", 0.0, True]), "splendid"),
    (record_bytes("Prompt", ["p", [], "5", "math", [], None, []]), "no messages"),
    (record_bytes(["PolicyVersion"], [1, 2]), "not an encoded record"),
    (record_bytes("PolicyVersion", 3), "not an encoded record"),
    (record_bytes("Segment", [1, 2, 3, 4, 5, 6]), "not an encoded record"),
    (array_bytes("|O", [1], b"\0" * 8), "dtype"),
    (array_bytes("(2,", [1], b"\0" * 8), "dtype"),
    (array_bytes("<i4", [2], b"\0" * 4), "not an encoded record"),
    (array_bytes("<i4", [2**80 % 2**63, 2**40], b"\0" * 4), "not an encoded record"),
    (array_bytes("<i4", "x", b"\0" * 4), "not an encoded record"),
    (array_bytes("<i4", [1]), "not an encoded record"),
    (msgpack.packb(msgpack.ExtType(9, b"")), "unknown extension"),
    (b"", "not an encoded record"),
    (b"\xc1", "not an encoded record"),
    (encode(VERSION) + b"\x00", "not an encoded record"),
    (b"\xa1\xff", "not an encoded record"),
])
def test_damaged_bytes_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(RecordError, match=says):
        decode(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_bent_bytes_decode_or_say_so(data: st.DataObject) -> None:
    source = bytearray(encode(data.draw(st.sampled_from(RECORDS))))
    for _ in range(data.draw(st.integers(1, 3))):
        source[data.draw(st.integers(0, len(source) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(source)))
    for bent in (bytes(source), bytes(source[:cut])):
        with suppress(RecordError):
            decode(bent)


@settings(max_examples=60, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.binary()
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text("ab"), inner),
    max_leaves=12,
))
def test_plain_data_round_trips(value: Any) -> None:
    assert same(decode(encode(value)), value)
