"""A side of a comparison that lives in a process of its own: one line asks for one repeat.

It stays loaded between repeats, so that the sides can take turns; while it waits it uses no processor.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.errors import ActorError

_ROOT = Path(__file__).parents[2]
_TAIL = 2000
_GRACE_S = 10.0
"""Seconds that a process has to end by itself."""


class Child:
    """The asking end."""

    def __init__(self, name: str, command: Sequence[str], deadline_s: float,
                 environment: Mapping[str, str] | None = None) -> None:
        """Start the process; it loads while nothing is asked of it.

        Args:
            name: for messages.
            command: program and arguments; it answers through :class:`Replies`.
            deadline_s: seconds that one answer may take, the first one's loading included.
            environment: variables of its own besides those of this process.
        """
        self.name = name
        self._deadline_s = deadline_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- it lives as long as the process
        inherited = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            env=inherited | dict(environment or {}), cwd=_ROOT, start_new_session=True,
        )
        self._unread = b""

    def ask(self) -> dict[str, Any]:
        """One repeat: what the process says of it.

        Raises:
            ActorError: it ended or did not answer in time; the end of its log is quoted.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._error("it ended") from None
        answer: dict[str, Any] = json.loads(self._line(time.monotonic() + self._deadline_s))
        return answer

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        stream = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([stream], [], [], max(deadline - time.monotonic(), 0.0))
            if not ready:
                raise self._error(f"no answer in {self._deadline_s:.0f} s")
            found = os.read(stream, 65536)
            if not found:
                raise self._error("it ended")
            self._unread += found
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _error(self, what: str) -> ActorError:
        self._log.seek(0)
        tail = self._log.read()[-_TAIL:].decode(errors="replace")
        self.close()
        return ActorError(self.name, "one repeat", f"{what}; the end of its log:\n{tail}")

    def close(self) -> None:
        """End the process and all that it started; twice is harmless."""
        if self._log.closed:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)  # nobody asks any more: it ends by itself, and puts away what it has
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # and what is left: vLLM's engine outlives who is killed
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


class Replies:
    """The answering end: standard output is kept for answers, whatever else prints goes to the log."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self) -> None:
        """Until the next repeat is asked for; ends the process when nobody will ask any more."""
        if not sys.stdin.readline():
            raise SystemExit(0)

    def send(self, answer: dict[str, Any]) -> None:
        """Answer one repeat."""
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()
