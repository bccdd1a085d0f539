from __future__ import annotations

import torch

from engine.losses.likelihood import negative_log_likelihood


def test_micro_batches_add_up_to_the_mean():
    logprob = torch.tensor([-1.0, -2.0, -0.5, -0.25], dtype=torch.float64, requires_grad=True)
    parts = negative_log_likelihood(logprob[:1], 4) + negative_log_likelihood(logprob[1:], 4)
    torch.testing.assert_close(parts, -logprob.mean())
    (gradient,) = torch.autograd.grad(parts, logprob)
    torch.testing.assert_close(gradient, torch.full((4,), -0.25, dtype=torch.float64))


def test_a_minibatch_without_tokens_gives_zero():
    assert negative_log_likelihood(torch.empty(0), 0) == 0.0
