from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.config.prompts import CurriculumConfig, PriorityConfig, PromptsConfig, PromptSource


@pytest.mark.parametrize(("cls", "options", "key"), [
    (CurriculumConfig, {"hard_quantile": 1.0}, "prompts.curriculum.hard_quantile"),
    (CurriculumConfig, {"hard_quantile": -0.1}, "prompts.curriculum.hard_quantile"),
    (CurriculumConfig, {"uniform_updates": -1}, "prompts.curriculum.uniform_updates"),
    (PriorityConfig, {"window": 0}, "prompts.priority.window"),
    (PriorityConfig, {"floor": 0.0}, "prompts.priority.floor"),
    (PriorityConfig, {"floor": 1.1}, "prompts.priority.floor"),
    (PriorityConfig, {"initial_success_rate": 1.1}, "prompts.priority.initial_success_rate"),
    (PriorityConfig, {"initial_success_rate": -0.1}, "prompts.priority.initial_success_rate"),
    (PromptsConfig, {"task": ""}, "prompts.task"),
    (PromptsConfig, {"source": PromptSource.file}, "prompts.path"),
    (PromptsConfig, {"source": PromptSource.dataset}, "prompts.path"),
    (PromptsConfig, {"source": PromptSource.dotted, "dotted_path": "name"}, "prompts.dotted_path"),
    (PromptsConfig, {"num_train": 0}, "prompts.num_train"),
    (PromptsConfig, {"num_heldout": 0}, "prompts.num_heldout"),
    (PromptsConfig, {"must_match": "("}, "prompts.must_match"),
], ids=str)
def test_what_cannot_work_is_refused(refused: Callable[..., None], cls: Any, options: dict[str, Any],
                                     key: str) -> None:
    refused(cls, options, key)


@pytest.mark.parametrize("options", [
    {"source": PromptSource.file, "path": "a.jsonl", "task": ""},
    {"source": PromptSource.dataset, "path": "folder", "task": ""},
    {"source": PromptSource.dotted, "dotted_path": "package.prompts", "task": ""},
    {"must_match": r"^\d+ \+"},
])
def test_each_source_needs_only_its_own_options(options: dict[str, Any]) -> None:
    assert PromptsConfig(**options).num_train >= 1
