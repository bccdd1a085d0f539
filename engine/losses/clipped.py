"""The clipped family: PPO without a critic and its relatives, told apart by options alone.

PPO arXiv 1707.06347, eq. 7; GRPO 2402.03300, eq. 3; Dr. GRPO 2503.20783; DAPO 2503.14476, eq. 8;
RLOO 2402.14740; GSPO 2507.18071, eq. 5; CISPO 2506.13585 (MiniMax-M1), eq. 4; decoupled PPO 2110.00641 and
2505.24298 (AReaL).
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.config.learning import Aggregation, Baseline, ClippedConfig, Ratio, Reference
from engine.errors import ConfigError
from engine.losses.baseline import advantages
from engine.losses.importance import importance_weights, require_anchor
from engine.losses.kl import Penalty
from engine.losses.objective import LossInputs, LossOutput, LossScale, all_selected, batch_metrics


class Clipped:
    """Token loss -min(ratio A, clip(ratio, 1 - low, 1 + high) A), ratio = learner / proximal policy.

    ``ratio=sequence`` uses the geometric mean of the token ratios of a trajectory for each of its tokens
    (GSPO). ``stop_gradient_clip`` uses -clip(ratio) A log pi with the clipped ratio detached (CISPO): a
    clipped token keeps its gradient. Importance weights multiply the token loss, detached (decoupled PPO).

    Metrics: ``clip_fraction``, tokens whose gradient is cut or, under CISPO, whose weight is; ``ratio``.
    """

    def __init__(self, config: ClippedConfig) -> None:
        if config.baseline is Baseline.log_mean_exp:
            raise ConfigError(
                "loss.baseline", "log_mean_exp", "it needs the tau of loss=mirror_descent; give mean"
            )
        require_anchor(config.importance, config.proximal, "loss.proximal")
        self._config = config
        self._penalty = Penalty(config)
        self.needs_reference = config.proximal is Reference.start_of_update
        self.needs_fixed = self._penalty.needs_fixed
        self.needs_entropy = self._penalty.needs_entropy

    def advantage(self, rewards: Tensor) -> Tensor:
        """See :class:`engine.losses.objective.Loss`."""
        return advantages(rewards, self._config.baseline, self._config.normalise_std)

    def selects(self, rewards: Tensor) -> Tensor:
        """See :class:`engine.losses.objective.Loss`."""
        return all_selected(rewards)

    def skips_zero_advantage(self, first_step: bool) -> bool:
        """True unless KL or entropy terms move every token: the advantage multiplies the rest."""
        return not self._penalty.active

    def __call__(self, inputs: LossInputs, scale: LossScale) -> LossOutput:
        """See :class:`engine.losses.objective.Loss`."""
        anchor = inputs.anchor_logprob(self._config.proximal)
        weight, weight_metrics = importance_weights(inputs, anchor, self._config.importance)
        ratio = self._ratio(inputs, anchor)
        token_loss, clipped = self._token_loss(inputs, ratio)
        loss = self._aggregate(weight * token_loss, inputs, scale)
        penalty, penalty_metrics = self._penalty(inputs, scale)
        own = {
            "clip_fraction_sum": clipped.sum().to(ratio.dtype),
            "ratio_sum": ratio.detach().sum(),
        }
        return LossOutput(
            loss + penalty, {**batch_metrics(inputs), **own, **weight_metrics, **penalty_metrics}
        )

    def _ratio(self, inputs: LossInputs, anchor: Tensor) -> Tensor:
        """[M] ratios, differentiable."""
        log_ratio = inputs.learner_logprob - anchor
        if self._config.ratio is Ratio.sequence:
            means = inputs.sum_per_trajectory(log_ratio) / inputs.num_tokens.clamp(min=1)
            log_ratio = inputs.spread_over_tokens(means)
        return log_ratio.exp()

    def _token_loss(self, inputs: LossInputs, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """[M] losses before aggregation, and [M] bool where the clip bites."""
        advantage = inputs.spread_over_tokens(inputs.advantage)
        bounded = ratio.clamp(1.0 - self._config.clip_low, 1.0 + self._config.clip_high)
        if self._config.stop_gradient_clip:
            return -bounded.detach() * advantage * inputs.learner_logprob, ratio != bounded
        free, held = ratio * advantage, bounded * advantage
        return -torch.minimum(free, held), held < free

    def _aggregate(self, token_loss: Tensor, inputs: LossInputs, scale: LossScale) -> Tensor:
        """[M] -> scalar, in which every micro-batch holds its share of the minibatch."""
        aggregation = self._config.aggregation
        if aggregation is Aggregation.token_mean:
            return token_loss.sum() * scale.per_token
        if aggregation is Aggregation.sequence_mean:
            lengths = inputs.spread_over_tokens(inputs.num_tokens.clamp(min=1))
            return (token_loss / lengths).sum() / scale.trajectories
        constant = self._config.aggregation_constant_tokens or 1.0
        return token_loss.sum() / (constant * scale.trajectories)
