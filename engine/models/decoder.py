"""The forward of the Llama and Qwen families over slots: one token here, one there, keys in a cache.

It reads the same named weights as the transformers classes and repeats their arithmetic, rounding
included, so that log-probs agree with the learner's. It exists because a decoding step is a handful of
small matrix products, where the general network spends most of its time between them. Every pass has a
fixed number of rows: then neither position in the batch nor neighbours change a bit of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine.errors import ModelError
from engine.ops.gated_silu import gated_silu
from engine.ops.rms_norm import add_rms_norm, rms_norm
from engine.ops.rotary import rotate_and_store
from engine.ops.slot_attention import slot_attention
from engine.parallel import overwrite, share
from engine.processor import processor_vendor

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_ROTATIONS = ("default", "linear", "llama3", "yarn")
_CPU = torch.device("cpu")


@cache
def _packs_weights(dtype: torch.dtype) -> bool:
    """Whether this processor and this torch should multiply by weights packed beforehand.

    bfloat16 is quicker so. float32 need not be packed where MKL knows the processor; on others (seen on an AMD EPYC)
    it shares few rows out among threads so that the bits of a row depend on its place.
    """
    ops = torch.ops.mkldnn
    known = hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")
    if not known or not torch.backends.mkldnn.is_available():
        return False
    if dtype is torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    foreign = processor_vendor() not in ("", "GenuineIntel")
    return dtype is torch.float32 and foreign and torch.backends.mkl.is_available()


class Product:
    """A linear map, or several over the same input stacked into one.

    oneDNN arranges a bfloat16 weight in blocks before it multiplies, which for few rows takes as long as the
    product; here it happens once, when the weight arrives. The bits are those of ``functional.linear`` in bfloat16.
    """

    def __init__(self, rows: int, width: int, like: Tensor, bias: bool = False) -> None:
        self._shape, self._dtype = (rows, width), like.dtype
        self._packs = like.device.type == "cpu" and _packs_weights(like.dtype)
        self._weight = like.new_empty(0 if self._packs else rows, width)
        self._bias = like.new_empty(rows) if bias else None

    def load(self, tensors: Mapping[str, Tensor], *names: str) -> None:
        """Take over the weights of the named modules, and their biases."""
        weights = [f"{name}.weight" for name in names]
        if self._packs:
            whole = _stacked(_sources(tensors, self._shape, weights))
            pack = torch.ops.mkldnn._reorder_linear_weight
            self._weight = pack(whole.detach().to(self._dtype).contiguous())
        else:
            _fill(self._weight, tensors, *weights)
        if self._bias is not None:
            _fill(self._bias, tensors, *(f"{name}.bias" for name in names))

    def __call__(self, value: Tensor) -> Tensor:
        """[F, width] to [F, rows]."""
        if not self._packs:
            return functional.linear(value, self._weight, self._bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(value, self._weight, self._bias, "none", [], "")
        return result


class DecoderLayer:
    """Fused weights of one layer."""

    def __init__(self, config: Any, like: Tensor) -> None:
        """Allocate in the type and on the device of ``like``."""
        width, size = config.hidden_size, config.head_dim
        rows = (config.num_attention_heads + 2 * config.num_key_value_heads) * size
        family = config.model_type
        asked = bool(getattr(config, "attention_bias", False)) and family in ("llama", "qwen3")
        bias, head_norm = asked or family == "qwen2", family == "qwen3"
        self.query_key_value = Product(rows, width, like, bias)
        self.output = Product(width, config.num_attention_heads * size, like, asked)
        self.gate_up = Product(2 * config.intermediate_size, width, like)
        self.down = Product(width, config.intermediate_size, like)
        self.attention_norm = like.new_empty(width)
        self.feed_forward_norm = like.new_empty(width)
        self.query_norm = like.new_empty(size) if head_norm else None
        self.key_norm = like.new_empty(size) if head_norm else None

    def load(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Copy one layer's named weights into the fused ones."""
        attention, feed_forward = f"{prefix}self_attn.", f"{prefix}mlp."
        self.query_key_value.load(tensors, *(f"{attention}{part}_proj" for part in ("q", "k", "v")))
        self.output.load(tensors, f"{attention}o_proj")
        self.gate_up.load(tensors, f"{feed_forward}gate_proj", f"{feed_forward}up_proj")
        self.down.load(tensors, f"{feed_forward}down_proj")
        _fill(self.attention_norm, tensors, f"{prefix}input_layernorm.weight")
        _fill(self.feed_forward_norm, tensors, f"{prefix}post_attention_layernorm.weight")
        if self.query_norm is not None and self.key_norm is not None:
            _fill(self.query_norm, tensors, f"{attention}q_norm.weight")
            _fill(self.key_norm, tensors, f"{attention}k_norm.weight")


def _sources(tensors: Mapping[str, Tensor], shape: Sequence[int], names: Sequence[str]) -> list[Tensor]:
    """The named tensors, which stacked have this shape; nothing is broadcast, nothing left over."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ModelError(f"the weights lack {missing[0]!r}: they belong to another model")
    sources = [tensors[name] for name in names]
    rows = sum(len(source) for source in sources)
    if rows != shape[0] or any(source.shape[1:] != torch.Size(shape[1:]) for source in sources):
        came = ", ".join(f"{name} {list(tensors[name].shape)}" for name in names)
        raise ModelError(f"the weights do not fit this model: expected {list(shape)} from {came}")
    return sources


def _stacked(parts: list[Tensor]) -> Tensor:
    """The tensors above each other; no bytes move where they lie so already, as in staging memory."""
    first, end = parts[0], parts[0].data_ptr()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and part.is_contiguous() and part.dtype is first.dtype and part.data_ptr() == end):
            return torch.cat(parts)
        end += part.nbytes
    rows = sum(len(part) for part in parts)
    return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def _fill(target: Tensor, tensors: Mapping[str, Tensor], *names: str) -> None:
    """Stack named tensors into one."""
    start = 0
    for source in _sources(tensors, target.shape, names):
        overwrite(target[start : start + len(source)], source)
        start += len(source)


def _check_architecture(config: Any, context_tokens: int) -> None:
    family = config.model_type
    if family not in _FAMILIES:
        raise ModelError(f"the native sampler knows {', '.join(_FAMILIES)}, not {family!r}")
    if config.hidden_act != "silu" or getattr(config, "mlp_bias", False):
        raise ModelError("the native sampler knows gated SiLU layers without bias only")
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation not in _ROTATIONS:
        raise ModelError(
            f"rope_type {rotation!r} turns a position by the length of its sequence, which cached keys "
            f"cannot follow; known: {', '.join(_ROTATIONS)}"
        )
    slides = family == "mistral" or "sliding_attention" in (getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) if slides else None
    if window is not None and window < context_tokens:
        raise ModelError(
            f"layers that see {window} tokens would have to slide within {context_tokens}, which is not "
            f"supported: give at most {window} tokens of prompt and response"
        )


class Decoder:
    """A decoder-only network whose tokens name the slot and position they belong to."""

    def __init__(self, config: Any, dtype: torch.dtype, context_tokens: int,
                 device: torch.device = _CPU, *, bare: bool = False) -> None:
        """Rotations for ``context_tokens`` positions, and memory for the weights of a transformers ``config``.

        Args:
            config: of the network.
            dtype: of weights and activations.
            context_tokens: largest position and one.
            device: that computes.
            bare: leave the memory to :meth:`furnish`.

        Raises:
            ModelError: this forward would not repeat that network.
        """
        if getattr(config, "head_dim", None) is None:
            config.head_dim = config.hidden_size // config.num_attention_heads
        _check_architecture(config, context_tokens)
        self.config = config
        self.dtype = dtype
        self.device = device
        self.tied = bool(config.tie_word_embeddings)
        self.cosine, self.sine = self._rotation(context_tokens)
        self.strip()
        if not bare:
            self.furnish()

    def strip(self) -> None:
        """Let go of the weights and their memory."""
        self.layers: list[DecoderLayer] = []
        self.embedding = self.head = self.norm = torch.empty(0, dtype=self.dtype, device=self.device)

    def furnish(self) -> None:
        """Allocate memory for weights, which :meth:`load` then fills."""
        config, like = self.config, torch.empty(0, dtype=self.dtype, device=self.device)
        self.layers = [DecoderLayer(config, like) for _ in range(config.num_hidden_layers)]
        self.embedding = like.new_empty(config.vocab_size, config.hidden_size)
        self.head = self.embedding if self.tied else torch.empty_like(self.embedding)
        self.norm = like.new_empty(config.hidden_size)

    def _rotation(self, context_tokens: int) -> tuple[Tensor, Tensor]:
        """[C, 1, d] cosines and sines, from transformers' own rotary module so that scaling agrees."""
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        rotary = LlamaRotaryEmbedding(self.config)
        like = torch.empty(1, 1, dtype=self.dtype)
        # On the CPU wherever they go, so that no device turns a position by another angle.
        parts = rotary(like, torch.arange(context_tokens)[None])
        cosine, sine = (part[0][:, None].contiguous().to(self.device) for part in parts)
        return cosine, sine

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy named weights in, converting to the decoder's type.

        Raises:
            ModelError: a tensor is missing or has another shape.
        """
        jobs = [partial(_fill, self.embedding, tensors, "model.embed_tokens.weight"),
                partial(_fill, self.norm, tensors, "model.norm.weight")]
        if not self.tied:
            jobs.append(partial(_fill, self.head, tensors, "lm_head.weight"))
        jobs += [partial(layer.load, f"model.layers.{index}.", tensors) for index, layer in enumerate(self.layers)]
        share(lambda job: job(), jobs)

    def allocate(self, slots: int, context_tokens: int) -> tuple[Tensor, Tensor]:
        """Zeroed keys and values, each [layers, S, C, heads, d]."""
        config = self.config
        shape = (len(self.layers), slots, context_tokens, config.num_key_value_heads, config.head_dim)
        made = partial(torch.zeros, shape, dtype=self.dtype, device=self.device)
        return made(), made()

    @torch.no_grad()
    def forward(self, tokens: Tensor, slot: Tensor, position: Tensor, keys: Tensor,
                values: Tensor) -> Tensor:
        """Run F tokens, write their keys and values, return [F, D] hidden states after the final norm.

        Args:
            tokens: [F] int64 ids; like all others, on the decoder's device.
            slot: [F] int64 row of the cache that each token belongs to.
            position: [F] int64 position within its sequence; -1 marks a row that computes nothing real.
            keys: [layers, S, C, heads, d], written at (slot, position).
            values: like ``keys``.
        """
        config = self.config
        epsilon = config.rms_norm_eps
        hidden = functional.embedding(tokens, self.embedding)
        normed = rms_norm(hidden, self.layers[0].attention_norm, epsilon)
        followers = [layer.attention_norm for layer in self.layers[1:]] + [self.norm]
        for index, (layer, follower) in enumerate(zip(self.layers, followers, strict=True)):
            fused = self._heads(layer, normed)
            query = rotate_and_store(
                fused, self.cosine, self.sine, slot, position, keys[index], values[index]
            )
            mixed = slot_attention(query, keys[index], values[index], slot, position, config.head_dim**-0.5)
            attended = layer.output(mixed.view(len(mixed), -1))
            hidden, normed = add_rms_norm(hidden, attended, layer.feed_forward_norm, epsilon)
            fed = layer.down(gated_silu(layer.gate_up(normed)))
            hidden, normed = add_rms_norm(hidden, fed, follower, epsilon)
        return normed

    def _heads(self, layer: DecoderLayer, normed: Tensor) -> Tensor:
        """[F, H + 2 * Hkv, d]: query, key and value heads, normed by head where the family does so."""
        config = self.config
        count, size = config.num_attention_heads, config.head_dim
        turned = count + config.num_key_value_heads
        fused = layer.query_key_value(normed).view(len(normed), -1, size)
        if layer.query_norm is None or layer.key_norm is None:
            return fused
        parts = [(fused[:, :count], layer.query_norm), (fused[:, count:turned], layer.key_norm)]
        heads = [
            rms_norm(part.reshape(-1, size), weight, config.rms_norm_eps).view(part.shape)
            for part, weight in parts
        ]
        return torch.cat([*heads, fused[:, turned:]], dim=1)
