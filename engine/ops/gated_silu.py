"""The gate of a feed-forward layer: SwiGLU (Shazeer, arXiv 2002.05202) without its matrix products.

In naive torch::

    gate, up = gate_up.chunk(2, dim=-1)
    gated = torch.nn.functional.silu(gate) * up

SiLU is computed in float32 and rounded to the dtype before the product. Elements do not know each other:
the value of one depends neither on its place nor on the number of rows or threads. For inference: not
differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from engine.ops.arguments import expect
from engine.ops.extension import register


def gated_silu(gate_up: Tensor) -> Tensor:
    """SiLU of the first half of each row, times the second half; not differentiable.

    The compiled SiLU is -0 for gates below -87, where the true one is above -1e-35.

    Args:
        gate_up: [F, 2 * I] bfloat16 or float32: gates, then what they let through.

    Returns:
        [F, I] in the dtype of ``gate_up``, contiguous.

    Raises:
        ValueError: the argument has the wrong shape or dtype.
    """
    expect(gate_up.dim() == 2 and gate_up.shape[1] % 2 == 0, "gate_up", "[F, 2 * I]", gate_up)
    expect(gate_up.dtype in (torch.bfloat16, torch.float32), "gate_up", "bfloat16 or float32", gate_up)
    result: Tensor = _op(gate_up)
    return result


def gated_silu_reference(gate_up: Tensor) -> Tensor:
    """The readable :func:`gated_silu`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate.float()).to(gate.dtype) * up


def _fake(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


_op = register("gated_silu", "(Tensor gate_up) -> Tensor", gated_silu_reference, _fake)
