"""Where actors live: all in this process, or (``ray_cluster``) each in one of its own over Ray.

Both answer the same questions - start, call, wait, result - so the driver does not know which it has. A
pending result may be an argument of another call: over Ray it then travels through the shared-memory object
store without passing the driver.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from engine.errors import ActorError


class Pending:
    """The result of a call that may not have happened yet."""

    __slots__ = ("actor", "method", "token")

    def __init__(self, actor: str, method: str, token: Any) -> None:
        self.actor = actor
        self.method = method
        self.token = token


class Cluster(Protocol):
    """Where actors live."""

    def reserve(self, actors: Sequence[str]) -> None:
        """Find places for all actors of a run, named without incarnation. Raises ClusterError without room."""

    def start(self, name: str, factory: Callable[..., Any], arguments: dict[str, Any], *,
              threads: int = 1) -> None:
        """Make an actor in its place; the first call that is waited for tells whether it lives."""

    def look(self, name: str, path: Path) -> tuple[str, bool]:
        """The machine that an actor lives on, and whether this path exists there."""

    def call(self, name: str, method: str, *arguments: Any) -> Pending:
        """Ask; calls of one actor run one after another in this order."""

    def wait(self, pending: Sequence[Pending], timeout_s: float) -> Pending | None:
        """The first that is done, or None when the time is over."""

    def result(self, pending: Pending) -> Any:
        """Of a call that is done. Raises ActorError if its actor died, else what the call raised."""

    def kill(self, name: str) -> None:
        """End an actor at once; its open calls fail with ActorError."""

    def close(self) -> None:
        """End everything that was started."""


class _Thunk:
    """A call of the serial cluster, run when somebody waits for it."""

    __slots__ = ("arguments", "done", "error", "function", "value")

    def __init__(self, function: Callable[..., Any] | None, arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.done = False
        self.value: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Run it once, its pending arguments first."""
        if self.done:
            return
        values = []
        for argument in self.arguments:
            if isinstance(argument, Pending):
                argument.token.run()
                if argument.token.error is not None:
                    self.error, self.done = argument.token.error, True
                    return
                argument = argument.token.value
            values.append(argument)
        assert self.function is not None
        try:
            self.value = self.function(*values)
        except Exception as error:  # noqa: BLE001 - kept for result(), as a remote call would keep it
            self.error = error
        self.done, self.arguments = True, ()


class SerialCluster:
    """All actors in this process: one call at a time, oldest first; a debugger sees everything."""

    def __init__(self) -> None:
        self._actors: dict[str, Any] = {}
        self._open: list[Pending] = []

    def reserve(self, actors: Sequence[str]) -> None:
        """There is room for all of them."""

    def start(self, name: str, factory: Callable[..., Any], arguments: dict[str, Any], *,
              threads: int = 1) -> None:
        """Build the actor here and now."""
        self._actors[name] = factory(**arguments)

    def look(self, name: str, path: Path) -> tuple[str, bool]:
        """All live on the machine of this process."""
        return socket.gethostname(), path.exists()

    def call(self, name: str, method: str, *arguments: Any) -> Pending:
        """Remember the call; it runs when it is waited for."""
        actor = self._actors.get(name)
        thunk = _Thunk(None if actor is None else getattr(actor, method), arguments)
        pending = Pending(name, method, thunk)
        if actor is None:
            thunk.done, thunk.error = True, ActorError(name, method, "it was ended before")
        self._open.append(pending)
        return pending

    def wait(self, pending: Sequence[Pending], timeout_s: float) -> Pending | None:
        """Run calls, oldest first, until one of these is done."""
        wanted = {id(one): one for one in pending}
        for one in pending:
            if one.token.done:
                return one
        while self._open:
            oldest = self._open.pop(0)
            oldest.token.run()
            if id(oldest) in wanted:
                return oldest
        return None

    def result(self, pending: Pending) -> Any:
        """Of a call that is done."""
        if pending.token.error is not None:
            raise pending.token.error
        return pending.token.value

    def kill(self, name: str) -> None:
        """Forget the actor; what was asked of it fails."""
        actor = self._actors.pop(name, None)
        for one in self._open:
            if one.actor == name and not one.token.done:
                one.token.done, one.token.error = True, ActorError(name, one.method, "it was ended")
        if actor is not None:
            actor.close()

    def close(self) -> None:
        """Close every actor."""
        for name in list(self._actors):
            self._actors.pop(name).close()
        self._open.clear()


def ask(cluster: Cluster, name: str, method: str, *arguments: Any, deadline_s: float) -> Any:
    """Call and wait for the answer.

    Raises:
        ActorError: the actor died, or did not answer within ``deadline_s`` seconds.
    """
    pending = cluster.call(name, method, *arguments)
    began = time.monotonic()
    if cluster.wait([pending], deadline_s) is None:
        waited = time.monotonic() - began
        raise ActorError(name, method, f"no answer within {waited:.0f} s")
    return cluster.result(pending)
