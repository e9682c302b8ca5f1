"""Decision logs of ours, written as another bridge would write what was seen of it.

What belongs here: the translation, for tests. What ours decided is a log of a bridge whose sources
are known, so the check of foreign logs has to accept what the check of decision logs accepts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect, FailureReply, RequestForm
from bridgecore.recovery.events import Standing, Turn
from bridgecore.recovery.failure import (
    NOT_FOUND_CODE,
    Closed,
    ErrorFrame,
    Evidence,
    Unreachable,
    UpgradeRefused,
)
from bridgecore.recovery.timers import Timer
from bridgecore.wire.decisions import Decision, read_line

Json = dict[str, Any]
_STATUS = {
    FailureReply.UPSTREAM_UNAVAILABLE: 502,
    FailureReply.OWNER_UNREACHABLE: 502,
    FailureReply.STREAM_INCOMPLETE: 502,
    FailureReply.REQUEST_TIMEOUT: 504,
    FailureReply.NOT_FOUND: 400,
    FailureReply.UPSTREAM_ERROR: 400,
    FailureReply.OVERLOADED: 503,
}


def translated(lines: Iterable[bytes]) -> list[Json]:
    """The decision log in ``lines`` as lines of another bridge."""
    decisions = [line for line in map(read_line, lines) if isinstance(line, Decision)]
    bound = {
        decision.event.turn.anchor
        for decision in decisions
        if isinstance(decision.event, ev.TurnSubmitted)
        and decision.event.turn.standing in (Standing.BOUND, Standing.HELD, Standing.INJECTED)
    }
    return [line for decision in decisions for line in _lines(decision, _makers(decisions), bound)]


def encoded(lines: Iterable[Json]) -> list[bytes]:
    return [json.dumps(line).encode() + b"\n" for line in lines]


def _makers(decisions: Iterable[Decision]) -> dict[tuple[int, int], set[str]]:
    """The responses of each turn."""
    makers: dict[tuple[int, int], set[str]] = {}
    for decision in decisions:
        for effect in decision.effects:
            if isinstance(effect, fx.CompleteTurn):
                makers[decision.session, effect.turn] = set(effect.responses)
    return makers


_turns: dict[tuple[int, int], Turn] = {}


def _lines(
    decision: Decision, makers: dict[tuple[int, int], set[str]], bound: set[str | None]
) -> Iterator[Json]:
    common = {"at": decision.at // 10**6, "session": str(decision.session)}
    event = decision.event
    if isinstance(event, ev.TurnSubmitted):
        _turns[decision.session, event.turn.id] = event.turn
        made = makers.get((decision.session, event.turn.id), set())
        yield {**common, **_submitted(event.turn), "store": made.isdisjoint(bound)}
    elif (happened := _happened(event)) is not None:
        yield {**common, **happened}
    for effect in decision.effects:
        if (done := _done(decision, effect)) is not None:
            yield {**common, **done}


def _submitted(turn: Turn) -> Json:
    line: Json = {"event": "turn_submitted", "turn": str(turn.id)}
    if turn.standing is not Standing.INJECTED and turn.anchor is not None:
        line["previous_response_id"] = turn.anchor
        line["knows"] = turn.standing is not Standing.UNKNOWN
        line["holds"] = turn.standing in (Standing.HELD, Standing.HELD_STORED)
    return line


def _happened(event: ev.Event) -> Json | None:
    if isinstance(event, ev.TurnAbandoned):
        return {"event": "turn_abandoned", "turn": str(event.turn)}
    if isinstance(event, ev.ConnectionOpened):
        return {"event": "upstream_opened"}
    if isinstance(event, ev.ConnectionLost):
        return {"event": "upstream_lost", "sent": not event.unsent, **_cause(event.cause)}
    if isinstance(event, ev.FrameSent) and event.whole:
        return {"event": "frame_sent"}
    if isinstance(event, ev.ResponseCreated):
        return {"event": "response_created", "response": event.response}
    if isinstance(event, ev.OutputReceived) and event.bearing:
        return {"event": "output"}
    if isinstance(event, ev.ResponseEnded):
        line = {"event": "response_ended", "outcome": event.outcome.value}
        if event.response is not None:
            line["response"] = event.response
        return {**line, **(_cause(event.cause) if event.cause is not None else {})}
    if isinstance(event, ev.UpstreamRefused):
        return {"event": "upstream_error", **_cause(event.cause)}
    if isinstance(event, ev.DeadlineReached) and event.timer is not Timer.EXPIRY:
        return {"event": "timed_out", "timer": event.timer.value}
    return None


def _cause(cause: Evidence) -> Json:
    if isinstance(cause, Closed):
        return {"code": cause.code}
    if isinstance(cause, UpgradeRefused):
        return {"status": cause.status}
    if isinstance(cause, Unreachable):
        return {"reason": cause.reason}
    if isinstance(cause, ErrorFrame):
        names = ("status", "code", "type", "message", "param")
        members = {name: getattr(cause, name) for name in names}
        return {name: value for name, value in members.items() if value is not None}
    return {}


def _done(decision: Decision, effect: Effect) -> Json | None:
    if isinstance(effect, fx.OpenConnection):
        return {"event": "connect"}
    if isinstance(effect, fx.CloseConnection):
        return {"event": "upstream_closed"}
    if isinstance(effect, fx.SendTurn):
        line: Json = {"event": "sent", "turn": str(effect.turn)}
        anchor = _turns[decision.session, effect.turn].anchor
        if effect.form is RequestForm.AS_IS and anchor is not None:
            line["previous_response_id"] = anchor
        return line
    if isinstance(effect, fx.DeliverEvent) and not effect.held:
        bearing = not isinstance(decision.event, ev.OutputReceived) or decision.event.bearing
        return {"event": "delivered", "turn": str(effect.turn)} if bearing else None
    if isinstance(effect, fx.CompleteTurn):
        return {"event": "answered", "turn": str(effect.turn), "status": 200}
    if isinstance(effect, fx.FailTurn):
        return {"event": "answered", "turn": str(effect.turn), **_answer(effect)}
    return None


def _answer(effect: fx.FailTurn) -> Json:
    status, failure = _STATUS[effect.answer], effect.failure
    code = effect.answer.value
    if effect.answer is FailureReply.UPSTREAM_ERROR and failure is not None:
        code = failure.kind.value
        status = failure.status or 502
        if code == "not_found":
            code = NOT_FOUND_CODE
    return {"status": status, "code": code}
