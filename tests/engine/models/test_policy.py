from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine.config.model import AdapterConfig, ModelConfig, ModelSource, ScratchConfig
from engine.config.rollout import Precision
from engine.errors import ModelError
from engine.models.decoder import Decoder
from engine.models.packed import Block
from engine.models.policy import (
    head_weight,
    hidden_states,
    load_network,
    model_folder,
    published_tensors,
    save_policy,
    scratch_network,
    with_adapter,
)
from engine.models.tokenizer import PolicyTokenizer, character_tokenizer
from tests.small_models import FAMILIES, tiny_network

TOKENS = torch.arange(3, 15)


def states(network: Any) -> Tensor:
    with torch.no_grad():
        return hidden_states(network, TOKENS, torch.arange(12), [Block(0, 12)])


def saved(network: Any, folder: Path) -> Path:
    save_policy(network, published_tensors(network), character_tokenizer(), folder)
    return folder


def adapted(**overrides: Any) -> Any:
    """A network whose adapters are no longer zero."""
    network = with_adapter(tiny_network("qwen2", **overrides), AdapterConfig(rank=4, alpha=8.0))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
def test_a_saved_policy_loads_with_transformers_alone(tmp_path: Path, family: str, tied: bool) -> None:
    network = tiny_network(family, tie_word_embeddings=tied)
    folder = saved(network, tmp_path / "policy")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    right = network.state_dict()
    assert loaded.state_dict().keys() == right.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, right[name]), name
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not tied
    assert loaded.config.model_type == family
    assert PolicyTokenizer.from_folder(folder).end_id == 1
    assert model_folder(ModelConfig(path=str(folder))) == folder


def test_a_saved_policy_is_of_the_type_of_its_weights(tmp_path: Path) -> None:
    """Several learners hold the network in float32 and publish bfloat16."""
    network = tiny_network("qwen3")
    rounded = {name: tensor.bfloat16() for name, tensor in published_tensors(network).items()}
    save_policy(network, rounded, character_tokenizer(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_a_loaded_network_is_packed_and_of_the_asked_precision(tmp_path: Path) -> None:
    network = tiny_network("qwen3")
    folder = saved(network, tmp_path)
    loaded = load_network(folder, Precision.float32)
    assert torch.equal(states(loaded), states(network))
    assert not loaded.training
    assert head_weight(load_network(folder, Precision.bfloat16)).dtype == torch.bfloat16
    assert head_weight(loaded).data_ptr() == loaded.model.embed_tokens.weight.data_ptr()


def test_weights_that_lack_a_tensor_are_refused_not_drawn_at_random(tmp_path: Path) -> None:
    file = saved(tiny_network(), tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_network(tmp_path, Precision.float32)


@pytest.mark.parametrize("damage", ["shape", "bytes", "gone"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: str) -> None:
    file = saved(tiny_network(), tmp_path) / "model.safetensors"
    if damage == "shape":
        tensors = load_file(file) | {"model.norm.weight": torch.ones(5)}
        save_file(tensors, file, metadata={"format": "pt"})
    elif damage == "bytes":
        file.write_bytes(b"not a tensor file at all")
    else:
        file.unlink()
    with pytest.raises(ModelError, match="no model could be loaded"):
        load_network(tmp_path, Precision.float32)


def test_folders_that_hold_no_known_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.path=.*nowhere.* holds no config\.json"):
        model_folder(ModelConfig(path=str(tmp_path / "nowhere")))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"broken config\.json"):
        model_folder(ModelConfig(path=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelError, match="family 'gpt2': known: llama, qwen2, qwen3, mistral"):
        model_folder(ModelConfig(path=str(tmp_path)))


def test_a_packaged_model_is_looked_up_by_name() -> None:
    with pytest.raises(ModelError, match="smollm2-135m-instruct"):
        model_folder(ModelConfig(source=ModelSource.packaged, packaged="smollm2-135m"))


def test_scratch_networks_are_drawn_from_their_seed_alone() -> None:
    config = ScratchConfig(layers=2, width=32, heads=2, intermediate=48, alphabet="ab>\n")
    torch.manual_seed(3)
    expected_next = torch.rand(1)
    torch.manual_seed(3)
    first, tokenizer = scratch_network(config, seed=1)
    assert torch.equal(torch.rand(1), expected_next)
    again, _ = scratch_network(config, seed=1)
    other, _ = scratch_network(config, seed=2)
    assert torch.equal(head_weight(first), head_weight(again))
    assert not torch.equal(head_weight(first), head_weight(other))
    assert head_weight(first).shape == (len(tokenizer.backend), 32)
    assert first.config.eos_token_id == tokenizer.end_id
    row = torch.from_numpy(tokenizer.encode("ab>ab")).long()
    assert hidden_states(first, row, torch.arange(5), [Block(0, 5)]).shape == (5, 32)


def test_only_adapters_are_trained_and_they_begin_as_nothing() -> None:
    plain = tiny_network("qwen2")
    network = with_adapter(tiny_network("qwen2"), AdapterConfig(rank=4, targets=["q_proj", "down_proj"]))
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained} == {"q_proj", "down_proj"}
    torch.testing.assert_close(states(network), states(plain), atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_are_folded_into_what_is_published(tied: bool) -> None:
    network = adapted(tie_word_embeddings=tied)
    published = published_tensors(network)
    assert not any(tensor.requires_grad for tensor in published.values())
    seen = states(network)
    assert (seen - states(tiny_network("qwen2", tie_word_embeddings=tied))).abs().max() > 0.1
    decoder = Decoder(network.get_base_model().config, torch.float32, 16)
    decoder.load(published)
    keys, values = decoder.allocate(1, 16)
    hidden = decoder.forward(TOKENS, torch.zeros(12, dtype=torch.long), torch.arange(12), keys, values)
    torch.testing.assert_close(hidden, seen, atol=1e-4, rtol=0)
    merged = network.merge_and_unload().state_dict()
    assert published.keys() == merged.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(published[name], tensor, atol=1e-6, rtol=1e-6)


def test_a_saved_policy_with_adapters_is_a_plain_model(tmp_path: Path) -> None:
    network = adapted()
    folder = saved(network, tmp_path)
    assert not list(folder.glob("adapter*"))
    loaded = load_network(folder, Precision.float32)
    torch.testing.assert_close(states(loaded), states(network), atol=1e-4, rtol=0)
    # Saving leaves the network as it was: training goes on.
    assert any("lora_" in name for name, _ in network.named_parameters())
