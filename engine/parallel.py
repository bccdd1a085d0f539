"""Work on many small pieces by threads of our own: one torch operation each is too small to be shared out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

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


def overwrite(target: Tensor, source: Tensor) -> None:
    """``target.copy_(source)`` for tensors of one shape, by the quickest way for large runs of bytes.

    Example:
        >>> target = torch.zeros(2)
        >>> overwrite(target, torch.ones(2))
        >>> target.tolist()
        [1.0, 1.0]
    """
    plain = target.is_contiguous() and source.is_contiguous() and target.dtype is source.dtype
    if plain and target.device.type == source.device.type == "cpu":
        # Unlike torch's copy, it need not read the lines that it overwrites.
        ctypes.memmove(target.data_ptr(), source.data_ptr(), target.nbytes)
    else:
        target.copy_(source)
