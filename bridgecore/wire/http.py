"""The server side of an HTTP/1.1 connection: parses requests and writes answers.

What belongs here: the framing of requests and answers (RFC 9112). Paths, methods, error bodies and
deadlines belong to ``bridgecore.fronts.http``.

Three parts share the work:

* *The guard*, in this file, accepts a request head only if all HTTP implementations read it alike.
  h11 accepts much that two parsers may read differently (bare LF, folded lines, two lengths, a
  length next to a transfer coding). As there may be a proxy in front of the bridge, an ambiguous
  request is refused and never repaired: request smuggling depends on such differences.
* *h11* parses the heads that the guard accepts, so that two parsers have to agree, and validates
  the fields of answers. It is used like a function: an ``h11.Connection`` reads one head and is
  dropped, so no state of one exchange is left in the next, and an idle connection keeps none.
* *Framing* is done here in both directions: h11 is as lenient with chunks as with heads, and
  the chunks of a stream are the hot path.

Two shortcuts save most of the work on heads, with the same results: see ``_VALUES`` for requests
and ``_PLAIN_NAMES`` for answers. ``HttpServer(..., shortcuts=False)`` does without them.

A caller must take events after each ``receive`` and each ``start_next`` until there are none,
answer each request once, then check ``must_close``, and either close or call ``start_next``.
It may answer before the body was read. To close in that case, it must half-close first and go on
reading for a while, because unread input causes a reset that may destroy the answer on its way.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import re
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

__all__ = [
    "BadRequest",
    "BodyRefused",
    "HttpEvent",
    "HttpLimits",
    "HttpPhase",
    "HttpServer",
    "RequestBody",
    "RequestHead",
]

# Limits that no correct client comes near, so they are not settings. They bound the work and memory
# that a request can cause apart from its bytes.
_MAX_FIELDS = 256  # header fields of one request
_MAX_EMPTY_LINES = 8  # before a request line; RFC 9112, section 2.2, requires one to be accepted
_MAX_FRAMING_LINE = 1024  # bytes of one chunk-size or trailer line, without its CRLF
_MAX_LENGTH_DIGITS = 20  # of a Content-Length without leading zeros: enough for 64 bits


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
class RequestHead:
    """The complete head of a request; ``RequestBody``, ``BodyRefused`` or ``BadRequest`` follows.

    ``path``: the path of the target as it was sent, visible ASCII, not percent-decoded. ``query``:
    the part after the ``?``. The scheme and authority of an absolute-form target are left out: they
    override ``Host``, which has no effect on this server. ``headers``: names in lower case, values
    without surrounding white space, possibly with bytes above 127.
    """

    method: bytes
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    content_length: int | None  # declared length in bytes; None if there is none
    chunked: bool  # the body is chunked: its length is known at its end
    expects_continue: bool  # the client may wait for a 100 Continue, see ``wants_body``

    @property
    def has_body(self) -> bool:
        """Whether the body may be non-empty."""
        return self.chunked or bool(self.content_length)


@attrs.define
class RequestBody:
    """The complete body of the request whose head was the event before; ``b""`` for none."""

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


HttpEvent: TypeAlias = RequestHead | RequestBody | BodyRefused | BadRequest


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

    Methods raise ``LocalProtocolError`` if HTTP does not allow the call at this time or with these
    headers; the state is unchanged then. Errors of the client are events.
    """

    # There may be thousands of idle connections: no instance dictionaries.
    __slots__ = (
        *("_announced", "_answer", "_bodiless", "_body", "_buffer", "_chunk", "_chunking"),
        *("_close", "_continue_owed", "_decoder", "_dropping", "_empty_lines", "_extras"),
        *("_framed", "_in_request", "_limits", "_reading", "_remaining", "_scanned"),
        "_shortcuts",
    )

    def __init__(self, limits: HttpLimits, *, shortcuts: bool = True) -> None:
        self._limits = limits
        self._shortcuts = shortcuts
        self._buffer = bytearray()
        self._body = bytearray()  # of a chunked one
        self._close = False
        self._begin_exchange()

    def _begin_exchange(self) -> None:
        self._reading = _Reading.HEAD
        self._answer = _Answer.NOT_BEGUN
        # Head.
        self._empty_lines = 0
        self._scanned = 0  # bytes of the buffer that the guard has checked
        self._in_request = False  # the event of a head was returned
        self._bodiless = False  # the answer has no body, whatever its headers say (HEAD)
        self._framed = True  # a stream is chunked; False for HTTP/1.0
        self._continue_owed = False
        # Body.
        self._decoder: BodyDecoder | None = None  # decodes the body while it is received
        self._dropping = False  # parse the framing of the body, but drop its bytes
        self._announced = 0  # bytes of the body according to the chunk sizes so far
        self._remaining = 0  # bytes missing of a sized body, or of the current chunk
        self._chunk = _Chunk.SIZE
        self._extras = 0  # bytes of chunk extensions and trailers
        # Answer. A separate flag, so that ``stream``, on the hot path, has one test.
        self._chunking = False

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
                return self._read_chunked_body()
            return None
        except _RefusedError as refused:
            self._abandon_input()
            return refused.event
        except UndecodableBodyError as exc:
            self._drop_body()
            return BodyRefused(400, "undecodable_body", str(exc))
        except UnsupportedCodingError as exc:
            self._drop_body()
            return BodyRefused(415, "unsupported_content_encoding", str(exc))
        except BodyTooLargeError:
            self._drop_body()
            refusal = _body_too_large(self._limits.max_body).event
            return BodyRefused(refusal.status, refusal.code, refusal.message)

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

    def _read_head(self) -> RequestHead | None:
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):
            del buffer[:2]
            self._empty_lines += 1
            if self._empty_lines > _MAX_EMPTY_LINES:
                raise _malformed("too many empty lines before the request line")
        size = self._scan_head()
        if size is None:
            return None
        raw = bytes(buffer[:size])
        del buffer[:size]

        head = _read_known_head(raw, self._limits.max_body) if self._shortcuts else None
        if head is None:
            head = self._parse_head(raw)
        self._in_request = True
        if head.chunked:
            self._reading = _Reading.CHUNKED_BODY
        else:
            self._reading = _Reading.SIZED_BODY
            self._remaining = head.content_length or 0
        self._continue_owed = head.expects_continue
        return head

    def _scan_head(self) -> int | None:
        """The size of the head; None if it is incomplete. Looks at each byte once.

        Checks that each byte, except CRLF, is allowed in a field. This is done while input is
        received and not only at the end of the head: a client that ends its lines with LF alone
        sends a head that never ends, and would wait for an answer in vain.
        """
        buffer, limit = self._buffer, self._limits.max_header
        # Bytes beyond the limit are ignored, so that the result does not depend on how the input
        # was split into reads.
        found = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3), limit)
        end = found + 4 if found >= 0 else min(len(buffer), limit)
        if found < 0 and buffer.endswith(b"\r", 0, end):
            end -= 1  # a lone CR or half of a CRLF: the next byte decides
        fresh = buffer[self._scanned : end]
        rest = fresh.translate(None, _FIELD_BYTES)
        if 2 * fresh.count(b"\r\n") != len(rest):
            raise _stray_byte(buffer, end)
        if found >= 0:
            return end
        if len(buffer) >= limit:
            raise _head_too_large(
                f"the request head is larger than {limit} bytes; send fewer or shorter headers"
            )
        self._scanned = end
        return None

    def _parse_head(self, raw: bytes) -> RequestHead:
        start = _split_request_line(raw[: raw.index(b"\r\n")])
        method, _, version = start
        # Set before anything can be refused, because a refusal also answers this method.
        self._bodiless = method == b"HEAD"
        head, self._close = _parse_head(raw, start, self._limits.max_body)
        self._framed = version == b"1.1"
        return head

    def _read_sized_body(self) -> RequestBody | None:
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

    def _read_chunked_body(self) -> RequestBody | None:
        buffer = self._buffer
        at = 0  # parsed bytes, which are removed from the buffer in one step at the end
        try:
            while True:
                if self._chunk is _Chunk.DATA:
                    if self._decoder is not None or self._dropping:
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
                        raise _malformed("a chunk does not end with CRLF where its size says")
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
                raise _malformed(
                    f"a line of chunk framing is longer than {_MAX_FRAMING_LINE} bytes"
                )
            return None
        line = self._buffer[at : end + 1]
        if not line.endswith(b"\r\n"):
            raise _malformed("a line of chunk framing ends with a bare LF; end it with CRLF")
        return bytes(line[:-2])

    def _begin_chunk(self, line: bytes) -> None:
        self._continue_owed = False  # the client did not wait
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise _malformed(
                "a chunk does not begin with its size in hexadecimal and, at most, extensions"
            )
        digits = match[1]
        if len(line) > len(digits):
            self._count_extras(len(line) - len(digits))
        size = int(digits, 16)
        self._announced += size
        if self._announced > self._limits.max_body:
            raise _body_too_large(self._limits.max_body)
        self._remaining = size
        self._chunk = _Chunk.DATA if size else _Chunk.TRAILER

    def _drop_trailer(self, line: bytes) -> None:
        # Trailers are never merged into the headers (RFC 9110, section 6.5.1), so their content has
        # no effect; but they must be well formed.
        if _TRAILER_LINE.fullmatch(line) is None:
            raise _malformed("a trailer field is malformed; leave trailers out, they are not used")
        self._count_extras(len(line) + 2)

    def _count_extras(self, size: int) -> None:
        self._extras += size
        if self._extras > self._limits.max_header:
            raise _malformed(
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
        if status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            if body:
                raise LocalProtocolError(f"an answer with status {status} cannot have a body")
            framing = b""
        head = self._begin_answer(status, headers, framing, close=close)
        self._answer = _Answer.DONE
        return head if bodiless else head + body

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

    def _begin_answer(
        self, status: int, headers: list[tuple[bytes, bytes]], framing: bytes, *, close: bool
    ) -> bytes:
        """The head of an answer. ``framing``: the line of the field that frames the body."""
        if self._answer is not _Answer.NOT_BEGUN:
            raise LocalProtocolError("the answer to this request has begun already")
        lines = _write_fields(status, headers, shortcuts=self._shortcuts)

        # Nothing can raise from here on. If the request was received completely but not parsed to
        # its end, the connection can be kept; if it was not, its rest cannot be distinguished from
        # a next request.
        if self._reading is not _Reading.NOTHING:
            self._drop_body()
            if not self._in_request or not isinstance(self.next_event(), RequestBody):
                self._abandon_input()
        if close and not self._close:
            self._close = True
            self._buffer.clear()
        return lines + framing + (b"Connection: close\r\n\r\n" if self._close else b"\r\n")

    def stream(self, data: bytes) -> bytes:
        """The next part of a stream's body, framed; ``b""`` if ``data`` is empty, and for HEAD.

        Raises:
            LocalProtocolError: no stream is under way.
        """
        if self._chunking and data:
            return b"%x\r\n%b\r\n" % (len(data), data)
        if self._answer is not _Answer.STREAMING:
            raise LocalProtocolError("no stream is under way")
        return b"" if self._bodiless else data

    def end_stream(self) -> bytes:
        """The end of a stream; ``b""`` for an HTTP/1.0 client, whose stream ends with the
        connection.

        Raises:
            LocalProtocolError: no stream is under way.
        """
        if self._answer is not _Answer.STREAMING:
            raise LocalProtocolError("no stream is under way")
        end = b"0\r\n\r\n" if self._chunking else b""
        self._chunking = False
        self._answer = _Answer.DONE
        return end

    # ------------------------------------------------------------------ between requests

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


# ---------------------------------------------------------------------- the guard


class _RefusedError(Exception):
    """Passes a ``BadRequest`` from the parsers to ``next_event``; never leaves this module."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.event = BadRequest(status, code, message)


def _malformed(message: str) -> _RefusedError:
    return _RefusedError(400, "malformed_request", message)


def _head_too_large(message: str) -> _RefusedError:
    return _RefusedError(431, "head_too_large", message)


def _body_too_large(limit: int) -> _RefusedError:
    return _RefusedError(
        413, "body_too_large", f"the request body is larger than {limit} bytes; send a smaller one"
    )


# RFC 9110, section 5.5, allows recipients to keep control characters in field values. They have no
# use, and some parsers take several of them for the end of a line.
_FIELD_BYTES = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
_STRAY = re.compile(rb"(?<!\r)\n|\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_METHOD = re.compile(_TOKEN)
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([^\x00]*)")
_VERSION = re.compile(rb"HTTP/([0-9]\.[0-9])")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_SCHEME = re.compile(rb"https?://", re.IGNORECASE)

# RFC 9112, section 7.1.1. 16 digits are enough for 64 bits.
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})"
    rb"(?:[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*"
)
_TRAILER_LINE = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*")

# RFC 3986, section 3.2.2, without userinfo. A name may contain a comma, but it is refused here: an
# intermediary may have joined two Host fields with it.
_HOST = re.compile(
    rb"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?:[-.~_!$&'()*+;=0-9A-Za-z]|%[0-9A-Fa-f]{2})+)"
    rb"(?::(?P<port>[0-9]{0,5}))?"
)


def _stray_byte(buffer: bytearray, end: int) -> _RefusedError:
    """The error for a head with a forbidden byte before ``end``."""
    if buffer.startswith(b"\x16"):
        return _malformed("this looks like TLS and the port speaks plain HTTP; use http://")
    match = _STRAY.search(buffer, 0, end)
    stray = match[0] if match else b""
    if stray == b"\n":
        return _malformed("a line of the request head ends with a bare LF; end it with CRLF")
    if stray == b"\r":
        return _malformed("the request head has a bare CR; it may stand before LF only")
    return _malformed("the request head has a control character; remove or encode it")


def _split_request_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    """The method, the target, and the version: ``b"1.1"`` or ``b"1.0"``."""
    parts = line.split(b" ")
    if len(parts) != 3:
        raise _malformed("the request line must be a method, a target and HTTP/1.1, one space each")
    method, target, protocol = parts
    if _METHOD.fullmatch(method) is None:
        raise _malformed("the request method is not a token")
    match = _VERSION.fullmatch(protocol)
    if match is None:
        raise _malformed("the request line does not end with an HTTP version; send HTTP/1.1")
    if match[1] not in (b"1.1", b"1.0"):
        raise _malformed("this HTTP version is not spoken here; send HTTP/1.1")
    return method, target, match[1]


def _split_target(method: bytes, target: bytes) -> tuple[str, bytes]:
    """Path and query of a target in origin form or absolute form (RFC 9112, section 3.2).

    Clients send ``http://host/path`` to a proxy, and every server has to accept it; behind a TLS
    terminator it may be https. The other two forms are for proxies (CONNECT) and for the server as
    a whole (OPTIONS), and are refused.
    """
    if _TARGET.fullmatch(target) is None:
        raise _malformed("the request target has a character that must be percent-encoded")
    if b"#" in target:
        raise _malformed("the request target has a fragment; send it without")
    path, _, query = target.partition(b"?")
    scheme = _SCHEME.match(path)
    if scheme is not None:
        authority, slash, rest = path[scheme.end() :].partition(b"/")
        if not _is_authority(authority):
            raise _malformed(
                "the request target's authority is malformed; send a host name and, at most, a port"
            )
        path = slash + rest or b"/"  # RFC 9110, section 4.2.3
    if not path.startswith(b"/") or method == b"CONNECT":
        raise _malformed(
            "the request target must be a path or an http URL; this is a server, not a proxy"
        )
    return path.decode("ascii"), query


def _split_field(line: bytes) -> tuple[bytes, bytes]:
    """The name, in lower case, and the trimmed value of a field line."""
    match = _FIELD.fullmatch(line)
    if match is None:
        if line.startswith((b" ", b"\t")):
            raise _malformed("a header is folded over several lines; send it on one")
        name, colon, _ = line.partition(b":")
        if not colon:
            raise _malformed("a header line has no colon")
        if name.endswith((b" ", b"\t")):
            raise _malformed("a header has white space before its colon")
        raise _malformed("a header name is not a token")
    return match[1].lower(), match[2].strip(b" \t")


@attrs.define
class _Fields:
    """The header fields as received, before any are merged."""

    items: list[tuple[bytes, bytes]]

    def values(self, name: bytes) -> list[bytes]:
        """The value of every field line called ``name``."""
        return [value for key, value in self.items if key == name]

    def tokens(self, name: bytes) -> list[bytes]:
        """The members, lower-case, of the list that all lines called ``name`` make together."""
        members = b",".join(self.values(name)).split(b",")
        return [member.strip(b" \t").lower() for member in members]


def _check_host(values: list[bytes], version: bytes) -> None:
    """Require exactly one valid Host (RFC 9112, section 3.2), which HTTP/1.0 may leave out.

    An empty Host is allowed only for a target without an authority, and http targets have one
    (RFC 9110, section 4.2.1).
    """
    if not values:
        if version == b"1.1":
            raise _malformed("the request has no Host header; HTTP/1.1 requires one")
        return
    if len(values) > 1:
        raise _malformed("the request has more than one Host header; send one")
    if not _is_authority(values[0]):
        raise _malformed("the Host header is malformed; send a host name and, at most, a port")


def _is_authority(value: bytes) -> bool:
    match = _HOST.fullmatch(value)
    if match is None or int(match["port"] or b"0") > 65535:
        return False
    if match["ipv6"] is not None:
        try:
            ipaddress.IPv6Address(match["ipv6"].decode("ascii"))
        except ValueError:
            return False
    return True


def _body_framing(fields: _Fields, version: bytes, max_body: int) -> tuple[int | None, bool]:
    """The declared length in bytes, if any, and whether the body is chunked (RFC 9112, section
    6.3).

    Where the RFC lets a recipient choose, the request is refused: wherever two recipients may
    disagree about the end of a body, requests can be smuggled.
    """
    lengths = fields.values(b"content-length")
    codings = fields.values(b"transfer-encoding")
    if codings:
        if lengths:
            raise _malformed("the request has both Content-Length and Transfer-Encoding; send one")
        if version != b"1.1":
            raise _malformed("Transfer-Encoding does not exist in HTTP/1.0; send Content-Length")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise _malformed("Transfer-Encoding must be chunked and nothing else")
        return None, True
    if not lengths:
        return None, False
    if len(lengths) > 1:
        raise _malformed("the request has more than one Content-Length; send one")
    digits = lengths[0]
    if not digits.isdigit():  # of bytes: ASCII digits only
        raise _malformed("Content-Length must be decimal digits and nothing else")
    significant = digits.lstrip(b"0") or b"0"
    # Checked before int(), which takes quadratic time and raises for thousands of digits.
    if len(significant) > _MAX_LENGTH_DIGITS or int(significant) > max_body:
        raise _body_too_large(max_body)
    return int(significant), False


def _parse_head(
    raw: bytes, start: tuple[bytes, bytes, bytes], max_body: int
) -> tuple[RequestHead, bool]:
    """The head in ``raw``, which ``_scan_head`` accepted, and whether its connection must close.

    ``start``: the result of ``_split_request_line``.
    """
    method, target, version = start
    field_lines = raw[:-4].split(b"\r\n")[1:]
    path, query = _split_target(method, target)
    if len(field_lines) > _MAX_FIELDS:
        raise _head_too_large(f"the request has more than {_MAX_FIELDS} header fields; send fewer")
    fields = _Fields([_split_field(line) for line in field_lines])
    _check_host(fields.values(b"host"), version)
    length, chunked = _body_framing(fields, version, max_body)

    parser = h11.Connection(h11.SERVER)
    parser.receive_data(raw)
    try:
        request = parser.next_event()
    except h11.RemoteProtocolError:
        request = None
    if not isinstance(request, h11.Request):
        raise _malformed("the request head is not valid HTTP/1.1")

    head = RequestHead(
        method=method,
        path=path,
        query=query,
        headers=list(request.headers),
        content_length=length,
        chunked=chunked,
        expects_continue=(
            version == b"1.1"  # RFC 9110, section 10.1.1: ignored in HTTP/1.0
            and (chunked or bool(length))
            and b"100-continue" in fields.tokens(b"expect")
        ),
    )
    # HTTP/1.0 connections end after one answer: keeping them open is optional (RFC 9112,
    # section 9.3) and needs a header that old proxies forward by mistake.
    return head, version == b"1.0" or b"close" in fields.tokens(b"connection")


# ---------------------------------------------------------------------- heads that are read again

# A client sends the same head with each request, except for a few values: the length of the body,
# its credential, and ids. Parsing a head takes 60 us, so the *outline* of a head is parsed instead,
# once: the head with these values replaced by "0". A head whose outline is known is the parsed
# outline with its own values put back.
#
# This gives what parsing the head gives, because
# * an outline has all bytes of its head but those values and the white space around them, so heads
#   with the same outline are equal apart from that;
# * a value is all that stands between the first ``name:`` at the start of a line and the CRLF. So
#   it is the value of the first field of that name, in the head as in the outline;
# * ``_scan_head`` has checked the bytes of the head itself, and its size. Any value of such bytes
#   is valid in a field, for the guard and for h11, which both strip white space around it. A value
#   cannot contain a CRLF; one that continues on the next line makes the outline malformed;
# * only the length among the values has an effect on parsing. It must be at most 20 digits and
#   within the limit, which h11 accepts, too; a second Content-Length makes the outline malformed.
# In all other cases the head is parsed as a whole, and refused with its own error: without a
# Content-Length, if the outline is malformed or larger than ``_MAX_OUTLINE``, for HEAD, HTTP/1.0, a
# connection that must close, and Expect, whose meaning depends on the length.
#
# Outlines are shared by all connections of the process, because their clients are few programs in
# many instances. Nothing of one client can reach another: all that is shared is equal in both
# heads, and the usual credentials are values, so they are not kept. ``functools.lru_cache`` is safe
# if several threads have an event loop each; the least recently used outlines are dropped.
_VALUES = tuple(
    (name, b"\r\n" + name + b":")
    for name in (
        b"content-length",
        *(b"authorization", b"api-key"),
        # Different for each request, if a client or a proxy sends them.
        *(b"idempotency-key", b"traceparent", b"x-client-request-id", b"x-request-id"),
        # Of Codex: different for each turn, and for each conversation.
        *(b"x-codex-turn-metadata", b"x-codex-window-id", b"session-id", b"thread-id"),
    )
)
_MAX_OUTLINE = 4096  # bytes; heads of usual clients have less than 1,000
_MAX_OUTLINES = 128  # about 3 KB each; at most 5 MB, if a client sends the most fields it may


@attrs.frozen
class _Outline:
    """A parsed outline."""

    method: bytes
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    places: dict[bytes, int]  # index in ``headers`` by name, of ``_VALUES``


@functools.lru_cache(_MAX_OUTLINES)
def _parse_outline(raw: bytes) -> _Outline | None:
    """The outline in ``raw``; None if heads like this one are parsed afresh each time."""
    try:
        start = _split_request_line(raw[: raw.index(b"\r\n")])
        head, close = _parse_head(raw, start, 0)
    except _RefusedError:
        return None
    names = [name for name, _ in head.headers]
    if head.method == b"HEAD" or close or b"expect" in names:
        return None
    places = {name: names.index(name) for name, _ in _VALUES if name in names}
    return _Outline(head.method, head.path, head.query, head.headers, places)


def _read_known_head(raw: bytes, max_body: int) -> RequestHead | None:
    """The head in ``raw``, which ``_scan_head`` accepted, by its outline. None: parse it afresh."""
    lower = raw.lower()
    found = []
    for name, line in _VALUES:
        at = lower.find(line)
        if at >= 0:
            at += len(line)
            found.append((at, raw.index(b"\r\n", at), name))
    if not found or found[0][2] != b"content-length":
        return None
    start, end, _ = found[0]
    digits = raw[start:end].strip(b" \t")
    if not digits.isdigit() or len(digits) > _MAX_LENGTH_DIGITS:
        return None
    length = int(digits)
    if length > max_body:
        return None

    found.sort()
    pieces = []
    at = 0
    for start, end, _ in found:
        pieces.append(raw[at:start])
        at = end
    pieces.append(raw[at:])
    outline_bytes = b"0".join(pieces)
    if len(outline_bytes) > _MAX_OUTLINE:
        return None
    outline = _parse_outline(outline_bytes)
    if outline is None:
        return None
    headers = outline.headers.copy()
    for start, end, name in found:
        headers[outline.places[name]] = (name, raw[start:end].strip(b" \t"))
    return RequestHead(outline.method, outline.path, outline.query, headers, length, False, False)


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
        *(b"x-accel-buffering", b"x-request-id"),
    }
)
_PLAIN_VALUE = re.compile(rb"[\x21-\x7e]+")


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


def _check_answer(status: int, headers: list[tuple[bytes, bytes]]) -> None:
    for name, _ in headers:
        if name.lower() in _OWN_HEADERS:
            raise LocalProtocolError(f"{name.decode('ascii', 'replace')} is set by HttpServer")
    try:
        h11.Response(status_code=status, headers=headers)
    except h11.LocalProtocolError as exc:
        raise LocalProtocolError(f"the answer cannot be written: {exc}") from exc
