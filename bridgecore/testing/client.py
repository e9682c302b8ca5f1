"""Reads HTTP/1.1 answers and server-sent events from bytes, more strictly than browsers do.

What belongs here: what a test client needs to understand an endpoint, as bytes in and values out,
without a socket. ``HttpReader`` takes bytes as they arrive; ``SseReader`` does the same for the
body of a stream; ``read_answers`` parses what was collected. Whether an answer is the right one is
checked by the caller.

The readers accept what an endpoint of this package sends, and no more of HTTP. Anything else (a
trailer, a duplicate header, a body without a length, a stream with fields other than ``event`` and
``data``) is a ``ReadError``, so that a test notices it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import attrs

from bridgecore.errors import BridgecoreError

Json: TypeAlias = dict[str, Any]
"""A JSON object."""

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) ?.*")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
# an upstream's error may have more
_ERROR_MEMBERS = frozenset({"message", "type", "code", "param"})


class ReadError(BridgecoreError):
    """The received bytes violate HTTP or the format of event streams. The text says how."""


# ------------------------------------------------------------------ HTTP


@attrs.define
class HttpHead:
    """Status and headers of an answer. Names of ``headers`` are lower-case."""

    status: int
    headers: dict[str, str]


class HttpEnd:
    """The answer is complete."""


HttpPart: TypeAlias = HttpHead | bytes | HttpEnd
"""What an answer comes in: its head, pieces of its body, its end."""
_END = HttpEnd()


class HttpReader:
    """Parses the answers on one connection. ``of_head``: for each answer, from the first, whether
    its request was HEAD; ``until_close``: a body without a length ends with the connection, as it
    does for an HTTP/1.0 client."""

    def __init__(self, *, of_head: Iterable[bool] = (), until_close: bool = False) -> None:
        self._buffer = bytearray()
        self._read = self._read_head  # parses the next part; None: it needs more bytes
        self._left = 0  # remaining bytes of the body or the chunk
        self._of_head = list(of_head)
        self._until_close = until_close

    @property
    def untouched(self) -> bool:
        """Whether no byte of the next answer has arrived."""
        return self._read == self._read_head and not self._buffer

    @property
    def ends_with_connection(self) -> bool:
        """Whether the current body ends with the connection."""
        return self._read == self._read_to_close

    def expect_no_body(self) -> None:
        """The next answer that begins is one to HEAD, and has no body."""
        self._of_head.insert(0, True)

    def feed(self, data: bytes) -> list[HttpPart]:
        """The parts that ``data`` completes: heads, pieces of bodies, ends. An interim answer (100
        Continue) is a head without an end.

        Raises:
            ReadError: it is not HTTP/1.1.
        """
        self._buffer += data
        found: list[HttpPart] = []
        while (part := self._read()) is not None:
            if part:
                found.append(part)
        return found

    def feed_eof(self) -> list[HttpPart]:
        """The parts that the end of the connection completes.

        Raises:
            ReadError: an answer is incomplete.
        """
        if self.ends_with_connection:
            self._read = self._read_head
            return [_END]
        if not self.untouched:
            raise ReadError("the connection ends in the middle of an answer")
        return []

    def _read_head(self) -> HttpPart | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        status_line, *lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        match = _STATUS_LINE.fullmatch(status_line)
        if match is None:
            raise ReadError(f"a status line {status_line[:80]!r}")
        head = HttpHead(int(match[1]), _headers(lines))
        if head.status >= 200:  # others are interim, without a body
            self._begin_body(head.headers)
        return head

    def _begin_body(self, headers: dict[str, str]) -> None:
        length = headers.get("content-length")
        chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        if self._until_close and length is None and not chunked:
            self._read = self._read_to_close
        elif chunked is (length is not None) or (length is not None and not length.isdigit()):
            raise ReadError("not exactly one of Content-Length and chunked")
        elif chunked:
            self._read = self._read_chunk_size
        else:
            self._left = int(length or 0)
            self._read = self._read_sized
        if self._of_head and self._of_head.pop(0):
            self._left = 0
            self._read = self._read_sized

    def _read_sized(self) -> HttpPart | None:
        if self._left:
            return self._take()
        self._read = self._read_head
        return _END

    def _read_to_close(self) -> HttpPart | None:
        self._left = len(self._buffer)
        return self._take()

    def _read_chunk_size(self) -> HttpPart | None:
        line = self._line()
        if line is None:
            return None
        if not _CHUNK_SIZE.fullmatch(line):
            raise ReadError(f"a chunk size of {line!r}")
        self._left = int(line, 16)
        self._read = self._read_chunk if self._left else self._read_trailer
        return b""

    def _read_chunk(self) -> HttpPart | None:
        if self._left:
            return self._take()
        if len(self._buffer) < 2:
            return None
        if self._line() != b"":
            raise ReadError("a chunk longer than its size")
        self._read = self._read_chunk_size
        return b""

    def _read_trailer(self) -> HttpPart | None:
        if len(self._buffer) < 2:
            return None
        if self._line() != b"":
            raise ReadError("unexpected trailers")
        self._read = self._read_head
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


def _headers(lines: Iterable[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        raw, colon, value = line.partition(b":")
        name = raw.decode("latin-1").lower()
        if not colon or raw.strip() != raw or not raw or name in headers:
            raise ReadError(f"a header line {line[:80]!r}")
        headers[name] = value.strip().decode("latin-1")
    return headers


# ------------------------------------------------------------------ server-sent events


@attrs.define
class SseEvent:
    """A server-sent event: its ``event`` field, and its ``data`` lines joined by newlines. For a
    comment ``name`` is empty and ``data`` is the comment."""

    name: str
    data: bytes

    @property
    def json(self) -> Json:
        """Its data as JSON."""
        value: Json = json.loads(self.data)
        return value


class SseReader:
    """Parses a stream of events as it arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def unfinished(self) -> bool:
        """Whether an incomplete event has arrived."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events and comments that ``data`` completes.

        Raises:
            ReadError: a block is neither of the two.
        """
        # The end of a block may be split between two pieces.
        start = max(0, len(self._buffer) - 1)
        self._buffer += data
        if self._buffer.find(b"\n\n", start) < 0:
            return []
        *blocks, rest = bytes(self._buffer).split(b"\n\n")
        self._buffer[:] = rest
        return [_event(block) for block in blocks]


def _event(block: bytes) -> SseEvent:
    first, *lines = block.split(b"\n")
    if first.startswith(b":") and all(line.startswith(b":") for line in lines):
        return SseEvent("", block)
    for line, field in ((first, b"event: "), *((line, b"data: ") for line in lines)):
        if not line.startswith(field):
            raise ReadError(f"a line {line[:40]!r} in a stream")
    if not lines:
        raise ReadError(f"{first[:80]!r} without data in a stream")
    return SseEvent(first[7:].decode(), b"\n".join([line[6:] for line in lines]))


# ------------------------------------------------------------------ whole answers


@attrs.define
class HttpAnswer:
    """An HTTP answer as far as it has arrived. ``complete``: its end has arrived, too."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    complete: bool = False

    @property
    def json(self) -> Json:
        """Its body as JSON."""
        value: Json = json.loads(self.body)
        return value

    @property
    def error(self) -> Json:
        """The error object; all standard members are present."""
        error: Json = self.json["error"]
        if not _ERROR_MEMBERS.issubset(error):
            raise ReadError(f"an error with the members {sorted(error)}")
        return error

    @property
    def everything(self) -> list[SseEvent]:
        """The events and comments of a stream, in order.

        Raises:
            ReadError: it is not a stream, or the last event is incomplete.
        """
        if self.headers["content-type"].partition(";")[0] != "text/event-stream":
            raise ReadError(f"a stream of {self.headers['content-type']}")
        reader = SseReader()
        found = reader.feed(self.body)
        if reader.unfinished:
            raise ReadError("half an event at the end of a stream")
        return found

    @property
    def events(self) -> list[SseEvent]:
        """The same without comments."""
        return [event for event in self.everything if event.name]

    @property
    def names(self) -> list[str]:
        """The names of its events, in order."""
        return [event.name for event in self.events]

    @property
    def response(self) -> Json:
        """The response object of the terminal event, or of the JSON answer."""
        if self.headers["content-type"] == "application/json":
            return self.json
        response: Json = self.events[-1].json["response"]
        return response


def read_answers(data: bytes, *, of_head: Iterable[bool] = ()) -> list[HttpAnswer]:
    """The answers in ``data``, all that arrived on a connection; the last one may be incomplete. A
    body without a length is the rest of ``data``. ``of_head``: as for ``HttpReader``.

    Raises:
        ReadError: it is not HTTP/1.1, or the last head is incomplete.
    """
    reader = HttpReader(of_head=of_head, until_close=True)
    answers: list[HttpAnswer] = []
    bodies: list[bytearray] = []
    for part in reader.feed(data):
        if isinstance(part, HttpHead):
            answers.append(HttpAnswer(part.status, part.headers, complete=part.status < 200))
            bodies.append(bytearray())
        elif isinstance(part, HttpEnd):
            answers[-1].complete = True
        else:
            bodies[-1] += part
    for answer, body in zip(answers, bodies, strict=True):
        answer.body = bytes(body)
    if answers and not answers[-1].complete:
        answers[-1].complete = reader.ends_with_connection
    elif not reader.untouched:
        raise ReadError("half a head")
    return answers
