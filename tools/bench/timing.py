"""Repeats that take turns, what is said of them, and the machine they ran on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from engine.ops.extension import level
from engine.processor import processor_name

Side = Callable[[], float]
"""One repeat of one side: seconds."""


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def take_turns(sides: Mapping[str, Side], repeats: int, warmups: int = 1) -> dict[str, list[float]]:
    """A B A B ...: whatever else the machine does meets every side alike. Warm-ups are not kept."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(warmups + repeats):
        for name, side in sides.items():
            found = side()
            if repeat >= warmups:
                times[name].append(found)
    return times


def spread(values: list[float]) -> dict[str, float]:
    """Median, least, largest and count.

    Example:
        >>> spread([1.0, 3.0, 2.0])
        {'median': 2.0, 'least': 1.0, 'largest': 3.0, 'repeats': 3}
    """
    return {
        "median": statistics.median(values), "least": min(values), "largest": max(values),
        "repeats": len(values),
    }

def show(found: Mapping[str, Any], indent: str = "") -> None:
    """Print one value a line, what belongs together indented.

    Example:
        >>> show({"a": spread([2.0]), "m": {"b": None}})
        a: 2 (2 .. 2, 1 repeats)
        m:
          b: None
    """
    for name, value in found.items():
        if isinstance(value, dict) and "median" in value:
            value = "{median:.4g} ({least:.4g} .. {largest:.4g}, {repeats} repeats)".format(**value)
        elif isinstance(value, dict):
            print(f"{indent}{name}:")
            show(value, indent + "  ")
            continue
        elif isinstance(value, float):
            value = f"{value:.4g}"
        print(f"{indent}{name}: {value}", flush=True)


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, cores, threads, versions, compiled ops."""
    return {
        "cpu": processor_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": torch.__version__, "ops": level(),
        "load_average": load_average(),
    }


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]
