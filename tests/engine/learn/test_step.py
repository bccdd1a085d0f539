from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.config.cluster import ClusterConfig, Placement
from engine.config.learning import (
    Aggregation,
    Baseline,
    ClippedConfig,
    ImportanceConfig,
    ImportanceKind,
    LearningConfig,
    LossConfig,
    MirrorDescentConfig,
    OptimiserConfig,
    PositivesConfig,
    Reference,
)
from engine.config.rollout import Precision, RolloutConfig
from engine.config.run import RunConfig
from engine.config.schedule import ScheduleConfig, Straggler
from engine.errors import NonFiniteError, StalenessError
from engine.learn.batch import Accounts, samples_of
from engine.learn.forward import score_row
from engine.learn.packing import Sample
from engine.learn.step import MAX_NON_FINITE_UPDATES, LearnerCore
from engine.metrics import require_documented
from engine.records.trajectory import Group
from engine.records.version import PolicyVersion
from tests.small_models import tiny_network

MIRROR = MirrorDescentConfig(tau=0.5)
GRPO = ClippedConfig(normalise_std=True, aggregation=Aggregation.sequence_mean, clip_low=1.0)
DECOUPLED = ClippedConfig(
    proximal=Reference.start_of_update, importance=ImportanceConfig(kind=ImportanceKind.truncated)
)
PENALISED = ClippedConfig(kl_coefficient=0.1, entropy_bonus=0.05, clip_low=1.0)
# A large epsilon keeps Adam from blowing rounding errors of tiny gradients up to whole steps.
SMOOTH = OptimiserConfig(learning_rate=0.01, epsilon=0.1, max_gradient_norm=0.0)

Build = Callable[..., Any]


def run_config(loss: LossConfig, *, steps: int = 1, schedule: dict[str, Any] | None = None,
               learning: dict[str, Any] | None = None) -> RunConfig:
    options: dict[str, Any] = {"precision": Precision.float32, "optimiser": SMOOTH, "updates": 10}
    return RunConfig(
        loss=loss, rollout=RolloutConfig(samples_per_prompt=3, max_response_tokens=16),
        schedule=ScheduleConfig(batch_groups=4, steps_per_update=steps, **(schedule or {})),
        learning=LearningConfig(**(options | (learning or {}))),
    )


def make_core(network: Build, loss: LossConfig, seed: int = 0, dtype: torch.dtype = torch.float32,
              **options: Any) -> LearnerCore:
    fixed = network(seed=9) if loss.kl_coefficient else None
    return LearnerCore(network(seed=seed, dtype=dtype), run_config(loss, **options), fixed)


def watch(core: LearnerCore) -> list[dict[str, Tensor]]:
    """The gradients of every optimiser step from now on, as they are before clipping."""
    seen: list[dict[str, Tensor]] = []
    step = core.optimiser.step

    def stepping() -> float:
        named = zip(core.optimiser.names, core.optimiser._master, strict=True)
        seen.append({name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named})
        return step()

    core.optimiser.step = stepping  # type: ignore[method-assign]
    return seen


def weights(core: LearnerCore) -> Tensor:
    return torch.cat([tensor.flatten().clone() for tensor in core.optimiser.master_tensors().values()])


def moments(core: LearnerCore) -> list[Tensor]:
    state = core.optimiser.state_dict()["adam"]["state"]
    return [value.clone() for entry in state.values() for value in entry.values()]


def again_at(groups: list[Group], version: PolicyVersion) -> list[Group]:
    """The same groups as if sampled by another version."""
    return [
        replace(group, trajectories=tuple(
            replace(t, segments=tuple(replace(s, version=version) for s in t.segments))
            for t in group.trajectories
        ))
        for group in groups
    ]


# ---- the loss and its gradient -------------------------------------------------------------------


def naive_logprob(model: Any, group: Group, index: int) -> Tensor:
    """Log-probs of the sampled tokens of one trajectory, alone and through the whole network."""
    trajectory = group.trajectories[index]
    tokens = torch.from_numpy(np.concatenate([group.prompt_tokens, trajectory.token_ids])).long()
    logits = model(tokens[None]).logits[0, len(group.prompt_tokens) - 1 : -1]
    heat = trajectory.segments[0].temperature
    sampled = torch.from_numpy(np.concatenate([s.sampled for s in trajectory.segments]))
    response = torch.from_numpy(trajectory.token_ids).long()
    return (logits / heat).log_softmax(-1).gather(-1, response[:, None])[:, 0][sampled]


def naive_update(model: Any, batches: list[list[Group]],
                 tau: float) -> tuple[list[dict[str, Tensor]], float]:
    """Eq. 3 of Kimi k1.5 literally, one optimiser step per batch."""
    adam = torch.optim.AdamW(
        model.parameters(), SMOOTH.learning_rate, (SMOOTH.beta1, SMOOTH.beta2), SMOOTH.epsilon, 0.0
    )
    with torch.no_grad():
        reference = {
            (group.group_id, j): naive_logprob(model, group, j)
            for batch in batches for group in batch for j in range(len(group.trajectories))
        }
    gradients, losses = [], []
    for batch in batches:
        terms = []
        for group in batch:
            scores = torch.tensor([verdict.score for verdict in group.verdicts])
            for j, advantage in enumerate(scores - scores.mean()):
                logprob = naive_logprob(model, group, j)
                drift = (logprob - reference[group.group_id, j]).sum()
                terms.append((-advantage * logprob.sum() + tau / 2 * drift**2) / len(scores))
        loss = torch.stack(terms).sum() / len(batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        adam.step()
        adam.zero_grad()
    return gradients, sum(losses) / len(losses)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_update_is_eq_3_of_the_paper(network: Build, groups: list[Group], steps: int) -> None:
    core = make_core(network, MIRROR, steps=steps, learning={"skip_zero_advantage": False})
    seen = watch(core)
    report = core.update(groups)
    size = len(groups) // steps
    batches = [groups[start : start + size] for start in range(0, len(groups), size)]
    naive = tiny_network("llama", 0, attention="sdpa")
    gradients, loss = naive_update(naive, batches, MIRROR.tau)
    assert len(seen) == steps
    for mine, expected in zip(seen, gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=5e-5)
    assert report.metrics["learn/loss"] == pytest.approx(loss, rel=1e-4)
    trained = {name: parameter.detach() for name, parameter in naive.named_parameters()}
    torch.testing.assert_close(core.optimiser.master_tensors(), trained, rtol=0, atol=1e-5)


def test_token_means_count_the_tokens_of_the_whole_minibatch(network: Build, groups: list[Group]) -> None:
    core = make_core(network, PositivesConfig(), learning={"row_tokens": 16})
    seen = watch(core)
    report = core.update(groups)
    naive = tiny_network("llama", 0, attention="sdpa")
    chosen = [naive_logprob(naive, group, j)
              for group in groups for j, verdict in enumerate(group.verdicts) if verdict.score >= 1.0]
    loss = -torch.cat(chosen).mean()
    loss.backward()
    assert report.metrics["learn/loss"] == pytest.approx(loss.item(), rel=1e-5)
    expected = {name: parameter.grad for name, parameter in naive.named_parameters()}
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("loss", "steps"), [
    (MIRROR, 1), (MIRROR, 3), (GRPO, 1), (GRPO, 2), (DECOUPLED, 2), (PENALISED, 2), (PositivesConfig(), 2),
], ids=["mirror-1", "mirror-3", "grpo-1", "grpo-2", "decoupled-2", "penalised-2", "positives-2"])
def test_packing_changes_neither_loss_nor_gradient(network: Build, groups: list[Group], loss: LossConfig,
                                                   steps: int) -> None:
    found = []
    for row_tokens, share in ((16, False), (24, True), (4096, False), (4096, True)):
        core = make_core(network, loss, steps=steps,
                         learning={"row_tokens": row_tokens, "share_prompts": share})
        seen = watch(core)
        found.append((seen, core.update(groups)))
    (expected, first), *others = found
    assert len(expected) == steps
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in expected[-1].values())
    for seen, report in others:
        for index, (mine, gradients) in enumerate(zip(seen, expected, strict=True)):
            # Products round a token by the shape of its row, and Adam makes a whole step of a gradient near 0.
            torch.testing.assert_close(mine, gradients, rtol=1e-5, atol=1e-5 if index == 0 else 5e-5)
        assert report.metrics == pytest.approx(first.metrics, rel=1e-4, abs=1e-5)
        assert (report.carried_tokens, report.masked_tokens) == (first.carried_tokens, first.masked_tokens)


@pytest.mark.parametrize(("loss", "steps"), [(MIRROR, 1), (MIRROR, 2), (GRPO, 2), (PENALISED, 1)])
def test_leaving_out_zero_advantage_changes_no_weight(network: Build, groups: list[Group], loss: LossConfig,
                                                      steps: int) -> None:
    cores = [
        make_core(network, loss, steps=steps, learning={"skip_zero_advantage": skip})
        for skip in (True, False)
    ]
    seen = [watch(core) for core in cores]
    flat = [replace(group, verdicts=(group.verdicts[0],) * 3) for group in groups]
    for number, batch in enumerate((groups, flat, groups)):
        skipped, forwarded = (core.update(again_at(batch, PolicyVersion(0, number))) for core in cores)
        assert skipped.committed
        assert skipped.metrics["learn/loss"] == pytest.approx(forwarded.metrics["learn/loss"], abs=1e-5)
    for mine, expected in zip(*seen, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights(cores[0]), weights(cores[1]), rtol=0, atol=1e-6)


def test_what_may_be_left_out_depends_on_loss_and_step(network: Build, groups: list[Group]) -> None:
    tokens = sum(t.length for group in groups for t in group.trajectories)
    flat = sum(t.length for t in groups[1].trajectories)

    def masked(loss: LossConfig, steps: int) -> int:
        report = make_core(network, loss, steps=steps).update(groups)
        assert report.carried_tokens + sum(report.masked_tokens.values()) == tokens
        return report.masked_tokens.get("zero_advantage", 0)

    assert masked(MIRROR, 1) == masked(MIRROR, 2) == flat, "the group stands in the first minibatch"
    assert masked(MIRROR, 4) == 0, "from the second step on, tau pulls it"
    assert masked(replace(MIRROR, tau=0.0), 4) == flat
    assert masked(GRPO, 4) == flat
    assert masked(PENALISED, 1) == 0


def test_the_reference_pass_runs_only_where_it_matters(network: Build, groups: list[Group],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(loss: LossConfig, steps: int) -> int:
        core = make_core(network, loss, steps=steps)
        rows: list[bool] = []

        def counting(*arguments: Any) -> tuple[Tensor, Tensor]:
            rows.append(torch.is_grad_enabled())
            return score_row(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr("engine.learn.step.score_row", counting)
            core.update(groups)
        return rows.count(False)

    assert passes(MIRROR, 1) == 0
    assert passes(MIRROR, 2) == 1
    assert passes(MIRROR, 4) == 3
    assert passes(replace(MIRROR, tau=0.0), 4) == 0
    assert passes(GRPO, 4) == 0
    assert passes(DECOUPLED, 2) == 1


def test_minibatches_are_groups_in_order_and_nearly_equal(network: Build) -> None:
    core = make_core(network, MIRROR, steps=3)
    for count in range(1, 9):
        marks = [[Sample(*[np.zeros(0)] * 5, group=index)] for index in range(count)]  # type: ignore[arg-type]
        split = core._minibatches(marks)
        assert [mark for batch in split for mark in batch] == marks
        sizes = [len(batch) for batch in split]
        assert len(sizes) == min(3, count)
        assert max(sizes) - min(sizes) <= 1


# ---- versions, tokens, metrics -------------------------------------------------------------------


def test_every_update_is_the_next_version(network: Build, groups: list[Group]) -> None:
    core = make_core(network, MIRROR)
    before = weights(core)
    report = core.update(groups)
    assert report.committed
    assert report.version == core.version == PolicyVersion(0, 1)
    assert not torch.equal(weights(core), before)
    assert report.busy[0] <= report.busy[1]
    assert core.update(again_at(groups, PolicyVersion(0, 1))).version == PolicyVersion(0, 2)


def test_staleness_is_counted_and_bounded(network: Build, group: Callable[..., Group]) -> None:
    versions = [PolicyVersion(0, 0), PolicyVersion(0, 1), PolicyVersion(0, 2)]
    mixed = [group(0, (1.0, 0.0, 0.0), (9, 4, 2), versions=versions)]
    wide = {"kind": "async", "max_staleness": 2}
    core = make_core(network, MIRROR, schedule=wide)
    core.version = PolicyVersion(0, 2)
    assert core.update(mixed).staleness == {2: 8, 1: 4, 0: 3}

    narrow = {**wide, "max_staleness": 1}
    core = make_core(network, MIRROR, schedule=narrow)
    core.version = PolicyVersion(0, 2)
    before = weights(core)
    with pytest.raises(StalenessError, match="bound of 1"):
        core.update(mixed)
    assert torch.equal(weights(core), before)
    assert core.version == PolicyVersion(0, 2)

    core = make_core(network, MIRROR, schedule={**narrow, "on_straggler": Straggler.mask})
    core.version = PolicyVersion(0, 2)
    report = core.update(mixed)
    assert (report.masked_tokens, report.carried_tokens) == ({"stale": 8}, 7)
    assert report.staleness == {1: 4, 0: 3}


@pytest.mark.parametrize("loss", [
    MIRROR, GRPO, DECOUPLED, PENALISED, PositivesConfig(),
    MirrorDescentConfig(baseline=Baseline.leave_one_out),
])
@pytest.mark.parametrize("skip", [False, True])
def test_carried_and_masked_add_up_to_delivered(network: Build, groups: list[Group], loss: LossConfig,
                                                skip: bool) -> None:
    report = make_core(network, loss, steps=2, learning={"skip_zero_advantage": skip}).update(groups)
    assert report.carried_tokens + sum(report.masked_tokens.values()) == sum(
        trajectory.length for group in groups for trajectory in group.trajectories
    )
    assert sum(report.staleness.values()) == report.carried_tokens
    for name, value in report.metrics.items():
        require_documented(name)
        assert math.isfinite(value)


def test_metrics_of_a_known_batch(network: Build, groups: list[Group]) -> None:
    core = make_core(network, PENALISED, learning={"optimiser": replace(SMOOTH, warmup_steps=5)}, steps=2)
    metrics = core.update(groups).metrics
    assert metrics["rollout/total_reward_mean"] == pytest.approx(7.25 / 12)
    assert metrics["learn/zero_spread_groups"] == 1.0
    assert metrics["learn/learning_rate"] == pytest.approx(SMOOTH.learning_rate * 2 / 5)
    assert metrics["learn/non_finite_steps"] == 0.0
    assert 0.0 < metrics["learn/entropy"] < math.log(100)
    assert metrics["learn/fixed_kl"] > 0.0


def test_an_update_over_nothing_that_carries_loss(network: Build, group: Callable[..., Group]) -> None:
    core = make_core(network, MIRROR)
    before = weights(core)
    report = core.update([group(0, (1.0, 1.0, 1.0), (3, 4, 5))])
    assert (report.committed, report.carried_tokens, report.metrics["learn/loss"]) == (True, 0, 0.0)
    assert torch.equal(weights(core), before), "moments of 0 move nothing"


def test_behaviour_logprobs_of_the_learner_itself_leave_no_gap(network: Build, groups: list[Group]) -> None:
    core = make_core(network, MIRROR)
    model = tiny_network("llama", 0, attention="sdpa")
    true = []
    for group in groups:
        trajectories = []
        for j, trajectory in enumerate(group.trajectories):
            with torch.no_grad():
                found = naive_logprob(model, group, j).tolist()
            segments = []
            for segment in trajectory.segments:
                logprob = np.array([found.pop(0) if s else 0.0 for s in segment.sampled], np.float32)
                segments.append(replace(segment, behaviour_logprob=logprob))
            trajectories.append(replace(trajectory, segments=tuple(segments)))
        true.append(replace(group, trajectories=tuple(trajectories)))
    assert core.update(true).metrics["learn/logprob_gap_mean_nats"] < 1e-4
    core = make_core(network, MIRROR)
    assert core.update(groups).metrics["learn/logprob_gap_mean_nats"] > 0.1


def test_logprobs_answer_in_order(network: Build, groups: list[Group]) -> None:
    core = make_core(network, MIRROR, learning={"row_tokens": 16})
    model = tiny_network("llama", 0, attention="sdpa")
    pairs = [(group, j) for group in reversed(groups) for j in range(3)]
    samples = []
    for index, (group, j) in enumerate(pairs):
        segments = group.trajectories[j].segments
        tokens = group.trajectories[j].token_ids
        carries = np.concatenate([s.sampled for s in segments])
        heat = np.full(len(tokens), 1.0 / segments[0].temperature, np.float32)
        samples.append(
            Sample(group.prompt_tokens, tokens, carries, np.zeros(len(tokens), np.float32), heat, index)
        )
    with torch.no_grad():
        expected = [naive_logprob(model, group, j) for group, j in pairs]
    found = core.logprobs(samples)
    for mine, other in zip(found, expected, strict=True):
        assert not mine.requires_grad
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


# ---- what is not finite --------------------------------------------------------------------------


def poisoned(groups: list[Group], which: int) -> list[Group]:
    """One behaviour log-prob of one group is infinite."""
    group = groups[which]
    segment = group.trajectories[0].segments[0]
    logprob = segment.behaviour_logprob.copy()
    logprob[0] = -np.inf
    bad = replace(group.trajectories[0], segments=(
        replace(segment, behaviour_logprob=logprob), *group.trajectories[0].segments[1:]
    ))
    return [
        replace(group, trajectories=(bad, *group.trajectories[1:])) if index == which else other
        for index, other in enumerate(groups)
    ]


def spoil_gradients(core: LearnerCore) -> Any:
    """From now on the gradient of one weight is not a number; the losses stay finite."""
    parameter = core.network.model.norm.weight
    return parameter.register_hook(lambda gradient: gradient * math.nan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cause", ["gradient", "behaviour"])
@pytest.mark.parametrize("loss", [MIRROR, GRPO], ids=["mirror", "grpo"])
def test_what_is_not_finite_is_not_committed(
    network: Build, groups: list[Group], dtype: torch.dtype, cause: str, loss: LossConfig
) -> None:
    core = make_core(network, loss, dtype=dtype)
    core.update(groups)
    groups = again_at(groups, PolicyVersion(0, 1))
    before, state, steps = weights(core), moments(core), core.optimiser.steps
    working = copy.deepcopy(core.network.state_dict())
    hook = spoil_gradients(core) if cause == "gradient" else None
    batch = poisoned(groups, 2) if cause == "behaviour" else groups
    for _ in range(MAX_NON_FINITE_UPDATES - 1):
        report = core.update(batch)
        assert not report.committed
        assert report.version == core.version == PolicyVersion(0, 1)
        assert report.metrics["learn/non_finite_steps"] == 1.0
        assert all(map(math.isfinite, report.metrics.values()))
    with pytest.raises(NonFiniteError, match=r"3 updates in a row .* groups \[0, 1, 2, 3\]"):
        core.update(batch)
    assert torch.equal(weights(core), before)
    assert all(torch.equal(one, other) for one, other in zip(moments(core), state, strict=True))
    assert all(torch.equal(value, working[name]) for name, value in core.network.state_dict().items())
    assert core.optimiser.steps == steps
    if hook is not None:
        hook.remove()
    assert core.update(groups).committed, "nothing of the bad gradients is left"


def test_a_finite_update_forgives_earlier_ones(network: Build, groups: list[Group]) -> None:
    core = make_core(network, MIRROR)
    for _ in range(3):
        at = again_at(groups, core.version)
        assert not core.update(poisoned(at, 0)).committed
        assert not core.update(poisoned(at, 0)).committed
        assert core.update(at).committed


def test_one_bad_step_leaves_the_others(network: Build, groups: list[Group]) -> None:
    core, clean = (make_core(network, replace(MIRROR, tau=0.0), steps=2) for _ in range(2))
    seen = watch(core)
    report = core.update(poisoned(groups, 3))
    assert report.committed
    assert report.metrics["learn/non_finite_steps"] == 1.0
    assert len(seen) == 1
    assert core.optimiser.steps == 1
    clean.update(groups)
    assert report.metrics["learn/loss"] != 0.0
    assert not torch.equal(weights(core), weights(clean))


# ---- precision, reset, state ---------------------------------------------------------------------


def test_in_bf16_the_working_weights_are_the_rounded_master(network: Build, groups: list[Group]) -> None:
    small = {"optimiser": OptimiserConfig(learning_rate=1e-4), "precision": Precision.bfloat16}
    core = make_core(network, MIRROR, dtype=torch.bfloat16, steps=2, learning=small)
    for number in range(3):
        assert core.update(again_at(groups, PolicyVersion(0, number))).committed
    below = 0
    for name, master in core.optimiser.master_tensors().items():
        working = core.network.get_parameter(name)
        assert (working.dtype, master.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(working, master.to(torch.bfloat16))
        below += int((working.float() != master).sum())
    assert below > 0


def test_bf16_and_fp32_agree_on_the_gradient(network: Build, groups: list[Group]) -> None:
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        core = make_core(network, MIRROR, dtype=dtype)
        seen = watch(core)
        core.update(groups)
        gradients.append(torch.cat([value.flatten() for value in seen[0].values()]))
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.99


def test_reset_clears_the_moments_at_the_start_of_every_update(network: Build, groups: list[Group]) -> None:
    reset = {"reset_optimiser": True}
    core = make_core(network, MIRROR, steps=2, learning=reset)
    kept = make_core(network, MIRROR, steps=2)
    core.update(groups)
    kept.update(groups)
    assert torch.equal(weights(core), weights(kept)), "the first update starts from nothing anyway"
    fresh = LearnerCore(copy.deepcopy(core.network), run_config(MIRROR, steps=2))
    fresh.version = core.version
    later = again_at(groups, core.version)
    for one in (core, kept, fresh):
        one.update(later)
    assert torch.equal(weights(core), weights(fresh))
    assert not torch.equal(weights(core), weights(kept))
    assert core.optimiser.steps == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_learner_goes_on_bit_for_bit(network: Build, groups: list[Group],
                                                dtype: torch.dtype) -> None:
    core = make_core(network, MIRROR, dtype=dtype, steps=2)
    for number in range(2):
        core.update(again_at(groups, PolicyVersion(0, number)))
    core.update(poisoned(poisoned(again_at(groups, PolicyVersion(0, 2)), 0), 2))
    other = make_core(network, MIRROR, seed=1, dtype=dtype, steps=2)
    other.load_state_dict(copy.deepcopy(core.state_dict()))
    assert other.version == core.version == PolicyVersion(0, 2)
    reports = []
    for one in (core, other):
        one.version = one.version.forked()
        reports.append([one.update(again_at(groups, one.version)) for _ in range(2)])
    assert torch.equal(weights(core), weights(other))
    mine, restored = ([replace(report, busy=(0.0, 0.0)) for report in side] for side in reports)
    assert mine == restored


def test_the_count_of_bad_updates_is_part_of_the_state(network: Build, groups: list[Group]) -> None:
    core, other = (make_core(network, MIRROR) for _ in range(2))
    for _ in range(2):
        core.update(poisoned(groups, 0))
    other.load_state_dict(core.state_dict())
    with pytest.raises(NonFiniteError):
        other.update(poisoned(groups, 0))


class Moves:
    """A network that notes where it is sent, and goes nowhere."""

    def __init__(self, network: Any) -> None:
        self.network, self.seen = network, []
        network.to = lambda device: self.seen.append(device)


def colocated(config: RunConfig) -> RunConfig:
    return replace(config, cluster=ClusterConfig(placement=Placement.colocated))


def test_in_turns_the_learner_comes_learns_and_goes(network: Build, groups: list[Group]) -> None:
    resting = network()
    moves = Moves(resting)
    core = LearnerCore(resting, colocated(run_config(MIRROR)))
    assert moves.seen == [], "it waits in the host's memory"
    core.device = torch.device("cpu")
    report = core.update(groups)
    assert moves.seen == [core.device, torch.device("cpu")]
    assert {"hybrid/onload_seconds", "hybrid/offload_seconds"} <= report.metrics.keys()
    for name in report.metrics:
        require_documented(name)
    alone = make_core(network, MIRROR)
    plain = alone.update(groups)
    assert not any(name.startswith("hybrid") for name in plain.metrics)
    assert torch.equal(weights(core), weights(alone)), "where it rests changes no bit"


@pytest.mark.parametrize("loss", [MIRROR, GRPO, DECOUPLED, PENALISED, PositivesConfig()])
def test_a_row_is_scored_and_judged_where_it_is(network: Build, groups: list[Group], loss: LossConfig) -> None:
    """On a device without memory: an operand that was left on the processor could not meet the others."""
    core, meta = make_core(network, loss), torch.device("meta")
    accounts = Accounts()
    batches = samples_of(groups, core.loss, core.config.reward, core._rule(), accounts)
    ((rows, scale),) = [core._rows(batch, True, accounts) for batch in core._minibatches(batches)]
    core.device = meta
    for part in (core.network, core._fixed_network):
        if part is not None:
            part.to(meta)
    row = rows[0].to(meta)
    assert row.to(meta) is row
    logprob, entropy = score_row(core.network, row, core.loss.needs_entropy)
    reference = logprob.detach() if core.loss.needs_reference else None
    inputs = core._inputs(row, logprob, entropy, reference, core._fixed(row))
    output = core.loss(inputs, scale)
    output.loss.backward()
    found = [logprob, inputs.advantage, inputs.num_tokens, output.loss, *output.metrics.values()]
    found += [parameter.grad for parameter in core.network.parameters()]
    assert {tensor.device.type for tensor in found} == {"meta"}
