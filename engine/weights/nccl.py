"""Channel ``nccl``: broadcasts from the learner's GPU to those of the receivers, through cupy's NCCL.

cupy's bindings make communicators whose calls may block, so every call that meets other ranks runs in a thread of
its own while the caller watches. Once a communicator stands, ``ncclCommAbort`` ends whatever is stuck in it, kernels
included. While it is being made NCCL offers no safe way out: a thread that is stuck there is left behind and the
communicator is never used; the sender has heard from every rank just before, so this takes a rank that stops in
that very moment.

The sender's bytes lie in pinned host memory (``weights.kept_in=host``) and pass through two buckets on the GPU, each
with its events: while one is broadcast on one stream the next is copied in on another. With ``kept_in=device`` they
are broadcast from where they lie. Receivers let them arrive in their place. Nothing waits on the host until all is
queued.

Without a GPU the protocol around it is tested with communicators over sockets;
``python -m tools.check_gpu gpu.json --parts nccl`` runs it between two processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.errors import WeightChannelError
from engine.weights.communicator import Watch

CHANNEL = "nccl"
_LOOK_S = 0.001
_ABORT_S = 10.0


class NcclCommunicators:
    """Communicators of NCCL for this process' current GPU."""

    def __init__(self) -> None:
        """Load the bindings.

        Raises:
            WeightChannelError: there is no GPU, no cupy, or cupy finds no NCCL.
        """
        if not torch.cuda.is_available():
            raise WeightChannelError("weights.channel=nccl needs a GPU in this process: choose another channel")
        try:
            import cupy
            from cupy.cuda import nccl
        except ImportError as error:
            raise WeightChannelError(
                f"weights.channel=nccl needs cupy ({error}): pip install cupy-cuda13x, or the extra nccl"
            ) from error
        if not nccl.available:
            raise WeightChannelError("cupy finds no NCCL: pip install nvidia-nccl-cu13")
        self._nccl, self._cupy_version = nccl, str(cupy.__version__)
        self.device = torch.device("cuda", torch.cuda.current_device())

    def invite(self) -> str:
        """See Communicators: NCCL's unique id, in hexadecimal."""
        return bytes(part & 255 for part in self._nccl.get_unique_id()).hex()

    def join(self, meeting: str, rank: int, ranks: int, watch: Watch) -> NcclCommunicator:
        """See Communicators."""
        # Made before it is initialised, so that it stays in our hands while its initialisation blocks.
        group = self._nccl.NcclCommunicator.__new__(self._nccl.NcclCommunicator)
        identity = _unique_id(self._cupy_version, bytes.fromhex(meeting))
        _watched(lambda: group.__init__(ranks, identity, rank), self.device, watch)
        return NcclCommunicator(self._nccl, group, self.device)


def _unique_id(cupy_version: str, meeting: bytes) -> bytes | tuple[int, ...]:
    """The id in the form that this cupy takes: bytes, or before cupy 14 a tuple of signed numbers.

    Example:
        >>> _unique_id("13.6.0", bytes([1, 200]))
        (1, -56)
    """
    if int(cupy_version.partition(".")[0]) >= 14:
        return meeting
    return tuple(part - 256 if part > 127 else part for part in meeting)


class NcclCommunicator:
    """See Communicator."""

    def __init__(self, nccl: Any, group: Any, device: torch.device) -> None:
        self._nccl, self._group, self._device = nccl, group, device
        self._stream = torch.cuda.Stream(device)
        self._copies = torch.cuda.Stream(device)
        self._pair: list[Tensor] = []
        self._held: Sequence[Tensor] = ()
        self._aborted = False

    def send(self, buckets: Sequence[Tensor], watch: Watch) -> None:
        """See Communicator."""
        self._transfer(self._queue_sends, buckets, watch)

    def receive(self, buckets: Sequence[Tensor], watch: Watch) -> None:
        """See Communicator."""
        self._transfer(self._queue, buckets, watch)

    def abort(self) -> None:
        """See Communicator."""
        if self._aborted:
            return
        self._aborted = True

        def work() -> None:  # holds the memory until no kernel can write to it any more
            torch.cuda.set_device(self._device)
            self._group.abort()
            self._stream.synchronize()
            self._copies.synchronize()
            self._held = ()

        worker = threading.Thread(target=work, name="nccl-abort", daemon=True)
        worker.start()
        worker.join(_ABORT_S)

    def _transfer(self, queue: Callable[[Sequence[Tensor]], None], buckets: Sequence[Tensor], watch: Watch) -> None:
        """Queue the broadcasts and wait until the GPU has done them."""
        if self._aborted:
            raise WeightChannelError("this communicator has been aborted")
        self._held = buckets
        ready, done = torch.cuda.Event(), torch.cuda.Event()
        ready.record(torch.cuda.current_stream(self._device))

        def work() -> None:
            self._stream.wait_event(ready)  # the memory may still be read by what was queued before
            self._copies.wait_event(ready)
            queue(buckets)
            done.record(self._stream)

        try:
            _watched(work, self._device, watch)
            pause = threading.Event()  # which nobody sets: CUDA has no wait with a deadline
            while not done.query():
                self._group.check_async_error()
                watch()
                pause.wait(_LOOK_S)
            self._held = ()
        except (RuntimeError, LookupError) as error:  # cupy raises a KeyError for a status it has no name for
            self.abort()
            raise WeightChannelError(f"NCCL: {error}") from error
        except BaseException:
            self.abort()
            raise

    def _queue(self, buckets: Sequence[Tensor]) -> None:
        for bucket in buckets:
            self._broadcast(bucket)

    def _broadcast(self, bucket: Tensor) -> None:
        if self._aborted:  # by the thread that watches: the group may be freed at any moment
            raise WeightChannelError("this communicator has been aborted")
        address = bucket.data_ptr()
        self._group.broadcast(address, address, bucket.numel(), self._nccl.NCCL_UINT8, 0, self._stream.cuda_stream)

    def _queue_sends(self, buckets: Sequence[Tensor]) -> None:
        """From host memory by way of two buckets on the GPU; from the GPU itself as they are."""
        if all(bucket.device == self._device for bucket in buckets):
            self._queue(buckets)
            return
        most = max(bucket.numel() for bucket in buckets)
        if not self._pair or len(self._pair[0]) < most:
            self._pair = [torch.empty(most, dtype=torch.uint8, device=self._device) for _ in range(2)]
            self._copies.wait_stream(torch.cuda.current_stream(self._device))
        sent = [torch.cuda.Event(), torch.cuda.Event()]
        for index, bucket in enumerate(buckets):
            turn = index % 2
            place = self._pair[turn][: bucket.numel()]
            if index >= 2:
                self._copies.wait_event(sent[turn])
            with torch.cuda.stream(self._copies):
                place.copy_(bucket, non_blocking=True)
            self._stream.wait_stream(self._copies)
            self._broadcast(place)
            sent[turn].record(self._stream)


def _watched(work: Callable[[], object], device: torch.device, watch: Watch) -> None:
    """Run what may block in a thread of its own; where the watch raises, the thread is left behind.

    Raises:
        WeightChannelError: the work failed.
    """
    done = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            torch.cuda.set_device(device)  # of this thread
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            failed.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="nccl-call", daemon=True).start()
    while not done.wait(_LOOK_S):
        watch()
    if failed:
        raise WeightChannelError(f"NCCL: {failed[0]}") from failed[0]
