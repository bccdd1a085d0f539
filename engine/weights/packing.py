"""The run of bytes of one version, written from its first byte to its last, bucket after bucket.

Each tensor is fetched when its first byte is due and let go with its last, so that weights which must be gathered
are never all here at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from engine.records.manifest import TensorEntry
from engine.weights.layout import in_layout_order, torch_dtype


def bucket_ranges(num_bytes: int, bucket_mib: int) -> list[tuple[int, int]]:
    """(offset, bytes) of each bucket of a run.

    Example:
        >>> bucket_ranges(2**20 + 64, 1)
        [(0, 1048576), (1048576, 64)]
    """
    step = bucket_mib * 2**20
    return [(offset, min(step, num_bytes - offset)) for offset in range(0, num_bytes, step)]


class Packer:
    """Writes the run in order, casting on the way, into memory on any device."""

    def __init__(self, entries: tuple[TensorEntry, ...], tensors: Mapping[str, Tensor]) -> None:
        self._sources: Iterator[tuple[TensorEntry, Tensor]] = in_layout_order(entries, tensors)
        self._entry: TensorEntry | None = None
        self._values: Tensor | None = None
        self._at = 0
        self._next()

    def fill(self, target: Tensor) -> None:
        """Write the next bytes of the run, zeros between tensors and behind the last one.

        Args:
            target: [bytes] uint8, a multiple of the layout's alignment.
        """
        first, done = self._at, 0
        while done < len(target):
            if self._entry is None or self._values is None:
                target[done:].zero_()
                done = len(target)
            elif first + done < self._entry.offset:
                gap = min(self._entry.offset - first, len(target))
                target[done:gap].zero_()
                done = gap
            else:
                done = self._copy(target, done)
        self._at = first + len(target)

    def _copy(self, target: Tensor, done: int) -> int:
        """Write what fits of the current tensor; returns how far ``target`` is written."""
        entry, values = self._entry, self._values
        assert entry is not None
        assert values is not None
        dtype = torch_dtype(entry.dtype)
        begin = self._at + done - entry.offset
        size = min(entry.num_bytes - begin, len(target) - done)
        part = values[begin // dtype.itemsize : (begin + size) // dtype.itemsize]
        target[done : done + size].view(dtype).copy_(part)
        if begin + size == entry.num_bytes:
            self._next()
        return done + size

    def _next(self) -> None:
        """Let go of the current tensor and fetch the next one that has bytes."""
        self._entry = self._values = None
        for entry, tensor in self._sources:
            if entry.num_bytes:
                self._entry, self._values = entry, tensor.detach().contiguous().view(-1)
                return
