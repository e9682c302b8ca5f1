"""Faults of an upstream as values: where in a turn, what happens, and in which turn.

What belongs here: the vocabulary, and ``CATALOGUE``, the named faults that real services have
shown. The emulator carries them out.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final, TypeAlias, assert_never

import attrs


class ErrorShape(enum.Enum):
    """The shapes of an upstream's error frame, as observed at real services."""

    FULL = "full"  # status, and error with type, code, message and param
    TERSE = "terse"  # status, and error with type and message only
    CODE_IN_TYPE = "code_in_type"  # the code is in error.type, and there is no error.code
    NO_STATUS = "no_status"  # like FULL, without status
    FLAT = "flat"  # the members of error on the top level, as in an SSE error event
    BARE = "bare"  # {"error": {...}}: no type, no status (xAI)
    BARE_STATUS = "bare_status"  # {"status": 403, "error": {...}}: no type
    DETAIL = "detail"  # {"detail": "MESSAGE"} and nothing else (FastAPI, the ChatGPT backend)
    BODY = "body"  # {"type": "error", "status": 400, "body": {"error": {...}}}
    STATUS_CODE = "status_code"  # like FULL, with status_code in place of status
    STATUS_STRING = "status_string"  # like FULL, the status is a string
    INTEGER_CODE = "integer_code"  # {"error": {...}} whose code is the status, a number (vLLM)
    GRPC = "grpc"  # no code; the message is wrapped in that of a gRPC error (xAI)
    RESPONSE_FAILED = "response_failed"  # a response.failed event, which has code and message only


# Shapes from which code and status can be read, or at least that it is a not-found.
COMMON_SHAPES: Final = (
    ErrorShape.FULL,
    ErrorShape.TERSE,
    ErrorShape.CODE_IN_TYPE,
    ErrorShape.NO_STATUS,
)


class Point(enum.Enum):
    """Where in the life of a connection or a turn a fault strikes."""

    ON_CONNECT = "on_connect"  # TCP was accepted, nothing read
    ON_UPGRADE = "on_upgrade"  # the upgrade request was read; the fault is the answer to it
    WHILE_RECEIVING = "while_receiving"  # part of a create frame was read
    BEFORE_CREATED = "before_created"  # the create frame was read, nothing was sent for it
    AFTER_CREATED = "after_created"  # right after response.created
    MID_OUTPUT = "mid_output"  # after Fault.deltas deltas
    BEFORE_TERMINAL = "before_terminal"  # all but the terminal event was sent
    AFTER_TERMINAL = "after_terminal"  # the turn has ended, the next one has not begun


class When(enum.Enum):
    """Which create frames a fault strikes; it does not strike others."""

    ALWAYS = "always"
    ANCHORED = "anchored"  # the frame has a previous_response_id
    REBUILT = "rebuilt"  # no previous_response_id, and the input contains former output of a model


@attrs.frozen
class CloseWith:
    """A close frame, then the closing handshake. Before the upgrade: the end of the stream, without
    a frame.

    ``code`` 1005 sends a frame without a code; 1006 sends no frame and ends the stream.

    Raises:
        ValueError: RFC 6455, section 7.4, does not permit to send ``code``.
    """

    code: int = attrs.field(default=1001)
    reason: str = ""

    @code.validator
    def _check_code(self, _: object, code: int) -> None:
        _check_close_code(code)


def _check_close_code(code: int) -> None:
    registered = 1000 <= code <= 1014 and code != 1004
    if not registered and not 3000 <= code <= 4999:
        raise ValueError(f"a peer cannot close with {code}")


@attrs.frozen
class Abort:
    """TCP reset, once everything written before was handed to the operating system."""


@attrs.frozen
class Silence:
    """Nothing more is sent for this turn or for later ones in its lane. Pings are answered."""


@attrs.frozen
class Freeze:
    """Nothing more is sent or read on this connection; not even pings are answered."""


@attrs.frozen
class Error:
    """An error frame instead of the rest of the turn. The continuation cache reacts to ``status``.

    ``members`` are added to the error object, such as ``resets_in_seconds``. With ``close`` a close
    frame with that code follows in the same write.

    Raises:
        ValueError: RFC 6455, section 7.4, does not permit to send ``close``.
    """

    status: int = 500
    code: str | None = "server_error"
    type: str = "server_error"
    message: str = "The server had an error while processing your request."
    param: str | None = None
    shape: ErrorShape = ErrorShape.FULL
    members: tuple[tuple[str, Any], ...] = ()
    close: int | None = attrs.field(default=None)

    @close.validator
    def _check_close(self, _: object, code: int | None) -> None:
        if code is not None:
            _check_close_code(code)


@attrs.frozen
class Garbage:
    """Data that violates the protocol. As a text frame, after which the turn goes on; or, with
    ``raw``, as bytes outside of any frame, after which nothing more is sent on the connection.

    Before the upgrade it is always raw. While a frame is being received, a raw one ends the
    connection 2 s later: the peer closes it, and an emulator that does not read would keep it.

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
    """Events that are sent unchanged, one text frame each.

    The turn ends with them if one of them is terminal (``response.completed``, ``.failed``,
    ``.incomplete`` or ``error``), and goes on otherwise. ``%RESPONSE_ID%`` and ``%SEQUENCE%`` are
    replaced by the turn's response id and its next sequence number.

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


class StaleEvent(enum.Enum):
    """An event of a response that has already ended."""

    TERMINAL = "terminal"  # a second copy of its terminal event
    DELTA = "delta"  # a second copy of its last delta
    DONE = "done"  # response.done, which some gateways send after the terminal event


@attrs.frozen
class Stale:
    """A late event of the latest response that ended on this connection; then the turn goes on. At
    ``AFTER_TERMINAL`` that response is the turn's own. No effect if none has ended."""

    event: StaleEvent


class Change(enum.Enum):
    """How a turn's own events deviate from the documented protocol."""

    TWO_IDS = "two_ids"  # response.created has another id than the terminal event; both are valid
    CHAIN_ID = "chain_id"  # the response has the id of the one that it continues
    STORE_FALSE = "store_false"  # if the request leaves store out, the response says false
    NO_CREATED = "no_created"  # response.created and response.in_progress are missing
    NO_SEQUENCE = "no_sequence"  # no event has a sequence_number
    SURROGATE = "surrogate"  # the text ends with half a surrogate pair, escaped as \ud83d
    OUTPUT_EMPTY = "output_empty"  # the terminal event's output is []
    OUTPUT_SHORT = "output_short"  # the terminal event's output lacks the last item
    OUTPUT_NULL = "output_null"  # the terminal event's output is null
    OUTPUT_MISSING = "output_missing"  # the terminal event's response has no output
    # the terminal event's output has a value that is not an item
    OUTPUT_MALFORMED = "output_malformed"
    USAGE_NULL = "usage_null"  # the terminal event's usage is null
    RESPONSE_MISSING = "response_missing"  # the terminal event has no response
    RESPONSE_NULL = "response_null"  # the terminal event's response is null
    RESPONSE_STRING = "response_string"  # the terminal event's response is its id
    DONE = "done"  # response.done is the only end
    CANCELLED = "cancelled"  # response.cancelled is the only end; the response cannot be continued


@attrs.frozen
class Alter:
    """The turn's events are changed. Only at ``BEFORE_CREATED``, before any of them was sent."""

    change: Change


@attrs.frozen
class ReadSlowly:
    """The create frame is read in pieces, ``interval`` ns apart, with a ping after each of the
    first ``pings`` pieces. If ``patience`` pings are unanswered when the next one is due, the
    connection is closed with 1011, as servers with keepalive pings do. Only at ``WHILE_RECEIVING``.

    Raises:
        ValueError: a number is less than 1.
    """

    pings: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    interval: int = attrs.field(default=1_000_000_000, validator=attrs.validators.ge(1))
    patience: int = attrs.field(default=3, validator=attrs.validators.ge(1))


@attrs.frozen
class Reject:
    """An answer to the upgrade other than 101."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


Action: TypeAlias = (
    CloseWith
    | Abort
    | Silence
    | Freeze
    | Error
    | Garbage
    | SendEvents
    | Stale
    | Alter
    | ReadSlowly
    | Reject
)

EVERY: Final = 0
"""Instead of the number of a turn or connection: all of them."""

_OF_CONNECTIONS = frozenset({Point.ON_CONNECT, Point.ON_UPGRADE})


@attrs.frozen
class Fault:
    """``action`` strikes at ``point``. ``deltas`` is used at ``MID_OUTPUT`` only, ``when`` at
    points after the create frame was read.

    Raises:
        ValueError: the action has no meaning at the point.
    """

    point: Point
    action: Action
    deltas: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    when: When = When.ALWAYS

    def __attrs_post_init__(self) -> None:
        match self.action:
            case Reject():
                meaningful = self.point is Point.ON_UPGRADE
            case Alter():
                meaningful = self.point is Point.BEFORE_CREATED
            case ReadSlowly():
                meaningful = self.point is Point.WHILE_RECEIVING
            case Error() | SendEvents() | Stale():
                meaningful = self.point not in _OF_CONNECTIONS
            case CloseWith() | Abort() | Silence() | Freeze() | Garbage():
                meaningful = True
            case _:
                assert_never(self.action)
        if not meaningful:
            raise ValueError(f"{type(self.action).__name__} has no meaning at {self.point.name}")


@attrs.define
class FaultPlan:
    """Assigns faults to connections and turns.

    Faults of ``ON_CONNECT`` and ``ON_UPGRADE`` are assigned by the number of the accepted
    connection, all others by the number of the create frame that the emulator receives, both from
    1; ``EVERY`` means all of them. Faults at one point strike in the order in which they were
    added.
    """

    _faults: list[tuple[int, Fault]] = attrs.field(factory=list, init=False)

    def add(self, nth: int, *faults: Fault) -> FaultPlan:
        """Assign ``faults`` to the ``nth`` connection or turn. Returns the plan, for chaining.

        Raises:
            ValueError: ``nth`` is negative.
        """
        if nth < 0:
            raise ValueError("connections and turns are counted from 1; 0 is all of them")
        self._faults += ((nth, fault) for fault in faults)
        return self

    def add_named(self, nth: int, name: str) -> FaultPlan:
        """Assign the fault ``name`` in ``CATALOGUE`` to the ``nth`` turn. Returns the plan.

        Raises:
            ValueError: ``nth`` is negative.
            KeyError: ``CATALOGUE`` has no such fault.
        """
        return self.add(nth, CATALOGUE[name].fault)

    def clear(self) -> None:
        """Remove all faults. What has already struck goes on."""
        self._faults.clear()

    def at(self, nth: int, point: Point) -> list[Fault]:
        """The faults of the ``nth`` connection or turn at ``point``."""
        return [
            fault
            for number, fault in self._faults
            if number in (nth, EVERY) and fault.point is point
        ]


# ------------------------------------------------------------------ the catalogue


@attrs.frozen
class Named:
    """A fault that real services have shown. ``doc``: what a client observes, in a sentence;
    backquotes enclose code."""

    fault: Fault
    doc: str


NOT_FOUND: Final = Error(
    400,
    "previous_response_not_found",
    "invalid_request_error",
    "Previous response not found.",
    "previous_response_id",
)
_CODEX_LIMITS = (
    b'{"type":"codex.rate_limits","plan_type":"plus","rate_limits":{"primary":'
    b'{"used_percent":12.5,"window_minutes":300}}}'
)
_METADATA = (
    b'{"type":"response.metadata","response_id":"%RESPONSE_ID%","headers":{"x-models-etag":"1"}}'
)
_SURROGATE = b'{"type":"response.note","sequence_number":%SEQUENCE%,"text":"half \\ud83d"}'
_NOISE: Final[dict[str, tuple[bytes, str]]] = {
    "blank": (b"", "A text frame without content"),
    "newline": (b"\n", "A text frame with nothing but a line feed"),
    "null": (b"null", "A text frame with `null`"),
    "list": (b"[]", "A text frame with `[]`"),
    "ping": (b"ping", "A text frame with the word `ping`"),
    "done-marker": (b"[DONE]", "A text frame with `[DONE]`, the end mark of other APIs"),
    "empty-object": (b"{}", "A text frame with `{}`"),
}
_CHANGES: Final[dict[Change, str]] = {
    Change.TWO_IDS: "`response.created` and the terminal event have different ids, both valid.",
    Change.CHAIN_ID: "The response has the same id as the one that it continues.",
    Change.STORE_FALSE: "The response says `store: false` although the request left it out.",
    Change.NO_CREATED: "`response.created` and `response.in_progress` are missing.",
    Change.NO_SEQUENCE: "No event has a `sequence_number`.",
    Change.SURROGATE: r"The text ends with half a surrogate pair, escaped: `\ud83d`.",
    Change.OUTPUT_EMPTY: "`output` of the terminal event is empty, whatever was streamed.",
    Change.OUTPUT_SHORT: "`output` of the terminal event lacks the last item.",
    Change.OUTPUT_NULL: "`output` of the terminal event is null.",
    Change.OUTPUT_MISSING: "The response of the terminal event has no `output`.",
    Change.OUTPUT_MALFORMED: "`output` of the terminal event has members that are no items.",
    Change.USAGE_NULL: "`usage` of the terminal event is null.",
    Change.RESPONSE_MISSING: "The terminal event has no `response`.",
    Change.RESPONSE_NULL: "`response` of the terminal event is null.",
    Change.RESPONSE_STRING: "`response` of the terminal event is a string.",
    Change.DONE: "The response ends with `response.done` and nothing else.",
    Change.CANCELLED: "The response ends with `response.cancelled` and nothing else.",
}
_SHAPES: Final[dict[ErrorShape, str]] = {
    ErrorShape.FULL: "as documented",
    ErrorShape.TERSE: "without code and param",
    ErrorShape.CODE_IN_TYPE: "with its code in `error.type`",
    ErrorShape.NO_STATUS: "without a status",
    ErrorShape.FLAT: "with the error's members beside `type`",
    ErrorShape.BARE: 'that is `{"error": {...}}`',
    ErrorShape.BARE_STATUS: "without a type",
    ErrorShape.DETAIL: 'that is `{"detail": MESSAGE}`',
    ErrorShape.BODY: "inside `body`",
    ErrorShape.STATUS_CODE: "with `status_code` in place of `status`",
    ErrorShape.STATUS_STRING: "whose status is a string",
    ErrorShape.INTEGER_CODE: "whose code is the status, as vLLM writes it",
    ErrorShape.GRPC: "in the words of a gRPC error, as xAI writes it",
    ErrorShape.RESPONSE_FAILED: "as `response.failed` before `response.created`",
}


def _catalogue() -> dict[str, Named]:
    before, after = Point.BEFORE_CREATED, Point.AFTER_TERMINAL
    found: dict[str, Named] = {
        "stale-terminal": Named(
            Fault(before, Stale(StaleEvent.TERMINAL)),
            "A second copy of the previous response's terminal event, after the next frame.",
        ),
        "stale-terminal-mid-output": Named(
            Fault(Point.MID_OUTPUT, Stale(StaleEvent.TERMINAL)),
            "A second copy of the previous response's terminal event, amid the next output.",
        ),
        "doubled-terminal": Named(
            Fault(after, Stale(StaleEvent.TERMINAL)),
            "A second copy of the terminal event right after it.",
        ),
        "stale-delta": Named(
            Fault(before, Stale(StaleEvent.DELTA)),
            "A delta of the previous response, after the next frame.",
        ),
        "stale-delta-mid-output": Named(
            Fault(Point.MID_OUTPUT, Stale(StaleEvent.DELTA)),
            "A delta of the previous response, amid the next output.",
        ),
        "late-delta": Named(
            Fault(after, Stale(StaleEvent.DELTA)), "A delta after the terminal event."
        ),
        "stale-done": Named(
            Fault(before, Stale(StaleEvent.DONE)),
            "`response.done` of the previous response, after the next frame.",
        ),
        "done-after-terminal": Named(
            Fault(after, Stale(StaleEvent.DONE)), "`response.done` after the terminal event."
        ),
        "metadata-first": Named(
            Fault(before, SendEvents((_METADATA,))),
            "`response.metadata`, an unknown event, before `response.created`.",
        ),
        "rate-limits-first": Named(
            Fault(before, SendEvents((_CODEX_LIMITS,))),
            "`codex.rate_limits`, an unknown event, before `response.created`.",
        ),
        "surrogate-in-unknown-event": Named(
            Fault(Point.MID_OUTPUT, SendEvents((_SURROGATE,))),
            "An unknown event with half a surrogate pair in it.",
        ),
        "anchor-refused": Named(
            Fault(
                before,
                Error(
                    400,
                    "unsupported_parameter",
                    "invalid_request_error",
                    "previous_response_id may not be used with instructions.",
                    "instructions",
                ),
                when=When.ANCHORED,
            ),
            "A frame with `previous_response_id` is refused, and not as not-found.",
        ),
        "anchor-expired": Named(
            Fault(
                before,
                Error(
                    404,
                    "response_expired",
                    "invalid_request_error",
                    "The referenced response has expired.",
                    "previous_response_id",
                ),
                when=When.ANCHORED,
            ),
            "A frame with `previous_response_id` is refused with 404 `response_expired`.",
        ),
        "rebuilt-input-refused": Named(
            Fault(
                before,
                Error(
                    400,
                    "invalid_encrypted_content",
                    "invalid_request_error",
                    "The encrypted content could not be verified.",
                    "input",
                ),
                when=When.REBUILT,
            ),
            "A whole history is refused with 400 `invalid_encrypted_content`.",
        ),
        "usage-limit": Named(
            Fault(
                before,
                Error(
                    429,
                    "usage_limit_reached",
                    "usage_limit_reached",
                    "The usage limit has been reached.",
                    members=(
                        ("plan_type", "plus"),
                        ("resets_at", 1_767_226_200),
                        ("resets_in_seconds", 600),
                    ),
                ),
            ),
            "429 `usage_limit_reached`, with `plan_type` and `resets_in_seconds`.",
        ),
        "too-large": Named(
            Fault(before, CloseWith(1009, "message too big")),
            "Close code 1009: the message is larger than the upstream takes.",
        ),
        "too-large-while-receiving": Named(
            Fault(Point.WHILE_RECEIVING, CloseWith(1009, "message too big")),
            "Close code 1009 before the whole message was read.",
        ),
        "closed-with-terminal": Named(
            Fault(after, CloseWith(1001)), "A close frame in the same write as the terminal event."
        ),
        "closed-with-refusal": Named(
            Fault(before, attrs.evolve(NOT_FOUND, close=1001), when=When.ANCHORED),
            "A close frame in the same write as a not-found.",
        ),
        "slow-reader": Named(
            Fault(Point.WHILE_RECEIVING, ReadSlowly()),
            "A large message is read slowly, with pings in between that want their pongs.",
        ),
    }
    for name, (data, doc) in _NOISE.items():
        found[f"noise-{name}"] = Named(Fault(before, Garbage(data)), f"{doc}, first.")
        found[f"noise-{name}-mid-output"] = Named(
            Fault(Point.MID_OUTPUT, Garbage(data)), f"{doc}, amid the output."
        )
    for change, doc in _CHANGES.items():
        found[change.value.replace("_", "-")] = Named(Fault(before, Alter(change)), doc)
    for shape, words in _SHAPES.items():
        name = shape.value.replace("_", "-")
        missed = attrs.evolve(NOT_FOUND, shape=shape)
        found[f"not-found-{name}"] = Named(
            Fault(before, missed, when=When.ANCHORED), f"A not-found {words}."
        )
        found[f"server-error-{name}"] = Named(
            Fault(before, Error(shape=shape)), f"A server error {words}."
        )
    return found


CATALOGUE: Final[Mapping[str, Named]] = _catalogue()
"""The named faults, by the names that documentation and reports have for them."""
