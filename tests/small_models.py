"""Tiny random networks of every family that the sampler knows, and samplers over them: no download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from engine.config.rollout import RepetitionConfig
from engine.config.schedule import InFlight
from engine.generate.native import NativeSampler
from engine.generate.sampler import Sampler
from engine.models.decoder import Decoder
from engine.models.packed import ATTENTION_NAME, Block, register_packed_attention
from engine.models.policy import head_weight, hidden_states, published_tensors
from engine.ops.token_logprob import token_logprob
from engine.records.trajectory import Trajectory
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, Request

VOCABULARY = 100
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
FAMILIES = ("llama", "qwen2", "qwen3")


def tiny_config(family: str = "llama", **overrides: Any) -> Any:
    """Two layers of width 32, four query heads over two key-value heads."""
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024,
        "tie_word_embeddings": True, "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return CONFIGS[family](**{**values, **overrides})


def tiny_network(
    family: str = "llama", seed: int = 0, attention: str = ATTENTION_NAME, **overrides: Any
) -> Any:
    """A network whose every weight, norms and biases included, is random."""
    register_packed_attention()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(
            tiny_config(family, **overrides), attn_implementation=attention
        )
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "norm" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
                if name.endswith("bias"):
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
    return network.eval()


def tiny_decoder(network: Any, context_tokens: int = 64, dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder with the network's weights."""
    decoder = Decoder(network.config, dtype, context_tokens)
    decoder.load(published_tensors(network))
    return decoder


@dataclass
class Staged:
    """Weights ready to be swapped in."""

    version: PolicyVersion
    digest: str
    tensors: Mapping[str, Tensor] = field(repr=False)


def staged(network: Any, updates: int = 0) -> Staged:
    """A copy of the network's weights, stamped with a version of lineage 0."""
    tensors = {name: tensor.clone() for name, tensor in published_tensors(network).items()}
    return Staged(PolicyVersion(0, updates), f"digest-{updates}", tensors)


def tiny_sampler(
    network: Any, slots: int = 4, *, context: int = 64, prefill: int = 32, stop_ids: Sequence[int] = (),
    repetition: RepetitionConfig | None = None, dtype: torch.dtype = torch.float32, seed: int = 5,
    park: bool = False,
) -> NativeSampler:
    """A sampler that serves the network's weights as version 0.0; loops are not looked for by default."""
    sampler = NativeSampler(
        Decoder(network.config, dtype, context), slots, prefill, context_tokens=context,
        stop_ids=stop_ids, repetition=repetition or RepetitionConfig(enabled=False), seed=seed, park=park,
    )
    sampler.swap(staged(network), InFlight.finish)
    return sampler


def random_prompt(seed: int, length: int) -> np.ndarray:
    """[length] int32 tokens; other seeds give other prompts."""
    return np.random.default_rng(seed).integers(3, VOCABULARY, length).astype(np.int32)


def ask(trajectory_id: int, prompt: np.ndarray, limit: int = 16, **fields: Any) -> Request:
    """A new trajectory's request."""
    values = {"attempt": 0, "generated": np.zeros(0, np.int32), **fields}
    return Request(trajectory_id, prompt_tokens=prompt, max_response_tokens=limit, **values)


def drain(sampler: Sampler, most_steps: int = 5000) -> list[Delivery]:
    """Step until nothing is left; in the order of leaving."""
    deliveries: list[Delivery] = []
    for _ in range(most_steps):
        if sampler.idle and not sampler.swap_pending:
            return deliveries
        deliveries += sampler.step()
    raise AssertionError(f"the sampler is not idle after {most_steps} steps")


def answers(deliveries: Sequence[Delivery]) -> dict[int, tuple[list[int], list[float]]]:
    """Trajectory id -> tokens and log-probs over all its deliveries."""
    collected: dict[int, tuple[list[int], list[float]]] = {}
    for delivery in deliveries:
        tokens, logprobs = collected.setdefault(delivery.trajectory_id, ([], []))
        for segment in delivery.segments:
            tokens += segment.token_ids.tolist()
            logprobs += segment.behaviour_logprob.tolist()
    return collected


def trajectory_of(trajectory_id: int, deliveries: Sequence[Delivery]) -> Trajectory:
    """What replay would make of the deliveries of one trajectory."""
    trajectory = Trajectory(trajectory_id, group_id=0, prompt_id="p")
    for each in deliveries:
        if each.trajectory_id == trajectory_id:
            trajectory = trajectory.extended(each.segments, each.finish_reason, each.saved_tokens)
    return trajectory


@torch.no_grad()
def teacher_forced(
    network: Any, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], temperature: float = 1.0
) -> list[np.ndarray]:
    """Log-probs of every response token, by the learner's own forward over one packed row."""
    blocks, tokens, positions, start = [], [], [], 0
    for prompt, response in zip(prompts, responses, strict=True):
        tokens.append(np.concatenate([prompt, response]))
        positions.append(np.arange(len(tokens[-1])))
        blocks.append(Block(start, len(tokens[-1])))
        start += len(tokens[-1])
    row = torch.from_numpy(np.concatenate(tokens).astype(np.int64))
    hidden = hidden_states(network, row, torch.from_numpy(np.concatenate(positions)), blocks)
    scale = torch.tensor([1.0 / temperature])
    logprobs = token_logprob(hidden, head_weight(network), row.roll(-1), scale)[0].numpy()
    spans = zip(blocks, prompts, strict=True)
    return [logprobs[block.start + len(prompt) - 1 : block.stop - 1] for block, prompt in spans]
