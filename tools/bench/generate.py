"""Generation: the native sampler beside transformers, vLLM, and vLLM as our own generator.

Every side turns distinct prompts into sequences of one fixed length, at temperature 1 and in bf16, prefill
included. ``vllm_cpu`` is vLLM on its own; ``vllm_generator`` is what a run with ``generator=vllm`` samples with.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Any

import torch

from tools.bench.child import Child
from tools.bench.subject import Subject, drain, padded_prompts, requests
from tools.bench.timing import Side, seconds_of, spread, take_turns
from tools.bench.vllm_child import Job

_DEADLINE_S = 1800.0
_VLLM_SIDES = {"vllm_cpu": "tools.bench.vllm_child", "vllm_generator": "tools.bench.vllm_generator_child"}


def measure(subject: Subject, repeats: int, vllm_python: str) -> dict[str, Any]:
    """``ratio_generate_vs_`` each other side, None for those of vLLM where it is missing."""
    sides: dict[str, Side] = {
        "perilune": _perilune_side(subject), "transformers": _transformers_side(subject)
    }
    with ExitStack() as stack:
        children = _vllm_children(subject, vllm_python)
        for name, child in children.items():
            stack.callback(child.close)
            sides[name] = partial(_seconds, child)
        times = take_turns(sides, repeats)
    found: dict[str, Any] = {f"generate_seconds_{name}": spread(values) for name, values in times.items()}
    own = found["generate_seconds_perilune"]["median"]
    for name in ("transformers", *_VLLM_SIDES):
        other = found.get(f"generate_seconds_{name}")
        found[f"ratio_generate_vs_{name}"] = other["median"] / own if other else None
    if not children:
        found["note_vllm"] = f"{vllm_python} cannot import vllm: give --vllm-python of one that can"
    return found


def _perilune_side(subject: Subject) -> Side:
    amounts, ids = subject.amounts, count(step=subject.amounts.sequences)
    sampler = subject.sampler(subject.network(), amounts.sequences, amounts.sequence_tokens)
    prompts = subject.tokens[: amounts.sequences]

    def generate() -> None:
        sampler.submit(requests(prompts, next(ids), amounts.sequence_tokens))
        drain(sampler)

    return lambda: seconds_of(generate)


def _transformers_side(subject: Subject) -> Side:
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    network = loader.from_pretrained(subject.folder, dtype=torch.bfloat16, local_files_only=True).eval()
    network.generation_config.eos_token_id = None
    amounts = subject.amounts
    ids, mask = padded_prompts(subject, amounts.sequences)
    longest = ids.shape[1]

    @torch.no_grad()
    def generate() -> None:
        made = network.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            min_new_tokens=amounts.sequence_tokens, max_new_tokens=amounts.sequence_tokens,
            pad_token_id=subject.tokenizer.end_id,
        )
        assert made.shape[1] == longest + amounts.sequence_tokens, "transformers stopped early"

    return lambda: seconds_of(generate)


def _vllm_children(subject: Subject, python: str) -> dict[str, Child]:
    """Processes by the names of their sides; none where this interpreter is meant and lacks vLLM."""
    if python == sys.executable and importlib.util.find_spec("vllm") is None:
        return {}
    amounts = subject.amounts
    prompts = [tokens.tolist() for tokens in subject.tokens[: amounts.sequences]]
    job = json.dumps(dataclasses.asdict(Job(str(subject.folder), prompts, amounts.sequence_tokens, subject.threads)))
    return {name: Child(name, [python, "-m", module, job], _DEADLINE_S) for name, module in _VLLM_SIDES.items()}


def _seconds(child: Child) -> float:
    return float(child.ask()["seconds"])
