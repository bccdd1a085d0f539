"""Kullback-Leibler divergence by the estimator k3, and the terms that any objective may add."""

from __future__ import annotations

from torch import Tensor

from engine.config.learning import LossConfig
from engine.losses.objective import LossInputs, LossScale


def k3(sampled_logprob: Tensor, other_logprob: Tensor) -> Tensor:
    """Per-token estimate of KL(sampled || other) on tokens drawn from ``sampled``: [M] nats -> [M] nats.

    r - 1 - log r with r = other / sampled: unbiased and never negative (Schulman, "Approximating KL
    divergence", 2020; GRPO, arXiv 2402.03300, eq. 4).
    """
    log_ratio = other_logprob - sampled_logprob
    return log_ratio.expm1() - log_ratio


class Penalty:
    """``kl_coefficient`` times KL(learner || fixed first policy), less ``entropy_bonus`` times the entropy.

    Both are means over the loss-carrying tokens of the minibatch, whatever the aggregation of the
    objective they join, so that a coefficient means the same under every loss.
    """

    def __init__(self, config: LossConfig) -> None:
        self._kl_coefficient = config.kl_coefficient
        self._entropy_bonus = config.entropy_bonus
        self.needs_fixed = config.kl_coefficient > 0.0
        self.needs_entropy = config.entropy_bonus > 0.0

    @property
    def active(self) -> bool:
        """Whether a trajectory without advantage still has a gradient."""
        return self.needs_fixed or self.needs_entropy

    def __call__(self, inputs: LossInputs, scale: LossScale) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to add to the loss of a micro-batch, and its metrics.

        Metrics: ``behaviour_kl``, KL(behaviour || learner); ``fixed_kl``; ``entropy``; in nats a token.
        """
        learner = inputs.learner_logprob
        penalty = learner.new_zeros(())
        metrics = {"behaviour_kl_sum": k3(inputs.behaviour_logprob, learner.detach()).sum()}
        if self.needs_fixed:
            assert inputs.fixed_logprob is not None, "this loss needs_fixed: give fixed_logprob"
            kl = k3(learner, inputs.fixed_logprob).sum()
            penalty = penalty + self._kl_coefficient * scale.per_token * kl
            metrics["fixed_kl_sum"] = kl.detach()
        if self.needs_entropy:
            assert inputs.entropy is not None, "this loss needs_entropy: give entropy"
            entropy = inputs.entropy.sum()
            penalty = penalty - self._entropy_bonus * scale.per_token * entropy
            metrics["entropy_sum"] = entropy.detach()
        return penalty, metrics
