"""The body of ``POST /v1/responses``: reads what routing needs, keeps the rest byte for byte.

What belongs here: checking a request body and writing the ``response.create`` event of it. Shapes
are those of the Responses API reference and its WebSocket mode; see "Protocol notes" in the
documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

import attrs
import msgspec

from bridgecore.errors import BridgecoreError
from bridgecore.wire.jsontext import (
    NULL,
    Text,
    TooDeepError,
    UnreadableError,
    WrongShapeError,
    begins,
    quoted,
    read_members,
    reader,
    text_of,
    write_object,
)

T = TypeVar("T")

_CREATE = msgspec.Raw(b'"response.create"')


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
    def conversation(self) -> str | None:
        """The id of the conversation, kept by the upstream, that the turn belongs to; None if it
        names none, or not as the API demands."""
        given = self.members.get("conversation")
        if given is None:
            return None
        if begins(given, b"{"):
            try:
                given = read_members(given).get("id", NULL)
            except UnreadableError:
                return None
        return text_of(given) or None

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


def parse_create(body: bytes, *, from_message: bool = False) -> CreateRequest:
    """Parse a request body. ``from_message``: a client has sent it in WebSocket mode.

    Raises:
        InvalidBodyError: it is not a JSON object or nested too deeply; it has neither a string
            ``model`` nor a ``prompt``; a field that routing needs has a wrong type;
            ``background`` is true, which WebSocket mode does not support;
            ``previous_response_id`` is longer than ``MAX_RESPONSE_ID`` bytes; a message names a
            lane.
    """
    members = _read_body(body)
    model = _member(members, "model", _read_string, "a string")
    # A prompt template defines its model.
    if model is None and not begins(members.get("prompt", NULL), b"{"):
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
    # Without its lane, the turn would wait for those that the client means to run beside it, and
    # its events would come without the name by which the client tells them apart. Over HTTP the
    # member has no meaning.
    if from_message and members.get("stream_id", NULL) != NULL:
        raise InvalidBodyError(
            "'stream_id' is not supported: turns of a connection follow each other here, without"
            " lanes. Leave it out, and open a connection for each turn that is to run beside"
            " others.",
            "stream_id",
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


def parse_reference(body: bytes) -> CreateRequest:
    """Parse the body of a request that is no turn but may name a response, such as
    ``POST /v1/responses/input_tokens``: like that of a turn, but without a ``model`` if it has
    none.

    Raises:
        InvalidBodyError: as ``parse_create``.
    """
    members = _read_body(body)
    if members.get("model", NULL) == NULL:
        body = write_object({**members, "model": b'""'})
    return parse_create(body)


def replace_input(body: bytes, text: bytes) -> bytes:
    """The body of a request with the items ``text``, the inside of an array, as its ``input``, and
    without ``previous_response_id``. All other members are kept byte for byte.

    Raises:
        InvalidBodyError: ``body`` is not a JSON object.
    """
    members: dict[str, Text] = {**_read_body(body)}
    members.pop("previous_response_id", None)
    members["input"] = b"[%b]" % text
    return write_object(members)


def parse_type(message: bytes) -> str | None:
    """The ``type`` of a message in WebSocket mode; None if it has none that is a string.

    Raises:
        InvalidBodyError: it is not a JSON object.
    """
    if message.startswith(_BEGIN):
        return "response.create"  # nearly always: the members after it need not be read for this
    given = _read_body(message).get("type", NULL)
    try:
        return _read_string(given)
    except UnreadableError:
        return None


def post_body(frame: bytes) -> bytes:
    """The body of ``POST /responses`` for the ``response.create`` event ``frame``: without its
    ``type``, and asking for a stream."""
    return b'{"stream":true' + frame.removeprefix(_BEGIN)


_BEGIN = b'{"type":' + bytes(_CREATE)


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
    if raw is None or raw == NULL:
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
