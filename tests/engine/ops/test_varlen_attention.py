from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.ops import varlen_attention as module
from engine.ops.packed_attention import span_attention
from engine.ops.varlen_attention import serves, varlen_attention


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
    got = varlen_attention(*inputs, places, 0.3)
    expected = span_attention(*inputs, places, 0.3)
    torch.testing.assert_close(got, expected)
    upstream = torch.randn_like(got)
    for gradient, right in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(gradient, right)


def test_no_tokens_need_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kernel", lambda: pytest.fail("called"))
    row = torch.zeros(0, 2, 8)
    assert varlen_attention(row, row, row, torch.zeros(1, 4, dtype=torch.int32), 1.0).shape == (0, 2, 8)


def test_torch_is_called_with_names_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as far as it goes without a GPU: the operator is looked up, and there is none for the CPU."""
    row, bounds = torch.zeros(3, 2, 8).bfloat16(), torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises((NotImplementedError, RuntimeError)):
        module._torch_kernel(row, row[:, :1], row[:, :1], bounds, bounds, 3, 3, 1.0)


def test_the_cpu_is_left_to_the_own_kernel() -> None:
    assert not serves(torch.zeros(3, 2, 64).bfloat16())
