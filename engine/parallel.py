"""Work on many small pieces by threads of our own: one torch operation each is too small to be shared out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def share(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``[work(item) for item in items]``, by as many threads as torch may use, each of them computing alone.

    Raises:
        BaseException: what ``work`` raised for the first item that failed; others may have been worked on.

    Example:
        >>> share(abs, [-1, 2])
        [1, 2]
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [work(item) for item in items]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # a part of that setting belongs to the process, not to the thread
