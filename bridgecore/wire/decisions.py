"""The decision log: every event and decision of every session, as lines of JSON (NDJSON).

What belongs here: the format of a line, writing and reading it, and a session that records its
decisions. A log is a sequence of runs. A run begins with a header that contains the whole policy
(cells, budgets, timeouts), so that the log can be replayed by itself. Each following line is one
transition of one session, in the order in which they happened::

    {"at":5000,"session":1,"event":{"FrameSent":{"generation":1,"whole":true}},"rule":"frame-sent","cells":[],"effects":[]}

Values of the core's types are written as ``{"Type":{field: value}}``, enumerations by their value.
``cells`` are the cells of the policy's table that decided, by name (``lost_sent/held=refuse``), as
in log records; the header has the full contents of each cell.

A log contains nothing secret and can be shared. Ids are hashed; equal ids have equal hashes, as
decisions compare anchors. Of an upstream's error only what ``classify`` distinguishes is kept. The
events of a session have no bodies.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from types import NoneType
from typing import Any, TypeAlias, get_args, get_origin, get_type_hints

import attrs

from bridgecore.errors import LocalProtocolError
from bridgecore.recovery.effects import CompleteTurn, Effect, WarmSession
from bridgecore.recovery.events import (
    ConnectionLost,
    Event,
    OutputReceived,
    ResponseCreated,
    ResponseEnded,
    Standing,
    TurnSubmitted,
    UpstreamRefused,
)
from bridgecore.recovery.failure import (
    ErrorFrame,
    Evidence,
    classify,
    known_name,
    known_param,
)
from bridgecore.recovery.policy import (
    Budgets,
    Policy,
    Remedy,
    Situation,
    Timeouts,
    name_of,
)
from bridgecore.recovery.rules import Transition
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import SessionState
from bridgecore.telemetry import Log, LogLevel
from bridgecore.telemetry.metrics import DECISIONS, REMEDIES, Counts
from bridgecore.wire.jsontext import UnreadableError, read_value

# 2: events name their response and tell whether the frame was sent; error frames have members.
# 3: a submitted turn has a deadline; decisions name the cells of the table that decided.
FORMAT = 3
DECISION = "session.decision"  # the event of a Log whose field "line" is a line of the log

_HEADER = {"log": "bridgecore decisions", "format": FORMAT}
_OTHER = "other"  # replaces a code, type or parameter that classification does not know
_TERSE = "Invalid `previous_response_id`."


@attrs.frozen
class Decision:
    """One transition. ``at``: ns of the run's monotonic clock; ``session``: its number in the run;
    ``event``: made anonymous; ``rule``: the id of the rule; ``cells``: the names of the cells that
    decided, in order."""

    at: int
    session: int
    event: Event
    rule: str
    cells: tuple[str, ...]
    effects: tuple[Effect, ...]


Line: TypeAlias = Policy | Decision  # a header, or what follows it


def hashed(identifier: str) -> str:
    """An id as logs show it: a hash, which can be compared but not used."""
    return hashlib.sha256(identifier.encode(errors="surrogatepass")).hexdigest()[:12]


def logged_id(response: str | None) -> str:
    """The same of an id that there may not be, as a field of a log record."""
    return hashed(response) if response else "-"


# ---------------------------------------------------------------- recording


class Recorder:
    """Records the decisions of all sessions of a bridge. ``policy``: the one that they use."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._pending = [_log(write_header(policy))]

    def session(
        self, number: int, state: SessionState | None = None, counts: Counts | None = None
    ) -> Session:
        """A new session, in ``state``, whose transitions are recorded with ``number``, and counted
        in ``counts``."""
        return _RecordedSession(self._policy, number, self._pending, state, counts)

    def take(self) -> list[Log]:
        """The records since the last call, one line each. The first is the header."""
        taken = self._pending.copy()
        self._pending.clear()
        return taken


class CountedSession(Session):
    """A session that counts its decisions in ``counts``, by rule and by cell of the table."""

    __slots__ = ("_counts",)

    def __init__(self, policy: Policy, state: SessionState | None, counts: Counts | None) -> None:
        super().__init__(policy, state)
        self._counts = counts

    def _take(self, event: Event, now: int, transition: Transition) -> None:
        super()._take(event, now, transition)
        if self._counts is None:
            return
        self._counts.add(DECISIONS, transition.rule)
        for cell in transition.cells:
            row, column = name_of(cell.situation), name_of(cell.standing)
            self._counts.add(REMEDIES, row, column, name_of(cell.remedy.action))


class _RecordedSession(CountedSession):
    """A session that writes a line for each transition, including those of deadlines and ``touch``,
    so that a replay needs only ``step``."""

    __slots__ = ("_into", "_number")

    def __init__(
        self,
        policy: Policy,
        number: int,
        into: list[Log],
        state: SessionState | None,
        counts: Counts | None,
    ) -> None:
        super().__init__(policy, state, counts)
        self._number = number
        self._into = into

    def _take(self, event: Event, now: int, transition: Transition) -> None:
        super()._take(event, now, transition)
        effects = tuple([_anonymous_effect(effect) for effect in transition.effects])
        cells = cell_names(transition)
        shown = anonymous(event)
        decision = Decision(now, self._number, shown, transition.rule, cells, effects)
        self._into.append(_log(write_decision(decision)))


def cell_names(transition: Transition) -> tuple[str, ...]:
    """The cells that decided in ``transition``, as a line of the log names them."""
    return tuple([str(cell) for cell in transition.cells])


def _log(line: str) -> Log:
    return Log(LogLevel.DEBUG, DECISION, {"line": line})


def anonymous(event: Event) -> Event:
    """An event that leads to the same decisions, with hashed ids and without texts of others."""
    if isinstance(event, TurnSubmitted) and event.turn.anchor is not None:
        turn = attrs.evolve(event.turn, anchor=hashed(event.turn.anchor))
        return attrs.evolve(event, turn=turn)
    if isinstance(event, ResponseCreated | OutputReceived):
        return attrs.evolve(event, response=_anonymous_id(event.response))
    if isinstance(event, ResponseEnded):
        cause = None if event.cause is None else _anonymous_cause(event.cause)
        return attrs.evolve(event, response=_anonymous_id(event.response), cause=cause)
    if isinstance(event, ConnectionLost | UpstreamRefused):
        return attrs.evolve(event, cause=_anonymous_cause(event.cause))
    return event


def _anonymous_id(identifier: str | None) -> str | None:
    return None if identifier is None else hashed(identifier)


def _anonymous_effect(effect: Effect) -> Effect:
    if isinstance(effect, WarmSession):
        return attrs.evolve(effect, anchor=hashed(effect.anchor))
    if isinstance(effect, CompleteTurn):
        return attrs.evolve(effect, responses=tuple(map(hashed, effect.responses)))
    return effect


def _anonymous_cause(cause: Evidence) -> Evidence:
    """Evidence that is classified in the same way, without texts of the upstream's. Only an error
    frame contains any."""
    if not isinstance(cause, ErrorFrame):
        return cause
    # The message matters only if it alone shows a not-found; then it is replaced by a fixed one.
    classified_by_text = classify(cause) != classify(attrs.evolve(cause, message=None))
    return attrs.evolve(
        cause,
        code=_known(cause.code, known_name),
        type=_known(cause.type, known_name),
        message=_TERSE if classified_by_text else None,
        param=_known(cause.param, known_param),
        more=None,
    )


def _known(word: str | None, name: Callable[[str], str | None]) -> str | None:
    """The name for which classification takes ``word``, or one that it does not know."""
    return None if word is None else name(word) or _OTHER


# ---------------------------------------------------------------- writing


def write_header(policy: Policy) -> str:
    """The first line of a run, without the newline."""
    cells = {
        situation.name: {
            standing.name: _plain(policy.remedy(situation, standing)) for standing in Standing
        }
        for situation in Situation
    }
    budgets, timeouts = _plain(policy.budgets), _plain(policy.timeouts)
    return _json(
        {**_HEADER, "policy": policy.name, **budgets, **timeouts, "cells": cells},
    )


def write_decision(decision: Decision) -> str:
    """The line of ``decision``, whose event is anonymous, without the newline."""
    return _json(
        {
            "at": decision.at,
            "session": decision.session,
            "event": _plain(decision.event),
            "rule": decision.rule,
            "cells": list(decision.cells),
            "effects": [_plain(effect) for effect in decision.effects],
        }
    )


def show(value: Event | Effect) -> str:
    """``value`` as it is written in a line."""
    return _json(_plain(value))


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    kind: Any = type(value)
    if attrs.has(kind):
        return {kind.__name__: {name: _plain(getattr(value, name)) for name in _hints(kind)}}
    if kind is tuple:
        return [_plain(each) for each in value]
    return value


# ---------------------------------------------------------------- reading


def read_line(line: bytes) -> Line:
    """Parse a line of the log, with or without its newline.

    Raises:
        ValueError: it is not a line of a decision log; the message, one sentence, says why.
    """
    try:
        line.decode()
        found = read_value(line)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except UnreadableError:
        raise ValueError("it is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError("it is not an object")
    return _read_header(found) if "log" in found else _read_decision(found)


def _read_decision(found: Mapping[str, Any]) -> Decision:
    _expect_keys("a decision", found, [field.name for field in attrs.fields(Decision)])
    effects = found["effects"]
    if not isinstance(effects, list):
        raise ValueError("effects is not a list")
    return Decision(
        at=_count("at", found["at"]),
        session=_count("session", found["session"]),
        event=_value(found["event"], Event),
        rule=_value(found["rule"], str),
        cells=_value(found["cells"], tuple[str, ...]),
        effects=tuple(_value(effect, Effect) for effect in effects),
    )


def _read_header(found: Mapping[str, Any]) -> Policy:
    if found["log"] != _HEADER["log"]:
        raise ValueError("it is the header of another kind of log")
    if found.get("format") != FORMAT:
        raise ValueError(f"its format is {found.get('format')!r:.40}, not {FORMAT}")
    keys = [*_HEADER, "policy", Budgets.__name__, Timeouts.__name__, "cells"]
    _expect_keys("a header", found, keys)
    rows, names = found["cells"], [standing.name for standing in Standing]
    _expect_keys("cells", rows, [situation.name for situation in Situation])
    for name, row in rows.items():
        _expect_keys(name, row, names)
    return Policy(
        name=_value(found["policy"], str),
        summary="As recorded.",
        cells={
            (situation, standing): _value(rows[situation.name][standing.name], Remedy)
            for situation in Situation
            for standing in Standing
        },
        budgets=_fields(Budgets, found[Budgets.__name__]),
        timeouts=_fields(Timeouts, found[Timeouts.__name__]),
    )


def _expect_keys(what: str, found: Any, keys: list[str]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{what} is not an object")
    if missing := [key for key in keys if key not in found]:
        raise ValueError(f"{what} lacks {', '.join(missing)}")
    if unknown := [key for key in found if key not in keys]:
        raise ValueError(f"{what} has unknown {', '.join(map(repr, unknown))[:100]}")


def _count(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is not a whole number")
    return value


def _value(found: Any, kind: Any) -> Any:
    """The inverse of ``_plain``: the value of ``kind`` (a type, a union of types, or a tuple of any
    length) that was written as ``found``."""
    if get_origin(kind) is tuple:
        if not isinstance(found, list):
            raise ValueError(f"{_shown(found)} is not a list")
        return tuple([_value(each, get_args(kind)[0]) for each in found])
    choices: tuple[type, ...] = get_args(kind) or (kind,)
    for choice in choices:
        if attrs.has(choice):
            if isinstance(found, dict) and list(found) == [choice.__name__]:
                return _fields(choice, found[choice.__name__])
        elif issubclass(choice, enum.Enum):
            for member in choice:
                if member.value == found:
                    return member
        elif type(found) is choice:
            return found
    names = " or ".join(_NAMES.get(choice, choice.__name__) for choice in choices)
    raise ValueError(f"{_shown(found)} is not {names}")


def _shown(found: object) -> str:
    if isinstance(found, list):
        return "a list"
    return _json(list(found) if isinstance(found, dict) else found)[:100]  # an object: its keys


_NAMES: dict[type, str] = {NoneType: "null", str: "text", int: "a number", bool: "true or false"}


def _fields(kind: type, found: Any) -> Any:
    hints = _hints(kind)
    _expect_keys(kind.__name__, found, list(hints))
    values = {name: _value(found[name], hint) for name, hint in hints.items()}
    try:
        return kind(**values)
    except LocalProtocolError as exc:  # an invalid turn
        raise ValueError(str(exc)) from None


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


__all__ = [
    "DECISION",
    "FORMAT",
    "Decision",
    "Line",
    "Recorder",
    "anonymous",
    "cell_names",
    "hashed",
    "read_line",
    "show",
    "write_decision",
    "write_header",
]
