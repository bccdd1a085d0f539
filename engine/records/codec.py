"""Records to msgpack and back: no pickle on disk, no code in data.

A record is encoded as [class name, field values]; numpy arrays of plain numbers as (dtype, shape, bytes).
Only classes of this room decode, so a file can not name anything else.
"""

from __future__ import annotations

import dataclasses
import re
from enum import StrEnum
from functools import cache, partial
from typing import Any, get_type_hints

import msgpack
import numpy as np

from engine.errors import RecordError
from engine.records import arrival, event, manifest, prompt, span, trajectory, update, version, work

_RECORD, _ARRAY, _TUPLE = 1, 2, 3
_MAX_DEPTH = 64
"""Records, tuples and arrays inside each other; without a limit, bent bytes could exhaust the C stack."""
_PLAIN_DTYPE = re.compile(r"[<>|][biufc]\d+")
_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for module in (arrival, event, manifest, prompt, span, trajectory, update, version, work)
    for cls in vars(module).values()
    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__
}


@cache
def _enum_fields(cls: type) -> dict[str, type[StrEnum]]:
    enums = {}
    for name, hint in get_type_hints(cls).items():
        options = [hint, *getattr(hint, "__args__", ())]
        for option in options:
            if isinstance(option, type) and issubclass(option, StrEnum):
                enums[name] = option
    return enums


def _pack(value: Any, depth: int) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        if _CLASSES.get(cls.__name__) is not cls:
            raise RecordError(f"{cls.__name__} is not a record: only engine.records may be encoded")
        fields = [getattr(value, field.name) for field in dataclasses.fields(cls)]
        return msgpack.ExtType(_RECORD, _packb([cls.__name__, fields], depth))
    if isinstance(value, np.ndarray):
        if not _PLAIN_DTYPE.fullmatch(value.dtype.str):
            raise RecordError(f"cannot encode an array of {value.dtype}: records hold plain numbers")
        body = [value.dtype.str, list(value.shape), np.ascontiguousarray(value).tobytes()]
        return msgpack.ExtType(_ARRAY, msgpack.packb(body, use_bin_type=True))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return msgpack.ExtType(_TUPLE, _packb(list(value), depth))
    raise RecordError(f"cannot encode a {type(value).__name__}: records hold plain data and arrays")


def _packb(value: Any, depth: int) -> bytes:
    if depth > _MAX_DEPTH:
        raise RecordError(f"cannot encode more than {_MAX_DEPTH} values inside each other")
    default = partial(_pack, depth=depth + 1)
    return msgpack.packb(value, default=default, use_bin_type=True, strict_types=True)


def _unpack(code: int, data: bytes, depth: int) -> Any:
    if code == _TUPLE:
        return tuple(_unpackb(data, depth))
    if code == _ARRAY:
        dtype, shape, raw = msgpack.unpackb(data, raw=False)
        if not isinstance(dtype, str) or not _PLAIN_DTYPE.fullmatch(dtype):
            raise RecordError(f"array of dtype {dtype!r}: expected plain numbers")
        return np.frombuffer(raw, dtype=np.dtype(dtype)).reshape(shape).copy()
    if code == _RECORD:
        name, values = _unpackb(data, depth)
        cls = _CLASSES.get(name)
        if cls is None:
            raise RecordError(f"unknown record {name!r}: written by another format version?")
        names = [field.name for field in dataclasses.fields(cls)]
        if len(names) != len(values):
            raise RecordError(f"record {name} has {len(values)} fields, expected {len(names)}")
        arguments = dict(zip(names, values, strict=True))
        for field_name, enum in _enum_fields(cls).items():
            if arguments[field_name] is not None:
                arguments[field_name] = enum(arguments[field_name])
        return cls(**arguments)
    raise RecordError(f"unknown extension code {code}")


def _unpackb(data: bytes, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise RecordError(f"more than {_MAX_DEPTH} values inside each other: not an encoded record")
    hook = partial(_unpack, depth=depth + 1)
    return msgpack.unpackb(data, ext_hook=hook, raw=False, strict_map_key=False)


def encode(value: Any) -> bytes:
    """A record, or plain containers of records, as msgpack bytes.

    Raises:
        RecordError: the value holds something that is neither plain data, an array nor a record.
    """
    try:
        return _packb(value, 0)
    except RecordError:
        raise
    except (ValueError, OverflowError) as error:
        raise RecordError(f"cannot encode a {type(value).__name__}: {error}") from error


def decode(data: bytes) -> Any:
    """The inverse of :func:`encode`; arrays come back owned and writable.

    Raises:
        RecordError: the bytes are not what ``encode`` writes.
    """
    try:
        return _unpackb(data, 0)
    except RecordError:
        raise
    except (msgpack.UnpackException, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise RecordError(f"not an encoded record: {error}") from error
