"""Connections of clients: bytes to requests, and answers to bytes.

What belongs here: what every client connection offers to the ``Endpoint`` that owns it, whatever
protocol it speaks. Each protocol has a module of its own; ``http`` is the one there is. A front
hands bytes back and never touches a socket. What is answered is decided by the ``Gateway``.

Internal: see "Reference" in the documentation for what is public.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from bridgecore.messages import AnswerEffect, RequestReceived
from bridgecore.recovery.timers import Timer


class ClientConnection(Protocol):
    """One connection of a client.

    ``out``: what is to be sent on it, in order; the endpoint takes it out. ``closing``: nothing
    more is sent after ``out``, and nothing more is read as a request. ``lingering``: the client may
    still be sending what is not read any more, so closing at once could destroy the answer on its
    way (RFC 9112, section 9.6). ``deadline``: when ``timeout`` is to be called (ns), or None;
    ``timer`` names it.
    """

    out: list[bytes]
    closing: bool
    lingering: bool
    deadline: int | None

    @property
    def timer(self) -> Timer:
        """Which timer ``deadline`` is of."""

    @property
    def turns(self) -> Collection[int]:
        """The turns that are being answered on this connection. HTTP has one at a time."""

    @property
    def idle(self) -> bool:
        """Whether no request is being read or answered."""

    def receive(self, data: bytes) -> None:
        """Buffer input; ``next_request`` reads it."""

    def next_request(self, turn: int, now: int, *, draining: bool) -> RequestReceived | None:
        """Answer what needs no turn, up to the next request that does; it is given number ``turn``.

        None: no request is complete, or those before it have to be answered first.
        """

    def answer(self, effect: AnswerEffect) -> None:
        """Write what the gateway has for the client of one of ``turns``."""

    def close_after_answers(self) -> None:
        """Close the connection when the turns that are being answered have their answers."""

    def shut(self) -> None:
        """The server stops: read no more requests, and refuse one that is partly read."""

    def timeout(self) -> None:
        """``deadline`` has come."""
