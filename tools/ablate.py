"""Compare arms over seeds and take a speed-up apart: ``python -m tools.ablate ablation=async_vs_sync``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from actors.launch import CONFIG_FOLDER, explain
from engine.errors import PeriluneError, nearest_name
from engine.run_folder import write_atomically
from tools.ablation.arms import AblationConfig
from tools.ablation.made import machine, versions
from tools.ablation.markdown import markdown
from tools.ablation.matching import match_arms, undeclared
from tools.ablation.matrix import Matrix, cells_of
from tools.ablation.outcome import as_csv, outcome_of, stories_of
from tools.ablation.sheet import ablation_sheet
from tools.ablation.simulated import Plan
from tools.ablation.tables import sentences
from tools.plan import plan


def load(overrides: Sequence[str]) -> AblationConfig:
    """Compose ``configs/ablate.yaml`` with an ablation and these overrides.

    Raises:
        ConfigError: what cannot work, by key.
    """
    ConfigStore.instance().store(name="ablation_schema", node=AblationConfig)
    with hydra.initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        composed = OmegaConf.to_object(hydra.compose("ablate", list(overrides)))
    assert isinstance(composed, AblationConfig)
    return composed


def ablate(ablation: AblationConfig, predict: Plan | None = None, command: str = "") -> dict[str, Any]:
    """Run what is not there yet, then write the JSON, the CSV, the table and the page; returns what the JSON holds.

    Args:
        ablation: its options.
        predict: says what separate devices would give; None: nothing is said of them.
        command: written down beside every run that this call makes.

    Raises:
        PeriluneError: options that cannot work, or a folder that holds other runs.
    """
    arms = match_arms(ablation)
    for note in undeclared(ablation, arms):
        print(f"warning: {note}", flush=True)
    cells = cells_of(ablation, arms)
    if not ablation.report_only:
        made = {"machine": machine(), "versions": versions(), "command": command}
        Matrix(ablation, cells, made, lambda text: print(text, flush=True)).run()
    stories = stories_of(cells)
    outcome = outcome_of(ablation, cells, stories, predict)
    folder = Path(ablation.dir).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in (
        ("json", json.dumps(outcome, indent=1) + "\n"), ("csv", as_csv(outcome)), ("md", markdown(outcome)),
        ("html", ablation_sheet(outcome, cells, stories)),
    ):
        write_atomically(folder / f"ablation.{suffix}", text.encode())
    return outcome


def _explain(error: Exception) -> str:
    text = explain(error)
    if "unknown key" in text:  # it looks among the options of a run
        key = text.partition("'")[2].partition("'")[0]
        return f"unknown key {key!r} of an ablation: {nearest_name(key, AblationConfig.__dataclass_fields__)}"
    return text


def main() -> None:
    """Read the command line, run, and end with 1 if a run failed."""
    try:
        ablation = load(sys.argv[1:])
        outcome = ablate(ablation, plan, f"perilune ablate {shlex.join(sys.argv[1:])}")
    except (PeriluneError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {_explain(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    for line in [*sentences(outcome), *outcome["notes"]]:
        print(line)
    print(f"page: {Path(ablation.dir).expanduser().absolute() / 'ablation.html'}")
    raise SystemExit(0 if all(cell["complete"] for cell in outcome["cells"]) else 1)


if __name__ == "__main__":
    main()
