from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.config.learning import ImportanceConfig, ImportanceKind, Ratio, Reference
from engine.errors import ConfigError
from engine.losses.importance import importance_weights, require_anchor

RATIO = torch.tensor([0.1, 1.0, 3.0, 0.5, 8.0], dtype=torch.float64)
"""anchor / behaviour of five tokens in trajectories of three and two."""


def weights(inputs_of, **options):
    inputs = inputs_of((3, 2), torch.zeros(2), drift=0.0)
    anchor = (inputs.behaviour_logprob + RATIO.log()).requires_grad_()
    return importance_weights(inputs, anchor, ImportanceConfig(**options))


def test_none_is_one_everywhere(inputs_of):
    found, metrics = weights(inputs_of)
    assert torch.equal(found, torch.ones(5, dtype=torch.float64))
    assert metrics == {}


@pytest.mark.parametrize(
    ("kind", "level", "expected"),
    [
        (ImportanceKind.truncated, Ratio.token, [0.2, 1.0, 2.0, 0.5, 2.0]),
        (ImportanceKind.masked, Ratio.token, [0.0, 1.0, 0.0, 0.5, 0.0]),
        (ImportanceKind.truncated, Ratio.sequence, [0.3, 0.3, 0.3, 2.0, 2.0]),
        (ImportanceKind.masked, Ratio.sequence, [0.3, 0.3, 0.3, 0.0, 0.0]),
    ],
)
def test_kinds_and_levels(inputs_of, kind, level, expected):
    found, metrics = weights(inputs_of, kind=kind, level=level, cap=2.0, floor=0.2)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert not found.requires_grad
    assert metrics["importance_outside_sum"] == (3 if level is Ratio.token else 2)
    assert metrics["importance_weight_sum"].item() == pytest.approx(sum(expected))


@pytest.mark.parametrize(
    ("kind", "expected"), [(ImportanceKind.truncated, 2.0), (ImportanceKind.masked, 0.0)]
)
def test_a_ratio_beyond_the_range_of_floats_stays_finite(inputs_of, kind, expected):
    inputs = inputs_of((2,), torch.zeros(1), drift=0.0)
    inputs = replace(inputs, behaviour_logprob=inputs.behaviour_logprob - 1000.0)
    found, _ = importance_weights(inputs, inputs.learner_logprob, ImportanceConfig(kind=kind))
    assert found.tolist() == [expected, expected]


def test_weights_against_the_behaviour_policy_itself_are_refused():
    for kind in ImportanceKind:
        require_anchor(ImportanceConfig(kind=kind), Reference.start_of_update, "loss.reference")
    require_anchor(ImportanceConfig(), Reference.behaviour, "loss.reference")
    with pytest.raises(ConfigError, match=r"loss\.reference=start_of_update"):
        require_anchor(ImportanceConfig(kind=ImportanceKind.masked), Reference.behaviour, "loss.reference")
