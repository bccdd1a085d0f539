"""A weight update through each channel that needs no GPU, in units of one copy of the bytes.

Timed are ``publish`` and ``receive``, one after the other, as a generator waits for them: with both ends in this
process, and for ``object_store`` also over a private Ray with the receiver in a process of its own.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from itertools import count
from typing import Any

import torch

from actors.cluster import ask
from actors.object_store import RayStore
from actors.ray_cluster import RayCluster
from engine.config.cluster import ClusterConfig, ClusterKind, WeightChannelKind, WeightsConfig
from engine.models.policy import published_tensors
from engine.records.manifest import Manifest
from engine.records.version import PolicyVersion
from engine.weights.channel import WeightReceiver, WeightSender, open_receiver, open_sender
from engine.weights.layout import plan_entries, total_bytes
from engine.weights.object_store import LocalStore, ObjectStoreReceiver, ObjectStoreSender
from tools.bench.subject import Subject
from tools.bench.timing import seconds_of, spread, take_turns

OBJECTS = WeightsConfig(channel=WeightChannelKind.object_store)
DEADLINE_S = 120.0
Take = Callable[[Manifest], str]
"""Receives a version and gives the digest it verified."""


class Reading:
    """A generator's end in an actor of its own."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._receiver = ObjectStoreReceiver(OBJECTS, RayStore(OBJECTS.deadline_s))

    def receive(self, manifest: Manifest) -> str:
        """The digest that it verified."""
        return self._receiver.receive(manifest).digest

    def close(self) -> None:
        """See WeightReceiver."""
        self._receiver.close()


def taking(receiver: WeightReceiver) -> Take:
    """Receives in this process."""
    return lambda manifest: receiver.receive(manifest).digest


def ends(stack: ExitStack, num_bytes: int, threads: int) -> dict[str, tuple[WeightSender, Take]]:
    """Sender and receiver of each way, which the stack closes."""
    run_id, dtype = f"bench-{os.getpid()}", torch.bfloat16
    found: dict[str, tuple[WeightSender, Take]] = {}
    for name, config in (("shared_memory", WeightsConfig()), ("object_store", OBJECTS)):
        sender = stack.enter_context(closing(open_sender(config, run_id, dtype, LocalStore())))
        receiver = stack.enter_context(closing(open_receiver(config, run_id, LocalStore())))
        found[name] = (sender, taking(receiver))
    room = max(160, 4 * num_bytes // 2**20)
    options = ClusterConfig(kind=ClusterKind.ray, dashboard=False, object_store_mib=room)
    cluster = stack.enter_context(closing(RayCluster(options, run_id)))
    cluster.start("reading", Reading, {"threads": threads}, threads=threads)
    far = stack.enter_context(closing(ObjectStoreSender(OBJECTS, run_id, RayStore(DEADLINE_S), dtype)))
    found["object_store_over_ray"] = (
        far, lambda manifest: ask(cluster, "reading", "receive", manifest, deadline_s=DEADLINE_S)
    )
    return found


def measure(subject: Subject, repeats: int) -> dict[str, Any]:
    """For each way ``channel_<way>_memcpys``, with seconds and bytes a second."""
    tensors = published_tensors(subject.network())
    num_bytes = total_bytes(plan_entries(tensors, torch.bfloat16))
    source = torch.ones(num_bytes, dtype=torch.uint8)
    target = torch.zeros_like(source)
    updates = count(1)
    with ExitStack() as stack:
        ways = ends(stack, num_bytes, subject.threads)

        def update(sender: WeightSender, take: Take) -> None:
            manifest = sender.publish(tensors, PolicyVersion(0, next(updates)))
            assert take(manifest) == manifest.digest, "other weights arrived"

        def copy() -> None:
            ctypes.memmove(target.data_ptr(), source.data_ptr(), num_bytes)

        sides = {name: partial(seconds_of, partial(update, *way)) for name, way in ways.items()}
        times = take_turns({**sides, "memcpy": partial(seconds_of, copy)}, repeats)
    found: dict[str, Any] = {f"channel_{name}_seconds": spread(values) for name, values in times.items()}
    copy_s = found["channel_memcpy_seconds"]["median"]
    for name in ways:
        seconds = found[f"channel_{name}_seconds"]["median"]
        found |= {f"channel_{name}_bytes_per_second": num_bytes / seconds, f"channel_{name}_memcpys": seconds / copy_s}
    return {**found, "channel_bytes": num_bytes}
