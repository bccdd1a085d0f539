from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.config.learning import Baseline, ImportanceConfig, ImportanceKind, PositivesConfig
from engine.errors import ConfigError
from engine.losses.positives import Positives

REWARDS = torch.tensor([1.0, 0.2, 0.5, 0.0])


def test_threshold_chooses():
    loss = Positives(PositivesConfig(threshold=0.5))
    assert loss.selects(REWARDS).tolist() == [True, False, True, False]
    assert loss.advantage(REWARDS).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert Positives(PositivesConfig()).selects(REWARDS).tolist() == [True, False, False, False]


def test_it_is_the_likelihood_of_the_chosen(inputs_of, scale, gradient):
    loss = Positives(PositivesConfig(threshold=0.5))
    inputs = inputs_of((2, 1, 3, 1), loss.advantage(REWARDS), drift=0.5)
    size = replace(scale(inputs, 4), tokens=5)
    output = loss(inputs, size)
    chosen = torch.tensor([1, 1, 0, 1, 1, 1, 0], dtype=torch.bool)
    torch.testing.assert_close(output.loss, -inputs.learner_logprob[chosen].mean())
    torch.testing.assert_close(gradient(output.loss, inputs), -chosen.double() / 5)


def test_skip_rule():
    assert Positives(PositivesConfig()).skips_zero_advantage(False)
    assert not Positives(PositivesConfig(kl_coefficient=0.1)).skips_zero_advantage(True)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"baseline": Baseline.mean}, "loss.baseline"),
        ({"normalise_std": True}, "loss.normalise_std"),
        ({"importance": ImportanceConfig(kind=ImportanceKind.masked)}, "loss.importance.kind"),
    ],
)
def test_options_without_effect_are_refused(options, key):
    with pytest.raises(ConfigError, match="leave this option") as error:
        Positives(PositivesConfig(**options))
    assert error.value.key == key
