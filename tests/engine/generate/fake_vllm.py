"""A package called vllm with what Perilune imports of it: signatures of 0.32, and nothing behind them."""

from __future__ import annotations

from pathlib import Path

SOURCE = """
import sys
import types
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

I = TypeVar("I")
U = TypeVar("U")


class AnyOptions:
    def __init__(self, **options):
        self.__dict__.update(options)


@dataclass
class WeightTransferUpdateRequest:
    update_info: dict


class WeightTransferEngine(ABC, Generic[I, U]):
    def __init__(self, *arguments):
        pass

    def parse_update_info(self, update_info):
        return update_info

    @abstractmethod
    def receive_weights(self, update_info):
        pass


class WeightTransferEngineFactory:
    @classmethod
    def register_engine(cls, name, engine):
        pass


@dataclass
class CompletionOutput:
    token_ids: list
    logprobs: list | None
    finish_reason: str | None = None
    weight_versions: list | None = None


@dataclass
class RequestOutput:
    outputs: list
    finished: bool
    num_cached_tokens: int | None = None


class RequestOutputCollector:
    async def get(self):
        pass


class AsyncLLM:
    @classmethod
    def from_engine_args(cls, engine_args):
        return cls()

    async def add_request(self, request_id, prompt, params):
        pass

    async def abort(self, request_id):
        pass

    async def pause_generation(self, *, mode="abort", clear_cache=True):
        pass

    async def start_weight_update(self):
        pass

    async def update_weights(self, request):
        pass

    async def finish_weight_update(self, weight_version=None):
        pass

    async def reset_prefix_cache(self, reset_running_requests=False):
        return True

    async def resume_generation(self):
        pass

    async def sleep(self, level=1):
        pass

    async def wake_up(self, tags=None):
        pass

    def shutdown(self, timeout=None):
        pass


class Platform:
    def is_cpu(self):
        return False

    def is_sleep_mode_available(self):
        return False


class ModelRegistry:
    @staticmethod
    def get_supported_archs():
        return {"LlamaForCausalLM"}


def offer(name, **members):
    module = sys.modules[f"vllm.{name}"] = types.ModuleType(f"vllm.{name}")
    module.__dict__.update(members)


SamplingParams = AnyOptions
offer("config", WeightTransferConfig=AnyOptions)
offer("distributed.weight_transfer", WeightTransferEngine=WeightTransferEngine,
      WeightTransferEngineFactory=WeightTransferEngineFactory)
offer("distributed.weight_transfer.base", WeightTransferInitInfo=object, WeightTransferUpdateInfo=object,
      WeightTransferUpdateRequest=WeightTransferUpdateRequest)
offer("engine.arg_utils", AsyncEngineArgs=AnyOptions)
offer("inputs", TokensInput=dict, tokens_input=lambda prompt_token_ids, cache_salt=None: {})
offer("model_executor.model_loader.reload", initialize_layerwise_reload=lambda model: None,
      finalize_layerwise_reload=lambda model, config: None)
offer("model_executor.models", ModelRegistry=ModelRegistry)
offer("outputs", CompletionOutput=CompletionOutput, RequestOutput=RequestOutput)
offer("platforms", current_platform=Platform())
offer("sampling_params", RequestOutputKind=types.SimpleNamespace(DELTA=1))
offer("v1.engine.async_llm", AsyncLLM=AsyncLLM)
offer("v1.engine.output_processor", RequestOutputCollector=RequestOutputCollector)
"""


def write_vllm(folder: Path, without: str = "", instead: str = "") -> None:
    """Write the package into a folder.

    Args:
        folder: to be put on the path.
        without: part of the source that an older version lacks.
        instead: what that version has there.
    """
    assert without in SOURCE
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text(SOURCE.replace(without, instead) if without else SOURCE)
