"""Predict how fast a run would be with other numbers: ``perilune plan RUNDIR generators=8 schedule=async``.

Driven by the trace of a run that was made. Several values of a key, as in ``generators=1,2,4``, give a row
each; without any change the run itself is predicted, which tells how far off the prediction is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from actors.launch import explain, saved
from actors.simulation.costs import Measured
from actors.simulation.forecast import LENGTHS, OTHERS, OWN, SCHEDULE, Forecast, forecast
from actors.simulation.world import Prediction
from engine.errors import ConfigError, PeriluneError

ROLES = ("generator", "learner", "judge", "driver")


def plan(folder: Path, changes: Mapping[str, str], lengths: str = "run") -> Forecast:
    """Predict one changed run from a run folder.

    Raises:
        PeriluneError: no run folder with a trace, or a change that cannot be.
    """
    return forecast(folder, saved(folder), changes, lengths)


def combinations(changes: Sequence[str]) -> list[dict[str, str]]:
    """One mapping for every combination of values.

    Raises:
        ConfigError: something is not ``key=value``.

    Example:
        >>> combinations(["slots=8", "generators=1,2"])
        [{'slots': '8', 'generators': '1'}, {'slots': '8', 'generators': '2'}]
    """
    keys, values = [], []
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not value:
            raise ConfigError("plan", change, "give key=value")
        keys.append(key)
        values.append(value.split(","))
    return [dict(zip(keys, chosen, strict=True)) for chosen in product(*values)]


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    keys = ", ".join(sorted([*OWN, *SCHEDULE, *OTHERS]))
    parser = argparse.ArgumentParser(prog="plan", description=(__doc__ or "").splitlines()[0], epilog=f"keys: {keys}")
    parser.add_argument("folder", type=Path, help="of a run made with run.trace=true")
    parser.add_argument("changes", nargs="*", help="key=value or key=value,value,...")
    parser.add_argument("--lengths", default="run", help=LENGTHS)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    return parser.parse_args(arguments)


def row(name: str, found: Prediction | Measured) -> list[str]:
    """Cells of a run, predicted or measured."""
    ages = " ".join(f"{age}:{share:.0%}" for age, share in found.staleness.items())
    idle = [f"{found.idle[role]:.0%}" if role in found.idle else "" for role in ROLES]
    return [name, f"{found.seconds_per_update:.3g}", f"{found.samples_per_second:.4g}",
            f"{found.tokens_per_second:.4g}", ages, *idle]


def show(found: Sequence[tuple[str, Forecast]]) -> None:
    """The table, and what it rests on."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    first = found[0][1]
    measured = first.measured
    heads = ("", "s/update", "samples/s", "tokens/s", "staleness", *(f"{role} idle" for role in ROLES))
    table = Table(*heads, box=SIMPLE_HEAD)
    table.add_row(*row("measured", measured))
    table.add_row(*row("the same, predicted", first.itself))
    for name, one in found:
        if name:
            table.add_row(*row(name, one.predicted))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print(f"error of the prediction of the run itself: {first.error:+.1%} seconds per update "
                  f"({measured.updates} updates)")
    for sentence in dict.fromkeys(sentence for _, one in found for sentence in one.assumptions):
        console.print(f"- {sentence}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict, print, write."""
    asked = options(sys.argv[1:] if arguments is None else arguments)
    found: list[tuple[str, Forecast]] = []
    try:
        rows = combinations(asked.changes)
        for changes in rows:
            # What all rows have in common is said once, on the command line.
            own = {key: value for key, value in changes.items() if any(row[key] != value for row in rows)}
            name = " ".join(f"{key}={value}" for key, value in own.items()) or "as changed"
            changed = bool(changes) or asked.lengths != "run"
            found.append((name if changed else "", plan(asked.folder, changes, asked.lengths)))
    except (PeriluneError, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    show(found)
    if asked.json is not None:
        whole: list[dict[str, Any]] = [{"changes": changes, "lengths": asked.lengths, **one.as_dict()}
                                       for changes, (_, one) in zip(rows, found, strict=True)]
        asked.json.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
