"""Memory of a receiver's own for the versions it serves and receives, used again once nothing views it."""

from __future__ import annotations

import mmap
import weakref

import torch
from torch import Tensor


class _Staging:
    """Private memory for one version, lent out and free again when its last tensor is gone."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._lease: weakref.ref[memoryview] | None = None

    @property
    def free(self) -> bool:
        return self._lease is None or self._lease() is None

    def lend(self) -> tuple[memoryview, Tensor]:
        # The tensor's storage keeps this memoryview alive, so its death is the end of every view.
        lease = memoryview(self._memory)
        self._lease = weakref.ref(lease)
        return lease, torch.frombuffer(lease, dtype=torch.uint8)


class StagingPool:
    """As many pieces of memory as are in use, and the one that was lent last."""

    def __init__(self) -> None:
        self._stagings: list[_Staging] = []

    def lend(self, num_bytes: int) -> tuple[memoryview, Tensor]:
        """Memory that no living tensor views: as bytes to fill, and [num_bytes] uint8.

        Whatever is held of the tensor, or of views of it, keeps these bytes from being lent again.
        """
        fitting = [s for s in self._stagings if s.free and s.num_bytes == num_bytes]
        chosen = fitting[0] if fitting else _Staging(num_bytes)
        self._stagings = [s for s in self._stagings if not s.free] + [chosen]
        return chosen.lend()

    def clear(self) -> None:
        """Forget all of it; tensors that are still held keep theirs."""
        self._stagings.clear()

    def __len__(self) -> int:
        return len(self._stagings)
