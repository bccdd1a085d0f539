"""Checks at the front door of every op: what was expected, what came."""

from __future__ import annotations

import torch
from torch import Tensor


def describe(tensor: Tensor) -> str:
    """Shape and dtype of a tensor, as it stands in an error.

    Example:
        >>> import torch
        >>> describe(torch.zeros(2, 3))
        '[2, 3] float32'
    """
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def expect(condition: bool, argument: str, expected: str, came: object) -> None:
    """Raise ``ValueError`` naming argument, expectation and what came, unless the condition holds."""
    if not condition:
        shown = describe(came) if isinstance(came, Tensor) else str(came)
        raise ValueError(f"{argument}: expected {expected}, got {shown}")


def expect_device(beside: Tensor, **arguments: Tensor | None) -> None:
    """Raise ``ValueError`` unless every tensor that was given stands on the device of ``beside``."""
    device = beside.device
    for argument, tensor in arguments.items():
        if tensor is not None and tensor.device != device:
            expect(False, argument, f"a tensor on {device}", tensor.device)


def expect_range(values: Tensor, argument: str, low: int, high: int) -> None:
    """Raise ``ValueError`` unless every value lies in low..high - 1; reads the values."""
    if values.numel():
        least, most = int(values.min()), int(values.max())
        expect(low <= least and most < high, argument, f"values in {low}..{high - 1}", f"{least}..{most}")


def fitting_scale(inverse_temperature: Tensor) -> Tensor:
    """Inverse temperatures; NaN for those below 0 or not finite, which a CPU refuses with ``ValueError``."""
    fits = inverse_temperature.isfinite() & (inverse_temperature >= 0)
    if inverse_temperature.device.type == "cpu":  # elsewhere to look would wait
        if not bool(fits.all()):
            expect(False, "inverse_temperature", "finite values of at least 0", float(inverse_temperature[~fits][0]))
        return inverse_temperature
    return inverse_temperature.where(fits, float("nan"))


def expect_no_graph(op: str) -> None:
    """Raise ``RuntimeError`` in the backward of an op that has no second gradient, where one is asked for."""
    if torch.is_grad_enabled():  # torch's own decorator for this costs as much as a small kernel
        raise RuntimeError(f"{op} is differentiable once: do without create_graph")
