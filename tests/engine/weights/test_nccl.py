"""NCCL's communicators on a made-up GPU: what is queued on which stream, in which order, and what ends a wait."""

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
import torch

from engine.errors import WeightChannelError
from engine.weights import nccl as channel
from engine.weights.nccl import NcclCommunicator, NcclCommunicators, _unique_id


class Stream:
    def __init__(self, name, log):
        self.name, self.log, self.cuda_stream = name, log, name

    def wait_event(self, event):
        self.log.append((self.name, "waits for", event.name))

    def wait_stream(self, other):
        self.log.append((self.name, "waits for", other.name))

    def synchronize(self):
        self.log.append((self.name, "synchronized"))

    def __enter__(self):
        self.log.append((self.name, "copies"))

    def __exit__(self, *_):
        pass


class Gpu:
    """Stands for torch within the module: memory of the host, streams that only write down."""

    Tensor, uint8 = torch.Tensor, torch.uint8

    def __init__(self, log):
        self.log, self.finished, names = log, True, iter(["sending", "copying"])
        events = iter(f"event {number}" for number in range(1000))
        gpu = self

        class Event:
            def __init__(self):
                self.name = next(events)

            def record(self, stream):
                log.append((stream.name, "records", self.name))

            def query(self):
                return gpu.finished

        current = Stream("current", log)
        self.cuda = SimpleNamespace(
            Stream=lambda device: Stream(next(names), log), Event=Event, current_stream=lambda device: current,
            set_device=lambda device: None, stream=lambda stream: stream, is_available=lambda: True,
            current_device=lambda: 0,
        )

    @staticmethod
    def device(kind, index):
        return torch.device("meta")  # so that memory of the host is elsewhere

    @staticmethod
    def empty(size, dtype, device):
        return torch.empty(size, dtype=dtype)


class Group:
    def __init__(self, log):
        self.log, self.aborted, self.blocked, self.error = log, threading.Event(), False, None

    def broadcast(self, source, target, size, kind, root, stream):
        assert source == target
        assert (kind, root) == ("uint8", 0)
        self.log.append((stream, "broadcasts", size))
        if self.blocked:
            assert self.aborted.wait(20)
            raise RuntimeError("aborted")

    def check_async_error(self):
        if self.error:
            raise self.error

    def abort(self):
        self.log.append(("group", "aborts"))
        self.aborted.set()


@pytest.fixture
def log():
    return []


@pytest.fixture
def gpu(monkeypatch, log):
    gpu = Gpu(log)
    monkeypatch.setattr(channel, "torch", gpu)
    return gpu


@pytest.fixture
def group(log):
    return Group(log)


@pytest.fixture
def made(gpu, group):
    return NcclCommunicator(SimpleNamespace(NCCL_UINT8="uint8"), group, torch.device("meta"))


def buckets(*sizes):
    return [torch.zeros(size, dtype=torch.uint8) for size in sizes]


def test_a_receiver_queues_every_bucket_after_what_came_before(made, log):
    made.receive(buckets(64, 128), lambda: None)
    assert log[:3] == [("current", "records", "event 0"), ("sending", "waits for", "event 0"),
                       ("copying", "waits for", "event 0")]
    assert log[3:] == [("sending", "broadcasts", 64), ("sending", "broadcasts", 128), ("sending", "records", "event 1")]


def test_buckets_of_the_host_pass_through_two_that_take_turns(made, log):
    made.send(buckets(128, 128, 128, 64), lambda: None)
    work = log[log.index(("copying", "waits for", "current")) + 1 :]
    one = [("copying", "copies"), ("sending", "waits for", "copying"), ("sending", "broadcasts", 128)]
    first, second = "event 2", "event 3"
    assert work[:4] == [*one, ("sending", "records", first)]
    assert work[4:8] == [*one, ("sending", "records", second)]
    assert work[8:13] == [("copying", "waits for", first), *one, ("sending", "records", first)]
    assert work[13] == ("copying", "waits for", second)
    assert ("sending", "broadcasts", 64) in work[14:]
    assert [len(place) for place in made._pair] == [128, 128]


def test_buckets_of_the_gpu_are_sent_from_where_they_lie(gpu, group, log):
    made = NcclCommunicator(SimpleNamespace(NCCL_UINT8="uint8"), group, torch.device("cpu"))
    made.send(buckets(64, 64), lambda: None)
    assert not any("copies" in line for line in log)
    assert made._pair == []


def late(after):
    calls = iter(range(10**6))

    def watch():
        if next(calls) >= after:
            raise WeightChannelError("too late")

    return watch


def test_a_gpu_that_does_not_finish_is_aborted_when_the_watch_ends_the_wait(gpu, made, log):
    gpu.finished = False
    with pytest.raises(WeightChannelError, match="too late"):
        made.receive(buckets(64), late(3))
    assert ("group", "aborts") in log
    assert log.index(("group", "aborts")) < log.index(("sending", "synchronized"))
    with pytest.raises(WeightChannelError, match="aborted"):
        made.receive(buckets(64), lambda: None)
    made.abort()
    assert log.count(("group", "aborts")) == 1


def test_a_call_that_blocks_is_aborted_too(group, made, log):
    group.blocked = True
    with pytest.raises(WeightChannelError, match="too late"):
        made.send(buckets(64), late(2))
    assert group.aborted.is_set()


def test_what_is_aborted_while_it_is_being_queued_is_queued_no_further(group, made, log):
    broadcast = group.broadcast

    def first(*arguments):
        broadcast(*arguments)
        made.abort()

    group.broadcast = first
    with pytest.raises(WeightChannelError, match="aborted"):
        made.receive(buckets(64, 128), lambda: None)
    assert [line[2] for line in log if "broadcasts" in line] == [64]


@pytest.mark.parametrize(("error", "said"), [(RuntimeError("NCCL_ERROR_SYSTEM_ERROR"), "NCCL_ERROR_SYSTEM_ERROR"),
                                             (KeyError(6), "6")], ids=["named", "without a name"])
def test_an_error_of_nccl_is_named_and_aborts(gpu, group, made, log, error, said):
    gpu.finished, group.error = False, error
    with pytest.raises(WeightChannelError, match=f"NCCL: {said}"):
        made.receive(buckets(64), lambda: None)
    assert ("group", "aborts") in log


class Bindings(ModuleType):
    """cupy.cuda.nccl, as far as it is used."""

    NCCL_UINT8 = "uint8"

    class NcclCommunicator:
        made = ()

        def __init__(self, ranks, identity, rank):
            type(self).made = (ranks, identity, rank)
            if rank == 7:
                raise RuntimeError("NCCL_ERROR_INVALID_USAGE")
            if rank == 8:
                threading.Event().wait(0.5)

        def abort(self):
            pass


@pytest.fixture
def cupy(monkeypatch):
    package, cuda, nccl = ModuleType("cupy"), ModuleType("cupy.cuda"), Bindings("cupy.cuda.nccl")
    package.__version__, package.cuda, cuda.nccl = "14.2.0", cuda, nccl
    nccl.available, nccl.get_unique_id = True, lambda: bytes([1, 200] * 64)
    for name, module in (("cupy", package), ("cupy.cuda", cuda), ("cupy.cuda.nccl", nccl)):
        monkeypatch.setitem(sys.modules, name, module)
    return nccl


def test_ranks_join_by_the_id_of_the_invitation(gpu, cupy):
    communicators = NcclCommunicators()
    meeting = communicators.invite()
    assert meeting == "01c8" * 64
    assert isinstance(communicators.join(meeting, 2, 5, lambda: None), NcclCommunicator)
    assert cupy.NcclCommunicator.made == (5, bytes([1, 200] * 64), 2)


def test_a_meeting_that_fails_or_does_not_end_is_named(gpu, cupy):
    communicators = NcclCommunicators()
    with pytest.raises(WeightChannelError, match="NCCL: NCCL_ERROR_INVALID_USAGE"):
        communicators.join(communicators.invite(), 7, 8, lambda: None)
    with pytest.raises(WeightChannelError, match="too late"):
        communicators.join(communicators.invite(), 8, 9, late(2))


def test_what_is_missing_is_named(gpu, cupy, monkeypatch):
    cupy.available = False
    with pytest.raises(WeightChannelError, match="cupy finds no NCCL"):
        NcclCommunicators()
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(WeightChannelError, match=r"needs cupy .* pip install cupy-cuda13x"):
        NcclCommunicators()
    gpu.cuda.is_available = lambda: False
    with pytest.raises(WeightChannelError, match="needs a GPU"):
        NcclCommunicators()


def test_cupy_before_14_wants_signed_numbers():
    assert _unique_id("14.0.0", b"\x01\xc8") == b"\x01\xc8"
    assert _unique_id("13.6.0", b"\x01\xc8") == (1, -56)
