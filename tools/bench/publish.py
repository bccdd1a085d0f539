"""From new weights to the first token under them, in units of one copy of the bytes.

Timed is what the newest weights go through once the optimiser step is done: the sender writes them into the
channel with digests, the receiver copies and verifies them, the sampler swaps them in between two tokens and
makes its next step with every slot in use; an ordinary step of the same sampler is taken off. The unit is one
``memcpy`` of the same number of bytes, between memory that was touched before.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import closing
from itertools import count
from typing import Any

import torch

from engine.config.cluster import WeightsConfig
from engine.config.schedule import InFlight
from engine.models.policy import published_tensors
from engine.records.manifest import Manifest
from engine.records.version import PolicyVersion
from engine.weights.channel import open_receiver, open_sender
from tools.bench.decode_bound import SETTLING_STEPS, fill_slots
from tools.bench.subject import Subject, requests
from tools.bench.timing import seconds_of, spread, take_turns


def measure(subject: Subject, repeats: int) -> dict[str, Any]:
    """``publish_memcpys``, with the times it is made of."""
    amounts = subject.amounts
    network = subject.network()
    budget = 2 * (repeats + 2) + SETTLING_STEPS
    sampler = subject.sampler(network, amounts.sequences, budget)
    fill_slots(sampler, requests(subject.tokens[: amounts.sequences], 0, budget))
    config, run_id = WeightsConfig(), f"bench-{os.getpid()}"
    with (
        closing(open_sender(config, run_id, torch.bfloat16)) as sender,
        closing(open_receiver(config, run_id)) as receiver,
    ):
        updates = count(1)

        def publish() -> Manifest:
            version = PolicyVersion(0, next(updates))
            manifest = sender.publish(published_tensors(network), version)
            sampler.swap(receiver.receive(manifest), InFlight.keep_cache)
            sampler.step()
            assert sampler.version == version, "the new weights do not serve"
            return manifest

        source = torch.ones(publish().num_bytes, dtype=torch.uint8)
        target = torch.zeros_like(source)

        def copy() -> None:
            ctypes.memmove(target.data_ptr(), source.data_ptr(), source.numel())

        times = take_turns(
            {"publish": lambda: seconds_of(publish), "step": lambda: seconds_of(sampler.step),
             "memcpy": lambda: seconds_of(copy)}, repeats,
        )
    found: dict[str, Any] = {f"publish_{name}_seconds": spread(values) for name, values in times.items()}
    publish_s, step_s, copy_s = (found[f"publish_{name}_seconds"]["median"] for name in times)
    return {**found, "publish_bytes": source.numel(), "publish_memcpys": (publish_s - step_s) / copy_s}
