"""The ranks of a learner that computes in several processes: how they meet, and what they tell each other.

Rank 0 opens a store on a free port of the address it is given, the others find it there; from then on they
speak in collectives, which every rank makes in the same order. A collective has a deadline: a rank that is
dead or late is an error with a name on all the others, never a silence.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from engine.errors import RankError

LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915
"""Linux: the address of an interface."""


class Ranks:
    """One process's place among the processes of a learner."""

    def __init__(self, rank: int = 0, size: int = 1, mesh: Any = None) -> None:
        """See :func:`join`.

        Args:
            rank: 0 publishes and answers.
            size: processes.
            mesh: torch's device mesh over all of them; None where there is one.
        """
        self.rank = rank
        self.size = size
        self.mesh = mesh
        self.waited_s = 0.0
        """Seconds inside collectives since the last :meth:`lap`; counted where they block, on CPUs."""

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that publishes and answers."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """What every rank gives, by rank; plain JSON data, small. A collective."""
        if self.alone:
            return [value]
        data = json.dumps(value).encode()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(data)]))
        longest = max(int(size) for size in sizes)
        rows = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(rows, torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8))
        return [json.loads(row.numpy().tobytes()) for row in rows]

    def lap(self) -> float:
        """Seconds inside collectives since the last call."""
        waited, self.waited_s = self.waited_s, 0.0
        return waited

    @contextmanager
    def collective(self, what: str) -> Iterator[None]:
        """Name whatever a dead or late rank does to the others.

        Raises:
            RankError: a collective failed or passed its deadline.
        """
        try:
            yield
        except RuntimeError as error:
            if self.alone or not _of_a_collective(error):
                raise
            raise RankError(
                f"rank {self.rank} of {self.size} lost the others during {what}: one of them died, or was later "
                f"than learning.rank_deadline_s ({error})"
            ) from error

    def leave(self) -> None:
        """Give the connections back; twice is harmless."""
        if not self.alone and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Ranks()
"""The learner that is one process."""


def _of_a_collective(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def interface_towards(host: str) -> str:
    """Name of the network interface by whose own address this machine reaches another; empty: by none such."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 1))  # sends nothing
        except OSError:
            return ""
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            try:
                told = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # it has no address
            if told[20:24] == own:
                return name
    return ""


class Store:
    """The meeting point, kept by rank 0 as long as the ranks live."""

    def __init__(self, host: str, size: int, deadline_s: float) -> None:
        """Listen on a free port of one address of this machine, and on no other.

        Raises:
            RankError: the address is not this machine's.
        """
        listener = socket.socket()
        try:
            listener.bind((host, 0))
            listener.listen()
        except OSError as error:
            listener.close()
            raise RankError(f"rank 0 cannot listen on {host} ({error}): start Ray there with an address of "
                            "this machine (ray start --node-ip-address)") from error
        port = listener.getsockname()[1]
        self.address = f"{host}:{port}"
        """host:port that the other ranks are told."""
        self.store = dist.TCPStore(host, port, size, True, timedelta(seconds=deadline_s), False,
                                   master_listen_fd=listener.detach())


def join(address: str, rank: int, size: int, deadline_s: float, device: str = "cpu",
         store: Store | None = None) -> Ranks:
    """Meet the others; returns when all are there.

    Args:
        address: of the :class:`Store`.
        rank: this process's.
        size: processes.
        deadline_s: seconds any collective may take, this one included.
        device: kind of device that computes, ``cpu`` or ``cuda``.
        store: rank 0's own; None on the others.

    Raises:
        RankError: not all of them came in time.
    """
    from torch.distributed.device_mesh import init_device_mesh

    host, _, port = address.rpartition(":")
    if interface := interface_towards(host):
        # Gloo would listen wherever the host's name leads, which on many machines is 127.0.1.1.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    limit = timedelta(seconds=deadline_s)
    with Ranks(rank, size).collective("their meeting"):
        meeting = store.store if store is not None else dist.TCPStore(host, int(port), size, False, limit, False)
        # Small facts travel between CPUs whatever computes.
        backend = "gloo" if device == "cpu" else f"cpu:gloo,{device}:nccl"
        dist.init_process_group(backend, store=meeting, rank=rank, world_size=size, timeout=limit)
        # A mesh would choose a GPU by rank, but leaves one alone that is in use already, as by ``torch_device``: the
        # first that this process sees, which under Ray is its own.
        return Ranks(rank, size, init_device_mesh(device, (size,)))
