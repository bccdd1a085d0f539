"""Who did what, when: spans measured where the work is done, and the file that shows them all.

Code deep inside an actor says ``with span("forward"):``; the actor's shell collects what was said during
one call with ``recording()`` and sends it along with its answer, so tracing costs no call of its own.
Outside ``recording()`` a span is not kept.

``trace.json`` is an array of Chrome trace events, one a line, which Perfetto (ui.perfetto.dev) and
chrome://tracing open. It grows by appended lines: what a kill leaves behind lacks its closing bracket,
which both viewers and :func:`read_trace` accept.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from engine.errors import RunFolderError
from engine.records.span import Span

P = ParamSpec("P")
R = TypeVar("R")

TOUCH_S = 0.001
"""Two spans of one kind with less than this between them are one."""
FULL = "the trace is full: raise run.max_trace_mib"
"""Name of the event after which a life adds nothing."""
_FLUSH_S = 0.5
_TAIL = b"\n]\n"
_ORIGIN = time.time() - time.perf_counter()
_recorded: ContextVar[list[Span] | None] = ContextVar("recorded", default=None)


def now() -> float:
    """Seconds of the wall clock as it stood when this process began, advanced monotonically."""
    return _ORIGIN + time.perf_counter()


@contextmanager
def recording(wanted: bool = True) -> Iterator[list[Span]]:
    """Collect the spans of everything that happens inside; an outer recording does not see them.

    Example:
        >>> with recording() as spans, span("decode", steps=1):
        ...     pass
        >>> [one.kind for one in spans]
        ['decode']
    """
    spans: list[Span] = []
    token = _recorded.set(spans if wanted else None)
    try:
        yield spans
    finally:
        _recorded.reset(token)


@contextmanager
def span(kind: str, **amounts: float) -> Iterator[None]:
    """One piece of work; kept where somebody is recording."""
    spans = _recorded.get()
    if spans is None:
        yield
        return
    start = now()
    try:
        yield
    finally:
        spans.append(Span(kind, start, now(), amounts))


def spanned(kind: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Every call of a function is a span."""

    def around(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def inner(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(kind):
                return function(*args, **kwargs)

        return inner

    return around


def since(start: float, kind: str, **amounts: float) -> None:
    """Keep what went on from ``start`` until now, but for what was recorded meanwhile.

    Where it touches an earlier span of its kind, that one grows: a thousand decode steps in a row are one
    span with ``steps=1000``.
    """
    spans = _recorded.get()
    if spans is None:
        return
    stop = now()
    if spans:
        last = spans[-1]
        start = max(start, last.stop)
        if last.kind == kind and start - last.stop < TOUCH_S:
            grown = {name: last.amounts.get(name, 0) + value for name, value in amounts.items()}
            spans[-1] = Span(kind, last.start, stop, grown)
            return
    spans.append(Span(kind, start, stop, amounts))


class TraceWriter:
    """Appends events to ``trace.json``; one lane for each actor.

    Args:
        path: the file; one that an earlier life left is continued.
        max_bytes: where it stops growing, with a last event that says so.

    Raises:
        RunFolderError: it cannot be written.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._pending: list[str] = []
        self._flushed = time.monotonic()
        self._closed = self.full = False
        try:
            self._size = _reopen(path)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be written ({error}): free the disk or give it back") from error
        # An actor of a later life goes on in the lane of its name.
        self._lanes = {one["args"]["name"]: one["tid"] for one in read_trace(path) if one["name"] == "thread_name"}

    def lane(self, name: str) -> int:
        """Number of an actor's lane; a new one is named in the file."""
        found = self._lanes.get(name)
        if found is None:
            found = self._lanes[name] = len(self._lanes) + 1
            for event, args in (("thread_name", {"name": name}), ("thread_sort_index", {"sort_index": found})):
                self._add({"ph": "M", "name": event, "pid": 1, "tid": found, "args": args})
        return found

    def slice(self, lane: str, name: str, start: float, stop: float, args: Mapping[str, Any]) -> None:
        """Something that took a while. Slices of one lane follow each other or lie inside each other."""
        first = _micros(start)
        self._add({"ph": "X", "name": name, "pid": 1, "tid": self.lane(lane), "ts": first,
                   "dur": _micros(stop) - first, "args": args})

    def moment(self, lane: str, name: str, at: float, args: Mapping[str, Any]) -> None:
        """Something that took no time."""
        self._add({"ph": "i", "s": "g", "name": name, "pid": 1, "tid": self.lane(lane), "ts": _micros(at),
                   "args": args})

    def arrow(self, lane: str, trajectory_id: int, at: float, phase: str) -> None:
        """A point that a trajectory passes: ``s`` where it starts, ``t`` on its way, ``f`` where it ends."""
        self._add({"ph": phase, "bp": "e", "id": trajectory_id, "name": "trajectory", "cat": "trajectory",
                   "pid": 1, "tid": self.lane(lane), "ts": _micros(at)})

    def _add(self, event: Mapping[str, Any]) -> None:
        if self.full or self._closed:
            return
        line = json.dumps(event, separators=(",", ":"))
        if self._size + len(line) > self._max_bytes:
            self.full = True
            line = json.dumps({"ph": "i", "s": "g", "name": FULL, "pid": 1, "tid": 0, "ts": event.get("ts", 0)})
        self._size += len(line) + 2
        self._pending.append(line)
        if self.full or time.monotonic() - self._flushed > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Hand what was added to the system, so that a kill cannot take it.

        Raises:
            RunFolderError: the disk refuses.
        """
        self._flushed = time.monotonic()
        if self._pending:
            self._append("".join(f",\n{line}" for line in self._pending).encode())
            self._pending.clear()

    def _append(self, data: bytes) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise RunFolderError(f"{self._path} cannot grow ({error}): free the disk, or run.trace=false") from error

    def close(self) -> None:
        """Close the array; twice is harmless."""
        self.flush()
        if not self._closed:
            self._closed = True
            self._append(_TAIL)


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)


def _reopen(path: Path) -> int:
    """Begin the file, or take off its end and whatever a kill tore; its size in bytes."""
    if not path.exists() or not path.stat().st_size:
        head = {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "perilune"}}
        path.write_text("[\n" + json.dumps(head, separators=(",", ":")))
        return path.stat().st_size
    data = path.read_bytes()
    end = len(data)
    while end > 0:
        first = data.rfind(b"\n", 0, end) + 1
        line = data[first:end].rstrip(b",")
        if _is_event(line):
            os.truncate(path, first + len(line))
            return first + len(line)
        end = first - 1
    path.unlink()
    return _reopen(path)


def _is_event(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def is_full(path: Path) -> bool:
    """Whether a life of the run stopped adding to its trace, so that what came later is not in it."""
    return path.exists() and FULL.encode() in path.read_bytes()


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Events of a trace, whole or cut off in the middle of a line.

    Raises:
        RunFolderError: there is none.
    """
    if not path.exists():
        raise RunFolderError(f"{path} does not exist: run with run.trace=true")
    events = []
    for line in path.read_bytes().splitlines():
        text = line.strip().rstrip(b",")
        if text not in (b"[", b"]", b"") and _is_event(text):
            events.append(json.loads(text))
    return events
