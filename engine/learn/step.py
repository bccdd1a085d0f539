"""One update: minibatches of groups, micro-batches of packed rows, optimiser steps, the next version.

The loss of a minibatch is a mean over its groups (or what the objective says), known before the first
backward pass, so it does not depend on how rows were packed. A step whose loss or gradient is not finite
changes nothing; an update in which every step was so is not committed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.config.run import RunConfig
from engine.config.schedule import Straggler
from engine.errors import NonFiniteError
from engine.learn.batch import Accounts, LossRule, samples_of
from engine.learn.optimiser import MasterOptimiser
from engine.learn.packing import PackedRow, Sample, pack
from engine.losses.objective import LossInputs, LossScale, build_loss, mean_metrics
from engine.models.policy import head_weight, hidden_states
from engine.ops.token_logprob import token_logprob
from engine.records.trajectory import Group, MaskReason
from engine.records.update import UpdateReport
from engine.records.version import PolicyVersion

MAX_NON_FINITE_UPDATES = 3


class LearnerCore:
    """The policy being optimised, its optimiser, and the version it stands at."""

    def __init__(self, network: Any, config: RunConfig, fixed_network: Any | None = None) -> None:
        """Wrap a loaded network.

        Args:
            network: from ``engine.models.policy``.
            config: of the run.
            fixed_network: the first policy, for losses with a KL to it.
        """
        self.network = network
        self.config = config
        self.loss = build_loss(config.loss)
        steps = config.learning.updates * config.schedule.steps_per_update
        self.optimiser = MasterOptimiser(network, config.learning.optimiser, steps)
        self.version = PolicyVersion(0, 0)
        self._fixed_network = fixed_network
        self._non_finite = 0

    # ---- one update ----------------------------------------------------------------------------

    def update(self, groups: Sequence[Group]) -> UpdateReport:
        """Consume complete groups and commit the next version.

        Args:
            groups: sorted by id; every trajectory judged.

        Raises:
            StalenessError: a token older than the bound, where the schedule promised there is none.
            NonFiniteError: several updates in a row had no finite step.
        """
        began = time.time()
        accounts = Accounts()
        batches = samples_of(groups, self.loss, self.config.reward, self._rule(), accounts)
        if self.config.learning.reset_optimiser:
            self.optimiser.reset()
        minibatches = self._minibatches(batches)
        references = self._references(minibatches)
        sums: Counter[str] = Counter()
        norms: list[float] = []
        rate = self.optimiser.learning_rate()
        for index, (minibatch, reference) in enumerate(zip(minibatches, references, strict=True)):
            rows, scale = self._rows(minibatch, first=index == 0, accounts=accounts)
            norms.append(self._step(rows, scale, reference, sums))
        committed = any(math.isfinite(norm) for norm in norms)
        self._guard(committed, groups)
        if committed:
            self.version = self.version.next()
        metrics = mean_metrics({name: torch.tensor(value) for name, value in sums.items() if name != "loss"})
        metrics = {f"learn/{name}": value for name, value in metrics.items()}
        metrics |= {
            "learn/loss": sums["loss"] / len(minibatches),
            "learn/gradient_norm": max((n for n in norms if math.isfinite(n)), default=0.0),
            "learn/learning_rate": rate,
            "learn/non_finite_steps": float(sum(not math.isfinite(n) for n in norms)),
            "learn/zero_spread_groups": float(accounts.zero_spread_groups),
            "rollout/total_reward_mean": sum(accounts.rewards) / max(len(accounts.rewards), 1),
        }
        return UpdateReport(
            self.version, committed, accounts.carried, dict(accounts.masked), metrics,
            dict(accounts.staleness), (began, time.time()),
        )

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
        steps = min(self.config.schedule.steps_per_update, len(batches))
        bounds = [round(index * len(batches) / steps) for index in range(steps + 1)]
        return [batches[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]

    def _rows(self, minibatch: list[list[Sample]], first: bool,
              accounts: Accounts) -> tuple[list[PackedRow], LossScale]:
        """Rows to forward, and the sizes of the whole minibatch."""
        samples = [sample for group in minibatch for sample in group]
        tokens = sum(int(sample.carries_loss.sum()) for sample in samples)
        scale = LossScale(len(minibatch), len(samples), tokens, self.config.rollout.samples_per_prompt)
        skip = self.config.learning.skip_zero_advantage and self.loss.skips_zero_advantage(first)
        kept = [sample for sample in samples if not (skip and sample.advantage == 0.0)]
        carried = sum(int(sample.carries_loss.sum()) for sample in kept)
        accounts.carried += carried
        if tokens > carried:
            accounts.masked[MaskReason.zero_advantage.value] += tokens - carried
        learning = self.config.learning
        return pack(kept, learning.row_tokens, learning.share_prompts), scale

    @torch.no_grad()
    def _references(self, minibatches: list[list[list[Sample]]]) -> list[dict[int, Tensor] | None]:
        """Log-probs of the policy at the start of the update, for all minibatches but the first.

        At the first step that policy is the learner itself, so the pass is skipped there.
        """
        found: list[dict[int, Tensor] | None] = [None] * len(minibatches)
        if not self.loss.needs_reference:
            return found
        learning = self.config.learning
        for index in range(1, len(minibatches)):
            samples = [sample for group in minibatches[index] for sample in group]
            rows = pack(samples, learning.row_tokens, learning.share_prompts)
            found[index] = {}
            for row in rows:
                self._store(found[index], row, self._score(self.network, row)[0])
        return found

    @staticmethod
    def _store(target: dict[int, Tensor] | None, row: PackedRow, logprob: Tensor) -> None:
        assert target is not None
        parts = logprob.split([int(s.carries_loss.sum()) for s in row.samples])
        target.update({id(sample): part for sample, part in zip(row.samples, parts, strict=True)})

    # ---- forward and backward ------------------------------------------------------------------

    def _score(self, network: Any, row: PackedRow, entropy: bool = False) -> tuple[Tensor, Tensor]:
        hidden = hidden_states(network, row.tokens, row.positions, row.blocks)
        logprob, spread, _ = token_logprob(
            hidden[row.source], head_weight(network), row.target, row.inverse_temperature,
            want_entropy=entropy,
        )
        return logprob, spread

    def _step(self, rows: list[PackedRow], scale: LossScale, reference: dict[int, Tensor] | None,
              sums: Counter[str]) -> float:
        """Forward, backward and one optimiser step; returns the gradient norm, NaN when not finite."""
        finite = True
        for row in rows:
            logprob, entropy = self._score(self.network, row, self.loss.needs_entropy)
            inputs = self._inputs(row, logprob, entropy, reference)
            output = self.loss(inputs, scale)
            value = float(output.loss.detach())
            finite = finite and math.isfinite(value)
            output.loss.backward()
            self.optimiser.collect()
            sums["loss"] += value
            for name, metric in output.metrics.items():
                sums[name] += float(metric)
            gap = (logprob.detach() - row.behaviour_logprob).abs()
            sums["logprob_gap_sum"] += float(gap.sum())
        if not finite:
            for parameter in self.network.parameters():
                parameter.grad = None
            self.optimiser.discard()
            return math.nan
        return self.optimiser.step()

    def _inputs(self, row: PackedRow, logprob: Tensor, entropy: Tensor,
                reference: dict[int, Tensor] | None) -> LossInputs:
        anchor = fixed = None
        if self.loss.needs_reference and reference is not None:
            anchor = torch.cat([reference[id(sample)] for sample in row.samples])
        if self.loss.needs_fixed:
            assert self._fixed_network is not None, "a loss with a fixed policy was built without one"
            with torch.no_grad():
                fixed = self._score(self._fixed_network, row)[0]
        counts = torch.bincount(row.trajectory, minlength=len(row.samples))
        return LossInputs(
            learner_logprob=logprob, behaviour_logprob=row.behaviour_logprob, reference_logprob=anchor,
            fixed_logprob=fixed, entropy=entropy if self.loss.needs_entropy else None,
            trajectory=row.trajectory,
            advantage=torch.tensor([sample.advantage for sample in row.samples]), num_tokens=counts,
        )

    @torch.no_grad()
    def logprobs(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Learner log-probs of the loss-carrying tokens of each sample: the canary's question."""
        learning = self.config.learning
        found: dict[int, Tensor] = {}
        for row in pack(samples, learning.row_tokens, learning.share_prompts):
            self._store(found, row, self._score(self.network, row)[0])
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
