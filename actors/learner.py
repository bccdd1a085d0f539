"""The learner: shell of ``engine/learn`` and of the sending end of the weight channel.

Of several learners each is one rank. All are asked the same in the same order; rank 0 publishes and answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.learner_rank import LearnerRank, together
from actors.learner_state import read_core, write_core
from actors.object_store import open_object_store
from actors.rollouts import GroupLengths, history_of, lengths_of, read_rollouts, write_rollouts
from engine.config.run import RunConfig
from engine.faults import reach
from engine.learn.agreement import logprob_gap
from engine.models.policy import DTYPES, save_policy
from engine.models.tokenizer import PolicyTokenizer
from engine.records.manifest import Manifest
from engine.records.trajectory import Group
from engine.records.update import UpdateReport
from engine.records.version import PolicyVersion
from engine.records.work import Delivery
from engine.trace import recording, span
from engine.weights.channel import open_sender, weights_digest
from engine.weights.layout import take_part, whole_tensors


class Learner(LearnerRank):
    """Optimises the policy and publishes every version it commits."""

    def __init__(self, config: RunConfig, folder: str, run_id: str, dumps: str = "", kept: str = "",
                 rank: int = 0) -> None:
        """Load the policy; see :class:`LearnerRank`.

        Args:
            config: of the run.
            folder: Hugging Face folder of the first weights.
            run_id: names the weight channel.
            dumps: folder for consumed groups; empty: none are written.
            kept: folder for versions that are evaluated at the end; empty: none are kept.
            rank: among ``learning.num_learners``.
        """
        super().__init__(config, folder, rank, kept)
        self._tokenizer = PolicyTokenizer.from_folder(Path(folder))
        self._dumps = Path(dumps) if dumps and self.leads else None
        dtype = DTYPES[config.generator.precision]
        self._sender = open_sender(config.weights, run_id, dtype, open_object_store(config)) if self.leads else None
        reach(f"{self.name}.start")

    @together
    def publish(self, refused: PolicyVersion | None = None) -> Manifest | None:
        """Write the current weights into the channel; rank 0 describes them.

        Args:
            refused: by a generator, which asks for them once more; where newer weights stand nothing is written.
        """
        if refused not in (None, self.core.version):
            return None
        weights = self.weights()
        if self._sender is None:
            take_part(weights)
            return None
        self._sender.retire(self.core.version)
        manifest = self._sender.publish(weights, self.core.version)
        reach("learner.publish")
        return manifest

    @together
    def update(self, groups: Sequence[Group]) -> tuple[UpdateReport, Manifest | None]:
        """One update; a committed one is published at once."""
        if self._dumps is not None:
            write_rollouts(self._dumps, self.core.version.updates, groups)
        with recording(self.config.run.trace) as spans:
            report = self.core.update(groups)
            reach(f"{self.name}.update")
            if not report.committed:
                return replace(report, spans=tuple(spans)), None
            began = time.time()
            with span("publish"):
                manifest = self.publish()
            metrics = {**report.metrics, **self.metrics(), "publish/seconds": time.time() - began}
            self.keep_due()
        return replace(report, metrics=metrics, spans=tuple(spans)), manifest

    def record(self, batch: int, groups: Sequence[Group]) -> int:
        """Write down a batch instead of learning from it; returns its tokens."""
        assert self._dumps is not None, "who only samples has a folder for it"
        write_rollouts(self._dumps, batch, groups)
        return sum(trajectory.length for group in groups for trajectory in group.trajectories)

    def study(self, path: Path) -> tuple[list[GroupLengths], UpdateReport, Manifest | None]:
        """One update on recorded groups; also their ids, prompts and members with lengths."""
        groups = read_rollouts(path)
        self.core.version = history_of(groups, self.core.version)
        return lengths_of(groups), *self.update(groups)

    @together
    def logprob_gap(self, items: Sequence[tuple[NDArray[np.int32], Delivery]]) -> tuple[float, float]:
        """Mean and largest absolute gap between behaviour and learner log-probs, nats."""
        return logprob_gap(self.core, items)

    @together
    def digest(self) -> str:
        """xxh3 over the fp32 master tensors, on rank 0."""
        masters = self.core.optimiser.master_tensors()
        if self.ranks.first:
            return weights_digest(masters)
        take_part(masters)
        return ""

    def write_state(self, path: Path) -> None:
        """Write everything of a checkpoint that belongs to this rank."""
        write_core(self.core, path)

    def load_state(self, path: Path, lineage: int | None = None) -> None:
        """The inverse of :meth:`write_state`, under a new lineage; None: the next one."""
        read_core(self.core, path, lineage)

    @together
    def save_model(self, folder: Path) -> None:
        """Write a folder that transformers loads, on rank 0."""
        tensors = whole_tensors(self.weights())
        if self.ranks.first:
            save_policy(self.core.network, tensors, self._tokenizer, folder)

    def metrics(self) -> dict[str, float]:
        """Optimiser steps so far."""
        return {"learn/optimiser_steps": float(self.core.optimiser.steps)}

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors; checkpoints use :meth:`write_state`."""
        return self.core.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.core.load_state_dict(state)

    def close(self) -> None:
        """Leave the channel and the other ranks; memory is freed."""
        if self._sender is not None:
            self._sender.close()
        self.ranks.leave()
