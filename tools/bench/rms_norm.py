"""``rms_norm`` and ``add_rms_norm`` beside ``torch.nn.functional.rms_norm``: one row of each slot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine.ops.rms_norm import add_rms_norm, rms_norm
from tools.bench.decoder_op import compare, decoder_shape

_EPSILON = 1e-6


def measure(repeats: int, small: bool = False) -> dict[str, Any]:
    """Ratios of time (ours over torch's) and errors against float64, in bfloat16.

    Ours rounds before it multiplies by the weight, as transformers does; torch rounds once, at the end.
    """
    shape = decoder_shape(small)
    generator = torch.Generator().manual_seed(7)
    hidden, update = torch.randn(2, shape.tokens, shape.width, generator=generator).bfloat16()
    weight = (torch.rand(shape.width, generator=generator) + 0.5).bfloat16()

    def theirs(hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, _EPSILON)

    exact = theirs(hidden.double(), weight.double())
    sides = {"perilune": lambda: rms_norm(hidden, weight, _EPSILON), "torch": lambda: theirs(hidden, weight)}
    found = compare("rms_norm", sides, exact, repeats)
    exact = theirs((hidden + update).double(), weight.double())  # the sum is rounded: it goes on as it is
    sides = {"perilune": lambda: add_rms_norm(hidden, update, weight, _EPSILON)[1],
             "torch": lambda: theirs(hidden + update, weight)}
    return found | compare("add_rms_norm", sides, exact, repeats)
