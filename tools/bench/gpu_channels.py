"""Weight updates between two processes through a channel on GPUs: are they right, and how quick beside one copy.

The learner's end lives in this process and a generator's end in a child, as in a run; a child that is killed is
followed by another one. NCCL puts both on one GPU where there is only one, which it allows from version 2.32.

Example:
    python -m tools.bench.gpu_channels nccl nccl.json
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from engine.config.cluster import KeptIn, WeightChannelKind, WeightsConfig
from engine.errors import WeightChannelError
from engine.records.codec import decode, encode
from engine.records.manifest import Manifest
from engine.records.version import PolicyVersion
from engine.weights.channel import WeightSender, open_receiver, open_sender
from tools.bench import gpu
from tools.bench.timing import spread

NUMBERS = 500_000_000
"""Parameters of bfloat16 that travel, 1 GB."""
DEADLINE_S = 60.0
REPEATS = 5
ONE_GPU = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_DEBUG": "WARN", "NCCL_DEBUG_FILE": "/dev/stderr"}


def config_of(channel: str, folder: str, kept_in: str = "host") -> WeightsConfig:
    """The same at both ends."""
    return WeightsConfig(channel=WeightChannelKind(channel), folder=folder, bucket_mib=64, deadline_s=DEADLINE_S,
                         kept_in=KeptIn(kept_in))


class Receiving:
    """A generator's end in a process of its own."""

    def __init__(self, channel: str, folder: str, device: int) -> None:
        command = [sys.executable, "-m", "tools.bench.gpu_channels", "receive", channel, folder, str(device)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         env=os.environ | ONE_GPU)

    def receive(self, manifest: Manifest) -> dict[str, Any]:
        """What the child says of this version.

        Raises:
            WeightChannelError: it refused it, died, or said nothing in time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(encode(manifest).hex().encode() + b"\n")
        self._process.stdin.flush()
        said = select.select([self._process.stdout], [], [], 2 * DEADLINE_S)[0]
        line = self._process.stdout.readline() if said else b'{"error": "the receiving process says nothing"}'
        found: dict[str, Any] = json.loads(line) if line else {"error": "the receiving process died"}
        if "error" in found:
            raise WeightChannelError(str(found["error"]))
        return found

    def close(self) -> None:
        """End the process as it is."""
        self._process.kill()
        self._process.communicate()


def receive(channel: str, folder: str, device: int) -> None:
    """The child: receive what it is told of, line by line."""
    torch.cuda.set_device(device)
    with closing(open_receiver(config_of(channel, folder), "check")) as receiver:
        for line in sys.stdin:
            manifest = decode(bytes.fromhex(line))
            try:
                staged = receiver.receive(manifest)
                first = float(next(iter(staged.tensors.values())).view(-1)[0])
                answer: dict[str, Any] = {"digest": staged.digest, "first": first}
            except WeightChannelError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)


def weights(updates: int, numbers: int = NUMBERS) -> dict[str, torch.Tensor]:
    """Tensors of one version, told from others by their first value."""
    tensor = torch.full((numbers // 2,), float(updates), dtype=torch.bfloat16, device="cuda")
    return {"a": tensor, "b": tensor + 1}


def update(sender: WeightSender, receiving: Receiving, updates: int) -> tuple[float, float, int]:
    """Seconds of publishing, seconds until the receiver has verified, and bytes."""
    tensors, version = weights(updates), PolicyVersion(0, updates)
    torch.cuda.synchronize()
    began = time.perf_counter()
    manifest = sender.publish(tensors, version)
    published = time.perf_counter() - began
    found = receiving.receive(manifest)
    taken = time.perf_counter() - began
    if found != {"digest": manifest.digest, "first": float(updates)}:
        raise WeightChannelError(f"the receiver has {found}, published was {manifest.digest}")
    return published, taken, manifest.num_bytes


def measure(channel: str, kept_in: str = "host") -> dict[str, Any]:
    """Times of updates beside one copy of the bytes, and that a successor of a killed receiver receives."""
    device = min(1, torch.cuda.device_count() - 1) if channel == "nccl" else 0
    with tempfile.TemporaryDirectory() as folder, closing(
        open_sender(config_of(channel, folder, kept_in), "check")
    ) as sender:
        with closing(Receiving(channel, folder, device)) as receiving:
            first, *times = [update(sender, receiving, updates) for updates in range(1, REPEATS + 2)]
        with closing(Receiving(channel, folder, device)) as successor:
            update(sender, successor, REPEATS + 2)
    source = torch.empty(first[2], dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_s = gpu.timed({"copy": lambda: target.copy_(source)})["copy"]["median_ms"] * 1e-3
    taken = spread([one[1] for one in times])
    return {"gpus": 1 + device, "bytes": first[2], "first_update_seconds": first[1], "update_seconds": taken,
            "publish_seconds": spread([one[0] for one in times]), "bytes_per_second": first[2] / taken["median"],
            "copy_seconds": copy_s, "updates_in_copies": taken["median"] / copy_s, "successor": True}


def main() -> None:
    """Measure one channel, or be the child of that."""
    if sys.argv[1:2] == ["receive"]:
        receive(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("channel", choices=("nccl", "cuda_ipc"))
    parser.add_argument("path", type=Path, help="where the JSON goes")
    given = parser.parse_args()
    os.environ.update(ONE_GPU)
    report = gpu.Report(given.path)
    report.add(**gpu.card())
    for kept_in in ("host", "device") if given.channel == "nccl" else ("device",):
        report.add(**{kept_in: measure(given.channel, kept_in)})


if __name__ == "__main__":
    main()
