"""A decoding step beside its own matrix products.

``fraction_of_matmul_bound`` is the share that the products of the network have in a step with every slot in
use: back to back over the network's own weights, each in the quicker of its two orientations. What is left
is attention, norms, rotations, sampling and bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.generate.native import NativeSampler
from engine.models.policy import published_tensors
from engine.records.work import Request
from tools.bench.subject import Subject, requests
from tools.bench.timing import seconds_of, spread, take_turns

_STEPS = 4
"""Decoding steps of one repeat."""
SETTLING_STEPS = 64
"""More than the steps it takes until every slot decodes."""


def measure(subject: Subject, repeats: int) -> dict[str, Any]:
    """``fraction_of_matmul_bound``: time of the products of one step over the time of the step."""
    amounts = subject.amounts
    network = subject.network()
    budget = (repeats + 2) * _STEPS + SETTLING_STEPS
    sampler = subject.sampler(network, amounts.sequences, budget)
    fill_slots(sampler, requests(subject.tokens[: amounts.sequences], 0, budget))
    products = _quickest_products(network, amounts.sequences)

    def steps() -> None:
        for _ in range(_STEPS):
            assert not sampler.step(), "a trajectory ended amid the measurement"

    def multiply() -> None:
        for _ in range(_STEPS):
            for product in products:
                product()

    times = take_turns(
        {"step": lambda: seconds_of(steps) / _STEPS, "matmul": lambda: seconds_of(multiply) / _STEPS}, repeats
    )
    found: dict[str, Any] = {f"decode_{name}_seconds": spread(values) for name, values in times.items()}
    bound, step = found["decode_matmul_seconds"]["median"], found["decode_step_seconds"]["median"]
    return {**found, "fraction_of_matmul_bound": bound / step}


def fill_slots(sampler: NativeSampler, work: list[Request]) -> None:
    """Prefill until every slot decodes."""
    sampler.submit(work)
    sampled, before = 0.0, -1.0
    while sampled - before != len(work):
        before = sampled
        assert not sampler.step(), "a trajectory ended before every slot decoded"
        sampled = sampler.metrics().get("sampled_tokens", 0.0)


@torch.no_grad()
def _quickest_products(network: Any, rows: int) -> list[Callable[[], Tensor]]:
    """The matrix products of one decoding step, in order, over the network's own weights in bf16."""
    tensors = published_tensors(network)
    chosen: dict[torch.Size, Callable[[Tensor], Callable[[], Tensor]]] = {}
    products = []
    for weight in _stacked_weights(tensors, network.config.num_hidden_layers):
        if weight.shape not in chosen:
            chosen[weight.shape] = _quicker_orientation(weight, rows)
        products.append(chosen[weight.shape](weight))
    return products


def _stacked_weights(tensors: dict[str, Tensor], layers: int) -> list[Tensor]:
    """As the decoder multiplies: query, key and value at once, gate and up at once, the head last."""
    weights = []
    for index in range(layers):
        for kind, parts in (("self_attn", "qkv"), ("self_attn", "o"), ("mlp", ("gate", "up")),
                            ("mlp", ("down",))):
            names = [f"model.layers.{index}.{kind}.{part}_proj.weight" for part in parts]
            weights.append(torch.cat([tensors[name] for name in names]).bfloat16())
    return [*weights, tensors["lm_head.weight"].bfloat16()]


def _quicker_orientation(weight: Tensor, rows: int) -> Callable[[Tensor], Callable[[], Tensor]]:
    """``x @ w.T`` or ``w @ x.T``, whichever took less time."""
    value = torch.randn(rows, weight.shape[1]).to(weight.dtype)
    turned = value.T.contiguous()

    def plain(weight: Tensor) -> Callable[[], Tensor]:
        return lambda: value @ weight.T

    def transposed(weight: Tensor) -> Callable[[], Tensor]:
        return lambda: weight @ turned

    sides = {"plain": lambda: seconds_of(plain(weight)), "transposed": lambda: seconds_of(transposed(weight))}
    times = take_turns(sides, repeats=9, warmups=2)
    quick = min(times, key=lambda name: spread(times[name])["median"])
    return plain if quick == "plain" else transposed
