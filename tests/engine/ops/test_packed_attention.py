from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.ops import extension
from engine.ops.packed_attention import (
    one_by_one,
    packed_attention,
    span_attention,
    span_attention_reference,
    span_gradient_reference,
)
from engine.ops.spans import RowSpans

# Prompts with responses, plain sequences, single tokens, nothing, more than a block of keys and of columns.
SPANS = [
    (0, 45, 0, 0), (45, 48, 0, 45), (93, 1, 0, 45), (94, 0, 0, 45), (94, 33, 10, 20), (127, 1, 0, 0), (128, 0, 0, 0),
    (128, 200, 0, 0), (328, 131, 128, 200),
]
TOKENS = 459
SHAPES = [(9, 3, 64), (4, 4, 40), (6, 1, 80), (2, 2, 128), (3, 1, 20), (2, 1, 256), (5, 1, 7)]


def span_tensor(spans: list[tuple[int, int, int, int]]) -> Tensor:
    return torch.tensor(spans, dtype=torch.int32).view(-1, 4)


def problem(
    heads: int, shared: int, size: int, dtype: torch.dtype, tokens: int = TOKENS
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((tokens, heads, size), (tokens, shared, size), (tokens, shared, size))
    query, key, value = (torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)
    return query, key, value


def truth(query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float) -> Tensor:
    """By torch's own attention, in float64."""
    parts = [query.new_zeros(0, *query.shape[1:])]
    group = query.shape[1] // key.shape[1]
    for start, length, seen, context in spans.tolist():
        if not length:
            continue
        index = torch.cat([torch.arange(seen, seen + context), torch.arange(start, start + length)])
        keys, values = (x[index].repeat_interleave(group, 1).transpose(0, 1) for x in (key, value))
        visible = torch.ones(length, context + length, dtype=torch.bool).tril(context)
        own = query[start : start + length].transpose(0, 1)
        mixed = scaled_dot_product_attention(own, keys, values, attn_mask=visible, scale=scale)
        parts.append(mixed.transpose(0, 1))
    return torch.cat(parts)


def results(
    query: Tensor, key: Tensor, value: Tensor, spans: Tensor, upstream: Tensor, scale: float = 0.2
) -> tuple[Tensor, ...]:
    """The output and the gradients of query, key and value."""
    output = span_attention(query, key, value, spans, scale)
    return output.detach(), *torch.autograd.grad(output, (query, key, value), upstream)


def reference_results(
    query: Tensor, key: Tensor, value: Tensor, spans: Tensor, upstream: Tensor, scale: float = 0.2
) -> tuple[Tensor, ...]:
    inputs = (query.detach(), key.detach(), value.detach())
    output, lse = span_attention_reference(*inputs, spans, scale)
    return output, *span_gradient_reference(upstream, *inputs, output, lse, spans, scale)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("heads", "shared", "size"), SHAPES)
def test_output_and_gradients_agree_with_float64(
    cpu_implementation: str, heads: int, shared: int, size: int, dtype: torch.dtype, poisoned: None
) -> None:
    inputs, spans = problem(heads, shared, size, dtype), span_tensor(SPANS)
    upstream = (torch.randn(TOKENS, heads, size) * torch.rand(TOKENS, 1, 1) * 3).to(dtype)
    run = reference_results if cpu_implementation == "reference" else results
    got = run(*inputs, spans, upstream, size**-0.5)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    output = truth(*exact, spans, size**-0.5)
    expected = output.detach(), *torch.autograd.grad(output, exact, upstream.double())
    bound = 2e-6 if dtype == torch.float32 else 2.0**-8
    for tensor, right in zip(got, expected, strict=True):
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert relative_error(tensor, right) < bound
        each = torch.linalg.vector_norm(tensor.double() - right, dim=-1)
        size_of_each = torch.linalg.vector_norm(right, dim=-1)
        assert float(each.max()) < 4 * bound * float(size_of_each.max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_span_after_the_other_agrees_with_float64(dtype: torch.dtype) -> None:
    inputs, spans = problem(6, 2, 40, dtype), span_tensor(SPANS)
    upstream = torch.randn(TOKENS, 6, 40).to(dtype)
    output = one_by_one(*inputs, spans, 0.2)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = truth(*exact, spans, 0.2)
    gradients = torch.autograd.grad(output, inputs, upstream)
    right = torch.autograd.grad(expected, exact, upstream.double())
    assert output.dtype == dtype
    for got, wanted in zip((output, *gradients), (expected, *right), strict=True):
        assert relative_error(got.detach(), wanted.detach()) < (2e-6 if dtype == torch.float32 else 2.0**-7)
    assert one_by_one(*(x[:0] for x in inputs), span_tensor([]), 0.2).shape == (0, 6, 40)


def test_log_of_the_sum_agrees_with_float64(cpu_implementation: str) -> None:
    query, key, value = (tensor.detach() for tensor in problem(4, 2, 64, torch.float32))
    spans = span_tensor(SPANS)
    run = span_attention_reference if cpu_implementation == "reference" else torch.ops.perilune.packed_attention
    _, lse = run(query * 10, key, value, spans, 0.3)
    _, expected = span_attention_reference(query.double() * 10, key.double(), value.double(), spans, 0.3)
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), expected, atol=2e-5, rtol=1e-6)


def test_float64_is_served_and_differentiable() -> None:
    inputs = [torch.randn(7, heads, 5, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    spans = span_tensor([(0, 3, 0, 0), (3, 4, 1, 2)])
    assert torch.autograd.gradcheck(lambda q, k, v: span_attention(q, k, v, spans, 0.3), inputs)


def test_gradient_formula_is_that_of_autograd() -> None:
    inputs, spans = problem(6, 2, 16, torch.float64), span_tensor(SPANS)
    upstream = torch.randn(TOKENS, 6, 16, dtype=torch.float64)
    for got, expected in zip(
        reference_results(*inputs, spans, upstream), results(*inputs, spans, upstream), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_large_scores_and_all_equal_ones(cpu_level: str, dtype: torch.dtype) -> None:
    spans = span_tensor([(0, 150, 0, 0)])
    query, key, value = (tensor.detach() for tensor in problem(2, 1, 32, dtype, 150))
    for factor in (0.0, 100.0):
        inputs = (query * factor, key, value)
        got = span_attention(*inputs, spans, 1.0)
        expected = truth(*(tensor.double() for tensor in inputs), spans, 1.0)
        assert relative_error(got, expected) < (1e-5 if dtype == torch.float32 else 2.0**-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_depends_on_neighbours_packing_or_threads(
    cpu_level: str, dtype: torch.dtype, two_threads: None
) -> None:
    inputs, spans = problem(9, 3, 64, dtype), span_tensor(SPANS)
    upstream = torch.randn(TOKENS, 9, 64).to(dtype)
    together = results(*inputs, spans, upstream)
    again = results(*inputs, spans, upstream)
    torch.set_num_threads(1)
    alone = results(*inputs, spans, upstream)
    for first, second, third in zip(together, again, alone, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
    # The last prompt with its response, moved to the front of a row of its own and behind other tokens.
    part = slice(128, TOKENS)
    for offset in (0, 3):
        moved = [torch.cat([torch.randn(offset, *x.shape[1:]).to(dtype), x.detach()[part]]).requires_grad_()
                 for x in (*inputs, upstream)]
        places = span_tensor([(0, offset, 0, 0), (offset, 200, 0, 0), (offset + 200, 131, offset, 200)])
        for got, expected in zip(results(*moved[:3], places, moved[3].detach()), together, strict=True):
            assert torch.equal(got[offset:], expected[part])


def test_few_long_sequences_give_the_same_bits_on_every_number_of_threads(cpu_level: str) -> None:
    inputs, spans = problem(2, 1, 32, torch.bfloat16, 700), span_tensor([(0, 600, 0, 0), (600, 100, 50, 500)])
    upstream = torch.randn(700, 2, 32).bfloat16()
    torch.set_num_threads(1)
    expected = results(*inputs, spans, upstream)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        for got, right in zip(results(*inputs, spans, upstream), expected, strict=True):
            assert torch.equal(got, right)


def test_a_token_does_not_see_later_ones(cpu_level: str) -> None:
    query, key, value = (tensor.detach() for tensor in problem(4, 2, 64, torch.bfloat16, 200))
    spans = span_tensor([(0, 200, 0, 0)])
    before = span_attention(query, key, value, spans, 0.1)
    key[150:], value[150:], query[150:] = 7.0, -3.0, 2.0
    after = span_attention(query, key, value, spans, 0.1)
    assert torch.equal(before[:150], after[:150])
    shorter = span_attention(query[:150], key[:150], value[:150], span_tensor([(0, 150, 0, 0)]), 0.1)
    assert torch.equal(before[:150], shorter)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_stands_around_a_span_is_not_read(cpu_level: str, dtype: torch.dtype) -> None:
    """Neither in the row, nor behind the end of a tensor, nor in memory used before."""
    spans = span_tensor([(0, 5, 0, 0), (5, 100, 0, 0), (105, 3, 0, 0)])
    query, key, value = (tensor.detach() for tensor in problem(3, 1, 40, dtype, 108))
    upstream = torch.randn(108, 3, 40).to(dtype)
    parts = (query, key, value, upstream)
    clean = results(*(tensor.clone().requires_grad_() for tensor in parts[:3]), spans, upstream)
    poisoned = []
    for tensor in parts:
        wide = torch.full((112, tensor.shape[1] + 1, 48), float("nan"), dtype=dtype)
        inner = wide[2:110, : tensor.shape[1], 3:43]
        inner[:] = tensor
        inner[:5], inner[105:] = float("nan"), float("nan")
        poisoned.append(inner)
    scrap = [torch.full((1 << 20,), float("nan")) for _ in range(4)]
    del scrap
    got = results(*(tensor.requires_grad_() for tensor in poisoned[:3]), spans, poisoned[3])
    for tensor, expected in zip(got, clean, strict=True):
        assert torch.equal(tensor[5:105], expected[5:105])
        assert bool(tensor[:5].isnan().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nan_in_a_query_is_not_hidden(cpu_implementation: str, dtype: torch.dtype) -> None:
    inputs, spans = problem(4, 2, 40, dtype), span_tensor(SPANS)
    upstream = torch.randn(TOKENS, 4, 40).to(dtype)
    run = reference_results if cpu_implementation == "reference" else results
    clean = run(*inputs, spans, upstream)
    broken = inputs[0].detach().clone()
    broken[340, 2, 5] = float("nan")
    got = run(broken.requires_grad_(), *inputs[1:], spans, upstream)
    for ours, right in zip(got[:2], clean, strict=False):  # the output, the gradient of the query
        assert bool(ours[340, 2].isnan().all())
        ours[340, 2] = right[340, 2]
        assert torch.equal(ours, right)
    assert bool(got[2][128:329, 1].isnan().all())


def test_there_is_no_second_gradient(cpu_level: str) -> None:
    query, key, value = problem(2, 1, 16, torch.float32, 5)
    output = span_attention(query, key, value, span_tensor([(0, 5, 0, 0)]), 0.2)
    with pytest.raises(RuntimeError, match="packed_attention is differentiable once"):
        torch.autograd.grad(output.sum(), query, create_graph=True)


def test_any_strides(cpu_level: str) -> None:
    inputs, spans = problem(4, 2, 40, torch.bfloat16), span_tensor(SPANS)
    upstream = torch.randn(1, 1, 40).bfloat16().expand(TOKENS, 4, 40)
    expected = results(*inputs, spans, upstream.contiguous())
    turned = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in inputs]
    apart = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in inputs]
    for strided in (turned, apart):
        for got, right in zip(results(*strided, spans, upstream), expected, strict=True):
            assert torch.equal(got, right)


def test_nothing_gives_nothing(cpu_level: str) -> None:
    for spans in ([], [(0, 0, 0, 0)]):
        inputs = problem(4, 2, 16, torch.bfloat16, 0)
        for got in results(*inputs, span_tensor(spans), torch.zeros(0, 4, 16).bfloat16()):
            assert got.shape[0] == 0


def test_segments_are_spans_without_context(cpu_implementation: str) -> None:
    query, key, value = problem(4, 2, 16, torch.float32, 9)
    bounds = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    got = packed_attention(query, key, value, bounds, 0.3)
    spans = span_tensor([(0, 4, 0, 0), (4, 0, 0, 0), (4, 5, 0, 0)])
    assert torch.equal(got, span_attention(query, key, value, spans, 0.3))
    torch.testing.assert_close(got, truth(query, key, value, spans, 0.3), atol=1e-5, rtol=1e-5)


def test_memory_is_linear_in_the_tokens(cpu_level: str) -> None:
    """No tensor of the graph grows with the square of a sequence."""
    sizes = []
    for tokens in (256, 512):
        query, key, value = problem(2, 1, 16, torch.float32, tokens)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            span_attention(query, key, value, span_tensor([(0, tokens, 0, 0)]), 0.2)
        sizes.append(sum(kept) - 4)
    assert sizes[1] == 2 * sizes[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_opcheck(dtype: torch.dtype) -> None:
    inputs, spans = problem(4, 2, 16, dtype, 9), span_tensor([(0, 4, 0, 0), (4, 5, 1, 2)])
    torch.library.opcheck(torch.ops.perilune.packed_attention.default, (*inputs, spans, 0.2))
    plain = [tensor.detach() for tensor in inputs]
    output, lse = torch.ops.perilune.packed_attention(*plain, spans, 0.2)
    arguments = (torch.ones_like(output), *plain, output, lse, spans, 0.2)
    torch.library.opcheck(torch.ops.perilune.packed_attention_gradient.default, arguments)


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([(1, 9, 0, 0)], "spans: expected span 0 to start at 0 with a length of at least 0, got 1 and 9"),
        ([(0, 4, 0, 0), (5, 5, 0, 0)], "spans: expected span 1 to start at 4"),
        ([(0, 11, 0, 0), (11, -1, 0, 0)], "spans: expected span 1 to start at 11 with a length of at least 0, got"),
        ([(0, 4, 0, 0)], "spans: expected to cover 10 tokens, got 4"),
        ([(0, 11, 0, 0)], "spans: expected to cover 10 tokens, got 11"),
        ([(0, 4, 0, 0), (4, 6, 0, 5)], r"spans: expected the context of span 1 in 0\.\.4, got 0\.\.5"),
        ([(0, 4, 0, 0), (4, 6, -1, 2)], r"spans: expected the context of span 1 in 0\.\.4, got -1\.\.1"),
        ([(0, 4, 0, 0), (4, 6, 3, -1)], r"spans: expected the context of span 1 in 0\.\.4, got 3\.\.2"),
    ],
)
def test_bad_spans_are_named(cpu_implementation: str, spans: list[tuple[int, int, int, int]], said: str) -> None:
    query, key, value = (tensor.detach() for tensor in problem(4, 2, 16, torch.float32, 10))
    run = span_attention_reference if cpu_implementation == "reference" else span_attention
    with pytest.raises(ValueError, match=said):
        run(query, key, value, span_tensor(spans), 1.0)


@pytest.mark.parametrize(
    ("index", "value", "said"),
    [
        (0, torch.zeros(10, 4), r"query: expected \[T, H, d\], got \[10, 4\]"),
        (0, torch.zeros(10, 4, 16).half(), "query: expected bfloat16, float32 or float64"),
        (1, torch.zeros(9, 2, 16), r"key: expected \[10, Hkv, 16\]"),
        (1, torch.zeros(10, 3, 16), "key: expected Hkv that divides 4 heads"),
        (1, torch.zeros(10, 2, 16).bfloat16(), r"key: expected \[10, Hkv, 16\] of torch.float32"),
        (2, torch.zeros(10, 1, 16), r"value: expected \[10, 2, 16\]"),
        (3, torch.zeros(1, 4), r"spans: expected \[spans, 4\] int32, got \[1, 4\] float32"),
        (3, torch.zeros(4, dtype=torch.int32), r"spans: expected \[spans, 4\] int32, got \[4\] int32"),
        (4, -1.0, "scale: expected at least 0, got -1.0"),
    ],
)
def test_bad_input_is_named(index: int, value: Tensor, said: str) -> None:
    row = [tensor.detach() for tensor in problem(4, 2, 16, torch.float32, 10)]
    arguments = [*row, span_tensor([(0, 10, 0, 0)]), 1.0]
    arguments[index] = value
    with pytest.raises(ValueError, match=said):
        span_attention(*arguments)


def test_a_record_of_the_spans_serves_as_they_do(cpu_implementation: str) -> None:
    inputs, spans = problem(4, 2, 16, torch.float64), span_tensor(SPANS)
    row = RowSpans(spans, TOKENS, torch.device("cpu"))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        each = [tensor.detach().to(dtype) for tensor in inputs]
        assert torch.equal(span_attention(*each, row, 0.2), span_attention(*each, spans, 0.2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_record_of_another_row_is_named(dtype: torch.dtype) -> None:
    inputs = [tensor.detach() for tensor in problem(4, 2, 16, dtype, 10)]
    for tokens, device in ((9, "cpu"), (10, "meta")):
        row = RowSpans(span_tensor([(0, tokens, 0, 0)]), tokens, torch.device(device))
        with pytest.raises(ValueError, match=f"spans: expected those of 10 tokens on cpu, got of {tokens} on {device}"):
            span_attention(*inputs, row, 0.2)


@pytest.mark.parametrize("bounds", [[0, 4], [1, 9], [0, 5, 4, 9], []])
def test_bounds_must_cover_the_row(bounds: list[int]) -> None:
    row = torch.zeros(9, 2, 16)
    with pytest.raises(ValueError, match="cu_seqlens: expected rising from 0 to 9"):
        packed_attention(row, row, row, torch.tensor(bounds, dtype=torch.int32), 1.0)


@pytest.mark.skipif(not extension.available(), reason="the extension is not built")
def test_the_kernel_serves() -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("perilune::packed_attention_gradient", "CPU")
