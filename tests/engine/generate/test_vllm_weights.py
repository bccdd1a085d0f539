from __future__ import annotations

import errno
import os
from typing import Any

import pytest
import torch

from engine.errors import ActorError, ModelError
from engine.generate.vllm_weights import Layout, Parcel, unpack
from engine.models.policy import published_tensors
from tests.small_models import tiny_config, tiny_network


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return published_tensors(tiny_network("llama"))


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout.of(tiny_config())


def test_an_architecture_names_what_it_needs_and_what_it_ties(layout: Layout, tensors: Any) -> None:
    assert layout.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert set(layout.shapes) == set(tensors) - {"lm_head.weight"}
    selected = layout.select(tensors)
    assert set(selected) == set(tensors)
    assert selected["model.norm.weight"] is tensors["model.norm.weight"]
    assert selected["lm_head.weight"] is selected["model.embed_tokens.weight"]
    untold = {name: tensor for name, tensor in tensors.items() if name not in layout.tied}
    assert set(layout.select(untold)) == set(tensors)
    untied = Layout.of(tiny_config(tie_word_embeddings=False))
    assert "lm_head.weight" in untied.shapes
    assert not untied.tied


def test_weights_of_another_model_are_refused_by_the_name_of_the_tensor(layout: Layout, tensors: Any) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    lacking = {key: value for key, value in tensors.items() if key != name}
    with pytest.raises(ModelError, match=rf"lack '{name}'"):
        layout.select(lacking)
    with pytest.raises(ModelError, match=r"'model\.layers\.7\.weight', which the model lacks"):
        layout.select({**tensors, "model.layers.7.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match=rf"'{name}' is \[80, 31\], expected \[80, 32\]"):
        layout.select({**tensors, name: torch.zeros(80, 31)})
    with pytest.raises(ModelError, match=r"'lm_head\.weight' differs from 'model\.embed_tokens\.weight'"):
        layout.select({**tensors, "lm_head.weight": torch.zeros(100, 32)})


def test_a_parcel_arrives_as_it_was_sent_and_its_memory_is_used_again() -> None:
    parcel = Parcel("generator-0#1")
    first = {"a": torch.arange(5, dtype=torch.int64), "b": torch.randn(3, 2).bfloat16(), "c": torch.zeros(0, 4)}
    sent = parcel.write(first)
    arrived = dict(unpack(**sent))
    assert list(arrived) == ["a", "b", "c"]
    assert all(torch.equal(arrived[name], first[name]) and arrived[name].dtype == first[name].dtype for name in first)
    again = parcel.write({name: tensor + 1 for name, tensor in first.items()})
    assert again == sent
    assert torch.equal(dict(unpack(**again))["a"], first["a"] + 1)
    larger = parcel.write({"a": torch.randn(100)})
    assert len(dict(unpack(**larger))["a"]) == 100
    parcel.close()
    twice = parcel.write({"a": first["a"], "b": first["a"]})
    assert os.path.getsize(twice["path"]) == 64
    assert torch.equal(dict(unpack(**twice))["b"], first["a"])
    parcel.close()
    parcel.close()
    assert not os.path.exists(larger["path"])


def test_without_room_the_generator_is_named_and_the_next_version_finds_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    parcel, tensors = Parcel("generator-0#1"), {"a": torch.randn(2**18)}
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ActorError, match=r"generator-0#1 during taking weights: 1 MiB .* No space left .* more memory"):
        parcel.write(tensors)
    monkeypatch.undo()
    sent = parcel.write(tensors)
    assert os.path.getsize(sent["path"]) == 2**20
    assert torch.equal(dict(unpack(**sent))["a"], tensors["a"])
    parcel.close()
