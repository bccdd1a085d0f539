from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.ops import varlen_attention as module
from engine.ops.packed_attention import packed_attention, span_attention
from engine.ops.spans import Places, RowSpans
from engine.ops.varlen_attention import kernel_name, serves, varlen_attention


def kernel(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, key_bounds: Tensor, most: int, most_keys: int,
    scale: float,
) -> Tensor:
    """What the kernels of a GPU do: a causal mask aligned at the ends."""
    assert bounds.dtype == key_bounds.dtype == torch.int32
    assert (most, most_keys) == (int(bounds.diff().max()), int(key_bounds.diff().max()))
    parts = []
    for index in range(len(bounds) - 1):
        own = query[bounds[index] : bounds[index + 1]].transpose(0, 1)
        keys, values = (x[key_bounds[index] : key_bounds[index + 1]].transpose(0, 1) for x in (key, value))
        visible = torch.ones(own.shape[1], keys.shape[1], dtype=torch.bool).tril(keys.shape[1] - own.shape[1])
        mixed = scaled_dot_product_attention(own[None], keys[None], values[None], visible, scale=scale,
                                             enable_gqa=True)
        parts.append(mixed[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 4, 0, 0), (4, 0, 0, 0), (4, 8, 0, 0)],
        [(0, 4, 0, 0), (4, 3, 0, 4), (7, 0, 0, 4), (7, 5, 1, 2)],
    ],
)
def test_what_the_kernel_is_given(spans: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kernel", lambda: kernel)
    inputs = [torch.randn(12, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    places = torch.tensor(spans, dtype=torch.int32)
    got = varlen_attention(*inputs, Places.of(places, torch.device("cpu")), 0.3)
    expected = span_attention(*inputs, places, 0.3)
    torch.testing.assert_close(got, expected)
    upstream = torch.randn_like(got)
    for gradient, right in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(gradient, right)


def test_flash_attn_is_called_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def flash_attn_varlen_func(*arguments: Any, **named: Any) -> Tensor:
        calls.append((arguments, named))
        return kernel(*arguments, named["softmax_scale"])

    installed = ModuleType("flash_attn")
    installed.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", installed)
    module._kernel.cache_clear()
    try:
        assert kernel_name() == "flash"
        inputs = [torch.randn(12, heads, 8, dtype=torch.float64) for heads in (4, 2, 2)]
        spans = torch.tensor([(0, 4, 0, 0), (4, 3, 0, 4), (7, 5, 1, 2)], dtype=torch.int32)
        got = varlen_attention(*inputs, Places.of(spans, torch.device("cpu")), 0.3)
    finally:
        module._kernel.cache_clear()
    torch.testing.assert_close(got, span_attention(*inputs, spans, 0.3))
    ((arguments, named),) = calls
    query, key, value, bounds, key_bounds, most, most_keys = arguments
    assert query.shape == (12, 4, 8)
    assert key.shape == value.shape == (18, 2, 8)
    assert bounds.dtype == key_bounds.dtype == torch.int32
    assert (bounds.tolist(), key_bounds.tolist()) == ([0, 4, 7, 12], [0, 4, 11, 18])
    assert (most, most_keys) == (5, 7)
    assert named == {"softmax_scale": 0.3, "causal": True}


def test_no_tokens_need_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kernel", lambda: pytest.fail("called"))
    row = torch.zeros(0, 2, 8)
    places = Places.of(torch.zeros(1, 4, dtype=torch.int32), torch.device("cpu"))
    assert varlen_attention(row, row, row, places, 1.0).shape == (0, 2, 8)


def test_torch_is_called_with_names_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as far as it goes without a GPU: the operator is looked up, and there is none for the CPU."""
    row, bounds = torch.zeros(3, 2, 8).bfloat16(), torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises((NotImplementedError, RuntimeError)):
        module._torch_kernel(row, row[:, :1], row[:, :1], bounds, bounds, 3, 3, 1.0)


def test_the_cpu_is_left_to_the_own_kernel() -> None:
    assert not serves(torch.zeros(3, 2, 64).bfloat16())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("heads", "shared", "width"), [(4, 4, 64), (9, 3, 64), (8, 2, 128)])
def test_on_cuda_it_agrees_with_float64(heads: int, shared: int, width: int) -> None:
    parts = [(0, 40, 0, 0), (40, 33, 0, 40), (73, 1, 0, 40), (74, 0, 0, 0), (74, 300, 0, 0)]
    spans = torch.tensor(parts, dtype=torch.int32)
    inputs = [torch.randn(374, count, width).bfloat16() for count in (heads, shared, shared)]
    upstream = torch.randn(374, heads, width).bfloat16()
    on_gpu = [tensor.cuda().requires_grad_() for tensor in inputs]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    got, right = (span_attention(*values, spans, width**-0.5) for values in (on_gpu, exact))
    found = [got, *torch.autograd.grad(got, on_gpu, upstream.cuda())]
    expected = [right, *torch.autograd.grad(right, exact, upstream.double())]
    for value, truth in zip(found, expected, strict=True):
        assert value.is_cuda
        distance = (value.detach().double().cpu() - truth.detach()).norm() / truth.norm()
        assert distance < 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_layers_of_a_row_do_not_wait_for_the_gpu() -> None:
    parts = [(0, 40, 0, 0), (40, 33, 0, 40), (73, 1, 0, 40), (74, 0, 0, 0), (74, 300, 0, 0)]
    spans = torch.tensor(parts, dtype=torch.int32)
    inputs = [torch.randn(374, heads, 64).bfloat16().cuda().requires_grad_() for heads in (8, 2, 2)]
    upstream, bounds = torch.ones_like(inputs[0]), torch.tensor([0, 74, 374], dtype=torch.int32)

    def layers() -> tuple[Tensor, ...]:
        row = RowSpans(spans, 374, inputs[0].device)
        mixed = [span_attention(*inputs, row, 0.1) for _ in range(3)]
        mixed.append(packed_attention(*inputs, bounds, 0.1))
        return torch.autograd.grad(mixed, inputs, [upstream] * len(mixed))

    layers()  # What is loaded and reserved once may wait.
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients = layers()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_the_kernel_has_a_name() -> None:
    assert kernel_name() in ("flash", "_torch_kernel")
