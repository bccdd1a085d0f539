"""All cells: in which order, how many at once, and what is taken over from an earlier call."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from tools.ablation.arms import AblationConfig, Order
from tools.ablation.cells import Cell, Ended, run_cell
from tools.ablation.matching import MatchedArm
from tools.pages.scale import short


def cells_of(ablation: AblationConfig, arms: Sequence[MatchedArm]) -> list[Cell]:
    """The matrix in the order in which it is run.

    Interleaved: seed by seed, the first arm moving on by one each time, so that whatever the machine does meets
    every arm alike.
    """
    root = Path(ablation.dir).expanduser().absolute() / "cells"

    def cell(arm: MatchedArm, seed: int) -> Cell:
        return Cell(arm, seed, root / arm.name / f"seed-{seed}")

    if ablation.order is Order.in_turn:
        return [cell(arm, seed) for arm in arms for seed in ablation.seeds]
    rotated = [(seed, arms[i % len(arms):], arms[: i % len(arms)]) for i, seed in enumerate(ablation.seeds)]
    return [cell(arm, seed) for seed, front, back in rotated for arm in (*front, *back)]


class Matrix:
    """Runs cells; who is done already is left alone."""

    def __init__(self, ablation: AblationConfig, cells: Sequence[Cell], say: Callable[[str], None] = print) -> None:
        self.cells = cells
        self.ended: dict[str, Ended] = {}
        """By name of the cell, for those that were run by this call."""
        self._ablation = ablation
        self._say = say
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = Lock()
        self._stopping = False

    def run(self) -> None:
        """Until every cell is complete or has failed; Ctrl-C asks those under way to write a checkpoint.

        Raises:
            RunFolderError: a folder holds a run with other options.
        """
        for cell in self.cells:
            cell.require_same_options()
        with ThreadPoolExecutor(self._ablation.parallel) as pool:
            try:
                for future in [pool.submit(self._one, cell) for cell in self.cells]:
                    future.result()
            except KeyboardInterrupt:
                self._stop()
                raise

    def _one(self, cell: Cell) -> None:
        place = f"[{self.cells.index(cell) + 1}/{len(self.cells)}] {cell.name}"
        if self._stopping:
            return
        if cell.summary is not None:
            self._say(f"{place}: taken over")
            return
        self._say(f"{place}: {'goes on' if (cell.folder / 'config.yaml').exists() else 'begins'}")
        ended = self.ended[cell.name] = run_cell(cell, self._ablation.deadline_s, self._started)
        summary = cell.summary
        if ended.failed or summary is None:
            self._say(f"{place}: FAILED, {ended.failed}; its last words are in {cell.log}")
        else:
            self._say(f"{place}: {summary['updates']} updates in {summary['train_seconds']:.0f} s of training, "
                      f"{ended.seconds:.0f} s in all, held-out accuracy {short(summary['accuracy_after'])}")

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._running.add(process)
            if self._stopping:
                process.send_signal(signal.SIGINT)

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            for process in self._running:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
