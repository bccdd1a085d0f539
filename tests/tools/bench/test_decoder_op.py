from __future__ import annotations

import pytest
import torch

from tools.bench.decoder_op import SMALL_DECODER, DecoderShape, compare, decoder_shape


def test_ratios_are_ours_over_theirs_and_errors_are_of_each_side() -> None:
    exact = torch.tensor([3.0, 4.0]).double()
    asked: list[str] = []

    def answer(side: str, last: float) -> torch.Tensor:
        asked.append(side)
        return torch.tensor([3.0, last])

    sides = {"torch": lambda: answer("torch", 5.0), "perilune": lambda: answer("perilune", 4.0)}
    found = compare("op", sides, exact, 2)
    assert (found["op_error_perilune"], found["op_error_torch"]) == (0.0, pytest.approx(0.2))
    ours, theirs = (found[f"op_seconds_{side}"] for side in ("perilune", "torch"))
    assert ours["repeats"] == theirs["repeats"] == 2
    assert found["op_time_over_torch"] == pytest.approx(ours["median"] / theirs["median"])
    assert "op_time_over_perilune" not in found
    assert asked.count("torch") == asked.count("perilune")


def test_the_sizes_are_those_of_the_claims() -> None:
    shape = decoder_shape(False)
    assert shape == DecoderShape(64, 896, 4864, 14, 2, 64, 1024)
    assert shape.width == shape.heads * shape.head_size
    assert decoder_shape(True) == SMALL_DECODER
