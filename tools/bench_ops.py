"""Measure the ops beside torch: time, fraction of the processor's ceiling, memory, error against float64.

``python -m tools.bench_ops --json ops.json``; every comparison takes turns within one run, A B A B. A name
that ends in ``_over_X`` is ours over X's: below 1, Perilune needs less.
"""

from __future__ import annotations

import os

# Before torch is loaded: one compiling process, so that no crowd of them is still waiting while sides are timed.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import argparse
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engine.errors import ConfigError
from engine.ops.extension import LEVELS, available, force_level
from tools.bench.timing import load_average, machine, show

ROWS = {
    "token_logprob": "tools.bench.token_logprob",
    "token_logprob_float32": "tools.bench.token_logprob_float32",
    "linear_cross_entropy": "tools.bench.linear_cross_entropy",
    "logits_logprob": "tools.bench.logits_logprob",
    "sample": "tools.bench.sample",
    "packed_attention": "tools.bench.packed_attention",
    "packed_rows": "tools.bench.packed_rows",
    "slot_attention": "tools.bench.slot_attention",
    "rms_norm": "tools.bench.rms_norm",
    "rotary": "tools.bench.rotary",
    "gated_silu": "tools.bench.gated_silu",
}
"""Each row's module answers ``measure(repeats)``, and ``measure(repeats, small=True)`` if it has tiny sizes."""


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="bench_ops", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=tuple(ROWS), help="this op; may be repeated")
    parser.add_argument("--repeats", type=int, default=7, help="kept repeats of each side")
    parser.add_argument("--json", "--out", type=Path, help="also write the results to this file")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="compute threads of a side")
    parser.add_argument("--level", choices=LEVELS, help="let our kernels use no more than these instructions; torch's "
                        "own ask ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA and MKL_ENABLE_INSTRUCTIONS")
    parser.add_argument("--small", action="store_true", help="tiny sizes: tries the harness")
    return parser.parse_args(arguments)


def run(asked: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for; the results under their names.

    Raises:
        ConfigError: the processor lacks the level, or the ops are not built.
    """
    torch.set_num_threads(asked.threads)
    if asked.level is not None:
        if not available():
            raise ConfigError("--level", asked.level, "build the ops first: python setup.py build_ext --inplace")
        force_level(asked.level)
        os.environ["PERILUNE_OPS_LEVEL"] = asked.level  # for the processes in which memory is measured
    results: dict[str, Any] = {"machine": machine()}
    show(results)
    for name in asked.only or ROWS:
        found = measured(name, asked.repeats, asked.small)
        found[f"load_average_after_{name}"] = load_average()
        show(found)
        results |= found
    return results


def measured(name: str, repeats: int, small: bool) -> dict[str, Any]:
    """The results of one row; why there are none, where its module is missing or has no tiny sizes."""
    if importlib.util.find_spec(ROWS[name]) is None:
        return {name: f"missing: there is no {ROWS[name]}"}
    measure = importlib.import_module(ROWS[name]).measure
    if not small:
        return dict(measure(repeats))
    if "small" not in inspect.signature(measure).parameters:
        return {name: "left out: it has no tiny sizes"}
    return dict(measure(repeats, small=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    asked = options(sys.argv[1:] if arguments is None else arguments)
    try:
        results = run(asked)
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    if asked.json is not None:
        asked.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
