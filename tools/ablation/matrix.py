"""All cells: in which order, how many at once, and what is taken over from an earlier call."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any

from tools.ablation.arms import AblationConfig, Order
from tools.ablation.cells import Cell, run_cell
from tools.ablation.matching import MatchedArm
from tools.pages.scale import short

_DRAWS = 500
"""Orders of the arms that are drawn for a seed."""


def cells_of(ablation: AblationConfig, arms: Sequence[MatchedArm]) -> list[Cell]:
    """The matrix in the order in which it is run; the same ablation, arms and seeds give the same.

    Interleaved: seed by seed, each with the arms in an order drawn for it. What a run leaves behind, a warm cache or
    a hot processor, meets the next one; so of many orders that are drawn the one is taken that repeats fewest pairs
    of neighbours, first of the seed before, then of all earlier ones, and then fewest places.
    """
    root = Path(ablation.dir).expanduser().absolute() / "cells"

    def cell(arm: MatchedArm, seed: int) -> Cell:
        return Cell(arm, seed, root / arm.name / f"seed-{seed}")

    if ablation.order is Order.in_turn:
        return [cell(arm, seed) for arm in arms for seed in ablation.seeds]
    rows = _orders(ablation.name, len(arms), ablation.seeds)
    return [cell(arms[i], seed) for seed, row in zip(ablation.seeds, rows, strict=True) for i in row]


def _orders(name: str, arms: int, seeds: Sequence[int]) -> list[list[int]]:
    """An order of the arms for every seed."""
    rows: list[list[int]] = []
    pairs: Counter[tuple[int, int]] = Counter()
    places: Counter[tuple[int, int]] = Counter()
    latest: set[tuple[int, int]] = set()
    for seed in seeds:
        before = rows[-1][-1:] if rows else []

        def cost(row: list[int], before: list[int] = before, latest: set[tuple[int, int]] = latest) -> tuple[int, ...]:
            met = list(pairwise(before + row))
            return (sum(pair in latest for pair in met), sum(pairs[pair] for pair in met),
                    sum(places[place] for place in enumerate(row)))

        draw = Random(f"{name} {seed}")
        row = min((draw.sample(range(arms), arms) for _ in range(_DRAWS)), key=cost)
        latest = set(pairwise(before + row))
        pairs.update(latest)
        places.update(enumerate(row))
        rows.append(row)
    return rows


class Matrix:
    """Runs cells; who is done already is left alone."""

    def __init__(self, ablation: AblationConfig, cells: Sequence[Cell], made: Mapping[str, Any],
                 say: Callable[[str], None] = print) -> None:
        """Nothing runs yet.

        Args:
            ablation: its options.
            cells: in the order in which they are run.
            made: what is written down beside every run: machine, versions, command.
            say: takes a line for the reader.
        """
        self.cells = cells
        self._ablation = ablation
        self._made = dict(made)
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
        goes_on = (cell.folder / "config.yaml").exists()
        self._say(f"{place}: {'goes on' if goes_on else 'begins'}")
        earlier = cell.tries if goes_on else []
        ended = run_cell(cell, self._ablation.deadline_s, self._started)
        cell.write_tries([*earlier, asdict(ended) | self._made])
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
