from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import engine.ops.gated_silu  # noqa: F401 - registers its op
from engine.ops import extension, packed_rows, segments
from engine.ops.arguments import describe, expect, expect_device, expect_no_graph, expect_range, fitting_scale
from engine.ops.logits_logprob import logits_logprob
from engine.ops.packed_attention import packed_attention, span_attention
from engine.ops.policy_gradient import policy_gradient
from engine.ops.rms_norm import add_rms_norm, rms_norm
from engine.ops.rotary import rotate_and_store
from engine.ops.sample import sample
from engine.ops.slot_attention import slot_attention
from engine.ops.token_logprob import token_logprob
from engine.ops.version_mask import version_mask


def test_says_argument_expectation_and_what_came() -> None:
    expect(True, "x", "anything", None)
    assert describe(torch.zeros(2, 3)) == "[2, 3] float32"
    with pytest.raises(ValueError, match=r"x: expected \[T\], got \[2, 3\] bfloat16"):
        expect(False, "x", "[T]", torch.zeros(2, 3).bfloat16())


def test_range() -> None:
    expect_range(torch.tensor([0, 4]), "x", 0, 5)
    expect_range(torch.zeros(0), "x", 0, 5)
    with pytest.raises(ValueError, match=r"x: expected values in 0\.\.4, got 0\.\.5"):
        expect_range(torch.tensor([0, 5]), "x", 0, 5)


def test_scale() -> None:
    fits = torch.tensor([0.0, 1.5])
    assert fitting_scale(fits) is fits
    with pytest.raises(ValueError, match=r"inverse_temperature: expected finite values of at least 0, got -2\.0"):
        fitting_scale(torch.tensor([1.0, -2.0, torch.inf]))
    elsewhere = fitting_scale(torch.ones(3, device="meta"))
    assert elsewhere.device.type == "meta"


def test_a_tensor_of_another_device_is_named() -> None:
    expect_device(torch.zeros(2), x=torch.zeros(2), y=None)
    with pytest.raises(ValueError, match="y: expected a tensor on cpu, got meta"):
        expect_device(torch.zeros(2), x=torch.zeros(2), y=torch.zeros(2, device="meta"))


def test_a_second_gradient_is_refused_by_name() -> None:
    with torch.no_grad():
        expect_no_graph("dot")
    with pytest.raises(RuntimeError, match="dot is differentiable once: do without create_graph"):
        expect_no_graph("dot")


def _calls() -> dict[str, tuple[Callable[..., object], dict[str, Any]]]:
    """Every op with arguments that fit, by name."""
    index, versions = torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.int64)
    head = {"hidden": torch.zeros(8, 16), "weight": torch.zeros(40, 16)}
    bounds, values = torch.tensor([0, 3, 8], dtype=torch.int32), torch.zeros(8)
    caches = {"key_cache": torch.zeros(2, 9, 2, 4), "value_cache": torch.zeros(2, 9, 2, 4)}
    place = {"slot": index, "position": index}
    cosine = {"cosine": torch.zeros(9, 1, 4), "sine": torch.zeros(9, 1, 4)}
    attention = {name: torch.zeros(8, 2, 4) for name in ("query", "key", "value")}
    return {
        "token_logprob": (token_logprob, head | {"target": index, "inverse_temperature": values, "rows": index}),
        "sample": (sample, head | {"temperature": values, "key": index, "position": index}),
        "logits_logprob": (
            logits_logprob, {"logits": torch.zeros(8, 5), "target": index, "inverse_temperature": values}
        ),
        "policy_gradient": (policy_gradient, {
            "logprob": values, "coefficient": values, "reference": values, "weight": values, "cu_seqlens": bounds,
        }),
        "segment_sum": (segments.segment_sum, {"values": values, "cu_seqlens": bounds}),
        "segment_max": (partial(segments.segment_max, num_segments=1), {"values": values, "segment": index}),
        "segment_broadcast": (
            partial(segments.segment_broadcast, total=8), {"values": torch.zeros(2), "cu_seqlens": bounds}
        ),
        "version_mask": (partial(version_mask, trained=0, max_staleness=0), {
            "versions": versions, "carries": values.bool(), "cu_seqlens": bounds,
        }),
        "pad": (partial(packed_rows.pad, length=5), {"packed": values, "cu_seqlens": bounds}),
        "unpad": (partial(packed_rows.unpad, total=8), {"padded": torch.zeros(2, 5), "cu_seqlens": bounds}),
        "slot_attention": (
            partial(slot_attention, scale=1.0), {"query": torch.zeros(8, 4, 4)} | caches | place
        ),
        "rms_norm": (partial(rms_norm, epsilon=1.0), {"hidden": torch.zeros(8, 4), "weight": torch.zeros(4)}),
        "add_rms_norm": (partial(add_rms_norm, epsilon=1.0), {
            "hidden": torch.zeros(8, 4), "update": torch.zeros(8, 4), "weight": torch.zeros(4),
        }),
        "rotate_and_store": (rotate_and_store, {"fused": torch.zeros(8, 8, 4)} | cosine | place | caches),
        "span_attention": (partial(span_attention, scale=1.0), attention),
    }


CALLS = _calls()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("device", ["meta", *(["cuda"] if torch.cuda.is_available() else [])])
def test_every_op_names_the_argument_that_lies_elsewhere(name: str, device: str) -> None:
    """Before anything is read: a kernel would take an address of one device for one of another."""
    op, arguments = CALLS[name]
    spans = {"spans": torch.tensor([[0, 8, 0, 0]], dtype=torch.int32)} if name == "span_attention" else {}
    first, *others = arguments
    for argument in others:
        moved = arguments | {argument: arguments[argument].to(device)}
        with pytest.raises(ValueError, match=f"{argument}: expected a tensor on cpu, got {device}"):
            op(**moved, **spans)
    moved = arguments | {first: arguments[first].to(device)}
    with pytest.raises(ValueError, match=f"expected a tensor on {device}.*, got cpu"):
        op(**moved, **spans)


def test_spans_lie_on_the_cpu_whatever_the_default_device() -> None:
    op, arguments = CALLS["span_attention"]
    with pytest.raises(ValueError, match="spans: expected a tensor on the CPU, got meta"):
        op(**arguments, spans=torch.zeros(1, 4, dtype=torch.int32, device="meta"))
    with torch.device("meta"):
        mixed = packed_attention(*arguments.values(), CALLS["segment_sum"][1]["cu_seqlens"], 1.0)
    assert mixed.device.type == "cpu"


def _kernels() -> dict[str, tuple[Any, ...]]:
    """Every op that has a kernel for GPUs, with tensors on the CPU as it takes them."""
    row, few, index, slot = torch.zeros(8), torch.zeros(2), torch.arange(8), torch.arange(8) % 2
    bounds = torch.tensor([0, 3, 8], dtype=torch.int32)
    hidden, weight, statistics = torch.zeros(8, 16), torch.zeros(40, 16), torch.zeros(7, 8)
    cache, angle = torch.zeros(2, 9, 2, 4), torch.zeros(9, 1, 4)
    return {
        "policy_gradient": (row, row, row, bounds, 0.1, 1.0),
        "policy_gradient_backward": (row, row, few, bounds, torch.ones(()), 0.1, 1.0),
        "row_layout": (bounds, 8), "pad": (row, bounds, 5, 0.0), "unpad": (torch.zeros(2, 5), bounds, 8),
        "segment_offsets": (index, 8), "segment_sum": (row, bounds, False), "segment_max": (row, bounds),
        "segment_broadcast": (few, bounds, 8), "version_mask": (index, row.bool(), bounds, 8, 1),
        "token_logprob": (hidden, weight, index, row, True), "sample": (hidden, weight, row, index, index),
        "logit_gradient": (hidden, weight, index, statistics, 0), "logits_logprob": (hidden, index, row),
        "logits_gradient": (hidden, index, statistics), "rms_norm": (hidden, weight[0], 1e-5),
        "add_rms_norm": (hidden, hidden, weight[0], 1e-5), "gated_silu": (hidden,),
        "slot_attention": (torch.zeros(8, 4, 4), cache, cache, slot, index, 0.2),
        "rotate_and_store": (torch.zeros(8, 8, 4), angle, angle, slot, index, cache, cache),
    }


KERNELS = _kernels()


@pytest.mark.parametrize("name", KERNELS)
def test_arguments_for_kernels_fit_their_schemas(name: str) -> None:
    """What the test below hands to a GPU's kernel, a CPU takes: so a schema that changes shows without a GPU."""
    results = getattr(torch.ops.perilune, name).default(*KERNELS[name])
    for result in results if isinstance(results, tuple) else (results,):
        assert result.device.type == "cpu"
        assert not result.isnan().any()


@pytest.mark.skipif(not extension.cuda_available(), reason="the kernels for GPUs are not built")
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_for_gpus_refuse_what_lies_elsewhere(name: str) -> None:
    """Called past every check in Python, and past the choice of a kernel; it takes no GPU."""
    gpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(ValueError, match="expected a tensor on a GPU, got cpu"):
        getattr(torch.ops.perilune, name).default.redispatch(gpu, *KERNELS[name])
