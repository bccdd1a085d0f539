"""Arms made comparable: the same amount for each, the same prompts, and no difference that nobody declared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from actors.launch import compose
from engine.config.run import RunConfig
from engine.errors import ConfigError
from tools.ablation.arms import AblationConfig, ArmConfig, Match

# What decides which questions are asked and held out; the order in which they come does not.
PROMPT_SET = ("source", "task", "task_options", "path", "heldout_path", "dotted_path", "system", "instruction",
              "num_train", "num_heldout", "seed", "must_match")
_OWN = ("run.dir", "run.exists", "run.quiet", "run.name", "seed", "run.seed")


@dataclass(frozen=True, slots=True)
class MatchedArm:
    """An arm with the options that give it its share."""

    name: str
    overrides: tuple[str, ...]
    """All of them, the base's included; without run folder and seed."""
    config: RunConfig
    flat: Mapping[str, Any]
    """Resolved options by dotted key."""


def match_arms(ablation: AblationConfig) -> list[MatchedArm]:
    """Compose every chosen arm, with the same amount for each.

    Raises:
        ConfigError: an option of an arm cannot work, the amount does not divide, or arms ask different questions.
    """
    arms = [_matched(ablation, arm) for arm in ablation.chosen]
    for arm in arms[1:]:
        _require_same_prompts(arms[0], arm)
    return arms


def _matched(ablation: AblationConfig, arm: ArmConfig) -> MatchedArm:
    overrides = [*ablation.base, *arm.overrides]
    if ablation.match is Match.seconds:
        overrides.append(f"learning.max_seconds={ablation.amount}")
    elif ablation.amount:
        overrides.append(f"learning.updates={_updates(ablation, arm.name, overrides)}")
    config, text = composed(*overrides)
    return MatchedArm(arm.name, tuple(overrides), config, flat(text))


@cache
def composed(*overrides: str) -> tuple[RunConfig, str]:
    """The options of a run, composed once: it takes a while."""
    return compose(overrides)


def _updates(ablation: AblationConfig, name: str, overrides: Sequence[str]) -> int:
    each = 1
    if ablation.match is Match.samples:
        config, _ = composed(*overrides)
        each = config.schedule.batch_groups * config.rollout.samples_per_prompt
    updates = ablation.amount / each
    if updates % 1:
        what = f"a multiple of the {each} samples that an update of arm {name!r} takes" if each > 1 else "whole updates"
        raise ConfigError("amount", ablation.amount, f"give {what}")
    return int(updates)


def flat(text: str) -> dict[str, Any]:
    """YAML options by dotted key."""
    return dict(_leaves("", OmegaConf.to_container(OmegaConf.create(text))))


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}" if key else str(name), inner)
    else:
        yield key, value


def different(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Dotted keys whose values differ, run folder and seed left out."""
    return [key for key in dict.fromkeys((*left, *right))
            if key not in _OWN and left.get(key, ...) != right.get(key, ...)]


def _require_same_prompts(first: MatchedArm, arm: MatchedArm) -> None:
    for key in different(first.flat, arm.flat):
        room, _, name = key.partition(".")
        if room == "prompts" and name.partition(".")[0] in PROMPT_SET:
            raise ConfigError(key, arm.flat.get(key), f"arm {first.name!r} has {first.flat.get(key)!r}: arms that ask "
                              "different questions cannot be compared; give both the same, or two ablations")


def undeclared(ablation: AblationConfig, arms: Sequence[MatchedArm]) -> list[str]:
    """A sentence for every arm that differs from the one it stands against in more than the overrides of both say.

    An arm that stands against none is compared with the first.
    """
    said = {arm.name: [_key(override) for override in arm.overrides] for arm in ablation.arms}
    against = {arm.name: arm.against for arm in ablation.arms}
    matched = ["learning.updates"] if ablation.match is Match.samples else []
    by_name = {arm.name: arm for arm in arms}
    notes = []
    for arm in arms[1:]:
        before = by_name.get(against[arm.name], arms[0])
        declared = [*said[before.name], *said[arm.name], *matched]
        extra = [key for key in different(before.flat, arm.flat)
                 if not any(key == name or key.startswith(name + ".") for name in declared)]
        values = [f"{key} ({before.flat.get(key)!r}, {arm.flat.get(key)!r})" for key in extra]
        if values:
            notes.append(f"Arms {before.name} and {arm.name} differ in more than they say: {', '.join(values)}.")
    return notes


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~").removeprefix("/")
