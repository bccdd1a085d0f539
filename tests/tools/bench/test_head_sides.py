from __future__ import annotations

import pytest
import torch

from tools.bench.head_sides import HeadInputs, chunked, eager, forward, forward_backward, perilune, sides


@pytest.mark.parametrize("vocabulary", [300, 8200])
def test_all_sides_say_the_same(vocabulary: int) -> None:
    inputs = HeadInputs.draw(9, 32, vocabulary)
    rows = torch.arange(9)
    assert inputs.error(forward(perilune, inputs), rows) < 1e-5
    for score in (eager, chunked):
        assert inputs.error(forward(score, inputs), rows) < 0.2  # they round logits to bfloat16
    assert set(sides()) == {"perilune", "eager", "compiled", "chunked"}


def test_all_gradients_are_alike() -> None:
    inputs = HeadInputs.draw(9, 32, 8200)
    ours, theirs = forward_backward(perilune, inputs), forward_backward(eager, inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.float() - b.float()).norm() < 0.05 * b.float().norm()
    # Without the entropy's part, which this side lacks.
    hidden, weight = inputs.hidden.clone().requires_grad_(), inputs.weight.clone().requires_grad_()
    loss = (perilune(hidden, weight, inputs.target, inputs.scale)[0] * torch.linspace(-1, 1, 9)).sum()
    for a, b in zip(torch.autograd.grad(loss, [hidden, weight]), forward_backward(chunked, inputs), strict=True):
        assert (a.float() - b.float()).norm() < 0.05 * b.float().norm()


def test_a_wrong_answer_has_an_error() -> None:
    inputs = HeadInputs.draw(3, 32, 300)
    logprob, entropy = forward(perilune, inputs)
    assert inputs.error((logprob, entropy + 0.5), torch.arange(3)) == pytest.approx(0.5, abs=1e-4)
