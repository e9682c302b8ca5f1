"""Client connections: bytes to requests, and answers to bytes.

What belongs here: the interface between a client connection, whatever protocol it speaks, and the
``Endpoint`` that owns it. Each protocol has a module of its own: ``http``; ``request``, for a
server around the bridge that has read the request already; ``websocket``, for turns after an
upgrade of either; ``peer``, for turns that another replica forwards. A front returns bytes and
never touches a socket. The content of answers comes from the ``Gateway``.

Internal: see "Reference" in the documentation for what is public.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from bridgecore.messages import AnswerEffect, RequestReceived
from bridgecore.recovery.timers import Timer
from bridgecore.transport import TransportEffect


class ClientConnection(Protocol):
    """One client connection.

    Attributes:
        out: bytes to send, in order; ``write`` takes them.
        closing: the connection ends after ``out``, and no further request is read.
        lingering: the client may still be sending data that is not read any more. Closing at once
            would answer that with a reset, which can destroy the answer on its way, so the
            connection is half-closed first (RFC 9112, section 9.6).
    """

    out: list[bytes]
    closing: bool
    lingering: bool

    @property
    def deadline(self) -> int | None:
        """When to call ``timeout``, ns; None: never."""

    @property
    def timer(self) -> Timer:
        """The timer to which ``deadline`` belongs."""

    @property
    def turns(self) -> Collection[int]:
        """The turns whose answers are in progress. With HTTP there is at most one."""

    @property
    def idle(self) -> bool:
        """Whether no request is being read and no answer is in progress."""

    @property
    def successor(self) -> ClientConnection | None:
        """What the connection has become by an upgrade; it is in its place from now on."""

    def receive(self, data: bytes) -> None:
        """Buffer ``data``; ``next_request`` parses it."""

    def next_request(self, turn: int, now: int, *, draining: bool) -> RequestReceived | None:
        """The next request that is a turn, which gets the number ``turn``. Other requests, such as
        health checks and malformed ones, are answered on the way.

        None: no request is complete, or earlier ones have to be answered first.
        """

    def answer(self, effect: AnswerEffect) -> None:
        """Write an effect of the gateway for one of ``turns`` to ``out``."""

    def write(self, conn: int, *, notify: bool) -> list[TransportEffect]:
        """The effects that send what is in ``out`` on the connection ``conn``, and clear it. With
        ``notify`` it is reported that the last of it was taken."""

    def close_after_answers(self) -> None:
        """Close the connection once the answers in progress are complete."""

    def shut(self) -> None:
        """The server is stopping: close if idle, and refuse a request that is partly received."""

    def timeout(self, now: int) -> None:
        """``deadline`` has passed: the client was too slow, or the connection was idle."""
