"""Online policy mirror descent: the objective of Kimi k1.5 (arXiv 2501.12599, section 2.3.2, eq. 3)."""

from __future__ import annotations

from torch import Tensor

from engine.config.learning import Baseline, ImportanceKind, MirrorDescentConfig, Reference
from engine.errors import ConfigError
from engine.losses.baseline import advantages
from engine.losses.importance import importance_weights, require_anchor
from engine.losses.kl import Penalty
from engine.losses.objective import LossInputs, LossOutput, LossScale, all_selected, batch_metrics
from engine.ops.policy_gradient import policy_gradient


class MirrorDescent:
    """To minimise, per prompt: (1/K) sum_j [ -A_j S_j + (tau/2) D_j^2 ]; the mean over all groups.

    S_j is the sum of learner log-probs over the loss-carrying tokens of trajectory j, D_j the sum of
    learner minus reference log-probs, A_j the reward less its baseline. The square is taken of the whole
    sequence; negative advantages stay, and nothing is clipped. ``length_normaliser`` divides S and D.

    Importance weights w multiply the detached coefficient of every token: its gradient is
    -w_t (A_j - tau D_j) grad log pi(t). The value reported stays eq. 3, unweighted.

    Metrics: ``drift_per_trajectory``, the mean of |D_j| in nats before ``length_normaliser``.
    """

    def __init__(self, config: MirrorDescentConfig) -> None:
        if config.baseline is Baseline.log_mean_exp and config.tau == 0.0:
            raise ConfigError("loss.tau", config.tau, "baseline log_mean_exp needs a positive tau")
        require_anchor(config.importance, config.reference, "loss.reference")
        self._config = config
        self._penalty = Penalty(config)
        self._anchored_at_start = config.reference is Reference.start_of_update
        weighted = config.importance.kind is not ImportanceKind.none
        self.needs_reference = self._anchored_at_start and (config.tau > 0.0 or weighted)
        self.needs_fixed = self._penalty.needs_fixed
        self.needs_entropy = self._penalty.needs_entropy

    def advantage(self, rewards: Tensor) -> Tensor:
        """See :class:`engine.losses.objective.Loss`."""
        return advantages(rewards, self._config.baseline, self._config.normalise_std, self._config.tau)

    def selects(self, rewards: Tensor) -> Tensor:
        """See :class:`engine.losses.objective.Loss`."""
        return all_selected(rewards)

    def skips_zero_advantage(self, first_step: bool) -> bool:
        """True where the pull to the reference is 0 as well: tau 0, or D 0 at the first step."""
        unmoved = self._anchored_at_start and first_step
        return not self._penalty.active and (self._config.tau == 0.0 or unmoved)

    def __call__(self, inputs: LossInputs, scale: LossScale) -> LossOutput:
        """See :class:`engine.losses.objective.Loss`."""
        tau, length = self._config.tau, self._config.length_normaliser
        anchor = inputs.anchor_logprob(self._config.reference)
        weight, weight_metrics = importance_weights(inputs, anchor, self._config.importance)
        # The op squares the sums of whole trajectories, and weighs the gradient but not the value.
        summed = policy_gradient(
            inputs.learner_logprob, inputs.spread_over_tokens(inputs.advantage / length),
            cu_seqlens=inputs.cu_seqlens, reference=anchor, weight=weight, tau=tau, length=length,
        )
        loss = summed.loss / (scale.groups * scale.samples_per_prompt)
        penalty, penalty_metrics = self._penalty(inputs, scale)
        own = {"drift_per_trajectory_sum": summed.drift.abs().sum()}
        return LossOutput(
            loss + penalty, {**batch_metrics(inputs), **own, **weight_metrics, **penalty_metrics}
        )
