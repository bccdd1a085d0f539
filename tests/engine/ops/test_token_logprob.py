from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.ops.token_logprob import (
    logit_gradient_reference,

    token_logprob,
    token_logprob_reference,
)

SHAPES = [(0, 151, 64), (1, 151, 64), (15, 1000, 96), (17, 1000, 100), (33, 2077, 576)]
DTYPES = [torch.bfloat16, torch.float32]


def problem(shape: tuple[int, int, int], dtype: torch.dtype, spread: float = 3.0) -> tuple[Tensor, ...]:
    tokens, vocabulary, width = shape
    hidden = torch.randn(tokens, width).to(dtype)
    weight = (torch.randn(vocabulary, width) * spread / width**0.5).to(dtype)
    return hidden, weight, torch.randint(0, vocabulary, (tokens,)), torch.rand(tokens) + 0.5


def run(implementation: str, *arguments: Tensor) -> tuple[Tensor, ...]:
    return (token_logprob_reference if implementation == "reference" else token_logprob)(*arguments)


def truth(hidden: Tensor, weight: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    logits = (hidden.double() @ weight.double().T) * scale.double()[:, None]
    spread = torch.distributions.Categorical(logits=logits, validate_args=False)
    return spread.log_prob(target), spread.entropy(), logits.logsumexp(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_float64(implementation: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    arguments = problem(shape, dtype)
    for got, expected in zip(run(implementation, *arguments), truth(*arguments), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


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
    tokens = hidden.shape[0]
    factors = [torch.linspace(-1, 2, tokens), torch.linspace(0.5, -0.2, tokens), torch.full((tokens,), 0.1)]
    loss = sum((values * factor).sum() for values, factor in zip(results, factors, strict=True))
    return list(torch.autograd.grad(loss, [hidden, weight]))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(1, 151, 64), (33, 1000, 96), (17, 4500, 100)])
def test_gradients(level: str, shape: tuple[int, int, int], dtype: torch.dtype, bound: float) -> None:
    hidden, weight, target, scale = problem(shape, dtype)
    got = gradients(token_logprob, hidden, weight, target, scale)
    expected = gradients(token_logprob, hidden.double(), weight.double(), target, scale)
    for ours, exact in zip(got, expected, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - exact).norm() <= bound * exact.norm()


def test_logit_gradient_equals_its_reference(level: str) -> None:
    hidden, weight, target, scale = problem((33, 151, 96), torch.float32)
    logprob, entropy, lse = token_logprob(hidden, weight, target, scale)
    statistics = torch.stack([scale, lse, entropy, logprob, *torch.randn(3, 33)])
    rows = weight[37:].contiguous()
    got = torch.ops.perilune.logit_gradient(hidden, rows, target, statistics, 37)
    expected = logit_gradient_reference(hidden, rows, target, statistics, 37)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-5)


def test_gradient_of_a_certain_token_keeps_its_digits(level: str) -> None:
    """Probability 0.999 at logit 107: one ulp of the log-normaliser would already cost 0.8 percent."""
    hidden, weight = torch.eye(32)[:1], torch.full((3, 32), 100.0)
    weight[0, 0] = 107.0
    target, scale = torch.zeros(1, dtype=torch.int64), torch.ones(1)
    hidden.requires_grad_()
    weight.requires_grad_()
    (got,) = torch.autograd.grad(token_logprob(hidden, weight, target, scale)[0].sum(), weight)
    wide = hidden.detach().double(), weight.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(token_logprob(*wide, target, scale)[0].sum(), wide[1])
    torch.testing.assert_close(got[0, 0].double(), exact[0, 0], rtol=2e-4, atol=0)


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


def test_logits_logprob() -> None:
    hidden, weight, target, scale = problem((5, 40, 32), torch.float32)
    got = logits_logprob((hidden.double() @ weight.double().T), target, scale)
    for ours, exact in zip(got, truth(hidden, weight, target, scale), strict=False):
        torch.testing.assert_close(ours, exact)
    logits = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    rest = torch.tensor([0, 8, 3, 3]), torch.ones(1)
    assert torch.autograd.gradcheck(lambda z: logits_logprob(z, *rest), (logits,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden": torch.zeros(5, 4, 2)}, r"hidden: expected \[T, D\], got \[5, 4, 2\] float32"),
        ({"hidden": torch.zeros(5, 32, dtype=torch.float16)}, "hidden: expected bfloat16"),
        ({"weight": torch.zeros(40, 31)}, r"weight: expected \[V, 32\] of torch.float32, got \[40, 31\]"),
        ({"weight": torch.zeros(40, 32).bfloat16()}, "weight: expected .* got .* bfloat16"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, r"target: expected \[5\] int64, got \[4\] int64"),
        ({"target": torch.zeros(5, dtype=torch.int32)}, r"target: expected \[5\] int64, got \[5\] int32"),
        ({"target": torch.full((5,), 40)}, r"target: expected values in 0\.\.39, got .*40"),
        ({"target": torch.full((5,), -1)}, r"target: expected values in 0\.\.39, got -1"),
        ({"inverse_temperature": torch.ones(3)}, r"inverse_temperature: expected \[5\] or \[1\]"),
        ({"inverse_temperature": torch.ones(5).double()}, "inverse_temperature: expected .*float32"),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], said: str) -> None:
    names = ("hidden", "weight", "target", "inverse_temperature")
    arguments = dict(zip(names, problem((5, 40, 32), torch.float32), strict=True)) | change
    with pytest.raises(ValueError, match=said):
        token_logprob(**arguments)
