"""vLLM as a generator of ours as one side of a comparison: a process that generates once for each line.

``python -m tools.bench.vllm_generator_child '<json>'`` with the fields of :class:`tools.bench.vllm_child.Job`, by an
interpreter that has vLLM and Perilune. The sampler is the one that a run with ``generator=vllm`` holds: answers are
streamed token by token with their log-probs and versions, and weights come through a swap.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from engine.config.rollout import GeneratorConfig, GeneratorKind, Precision, RepetitionConfig, RolloutConfig, VllmConfig
from engine.config.run import RunConfig
from engine.config.schedule import InFlight
from engine.generate.samplers import build_sampler
from engine.models.policy import load_network
from engine.records.version import PolicyVersion
from tools.bench.child import Replies
from tools.bench.subject import drain, requests, weights_of
from tools.bench.vllm_child import Job


def repeat_of(job: Job, kind: GeneratorKind = GeneratorKind.vllm) -> Callable[[], dict[str, Any]]:
    """Seconds and tokens of one repeat, by a sampler that watches for no loop and shares no keys, as vLLM's side."""
    longest, slots = max(len(prompt) for prompt in job.prompts), len(job.prompts)
    config = RunConfig(
        generator=GeneratorConfig(kind=kind, vllm=VllmConfig(prefix_caching=False)),
        rollout=RolloutConfig(max_prompt_tokens=longest, max_response_tokens=job.tokens,
                              repetition=RepetitionConfig(enabled=False)),
    )
    sampler = build_sampler(config, job.folder, slots=slots, threads=job.threads, stop_ids=(), name="vllm")
    network = load_network(Path(job.folder), Precision.bfloat16)
    sampler.swap(weights_of(network, PolicyVersion(0, 0)), InFlight.finish)
    prompts, ids = [np.array(prompt, np.int32) for prompt in job.prompts], count(step=slots)

    def repeat() -> dict[str, Any]:
        began = time.perf_counter()
        sampler.submit(requests(prompts, next(ids), job.tokens))
        made = drain(sampler)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "tokens": sum(part.num_sampled for one in made for part in one.segments)}

    return repeat


def main() -> None:
    """Load, then generate all sequences for each line that arrives."""
    job = Job(**json.loads(sys.argv[1]))
    replies = Replies()
    repeat = repeat_of(job)
    while True:
        replies.wait()
        replies.send(repeat())


if __name__ == "__main__":
    main()
