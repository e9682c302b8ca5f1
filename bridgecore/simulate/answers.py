"""HTTP answers as clients read them: strictly, and checked against the contract for streams."""

from __future__ import annotations

import enum
import re
from typing import Any, Final, TypeAlias

import attrs
import msgspec

from bridgecore.simulate.witness import decode

Json: TypeAlias = dict[str, Any]

_TERMINAL = frozenset({"response.completed", "response.failed", "response.incomplete"})


class AnswerError(Exception):
    """An answer that breaks HTTP or the contract for streams. The text says how."""


@attrs.define
class Head:
    """The status line and headers of an answer."""

    status: int
    headers: dict[bytes, bytes]


class End:
    """The answer is complete."""


_END: Final = End()


class _Reading(enum.Enum):
    HEAD = enum.auto()
    SIZED = enum.auto()
    CHUNK_SIZE = enum.auto()
    CHUNK = enum.auto()
    TRAILER = enum.auto()


class AnswerReader:
    """HTTP/1.1 answers out of bytes. Strict: what the endpoint need not send is an error."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._reading = _Reading.HEAD
        self._left = 0

    @property
    def untouched(self) -> bool:
        """Whether nothing of the next answer has come."""
        return self._reading is _Reading.HEAD and not self._buffer

    def feed(self, data: bytes) -> list[Head | bytes | End]:
        """What ``data`` completes.

        Raises:
            AnswerError: it is no HTTP/1.1 answer.
        """
        self._buffer += data
        found: list[Head | bytes | End] = []
        while (part := self._next()) is not None:
            found.append(part)
        return found

    def _next(self) -> Head | bytes | End | None:
        buffer = self._buffer
        if self._reading is _Reading.HEAD:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return None
            head = bytes(buffer[:end])
            del buffer[: end + 4]
            return self._head(head)
        if self._reading is _Reading.SIZED:
            if self._left == 0:
                self._reading = _Reading.HEAD
                return _END
            return self._take()
        if self._reading is _Reading.CHUNK_SIZE:
            line = self._line()
            if line is None:
                return None
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", line):
                raise AnswerError(f"a chunk size of {line!r}")
            self._left = int(line, 16)
            self._reading = _Reading.CHUNK if self._left else _Reading.TRAILER
            return b""
        if self._reading is _Reading.CHUNK:
            if self._left:
                return self._take()
            if len(buffer) < 2:
                return None
            if self._line() != b"":
                raise AnswerError("a chunk longer than its size")
            self._reading = _Reading.CHUNK_SIZE
            return b""
        if len(buffer) < 2:
            return None
        if self._line() != b"":
            raise AnswerError("trailers that nobody asked for")
        self._reading = _Reading.HEAD
        return _END

    def _take(self) -> bytes | None:
        part = bytes(self._buffer[: self._left])
        del self._buffer[: len(part)]
        self._left -= len(part)
        return part or None

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _head(self, data: bytes) -> Head:
        status_line, *lines = data.split(b"\r\n")
        match = re.fullmatch(rb"HTTP/1\.1 ([1-5][0-9]{2}) ?.*", status_line)
        if match is None:
            raise AnswerError(f"a status line {status_line[:80]!r}")
        headers: dict[bytes, bytes] = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or name.strip() != name or not name or name.lower() in headers:
                raise AnswerError(f"a header line {line[:80]!r}")
            headers[name.lower()] = value.strip()
        length = headers.get(b"content-length")
        chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        if chunked is (length is not None) or (length is not None and not length.isdigit()):
            raise AnswerError("not exactly one of Content-Length and chunked")
        self._reading = _Reading.CHUNK_SIZE if chunked else _Reading.SIZED
        self._left = 0 if length is None else int(length)
        return Head(int(match[1]), headers)


# Events of some upstreams that do not count as events of the response.
_NEVER_NUMBERED = frozenset({"response.metadata", "codex.rate_limits"})


class _Event(msgspec.Struct):
    type: str
    sequence_number: int | None = None


_event = msgspec.json.Decoder(_Event)


def _read(data: bytes) -> _Event:
    """What a reader of streams looks at in each event.

    Raises:
        AnswerError: it is no event.
    """
    try:
        return _event.decode(data)
    except msgspec.DecodeError:
        try:  # half a surrogate pair, which msgspec does not take
            return msgspec.convert(decode(data), _Event)
        except ValueError as exc:
            raise AnswerError(f"an event that cannot be read: {exc}") from None


@attrs.define(eq=False)
class Answer:
    """An answer as far as it has come, checked on the way."""

    head: Head
    body: bytearray = attrs.Factory(bytearray)  # of a stream: what is not a whole event yet
    events: int = 0
    response: str | None = None  # its id, once created
    sequence: int = -2  # the bridge's own response.created comes before number 0
    items: list[Json] = attrs.Factory(list)  # finished output items
    terminal: Json | None = None  # the last event of a stream, or None
    renamed: bool = False  # the terminal event names another response than response.created
    unnumbered: bool = False  # an event had no sequence number

    @property
    def stream(self) -> bool:
        return self.head.headers.get(b"content-type") == b"text/event-stream"

    def feed(self, data: bytes) -> None:
        """Take in a piece of the body.

        Raises:
            AnswerError: the stream breaks the contract.
        """
        self.body += data
        if self.stream:
            *blocks, rest = bytes(self.body).split(b"\n\n")
            self.body[:] = rest
            for block in blocks:
                self._block(block)

    def _block(self, block: bytes) -> None:
        name, data = b"", []
        for line in block.split(b"\n"):
            if line.startswith(b"event: "):
                name = line[7:]
            elif line.startswith(b"data: "):
                data.append(line[6:])
            elif not line.startswith(b":"):
                raise AnswerError(f"a line {line[:40]!r} in a stream")
        if not name and not data:
            if self.events:
                raise AnswerError("a comment after response.created, where idle timers ignore it")
            return
        if self.terminal is not None:
            raise AnswerError(f"{name.decode()} after the terminal event (invariant 25)")
        self._take(name.decode(), b"\n".join(data))

    def _take(self, name: str, data: bytes) -> None:
        event = _read(data)
        if event.type != name:
            raise AnswerError(f"event: {name}, but its data is {event.type}")
        number = event.sequence_number
        if number is None:
            self.unnumbered = self.unnumbered or name not in _NEVER_NUMBERED
            number = self.sequence + 1
        if name == "keepalive":
            if number < self.sequence:
                raise AnswerError("a keepalive whose sequence number falls")
            return
        if number <= self.sequence:
            raise AnswerError(f"{name}: the sequence number does not rise (invariant 14)")
        if event.sequence_number is not None:
            self.sequence = number
        first = self.events == 0
        self.events += 1
        if name == "response.created":
            if not first:
                raise AnswerError("response.created is not the first event, or not the only one")
            self.response = self._id_of(decode(data))
        elif first and name != "response.failed":
            raise AnswerError(f"the first event is {name}, not response.created (invariant 26)")
        elif name == "response.output_item.done":
            self.items.append(decode(data)["item"])
        elif name in _TERMINAL:
            self.terminal = decode(data)
            found = self._id_of(self.terminal)
            self.renamed = self.response is not None and found != self.response
        elif name == "error":
            raise AnswerError("an error event in a stream, which clients ignore")

    def _id_of(self, event: Json) -> str:
        response = event.get("response")
        found = response.get("id") if isinstance(response, dict) else None
        if not isinstance(found, str):
            raise AnswerError("a response without an id")
        return found

    def final(self) -> Json:
        """The response object that the complete answer holds.

        Raises:
            AnswerError: there is none, or it differs from what the stream brought.
        """
        if not self.stream:
            try:
                response = decode(self.body)
            except ValueError:
                raise AnswerError("a body that is no JSON") from None
            if not isinstance(response, dict):
                raise AnswerError("a body that is no object")
            if self.head.status == 200:
                _check_output(response)
            return response
        if self.terminal is None:
            raise AnswerError("a stream that ends without a terminal event (invariant 25)")
        if self.body:
            raise AnswerError("half an event at the end of a stream")
        response = self.terminal["response"]
        _check_output(response)
        completed = self.terminal["type"] == "response.completed"
        if completed and response["output"] != self.items:
            raise AnswerError("the output differs from the items that the stream brought")
        assert isinstance(response, dict), "the id was read from it"
        return response


def _check_output(response: Json) -> None:
    output = response.get("output")
    items = output if isinstance(output, list) else [None]
    if not all(isinstance(item, dict) and isinstance(item.get("type"), str) for item in items):
        raise AnswerError("a response whose output is no list of items")
