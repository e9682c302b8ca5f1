"""Reads HTTP/1.1 answers and server-sent events, without a socket and more strictly than browsers.

What belongs here: what a test client needs in order to understand an endpoint, as bytes in and
values out. ``HttpReader`` takes bytes as they come; ``SseReader`` does the same for the body of a
stream; ``read_answers`` takes apart what was collected. Whether an answer is the right one is for
the caller to say.

The readers take what an endpoint of this package sends, and no more of HTTP: anything else (a
trailer, a header twice, a body without a length, a stream with fields other than ``event`` and
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
_ERROR_MEMBERS = frozenset({"message", "type", "code", "param"})  # an upstream's may have more


class ReadError(BridgecoreError):
    """What was received breaks HTTP, or the format of streams. The text says how."""


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
    """Takes apart the answers on one connection. ``of_head``: which of them answer HEAD requests,
    from the first; ``until_close``: a body without a length ends with the connection, as it does
    for a client of HTTP/1.0.
    """

    def __init__(self, *, of_head: Iterable[bool] = (), until_close: bool = False) -> None:
        self._buffer = bytearray()
        self._read = self._read_head  # what reads the next part; None: more has to come first
        self._left = 0  # bytes of the body, or of the chunk
        self._of_head = list(of_head)
        self._until_close = until_close

    @property
    def untouched(self) -> bool:
        """Whether nothing of the next answer has come."""
        return self._read == self._read_head and not self._buffer

    @property
    def ends_with_connection(self) -> bool:
        """Whether the body that is being read has no other end."""
        return self._read == self._read_to_close

    def expect_no_body(self) -> None:
        """The next answer that begins is one to HEAD."""
        self._of_head.insert(0, True)

    def feed(self, data: bytes) -> list[HttpPart]:
        """What ``data`` completes: heads, pieces of bodies, ends. An interim answer (100 Continue)
        is a head without an end.

        Raises:
            ReadError: it is no HTTP/1.1 answer.
        """
        self._buffer += data
        found: list[HttpPart] = []
        while (part := self._read()) is not None:
            if part:
                found.append(part)
        return found

    def feed_eof(self) -> list[HttpPart]:
        """What the end of the connection completes.

        Raises:
            ReadError: it cuts an answer short.
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
        if head.status >= 200:  # others are interim, and have no body
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
            raise ReadError("trailers that nobody asked for")
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
    """A server-sent event: its ``event`` field, and its ``data`` lines, joined by newlines. Of a
    comment ``name`` is empty and ``data`` the whole of it."""

    name: str
    data: bytes

    @property
    def json(self) -> Json:
        """What its data says."""
        value: Json = json.loads(self.data)
        return value


class SseReader:
    """Takes apart a stream of events as it comes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def unfinished(self) -> bool:
        """Whether half an event has come."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events and comments that ``data`` completes.

        Raises:
            ReadError: there is a block that is neither.
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
    """An HTTP answer as far as it has come. ``complete``: its end has come, too."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    complete: bool = False

    @property
    def json(self) -> Json:
        """What its body says."""
        value: Json = json.loads(self.body)
        return value

    @property
    def error(self) -> Json:
        """The error object, with all members that clients know."""
        error: Json = self.json["error"]
        if not _ERROR_MEMBERS.issubset(error):
            raise ReadError(f"an error with the members {sorted(error)}")
        return error

    @property
    def everything(self) -> list[SseEvent]:
        """The events and comments of a stream, in order.

        Raises:
            ReadError: it is no stream, or it ends in the middle of an event.
        """
        if self.headers["content-type"] != "text/event-stream":
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
    """The answers in ``data``, all that came on a connection; the last one may be incomplete. A
    body without a length is the rest of ``data``. ``of_head``: as for ``HttpReader``.

    Raises:
        ReadError: it is no HTTP/1.1, or the last head is cut short.
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
