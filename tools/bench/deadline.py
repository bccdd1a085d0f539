"""A process with a deadline: what it said, and an end of it that leaves nothing behind."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import suppress

SWEEP_S = 35.0
"""A run's watchdog has 30 s to end what its Ray left; it holds the output of that run until then."""


def within(process: subprocess.Popen[str], seconds: float, grace_s: float,
           kill: Callable[[], None] | None = None) -> tuple[str, bool]:
    """Wait for the end of a process whose output is a pipe.

    One that is late gets SIGTERM, so that it ends what it started; what is left after ``grace_s`` is killed. The same
    happens if this process is interrupted meanwhile.

    Args:
        process: was started with ``stdout=PIPE``.
        seconds: it may take.
        grace_s: seconds between SIGTERM and SIGKILL.
        kill: sends SIGKILL to more than the process itself.

    Returns:
        Its output, and whether it was late.
    """
    try:
        return process.communicate(timeout=seconds)[0], False
    except subprocess.TimeoutExpired:
        return _end(process, grace_s, kill or process.kill), True
    except BaseException:
        _end(process, grace_s, kill or process.kill)
        raise


def _end(process: subprocess.Popen[str], grace_s: float, kill: Callable[[], None]) -> str:
    process.terminate()
    for seconds in (grace_s, SWEEP_S):
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=seconds)[0]
        with suppress(ProcessLookupError):
            kill()
    return f"a process that it started still holds its output, {SWEEP_S:.0f} s after it was killed"
