from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.config.rewards import LengthRewardConfig, OverlongConfig, RewardConfig


@pytest.mark.parametrize(("cls", "options", "key"), [
    (LengthRewardConfig, {"weight": -0.1}, "reward.length.weight"),
    (LengthRewardConfig, {"warmup_updates": -1}, "reward.length.warmup_updates"),
    (OverlongConfig, {"buffer_tokens": -1}, "reward.overlong.buffer_tokens"),
    (OverlongConfig, {"factor": -1.0}, "reward.overlong.factor"),
    (RewardConfig, {"workers": -1}, "reward.workers"),
    (RewardConfig, {"deadline_s": 0.0}, "reward.deadline_s"),
    (RewardConfig, {"max_retries": -1}, "reward.max_retries"),
    (RewardConfig, {"max_answer_chars": 15}, "reward.max_answer_chars"),
], ids=str)
def test_what_cannot_work_is_refused(refused: Callable[..., None], cls: Any, options: dict[str, Any],
                                     key: str) -> None:
    refused(cls, options, key)


def test_both_length_terms_are_off_unless_asked_for() -> None:
    config = RewardConfig(workers=0, max_retries=0, max_answer_chars=16)
    assert (config.length.weight, config.overlong.buffer_tokens) == (0.0, 0)
