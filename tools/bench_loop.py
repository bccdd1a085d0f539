"""Measure the loop: steps and sequences beside TRL, transformers, vLLM and our own references; what a trace costs.

``python -m tools.bench_loop --json results.json``; every comparison takes turns within one run, A B A B.
Ratios above 1 mean that Perilune is the quicker one.
"""

from __future__ import annotations

import os

# Before torch is loaded: threads that wait must not burn the core that another side needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from engine.errors import PeriluneError
from engine.models.packaged_model import packaged_model_folder
from tools.bench import channels, controller, decode_bound, generate, learner, learners, publish, sampler, trace, update
from tools.bench.subject import SMALL, Amounts, Subject, small_model
from tools.bench.timing import load_average, machine, show

SUBJECTS = (
    "controller", "publish", "channels", "bound", "sampler", "generate", "learner", "update", "learners", "trace",
)


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="bench_loop", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=SUBJECTS, help="this subject; may be repeated")
    parser.add_argument("--repeats", type=int, default=5, help="kept repeats of each side")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; default: the packaged model")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="compute threads of a side")
    parser.add_argument("--trl-rows", type=int, default=16, help="completions of one micro-batch of TRL's")
    parser.add_argument("--vllm-python", default=sys.executable, help="interpreter that has vllm (make test-vllm)")
    parser.add_argument("--small", action="store_true", help="a tiny model and little work: tries the harness")
    return parser.parse_args(arguments)


def run(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure what was asked for; the results under their names."""
    torch.set_num_threads(asked.threads)
    subject = Subject(folder, SMALL if asked.small else Amounts(), asked.threads)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "controller": lambda: controller.measure(subject.amounts.trajectories, asked.repeats),
        "publish": lambda: publish.measure(subject, asked.repeats),
        "channels": lambda: channels.measure(subject, asked.repeats),
        "bound": lambda: decode_bound.measure(subject, asked.repeats),
        "sampler": lambda: sampler.measure(subject, asked.repeats),
        "generate": lambda: generate.measure(subject, asked.repeats, asked.vllm_python),
        "learner": lambda: learner.measure(subject, asked.repeats),
        "update": lambda: update.measure(subject, asked.repeats, asked.trl_rows),
        "learners": lambda: learners.measure(subject, asked.repeats),
        "trace": lambda: _traced(asked),
    }
    results: dict[str, Any] = {"machine": machine(), "model": folder.name}
    show(results)
    for name in asked.only or SUBJECTS:
        found = measures[name]()
        found[f"load_average_after_{name}"] = load_average()
        show(found)
        results |= found
    return results


def _traced(asked: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        return trace.measure(Path(scratch), asked.repeats, asked.small)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    asked = options(sys.argv[1:] if arguments is None else arguments)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            if asked.small:
                folder = small_model(Path(scratch))
            else:
                folder = asked.model or packaged_model_folder("smollm2-135m-instruct")
            results = run(asked, folder)
        except PeriluneError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
    if asked.json is not None:
        asked.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
