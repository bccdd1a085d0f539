"""The warm start of a policy made from nothing: long-chain-of-thought SFT on traces of its own task.

Kept in the user's cache under a digest of everything it depends on, the run's seed not among it, so that
arms of a comparison begin from the same weights.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import xxhash

from engine.config.base import as_dict
from engine.config.rollout import Precision
from engine.config.run import RunConfig
from engine.learn.supervised import supervised_steps
from engine.models.packaged_model import cache_folder
from engine.models.policy import published_tensors, save_policy, scratch_network
from engine.prompts.prompt_set import PromptSet
from engine.prompts.traces import traces_for

_TRACES_PER_PROMPT = 4


def warm_start(config: RunConfig, prompts: PromptSet, say: Callable[[str], None]) -> Path:
    """Folder of the scratch policy after its SFT; made on first use."""
    parts = [config.model.scratch, config.model.warmup, config.prompts, config.cluster.threads]
    text = json.dumps([as_dict(part) for part in parts], sort_keys=True) + torch.__version__
    target = cache_folder() / "warm" / xxhash.xxh3_64_hexdigest(text.encode())
    if (target / "config.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.cluster.threads.learner)
    warmup = config.model.warmup
    network, tokenizer = scratch_network(config.model.scratch, warmup.seed)
    if warmup.steps:
        say(f"warming up: {warmup.steps} steps of SFT on long-chain-of-thought traces, once")
        # Several traces of each prompt, so that none is known by its answer.
        seeds = range(warmup.seed, warmup.seed + _TRACES_PER_PROMPT)
        traces = [pair for seed in seeds for pair in traces_for(prompts.train, seed, warmup.hasty_fraction)]
        supervised_steps(network, tokenizer, traces, warmup, config.learning.row_tokens, Precision.float32)
    scratch = Path(tempfile.mkdtemp(prefix=".warm-", dir=target.parent))
    try:
        save_policy(network, published_tensors(network), tokenizer, scratch)
        if not target.exists():
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target
