"""Connections to the upstream: messages of a link to bytes, and bytes to messages.

What belongs here: what every upstream connection offers to the ``Endpoint`` that owns it, whatever
protocol it speaks. Each protocol has a module of its own; ``websocket`` is the one there is. A link
hands bytes back and never touches a socket. It says *how* a connection was lost, as evidence; what
that means for a turn is decided in ``recovery``.

Internal: see "Reference" in the documentation for what is public.
"""

from __future__ import annotations

import enum
from typing import Protocol

import attrs

from bridgecore.recovery.failure import ErrorFrame, Evidence, TimedOut
from bridgecore.recovery.timers import Timer


class Stage(enum.Enum):
    """How far an upstream connection is."""

    CONNECTING = "connecting"
    UPGRADING = "upgrading"
    OPEN = "open"
    CLOSING = "closing"  # the link is over; the peer's close or the deadline comes next


@attrs.define
class Loss:
    """The link cannot go on. ``error``: the upstream's words, if it had any.

    ``goodbye``: what ``ReadResult.reply`` holds is the last that is said, and worth arriving.
    """

    cause: Evidence
    error: ErrorFrame | None = None
    goodbye: bool = False


@attrs.define
class ReadResult:
    """What one read brought, in this order."""

    opened: bool = False
    messages: list[bytes] = attrs.Factory(list)
    reply: bytes = b""  # to be sent at once
    loss: Loss | None = None


class UpstreamConnection(Protocol):
    """The connection that carries a link.

    ``link``: its number. ``paused``: it is not read, because a client reads too slowly.
    ``deadline``: when ``timeout`` is to be called (ns), or None; ``timer`` names it.
    """

    link: int
    stage: Stage
    paused: bool
    deadline: int | None

    @property
    def timer(self) -> Timer:
        """Which timer ``deadline`` is of."""

    def connected(self) -> bytes:
        """The transport is up: what to send."""

    def receive(self, data: bytes, now: int) -> ReadResult:
        """Take in bytes."""

    def receive_eof(self, now: int) -> ReadResult:
        """The upstream will send no more; the link is lost, if it was not before."""

    def send(self, text: bytes, now: int) -> bytes:
        """Take a message to send: what of it goes out at once; nothing, if it has to wait."""

    def frame_sent(self, now: int) -> bytes:
        """The transport has taken what was to be sent last: the next part, if any."""

    def close(self) -> bytes:
        """The bytes that end the link politely; none if the peer could not understand them."""

    def part(self, now: int) -> None:
        """Our side is closed: give the peer its time to close, too."""

    def timeout(self, now: int) -> bytes | TimedOut:
        """``deadline`` has come: what to send, or that the peer is not there any more."""
