"""Supervised fine-tuning: the likelihood of given responses."""

from __future__ import annotations

from torch import Tensor


def negative_log_likelihood(learner_logprob: Tensor, tokens: int) -> Tensor:
    """The share of one micro-batch in the mean negative log-likelihood of a minibatch: [M] nats -> scalar.

    ``tokens`` counts the loss-carrying tokens of the whole minibatch, so that micro-batches add up to the
    mean; a minibatch without any gives 0.

    Example:
        >>> import torch
        >>> negative_log_likelihood(torch.tensor([-1.0, -2.0]), tokens=6)
        tensor(0.5000)
    """
    return -learner_logprob.sum() / max(tokens, 1)
