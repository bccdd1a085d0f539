"""Where the learner meets its receivers: one JSON object a line, over TCP.

The sender listens; a receiver connects, says the run's token and stays connected from version to version, so that
either side hears at once when the other dies. Nothing but short messages travels here; the weights take the
communicator's way. Who does not know the token is sent away unheard.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import selectors
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from engine.errors import WeightChannelError

Message = dict[str, Any]
_MOST_BYTES = 2**16
_UNKNOWN = "?"


class Line:
    """Messages over one socket that does not block."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._pending = b""

    def say(self, **message: Any) -> None:
        """Send a message.

        Raises:
            OSError: the other end is gone, or has left thousands of messages unread.
        """
        data = json.dumps(message).encode() + b"\n"
        if self.connection.send(data) != len(data):
            raise BrokenPipeError("the other end reads nothing")

    def heard(self) -> list[Message]:
        """The messages that are there; never waits.

        Raises:
            OSError: the other end is gone, or does not speak this protocol.
        """
        try:
            data = self.connection.recv(_MOST_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError("the other end is gone")
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > _MOST_BYTES:
            raise ConnectionAbortedError("a message without an end")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError as error:
            raise ConnectionAbortedError("what came is no message") from error
        if not all(isinstance(message, dict) for message in messages):
            raise ConnectionAbortedError("what came is no message")
        return messages

    def close(self) -> None:
        """Hang up."""
        self.connection.close()


@dataclass(slots=True, eq=False)
class Member:
    """A receiver, as the sender knows it."""

    line: Line
    number: int
    """Its own, never given again."""
    name: str = _UNKNOWN
    """Its process; unknown until it has said the token."""
    wants: str = ""
    """The publication it waits for; empty while it waits for none."""
    asked: str = ""
    """The publication it asked for last."""
    since: float = 0.0
    """When it asked, on the monotonic clock."""
    took: str = ""
    """The version it acknowledged last."""
    attempts: int = 0
    """Rounds for the publication asked for, until one succeeded."""
    why: str = ""
    """Why one of them failed, in its own words where it has said so."""
    broken: list[str] = field(default_factory=list)
    """Meetings that it gave up, until the sender has noticed."""


def route() -> str:
    """The address at which other machines reach this one.

    Raises:
        WeightChannelError: this machine has no route to others.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation; a datagram socket sends nothing here
        except OSError as error:
            raise WeightChannelError(
                f"weights.host=route finds no route to other machines ({error}): give the learner's address"
            ) from error
        return str(probe.getsockname()[0])


class Reception:
    """The sender's end: who is connected, and what they said. One thread uses it; any may :meth:`wake` it."""

    def __init__(self, host: str) -> None:
        """Listen on a free port of ``host``.

        Raises:
            WeightChannelError: there is no such address here.
        """
        self._token = secrets.token_hex(16)
        try:
            self._listener = socket.create_server((route() if host == "route" else host, 0))
        except OSError as error:
            raise WeightChannelError(
                f"weights.host={host!r} cannot be listened on ({error}): give an address of the learner's machine"
            ) from error
        self._listener.setblocking(False)
        address, port = self._listener.getsockname()[:2]
        self.location = f"{address}:{port}/{self._token}"
        self.members: list[Member] = []
        self._numbers = count(1)
        self._inside, self._outside = socket.socketpair()
        self._inside.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._inside, selectors.EVENT_READ)

    def wake(self) -> None:
        """End the wait of :meth:`listen`."""
        with suppress(OSError):  # closed: there is no wait any more
            self._outside.send(b"!")

    def listen(self, timeout_s: float) -> None:
        """Wait for something to happen, at most so long, and take note of it."""
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._inside:
                self._inside.recv(_MOST_BYTES)
            else:
                self._hear(key.data)

    def tell(self, member: Member, **message: Any) -> None:
        """Send a member a message; who cannot be reached is a member no more."""
        try:
            member.line.say(**message)
        except OSError:
            self.dismiss(member)

    def dismiss(self, member: Member) -> None:
        """Hang up; twice is harmless."""
        if member in self.members:
            self.members.remove(member)
            self._selector.unregister(member.line.connection)
            member.line.close()

    def close(self) -> None:
        """Hang up on everybody and listen no more."""
        for member in list(self.members):
            self.dismiss(member)
        self._selector.close()
        for end in (self._listener, self._inside, self._outside):
            end.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it left again at once
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        member = Member(Line(connection), next(self._numbers))
        self.members.append(member)
        self._selector.register(connection, selectors.EVENT_READ, member)

    def _hear(self, member: Member) -> None:
        if member not in self.members:
            return
        try:
            for message in member.line.heard():
                self._note(member, message)
        except OSError:
            self.dismiss(member)

    def _note(self, member: Member, message: Message) -> None:
        if member.name == _UNKNOWN:
            if not hmac.compare_digest(str(message.get("token", "")).encode(), self._token.encode()):
                raise ConnectionAbortedError("a stranger")
            member.name = str(message.get("name", ""))[:200] or "a receiver"
        if "took" in message:
            member.took = str(message["took"])
            member.attempts, member.why = 0, ""
        if "broken" in message:
            member.broken.append(str(message["broken"]))
            member.why = str(message.get("why", ""))
        if "want" in message:
            wanted = str(message["want"])
            if wanted != member.asked:
                member.attempts, member.why = 0, ""
            member.asked = member.wants = wanted
            member.since = time.monotonic()


class Attendance:
    """A receiver's end."""

    def __init__(self, location: str, deadline: float) -> None:
        """Connect and say the token.

        Args:
            location: what :attr:`Reception.location` says.
            deadline: on the monotonic clock.

        Raises:
            OSError: nobody listens there.
        """
        self.location = location
        address, _, token = location.partition("/")
        host, _, port = address.rpartition(":")
        connection = socket.create_connection((host, int(port)), max(0.1, deadline - time.monotonic()))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._line = Line(connection)
        self._heard: list[Message] = []
        self.say(token=token, name=f"process {os.getpid()} on {socket.gethostname()}")

    def say(self, **message: Any) -> None:
        """Tell the sender.

        Raises:
            OSError: it is gone.
        """
        self._line.say(**message)

    def hear(self, timeout_s: float) -> Message | None:
        """The next message, waited for at most so long.

        Raises:
            OSError: the sender is gone.
        """
        if not self._heard:
            with selectors.DefaultSelector() as selector:
                selector.register(self._line.connection, selectors.EVENT_READ)
                if selector.select(max(0.0, timeout_s)):
                    self._heard += self._line.heard()
        return self._heard.pop(0) if self._heard else None

    def close(self) -> None:
        """Hang up."""
        self._line.close()
