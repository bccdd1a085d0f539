"""The learner's step: one packed row of 4,096 tokens forward and backward, and the optimiser.

Eight prompts with eight responses each, prompts shared, bf16 with fp32 master weights. Beside it the same step with
the readable references in place of the kernels (``reference``), and as a plain trainer writes it (``transformers``):
SDPA over padded rows with the prompt repeated, all logits, the same optimiser.

Operations are those of one multiplication forward and two backward by every weight of a linear map, of the head for the
tokens that carry loss; what a side makes twice, and attention, are not counted.
"""

from __future__ import annotations

from contextlib import closing
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.config.learning import LearningConfig, MirrorDescentConfig, OptimiserConfig
from engine.config.rollout import RolloutConfig
from engine.config.run import RunConfig
from engine.learn.optimiser import MasterOptimiser
from engine.learn.step import LearnerCore
from engine.records.trajectory import FinishReason, Group, Segment, Trajectory, Verdict
from tools.bench.reference_child import reference_side
from tools.bench.subject import Subject
from tools.bench.timing import Side, seconds_of, spread, take_turns

_PADDED_ROWS = 16
"""Of one micro-batch of the plain trainer."""


class LearnerStep:
    """The same groups at every step: random responses that fill one packed row."""

    def __init__(self, subject: Subject) -> None:
        amounts = subject.amounts
        self.prompts = subject.tokens[: amounts.prompts]
        self.samples, self.tokens = amounts.samples, amounts.learner_tokens
        self.carried = self.tokens - sum(len(prompt) for prompt in self.prompts)
        random = np.random.default_rng(0)
        count = len(self.prompts) * self.samples
        parts = np.array_split(random.integers(0, subject.tokenizer.end_id, self.carried).astype(np.int32), count)
        self.responses: list[NDArray[np.int32]] = list(parts)
        self._subject, self._random = subject, random

    @cached_property
    def core(self) -> LearnerCore:
        """Our learner."""
        config = RunConfig(
            rollout=RolloutConfig(samples_per_prompt=self.samples), loss=MirrorDescentConfig(),
            learning=LearningConfig(row_tokens=self.tokens, optimiser=OptimiserConfig(learning_rate=1e-6)),
        )
        return LearnerCore(self._subject.network(), config)

    def update(self) -> None:
        """One step of ours."""
        report = self.core.update([self._group(index) for index in range(len(self.prompts))])
        assert report.committed, "the step was not finite"
        assert report.carried_tokens == self.carried, "some work was skipped"

    def _group(self, index: int) -> Group:
        mine = range(index * self.samples, (index + 1) * self.samples)
        members = tuple(
            Trajectory(i, index, str(index), 0, (self._segment(self.responses[i]),), FinishReason.length) for i in mine
        )
        verdicts = tuple(Verdict(float(self._random.normal()), False, "random", "bench") for _ in members)
        return Group(index, str(index), self.prompts[index], members, verdicts)

    def _segment(self, tokens: NDArray[np.int32]) -> Segment:
        version, size = self.core.version, len(tokens)
        return Segment(tokens, np.ones(size, bool), np.full(size, -1.0, np.float32), version, 1.0, version)

    def operations(self) -> int:
        """Of one step, whoever makes it."""
        network = self.core.network
        head = network.get_output_embeddings()
        maps = [m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        return 6 * (sum(maps) * self.tokens + head.weight.numel() * self.carried)


class PlainTrainer:
    """The same loss over padded rows, through whatever transformers and autograd do."""

    def __init__(self, step: LearnerStep, subject: Subject) -> None:
        from transformers import AutoModelForCausalLM

        loader: Any = AutoModelForCausalLM
        self._network = loader.from_pretrained(subject.folder, dtype=torch.bfloat16, local_files_only=True).eval()
        self._optimiser = MasterOptimiser(self._network, OptimiserConfig(learning_rate=1e-6), 1000)
        self._rows = [np.concatenate([step.prompts[i // step.samples], answer]) for i, answer in
                      enumerate(step.responses)]
        self._prompts = [len(step.prompts[i // step.samples]) for i in range(len(self._rows))]
        self._advantages = torch.randn(len(self._rows)).tolist()

    def update(self) -> None:
        """One step."""
        for first in range(0, len(self._rows), _PADDED_ROWS):
            self._loss(range(first, min(first + _PADDED_ROWS, len(self._rows)))).backward()
            self._optimiser.collect()
        self._optimiser.step()

    def _loss(self, rows: range) -> Tensor:
        longest = max(len(self._rows[i]) for i in rows)
        ids, mask = torch.zeros(2, len(rows), longest, dtype=torch.int64).unbind()
        advantage = torch.zeros(len(rows), longest - 1)
        for at, i in enumerate(rows):
            size = len(self._rows[i])
            ids[at, :size], mask[at, :size] = torch.from_numpy(self._rows[i]), 1
            advantage[at, self._prompts[i] - 1 : size - 1] = self._advantages[i]
        logits = self._network(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        logprob = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        return -(advantage * logprob).sum() / len(self._rows)


def own_side(subject: Subject, repeats: int = 0, steps: int = 1) -> Side:
    """Seconds of one step of ours."""
    step = LearnerStep(subject)
    return lambda: seconds_of(step.update)


def measure(subject: Subject, repeats: int) -> dict[str, Any]:
    """Seconds of a step on every side, GFLOP/s, and how many times quicker ours is."""
    step = LearnerStep(subject)
    plain = PlainTrainer(step, subject)
    with closing(reference_side(subject, "learner")) as child:
        sides: dict[str, Side] = {
            "perilune": lambda: seconds_of(step.update), "transformers": lambda: seconds_of(plain.update),
            "reference": lambda: float(child.ask()["seconds"]),
        }
        times = take_turns(sides, repeats)
    found: dict[str, Any] = {"learner_step_tokens": step.tokens, "learner_step_gflop": step.operations() / 1e9}
    for name, values in times.items():
        found[f"learner_step_seconds_{name}"] = spread(values)
        found[f"learner_step_gflop_per_second_{name}"] = found["learner_step_gflop"] / spread(values)["median"]
    own = found["learner_step_seconds_perilune"]["median"]
    for name in ("transformers", "reference"):
        found[f"ratio_learner_step_vs_{name}"] = found[f"learner_step_seconds_{name}"]["median"] / own
    return found
