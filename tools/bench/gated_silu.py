"""``gated_silu`` beside SiLU times the other half in torch: one row of each slot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine.ops.gated_silu import gated_silu
from tools.bench.decoder_op import compare, decoder_shape


def measure(repeats: int, small: bool = False) -> dict[str, Any]:
    """Ratio of time (ours over torch's) and errors against float64, in bfloat16."""
    shape = decoder_shape(small)
    gate_up = torch.randn(shape.tokens, 2 * shape.gates, generator=torch.Generator().manual_seed(7)).bfloat16()

    def theirs(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return functional.silu(gate) * up

    sides = {"perilune": lambda: gated_silu(gate_up), "torch": lambda: theirs(gate_up)}
    return compare("gated_silu", sides, theirs(gate_up.double()), repeats)
