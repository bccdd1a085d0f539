"""A receiver in a process of its own, which hands over what it staged through a file."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import torch

from engine.errors import WeightChannelError
from engine.records.codec import decode, encode
from engine.weights.layout import StagedWeights

DEADLINE_S = 120.0


class RemoteReceiver:
    """Asks ``tests.engine.weights.ends`` for the receiver of a channel by its name, in a child."""

    def __init__(self, channel: str, folder: Path, device: int) -> None:
        self._file = folder / f"staged-{id(self)}"
        command = [sys.executable, "-m", "tests.engine.weights.remote_receiver", channel, str(folder), str(device)]
        multi = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_DEBUG_FILE": "/dev/stderr"}
        self._process = subprocess.Popen([*command, str(self._file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         env=os.environ | multi)

    def receive(self, manifest):
        self._process.stdin.write(encode(manifest).hex().encode() + b"\n")
        self._process.stdin.flush()
        assert select.select([self._process.stdout], [], [], DEADLINE_S)[0], "the receiving process says nothing"
        found = json.loads(self._process.stdout.readline())
        if "error" in found:
            raise WeightChannelError(found["error"])
        tensors = torch.load(self._file)
        self._file.unlink()
        return StagedWeights(manifest.version, found["digest"], tensors)

    def close(self):
        """End the process, in its own words where it can hear them."""
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(DEADLINE_S)
            finally:
                self._process.kill()
                self._process.wait(DEADLINE_S)
                self._process.stdout.close()


def main(channel: str, folder: str, device: int, file: str) -> None:
    from tests.engine.weights.ends import ALL

    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.cuda.set_device(device)
    receiver = ALL[channel](Path(folder)).receiver_here()
    for line in sys.stdin:
        manifest = decode(bytes.fromhex(line))
        try:
            staged = receiver.receive(manifest)
            alone = {id(tensor): tensor.cpu().clone() for tensor in staged.tensors.values()}  # tied ones once
            torch.save({name: alone[id(tensor)] for name, tensor in staged.tensors.items()}, file)
            answer = {"digest": staged.digest}
        except WeightChannelError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
    receiver.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
