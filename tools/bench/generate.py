"""Generation: the native sampler beside transformers and vLLM.

Every side turns distinct prompts into sequences of one fixed length, at temperature 1 and in bf16, prefill
included.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from contextlib import ExitStack
from itertools import count
from typing import Any

import torch

from tools.bench.child import Child
from tools.bench.subject import Subject, drain, padded_prompts, requests
from tools.bench.timing import Side, seconds_of, spread, take_turns
from tools.bench.vllm_child import Job

_DEADLINE_S = 1800.0


def measure(subject: Subject, repeats: int, vllm_python: str) -> dict[str, Any]:
    """``ratio_generate_vs_transformers`` and ``ratio_generate_vs_vllm_cpu``, None where vLLM is missing."""
    sides: dict[str, Side] = {
        "perilune": _perilune_side(subject), "transformers": _transformers_side(subject)
    }
    with ExitStack() as stack:
        if (child := _vllm_child(subject, vllm_python)) is not None:
            stack.callback(child.close)
            sides["vllm_cpu"] = lambda: float(child.ask()["seconds"])
        times = take_turns(sides, repeats)
    found: dict[str, Any] = {f"generate_seconds_{name}": spread(values) for name, values in times.items()}
    own = found["generate_seconds_perilune"]["median"]
    for name in ("transformers", "vllm_cpu"):
        other = found.get(f"generate_seconds_{name}")
        found[f"ratio_generate_vs_{name}"] = other["median"] / own if other else None
    if child is None:
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


def _vllm_child(subject: Subject, python: str) -> Child | None:
    if python == sys.executable and importlib.util.find_spec("vllm") is None:
        return None
    amounts = subject.amounts
    prompts = [tokens.tolist() for tokens in subject.tokens[: amounts.sequences]]
    job = Job(str(subject.folder), prompts, amounts.sequence_tokens, subject.threads)
    command = [python, "-m", "tools.bench.vllm_child", json.dumps(dataclasses.asdict(job))]
    return Child("vllm", command, _DEADLINE_S)
