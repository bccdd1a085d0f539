from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.config.learning import (
    ClippedConfig,
    ImportanceConfig,
    LearningConfig,
    LossConfig,
    MirrorDescentConfig,
    OptimiserConfig,
    PositivesConfig,
)
from engine.errors import ConfigError

RATES = ("learning_rate", "epsilon", "weight_decay", "max_gradient_norm")
FRACTIONS = ("beta1", "beta2", "final_fraction")


@pytest.mark.parametrize(("cls", "options", "key"), [
    (ImportanceConfig, {"cap": 0.0}, "loss.importance.cap"),
    (ImportanceConfig, {"cap": 1.0, "floor": -0.5}, "loss.importance.cap"),
    (LossConfig, {"kl_coefficient": -0.1}, "loss.kl_coefficient"),
    (LossConfig, {"entropy_bonus": -0.1}, "loss.entropy_bonus"),
    (MirrorDescentConfig, {"tau": -0.1}, "loss.tau"),
    (MirrorDescentConfig, {"length_normaliser": 0.0}, "loss.length_normaliser"),
    (MirrorDescentConfig, {"kl_coefficient": -0.1}, "loss.kl_coefficient"),
    (ClippedConfig, {"clip_low": -0.1}, "loss.clip_low"),
    (ClippedConfig, {"clip_high": -0.1}, "loss.clip_high"),
    (ClippedConfig, {"aggregation_constant_tokens": -1.0}, "loss.aggregation_constant_tokens"),
    (ClippedConfig, {"entropy_bonus": -0.1}, "loss.entropy_bonus"),
    (PositivesConfig, {"kl_coefficient": -0.1}, "loss.kl_coefficient"),
    *((OptimiserConfig, {name: -1.0}, f"learning.optimiser.{name}") for name in RATES + FRACTIONS),
    *((OptimiserConfig, {name: 1.5}, f"learning.optimiser.{name}") for name in FRACTIONS),
    (OptimiserConfig, {"beta2": 1.0}, "learning.optimiser.beta2"),
    (OptimiserConfig, {"warmup_steps": -1}, "learning.optimiser.warmup_steps"),
    (LearningConfig, {"updates": 0}, "learning.updates"),
    (LearningConfig, {"max_seconds": -1.0}, "learning.max_seconds"),
    (LearningConfig, {"row_tokens": 15}, "learning.row_tokens"),
    (LearningConfig, {"checkpoint_every": -1}, "learning.checkpoint_every"),
    (LearningConfig, {"keep_checkpoints": 0}, "learning.keep_checkpoints"),
    (LearningConfig, {"num_learners": 0}, "learning.num_learners"),
    (LearningConfig, {"rank_deadline_s": 0.0}, "learning.rank_deadline_s"),
], ids=str)
def test_what_cannot_work_is_refused(refused: Callable[..., None], cls: Any, options: dict[str, Any],
                                     key: str) -> None:
    refused(cls, options, key)


def test_limits_themselves_are_fine() -> None:
    assert OptimiserConfig(learning_rate=0.0, beta1=0.0, max_gradient_norm=0.0).final_fraction == 0.0
    assert MirrorDescentConfig(tau=0.0).name == "mirror_descent"


def test_learners_have_names_of_their_own() -> None:
    assert LearningConfig().learner_names == ["learner"]
    assert LearningConfig(num_learners=3).learner_names == ["learner", "learner-1", "learner-2"]


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"loss\.tau=nan"):
        MirrorDescentConfig(tau=float("nan"))
