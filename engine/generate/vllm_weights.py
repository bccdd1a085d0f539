"""Weights on their way into vLLM's worker: what a model must be given, and memory that both processes see.

vLLM's worker is a process of its own. The staged tensors are copied once into anonymous shared memory, whose
name in ``/proc`` goes to the worker; it maps the memory and copies each tensor into the model. The memory is
used again for the next version and dies with this process, whatever happens.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import ActorError, ModelError

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Layout:
    """The named tensors of an architecture."""

    shapes: Mapping[str, tuple[int, ...]]
    """Name -> shape, without tied names."""
    tied: Mapping[str, str]
    """Tied name -> the name whose tensor it repeats."""

    @classmethod
    def of(cls, architecture: Any) -> Layout:
        """Of a transformers config; no memory is taken."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            network: Any = AutoModelForCausalLM.from_config(architecture)
        tied = dict(getattr(network, "all_tied_weights_keys", None) or {})
        state = network.state_dict()
        return cls({name: tuple(t.shape) for name, t in state.items() if name not in tied}, tied)

    def select(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors to load, tied ones under both names: vLLM on a CPU arranges the head's for itself.

        Raises:
            ModelError: one is missing, unknown, of another shape, or differs from the one it is tied to.
        """
        for name in sorted(tensors.keys() - self.shapes.keys() - self.tied.keys()):
            raise ModelError(f"the weights hold {name!r}, which the model lacks: they belong to another model")
        for name, shape in self.shapes.items():
            if name not in tensors:
                raise ModelError(f"the weights lack {name!r}: they belong to another model")
            if tuple(tensors[name].shape) != shape:
                raise ModelError(f"the weights do not fit this model: {name!r} is {list(tensors[name].shape)}, "
                                 f"expected {list(shape)}")
        for name, source in self.tied.items():
            if name in tensors and not _same(tensors[name], tensors[source]):
                raise ModelError(f"{name!r} differs from {source!r}, but this model ties them")
        sources = {name: name for name in self.shapes} | dict(self.tied)
        return {name: tensors[source] for name, source in sources.items()}


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and (left.data_ptr() == right.data_ptr() or torch.equal(left, right))


class Parcel:
    """Anonymous shared memory of the writing process."""

    def __init__(self, name: str) -> None:
        """Empty; ``name`` is the generator's, for errors."""
        self._name = name
        self._fd, self._size = -1, 0

    def write(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Copy tensors in, each once; what comes back, plain values only, is what :func:`unpack` needs.

        Raises:
            ActorError: there is no room for them; what was held is freed.
        """
        entries: list[list[Any]] = []
        places: dict[int, tuple[int, Tensor]] = {}
        size = 0
        for name, tensor in tensors.items():
            if id(tensor) not in places:
                places[id(tensor)] = size, tensor
                size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
            offset = places[id(tensor)][0]
            entries.append([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset])
        self._reserve(size)
        memory = mmap.mmap(self._fd, self._size)
        for offset, tensor in places.values():
            _view(memory, tensor.dtype, tensor.shape, offset).copy_(tensor)
        memory.close()
        return {"path": f"/proc/{os.getpid()}/fd/{self._fd}", "entries": entries}

    def _reserve(self, num_bytes: int) -> None:
        if self._fd >= 0 and self._size == num_bytes:
            return
        self.close()
        try:
            self._fd = os.memfd_create("perilune-weights")
            os.posix_fallocate(self._fd, 0, num_bytes)
        except OSError as error:
            self.close()
            raise ActorError(self._name, "taking weights", f"{num_bytes / 2**20:.0f} MiB of shared memory for them "
                             f"are not to be had ({error}): give the machine more memory") from error
        self._size = num_bytes

    def close(self) -> None:
        """Free the memory; twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def unpack(path: str, entries: Sequence[Sequence[Any]]) -> Iterator[tuple[str, Tensor]]:
    """Map what :meth:`Parcel.write` wrote: (name, tensor) pairs, without a copy."""
    fd = os.open(path, os.O_RDONLY)
    try:
        # Copy on write: nobody writes, and torch wants memory that could be written.
        memory = mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(fd)
    for name, dtype, shape, start in entries:
        yield name, _view(memory, getattr(torch, dtype), shape, start)


def _view(memory: mmap.mmap, dtype: torch.dtype, shape: Sequence[int], start: int) -> Tensor:
    count = torch.Size(shape).numel()
    if not count:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=start).view(tuple(shape))
