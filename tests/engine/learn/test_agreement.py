"""The canary's measure over deliveries."""

import numpy as np
import pytest

from engine.learn.agreement import logprob_gap
from engine.records.trajectory import FinishReason, Segment
from engine.records.version import PolicyVersion
from engine.records.work import Delivery
from tests.engine.learn.test_step import MIRROR, make_core
from tests.small_models import random_prompt, teacher_forced

VERSION = PolicyVersion(0, 0)


def test_the_gap_is_that_of_every_token_of_every_segment(network):
    core = make_core(network, MIRROR)
    prompts = [random_prompt(seed, 5) for seed in (1, 2)]
    responses = [random_prompt(seed, 6) for seed in (3, 4)]
    logprobs = teacher_forced(core.network, prompts, responses, temperature=0.5)
    logprobs[1][4] += 0.25

    def delivery(index):
        parts = [slice(0, 2), slice(2, 6)]
        segments = tuple(
            Segment(responses[index][part], np.ones(part.stop - part.start, bool), logprobs[index][part],
                    VERSION, 0.5, VERSION)
            for part in parts
        )
        return Delivery(index, 0, segments, FinishReason.stop)

    mean, largest = logprob_gap(core, [(prompt, delivery(index)) for index, prompt in enumerate(prompts)])
    assert largest == pytest.approx(0.25, abs=1e-5)
    assert mean == pytest.approx(0.25 / 12, abs=1e-5)
