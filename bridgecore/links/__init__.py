"""Upstream connections: messages of a link to bytes, and bytes to messages.

What belongs here: the interface between an upstream connection, whatever protocol it speaks, and
the ``Endpoint`` that owns it. Each protocol has a module of its own: ``websocket``, to the
upstream, ``sse``, to an upstream over HTTP, and ``forward``, to another replica. ``passage``
carries no link, but one request to the upstream's HTTP API; ``bridgecore.passages`` owns it.
A link returns bytes and never touches a socket. It reports *how* a connection was lost, as
evidence; what follows for the turn is decided in ``recovery``.

Internal: see "Reference" in the documentation for what is public.
"""

from __future__ import annotations

import enum
from typing import Protocol

import attrs

from bridgecore.config import PeerUrl, UpstreamUrl
from bridgecore.messages import SendFrame
from bridgecore.recovery.failure import ErrorFrame, Evidence, TimedOut
from bridgecore.recovery.timers import Timer


class Stage(enum.Enum):
    """The stage in the life of an upstream connection."""

    CONNECTING = "connecting"
    UPGRADING = "upgrading"
    OPEN = "open"
    CLOSING = "closing"  # our side is closed, and the peer has until the deadline to close


@attrs.define
class Loss:
    """The link is lost. ``cause``: how; ``error``: the upstream's error, if it sent one.

    ``goodbye``: ``ReadResult.reply`` ends with our close frame, so the socket has to be flushed and
    closed, not aborted.
    """

    cause: Evidence
    error: ErrorFrame | None = None
    goodbye: bool = False


@attrs.define
class ReadResult:
    """The result of one read: the upgrade, messages, bytes to send, and the loss, in this order.

    ``progress``: before the first message, the peer has shown that it works on what was sent to it:
    that counts as ``LinkFrameSent``, with ``UpstreamConnection.whole``.
    """

    opened: bool = False
    progress: bool = False
    messages: list[bytes] = attrs.Factory(list)
    reply: bytes = b""  # to send at once
    sends: bool = False  # ``reply`` begins a message: ``frame_sent`` is called after it
    loss: Loss | None = None


class UpstreamConnection(Protocol):
    """The connection that carries a link.

    ``link``: the link's number. ``paused``: it is not being read, because a client reads too
    slowly. ``deadline``: when to call ``timeout``, ns; None: never.
    """

    link: int
    stage: Stage
    paused: bool
    deadline: int | None

    @property
    def url(self) -> UpstreamUrl | PeerUrl:
        """Where the connection leads."""

    @property
    def whole(self) -> bool:
        """Whether all of the latest message was taken: by the transport or, if the peer says so, by
        the peer."""

    @property
    def unsent(self) -> bool:
        """Whether no byte of the latest message was handed to the transport."""

    @property
    def timer(self) -> Timer:
        """The timer to which ``deadline`` belongs."""

    def connected(self) -> ReadResult:
        """The transport is connected: there may be bytes to send, or the link is open."""

    def receive(self, data: bytes, now: int) -> ReadResult:
        """Parse received bytes."""

    def receive_eof(self, now: int) -> ReadResult:
        """The upstream has ended its sending side; the link is lost, unless it was before."""

    def send(self, message: SendFrame, now: int) -> bytes:
        """Queue a message; return the bytes of it to send now, none if earlier ones are pending.
        It may set ``deadline``."""

    def frame_sent(self, now: int) -> bytes:
        """The transport has taken the last bytes; return the next part of the message, if any."""

    def close(self) -> bytes:
        """The bytes that close the link in its protocol; none if it is not open yet."""

    def part(self, now: int) -> None:
        """Our side is closed: set the deadline for the peer's close."""

    def timeout(self, now: int) -> bytes | TimedOut:
        """``deadline`` has passed: return bytes to send, or that the peer does not respond."""
