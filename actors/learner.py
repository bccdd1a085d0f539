"""The learner: shell of ``engine/learn`` and of the sending end of the weight channel."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.learner_state import read_core, write_core
from actors.object_store import open_object_store
from actors.rollouts import read_rollouts, write_rollouts
from engine.config.run import RunConfig
from engine.faults import reach
from engine.learn.packing import Sample
from engine.learn.step import LearnerCore
from engine.models.policy import DTYPES, load_network, published_tensors, save_policy, with_adapter
from engine.models.tokenizer import PolicyTokenizer
from engine.records.manifest import Manifest
from engine.records.trajectory import Group
from engine.records.update import UpdateReport
from engine.records.version import PolicyVersion
from engine.records.work import Delivery
from engine.trace import recording, span
from engine.weights.channel import open_sender, weights_digest

GroupLengths = tuple[int, str, dict[int, int]]


class Learner:
    """Optimises the policy and publishes every version it commits."""

    def __init__(self, config: RunConfig, folder: str, run_id: str, dumps: str = "") -> None:
        """Load the policy.

        Args:
            config: of the run.
            folder: Hugging Face folder of the first weights.
            run_id: names the weight channel.
            dumps: folder for consumed groups; empty: none are written.
        """
        self._threads = config.cluster.threads.learner
        self._traced = config.run.trace
        torch.set_num_threads(self._threads)
        network = load_network(folder, config.learning.precision)
        if config.model.adapter.rank:
            network = with_adapter(network, config.model.adapter)
        fixed = load_network(folder, config.learning.precision) if config.loss.kl_coefficient else None
        self.core = LearnerCore(network, config, fixed)
        self._tokenizer = PolicyTokenizer.from_folder(Path(folder))
        self._dumps = Path(dumps) if dumps else None
        store = open_object_store(config)
        self._sender = open_sender(config.weights, run_id, DTYPES[config.generator.precision], store)
        reach("learner.start")

    def publish(self) -> Manifest:
        """Write the current weights into the channel, once more where a generator refused them."""
        torch.set_num_threads(self._threads)
        self._sender.retire(self.core.version)
        manifest = self._sender.publish(published_tensors(self.core.network), self.core.version)
        reach("learner.publish")
        return manifest

    def update(self, groups: Sequence[Group]) -> tuple[UpdateReport, Manifest | None]:
        """One update; a committed one is published at once."""
        torch.set_num_threads(self._threads)
        if self._dumps is not None:
            write_rollouts(self._dumps, self.core.version.updates, groups)
        with recording(self._traced) as spans:
            report = self.core.update(groups)
            reach("learner.update")
            if not report.committed:
                return replace(report, spans=tuple(spans)), None
            began = time.time()
            with span("publish"):
                manifest = self.publish()
        metrics = {**report.metrics, "publish/seconds": time.time() - began}
        return replace(report, metrics=metrics, spans=tuple(spans)), manifest

    def record(self, batch: int, groups: Sequence[Group]) -> int:
        """Write down a batch instead of learning from it; returns its tokens."""
        assert self._dumps is not None, "who only samples has a folder for it"
        write_rollouts(self._dumps, batch, groups)
        return sum(trajectory.length for group in groups for trajectory in group.trajectories)

    def study(self, path: Path) -> tuple[list[GroupLengths], UpdateReport, Manifest | None]:
        """One update on recorded groups; also their ids, prompts and members with lengths."""
        groups = read_rollouts(path)
        lineages = (s.version.lineage for g in groups for t in g.trajectories for s in t.segments)
        version = self.core.version
        # The run that recorded them may have been resumed: this one takes up its history.
        self.core.version = PolicyVersion(max([version.lineage, *lineages]), version.updates)
        report, manifest = self.update(groups)
        seen = [
            (g.group_id, g.prompt_id, {t.trajectory_id: t.length for t in g.trajectories}) for g in groups
        ]
        return seen, report, manifest

    def logprob_gap(self, items: Sequence[tuple[NDArray[np.int32], Delivery]]) -> tuple[float, float]:
        """Mean and largest absolute gap between behaviour and learner log-probs, nats."""
        torch.set_num_threads(self._threads)
        samples, behaviour = [], []
        for index, (prompt_tokens, delivery) in enumerate(items):
            tokens = np.concatenate([segment.token_ids for segment in delivery.segments])
            logprob = np.concatenate([segment.behaviour_logprob for segment in delivery.segments])
            heat = np.float32(1.0 / delivery.segments[0].temperature)
            samples.append(Sample(prompt_tokens, tokens, np.ones(len(tokens), bool), logprob,
                                  np.full(len(tokens), heat, np.float32), index))
            behaviour.append(torch.from_numpy(logprob))
        gap = (torch.cat(self.core.logprobs(samples)) - torch.cat(behaviour)).abs()
        return float(gap.mean()), float(gap.max())

    def digest(self) -> str:
        """xxh3 over the fp32 master tensors."""
        return weights_digest(self.core.optimiser.master_tensors())

    def write_state(self, path: Path) -> None:
        """Write everything of a checkpoint that belongs to the learner."""
        write_core(self.core, path)

    def load_state(self, path: Path, lineage: int | None = None) -> None:
        """The inverse of :meth:`write_state`, under a new lineage; None: the next one."""
        read_core(self.core, path, lineage)

    def save_model(self, folder: Path) -> None:
        """Write a folder that transformers loads."""
        save_policy(self.core.network, published_tensors(self.core.network), self._tokenizer, folder)

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
        """Leave the channel; its memory is freed."""
        self._sender.close()
