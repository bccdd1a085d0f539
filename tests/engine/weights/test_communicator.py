"""The communicator that stands in for NCCL in tests does what the protocol asks of one."""

import inspect
import threading

import pytest
import torch

from engine.errors import WeightChannelError
from engine.weights.communicator import Communicator, Communicators
from engine.weights.nccl import NcclCommunicator, NcclCommunicators
from tests.engine.weights.socket_communicators import SocketCommunicator, SocketCommunicators


def meet(makers, watch=lambda: None):
    """Communicators of all ranks of one meeting."""
    meeting, found = makers[0].invite(), {}

    def join(rank):
        found[rank] = makers[rank].join(meeting, rank, len(makers), watch)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(len(makers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[rank] for rank in range(len(makers))]


def test_what_rank_0_sends_everybody_receives(tmp_path):
    ranks = meet([SocketCommunicators() for _ in range(3)])
    sent = [torch.randint(0, 256, (size,), dtype=torch.uint8) for size in (200_000, 64)]
    came = [[torch.zeros_like(bucket) for bucket in sent] for _ in ranks[1:]]
    threads = [threading.Thread(target=rank.receive, args=(buckets, lambda: None))
               for rank, buckets in zip(ranks[1:], came, strict=True)]
    for thread in threads:
        thread.start()
    ranks[0].send(sent, lambda: None)
    for thread in threads:
        thread.join(20)
    assert all(torch.equal(a, b) for buckets in came for a, b in zip(buckets, sent, strict=True))
    for rank in ranks:
        rank.abort()
        rank.abort()


def test_a_lost_rank_ends_the_transfer(tmp_path):
    sender, receiver = meet([SocketCommunicators() for _ in range(2)])
    receiver.abort()
    with pytest.raises(WeightChannelError, match="a rank is lost"):
        sender.send([torch.zeros(2**24, dtype=torch.uint8)], lambda: None)


def test_the_watch_ends_a_wait(tmp_path):
    def watch():
        raise WeightChannelError("too late")

    with pytest.raises(WeightChannelError, match="too late"):
        SocketCommunicators().join("nobody", 1, 2, watch)


@pytest.mark.parametrize("made", [NcclCommunicator, SocketCommunicator])
def test_they_answer_the_protocol(made):
    for name in ("send", "receive", "abort"):
        asked, given = (inspect.signature(getattr(kind, name)).parameters for kind in (Communicator, made))
        assert list(asked) == list(given)


@pytest.mark.parametrize("made", [NcclCommunicators, SocketCommunicators])
def test_so_do_their_makers(made):
    for name in ("invite", "join"):
        asked, given = (inspect.signature(getattr(kind, name)).parameters for kind in (Communicators, made))
        assert list(asked) == list(given)
