"""The events of a response: reads what routing needs, keeps the rest byte for byte.

What belongs here: reading the events of upstreams, and writing the few events and errors that the
bridge makes itself. Shapes are those of the Responses API reference and its WebSocket mode; see
"Protocol notes" in the documentation. Requests are in ``requests``; the last event of a response is
in ``terminal``.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache

import attrs
import msgspec

from bridgecore.recovery.failure import ErrorFrame
from bridgecore.wire.errors import error_among, find_error, longest, read_error_body, read_wait
from bridgecore.wire.headers import Headers
from bridgecore.wire.jsontext import (
    NULL,
    Text,
    UnreadableError,
    WrongShapeError,
    read_members,
    read_value,
    reader,
    text_of,
    value_of,
    write_object,
)

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
            return read_members(self.members.get("response", NULL))
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
        store = (self.response_members or {}).get("store", NULL)
        return {b"true": True, b"false": False}.get(bytes(store))

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that only an event with the same text has."""
        return hashlib.blake2b(self.data, digest_size=16).digest()

    @property
    def sequence_number(self) -> int:
        """The ``sequence_number``; -1 if there is none."""
        number = value_of(self.members.get("sequence_number"))
        return number if isinstance(number, int) and not isinstance(number, bool) else -1


ITEM_ADDED = b"response.output_item.added"
ITEM_DONE = b"response.output_item.done"
FAILED = b"response.failed"
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


def ends_answer(data: bytes) -> bool:
    """Whether ``data``, the data of an event, is the end of an answer."""
    event = read_event(data) if data else None
    return event is not None and event.kind in (EventKind.ENDED, EventKind.ERROR)


# ---------------------------------------------------------------- answers over HTTP


def answer_error(status: int | None, headers: Headers, body: bytes) -> bytes:
    """The error of an HTTP answer as the event that a WebSocket would have brought.

    Args:
        status: of the answer; None: the one in ``body``, if any.
        headers: of the answer, names in lower case; they may say how long to wait.
        body: the error, in any shape, or a text.
    """
    error = read_error_body(body)
    status = error.status if status is None else status
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    wait = longest(read_wait(fields), error.retry_after)
    said = {
        "message": error.message,
        "type": error.type,
        "code": error.code,
        "param": error.param,
    }
    known = msgspec.json.encode({"error": _with_members(said, error.more)})
    return error_message(status, known, wait)


def events_of_response(body: bytes) -> list[bytes] | None:
    """The events of a response that came in one piece, although a stream was asked for: its
    beginning and its end, or its error. None if ``body`` is neither."""
    try:
        response = read_members(body)
    except UnreadableError:
        return None
    name = text_of(response.get("status", NULL))
    if text_of(response.get("id", NULL)) is None or name not in _FINAL:
        return None if find_error(body) is None else [answer_error(None, [], body)]
    ended = _event_of(f"response.{name}", 1, response)
    created = created_event(read_event(ended), "", None)
    return [created.data, ended]


_FINAL = frozenset({"completed", "incomplete", "failed", "cancelled", "canceled"})


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
    name = text_of(response["id"]) or response_id
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
    return UpstreamEvent(EventKind.ENDED, FAILED, data)


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


def error_message(status: int | None, body: bytes, retry_after: int | None) -> bytes:
    """An error as a message in WebSocket mode.

    Args:
        status: of the HTTP answer that it would be. One for a client must have it: Codex ignores a
            message without, and waits in vain.
        body: of that answer, as ``error_body`` returns it.
        retry_after: seconds, if a retry may help.
    """
    known = b"" if status is None else b'"status":%d,' % status
    wait = b"" if retry_after is None else b'"headers":{"retry-after":"%d"},' % retry_after
    return b'{"type":"error",%b%b%b' % (known, wait, body.removeprefix(b"{"))


def _with_members(error: dict[str, str | None], more: str | None) -> msgspec.Raw:
    """``error`` as JSON with the members of ``more`` appended as text. They are not parsed, because
    an upstream may have written what cannot be read here (lone surrogates, very long numbers)."""
    known = msgspec.json.encode(error)
    return msgspec.Raw(known if more is None else known[:-1] + b"," + more[1:].encode())
