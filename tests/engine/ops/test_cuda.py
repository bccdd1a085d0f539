"""What only the kernels for GPUs must be asked: large shapes, tiles, streams, values out of range, logits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from engine.ops import extension
from engine.ops.gated_silu import gated_silu
from engine.ops.logits_logprob import logits_logprob
from engine.ops.rms_norm import rms_norm
from engine.ops.rotary import rotate_and_store
from engine.ops.sample import gumbel_noise, sample
from engine.ops.slot_attention import slot_attention, slot_attention_reference
from engine.ops.token_logprob import token_logprob

GPU = extension.cuda_available() and torch.cuda.is_available()
pytestmark = pytest.mark.skipif(not GPU, reason="no GPU, or its kernels are not built")
DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture(autouse=True)
def _on_the_gpu() -> Iterator[None]:
    with torch.device("cuda"):
        yield


@pytest.fixture(params=["fused", "library"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways that a head in bfloat16 may go, one after the other."""
    before = torch.ops.perilune.set_cuda_fused(request.param == "fused")
    yield request.param
    torch.ops.perilune.set_cuda_fused(before)


def problem(tokens: int, vocabulary: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    hidden = torch.randn(tokens, width).to(dtype)
    weight = (torch.randn(vocabulary, width) * 3 / width**0.5).to(dtype)
    return hidden, weight, torch.randint(0, vocabulary, (tokens,)), torch.rand(tokens) + 0.5


def scores(logits: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Truth of logits, in float64."""
    wide = logits.double() * scale.double()[:, None]
    lse = wide.logsumexp(-1)
    logprobs = wide - lse[:, None]
    return logprobs.gather(-1, target[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1), lse


# ---- the head -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocabulary", "width", "dtype"),
    [
        (151643, 128, torch.bfloat16),
        (1000, 896, torch.bfloat16),
        (9001, 100, torch.bfloat16),
        (9001, 40, torch.bfloat16),
        (9001, 64, torch.float32),
    ],
)
@pytest.mark.usefixtures("way")
def test_a_token_knows_neither_place_nor_neighbours(vocabulary: int, width: int, dtype: torch.dtype) -> None:
    """2600 tokens are two whole tiles of rows and some more; a token alone goes by the tile of few rows."""
    hidden, weight, target, scale = problem(2600, vocabulary, width, dtype)
    together = token_logprob(hidden, weight, target, scale)
    for values, again in zip(together, token_logprob(hidden, weight, target, scale), strict=True):
        assert torch.equal(values, again)
    order = torch.randperm(2600)
    moved = token_logprob(hidden[order], weight, target[order], scale[order])
    for values, expected in zip(moved, together, strict=True):
        assert torch.equal(values, expected[order])
    for first, last in ((0, 1), (1023, 1024), (1024, 1025), (2599, 2600), (900, 1600), (0, 1100)):
        some = slice(first, last)
        alone = token_logprob(hidden[some], weight, target[some], scale[some])
        for values, expected in zip(alone, together, strict=True):
            assert torch.equal(values, expected[some])


@pytest.mark.usefixtures("way")
def test_agrees_with_float64_over_several_blocks() -> None:
    arguments = hidden, weight, target, scale = problem(1100, 20001, 256, torch.bfloat16)
    logits = hidden.double() @ weight.double().T
    for got, expected in zip(token_logprob(*arguments), scores(logits, target, scale), strict=True):
        torch.testing.assert_close(got.double(), expected, atol=5e-5, rtol=0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("tokens", [35, 64, 700])
def test_gradients_over_several_steps(tokens: int) -> None:
    """Rows of 35 tokens are padded; 17000 entries take two steps of the backward."""
    hidden, weight, target, scale = problem(tokens, 17000, 96, torch.bfloat16)
    factors = torch.linspace(-1, 2, tokens), torch.linspace(0.5, -0.2, tokens), torch.full((tokens,), 0.1)
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in (hidden, weight)]
        results = token_logprob(*leaves, target, scale)
        loss = sum((values * factor).sum() for values, factor in zip(results, factors, strict=True))
        found.append(torch.autograd.grad(loss, leaves))
    for ours, exact in zip(*found, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - exact).norm() <= 1e-2 * exact.norm()


@pytest.mark.usefixtures("way")
def test_an_address_changes_no_bit() -> None:
    hidden, weight, target, scale = problem(300, 1000, 72, torch.bfloat16)
    expected = token_logprob(hidden, weight, target, scale)
    for offset in (1, 8):
        moved = [torch.empty(x.numel() + offset, dtype=x.dtype)[offset:].view_as(x).copy_(x) for x in (hidden, weight)]
        for got, values in zip(token_logprob(*moved, target, scale), expected, strict=True):
            assert torch.equal(got, values)


@pytest.mark.usefixtures("way")
def test_a_target_out_of_range_is_nan_and_reads_nothing() -> None:
    hidden, weight, target, scale = problem(5, 151, 64, torch.bfloat16)
    target[1], target[3] = -1, 151
    hidden.requires_grad_()
    logprob, entropy, lse = token_logprob(hidden, weight, target, scale)
    (gradient,) = torch.autograd.grad(logprob.sum(), hidden)
    assert gradient.isnan().any(1).tolist() == [False, True, False, True, False]
    assert logprob.isnan().tolist() == [False, True, False, True, False]
    assert bool(entropy.isfinite().all() and lse.isfinite().all())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_temperature_is_nan(dtype: torch.dtype) -> None:
    hidden, weight, target, scale = problem(5, 151, 64, dtype)
    scale[1], scale[3], scale[4] = -1.0, float("inf"), float("nan")
    for results in (token_logprob(hidden, weight, target, scale), logits_logprob(hidden @ weight.T, target, scale)):
        for values in results:
            assert values.isnan().tolist() == [False, True, False, True, True]


@pytest.mark.usefixtures("way")
def test_rows_out_of_range_are_nan_and_touch_nothing() -> None:
    hidden, weight, *_ = problem(5, 151, 64, torch.bfloat16)
    rows, target, scale = torch.tensor([4, -1, 5, 0, 1 << 40]), torch.randint(0, 151, (5,)), torch.rand(5) + 0.5
    there = torch.tensor([0, 3])
    hidden.requires_grad_()
    weight.requires_grad_()
    results = token_logprob(hidden, weight, target, scale, rows=rows)
    for values in results:
        assert values.isnan().tolist() == [False, True, True, False, True]
    d_hidden, d_weight = torch.autograd.grad(results[0][there].sum(), [hidden, weight])
    alone = token_logprob(hidden, weight, target[there], scale[there], rows=rows[there])
    (expected,) = torch.autograd.grad(alone[0].sum(), hidden)
    torch.testing.assert_close(d_hidden, expected)
    assert bool(d_weight.isnan().all())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_rows_listed_often_repeat(dtype: torch.dtype) -> None:
    """Sums of five hundred by atomics would differ in their last places."""
    hidden, weight, *_ = problem(8, 1000, 96, dtype)
    rows, target, scale = torch.randint(0, 8, (4000,)), torch.randint(0, 1000, (4000,)), torch.rand(4000) + 0.5
    hidden.requires_grad_()
    found = [
        torch.autograd.grad(token_logprob(hidden, weight, target, scale, rows=rows)[0].sum(), hidden)[0]
        for _ in range(5)
    ]
    assert all(torch.equal(found[0], again) for again in found[1:])


def test_neither_tf32_nor_autocast_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, *rest = problem(40, 1000, 96, torch.float32)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    plain = token_logprob(*leaves, *rest)
    plain += torch.autograd.grad(plain[0].sum(), leaves)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        uncast = token_logprob(*leaves, *rest)
        uncast += torch.autograd.grad(uncast[0].sum(), leaves)
    for values, expected in zip(uncast, plain, strict=True):
        assert torch.equal(values, expected)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    shortened = token_logprob(*leaves, *rest)
    for values, expected in zip(shortened, plain[:3], strict=True):
        assert torch.equal(values, expected)


@pytest.mark.usefixtures("way")
def test_runs_on_the_current_stream_and_in_a_graph() -> None:
    hidden, weight, target, scale = problem(200, 9001, 64, torch.bfloat16)
    expected = token_logprob(hidden, weight, target, scale)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        aside = token_logprob(hidden, weight, target, scale)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.ops.perilune.token_logprob(hidden, weight, target, scale, True)
    graph.replay()
    for first, second, third in zip(expected, aside, captured, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


def test_far_logits_in_every_part_of_a_tile() -> None:
    """Each entry is the target once: none is lost at a border of what lanes and warps share out."""
    vocabulary = 700
    weight = (torch.arange(vocabulary) % 251 - 200.0)[:, None].repeat(1, 8).bfloat16()
    hidden = torch.zeros(vocabulary, 8, dtype=torch.bfloat16)
    hidden[:, 0] = 1
    target, scale = torch.arange(vocabulary), torch.ones(vocabulary)
    results = token_logprob(hidden, weight, target, scale)
    expected = scores(hidden.double() @ weight.double().T, target, scale)
    for got, exact in zip(results, expected, strict=True):
        torch.testing.assert_close(got.double(), exact, atol=2e-5, rtol=1e-6)


# ---- draws ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
def test_noise_is_that_of_the_reference() -> None:
    """All logits are 0, so the largest noise wins: one wrong random word in 151643 would choose another token."""
    key = torch.randint(-(1 << 62), 1 << 62, (64,))
    position = torch.randint(0, 1 << 40, (64,))
    nothing = torch.zeros(64, 64, dtype=torch.bfloat16), torch.zeros(151643, 64, dtype=torch.bfloat16)
    token, _ = sample(*nothing, torch.ones(64), key, position)
    assert torch.equal(token, gumbel_noise(key, position, 151643).argmax(-1))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("tokens", [1, 64, 1100])
def test_logprob_of_a_draw_is_that_of_token_logprob(tokens: int) -> None:
    hidden, weight, _, temperature = problem(tokens, 151643, 128, torch.bfloat16)
    temperature[::3] = 0
    key, position = torch.arange(tokens), torch.arange(tokens) * 7
    token, logprob = sample(hidden, weight, temperature, key, position)
    scale = torch.where(temperature == 0, torch.ones(tokens), 1.0 / temperature)
    assert torch.equal(logprob, token_logprob(hidden, weight, token, scale)[0])
    alone = sample(hidden[-1:], weight, temperature[-1:], key[-1:], position[-1:])
    assert torch.equal(alone[0], token[-1:])
    assert torch.equal(alone[1], logprob[-1:])


@pytest.mark.usefixtures("way")
def test_a_negative_temperature_is_nan() -> None:
    hidden, weight, key, temperature = problem(3, 151, 64, torch.bfloat16)
    temperature[1] = -1.0
    token, logprob = sample(hidden, weight, temperature, key, key)
    assert logprob.isnan().tolist() == [False, True, False]
    assert bool(((token >= 0) & (token < 151)).all())


# ---- logits that exist ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "vocabulary"), [(0, 8), (3, 1), (33, 1000), (5, 151643), (7, 16384)])
def test_logits_agree_with_float64(tokens: int, vocabulary: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(tokens, vocabulary) * 4).to(dtype)
    target, scale = torch.randint(0, vocabulary, (tokens,)), torch.rand(tokens) + 0.5
    results = torch.ops.perilune.logits_logprob(logits, target, scale)
    for got, expected in zip(results, scores(logits, target, scale), strict=True):
        torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)
    again = torch.ops.perilune.logits_logprob(logits, target, scale)
    assert all(torch.equal(left, right) for left, right in zip(results, again, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [1000, 1001])
def test_a_row_of_logits_does_not_know_its_place(vocabulary: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(20, vocabulary) * 4).to(dtype)
    target, scale = torch.randint(0, vocabulary, (20,)), torch.rand(20) + 0.5
    together = torch.ops.perilune.logits_logprob(logits, target, scale)
    apart = torch.zeros(20, vocabulary + 3, dtype=dtype)[:, 1 : vocabulary + 1].copy_(logits)
    for got, expected in zip(torch.ops.perilune.logits_logprob(apart, target, scale), together, strict=True):
        assert torch.equal(got, expected)
    for row in (1, 7, 19):
        one = slice(row, row + 1)
        alone = torch.ops.perilune.logits_logprob(logits[one].clone(), target[one], scale[one])
        for got, expected in zip(alone, together, strict=True):
            assert torch.equal(got[0], expected[row])


def test_far_and_certain_logits() -> None:
    logits = torch.full((3, 5000), -200.0)
    logits[0, 7], logits[1, 4999], logits[2] = 200.0, 199.0, 0.0
    logits[2, 0] = 25.0
    target, scale = torch.tensor([7, 0, 0]), torch.ones(3)
    results = torch.ops.perilune.logits_logprob(logits, target, scale)
    for got, expected in zip(results, scores(logits, target, scale), strict=True):
        torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [1000, 4097, 16384])
def test_gradient_of_logits(vocabulary: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(9, vocabulary) * 4).to(dtype)
    logits[4, 11] = 40.0
    target, scale = torch.randint(0, vocabulary, (9,)), torch.rand(9) + 0.5
    target[4] = 11
    wide = logits.double().requires_grad_()
    factors = torch.randn(3, 9)
    loss = sum((v * f).sum() for v, f in zip(scores(wide, target, scale), factors.double(), strict=True))
    (exact,) = torch.autograd.grad(loss, wide)
    logprob, entropy, lse = torch.ops.perilune.logits_logprob(logits, target, scale)
    statistics = torch.stack([scale, lse, entropy, logprob, *factors])
    got = torch.ops.perilune.logits_gradient(logits, target, statistics)
    assert got.dtype == dtype
    bound = 2.0**-8 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(got.double(), exact, atol=5e-6, rtol=bound)


def test_logits_out_of_range_and_nan() -> None:
    logits = torch.randn(4, 151)
    logits[2, 9] = float("nan")
    target = torch.tensor([0, 151, 0, 150])
    logprob, entropy, lse = torch.ops.perilune.logits_logprob(logits, target, torch.ones(4))
    assert logprob.isnan().tolist() == [False, True, True, False]
    assert entropy.isnan().tolist() == lse.isnan().tolist() == [False, False, True, False]


# ---- the decoder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "shared", "size"), [(14, 2, 64), (28, 4, 128), (40, 2, 80), (8, 2, 8), (6, 2, 256), (4, 2, 12)]
)
def test_slots_longer_than_a_span(heads: int, shared: int, size: int, dtype: torch.dtype) -> None:
    query = torch.randn(12, heads, size).to(dtype)
    keys, values = torch.randn(2, 4, 1300, shared, size).to(dtype)
    slot = torch.randint(0, 4, (12,))
    position = torch.tensor([0, 511, 512, 1023, 1024, 1299, -1, 700, 15, 16, 128, 1])
    got = slot_attention(query, keys, values, slot, position, 0.125)
    expected = slot_attention_reference(query.double(), keys.double(), values.double(), slot, position, 0.125)
    bound = 1e-5 if dtype == torch.float32 else 2.0**-8
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=bound)
    # A larger cache holds the same rows: not a bit may change.
    unwritten = torch.full((4, 900, shared, size), float("nan"), dtype=dtype)
    wider = [torch.cat([cache, unwritten], dim=1) for cache in (keys, values)]
    assert torch.equal(slot_attention(query, *wider, slot, position, 0.125), got)
    # Nor may an address that is no multiple of 16 bytes.
    moved = [torch.empty(cache.numel() + 1, dtype=dtype)[1:].view_as(cache).copy_(cache) for cache in (keys, values)]
    assert torch.equal(slot_attention(query, *moved, slot, position, 0.125), got)
    one = slice(5, 6)
    assert torch.equal(slot_attention(query[one], keys, values, slot[one], position[one], 0.125), got[one])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cache_without_a_place(dtype: torch.dtype, poisoned: None) -> None:
    cache, slot = torch.zeros(2, 0, 2, 32, dtype=dtype), torch.tensor([0, 1])
    got = slot_attention(torch.randn(2, 4, 32).to(dtype), cache, cache, slot, torch.tensor([-1, 0]), 0.2)
    assert got[0].count_nonzero() == 0
    assert got[1].isnan().all()


def test_places_out_of_range_are_nan_and_write_nothing() -> None:
    query, (keys, values) = torch.randn(4, 4, 32), torch.randn(2, 3, 10, 2, 32)
    slot, position = torch.tensor([0, 3, -1, 2]), torch.tensor([9, 1, 1, 10])
    got = slot_attention(query, keys, values, slot, position, 0.2)
    assert got.flatten(1).isnan().all(1).tolist() == [False, True, True, True]
    stored = keys.clone(), values.clone()
    cosine, sine = torch.rand(2, 10, 1, 32)
    turned = rotate_and_store(torch.randn(4, 8, 32), cosine, sine, slot, position, *stored)
    assert turned.flatten(1).isnan().all(1).tolist() == [False, True, True, True]
    for cache, before in zip(stored, (keys, values), strict=True):
        changed = (cache != before).flatten(2).any(2)
        assert changed.nonzero().tolist() == [[0, 9]]


@pytest.mark.parametrize("name", ["token_logprob", "sample", "slot_attention", "rms_norm", "gated_silu"])
def test_opcheck(name: str) -> None:
    hidden, weight, target, scale = problem(5, 40, 32, torch.float32)
    cache = torch.randn(2, 9, 2, 8)
    arguments = {
        "token_logprob": (hidden.requires_grad_(), weight.requires_grad_(), target, scale, True),
        "sample": (hidden.detach(), weight.detach(), scale, target, target),
        "slot_attention": (hidden.detach().view(5, 4, 8), cache, cache, target % 2, target % 9, 0.2),
        "rms_norm": (hidden.detach(), weight.detach()[0], 1e-5),
        "gated_silu": (hidden.detach(),),
    }
    assert rms_norm(*arguments["rms_norm"]).shape == gated_silu(hidden.detach().repeat(1, 2)).shape
    torch.library.opcheck(getattr(torch.ops.perilune, name).default, arguments[name])


# ---- more elements than 31 bits count --------------------------------------------------------------------


MANY_TOKENS, MANY_ENTRIES = 16_384, 151_936
BORDER = (1 << 31) // MANY_ENTRIES
"""The row in which element 2^31 lies."""
FAR_ROWS = [0, BORDER - 1, BORDER, BORDER + 1, 15_000, MANY_TOKENS - 1]


def test_logits_and_their_gradient_beyond_31_bits() -> None:
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("less than 20 GB of the GPU are free")
    logits = torch.randn(MANY_TOKENS, MANY_ENTRIES, dtype=torch.bfloat16).mul_(4).requires_grad_()
    target, scale = torch.randint(0, MANY_ENTRIES, (MANY_TOKENS,)), torch.rand(MANY_TOKENS) + 0.5
    target[-1] = MANY_ENTRIES - 1
    factors = [torch.linspace(low, high, MANY_TOKENS) for low, high in ((-1, 2), (0.5, -0.2), (0.1, 0.3))]
    results = logits_logprob(logits, target, scale)
    loss = sum((values * factor).sum() for values, factor in zip(results, factors, strict=True))
    (gradient,) = torch.autograd.grad(loss, logits)

    rows = torch.tensor(FAR_ROWS)
    some = logits.detach()[rows].double().requires_grad_()
    exact = scores(some, target[rows], scale[rows])
    for got, right in zip(results, exact, strict=True):
        torch.testing.assert_close(got.detach()[rows].double(), right.detach(), atol=2e-5, rtol=0)
    loss = sum((values * factor[rows]).sum() for values, factor in zip(exact, factors, strict=True))
    (right,) = torch.autograd.grad(loss, some)
    assert bool(((gradient[rows].double() - right).norm(dim=1) <= 4e-3 * right.norm(dim=1)).all())


@pytest.mark.usefixtures("way")
def test_a_head_of_more_logits_than_31_bits_count() -> None:
    """None are kept; tokens times vocabulary counts tiles and slabs all the same."""
    hidden, weight, target, scale = problem(MANY_TOKENS, MANY_ENTRIES, 64, torch.bfloat16)
    target[-1] = MANY_ENTRIES - 1
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    factor = torch.linspace(-1, 2, MANY_TOKENS)
    results = token_logprob(hidden, weight, target, scale)
    d_hidden, d_weight = torch.autograd.grad((results[0] * factor).sum(), leaves)

    with torch.no_grad():
        rows, entries = torch.tensor(FAR_ROWS), torch.tensor([0, 255, 256, 77_777, MANY_ENTRIES - 1])
        x, w = hidden.double(), weight.double()
        exact = scores(x[rows] @ w.T, target[rows], scale[rows])
        for got, right in zip(results, exact, strict=True):
            torch.testing.assert_close(got[rows].double(), right, atol=5e-5, rtol=0)
        slope = -(x[rows] @ w.T * scale.double()[rows, None] - exact[2][:, None]).exp()
        slope[torch.arange(len(rows)), target[rows]] += 1
        right = (slope * (scale * factor).double()[rows, None]) @ w
        assert bool(((d_hidden[rows].double() - right).norm(dim=1) <= 1e-2 * right.norm(dim=1)).all())
        logprobs = x @ w[entries].T * scale.double()[:, None] - results[2].double()[:, None]
        slope = (target[:, None] == entries).double() - logprobs.exp()
        right = (slope * (scale * factor).double()[:, None]).T @ x
        assert bool(((d_weight[entries].double() - right).norm(dim=1) <= 1e-2 * right.norm(dim=1)).all())
