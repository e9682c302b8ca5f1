"""Counts how answers to turns begin and end, for the metrics.

What belongs here: what of an answer is counted, and under which name. See
``bridgecore.telemetry.metrics`` for what the names mean.
"""

from __future__ import annotations

import attrs

from bridgecore.answers.exchange import Exchange
from bridgecore.api_error import ApiError
from bridgecore.telemetry.metrics import DURATION, ERRORS, FIRST_EVENT, TURNS, Counts
from bridgecore.wire.responses import FAILED, UpstreamEvent


@attrs.frozen
class Tally:
    """Counts answers in ``counts``. Times are in ns; those of turns that another replica forwarded
    are counted there, where their clients are."""

    counts: Counts

    def delivered(self, exchange: Exchange, last: UpstreamEvent, now: int, *, began: bool) -> None:
        """Events were sent, ``last`` at the end. ``began``: the answer had begun before."""
        if exchange.goes_on and not began and not exchange.forwarded:
            self.counts.observe(FIRST_EVENT, now - exchange.asked)
        if exchange.ended and last.type == FAILED:
            self.failed(exchange, exchange.error_of(last), now)
        elif exchange.ended:
            result = last.type.decode("latin-1").removeprefix("response.")
            self._ended(exchange, result, None, now)

    def failed(self, exchange: Exchange, error: ApiError, now: int) -> None:
        """An answer ends with an error: as its status, if no head was sent, or as an event."""
        self._ended(exchange, "failed" if exchange.begun else "refused", error, now)

    def abandoned(self, exchange: Exchange, now: int) -> None:
        """The client has left."""
        self._ended(exchange, "abandoned", None, now)

    def refused(self, error: ApiError, *, forwarded: bool) -> None:
        """A request was no turn: its body could not be read."""
        self._count("refused", error, forwarded=forwarded)

    def _ended(self, exchange: Exchange, result: str, error: ApiError | None, now: int) -> None:
        self._count(result, error, forwarded=exchange.forwarded)
        if not exchange.forwarded:
            self.counts.observe(DURATION, now - exchange.asked)

    def _count(self, result: str, error: ApiError | None, *, forwarded: bool) -> None:
        self.counts.add(TURNS, "replica" if forwarded else "client", result)
        if error is not None:
            self.counts.add(ERRORS, error.log_code)
