"""What is called of vLLM against signatures that lack one thing each."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engine.generate.vllm_calls import CALLS, FIELDS, missing_call


def test_the_calls_are_taken(vllm_sampler: ModuleType) -> None:
    """With vLLM installed, by vLLM itself."""
    assert missing_call(vars(vllm_sampler)) == ""


def test_what_the_sampler_calls_is_what_is_checked(vllm_sampler: ModuleType) -> None:
    source = Path(str(vllm_sampler.__file__)).read_text()
    called = {f"AsyncLLM.{name}" for name in re.findall(r"(?:llm|self\._llm)\.(\w+)\(", source)}
    assert called | {"AsyncLLM.from_engine_args"} == {name for name in CALLS if name.startswith("AsyncLLM.")}
    assert {name.partition(".")[0] for name in (*CALLS, *FIELDS)} <= vars(vllm_sampler).keys()


class Elsewhere:
    """Takes fewer arguments than vLLM does."""

    async def pause_generation(self, clear_cache: bool = True) -> None:
        pass

    async def add_request(self, request_id: str, prompt: Any) -> None:
        pass


@pytest.mark.parametrize(("dotted", "function", "said"), [
    ("AsyncLLM.pause_generation", Elsewhere.pause_generation, "unexpected keyword argument 'mode'"),
    ("AsyncLLM.add_request", Elsewhere.add_request, "too many positional arguments"),
    ("AsyncLLM.sleep", None, "AsyncLLM has no sleep"),
])
@pytest.mark.skipif(find_spec("vllm") is not None, reason="changes a stand-in")
def test_a_call_that_is_not_taken_is_named(vllm_sampler: ModuleType, dotted: str, function: Any, said: str) -> None:
    name = dotted.partition(".")[2]
    if function is None:
        delattr(vllm_sampler.AsyncLLM, name)
    else:
        setattr(vllm_sampler.AsyncLLM, name, function)
    found = missing_call(vars(vllm_sampler))
    assert dotted.partition(".")[0] in found
    assert said in found


def test_an_answer_without_what_is_read_of_it_is_named(vllm_sampler: ModuleType) -> None:
    class Short:
        def __init__(self, token_ids: list[int], logprobs: list[Any], finish_reason: str) -> None:
            pass

    assert missing_call({**vars(vllm_sampler), "CompletionOutput": Short}) == "CompletionOutput has no weight_versions"


def test_a_transfer_that_must_do_more_is_named(vllm_sampler: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_sampler.StagedTransfer, "__abstractmethods__", frozenset({"send_weights"}))
    assert missing_call(vars(vllm_sampler)) == "a transfer of weights needs send_weights"
