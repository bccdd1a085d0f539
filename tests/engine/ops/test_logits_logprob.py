from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.ops.logits_logprob import logits_gradient_reference, logits_logprob, logits_logprob_reference

DTYPES = [torch.bfloat16, torch.float32]
SHAPES = [(0, 151), (1, 1), (3, 17), (15, 257), (5, 16385), (2, 40001)]


def problem(shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    tokens, vocabulary = shape
    logits = (torch.randn(tokens, vocabulary) * 4).to(dtype)
    return logits, torch.randint(0, vocabulary, (tokens,)), torch.rand(tokens) + 0.5


def run(implementation: str, *arguments: Tensor) -> tuple[Tensor, ...]:
    return (logits_logprob_reference if implementation == "reference" else logits_logprob)(*arguments)


def truth(logits: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    spread = torch.distributions.Categorical(logits=logits.double() * scale.double()[:, None])
    return spread.log_prob(target), spread.entropy(), (logits.double() * scale[:, None]).logsumexp(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_float64(
    implementation: str, shape: tuple[int, int], dtype: torch.dtype, poisoned: None
) -> None:
    arguments = problem(shape, dtype)
    results = run(implementation, *arguments)
    assert len(results) == 3
    if shape[0] == 0:
        assert all(values.shape == (0,) for values in results)
        return
    for got, expected in zip(results, truth(*arguments), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_and_impossible_logits(implementation: str, dtype: torch.dtype) -> None:
    logits = torch.full((4, 300), -200.0, dtype=dtype)
    logits[:, 7] = 200.0
    logits[1, 8] = 200.0
    logits[2, 9:] = -torch.inf
    logits[3, :7] = -torch.inf
    target = torch.tensor([7, 8, 0, 7])
    logprob, entropy, lse = run(implementation, logits, target, torch.ones(4))
    log_two = torch.tensor(2.0, dtype=torch.float64).log().item()
    exact = torch.tensor([0.0, -log_two, -400.0, 0.0])
    torch.testing.assert_close(logprob, exact, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(entropy, torch.tensor([0.0, log_two, 0.0, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(lse, torch.tensor([200.0, 200 + log_two, 200.0, 200.0]), atol=0, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_target_is_more_than_certain(level: str, dtype: torch.dtype) -> None:
    """Logits of 30 to 230 among those near 0: the rounding of the scaled ones may not count for the target alone."""
    logits, _, scale = problem((400, 300), dtype)
    logits[:, 7] = (torch.rand(400) * 200 + 30).to(dtype)
    logprob, _, _ = logits_logprob(logits, torch.full((400,), 7), scale)
    assert bool((logprob <= 0).all())
    exact, *_ = truth(logits, torch.full((400,), 7), scale)
    torch.testing.assert_close(logprob.double(), exact, atol=5e-7, rtol=1e-4)


def test_rows_do_not_depend_on_each_other_threads_or_strides(level: str, two_threads: None) -> None:
    logits, target, scale = problem((9, 20000), torch.bfloat16)
    together = logits_logprob(logits, target, scale)
    torch.set_num_threads(1)
    apart = torch.zeros(18, 20003, dtype=torch.bfloat16)[::2, 3:].copy_(logits)
    columns = torch.zeros(20000, 9, dtype=torch.bfloat16).T.copy_(logits)
    for other in (apart, columns):
        for got, expected in zip(logits_logprob(other, target, scale), together, strict=True):
            assert torch.equal(got, expected)
    for got, expected in zip(logits_logprob(logits[4:5], target[4:5], scale[4:5]), together, strict=True):
        assert torch.equal(got, expected[4:5])


def test_nan_is_not_hidden(implementation: str) -> None:
    logits, target, scale = problem((2, 151), torch.float32)
    logits[1, 5] = float("nan")
    for values in run(implementation, logits, target, scale):
        assert values.isnan().tolist() == [False, True]


def gradient(logits: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    results = logits_logprob(logits, target, scale)
    tokens = logits.shape[0]
    factors = [torch.linspace(-1, 2, tokens), torch.linspace(0.5, -0.2, tokens), torch.full((tokens,), 0.1)]
    loss = sum((values * factor).sum() for values, factor in zip(results, factors, strict=True))
    assert isinstance(loss, Tensor)
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 4e-3), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(1, 151), (15, 257), (3, 16400)])
def test_gradient(
    level: str, shape: tuple[int, int], dtype: torch.dtype, bound: float, poisoned: None
) -> None:
    logits, target, scale = problem(shape, dtype)
    got, exact = gradient(logits, target, scale), gradient(logits.double(), target, scale)
    assert got.dtype == dtype
    assert (got.double() - exact).norm() <= bound * exact.norm()


def test_gradient_with_impossible_logits(level: str) -> None:
    logits, target, scale = problem((2, 40), torch.float32)
    logits[:, 30:] = -torch.inf
    target %= 30
    got, exact = gradient(logits, target, scale), gradient(logits[:, :30].double(), target, scale)
    assert torch.equal(got[:, 30:], torch.zeros(2, 10))
    torch.testing.assert_close(got[:, :30].double(), exact, atol=1e-6, rtol=1e-4)


def statistics_of(implementation: str, logits: Tensor, target: Tensor, scale: Tensor, factors: Tensor) -> Tensor:
    logprob, entropy, lse = run(implementation, logits, target, scale)
    return torch.stack([scale, lse, entropy, logprob, *factors])


def run_gradient(implementation: str, *arguments: Tensor) -> Tensor:
    by_kernel: Callable[..., Tensor] = torch.ops.perilune.logits_gradient
    return (logits_gradient_reference if implementation == "reference" else by_kernel)(*arguments)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_an_impossible_target(implementation: str, dtype: torch.dtype) -> None:
    """Its own logit takes the whole upstream gradient, for p = 0; a token left out of the loss takes nothing."""
    logits, _, scale = problem((3, 40), dtype)
    logits[:, 30:] = -torch.inf
    target, factors = torch.tensor([35, 35, 3]), torch.randn(3, 3)
    factors[:, 1] = 0
    statistics = statistics_of(implementation, logits, target, scale, factors)
    assert statistics[3].isinf().tolist() == [True, True, False]
    got = run_gradient(implementation, logits, target, statistics)
    wide = logits[:, :30].double().requires_grad_()
    logprobs = (wide * scale.double()[:, None]).log_softmax(-1)
    # The log-probability of an impossible target falls with the log-normaliser alone.
    lse = (wide * scale.double()[:, None]).logsumexp(-1)
    chosen = torch.stack([-lse[0], -lse[1], logprobs[2, 3]])
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    loss = (torch.stack([chosen, entropy, lse]) * factors.double()).sum()
    (exact,) = torch.autograd.grad(loss, wide)
    bound = 2.0**-8 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(got[:, :30].double(), exact, atol=1e-5, rtol=bound)
    torch.testing.assert_close(got[0, 35].float(), scale[0] * factors[0, 0], atol=0, rtol=bound)
    got[0, 35] = 0
    assert got[1].count_nonzero() == 0
    assert got[:, 30:].count_nonzero() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_with_a_finite_mask(implementation: str, dtype: torch.dtype) -> None:
    """The least finite number overflows once it is scaled, and so does a large gradient of the entropy times it."""
    logits, target, _ = problem((4, 300), dtype)
    logits[:, 200:] = torch.finfo(dtype).min
    target, scale, factors = target % 200, torch.tensor([1.4, 1.0, 1.4, 0.3]), torch.randn(3, 4)
    factors[1] = torch.tensor([0.1, 8.0, -30.0, 8.0])
    got = run_gradient(implementation, logits, target, statistics_of(implementation, logits, target, scale, factors))
    wide = logits[:, :200].double().requires_grad_()
    loss = (torch.stack(logits_logprob_reference(wide, target, scale)) * factors.double()).sum()
    (exact,) = torch.autograd.grad(loss, wide)
    assert got[:, 200:].count_nonzero() == 0
    assert (got[:, :200].double() - exact).norm() <= (4e-3 if dtype == torch.bfloat16 else 1e-5) * exact.norm()


def test_there_is_no_second_gradient(level: str) -> None:
    logits, target, scale = problem((2, 40), torch.float32)
    logits.requires_grad_()
    with pytest.raises(RuntimeError, match="logits_logprob is differentiable once"):
        torch.autograd.grad(logits_logprob(logits, target, scale)[0].sum(), logits, create_graph=True)


def test_gradient_equals_its_reference(level: str) -> None:
    logits, target, scale = problem((7, 157), torch.float32)
    logprob, entropy, lse = logits_logprob(logits, target, scale)
    statistics = torch.stack([scale, lse, entropy, logprob, *torch.randn(3, 7)])
    got = torch.ops.perilune.logits_gradient(logits, target, statistics)
    expected = logits_gradient_reference(logits, target, statistics)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-5)


def test_gradient_of_a_certain_token_keeps_its_digits(level: str) -> None:
    """Probability 0.999 at logit 107: one ulp of the log-normaliser would already cost 0.8 percent."""
    logits = torch.tensor([[107.0, 100.0, 100.0]], requires_grad=True)
    target, scale = torch.zeros(1, dtype=torch.int64), torch.ones(1)
    (got,) = torch.autograd.grad(logits_logprob(logits, target, scale)[0].sum(), logits)
    wide = logits.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(logits_logprob(wide, target, scale)[0].sum(), wide)
    torch.testing.assert_close(got[0, 0].double(), exact[0, 0], rtol=2e-4, atol=0)


def test_half_precision_is_scored_by_the_reference() -> None:
    logits, target, scale = problem((3, 40), torch.float32)
    half = logits.half()
    for got, expected in zip(logits_logprob(half, target, scale), truth(half, target, scale), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


def test_gradcheck_float64() -> None:
    logits = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    rest = torch.tensor([0, 8, 3, 3]), torch.ones(1)
    assert torch.autograd.gradcheck(lambda z: logits_logprob(z, *rest), (logits,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    logits, target, scale = problem((5, 40), dtype)
    tolerance = {"atol": 1e-2, "rtol": 1e-2} if dtype == torch.bfloat16 else {}
    arguments = logits.requires_grad_(), target, scale
    torch.library.opcheck(torch.ops.perilune.logits_logprob.default, arguments, **tolerance)
    statistics = torch.rand(7, 5)
    torch.library.opcheck(
        torch.ops.perilune.logits_gradient.default, (logits.detach(), target, statistics), **tolerance
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logits": torch.zeros(5)}, r"logits: expected \[T, V\] floating point, got \[5\] float32"),
        ({"logits": torch.zeros(5, 40, dtype=torch.int64)}, "logits: expected .* int64"),
        ({"logits": torch.zeros(5, 0)}, r"logits: expected \[T, V\] floating point, got \[5, 0\]"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, r"target: expected \[5\] int64, got \[4\] int64"),
        ({"target": torch.full((5,), 40)}, r"target: expected values in 0\.\.39, got .*40"),
        ({"target": torch.full((5,), -1)}, r"target: expected values in 0\.\.39, got -1"),
        ({"inverse_temperature": torch.ones(3)}, r"inverse_temperature: expected \[5\] or \[1\]"),
        *(({"inverse_temperature": torch.tensor([bad]), "logits": torch.zeros(5, 40, dtype=dtype)},
           f"inverse_temperature: expected finite values of at least 0, got {bad}")
          for bad in (-0.5, float("inf"), float("nan")) for dtype in (torch.float32, torch.float64)),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], said: str) -> None:
    names = ("logits", "target", "inverse_temperature")
    arguments = dict(zip(names, problem((5, 40), torch.float32), strict=True)) | change
    with pytest.raises(ValueError, match=said):
        logits_logprob(**arguments)
