from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.ops import head_gradient
from engine.ops import token_logprob as module
from engine.ops.sample import sample
from engine.ops.token_logprob import token_logprob, token_logprob_reference

SHAPES = [(0, 151, 64), (1, 151, 64), (15, 1000, 96), (17, 1000, 100), (33, 2077, 576)]
DTYPES = [torch.bfloat16, torch.float32]


def problem(shape: tuple[int, int, int], dtype: torch.dtype, spread: float = 3.0) -> tuple[Tensor, ...]:
    tokens, vocabulary, width = shape
    hidden = torch.randn(tokens, width).to(dtype)
    weight = (torch.randn(vocabulary, width) * spread / width**0.5).to(dtype)
    return hidden, weight, torch.randint(0, vocabulary, (tokens,)), torch.rand(tokens) + 0.5


def rounding(implementation: str, dtype: torch.dtype) -> float:
    """Tensor cores cut off what they add, which costs a digit of a long dot product."""
    return 5e-5 if implementation == "cuda" and dtype == torch.bfloat16 else 1e-5


def run(implementation: str, *arguments: Tensor) -> tuple[Tensor, ...]:
    return (token_logprob_reference if implementation == "reference" else token_logprob)(*arguments)


def truth(hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    logits = (hidden.double() @ weight.double().T) * scale.double()[:, None]
    spread = torch.distributions.Categorical(logits=logits, validate_args=False)
    return spread.log_prob(target), spread.entropy(), logits.logsumexp(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_float64(
    implementation: str, shape: tuple[int, int, int], dtype: torch.dtype, poisoned: None
) -> None:
    arguments = problem(shape, dtype)
    for got, expected in zip(run(implementation, *arguments), truth(*arguments), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, atol=rounding(implementation, dtype), rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits(implementation: str, dtype: torch.dtype) -> None:
    hidden = torch.eye(32, dtype=dtype)[:5]
    weight = torch.full((151, 32), -200.0).to(dtype)
    weight[7] = 200.0
    weight[8, :3] = 199.0
    target, scale = torch.tensor([7, 8, 0, 7, 150]), torch.ones(5)
    results = run(implementation, hidden, weight, target, scale)
    for got, expected in zip(results, truth(hidden, weight, target, scale), strict=True):
        torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_token_is_more_than_certain(level: str, dtype: torch.dtype) -> None:
    """Targets of nearly all the mass; above 0, the gradient of their own logits would have the wrong sign."""
    hidden, weight, _, scale = problem((40, 2000, 64), dtype, spread=0.4)
    target = torch.randperm(2000)[:40]
    weight[target] = (hidden.float() * 1.3).to(dtype)
    logprob, *_ = token_logprob(hidden, weight, target, scale)
    assert bool((logprob <= 0).all())
    exact, *_ = truth(hidden, weight, target, scale)
    torch.testing.assert_close(logprob.double(), exact, atol=1e-5 if level == "cuda" else 5e-7, rtol=1e-4)
    token, drawn = sample(hidden, weight, 1 / scale, target, target)
    assert torch.equal(token, target)
    assert bool((drawn <= 0).all())


def test_strided_hidden_and_shared_temperature(level: str) -> None:
    hidden, weight, target, _ = problem((17, 151, 64), torch.bfloat16)
    plain = token_logprob(hidden, weight, target, torch.full((17,), 0.5))
    apart = torch.zeros(17, 128, dtype=torch.bfloat16)[:, ::2].copy_(hidden)
    rows = torch.zeros(34, 64, dtype=torch.bfloat16)[::2].copy_(hidden)
    for strided in (apart, rows):
        for got, expected in zip(
            token_logprob(strided, weight, target, torch.full((1,), 0.5)), plain, strict=True
        ):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_do_not_depend_on_neighbours_place_or_threads(
    level: str, dtype: torch.dtype, two_threads: None
) -> None:
    arguments = hidden, weight, target, scale = problem((64, 2077, 96), dtype)
    together = token_logprob(*arguments)
    torch.set_num_threads(1)
    alone = [
        token_logprob(hidden[t : t + 1], weight, target[t : t + 1], scale[t : t + 1]) for t in (0, 15, 63)
    ]
    order = torch.randperm(64)
    shuffled = token_logprob(hidden[order], weight, target[order], scale[order])
    for i, values in enumerate(together):
        assert torch.equal(shuffled[i], values[order])
        for t, single in zip((0, 15, 63), alone, strict=True):
            assert torch.equal(single[i][0], values[t])


def test_more_tokens_than_one_chunk(level: str) -> None:
    hidden, weight, target, scale = problem((2100, 40, 32), torch.bfloat16)
    whole = token_logprob(hidden, weight, target, scale)
    tail = token_logprob(hidden[2040:], weight, target[2040:], scale[2040:])
    for got, expected in zip(whole, tail, strict=True):
        assert torch.equal(got[2040:], expected)


def test_nan_is_not_hidden(implementation: str) -> None:
    hidden, weight, target, scale = problem((17, 151, 64), torch.bfloat16)
    weight[3, 5] = float("nan")
    for values in run(implementation, hidden, weight, target, scale):
        assert values.isnan().all()


def test_without_entropy(implementation: str) -> None:
    arguments = problem((5, 151, 64), torch.float32)
    logprob, entropy, _ = token_logprob(*arguments, want_entropy=False)
    assert torch.equal(entropy, torch.zeros(5))
    torch.testing.assert_close(logprob.double(), truth(*arguments)[0], atol=1e-5, rtol=0)


def gradients(score: object, hidden: Tensor, weight: Tensor, *rest: Tensor) -> list[Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    results = score(hidden, weight, *rest)  # type: ignore[operator]
    tokens = results[0].shape[0]
    factors = [torch.linspace(-1, 2, tokens), torch.linspace(0.5, -0.2, tokens), torch.full((tokens,), 0.1)]
    loss = sum((values * factor).sum() for values, factor in zip(results, factors, strict=True))
    return list(torch.autograd.grad(loss, [hidden, weight]))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(1, 151, 64), (33, 1000, 96), (17, 4500, 100), (200, 2100, 33)])
def test_gradients(
    level: str, shape: tuple[int, int, int], dtype: torch.dtype, bound: float, poisoned: None
) -> None:
    hidden, weight, target, scale = problem(shape, dtype)
    got = gradients(token_logprob, hidden, weight, target, scale)
    expected = gradients(token_logprob, hidden.double(), weight.double(), target, scale)
    for ours, exact in zip(got, expected, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - exact).norm() <= bound * exact.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_changes_no_bit(cpu_level: str, dtype: torch.dtype) -> None:
    arguments = problem((33, 1000, 96), dtype)
    plain = gradients(token_logprob, *arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for got, expected in zip(gradients(token_logprob, *arguments), plain, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("dtype", "other", "bound"),
    [(torch.bfloat16, 98.0, 4e-3), (torch.float32, 98.0, 2e-3), (torch.float32, 100.0, 2e-4)],
)
def test_gradient_of_a_certain_token_keeps_its_digits(
    level: str, dtype: torch.dtype, other: float, bound: float
) -> None:
    """Logit 107 among others of 98 or 100: the rounding of the log-normaliser would cost 1.1 or 0.07 percent."""
    hidden, weight = torch.eye(32, dtype=dtype)[:1], torch.full((3, 32), other, dtype=dtype)
    weight[0, 0] = 107.0
    target, scale = torch.zeros(1, dtype=torch.int64), torch.ones(1)
    hidden.requires_grad_()
    weight.requires_grad_()
    (got,) = torch.autograd.grad(token_logprob(hidden, weight, target, scale)[0].sum(), weight)
    wide = hidden.detach().double(), weight.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(token_logprob(*wide, target, scale)[0].sum(), wide[1])
    torch.testing.assert_close(got[0, 0].double(), exact[0, 0], rtol=bound, atol=0)


@pytest.mark.parametrize("rows", [None, torch.tensor([1, 1])])
def test_there_is_no_second_gradient(level: str, rows: Tensor | None) -> None:
    hidden, weight, target, scale = problem((2, 40, 32), torch.float32)
    hidden.requires_grad_()
    chosen = None if rows is None else rows.to(hidden.device)
    logprob = token_logprob(hidden, weight, target, scale, rows=chosen)[0]
    with pytest.raises(RuntimeError, match="token_logprob is differentiable once"):
        torch.autograd.grad(logprob.sum(), hidden, create_graph=True)


def test_gradcheck_float64() -> None:
    hidden, weight, target, scale = problem((3, 7, 4), torch.float64)
    hidden.requires_grad_()
    weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: token_logprob(h, w, target, scale), (hidden, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    hidden, weight, target, scale = problem((5, 40, 32), dtype)
    hidden.requires_grad_()
    weight.requires_grad_()
    tolerance = {"atol": 1e-2, "rtol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.library.opcheck(
        torch.ops.perilune.token_logprob.default, (hidden, weight, target, scale, True), **tolerance
    )
    rows = torch.tensor([4, 0])
    torch.library.opcheck(
        torch.ops.perilune.token_logprob_rows.default,
        (hidden, weight, target[rows], scale[rows], rows, True),
        **tolerance,
    )


def test_rows_are_those_of_the_whole(implementation: str) -> None:
    hidden, weight, target, scale = problem((70, 1000, 96), torch.bfloat16)
    rows = torch.tensor([69, 3, 3, 17, 0, 42, 5], dtype=torch.int32)
    chosen = rows.long()
    got = token_logprob(hidden, weight, target[chosen], scale[chosen], rows=rows)
    expected = token_logprob(hidden, weight, target, scale)
    for ours, all_rows in zip(got, expected, strict=True):
        assert torch.equal(ours, all_rows[chosen])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_rows(level: str, dtype: torch.dtype, poisoned: None) -> None:
    """As if the rows had been taken out before; one that is listed three times gets all three."""
    hidden, weight, *_ = problem((70, 1000, 96), dtype)
    rows = torch.tensor([69, 3, 17, 3, 0, 3])
    target, scale = torch.randint(0, 1000, (6,)), torch.rand(6) + 0.5

    def by_list(h: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return token_logprob(h, w, target, scale, rows=rows)

    def by_hand(h: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return token_logprob(h[rows], w, target, scale)

    d_hidden, d_weight = gradients(by_list, hidden, weight)
    _, same_weight = gradients(by_hand, hidden, weight)
    exact, _ = gradients(by_hand, hidden.double(), weight.double())
    assert torch.equal(d_weight, same_weight)
    assert d_hidden[1:3].count_nonzero() == 0
    assert (d_hidden.double() - exact).norm() <= (1e-2 if dtype == torch.bfloat16 else 1e-5) * exact.norm()


def test_rows_out_of_range_are_nan_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, where to look at them would wait: other rows are read in their place."""
    monkeypatch.setattr(head_gradient, "_refuse", lambda *_: None)
    hidden, weight, *_ = problem((4, 151, 64), torch.float32)
    rows, target, scale = torch.tensor([3, -1, 4, 0, 1 << 40]), torch.randint(0, 151, (5,)), torch.rand(5) + 0.5
    there = [0, 3]
    for values, expected in zip(
        module._by_rows(hidden, weight, target, scale, rows, True),
        token_logprob(hidden, weight, target[there], scale[there], rows=rows[there]), strict=True,
    ):
        assert values.isnan().tolist() == [False, True, True, False, True]
        torch.testing.assert_close(values[there], expected)


def test_float64_looks_at_its_rows() -> None:
    hidden, weight, target, scale = problem((3, 40, 32), torch.float64)
    with pytest.raises(ValueError, match=r"rows: expected values in 0\.\.2, got 0\.\.3"):
        token_logprob(hidden, weight, target, scale, rows=torch.tensor([0, 1, 3]))
    got = token_logprob(hidden, weight, target, scale, rows=torch.tensor([2, 2, 0]))
    for values, expected in zip(got, truth(hidden[[2, 2, 0]], weight, target, scale), strict=True):
        torch.testing.assert_close(values, expected)


def test_no_rows_have_no_gradient(level: str) -> None:
    hidden, weight, *_ = problem((5, 151, 64), torch.bfloat16)
    rows = torch.zeros(0, dtype=torch.int64)
    hidden.requires_grad_()
    weight.requires_grad_()
    results = token_logprob(hidden, weight, rows, torch.ones(1), rows=rows)
    assert [values.shape for values in results] == [(0,)] * 3
    for gradient in torch.autograd.grad(results[0].sum(), [hidden, weight]):
        assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("shape", [(3, 2077, 64), (70, 5000, 96), (300, 1500, 112)])
def test_hidden_gradients_do_not_depend_on_neighbours_or_threads(
    level: str, shape: tuple[int, int, int], two_threads: None
) -> None:
    hidden, weight, target, scale = problem(shape, torch.bfloat16)
    factor = torch.linspace(-1, 1, shape[0])

    def run_some(chosen: Tensor) -> tuple[Tensor, Tensor]:
        h, w = hidden[chosen].requires_grad_(), weight.clone().requires_grad_()
        logprob, entropy, _ = token_logprob(h, w, target[chosen], scale[chosen])
        loss = ((logprob + entropy) * factor[chosen]).sum()
        d_hidden, d_weight = torch.autograd.grad(loss, [h, w])
        return d_hidden, d_weight

    everything = torch.arange(shape[0])
    d_hidden, d_weight = run_some(everything)
    torch.set_num_threads(1)
    again = run_some(everything)
    if level in ("amx", "avx512bf16"):  # the other levels go through the library's products, which promise less
        assert torch.equal(again[0], d_hidden)
        assert torch.equal(again[1], d_weight)
        some = torch.randperm(shape[0])[: shape[0] // 2 + 1]
        assert torch.equal(run_some(some)[0], d_hidden[some])
    for got, first in zip(again, (d_hidden, d_weight), strict=True):
        assert (got.double() - first.double()).norm() <= 1e-2 * first.double().norm()


def test_only_the_gradient_that_is_asked_for(level: str) -> None:
    hidden, weight, target, scale = problem((33, 1000, 96), torch.bfloat16)
    both = gradients(token_logprob, hidden, weight, target, scale)
    hidden.requires_grad_()
    loss = token_logprob(hidden, weight, target, scale)[0].sum()
    (alone,) = torch.autograd.grad(loss, hidden)
    assert alone.shape == both[0].shape
    statistics = torch.rand(7, 33)
    arguments = hidden.detach(), weight, target, statistics, None
    whole = torch.ops.perilune.head_gradient(*arguments, True, True)
    for which in (0, 1):
        parts = torch.ops.perilune.head_gradient(*arguments, which == 0, which == 1)
        assert torch.equal(parts[which], whole[which])
        assert parts[1 - which].shape == (0, 96)


SCALE = "inverse_temperature: expected finite values of at least 0, got "


@pytest.mark.parametrize("bad", [-0.5, float("inf"), float("nan")])
def test_reference_refuses_what_is_no_temperature(bad: float) -> None:
    hidden, weight, target, _ = problem((5, 40, 32), torch.float64)
    with pytest.raises(ValueError, match=f"{SCALE}{bad}"):
        token_logprob(hidden, weight, target, torch.tensor([bad]))
    with pytest.raises(ValueError, match=f"{SCALE}{bad}"):
        token_logprob_reference(hidden.float(), weight.float(), target, torch.tensor([bad]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden": torch.zeros(5, 4, 2)}, r"hidden: expected \[T, D\], got \[5, 4, 2\] float32"),
        ({"hidden": torch.zeros(5, 32, dtype=torch.float16)}, "hidden: expected bfloat16"),
        ({"hidden": torch.zeros(5, 0), "weight": torch.zeros(40, 0)}, "hidden: expected a width D above 0, got .5, 0."),
        ({"weight": torch.zeros(40, 31)}, r"weight: expected \[V, 32\] of torch.float32, got \[40, 31\]"),
        ({"weight": torch.zeros(40, 32).bfloat16()}, "weight: expected .* got .* bfloat16"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, r"target: expected \[5\] int64, got \[4\] int64"),
        ({"target": torch.zeros(5, dtype=torch.int32)}, r"target: expected \[5\] int64, got \[5\] int32"),
        ({"target": torch.full((5,), 40)}, r"target: expected values in 0\.\.39, got .*40"),
        ({"target": torch.full((5,), -1)}, r"target: expected values in 0\.\.39, got -1"),
        ({"rows": torch.zeros(5)}, r"rows: expected \[N\] int64 or int32, got \[5\] float32"),
        ({"rows": torch.full((5,), 5)}, r"rows: expected values in 0\.\.4, got .*5"),
        ({"rows": torch.zeros(4, dtype=torch.int64)}, r"target: expected \[4\] int64, got \[5\] int64"),
        ({"inverse_temperature": torch.ones(3)}, r"inverse_temperature: expected \[5\] or \[1\]"),
        ({"inverse_temperature": torch.ones(5).double()}, "inverse_temperature: expected .*float32"),
        *((change | {"inverse_temperature": torch.tensor([1.0, bad, 1, 1, 1])}, f"{SCALE}{bad}")
          for bad in (-0.5, float("inf"), float("nan")) for change in ({}, {"rows": torch.arange(5)})),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], said: str) -> None:
    names = ("hidden", "weight", "target", "inverse_temperature")
    arguments = dict(zip(names, problem((5, 40, 32), torch.float32), strict=True)) | change
    with pytest.raises(ValueError, match=said):
        token_logprob(**arguments)
