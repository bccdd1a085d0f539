"""What a broadcast channel asks of the library that moves its bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Watch = Callable[[], None]
"""Called again and again by whoever waits; raises when there is nothing left to wait for."""


class Communicator(Protocol):
    """A fixed set of ranks. Rank 0 sends, the others receive; all see the same buckets in the same order."""

    def send(self, buckets: Sequence[Tensor], watch: Watch) -> None:
        """Broadcast from rank 0; returns once the memory may be written again.

        Args:
            buckets: [bytes] uint8 each, on the device of the communicator or on the host.
            watch: see :data:`Watch`.

        Raises:
            WeightChannelError: a rank is lost or the library failed; the communicator is of no more use.
        """

    def receive(self, buckets: Sequence[Tensor], watch: Watch) -> None:
        """Fill the buckets, on the device of the communicator; returns once they are whole.

        Raises:
            WeightChannelError: as for :meth:`send`.
        """

    def abort(self) -> None:
        """End it without waiting for anybody, also in the middle of a transfer; twice is harmless."""


class Communicators(Protocol):
    """Makes communicators."""

    device: torch.device
    """Where received bytes lie."""

    def invite(self) -> str:
        """The name of a new meeting, made by rank 0: printable, without spaces."""

    def join(self, meeting: str, rank: int, ranks: int, watch: Watch) -> Communicator:
        """Meet the other ranks; returns when all are there.

        Raises:
            WeightChannelError: they did not meet.
        """
