"""The ranks of a learner for ``tools.bench.learners``: rank 0 is asked, starts the others and tells them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch

from engine.config.learning import ClippedConfig, LearningConfig, OptimiserConfig
from engine.config.rollout import Precision, RolloutConfig
from engine.config.run import RunConfig
from engine.learn.step import LearnerCore
from engine.models.policy import DTYPES, load_network
from engine.models.ranks import ALONE, LOOPBACK, Ranks, Store, join
from engine.models.sharding import shard
from engine.records.trajectory import FinishReason, Group, Segment, Trajectory, Verdict
from engine.records.version import PolicyVersion
from tools.bench.child import Replies

_DEADLINE_S = 1800.0
_PROMPT_TOKENS = 48
_ROW_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Work:
    """What one process is told."""

    folder: str
    ranks: int
    threads: int
    prompts: int
    samples: int
    mean_tokens: int
    """Of a response."""
    rank: int = 0
    address: str = ""


def groups_of(work: Work, vocabulary: int) -> list[Group]:
    """Random groups with responses of many lengths, the same for every rank."""
    draw, version = np.random.default_rng(0), PolicyVersion(0, 0)
    lengths = np.maximum(draw.lognormal(np.log(work.mean_tokens), 0.7, (work.prompts, work.samples)), 1)
    groups = []
    for index, row in enumerate(lengths.astype(int)):
        members = []
        for number, length in enumerate(row):
            tokens = draw.integers(3, vocabulary, length).astype(np.int32)
            logprob = np.full(length, -np.log(vocabulary), np.float32)
            segment = Segment(tokens, np.ones(length, bool), logprob, version, 1.0, version)
            members.append(Trajectory(index * work.samples + number, index, f"p{index}", 0, (segment,),
                                      FinishReason.stop))
        verdicts = tuple(Verdict(float(draw.normal()), False, "random", "bench") for _ in members)
        prompt = draw.integers(3, vocabulary, _PROMPT_TOKENS).astype(np.int32)
        groups.append(Group(index, f"p{index}", prompt, tuple(members), verdicts))
    return groups


def core_of(work: Work, ranks: Ranks) -> LearnerCore:
    """A learner in bf16, or its share."""
    config = RunConfig(
        rollout=RolloutConfig(samples_per_prompt=work.samples),
        loss=ClippedConfig(normalise_std=True),
        learning=LearningConfig(optimiser=OptimiserConfig(learning_rate=1e-6), row_tokens=_ROW_TOKENS),
    )
    network = load_network(work.folder, Precision.bfloat16)
    return LearnerCore(shard(network, ranks, DTYPES[Precision.bfloat16]), config, None, ranks)


def update(core: LearnerCore, groups: list[Group]) -> dict[str, float]:
    """One update, its seconds and what the ranks say of it; the version stays, as the groups do."""
    began = time.perf_counter()
    report = core.update(groups)
    seconds = time.perf_counter() - began
    core.version = PolicyVersion(0, 0)
    shares = {key: value for key, value in report.metrics.items() if key.startswith("learn/rank_")}
    return {"seconds": seconds, "tokens": float(report.carried_tokens), **shares}


def follow(work: Work) -> None:
    """A rank that does what rank 0 is asked to do, until that one ends."""
    ranks = join(work.address, work.rank, work.ranks, _DEADLINE_S)
    core = core_of(work, ranks)
    groups = groups_of(work, core.network.config.vocab_size)
    while all(ranks.gather(True)):
        update(core, groups)


def lead(work: Work) -> None:
    """Rank 0: answers one repeat for each line."""
    replies = Replies()
    ranks, others = ALONE, []
    if work.ranks > 1:
        store = Store(LOOPBACK, work.ranks, _DEADLINE_S)
        for rank in range(1, work.ranks):
            told = json.dumps(dataclasses.asdict(dataclasses.replace(work, rank=rank, address=store.address)))
            others.append(subprocess.Popen([sys.executable, "-m", "tools.bench.learners_child", told]))
        ranks = join(store.address, 0, work.ranks, _DEADLINE_S, store=store)
    core = core_of(work, ranks)
    groups = groups_of(work, core.network.config.vocab_size)
    while True:
        replies.wait()
        ranks.gather(True)
        replies.send(update(core, groups))


def main() -> None:
    """As rank 0 or another one."""
    work = Work(**json.loads(sys.argv[1]))
    torch.set_num_threads(work.threads)
    (lead if work.rank == 0 else follow)(work)


if __name__ == "__main__":
    main()
