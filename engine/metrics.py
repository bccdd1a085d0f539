"""Metrics by documented names: ``room/name_unit``, written once per update.

Every name has one line of meaning in :data:`DOCUMENTED`; a name without one is refused where it is
recorded, so that no plot shows a number that nobody can explain. Values cover one update.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MultilineChartContent
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from engine.errors import ConfigError, RunFolderError, nearest_name

_NAME = re.compile(r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*")

_DROPPED = {
    "no_spread": "all rewards of the group were equal and it was replaced",
    "judge_failed": "the judge did not do its work within its retries",
    "generator_lost": "the generator died with them",
    "given_up": "every allowed attempt was used",
    "poison_prompt": "the prompt killed two actors and was quarantined",
    "non_finite": "the step over them was not finite and was not committed",
    "rollback": "their version was rolled back",
    "end_of_run": "the run ended before they were trained",
}
_MASKED = {
    "zero_advantage": "the total reward equals its baseline",
    "stale": "they were sampled too many versions ago",
    "earlier_round": "they were sampled before the round that completed their group",
    "overlong": "their response was truncated",
    "not_selected": "the loss trains on other trajectories only",
}

DOCUMENTED: dict[str, str] = {
    "rollout/reward_mean": "mean score of the trajectories judged since the last update, before any length reward",
    "rollout/total_reward_mean": "mean of score plus length reward plus penalties of the trained trajectories",
    "rollout/length_mean_tokens": "mean sampled tokens of the same, stop token included",
    "rollout/correct_fraction": "share of the trajectories judged since the last update that are correct",
    "rollout/truncated_fraction": "share of the same that ended at the response budget",
    "rollout/repetition_fraction": "share of the same that was stopped because it looped",
    "heldout/accuracy": "share of held-out prompts answered correctly by greedy decoding",
    "heldout/length_mean_tokens": "mean length of the greedy held-out answers, in sampled tokens",
    "heldout/mean_at_k": "mean correctness over the k sampled answers per held-out prompt",
    "heldout/pass_at_k": "share of held-out prompts with a correct answer among k samples",
    "learn/loss": "batch loss, mean over groups, zero-advantage ones included",
    "learn/gradient_norm": "largest L2 norm of the gradient before clipping over the optimiser steps",
    "learn/learning_rate": "learning rate of the last optimiser step",
    "learn/logprob_gap_mean_nats": "mean absolute gap of behaviour and learner log-probs before the step",
    "learn/behaviour_kl": "KL(behaviour || learner) in nats a token, estimator k3",
    "learn/fixed_kl": "KL(learner || fixed first policy) in nats a token, estimator k3",
    "learn/entropy": "entropy of the learner in nats a token, where the loss asks for it",
    "learn/ratio": "mean probability ratio of learner and proximal policy",
    "learn/clip_fraction": "share of tokens whose ratio was clipped",
    "learn/importance_weight": "mean importance weight after truncation",
    "learn/importance_outside": "share of importance weights beyond cap or floor",
    "learn/drift_per_trajectory": "mean absolute D_j, learner minus reference log-prob of a trajectory",
    "learn/non_finite_steps": "optimiser steps that were not committed because they were not finite",
    "learn/optimiser_steps": "optimiser steps since the run began",
    "learn/zero_spread_groups": "consumed groups whose total rewards are all equal",
    "learn/trained_tokens": "tokens that carried loss",
    "learn/loss_carrying_fraction": "share of the sampled tokens of all groups consumed since the run began"
                                    " that carried loss",
    "learn/rank_tokens_min": "tokens forwarded by the learner that forwarded fewest, of several",
    "learn/rank_tokens_max": "tokens forwarded by the learner that forwarded most, of several",
    "learn/rank_wait_seconds_min": "time inside collectives of the learner that waited least, of several on CPUs",
    "learn/rank_wait_seconds_max": "time inside collectives of the learner that waited most, of several on CPUs",
    "learn/seconds": "time of the learner's update",
    "schedule/staleness_mean_versions": "mean staleness of loss-carrying tokens, in versions",
    "schedule/staleness_max_versions": "largest staleness of a loss-carrying token, in versions",
    "schedule/outstanding_groups": "groups issued and not yet trained, filtered or given up, after the update",
    "schedule/learner_wait_seconds": "time between two updates: the learner published, saved, waited for groups",
    "schedule/update_seconds": "time from one commit to the next",
    "generate/tokens_per_second": "tokens sampled per second by all generators together",
    "generate/saved_tokens": "tokens not decoded because loops were cut, since the run began",
    "publish/seconds": "time in which the learner wrote the new version into the channel",
    "judge/seconds_mean": "mean time of one judgement since the judge began",
    "judge/judged": "trajectories handed to the judge since it began, held-out ones included",
    "judge/correct": "of those, judged correct",
    "judge/retries": "judgements repeated since the judge began, because one failed or timed out",
    "judge/outcome_failed": "judgements that ended as failed since the judge began",
    "judge/outcome_timeout": "judgements that ended as timeout since the judge began",
    "judge/workers": "worker processes that judge",
    "judge/replaced_workers": "worker processes replaced since the judge began",
    "replay/groups": "groups that replay holds",
    "replay/unfinished_trajectories": "trajectories in replay that wait to go on",
    "replay/tokens": "sampled tokens that replay holds",
    "replay/fenced_deliveries": "deliveries refused since the run began, because their lease had ended",
    "selection/lost_fraction": "share of the groups that left in the window without being trained, filters apart",
    "selection/generated_length_mean_tokens": "mean length of all groups that left in the window",
    "selection/trained_length_mean_tokens": "mean length of those that were trained",
    "selection/generated_age_mean_versions": "mean age of groups that left in the window, oldest token to leaving",
    "selection/trained_age_mean_versions": "the same of those that were trained, in versions",
    "selection/length_distance": "largest difference of the length distributions of trained and generated groups",
    "selection/success_distance": "the same for their success rates",
    "selection/age_distance": "the same for their ages; it raises no alarm",
    "selection/kind_share_min": "smallest share of a kind or tag among trained groups over that among generated",
    "selection/alarm": "1 where trained groups differ from generated ones by more than chance",
    "checkpoint/seconds": "time to write the last checkpoint, told with the update after it",
    "hybrid/sleep_seconds": "time until all who sample had left shared devices, running evaluations included",
    "hybrid/onload_seconds": "time to bring the learner's weights and moments to a shared device",
    "hybrid/offload_seconds": "time to bring them back to the host's memory",
    "hybrid/wake_seconds": "longest time in which a generator took its memory on a shared device again",
    "supervise/restarts": "actors restarted since the run began",
    **{f"ledger/dropped_{k}_trajectories": f"trajectories dropped in the run: {v}" for k, v in _DROPPED.items()},
    **{f"ledger/dropped_{k}_tokens": f"tokens dropped in the run: {v}" for k, v in _DROPPED.items()},
    **{f"ledger/masked_{k}_tokens": f"tokens trained without loss: {v}" for k, v in _MASKED.items()},
}
"""Metric name to one line of meaning. Extend it with :func:`document`."""

LAYOUT: dict[str, dict[str, tuple[str, ...]]] = {
    "Does it learn": {
        "reward": ("rollout/reward_mean", "rollout/total_reward_mean", "rollout/correct_fraction"),
        "held out": ("heldout/accuracy", "heldout/mean_at_k", "heldout/pass_at_k"),
        "length in tokens": ("rollout/length_mean_tokens", "heldout/length_mean_tokens"),
        "how answers end": ("rollout/truncated_fraction", "rollout/repetition_fraction"),
    },
    "Is it sound": {
        "staleness in versions": ("schedule/staleness_mean_versions", "schedule/staleness_max_versions"),
        "behaviour against learner": ("learn/logprob_gap_mean_nats", "learn/behaviour_kl"),
        "loss": ("learn/loss", "learn/gradient_norm"),
        "entropy in nats": ("learn/entropy",),
        "trained against generated": ("selection/length_distance", "selection/success_distance",
                                      "selection/age_distance", "selection/kind_share_min",
                                      "selection/alarm"),
        "loss-carrying fraction": ("learn/loss_carrying_fraction",),
    },
    "Is it fast": {
        "tokens per second": ("generate/tokens_per_second",),
        "seconds": ("schedule/update_seconds", "learn/seconds", "publish/seconds",
                    "judge/seconds_mean"),
        "what replay holds": ("replay/groups", "replay/unfinished_trajectories"),
    },
}
"""Category -> chart -> metrics that TensorBoard shows in one plot, under Custom Scalars."""


def document(name: str, text: str) -> None:
    """Give a metric of your own its line of meaning, once, before it is recorded.

    Raises:
        ValueError: the name is not ``room/name_unit``, has another meaning already, or the text is empty.
    """
    if not _NAME.fullmatch(name) or not text.strip():
        raise ValueError(
            f"metric {name!r}: {text!r}: give room/name_unit in lower case and a line of meaning"
        )
    if DOCUMENTED.setdefault(name, text) != text:
        raise ValueError(f"metric {name!r} is documented already: {DOCUMENTED[name]}")


def require_documented(name: str) -> None:
    """Refuse a name without meaning.

    Raises:
        ValueError: the name is not in :data:`DOCUMENTED`.
    """
    if name not in DOCUMENTED:
        hint = nearest_name(name, DOCUMENTED)
        raise ValueError(f"metric {name!r} is not documented ({hint}): call metrics.document(name, text)")


class MetricsWriter:
    """Appends ``metrics.jsonl``, TensorBoard events and, if asked, W&B.

    Args:
        run_dir: the run folder; events go to ``run_dir/tensorboard``.
        wandb: also log to Weights & Biases.
        config: plain containers shown beside the W&B run.
        clock: seconds, monotonic; injected so that tests need no waiting.

    Raises:
        ConfigError: ``wandb`` is asked for and its package is missing.
    """

    def __init__(self, run_dir: Path, wandb: bool = False, config: Mapping[str, Any] | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._wandb = _start_wandb(run_dir, config) if wandb else None
        self._file = run_dir / "metrics.jsonl"
        self._clock = clock
        self._keep(lambda line: True)
        (events := run_dir / "tensorboard").mkdir(parents=True, exist_ok=True)
        # Written at once by this thread: what a kill leaves behind is what was reported.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        self._events = RecordWriter((events / name).open("wb"))
        self._event(file_version="brain.Event:2")
        self._event(summary=_layout_summary())

    def write(self, update: int, values: Mapping[str, float]) -> None:
        """Append one line: ``update``, ``seconds`` since the run began (earlier lives included), values.

        A value that is not finite becomes null in the file, since JSON has no NaN.

        Raises:
            ValueError: a name is not documented; nothing is written.
            RunFolderError: the disk refuses.
        """
        for name in values:
            require_documented(name)
        numbers = {name: float(value) for name, value in values.items()}
        plain = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        line = {"update": update, "seconds": round(self._clock() - self._started, 3), **plain}
        try:
            with self._file.open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
            scalars = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
            self._event(step=update, summary=Summary(value=scalars))
        except OSError as error:
            raise RunFolderError(f"{self._file} cannot grow ({error}): free the disk, resume") from error
        if self._wandb is not None:
            self._wandb.log({"seconds": line["seconds"], **numbers}, step=update)

    def truncate(self, update: int) -> None:
        """After a resume at ``update``: forget every line and event of later updates."""
        self._keep(lambda line: line["update"] <= update)
        self._event(step=update + 1, session_log=SessionLog(status=SessionLog.START))

    def close(self) -> None:
        """Close the files; twice is harmless."""
        if not self._events.closed:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Keep the wanted whole lines (a kill may tear the last one); the clock goes on from them."""
        text = self._file.read_text() if self._file.exists() else ""
        whole = text[: text.rfind("\n") + 1].splitlines(keepends=True)
        kept = [(line, row) for line in whole if wanted(row := json.loads(line))]
        if (content := "".join(line for line, _ in kept)) != text:
            temporary = self._file.with_name(f".{self._file.name}.tmp")
            temporary.write_text(content)
            temporary.replace(self._file)
        self._started = self._clock() - max((row["seconds"] for _, row in kept), default=0.0)

    def _event(self, **fields: Any) -> None:
        self._events.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._events.flush()


def _layout_summary() -> Summary:
    """How TensorBoard groups the scalars; each tag there is a regular expression."""
    layout = Layout(category=[
        Category(title=title, chart=[
            Chart(title=chart, multiline=MultilineChartContent(tag=[f"^{re.escape(name)}$" for name in names]))
            for chart, names in charts.items()
        ])
        for title, charts in LAYOUT.items()
    ])
    tensor = TensorProto(dtype=DT_STRING, string_val=[layout.SerializeToString()])
    value = Summary.Value(tag=CONFIG_SUMMARY_TAG, tensor=tensor, metadata=create_summary_metadata())
    return Summary(value=[value])


def _start_wandb(run_dir: Path, config: Mapping[str, Any] | None) -> Any:
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError("run.wandb", True, "pip install wandb, or set run.wandb=false") from error
    return wandb.init(project="perilune", name=run_dir.name, dir=str(run_dir), config=dict(config or {}))
