from __future__ import annotations

import pytest
import torch

from tools.bench import head_truth
from tools.bench.error import relative_error
from tools.bench.head_sides import HeadInputs, eager, forward_backward, perilune
from tools.bench.head_truth import exact_gradients

TOKENS, ENTRIES = torch.tensor([0, 3, 4, 10]), torch.tensor([7, 0, 39, 39])


@pytest.fixture
def inputs(monkeypatch: pytest.MonkeyPatch) -> HeadInputs:
    """Blocks that do not divide it."""
    monkeypatch.setattr(head_truth, "_TOKENS", 4)
    monkeypatch.setattr(head_truth, "_ROWS", 16)
    return HeadInputs.draw(11, 8, 40)


def test_the_formula_is_what_autograd_finds(inputs: HeadInputs) -> None:
    def wide(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, weight, target, scale = arguments
        logprobs = ((hidden @ weight.T) * scale[:, None]).log_softmax(-1)
        return logprobs.gather(-1, target[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)

    double = HeadInputs(inputs.hidden.double(), inputs.weight.double(), inputs.target, inputs.scale.double())
    d_hidden, d_weight = forward_backward(wide, double)
    found = exact_gradients(inputs, TOKENS, ENTRIES)
    torch.testing.assert_close(found[0], d_hidden[TOKENS], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], d_weight[ENTRIES], rtol=1e-10, atol=1e-12)


def test_both_gradients_of_ours_are_near_it(inputs: HeadInputs) -> None:
    exact = exact_gradients(inputs, TOKENS, ENTRIES)
    for score in (perilune, eager):
        d_hidden, d_weight = forward_backward(score, inputs)
        assert 1e-6 < relative_error(d_hidden[TOKENS], exact[0]) < 0.02
        assert 1e-6 < relative_error(d_weight[ENTRIES], exact[1]) < 0.02
