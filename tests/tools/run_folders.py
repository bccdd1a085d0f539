"""Run folders as a run would leave them, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.records.trajectory import DropReason
from engine.replay.ledger import Ledger
from engine.replay.selection_bias import LeftGroup, SelectionBias
from tools.ablation.matching import composed

SMOKE = ("experiment=smoke",)


def write_run(folder: Path, *overrides: str, seed: int = 0, updates: int = 4, speed: float = 1.0,
              accuracy: float = 0.8, whole: bool = True) -> Path:
    """A run of so many updates; ``speed`` divides its seconds, ``whole=False`` leaves out its end."""
    folder.mkdir(parents=True)
    config, text = composed(*SMOKE, *overrides, f"learning.updates={updates}")
    (folder / "config.yaml").write_text(text)
    each = config.schedule.batch_groups * config.rollout.samples_per_prompt
    ledger, lines = Ledger(folder / "ledger.msgpack"), [evaluation(0, 2.0, 0.2)]
    done = updates if whole else updates // 2
    for update in range(1, done + 1):
        ids = range((update - 1) * each, update * each)
        for key in ids:
            ledger.issue(key, key // config.rollout.samples_per_prompt, "p")
            ledger.deliver(key, 10, finished=True)
        ledger.report("generator-0#1", update * each * 10, 0)
        ledger.consume(list(ids), 8 * each, {"zero_advantage": 2 * each})
        at = 2.0 + update / speed
        reached = 0.2 + (accuracy - 0.2) * update / updates
        lines += [line(update, at, 1.0 / speed), evaluation(update, at + 0.25, reached)]
    ledger.issue(10_000, 9_999, "p")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample(key)) + "\n" for key in range(40)))
    if whole:
        ledger.drop([10_000], DropReason.end_of_run)
        (folder / "summary.json").write_text(json.dumps(summary(seed, done, done / speed, ledger, accuracy)))
    ledger.close()
    return folder


def line(update: int, at: float, seconds: float) -> dict[str, Any]:
    """What an update writes."""
    return {"update": update, "seconds": at, "schedule/update_seconds": seconds, "learn/seconds": seconds / 2,
            "rollout/reward_mean": 0.1 * update, "rollout/length_mean_tokens": 10.0, "learn/behaviour_kl": 0.001,
            "learn/logprob_gap_mean_nats": 0.01, "schedule/staleness_mean_versions": 0.5,
            "schedule/staleness_max_versions": 1.0, "generate/tokens_per_second": 100.0,
            "selection/length_distance": 0.1 * update, "selection/success_distance": 0.0,
            "selection/age_distance": 0.0, "selection/alarm": float(update > 2)}


def evaluation(update: int, at: float, accuracy: float) -> dict[str, Any]:
    """What an evaluation writes."""
    return {"update": update, "seconds": at, "heldout/accuracy": accuracy, "heldout/length_mean_tokens": 9.0}


def sample(key: int) -> dict[str, Any]:
    """A response of two versions."""
    return {"trajectory": key, "group": key // 4, "prompt": "1 + <1>?", "text": "It is 2", "score": float(key % 2),
            "correct": bool(key % 2), "reason": "right", "outcome": "ok", "finish": "stop",
            "segments": [["0.0", 3], ["0.1", 4]], "pieces": ["It ", "is 2"]}


def summary(seed: int, updates: int, seconds: float, ledger: Ledger, accuracy: float) -> dict[str, Any]:
    """What the end of a run writes."""
    return {"name": "smoke", "updates": updates, "train_seconds": seconds, "seed": seed, "git_commit": "c0ffee",
            "accuracy_before": 0.2, "accuracy_after": accuracy, "overlap_seconds": 0.25 * seconds,
            "staleness_histogram": {"0": 3, "1": 1}, "ledger": ledger.counts(), "selection": selection(),
            "busy_seconds": {"generator-0#1": 0.25 * seconds, "generator-0#2": 0.5 * seconds, "learner": 0.5 * seconds}}


def selection() -> dict[str, object]:
    """A meter's window in which long answers of the hard kind were given up."""
    meter = SelectionBias()
    for k in range(40):
        lost = "given_up" if k % 4 == 3 else ""
        meter.left(LeftGroup(90.0 if lost else 10.0 + k % 5, (k % 5) / 4, ("sums", "<hard>" if lost else "easy"), k % 3,
                             lost))
    return meter.summary()
