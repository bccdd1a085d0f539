from __future__ import annotations

import pytest
import torch

from engine.ops.spans import Places, RowSpans, check_spans, sent

CPU = torch.device("cpu")
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def table(*spans: tuple[int, int, int, int]) -> torch.Tensor:
    return torch.tensor(spans, dtype=torch.int32, device="cpu").view(-1, 4)


def test_keys_are_those_of_the_context_then_of_the_span() -> None:
    places = Places.of(table((0, 4, 0, 0), (4, 3, 0, 4), (7, 0, 0, 4), (7, 5, 1, 2)), CPU)
    assert places.bounds.tolist() == [0, 4, 7, 12]
    assert places.key_bounds.tolist() == [0, 4, 11, 18]
    assert places.bounds.dtype == places.key_bounds.dtype == torch.int32
    assert (places.longest, places.longest_keys) == (5, 7)
    assert places.keys is not None
    assert places.keys.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 1, 2, 7, 8, 9, 10, 11]


def test_keys_stay_where_they_are_without_contexts() -> None:
    places = Places.of(table((0, 4, 0, 0), (4, 0, 0, 0), (4, 8, 0, 0)), CPU)
    assert places.keys is None
    assert places.bounds.tolist() == places.key_bounds.tolist() == [0, 4, 12]


def test_a_row_of_nothing_has_no_places() -> None:
    for empty in (table(), table((0, 0, 0, 0))):
        places = RowSpans(empty, 0, CPU).places
        assert (places.longest, places.longest_keys, places.keys) == (0, 0, None)
        assert places.bounds.tolist() == places.key_bounds.tolist() == [0]


def test_places_are_made_once() -> None:
    row = RowSpans(table((0, 4, 0, 0), (4, 3, 0, 4)), 7, CPU)
    assert row.places is row.places


@pytest.mark.parametrize(
    ("spans", "tokens", "said"),
    [
        (table((0, 4, 0, 0)), 5, "spans: expected to cover 5 tokens, got 4"),
        (table((0, 4, 0, 0), (5, 1, 0, 0)), 5, "spans: expected span 1 to start at 4"),
        (table((0, 4, 0, 0)).long(), 4, r"spans: expected \[spans, 4\] int32, got \[1, 4\] int64"),
        (table((0, 4, 0, 0))[0], 4, r"spans: expected \[spans, 4\] int32, got \[4\] int32"),
        (table((0, 4, 0, 0)).to("meta"), 4, "spans: expected a tensor on the CPU, got meta"),
    ],
)
def test_a_row_is_checked_when_it_is_made(spans: torch.Tensor, tokens: int, said: str) -> None:
    for check in (lambda: RowSpans(spans, tokens, CPU), lambda: check_spans(spans, tokens)):
        with pytest.raises(ValueError, match=said):
            check()


def test_sharded_networks_leave_the_record_where_it_is() -> None:
    """They send every tensor that they find among their arguments to the GPU; the table is read on the CPU."""
    from torch.distributed.utils import _to_kwargs

    row = RowSpans(table((0, 4, 0, 0)), 4, CPU)
    _, (named,) = _to_kwargs((), {"row_spans": row, "x": torch.zeros(1)}, torch.device("meta"), False)
    assert named["x"].is_meta
    assert named["row_spans"] is row
    assert row.table.is_cpu


@NO_GPU
def test_nothing_waits_for_the_gpu() -> None:
    gpu = torch.device("cuda", torch.cuda.current_device())
    spans = table((0, 40, 0, 0), (40, 33, 0, 40), (73, 300, 0, 0))
    sent(torch.zeros(1), gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        places = RowSpans(spans, 373, gpu).places
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = Places.of(spans, CPU)
    for name in ("bounds", "key_bounds", "keys"):
        assert getattr(places, name).device == gpu
        assert torch.equal(getattr(places, name).cpu(), getattr(expected, name))
