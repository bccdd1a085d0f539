"""The numbers of one run that arms are compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tools.ablation.arms import TargetConfig
from tools.story.curves import bracket, first_reach
from tools.story.folder import RunStory
from tools.story.work import decode_steps, idle_shares

MEASURES: dict[str, str] = {
    "samples_per_second": "trained samples per second",
    "tokens_per_second": "their tokens per second",
    "tokens_per_step": "tokens per decoding step of a generator",
    "seconds_to_target": "seconds to the target",
    "samples_to_target": "samples to the target",
    "updates_to_target": "updates to the target",
    "target_after_updates": "update of the last evaluation below the target",
    "target_by_updates": "update of the first evaluation that reaches it",
    "accuracy": "held-out accuracy at the end",
    "length_tokens": "mean length, tokens",
    "staleness_versions": "mean staleness, versions",
    "logprob_gap_nats": "gap of behaviour and learner log-probs, nats",
    "behaviour_kl_nats": "KL(behaviour || learner), nats a token",
    "overlap": "share of time with sampling and learning at once",
    "updates": "updates",
    "train_seconds": "seconds of training",
}
"""Name -> what it says. Besides, shares: ``idle/ACTOR``, ``masked/REASON``, ``dropped/REASON``, ``staleness/AGE``."""
BRACKET = ("target_after_updates", "target_by_updates")
"""Between these two evaluations the target was crossed; where is a matter of interpolation."""


def samples_an_update(story: RunStory) -> float:
    """Trajectories that an update consumed, on average."""
    trained, updates = story.ledger["trajectories"]["trained"], story.curves.updates
    if trained and updates:
        return float(trained) / updates
    return float(story.config["schedule"]["batch_groups"] * story.config["rollout"]["samples_per_prompt"])


def measure(story: RunStory, target: TargetConfig, metrics: Sequence[str] = ()) -> dict[str, float | None]:
    """Every measure of a run, whole or cut off; None where it has none."""
    curves, tokens = story.curves, story.ledger["tokens"]
    each, seconds = samples_an_update(story), story.seconds
    samples = float(story.ledger["trajectories"]["trained"])
    consumed = float(tokens["carried_loss"] + sum(tokens["masked"].values()))
    points, steps = curves.at_commit(target.metric), decode_steps(story)
    accuracy, learned = curves["heldout/accuracy"], [(float(point.update), point.value) for point in points]
    after, by = bracket(learned, target.value) or (None, None)
    found: dict[str, float | None] = {
        "samples_per_second": samples / seconds if seconds else None,
        "tokens_per_second": consumed / seconds if seconds else None,
        "tokens_per_step": tokens["generated"] / steps if steps else None,
        "seconds_to_target": first_reach([(point.seconds, point.value) for point in points], target.value),
        "samples_to_target": first_reach([(update * each, value) for update, value in learned], target.value),
        "updates_to_target": first_reach(learned, target.value),
        "target_after_updates": after, "target_by_updates": by,
        "accuracy": accuracy[-1].value if accuracy else None,
        "length_tokens": consumed / samples if samples else None,
        "staleness_versions": curves.mean("schedule/staleness_mean_versions"),
        "logprob_gap_nats": curves.mean("learn/logprob_gap_mean_nats"),
        "behaviour_kl_nats": curves.mean("learn/behaviour_kl"),
        "overlap": story.summary["overlap_seconds"] / seconds if story.summary and seconds else None,
        "updates": float(curves.updates), "train_seconds": seconds,
    }
    return found | _shares(story) | {name: curves.mean(name) for name in metrics}


def _shares(story: RunStory) -> dict[str, float | None]:
    tokens = story.ledger["tokens"]
    generated = max(tokens["generated"], 1)
    found: dict[str, float | None] = {f"idle/{actor}": share for actor, share in idle_shares(story).items()}
    for state in ("masked", "dropped"):
        found |= {f"{state}/{reason}": count / generated for reason, count in tokens[state].items()}
    histogram = (story.summary or {}).get("staleness_histogram", {})
    carried = max(sum(histogram.values()), 1)
    return found | {f"staleness/{age}": count / carried for age, count in histogram.items()}


def value_of(run: Mapping[str, float | None], name: str) -> float | None:
    """A measure of a run; a reason or staleness that it does not name is 0 there."""
    return run.get(name, 0.0 if name.partition("/")[0] in ("masked", "dropped", "staleness") else None)


def label(name: str) -> str:
    """What a table calls a measure."""
    kind, _, what = name.partition("/")
    words = {"idle": f"idle share of {what}", "staleness": f"share of tokens {what} versions old",
             "masked": f"tokens masked, {what.replace('_', ' ')}",
             "dropped": f"tokens dropped, {what.replace('_', ' ')}"}
    return MEASURES.get(name) or words.get(kind, name)


def is_share(name: str) -> bool:
    """A part of a whole, shown in percent."""
    return name == "overlap" or name.partition("/")[0] in ("idle", "masked", "dropped", "staleness")
