"""Processes that stand for the ranks of a learner: started once, they meet anew for every question."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Callable
from typing import Any

MOST = 3
DEADLINE_S = 120.0


def _next(questions: Any) -> Any:
    """The next question; None once whoever asks is gone, since a killed one ends nobody."""
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        try:
            return questions.get(timeout=1.0)
        except queue.Empty:
            continue
    return None


def _serve(rank: int, questions: Any, answers: Any) -> None:
    import torch

    from engine.models.ranks import LOOPBACK, Store, join

    torch.set_num_threads(1)
    store = None
    while (asked := _next(questions)) is not None:
        function, size, address, deadline_s, arguments = asked
        try:
            if address is None:
                store = Store(LOOPBACK, size, deadline_s)
                answers.put((rank, store.address, None))
                continue
            ranks = join(address, rank, size, deadline_s, store=store)
            try:
                answers.put((rank, function(ranks, *arguments), None))
            finally:
                ranks.leave()
                store = None
        except Exception as error:  # noqa: BLE001 - handed to whoever asked
            answers.put((rank, None, error))


class RankPool:
    """At most ``MOST`` ranks; a context."""

    def __enter__(self) -> RankPool:
        context = multiprocessing.get_context("spawn")
        self._answers = context.Queue()
        self._questions = [context.Queue() for _ in range(MOST)]
        self._processes = [context.Process(target=_serve, args=(rank, asked, self._answers), daemon=True)
                           for rank, asked in enumerate(self._questions)]
        self._started = 0
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes[: self._started]:
            process.kill()
            process.join()

    def each(self, function: Callable[..., Any], size: int, *arguments: Any,
             deadline_s: float = 60.0) -> list[tuple[Any, Exception | None]]:
        """``function(ranks, *arguments)`` on every rank: what it returned, or what it raised."""
        while self._started < size:
            self._processes[self._started].start()
            self._started += 1
        self._questions[0].put((None, size, None, deadline_s, ()))
        _, address, error = self._answers.get(timeout=DEADLINE_S)
        assert error is None, error
        for asked in self._questions[:size]:
            asked.put((function, size, address, deadline_s, arguments))
        found: dict[int, tuple[Any, Exception | None]] = {}
        try:
            while len(found) < size:
                rank, value, error = self._answers.get(timeout=DEADLINE_S)
                found[rank] = value, error
        except queue.Empty:
            raise AssertionError(f"ranks {sorted(set(range(size)) - set(found))} do not answer") from None
        return [found[rank] for rank in range(size)]

    def ask(self, function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
        """The same where nothing may go wrong."""
        answers = self.each(function, size, *arguments)
        errors = [error for _, error in answers if error is not None]
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {size} ranks", errors)
        return [value for value, _ in answers]
