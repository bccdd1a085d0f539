from __future__ import annotations

import pytest
import torch

from engine.models.policy import published_tensors
from tools.bench import decode_bound
from tools.bench.subject import Subject, requests


def test_the_bound_is_made_of_every_product_of_a_step(subject: Subject) -> None:
    network = subject.network()
    weights = decode_bound._stacked_weights(published_tensors(network), 2)
    assert [tuple(w.shape) for w in weights[:4]] == [(192, 64), (64, 64), (192, 64), (64, 96)]
    linear = [m.weight for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(w.numel() for w in weights) == sum(w.numel() for w in linear)
    results = [product() for product in decode_bound._quickest_products(network, 4)]
    assert len(results) == len(weights)
    assert {tuple(sorted(r.shape)) for r in results[:2]} == {(4, 192), (4, 64)}


def test_the_fraction_is_products_over_step(subject: Subject) -> None:
    found = decode_bound.measure(subject, 2)
    products, step = (found[f"decode_{name}_seconds"]["median"] for name in ("matmul", "step"))
    assert found["fraction_of_matmul_bound"] == pytest.approx(products / step)


def test_slots_are_full_before_anything_is_timed(subject: Subject) -> None:
    sampler = subject.sampler(subject.network(), 4, 64)
    decode_bound.fill_slots(sampler, requests(subject.tokens, 0, 64))
    before = sampler.metrics()["sampled_tokens"]
    sampler.step()
    assert sampler.metrics()["sampled_tokens"] - before == 4
