from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.config.model import ScratchConfig, WarmupConfig
from engine.config.rollout import Precision
from engine.errors import NonFiniteError, PromptError
from engine.learn.supervised import supervised_steps
from engine.models.policy import scratch_network
from engine.models.tokenizer import PolicyTokenizer
from engine.records.prompt import Prompt

SCRATCH = ScratchConfig(layers=2, width=32, heads=2, intermediate=64, alphabet="0123456789+=? \n>")
TRACES = [(Prompt.ask(str(n), f"{n}+1=?", str(n + 1)), f"{n}+1={n + 1}") for n in range(6)]
CONFIG = WarmupConfig(steps=12, batch_size=4, learning_rate=0.01, seed=5)


def warm(config: WarmupConfig = CONFIG, traces: Any = TRACES, row_tokens: int = 64,
         precision: Precision = Precision.float32, **options: Any) -> tuple[Any, list[float]]:
    network, tokenizer = scratch_network(SCRATCH, seed=1)
    return network, supervised_steps(network, tokenizer, traces, config, row_tokens, precision, **options)


def weights(network: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])


def naive_loss(network: Any, tokenizer: PolicyTokenizer, traces: Any) -> Tensor:
    """Mean over response tokens, end token included, of sequences forwarded alone."""
    terms = []
    plain = copy.deepcopy(network)
    plain.set_attn_implementation("eager")
    for prompt, text in traces:
        start, answer = tokenizer.render(prompt), tokenizer.encode(text)
        tokens = torch.from_numpy(np.concatenate([start, answer, [tokenizer.end_id]])).long()
        with torch.no_grad():
            logprobs = plain(tokens[None]).logits[0, len(start) - 1 : -1].log_softmax(-1)
        terms.append(logprobs.gather(-1, tokens[len(start) :, None])[:, 0])
    return -torch.cat(terms).mean()


def test_the_loss_is_that_of_text_and_end_token() -> None:
    network, tokenizer = scratch_network(SCRATCH, seed=1)
    expected = float(naive_loss(network, tokenizer, TRACES))
    whole = replace(CONFIG, steps=1, batch_size=len(TRACES))
    assert supervised_steps(network, tokenizer, TRACES, whole, 64, Precision.float32) == [
        pytest.approx(expected, rel=1e-5)
    ]


def test_it_learns_the_traces() -> None:
    network, losses = warm(replace(CONFIG, steps=80, batch_size=6, learning_rate=0.02))
    _, tokenizer = scratch_network(SCRATCH, seed=1)
    assert len(losses) == 80
    assert losses[0] > 2.0
    assert losses[-1] < 0.1
    assert float(naive_loss(network, tokenizer, TRACES)) < 0.1
    prompt, text = TRACES[3]
    tokens = tokenizer.render(prompt).tolist()
    answer: list[int] = []
    plain = copy.deepcopy(network)
    plain.set_attn_implementation("eager")
    while (not answer or answer[-1] != tokenizer.end_id) and len(answer) < 12:
        answer.append(int(plain(torch.tensor([tokens + answer])).logits[0, -1].argmax()))
    assert tokenizer.decode(np.array(answer, np.int32)) == text
    assert answer[-1] == tokenizer.end_id


def test_equal_arguments_give_equal_weights() -> None:
    (one, losses), (other, again) = warm(), warm()
    assert losses == again
    assert torch.equal(weights(one), weights(other))
    _, different = warm(replace(CONFIG, seed=6))
    assert different != losses


def test_the_global_random_state_is_left_alone() -> None:
    network, tokenizer = scratch_network(SCRATCH, seed=1)
    before = torch.get_rng_state()
    supervised_steps(network, tokenizer, TRACES, CONFIG, 64, Precision.float32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("row_tokens", [16, 1024])
def test_packing_changes_nothing(row_tokens: int) -> None:
    (one, losses), (other, packed) = warm(), warm(row_tokens=row_tokens)
    assert packed == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=1e-3)


def test_every_trace_comes_once_in_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.learn import supervised

    seen: list[str] = []
    pack = supervised.pack

    def watching(samples: Any, *arguments: Any, **options: Any) -> Any:
        _, tokenizer = scratch_network(SCRATCH, seed=1)
        seen.extend(tokenizer.decode(sample.response) for sample in samples)
        return pack(samples, *arguments, **options)

    monkeypatch.setattr(supervised, "pack", watching)
    warm(replace(CONFIG, steps=6, batch_size=4))
    epochs = [seen[start : start + 6] for start in range(0, 24, 6)]
    assert len(seen) == 24
    assert all(sorted(epoch) == sorted(text for _, text in TRACES) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_may_be_larger_than_the_traces() -> None:
    _, losses = warm(replace(CONFIG, steps=2, batch_size=10), TRACES[:3])
    assert len(losses) == 2


def test_the_rate_rises_over_a_tenth_and_falls_to_0(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.learn.supervised import MasterOptimiser

    rates: list[float] = []
    step = MasterOptimiser.step

    def watching(self: MasterOptimiser) -> float:
        rates.append(self.learning_rate())
        return step(self)

    monkeypatch.setattr(MasterOptimiser, "step", watching)
    warm(replace(CONFIG, steps=30, batch_size=1))
    assert rates[:3] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01])
    assert rates[3] == pytest.approx(0.01)
    assert all(earlier > later for earlier, later in pairwise(rates[3:]))
    assert 0.0 < rates[-1] < 1e-4


def test_progress_is_told_of_every_step() -> None:
    told: list[tuple[int, float]] = []
    _, losses = warm(progress=lambda step, loss: told.append((step, loss)))
    assert told == list(zip(range(1, 13), losses, strict=True))


def test_in_bf16_weights_are_converted_and_buffers_kept() -> None:
    network, losses = warm(precision=Precision.bfloat16)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in network.buffers()} == {torch.float32}
    assert losses[-1] < losses[0]
    embedding, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    assert embedding is head


def test_no_steps_change_nothing() -> None:
    network, losses = warm(replace(CONFIG, steps=0))
    assert losses == []
    assert torch.equal(weights(network), weights(scratch_network(SCRATCH, seed=1)[0]))
    assert warm(replace(CONFIG, steps=0), traces=[])[1] == []


def test_without_traces_there_is_nothing_to_fit() -> None:
    with pytest.raises(PromptError, match="no traces"):
        warm(traces=[])


def test_what_is_not_finite_stops_it() -> None:
    network, tokenizer = scratch_network(SCRATCH, seed=1)
    with torch.no_grad():
        network.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"step 1 .* loss nan"):
        supervised_steps(network, tokenizer, TRACES, CONFIG, 64, Precision.float32)
