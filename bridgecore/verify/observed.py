"""The log of another bridge: what a line can say, and what it means in our words.

What belongs here: the table of lines (``LINES``, which the documentation prints) and reading them.
A log is JSON lines. Each has the time, the conversation and what happened, as anybody can see it
who watches the bridge from outside; it has none of the bridge's reasons::

    {"at": 0, "session": "s1", "event": "turn_submitted", "turn": "t1"}
    {"at": 2, "session": "s1", "event": "sent", "turn": "t1"}

The first line may be a header that says what the bridge promises (``HEADER``). What follows from
the lines is judged by foreign.py.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from bridgecore.errors import did_you_mean
from bridgecore.recovery import events as ev
from bridgecore.recovery.events import Event, Outcome
from bridgecore.recovery.failure import (
    Closed,
    ErrorFrame,
    Evidence,
    Unreachable,
    UpgradeRefused,
)
from bridgecore.recovery.timers import NS_PER_SECOND, SESSION_TIMERS, Timer
from bridgecore.verify.replay import LogLines, MalformedLog
from bridgecore.wire.jsontext import UnreadableError, read_value

FORMAT = 1
_NS_PER_MS = NS_PER_SECOND // 1000


class Says(enum.Enum):
    """Who speaks in a line."""

    HAPPENED = "it happened to the bridge"
    DONE = "the bridge did it"
    ABOUT = "about the log"


@attrs.frozen
class Field:
    """A member of a line. ``doc``: what it means, and what its absence means."""

    kind: type
    doc: str
    required: bool = False


@attrs.frozen
class Kind:
    """One kind of line. ``means``: the event or effect of ours that it is."""

    says: Says
    doc: str
    means: str
    fields: Mapping[str, Field]


_TURN = Field(str, "the turn, by a name of your choice", required=True)
_RESPONSE = Field(str, "the response id that the upstream's event has")
_ERROR: Mapping[str, Field] = {
    "status": Field(int, "the HTTP status in it"),
    "code": Field(str, "the error code in it"),
    "type": Field(str, "the error type in it"),
    "message": Field(str, "the text in it, if only that says what is wrong"),
    "param": Field(str, "the parameter in it"),
}

LINES: Mapping[str, Kind] = {
    "turn_submitted": Kind(
        Says.HAPPENED,
        "a client's request was given to this conversation",
        "TurnSubmitted",
        {
            "turn": _TURN,
            "previous_response_id": Field(str, "as the client sent it; absent: it sent none"),
            "store": Field(bool, "whether the upstream stores its response; absent: true"),
            "knows": Field(
                bool,
                "false: the bridge has never seen that id for this client, which no log can say of "
                "a response of the same session; absent: it has if the log has",
            ),
            "holds": Field(
                bool,
                "whether the bridge has the whole context; absent: if it sends it, and the log has "
                "that response",
            ),
            "client": Field(
                str, "whose credential it is, by a name of your choice; absent: not compared"
            ),
            "preloads": Field(
                str,
                "of a request of the bridge's own that gives a connection the context of this "
                "response: the id that it then has is another one for the same response",
            ),
        },
    ),
    "turn_abandoned": Kind(
        Says.HAPPENED,
        "the client left. If the bridge reads the answer to its end all the same, write "
        "`answered` with status 499 there instead",
        "TurnAbandoned",
        {"turn": _TURN},
    ),
    "connect": Kind(Says.DONE, "it began to connect", "OpenConnection", {}),
    "upstream_opened": Kind(Says.HAPPENED, "the connection is open", "ConnectionOpened", {}),
    "upstream_lost": Kind(
        Says.HAPPENED,
        "the connection was closed by the upstream or broke, or the connect failed",
        "ConnectionLost",
        {
            "code": Field(int, "of the close frame; absent: 1006"),
            "status": Field(int, "of the answer to the upgrade, if that was refused"),
            "reason": Field(str, "why nothing could be reached, such as refused"),
            "sent": Field(bool, "false: no byte of the frame had been written; absent: true"),
        },
    ),
    "upstream_closed": Kind(Says.DONE, "it closed the connection itself", "CloseConnection", {}),
    "sent": Kind(
        Says.DONE,
        "it sent the turn's response.create frame",
        "SendTurn",
        {
            "turn": _TURN,
            "previous_response_id": Field(
                str,
                "as it was sent: what the client named, or another id for the same response; if it "
                "named none, what is injected; absent: the input went in full",
            ),
        },
    ),
    "frame_sent": Kind(Says.HAPPENED, "the operating system has the frame", "FrameSent", {}),
    "response_created": Kind(
        Says.HAPPENED, "response.created came", "ResponseCreated", {"response": _RESPONSE}
    ),
    "output": Kind(
        Says.HAPPENED,
        "an event with output came; the first one of an answer is enough",
        "OutputReceived",
        {"response": _RESPONSE},
    ),
    "delivered": Kind(
        Says.DONE,
        "it passed the latest event on to the client of this turn",
        "DeliverEvent",
        {"turn": _TURN},
    ),
    "response_ended": Kind(
        Says.HAPPENED,
        "the terminal event came",
        "ResponseEnded",
        {
            "response": _RESPONSE,
            "outcome": Field(str, "completed, incomplete or failed; absent: completed"),
            **_ERROR,
        },
    ),
    "upstream_error": Kind(
        Says.HAPPENED,
        "an error frame came",
        "UpstreamRefused",
        _ERROR,
    ),
    "timed_out": Kind(
        Says.HAPPENED,
        "a deadline of the bridge passed",
        "DeadlineReached",
        {"timer": Field(str, "connect, created, idle, turn or lifetime", required=True)},
    ),
    "answered": Kind(
        Says.DONE,
        "it ended the turn towards its client",
        "CompleteTurn; with another status than 200 or 499, or a code, FailTurn",
        {
            "turn": _TURN,
            "status": Field(int, "the HTTP status", required=True),
            "code": Field(str, "the error code; with status 200: of response.failed"),
            "response": Field(
                str, "the id that the client was given for its response, if not the upstream's"
            ),
        },
    ),
    "log_ended": Kind(Says.ABOUT, "nothing else happened until now, in any conversation", "", {}),
}
"""Every kind of line, by the value of ``event``."""


def _seconds(doc: str) -> Field:
    return Field(int, doc)


HEADER: Mapping[str, Field] = {
    "trace": Field(str, "`bridge events`", required=True),
    "format": Field(int, f"{FORMAT}", required=True),
    "bridge": Field(str, "its name, for you"),
    "wedged_after": _seconds("seconds after which a turn that has not ended is stuck (600)"),
    "late": _seconds("seconds that the bridge may take to react to an event (5)"),
    "unlogged": _seconds("unlogged events between two lines that are tried as explanations (2)"),
    "refusals": _seconds("retriable refusals of a lost id before not-found may be answered (3)"),
    "waiting": _seconds("turns of a conversation that may wait (64)"),
    "replays": _seconds("times that a turn is sent again which the upstream may have run (0)"),
    "timeouts": Field(dict, "seconds of `connect`, `created`, `idle`, `turn` and `lifetime`; one "
    "that is not named may pass at any time"),
    "logs": Field(list, "kinds of lines that the bridge writes although this log has none: their "
    "absence then means that nothing happened; with `upstream_lost` or `timed_out` among them no "
        "loss or no deadline is assumed at all"),
}  # fmt: skip
"""The members of the header, with their defaults."""


@attrs.frozen
class Header:
    """What the bridge promises. Times in ns; ``timeouts`` by timer, those that are stated."""

    timeouts: Mapping[Timer, int] = attrs.Factory(dict)
    wedged_after: int = 600 * NS_PER_SECOND
    late: int = 5 * NS_PER_SECOND
    unlogged: int = 2
    refusals: int = 3
    waiting: int = 64
    replays: int = 0
    logs: frozenset[str] = frozenset()


@attrs.frozen
class Observed:
    """One line. ``at``: ns; ``fields``: the members that are about the event."""

    line: int
    at: int
    session: str
    kind: str
    fields: Mapping[str, Any]

    @property
    def turn(self) -> str:
        """The name of the turn that the line is about."""
        name: str = self.fields["turn"]
        return name


def read_log(lines: Iterable[bytes] | LogLines) -> tuple[Header, list[Observed]]:
    """Read a whole log: what its bridge promises, and its lines. ``lines``: a ``LogLines`` tells
    afterwards which were cut off.

    Raises:
        MalformedLog: a line is not one of such a log; the error has its number.
    """
    header, found = Header(), list[Observed]()
    latest: dict[str, int] = {}
    first = True
    for number, line in lines if isinstance(lines, LogLines) else LogLines(lines):
        try:
            value = _object(line)
            if first and "trace" in value:
                header = _header(value)
                continue
            observed = _observed(number, value)
            if observed.at < latest.get(observed.session, 0):
                raise ValueError(
                    f"its time is before that of an earlier line of {observed.session}"
                )
            latest[observed.session] = observed.at
            found.append(observed)
        except ValueError as exc:
            raise MalformedLog(number, str(exc)) from None
        finally:
            first = False
    if first:
        raise MalformedLog(1, "the log is empty")
    return header, found


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        line.decode()
        value = read_value(line)
    except (UnicodeDecodeError, UnreadableError):
        raise ValueError("it is not JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


def _header(value: Mapping[str, Any]) -> Header:
    _check("the header", value, HEADER)
    if value["trace"] != "bridge events" or value["format"] != FORMAT:
        raise ValueError(f"it is not the header of bridge events, format {FORMAT}")
    timeouts: dict[Timer, int] = {}
    for name, seconds in value.get("timeouts", {}).items():
        duration = seconds * NS_PER_SECOND if type(seconds) in (int, float) else 0
        if name not in _TIMERS or not 1 <= duration < math.inf:
            hint = "" if name in _TIMERS else did_you_mean(name, _TIMERS)
            raise ValueError(f"timeouts has {name!r:.40}: {seconds!r:.40}{hint}")
        timeouts[_TIMERS[name]] = int(duration)
    logs = value.get("logs", [])
    if unknown := [name for name in logs if not (isinstance(name, str) and name in LINES)]:
        hint = did_you_mean(unknown[0], LINES)
        raise ValueError(f"logs has {unknown[0]!r:.40}, which is no event{hint}")
    numbers = {name: value[name] for name in _COUNTS if name in value}
    times = {name: value[name] * NS_PER_SECOND for name in _TIMES if name in value}
    return Header(timeouts=timeouts, logs=frozenset(logs), **numbers, **times)


_TIMERS = {timer.value: timer for timer in SESSION_TIMERS if timer is not Timer.EXPIRY}
_COUNTS = ("unlogged", "refusals", "waiting", "replays")
_TIMES = ("wedged_after", "late")
_NAMES = {
    str: "text",
    int: "a whole number of at least 0",
    bool: "true or false",
    dict: "an object",
}


def _observed(number: int, value: Mapping[str, Any]) -> Observed:
    kind = value.get("event")
    if not isinstance(kind, str) or kind not in LINES:
        raise ValueError(
            f"event is {kind!r:.60}, which is no kind of line{did_you_mean(kind, LINES)}"
        )
    common = {"at": Field(int, "", required=True), "event": Field(str, "")}
    if kind != "log_ended":
        common["session"] = Field(str, "", required=True)
    _check(kind, value, {**common, **LINES[kind].fields})
    fields = {name: one for name, one in value.items() if name not in common}
    observed = Observed(number, value["at"] * _NS_PER_MS, value.get("session", ""), kind, fields)
    if kind in _EVENTS and kind != "turn_submitted":
        event_of(observed, None, connecting=False)  # are its values possible?
    return observed


def _check(what: str, value: Mapping[str, Any], fields: Mapping[str, Field]) -> None:
    for name, field in fields.items():
        if name not in value:
            if field.required:
                raise ValueError(f"{what} lacks {name}")
        elif type(value[name]) is not field.kind or (field.kind is int and value[name] < 0):
            raise ValueError(f"{name} of {what} is not {_NAMES.get(field.kind, 'a list')}")
    if unknown := [name for name in value if name not in fields]:
        raise ValueError(f"{what} has unknown {unknown[0]!r:.60}{did_you_mean(unknown[0], fields)}")


# ---------------------------------------------------------------- events


def event_of(observed: Observed, turn: ev.Turn | None, connecting: bool) -> Event:
    """The event that a line reports, of generation 0. ``turn``: that of a ``turn_submitted``, or
    whose number a ``turn_abandoned`` has. ``connecting``: the connection was not open yet.

    Raises:
        ValueError: a value is not possible there.
    """
    return _EVENTS[observed.kind](observed.fields, turn, connecting)


_Reader = Callable[[Mapping[str, Any], ev.Turn | None, bool], Event]


def _submitted(_: Mapping[str, Any], turn: ev.Turn | None, __: bool) -> Event:
    assert turn is not None
    return ev.TurnSubmitted(turn)


def _abandoned(_: Mapping[str, Any], turn: ev.Turn | None, __: bool) -> Event:
    return ev.TurnAbandoned(0 if turn is None else turn.id)


def _lost(fields: Mapping[str, Any], _: ev.Turn | None, connecting: bool) -> Event:
    cause: Evidence
    if "status" in fields:
        cause = UpgradeRefused(fields["status"])
    elif "reason" in fields or (connecting and "code" not in fields):
        cause = Unreachable(fields.get("reason", "refused"))
    else:
        cause = Closed(fields.get("code", 1006))
    return ev.ConnectionLost(0, cause, unsent=not fields.get("sent", True))


def _ended(fields: Mapping[str, Any], _: ev.Turn | None, __: bool) -> Event:
    outcome = _member(Outcome, "outcome", fields.get("outcome", "completed"))
    cause = _error(fields) if outcome is Outcome.FAILED else None
    return ev.ResponseEnded(0, outcome, fields.get("response"), cause)


def _error(fields: Mapping[str, Any]) -> ErrorFrame:
    names = ("status", "code", "type", "message", "param")
    return ErrorFrame(**{name: fields[name] for name in names if name in fields})


def _member(kind: type[enum.Enum], name: str, value: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        hint = did_you_mean(value, [one.value for one in kind])
        raise ValueError(f"{name} is {value!r:.60}{hint}") from None


_EVENTS: Mapping[str, _Reader] = {
    "turn_submitted": _submitted,
    "turn_abandoned": _abandoned,
    "upstream_opened": lambda _, __, ___: ev.ConnectionOpened(0),
    "upstream_lost": _lost,
    "frame_sent": lambda _, __, ___: ev.FrameSent(0),
    "response_created": lambda fields, _, __: ev.ResponseCreated(0, fields.get("response")),
    "output": lambda fields, _, __: ev.OutputReceived(0, response=fields.get("response")),
    "response_ended": _ended,
    "upstream_error": lambda fields, _, __: ev.UpstreamRefused(0, _error(fields)),
    "timed_out": lambda fields, _, __: ev.DeadlineReached(_timer(fields["timer"])),
}


def _timer(name: str) -> Timer:
    if name not in _TIMERS:
        raise ValueError(f"timer is {name!r:.60}{did_you_mean(name, _TIMERS)}")
    return _TIMERS[name]
