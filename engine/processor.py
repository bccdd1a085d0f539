"""Which processor this machine has, as the system names it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_FACTS = Path("/proc/cpuinfo")


@cache
def processor_name() -> str:
    """Its model, such as ``AMD EPYC 9B14``; elsewhere than on Linux what Python knows, perhaps just the architecture.

    Example:
        >>> bool(processor_name())
        True
    """
    return _fact("model name") or platform.processor() or platform.machine()


@cache
def processor_vendor() -> str:
    """Who made it, such as ``GenuineIntel``; empty: not known."""
    return _fact("vendor_id")


def _fact(key: str) -> str:
    lines = _FACTS.read_text(encoding="utf-8").splitlines() if _FACTS.exists() else []
    facts = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in facts if name.strip() == key), "")
