"""The replay buffer: unfinished trajectories to resume, finished groups to judge and train.

It owns its copy of every delivered segment, so the death of a generator loses nothing that arrived. A
lease says who works on a trajectory; what a generator delivers without holding the lease is refused, so
a late answer of a dead incarnation can never be trained twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.config.rewards import RewardConfig
from engine.config.rollout import RolloutConfig
from engine.errors import RecordError
from engine.records.codec import decode, encode
from engine.records.event import Judged, JudgedItem
from engine.records.prompt import Prompt
from engine.records.trajectory import Group, Outcome, Trajectory, Verdict
from engine.records.work import Delivery, GeneratorReport, Progress, Request
from engine.rewards.length_penalty import total_rewards


@dataclass(slots=True)
class _Open:
    """An outstanding group: its prompt, members and verdicts so far."""

    group_id: int
    prompt: Prompt
    prompt_tokens: NDArray[np.int32]
    members: tuple[int, ...]
    verdicts: dict[int, Verdict] = field(default_factory=dict)


class ReplayBuffer:
    """Trajectories between issue and training."""

    def __init__(self, rollout: RolloutConfig, reward: RewardConfig,
                 round_budget_tokens: int | None) -> None:
        """An empty buffer.

        Args:
            rollout: how requests are to be answered.
            reward: for total rewards, which tell groups without spread.
            round_budget_tokens: tokens a request may spend before it is cut; None: no cut.
        """
        self._rollout = rollout
        self._reward = reward
        self._round_budget_tokens = round_budget_tokens
        self._groups: dict[int, _Open] = {}
        self._trajectories: dict[int, Trajectory] = {}
        self._leases: dict[int, str] = {}
        self._updates = 0
        self._fenced = 0

    # ---- work ----------------------------------------------------------------------------------

    def admit(self, group_id: int, prompt: Prompt, prompt_tokens: NDArray[np.int32],
              trajectory_ids: Sequence[int]) -> None:
        """Open a group of empty trajectories.

        Raises:
            RecordError: the group or a member is here already.
        """
        twice = [key for key in trajectory_ids if key in self._trajectories]
        if group_id in self._groups or twice:
            raise RecordError(f"group {group_id} with members {list(trajectory_ids)} was admitted before")
        self._groups[group_id] = _Open(group_id, prompt, prompt_tokens, tuple(trajectory_ids))
        for trajectory_id in trajectory_ids:
            self._trajectories[trajectory_id] = Trajectory(trajectory_id, group_id, prompt.prompt_id)

    def checkout(self, generator: str, trajectory_ids: Sequence[int]) -> tuple[Request, ...]:
        """Lease trajectories to a generator; an earlier lease on them ends.

        A trajectory whose earlier lease never came back died with its holder: its next attempt draws
        another random stream, since the last one may be what killed.

        Raises:
            RecordError: a trajectory is finished.
        """
        requests = []
        for trajectory_id in trajectory_ids:
            held = self._trajectories[trajectory_id]
            if held.finish_reason is not None:
                raise RecordError(f"trajectory {trajectory_id} is finished and cannot go on")
            if trajectory_id in self._leases:
                held = self._trajectories[trajectory_id] = replace(held, attempt=held.attempt + 1)
            self._leases[trajectory_id] = generator
            requests.append(
                Request(
                    trajectory_id=trajectory_id,
                    attempt=held.attempt,
                    prompt_tokens=self._groups[held.group_id].prompt_tokens,
                    generated=held.token_ids,
                    max_response_tokens=self._rollout.max_response_tokens,
                    round_budget_tokens=self._round_budget_tokens,
                    temperature=self._rollout.temperature,
                )
            )
        return tuple(requests)

    def release(self, generator: str) -> None:
        """End the leases of a dead generator without counting them as attempts.

        Whoever takes the work next samples the same random stream, so at bound 0 a death changes no bit.
        """
        self._leases = {key: holder for key, holder in self._leases.items() if holder != generator}

    def deliver(self, report: GeneratorReport) -> tuple[Progress, ...]:
        """Take in what a generator made; deliveries without a lease are refused and counted."""
        return tuple(
            self._take_in(delivery)
            for delivery in report.deliveries
            if self._holds_lease(report.generator, delivery)
        )

    def _holds_lease(self, generator: str, delivery: Delivery) -> bool:
        key = delivery.trajectory_id
        held = self._leases.get(key) == generator and self._trajectories[key].attempt == delivery.attempt
        self._fenced += not held
        return held

    def _take_in(self, delivery: Delivery) -> Progress:
        del self._leases[delivery.trajectory_id]
        trajectory = self._trajectories[delivery.trajectory_id]
        grown = trajectory.extended(delivery.segments, delivery.finish_reason, delivery.saved_tokens)
        self._trajectories[delivery.trajectory_id] = grown
        return Progress(
            trajectory_id=grown.trajectory_id,
            attempt=grown.attempt,
            new_tokens=grown.length - trajectory.length,
            length=grown.length,
            oldest_version=grown.oldest_version,
            finish_reason=grown.finish_reason,
            num_segments=len(grown.segments),
            num_versions=len({segment.version for segment in grown.segments}),
            saved_tokens=delivery.saved_tokens,
        )

    # ---- judging and training ------------------------------------------------------------------

    def to_judge(self, trajectory_ids: Sequence[int]) -> tuple[tuple[Prompt, Trajectory], ...]:
        """Finished trajectories beside their prompts.

        Raises:
            RecordError: a trajectory is unfinished.
        """
        found = []
        for trajectory_id in trajectory_ids:
            trajectory = self._trajectories[trajectory_id]
            if trajectory.finish_reason is None:
                raise RecordError(f"trajectory {trajectory_id} is unfinished and cannot be judged")
            found.append((self._groups[trajectory.group_id].prompt, trajectory))
        return tuple(found)

    def judged(self, verdicts: Mapping[int, Verdict]) -> Judged:
        """Store verdicts; names the groups that are complete and without spread in their total rewards.

        Verdicts of trajectories that left meanwhile are not stored, and those whose judge failed are never
        read as a reward.
        """
        touched = set()
        for trajectory_id, verdict in verdicts.items():
            if trajectory_id not in self._trajectories:
                continue
            group = self._groups[self._trajectories[trajectory_id].group_id]
            if verdict.outcome is Outcome.ok:
                group.verdicts[trajectory_id] = verdict
                touched.add(group.group_id)
        flat = []
        for group_id in sorted(touched):
            if len(self._groups[group_id].verdicts) == len(self._groups[group_id].members):
                rewards = total_rewards(
                    self._group(group_id), self._reward, self._updates, self._rollout.max_response_tokens
                )
                if max(rewards) == min(rewards):
                    flat.append(group_id)
        return Judged(tuple(_without_text(key, verdicts[key]) for key in sorted(verdicts)), tuple(flat))

    def _group(self, group_id: int) -> Group:
        held = self._groups[group_id]
        members = sorted(held.members)
        return Group(
            group_id, held.prompt.prompt_id, held.prompt_tokens,
            tuple(self._trajectories[member] for member in members),
            tuple(held.verdicts[member] for member in members),
        )

    def take(self, group_ids: Sequence[int], updates: int) -> tuple[Group, ...]:
        """Complete groups for an update that trains version ``updates``, sorted by id; they leave.

        Raises:
            RecordError: a member is not judged yet; nothing left.
        """
        for group_id in group_ids:
            open_members = set(self._groups[group_id].members) - set(self._groups[group_id].verdicts)
            if open_members:
                raise RecordError(f"group {group_id} lacks verdicts on {sorted(open_members)}")
        self._updates = updates
        groups = tuple(self._group(group_id) for group_id in sorted(group_ids))
        for group_id in group_ids:
            self.forget(group_id)
        return groups

    def forget(self, group_id: int) -> dict[int, int]:
        """Drop a group; returns trajectory id -> tokens that are gone with it."""
        held = self._groups.pop(group_id)
        gone = {}
        for member in held.members:
            gone[member] = self._trajectories.pop(member).length
            self._leases.pop(member, None)
        return gone

    # ---- state ---------------------------------------------------------------------------------

    @property
    def fenced(self) -> int:
        """Deliveries refused for want of a lease."""
        return self._fenced

    def metrics(self) -> dict[str, float]:
        """Sizes of what is held."""
        unfinished = sum(t.finish_reason is None for t in self._trajectories.values())
        tokens = sum(t.length for t in self._trajectories.values())
        return {
            "replay/groups": float(len(self._groups)),
            "replay/unfinished_trajectories": float(unfinished),
            "replay/tokens": float(tokens),
            "replay/fenced_deliveries": float(self._fenced),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything held, as bytes; leases end with the life of the run."""
        groups = [
            [g.group_id, g.prompt, g.prompt_tokens, list(g.members), dict(g.verdicts)]
            for g in self._groups.values()
        ]
        return {
            "held": encode([groups, list(self._trajectories.values())]),
            "updates": self._updates, "fenced": self._fenced,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        groups, trajectories = decode(state["held"])
        self._groups = {
            group_id: _Open(group_id, prompt, tokens, tuple(members), dict(verdicts))
            for group_id, prompt, tokens, members, verdicts in groups
        }
        self._trajectories = {t.trajectory_id: t for t in trajectories}
        self._leases.clear()
        self._updates, self._fenced = state["updates"], state["fenced"]

    def close(self) -> None:
        """Forget everything."""
        self._groups.clear()
        self._trajectories.clear()
        self._leases.clear()


def _without_text(trajectory_id: int, verdict: Verdict) -> JudgedItem:
    if verdict.outcome is not Outcome.ok:
        return JudgedItem(trajectory_id, verdict.outcome)
    return JudgedItem(trajectory_id, verdict.outcome, float(verdict.score), bool(verdict.correct))
