"""The Responses API's JSON: what routing needs of it, everything else byte for byte.

What belongs here: reading the create body of a client and the events of an upstream, and writing
the few objects that are the bridge's own. Shapes come from the Responses API reference and its
WebSocket mode; see docs, "Protocol notes".
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeGuard

import attrs
import msgspec

from bridgecore.errors import BridgecoreError
from bridgecore.recovery.events import Outcome
from bridgecore.wire.errors import looks_like_error
from bridgecore.wire.jsontext import (
    UnreadableError,
    read_array,
    read_members,
    read_value,
    write_object,
)

# ---------------------------------------------------------------- requests


class InvalidBodyError(BridgecoreError):
    """A request body that cannot be a turn. ``message`` says what is wrong and what to do."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


@attrs.frozen
class CreateRequest:
    """A ``POST /v1/responses`` body, as far as the bridge has to know it.

    ``frame`` is the ``response.create`` event that goes upstream: the client's own members, each
    value byte for byte, with ``type`` and without what belongs to HTTP or to the connection
    (``_HTTP_ONLY``). ``model`` is None where a ``prompt`` stands for it.
    """

    frame: bytes
    stream: bool
    store: bool
    previous_response_id: str | None
    model: str | None


# Ids of up to 465 characters are in use. Longer ones are kept nowhere, so that memory does not
# depend on what strangers call their responses.
MAX_RESPONSE_ID = 4096  # bytes of UTF-8

_HTTP_ONLY = (
    "stream",  # a WebSocket always streams
    "stream_options",  # of the SSE stream
    "background",  # not in WebSocket mode; true was refused
    "stream_id",  # names a lane of the connection, and that is the bridge's
    "type",  # the frame has its own
)

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse_create(body: bytes) -> CreateRequest:
    """Read a create body.

    Raises:
        InvalidBodyError: no JSON object; neither a string ``model`` nor a ``prompt``; a routing
            field of a wrong type; ``background``, which WebSocket mode does not have; a
            ``previous_response_id`` of more than ``MAX_RESPONSE_ID`` bytes.
    """
    members = _read_body(body)
    model = _member(members, "model", str)
    # A prompt template brings its model along.
    if model is None and not bytes(members.get("prompt", b"")).startswith(b"{"):
        raise InvalidBodyError(
            "The request body must have a 'model' that is a string, or a 'prompt'.", "model"
        )
    stream = _member(members, "stream", bool)
    store = _member(members, "store", bool)
    previous = _member(members, "previous_response_id", str)
    if previous is not None and len(previous.encode()) > MAX_RESPONSE_ID:
        raise InvalidBodyError(
            f"'previous_response_id' must not be longer than {MAX_RESPONSE_ID} bytes.",
            "previous_response_id",
        )
    if _member(members, "background", bool):
        raise InvalidBodyError(
            "'background' is not supported: this server answers while the request lasts. Leave it"
            " out, or set it to false.",
            "background",
        )
    for name in _HTTP_ONLY:
        members.pop(name, None)
    parts = [b'{"type":"response.create"']
    for name, raw in members.items():
        parts += (b",", msgspec.json.encode(name), b":", bytes(raw))
    parts.append(b"}")
    return CreateRequest(
        frame=b"".join(parts),
        stream=bool(stream),
        store=store is not False,  # the API stores unless told not to
        previous_response_id=previous,
        model=model,
    )


def _read_body(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        body.decode()  # a WebSocket text message has to be UTF-8
        return _members.decode(body)
    except msgspec.ValidationError:
        raise InvalidBodyError("The request body must be a JSON object.") from None
    except msgspec.DecodeError as exc:
        try:
            # It is JSON all the same if all that is wrong is half a surrogate pair in a string.
            return {name: msgspec.Raw(raw) for name, raw in read_members(body).items()}
        except UnreadableError:
            pass
        raise InvalidBodyError(f"The request body is not valid JSON: {_where(exc)}.") from None
    except UnicodeDecodeError as exc:
        raise InvalidBodyError(f"The request body is not valid UTF-8 (byte {exc.start}).") from None
    except RecursionError:
        raise InvalidBodyError("The request body is nested too deeply.") from None


def _where(exc: msgspec.DecodeError) -> str:
    return str(exc).removeprefix("JSON is malformed: ")


def _member(members: dict[str, msgspec.Raw], name: str, kind: type[Any]) -> Any:
    raw = members.get(name)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=kind | None)
    except (msgspec.DecodeError, UnicodeDecodeError):
        word = {str: "a string", bool: "a boolean"}[kind]
        raise InvalidBodyError(f"'{name}' must be {word}.", name) from None


# ---------------------------------------------------------------- events


class EventKind(enum.Enum):
    """What an upstream event means for a turn."""

    CREATED = "created"
    PROGRESS = "progress"  # of a response, but no output: queued, in_progress
    OUTPUT = "output"
    ENDED = "ended"  # the terminal event
    ERROR = "error"  # an in-band error frame
    OTHER = "other"  # not known here, or not of a response: passed through


@attrs.define
class UpstreamEvent:
    """One event. ``data`` is the JSON text as it came; ``type`` is safe in an SSE field.

    ``response`` and ``item`` are the ids of the response and of the output item that it names.
    """

    kind: EventKind
    type: bytes
    data: bytes
    response: str | None = None
    item: str | None = None


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
    # The only end that some upstreams send; others send response.done after response.completed.
    b"response.done": EventKind.ENDED,
    b"response.cancelled": EventKind.ENDED,
    b"response.canceled": EventKind.ENDED,
    b"error": EventKind.ERROR,
}
# The families of events that bear output (API reference, "Streaming events"): an output item, a
# part of one, or the progress of a tool that the service itself runs. Any other ``response.*``
# event says something about the response, as ``response.metadata`` does: recovery goes on.
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
    """What routing needs of an event. Everything else is skipped, not built."""

    type: str
    response: _Named | None = None
    response_id: str | None = None
    item_id: str | None = None
    item: _Named | None = None


_envelope = msgspec.json.Decoder(_Envelope)


def read_event(data: bytes) -> UpstreamEvent | None:
    """Tell what an upstream message is.

    None: it is noise. That is anything but a JSON object with a string ``type``, unless it is an
    error in one of the shapes that have no type. Upstreams that were SSE servers yesterday, or
    that keep their sockets warm, send blank frames, ``null``, ``ping`` and ``[DONE]``.
    """
    try:
        found = _envelope.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_odd_event(data)  # not JSON, or a member that is not of the usual type
    response, item = found.response, found.item
    return _event(
        data,
        found.type,
        response.id if response is not None else found.response_id,
        item.id if item is not None else found.item_id,
    )


def _read_odd_event(data: bytes) -> UpstreamEvent | None:
    try:
        value = read_value(data)
    except UnreadableError:
        return None
    if not isinstance(value, dict):
        return None
    name = value.get("type")
    if not isinstance(name, str):
        # In some shapes an error has no type (see bridgecore.wire.errors): it is one all the same.
        return UpstreamEvent(EventKind.ERROR, b"error", data) if looks_like_error(data) else None
    response = _member_of(value.get("response"), "id") or _member_of(value, "response_id")
    item = _member_of(value.get("item"), "id") or _member_of(value, "item_id")
    return _event(data, name, response, item)


def _member_of(value: object, name: str) -> str | None:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def _event(data: bytes, name: str, response: str | None, item: str | None) -> UpstreamEvent | None:
    known = _kind(name)
    if known is None:
        return None
    return UpstreamEvent(*known, data, response or None, item or None)


@lru_cache(maxsize=256)  # most events have one of some thirty names
def _kind(name: str) -> tuple[EventKind, bytes] | None:
    """What events of that name are, and the name as bytes; None if no SSE field can say it."""
    if not name or not name.isprintable():
        return None  # it would break out of its SSE field, or be none
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        return None  # half a surrogate pair
    kind = _KINDS.get(raw)
    if kind is None:
        kind = EventKind.OUTPUT if _OUTPUT.fullmatch(raw) else EventKind.OTHER
    return kind, raw


def _object(data: bytes) -> dict[str, Any]:
    """``data`` as an object; empty if it is none. For the few events that are read in full."""
    try:
        value = read_value(data)
    except UnreadableError:
        return {}
    return value if isinstance(value, dict) else {}


# ---------------------------------------------------------------- terminal events


@attrs.frozen
class Terminal:
    """A terminal event, read once, as the client is shown it.

    Attributes:
        event: one of the three standard ones, its output complete.
        outcome: what the event says.
        response: the response object.
        response_id: its id.
        output: its items, None if nobody knows them.
        items: the ids of those that have one.
        store: whether the upstream stores it; None if it does not say.
        usage: tokens of the whole context that was read, and of what was written, as the upstream
            counted them; zeros if it did not.
    """

    event: UpstreamEvent
    outcome: Outcome
    response: bytes
    response_id: str | None
    output: list[bytes] | None
    items: tuple[str, ...]
    store: bool | None
    usage: tuple[int, int]


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


def read_terminal(event: UpstreamEvent, streamed: list[bytes]) -> Terminal | None:
    """Read a terminal event; None if it carries no response that can be read.

    Two things are mended, so that the stream, the JSON answer and what is remembered say the same;
    otherwise the event stays as it came, byte for byte:

    * an ``output`` that is empty, shorter than what was streamed or malformed is completed from
      ``streamed``, the ``response.output_item.done`` events of the answer;
    * ``response.done`` and ``response.cancelled`` become the standard event that the response's
      ``status`` names; if that names no end, the event's own name says how it ended. A cancelled
      response is a failed one to those who wait for its answer.
    """
    try:
        members = read_members(event.data)
        response = read_members(members.get("response", b""))
    except UnreadableError:
        return None
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
        if name == _FAILED and not response.get("error", b"").startswith(b"{"):
            response["error"] = _CANCELLED
    output = _read_output(response.get("output"))
    if name != _FAILED:
        completed = _completed(output, streamed)
        if completed is not None:
            output = completed
            response["output"] = b"[" + b",".join(completed) + b"]"
            mended = True
    if mended:
        members["response"] = write_object(response)
        event = UpstreamEvent(
            EventKind.ENDED, name, write_object(members), event.response, event.item
        )
    return Terminal(
        event=event,
        outcome=_OUTCOMES[name],
        response=members["response"],
        response_id=_text_of(response.get("id")) or None,
        output=output,
        items=tuple(item.id for item in map(_Item.read, output or ()) if item and item.id),
        store={b"true": True, b"false": False}.get(response.get("store", b"")),
        usage=_read_usage(response.get("usage")),
    )


def _text_of(raw: bytes | None) -> str:
    """The string that ``raw`` is; empty if it is none."""
    try:
        value = None if raw is None else read_value(raw)
    except UnreadableError:
        value = None
    return value if isinstance(value, str) else ""


def _read_usage(raw: bytes | None) -> tuple[int, int]:
    usage = {} if raw is None else _object(raw)
    read, written = usage.get("input_tokens"), usage.get("output_tokens")
    return read if _is_count(read) else 0, written if _is_count(written) else 0


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_output(raw: bytes | None) -> list[bytes] | None:
    """The items of an ``output``; None if it is not a list of objects with a type."""
    try:
        items = read_array(raw or b"")
    except UnreadableError:
        return None
    return items if all(_Item.read(item) is not None for item in items) else None


@attrs.frozen
class _Item:
    """What tells one output item from another. ``whole``: it has all that makes it what it is."""

    raw: bytes
    type: str
    id: str | None
    call_id: str | None
    whole: bool
    said: dict[str, bytes]  # its members but for the id

    @classmethod
    def read(cls, raw: bytes) -> _Item | None:
        try:
            members = read_members(raw)
        except UnreadableError:
            return None
        kind = _text_of(members.get("type"))
        if not kind:
            return None
        whole = all(members.get(name, b"null") != b"null" for name in _ESSENTIAL.get(kind, ()))
        name, call = _text_of(members.pop("id", None)), _text_of(members.get("call_id"))
        return cls(raw, kind, name or None, call or None, whole, members)


_ESSENTIAL = {
    "message": ("content",),
    "function_call": ("call_id", "name", "arguments"),
    "custom_tool_call": ("call_id", "name", "input"),
}


def _completed(output: list[bytes] | None, streamed: list[bytes]) -> list[bytes] | None:
    """``output`` with what was streamed and is missing or mutilated there; None if nothing is.

    Items that were never streamed stay.
    """
    said = _streamed_items(streamed)
    found = [_Item.read(raw) for raw in output or ()]
    there = [item for item in found if item is not None]
    places = _find_again(said, there)
    result = [item.raw for item in there]
    changed = output is None
    for index, item in said:
        place = places.get(index)
        if place is not None and item.whole and not there[place].whole:
            result[place] = item.raw
            changed = True
    missing = [(index, item.raw) for index, item in said if index not in places]
    for index, raw in missing:
        result.insert(min(index, len(result)), raw)
    return result if changed or missing else None


def _find_again(said: list[tuple[int, _Item]], there: list[_Item]) -> dict[int, int]:
    """Which of the items ``there`` each streamed item is, by the index it was streamed with.

    By its id, else by its call, else by what it says, else by its place: some upstreams give an
    item another id in each event. Each way is tried for all items before the next one, so that an
    item is not taken for another that would be found again by its id.
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
    """Whether both can be one item. Different calls never are, whatever their ids and places."""
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


def _streamed_items(events: list[bytes]) -> list[tuple[int, _Item]]:
    """The items of ``response.output_item.done`` events with their places, in order. Of several for
    one place the last counts."""
    found: dict[int, _Item] = {}
    for number, data in enumerate(events):
        try:
            members = read_members(data)
            item = _Item.read(members.get("item", b""))
            index = read_value(members.get("output_index", b"null"))
        except UnreadableError:
            continue
        if item is not None:
            found[index if _is_count(index) else number] = item
    return sorted(found.items(), key=lambda entry: entry[0])


class _Stored(msgspec.Struct):
    store: bool | None = None


class _WithStored(msgspec.Struct):
    response: _Stored | None = None


_with_stored = msgspec.json.Decoder(_WithStored)


def read_stored(event: UpstreamEvent) -> bool | None:
    """Whether the response that ``event`` (created or terminal) carries says that the upstream
    stores it; None if it does not say. An organisation without retention gets ``"store": false``
    for a request that left ``store`` out."""
    try:
        response = _with_stored.decode(event.data).response
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if response is None else response.store


def sequence_number(data: bytes) -> int:
    """The ``sequence_number`` of an event; -1 if it has none."""
    number = _object(data).get("sequence_number")
    return number if isinstance(number, int) and not isinstance(number, bool) else -1


# ---------------------------------------------------------------- answers


def final_response(terminal: UpstreamEvent) -> bytes:
    """The response object that a terminal event carries, as it stands there; see
    ``read_terminal``, which has made sure that there is one."""
    return read_members(terminal.data)["response"]


def created_event(
    event: UpstreamEvent | None, response_id: str, model: str | None, *, sequence: int = 0
) -> UpstreamEvent:
    """The bridge's own ``response.created``, where the upstream has sent none.

    SDK helpers for streams insist that it is the first event, also where the answer is a failure.
    If ``event``, one of those that come next, carries the response, its object is the one that was
    created; else that is called ``response_id``.
    """
    response = {
        "id": msgspec.json.encode(response_id),
        "object": b'"response"',
        "model": msgspec.json.encode(model),
        **(_response_of(event.data) if event is not None else {}),
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
    code: str, message: str, sequence: int, created: bytes, more: str | None = None
) -> UpstreamEvent:
    """The bridge's own ``response.failed``: the response of ``created``, the ``response.created``
    event that the client has seen, failed. ``more``: further members of the error, as the text of
    a JSON object."""
    response = {
        **_response_of(created),
        "status": b'"failed"',
        "error": bytes(_with_members({"code": code, "message": message}, more)),
        "incomplete_details": b"null",
    }
    data = _event_of("response.failed", sequence, response)
    return UpstreamEvent(EventKind.ENDED, _FAILED, data)


def _response_of(data: bytes) -> dict[str, bytes]:
    """The members of the response object that an event carries; empty if it carries none."""
    try:
        return read_members(read_members(data).get("response", b""))
    except UnreadableError:
        return {}


def _event_of(name: str, sequence: int, response: dict[str, bytes]) -> bytes:
    members = {
        "type": msgspec.json.encode(name),
        "sequence_number": b"%d" % sequence,
        "response": write_object(response),
    }
    return write_object(members)


def keepalive_event(sequence: int) -> UpstreamEvent:
    """A typed event that says nothing but resets a client's idle timer."""
    data = b'{"type":"keepalive","sequence_number":%d}' % sequence
    return UpstreamEvent(EventKind.OTHER, b"keepalive", data)


def error_body(
    message: str, type_: str, code: str | None, param: str | None, more: str | None = None
) -> bytes:
    """An error in OpenAI's shape. ``more``: further members, as the text of a JSON object."""
    error = {"message": message, "type": type_, "code": code, "param": param}
    return msgspec.json.encode({"error": _with_members(error, more)})


def _with_members(error: dict[str, str | None], more: str | None) -> msgspec.Raw:
    """``error`` as JSON, followed by the members of ``more`` as they are: they are not read, since
    what an upstream wrote (a lone surrogate, a number of any length) need not be readable here."""
    known = msgspec.json.encode(error)
    return msgspec.Raw(known if more is None else known[:-1] + b"," + more[1:].encode())
