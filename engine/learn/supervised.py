"""Supervised fine-tuning on written traces: the warm-up before reinforcement learning.

Kimi k1.5 (arXiv 2501.12599, section 2.2) starts from a small set of long chains of thought; here the same
is done with traces written for the tasks of the run, so that the policy knows the format it is judged by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.config.learning import OptimiserConfig, Schedule
from engine.config.model import WarmupConfig
from engine.config.rollout import Precision
from engine.errors import NonFiniteError, PromptError
from engine.learn.forward import score_row
from engine.learn.optimiser import MasterOptimiser
from engine.learn.packing import Sample, pack
from engine.losses.likelihood import negative_log_likelihood
from engine.models.policy import DTYPES
from engine.models.tokenizer import PolicyTokenizer
from engine.records.prompt import Prompt

WARMUP_FRACTION = 0.1
"""Share of the steps in which the learning rate rises to its peak."""

_BETA2 = 0.95
"""Adam's memory of squared gradients: some twenty steps, since there are only hundreds."""


def supervised_steps(
    network: Any,
    tokenizer: PolicyTokenizer,
    traces: Sequence[tuple[Prompt, str]],
    config: WarmupConfig,
    row_tokens: int,
    precision: Precision,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Fit the traces: rendered prompt, text and end token, with loss on text and end token.

    Batches walk through reshuffled epochs of the traces, drawn from ``config.seed`` alone, so equal
    arguments give equal weights. The learning rate rises over the first tenth of the steps and falls to 0
    along a cosine.

    Args:
        network: from ``engine.models.policy``; trained in place, its weights converted to ``precision``.
        tokenizer: of that network.
        traces: prompts with the text to be answered.
        config: steps, batch size, learning rate and seed.
        row_tokens: token budget of a packed row.
        precision: type of forward and backward; master weights are fp32.
        progress: told (steps done, loss of the last one).

    Returns:
        The mean negative log-likelihood of each step, nats a token, before the step.

    Raises:
        PromptError: there is no trace to fit.
        NonFiniteError: a loss or gradient is not finite.
    """
    if config.steps and not traces:
        raise PromptError("supervised warm-up has no traces: give at least one, or model.warmup.steps=0")
    _convert(network, DTYPES[precision])
    optimiser = MasterOptimiser(network, _optimiser_config(config), config.steps)
    samples: dict[int, Sample] = {}
    losses = []
    for step, batch in zip(range(config.steps), _batches(len(traces), config), strict=False):
        for index in batch:
            if index not in samples:
                samples[index] = _sample(tokenizer, *traces[index], group=index)
        losses.append(_step(network, optimiser, [samples[index] for index in batch], row_tokens, step))
        if progress is not None:
            progress(step + 1, losses[-1])
    return losses


def _optimiser_config(config: WarmupConfig) -> OptimiserConfig:
    return OptimiserConfig(
        learning_rate=config.learning_rate,
        schedule=Schedule.cosine,
        warmup_steps=math.ceil(WARMUP_FRACTION * config.steps),
        beta2=_BETA2,
    )


@torch.no_grad()
def _convert(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Parameters only: ``network.to`` would round the buffers of the rotary embedding as well."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)


def _batches(traces: int, config: WarmupConfig) -> Iterator[list[int]]:
    """Endless batches of trace numbers; every trace comes once before any comes again."""
    draw = np.random.default_rng(config.seed)
    queue: list[int] = []
    while True:
        while len(queue) < config.batch_size:
            queue += draw.permutation(traces).tolist()
        yield queue[: config.batch_size]
        del queue[: config.batch_size]


def _sample(tokenizer: PolicyTokenizer, prompt: Prompt, text: str, group: int) -> Sample:
    response: NDArray[np.int32] = np.append(tokenizer.encode(text), np.int32(tokenizer.end_id))
    size = len(response)
    return Sample(
        prompt_tokens=tokenizer.render(prompt),
        response=response,
        carries_loss=np.ones(size, bool),
        behaviour_logprob=np.zeros(size, np.float32),
        inverse_temperature=np.ones(size, np.float32),
        group=group,
    )


def _step(network: Any, optimiser: MasterOptimiser, batch: Sequence[Sample], row_tokens: int,
          step: int) -> float:
    """One optimiser step; the loss before it, in nats a token."""
    tokens = sum(len(sample.response) for sample in batch)
    total = 0.0
    for row in pack(batch, row_tokens, share_prompts=False):
        loss = negative_log_likelihood(score_row(network, row)[0], tokens)
        loss.backward()
        optimiser.collect()
        total += float(loss.detach())
    norm = optimiser.step()
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise NonFiniteError(
            f"step {step + 1} of the supervised warm-up has loss {total} and gradient norm {norm}: lower "
            "model.warmup.learning_rate, or set learning.precision=float32"
        )
    return total
