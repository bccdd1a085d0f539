from __future__ import annotations

import torch

from tools.bench.gpu_peers import chunked, eager, installed


def test_chunks_give_the_gradients_of_kept_logits() -> None:
    torch.manual_seed(3)
    hidden, weight = torch.randn(700, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    target, scale = torch.randint(0, 50, (700,)), torch.rand(700) + 0.5
    upstream = torch.linspace(-1, 2, 700), torch.linspace(0.1, -0.05, 700)
    found = []
    for peer in (eager, chunked):
        results = peer(hidden, weight, target, scale)
        found.append((*results, *torch.autograd.grad(results, (hidden, weight), upstream)))
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)
    assert installed().keys() >= {"eager", "chunked"}
