"""Refusals before anything starts: a user's mistake costs seconds and a sentence, not a cluster.

Everything that can be known from the configuration, the model folder and the prompts is checked here; the
result says what the run would need.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from engine.config.cluster import ClusterKind, WeightChannelKind
from engine.config.model import ModelSource
from engine.config.rollout import Precision
from engine.config.run import RunConfig
from engine.errors import ConfigError, ModelError
from engine.generate.samplers import check_sampler
from engine.losses.objective import build_loss
from engine.models.device import torch_device
from engine.models.policy import model_folder
from engine.models.tokenizer import PolicyTokenizer, character_tokenizer
from engine.prompts.prompt_set import PromptSet, load_prompts
from engine.rewards.judge import check_kind
from engine.weights.requirements import check_channel

BYTES = {Precision.float32: 4, Precision.bfloat16: 2}


@dataclass(frozen=True, slots=True)
class Checked:
    """What the checks found, for the launcher to use."""

    prompts: PromptSet
    tokenizer: PolicyTokenizer
    folder: Path | None
    """Of the first weights; None for a policy that is made from nothing."""
    architecture: dict[str, Any]
    """The model's config.json; empty for a policy made from nothing."""
    said: tuple[str, ...]
    """Sentences for whoever starts the run: what it may count on less than usual."""


def check(config: RunConfig) -> Checked:
    """Look at everything that needs no process.

    Raises:
        ConfigError: with the dotted key, the value and the remedy.
        ModelError: model or tokenizer folder.
        PromptError: prompt source.
    """
    build_loss(config.loss)
    check_channel(config)
    if not config.cluster.joined:
        torch_device(config.cluster.device)
    prompts = load_prompts(config.prompts)
    for kind in sorted({p.kind for p in (*prompts.train, *prompts.heldout)}):
        check_kind(kind, config.reward)
    folder, architecture = None, {}
    if config.model.source is ModelSource.scratch:
        tokenizer = character_tokenizer(config.model.scratch.alphabet)
        context = config.model.scratch.context_tokens
    else:
        folder = model_folder(config.model)
        tokenizer = PolicyTokenizer.from_folder(folder, config.rollout.stop_token_ids)
        architecture = json.loads((folder / "config.json").read_text())
        context = int(architecture.get("max_position_embeddings", 0))
    _check_lengths(config, prompts, tokenizer, context)
    _check_room(config, architecture)
    return Checked(prompts, tokenizer, folder, architecture, tuple(check_sampler(config, architecture)))


def _check_lengths(config: RunConfig, prompts: PromptSet, tokenizer: PolicyTokenizer, context: int) -> None:
    rollout = config.rollout
    if context and rollout.max_response_tokens >= context:
        raise ConfigError("rollout.max_response_tokens", rollout.max_response_tokens,
                          f"the model's context has {context} tokens; prompt and response must fit it")
    longest = max((*prompts.train, *prompts.heldout), key=lambda p: len(tokenizer.render(p)))
    length = len(tokenizer.render(longest))
    if length > rollout.max_prompt_tokens:
        raise ConfigError("rollout.max_prompt_tokens", rollout.max_prompt_tokens,
                          f"prompt {longest.prompt_id!r} has {length} tokens; raise the limit or drop it")
    if context and length + rollout.max_response_tokens > context:
        raise ConfigError("rollout.max_response_tokens", rollout.max_response_tokens,
                          f"prompt {longest.prompt_id!r} ({length} tokens) and its response pass the "
                          f"model's context of {context} tokens")


def num_parameters(architecture: dict[str, Any]) -> int:
    """Parameters of a Llama-like architecture, from its config.json; 0 when it says too little."""
    try:
        width, layers = architecture["hidden_size"], architecture["num_hidden_layers"]
        heads = architecture["num_attention_heads"]
        size = architecture.get("head_dim") or width // heads
        shared = architecture.get("num_key_value_heads") or heads
        layer = width * size * (2 * heads + 2 * shared) + 3 * width * architecture["intermediate_size"]
        tables = 1 if architecture.get("tie_word_embeddings") else 2
        return layers * layer + tables * architecture["vocab_size"] * width
    except KeyError:
        return 0


def needs(config: RunConfig, architecture: dict[str, Any]) -> dict[str, Any]:
    """Bytes and processes that the run would take: what ``--dry-run`` prints."""
    parameters = num_parameters(architecture)
    working = BYTES[config.learning.precision]
    copies = 12 + (working + 4 if config.learning.precision is Precision.bfloat16 else 4)
    generator = BYTES[config.generator.precision]
    ranks = config.learning.num_learners
    processes = ["replay", *config.learning.learner_names, "judge", "evaluator"]
    processes += [f"generator-{i}" for i in range(config.generator.num_generators)]
    return {
        "parameters": parameters,
        "learner_bytes": parameters * copies,
        "learner_bytes_each": -(-parameters * copies // ranks),
        "weights_bytes_each_generator": parameters * generator * 3,
        "weight_channel_bytes": parameters * generator * 2,
        "checkpoint_bytes_each": parameters * 12,
        "processes": processes if config.cluster.kind is ClusterKind.ray else ["all in this one"],
        "asked_of_ray": _asked_of_ray(config),
    }


def _asked_of_ray(config: RunConfig) -> dict[str, float]:
    """CPUs, GPUs and other resources of all actors together; what is 0 is left out."""
    asked, total = config.cluster.resources, Counter[str]()
    counts = {"generator": config.generator.num_generators, "learner": config.learning.num_learners}
    for role in fields(asked):
        one = getattr(asked, role.name)
        for name, amount in {"cpus": one.cpus, "gpus": one.gpus, **one.custom}.items():
            total[name] += amount * counts.get(role.name, 1)
    return {name: amount for name, amount in total.items() if amount}


def _check_room(config: RunConfig, architecture: dict[str, Any]) -> None:
    need = needs(config, architecture)
    if config.weights.channel is WeightChannelKind.shared_memory:
        free = shutil.disk_usage(config.weights.folder).free
        if free < need["weight_channel_bytes"]:
            raise ConfigError("weights.folder", config.weights.folder,
                              f"two versions of the weights take {need['weight_channel_bytes']} bytes, {free} "
                              "are free: enlarge it (docker: --shm-size) or choose another folder")
    if not np.isfinite(config.rollout.temperature):
        raise ConfigError("rollout.temperature", config.rollout.temperature, "give a finite number")
    if config.model.source is not ModelSource.scratch and not need["parameters"]:
        raise ModelError("the model's config.json lacks its sizes: is it a Llama or Qwen model?")
