"""What an event by itself says about a failure: its kind, as the reference model sees it.

What belongs here: functions of one event, which know nothing of the session. The kind comes from
``classify``, the one function that the model shares with the rules: it has tests of its own, and
checked by the model is what is done about each kind.
"""

from __future__ import annotations

from functools import cache

from bridgecore.recovery import events as ev
from bridgecore.recovery.events import Event
from bridgecore.recovery.failure import (
    Evidence,
    Failure,
    FailureKind,
    Malformed,
    TimedOut,
    classify,
)
from bridgecore.recovery.timers import Timer


def is_silence(event: Event) -> bool:
    """Whether ``event`` is that a sent turn got no response.created in time."""
    return isinstance(event, ev.DeadlineReached) and event.timer is Timer.CREATED


@cache
def kind_of(cause: Evidence) -> FailureKind:
    """The kind of failure that ``cause`` shows."""
    return classify(cause).kind


_REFUSALS = {
    FailureKind.NOT_FOUND: "not_found",
    FailureKind.CONNECTION_LIMIT: "limit",
    FailureKind.TOO_LARGE: "large",
}
PASSED_ON = ("other", "large")
"""The kinds of refusals that are passed on to the client."""


def refusal_of(event: ev.UpstreamRefused) -> str:
    """The kind of a refusal, as far as the model tells them apart: not_found, limit, large or
    other."""
    return _REFUSALS.get(kind_of(event.cause), "other")


def is_rejection(event: ev.ConnectionLost) -> bool:
    """Whether the upgrade was refused for a reason that concerns the client."""
    return kind_of(event.cause) is FailureKind.REJECTED


def evidence_of(event: Event) -> Failure | None:
    """The failure that may be reported for ``event``; None: none may."""
    if isinstance(event, ev.DeadlineReached):
        return classify(TimedOut(event.timer))
    if isinstance(event, ev.ConnectionLost | ev.UpstreamRefused):
        return classify(event.cause)
    if isinstance(event, ev.ResponseEnded) and isinstance(event.cause, Malformed):
        return classify(event.cause)
    return None
