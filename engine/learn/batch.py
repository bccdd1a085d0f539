"""From complete groups to samples: rewards, advantages, and which tokens carry loss and why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from engine.config.rewards import RewardConfig
from engine.config.schedule import SegmentsInLoss
from engine.errors import NonFiniteError, StalenessError
from engine.learn.packing import Sample
from engine.losses.objective import Loss
from engine.records.trajectory import FinishReason, Group, MaskReason, Trajectory
from engine.records.version import PolicyVersion, staleness_versions
from engine.rewards.length_penalty import total_rewards


@dataclass(frozen=True, slots=True)
class LossRule:
    """Which tokens may carry loss at the version being trained."""

    version: PolicyVersion
    max_staleness: int
    segments: SegmentsInLoss
    mask_stale: bool
    """True: older tokens are masked; False: they must not exist."""
    mask_truncated: bool
    max_response_tokens: int


@dataclass(slots=True)
class Accounts:
    """What became of every token of a batch."""

    masked: Counter[str] = field(default_factory=Counter)
    staleness: Counter[int] = field(default_factory=Counter)
    carried: int = 0
    rewards: list[float] = field(default_factory=list)
    zero_spread_groups: int = 0


def samples_of(groups: Sequence[Group], loss: Loss, reward: RewardConfig, rule: LossRule,
               accounts: Accounts) -> list[list[Sample]]:
    """The samples of each group, with advantages and loss masks; counts go to ``accounts``.

    Raises:
        StalenessError: a token is older than the bound and masking was not asked for.
        NonFiniteError: a reward or behaviour log-prob is not finite.
    """
    batches = []
    for group in groups:
        rewards = total_rewards(group, reward, rule.version.updates, rule.max_response_tokens)
        if not np.isfinite(rewards).all():
            raise NonFiniteError(f"group {group.group_id} has rewards {rewards}: check its judge")
        values = torch.tensor(rewards, dtype=torch.float32)
        advantages = loss.advantage(values).tolist()
        selected = loss.selects(values).tolist()
        accounts.rewards += rewards
        accounts.zero_spread_groups += max(rewards) == min(rewards)
        newest = max((s.version.updates for t in group.trajectories for s in t.segments), default=0)
        batches.append([
            _sample(group, trajectory, advantage, chosen, newest, rule, accounts)
            for trajectory, advantage, chosen in zip(group.trajectories, advantages, selected, strict=True)
        ])
    return batches


def _sample(group: Group, trajectory: Trajectory, advantage: float, chosen: bool, newest: int,
            rule: LossRule, accounts: Accounts) -> Sample:
    carries = np.concatenate([s.sampled for s in trajectory.segments])
    logprob = np.concatenate([s.behaviour_logprob for s in trajectory.segments])
    if not np.isfinite(logprob).all():
        raise NonFiniteError(f"trajectory {trajectory.trajectory_id} carries log-probs that are not finite")
    sizes = [len(s.token_ids) for s in trajectory.segments]
    ages = np.repeat([staleness_versions(rule.version, s.version) for s in trajectory.segments], sizes)
    versions = np.repeat([s.version.updates for s in trajectory.segments], sizes)
    heat = np.repeat([s.temperature for s in trajectory.segments], sizes).astype(np.float32)

    def mask(where: NDArray[np.bool_], reason: MaskReason) -> None:
        hit = carries & where
        if hit.any():
            accounts.masked[reason.value] += int(hit.sum())
            carries[hit] = False

    everything = np.ones(len(carries), bool)
    if not chosen:
        mask(everything, MaskReason.not_selected)
    if rule.mask_truncated and trajectory.finish_reason is FinishReason.length:
        mask(everything, MaskReason.overlong)
    too_old = ages > rule.max_staleness
    if too_old.any() and not rule.mask_stale:
        raise StalenessError(
            f"trajectory {trajectory.trajectory_id} holds tokens {ages.max()} versions old at "
            f"{rule.version}, above the bound of {rule.max_staleness}"
        )
    mask(too_old, MaskReason.stale)
    if rule.segments is SegmentsInLoss.current:
        mask(versions < newest, MaskReason.earlier_round)
    for age, count in zip(*np.unique(ages[carries], return_counts=True), strict=True):
        accounts.staleness[int(age)] += int(count)
    return Sample(group.prompt_tokens, trajectory.token_ids, carries, logprob, 1.0 / heat,
                  group.group_id, advantage)
