from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.models.packed import ATTENTION_NAME, Block, register_packed_attention, row_spans
from engine.models.policy import hidden_states
from engine.ops import packed_attention, spans
from engine.ops.packed_attention import one_by_one
from engine.ops.spans import Places
from tests.small_models import FAMILIES, VOCABULARY, tiny_network


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens(seed: int, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


def apart(network: Any, sequence: Tensor) -> Tensor:
    """[T, D] hidden states of one sequence, by the network's own attention."""
    own = network.model(sequence[None], use_cache=False)
    return own.last_hidden_state[0]


def shared_row(
    prompt: Tensor, responses: list[Tensor], start: int = 0
) -> tuple[Tensor, Tensor, Block]:
    lengths = [len(response) for response in responses]
    places = [torch.arange(len(prompt)), *(torch.arange(n) + len(prompt) for n in lengths)]
    row = torch.cat([prompt, *responses])
    return row, torch.cat(places), Block(start, len(prompt), tuple(lengths))


def gradients(network: Any) -> list[Tensor]:
    grads = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    return grads


def test_a_response_sees_the_prompt_of_its_block() -> None:
    spans = row_spans([Block(0, 2, (3, 0)), Block(5, 4), Block(9, 0, (2,))])
    assert spans.dtype == torch.int32
    assert spans.tolist() == [
        [0, 2, 0, 0], [2, 3, 0, 2], [5, 0, 0, 2], [5, 4, 0, 0], [9, 0, 0, 0], [9, 2, 0, 0]
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_blocks_in_a_row_equal_separate_sequences(family: str) -> None:
    packed, plain = tiny_network(family), tiny_network(family, attention="eager")
    parts = [tokens(seed, length) for seed, length in enumerate((7, 1, 12))]
    blocks = [Block(0, 7), Block(7, 1), Block(8, 12)]
    positions = torch.cat([torch.arange(len(part)) for part in parts])
    together = hidden_states(packed, torch.cat(parts), positions, blocks)
    torch.testing.assert_close(
        together, torch.cat([apart(plain, part) for part in parts]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prompt_gives_the_states_and_gradients_of_separate_sequences(family: str) -> None:
    packed, plain = tiny_network(family), tiny_network(family, attention="eager")
    prompt, responses = tokens(0, 6), [tokens(seed, 3 + seed) for seed in range(1, 4)]
    lone = tokens(9, 8)
    row, positions, block = shared_row(prompt, responses)
    tail = Block(len(row), len(lone))
    weights = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    positions = torch.cat([positions, torch.arange(len(lone))])
    hidden = hidden_states(packed, torch.cat([row, lone]), positions, [block, tail])

    # The first token of every response is predicted by the prompt's last state, which all of them share.
    together, separate = [hidden[len(row) :]], [apart(plain, lone)]
    start = len(prompt)
    for response in responses:
        span = hidden[start : start + len(response)]
        together.append(torch.cat([hidden[len(prompt) - 1 : len(prompt)], span]))
        separate.append(apart(plain, torch.cat([prompt, response]))[len(prompt) - 1 :])
        start += len(response)
    for got, expected in zip(together, separate, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for parts in (together, separate):
        torch.stack([(part * weights[: len(part)]).sum() for part in parts]).sum().backward()
    for got, expected in zip(gradients(packed), gradients(plain), strict=True):
        scale = expected.abs().max().clamp(min=1.0)
        torch.testing.assert_close(got / scale, expected / scale, atol=1e-5, rtol=0)


def test_several_shared_blocks_do_not_see_each_other() -> None:
    network = tiny_network()
    first = shared_row(tokens(0, 4), [tokens(1, 3), tokens(2, 5)])
    second = shared_row(tokens(3, 6), [tokens(4, 2), tokens(5, 2)], start=len(first[0]))
    row, positions = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
    with torch.no_grad():
        together = hidden_states(network, row, positions, [first[2], second[2]])
        other = row.clone()
        other[: len(first[0])] = tokens(8, len(first[0]))
        changed = hidden_states(network, other, positions, [first[2], second[2]])
    assert torch.equal(together[len(first[0]) :], changed[len(first[0]) :])
    assert not torch.equal(together[: len(first[0])], changed[: len(first[0])])


def test_a_response_does_not_see_its_siblings() -> None:
    network = tiny_network()
    prompt, kept = tokens(0, 4), tokens(1, 5)
    states = []
    for seed in (2, 3):
        row, positions, block = shared_row(prompt, [tokens(seed, 6), kept])
        with torch.no_grad():
            states.append(hidden_states(network, row, positions, [block]))
    assert torch.equal(states[0][10:], states[1][10:])
    assert torch.equal(states[0][:4], states[1][:4])


def test_all_layers_share_what_kernels_of_a_gpu_ask_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked and laid out once for a row; with a stand-in for the kernel, which no CPU has."""
    made: list[str] = []
    given: list[Places] = []

    def counted(name: str, function: Any) -> Any:
        return lambda *arguments: (made.append(name), function(*arguments))[1]

    def kernel(query: Tensor, key: Tensor, value: Tensor, places: Places, scale: float) -> Tensor:
        given.append(places)
        return one_by_one(query, key, value, row_spans(blocks), scale)

    network = tiny_network(num_hidden_layers=3)
    row, positions, block = shared_row(tokens(0, 6), [tokens(seed, 3 + seed) for seed in range(1, 4)])
    blocks = [block]
    expected = hidden_states(network, row, positions, blocks)
    monkeypatch.setattr(spans, "check_spans", counted("check", spans.check_spans))
    monkeypatch.setattr(spans.Places, "of", counted("places", spans.Places.of))
    monkeypatch.setattr(packed_attention, "available", lambda: False)
    monkeypatch.setattr(packed_attention, "serves", lambda query: True)
    monkeypatch.setattr(packed_attention, "varlen_attention", kernel)
    for _ in range(2):
        torch.testing.assert_close(hidden_states(network, row, positions, blocks), expected)
    assert made == ["check", "places"] * 2
    assert [places is given[0] for places in given] == [True] * 3 + [False] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@torch.no_grad()
def test_no_layer_waits_for_the_gpu() -> None:
    network = tiny_network(num_hidden_layers=3).bfloat16().cuda()
    row, positions, block = shared_row(tokens(0, 6), [tokens(seed, 3 + seed) for seed in range(1, 4)])
    row, positions = row.cuda(), positions.cuda()
    hidden_states(network, row, positions, [block])  # What is loaded once may wait.
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        hidden = hidden_states(network, row, positions, [block])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(hidden.isfinite().all())


def test_registering_again_is_safe() -> None:
    from transformers import AttentionInterface

    register_packed_attention()
    register_packed_attention()
    assert ATTENTION_NAME in AttentionInterface().valid_keys()
