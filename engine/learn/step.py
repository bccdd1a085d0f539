"""One update: minibatches of groups, micro-batches of packed rows, optimiser steps, the next version.

The loss of a minibatch is a mean over its groups (or what the objective says), known before the first
backward pass, so it does not depend on how rows were packed. A step whose loss or gradient is not finite
changes nothing; an update in which every step was so is not committed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from engine.config.cluster import Placement
from engine.config.run import RunConfig
from engine.config.schedule import Straggler
from engine.errors import NonFiniteError
from engine.learn.batch import Accounts, LossRule, samples_of
from engine.learn.forward import score_row
from engine.learn.optimiser import MasterOptimiser
from engine.learn.packing import PackedRow, Sample, pack
from engine.learn.split import split
from engine.learn.together import added_up, shares
from engine.losses.objective import LossInputs, LossScale, build_loss, mean_metrics
from engine.models.device import give_back, torch_device
from engine.models.ranks import ALONE, Ranks
from engine.records.trajectory import Group
from engine.records.update import UpdateReport
from engine.records.version import PolicyVersion
from engine.trace import now, span, spanned

MAX_NON_FINITE_UPDATES = 3


class LearnerCore:
    """The policy being optimised, its optimiser, and the version it stands at."""

    def __init__(self, network: Any, config: RunConfig, fixed_network: Any | None = None,
                 ranks: Ranks = ALONE) -> None:
        """Wrap a loaded network.

        Args:
            network: from ``engine.models.policy``, sharded where there are several ranks.
            config: of the run.
            fixed_network: the first policy, for losses with a KL to it.
            ranks: that share the work; each is given the same groups.
        """
        self.ranks = ranks
        self.network = network
        self.config = config
        self.loss = build_loss(config.loss)
        steps = config.learning.updates * config.schedule.steps_per_update
        self.optimiser = MasterOptimiser(network, config.learning.optimiser, steps, ranks)
        self.version = PolicyVersion(0, 0)
        self._fixed_network = fixed_network
        self._non_finite = 0
        self.device = torch_device(config.cluster.device)
        self._takes_turns = config.cluster.placement is Placement.colocated
        self._seconds: dict[str, float] = {}
        if not self._takes_turns:
            self.onload()
        elif not ranks.alone:
            self.offload()  # shards are made on the device

    # ---- turns on a device that generators use too ---------------------------------------------

    def onload(self) -> None:
        """Bring weights and moments to the device."""
        self._move(self.device)

    def offload(self) -> None:
        """Keep weights and moments in the host's memory, and leave the device to others."""
        self._move(torch.device("cpu"))
        give_back(self.device)

    def _move(self, device: torch.device) -> None:
        if not self.ranks.alone and next(self.network.parameters()).device == device:
            return  # shards were made there
        self.network.to(device)
        if self._fixed_network is not None:
            self._fixed_network.to(device)
        self.optimiser.to(device)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """On the device while this lasts; the seconds it took to come and go are kept."""
        if not self._takes_turns:
            yield
            return
        began = now()
        with span("onload"):
            self.onload()
        self._seconds["hybrid/onload_seconds"] = now() - began
        try:
            yield
        finally:
            began = now()
            with span("offload"):
                self.offload()
            self._seconds["hybrid/offload_seconds"] = now() - began

    # ---- one update ----------------------------------------------------------------------------

    def update(self, groups: Sequence[Group]) -> UpdateReport:
        """Consume complete groups and commit the next version.

        Args:
            groups: sorted by id; every trajectory judged.

        Raises:
            StalenessError: a token older than the bound, where the schedule promised there is none.
            NonFiniteError: a reward is not finite, or several updates in a row had no finite step.
        """
        assert groups, "an update consumes at least one group"
        began = now()
        self.ranks.lap()
        with self._turn():
            report = self._update(groups)
        return replace(report, metrics={**report.metrics, **self._seconds}, busy=(began, now()))

    def _update(self, groups: Sequence[Group]) -> UpdateReport:
        accounts = Accounts()
        batches = samples_of(groups, self.loss, self.config.reward, self._rule(), accounts)
        if self.config.learning.reset_optimiser:
            self.optimiser.reset()
        minibatches = self._minibatches(batches)
        packed = [self._rows(batch, index == 0, accounts) for index, batch in enumerate(minibatches)]
        # At the first step the policy at the start of the update is the learner itself.
        references = [None, *(self._reference(rows) for rows, _ in packed[1:])]
        sums: defaultdict[str, float] = defaultdict(float)
        norms, rate = [], self.optimiser.learning_rate()
        for (rows, scale), reference in zip(packed, references, strict=True):
            rate = self.optimiser.learning_rate()
            norms.append(self._step(rows, scale, reference, sums))
        committed = any(math.isfinite(norm) for norm in norms)
        self._guard(committed, groups)
        if committed:
            self.version = self.version.next()
        metrics = self._metrics(sums, norms, rate, accounts) | shares(self.ranks, [rows for rows, _ in packed])
        return UpdateReport(
            self.version, committed, accounts.carried, dict(accounts.masked), metrics, dict(accounts.staleness),
        )

    @staticmethod
    def _metrics(sums: dict[str, float], norms: list[float], rate: float,
                 accounts: Accounts) -> dict[str, float]:
        """Values of the whole update; steps that were not finite are left out of the means."""
        finite = [norm for norm in norms if math.isfinite(norm)]
        means = mean_metrics({name: value for name, value in sums.items() if name != "loss"})
        metrics = {f"learn/{name}": value for name, value in means.items()}
        return metrics | {
            "learn/loss": sums.get("loss", 0.0) / max(len(finite), 1),
            "learn/gradient_norm": max(finite, default=0.0),
            "learn/learning_rate": rate,
            "learn/non_finite_steps": float(len(norms) - len(finite)),
            "learn/zero_spread_groups": float(accounts.zero_spread_groups),
            "rollout/total_reward_mean": sum(accounts.rewards) / max(len(accounts.rewards), 1),
        }

    def _rule(self) -> LossRule:
        schedule, reward = self.config.schedule, self.config.reward
        return LossRule(
            self.version, schedule.max_staleness, schedule.segments_in_loss,
            schedule.on_straggler is Straggler.mask, reward.overlong.mask_truncated,
            self.config.rollout.max_response_tokens,
        )

    def _guard(self, committed: bool, groups: Sequence[Group]) -> None:
        self._non_finite = 0 if committed else self._non_finite + 1
        if self._non_finite >= MAX_NON_FINITE_UPDATES:
            ids = [group.group_id for group in groups]
            raise NonFiniteError(
                f"{self._non_finite} updates in a row had no finite gradient, the last over groups {ids}: "
                "lower learning.optimiser.learning_rate or set learning.precision=float32"
            )

    def _minibatches(self, batches: list[list[Sample]]) -> list[list[list[Sample]]]:
        """Groups in order, in as many minibatches of nearly equal size as there are steps."""
        steps = min(self.config.schedule.steps_per_update, len(batches))
        bounds = [round(index * len(batches) / steps) for index in range(steps + 1)]
        return [batches[start:stop] for start, stop in pairwise(bounds)]

    @spanned("pack")
    def _rows(self, minibatch: list[list[Sample]], first: bool,
              accounts: Accounts) -> tuple[list[PackedRow], LossScale]:
        """Rows that this rank forwards, and the sizes of the whole minibatch."""
        samples = [sample for group in minibatch for sample in group]
        tokens = sum(int(sample.carries_loss.sum()) for sample in samples)
        scale = LossScale(len(minibatch), len(samples), tokens, self.config.rollout.samples_per_prompt)
        learning = self.config.learning
        skip = learning.skip_zero_advantage and self.loss.skips_zero_advantage(first)
        parts = split(accounts.settle(samples, skip), self.ranks.size, learning.row_tokens,
                      learning.share_prompts, self.network.config.hidden_size)
        return [row.to(self.device) for row in parts[self.ranks.rank]], scale

    @torch.no_grad()
    def _reference(self, rows: list[PackedRow]) -> list[Tensor] | None:
        """Log-probs of the policy at the start of the update, row by row; None where nobody asks."""
        if not self.loss.needs_reference:
            return None
        return [score_row(self.network, row)[0] for row in rows]

    # ---- forward and backward ------------------------------------------------------------------

    def _step(self, rows: list[PackedRow], scale: LossScale, reference: list[Tensor] | None,
              sums: defaultdict[str, float]) -> float:
        """Forward, backward and one optimiser step; returns the gradient norm, NaN when not finite.

        What is not finite on one rank ends the step on all of them, but only after its rows, since the others
        wait in every one of them.
        """
        found: defaultdict[str, float] = defaultdict(float)
        finite = True
        for index, row in enumerate(rows):
            logprob, entropy = score_row(self.network, row, self.loss.needs_entropy)
            fixed = self._fixed(row)
            if row.samples:
                anchor = None if reference is None else reference[index]
                output = self.loss(self._inputs(row, logprob, entropy, anchor, fixed), scale)
                gap = (logprob.detach() - row.behaviour_logprob).abs().sum()
                # The gap covers behaviour log-probs, which not every loss reads.
                finite &= bool(torch.isfinite(output.loss.detach() + gap))
                loss, parts = output.loss, {"logprob_gap_mean_nats_sum": gap, **output.metrics}
                for name, part in {"loss": loss.detach(), **parts}.items():
                    found[name] += float(part)
            else:
                loss = 0.0 * (logprob.sum() + entropy.sum())
            if self.ranks.alone and not finite:
                break
            with span("backward"):
                loss.backward()
            self.optimiser.collect()
        total, finite = added_up(self.ranks, found, finite)
        if not finite:
            self.optimiser.discard()
            return math.nan
        norm = self.optimiser.step()
        if math.isfinite(norm):
            for name, value in total.items():
                sums[name] += value
        return norm

    @torch.no_grad()
    def _fixed(self, row: PackedRow) -> Tensor | None:
        """Log-probs of the fixed first policy; None where nobody asks."""
        if not self.loss.needs_fixed:
            return None
        assert self._fixed_network is not None, "a loss with a fixed policy was built without one"
        return score_row(self._fixed_network, row)[0]

    def _inputs(self, row: PackedRow, logprob: Tensor, entropy: Tensor, reference: Tensor | None,
                fixed: Tensor | None) -> LossInputs:
        # Counted on the host, where a GPU need not be waited for.
        counts = torch.tensor([int(sample.carries_loss.sum()) for sample in row.samples]).to(self.device)
        return LossInputs(
            learner_logprob=logprob, behaviour_logprob=row.behaviour_logprob, reference_logprob=reference,
            fixed_logprob=fixed, entropy=entropy if self.loss.needs_entropy else None,
            trajectory=row.trajectory,
            advantage=torch.tensor([sample.advantage for sample in row.samples]).to(self.device),
            num_tokens=counts,
        )

    @torch.no_grad()
    def logprobs(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Learner log-probs of the loss-carrying tokens of each sample: the canary's question.

        Samples that carry no loss are left out. Every rank forwards all of them.
        """
        learning = self.config.learning
        found: dict[int, Tensor] = {}
        with self._turn():
            for row in pack(samples, learning.row_tokens, learning.share_prompts):
                logprobs = score_row(self.network, row.to(self.device))[0].cpu()
                parts = logprobs.split([int(s.carries_loss.sum()) for s in row.samples])
                found.update({id(sample): part for sample, part in zip(row.samples, parts, strict=True)})
        return [found[id(sample)] for sample in samples if id(sample) in found]

    # ---- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Optimiser with master weights, and the version."""
        return {"optimiser": self.optimiser.state_dict(), "version": self.version,
                "non_finite": self._non_finite}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.version = state["version"]
        self._non_finite = int(state["non_finite"])
