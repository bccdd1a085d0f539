from __future__ import annotations

import pytest
import torch

from tests.tools.bench.test_learner import FakeReference
from tools.bench import sampler
from tools.bench.subject import Subject


def test_a_plain_step_sees_one_more_token_in_every_row(subject: Subject) -> None:
    plain = sampler.PlainSteps(subject)
    before = plain._cache.get_seq_length()
    plain.step()
    assert plain._cache.get_seq_length() == before + 1
    assert plain._token.shape == (subject.amounts.sequences,)
    assert plain._mask.dtype == torch.int64


def test_ratios_are_theirs_over_ours(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    other = FakeReference()
    monkeypatch.setattr(sampler, "reference_side", lambda *_: other)
    found = sampler.measure(subject, 1)
    ours = found["sampler_step_ms_perilune"]["median"]
    assert found["sampler_slots"] == subject.amounts.sequences
    assert found["ratio_sampler_step_vs_reference"] == pytest.approx(1e9 / ours)
    assert found["ratio_sampler_step_vs_transformers"] > 0
    assert other.closed
