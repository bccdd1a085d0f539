"""Whether generator and learner agree on what a token's probability is: the canary's measure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.learn.packing import Sample
from engine.learn.step import LearnerCore
from engine.records.work import Delivery


def logprob_gap(core: LearnerCore, items: Sequence[tuple[NDArray[np.int32], Delivery]]) -> tuple[float, float]:
    """Mean and largest absolute gap between behaviour and learner log-probs, nats.

    Args:
        core: of the learner; every rank asks it.
        items: prompt tokens and what a generator made of them.
    """
    samples, behaviour = [], []
    for index, (prompt_tokens, delivery) in enumerate(items):
        tokens = np.concatenate([segment.token_ids for segment in delivery.segments])
        logprob = np.concatenate([segment.behaviour_logprob for segment in delivery.segments])
        heat = np.float32(1.0 / delivery.segments[0].temperature)
        samples.append(Sample(prompt_tokens, tokens, np.ones(len(tokens), bool), logprob,
                              np.full(len(tokens), heat, np.float32), index))
        behaviour.append(torch.from_numpy(logprob))
    gap = (torch.cat(core.logprobs(samples)) - torch.cat(behaviour)).abs()
    return float(gap.mean()), float(gap.max())
