from __future__ import annotations

import sys
from typing import Any

import pytest

from tools.bench import generate
from tools.bench.subject import Subject


class FakeVllm:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def ask(self) -> dict[str, Any]:
        return {"seconds": self._seconds, "tokens": 24}

    def close(self) -> None:
        pass


def test_generation_is_set_against_transformers(subject: Subject) -> None:
    found = generate.measure(subject, 2, sys.executable)
    own, other = (found[f"generate_seconds_{name}"] for name in ("perilune", "transformers"))
    assert own["repeats"] == other["repeats"] == 2
    assert found["ratio_generate_vs_transformers"] == pytest.approx(other["median"] / own["median"])


def test_vllm_alone_and_as_our_generator_are_sides_where_it_can_be_imported(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = {"vllm_cpu": FakeVllm(1e9), "vllm_generator": FakeVllm(2e9)}
    monkeypatch.setattr(generate, "_vllm_children", lambda *_: sides)
    found = generate.measure(subject, 1, "python-with-vllm")
    assert found["ratio_generate_vs_vllm_cpu"] > 1
    assert found["ratio_generate_vs_vllm_generator"] == pytest.approx(2 * found["ratio_generate_vs_vllm_cpu"])
    assert "note_vllm" not in found


def test_without_vllm_there_is_no_ratio_and_it_is_said(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "_vllm_children", lambda *_: {})
    found = generate.measure(subject, 1, sys.executable)
    assert found["ratio_generate_vs_vllm_cpu"] is None
    assert found["ratio_generate_vs_vllm_generator"] is None
    assert "--vllm-python" in found["note_vllm"]
