"""A loss of your own: REINFORCE, the mean over all tokens of -A log p."""

from torch import Tensor

from engine.config.learning import DottedLossConfig
from engine.losses.objective import LossInputs, LossOutput, LossScale, all_selected, batch_metrics


class Reinforce:
    """See engine.losses.objective.Loss for what each of these promises."""

    needs_reference = needs_fixed = needs_entropy = False
    selects = staticmethod(all_selected)

    def advantage(self, rewards: Tensor) -> Tensor:
        """[K] -> [K]."""
        return rewards - rewards.mean()

    def skips_zero_advantage(self, first_step: bool) -> bool:
        """A weight of 0 has no gradient."""
        return True

    def __call__(self, inputs: LossInputs, scale: LossScale) -> LossOutput:
        """The share of one micro-batch: its sum over the tokens of the whole minibatch."""
        weighted = inputs.advantage[inputs.trajectory] * inputs.learner_logprob
        return LossOutput(-weighted.sum() * scale.per_token, batch_metrics(inputs))


def build(config: DottedLossConfig) -> Reinforce:
    """What ``loss.path=docs.examples.reinforce.build`` names."""
    return Reinforce()
