from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.ops.gated_silu import gated_silu, gated_silu_reference

DTYPES = [torch.float32, torch.bfloat16]


def run(implementation: str, gate_up: Tensor) -> Tensor:
    return (gated_silu_reference if implementation == "reference" else gated_silu)(gate_up)


@pytest.mark.parametrize("shape", [(64, 1536), (3, 40), (1, 1), (7, 17), (0, 8), (2, 0)])
def test_agrees_with_torch(implementation: str, shape: tuple[int, int]) -> None:
    rows, width = shape
    gate_up = torch.randn(rows, 2 * width) * 6
    gate, up = gate_up.chunk(2, dim=-1)
    got = run(implementation, gate_up)
    assert got.shape == shape
    torch.testing.assert_close(got, functional.silu(gate) * up, atol=0, rtol=6e-7)
    # The gate is rounded before the product: an unrounded one differs in about half of the places.
    narrow, factor = gate.bfloat16(), up.bfloat16()
    halves = torch.cat([narrow, factor], dim=-1)
    assert torch.equal(run(implementation, halves), functional.silu(narrow) * factor)


def test_every_bfloat16_gate_is_rounded_rightly(implementation: str) -> None:
    gate = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    gate = gate[gate.isfinite() & (gate > -87)][:, None]
    got = run(implementation, torch.cat([gate, torch.ones_like(gate)], dim=-1))
    assert torch.equal(got, functional.silu(gate.double()).float().bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
def test_far_gates(implementation: str, dtype: torch.dtype) -> None:
    gate = torch.tensor([[-1e30, -200.0, -88.0, 0.0, 200.0, 1e30, float("inf"), float("nan")]], dtype=dtype)
    got = run(implementation, torch.cat([gate, torch.ones_like(gate)], dim=-1))
    expected = gate.clamp(min=0)
    torch.testing.assert_close(got, expected, atol=1e-35, rtol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_element_does_not_depend_on_its_place(level: str, dtype: torch.dtype, two_threads: None) -> None:
    gate_up = (torch.randn(700, 802) * 3).to(dtype)
    together = gated_silu(gate_up)
    torch.set_num_threads(1)
    for row in (0, 349, 350, 699):
        assert torch.equal(gated_silu(gate_up[row : row + 1])[0], together[row])
    gate, up = gate_up[:, 400], gate_up[:, 801]
    assert torch.equal(gated_silu(torch.stack([gate, up], dim=-1))[:, 0], together[:, 400])


def test_strided_rows(implementation: str) -> None:
    wide = torch.randn(5, 80)
    got = run(implementation, wide[:, ::2])
    assert got.is_contiguous()
    assert torch.equal(got, run(implementation, wide[:, ::2].contiguous()))


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.perilune.gated_silu.default, (torch.randn(3, 40),))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(4), r"gate_up: expected \[F, 2 \* I\], got \[4\] float32"),
        (torch.zeros(4, 7), r"gate_up: expected \[F, 2 \* I\], got \[4, 7\] float32"),
        (torch.zeros(4, 8).double(), r"gate_up: expected bfloat16 or float32, got \[4, 8\] float64"),
    ],
)
def test_bad_input_is_named(value: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gated_silu(value)
