"""Two ranks learn what one learner learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.config.learning import LossConfig, PositivesConfig
from engine.learn.step import LearnerCore
from engine.models.ranks import ALONE, Ranks
from engine.models.sharding import checkpoint_layers, shard
from engine.records.trajectory import Group
from engine.weights.layout import take_part, weights_digest
from tests.engine.learn.conftest import make_group
from tests.engine.learn.test_step import DECOUPLED, GRPO, MIRROR, PENALISED, run_config, watch
from tests.small_models import tiny_network

LOSSES = {"mirror": MIRROR, "grpo": GRPO, "decoupled": DECOUPLED, "penalised": PENALISED,
          "positives": PositivesConfig()}
CASES = [("mirror", 1, 4096), ("mirror", 2, 16), ("grpo", 1, 16), ("decoupled", 2, 64), ("penalised", 2, 16),
         ("positives", 1, 64)]
Outcome = dict[str, Any]


def batch() -> list[Group]:
    return [
        make_group(0, (1.0, 0.0, 0.0), (5, 9, 3)),
        make_group(1, (1.0, 1.0, 1.0), (4, 6, 2)),
        make_group(2, (0.0, 1.0, 0.25), (12, 1, 7), unsampled=True, temperature=1.3),
        make_group(3, (0.0, 1.0, 1.0), (6, 6, 8)),
    ]


def core_of(ranks: Ranks, loss: LossConfig, *, dtype: torch.dtype = torch.float32, frugal: bool = False,
            tied: bool = True, **options: Any) -> LearnerCore:
    def build(seed: int, trained: bool) -> Any:
        network = tiny_network("llama", seed, tie_word_embeddings=tied)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.data = parameter.data.to(dtype)
        if frugal:
            checkpoint_layers(network)
        return shard(network, ranks, dtype, trained)

    fixed = build(9, False) if loss.kl_coefficient else None
    return LearnerCore(build(0, True), run_config(loss, **options), fixed, ranks)


def digest(core: LearnerCore) -> str:
    masters = core.optimiser.master_tensors()
    if core.ranks.first:
        return weights_digest(masters)
    take_part(masters)
    return ""


def learn(ranks: Ranks, cases: Sequence[tuple[LossConfig, dict[str, Any]]], groups: list[Group]) -> list[Outcome]:
    """What one update does in each case: report, gradients of the rows held here, masters held here."""
    torch.set_num_threads(1)
    found = []
    for loss, options in cases:
        core = core_of(ranks, loss, **options)
        before, seen = digest(core), watch(core)
        report = core.update(groups)
        masters = {name: m.numpy() for name, m in core.optimiser.state_dict()["master"].items()}
        gradients = [{name: g.numpy() for name, g in step.items()} for step in seen]
        found.append({"before": before, "report": report, "gradients": gradients, "masters": masters,
                      "after": digest(core)})
    return found


def joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def test_losses_and_gradients_are_those_of_one_learner(rank_pool: Any) -> None:
    cases = [(LOSSES[name], {"steps": steps, "learning": {"row_tokens": tokens}}) for name, steps, tokens in CASES]
    cases += [(MIRROR, {"steps": 2, "frugal": True}), (GRPO, {"tied": False})]
    alone, ranks = learn(ALONE, cases, batch()), rank_pool.ask(learn, 2, cases, batch())
    for one, *parts in zip(alone, *ranks, strict=True):
        first, second = (part["report"] for part in parts)
        assert one["before"] == parts[0]["before"], "the same masters before, gathered from two ranks"
        for name, value in one["report"].metrics.items():
            assert first.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
        assert (first.version, first.carried_tokens, first.masked_tokens, first.staleness) == (
            one["report"].version, one["report"].carried_tokens, one["report"].masked_tokens,
            one["report"].staleness)
        assert first.metrics == second.metrics, "the ranks say the same"
        assert 0 < first.metrics["learn/rank_tokens_min"] <= first.metrics["learn/rank_tokens_max"]
        for index, expected in enumerate(one["gradients"]):
            gradients = joined([part["gradients"][index] for part in parts])
            for name, gradient in expected.items():
                torch.testing.assert_close(gradients[name], torch.from_numpy(gradient), rtol=1e-5, atol=1e-5)
        masters = joined([part["masters"] for part in parts])
        for name, master in one["masters"].items():
            torch.testing.assert_close(masters[name], torch.from_numpy(master), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_more_ranks_than_rows_and_bf16(rank_pool: Any, size: int) -> None:
    few = [make_group(0, (1.0, 0.0), (5, 9))]
    cases: list[Any] = [(PositivesConfig(), {}), (PositivesConfig(), {"dtype": torch.bfloat16})]
    alone, ranks = learn(ALONE, cases, few), rank_pool.ask(learn, size, cases, few)
    for one, *parts in zip(alone, *ranks, strict=True):
        assert parts[0]["before"] == one["before"], "bf16 weights are widened, not loaded anew"
        assert parts[0]["report"].metrics["learn/rank_tokens_min"] == 0.0
    gradients = joined([part["gradients"][0] for part in (share[0] for share in ranks)])
    for name, gradient in alone[0]["gradients"][0].items():
        torch.testing.assert_close(gradients[name], torch.from_numpy(gradient), rtol=1e-5, atol=1e-5)
    rounded = joined([part["gradients"][0] for part in (share[1] for share in ranks)])
    for name, gradient in alone[1]["gradients"][0].items():
        expected = torch.from_numpy(gradient)
        assert rounded[name].dtype is torch.float32
        assert (rounded[name] - expected).norm() <= 0.02 * expected.norm() + 1e-6, name


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(rank_pool: Any) -> None:
    groups = batch()
    segment = groups[3].trajectories[2].segments[0]
    broken = replace(segment, behaviour_logprob=np.full_like(segment.behaviour_logprob, np.inf))
    trajectory = replace(groups[3].trajectories[2], segments=(broken, *groups[3].trajectories[2].segments[1:]))
    groups[3] = replace(groups[3], trajectories=(*groups[3].trajectories[:2], trajectory))
    cases: list[Any] = [(MIRROR, {"steps": 1}), (MIRROR, {"steps": 2})]
    for (once, twice) in rank_pool.ask(learn, 2, cases, groups):
        assert not once["report"].committed
        assert once["before"] == once["after"]
        assert twice["report"].committed, "the other step was made"
        assert twice["report"].metrics["learn/non_finite_steps"] == 1.0


def test_an_update_without_gradient_makes_the_step_it_makes_alone(rank_pool: Any) -> None:
    flat = [make_group(g, (1.0, 1.0, 1.0), (4, 6, 2)) for g in range(2)]
    cases: list[Any] = [(GRPO, {})]
    (alone,) = learn(ALONE, cases, flat)
    (first,), _ = rank_pool.ask(learn, 2, cases, flat)
    assert first["after"] == alone["after"]
    assert first["report"].committed
