"""The controller: a pure step function from (state, event) to (state, commands).

::

    Drawn ----> Admit, Dispatch            prompts become groups, groups become work
    Progressed -> Judge | Dispatch         finished answers are judged, cut ones go on
    Judged ----> Train                     complete groups within the bound make an update
    Updated ---> Publish, Draw             a new version goes out, room is filled again

It has no clock, no threads and no waits of its own; a driver feeds it one event at a time and carries out
the commands. What each part waits for:

- issuing waits for room in the window (``actors/window.py``), opened by Updated, by a drop, or by a
  generator that acknowledges newer weights;
- the learner waits for ``batch_groups`` complete groups and for every group that one more update would
  push past the bound, opened by Judged;
- a round (``iterative``, or bound 0) waits until nothing is flying and everything finished is judged;
- a checkpoint waits until nothing flies, nothing is judged and nothing learns: the barrier.

Every flying trajectory has a lease; one that expires returns it and ends its holder.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from actors import window
from actors.roster import FINISHED, FLYING, JUDGED, READY, SPENT, GeneratorSeat, Member, OpenGroup, Roster
from engine.config.schedule import Refill, ScheduleConfig, Straggler
from engine.records import event as ev
from engine.records.trajectory import DropReason, Outcome
from engine.records.version import PolicyVersion

KILLS_TO_QUARANTINE = 2


class Controller:
    """Decides what happens next. ``step`` is its only way in."""

    def __init__(self, schedule: ScheduleConfig, *, samples_per_prompt: int, updates: int,
                 checkpoint_every: int = 0, lease_s: float = 600.0, max_judge_failures: int = 1) -> None:
        """A controller at version 0 with nothing outstanding.

        Args:
            schedule: the numbers that make it sync, iterative or async.
            samples_per_prompt: K.
            updates: committed updates at which the run is complete.
            checkpoint_every: updates between barriers; 0: none but on a stop request.
            lease_s: seconds of the injected clock that a generator may hold a trajectory silently.
            max_judge_failures: times a trajectory may come back unjudged before its group is dropped.
        """
        self.schedule = schedule
        self.roster = Roster()
        self.version = PolicyVersion(0, 0)
        self.generators: dict[str, GeneratorSeat] = {}
        self._k = samples_per_prompt
        self._updates = updates
        self._checkpoint_every = checkpoint_every
        self._lease_s = lease_s
        self._max_judge_failures = max_judge_failures
        self._now = 0.0
        self._next_id = 0
        self._next_group = 0
        self._drawing = 0
        self._training: tuple[int, ...] = ()
        self._round_open = False
        self._checkpoint_due = False
        self._writing = False
        self._stopping = False
        self.finished = False
        self._kills: Counter[str] = Counter()
        self._commands: list[ev.Command] = []
        self._steps = {
            ev.Drawn: self._drawn, ev.Progressed: self._progressed, ev.Judged: self._judged,
            ev.Updated: self._updated, ev.GeneratorLost: self._lost, ev.GeneratorJoined: self._joined,
            ev.CheckpointWritten: self._written, ev.Ticked: self._ticked, ev.StopRequested: self._stop,
        }

    def step(self, event: ev.Event) -> list[ev.Command]:
        """Take in one event; return the commands that follow from it, in order."""
        self._commands = []
        if not self.finished:
            self._steps[type(event)](event)  # type: ignore[operator]
            self._pump()
        return self._commands

    # ---- what events do ------------------------------------------------------------------------

    def _drawn(self, event: ev.Drawn) -> None:
        self._drawing -= len(event.prompt_ids)
        fresh = min((seat.version for seat in self.generators.values()), default=self.version.updates)
        for prompt_id in event.prompt_ids:
            group = OpenGroup(self._next_group, prompt_id)
            self._next_group += 1
            for _ in range(self._k):
                group.members.append(Member(self._next_id, fresh))
                self._next_id += 1
            self.roster.add(group)
            ids = tuple(member.trajectory_id for member in group.members)
            self._commands.append(ev.Admit(group.group_id, prompt_id, ids))

    def _progressed(self, event: ev.Progressed) -> None:
        seat = self.generators.get(event.generator)
        if seat is None:
            return
        seat.version = max(seat.version, event.version.updates)
        finished = []
        for item in event.items:
            found = self.roster.find(item.trajectory_id)
            if found is None or found[1].holder != event.generator:
                continue
            group, member = found
            seat.open_trajectories -= 1
            member.holder, member.length = "", item.length
            if item.oldest_version is not None:
                member.oldest = item.oldest_version.updates
            else:
                member.oldest = seat.version
            if item.finish_reason is None:
                spent = self.schedule.rounds and item.new_tokens > 0 and not self._barrier
                member.status = SPENT if spent else READY
            else:
                member.status = FINISHED
                if not group.doomed:
                    finished.append(member.trajectory_id)
        for _, member in self.roster.members(FLYING):
            if member.holder == event.generator:
                member.lease_until = self._now + self._lease_s
        if finished:
            self._commands.append(ev.Judge(tuple(finished)))

    def _judged(self, event: ev.Judged) -> None:
        again = []
        for item in event.items:
            found = self.roster.find(item.trajectory_id)
            if found is None:
                continue
            group, member = found
            if item.outcome is Outcome.ok:
                member.status = JUDGED
                continue
            member.judge_failures += 1
            if member.judge_failures > self._max_judge_failures:
                group.doomed = group.doomed or DropReason.judge_failed.value
            else:
                again.append(item.trajectory_id)
        if again:
            self._commands.append(ev.Judge(tuple(again)))
        if self.schedule.no_spread is Refill.refill:
            for group_id in event.no_spread:
                if group_id in self.roster.groups:
                    self.roster.groups[group_id].doomed = DropReason.no_spread.value

    def _updated(self, event: ev.Updated) -> None:
        for group_id in self._training:
            self.roster.remove(group_id)
        self._training = ()
        if event.committed:
            self.version = event.version
            self._commands.append(ev.Publish(event.version))
            every = self._checkpoint_every
            if every and event.version.updates % every == 0 and event.version.updates < self._updates:
                self._checkpoint_due = True

    def _lost(self, event: ev.GeneratorLost) -> None:
        self.generators.pop(event.generator, None)
        suspects = set()
        for group, member in list(self.roster.members(FLYING)):
            if member.holder != event.generator:
                continue
            member.status, member.holder = READY, ""
            suspects.add(group.prompt_id)
            member.deaths += 1
            if member.deaths >= self.schedule.max_attempts:
                group.doomed = group.doomed or DropReason.given_up.value
        self._kills.update(suspects)
        for group in self.roster.groups.values():
            if group.prompt_id in suspects and self._kills[group.prompt_id] >= KILLS_TO_QUARANTINE:
                group.doomed = DropReason.poison_prompt.value

    def _joined(self, event: ev.GeneratorJoined) -> None:
        self.generators[event.generator] = GeneratorSeat(event.version.updates)

    def _written(self, _: ev.CheckpointWritten) -> None:
        self._writing = self._checkpoint_due = False
        if self._stopping:
            self._finish(stopped=True)

    def _ticked(self, event: ev.Ticked) -> None:
        self._now = event.now
        late = {m.holder for _, m in self.roster.members(FLYING) if m.lease_until < event.now}
        for generator in sorted(late):
            self._commands.append(ev.Restart(generator))
            self._lost(ev.GeneratorLost(generator))

    def _stop(self, _: ev.StopRequested) -> None:
        self._stopping = self._checkpoint_due = True

    # ---- what follows --------------------------------------------------------------------------

    @property
    def _barrier(self) -> bool:
        return self._checkpoint_due and not self._training

    @property
    def _next_version(self) -> int:
        """Version that the next update will train."""
        return self.version.updates + bool(self._training)

    def _waiting_groups(self) -> list[OpenGroup]:
        return [g for g in self.roster.groups.values() if g.group_id not in self._training]

    def _pump(self) -> None:
        self._drop_doomed()
        if self.version.updates >= self._updates and not self._training:
            self._finish(stopped=False)
        elif self._writing:
            return
        elif self._barrier:
            self._hold_barrier()
        else:
            if self.schedule.rounds:
                self._turn_round()
            elif not self._training:
                self._train(self.schedule.batch_groups)
            if self._round_open or not self.schedule.rounds:
                self._dispatch()
                self._draw()

    def _drop_doomed(self) -> None:
        for group in list(self.roster.groups.values()):
            if group.doomed and not any(m.status == FLYING for m in group.members):
                self.roster.remove(group.group_id)
                reason = DropReason(group.doomed)
                poison = reason is DropReason.poison_prompt
                self._commands.append(ev.DropGroup(group.group_id, group.prompt_id, reason, poison))

    def _hold_barrier(self) -> None:
        if self.roster.any(FLYING):
            holders = {m.holder for _, m in self.roster.members(FLYING)}
            self._commands.extend(ev.CutAll(generator) for generator in sorted(holders))
        elif not self.roster.any(FINISHED) and not self._drawing:
            self._writing = True
            self._commands.append(ev.WriteCheckpoint())

    def _turn_round(self) -> None:
        """End a round when all of it came back, train, and open the next under the new weights."""
        if self._training or self._drawing:
            return
        if self._round_open:
            if self.roster.any(READY, FLYING, FINISHED) or self._room() > 0:
                return
            self._round_open = False
            if self._train(self.schedule.fewest_groups):
                return
            self._commands.append(ev.Note("a round ended with too few complete groups: going on without "
                                          "an update"))
        if self.generators and all(s.version >= self.version.updates for s in self.generators.values()):
            for _, member in self.roster.members(SPENT):
                member.status = READY
            self._round_open = True

    def _train(self, fewest: int) -> bool:
        schedule = self.schedule
        groups = self._waiting_groups()
        complete = [(g.oldest, g.group_id) for g in groups if g.complete]
        if len(complete) < fewest:
            return False
        waiting = [g.oldest for g in groups if not g.complete]
        chosen = window.choose_batch(
            complete, waiting, self._next_version, schedule.max_staleness, schedule.batch_groups,
            enforce=schedule.on_straggler is Straggler.wait,
        )
        if chosen:
            self._training = tuple(chosen)
            self._commands.append(ev.Train(self._training))
        return bool(chosen)

    def _room(self) -> int:
        """Groups that may be drawn now: the window, less what the last updates will not need."""
        if not self.generators:
            return 0
        outstanding = [g.oldest for g in self._waiting_groups()]
        fresh = min(seat.version for seat in self.generators.values())
        outstanding += [fresh] * self._drawing
        schedule = self.schedule
        needed = (self._updates - self._next_version) * schedule.batch_groups - len(outstanding)
        if needed <= 0:
            return 0
        room = window.room_for(
            outstanding, fresh, self._next_version, schedule.max_staleness, schedule.batch_groups
        )
        return min(room, needed)

    def _draw(self) -> None:
        room = self._room()
        if room > 0 and not self._stopping:
            self._drawing += room
            self._commands.append(ev.Draw(room))

    def _dispatch(self) -> None:
        """Unfinished work first, oldest first; a group stays together on the least loaded generator."""
        if not self.generators:
            return
        work: dict[str, list[int]] = {}
        for group in self.roster.groups.values():
            ready = [m for m in group.members if m.status == READY]
            if not ready or group.doomed:
                continue
            name = min(self.generators, key=lambda n: (self.generators[n].open_trajectories, n))
            seat = self.generators[name]
            for member in ready:
                member.status, member.holder = FLYING, name
                member.lease_until = self._now + self._lease_s
                if member.length == 0:
                    member.oldest = max(member.oldest, seat.version)
            seat.open_trajectories += len(ready)
            work.setdefault(name, []).extend(m.trajectory_id for m in ready)
        for name, ids in work.items():
            self._commands.append(ev.Dispatch(name, tuple(ids)))

    def _finish(self, stopped: bool) -> None:
        self.finished = True
        self._commands.append(ev.Finish(stopped))

    # ---- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything but generators, which join anew; taken at a barrier."""
        return {
            "version": self.version, "next_id": self._next_id, "next_group": self._next_group,
            "kills": dict(self._kills), "roster": self.roster.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume under a new lineage."""
        self.version = state["version"].forked()
        self._next_id, self._next_group = state["next_id"], state["next_group"]
        self._kills = Counter(state["kills"])
        self.roster.load_state_dict(state["roster"])
