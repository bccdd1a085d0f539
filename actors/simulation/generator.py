"""A generator that only counts: slots, prefill passes, cuts and swaps as the native sampler has them.

It mirrors ``engine/generate/native.py`` step by step where steps differ, and jumps over those that do not,
so that a call costs the same for four tokens as for four thousand.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.simulation.costs import Costs
from engine.config.schedule import InFlight
from engine.generate.prefill import PATIENCE, may_wait


@dataclass(slots=True, eq=False)
class Trip:
    """A trajectory on its way: its length is known to the world, not to the controller."""

    trajectory_id: int
    group_id: int
    total: int
    """Tokens at which it ends."""
    length: int = 0
    parts: list[list[int]] = field(default_factory=list)
    """[version, tokens] of every segment."""
    stay: int = 0
    """Tokens to sample in this slot, of which ``lacks`` keys are to be prefilled first."""
    lacks: int = 0
    since: int = 0
    """Decode step at which it became ready."""
    ready: bool = False

    def sampled(self, version: int, tokens: int) -> None:
        """More tokens by one version."""
        if tokens:
            self.length += tokens
            self.stay -= tokens
            self.parts.append([version, tokens])


@dataclass(slots=True)
class Answer:
    """What a call comes to."""

    seconds: float
    version: int
    left: list[tuple[Trip, int]]
    """Who left its slot, and the tokens sampled there."""


class SimulatedGenerator:
    """One generator: its slots, its queue, the weights it serves."""

    def __init__(self, costs: Costs, *, slots: int, prefill_tokens: int, mode: InFlight, budget: int | None,
                 version: int) -> None:
        """Empty.

        Args:
            costs: of its work.
            slots: trajectories that decode at once.
            prefill_tokens: rows of a prefill pass.
            mode: what weights in flight do to occupied slots.
            budget: tokens that a trajectory may spend before it is cut; None: no cut.
            version: that it serves.
        """
        self._costs = costs
        self._slots, self._rows = slots, prefill_tokens
        self._mode, self._budget = mode, budget
        self.version = version
        self.tokens = 0
        """Sampled so far."""
        self.steps = 0
        """Decode steps so far."""
        self._staged: int | None = None
        self._queue: deque[Trip] = deque()
        self._open: dict[int, Trip] = {}
        self._leaving: list[tuple[int, int]] = []
        self._unready: OrderedDict[int, Trip] = OrderedDict()
        self._groups: dict[int, int] = {}
        """Group -> its members with the keys of its prompt."""
        self._parked: OrderedDict[int, None] = OrderedDict()
        self._step = 0
        self._left: list[tuple[Trip, int]] = []
        self._entered: dict[int, int] = {}

    @property
    def behind(self) -> bool:
        """Weights are staged that wait for the slots to empty."""
        return self._staged is not None

    @property
    def open_requests(self) -> int:
        """In a slot or waiting for one."""
        return len(self._open) + len(self._queue)

    def advance(self, work: Sequence[Trip], version: int | None, cut: bool, steps: int) -> Answer:
        """Take weights, cut, admit, decode, in this order."""
        self._left = []
        seconds = self._costs.call
        if version is not None and version != self.version:
            seconds += self._costs.receive
            self._offer(version)
        if cut:
            self._cut_all()
            steps = 0
        self._queue.extend(work)
        while steps > 0 and (self._open or self._queue or self._staged is not None):
            self._swap_when_empty()
            self._admit()
            if not self._open:
                break
            seconds += self._prefill()
            jump, lasted = self._decode(steps)
            seconds += lasted
            steps -= jump
            self._swap_when_empty()
        return Answer(seconds, self.version, self._left)

    # ---- weights -------------------------------------------------------------------------------

    def _offer(self, version: int) -> None:
        self._staged = None
        if self._mode is InFlight.finish and self._open:
            self._staged = version
            return
        for trip in self._open.values():
            self._settle(trip)
        self.version = version
        if self._mode is not InFlight.keep_cache:
            self._parked.clear()
            self._forget_keys()

    def _forget_keys(self) -> None:
        self._groups.clear()
        self._leaving.clear()
        for trip in self._open.values():
            trip.ready, trip.lacks = False, trip.length + round(self._costs.prompt_tokens)
            self._unready[trip.trajectory_id] = trip

    def _swap_when_empty(self) -> None:
        if self._staged is not None and not self._open:
            self.version, self._staged = self._staged, None
            self._parked.clear()

    # ---- slots ---------------------------------------------------------------------------------

    def _settle(self, trip: Trip) -> None:
        """Book what it sampled since it was last looked at."""
        if trip.ready:
            trip.sampled(self.version, self._step - trip.since)
            trip.since = self._step

    def _admit(self) -> None:
        while self._staged is None and self._queue and len(self._open) < self._slots:
            trip = self._queue.popleft()
            trip.stay = min(trip.total - trip.length, self._budget or math.inf)  # type: ignore[assignment]
            kept = trip.trajectory_id in self._parked
            self._parked.pop(trip.trajectory_id, None)
            trip.ready, trip.lacks = False, 0 if kept else trip.length + round(self._costs.prompt_tokens)
            self._open[trip.trajectory_id] = trip
            self._entered[trip.trajectory_id] = trip.length
            if kept:
                self._begin(trip)
            else:
                self._unready[trip.trajectory_id] = trip
            while len(self._open) + len(self._parked) > self._slots:
                self._parked.popitem(last=False)

    def _begin(self, trip: Trip) -> None:
        """It has its keys and decodes from the next step on."""
        trip.ready, trip.since, trip.lacks = True, self._step, 0
        self._groups[trip.group_id] = self._groups.get(trip.group_id, 0) + 1
        heapq.heappush(self._leaving, (self._step + trip.stay, trip.trajectory_id))

    def _leave(self, trip: Trip) -> None:
        self._settle(trip)
        key = trip.trajectory_id
        del self._open[key]
        if trip.ready:
            self._groups[trip.group_id] -= 1
        self._unready.pop(key, None)
        trip.ready = False
        if trip.length < trip.total and self._mode is InFlight.keep_cache:
            self._parked[key] = None
        self._left.append((trip, trip.length - self._entered.pop(key)))

    def _cut_all(self) -> None:
        for key in sorted(self._open):
            self._leave(self._open[key])
        self._leaving.clear()
        self._left += [(trip, 0) for trip in self._queue]
        self._queue.clear()
        self._swap_when_empty()

    # ---- work ----------------------------------------------------------------------------------

    def _prefill(self) -> float:
        seconds = 0.0
        while self._unready:
            self._copy_prompts()
            if not self._unready:
                break
            if may_wait(len(self._unready), len(self._open), self._step):
                break
            seconds += self._costs.prefill_pass
            self._pass()
            if 2 * (len(self._open) - len(self._unready)) >= len(self._open):
                break
        self._copy_prompts()
        return seconds

    def _copy_prompts(self) -> None:
        """Who has siblings with the keys of its prompt copies them, and begins if it lacks nothing else."""
        prompt = round(self._costs.prompt_tokens)
        for trip in list(self._unready.values()):
            if trip.lacks >= prompt + trip.length and self._groups.get(trip.group_id, 0):
                trip.lacks -= prompt
            if trip.lacks <= 0:
                del self._unready[trip.trajectory_id]
                self._begin(trip)

    def _pass(self) -> None:
        """Fill the rows of one pass; of a group without its prompt only one takes part."""
        room, groups = self._rows, set()
        for trip in list(self._unready.values()):
            if room <= 0:
                return
            if trip.group_id in groups:
                continue
            groups.add(trip.group_id)
            done = min(trip.lacks, room)
            room -= done
            trip.lacks -= done
            if trip.lacks <= 0:
                del self._unready[trip.trajectory_id]
                self._begin(trip)

    def _decode(self, most: int) -> tuple[int, float]:
        """Jump to where something changes: steps and seconds."""
        ready = len(self._open) - len(self._unready)
        jump = min(most, self._leaving[0][0] - self._step) if self._leaving else most
        if self._unready:
            jump = min(jump, PATIENCE - self._step % PATIENCE)
        if ready == 0:
            return 1, 0.0
        self._step += jump
        self.steps = self._step
        self.tokens += jump * ready
        while self._leaving and self._leaving[0][0] <= self._step:
            self._leave(self._open[heapq.heappop(self._leaving)[1]])
        return jump, jump * self._costs.decode.at(ready)
