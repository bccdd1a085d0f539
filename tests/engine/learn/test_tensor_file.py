import copy

import pytest
import torch

from engine.errors import CheckpointError
from engine.learn.tensor_file import (
    optimiser_from_tensors,
    optimiser_to_tensors,
    tensors_from_file,
    tensors_to_file,
)


def same_bits(left, right):
    flat = (
        left.contiguous().reshape(-1).view(torch.uint8),
        right.contiguous().reshape(-1).view(torch.uint8),
    )
    return left.dtype is right.dtype and left.shape == right.shape and torch.equal(*flat)


def trained(parameters, optimiser, steps=2):
    for _ in range(steps):
        optimiser.zero_grad()
        sum((parameter**2).sum() * 1.7 for parameter in parameters).backward()
        optimiser.step()


def parameters_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,), ())]


def test_tensors_round_trip_bit_for_bit(tmp_path):
    tensors = {
        "float": torch.tensor([float("nan"), -0.0, 1e-45, 3.0]),
        "half": torch.randn(3, 2, dtype=torch.bfloat16),
        "count": torch.arange(4),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "turned": torch.randn(3, 4).T,
    }
    tensors_to_file(tmp_path / "t", tensors)
    loaded = tensors_from_file(tmp_path / "t")
    assert set(loaded) == set(tensors)
    assert all(same_bits(loaded[name], tensor) for name, tensor in tensors.items())


def test_tied_tensors_are_stored_once_and_slices_survive(tmp_path):
    shared = torch.randn(100, 10)
    tensors = {"embed": shared, "head": shared, "rows": shared[:3], "more": shared[1:5]}
    tensors_to_file(tmp_path / "t", tensors)
    loaded = tensors_from_file(tmp_path / "t")
    assert (tmp_path / "t").stat().st_size < 1.5 * shared.nbytes
    assert loaded["embed"].data_ptr() == loaded["head"].data_ptr()
    assert all(same_bits(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_damaged_or_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        tensors_from_file(tmp_path / "missing")
    (tmp_path / "bad").write_bytes(b"\x00" * 40)
    with pytest.raises(CheckpointError, match="bad"):
        tensors_from_file(tmp_path / "bad")
    with pytest.raises(CheckpointError, match="cannot be written"):
        tensors_to_file(tmp_path / "no" / "folder", {"a": torch.ones(2)})


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.1}, {"params": p[1:]}], betas=(0.9, 0.95)),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1 + 0.2, momentum=0.9),
    ],
)
def test_an_optimiser_goes_on_bit_for_bit(tmp_path, build):
    parameters = parameters_of()
    optimiser = build(parameters)
    trained(parameters, optimiser)
    state = copy.deepcopy(optimiser.state_dict())
    tensors_to_file(tmp_path / "o", optimiser_to_tensors(state))
    restored = optimiser_from_tensors(tensors_from_file(tmp_path / "o"))
    assert restored["param_groups"] == state["param_groups"]
    assert isinstance(restored["param_groups"][0].get("betas", ()), tuple)
    assert list(restored["state"]) == list(state["state"])

    others = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    other = build(others)
    other.load_state_dict(restored)
    trained(parameters, optimiser)
    trained(others, other)
    assert all(same_bits(a.detach(), b.detach()) for a, b in zip(parameters, others, strict=True))


def test_an_optimiser_that_never_stepped_round_trips():
    state = torch.optim.AdamW(parameters_of()).state_dict()
    assert optimiser_from_tensors(optimiser_to_tensors(state)) == state


def test_odd_numbers_and_keys_survive():
    state = {
        "state": {0: {"step": 3, "rate": 0.1 + 0.2, "low": float("-inf"), "none": None}},
        "param_groups": [],
    }
    assert optimiser_from_tensors(optimiser_to_tensors(state)) == state


def test_what_cannot_be_saved_without_pickle_is_refused():
    with pytest.raises(CheckpointError, match="state/0/hook is a function"):
        optimiser_to_tensors({"state": {0: {"hook": same_bits}}, "param_groups": []})
    with pytest.raises(CheckpointError, match="not a saved optimiser"):
        optimiser_from_tensors({"a": torch.ones(1)})
