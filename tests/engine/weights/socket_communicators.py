"""Communicators over sockets of this machine: broadcasts that work between threads and between processes."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from contextlib import suppress

import torch

from engine.errors import WeightChannelError

LOOK_S = 0.005
PIECE = 2**16


class SocketCommunicators:
    """``amid`` is called by a receiving rank after each of its buckets, with the bucket and its index."""

    def __init__(self, amid: Callable[..., None] | None = None) -> None:
        self.device = torch.device("cpu")
        self.amid = amid or (lambda bucket, index: None)
        self.joined: list[tuple[str, int]] = []
        """Meetings, and how many ranks they had."""

    def invite(self) -> str:
        return secrets.token_hex(16)

    def join(self, meeting, rank, ranks, watch):
        self.joined.append((meeting, ranks))
        name = f"\0perilune-test-{meeting}"  # of Linux' abstract names, which leave no file
        peers = self._await(name, ranks - 1, watch) if rank == 0 else [self._reach(name, watch)]
        return SocketCommunicator(peers, self.amid)

    def _await(self, name, count, watch):
        peers = []
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
            listener.listen()
            listener.settimeout(LOOK_S)
            try:
                while len(peers) < count:
                    watch()
                    with suppress(TimeoutError):
                        peers.append(listener.accept()[0])
            finally:
                if len(peers) < count:
                    for peer in peers:
                        peer.close()
        return peers

    def _reach(self, name, watch):
        peer = socket.socket(socket.AF_UNIX)
        pause = socket.socketpair()[0]
        pause.settimeout(LOOK_S)
        with pause:
            while True:
                watch()
                try:
                    peer.connect(name)
                    return peer
                except OSError:
                    with suppress(OSError):
                        pause.recv(1)


class SocketCommunicator:
    def __init__(self, peers, amid):
        self._peers, self._amid = peers, amid
        for peer in peers:
            peer.settimeout(LOOK_S)

    def send(self, buckets, watch):
        for bucket in buckets:
            data = memoryview(bucket.numpy())
            for peer in self._peers:
                self._move(lambda at, data=data, peer=peer: peer.send(data[at : at + PIECE]), len(data), watch)

    def receive(self, buckets, watch):
        (peer,) = self._peers
        for index, bucket in enumerate(buckets):
            data = memoryview(bucket.numpy())
            self._move(lambda at, data=data: peer.recv_into(data[at : at + PIECE]), len(data), watch)
            self._amid(bucket, index)

    def _move(self, step, size, watch):
        done = 0
        while done < size:
            watch()
            try:
                count = step(done)
            except TimeoutError:
                continue
            except OSError as error:
                raise WeightChannelError(f"a rank is lost: {error}") from error
            if not count:
                raise WeightChannelError("a rank is lost")
            done += count

    def abort(self):
        for peer in self._peers:
            peer.close()
