"""Tensors and optimiser states as safetensors files: bit-exact, and no pickle that could run code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import CheckpointError

_ALIASES = "aliases"
_LAYOUT = "layout.json"


def tensors_to_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors of any shape and dtype; tensors that are the same memory are stored once.

    Raises:
        CheckpointError: the file cannot be written, for example because the disk is full.
    """
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        key = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        owner = first.setdefault(key, name) if tensor.numel() else name
        if owner != name:
            aliases[name] = owner
            continue
        compact = tensor.contiguous()
        # safetensors refuses two tensors that overlap in one storage, so a slice takes its own.
        alone = compact.untyped_storage().nbytes() == compact.nbytes
        stored[name] = compact if alone else compact.clone()
    try:
        save_file(stored, path, metadata={_ALIASES: json.dumps(aliases)})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}): free the disk, then save again"
        ) from error


def tensors_from_file(path: Path) -> dict[str, Tensor]:
    """The tensors of :func:`tensors_to_file`, on the CPU; tied names give the same tensor.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            aliases = json.loads((file.metadata() or {}).get(_ALIASES, "{}"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as tensors: {error}") from error
    for name, owner in aliases.items():
        tensors[name] = tensors[owner]
    return tensors


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a value; tensors move to ``tensors`` under the name of their place."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        # Pairs instead of an object: parameter indices are integers, which JSON keys are not.
        return {"map": [[key, _encode(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(
        f"optimiser state {name} is a {type(value).__name__}: only tensors, numbers, text, lists, tuples "
        "and maps are saved; give the optimiser a state_dict of those"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "tuple":
            return tuple(_decode(item, tensors) for item in content)
        return {key: _decode(item, tensors) for key, item in content}
    return value


def optimiser_to_tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Flatten a ``torch.optim`` state_dict into named tensors.

    Moments keep their bits under ``state/<parameter>/<name>``; everything else, parameter groups included,
    is JSON in the uint8 tensor ``layout.json`` (floats round-trip exactly, tuples stay tuples).

    Raises:
        CheckpointError: the state holds something else than tensors and plain data.
    """
    tensors: dict[str, Tensor] = {}
    layout = {key: _encode(value, key, tensors) for key, value in state_dict.items()}
    text = bytearray(json.dumps(layout).encode())
    tensors[_LAYOUT] = torch.frombuffer(text, dtype=torch.uint8)
    return tensors


def optimiser_from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of :func:`optimiser_to_tensors`, ready for ``load_state_dict``.

    Raises:
        CheckpointError: the tensors are not those of an optimiser.
    """
    if _LAYOUT not in tensors:
        raise CheckpointError(f"no {_LAYOUT!r} among the tensors: not a saved optimiser state")
    layout = json.loads(tensors[_LAYOUT].numpy().tobytes())
    return {key: _decode(value, tensors) for key, value in layout.items()}
