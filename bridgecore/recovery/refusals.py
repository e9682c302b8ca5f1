"""Remembers what the upstream has refused over WebSocket, for all conversations of a bridge.

A session learns from a refusal for the turn that met it. Without this, every other session would
meet the same refusal, and pay for it with a connect or with an upload of megabytes.

It is remembered for a while only. A refused upgrade is often a proxy that is being deployed, and
over HTTP every turn that is not stored is sent with its whole context.
"""

from __future__ import annotations

from bridgecore.recovery.timers import NS_PER_SECOND


class SocketRefusals:
    """What the upstream does not take over WebSocket, as far as is known.

    Args:
        always: the upstream is only to be reached over HTTP.
        enabled: HTTP may be used where it refuses a WebSocket. Otherwise nothing is remembered.
        period: for how long a refusal is remembered, ns.
    """

    __slots__ = ("_always", "_enabled", "_period", "_refused_until", "_size", "_size_until")

    def __init__(
        self, *, always: bool = False, enabled: bool = False, period: int = NS_PER_SECOND
    ) -> None:
        self._always = always
        self._enabled = enabled
        self._period = period
        self._refused_until = 0  # ns: until then no WebSocket is tried
        self._size = 0  # bytes of the smallest message that was refused as too large
        self._size_until = 0  # ns: until then no message of that size is tried

    def http(self, now: int) -> bool:
        """Whether a new connection is to speak HTTP."""
        return self._always or now < self._refused_until

    def takes(self, size: int, now: int) -> bool:
        """Whether a message of ``size`` bytes may be tried on a WebSocket."""
        return size < self._size or now >= self._size_until

    def refused(self, now: int) -> None:
        """The upstream has refused a WebSocket."""
        if self._enabled:
            self._refused_until = now + self._period

    def too_large(self, size: int, now: int) -> None:
        """The upstream has refused a message of ``size`` bytes on a WebSocket."""
        if self._enabled:
            known = now < self._size_until
            self._size = min(size, self._size) if known else size
            self._size_until = now + self._period

    def snapshot(self) -> tuple[int, int, int]:
        """The state as a value for the explorer: two times, 0 if they were never set, and a
        size."""
        return self._refused_until, self._size_until, self._size
