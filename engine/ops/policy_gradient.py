"""Policy-gradient loss of a packed row: coefficients per token, and a square per sequence.

In naive torch, for segments s with sums over their tokens t::

    drift = torch.zeros(S).index_add(0, segment, logprob - reference)
    loss = -(coefficient * logprob).sum() + tau / 2 * ((drift / length) ** 2).sum()

The coefficients are the caller's formula; here they are constants, and so is the drift that is given back. Forward
reads the tokens once and backward reads them once. Sums are kept in float64 in one fixed order, as in
:mod:`engine.ops.segments`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.ops.arguments import expect, expect_device, expect_no_graph
from engine.ops.extension import register
from engine.ops.segments import partition, segment_broadcast_reference, segment_sum_reference

_REAL = (torch.float32, torch.float64)


class PolicyGradient(NamedTuple):
    """The loss of a row, and how far each segment has moved."""

    loss: Tensor
    """Scalar, to minimise."""
    drift: Tensor
    """[S] sums of log-probs less those of the reference, nats; carries no gradient."""


def policy_gradient(
    logprob: Tensor,
    coefficient: Tensor,
    segment: Tensor | None = None,
    num_segments: int | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    reference: Tensor | None = None,
    weight: Tensor | None = None,
    tau: float = 0.0,
    length: float = 1.0,
) -> PolicyGradient:
    """-sum_t c_t l_t + (tau / 2) sum_s (D_s / length)^2, differentiable for ``logprob``, once.

    Args:
        logprob: l, [T] float32 or float64, nats.
        coefficient: c, [T], same dtype; a constant.
        segment: [T] int64 in 0..num_segments-1, never falling.
        num_segments: S.
        cu_seqlens: [S + 1] int32, instead of ``segment`` and ``num_segments``.
        reference: [T], same dtype, a constant: D_s sums l - reference over segment s. None: the log-probs
            themselves, as constants, so that D is 0.
        weight: [T], same dtype, a constant: multiplies what each token takes of the gradient of the loss, and
            leaves the loss as it is. None: 1.
        tau: factor of the square, at least 0.
        length: what D is divided by, above 0.

    Returns:
        loss and drift [S] in the dtype of ``logprob``.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device, order or range.
    """
    if cu_seqlens is None or segment is not None or num_segments is not None or not (
        tau >= 0 and length > 0 and _fit(logprob, cu_seqlens, coefficient, reference, weight)
    ):
        _expect(logprob, {"coefficient": coefficient, "reference": reference, "weight": weight}, tau, length)
        cu_seqlens = partition(logprob, logprob.shape, segment, num_segments, cu_seqlens)
    return PolicyGradient(*_Loss.apply(logprob, coefficient, reference, weight, cu_seqlens, tau, length))


def _fit(logprob: Tensor, cu_seqlens: Tensor, *beside: Tensor | None) -> bool:
    """Whether all is as it should be, by few looks: the kernel takes microseconds."""
    shape, dtype, device = logprob.shape, logprob.dtype, logprob.device
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.device != device or cu_seqlens.dim() != 1 or len(shape) != 1:
        return False
    for given in beside:
        if given is not None and (given.dtype != dtype or given.device != device or given.shape != shape):
            return False
    return dtype in _REAL and cu_seqlens.numel() > 0


def _expect(logprob: Tensor, beside: dict[str, Tensor | None], tau: float, length: float) -> None:
    """Name what does not fit."""
    expect(logprob.dim() == 1, "logprob", "[T]", logprob)
    expect(logprob.dtype in _REAL, "logprob", "float32 or float64", logprob)
    tokens, dtype = logprob.shape[0], logprob.dtype
    for name, given in beside.items():
        if given is not None:
            expect(given.shape == (tokens,) and given.dtype == dtype, name, f"[{tokens}] of {dtype}", given)
            expect_device(logprob, **{name: given})
    expect(tau >= 0, "tau", "at least 0", tau)
    expect(length > 0, "length", "above 0", length)


def policy_gradient_reference(
    logprob: Tensor, coefficient: Tensor, reference: Tensor | None, cu_seqlens: Tensor, tau: float, length: float
) -> tuple[Tensor, Tensor]:
    """The readable :func:`policy_gradient`."""
    exact = logprob.double()
    gap = torch.zeros_like(exact) if reference is None else exact - reference
    drift = segment_sum_reference(gap, cu_seqlens, False)
    loss = -(coefficient * exact).sum() + tau / 2 * (drift / length).square().sum()
    return loss.to(logprob.dtype), drift.to(logprob.dtype)


def policy_gradient_backward_reference(
    coefficient: Tensor, weight: Tensor | None, drift: Tensor, cu_seqlens: Tensor, g_loss: Tensor, tau: float,
    length: float,
) -> Tensor:
    """Gradient of the log-probs, [T]: w_t (tau D_s / length^2 - c_t) g, with w the weight and g that of the loss."""
    pull = segment_broadcast_reference(tau * drift / length**2, cu_seqlens, coefficient.shape[0])
    gradient = (pull - coefficient) * g_loss
    return gradient if weight is None else weight * gradient


def _fake(
    logprob: Tensor, coefficient: Tensor, reference: Tensor | None, cu_seqlens: Tensor, tau: float, length: float
) -> tuple[Tensor, Tensor]:
    return logprob.new_empty(()), logprob.new_empty(cu_seqlens.shape[0] - 1)


def _fake_backward(
    coefficient: Tensor, weight: Tensor | None, drift: Tensor, cu_seqlens: Tensor, g_loss: Tensor, tau: float,
    length: float,
) -> Tensor:
    return coefficient.new_empty(coefficient.shape[0])


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logprob: Tensor, coefficient: Tensor, reference: Tensor | None, weight: Tensor | None,
        cu_seqlens: Tensor, tau: float, length: float,
    ) -> tuple[Tensor, Tensor]:
        loss, drift = _op(logprob, coefficient, reference, cu_seqlens, tau, length)
        ctx.save_for_backward(coefficient, weight, drift, cu_seqlens)
        ctx.numbers = tau, length
        ctx.mark_non_differentiable(drift)
        ctx.set_materialize_grads(False)  # zeros for the drift would be made and dropped
        return loss, drift

    @staticmethod
    def backward(ctx: Any, g_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        expect_no_graph("policy_gradient")
        gradient = None if g_loss is None else _backward_op(*ctx.saved_tensors, g_loss, *ctx.numbers)
        return gradient, None, None, None, None, None, None


_op = register(
    "policy_gradient",
    "(Tensor logprob, Tensor coefficient, Tensor? reference, Tensor cu_seqlens, float tau, float length)"
    " -> (Tensor, Tensor)",
    policy_gradient_reference,
    _fake,
)
_backward_op = register(
    "policy_gradient_backward",
    "(Tensor coefficient, Tensor? weight, Tensor drift, Tensor cu_seqlens, Tensor g_loss, float tau, float length)"
    " -> Tensor",
    policy_gradient_backward_reference,
    _fake_backward,
)
