"""Likelihood of the correct responses only (ReST, arXiv 2308.08998), the rival in Kimi k1.5's figure 10."""

from __future__ import annotations

from torch import Tensor

from engine.config.learning import Baseline, ImportanceKind, PositivesConfig
from engine.errors import ConfigError
from engine.losses.kl import Penalty
from engine.losses.likelihood import negative_log_likelihood
from engine.losses.objective import LossInputs, LossOutput, LossScale, batch_metrics


class Positives:
    """Mean negative log-likelihood over the tokens of responses whose total reward reaches ``threshold``.

    The others carry no loss: there is no negative gradient, which is what the comparison is about.
    """

    needs_reference = False

    def __init__(self, config: PositivesConfig) -> None:
        remedy = "positives weigh every chosen response by 1; leave this option at its default"
        if config.baseline is not Baseline.none:
            raise ConfigError("loss.baseline", config.baseline.value, remedy)
        if config.normalise_std:
            raise ConfigError("loss.normalise_std", config.normalise_std, remedy)
        if config.importance.kind is not ImportanceKind.none:
            raise ConfigError("loss.importance.kind", config.importance.kind.value, remedy)
        self._threshold = config.threshold
        self._penalty = Penalty(config)
        self.needs_fixed = self._penalty.needs_fixed
        self.needs_entropy = self._penalty.needs_entropy

    def advantage(self, rewards: Tensor) -> Tensor:
        """1 where a response is fitted, 0 elsewhere: [K] -> [K]."""
        return self.selects(rewards).to(rewards.dtype)

    def selects(self, rewards: Tensor) -> Tensor:
        """Total rewards of at least the threshold: [K] -> [K] bool."""
        return rewards >= self._threshold

    def skips_zero_advantage(self, first_step: bool) -> bool:
        """True unless KL or entropy terms move every token."""
        return not self._penalty.active

    def __call__(self, inputs: LossInputs, scale: LossScale) -> LossOutput:
        """See :class:`engine.losses.objective.Loss`."""
        chosen = inputs.spread_over_tokens(inputs.advantage) * inputs.learner_logprob
        loss = negative_log_likelihood(chosen, scale.tokens)
        penalty, metrics = self._penalty(inputs, scale)
        return LossOutput(loss + penalty, {**batch_metrics(inputs), **metrics})
