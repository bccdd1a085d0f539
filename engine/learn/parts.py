"""Named tensors whose rows lie in several files, one written by each rank; read back by any number of ranks.

``part-00000-of-00002.safetensors`` holds the first rows of every tensor. Each file says which rows it has, so a
reader fetches those it wants and no others. The ranks of a learner on several machines write into one folder,
which must therefore lie on a file system that all of them share.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import CheckpointError

_ABOUT = "about"

Rows = tuple[int, int, int]
"""First row, one past the last row, and rows of the whole tensor."""


def write_part(folder: Path, rank: int, ranks: int, tensors: Mapping[str, Tensor], rows: Mapping[str, Rows],
               facts: Mapping[str, Any]) -> None:
    """Write one rank's file; the folder is made.

    Args:
        folder: the same for all ranks.
        rank: of the writer.
        ranks: that write.
        tensors: name -> the rows that this rank holds.
        rows: name -> which rows these are.
        facts: plain JSON data, equal on all ranks.

    Raises:
        CheckpointError: it cannot be written, for example because the disk is full.
    """
    file = folder / f"part-{rank:05d}-of-{ranks:05d}.safetensors"
    about = {"ranks": ranks, "rows": dict(rows), "facts": dict(facts)}
    held = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(held, file, metadata={_ABOUT: json.dumps(about)})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be written ({error}): free the disk, then save again") from error


class Parts:
    """The files of all ranks, open for reading; a context."""

    def __init__(self, folder: Path) -> None:
        """Open them.

        Raises:
            CheckpointError: one is missing or damaged, or they are not of one writing.
        """
        self._folder = folder
        self._stack = ExitStack()
        self._files: list[tuple[Any, dict[str, Any]]] = []
        paths = sorted(folder.glob("part-*.safetensors"))
        if not paths:
            raise CheckpointError(f"{folder} holds no part of a learner's state: resume from another checkpoint")
        try:
            for path in paths:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
                self._files.append((file, json.loads((file.metadata() or {})[_ABOUT])))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            self._stack.close()
            raise CheckpointError(f"{path} cannot be read as a part of a learner's state: {error}") from error
        first = self._files[0][1]
        if first["ranks"] != len(paths) or any(about["facts"] != first["facts"] for _, about in self._files):
            self._stack.close()
            raise CheckpointError(f"{folder} holds {len(paths)} parts that are not of one writing by "
                                  f"{first['ranks']} ranks: resume from another checkpoint")
        self.facts: dict[str, Any] = first["facts"]

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return sorted(self._files[0][1]["rows"])

    def read(self, name: str, rows: Rows) -> Tensor:
        """Rows of one tensor, in memory of their own.

        Raises:
            CheckpointError: the tensor is missing, has other rows in all, or lacks some of them.
        """
        start, stop, whole = rows
        found, none = [], None
        for have_start, have_stop, part in self._holders(name, whole):
            none = part
            last = min(stop, have_stop)
            if have_start <= start < last:
                found.append(part[start - have_start : last - have_start])
                start = last
        if start < stop:
            raise CheckpointError(f"{self._folder} lacks row {start} of {name!r}: resume from another checkpoint")
        assert none is not None, "there is at least one part"
        return found[0] if len(found) == 1 else torch.cat(found) if found else none[0:0]

    def _holders(self, name: str, whole: int) -> Iterator[tuple[int, int, Any]]:
        for file, about in self._files:
            if about["rows"].get(name, [0, 0, None])[2] != whole:
                raise CheckpointError(
                    f"{self._folder} has no tensor {name!r} of {whole} rows: resume with the model and adapter "
                    "options it was written with"
                )
            start, stop, _ = about["rows"][name]
            yield start, stop, file.get_slice(name)
