"""Log-probs of a row are those of its sequences alone."""

from __future__ import annotations

import numpy as np
import torch

from engine.learn.forward import score_row
from engine.learn.packing import pack
from tests.engine.learn.test_packing import sample
from tests.small_models import teacher_forced, tiny_network


def test_a_row_is_scored_as_its_sequences_are() -> None:
    network = tiny_network()
    samples = [sample(0, 4, 6), sample(0, 4, 3, start=2)]
    (row,) = pack(samples, 64, share_prompts=False)
    with torch.no_grad():
        logprob, entropy = score_row(network, row, want_entropy=True)
        quiet = score_row(network, row)[1]
    expected = teacher_forced(network, [s.prompt_tokens for s in samples], [s.response for s in samples], 1 / 0.5)
    torch.testing.assert_close(logprob, torch.from_numpy(np.concatenate(expected)), rtol=1e-5, atol=1e-5)
    assert (entropy > 0).all()
    assert not quiet.any()
