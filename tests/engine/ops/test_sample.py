from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.ops.sample import gumbel_noise, philox_words, random_key, sample, sample_reference
from engine.ops.token_logprob import token_logprob, token_logprob_reference


def problem(tokens: int, vocabulary: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    hidden = torch.randn(tokens, width).to(dtype)
    weight = (torch.randn(vocabulary, width) * 3 / width**0.5).to(dtype)
    temperature = torch.rand(tokens) + 0.5
    temperature[::5] = 0
    key = torch.tensor([random_key(5, t, 0) for t in range(tokens)], dtype=torch.int64)
    return hidden, weight, temperature, key, torch.randint(0, 1 << 34, (tokens,))


def run(implementation: str, *arguments: Tensor) -> tuple[Tensor, Tensor]:
    return (sample_reference if implementation == "reference" else sample)(*arguments)


def test_philox_known_answers() -> None:
    """The test vectors that its authors publish with Random123."""
    zero, ones = torch.zeros(1, dtype=torch.int64), torch.full((1,), -1)
    assert [hex(w) for w in philox_words(zero, zero, 4)[0]] == [
        "0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8",
    ]  # fmt: skip
    words = philox_words(ones, zero, 7)
    assert words.shape == (1, 7)
    assert torch.equal(words[0, :4], philox_words(ones, zero, 4)[0])
    assert bool((words >= 0).all() and (words < 2**32).all())
    assert not torch.equal(words, philox_words(ones, zero + (1 << 32), 7))


def test_random_key_separates_its_numbers() -> None:
    keys = {random_key(s, t, a) for s in range(8) for t in range(8) for a in range(8)}
    assert len(keys) == 512
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert random_key(1, 2, 3) == random_key(1, 2, 3)


def test_gumbel_noise_has_its_moments() -> None:
    noise = gumbel_noise(torch.arange(100), torch.arange(100), 1000)
    assert noise.isfinite().all()
    assert abs(noise.mean().item() - 0.5772) < 0.02
    assert abs(noise.std().item() - 1.2825) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 151, 64), (33, 1000, 96), (17, 2077, 100)])
def test_draws_the_tokens_of_the_reference(
    level: str, shape: tuple[int, int, int], dtype: torch.dtype, poisoned: None
) -> None:
    arguments = problem(*shape, dtype)
    token, logprob = sample(*arguments)
    expected, near = sample_reference(
        *(a.double() if a.dtype == dtype else a for a in arguments[:2]), *arguments[2:]
    )
    assert torch.equal(token, expected)
    # Tensor cores cut off what they add.
    bound = 5e-5 if level == "cuda" and dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(logprob, near.float(), atol=bound, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprob_is_that_of_token_logprob(implementation: str, dtype: torch.dtype) -> None:
    arguments = problem(33, 2077, 96, dtype)
    token, logprob = run(implementation, *arguments)
    hidden, weight, temperature = arguments[:3]
    scale = torch.where(temperature == 0, torch.ones(33), 1.0 / temperature)
    score = token_logprob_reference if implementation == "reference" else token_logprob
    assert torch.equal(logprob, score(hidden, weight, token, scale)[0])


def test_greedy_takes_the_first_of_the_largest(implementation: str) -> None:
    hidden = torch.ones(2, 32)
    weight = torch.zeros(2077, 32)
    weight[[70, 71, 1500]] = 1.0
    nothing = torch.zeros(2, dtype=torch.int64)
    token, logprob = run(implementation, hidden, weight, torch.zeros(2), nothing, nothing)
    assert token.tolist() == [70, 70]
    exact = (hidden.double() @ weight.double().T).log_softmax(-1)[:, 70]
    torch.testing.assert_close(logprob.double(), exact, atol=1e-5, rtol=0)


def test_follows_the_distribution(implementation: str) -> None:
    """Chi-square with 6 degrees of freedom; 22.5 is its 99.9th percentile, the draws are fixed."""
    draws = 4000
    weight = torch.randn(7, 4)
    hidden = torch.randn(1, 4).expand(draws, 4)
    temperature = torch.full((draws,), 0.7)
    key = torch.tensor([random_key(3, t, 0) for t in range(draws // 8)], dtype=torch.int64)
    key = key.repeat_interleave(8)
    position = torch.arange(8).repeat(draws // 8)
    token, _ = run(implementation, hidden, weight, temperature, key, position)
    expected = ((hidden[0] @ weight.T) / 0.7).softmax(-1) * draws
    statistic = ((token.bincount(minlength=7) - expected) ** 2 / expected).sum()
    assert statistic < 22.5


def test_draw_does_not_depend_on_neighbours_or_threads(level: str, two_threads: None) -> None:
    arguments = problem(64, 2077, 96, torch.bfloat16)
    token, logprob = sample(*arguments)
    torch.set_num_threads(1)
    hidden, weight, *rest = arguments
    order = torch.randperm(64)
    moved = sample(hidden[order], weight, *(values[order] for values in rest))
    assert torch.equal(moved[0], token[order])
    assert torch.equal(moved[1], logprob[order])
    alone = sample(hidden[7:8], weight, *(values[7:8] for values in rest))
    assert alone[0].item() == token[7]
    assert alone[1].item() == logprob[7]


def test_key_and_position_choose_the_noise(implementation: str) -> None:
    weight, hidden = torch.zeros(1000, 32), torch.zeros(3, 32)
    key = torch.tensor([4, 4, 5])
    position = torch.tensor([0, 1, 0])
    token, _ = run(implementation, hidden, weight, torch.ones(3), key, position)
    assert len(set(token.tolist())) == 3


def test_nan_logits_give_a_nan_logprob(implementation: str) -> None:
    arguments = problem(3, 151, 32, torch.float32)
    arguments[0][1, 0] = float("nan")
    token, logprob = run(implementation, *arguments)
    assert logprob.isnan().tolist() == [False, True, False]
    assert 0 <= token[1] < 151


def test_no_rows(implementation: str) -> None:
    token, logprob = run(implementation, *problem(0, 151, 32, torch.float32))
    assert token.shape == logprob.shape == (0,)


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.perilune.sample.default, problem(5, 40, 32, torch.float32))


@pytest.mark.parametrize(
    ("index", "value", "said"),
    [
        (0, torch.zeros(5, 0), r"hidden: expected a width D above 0, got \[5, 0\] float32"),
        (2, torch.ones(4), r"temperature: expected \[5\] torch.float32, got \[4\] float32"),
        (2, torch.full((5,), -1.0), "temperature: expected values >= 0"),
        (3, torch.zeros(5), r"key: expected \[5\] torch.int64, got \[5\] float32"),
        (4, torch.zeros(5, 1, dtype=torch.int64), r"position: expected \[5\] torch.int64, got \[5, 1\]"),
    ],
)
def test_bad_input_is_named(index: int, value: Tensor, said: str) -> None:
    arguments = list(problem(5, 40, 32, torch.float32))
    arguments[index] = value
    with pytest.raises(ValueError, match=said):
        sample(*arguments)
