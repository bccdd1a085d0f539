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
- work waits for a generator that serves at least the version its group is counted with, so that no
  latecomer makes a group older than the window knows;
- the learner waits for ``batch_groups`` complete groups and for every group that one more update would
  push past the bound, opened by Judged;
- a round (``iterative``, or bound 0) waits until nothing is flying and everything finished is judged;
- a checkpoint waits until nothing flies, nothing is judged and nothing learns: the barrier.

A generator that holds work has a lease, renewed by every answer and counted from the next tick; one that
expires returns the work and ends its holder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from actors import window
from actors.roster import FINISHED, FLYING, JUDGED, READY, SPENT, Member, OpenGroup, Roster
from actors.seats import Seats
from engine.config.schedule import Refill, ScheduleConfig, Straggler
from engine.records import event as ev
from engine.records.trajectory import DropReason, Outcome
from engine.records.version import PolicyVersion
from engine.records.work import Progress


class Controller:
    """Decides what happens next. ``step`` is its only way in."""

    def __init__(self, schedule: ScheduleConfig, *, samples_per_prompt: int, updates: int,
                 checkpoint_every: int = 0, lease_s: float = 600.0, max_judge_failures: int = 1,
                 num_generators: int = 1) -> None:
        """A controller at version 0 with nothing outstanding.

        Args:
            schedule: the numbers that make it sync, iterative or async.
            samples_per_prompt: K.
            updates: committed updates at which the run is complete.
            checkpoint_every: updates between barriers; 0: none but on a stop request.
            lease_s: seconds of the injected clock that a generator may hold work silently.
            max_judge_failures: times a trajectory may come back unjudged before its group is dropped.
            num_generators: how many must live before the first work is handed out, so that it is shared.
        """
        self.schedule = schedule
        self.roster = Roster(schedule.max_attempts)
        self.version = PolicyVersion(0, 0)
        self.seats = Seats(num_generators)
        self.finished = False
        self._k = samples_per_prompt
        self._updates, self._checkpoint_every = updates, checkpoint_every
        self._lease_s, self._max_judge_failures = lease_s, max_judge_failures
        self._enforce = schedule.on_straggler is Straggler.wait
        self._next_id = self._next_group = self._drawing = 0
        self._round_open = self._checkpoint_due = self._writing = self._stopping = False
        self._commands: list[ev.Command] = []
        self._steps = {
            ev.Drawn: self._drawn, ev.Progressed: self._progressed, ev.Judged: self._judged, ev.Ticked: self._ticked,
            ev.Updated: self._updated, ev.GeneratorLost: self._lost, ev.NobodyFollows: self._nobody_follows,
            ev.GeneratorJoined: self._joined, ev.CheckpointWritten: self._written, ev.StopRequested: self._stop,
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
        for prompt_id in event.prompt_ids:
            ids = tuple(range(self._next_id, self._next_id + self._k))
            group = OpenGroup(self._next_group, prompt_id, [Member(i, self.seats.fresh) for i in ids])
            self._next_group += 1
            self._next_id += self._k
            self.roster.add(group)
            self._commands.append(ev.Admit(group.group_id, prompt_id, ids))

    def _progressed(self, event: ev.Progressed) -> None:
        seat = self.seats.hear(event.generator, event.version.updates)
        if seat is None:
            return
        finished = []
        for item in event.items:
            found = self.roster.find(item.trajectory_id)
            if found is not None and found[1].holder == event.generator:
                self.seats.hand_back(event.generator)
                self._came_back(*found, item, seat.version)
                if item.finish_reason is not None and not found[0].doomed:
                    finished.append(item.trajectory_id)
        if finished:
            self._commands.append(ev.Judge(tuple(finished)))

    def _came_back(self, group: OpenGroup, member: Member, item: Progress, serves: int) -> None:
        oldest = item.oldest_version
        self.roster.stamp(group, member, serves if oldest is None else oldest.updates)
        member.length = item.length
        spent = self.schedule.rounds and item.new_tokens > 0 and not self.checkpointing
        cut = SPENT if spent else READY
        self.roster.place(group, member, cut if item.finish_reason is None else FINISHED)

    def _judged(self, event: ev.Judged) -> None:
        again = []
        for item in event.items:
            found = self.roster.find(item.trajectory_id)
            if found is None or found[1].status != FINISHED:
                continue
            group, member = found
            if item.outcome is Outcome.ok:
                self.roster.place(group, member, JUDGED)
                continue
            member.judge_failures += 1
            if member.judge_failures > self._max_judge_failures:
                self.roster.doom(group, DropReason.judge_failed)
            elif not group.doomed:
                again.append(item.trajectory_id)
        if again:
            self._commands.append(ev.Judge(tuple(again)))
        if self.schedule.no_spread is Refill.refill:
            for group_id in self.roster.groups.keys() & event.no_spread:
                self.roster.doom(self.roster.groups[group_id], DropReason.no_spread)

    def _updated(self, event: ev.Updated) -> None:
        for group_id in sorted(self.roster.training):
            self.roster.remove(group_id)
        if event.last:
            self._updates = event.version.updates
        if event.committed:
            self.version = event.version
            self._commands.append(ev.Publish(event.version))
            every = self._checkpoint_every
            if every and event.version.updates % every == 0 and event.version.updates < self._updates:
                self._checkpoint_due = True

    def _lost(self, event: ev.GeneratorLost) -> None:
        self.seats.leave(event.generator)
        self.roster.bury(event.generator)

    def _joined(self, event: ev.GeneratorJoined) -> None:
        self.seats.join(event.generator, event.version.updates)

    def _nobody_follows(self, _: ev.NobodyFollows) -> None:
        self.seats.expect_fewer()

    def _written(self, _: ev.CheckpointWritten) -> None:
        self._writing = self._checkpoint_due = False
        if self._stopping:
            self._finish(stopped=True)

    def _ticked(self, event: ev.Ticked) -> None:
        for generator in self.seats.tick(event.now, self._lease_s):
            self._commands.append(ev.Restart(generator))
            self._lost(ev.GeneratorLost(generator))

    def _stop(self, _: ev.StopRequested) -> None:
        self._stopping = self._checkpoint_due = True

    # ---- what follows --------------------------------------------------------------------------

    @property
    def checkpointing(self) -> bool:
        """Nothing new is handed out until a checkpoint is written."""
        return self._checkpoint_due and not self.roster.training

    @property
    def _next_version(self) -> int:
        """Version that the next update will train."""
        return self.version.updates + bool(self.roster.training)

    def _pump(self) -> None:
        for group in self.roster.lost_causes():
            self.roster.remove(group.group_id)
            reason, age = DropReason(group.doomed), self.version.updates - group.oldest
            self._commands.append(ev.DropGroup(group.group_id, group.prompt_id, reason,
                                               reason is DropReason.poison_prompt, age))
        if self.finished:
            return
        if self.version.updates >= self._updates and not self.roster.training:
            self._finish(stopped=False)
        elif self.checkpointing:
            self._hold_barrier()
        elif not self.seats.awaited:
            if self.schedule.rounds:
                self._turn_round()
            elif not self.roster.training:
                self._train(self.schedule.batch_groups)
            if self._round_open or not self.schedule.rounds:
                self._dispatch()
                self._draw()

    def _hold_barrier(self) -> None:
        if self._writing:
            return
        if self.roster.any(FLYING):
            # Who answers and still holds something took it after the cut, and is asked again.
            for name in self.seats.holders():
                if not self.seats.by_name[name].cut_asked:
                    self.seats.by_name[name].cut_asked = True
                    self._commands.append(ev.CutAll(name))
        elif not self.roster.any(FINISHED) and not self._drawing:
            self._writing = True
            self._commands.append(ev.WriteCheckpoint())

    def _turn_round(self) -> None:
        """End a round when all of it came back and train; open the next one under the new weights."""
        if self.roster.training or self._drawing:
            return
        self._open_round()
        if self._round_open and not self.roster.any(READY, FLYING, FINISHED) and self._room() <= 0:
            self._round_open = False
            if not self._train(self.schedule.fewest_groups):
                self._commands.append(ev.Note("a round ended with too few complete groups: no update"))
                self._open_round()

    def _open_round(self) -> None:
        if not self._round_open and self.seats.all_serve(self.version.updates):
            self._round_open = True
            for group, member in self.roster.members(SPENT):
                self.roster.place(group, member, READY)

    def _train(self, fewest: int) -> bool:
        roster = self.roster
        if len(roster.complete) < fewest:
            return False
        numbers = (self._ages(), *self._numbers())
        if self._enforce and not window.batch_is_legal(roster.complete_ages, *numbers):
            return False
        complete = [(roster.groups[i].oldest, i) for i in roster.complete]
        if chosen := window.choose_batch(complete, *numbers, self._enforce):
            roster.train(chosen)
            self._commands.append(ev.Train(tuple(chosen)))
        return bool(chosen)

    def _numbers(self) -> tuple[int, int, int]:
        return self._next_version, self.schedule.max_staleness, self.schedule.batch_groups

    def _ages(self) -> Mapping[int, int]:
        """Oldest version -> groups outstanding or being drawn."""
        return self.roster.ages + Counter({self.seats.fresh: self._drawing}) if self._drawing else self.roster.ages

    def _room(self) -> int:
        """Groups that may be drawn now: the window, less what the last updates will not need."""
        ages, groups = self._ages(), self.schedule.batch_groups
        needed = (self._updates - self._next_version) * groups - sum(ages.values())
        return min(window.room_for(ages, self.seats.fresh, *self._numbers(), self._enforce), needed)

    def _draw(self) -> None:
        room = self._room()
        if room > 0 and len(self.seats) and not self._stopping:
            self._drawing += room
            self._commands.append(ev.Draw(room))

    def _dispatch(self) -> None:
        """Unfinished work first, oldest first; a group stays together on the least loaded generator."""
        work: dict[str, list[int]] = {}
        for group, members in self.roster.ready():
            name = self.seats.take(max(member.oldest for member in members), len(members))
            if name is None:
                continue
            for member in members:
                self.roster.place(group, member, FLYING, name)
                if member.length == 0:
                    self.roster.stamp(group, member, self.seats.by_name[name].version)
            work.setdefault(name, []).extend(member.trajectory_id for member in members)
        self._commands.extend(ev.Dispatch(name, tuple(ids)) for name, ids in work.items())

    def _finish(self, stopped: bool) -> None:
        self.finished = True
        self._commands.append(ev.Finish(stopped))

    def state_dict(self) -> dict[str, Any]:
        """Everything but generators, which join anew; taken at a barrier."""
        return {
            "version": self.version, "next_id": self._next_id, "next_group": self._next_group,
            "roster": self.roster.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], lineage: int | None = None) -> None:
        """Resume under a new lineage; None: the next one."""
        self.version = state["version"].forked(lineage)
        self._next_id, self._next_group = state["next_id"], state["next_group"]
        self.roster.load_state_dict(state["roster"])
