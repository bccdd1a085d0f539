"""How far a result is from the truth."""

from __future__ import annotations

from torch import Tensor


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Frobenius norm of the distance over that of the truth, a float64 tensor of the same shape."""
    return float((found.double() - exact).norm() / exact.norm())
