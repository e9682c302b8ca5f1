"""What can go wrong at an upstream, as values: where in a turn, what happens, and to which turn.

What belongs here: the vocabulary. The emulator is what acts on it.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias, assert_never

import attrs


class ErrorShape(enum.Enum):
    """How an upstream writes its error frame (shapes seen at real services)."""

    FULL = "full"  # status, and error with type, code, message and param
    TERSE = "terse"  # status, and error with nothing but type and message
    CODE_IN_TYPE = "code_in_type"  # the code stands in error.type, and there is no error.code
    NO_STATUS = "no_status"  # like FULL, without status


class Point(enum.Enum):
    """Where in the life of a connection or a turn a fault strikes."""

    ON_CONNECT = "on_connect"  # TCP was accepted, no byte read
    ON_UPGRADE = "on_upgrade"  # the upgrade request is there, and is not answered otherwise
    WHILE_RECEIVING = "while_receiving"  # part of a create frame is there, and no more is read
    BEFORE_CREATED = "before_created"  # the create frame is there, nothing was said about it
    AFTER_CREATED = "after_created"  # right after response.created
    MID_OUTPUT = "mid_output"  # after Fault.deltas deltas
    BEFORE_TERMINAL = "before_terminal"  # all but the terminal event was sent
    AFTER_TERMINAL = "after_terminal"  # the turn is over, the next one has not begun


@attrs.frozen
class CloseWith:
    """A close frame, then the closing handshake. Before the upgrade, the bare end of the stream.

    ``code`` 1005 sends a frame without a code; 1006 sends no frame and ends the stream.

    Raises:
        ValueError: ``code`` is none that RFC 6455, section 7.4, lets anybody send.
    """

    code: int = attrs.field(default=1001)
    reason: str = ""

    @code.validator
    def _check_code(self, _: object, code: int) -> None:
        registered = 1000 <= code <= 1014 and code != 1004
        if not registered and not 3000 <= code <= 4999:
            raise ValueError(f"a peer cannot close with {code}")


@attrs.frozen
class Abort:
    """TCP reset, once what was said before is with the operating system."""


@attrs.frozen
class Silence:
    """Nothing more is said for this turn, nor for later ones in its lane. Pings are answered."""


@attrs.frozen
class Freeze:
    """Nothing more is said on this connection, not even a pong, and nothing is listened to."""


@attrs.frozen
class Error:
    """An error frame in place of the rest of the turn. The continuation cache obeys ``status``."""

    status: int = 500
    code: str | None = "server_error"
    type: str = "server_error"
    message: str = "The server had an error while processing your request."
    param: str | None = None
    shape: ErrorShape = ErrorShape.FULL


@attrs.frozen
class Garbage:
    """Something no client expects. As a text frame, after which the turn goes on; or, ``raw``,
    bytes that need be no frame at all, after which nothing more is said on the connection.

    Before the upgrade it is always raw.

    Raises:
        ValueError: ``data`` is to be a text frame, and not UTF-8.
    """

    data: bytes = b"garbage"
    raw: bool = False

    def __attrs_post_init__(self) -> None:
        if not self.raw:
            _check_text(self.data)


@attrs.frozen
class SendEvents:
    """Events sent as they are, one text frame each.

    The turn ends with them if one of them is terminal (``response.completed``, ``.failed``,
    ``.incomplete`` or ``error``), and goes on otherwise. ``%RESPONSE_ID%`` and ``%SEQUENCE%`` stand
    for the turn's response id and its next sequence number.

    Raises:
        ValueError: an event is not UTF-8.
    """

    events: tuple[bytes, ...]

    def __attrs_post_init__(self) -> None:
        for event in self.events:
            _check_text(event)


def _check_text(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as exc:
        raise ValueError(f"a text frame must be UTF-8: {exc}") from None


@attrs.frozen
class Reject:
    """An answer to the upgrade that is not 101."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


Action: TypeAlias = CloseWith | Abort | Silence | Freeze | Error | Garbage | SendEvents | Reject

EVERY: Final = 0

_OF_CONNECTIONS = frozenset({Point.ON_CONNECT, Point.ON_UPGRADE})


@attrs.frozen
class Fault:
    """``action`` strikes at ``point``; ``deltas`` counts for ``MID_OUTPUT`` alone.

    Raises:
        ValueError: the action has no meaning at the point.
    """

    point: Point
    action: Action
    deltas: int = attrs.field(default=1, validator=attrs.validators.ge(0))

    def __attrs_post_init__(self) -> None:
        match self.action:
            case Reject():
                meaningful = self.point is Point.ON_UPGRADE
            case Error() | SendEvents():
                meaningful = self.point not in _OF_CONNECTIONS
            case CloseWith() | Abort() | Silence() | Freeze() | Garbage():
                meaningful = True
            case _:
                assert_never(self.action)
        if not meaningful:
            raise ValueError(f"{type(self.action).__name__} has no meaning at {self.point.name}")


@attrs.define
class FaultPlan:
    """Which connection or turn meets which fault.

    Faults of ``ON_CONNECT`` and ``ON_UPGRADE`` go by the number of the accepted connection, all
    others by the number of the create frame that the emulator sees, both from 1; ``EVERY`` is all
    of them. Faults of one point strike in the order in which they were added.
    """

    _faults: list[tuple[int, Fault]] = attrs.field(factory=list, init=False)

    def add(self, nth: int, *faults: Fault) -> FaultPlan:
        """Let the ``nth`` connection or turn meet ``faults``. Returns the plan, for chaining.

        Raises:
            ValueError: ``nth`` is negative.
        """
        if nth < 0:
            raise ValueError("connections and turns are counted from 1; 0 is all of them")
        self._faults += ((nth, fault) for fault in faults)
        return self

    def clear(self) -> None:
        """Let nothing go wrong from now on; what has struck goes on."""
        self._faults.clear()

    def at(self, nth: int, point: Point) -> list[Fault]:
        """The faults that the ``nth`` connection or turn meets at ``point``."""
        return [
            fault
            for number, fault in self._faults
            if number in (nth, EVERY) and fault.point is point
        ]
