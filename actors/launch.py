"""The hydra entry: compose groups into a RunConfig, or say in one sentence why that cannot be."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from actors.run import dry_run, run
from engine.config import learning
from engine.config.cluster import ClusterConfig, WeightsConfig
from engine.config.model import ModelConfig
from engine.config.prompts import PromptsConfig
from engine.config.rewards import RewardConfig
from engine.config.rollout import GeneratorConfig, RolloutConfig
from engine.config.run import RunConfig
from engine.config.schedule import ScheduleConfig
from engine.errors import PeriluneError, RunFolderError, nearest_name
from engine.run_folder import MARKER

# The one table of groups: hydra group, schema name, dataclass.
SCHEMAS: tuple[tuple[str | None, str, type], ...] = (
    (None, "run_schema", RunConfig),
    ("prompts", "prompts_schema", PromptsConfig),
    ("rollout", "rollout_schema", RolloutConfig),
    ("reward", "reward_schema", RewardConfig),
    ("model", "model_schema", ModelConfig),
    ("loss", "mirror_descent_schema", learning.MirrorDescentConfig),
    ("loss", "clipped_schema", learning.ClippedConfig),
    ("loss", "positives_schema", learning.PositivesConfig),
    ("loss", "dotted_schema", learning.DottedLossConfig),
    ("learning", "learning_schema", learning.LearningConfig),
    ("schedule", "schedule_schema", ScheduleConfig),
    ("generator", "generator_schema", GeneratorConfig),
    ("weights", "weights_schema", WeightsConfig),
    ("cluster", "cluster_schema", ClusterConfig),
)
CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "configs"
_UNKNOWN_KEY = re.compile(r"Key '([^']+)' (?:is )?not in '([^']+)'")


def register_schemas() -> None:
    """Make every dataclass known to hydra under its group."""
    store = ConfigStore.instance()
    for group, name, schema in SCHEMAS:
        # A loss of any kind may take this place, so no kind may stand there first.
        node = RunConfig(loss=learning.LossConfig()) if schema is RunConfig else schema
        store.store(group=group, name=name, node=node)


def build(composed: DictConfig) -> tuple[RunConfig, str]:
    """The validated configuration and its resolved YAML.

    Raises:
        ConfigError: what cannot work, by dotted key.
    """
    OmegaConf.resolve(composed)
    if OmegaConf.get_type(composed) is not RunConfig:  # a saved config.yaml brings no types along
        kinds = {schema().name: schema for group, _, schema in SCHEMAS if group == "loss"}
        kind = kinds.get(OmegaConf.select(composed, "loss.name"), learning.MirrorDescentConfig)
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig(loss=kind())), composed)
        assert isinstance(merged, DictConfig)
        composed = merged
    text = OmegaConf.to_yaml(composed, sort_keys=False)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, RunConfig)
    return config, text


def compose(overrides: Sequence[str], config_name: str = "run") -> tuple[RunConfig, str]:
    """Compose as the command line would; for tools and tests."""
    register_schemas()
    with hydra.initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return build(hydra.compose(config_name, list(overrides)))


def saved(folder: Path) -> RunConfig:
    """The configuration of a run, as its folder holds it.

    Raises:
        RunFolderError: this is not a run folder.
        ConfigError: its configuration is of another version of Perilune.
    """
    file = folder / MARKER
    if not file.is_file():
        raise RunFolderError(f"{folder} holds no {MARKER}: name the folder of a run")
    composed = OmegaConf.load(file)
    assert isinstance(composed, DictConfig)
    return build(composed)[0]


def explain(error: Exception) -> str:
    """One sentence for a person; names the nearest key where one was mistyped."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, PeriluneError):
            return str(cause)
    text = " ".join(str(error).split())
    found = _UNKNOWN_KEY.search(" ".join(str(cause) for cause in causes))
    if found:
        key, owner = found.groups()
        schema = next((s for _, _, s in SCHEMAS if s.__name__ == owner), RunConfig)
        names = [*getattr(schema, "__dataclass_fields__", {})]
        return f"unknown key {key!r} in {owner}: {nearest_name(key, names)}"
    why = str(causes[-1]).partition("\n")[0]
    return text if why in text else f"{text}: {why}"


def absolute_config_path(arguments: list[str]) -> list[str]:
    """A relative ``--config-path`` means a folder here, as a shell would have it; hydra looks beside its caller."""
    pairs = zip(["", *arguments], arguments, strict=False)
    found = [str(Path(own).resolve()) if before == "--config-path" else own for before, own in pairs]
    # Hydra's own settings are not part of a saved config; without them it would leave folders of its own.
    quiet = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout"]
    return [*found, *quiet] if "--config-path" in arguments else found


def main() -> None:
    """Compose from the command line and train; ``--dry-run`` stops before anything starts."""
    register_schemas()
    # Hydra would print its own account of a composition error and end; this lets it reach us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    dry = "--dry-run" in sys.argv
    sys.argv = absolute_config_path([argument for argument in sys.argv if argument != "--dry-run"])

    @hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="run")
    def entry(composed: DictConfig) -> Any:
        try:
            config, text = build(composed)
            if dry:
                return dry_run(config, text)
            return run(config, text).get("accuracy_after")
        except (PeriluneError, OmegaConfBaseException) as error:
            print(f"error: {explain(error)}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt as interrupt:
            print(f"{interrupt}; go on with run.exists=resume", file=sys.stderr)
            raise SystemExit(130) from None

    try:
        entry()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        raise SystemExit(2) from None
