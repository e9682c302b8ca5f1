"""What a line ``answered`` in the log of another bridge can mean: each has codes of its own.

What belongs here: the effects of ours that tell a client the same as the status and the code of
such a line, and whether they tell it the same about a retry as the failure did.
"""

from __future__ import annotations

from collections.abc import Iterator

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect, FailureReply
from bridgecore.recovery.events import Event, Outcome
from bridgecore.recovery.failure import (
    ACCOUNT_LIMITS,
    NOT_FOUND_CODE,
    ErrorFrame,
    FailureKind,
    classify,
    known_name,
)
from bridgecore.verify.evidence import evidence_of
from bridgecore.verify.foreign_courses import Guess
from bridgecore.verify.observed import Observed

OVER = (200, 499)
"""Statuses of a turn that has ended well: its client got all of it, or had left."""
_RETRIABLE = frozenset({408, 425, 429})
# Failures about the request itself, which no other try will cure.
_LASTING = frozenset({FailureKind.TOO_LARGE, FailureKind.INVALID, FailureKind.REJECTED})
# Failures that another try may cure.
_PASSING = frozenset({FailureKind.RATE_LIMITED, FailureKind.SERVER_ERROR})
_SERVER_ERROR = "server_error"  # the code of response.failed, which has no status
_TIMEOUTS = frozenset({408, 504})


def answers_of(guess: Guess, turn: int, one: Observed) -> Iterator[Effect]:
    """What an ``answered`` line can be: each bridge has codes of its own, so all answers of ours
    that tell the client the same."""
    status, code = one.fields["status"], one.fields.get("code")
    event, model = guess.event, guess.model
    if status in OVER and code is None:
        names: tuple[str, ...] = ()
        if isinstance(event, ev.ResponseEnded):
            names = model.names_at_end(event)
        yield fx.CompleteTurn(turn, names)
        return
    sent = any(isinstance(effect, fx.SendTurn) for effect in guess.effects)
    if sent or isinstance(event, ev.FrameSent | ev.ResponseCreated | ev.OutputReceived):
        return  # no reason to fail a turn
    assert event is not None
    failed = (Outcome.FAILED,) if model.begun or status >= 400 else ()
    if isinstance(event, ev.ResponseEnded) and event.outcome in failed and _agrees(event, status):
        yield fx.CompleteTurn(turn, model.names_at_end(event))
    own = model.carried == turn
    kind = model.refusal(event) if own else None
    failure = evidence_of(event)
    if isinstance(event, ev.ResponseEnded) and kind is not None and event.cause is not None:
        failure = classify(event.cause)
    if code == NOT_FOUND_CODE:
        replies = [FailureReply.NOT_FOUND]
        if kind == "not_found":
            replies.insert(0, FailureReply.UPSTREAM_ERROR)
    else:
        replies = list(_replies(event, status, code, own=own))
    for reply in replies:
        yield fx.FailTurn(turn, reply, failure)
        if failure is not None:
            yield fx.FailTurn(turn, reply, None)


def _replies(event: Event, status: int, code: str | None, *, own: bool) -> Iterator[FailureReply]:
    """The replies that ``status`` and ``code`` can stand for. ``own``: ``event`` is about the turn
    that is answered."""
    whole = isinstance(event, ev.ResponseEnded) and event.outcome is not Outcome.FAILED
    passed_on = not whole and _agrees(event, status)
    if not _may_retry(status) and status not in OVER:
        # It says that the turn was refused for good. What happened may have been something else:
        # then the reply is one that the model does not allow, so that the line is rejected.
        about = own or isinstance(event, ev.ConnectionLost)
        wrong = about and not passed_on
        yield FailureReply.STREAM_INCOMPLETE if wrong else FailureReply.UPSTREAM_ERROR
        return
    deadline = isinstance(event, ev.DeadlineReached)
    if status in _TIMEOUTS or (code is not None and "timeout" in code) or deadline:
        yield FailureReply.REQUEST_TIMEOUT
    yield FailureReply.UPSTREAM_UNAVAILABLE
    yield FailureReply.STREAM_INCOMPLETE
    if passed_on:
        yield FailureReply.UPSTREAM_ERROR
    yield FailureReply.OVERLOADED


def _may_retry(status: int) -> bool:
    """Whether ``status`` tells a client that the same request may succeed later."""
    return status >= 500 or status in _RETRIABLE


def _agrees(event: Event, status: int) -> bool:
    """Whether ``status`` tells a client about a retry what the failure in ``event`` says."""
    lasts = _lasts(event)
    return lasts is None or status in OVER or lasts is not _may_retry(status)


def _lasts(event: Event) -> bool | None:
    """Whether no other try will cure the failure in ``event``; None: that is not said, or there
    is no failure."""
    cause = event.cause if isinstance(event, ev.ResponseEnded) else None
    failure = evidence_of(event) if cause is None else classify(cause)
    if failure is None:
        return None
    names = _names(event)
    # An error with neither a status nor a known code could be any.
    passes = _SERVER_ERROR in names if failure.status is None else _may_retry(failure.status)
    if failure.kind in _LASTING:
        return failure.kind is FailureKind.TOO_LARGE or not passes
    # A retry can help an account or not, so either answer is right.
    account = any(known_name(name) in ACCOUNT_LIMITS for name in names)
    return False if failure.kind in _PASSING and passes and not account else None


def _names(event: Event) -> list[str]:
    """The code and the type of the upstream's error in ``event``."""
    cause = event.cause if isinstance(event, ev.ResponseEnded | ev.UpstreamRefused) else None
    names = (cause.code, cause.type) if isinstance(cause, ErrorFrame) else ()
    return [name for name in names if name is not None]
