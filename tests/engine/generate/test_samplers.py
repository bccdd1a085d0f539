from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from engine.config.model import ModelConfig, ModelSource, ScratchConfig
from engine.config.rollout import GeneratorConfig, GeneratorKind, RolloutConfig
from engine.config.run import RunConfig
from engine.config.schedule import ScheduleConfig
from engine.errors import ConfigError
from engine.generate import samplers
from engine.generate.native import NativeSampler
from engine.generate.samplers import ABILITIES, build_sampler, check_sampler
from tests.engine.generate.fake_vllm import write_vllm
from tests.small_models import tiny_config

NATIVE, VLLM = GeneratorConfig(), GeneratorConfig(kind=GeneratorKind.vllm)


def config(generator: GeneratorConfig = NATIVE, **changes: Any) -> RunConfig:
    scratch = ModelConfig(source=ModelSource.scratch, scratch=ScratchConfig(width=64, heads=2))
    return RunConfig(**{"generator": generator, "model": scratch, **changes})


def test_every_kind_says_what_it_promises() -> None:
    assert set(ABILITIES) == set(GeneratorKind)
    assert ABILITIES[GeneratorKind.native].counter_streams
    assert not ABILITIES[GeneratorKind.vllm].counter_streams


def test_the_native_sampler_is_built_from_an_architecture_alone(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    options = config(rollout=RolloutConfig(max_prompt_tokens=16, max_response_tokens=16))
    sampler = build_sampler(options, str(tmp_path), slots=3, threads=1, stop_ids=frozenset([1]), name="generator-0#1")
    assert isinstance(sampler, NativeSampler)
    assert sampler.idle
    sampler.close()


def test_without_vllm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"generator\.kind='vllm'.*generator=native.*make test-vllm"):
        check_sampler(config(VLLM), {})
    assert check_sampler(config(), {}) == []


def test_a_vllm_without_the_needed_calls_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm.py").write_text("class LLM: pass")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"lacks what Perilune calls \(ImportError.*SamplingParams.*install 0\.32"):
        check_sampler(config(VLLM), {})


@pytest.mark.parametrize(("without", "instead", "said"), [
    ("(self, weight_version=None)", "(self)", r"AsyncLLM\.finish_weight_update: .*'weight_version'"),
    ("weight_versions:", "versions:", "CompletionOutput has no weight_versions"),
    ("def resume_generation", "def go_on", "AsyncLLM has no resume_generation"),
])
def test_a_vllm_that_takes_other_calls_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str,
                                                instead: str, said: str) -> None:
    write_vllm(tmp_path, without, instead)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=rf"lacks what Perilune calls \({said}\): install 0\.32"):
        check_sampler(config(VLLM), {})


def test_a_vllm_that_takes_the_calls_passes_and_what_it_does_not_heed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_vllm(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda name: object())
    overlapping = ScheduleConfig(kind="async", max_staleness=1)
    assert check_sampler(config(VLLM, schedule=overlapping), {}) == []
    narrow = replace(VLLM, prefill_tokens=64)
    (sentence,) = check_sampler(config(narrow, schedule=overlapping), {})
    assert sentence.startswith("generator.prefill_tokens=64 counts for generator.kind=native alone")
    assert "generator.vllm.max_num_batched_tokens" in sentence
    assert check_sampler(config(GeneratorConfig(prefill_tokens=64)), {}) == []


@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm")
def test_with_vllm_what_it_cannot_do_is_said_before_anything_starts() -> None:
    sync = ScheduleConfig(max_staleness=0)
    (sentence,) = check_sampler(config(VLLM, schedule=sync), {})
    assert "does not repeat bits" in sentence
    assert check_sampler(config(VLLM, schedule=replace(sync, kind="async", max_staleness=1)), {}) == []
    with pytest.raises(ConfigError, match=r"rollout\.temperature=0\.001.*0\.01 or above"):
        check_sampler(config(VLLM, rollout=RolloutConfig(temperature=0.001)), {})
    narrow = ModelConfig(source=ModelSource.scratch, scratch=ScratchConfig(width=32, heads=2))
    with pytest.raises(ConfigError, match="heads of width 16"):
        check_sampler(config(VLLM, model=narrow), {})
