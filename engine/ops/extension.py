"""The compiled half of the ops: is it there, and which instructions may it use.

``engine.ops._C`` is built by ``setup.py``. Without it every op runs its readable reference, which is said
once on the logger ``perilune.ops``. With a torch for CUDA it builds ``engine.ops._C_cuda`` as well, the
kernels for GPUs, which are left alone where a visible GPU is not among those that they were built for. Two
environment variables steer the choice, both read at import:

``PERILUNE_OPS``
    ``auto`` (default) or ``reference``: leave the extension alone.
``PERILUNE_OPS_LEVEL``
    ``amx``, ``avx512bf16``, ``avx512``, ``avx2`` or ``plain``: use no more than this. A level that the
    processor lacks is refused.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.errors import ConfigError

LEVELS = ("plain", "avx2", "avx512", "avx512bf16", "amx")
"""Instruction levels in rising order."""

_log = logging.getLogger("perilune.ops")


def _load() -> bool:
    choice = os.environ.get("PERILUNE_OPS", "auto")
    if choice not in ("auto", "reference"):
        raise ConfigError("PERILUNE_OPS", choice, "set it to auto or reference, or leave it unset")
    if choice == "reference":
        return False
    try:
        importlib.import_module("engine.ops._C")
    except ImportError as error:
        _log.warning(
            "the compiled ops are missing, the slower references serve: run "
            "`python setup.py build_ext --inplace` (%s)",
            error,
        )
        return False
    wanted = os.environ.get("PERILUNE_OPS_LEVEL")
    if wanted is not None:
        force_level(wanted)
    return True


def force_level(wanted: str) -> None:
    """Use the instructions of one level from now on; for tests and for hunting differences.

    Raises:
        ConfigError: the name is unknown, or the processor lacks the level.
    """
    if wanted not in LEVELS:
        raise ConfigError("PERILUNE_OPS_LEVEL", wanted, f"choose one of {', '.join(LEVELS)}")
    if not torch.ops.perilune.set_cpu_level(wanted):
        best = torch.ops.perilune.best_cpu_level()
        raise ConfigError("PERILUNE_OPS_LEVEL", wanted, f"this processor reaches {best} at most")


def _built_for() -> str:
    """What ``setup.py`` wrote beside the kernels for GPUs: nvcc's names of what they run on; empty: not known."""
    found = importlib.util.find_spec("engine.ops._C_cuda")
    if found is None or found.origin is None:
        return ""
    beside = Path(found.origin).with_name("_C_cuda.architectures")
    return beside.read_text(encoding="utf-8").strip() if beside.exists() else ""


def runs_on(built: str, major: int, minor: int) -> bool:
    """Whether one of nvcc's targets runs on a GPU of a compute capability.

    ``sm_90`` runs on capability 9.0 and later minors of 9, ``sm_90a`` on 9.0 alone, ``sm_100f`` on the family of 10;
    ``compute_90`` is compiled for any later one when it is loaded.

    Example:
        >>> runs_on("sm_90a", 9, 0), runs_on("sm_80 compute_80", 9, 0), runs_on("sm_80", 9, 0)
        (True, True, False)
    """
    for kind, digits, last, feature in re.findall(r"(sm|compute)_(\d+)(\d)([af]?)", built):
        target = int(digits), int(last)
        later = (major, minor) >= target
        if (major, minor) == target or (later and feature != "a" and (major == target[0] or kind == "compute")):
            return True
    return False


def _load_cuda() -> bool:
    if not _available or torch.version.cuda is None:
        return False
    built = _built_for()
    if built and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            if not runs_on(built, major, minor):
                _log.warning(
                    "the kernels for GPUs are built for %s and GPU %d is of compute capability %d.%d: the slower "
                    "references serve there; build again with TORCH_CUDA_ARCH_LIST=%d.%d, or hide that GPU with "
                    "CUDA_VISIBLE_DEVICES", built, index, major, minor, major, minor,
                )
                return False
    try:
        importlib.import_module("engine.ops._C_cuda")
    except ImportError as error:
        if torch.cuda.is_available():
            _log.warning(
                "the kernels for GPUs are missing, the slower references serve there: run "
                "`PERILUNE_CUDA=1 python setup.py build_ext --inplace` where nvcc is (%s)",
                error,
            )
        return False
    return True


_available = _load()
_cuda_available = _load_cuda()


def available() -> bool:
    """Whether the compiled ops are loaded."""
    return _available


def cuda_available() -> bool:
    """Whether the kernels for GPUs are loaded; tensors on a GPU meet the references otherwise."""
    return _cuda_available


def level() -> str:
    """The one of ``LEVELS`` that is in use; ``reference`` without the extension."""
    return str(torch.ops.perilune.cpu_level()) if _available else "reference"


def _uncast(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The reference as it is outside of ``torch.autocast``, which would shorten its products and no kernel's."""

    @functools.wraps(reference)
    def plain(*arguments: Any) -> Any:
        with torch.autocast(arguments[0].device.type, enabled=False):
            return reference(*arguments)

    return plain


def register(
    name: str, schema: str, reference: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Make ``perilune::name`` callable on every device and visible to ``torch.compile``.

    The reference serves every device that has no kernel of its own. With the extension loaded the schema
    already stands in ``csrc/bindings``; without it, it is defined here.

    Returns:
        The op, as a Python callable.
    """
    qualified = f"perilune::{name}"
    if not _available:
        torch.library.define(qualified, schema)
    torch.library.impl(qualified, "default", _uncast(reference))
    torch.library.register_fake(qualified, fake)
    return getattr(torch.ops.perilune, name).default  # type: ignore[no-any-return]
