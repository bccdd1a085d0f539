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
    """Reason -> tokens without loss."""
    staleness: Counter[int] = field(default_factory=Counter)
    """Versions -> tokens that carried loss."""
    carried: int = 0
    """Tokens that carried loss."""
    rewards: list[float] = field(default_factory=list)
    """Total reward of every trajectory."""
    zero_spread_groups: int = 0

    def settle(self, samples: Sequence[Sample], skip_zero_advantage: bool) -> list[Sample]:
        """Book the tokens of a minibatch; returns the samples that are forwarded.

        ``skip_zero_advantage`` leaves out those without advantage: their gradient is known to be 0.
        """
        kept = []
        for sample in samples:
            tokens = int(sample.carries_loss.sum())
            if skip_zero_advantage and sample.advantage == 0.0:
                if tokens:
                    self.masked[MaskReason.zero_advantage.value] += tokens
                continue
            self.carried += tokens
            if sample.staleness is not None:
                ages, counts = np.unique(sample.staleness[sample.carries_loss], return_counts=True)
                self.staleness.update(dict(zip(ages.tolist(), counts.tolist(), strict=True)))
            kept.append(sample)
        return kept


def samples_of(groups: Sequence[Group], loss: Loss, reward: RewardConfig, rule: LossRule,
               accounts: Accounts) -> list[list[Sample]]:
    """The samples of each group, with advantages and loss masks; masked tokens go to ``accounts``.

    Raises:
        StalenessError: a token is older than the bound and masking was not asked for.
        NonFiniteError: a reward is not finite.
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
    segments = trajectory.segments
    carries = np.concatenate([np.zeros(0, bool), *(s.sampled for s in segments)])
    logprob = np.concatenate([np.zeros(0, np.float32), *(s.behaviour_logprob for s in segments)])
    sizes = [len(s.token_ids) for s in segments]
    ages = np.repeat(
        np.asarray([staleness_versions(rule.version, s.version) for s in segments], np.int64), sizes
    )
    versions = np.repeat(np.asarray([s.version.updates for s in segments], np.int64), sizes)
    heat = np.repeat(np.asarray([s.temperature for s in segments], np.float32), sizes)

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
    return Sample(group.prompt_tokens, trajectory.token_ids, carries, logprob, 1.0 / heat,
                  group.group_id, advantage, ages)
