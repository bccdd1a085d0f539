"""Timing on a GPU by its own events, memory beyond what stays, and the ceilings of the card."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], Any]


def timed(sides: Mapping[str, Work], repeats: int = 20, warmups: int = 3) -> dict[str, dict[str, Any]]:
    """Milliseconds of sides that take turns, by CUDA events; a side that fails says why and leaves the round.

    Returns:
        For each side median, least, largest and count, or an ``error``.
    """
    found: dict[str, dict[str, Any]] = {}
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in sides}
    for repeat in range(warmups + repeats):
        for name, work in sides.items():
            if name in found:
                continue
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            try:
                began.record()
                work()
                ended.record()
                if repeat < warmups:
                    torch.cuda.synchronize()
            except Exception as error:  # noqa: BLE001 - a rival that fails is a result, the others go on
                found[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            if repeat >= warmups:
                events[name].append((began, ended))
    torch.cuda.synchronize()
    for name in [name for name in sides if name not in found]:
        values = [began.elapsed_time(ended) for began, ended in events[name]]
        found[name] = {"median_ms": statistics.median(values), "least_ms": min(values), "largest_ms": max(values),
                       "repeats": len(values)}
    return found


def captured(work: Work, calls: int = 8) -> Work:
    """Some calls in one CUDA graph, for work that a GPU ends sooner than a CPU can ask for it."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()
    return graph.replay


def extra_bytes(work: Work) -> int:
    """Most bytes that one call held beyond what was there before, its results included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = work()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def product_flops(rows: int, columns: int, width: int, repeats: int = 20) -> float:
    """Flops in a second of a bfloat16 product [rows, width] by [width, columns], on random data."""
    left = torch.randn(rows, width, device="cuda").bfloat16()
    right = torch.randn(columns, width, device="cuda").bfloat16().t()
    out = torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16)
    found = timed({"product": lambda: torch.mm(left, right, out=out)}, repeats)["product"]
    return 2.0 * rows * columns * width / (float(found["median_ms"]) * 1e-3)


def copy_bytes_per_second(size: int = 2 << 30) -> float:
    """Bytes read and written in a second by a copy on the card."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    found = timed({"copy": lambda: target.copy_(source)})["copy"]
    return 2.0 * size / (float(found["median_ms"]) * 1e-3)


def card() -> dict[str, Any]:
    """What the numbers depend on."""
    facts = torch.cuda.get_device_properties(0)
    return {"card": facts.name, "multiprocessors": facts.multi_processor_count, "memory": facts.total_memory,
            "cache": facts.L2_cache_size, "torch": torch.__version__, "cuda": torch.version.cuda}


def same_bits(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> bool:
    """Whether all tensors are equal."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


class Report:
    """Results that are on disk as soon as they are known: a part that is cut off keeps what it had."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = {}

    def add(self, **results: Any) -> None:
        """Add results and write all of them."""
        self.found |= results
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(json.dumps(self.found, indent=1))
        os.replace(temporary, self.path)  # one that is cut off meanwhile keeps the last whole report


def report_of_arguments(description: str | None) -> Report:
    """The report whose path is the only argument."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("path", type=Path, help="where the JSON goes")
    report = Report(parser.parse_args().path)
    report.add(**card())
    return report
