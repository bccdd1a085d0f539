"""Evaluation of one version on held-out prompts: what to ask a sampler, and what its answers say.

Pure functions. Every prompt gets one greedy answer and, where asked for, k sampled ones. Their ids are
negative, so they meet no trajectory of the run, and stand for the same (prompt, sample) at every version:
the answers of two versions are drawn from the same random streams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.config.rollout import RolloutConfig
from engine.errors import RecordError
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Outcome, Verdict
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, Request

FIRST_ID = -1


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What one version can do. A mean over nothing is NaN."""

    version: PolicyVersion
    """The weights that gave every answer."""
    accuracy: float
    """Share of prompts whose greedy answer is correct: greedy pass@1."""
    mean_at_k: float
    """Mean correctness of the sampled answers, over the prompts."""
    pass_at_k: float
    """Chance that one of k sampled answers is correct, over the prompts."""
    k: int
    """Sampled answers that pass@k looks at; 0: there are none."""
    length_mean_tokens: float
    """Mean length of the greedy answers, in sampled tokens."""
    truncated_fraction: float
    """Share of the greedy answers that hit the length limit."""
    unjudged: int
    """Answers, greedy and sampled, whose judge failed; they are part of no mean of correctness."""
    examples: tuple[tuple[str, str, bool], ...]
    """(question, greedy answer, correct) of the first prompts."""


def answer_id(prompt_index: int, sample: int, samples: int, first_id: int = FIRST_ID) -> int:
    """The negative id of an answer; ``sample`` 0 is the greedy one, 1..samples are sampled.

    Counts down, the answers to one prompt side by side.

    Example:
        >>> [answer_id(index, sample, samples=1) for index in (0, 1) for sample in (0, 1)]
        [-1, -2, -3, -4]
    """
    assert first_id < 0, f"evaluation ids are negative, got first_id={first_id}"
    assert 0 <= sample <= samples, f"sample {sample} of {samples}"
    return first_id - (prompt_index * (samples + 1) + sample)


def evaluation_requests(
    prompt_tokens: Sequence[NDArray[np.int32]],
    rollout: RolloutConfig,
    samples: int,
    temperature: float,
    first_id: int = FIRST_ID,
) -> list[Request]:
    """For each prompt one greedy request, then ``samples`` sampled ones; none is ever cut.

    Args:
        prompt_tokens: P rendered prompts, [T] each.
        rollout: for the length limit.
        samples: further answers per prompt at ``temperature``.
        temperature: above 0, where ``samples`` is.
        first_id: largest id, below 0; see :func:`answer_id`.
    """
    assert samples == 0 or temperature > 0.0, f"samples at temperature {temperature} are all the greedy one"
    return [
        Request(
            trajectory_id=answer_id(index, sample, samples, first_id),
            attempt=0,
            prompt_tokens=tokens,
            generated=np.zeros(0, np.int32),
            max_response_tokens=rollout.max_response_tokens,
            temperature=temperature if sample else 0.0,
        )
        for index, tokens in enumerate(prompt_tokens)
        for sample in range(samples + 1)
    ]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased chance that one of k answers is correct: 1 - C(n - c, k) / C(n, k), 1 <= k <= n.

    Codex (arXiv 2107.03374, eq. 1), for ``samples`` n answers to one prompt of which ``correct`` c are.

    Example:
        >>> pass_at_k(samples=4, correct=1, k=2)
        0.5
    """
    assert 1 <= k <= samples, f"pass@{k} needs at least {k} answers, got {samples}"
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def score(
    prompts: Sequence[Prompt],
    deliveries: Mapping[int, Delivery],
    verdicts: Mapping[int, Verdict],
    *,
    version: PolicyVersion,
    samples: int,
    decode: Callable[[NDArray[np.int32]], str],
    k: int | None = None,
    first_id: int = FIRST_ID,
    max_examples: int = 8,
) -> EvaluationResult:
    """Put the answers to :func:`evaluation_requests` together.

    Args:
        prompts: P of them, in the order of the requests.
        deliveries: by id, finished.
        verdicts: by id. An outcome other than ok is no judgement: left out of the means and counted.
        version: that was evaluated.
        samples: as asked for.
        decode: token ids to text, for the examples.
        k: of pass@k; None: ``samples``. A prompt with fewer judged samples is no part of pass@k.
        first_id: as asked for.
        max_examples: examples kept.

    Raises:
        RecordError: an answer or verdict is missing, unfinished, or from another version.
    """
    ids = [[answer_id(i, s, samples, first_id) for s in range(samples + 1)] for i in range(len(prompts))]
    everything = [key for row in ids for key in row]
    _check(everything, deliveries, verdicts, version)
    judged = {key: verdicts[key].correct for key in everything if verdicts[key].outcome is Outcome.ok}
    sampled = [[judged[key] for key in row[1:] if key in judged] for row in ids]
    k = samples if k is None else k
    greedy = [deliveries[row[0]] for row in ids]
    return EvaluationResult(
        version=version,
        accuracy=_mean([judged[row[0]] for row in ids if row[0] in judged]),
        mean_at_k=_mean([_mean(row) for row in sampled if row]),
        pass_at_k=_mean([pass_at_k(len(row), sum(row), k) for row in sampled if 1 <= k <= len(row)]),
        k=k,
        length_mean_tokens=_mean([sum(s.num_sampled for s in one.segments) for one in greedy]),
        truncated_fraction=_mean([one.finish_reason is FinishReason.length for one in greedy]),
        unjudged=len(everything) - len(judged),
        examples=tuple(
            (prompt.messages[-1].content, decode(_tokens(answer)), judged.get(row[0], False))
            for prompt, row, answer in list(zip(prompts, ids, greedy, strict=True))[:max_examples]
        ),
    )


def _check(ids: Sequence[int], deliveries: Mapping[int, Delivery], verdicts: Mapping[int, Verdict],
           version: PolicyVersion) -> None:
    missing = [key for key in ids if key not in deliveries or key not in verdicts]
    if missing:
        raise RecordError(
            f"evaluation of {version} lacks answers or verdicts {missing[:8]} ({len(missing)} in all): "
            "every request needs one of each before it is scored"
        )
    for key in ids:
        if deliveries[key].finish_reason is None:
            raise RecordError(f"evaluation answer {key} was cut: let it finish before it is scored")
        other = {segment.version for segment in deliveries[key].segments} - {version}
        if other:
            raise RecordError(
                f"evaluation answer {key} holds tokens of {', '.join(map(str, sorted(other)))}, expected "
                f"{version} alone: an evaluation is pinned to one version"
            )


def _tokens(answer: Delivery) -> NDArray[np.int32]:
    return np.concatenate([np.zeros(0, np.int32), *(segment.token_ids for segment in answer.segments)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
