"""Sample, learn one step, swap: the loop in one process, beside TRL's GRPOTrainer.

Both sides answer the same prompts with responses of one fixed length, at temperature 1 and in bf16, and make
one AdamW step of the clipped loss over all of them; rewards are random, so every response has an advantage.
TRL keeps bf16 weights; here master weights and gradient sums are fp32 besides. What is counted is samples
per second over the whole update.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import tempfile
from contextlib import ExitStack, closing
from itertools import count
from typing import Any

import numpy as np

from engine.config.learning import ClippedConfig, LearningConfig, OptimiserConfig
from engine.config.rollout import RolloutConfig
from engine.config.run import RunConfig
from engine.config.schedule import InFlight
from engine.learn.step import LearnerCore
from engine.records.trajectory import Group, Trajectory, Verdict
from engine.records.work import Delivery
from tools.bench.child import Child
from tools.bench.subject import Subject, drain, requests, weights_of
from tools.bench.timing import Side, seconds_of, spread, take_turns
from tools.bench.trl_child import Job

_DEADLINE_S = 1800.0


class Loop:
    """Our side: a sampler and a learner that share one process."""

    def __init__(self, subject: Subject) -> None:
        amounts = subject.amounts
        self.num_samples = amounts.prompts * amounts.samples
        config = RunConfig(
            rollout=RolloutConfig(samples_per_prompt=amounts.samples),
            loss=ClippedConfig(normalise_std=True),
            learning=LearningConfig(optimiser=OptimiserConfig(learning_rate=1e-6)),
        )
        network = subject.network()
        self.core = LearnerCore(network, config)
        self.sampler = subject.sampler(network, self.num_samples, amounts.update_tokens)
        self._subject = subject
        self._ids = count(step=self.num_samples)
        self._random = np.random.default_rng(0)

    def update(self) -> None:
        """Sample a batch, learn from it, serve what was learned."""
        amounts, first = self._subject.amounts, next(self._ids)
        prompts = self._subject.tokens[: amounts.prompts]
        each = [tokens for tokens in prompts for _ in range(amounts.samples)]
        self.sampler.submit(requests(each, first, amounts.update_tokens))
        deliveries = sorted(drain(self.sampler), key=lambda delivery: delivery.trajectory_id)
        report = self.core.update([self._group(index, deliveries) for index in range(amounts.prompts)])
        assert report.carried_tokens == self.num_samples * amounts.update_tokens, "some work was skipped"
        self.sampler.swap(weights_of(self.core.network, self.core.version), InFlight.finish)

    def _group(self, index: int, deliveries: list[Delivery]) -> Group:
        size = self._subject.amounts.samples
        name = f"prompt-{index}"
        members = tuple(
            Trajectory(d.trajectory_id, index, name, 0, d.segments, d.finish_reason)
            for d in deliveries[index * size : (index + 1) * size]
        )
        verdicts = tuple(Verdict(float(self._random.normal()), False, "random", "bench") for _ in members)
        return Group(index, name, self._subject.tokens[index], members, verdicts)


def trl_side(subject: Subject, steps: int, rows: int, scratch: str) -> Child:
    """TRL in a process of its own, which makes at most ``steps`` updates and may write to ``scratch``."""
    amounts = subject.amounts
    chats = [subject.chat(index) for _ in range(steps) for index in range(amounts.prompts)]
    job = Job(str(subject.folder), chats, amounts.prompts, amounts.samples, amounts.update_tokens,
              min(rows, amounts.prompts * amounts.samples), subject.threads, scratch)
    command = [sys.executable, "-m", "tools.bench.trl_child", json.dumps(dataclasses.asdict(job))]
    return Child("trl", command, _DEADLINE_S)


def _trl_seconds(child: Child, response_tokens: int) -> float:
    answer = child.ask()
    assert answer["tokens"] > response_tokens, "TRL skipped some work"
    return float(answer["seconds"])


def measure(subject: Subject, repeats: int, rows: int) -> dict[str, Any]:
    """``ratio_samples_per_second_vs_trl``, None where TRL is not installed."""
    loop = Loop(subject)
    sides: dict[str, Side] = {"perilune": lambda: seconds_of(loop.update)}
    installed = importlib.util.find_spec("trl") is not None
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        if installed:
            child = stack.enter_context(closing(trl_side(subject, repeats + 1, rows, scratch)))
            sides["trl"] = lambda: _trl_seconds(child, loop.num_samples * subject.amounts.update_tokens)
        times = take_turns(sides, repeats)
    found: dict[str, Any] = {f"update_seconds_{name}": spread(values) for name, values in times.items()}
    for name in times:
        median = found[f"update_seconds_{name}"]["median"]
        found[f"samples_per_second_{name}"] = loop.num_samples / median
    found["ratio_samples_per_second_vs_trl"] = (
        found["samples_per_second_perilune"] / found["samples_per_second_trl"] if "trl" in times else None
    )
    if not installed:
        found["note_trl"] = "trl is not installed: pip install 'perilune[bench]'"
    return found
