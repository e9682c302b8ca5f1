"""Named deadlines: when something is to happen if nothing else happens first.

What belongs here: the names of every timer in the project, one "When to ..." line each, and the
small value types that hold them. What a timer *does* is a rule (rules.py), or the endpoint's.

Times are integer nanoseconds of one monotonic clock that the caller reads. A deadline is kept in
state and cleared there: after handling at t, the next one is later than t (invariant 29).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

NS_PER_SECOND = 1_000_000_000
"""Nanoseconds of a second."""


class Timer(enum.Enum):
    """Every named deadline. The value is the reason that logs and answers carry."""

    __hash__ = object.__hash__  # by identity: looked up for every event

    # Of a session: see recovery/rules.py.
    CONNECT = "connect"  # When to give up on TCP, TLS and the WebSocket upgrade.
    CREATED = "created"  # When to stop waiting for response.created after a send.
    IDLE = "idle"  # When a turn whose upstream says nothing more is lost.
    TURN = "turn"  # When a turn has used up its whole budget, waits and replays included.
    LIFETIME = "lifetime"  # When to replace a socket, between turns, before upstream closes it.
    EXPIRY = "expiry"  # When a conversation that nobody uses gives up its socket.

    # Of an upstream socket.
    PING = "ping"  # When to ping a quiet upstream socket, and when to miss the pong.
    CLOSE_HANDSHAKE = "close_handshake"  # When to stop waiting for the peer's close.

    # Of a client's connection.
    CLIENT_IDLE = "client_idle"  # When to close a connection on which no request comes.
    HEADER = "header"  # When a request head that is not complete is too late.
    BODY = "body"  # When a request body that is not complete is too late.
    HEAD = "head"  # When the answer's head can no longer be held back for an early failure.
    KEEPALIVE = "keepalive"  # When to say something to a client that has heard nothing.

    # Of the whole endpoint.
    DRAIN = "drain"  # When a drain ends, whatever still runs.


_ORDER = {timer: index for index, timer in enumerate(Timer)}


@attrs.frozen
class Deadline:
    """A time to call back at: ``at`` in ns, and the timer that is due then."""

    at: int
    reason: Timer


@attrs.frozen
class Timers:
    """At most one deadline per timer, in the order of ``Timer``: equal tables compare equal."""

    entries: tuple[tuple[Timer, int], ...] = ()

    @classmethod
    def of(cls, deadlines: Mapping[Timer, int]) -> Timers:
        """The table of these deadlines."""
        return cls(tuple(sorted(deadlines.items(), key=lambda entry: _ORDER[entry[0]])))

    def get(self, timer: Timer) -> int | None:
        """When ``timer`` is due, in ns; None when it is not set."""
        return dict(self.entries).get(timer)

    def next(self) -> Deadline | None:
        """The earliest deadline; of equal ones the first in the order of ``Timer``."""
        if not self.entries:
            return None
        timer, at = min(self.entries, key=lambda entry: entry[1])
        return Deadline(at, timer)
