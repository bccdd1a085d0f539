from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from engine.errors import ModelError
from engine.models.decoder import Decoder
from engine.models.packed import Block
from engine.models.policy import hidden_states, published_tensors
from engine.ops.rms_norm import rms_norm
from tests.small_models import FAMILIES, VOCABULARY, tiny_config, tiny_decoder, tiny_network

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {"tie_word_embeddings": True}) for family in (*FAMILIES, "mistral")),
    *((family, {"tie_word_embeddings": False}) for family in (*FAMILIES, "mistral")),
    ("llama", {"attention_bias": True}),
    ("qwen3", {"attention_bias": True}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("qwen2", {"rope_parameters": YARN}),
    ("llama", {"num_key_value_heads": 4, "head_dim": 8}),
    ("llama", {"num_key_value_heads": 1, "head_dim": None}),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sequences(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def own_forward(network: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    output = network(tokens[None], output_hidden_states=True, use_cache=False)
    return output.hidden_states[-1][0], output.logits[0]


def run(decoder: Decoder, rows: list[tuple[int, int, int]], keys: Tensor, values: Tensor) -> Tensor:
    token, slot, position = (torch.tensor(column) for column in zip(*rows, strict=True))
    return decoder.forward(token, slot, position, keys, values)


@pytest.mark.parametrize(("family", "overrides"), CASES)
def test_prefill_and_decode_equal_the_forward_of_transformers(
    family: str, overrides: dict[str, Any]
) -> None:
    network = tiny_network(family, attention="eager", **overrides)
    decoder = tiny_decoder(network, context_tokens=64)
    keys, values = decoder.allocate(3, 64)
    first, second = sequences(48, 11)
    right, logits = own_forward(network, first)
    # Slot 2 is prefilled in two passes beside slot 0, then both decode to their ends.
    prefill = [(int(t), 2, p) for p, t in enumerate(first[:20])]
    other = [(int(t), 0, p) for p, t in enumerate(second[:5])]
    begun = run(decoder, prefill[:12] + other + [(0, 0, -1)] * 3, keys, values)[:12]
    got = [begun, run(decoder, prefill[12:], keys, values)]
    short = []
    for position in range(20, 48):
        place = position - 15
        beside = (int(second[place]), 0, place) if place < 11 else (0, 0, -1)
        hidden = run(decoder, [beside, (0, 1, -1), (int(first[position]), 2, position)], keys, values)
        got.append(hidden[2:])
        if place < 11:
            short.append(hidden[:1])
    torch.testing.assert_close(torch.cat(got), right, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat(got) @ decoder.head.T, logits, atol=5e-4, rtol=0)
    torch.testing.assert_close(torch.cat(short), own_forward(network, second)[0][5:], atol=1e-4, rtol=0)


def test_rows_without_a_token_write_nothing() -> None:
    decoder = tiny_decoder(tiny_network(), 16)
    keys, values = decoder.allocate(2, 16)
    run(decoder, [(5, 0, -1), (6, 1, -1), (7, 1, 3)], keys, values)
    written = keys.abs().sum((0, 3, 4)).nonzero().tolist()
    assert written == values.abs().sum((0, 3, 4)).nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [7, 64])
def test_threads_that_share_a_wide_layer_change_no_bit_of_a_row(dtype: torch.dtype, rows: int) -> None:
    torch.set_num_threads(3)
    decoder = tiny_decoder(tiny_network(intermediate_size=1100 if rows == 64 else 14003), 4, dtype)
    hidden = run(decoder, [(9, slot, 0) for slot in range(rows)], *decoder.allocate(rows, 4))
    assert (hidden == hidden[:1]).all()


def test_bfloat16_rounds_where_transformers_rounds() -> None:
    network = tiny_network(hidden_size=64)
    decoder = tiny_decoder(network, 16, torch.bfloat16)
    norm = LlamaRMSNorm(64, decoder.config.rms_norm_eps).bfloat16()
    norm.weight.data.copy_(decoder.norm)
    hidden = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(rms_norm(hidden, decoder.norm, decoder.config.rms_norm_eps), norm(hidden))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_it_is_nearer_to_the_learners_network_than_that_is_to_fp32(family: str) -> None:
    network = tiny_network(family)
    decoder = tiny_decoder(network, 64, torch.bfloat16)
    (tokens,) = sequences(40)
    keys, values = decoder.allocate(1, 64)
    hidden = run(decoder, [(int(t), 0, p) for p, t in enumerate(tokens)], keys, values)
    assert hidden.dtype == torch.bfloat16
    row = (tokens, torch.arange(40), [Block(0, 40)])
    exact = hidden_states(network, *row)
    learner = hidden_states(network.bfloat16(), *row).float()
    assert (hidden.float() - learner).abs().mean() < (learner - exact).abs().mean()


def test_newer_weights_replace_older_ones_and_masters_are_converted() -> None:
    one, other = tiny_network("qwen2", seed=1), tiny_network("qwen2", seed=2)
    decoder = tiny_decoder(one, 16, torch.bfloat16)
    decoder.load(published_tensors(other))
    fresh = tiny_decoder(other, 16, torch.bfloat16)
    rows = [(9, 0, 0), (11, 0, 1)]
    got, right = (run(d, rows, *d.allocate(1, 16)) for d in (decoder, fresh))
    assert torch.equal(got, right)
    assert decoder.head is decoder.embedding


@pytest.mark.parametrize(
    ("family", "overrides", "name"),
    [
        ("llama", {}, "model.layers.1.mlp.up_proj.weight"),
        ("llama", {}, "model.norm.weight"),
        ("llama", {"tie_word_embeddings": False}, "lm_head.weight"),
        ("llama", {"attention_bias": True}, "model.layers.0.self_attn.o_proj.bias"),
        ("qwen2", {}, "model.layers.0.self_attn.k_proj.bias"),
        ("qwen3", {}, "model.layers.1.self_attn.q_norm.weight"),
    ],
)
def test_a_missing_tensor_is_named(family: str, overrides: dict[str, Any], name: str) -> None:
    network = tiny_network(family, **overrides)
    tensors = published_tensors(network)
    del tensors[name]
    with pytest.raises(ModelError, match=f"lack '{name}'"):
        Decoder(network.config, torch.float32, 16).load(tensors)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.k_proj.weight", (16, 32)),
        ("model.layers.0.mlp.down_proj.weight", (32, 1)),
        ("model.embed_tokens.weight", (1, 32)),
        ("model.norm.weight", (1,)),
    ],
)
def test_a_tensor_of_another_shape_is_refused_never_broadcast(name: str, shape: tuple[int, ...]) -> None:
    network = tiny_network()
    tensors = published_tensors(network) | {name: torch.ones(shape)}
    with pytest.raises(ModelError, match=rf"do not fit.*{name}"):
        Decoder(network.config, torch.float32, 16).load(tensors)


@pytest.mark.parametrize(
    ("family", "overrides", "reason"),
    [
        ("llama", {"mlp_bias": True}, "without bias"),
        ("llama", {"hidden_act": "gelu"}, "SiLU"),
        ("llama", {"rope_parameters": DYNAMIC}, "dynamic"),
        ("mistral", {"sliding_window": 16}, "16 tokens"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "16 tokens"),
    ],
)
def test_architectures_that_it_would_not_repeat_are_refused(
    family: str, overrides: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        Decoder(tiny_config(family, **overrides), torch.float32, 64)


def test_an_unknown_family_is_refused_with_those_that_are_known() -> None:
    from transformers import GPT2Config

    with pytest.raises(ModelError, match="llama, mistral, qwen2, qwen3, not 'gpt2'"):
        Decoder(GPT2Config(), torch.float32, 16)
