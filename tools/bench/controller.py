"""The controller alone: every other actor answers at once, so only its own step function takes time.

Every trajectory has an event of its own when it finishes and when it is judged; a real generator reports
several at once, which is less work. A thousand generators with a window to match beside four tell whether
an event costs more where there are more of them.
"""

from __future__ import annotations

import tracemalloc
from collections import deque
from functools import partial
from typing import Any

from actors.controller import Controller
from engine.config.schedule import ScheduleConfig
from engine.records import event as ev
from engine.records.trajectory import FinishReason, Outcome
from engine.records.version import PolicyVersion
from engine.records.work import Progress
from tools.bench.timing import seconds_of, spread, take_turns

_SAMPLES, _TOKENS = 8, 32
"""Members of a group, tokens of an answer."""
FEW, MANY = (4, 64), (1000, 1000)
"""Generators, and groups of an update."""


class InstantWorld:
    """Ports that answer before anybody can wait."""

    def __init__(self, trajectories: int, size: tuple[int, int] = FEW) -> None:
        generators, groups = size
        updates = -(-trajectories // (_SAMPLES * groups))
        self.trajectories = updates * _SAMPLES * groups
        self.events = 0
        schedule = ScheduleConfig(kind="async", max_staleness=2, batch_groups=groups)
        self.controller = Controller(
            schedule, samples_per_prompt=_SAMPLES, updates=updates, num_generators=generators
        )
        self._version = PolicyVersion(0, 0)
        self._names = [f"generator-{index}" for index in range(generators)]
        self._inbox: deque[ev.Event] = deque(
            ev.GeneratorJoined(name, self._version) for name in self._names
        )
        self._drawn = 0

    def run(self) -> None:
        """Until the controller is finished."""
        while not self.controller.finished:
            event = self._inbox.popleft()
            self.events += 1
            for command in self.controller.step(event):
                self._answer(command)

    def _answer(self, command: ev.Command) -> None:
        match command:
            case ev.Draw(count):
                ids = tuple(f"prompt-{self._drawn + index}" for index in range(count))
                self._drawn += count
                self._inbox.append(ev.Drawn(ids))
            case ev.Dispatch(generator, ids):
                for one in ids:
                    items = (Progress(one, 0, _TOKENS, _TOKENS, self._version, FinishReason.stop, 1, 1),)
                    self._inbox.append(ev.Progressed(generator, self._version, items))
            case ev.Judge(ids):
                self._inbox.extend(ev.Judged((ev.JudgedItem(one, Outcome.ok),)) for one in ids)
            case ev.Train():
                self._inbox.append(ev.Updated(self._version.next(), True))
            case ev.Publish(version):
                self._version = version
                self._inbox.extend(ev.Progressed(name, version) for name in self._names)


def measure(trajectories: int, repeats: int) -> dict[str, Any]:
    """``controller_trajectories_per_second``, with few and with many generators, and the memory it holds."""
    worlds: dict[str, InstantWorld] = {}

    def run_once(name: str, size: tuple[int, int]) -> float:
        worlds[name] = InstantWorld(trajectories, size)
        return seconds_of(worlds[name].run)

    sides = {"controller": FEW, "controller_many": MANY}
    times = take_turns(
        {name: partial(run_once, name, size) for name, size in sides.items()}, repeats, warmups=0
    )
    found: dict[str, Any] = {"controller_many_generators": MANY[0]}
    for name in sides:
        found[f"{name}_seconds"] = seconds = spread(times[name])
        found[f"{name}_trajectories_per_second"] = worlds[name].trajectories / seconds["median"]
        found[f"{name}_trajectories"] = worlds[name].trajectories
        found[f"{name}_events"] = worlds[name].events
    worlds.clear()
    return {**found, **_memory(trajectories)}


def _memory(trajectories: int) -> dict[str, Any]:
    """Python heap at its peak and at the end, after a tenth of the work and after all of it."""
    found = {}
    for name, amount in (("tenth", max(trajectories // 10, 1)), ("whole", trajectories)):
        tracemalloc.start()
        world = InstantWorld(amount)
        world.run()
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        found[f"controller_peak_bytes_{name}"] = peak
        found[f"controller_held_bytes_{name}"] = held
    return found
