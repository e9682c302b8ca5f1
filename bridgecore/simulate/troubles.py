"""The faults of a run: what can go wrong in a turn, and the draw from the random seed that decides.

What belongs here: the kinds of faults, those of the network (``Strike``) and those of the upstream
(``bridgecore.testing.faults``), and their probabilities. Faults of the network are carried out in
``strikes.py``, faults of the upstream in ``upstream.py``.

The fault of a turn follows from (seed, client, turn) alone. So a scenario with fewer clients or
fewer faults keeps the others unchanged, which ``shrink`` relies on.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.simulate.chance import Rng
from bridgecore.testing.faults import (
    CATALOGUE,
    NOT_FOUND,
    Abort,
    Action,
    Alter,
    CloseWith,
    Error,
    ErrorShape,
    Fault,
    Freeze,
    Garbage,
    Point,
    Reject,
    SendEvents,
    Silence,
    Stale,
    When,
)


class Strike(enum.Enum):
    """A network fault of a turn. The value is its text in the timeline."""

    CLIENT_CUT_UP = "the client's connection breaks during its request"
    CLIENT_CUT_DOWN = "the client's connection breaks during its answer"
    CLIENT_STALL = "the client's connection stalls"
    LINK_CUT_UP = "the upstream connection breaks during the request"
    LINK_CUT_DOWN = "the upstream connection breaks during the answer"
    LINK_STALL_UP = "the upstream connection stalls during the request"
    LINK_STALL_DOWN = "the upstream connection stalls during the answer"
    LINK_HALF_OPEN = "the upstream connection goes half-open"
    IDLE_RESET = "the upstream connection was reset between turns"
    IDLE_CLOSED = "the upstream connection was closed between turns, without a close frame"
    IDLE_HALF_OPEN = "the upstream connection went half-open between turns"
    REFUSED = "the upstream connection was reset and the next connects are refused"
    SWALLOWED = "the upstream connection was reset and the next connect is not answered"


@attrs.frozen
class Trouble:
    """The fault of one turn: of the network, or of the upstream."""

    what: Strike | Fault
    count: int = 0  # bytes after which a connection breaks; connects to refuse
    duration: int = 0  # ns of a stall

    def __str__(self) -> str:
        if isinstance(self.what, Strike):
            return self.what.value
        return f"the upstream: {self.what.action} {self.what.point.value}"


_LIMIT = Error(
    400,
    "websocket_connection_limit_reached",
    "invalid_request_error",
    "This connection has reached its time limit; please open a new one.",
)
_FAILED = (
    b'{"type":"response.failed","sequence_number":%SEQUENCE%,"response":{"id":"%RESPONSE_ID%",'
    b'"status":"failed","output":[],"error":{"code":"server_error","message":"scripted"}}}'
)
_INCOMPLETE = (
    b'{"type":"response.incomplete","sequence_number":%SEQUENCE%,"response":{"id":"%RESPONSE_ID%",'
    b'"status":"incomplete","output":[],"error":null,'
    b'"incomplete_details":{"reason":"max_output_tokens"}}}'
)
_STRANGE = b'{"type":"response.strange","sequence_number":%SEQUENCE%,"new":true}'

_CLOSES: Final[tuple[Action, ...]] = (
    Abort(),
    *(CloseWith(code) for code in (1000, 1001, 1005, 1006, 1011, 1012, 1013, 4000)),
)
_SILENCES: Final[tuple[Action, ...]] = (Silence(), Freeze())
_LATER = (Point.AFTER_CREATED, Point.MID_OUTPUT, Point.BEFORE_TERMINAL)
# Each list is one kind of fault, all kinds equally likely.
_UPSTREAM_FAULTS: Final[tuple[tuple[Fault, ...], ...]] = (
    tuple(Fault(Point.BEFORE_CREATED, action) for action in _CLOSES),
    tuple(Fault(point, action) for point in _LATER for action in _CLOSES),
    tuple(Fault(Point.AFTER_TERMINAL, action) for action in _CLOSES),
    tuple(Fault(Point.BEFORE_CREATED, action) for action in _SILENCES),
    tuple(Fault(point, action) for point in _LATER for action in _SILENCES),
    (
        Fault(Point.BEFORE_CREATED, Error()),
        Fault(Point.BEFORE_CREATED, Error(shape=ErrorShape.NO_STATUS)),
        Fault(Point.BEFORE_CREATED, Error(429, "rate_limit_exceeded", "rate_limit_error")),
        Fault(Point.BEFORE_CREATED, Error(400, "invalid_prompt", "invalid_request_error")),
        Fault(Point.MID_OUTPUT, Error()),
    ),
    tuple(
        # The upstream answers not-found only to a turn with an anchor.
        Fault(Point.BEFORE_CREATED, attrs.evolve(NOT_FOUND, shape=shape), when=When.ANCHORED)
        for shape in ErrorShape
    ),
    (
        Fault(Point.BEFORE_CREATED, _LIMIT),
        Fault(Point.BEFORE_CREATED, attrs.evolve(_LIMIT, shape=ErrorShape.CODE_IN_TYPE)),
    ),
    (
        Fault(Point.AFTER_CREATED, SendEvents((_FAILED,))),
        Fault(Point.MID_OUTPUT, SendEvents((_FAILED,))),
        Fault(Point.BEFORE_TERMINAL, SendEvents((_INCOMPLETE,))),
        Fault(Point.MID_OUTPUT, SendEvents((_STRANGE,))),
        Fault(Point.MID_OUTPUT, Garbage(b"not json")),
        Fault(Point.MID_OUTPUT, Garbage(b"\x8f\xff", raw=True)),
    ),
    (
        Fault(Point.ON_CONNECT, Abort()),
        Fault(Point.ON_CONNECT, Freeze()),
        Fault(Point.ON_UPGRADE, CloseWith(1006)),
        Fault(Point.ON_UPGRADE, Silence()),
        Fault(Point.ON_UPGRADE, Reject(503, ((b"retry-after", b"3"),))),
        Fault(Point.ON_UPGRADE, Reject(404)),
        Fault(Point.ON_UPGRADE, Reject(429)),
    ),
)
# Faults of real services that are not drawn. Faults while a frame is received cannot be attributed
# to a client, and a slow upstream is drawn for a whole run instead. "chain-id" repeats response
# ids, by which the checks distinguish turns.
_NOT_DRAWN: Final = frozenset({"slow-reader", "too-large-while-receiving", "chain-id"})
_USUAL: Final = {fault for kind in _UPSTREAM_FAULTS for fault in kind}
_ODD_NAMES: Final[dict[Fault, str]] = {
    named.fault: name
    for name, named in CATALOGUE.items()
    if name not in _NOT_DRAWN and named.fault not in _USUAL
}


def _odd_kinds() -> tuple[tuple[Fault, ...], ...]:
    """The faults of real services, each list one kind."""
    kinds: dict[str, list[Fault]] = {}
    for fault in _ODD_NAMES:
        match fault.action:
            case Stale() | Alter():
                kind = type(fault.action).__name__
            case Garbage() | SendEvents():
                kind = "noise"
            case _:
                kind = "anchor" if fault.when is not When.ALWAYS else "refusal"
        kinds.setdefault(kind, []).append(fault)
    return tuple(map(tuple, kinds.values()))


_ODD_FAULTS: Final = _odd_kinds()


def trouble(
    seed: int, client: int, turn: int, every: int | None, *, odd: bool = True
) -> Trouble | None:
    """The fault of the turn; None for all but one of ``every`` turns. ``odd``: the faults in
    ``CATALOGUE`` are drawn, too."""
    rng = Rng(seed, 3, client, turn)
    if every is None or not rng.one_in(every):
        return None
    if rng.one_in(2):
        kinds = (*_UPSTREAM_FAULTS, *_ODD_FAULTS) if odd else _UPSTREAM_FAULTS
        return Trouble(rng.pick(rng.pick(kinds)))
    strike = rng.pick(tuple(Strike))
    count = rng.between(1, 3) if strike is Strike.REFUSED else _bytes(rng)
    # Mostly shorter than any deadline, sometimes longer than most.
    duration = rng.pick((1, 4, 20, 70, 400)) * NS_PER_SECOND
    return Trouble(strike, count, duration)


def _bytes(rng: Rng) -> int:
    """How many bytes a connection still carries: often only a few, at most some thousand."""
    return rng.between(0, rng.pick((4, 300, 2500, 9000)))


def name_of(what: Strike | Fault) -> str:
    """The name under which a report counts the fault."""
    if isinstance(what, Strike):
        return what.name
    if what in _ODD_NAMES:
        return _ODD_NAMES[what]
    return f"{type(what.action).__name__} {what.point.value}"
