from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.config.rollout import GeneratorConfig, GeneratorKind, RepetitionConfig, RolloutConfig, VllmConfig


@pytest.mark.parametrize(("cls", "options", "key"), [
    (RepetitionConfig, {"max_period_tokens": 0}, "rollout.repetition.max_period_tokens"),
    (RepetitionConfig, {"min_repeats": 1}, "rollout.repetition.min_repeats"),
    (RepetitionConfig, {"min_tokens": 0}, "rollout.repetition.min_tokens"),
    (RepetitionConfig, {"penalty": 0.5}, "rollout.repetition.penalty"),
    (RolloutConfig, {"samples_per_prompt": 0}, "rollout.samples_per_prompt"),
    (RolloutConfig, {"max_response_tokens": 0}, "rollout.max_response_tokens"),
    (RolloutConfig, {"max_prompt_tokens": 0}, "rollout.max_prompt_tokens"),
    (RolloutConfig, {"temperature": 0.0}, "rollout.temperature"),
    (RolloutConfig, {"top_p": 0.9}, "rollout.top_p"),
    (GeneratorConfig, {"num_generators": 0}, "generator.num_generators"),
    (GeneratorConfig, {"slots": 0}, "generator.slots"),
    (GeneratorConfig, {"context_tokens": -1}, "generator.context_tokens"),
    (GeneratorConfig, {"prefill_tokens": 0}, "generator.prefill_tokens"),
    (GeneratorConfig, {"steps_per_call": 0}, "generator.steps_per_call"),
    (VllmConfig, {"gpu_memory_utilization": 0.0}, "generator.vllm.gpu_memory_utilization"),
    (VllmConfig, {"gpu_memory_utilization": 1.5}, "generator.vllm.gpu_memory_utilization"),
    (VllmConfig, {"kv_cache_gib": -1.0}, "generator.vllm.kv_cache_gib"),
    (VllmConfig, {"max_num_batched_tokens": -1}, "generator.vllm.max_num_batched_tokens"),
    (VllmConfig, {"start_timeout_s": 0.0}, "generator.vllm.start_timeout_s"),
    (VllmConfig, {"step_timeout_s": 0.0}, "generator.vllm.step_timeout_s"),
    (GeneratorConfig, {"kind": GeneratorKind.vllm, "vllm": VllmConfig(max_num_batched_tokens=63)},
     "generator.vllm.max_num_batched_tokens"),
], ids=str)
def test_what_cannot_work_is_refused(refused: Callable[..., None], cls: Any, options: dict[str, Any],
                                     key: str) -> None:
    refused(cls, options, key)


def test_limits_themselves_are_fine() -> None:
    assert RepetitionConfig(max_period_tokens=1, min_repeats=2, min_tokens=1, penalty=-1.0).enabled
    assert RolloutConfig(samples_per_prompt=1, max_response_tokens=1, max_prompt_tokens=1).top_p == 1.0
    assert GeneratorConfig(slots=1, prefill_tokens=1, steps_per_call=1).context_tokens == 0
