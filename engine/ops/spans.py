"""The spans of a packed row: checked once, and laid out once for the kernels of a GPU, whatever the layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from engine.ops.arguments import expect


@dataclass(frozen=True)
class RowSpans:
    """The spans of one row, checked; made once and given to every layer of a network.

    A record, not a tensor: sharded networks send the tensors among their arguments to the GPU.

    Args:
        table: [spans, 4] int32 on the CPU: start, length, start and length of the context. Spans follow each other
            and cover the row; a context ends before its span begins.
        tokens: of the row.
        device: where the row lies.

    Raises:
        ValueError: the table has the wrong shape or dtype, or its spans do not cover the row.

    Example:
        >>> RowSpans(torch.tensor([[0, 5, 0, 0]], dtype=torch.int32), 5, torch.device("cpu")).places.longest
        5
    """

    table: Tensor
    tokens: int
    device: torch.device

    def __post_init__(self) -> None:
        check_spans(self.table, self.tokens)

    @cached_property
    def places(self) -> Places:
        """What the kernels of a GPU ask; made for the first layer that needs it, in one pass over the spans."""
        return Places.of(self.table, self.device)


@dataclass(frozen=True, slots=True)
class Places:
    """Where queries and keys of every span that is not empty lie, as kernels of a GPU take it."""

    bounds: Tensor
    """[filled spans + 1] int32: first token of each among the queries, then their number."""
    key_bounds: Tensor
    """The same among the keys, of which each span has those of its context, then its own."""
    longest: int
    """Tokens of the longest span."""
    longest_keys: int
    """The same, contexts counted."""
    keys: Tensor | None
    """[keys] int64 the tokens that keys are of, span after span; None where no span has a context."""

    @classmethod
    def of(cls, spans: Tensor, device: torch.device) -> Places:
        """From checked spans, without waiting for the device."""
        filled = spans[spans[:, 1] > 0].long()
        lengths, context = filled[:, 1], filled[:, 3]
        seen = lengths + context
        bounds, key_bounds = (torch.nn.functional.pad(part.cumsum(0), (1, 0)).int() for part in (lengths, seen))
        shares = bool(context.any())
        longest, longest_keys = (int(part.max()) if len(filled) else 0 for part in (lengths, seen))
        keys = sent(_keys_of(filled), device) if shares else None
        return cls(sent(bounds, device), sent(key_bounds, device), longest, longest_keys, keys)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, in the order of its work: only pinned memory is copied without waiting."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def check_table(spans: Tensor) -> None:
    """Raise ``ValueError`` unless its shape and dtype are those of a table of spans."""
    fits = spans.dim() == 2 and spans.shape[1] == 4 and spans.dtype == torch.int32
    expect(fits, "spans", "[spans, 4] int32", spans)


def check_spans(spans: Tensor, tokens: int) -> None:
    """Raise ``ValueError`` unless spans follow each other, cover the row and see only what stands before them."""
    check_table(spans)
    expect(spans.device.type == "cpu", "spans", "a tensor on the CPU", spans.device)
    end = 0
    for index, (start, length, seen, context) in enumerate(spans.tolist()):
        follows = start == end and length >= 0
        wanted = f"span {index} to start at {end} with a length of at least 0"
        expect(follows, "spans", wanted, f"{start} and {length}")
        end += length
        before = context == 0 or (context > 0 and seen >= 0 and seen + context <= start)
        expect(before, "spans", f"the context of span {index} in 0..{start}", f"{seen}..{seen + context}")
    expect(end == tokens, "spans", f"to cover {tokens} tokens", end)


def _keys_of(spans: Tensor) -> Tensor:
    """[keys] the tokens that each span sees, context first, span after span."""
    starts, lengths = spans[:, (2, 0)].flatten(), spans[:, (3, 1)].flatten()
    shift = starts - (lengths.cumsum(0) - lengths)
    return torch.arange(int(lengths.sum()), device="cpu") + shift.repeat_interleave(lengths)
