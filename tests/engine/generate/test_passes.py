"""Arrays go to the decoder's device and come back; what sleeps holds no memory there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.generate.cache import SlotTable
from engine.generate.passes import Passes
from engine.models.decoder import Decoder
from engine.models.packed import Block
from engine.models.policy import head_weight, hidden_states, published_tensors
from engine.trace import recording
from tests.small_models import ask, random_prompt, tiny_decoder, tiny_network

SLOTS, CAPACITY = 3, 32


def made(decoder: Decoder, filled: bool) -> tuple[Passes, SlotTable]:
    """Two slots in use; the keys of their prompts are there, or still missing."""
    table = SlotTable(SLOTS, CAPACITY)
    passes = Passes(decoder, table, prefill_tokens=16)
    passes.open()
    for slot, length in ((0, 5), (2, 4)):
        table.take(slot, ask(slot, random_prompt(slot, length)))
        table.filled[slot] = length - 1 if filled else 0
    return passes, table


def test_two_passes_give_the_likeliest_token() -> None:
    network = tiny_network()
    passes, table = made(tiny_decoder(network, CAPACITY), filled=False)
    with recording() as spans:
        work = passes.prefill([0, 2])
    assert work.spans == {0: (0, 4), 2: (0, 3)}
    assert [one.amounts for one in spans] == [{"passes": 1, "prompts": 2, "tokens": 7}]
    table.filled[[0, 2]] = 4, 3
    ready = table.ready()
    tokens, logprobs = passes.decode(ready, np.zeros(SLOTS, np.int64), np.zeros(SLOTS, np.float32))
    for slot, token, logprob in zip(ready, tokens, logprobs, strict=True):
        length = int(table.length[slot])
        prompt = torch.from_numpy(table.tokens[slot, :length])
        with torch.no_grad():
            hidden = hidden_states(network, prompt, torch.arange(length), [Block(0, length)])[-1]
            expected = (hidden @ head_weight(network).T).log_softmax(-1)
        assert token == expected.argmax()
        assert logprob == pytest.approx(float(expected.max()), abs=1e-5)


def test_a_prompt_counts_once_however_many_passes_it_takes() -> None:
    passes, table = made(tiny_decoder(tiny_network(), CAPACITY), filled=False)
    table.filled[0] = 2
    with recording() as spans:
        passes.prefill([0, 2])
    assert [one.amounts["prompts"] for one in spans] == [1]


def test_everything_is_made_on_the_device_of_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without memory: an operand that was left on the processor could not meet the others."""
    network, meta = tiny_network(), torch.device("meta")
    decoder = Decoder(network.config, torch.float32, CAPACITY, meta)
    decoder.load(published_tensors(network))
    passes, table = made(decoder, filled=True)
    assert {table.keys.device, table.values.device, decoder.embedding.device, decoder.cosine.device} == {meta}
    came = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: came.append(tensor.device) or torch.zeros(SLOTS))
    passes.prefill([0, 2])
    passes.decode(table.ready(), np.zeros(SLOTS, np.int64), np.ones(SLOTS, np.float32))
    assert came == [meta, meta], "the drawn tokens and their log-probs, nothing else"


def test_who_sleeps_holds_neither_weights_nor_keys() -> None:
    network = tiny_network()
    decoder = tiny_decoder(network, CAPACITY)
    passes, table = made(decoder, filled=True)
    held = table.keys.shape
    passes.sleep()
    assert (table.keys.numel(), decoder.embedding.numel(), decoder.layers) == (0, 0, [])
    assert not table.filled.any(), "no key is valid"
    passes.wake()
    assert table.keys.shape == held
    decoder.load(published_tensors(network))
    assert torch.equal(decoder.embedding, network.get_input_embeddings().weight)
