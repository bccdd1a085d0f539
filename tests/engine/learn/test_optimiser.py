from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.config.learning import OptimiserConfig, Schedule
from engine.errors import CheckpointError
from engine.learn.optimiser import MasterOptimiser


def layer(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(6, 5).to(dtype)


def backward(network: nn.Module, seed: int, scale: float = 1.0) -> None:
    dtype = next(network.parameters()).dtype
    inputs = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    (scale * network(inputs).float().square().sum()).backward()


def train(network: nn.Module, optimiser: MasterOptimiser, steps: range) -> list[float]:
    norms = []
    for step in steps:
        backward(network, step)
        optimiser.collect()
        norms.append(optimiser.step())
    return norms


def weights(optimiser: MasterOptimiser) -> Tensor:
    return torch.cat([tensor.flatten().clone() for tensor in optimiser.master_tensors().values()])


def moments(optimiser: MasterOptimiser) -> list[Tensor]:
    state = optimiser.state_dict()["adam"]["state"]
    return [value.clone() for entry in state.values() for value in entry.values()]


def rates(config: OptimiserConfig, total: int) -> list[float]:
    network = layer()
    optimiser = MasterOptimiser(network, config, total)
    seen = []
    for step in range(total + 2):
        seen.append(optimiser.learning_rate())
        train(network, optimiser, range(step, step + 1))
    return seen


def test_in_fp32_it_is_adamw() -> None:
    config = OptimiserConfig(learning_rate=0.01, weight_decay=0.1, max_gradient_norm=0.0)
    network, twin = layer(), layer()
    plain = torch.optim.AdamW(twin.parameters(), 0.01, (0.9, 0.95), 1e-8, 0.1)
    optimiser = MasterOptimiser(network, config, 10)
    for step in range(5):
        train(network, optimiser, range(step, step + 1))
        backward(twin, step)
        plain.step()
        plain.zero_grad()
    torch.testing.assert_close(list(network.parameters()), list(twin.parameters()))
    assert optimiser.steps == 5
    assert all(parameter.grad is None for parameter in network.parameters())


def test_gradients_are_clipped_to_the_norm_that_is_asked_for() -> None:
    network = layer()
    before = weights(MasterOptimiser(network, OptimiserConfig(), 1))
    backward(network, 0, scale=100.0)
    grads = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    config = OptimiserConfig(learning_rate=1.0, epsilon=1.0, beta1=0.0, beta2=0.0, max_gradient_norm=2.0)
    optimiser = MasterOptimiser(network, config, 1)
    norm = optimiser.step()
    assert norm == pytest.approx(float(grads.norm()), rel=1e-5)
    clipped = grads * 2.0 / norm
    torch.testing.assert_close(before - weights(optimiser), clipped / (clipped.abs() + 1.0))


def test_working_weights_are_the_rounded_master() -> None:
    network = layer(torch.bfloat16)
    optimiser = MasterOptimiser(network, OptimiserConfig(learning_rate=1e-4), 20)
    initial = weights(optimiser)
    train(network, optimiser, range(5))
    assert not torch.equal(weights(optimiser), initial)
    for name, parameter in network.named_parameters():
        master = optimiser.master_tensors()[name]
        assert master.dtype == torch.float32
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, master.to(torch.bfloat16))
        assert not torch.equal(parameter.float(), master), "small steps gather below the rounding"


def test_micro_batches_are_summed_in_fp32() -> None:
    network = layer(torch.bfloat16)
    optimiser = MasterOptimiser(network, OptimiserConfig(), 1)
    expected = [torch.zeros_like(tensor) for tensor in optimiser.master_tensors().values()]
    for seed in range(4):
        backward(network, seed)
        for total, parameter in zip(expected, network.parameters(), strict=True):
            assert parameter.grad is not None
            total += parameter.grad.float()
        optimiser.collect()
    norm = math.sqrt(sum(float(total.square().sum()) for total in expected))
    assert optimiser.step() == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(dtype: torch.dtype, poison: float) -> None:
    network = layer(dtype)
    optimiser = MasterOptimiser(network, OptimiserConfig(learning_rate=0.01), 10)
    train(network, optimiser, range(2))
    before, state, working = weights(optimiser), moments(optimiser), copy.deepcopy(network.state_dict())
    backward(network, 2)
    assert network.bias.grad is not None
    network.bias.grad[1] = poison
    optimiser.collect()
    assert not math.isfinite(optimiser.step())
    assert torch.equal(weights(optimiser), before)
    assert all(torch.equal(one, other) for one, other in zip(moments(optimiser), state, strict=True))
    assert all(torch.equal(value, working[name]) for name, value in network.state_dict().items())
    assert optimiser.steps == 2
    assert math.isfinite(train(network, optimiser, range(3, 4))[0]), "the bad gradient is gone"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_discarded_gradients_are_gone(dtype: torch.dtype) -> None:
    network, twin = layer(dtype), layer(dtype)
    one, other = (MasterOptimiser(n, OptimiserConfig(), 10) for n in (network, twin))
    backward(network, 7)
    one.collect()
    backward(network, 8)
    one.discard()
    train(network, one, range(1))
    train(twin, other, range(1))
    assert torch.equal(weights(one), weights(other))


def test_a_step_over_nothing_is_a_step_with_gradients_of_0() -> None:
    network, twin = layer(), layer()
    config = OptimiserConfig(learning_rate=0.01, weight_decay=0.1)
    one, other = (MasterOptimiser(n, config, 10) for n in (network, twin))
    train(network, one, range(2))
    train(twin, other, range(2))
    before = weights(one)
    assert one.step() == 0.0
    backward(twin, 0, scale=0.0)
    assert other.step() == 0.0
    assert torch.equal(weights(one), weights(other))
    assert not torch.equal(weights(one), before)
    assert one.steps == 3


def test_reset_clears_the_moments_alone() -> None:
    network = layer()
    optimiser = MasterOptimiser(network, OptimiserConfig(learning_rate=0.01), 10)
    train(network, optimiser, range(3))
    fresh_network = copy.deepcopy(network)
    fresh = MasterOptimiser(fresh_network, OptimiserConfig(learning_rate=0.01), 10)
    optimiser.reset()
    assert optimiser.steps == 3
    train(network, optimiser, range(3, 5))
    train(fresh_network, fresh, range(3, 5))
    assert torch.equal(weights(optimiser), weights(fresh))


def test_constant_schedule_with_warm_up() -> None:
    seen = rates(OptimiserConfig(learning_rate=0.4, warmup_steps=4), 6)
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4])


def test_linear_schedule_ends_at_its_fraction() -> None:
    config = OptimiserConfig(
        learning_rate=1.0, schedule=Schedule.linear, warmup_steps=1, final_fraction=0.2
    )
    assert rates(config, 5) == pytest.approx([1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_cosine_schedule_ends_at_its_fraction() -> None:
    config = OptimiserConfig(learning_rate=1.0, schedule=Schedule.cosine, final_fraction=0.5)
    half = [0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert rates(config, 4) == pytest.approx([*(0.5 + 0.5 * value for value in half), 0.5, 0.5])


def test_the_rate_reaches_adam() -> None:
    config = OptimiserConfig(learning_rate=0.5, warmup_steps=5, max_gradient_norm=0.0, epsilon=0.0)
    network = layer()
    optimiser = MasterOptimiser(network, config, 10)
    before = weights(optimiser)
    train(network, optimiser, range(1))
    torch.testing.assert_close((weights(optimiser) - before).abs(), torch.full_like(before, 0.1))


def test_frozen_weights_stay_out() -> None:
    network = layer()
    network.bias.requires_grad_(False)
    optimiser = MasterOptimiser(network, OptimiserConfig(), 1)
    assert optimiser.names == ["weight"]
    assert list(optimiser.master_tensors()) == ["weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimiser_goes_on_bit_for_bit(dtype: torch.dtype) -> None:
    config = OptimiserConfig(learning_rate=0.01, schedule=Schedule.cosine, warmup_steps=2, weight_decay=0.1)
    network, other_network = layer(dtype), layer(dtype, seed=1)
    optimiser = MasterOptimiser(network, config, 12)
    train(network, optimiser, range(4))
    other = MasterOptimiser(other_network, config, 12)
    other.load_state_dict(optimiser.state_dict())
    assert all(map(torch.equal, network.parameters(), other_network.parameters()))
    assert train(network, optimiser, range(4, 8)) == train(other_network, other, range(4, 8))
    assert torch.equal(weights(optimiser), weights(other))
    assert optimiser.learning_rate() == other.learning_rate()


def test_a_state_of_another_network_is_refused() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layer()

    state: dict[str, Any] = MasterOptimiser(Other(), OptimiserConfig(), 1).state_dict()
    with pytest.raises(CheckpointError, match=r"another network.*'bias'"):
        MasterOptimiser(layer(), OptimiserConfig(), 1).load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_master_weights_and_moments_move_along(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    network = layer(dtype)
    optimiser = MasterOptimiser(network, OptimiserConfig(), 10)
    train(network, optimiser, range(1))
    before = weights(optimiser), moments(optimiser)
    sent = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: sent.append(device) or tensor.clone())
    optimiser.to(torch.device("cuda", 0))
    assert sent == [torch.device("cuda", 0)] * (2 + 2 * 3), "two weights, each with two moments and a count of steps"
    assert torch.equal(weights(optimiser), before[0])
    assert all(torch.equal(*pair) for pair in zip(moments(optimiser), before[1], strict=True))
    assert (optimiser._master[0] is next(network.parameters())) is (dtype is torch.float32)
