"""Root-mean-square norm of rows (Zhang and Sennrich, arXiv 1910.07467), rounded as transformers rounds it.

In naive torch::

    total = hidden + update
    scale = torch.rsqrt(total.float().pow(2).mean(-1, keepdim=True) + epsilon)
    normed = (total.float() * scale).to(hidden.dtype) * weight

Rows do not know each other: the values of one depend neither on its place nor on the number of rows or
threads. For inference: not differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.ops.arguments import expect, expect_device
from engine.ops.extension import register

_DTYPES = (torch.bfloat16, torch.float32)


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Divide each row by its root mean square, then multiply by the weight; not differentiable.

    Args:
        hidden: [..., D] bfloat16 or float32.
        weight: [D], same dtype.
        epsilon: added to the mean square.

    Returns:
        [..., D] in the dtype of ``hidden``, contiguous.

    Raises:
        ValueError: an argument has the wrong shape or dtype.
    """
    _check(hidden, weight)
    result: Tensor = _op(hidden, weight, epsilon)
    return result


def add_rms_norm(hidden: Tensor, update: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Add, round the sum to the dtype, and norm what was rounded; not differentiable.

    Args:
        hidden: [..., D] bfloat16 or float32.
        update: same shape and dtype.
        weight: [D], same dtype.
        epsilon: added to the mean square.

    Returns:
        sum [..., D] and its norm [..., D] in the dtype of ``hidden``, contiguous.

    Raises:
        ValueError: an argument has the wrong shape or dtype.
    """
    _check(hidden, weight)
    expect_device(hidden, update=update)
    fits = update.shape == hidden.shape and update.dtype == hidden.dtype
    expect(fits, "update", f"{list(hidden.shape)} of {hidden.dtype}", update)
    result: tuple[Tensor, Tensor] = _add_op(hidden, update, weight, epsilon)
    return result


def rms_norm_reference(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The readable :func:`rms_norm`."""
    wide = hidden.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return ((wide * scale).to(hidden.dtype) * weight).contiguous()


def add_rms_norm_reference(
    hidden: Tensor, update: Tensor, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """The readable :func:`add_rms_norm`."""
    total = (hidden + update).contiguous()
    return total, rms_norm_reference(total, weight, epsilon)


def _check(hidden: Tensor, weight: Tensor) -> None:
    expect(hidden.dim() > 0 and hidden.shape[-1] > 0, "hidden", "[..., D]", hidden)
    expect(hidden.dtype in _DTYPES, "hidden", "bfloat16 or float32", hidden)
    fits = weight.shape == hidden.shape[-1:] and weight.dtype == hidden.dtype
    expect(fits, "weight", f"[{hidden.shape[-1]}] of {hidden.dtype}", weight)
    expect_device(hidden, weight=weight)


def _fake(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


def _add_fake(hidden: Tensor, update: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    return _fake(hidden, weight, epsilon), _fake(hidden, weight, epsilon)


_op = register(
    "rms_norm", "(Tensor hidden, Tensor weight, float epsilon) -> Tensor", rms_norm_reference, _fake
)
_add_op = register(
    "add_rms_norm",
    "(Tensor hidden, Tensor update, Tensor weight, float epsilon) -> (Tensor, Tensor)",
    add_rms_norm_reference,
    _add_fake,
)
