"""Carries out faults: when one strikes a create frame, and what it does to connection and turn.

What belongs here: the effect of each ``Action``. The values are in ``bridgecore.testing.faults``;
which fault strikes where is decided by the emulator's ``FaultPlan``.
"""

from __future__ import annotations

from typing import Final, assert_never

from bridgecore.testing import answers
from bridgecore.testing.answers import CreateFrame
from bridgecore.testing.emulator.connection import CLOSE_GRACE, Connection, End
from bridgecore.testing.emulator.jsontext import encode, event_type
from bridgecore.testing.emulator.turns import Outcome, RunningTurn
from bridgecore.testing.faults import (
    Abort,
    Action,
    Alter,
    CloseWith,
    Error,
    Freeze,
    Garbage,
    ReadSlowly,
    Reject,
    SendEvents,
    Silence,
    Stale,
    StaleEvent,
    When,
)

_TERMINAL: Final = frozenset(
    {"response.completed", "response.failed", "response.incomplete", "error"}
)


def is_met(request: CreateFrame, when: When) -> bool:
    """Whether a fault with the condition ``when`` strikes the frame of ``request``."""
    match when:
        case When.ALWAYS:
            return True
        case When.ANCHORED:
            return request.anchor is not None
        case When.REBUILT:
            return request.anchor is None and any(map(_is_model_output, request.input))
        case _:
            assert_never(when)


def _is_model_output(item: object) -> bool:
    if not isinstance(item, dict):
        return False
    kinds = ("reasoning", "compaction")
    return item.get("role") == "assistant" or answers.is_call(item) or item.get("type") in kinds


def strike_before_upgrade(conn: Connection, action: Action) -> None:
    """Carry out a fault of a connection that is not a WebSocket yet."""
    if conn.end is not None:
        return
    match action:
        case CloseWith():
            conn.finish(End.CLOSE)
        case Abort():
            conn.finish(End.ABORT)
        case Silence() | Freeze():
            conn.freeze()
        case Garbage(data):
            conn.out += data
            conn.freeze()
        case Reject():
            conn.reject(action)
        case Error() | SendEvents() | Stale() | Alter() | ReadSlowly():
            raise AssertionError("Fault does not allow this before the upgrade")
        case _:
            assert_never(action)


def strike(conn: Connection, running: RunningTurn | None, action: Action, now: int) -> bool:
    """Carry out a fault of a turn.

    Args:
        conn: the connection of the turn.
        running: the turn; None while its create frame is incomplete.
        action: what happens.
        now: ns.

    Returns:
        Whether the turn goes on.
    """
    match action:
        case CloseWith(code, reason):
            conn.close(code, reason, now)
            return False
        case Abort():
            conn.finish(End.ABORT)
            return False
        case Silence():
            if running is not None:
                running.silence()
            return False
        case Freeze():
            conn.freeze()
            return False
        case Error():
            if running is not None:
                conn.refuse(running, action, now)
            else:
                conn.send_error(action, None)
                if action.close is not None:
                    conn.close(action.close, "", now)
            return False
        case Garbage(data, raw):
            if raw:
                conn.out += data
                conn.freeze()
                if running is None:
                    # It is not read any more, so a close by the peer would never be noticed.
                    conn.close_at = now + CLOSE_GRACE
            else:
                conn.send(data)
            return not raw
        case SendEvents(events):
            return _send_scripted(conn, running, events)
        case Stale(event):
            _send_stale(conn, event)
            return True
        case Alter(change):
            if running is not None:
                running.changes.add(change)
            return True
        case Reject() | ReadSlowly():
            raise AssertionError("Fault does not allow this here")
        case _:
            assert_never(action)


def _send_scripted(
    conn: Connection, running: RunningTurn | None, events: tuple[bytes, ...]
) -> bool:
    for event in events:
        if running is None:
            conn.send(event)
            continue
        data = event.replace(b"%RESPONSE_ID%", running.turn.response_id.encode())
        if b"%SEQUENCE%" in data:
            data = data.replace(b"%SEQUENCE%", b"%d" % running.sequence)
            running.sequence += 1
        conn.send(data)
        kind = event_type(data)
        if kind in _TERMINAL:
            if running.end(Outcome.FAILED) and kind in ("error", "response.failed"):
                conn.evict(running.request)
            return False
    return True


def _send_stale(conn: Connection, event: StaleEvent) -> None:
    if conn.ended is None:
        return
    match event:
        case StaleEvent.TERMINAL:
            conn.send(conn.ended.terminal)
        case StaleEvent.DELTA:
            if conn.ended.delta is not None:
                conn.send(conn.ended.delta)
        case StaleEvent.DONE:
            response = {"id": conn.ended.response_id, "usage": {"input_tokens": 1}}
            conn.send(encode({"type": "response.done", "response": response}))
        case _:
            assert_never(event)
