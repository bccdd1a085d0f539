"""A recorded run once more: one process obeys the order in which answers reached the recorded driver.

What an actor answers depends only on what it was asked before, so the recorded order of answers, deaths
and looks at the clock brings back every token and every weight, wherever the actors of the first run
lived. Verdicts are taken as recorded, since a judge may depend on the time; those it would give otherwise
now are named. Every entry of the journal that the repeated run writes is held against the recorded one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgpack

from actors.cluster import Pending
from actors.driver import Call, Driver
from actors.run import StopSignal, life
from actors.supervisor import Restarts
from engine.config.cluster import ClusterKind, WeightChannelKind
from engine.config.run import Exists, Only, RunConfig
from engine.errors import ActorError, ConfigError, DivergedError, RunFolderError
from engine.preflight import check
from engine.records import arrival
from engine.records import event as ev
from engine.records.codec import decode
from engine.records.trajectory import Outcome
from engine.records.work import JudgeReport
from engine.run_folder import RunFolder
from engine.weights.channel_folder import clean_leftovers

_ENDLESS = 2**31
SAME_DIGESTS = (WeightChannelKind.shared_memory, WeightChannelKind.object_store)


class RecordEnds(Exception):  # noqa: N818 - no error: a run that was cut off is repeated as far as it came
    """Nothing more was recorded."""


class LifeEnds(Exception):  # noqa: N818 - no error: the recorded run was resumed from here
    """Here another life of the recorded run began."""


def read_arrivals(file: Path) -> list[Any]:
    """Entries of a journal of arrivals; a torn last one, as a kill leaves it, is left out.

    Raises:
        RunFolderError: there is no journal.
        RecordError: it holds what is no entry.
    """
    if not file.is_file():
        raise RunFolderError(f"{file} is missing: only a run that kept its journal can be repeated")
    data, entries, start = file.read_bytes(), [], 0
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    while start < len(data):
        try:
            unpacker.skip()
        except msgpack.OutOfData:
            break
        entries.append(decode(data[start : unpacker.tell()]))
        start = unpacker.tell()
    return entries


@dataclass(slots=True)
class Record:
    """A journal, and how far the repeated run has come in it."""

    entries: Sequence[Any]
    digests: bool = True
    """Its weights travelled by a channel whose digests are those of shared memory."""
    place: int = 0
    updates: int = 0
    """Committed updates that agreed."""
    judged_otherwise: list[int] = field(default_factory=list)
    """Trajectories whose verdicts were recorded otherwise than they would be given now."""

    @property
    def upcoming(self) -> Any:
        """The next entry; raises RecordEnds where there is none."""
        if self.place >= len(self.entries):
            raise RecordEnds
        return self.entries[self.place]

    def follow(self, entry: Any) -> None:
        """The repeated run came to this entry.

        Raises:
            DivergedError: another one was recorded.
            RecordEnds: none was.
        """
        recorded = self.upcoming
        if isinstance(entry, arrival.Committed) and not self.digests:
            entry = replace(entry, digest=getattr(recorded, "digest", ""))
        if entry != recorded:
            raise self.parted(recorded, entry)
        self.place += 1
        if isinstance(entry, arrival.Committed):
            self.updates = entry.version.updates

    def parted(self, recorded: Any, repeated: Any) -> DivergedError:
        """What to raise where the two runs part."""
        if isinstance(recorded, arrival.Committed) and isinstance(repeated, arrival.Committed):
            where = f"the weights part at update {recorded.version.updates}"
        else:
            where = f"the runs part after update {self.updates}"
        return DivergedError(f"{where}, entry {self.place} of {len(self.entries)}: recorded {recorded}, "
                             f"repeated {repeated}")


class Reenactment(Driver):
    """A driver to which answers come in the recorded order."""

    def __init__(self, record: Record, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._record = record
        self._clock = -math.inf
        self._stop_grace_s = math.inf
        self.should_stop = lambda: self.stopped or isinstance(self._upcoming(), ev.StopRequested)

    def _upcoming(self) -> Any:
        """The next entry, None at the end of the record."""
        return self._record.upcoming if self._record.place < len(self._record.entries) else None

    def note(self, entry: Any) -> None:
        """Compare with the record, then write it down."""
        self._record.follow(entry)
        super().note(entry)

    def _now(self) -> float:
        upcoming = self._upcoming()
        if isinstance(upcoming, ev.Ticked):
            self._clock = upcoming.now
        return self._clock

    @property
    def time_is_up(self) -> bool:
        """Whether it was up in the recorded run; asked just before an update is told to the controller."""
        upcoming = self._upcoming()
        return isinstance(upcoming, ev.Updated) and upcoming.last

    def _next_answer(self) -> Pending | None:
        upcoming = self._record.upcoming
        if isinstance(upcoming, ev.Ticked):
            return None
        if not isinstance(upcoming, arrival.Answered) or upcoming.call >= len(self._calls):
            waits = ", ".join(f"{call.pending.actor} {call.pending.method}" for call in self._calls)
            raise self._record.parted(upcoming, f"a wait for {waits}")
        pending = self._calls[upcoming.call].pending
        return self.cluster.wait([pending], self.config.cluster.call_deadline_s)

    def _overdue(self, now: float) -> Call | None:
        upcoming = self._upcoming()
        if not isinstance(upcoming, arrival.Died):
            return None
        return next((call for call in self._calls if call.pending.actor == upcoming.actor), None)

    def replace(self, error: ActorError) -> str:
        """Whoever came in the recorded run takes the place."""
        upcoming = self._upcoming()
        return self.supervisor.replace(error, upcoming.actor if isinstance(upcoming, arrival.Replaced) else None)

    def _outcome(self, call: Call) -> Any:
        upcoming, pending = self._upcoming(), call.pending
        if isinstance(upcoming, arrival.Died) and upcoming.actor == pending.actor:
            raise ActorError(pending.actor, pending.method, "it died in the recorded run")
        value = super()._outcome(call)
        if isinstance(upcoming, ev.Judged) and pending.method == "judge":
            return self._as_recorded(value, upcoming)
        return value

    def _as_recorded(self, report: JudgeReport, judged: ev.Judged) -> JudgeReport:
        recorded = {item.trajectory_id: item for item in judged.items}
        if recorded.keys() != report.verdicts.keys():
            raise self._record.parted(judged, f"verdicts on {sorted(report.verdicts)}")
        taken = {}
        for key, verdict in report.verdicts.items():
            item = recorded[key]
            score = item.score if item.outcome is Outcome.ok else math.nan
            same = item.outcome is verdict.outcome and item.correct == verdict.correct
            if not (same and (score == verdict.score or math.isnan(score))):
                self._record.judged_otherwise.append(key)
                verdict = replace(verdict, outcome=item.outcome, score=score, correct=item.correct)
            taken[key] = verdict
        return replace(report, verdicts=taken)

    def _checkpoint(self, command: ev.WriteCheckpoint) -> None:
        if not isinstance(self._upcoming(), arrival.Resumed):
            super()._checkpoint(command)
            return
        assert self.write_checkpoint is not None, "the launcher injects it"
        self.write_checkpoint()
        raise LifeEnds


def in_one_process(config: RunConfig, folder: Path) -> RunConfig:
    """The same run with all actors in this process and its own folder.

    Raises:
        ConfigError: its part of the loop keeps no order that could be repeated.
    """
    if config.train.only is Only.learn:
        raise ConfigError("train.only", "learn", "a run on recorded rollouts has no order of arrivals to repeat")
    learners = config.learning.num_learners
    if learners > 1:
        raise ConfigError("learning.num_learners", learners, "several learners add up in another order than one "
                          "process: such a run is not repeated")
    section = replace(config.run, dir=str(folder), exists=Exists.overwrite, quiet=True, wandb=False,
                      dump_rollouts=False, trace=False)
    weights = replace(config.weights, channel=WeightChannelKind.shared_memory, path="")
    cluster = replace(config.cluster, kind=ClusterKind.serial)
    return replace(config, run=section, cluster=cluster, weights=weights)


def reenact(config: RunConfig, recorded: Path, into: Path) -> dict[str, Any]:
    """Repeat a run; what came of it.

    Args:
        config: of the recorded run.
        recorded: its folder.
        into: folder of the repeated run, overwritten.

    Returns:
        updates and entries that agreed, whether the record is complete, both digests of the weights, where
        the two part (empty: nowhere), and trajectories that would be judged otherwise now.
    """
    record = Record(read_arrivals(recorded / "arrivals.msgpack"), config.weights.channel in SAME_DIGESTS)
    file = recorded / "summary.json"
    told = json.loads(file.read_text()) if file.exists() else {}
    report: dict[str, Any] = {"recorded": told.get("weights_digest", ""), "repeated": "", "parted": ""}
    try:
        report["repeated"] = _lives(in_one_process(config, into), record)["weights_digest"]
        if record.place < len(record.entries):
            raise record.parted(record.upcoming, "the end of the run")
    except DivergedError as error:
        report["parted"] = str(error)
    except RecordEnds:
        pass
    return report | {
        "updates": record.updates, "entries": record.place, "recorded_entries": len(record.entries),
        "judged_otherwise": record.judged_otherwise,
        "complete": bool(report["repeated"]) and not report["parted"],
    }


def _lives(config: RunConfig, record: Record) -> dict[str, Any]:
    """The lives of the recorded run, one after another; the summary of the last."""
    checked, restarts = check(config), Restarts(_ENDLESS, 0.0, lambda: 0.0)
    clean_leftovers(Path(config.weights.folder))
    folder = RunFolder.open(config.run)
    resumed = False
    try:
        while True:
            try:
                return life(config, checked, folder, StopSignal(), restarts, resumed,
                            lambda *arguments: Reenactment(record, *arguments))
            except LifeEnds:
                resumed = True
                # The recorded lives may have spent lineages of which nothing else is left.
                lineage = record.upcoming.version.lineage
                (folder.checkpoints / ".lineage").write_text(str(lineage - 1))
    finally:
        folder.close()
