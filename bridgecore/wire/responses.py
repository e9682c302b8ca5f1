"""The Responses API's JSON: what routing needs of it, everything else byte for byte.

What belongs here: reading the create body of a client and the events of an upstream, and writing
the few objects that are the bridge's own. Shapes come from the Responses API reference and its
WebSocket mode; see docs, "Protocol notes".
"""

from __future__ import annotations

import enum
import re
from typing import Any

import attrs
import msgspec

from bridgecore.recovery.events import Outcome
from bridgecore.recovery.failure import ErrorFrame

# ---------------------------------------------------------------- requests


class InvalidBodyError(Exception):
    """A request body that cannot be a turn. ``message`` says what is wrong and what to do."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


@attrs.frozen
class CreateRequest:
    """A ``POST /v1/responses`` body, as far as the bridge has to know it.

    ``frame`` is the ``response.create`` event that goes upstream: the client's own members, each
    value byte for byte, without ``stream`` (implied on a WebSocket) and with ``type``.
    """

    frame: bytes
    stream: bool
    store: bool
    previous_response_id: str | None
    model: str


_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse_create(body: bytes) -> CreateRequest:
    """Read a create body.

    Raises:
        InvalidBodyError: no JSON object, no string ``model``, or a routing field of a wrong type.
    """
    try:
        members = _members.decode(body)
        body.decode()  # a WebSocket text message has to be UTF-8
    except msgspec.ValidationError:
        raise InvalidBodyError("The request body must be a JSON object.") from None
    except msgspec.DecodeError as exc:
        raise InvalidBodyError(f"The request body is not valid JSON: {_where(exc)}.") from None
    except UnicodeDecodeError as exc:
        raise InvalidBodyError(f"The request body is not valid UTF-8 (byte {exc.start}).") from None
    except RecursionError:
        raise InvalidBodyError("The request body is nested too deeply.") from None
    model = _member(members, "model", str)
    if model is None:
        raise InvalidBodyError("The request body must have a 'model' that is a string.", "model")
    stream = _member(members, "stream", bool)
    store = _member(members, "store", bool)
    previous = _member(members, "previous_response_id", str)
    members.pop("stream", None)
    members.pop("type", None)
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
    OTHER = "other"  # not of a response: unknown to us, passed through


@attrs.define
class UpstreamEvent:
    """One event. ``data`` is the JSON text as it came; ``type`` is safe in an SSE field."""

    kind: EventKind
    type: bytes
    data: bytes


_KINDS = {
    b"response.created": EventKind.CREATED,
    b"response.queued": EventKind.PROGRESS,
    b"response.in_progress": EventKind.PROGRESS,
    b"response.completed": EventKind.ENDED,
    b"response.failed": EventKind.ENDED,
    b"response.incomplete": EventKind.ENDED,
    b"error": EventKind.ERROR,
}
_OUTCOMES = {
    b"response.completed": Outcome.COMPLETED,
    b"response.failed": Outcome.FAILED,
    b"response.incomplete": Outcome.INCOMPLETE,
}
# How every known upstream begins an event. Names of other characters are read with care.
_BEGINNING = re.compile(rb'\{"type":"([-.:\w]{1,128})"[,}]', re.ASCII)


class _Typed(msgspec.Struct):
    type: str


_typed = msgspec.json.Decoder(_Typed)


def read_event(data: bytes) -> UpstreamEvent | None:
    """Tell what an upstream message is; None if it is no JSON object with a string ``type``.

    A message that begins with its type, as every known upstream sends it, is not parsed further.
    """
    match = _BEGINNING.match(data)
    if match is not None and data.endswith(b"}"):
        name = match[1]
        return UpstreamEvent(_kind(name), name, data)
    try:
        text = _typed.decode(data).type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    name = text.encode()
    if not text or not text.isprintable():
        return None  # it would break out of its SSE field, or be none
    return UpstreamEvent(_kind(name), name, data)


def _kind(name: bytes) -> EventKind:
    kind = _KINDS.get(name)
    if kind is not None:
        return kind
    return EventKind.OUTPUT if name.startswith(b"response.") else EventKind.OTHER


def outcome_of(event: UpstreamEvent) -> Outcome:
    """How a terminal event ended its response."""
    return _OUTCOMES[event.type]


def _object(data: bytes) -> dict[str, Any]:
    """``data`` as an object; empty if it is none. For the few events that are read in full."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


class _ResponseId(msgspec.Struct):
    id: str | None = None


class _WithResponse(msgspec.Struct):
    response: _ResponseId | None = None


_with_response = msgspec.json.Decoder(_WithResponse)


def response_id(event: UpstreamEvent) -> str | None:
    """The id of the response that ``event`` (created or terminal) carries, if it has one."""
    try:
        response = _with_response.decode(event.data).response
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if response is None else response.id


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0


class _Counted(msgspec.Struct):
    usage: _Usage | None = None


class _WithUsage(msgspec.Struct):
    response: _Counted | None = None


_with_usage = msgspec.json.Decoder(_WithUsage)


def read_usage(terminal: UpstreamEvent) -> tuple[int, int]:
    """The tokens of the whole context that was read, and of what was written, as the upstream
    counted them; zeros if it did not."""
    try:
        response = _with_usage.decode(terminal.data).response
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0, 0
    if response is None or response.usage is None:
        return 0, 0
    return response.usage.input_tokens, response.usage.output_tokens


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


def read_error(data: bytes) -> ErrorFrame:
    """An in-band error in any shape: nested, flat, or a ``response.failed``; fields may miss."""
    frame = _object(data)
    response = frame.get("response")
    nested = response.get("error") if isinstance(response, dict) else frame.get("error")
    flat = nested is None and frame.get("type") == "error"
    fields = nested if isinstance(nested, dict) else (frame if flat else {})
    status = frame.get("status", frame.get("status_code"))
    return ErrorFrame(
        status=_integer(status),
        code=_text(fields.get("code")),
        type=None if flat else _text(fields.get("type")),
        message=_text(fields.get("message")) or (_text(nested)),
        param=_text(fields.get("param")),
        retry_after=_retry_after(frame, fields),
    )


def read_error_body(body: bytes) -> ErrorFrame:
    """The OpenAI error object of an HTTP answer; empty if the body has none."""
    error = _object(body).get("error")
    fields = error if isinstance(error, dict) else {}
    return ErrorFrame(
        code=_text(fields.get("code")),
        type=_text(fields.get("type")),
        message=_text(fields.get("message")) or _text(error),
        param=_text(fields.get("param")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _retry_after(frame: dict[str, Any], fields: dict[str, Any]) -> int | None:
    """Seconds to wait, from where upstreams put them: ``resets_in_seconds`` or the headers."""
    headers = frame.get("headers")
    if isinstance(headers, dict):
        for name, value in headers.items():
            if name.lower() == "retry-after" and isinstance(value, str | int):
                return read_seconds(str(value))
    for name in ("resets_in_seconds", "retry_after"):
        value = fields.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return min(-int(-value // 1), _MAX_SECONDS)
    return None


_MAX_SECONDS = 86_400  # longer waits are nobody's, and a number can have any length


def read_seconds(text: str) -> int | None:
    """The delay of a ``Retry-After``, at most a day; None if it is not a number of seconds."""
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal()):
        return None
    significant = digits.lstrip("0") or "0"
    return _MAX_SECONDS if len(significant) > 5 else min(int(significant), _MAX_SECONDS)


# ---------------------------------------------------------------- answers


_NOTHING = re.compile(rb"\s*(?:\[\s*\]|null)\s*")


def final_response(terminal: UpstreamEvent, items: list[bytes]) -> bytes | None:
    """The response object that a terminal event carries, byte for byte; None if it has none.

    Some upstreams leave ``output`` out of it: then ``items``, the raw ``response.output_item.done``
    events of the answer, fill it in, so that JSON and stream say the same.
    """
    try:
        raw = _members.decode(terminal.data).get("response")
        if raw is None:
            return None
        members = _members.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    output = members.get("output")
    if not items or (output is not None and _NOTHING.fullmatch(output) is None):
        return bytes(raw)
    try:
        found = [_members.decode(item).get("item") for item in items]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    members["output"] = msgspec.Raw(b"[" + b",".join(bytes(i) for i in found if i) + b"]")
    return msgspec.json.encode(members)


def output_items(terminal: UpstreamEvent, items: list[bytes]) -> list[msgspec.Raw] | None:
    """The output items that a terminal event stands for, each byte for byte; see
    ``final_response``. None if it carries no response."""
    body = final_response(terminal, items)
    if body is None:
        return None
    try:
        return msgspec.json.decode(body, type=_Output).output
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class _Output(msgspec.Struct):
    output: list[msgspec.Raw]


def failed_event(
    code: str, message: str, sequence: int, created: bytes | None, fallback_id: str
) -> UpstreamEvent:
    """The bridge's own ``response.failed``: the response that was created, failed.

    ``created`` is the ``response.created`` event the client has seen, None if it has seen none;
    then the response is called ``fallback_id``.
    """
    response = _object(created).get("response") if created is not None else None
    if not isinstance(response, dict):
        response = {"id": fallback_id, "object": "response", "output": []}
    response = {
        **response,
        "status": "failed",
        "error": {"code": code, "message": message},
        "incomplete_details": None,
    }
    event = {"type": "response.failed", "sequence_number": sequence, "response": response}
    return UpstreamEvent(EventKind.ENDED, b"response.failed", msgspec.json.encode(event))


def keepalive_event(sequence: int) -> UpstreamEvent:
    """A typed event that says nothing but resets a client's idle timer."""
    data = b'{"type":"keepalive","sequence_number":%d}' % sequence
    return UpstreamEvent(EventKind.OTHER, b"keepalive", data)


def error_body(message: str, type_: str, code: str | None, param: str | None) -> bytes:
    """An error in OpenAI's shape."""
    error = {"message": message, "type": type_, "code": code, "param": param}
    return msgspec.json.encode({"error": error})
