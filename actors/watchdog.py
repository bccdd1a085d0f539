"""The watchdog of a private Ray: when its driver is gone, however it went, nothing of it stays.

Ray's own helpers outlive a killed driver by a minute, and nobody would remove its folder. This process holds
the reading end of a pipe whose other end only the driver has; the kernel closes that one when the driver
dies. A process of the session is known by the files of its folder that it has open for writing: its log, at
least. (Not by its environment: Ray writes names of processes over it.)
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SWEEP_DEADLINE_S = 30.0


def processes_of(folder: Path, spared: int = 0) -> list[int]:
    """Living processes of the session in this folder, this one and ``spared`` left out."""
    left_out = (os.getpid(), spared)
    others = (entry for entry in Path("/proc").glob("[0-9]*") if int(entry.name) not in left_out)
    return [int(entry.name) for entry in others if _writes_into(entry, f"{folder}/")]


def _writes_into(process: Path, prefix: str) -> bool:
    try:
        numbers = os.listdir(process / "fd")
    except OSError:  # it is gone, or another user's
        return False
    for number in numbers:
        try:
            if str((process / "fd" / number).readlink()).startswith(prefix):
                fields = (process / "fdinfo" / number).read_text().split()
                if int(fields[fields.index("flags:") + 1], 8) & os.O_ACCMODE != os.O_RDONLY:
                    return True
        except OSError:  # it closed that file meanwhile
            continue
    return False


def sweep(folder: Path, deadline_s: float = SWEEP_DEADLINE_S, spared: int = 0) -> list[int]:
    """Kill what is left of a session and remove its folder; who still lives at the deadline.

    ``spared`` is the driver: one that lives on to begin another session may still hold a log of this one.
    """
    deadline = time.monotonic() + deadline_s
    while (left := processes_of(folder, spared)) and time.monotonic() < deadline:
        handles = [handle for pid in left if (handle := _kill(pid)) is not None]
        for handle in handles:
            poll = select.poll()
            poll.register(handle, select.POLLIN)  # readable once the process is gone
            poll.poll(max(deadline - time.monotonic(), 0.0) * 1000)
            os.close(handle)
    shutil.rmtree(folder, ignore_errors=True)
    return left


def _kill(pid: int) -> int | None:
    """Send SIGKILL; a handle of the process to wait with, None when it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        os.close(handle)
        return None
    return handle


def start_watchdog(folder: Path) -> subprocess.Popen[bytes]:
    """Watch over a session from a process of its own; close its standard input to end it."""
    return subprocess.Popen(
        [sys.executable, "-P", __file__, str(folder), str(os.getpid())], stdin=subprocess.PIPE,
        # Ctrl-C reaches the whole group of the driver, and must not reach who cleans up after it.
        start_new_session=True,
    )


if __name__ == "__main__":
    sys.stdin.buffer.read()
    sweep(Path(sys.argv[1]), spared=int(sys.argv[2]))
