"""Importance weights for tokens that another policy drew than the one the update starts from.

The sampler's arithmetic and its older weights both put a gap between the behaviour policy and the anchor;
a truncated weight keeps the variance of its correction in check (TIS: Espeholt et al., arXiv 1802.01561;
for sampler and learner of different precision: Yao et al., 2025), a masked one drops what lies too far off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.config.learning import ImportanceConfig, ImportanceKind, Ratio, Reference
from engine.errors import ConfigError
from engine.losses.objective import LossInputs


def importance_weights(
    inputs: LossInputs, anchor_logprob: Tensor, config: ImportanceConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights anchor / behaviour, detached, per token: [M], and their metrics.

    Level ``sequence`` gives every token of a trajectory the ratio of the whole: the exponential of the sum
    of its log-ratios. ``truncated`` moves a weight to the nearer end of [floor, cap]; ``masked`` makes it 0
    outside and leaves it as it is inside; ``none`` is 1 everywhere.

    Metrics: ``importance_weight``, the mean weight used; ``importance_outside``, the fraction of tokens
    that were truncated or masked.
    """
    if config.kind is ImportanceKind.none:
        return torch.ones_like(inputs.behaviour_logprob), {}
    log_ratio = (anchor_logprob - inputs.behaviour_logprob).detach()
    if config.level is Ratio.sequence:
        log_ratio = inputs.spread_over_tokens(inputs.sum_per_trajectory(log_ratio))
    ratio = log_ratio.exp()
    outside = (ratio > config.cap) | (ratio < config.floor)
    if config.kind is ImportanceKind.truncated:
        weight = ratio.clamp(config.floor, config.cap)
    else:
        weight = ratio.masked_fill(outside, 0.0)
    return weight, {
        "importance_weight_sum": weight.sum(),
        "importance_outside_sum": outside.sum().to(weight.dtype),
    }


def require_anchor(config: ImportanceConfig, reference: Reference, key: str) -> None:
    """Refuse weights between the behaviour policy and itself: they would all be 1 and correct nothing.

    ``key`` is the dotted name of the option that chose the anchor.

    Raises:
        ConfigError: importance weights are on and the anchor is the behaviour policy.
    """
    if config.kind is not ImportanceKind.none and reference is Reference.behaviour:
        raise ConfigError(
            key,
            reference.value,
            f"loss.importance.kind={config.kind.value} weighs the anchor against the behaviour policy, and "
            f"here they are one; give {key}=start_of_update, or loss.importance.kind=none",
        )
