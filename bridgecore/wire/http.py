"""The server side of an HTTP/1.1 connection: reads requests and writes answers.

What belongs here: the order of requests and answers, the framing of bodies in both directions, and
the heads of answers (RFC 9112). Heads of requests are read by ``bridgecore.wire.request_heads``.
Paths, methods, error bodies and deadlines belong to ``bridgecore.fronts.http``.

Bodies are framed here and not by h11, which is as lenient with chunks as with heads; and the chunks
of a stream are the hot path. h11 validates the fields of answers.

Two shortcuts save most of the work on heads, with the same results: ``read_known_head`` for
requests, and ``_PLAIN_NAMES`` for answers. ``HttpServer(..., shortcuts=False)`` does without them.

A caller must take events after each ``receive`` and each ``start_next`` until there are none,
answer each request once, then check ``must_close``, and either close or call ``start_next``.
It may answer before the body was read. To close in that case, it must half-close first and go on
reading for a while, because unread input causes a reset that may destroy the answer on its way.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import TypeAlias

import attrs
import h11

from bridgecore.errors import LocalProtocolError
from bridgecore.wire.codings import (
    BodyDecoder,
    BodyTooLargeError,
    UndecodableBodyError,
    UnsupportedCodingError,
)
from bridgecore.wire.request_heads import (
    ANY_LENGTH,
    TOKEN,
    RefusedError,
    RequestHead,
    body_too_large,
    malformed,
    parse_head,
    parse_request_line,
    read_known_head,
    scan_head,
)

__all__ = [
    "BODILESS",
    "BadRequest",
    "BodyPart",
    "BodyRefused",
    "HttpEvent",
    "HttpLimits",
    "HttpPhase",
    "HttpServer",
    "RequestBody",
]

# Limits that no correct client comes near, so they are not settings. They bound the work and memory
# that a request can cause apart from its bytes.
_MAX_EMPTY_LINES = 8  # before a request line; RFC 9112, section 2.2, requires one to be accepted
_MAX_FRAMING_LINE = 1024  # bytes of one chunk-size or trailer line, without its CRLF

BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
"""The statuses of final answers that have no body (RFC 9112, section 6.3)."""

# RFC 9112, section 7.1.1. 16 digits are enough for 64 bits.
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})"
    rb"(?:[ \t]*;[ \t]*" + TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + TOKEN + rb"|" + _QUOTED + rb"))?)*"
)
_TRAILER_LINE = re.compile(TOKEN + rb":[\t\x20-\x7e\x80-\xff]*")


@attrs.frozen
class HttpLimits:
    """The maximum size of a request.

    ``max_header``: bytes of the head, from the request line to the empty line, and of all chunk
    extensions and trailers of a body together. ``max_body``: bytes of the body without its framing,
    as received; its ``BodyDecoder`` limits the decoded size.
    """

    max_header: int
    max_body: int


class HttpPhase(enum.Enum):
    """What the connection is waiting for; the caller's deadlines depend on it."""

    IDLE = "idle"  # the first byte of a request
    HEAD = "head"  # the rest of a request's head
    BODY = "body"  # the rest of a request's body, or events that can be taken
    ANSWERING = "answering"  # the caller: an answer, the rest of one, or start_next
    CLOSED = "closed"  # nothing: the last answer is complete and no request can follow


@attrs.define
class BodyPart:
    """The next bytes of a body that is given by parts, and not the last ones; never empty."""

    data: bytes


@attrs.define
class RequestBody:
    """The complete body of the request whose head was the event before; ``b""`` for none. Of a body
    that is given by parts, the last one, which may be empty."""

    data: bytes


@attrs.define
class BodyRefused:
    """The framing of the body is valid, but it cannot be decoded; see ``HttpServer.decode_body``.

    Answer with ``respond``; further requests can be read. ``status`` is 400 (code
    ``undecodable_body``), 413 (``body_too_large``) or 415 (``unsupported_content_encoding``).
    ``message`` says what is wrong and what to do; it contains nothing of the body.
    """

    status: int
    code: str
    message: str


@attrs.define
class BadRequest:
    """The request is malformed or too large, and the input after it cannot be parsed.

    Answer with ``respond(status, ..., close=True)``; no event follows. ``status`` is 400
    (code ``malformed_request``), 413 (``body_too_large``) or 431 (``head_too_large``).
    ``message`` says what is wrong and what to do; it contains no field values and no body.
    """

    status: int
    code: str
    message: str


# After a RequestHead comes one of the others: at once, or when more was received. A BodyPart is
# followed by another one, the RequestBody or a BadRequest.
HttpEvent: TypeAlias = RequestHead | BodyPart | RequestBody | BodyRefused | BadRequest
ByParts: TypeAlias = Callable[[RequestHead], bool]
"""Whether the body of a request is given by parts."""


class _Reading(enum.Enum):
    """The part of a request to which the next input byte belongs."""

    HEAD = enum.auto()
    SIZED_BODY = enum.auto()  # Content-Length, or no body
    CHUNKED_BODY = enum.auto()
    NOTHING = enum.auto()  # the request is complete, or further input is ignored


class _Chunk(enum.Enum):
    """The part of a chunked body to which the next input byte belongs."""

    SIZE = enum.auto()
    DATA = enum.auto()  # with the CRLF after it
    TRAILER = enum.auto()


class _Answer(enum.Enum):
    """The state of the answer."""

    NOT_BEGUN = enum.auto()
    STREAMING = enum.auto()
    DONE = enum.auto()


class HttpServer:
    """The server side of one connection.

    ``shortcuts``: read and write frequent heads on shorter paths, with the same results.
    ``by_parts``: which bodies are given by parts as they are received (``BodyPart``); ``max_body``
    does not apply to them, because they are not buffered. None: none is.

    Methods raise ``LocalProtocolError`` if HTTP does not allow the call at this time or with these
    headers; the state is unchanged then. Errors of the client are events.
    """

    # There may be thousands of idle connections: no instance dictionaries.
    __slots__ = (
        *("_announced", "_answer", "_bodiless", "_body", "_buffer", "_by_parts", "_chunk"),
        *("_chunking", "_close", "_continue_owed", "_decoder", "_dropping", "_empty_lines"),
        *("_extras", "_framed", "_in_request", "_limits", "_parting", "_reading", "_remaining"),
        *("_scanned", "_shortcuts", "_unsent"),
    )

    def __init__(
        self, limits: HttpLimits, *, shortcuts: bool = True, by_parts: ByParts | None = None
    ) -> None:
        self._limits = limits
        self._shortcuts = shortcuts
        self._by_parts = by_parts
        self._buffer = bytearray()
        self._body = bytearray()  # of a chunked one
        self._close = False
        self._begin_exchange()

    def _begin_exchange(self) -> None:
        self._reading = _Reading.HEAD
        self._answer = _Answer.NOT_BEGUN
        # Head.
        self._empty_lines = 0
        self._scanned = 0  # bytes of the buffer that ``scan_head`` has checked
        self._in_request = False  # the event of a head was returned
        self._bodiless = False  # the answer has no body, whatever its headers say (HEAD)
        self._framed = True  # a stream is chunked; False for HTTP/1.0
        self._continue_owed = False
        # Body.
        self._decoder: BodyDecoder | None = None  # decodes the body while it is received
        self._dropping = False  # parse the framing of the body, but drop its bytes
        self._parting = False  # the body is given by parts
        self._announced = 0  # bytes of the body according to the chunk sizes so far
        self._remaining = 0  # bytes missing of a sized body, or of the current chunk
        self._chunk = _Chunk.SIZE
        self._extras = 0  # bytes of chunk extensions and trailers
        # Answer. A separate flag, so that ``stream``, on the hot path, has one test.
        self._chunking = False
        self._unsent: int | None = None  # bytes that are missing of an answer of known length

    # ------------------------------------------------------------------ input

    def receive(self, data: bytes) -> None:
        """Buffer input from the client; ``next_event`` parses it.

        Input that has no effect any more (after ``BadRequest``, after an early answer, or when the
        connection must close) is dropped. While an answer is in progress, at most ``max_header +
        max_body`` bytes of further requests are buffered. Beyond that they are dropped and the
        connection closes after the answer, so the client knows that it may send them again. A
        caller can buffer less by pausing the connection; see ``buffered``.
        """
        if self._reading is _Reading.NOTHING:
            if self._close:
                return
            if len(self._buffer) + len(data) > self._limits.max_header + self._limits.max_body:
                self._abandon_input()
                return
        self._buffer += data

    @property
    def buffered(self) -> int:
        """Bytes received that were not returned in an event yet."""
        decoding = 0 if self._decoder is None else self._decoder.buffered
        return len(self._buffer) + len(self._body) + decoding

    def next_event(self) -> HttpEvent | None:
        """The next event; None if more input is needed, or an answer has to be given first.

        A request that was sent before the answer to the last one (pipelining) waits until
        ``start_next``.
        """
        try:
            if self._reading is _Reading.HEAD:
                return self._read_head()
            if self._reading is _Reading.SIZED_BODY:
                return self._read_sized_body()
            if self._reading is _Reading.CHUNKED_BODY:
                body = self._read_chunked_body()
                if body is None and self._parting and self._body:
                    part = BodyPart(bytes(self._body))
                    self._body.clear()
                    return part
                return body
            return None
        except RefusedError as refused:
            self._abandon_input()
            return BadRequest(refused.status, refused.code, str(refused))
        except UndecodableBodyError as exc:
            self._drop_body()
            return BodyRefused(400, "undecodable_body", str(exc))
        except UnsupportedCodingError as exc:
            self._drop_body()
            return BodyRefused(415, "unsupported_content_encoding", str(exc))
        except BodyTooLargeError:
            self._drop_body()
            refusal = body_too_large(self._limits.max_body)
            return BodyRefused(refusal.status, refusal.code, str(refusal))

    def decode_body(self, decoder: BodyDecoder) -> None:
        """Decode the body of the request whose head was the last event while it is received.

        Raises:
            LocalProtocolError: there is no such request, or part of its body was read before.
        """
        due = self._in_request and self._reading is not _Reading.NOTHING
        if not due or self._decoder is not None or self._dropping or self._announced:
            raise LocalProtocolError("decode_body is for a request whose body was not read yet")
        self._decoder = decoder

    def _drop_body(self) -> None:
        """Drop the body, but keep parsing its framing, to find the next request."""
        self._parting = False
        self._decoder = None
        self._dropping = True
        self._body.clear()

    def _abandon_input(self) -> None:
        """Drop buffered and further input: the connection must close."""
        self._close = True
        self._reading = _Reading.NOTHING
        self._continue_owed = False
        self._buffer.clear()
        self._body.clear()
        self._decoder = None
        self._parting = False

    def _read_head(self) -> RequestHead | None:
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):
            del buffer[:2]
            self._empty_lines += 1
            if self._empty_lines > _MAX_EMPTY_LINES:
                raise malformed("too many empty lines before the request line")
        size, complete = scan_head(buffer, self._scanned, self._limits.max_header)
        if not complete:
            self._scanned = size
            return None
        raw = bytes(buffer[:size])
        del buffer[:size]

        head = read_known_head(raw, self._limits.max_body) if self._shortcuts else None
        if head is None:
            head = self._parse_head(raw)
        self._in_request = True
        self._parting = self._by_parts is not None and self._by_parts(head)
        if head.chunked:
            self._reading = _Reading.CHUNKED_BODY
        else:
            self._reading = _Reading.SIZED_BODY
            self._remaining = head.content_length or 0
        self._continue_owed = head.expects_continue
        return head

    def _parse_head(self, raw: bytes) -> RequestHead:
        line = parse_request_line(raw)
        # Set before anything else can be refused, because a refusal also answers this method.
        self._bodiless = line.method == b"HEAD"
        try:
            head, self._close = parse_head(raw, line, self._limits.max_body)
        except RefusedError as refused:
            if refused.status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE or self._by_parts is None:
                raise
            head, self._close = parse_head(raw, line, ANY_LENGTH)
            if not self._by_parts(head):
                raise refused from None
        self._framed = line.version == b"1.1"
        return head

    def _read_sized_body(self) -> RequestBody | BodyPart | None:
        if self._parting:
            size = min(self._remaining, len(self._buffer))
            data = self._copy(0, size)
            del self._buffer[:size]
            self._remaining -= size
            if self._remaining:
                return BodyPart(data) if data else None
            return self._end_body(data)
        if self._decoder is not None or self._dropping:
            size = min(self._remaining, len(self._buffer))
            data = self._copy(0, size)
            del self._buffer[:size]
            self._remaining -= size
            self._pass_on(data)
            return None if self._remaining else self._end_body()
        # The body stays in the input buffer until it is complete: one copy, however it was split.
        size = self._remaining
        if len(self._buffer) < size:
            return None
        data = self._copy(0, size)
        del self._buffer[:size]
        return self._end_body(data)

    def _copy(self, start: int, end: int) -> bytes:
        with memoryview(self._buffer) as view:
            return bytes(view[start:end])

    def _pass_on(self, data: bytes) -> None:
        """Decode ``data``, the next bytes of the body. As this may raise, they must be removed from
        the buffer before."""
        if self._decoder is not None:
            self._decoder.receive(data)
        elif self._parting:
            self._body += data

    def _read_chunked_body(self) -> RequestBody | None:
        buffer = self._buffer
        at = 0  # parsed bytes, which are removed from the buffer in one step at the end
        try:
            while True:
                if self._chunk is _Chunk.DATA:
                    if self._decoder is not None or self._dropping or self._parting:
                        end = min(at + self._remaining, len(buffer))
                        data = self._copy(at, end)
                        self._remaining -= end - at
                        at = end
                        self._pass_on(data)
                        if self._remaining:
                            return None
                    # A chunk stays in the input buffer until it is complete, like a sized body.
                    data_end = at + self._remaining
                    crlf = buffer[data_end : data_end + 2]
                    if not b"\r\n".startswith(crlf):
                        raise malformed("a chunk does not end with CRLF where its size says")
                    if len(crlf) < 2:
                        return None
                    with memoryview(buffer) as view:
                        self._body += view[at:data_end]
                    at = data_end + 2
                    self._chunk = _Chunk.SIZE
                    continue
                line = self._framing_line(at)
                if line is None:
                    return None
                at += len(line) + 2
                if self._chunk is _Chunk.SIZE:
                    self._begin_chunk(line)
                elif line:
                    self._drop_trailer(line)
                else:
                    return self._end_body(bytes(self._body))
        finally:
            del buffer[:at]

    def _framing_line(self, at: int) -> bytes | None:
        """The line of chunk framing at ``at``, without its CRLF; None if it is incomplete."""
        end = self._buffer.find(b"\n", at, at + _MAX_FRAMING_LINE + 2)
        if end < 0:
            if len(self._buffer) - at >= _MAX_FRAMING_LINE + 2:
                raise malformed(f"a line of chunk framing is longer than {_MAX_FRAMING_LINE} bytes")
            return None
        line = self._buffer[at : end + 1]
        if not line.endswith(b"\r\n"):
            raise malformed("a line of chunk framing ends with a bare LF; end it with CRLF")
        return bytes(line[:-2])

    def _begin_chunk(self, line: bytes) -> None:
        self._continue_owed = False  # the client did not wait
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise malformed(
                "a chunk does not begin with its size in hexadecimal and, at most, extensions"
            )
        digits = match[1]
        if len(line) > len(digits):
            self._count_extras(len(line) - len(digits))
        size = int(digits, 16)
        self._announced += size
        if self._announced > self._limits.max_body and not self._parting:
            raise body_too_large(self._limits.max_body)
        self._remaining = size
        self._chunk = _Chunk.DATA if size else _Chunk.TRAILER

    def _drop_trailer(self, line: bytes) -> None:
        # Trailers are never merged into the headers (RFC 9110, section 6.5.1), so their content has
        # no effect; but they must be well formed.
        if _TRAILER_LINE.fullmatch(line) is None:
            raise malformed("a trailer field is malformed; leave trailers out, they are not used")
        self._count_extras(len(line) + 2)

    def _count_extras(self, size: int) -> None:
        self._extras += size
        if self._extras > self._limits.max_header:
            raise malformed(
                f"chunk extensions and trailers exceed {self._limits.max_header} bytes;"
                " leave them out, they are not used"
            )

    def _end_body(self, data: bytes = b"") -> RequestBody:
        """The event of a complete body. ``data``: the body, unless it was passed to a decoder."""
        self._reading = _Reading.NOTHING
        self._continue_owed = False
        self._body.clear()
        if self._close:
            self._buffer.clear()  # no request can follow
        decoder, self._decoder = self._decoder, None
        return RequestBody(data if decoder is None else decoder.finish())

    # ------------------------------------------------------------------ output

    def wants_body(self) -> bytes:
        """A 100 Continue, if the client waits for one, else ``b""``. Call it when the body will be
        read.

        It is sent once, and only if the client asked for it and nothing of the body was received
        (RFC 9110, section 10.1.1).
        """
        if not self._continue_owed or self._buffer:
            return b""
        self._continue_owed = False
        return b"HTTP/1.1 100 Continue\r\n\r\n"

    def interim(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """An interim answer (1xx) before the answer; ``b""`` for a client of HTTP/1.0, which does
        not know them.

        Raises:
            LocalProtocolError: there is no request, the answer has begun, ``status`` is not 100 or
                102 to 199, or a header is malformed. 101 would end HTTP on the connection.
        """
        if not self._in_request or self._answer is not _Answer.NOT_BEGUN:
            raise LocalProtocolError("there is no request that waits for its answer")
        if status == HTTPStatus.SWITCHING_PROTOCOLS or not 100 <= status <= 199:
            raise LocalProtocolError(f"{status} is not the status of an interim answer")
        _check_answer(status, headers, h11.InformationalResponse)
        if not self._framed:
            return b""
        if status == HTTPStatus.CONTINUE:
            self._continue_owed = False
        lines = [b"%b: %b\r\n" % header for header in headers]
        return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, _phrase(status), b"".join(lines))

    def respond(
        self,
        status: int,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        *,
        close: bool = False,
    ) -> bytes:
        """A complete answer. Allowed before a request, for example a 408 if its head is too late.

        ``content-length`` is added, and ``connection: close`` if no further request can be served
        or ``close`` is set. The answer to HEAD is the same without the body.

        Raises:
            LocalProtocolError: the answer has begun; ``status`` is not 200 to 999; ``body`` with
                status 204 or 304; a header is malformed, or one that is set here.
        """
        bodiless = self._bodiless
        framing = b"content-length: %d\r\n" % len(body)
        if status in BODILESS:
            if body:
                raise LocalProtocolError(f"an answer with status {status} cannot have a body")
            framing = b""
        head = self._begin_answer(status, headers, framing, close=close)
        self._answer = _Answer.DONE
        return head if bodiless else head + body

    def switch(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The 101 answer that ends HTTP on this connection; ``take_rest`` has what was received
        after the request.

        Raises:
            LocalProtocolError: there is no complete request, or its answer has begun.
        """
        if self._reading is not _Reading.NOTHING or not self._in_request:
            raise LocalProtocolError("there is no complete request that can be upgraded")
        if self._answer is not _Answer.NOT_BEGUN:
            raise LocalProtocolError("the answer to this request has begun already")
        _check_answer(200, headers)
        self._answer = _Answer.DONE
        lines = [b"%b: %b\r\n" % header for header in headers]
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        return head + b"".join(lines) + b"\r\n"

    def take_rest(self) -> bytes:
        """What was received after the last request, which is not parsed as HTTP any more."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._close = True
        return rest

    def start_stream(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The head of a 200 answer; ``stream`` writes its body and ``end_stream`` ends it.

        The body is chunked; for an HTTP/1.0 client it is unframed and ends with the connection.

        Raises:
            LocalProtocolError: there is no request; the answer has begun; a header is malformed,
                or one that is set here.
        """
        if not self._in_request:
            raise LocalProtocolError("there is no request to answer with a stream")
        framing = b"Transfer-Encoding: chunked\r\n" if self._framed else b""
        head = self._begin_answer(200, headers, framing, close=False)
        self._answer = _Answer.STREAMING
        self._chunking = self._framed and not self._bodiless
        return head

    def start_answer(
        self, status: int, headers: list[tuple[bytes, bytes]], length: int | None, *, close: bool
    ) -> bytes:
        """The head of an answer with any status; ``stream`` writes its body and ``end_stream`` ends
        it.

        The request's body may still be read while the answer is written. If it is not complete at
        the end of the answer, the connection must close.

        Args:
            status: 200 to 999. With 204 and 304, and after HEAD, no body is written.
            headers: without those that frame the body.
            length: bytes of the body; of an answer to HEAD, those that an answer to GET would have.
                None: not known; then the body is chunked, or ends with the connection.
            close: whether the connection is closed after the answer.

        Raises:
            LocalProtocolError: there is no request; the answer has begun; a header is malformed, or
                one that is set here.
        """
        if not self._in_request:
            raise LocalProtocolError("there is no request to answer")
        bare = status in BODILESS
        framing = b""
        if length is not None and not bare:
            framing = b"content-length: %d\r\n" % length
        elif self._framed and not bare:
            framing = b"Transfer-Encoding: chunked\r\n"
        head = self._begin_answer(status, headers, framing, close=close, reads_on=True)
        self._bodiless = self._bodiless or bare
        self._answer = _Answer.STREAMING
        self._chunking = self._framed and not self._bodiless and length is None
        self._unsent = None if self._bodiless else length
        return head

    def _begin_answer(
        self,
        status: int,
        headers: list[tuple[bytes, bytes]],
        framing: bytes,
        *,
        close: bool,
        reads_on: bool = False,
    ) -> bytes:
        """The head of an answer. ``framing``: the line of the field that frames the body.
        ``reads_on``: the body of the request is still read."""
        if self._answer is not _Answer.NOT_BEGUN:
            raise LocalProtocolError("the answer to this request has begun already")
        lines = _write_fields(status, headers, shortcuts=self._shortcuts)

        # Nothing can raise from here on. If the request was received completely but not parsed to
        # its end, the connection can be kept; if it was not, its rest cannot be distinguished from
        # a next request.
        if self._reading is not _Reading.NOTHING and not reads_on:
            self._drop_body()
            if not self._in_request or not isinstance(self.next_event(), RequestBody):
                self._abandon_input()
        if close and not self._close:
            self._close = True
            if self._reading is _Reading.NOTHING:
                self._buffer.clear()
        return lines + framing + (b"Connection: close\r\n\r\n" if self._close else b"\r\n")

    def stream(self, data: bytes) -> bytes:
        """The next part of a stream's body, framed; ``b""`` if ``data`` is empty, and for HEAD.

        Raises:
            LocalProtocolError: no stream is under way, or it is longer than was announced.
        """
        if self._chunking and data:
            return b"%x\r\n%b\r\n" % (len(data), data)
        if self._answer is not _Answer.STREAMING:
            raise LocalProtocolError("no stream is under way")
        if self._unsent is not None:
            if len(data) > self._unsent:
                raise LocalProtocolError("the answer is longer than its content-length says")
            self._unsent -= len(data)
        return b"" if self._bodiless else data

    def end_stream(self) -> bytes:
        """The end of a stream; ``b""`` for an HTTP/1.0 client, whose stream ends with the
        connection.

        Raises:
            LocalProtocolError: no stream is under way, or it is shorter than was announced.
        """
        if self._answer is not _Answer.STREAMING:
            raise LocalProtocolError("no stream is under way")
        if self._unsent:
            raise LocalProtocolError("the answer is shorter than its content-length says")
        if self._reading is not _Reading.NOTHING:
            self._abandon_input()  # its rest cannot be told from a next request
        end = b"0\r\n\r\n" if self._chunking else b""
        self._chunking = False
        self._answer = _Answer.DONE
        return end

    # ------------------------------------------------------------------ between requests

    @property
    def answering(self) -> bool:
        """Whether an answer has begun and is not complete."""
        return self._answer is _Answer.STREAMING

    @property
    def answer_done(self) -> bool:
        """Whether the answer is complete."""
        return self._answer is _Answer.DONE

    @property
    def must_close(self) -> bool:
        """Whether the connection has to be closed after the answer.

        The reasons: either side asked for it, the client speaks HTTP/1.0, its input was refused, or
        the answer began before the request was complete. Final when ``answer_done``.
        """
        return self._close

    def start_next(self) -> None:
        """Begin the next exchange. Its request may be buffered, so take events after this call.

        Raises:
            LocalProtocolError: the answer is not complete, or the connection must close.
        """
        if self._answer is not _Answer.DONE:
            raise LocalProtocolError("the answer to this request is not complete")
        if self._close:
            raise LocalProtocolError("this connection cannot serve another request")
        self._begin_exchange()

    @property
    def phase(self) -> HttpPhase:
        """What the connection is waiting for."""
        if self._answer is _Answer.DONE and self._close:
            return HttpPhase.CLOSED
        if self._reading is _Reading.HEAD:
            return HttpPhase.HEAD if self._buffer else HttpPhase.IDLE
        if self._reading is _Reading.NOTHING:
            return HttpPhase.ANSWERING
        return HttpPhase.BODY


# ---------------------------------------------------------------------- heads of answers

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode("ascii"))
    for status in HTTPStatus
    if status >= 200
}

# Headers of an answer that describe its framing and the connection: set here, not by the caller.
_OWN_HEADERS = frozenset({b"connection", b"content-length", b"transfer-encoding"})

# Frequent headers of answers: valid names that are not in ``_OWN_HEADERS``. With a value of visible
# ASCII characters, which is always valid (RFC 9110, section 5.5), h11 need not be asked.
_PLAIN_NAMES = frozenset(
    {
        *(b"cache-control", b"content-type", b"retry-after", b"retry-after-ms"),
        *(b"x-accel-buffering", b"x-bridgecore-forward", b"x-request-id"),
    }
)
_PLAIN_VALUE = re.compile(rb"[\x21-\x7e]+")


def _phrase(status: int) -> bytes:
    """The reason phrase of a status, which may be empty (RFC 9112, section 4)."""
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""


def _write_fields(status: int, headers: list[tuple[bytes, bytes]], *, shortcuts: bool) -> bytes:
    """The status line and the lines of ``headers``, which the caller of ``HttpServer`` gave."""
    status_line = _STATUS_LINES.get(status)
    lines = []
    plain = shortcuts and status_line is not None
    for name, value in headers:
        plain = plain and name in _PLAIN_NAMES and _PLAIN_VALUE.fullmatch(value) is not None
        lines.append(b"%b: %b\r\n" % (name, value))
    if not plain:
        _check_answer(status, headers)
    return (status_line or b"HTTP/1.1 %d \r\n" % status) + b"".join(lines)


_Head: TypeAlias = type[h11.Response] | type[h11.InformationalResponse]


def _check_answer(
    status: int, headers: list[tuple[bytes, bytes]], kind: _Head = h11.Response
) -> None:
    for name, _ in headers:
        if name.lower() in _OWN_HEADERS:
            raise LocalProtocolError(f"{name.decode('ascii', 'replace')} is set by HttpServer")
    try:
        kind(status_code=status, headers=headers)
    except h11.LocalProtocolError as exc:
        raise LocalProtocolError(f"the answer cannot be written: {exc}") from exc
