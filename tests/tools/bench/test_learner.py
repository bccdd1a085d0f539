from __future__ import annotations

import pytest
import torch

from engine.models.policy import published_tensors
from tools.bench import learner
from tools.bench.subject import Subject


class FakeReference:
    """Answers at once."""

    closed = False

    def ask(self) -> dict[str, float]:
        return {"seconds": 1e6}

    def close(self) -> None:
        self.closed = True


def test_one_packed_row_of_so_many_tokens_and_every_weight_is_counted(subject: Subject) -> None:
    step = learner.LearnerStep(subject)
    assert sum(len(r) for r in step.responses) + sum(len(p) for p in step.prompts) == subject.amounts.learner_tokens
    before = {name: t.clone() for name, t in published_tensors(step.core.network).items()}
    step.update()
    assert step.core.version.updates == 1
    assert any((before[n] != t).any() for n, t in published_tensors(step.core.network).items())
    linear = {n: m.weight.numel() for n, m in step.core.network.named_modules() if isinstance(m, torch.nn.Linear)}
    head = linear.pop("lm_head")
    assert step.operations() == 6 * (sum(linear.values()) * step.tokens + head * step.carried)


def test_the_plain_trainer_moves_the_same_weights(subject: Subject) -> None:
    plain = learner.PlainTrainer(learner.LearnerStep(subject), subject)
    before = {name: p.detach().clone() for name, p in plain._network.named_parameters()}
    plain.update()
    assert any((before[name] != p).any() for name, p in plain._network.named_parameters())


def test_ratios_are_theirs_over_ours(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    other = FakeReference()
    monkeypatch.setattr(learner, "reference_side", lambda *_: other)
    found = learner.measure(subject, 1)
    ours = found["learner_step_seconds_perilune"]["median"]
    assert found["ratio_learner_step_vs_reference"] == pytest.approx(1e6 / ours)
    assert found["learner_step_gflop_per_second_perilune"] == pytest.approx(found["learner_step_gflop"] / ours)
    assert other.closed
