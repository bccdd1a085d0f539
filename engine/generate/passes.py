"""The forward passes of the native sampler: arrays in, arrays out, wherever the decoder computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.generate.cache import PrefillPass, SlotTable
from engine.models.decoder import Decoder
from engine.models.device import give_back
from engine.ops.sample import sample
from engine.trace import span


class Passes:
    """A decoder over the slots of a table, of which each pass always runs the same number of rows."""

    def __init__(self, decoder: Decoder, table: SlotTable, prefill_tokens: int) -> None:
        self._decoder = decoder
        self._table = table
        self._prefill_tokens = prefill_tokens
        self._rows = torch.arange(table.slots, device=decoder.device)

    def decode(self, ready: NDArray[np.int64], keys: NDArray[np.int64],
               temperature: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Sample the next token of the ready slots.

        Args:
            ready: slots whose newest token is the only one without a key.
            keys: [S] random keys.
            temperature: [S] of the draw.

        Returns:
            Token ids and log-probs in nats, both by ready slot.
        """
        table = self._table
        # One array, since each costs a GPU a transfer: newest token, its position, random key, tokens sampled.
        whole = np.zeros((4, table.slots), np.int64)
        whole[0, ready] = table.tokens[ready, table.length[ready] - 1]
        whole[1] = -1
        whole[1, ready] = table.length[ready] - 1
        whole[2] = keys
        whole[3] = (table.length - table.prompt_length).clip(min=0)
        newest, position, random, counter = self._there(whole).unbind()
        drawn = np.zeros(table.slots, np.float32)
        drawn[ready] = temperature[ready]
        hidden = self._decoder.forward(newest, self._rows, position, table.keys, table.values)
        token, logprob = sample(hidden, self._decoder.head, self._there(drawn), random, counter)
        return token.cpu().numpy()[ready], logprob.cpu().numpy()[ready]

    def prefill(self, order: Sequence[int]) -> PrefillPass:
        """Compute keys that slots lack, in this order, as far as one pass goes; what it did."""
        table = self._table
        work = table.plan_prefill(order, self._prefill_tokens)
        begun = sum(first == 0 for first, _ in work.spans.values())
        with span("prefill", passes=1, prompts=begun, tokens=sum(count for _, count in work.spans.values())):
            tokens, slots, positions = self._there(np.stack([work.tokens, work.slots, work.positions])).unbind()
            self._decoder.forward(tokens, slots, positions, table.keys, table.values)
        return work

    def _there(self, array: NDArray[Any]) -> Tensor:
        """As a tensor on the decoder's device."""
        return torch.from_numpy(array).to(self._decoder.device)

    def sleep(self) -> None:
        """Free cache and weights."""
        self._table.drop_keys()
        self._decoder.strip()
        give_back(self._decoder.device)

    def wake(self) -> None:
        """Allocate cache and weights again; the weights are still to be loaded."""
        self._decoder.furnish()
        self.open()

    def open(self) -> None:
        """Allocate the cache."""
        self._table.hold(*self._decoder.allocate(self._table.slots, self._table.capacity))
