"""Look at a run while it lives: ``perilune top RUNDIR``, or one frame with ``--once``."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from actors.stalls import clock_time
from actors.status import RUNNING, read_status
from engine.errors import PeriluneError

EVERY_S = 1.0
BARS = "".join(chr(0x2581 + level) for level in range(8))
WIDTH = 60
COLOURS = {"running": "green", "complete": "cyan", "stopped": "yellow", "cut off": "red"}


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """The newest values as bars between their smallest and largest.

    Example:
        >>> len(sparkline([0.0, 0.5, 1.0]))
        3
    """
    shown = list(values)[-width:]
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    return "".join(BARS[round((value - low) / span * 7) if span else 3] for value in shown)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(int(seconds), 0), 60)
    return f"{minutes}:{rest:02d}" if minutes else f"{rest} s"


def head(status: Mapping[str, Any], now: float) -> Text:
    """State, progress, speed."""
    state = status["state"]
    text = Text(state, style=f"bold {COLOURS.get(state, '')}".strip())
    text.append(f"  update {status.get('updates', 0)}/{status['total_updates']}")
    if "version" in status:
        text.append(f"  version {status['version']}  {status['tokens_per_second']:.0f} tokens/s")
        text.append(f"  {status['generated_tokens']} tokens  {status['restarts']} restarts")
    if state == RUNNING:
        text.append(f"  up {_duration(now - status['began'])}, {now - status['at']:.1f} s ago")
    else:
        text.append(f"  last sign of life at {clock_time(status['at'])}")
    return text


def actors_table(status: Mapping[str, Any], now: float) -> Table:
    """Who does what, since when, and serves which version."""
    table = Table(expand=True)
    for column in ("actor", "state", "for", "serves"):
        table.add_column(column)
    moment = now if status["state"] == RUNNING else status["at"]
    for name, actor in sorted(status["actors"].items()):
        serves = status.get("serving", {}).get(name)
        table.add_row(name, actor["state"], _duration(moment - actor["since"]), "" if serves is None else str(serves),
                      style="dim" if actor["state"] == "idle" else "")
    return table


def queues(status: Mapping[str, Any]) -> Text:
    """What waits where."""
    text = Text()
    for unit in ("trajectories", "groups"):
        depths = {name: depth for name, depth in status["queues"].items() if name.endswith(unit)}
        shown = (f"{name.removesuffix(f'_{unit}')} {depth}" for name, depth in depths.items())
        text.append(f"{unit:13s} {'  '.join(shown)}\n")
    return text


def numbers(status: Mapping[str, Any]) -> Text:
    """Rewards as bars, and the numbers of the last update."""
    latest, rewards = status.get("latest", {}), status.get("rewards", [])
    text = Text()
    if rewards:
        text.append(f"reward {rewards[-1]:.3f}  {sparkline(rewards)}\n")
    names = {"staleness": "schedule/staleness_mean_versions", "length": "rollout/length_mean_tokens",
             "loss-carrying": "learn/loss_carrying_fraction", "lost groups": "selection/lost_fraction",
             "update s": "schedule/update_seconds"}
    text.append("  ".join(f"{label} {latest[name]:.2f}" for label, name in names.items() if name in latest))
    return text


def frame(folder: Path, now: float) -> tuple[RenderableType, bool]:
    """One picture of a run, and whether it still runs.

    Raises:
        RunFolderError: it is not the folder of a run that has begun.
    """
    status = read_status(folder)
    title = Text(str(folder), style="bold")
    parts: list[RenderableType] = [title, head(status, now), actors_table(status, now)]
    if "queues" in status:
        parts += [queues(status), numbers(status)]
    return Group(*parts), status["state"] == RUNNING


def watch(folder: Path, console: Console) -> None:
    """Show frames until the run ends or Ctrl-C."""
    tick = threading.Event()
    picture, runs = frame(folder, time.time())
    with Live(picture, console=console, auto_refresh=False) as live:
        while runs:
            tick.wait(EVERY_S)
            picture, runs = frame(folder, time.time())
            live.update(picture, refresh=True)


def main() -> None:
    """Attach to the folder on the command line."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--once"]
    if len(arguments) != 1:
        print("usage: perilune top [--once] RUNDIR", file=sys.stderr)
        raise SystemExit(2)
    folder, console = Path(arguments[0]), Console()
    try:
        if "--once" in sys.argv:
            console.print(frame(folder, time.time())[0])
        else:
            watch(folder, console)
    except KeyboardInterrupt:
        return
    except (PeriluneError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
