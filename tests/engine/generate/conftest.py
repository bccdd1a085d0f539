from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from engine.config.rollout import GeneratorConfig, GeneratorKind, Precision, RepetitionConfig, VllmConfig
from engine.config.schedule import InFlight
from engine.generate.sampler import Sampler
from engine.generate.streaming import StreamingSampler
from tests.engine.generate.fake_vllm import write_vllm
from tests.engine.generate.native_engine import NativeEngine
from tests.small_models import VOCABULARY, staged, tiny_network, tiny_sampler

NEEDS_VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm")
SLOTS, CONTEXT, STOPS = 4, 256, (3, 4)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def network() -> Any:
    """A tiny Llama; nobody may change its weights."""
    return tiny_network("llama")


@pytest.fixture(scope="session")
def networks() -> list[Any]:
    """Three tiny Llamas, as versions 0.0, 0.1 and 0.2."""
    return [tiny_network("llama", seed=seed) for seed in range(3)]


@pytest.fixture(scope="session")
def wide_networks() -> list[Any]:
    """Two tiny Llamas whose heads are as wide as vLLM on a CPU wants them."""
    return [tiny_network("llama", seed=seed, head_dim=32) for seed in range(2)]


@pytest.fixture(scope="session")
def vllm_config() -> GeneratorConfig:
    """Starts in seconds."""
    return GeneratorConfig(kind=GeneratorKind.vllm, precision=Precision.float32, slots=SLOTS,
                           vllm=VllmConfig(enforce_eager=True))


@pytest.fixture(scope="session")
def start_vllm(wide_networks: list[Any], vllm_config: GeneratorConfig,
               tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """Starts a vLLM engine for the wide networks; the folder holds an architecture and no weights."""
    if find_spec("vllm") is None:
        pytest.skip("needs vLLM: make test-vllm")
    folder: Path = tmp_path_factory.mktemp("wide")
    wide_networks[0].config.save_pretrained(folder)

    def start() -> Any:
        from engine.generate.vllm_sampler import VllmEngine

        return VllmEngine(str(folder), wide_networks[0].config, vllm_config, slots=SLOTS, context=CONTEXT,
                          stop_ids=STOPS, seed=5, threads=1, name="generator-0#1")

    return start


@pytest.fixture(scope="session")
def vllm_engine(start_vllm: Callable[[], Any]) -> Iterator[Any]:
    """One engine for all tests; whoever borrows it leaves no request open."""
    engine = start_vllm()
    yield engine
    engine.close()


@pytest.fixture
def vllm_sampler(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of that name, over vLLM's signatures alone where vLLM is not installed."""
    name = "engine.generate.vllm_sampler"
    installed = find_spec("vllm") is not None
    if not installed:
        folder = tmp_path_factory.mktemp("vllm")
        write_vllm(folder)
        monkeypatch.syspath_prepend(folder)
    yield import_module(name)
    if not installed:
        for other in [other for other in sys.modules if other == name or other.partition(".")[0] == "vllm"]:
            del sys.modules[other]


@pytest.fixture(params=["native", "streaming", pytest.param("vllm", marks=NEEDS_VLLM)])
def make_sampler(request: pytest.FixtureRequest, wide_networks: list[Any]) -> Iterator[Callable[..., Sampler]]:
    """Makes a sampler of each kind that serves the first of the wide networks as version 0.0."""
    made: list[Sampler] = []

    def make(repetition: RepetitionConfig | None = None) -> Sampler:
        options = {"context": CONTEXT, "stop_ids": STOPS}
        if request.param == "native":
            made.append(tiny_sampler(wide_networks[0], SLOTS, repetition=repetition, **options))
            return made[-1]
        engine = (request.getfixturevalue("vllm_engine") if request.param == "vllm"
                  else NativeEngine(tiny_sampler(wide_networks[0], SLOTS, **options)))
        sampler = StreamingSampler(engine, SLOTS, context_tokens=CONTEXT, vocabulary=VOCABULARY, stop_ids=STOPS,
                                   repetition=repetition or RepetitionConfig(enabled=False), seed=5)
        sampler.swap(staged(wide_networks[0]), InFlight.finish)
        made.append(sampler)
        return sampler

    yield make
    for sampler in made:
        sampler.cut_all()
