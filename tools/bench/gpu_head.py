"""The output head on a GPU: ours beside its rivals, against the floors of the card, in float64's eyes.

Example:
    python -m tools.bench.gpu_head head.json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.ops import head_gradient
from engine.ops import token_logprob as home
from tools.bench import gpu
from tools.bench.gpu_peers import Peer, installed

HEADS = ((896, 151936), (2048, 163840), (3584, 152064))
TOKENS = 8192
BACKWARD_ROWS = (4096, 8192, 16384, 32768)


def problem(width: int, vocabulary: int) -> tuple[Tensor, ...]:
    """Hidden states and a head whose logits spread by 3; targets, inverse temperatures."""
    torch.manual_seed(5)
    hidden = torch.randn(TOKENS, width, device="cuda").bfloat16().requires_grad_()
    weight = (torch.randn(vocabulary, width, device="cuda") * 3 / width**0.5).bfloat16().requires_grad_()
    target = torch.randint(0, vocabulary, (TOKENS,), device="cuda")
    return hidden, weight, target, torch.rand(TOKENS, device="cuda") * 0.5 + 0.75


def ours(hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """Log-probability and entropy."""
    return home.token_logprob(hidden, weight, target, scale)[:2]


def forward_of(peer: Peer, arguments: tuple[Tensor, ...]) -> Callable[[], Any]:
    """One scoring without gradients."""

    def work() -> Any:
        with torch.no_grad():
            return peer(*arguments)

    return work


def both_of(peer: Peer, arguments: tuple[Tensor, ...]) -> Callable[[], Any]:
    """One scoring and its gradients, not uniform over tokens, entropies included where there are any."""
    factors = [torch.linspace(-1, 2, TOKENS, device="cuda"), torch.linspace(0.1, -0.05, TOKENS, device="cuda")]

    def work() -> Any:
        results = peer(*arguments)
        upstream = [f if r.dim() else f.mean() for r, f in zip(results, factors, strict=False)]
        return torch.autograd.grad(results, arguments[:2], upstream)

    return work


@torch.no_grad()
def errors(peer: Peer, arguments: tuple[Tensor, ...]) -> dict[str, float]:
    """Largest distances from float64 on 64 rows; of the gradient for hidden states, the relative norm."""
    hidden, weight, target, scale = arguments
    rows = torch.arange(0, TOKENS, TOKENS // 64, device="cuda")
    with torch.enable_grad():
        leaf = hidden[rows].detach().double().requires_grad_()
        logits = (leaf @ weight.detach().double().T) * scale[rows, None].double()
        logprobs = logits.log_softmax(-1)
        exact = logprobs.gather(-1, target[rows, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)
        factors = [torch.linspace(-1, 2, TOKENS, device="cuda"), torch.linspace(0.1, -0.05, TOKENS, device="cuda")]
        (truth,) = torch.autograd.grad(exact, leaf, [factor[rows].double() for factor in factors])
        got = both_of(peer, arguments)()[0][rows].double()
    scores = peer(*arguments)
    named = zip(("logprob", "entropy"), scores, exact, strict=False)
    found = {name: float((ours[rows].double() - right).abs().max()) for name, ours, right in named if ours.dim()}
    return found | {"d_hidden": float((got - truth).norm() / truth.norm())}


def sweep(arguments: tuple[Tensor, ...]) -> dict[str, Any]:
    """Our own products beside the library's, and our backward in several steps."""
    set_fused = torch.ops.perilune.set_cuda_fused
    found: dict[str, Any] = {}
    for name, fused in (("own products", True), ("the library's", False)):
        set_fused(fused)
        sides = {"forward": forward_of(ours, arguments), "both": both_of(ours, arguments)}
        found[name] = gpu.timed(sides, 7, 2)
    set_fused(True)
    before = head_gradient._CUDA_BACKWARD_ROWS, head_gradient._CUDA_BACKWARD_LOGITS
    for rows in BACKWARD_ROWS:
        head_gradient._CUDA_BACKWARD_ROWS, head_gradient._CUDA_BACKWARD_LOGITS = rows, rows * TOKENS
        found[f"both, {rows} rows"] = gpu.timed({"": both_of(ours, arguments)}, 7, 2)[""]
    head_gradient._CUDA_BACKWARD_ROWS, head_gradient._CUDA_BACKWARD_LOGITS = before
    return found


def times(arguments: tuple[Tensor, ...]) -> dict[str, Any]:
    """Ours and rivals forward, then with gradients; memory beyond what stays; shares of the floors."""
    hidden, weight = arguments[:2]
    peers = {"ours": ours, **installed()}
    flops = gpu.product_flops(TOKENS, weight.shape[0], weight.shape[1])
    floor = 2.0 * TOKENS * weight.numel() / flops * 1e3
    found: dict[str, Any] = {"product_flops": flops}
    gradients = 2 * (hidden.numel() + weight.numel())
    for name, work, kept, least in (("forward", forward_of, 0, floor), ("both", both_of, gradients, 4 * floor)):
        taken = gpu.timed({name: work(peer, arguments) for name, peer in peers.items()})
        for peer, values in taken.items():
            if "median_ms" in values:
                values["of_floor"] = least / values["median_ms"]
                values["extra_bytes"] = gpu.extra_bytes(work(peers[peer], arguments)) - kept
        found |= {name: taken, f"floor_{name}_ms": least}
    found["errors"] = {n: errors(p, arguments) for n, p in peers.items() if "median_ms" in found["both"][n]}
    return found


def bits(arguments: tuple[Tensor, ...]) -> dict[str, bool]:
    """Whether repeats and other neighbours leave every bit, by our own products and by the library's."""
    found = {}
    for name, fused in (("own", True), ("library", False)):
        torch.ops.perilune.set_cuda_fused(fused)
        once, again = forward_of(ours, arguments)(), forward_of(ours, arguments)()
        some = forward_of(ours, tuple(x[3000:3007] if len(x) == TOKENS else x for x in arguments))()
        found[f"{name}: repeats equal"] = gpu.same_bits(once, again)
        found[f"{name}: few rows equal"] = gpu.same_bits(some, tuple(x[3000:3007] for x in once))
    found["library: few rows have their tile"] = bool(torch.ops.perilune.cuda_few_agree(*arguments[:2]))
    torch.ops.perilune.set_cuda_fused(True)
    return found


if __name__ == "__main__":
    report = gpu.report_of_arguments(__doc__)
    report.add(copy_bytes_per_second=gpu.copy_bytes_per_second())
    for size in HEADS:
        given = problem(*size)
        report.add(**{f"{size[0]}x{size[1]}": times(given)})
        report.add(**{f"{size[0]}x{size[1]} bits": bits(given)})
        report.add(**{f"{size[0]}x{size[1]} sweep": sweep(given)})
        del given
        torch.cuda.empty_cache()
