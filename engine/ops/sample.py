"""Draw tokens with counter-based randomness, and their log-probabilities, straight from hidden states.

In naive torch::

    logits = (hidden.float() @ weight.float().T) / temperature[:, None]
    token = (logits - torch.log(-torch.log1p(-uniform(key, position)))).argmax(-1)
    logprob = logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]

The uniform of (key, position, vocabulary index v) is word v % 4 of Philox4x32-10 (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011) under the two halves of the key, at the counter
(v // 4, low position, high position, 0). A word w stands for x = w * 2^-32 + 2^-33 in fp32, at most
1 - 2^-24: Gumbel noise is -log(-log(1 - x)), so its upper tail, which decides, is the finely resolved one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.ops.arguments import expect, expect_device
from engine.ops.extension import register
from engine.ops.token_logprob import check_head, token_logprob_reference

_WORD = 0xFFFFFFFF
_LONG = 0xFFFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15
_LARGEST = 1.0 - 2.0**-24


def sample(
    hidden: Tensor, weight: Tensor, temperature: Tensor, key: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw one token for each row from softmax(hidden @ weight.T / temperature).

    The draw of a row depends on its own hidden state, key and position alone. Its log-probability equals,
    bit for bit, what ``token_logprob`` says of the same token, hidden state and 1 / temperature.

    Args:
        hidden: [T, D] bfloat16 or float32 (float64: by the reference).
        weight: [V, D], same dtype: the output head.
        temperature: [T] float32, >= 0. At 0 the row takes the largest logit (lowest index on ties) and its
            log-probability under temperature 1.
        key: [T] int64, see :func:`random_key`.
        position: [T] int64: how many tokens the trajectory sampled before.

    Returns:
        token [T] int64, logprob [T] float32 in nats, NaN where a logit of the row is NaN.

    Raises:
        ValueError: an argument has the wrong shape, dtype or range.
    """
    check_head(hidden, weight)
    tokens = hidden.shape[0]
    for name, value, dtype in (
        ("temperature", temperature, torch.float32),
        ("key", key, torch.int64),
        ("position", position, torch.int64),
    ):
        expect(value.shape == (tokens,) and value.dtype == dtype, name, f"[{tokens}] {dtype}", value)
    expect_device(hidden, temperature=temperature, key=key, position=position)
    if hidden.dtype == torch.float64:
        return sample_reference(hidden, weight, temperature, key, position)
    result: tuple[Tensor, Tensor] = _op(hidden, weight, temperature, key, position)
    return result


def random_key(seed: int, trajectory_id: int, attempt: int) -> int:
    """The key of one attempt at one trajectory: a signed 64-bit mix of the three numbers.

    Each goes through the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) on top of the last.

    Example:
        >>> random_key(0, 1, 0) != random_key(0, 0, 1)
        True
    """
    state = 0
    for number in (seed, trajectory_id, attempt):
        state = (state ^ (number & _LONG)) + _GOLDEN & _LONG
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _LONG
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _LONG
        state ^= state >> 31
    return state - (1 << 64) if state >> 63 else state


def philox_words(key: Tensor, position: Tensor, vocabulary: int) -> Tensor:
    """Random words [T, V] in 0..2^32-1, as int64, of keys [T] and positions [T] int64."""
    blocks = torch.arange((vocabulary + 3) // 4, device=key.device)
    shape = (key.shape[0], blocks.shape[0])
    counter = [
        blocks.expand(shape),
        (position & _WORD)[:, None].expand(shape),
        (position >> 32 & _WORD)[:, None].expand(shape),
        torch.zeros(shape, dtype=torch.int64, device=key.device),
    ]
    low, high = (key & _WORD)[:, None], (key >> 32 & _WORD)[:, None]
    for _ in range(10):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (second >> 32 & _WORD) ^ counter[1] ^ low,
            second & _WORD,
            (first >> 32 & _WORD) ^ counter[3] ^ high,
            first & _WORD,
        ]
        low, high = low + 0x9E3779B9 & _WORD, high + 0xBB67AE85 & _WORD
    return torch.stack(counter, -1).flatten(1)[:, :vocabulary]


def gumbel_noise(key: Tensor, position: Tensor, vocabulary: int) -> Tensor:
    """Gumbel noise [T, V] float64 of keys [T] and positions [T] int64."""
    words = philox_words(key, position, vocabulary).float()
    complement = (words * 2.0**-32 + 2.0**-33).clamp(max=_LARGEST)
    return -torch.log(-torch.log1p(-complement.double()))


def sample_reference(
    hidden: Tensor, weight: Tensor, temperature: Tensor, key: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """The readable :func:`sample`."""
    expect(bool((temperature >= 0).all()), "temperature", "values >= 0", temperature)
    greedy = temperature == 0
    scale = torch.where(greedy, torch.ones_like(temperature), 1.0 / temperature)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = (hidden.to(wide) @ weight.to(wide).T) * scale[:, None].to(wide)
    noise = gumbel_noise(key, position, weight.shape[0]).masked_fill(greedy[:, None], 0.0)
    token = (logits.double() + noise).argmax(-1)
    logprob, _, _ = token_logprob_reference(hidden, weight, token, scale, want_entropy=False)
    return token, logprob


def _fake(
    hidden: Tensor, weight: Tensor, temperature: Tensor, key: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(key), torch.empty_like(temperature)


_op = register(
    "sample",
    "(Tensor hidden, Tensor weight, Tensor temperature, Tensor key, Tensor position) -> (Tensor, Tensor)",
    sample_reference,
    _fake,
)
