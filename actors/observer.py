"""What a run says of itself: the progress line, metrics, samples, and the summary at the end."""

from __future__ import annotations

import math
import subprocess
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.display import Display
from engine.config.base import as_dict
from engine.config.run import RunConfig
from engine.evaluation import EvaluationResult
from engine.meters import Meters
from engine.metrics import MetricsWriter
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Trajectory, Verdict
from engine.records.update import UpdateReport
from engine.records.work import GeneratorReport, Progress
from engine.replay.selection_bias import SelectionBias
from engine.run_folder import RunFolder

_CODE = Path(__file__).parent


def git_commit() -> str:
    """Commit of the code that runs, empty outside a checkout.

    ``+changes`` follows where followed files differ from it, ``+unknown`` where git does not say. Files that git does
    not follow are left out: what runs write would be among them.
    """
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return ""
    changes = _git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return commit + ("+unknown" if changes is None else "+changes" if changes else "")


def _git(*words: str) -> str | None:
    """What git answers; None where it refuses, is not there, or is not done in ten seconds."""
    try:
        found = subprocess.run(["git", *words], cwd=_CODE, capture_output=True, text=True,
                               timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def overlap_seconds(left: Sequence[tuple[float, float]], right: Sequence[tuple[float, float]]) -> float:
    """Seconds that lie in both sets of intervals; each set sorted and without overlaps of its own.

    Example:
        >>> overlap_seconds([(0.0, 2.0), (3.0, 5.0)], [(1.0, 4.0)])
        2.0
    """
    total, i, j = 0.0, 0, 0
    while i < len(left) and j < len(right):
        total += max(0.0, min(left[i][1], right[j][1]) - max(left[i][0], right[j][0]))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return total


SHOWN_UPDATES = 120


class Observer:
    """Counts and shows; decides nothing."""

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        self._config = config
        self._folder = folder
        self._writer = MetricsWriter(folder.path, config.run.wandb, as_dict(config))
        self._meters = Meters()
        self.totals: Counter[str] = Counter()
        self.staleness: Counter[int] = Counter()
        self.busy: defaultdict[str, float] = defaultdict(float)
        """Actor -> seconds that its calls took."""
        self._generator_counts: dict[str, tuple[int, int]] = {}
        self._generating: deque[tuple[float, float]] = deque()
        self._overlap = 0.0
        self._began = time.monotonic()
        self._ended: float | None = None
        self._earlier_seconds = 0.0
        self.totals_canary: tuple[float, float] | None = None
        self._last_update = self._began
        self._learner_stopped: float | None = None
        """Wall clock: the end of the last update of this life."""
        self._last_tokens = 0
        self.accuracy: dict[int, float] = {}
        self.examples: dict[str, Sequence[tuple[str, str, bool]]] = {}
        self.rewards: deque[float] = deque(maxlen=SHOWN_UPDATES)
        """Mean total reward of the last updates."""
        self.latest: dict[str, float] = {}
        """Metrics of the last update."""
        self.selection = SelectionBias()
        self._display = Display(config)

    # ---- what happens --------------------------------------------------------------------------

    def begin(self) -> None:
        """Training time counts from here."""
        self._began = self._last_update = time.monotonic()

    def end(self) -> None:
        """Training time stops counting."""
        self._ended = time.monotonic()

    @property
    def train_seconds(self) -> float:
        """Seconds of training, earlier lives included."""
        now = time.monotonic() if self._ended is None else self._ended
        return self._earlier_seconds + now - self._began

    def generated(self, report: GeneratorReport) -> None:
        """A generator answered."""
        before = self._generator_counts.get(report.generator, (0, 0))
        self.totals["generated_tokens"] += report.generated_tokens - before[0]
        self.totals["swaps_while_decoding"] += report.swaps_while_decoding - before[1]
        self._generator_counts[report.generator] = (report.generated_tokens, report.swaps_while_decoding)
        self._generating.extend(report.busy)
        self.busy[report.generator] += sum(stop - start for start, stop in report.busy)

    def delivered(self, items: Sequence[Progress]) -> None:
        """Trajectories left their slots."""
        for item in items:
            self.totals["saved_tokens"] += item.saved_tokens
            if item.finish_reason is not None:
                self.totals["trajectories_with_2_segments"] += item.num_segments >= 2
                self.totals["trajectories_with_2_versions"] += item.num_versions >= 2

    def judged(self, pairs: Sequence[tuple[Prompt, Trajectory, Sequence[str], Verdict]],
               metrics: Mapping[str, float]) -> None:
        """Verdicts arrived: means and the judge's counters for the next line, samples to read, the text by segment."""
        for name, value in metrics.items():
            if math.isfinite(value):  # the mean of nothing is none
                self._meters.last(name, value)
        rows = []
        for prompt, trajectory, pieces, verdict in pairs:
            if verdict.outcome.value == "ok":
                self._meters.mean("rollout/reward_mean", verdict.score)
                self._meters.mean("rollout/correct_fraction", float(verdict.correct))
            reason = trajectory.finish_reason
            self._meters.mean("rollout/length_mean_tokens", trajectory.length)
            self._meters.mean("rollout/truncated_fraction", float(reason is FinishReason.length))
            self._meters.mean("rollout/repetition_fraction", float(reason is FinishReason.repetition))
            rows.append({
                "trajectory": trajectory.trajectory_id, "group": trajectory.group_id,
                "prompt": prompt.messages[-1].content, "text": "".join(pieces), "score": verdict.score,
                "correct": verdict.correct, "reason": verdict.reason, "outcome": verdict.outcome.value,
                "finish": "" if reason is None else reason.value,
                "segments": [[str(s.version), s.num_sampled] for s in trajectory.segments],
                "pieces": list(pieces),
            })
        self._folder.append_samples(rows)

    def checkpointed(self, name: str, seconds: float) -> None:
        """A checkpoint was written; the line of the next update tells how long that took."""
        self._meters.last("checkpoint/seconds", seconds)
        self.say(f"checkpoint {name} in {seconds:.1f} s")

    def updated(self, report: UpdateReport, trajectories: int, extra: Mapping[str, float]) -> None:
        """An update was made: one line of metrics, one line to look at."""
        now = time.monotonic()
        self.staleness.update({int(age): count for age, count in report.staleness.items()})
        self.totals["trained_tokens"] += report.carried_tokens
        self.totals["trained_trajectories"] += trajectories
        self._count_overlap(report.busy)
        self.busy["learner"] += report.busy[1] - report.busy[0]
        tokens = self.totals["generated_tokens"] - self._last_tokens
        values = self._meters.reduce() | dict(report.metrics) | dict(extra) | self.selection.metrics()
        if alarm := self.selection.news():
            self.say(alarm)
        values["generate/tokens_per_second"] = tokens / max(now - self._last_update, 1e-9)
        values["generate/saved_tokens"] = self.totals["saved_tokens"]
        values["learn/trained_tokens"] = report.carried_tokens
        values["learn/seconds"] = report.busy[1] - report.busy[0]
        values["schedule/update_seconds"] = now - self._last_update
        if self._learner_stopped is not None:
            values["schedule/learner_wait_seconds"] = max(report.busy[0] - self._learner_stopped, 0.0)
        values["supervise/restarts"] = self.totals["restarts"]
        carried = sum(report.staleness.values())
        ages = sum(age * count for age, count in report.staleness.items())
        values["schedule/staleness_mean_versions"] = ages / carried if carried else 0.0
        values["schedule/staleness_max_versions"] = max(report.staleness, default=0)
        for reason, count in report.masked_tokens.items():
            values[f"ledger/masked_{reason}_tokens"] = count
        self._writer.write(report.version.updates, values)
        self._meters = Meters()
        self._last_update, self._last_tokens = now, self.totals["generated_tokens"]
        self._learner_stopped = report.busy[1]
        self.latest = values
        self.rewards.append(values.get("rollout/total_reward_mean", values.get("rollout/reward_mean", 0.0)))
        accuracy = self.accuracy[max(self.accuracy)] if self.accuracy else None
        self._display.progress(report.version.updates, values, accuracy, self.train_seconds)

    def recorded(self, batch: int, tokens: int) -> None:
        """A batch was written down instead of learned from."""
        values = self._meters.reduce()
        self._writer.write(batch, values)
        self._meters = Meters()
        self.say(f"batch {batch}/{self._config.learning.updates}  {tokens} tokens  "
                 f"reward {values.get('rollout/reward_mean', 0.0):.2f}")

    def _count_overlap(self, busy: tuple[float, float]) -> None:
        spans = sorted(self._generating)
        merged: list[tuple[float, float]] = []
        for start, stop in spans:
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        self._overlap += overlap_seconds(merged, [busy])
        self._generating = deque(span for span in spans if span[1] > busy[1])

    def evaluated(self, result: EvaluationResult) -> None:
        """A version was evaluated on held-out prompts."""
        updates = result.version.updates
        self.accuracy[updates] = result.accuracy
        values = {"heldout/accuracy": result.accuracy, "heldout/length_mean_tokens": result.length_mean_tokens}
        if result.k:
            values |= {"heldout/mean_at_k": result.mean_at_k, "heldout/pass_at_k": result.pass_at_k}
        self._writer.write(updates, values)
        self.examples["before" if updates == 0 else "after"] = result.examples

    # ---- what is shown -------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A sentence of its own line."""
        self._display.say(text)

    def table(self, summary: Mapping[str, Any]) -> None:
        """Before, after, and examples."""
        self._display.table(summary, self.examples, self._folder.path)

    def canary(self, mean: float, largest: float) -> None:
        """Gap between behaviour and learner log-probs before the first update, nats."""
        self.totals_canary = (mean, largest)
        self.say(f"canary: log-probs of generator and learner differ by {mean:.2g} nats (largest {largest:.2g})")

    # ---- the end -------------------------------------------------------------------------------

    def summary(self, updates: int, ledger: Mapping[str, Any], digest: str) -> dict[str, Any]:
        """Everything that ``summary.json`` holds."""
        seconds = self.train_seconds
        masked = sum(ledger["tokens"]["masked"].values())
        carried = ledger["tokens"]["carried_loss"]
        names = ("generated_tokens", "trained_tokens", "trajectories_with_2_segments",
                 "trajectories_with_2_versions", "swaps_while_decoding", "saved_tokens")
        return {
            "name": self._config.run.name or self._folder.path.name,
            "accuracy_before": self.accuracy.get(0), "accuracy_after": self.accuracy.get(updates),
            "accuracy": {str(key): value for key, value in sorted(self.accuracy.items())},
            "updates": updates, "train_seconds": seconds,
            "tokens_per_second": self.totals["generated_tokens"] / max(seconds, 1e-9),
            "samples_per_second": self.totals["trained_trajectories"] / max(seconds, 1e-9),
            "max_staleness_seen": max(self.staleness, default=0),
            "staleness_histogram": {str(k): v for k, v in sorted(self.staleness.items())},
            "overlap_seconds": self._overlap, "busy_seconds": dict(self.busy),
            "loss_carrying_fraction": carried / (carried + masked) if carried + masked else 1.0,
            "weights_digest": digest, "ledger": ledger, "seed": self._config.seed,
            "canary_gap_nats": self.totals_canary, "restarts": self.totals["restarts"], "git_commit": git_commit(),
            "selection": self.selection.summary(),
            **{name: self.totals[name] for name in names},
        }

    def state_dict(self) -> dict[str, Any]:
        """Totals that go on after a resume."""
        return {
            "totals": dict(self.totals), "staleness": {str(k): v for k, v in self.staleness.items()},
            "seconds": self.train_seconds, "overlap": self._overlap, "busy": dict(self.busy),
            "accuracy": {str(k): v for k, v in self.accuracy.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], updates: int) -> None:
        """The inverse of :meth:`state_dict`; later metrics are forgotten."""
        self.totals = Counter(state["totals"])
        self.staleness = Counter({int(k): v for k, v in state["staleness"].items()})
        self._earlier_seconds, self._overlap = state["seconds"], state["overlap"]
        self.busy = defaultdict(float, state.get("busy", {}))
        self.accuracy = {int(k): v for k, v in state["accuracy"].items()}
        self._last_tokens = self.totals["generated_tokens"]
        self._writer.truncate(updates)

    def restart(self) -> None:
        """An earlier life left no checkpoint: its metrics are forgotten."""
        self._writer.truncate(-1)

    def close(self) -> None:
        """Flush what is written."""
        self._display.close()
        self._writer.close()
