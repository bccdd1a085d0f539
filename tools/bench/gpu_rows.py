"""Drawing, logits that exist, attention over slots and the small ops of the decoder on a GPU, beside torch.

Example:
    python -m tools.bench.gpu_rows rows.json
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from engine.ops.gated_silu import gated_silu, gated_silu_reference
from engine.ops.rms_norm import add_rms_norm, add_rms_norm_reference
from engine.ops.sample import sample
from engine.ops.slot_attention import slot_attention
from tools.bench import gpu
from tools.bench.gpu_head import HEADS, both_of, forward_of, ours, problem
from tools.bench.gpu_peers import eager

CALLS = 8
"""Of attention in one CUDA graph."""


def drawing(rows: int, width: int, vocabulary: int) -> dict[str, Any]:
    """Our sample beside materialised logits, Gumbel noise, argmax and the chosen log-probability."""
    hidden = torch.randn(rows, width, device="cuda").bfloat16()
    weight = (torch.randn(vocabulary, width, device="cuda") * 3 / width**0.5).bfloat16()
    heat = torch.ones(rows, device="cuda")
    key = torch.arange(rows, device="cuda")

    def plain() -> Tensor:
        logits = (hidden @ weight.T).float() / heat[:, None]
        noise = -torch.log(-torch.log1p(-torch.rand_like(logits)))
        return logits.log_softmax(-1).gather(-1, (logits + noise).argmax(-1)[:, None])

    found = gpu.timed({"ours": lambda: sample(hidden, weight, heat, key, key), "torch": plain,
                       "product": lambda: hidden @ weight.T})
    return {**found, "weight_bytes": 2 * weight.numel()}


def existing_logits(dtype: torch.dtype, tokens: int = 4096, vocabulary: int = 151936) -> dict[str, Any]:
    """One read forward, one read and one write backward: ours beside torch, with the bytes they must move."""
    logits = (torch.randn(tokens, vocabulary, device="cuda") * 4).to(dtype)
    target = torch.randint(0, vocabulary, (tokens,), device="cuda")
    scale = torch.ones(tokens, device="cuda")
    logprob, entropy, lse = torch.ops.perilune.logits_logprob(logits, target, scale)
    statistics = torch.stack([scale, lse, entropy, logprob, *torch.randn(3, tokens, device="cuda")])

    def plain() -> tuple[Tensor, Tensor]:
        logprobs = logits.float().log_softmax(-1)
        return logprobs.gather(-1, target[:, None]), -(logprobs.exp() * logprobs).sum(-1)

    found = gpu.timed({
        "forward": lambda: torch.ops.perilune.logits_logprob(logits, target, scale),
        "gradient": lambda: torch.ops.perilune.logits_gradient(logits, target, statistics),
        "torch_forward": plain,
    })
    bytes_read = logits.numel() * logits.element_size()
    for name, moved in (("forward", bytes_read), ("gradient", 2 * bytes_read)):
        found[name]["bytes_per_second"] = moved / (found[name]["median_ms"] * 1e-3)
    return found


def attention(tokens: int, heads: int, shared: int, size: int, capacity: int) -> dict[str, Any]:
    """Decoding over full slots, beside torch's attention over the same cache: time of the GPU for each call."""
    query = torch.randn(tokens, heads, size, device="cuda").bfloat16()
    keys, values = torch.randn(2, tokens, capacity, shared, size, device="cuda").bfloat16()
    slot = torch.arange(tokens, device="cuda")
    position = torch.full((tokens,), capacity - 1, device="cuda")
    shapes = query[:, :, None], keys.transpose(1, 2), values.transpose(1, 2)
    found = gpu.timed({
        "ours": gpu.captured(lambda: slot_attention(query, keys, values, slot, position, size**-0.5), CALLS),
        "torch": gpu.captured(lambda: functional.scaled_dot_product_attention(*shapes, enable_gqa=True), CALLS),
    })
    for values_of in found.values():
        values_of |= {name: values_of[name] / CALLS for name in ("median_ms", "least_ms", "largest_ms")}
    bytes_read = 2 * keys.numel() * keys.element_size()
    found["ours"]["bytes_per_second"] = bytes_read / (found["ours"]["median_ms"] * 1e-3)
    return found


def small_ops(rows: int, width: int) -> dict[str, Any]:
    """Norm and gate, beside their references op by op."""
    hidden, update = torch.randn(2, rows, width, device="cuda").bfloat16()
    weight = torch.ones(width, device="cuda").bfloat16()
    gate_up = torch.randn(rows, 8 * width, device="cuda").bfloat16()
    return gpu.timed({
        "add_rms_norm": lambda: add_rms_norm(hidden, update, weight, 1e-6),
        "torch_add_rms_norm": lambda: add_rms_norm_reference(hidden, update, weight, 1e-6),
        "gated_silu": lambda: gated_silu(gate_up),
        "torch_gated_silu": lambda: gated_silu_reference(gate_up),
    })


def kernels(width: int, vocabulary: int) -> dict[str, Any]:
    """Microseconds of each kernel in one forward, and in one forward and backward, of ours and of eager torch."""
    arguments = problem(width, vocabulary)
    found = {}
    for name, work in (("forward", forward_of(ours, arguments)), ("both", both_of(ours, arguments)),
                       ("eager_both", both_of(eager, arguments))):
        work()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
            work()
            torch.cuda.synchronize()
        events = [e for e in seen.key_averages() if e.device_type == DeviceType.CUDA]
        most = sorted(events, key=lambda e: -e.self_device_time_total)[:10]
        found[name] = {e.key[:110]: [round(e.self_device_time_total), e.count] for e in most}
    return found


if __name__ == "__main__":
    report = gpu.report_of_arguments(__doc__)
    report.add(copy_bytes_per_second=gpu.copy_bytes_per_second())
    for count in (64, 1024):
        for size in HEADS:
            report.add(**{f"sample {count} of {size[0]}x{size[1]}": drawing(count, *size)})
    for kind in (torch.bfloat16, torch.float32):
        report.add(**{f"logits {kind}": existing_logits(kind)})
    for shape in ((64, 14, 2, 64, 4096), (64, 28, 4, 128, 4096), (512, 14, 2, 64, 1024)):
        report.add(**{f"slot_attention {shape}": attention(*shape)})
    for count in (64, 8192):
        report.add(**{f"small ops {count}": small_ops(count, 2048)})
    for size in HEADS:
        report.add(**{f"kernels {size[0]}x{size[1]}": kernels(*size)})
        torch.cuda.empty_cache()
