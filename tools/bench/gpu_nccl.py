"""Can two processes on one GPU broadcast by NCCL: through torch, and through cupy as the weight channel does.

Every try runs in two child processes with a deadline: a library that refuses, or hangs, is a result.

Example:
    python -m tools.bench.gpu_nccl nccl.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from tools.bench import gpu

BYTES = 270 << 20
SECONDS = 40


def by_torch(rank: int, meeting: str) -> tuple[float, bool]:
    """Seconds of the second of two broadcasts, and whether the bytes are those of rank 0."""
    from torch import distributed

    torch.cuda.set_device(0)
    distributed.init_process_group("nccl", init_method=f"file://{meeting}", rank=rank, world_size=2,
                                   timeout=timedelta(seconds=SECONDS - 10))
    data = torch.full((BYTES,), 7 - 7 * rank, dtype=torch.uint8, device="cuda")
    distributed.broadcast(data, 0)
    torch.cuda.synchronize()
    began = time.perf_counter()
    distributed.broadcast(data, 0)
    torch.cuda.synchronize()
    taken = time.perf_counter() - began
    right = bool((data == 7).all())
    distributed.destroy_process_group()
    return taken, right


def by_cupy(rank: int, meeting: str) -> tuple[float, bool]:
    """The same through cupy's bindings; ``meeting`` is the unique id in hexadecimal."""
    import cupy
    from cupy.cuda import nccl

    data = cupy.full(BYTES, 7 - 7 * rank, dtype=cupy.uint8)
    group = nccl.NcclCommunicator(2, unique_id(nccl, bytes.fromhex(meeting)), rank)
    stream = cupy.cuda.Stream.null
    taken = 0.0
    for _ in range(2):
        began = time.perf_counter()
        group.broadcast(data.data.ptr, data.data.ptr, BYTES, nccl.NCCL_UINT8, 0, stream.ptr)
        stream.synchronize()
        taken = time.perf_counter() - began
    return taken, bool((data == 7).all())


def unique_id(nccl: Any, meeting: bytes) -> Any:
    """The id in the form that this cupy takes: bytes, or signed numbers."""
    if isinstance(nccl.get_unique_id(), bytes):
        return meeting
    return tuple(b - 256 if b > 127 else b for b in meeting)


def reason_of(said: str) -> str:
    """The line of a child's output that says most, without the rank it begins with."""
    lines = [line.partition("]: ")[2] if line.startswith("[rank") else line for line in said.splitlines()]
    for words in ("Duplicate GPU", "NCCL WARN", "Error"):
        for line in lines:
            if words in line:
                return line.strip()[:200]
    return lines[-1].strip()[:200] if lines else "no output"


def attempt(way: str, meeting: str, multi_rank: str) -> dict[str, Any]:
    """What two children say, whichever way it ends."""
    environment = os.environ | {"NCCL_MULTI_RANK_GPU_ENABLE": multi_rank, "NCCL_DEBUG": "WARN"}
    command = [sys.executable, "-m", "tools.bench.gpu_nccl", "child", way, meeting]
    children = [subprocess.Popen([*command, str(rank)], env=environment, text=True, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT) for rank in (0, 1)]
    deadline = time.monotonic() + SECONDS
    said, late = [], False
    for child in children:
        try:
            output, _ = child.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            late = True
            child.kill()
            output, _ = child.communicate()
        said.append(output)
    supported = not late and all(child.returncode == 0 for child in children)
    told = [output.splitlines()[-1] for output in said] if supported else reason_of(said[0])
    return {"supported": supported, "timed_out": late, "said": told, "bytes": BYTES}


def attempt_cupy() -> dict[str, Any]:
    """The try through cupy; this process makes the unique id and outlives the meeting."""
    try:
        from cupy.cuda import nccl
    except ImportError as error:
        return {"supported": False, "said": str(error)}
    meeting = bytes(b & 255 for b in nccl.get_unique_id()).hex()
    return {"version": nccl.get_version(), **attempt("cupy", meeting, "1")}


def child(way: str, meeting: str, rank: int) -> None:
    """One of the two."""
    taken, right = {"torch": by_torch, "cupy": by_cupy}[way](rank, meeting)
    print(f"rank {rank}: {BYTES / taken / 1e9:.1f} GB/s, right: {right}")
    if not right:
        raise SystemExit(1)


if __name__ == "__main__":
    if sys.argv[1] == "child":
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        raise SystemExit
    report = gpu.report_of_arguments(__doc__)
    report.add(torch_nccl=".".join(map(str, torch.cuda.nccl.version())))
    with tempfile.TemporaryDirectory() as folder:
        report.add(by_torch=attempt("torch", str(Path(folder) / "meeting"), "1"))
    report.add(by_cupy=attempt_cupy())
