"""Weights spread over ranks, and put together again one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from engine.learn.forward import score_row
from engine.learn.packing import pack
from engine.models.policy import published_tensors
from engine.models.ranks import ALONE, Ranks
from engine.models.sharding import (
    Gathered,
    as_one_forward,
    checkpoint_layers,
    is_sharded,
    local,
    rows_here,
    shard,
    working_weights,
)
from engine.weights.layout import plan_entries, take_part, total_bytes, whole_tensors, write_buckets
from tests.engine.learn.test_packing import sample
from tests.small_models import tiny_network

ROW = pack([sample(0, 4, 6), sample(0, 4, 3, start=2), sample(1, 5, 8)], 64)[0]
FORMS: list[dict[str, Any]] = [{"tie_word_embeddings": True}, {"tie_word_embeddings": False}]


def held(ranks: Ranks, form: dict[str, Any]) -> list[Any]:
    """Rows of every weight that are here, and the bytes that would be published."""
    network = shard(tiny_network("qwen2", **form), ranks, torch.float32)
    rows = {name: (*rows_here(p, ranks), local(p.detach()).numpy()) for name, p in network.named_parameters()}
    weights = working_weights(network, ranks, torch.bfloat16)
    if not ranks.first:
        take_part(weights)
        return [rows, whole_tensors(weights) and None]
    entries = plan_entries(weights, torch.bfloat16)
    memory = torch.zeros(total_bytes(entries), dtype=torch.uint8)
    buckets = write_buckets(entries, weights, memory, 1)
    whole = {name: tensor.view(torch.int16).numpy() for name, tensor in whole_tensors(weights).items()}
    return [rows, (entries, buckets, memory.numpy(), whole)]


@pytest.mark.parametrize("form", FORMS, ids=["tied", "untied"])
def test_each_rank_holds_some_rows_and_publishing_is_that_of_one(rank_pool: Any, form: dict[str, Any]) -> None:
    (first, published), (second, nothing) = rank_pool.ask(held, 2, form)
    network = tiny_network("qwen2", **form)
    assert nothing is None
    for name, parameter in network.named_parameters():
        (start, middle, above), (again, stop, below) = first[name], second[name]
        assert (start, again, stop) == (0, middle, len(parameter))
        assert torch.equal(torch.from_numpy(np.concatenate([above, below])), parameter.detach())
    entries, buckets, memory, whole = published
    plain = {name: tensor.bfloat16() for name, tensor in published_tensors(network).items()}
    if form["tie_word_embeddings"]:
        plain["lm_head.weight"] = plain["model.embed_tokens.weight"]
    assert entries == plan_entries(plain, torch.bfloat16)
    expected = torch.zeros(total_bytes(entries), dtype=torch.uint8)
    assert buckets == write_buckets(entries, plain, expected, 1)
    assert np.array_equal(memory, expected.numpy())
    assert set(whole) == set(plain)
    assert all(np.array_equal(whole[name], plain[name].view(torch.int16).numpy()) for name in plain)


def changed_without_backward(ranks: Ranks) -> list[float]:
    """Log-probs before and after the weights are changed, with no backward pass between."""
    network = shard(tiny_network(), ranks, torch.float32)
    found = []
    with torch.no_grad():
        for _ in range(2):
            found.append(float(score_row(network, ROW)[0].sum()))
            for parameter in network.parameters():
                local(parameter).mul_(0.5)
    return found


def test_a_forward_without_backward_does_not_keep_old_weights(rank_pool: Any) -> None:
    expected = changed_without_backward(ALONE)
    assert expected[0] != pytest.approx(expected[1], abs=1e-2)
    for found in rank_pool.ask(changed_without_backward, 2):
        assert found == pytest.approx(expected, abs=1e-3)


def test_alone_nothing_is_spread() -> None:
    network = tiny_network()
    assert shard(network, ALONE, torch.float32) is network
    weight = network.model.norm.weight
    assert not is_sharded(weight)
    assert local(weight) is weight
    assert rows_here(weight, ALONE) == (0, 32)
    assert as_one_forward(network, lambda: 3) == 3
    assert working_weights(network, ALONE, torch.float32).keys() == published_tensors(network).keys()
    kept = Gathered({"norm": weight, "again": weight, "ids": torch.arange(3)}, ALONE, torch.bfloat16)
    assert kept["norm"].dtype is torch.bfloat16
    assert kept["ids"].dtype is torch.int64
    facts = kept.described()
    assert facts["norm"] is facts["again"]
    assert len(kept) == len(list(kept)) == 3


def test_layers_that_are_computed_again_give_the_same_gradients() -> None:
    plain, frugal = tiny_network(), tiny_network()
    checkpoint_layers(frugal)
    calls = []
    frugal.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    for network in (plain, frugal):
        score_row(network, ROW)[0].sum().backward()
    assert len(calls) == 2, "forward, and once more in the backward pass"
    for first, second in zip(plain.parameters(), frugal.parameters(), strict=True):
        assert torch.equal(first.grad, second.grad)
