"""Tiny random networks of every family that the sampler knows, and their decoders: no download."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from engine.models.decoder import Decoder
from engine.models.packed import ATTENTION_NAME, register_packed_attention
from engine.models.policy import published_tensors
from engine.records.version import PolicyVersion

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


def tiny_network(family: str = "llama", seed: int = 0, attention: str = ATTENTION_NAME, **overrides: Any) -> Any:
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
    tensors: dict[str, Tensor] = field(repr=False)


def staged(network: Any, updates: int = 0) -> Staged:
    """A copy of the network's weights, stamped with a version of lineage 0."""
    tensors = {name: tensor.clone() for name, tensor in published_tensors(network).items()}
    return Staged(PolicyVersion(0, updates), f"digest-{updates}", tensors)
