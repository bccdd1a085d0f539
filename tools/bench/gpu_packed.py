"""Packed rows on a GPU: attention beside SDPA of transformers, and the ops on rows beside torch's.

Example:
    python -m tools.bench.gpu_packed packed.json
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from engine.models.packed import Block, row_spans
from engine.ops.varlen_attention import kernel_name
from tools.bench import gpu, packed_rows
from tools.bench.packed_attention import Attend, Row, dense, log_uniform_lengths, one_by_one, ours


def attention(sequences: int, least: int, most: int) -> dict[str, Any]:
    """Forward and backward over sequences of log-uniform length: milliseconds, and memory of one call."""
    lengths = log_uniform_lengths(sequences, least, most, seed=0)
    starts = [sum(lengths[:index]) for index in range(sequences)]
    spans = row_spans([Block(start, length) for start, length in zip(starts, lengths, strict=True)])
    with torch.device("cuda"):
        row = Row.draw(sum(lengths))
        mine = ours(spans, row.query.device)
        sides: dict[str, Attend] = {"ours": mine, "one_by_one": one_by_one(spans), "dense": dense(spans)}
    work = {name: partial(row.both_ways, attend) for name, attend in sides.items()}
    found: dict[str, Any] = dict(gpu.timed(work))
    for name, values in found.items():
        if "median_ms" in values:
            values["extra_bytes"] = gpu.extra_bytes(work[name])
    return {"tokens": sum(lengths), "kernel": kernel_name(), **found}


if __name__ == "__main__":
    report = gpu.report_of_arguments(__doc__)
    report.add(**{"attention of 16 sequences": attention(16, 64, 2048)})
    report.add(**{"attention of 64 sequences": attention(64, 64, 1024)})
    report.add(rows=packed_rows.measure(20, device="cuda"))
