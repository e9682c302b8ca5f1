"""Named timers, and an immutable table of their deadlines.

What belongs here: every timer of the project, one "When to ..." line each, and the small value
types for deadlines. What happens when one is due is decided by a rule (rules.py) or by the
connection or endpoint that owns it.

Times are integer nanoseconds of one monotonic clock that the caller reads. There is no effect to
arm a timer: deadlines are part of the state, and the caller asks for the next one. A due deadline
is cleared when it is handled, so after handling at t the next one is later than t; a loop that
slept until a deadline cannot spin on it (DEADLINES_ARE_KEPT).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from operator import itemgetter

import attrs

NS_PER_SECOND = 1_000_000_000
"""Nanoseconds of a second."""


class Timer(enum.Enum):
    """Every timer. The value is its name in logs and failure details.

    The order is part of the behaviour: of deadlines due at the same time, the first here is handled
    first.
    """

    __hash__ = object.__hash__  # by identity: looked up for every event

    # Of a session, handled by recovery/rules.py. EXPIRY is the last of these.
    CONNECT = "connect"  # When to give up on TCP, TLS and the WebSocket upgrade.
    CREATED = "created"  # When to stop waiting for response.created after a send.
    IDLE = "idle"  # When to give up a running answer that the upstream does not go on with.
    TURN = "turn"  # When to fail a turn whatever it waits for: its whole budget is used up.
    LIFETIME = "lifetime"  # When to replace a connection, before the upstream closes it.
    EXPIRY = "expiry"  # When to retire a session that no turn has used.

    # Of an upstream connection.
    PING = "ping"  # When to ping a quiet upstream, and when to give up on the pong.
    REUSE = "reuse"  # When to close an upstream connection over HTTP that no turn has used.
    CLOSE_HANDSHAKE = "close_handshake"  # When to stop waiting for the peer's close.

    # Of a client's connection.
    CLIENT_IDLE = "client_idle"  # When to close a connection on which no request comes.
    HEADER = "header"  # When to refuse a request whose head is still incomplete.
    BODY = "body"  # When to refuse a request whose body is still incomplete.
    HEAD = "head"  # When to send a held-back response head: an early failure can wait no longer.
    KEEPALIVE = "keepalive"  # When to send a keepalive to a client that has received nothing.

    # Of a replica.
    STORE = "store"  # When to renew the lease, and when to give up on an answer of the store.

    # Of the whole endpoint.
    DRAIN = "drain"  # When to end a drain, whatever is still running.


_IN_ORDER = tuple(Timer)
# Those of a session. The rest belong to connections and the endpoint.
SESSION_TIMERS = _IN_ORDER[: _IN_ORDER.index(Timer.EXPIRY) + 1]


@attrs.frozen
class Deadline:
    """The time ``at`` (ns) at which the timer ``reason`` is due."""

    at: int
    reason: Timer


_at = itemgetter(1)


@attrs.frozen
class Timers:
    """At most one deadline per timer, sorted in the order of ``Timer`` so that equal tables compare
    equal however they came about."""

    entries: tuple[tuple[Timer, int], ...] = ()

    @classmethod
    def of(cls, deadlines: Mapping[Timer, int]) -> Timers:
        """A table of ``deadlines``, in ns."""
        return cls(tuple([(timer, deadlines[timer]) for timer in _IN_ORDER if timer in deadlines]))

    def get(self, timer: Timer) -> int | None:
        """When ``timer`` is due, in ns; None when it is not set."""
        for each, at in self.entries:
            if each is timer:
                return at
        return None

    def next(self) -> Deadline | None:
        """The earliest deadline; of equal ones the first in the order of ``Timer``."""
        if not self.entries:
            return None
        timer, at = min(self.entries, key=_at)
        return Deadline(at, timer)
