"""The JSON of the Responses API: parses what routing needs, keeps the rest byte for byte.

What belongs here: parsing the request bodies of clients and the events of upstreams, and writing
the few events and errors that the bridge makes itself. Shapes are those of the Responses API
reference and its WebSocket mode; see "Protocol notes" in the documentation.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Any, TypeGuard, TypeVar

import attrs
import msgspec

from bridgecore.errors import BridgecoreError
from bridgecore.recovery.events import Outcome
from bridgecore.recovery.failure import ErrorFrame
from bridgecore.wire.errors import error_among
from bridgecore.wire.jsontext import (
    SURROGATE,
    Text,
    TooDeepError,
    UnreadableError,
    WrongShapeError,
    begins,
    quoted,
    read_array,
    read_members,
    read_value,
    reader,
    write_object,
)

T = TypeVar("T")

_NULL = msgspec.Raw(b"null")
_CREATE = msgspec.Raw(b'"response.create"')

# ---------------------------------------------------------------- requests


class InvalidBodyError(BridgecoreError):
    """An invalid request body. ``message`` says what is wrong and what to do; ``param`` where."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


@attrs.frozen(eq=False)
class CreateRequest:
    """A ``POST /v1/responses`` body, parsed once, as far as the bridge needs it.

    Attributes:
        members: the members of ``frame``, in order, as views of the body.
        size: the length of ``frame``, in bytes.
        stream: whether the client wants a stream of events.
        store: whether the upstream should store the response.
        previous_response_id: the response that the client continues.
        model: None if it is defined by a ``prompt``.
        input_text: a text that contains the ``input``, and the offset at which that begins in it;
            None if there is no ``input``.
    """

    members: Mapping[str, msgspec.Raw] = attrs.field(repr=False)
    size: int
    stream: bool
    store: bool
    previous_response_id: str | None
    model: str | None
    input_text: tuple[bytes, int] | None = attrs.field(repr=False)

    @property
    def frame(self) -> bytes:
        """The ``response.create`` event to send upstream: the client's members, each value byte for
        byte, with a ``type`` and without those that concern HTTP or the connection
        (``_HTTP_ONLY``).

        Written on each use: a body can have megabytes, and a turn that is reduced needs no copy.
        """
        return write_object(self.members)

    def frame_with(self, **changes: Text | None) -> bytes:
        """``frame`` with the members in ``changes``, and without those that are None there. All
        other members are kept byte for byte."""
        members = {**self.members, **changes}
        return write_object({name: raw for name, raw in members.items() if raw is not None})


# Ids of up to 465 characters are in use. The limit bounds the memory that an id can take.
MAX_RESPONSE_ID = 4096  # bytes of UTF-8

_HTTP_ONLY = (
    "stream",  # a WebSocket always streams
    "stream_options",  # of the SSE stream
    "background",  # does not exist in WebSocket mode; true was refused before
    "stream_id",  # names a lane of the connection, which the bridge assigns
    "type",  # the frame has its own
)


def parse_create(body: bytes) -> CreateRequest:
    """Parse a request body.

    Raises:
        InvalidBodyError: it is not a JSON object or nested too deeply; it has neither a string
            ``model`` nor a ``prompt``; a field that routing needs has a wrong type;
            ``background`` is true, which WebSocket mode does not support;
            ``previous_response_id`` is longer than ``MAX_RESPONSE_ID`` bytes.
    """
    members = _read_body(body)
    model = _member(members, "model", _read_string, "a string")
    # A prompt template defines its model.
    if model is None and not begins(members.get("prompt", _NULL), b"{"):
        raise InvalidBodyError(
            "The request body must have a 'model' that is a string, or a 'prompt'.", "model"
        )
    stream = _member(members, "stream", _read_flag, "a boolean")
    store = _member(members, "store", _read_flag, "a boolean")
    previous = _member(members, "previous_response_id", _read_string, "a string")
    if previous is not None and len(previous.encode()) > MAX_RESPONSE_ID:
        raise InvalidBodyError(
            f"'previous_response_id' must not be longer than {MAX_RESPONSE_ID} bytes.",
            "previous_response_id",
        )
    if _member(members, "background", _read_flag, "a boolean"):
        raise InvalidBodyError(
            "'background' is not supported: this server answers while the request lasts. Leave it"
            " out, or set it to false.",
            "background",
        )
    size, at = _measure(members)
    input_text = None
    if (given := members.get("input")) is not None:
        # If the body has white space between its members, an escape in a name, or a name twice, it
        # is longer than its members. If not, the ``input`` is where it was computed to be.
        input_text = (body, at) if size == len(body) else (bytes(given), 0)
    for name in _HTTP_ONLY:
        if (raw := members.pop(name, None)) is not None:
            size -= len(name) + len(raw) + 4  # two quotes, a colon and a comma
    members = {"type": _CREATE, **members}
    size += len(b'"type":') + len(_CREATE) + 1
    return CreateRequest(
        members,
        size,
        bool(stream),
        store is not False,  # the API's default is true
        previous,
        model,
        input_text,
    )


def _read_body(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        if not body.isascii():
            _check_utf8(body)  # a WebSocket text message must be UTF-8
        return read_members(body)
    except UnicodeDecodeError as exc:
        raise InvalidBodyError(f"The request body is not valid UTF-8 (byte {exc.start}).") from None
    except WrongShapeError:
        raise InvalidBodyError("The request body must be a JSON object.") from None
    except TooDeepError:
        raise InvalidBodyError("The request body is nested too deeply.") from None
    except UnreadableError as exc:
        raise InvalidBodyError(f"The request body is not valid JSON: {exc}.") from None


# Bytes that are decoded at once. A body of megabytes would become a text of up to four times its
# size; allocating that takes longer than decoding it.
_STEP = 1 << 14


def _check_utf8(body: bytes) -> None:
    """Raises ``UnicodeDecodeError``, with the offset in ``body``, if it is not UTF-8."""
    at = 0
    while at < len(body):
        end = at + _STEP
        # Not within a character, which has at most three continuation bytes (RFC 3629, section 3).
        for _ in range(3):
            if end < len(body) and body[end] & 0xC0 == 0x80:
                end -= 1
        try:
            body[at:end].decode()
        except UnicodeDecodeError:
            body.decode()  # raises it with the offset in ``body``
            raise
        at = end


_read_string = reader(str)
_read_flag = reader(bool)


def _member(
    members: Mapping[str, msgspec.Raw], name: str, read: Callable[[Text], T], kind: str
) -> T | None:
    """The member ``name`` as ``read`` reads it; None if it is absent or null, which are the same to
    the API."""
    raw = members.get(name)
    if raw is None or raw == _NULL:
        return None
    with suppress(UnreadableError, UnicodeEncodeError):
        value = read(raw)
        if isinstance(value, str):
            value.encode()  # refuse half a surrogate pair, which could not be written again
        return value
    raise InvalidBodyError(f"'{name}' must be {kind}.", name)


def _measure(members: Mapping[str, msgspec.Raw]) -> tuple[int, int]:
    """The length of ``write_object(members)``, which has at least one member, and where the value
    of ``input`` begins in it, if there is one."""
    size = 1
    at = 0
    for name, raw in members.items():
        size += len(quoted(name)) + 1  # with the colon
        if name == "input":
            at = size
        size += len(raw) + 1  # with the comma or bracket after it
    return size, at


# ---------------------------------------------------------------- events


class EventKind(enum.Enum):
    """The meaning of an upstream event for its turn."""

    __hash__ = object.__hash__  # by identity: looked up for every event

    CREATED = "created"
    PROGRESS = "progress"  # response.queued, response.in_progress: no output
    OUTPUT = "output"
    ENDED = "ended"  # a terminal event
    ERROR = "error"  # an error message on the connection
    OTHER = "other"  # unknown, or not about a response: passed on


@attrs.define
class UpstreamEvent:
    """One event. ``data``: the JSON text as received; ``type``: can be written in an SSE field.

    ``response``, ``item``: the ids of the response and of the output item that the event names.

    Most events are passed on unread. The other properties are parsed from ``data`` on first use and
    then kept, so that nothing is parsed twice.
    """

    kind: EventKind
    type: bytes
    data: bytes
    response: str | None = None
    item: str | None = None

    @cached_property
    def members(self) -> Mapping[str, Text]:
        """The members, each value byte for byte; empty if the event cannot be parsed."""
        try:
            return read_members(self.data)
        except UnreadableError:
            return {}

    @cached_property
    def response_members(self) -> Mapping[str, Text] | None:
        """The members of the response object in the event; None if there is none."""
        try:
            return read_members(self.members.get("response", _NULL))
        except UnreadableError:
            return None

    @cached_property
    def known_error(self) -> ErrorFrame | None:
        """The error in the event; None if there is none in a known shape."""
        return error_among(self.members)

    @property
    def error(self) -> ErrorFrame:
        """The error in the event; an empty one if there is none in a known shape."""
        return self.known_error or ErrorFrame()

    @property
    def stored(self) -> bool | None:
        """``store`` of the response in the event; None if it has none. It may differ from the
        request: for an organisation without retention it is false where the request had none."""
        store = (self.response_members or {}).get("store", _NULL)
        return {b"true": True, b"false": False}.get(bytes(store))

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that only an event with the same text has."""
        return hashlib.blake2b(self.data, digest_size=16).digest()

    @property
    def sequence_number(self) -> int:
        """The ``sequence_number``; -1 if there is none."""
        number = _value_of(self.members.get("sequence_number"))
        return number if isinstance(number, int) and not isinstance(number, bool) else -1


ITEM_ADDED = b"response.output_item.added"
ITEM_DONE = b"response.output_item.done"
_FAILED = b"response.failed"
_KINDS = {
    b"response.created": EventKind.CREATED,
    b"response.queued": EventKind.PROGRESS,
    b"response.in_progress": EventKind.PROGRESS,
    b"response.completed": EventKind.ENDED,
    b"response.failed": EventKind.ENDED,
    b"response.incomplete": EventKind.ENDED,
    # Some upstreams end with it; others send it after response.completed.
    b"response.done": EventKind.ENDED,
    b"response.cancelled": EventKind.ENDED,
    b"response.canceled": EventKind.ENDED,
    b"error": EventKind.ERROR,
}
# Events that are output (API reference, "Streaming events"): an output item, a part of one, or the
# progress of a tool that the service runs. Any other ``response.*`` event, such as
# ``response.metadata``, is no output, so the turn can still be replayed after it.
_OUTPUT = re.compile(
    rb"response\.(?:output_\w+|content_part|refusal|reasoning\w*|audio\w*|function_call\w*"
    rb"|custom_tool_call\w*|mcp_\w+|\w+_call(?:_\w+)?)(?:\.\w+)+"
)
_OUTCOMES = {
    b"response.completed": Outcome.COMPLETED,
    b"response.failed": Outcome.FAILED,
    b"response.incomplete": Outcome.INCOMPLETE,
}


class _Named(msgspec.Struct):
    id: str | None = None


class _Envelope(msgspec.Struct):
    """The members of an event that routing needs. All others are skipped and not decoded."""

    type: str
    response: _Named | None = None
    response_id: str | None = None
    item_id: str | None = None
    item: _Named | None = None


_read_envelope = reader(_Envelope)


def read_event(data: bytes) -> UpstreamEvent | None:
    """Parse an upstream message; None if it is noise.

    Noise is anything but a JSON object with a string ``type``, or an error in one of the shapes
    without a type. Upstreams that began as SSE servers, or that keep their connections alive, send
    blank messages, ``null``, ``ping`` and ``[DONE]``.
    """
    try:
        found = _read_envelope(data)
    except WrongShapeError:
        return _read_odd_event(data)
    except UnreadableError:
        return None
    known = _kind(found.type)
    if known is None:
        return None
    kind, name = known
    response, item = found.response, found.item
    return UpstreamEvent(
        kind,
        name,
        data,
        (response.id if response is not None else found.response_id) or None,
        (item.id if item is not None else found.item_id) or None,
    )


def _read_odd_event(data: bytes) -> UpstreamEvent | None:
    """``read_event`` for JSON in which a member has not its usual type."""
    try:
        value = read_value(data)
    except UnreadableError:
        return None
    if not isinstance(value, dict):
        return None
    name = value.get("type")
    if not isinstance(name, str):
        # Some shapes of errors have no type (see bridgecore.wire.errors).
        event = UpstreamEvent(EventKind.ERROR, b"error", data)
        return None if event.known_error is None else event
    known = _kind(name)
    if known is None:
        return None
    response = _member_of(value.get("response"), "id") or _member_of(value, "response_id")
    item = _member_of(value.get("item"), "id") or _member_of(value, "item_id")
    return UpstreamEvent(*known, data, response or None, item or None)


def _member_of(value: object, name: str) -> str | None:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


@lru_cache(maxsize=256)  # there are some thirty names; bounded, as upstreams choose them
def _kind(name: str) -> tuple[EventKind, bytes] | None:
    """The kind of events with this name, and the name as bytes; None if it cannot be written in an
    SSE field."""
    if not name or not name.isprintable():
        return None  # a line break would end the SSE field
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        return None  # half a surrogate pair
    kind = _KINDS.get(raw)
    if kind is None:
        kind = EventKind.OUTPUT if _OUTPUT.fullmatch(raw) else EventKind.OTHER
    return kind, raw


def _value_of(raw: Text | None) -> Any:
    """``raw`` as a Python value; None if there is none, or it cannot be read."""
    try:
        return None if raw is None else read_value(raw)
    except UnreadableError:
        return None


# ---------------------------------------------------------------- terminal events


@attrs.define(eq=False)
class Terminal:
    """A terminal event, parsed once, in the form in which it is sent to the client.

    Attributes:
        event: one of the three standard ones, with its complete output.
        outcome: how the response ended.
        response_id: the id of the response.
        output: its output items; None if they are unknown.
        items: the ids of those items that have one.
        store: whether the upstream stores the response; None if the event does not say.
        usage: input tokens (of the whole context) and output tokens, as counted by the upstream;
            zeros if it did not count.
    """

    event: UpstreamEvent
    outcome: Outcome
    response_id: str | None
    output: list[bytes] | None
    items: tuple[str, ...]
    store: bool | None
    usage: tuple[int, int]

    @property
    def response(self) -> bytes:
        """The response object."""
        return final_response(self.event)


_STANDARD = {
    "completed": b"response.completed",
    "incomplete": b"response.incomplete",
    "failed": _FAILED,
    "cancelled": _FAILED,
    "canceled": _FAILED,
}
_CANCELLED = (
    b'{"code":"response_cancelled","message":"The upstream cancelled the response before its end."}'
)


def read_terminal(
    event: UpstreamEvent, streamed: Sequence[bytes], *, shortcuts: bool = True
) -> Terminal | None:
    """Parse a terminal event; None if there is no response in it that can be read.

    Two things are repaired, so that the stream, the JSON answer and the transcript agree. Otherwise
    the event is kept byte for byte:

    * an ``output`` that is empty, malformed or shorter than what was streamed is completed from
      ``streamed``, the ``response.output_item.done`` events of the answer;
    * ``response.done`` and ``response.cancelled`` are replaced by the standard event for the
      response's ``status``; if that is no final status, by the one for the name of the event. To a
      client that waits for the answer, a cancelled response is a failed one.

    ``shortcuts``: read the usual shape in a shorter way, with the same result.
    """
    usual = _read_usual_terminal(event, streamed) if shortcuts else None
    return usual or _read_any_terminal(event, streamed)


class _Usage(msgspec.Struct):
    input_tokens: Any = None
    output_tokens: Any = None


class _FinalResponse(msgspec.Struct):
    output: list[msgspec.Raw]
    id: str | None = None
    store: bool | None = None
    usage: _Usage | None = None


class _Ending(msgspec.Struct):
    response: _FinalResponse


class _FinalItem(msgspec.Struct):
    type: str
    id: str


class _ItemDone(msgspec.Struct):
    output_index: int
    item: msgspec.Raw


_read_ending = reader(_Ending)
_read_final_item = reader(_FinalItem)
_read_item_done = reader(_ItemDone)


def _read_usual_terminal(event: UpstreamEvent, streamed: Sequence[bytes]) -> Terminal | None:
    """``read_terminal`` for what upstreams send almost always, decoded once; None for all else.

    That is ``response.completed`` or ``response.incomplete`` with members of their usual types, an
    id of its own on each output item, and output items that are byte for byte those that were
    streamed, so that nothing has to be completed.
    """
    outcome = _OUTCOMES.get(event.type)
    # A name with half a surrogate pair makes the event unreadable, but is skipped here.
    if outcome is None or outcome is Outcome.FAILED or SURROGATE.search(event.data):
        return None
    try:
        response = _read_ending(event.data).response
        items = [_read_final_item(raw) for raw in response.output]
        done = [_read_item_done(data) for data in streamed]
    except UnreadableError:
        return None
    output = response.output
    names = tuple([item.id for item in items])
    if len({*names, ""}) <= len(names) or "" in [item.type for item in items]:
        return None  # an id twice, an empty one, or an empty type
    for each in done:
        if not 0 <= each.output_index < len(output) or output[each.output_index] != each.item:
            return None
    usage = response.usage
    return Terminal(
        event,
        outcome,
        response.id or None,
        [*map(bytes, output)],
        names,
        response.store,
        (0, 0) if usage is None else _counts(usage.input_tokens, usage.output_tokens),
    )


def _read_any_terminal(event: UpstreamEvent, streamed: Sequence[bytes]) -> Terminal | None:
    """``read_terminal`` for any event."""
    if event.response_members is None:
        return None
    members, response = dict(event.members), dict(event.response_members)
    mended = False
    name = event.type
    if name not in _OUTCOMES:
        status = _text_of(response.get("status"))
        if status not in _STANDARD:
            status = "completed" if name == b"response.done" else "cancelled"
            response["status"] = b'"%b"' % status.encode()
        name = _STANDARD[status]
        members["type"] = b'"%b"' % name
        mended = True
        if name == _FAILED and not begins(response.get("error", _NULL), b"{"):
            response["error"] = _CANCELLED
    output = _read_output(response.get("output"))
    if name != _FAILED:
        completed = _completed(output, streamed)
        if completed is not None:
            output = completed
            response["output"] = b"[%b]" % b",".join([item.raw for item in completed])
            mended = True
    if mended:
        members["response"] = write_object(response)
        data = write_object(members)
        event = UpstreamEvent(EventKind.ENDED, name, data, event.response, event.item)
        event.members, event.response_members = members, response
    return Terminal(
        event=event,
        outcome=_OUTCOMES[name],
        response_id=_text_of(response.get("id")) or None,
        output=None if output is None else [item.raw for item in output],
        items=tuple(item.id for item in output or () if item.id),
        store=event.stored,
        usage=_read_usage(response.get("usage")),
    )


def _text_of(raw: Text | None) -> str:
    """``raw`` as a string; empty if it is none."""
    value = _value_of(raw)
    return value if isinstance(value, str) else ""


def _read_usage(raw: Text | None) -> tuple[int, int]:
    usage = _value_of(raw)
    if not isinstance(usage, dict):
        return 0, 0
    return _counts(usage.get("input_tokens"), usage.get("output_tokens"))


def _counts(read: Any, written: Any) -> tuple[int, int]:
    return read if _is_count(read) else 0, written if _is_count(written) else 0


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_output(raw: Text | None) -> list[_Item] | None:
    """The items of an ``output``; None if it is not an array of objects with a type."""
    try:
        items = [_Item.read(item) for item in read_array(_NULL if raw is None else raw)]
    except UnreadableError:
        return None
    read = [item for item in items if item is not None]
    return read if len(read) == len(items) else None


@attrs.frozen
class _Item:
    """The identity of an output item. ``whole``: it has all members that its type requires."""

    raw: bytes
    type: str
    id: str | None
    call_id: str | None
    whole: bool
    said: dict[str, msgspec.Raw]  # its members without the id

    @classmethod
    def read(cls, raw: msgspec.Raw) -> _Item | None:
        try:
            members = read_members(raw)
        except UnreadableError:
            return None
        kind = _text_of(members.get("type"))
        if not kind:
            return None
        whole = all(members.get(name, _NULL) != _NULL for name in _ESSENTIAL.get(kind, ()))
        name, call = _text_of(members.pop("id", None)), _text_of(members.get("call_id"))
        return cls(bytes(raw), kind, name or None, call or None, whole, members)


_ESSENTIAL = {
    "message": ("content",),
    "function_call": ("call_id", "name", "arguments"),
    "custom_tool_call": ("call_id", "name", "input"),
}


def _completed(output: list[_Item] | None, streamed: Sequence[bytes]) -> list[_Item] | None:
    """``output`` completed with streamed items that are missing or incomplete in it; None if there
    is nothing to complete. Items that were never streamed are kept.
    """
    there = output or []
    said = _streamed_items(streamed, {item.raw: item for item in there})
    places = _find_again(said, there)
    result = [*there]
    changed = output is None
    for index, item in said:
        place = places.get(index)
        if place is not None and item.whole and not there[place].whole:
            result[place] = item
            changed = True
    missing = [(index, item) for index, item in said if index not in places]
    for index, item in missing:
        result.insert(min(index, len(result)), item)
    return result if changed or missing else None


def _find_again(said: list[tuple[int, _Item]], there: list[_Item]) -> dict[int, int]:
    """Match streamed items with the items ``there``: streamed index -> position.

    They are matched by id, then by call id, then by content, then by position, because some
    upstreams give an item another id in each event. Each way is tried for all items before the
    next one, so that no item is matched by content or position with one that has another's id.
    """
    left = dict(enumerate(there))
    places: dict[int, int] = {}
    for alike in _WAYS:
        for index, item in said:
            if index in places:
                continue
            for place, other in left.items():
                if alike(item, index, other, place):
                    places[index] = place
                    del left[place]
                    break
    return places


def _one_call(item: _Item, other: _Item) -> bool:
    """Whether both can be the same item. Different calls never are, whatever ids they have."""
    return item.type == other.type and (
        item.call_id is None or other.call_id is None or item.call_id == other.call_id
    )


_WAYS: tuple[Callable[[_Item, int, _Item, int], bool], ...] = (
    lambda item, _, other, __: (
        item.id is not None and item.id == other.id and _one_call(item, other)
    ),
    lambda item, _, other, __: item.call_id is not None and item.call_id == other.call_id,
    lambda item, _, other, __: item.said == other.said,
    lambda item, index, other, place: index == place and _one_call(item, other),
)


def _streamed_items(
    events: Sequence[bytes], known: Mapping[bytes, _Item]
) -> list[tuple[int, _Item]]:
    """The items of ``response.output_item.done`` events with their positions, in order. If several
    have one position, the last is used. ``known``: items that were parsed before, by their text."""
    found: dict[int, _Item] = {}
    for number, data in enumerate(events):
        try:
            members = read_members(data)
        except UnreadableError:
            continue
        raw = members.get("item", _NULL)
        item = known.get(bytes(raw)) or _Item.read(raw)
        index = _value_of(members.get("output_index"))
        if item is not None:
            found[index if _is_count(index) else number] = item
    return sorted(found.items(), key=lambda entry: entry[0])


# ---------------------------------------------------------------- answers


def final_response(terminal: UpstreamEvent) -> bytes:
    """The response object of a terminal event, byte for byte. ``read_terminal`` has checked that
    there is one."""
    return bytes(terminal.members["response"])


def created_event(
    event: UpstreamEvent | None, response_id: str, model: str | None, *, sequence: int = 0
) -> UpstreamEvent:
    """A ``response.created`` made by the bridge, for an answer in which the upstream sent none.

    The stream helpers of SDKs require it as the first event, also if the answer is a failure. Its
    response object is that of ``event``, a later event, if it has one; otherwise a new one with the
    id ``response_id``.
    """
    response: dict[str, Text] = {
        "id": msgspec.json.encode(response_id),
        "object": b'"response"',
        "model": msgspec.json.encode(model),
        **((event and event.response_members) or {}),
        "status": b'"in_progress"',
        "error": b"null",
        "incomplete_details": b"null",
        "output": b"[]",
        "usage": b"null",
    }
    name = _text_of(response["id"]) or response_id
    data = _event_of("response.created", sequence, response)
    return UpstreamEvent(EventKind.CREATED, b"response.created", data, name)


def failed_event(
    code: str, message: str, sequence: int, created: UpstreamEvent, more: str | None = None
) -> UpstreamEvent:
    """A ``response.failed`` made by the bridge, for the response of ``created``, the
    ``response.created`` event that the client got. ``more``: further members of the error, as the
    text of a JSON object."""
    response: dict[str, Text] = {
        **(created.response_members or {}),
        "status": b'"failed"',
        "error": bytes(_with_members({"code": code, "message": message}, more)),
        "incomplete_details": b"null",
    }
    data = _event_of("response.failed", sequence, response)
    return UpstreamEvent(EventKind.ENDED, _FAILED, data)


def _event_of(name: str, sequence: int, response: Mapping[str, Text]) -> bytes:
    members = {
        "type": msgspec.json.encode(name),
        "sequence_number": b"%d" % sequence,
        "response": write_object(response),
    }
    return write_object(members)


def keepalive_event(sequence: int) -> UpstreamEvent:
    """An event without content, which resets the idle timer of a client."""
    data = b'{"type":"keepalive","sequence_number":%d}' % sequence
    return UpstreamEvent(EventKind.OTHER, b"keepalive", data)


def error_body(
    message: str, type_: str, code: str | None, param: str | None, more: str | None = None
) -> bytes:
    """An error in OpenAI's shape. ``more``: further members, as the text of a JSON object."""
    error = {"message": message, "type": type_, "code": code, "param": param}
    return msgspec.json.encode({"error": _with_members(error, more)})


def _with_members(error: dict[str, str | None], more: str | None) -> msgspec.Raw:
    """``error`` as JSON with the members of ``more`` appended as text. They are not parsed, because
    an upstream may have written what cannot be read here (lone surrogates, very long numbers)."""
    known = msgspec.json.encode(error)
    return msgspec.Raw(known if more is None else known[:-1] + b"," + more[1:].encode())
