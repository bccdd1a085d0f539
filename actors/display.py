"""What a run shows in its terminal: a live line, sentences, and a table at the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config.run import RunConfig


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


class Display:
    """Prints, unless the run is quiet."""

    def __init__(self, config: RunConfig) -> None:
        self._quiet = config.run.quiet
        self._total = config.learning.updates
        self._live = sys.stdout.isatty() and not config.run.quiet
        self._line = ""
        self._length = 0.0

    def progress(self, updates: int, values: Mapping[str, float], accuracy: float | None, seconds: float) -> None:
        """The live line after an update.

        Args:
            updates: committed so far.
            values: metrics of the update.
            accuracy: of the newest evaluation.
            seconds: of training so far.
        """
        if self._quiet:
            return
        self._length = values.get("rollout/length_mean_tokens", self._length)
        left = int(seconds / max(updates, 1) * (self._total - updates))
        self._print(
            f"update {updates}/{self._total}  reward {values.get('rollout/total_reward_mean', 0.0):.2f}  "
            f"held-out {float('nan') if accuracy is None else accuracy:.2f}  length {self._length:.1f}  "
            f"staleness {values['schedule/staleness_mean_versions']:.2f}  "
            f"{values['generate/tokens_per_second']:.0f} tokens/s  left {left // 60}:{left % 60:02d}"
        )

    def _print(self, line: str) -> None:
        if self._live:
            print("\r" + line.ljust(len(self._line)), end="", flush=True)
            self._line = line
        else:
            print(line, flush=True)

    def say(self, text: str) -> None:
        """A sentence of its own line."""
        self.close()
        if not self._quiet:
            print(text, flush=True)

    def table(self, summary: Mapping[str, Any], examples: Mapping[str, Sequence[tuple[str, str, bool]]],
              folder: Path) -> None:
        """Before, after, and examples."""
        if self._quiet:
            return
        from rich.console import Console
        from rich.table import Table

        table = Table("", "before", "after", title=f"{summary['name']}: {summary['updates']} updates in "
                      f"{summary['train_seconds']:.0f} s")
        table.add_row("held-out accuracy", *(_shown(summary[f"accuracy_{when}"]) for when in ("before", "after")))
        pairs = zip(examples.get("before", ()), examples.get("after", ()), strict=False)
        for (question, first, _), (_, second, _) in list(pairs)[:4]:
            table.add_row(question.strip()[-60:], first.strip()[:60], second.strip()[:60])
        console = Console()
        console.print(table)
        console.print(f"run folder: {folder}")

    def close(self) -> None:
        """End the live line."""
        if self._live and self._line:
            print()
            self._line = ""
