"""One client connection as HTTP/1.1: bytes in, requests out; answers in, bytes out.

What belongs here: the framing of requests and answers (RFC 9112) and nothing about what they mean.
Which paths and methods exist, what an error body looks like, and every deadline are the endpoint's.

The division of labour:

* *The guard*, in this file, decides whether a request head is one that every HTTP implementation
  reads alike. h11 forgives much of what makes a request mean two things to two parsers (bare LF,
  folded lines, two lengths, a length beside a transfer coding), and a bridge may stand behind a
  proxy, so what is ambiguous is refused, never repaired.
* *h11* parses the heads that pass, so that two parsers must agree, and writes the heads of
  answers. One ``h11.Connection`` serves one exchange: an answer may be written whatever became of
  the request, and nothing of one exchange is left in the next.
* *Bodies* are framed here in both directions: h11 reads chunk framing as forgivingly as heads, and
  the chunks of a stream are the hot path.

The duty of a caller: after each ``receive`` and after each ``start_next`` take events until there
are none; answer each request once; then look at ``must_close``, and either close or call
``start_next``. Answering before the body was read is allowed. When closing then, half-close first
and read on for a while, or the reset that unread input causes may destroy the answer on its way.
"""

from __future__ import annotations

import enum
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

# Bounds that no lawful client comes near and that are therefore not settings.
_MAX_FIELDS = 256  # header fields of one request
_MAX_EMPTY_LINES = 8  # before a request line; RFC 9112, section 2.2, asks for one
_MAX_FRAMING_LINE = 1024  # bytes of one chunk-size or trailer line, without its CRLF
_MAX_LENGTH_DIGITS = 20  # of a Content-Length, leading zeros aside; 64 bits fit


@attrs.frozen
class HttpLimits:
    """How large a request may be.

    ``max_header``: bytes of the head, from the request line to the empty line that ends it; also
    of all chunk extensions and trailers of one body together. ``max_body``: bytes of the body
    without its framing, as it comes; what it decodes to is bounded by its ``BodyDecoder``.
    """

    max_header: int
    max_body: int


class HttpPhase(enum.Enum):
    """What the connection is waiting for; deadlines hang on it."""

    IDLE = "idle"  # A request, of which nothing has come.
    HEAD = "head"  # The rest of a request's head.
    BODY = "body"  # The rest of a request's body, or the events that are already in.
    ANSWERING = "answering"  # The caller: an answer, the rest of one, or start_next.
    CLOSED = "closed"  # Nothing: the last answer is complete and no request can follow.


@attrs.define
class RequestHead:
    """A request whose head is complete; ``RequestBody``, ``BodyRefused`` or ``BadRequest`` follows.

    ``path`` is the target's path as it was sent: visible ASCII, not percent-decoded. ``query`` is
    what follows the ``?``, without it. The scheme and authority of an absolute-form target are left
    out: they override ``Host``, and nothing is chosen by the host's name here. Names in
    ``headers`` are lower-case, values have no white space around them and may hold bytes above 127.
    """

    method: bytes
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    content_length: int | None  # as declared, in bytes; None when no length is declared
    chunked: bool  # the body has a length that only its end tells
    expects_continue: bool  # the client waits for ``wants_body`` before it sends the body

    @property
    def has_body(self) -> bool:
        """Whether the body can be other than empty."""
        return self.chunked or bool(self.content_length)


@attrs.define
class RequestBody:
    """The complete body of the request whose head came before; ``b""`` when it has none."""

    data: bytes


@attrs.define
class BodyRefused:
    """The body is framed as it should be but cannot be decoded; see ``HttpServer.decode_body``.

    To be answered with ``respond``: what follows the body can still be understood. ``status`` is
    400 (code ``undecodable_body``), 413 (``body_too_large``) or 415
    (``unsupported_content_encoding``). ``message`` says what is wrong and
    what to do; it repeats nothing of the body.
    """

    status: int
    code: str
    message: str


@attrs.define
class BadRequest:
    """What came cannot be served, and nothing after it can be understood.

    To be answered with ``respond(status, ..., close=True)``; no event follows. ``status`` is 400
    (code ``malformed_request``), 413 (``body_too_large``) or 431 (``head_too_large``).
    ``message`` says what is wrong and what to do; it repeats no field values and no body.
    """

    status: int
    code: str
    message: str


HttpEvent: TypeAlias = RequestHead | RequestBody | BodyRefused | BadRequest


class _Reading(enum.Enum):
    """What the next input byte belongs to."""

    HEAD = enum.auto()
    SIZED_BODY = enum.auto()  # Content-Length, or no body
    CHUNKED_BODY = enum.auto()
    NOTHING = enum.auto()  # the request is complete, or input is of no interest any more


class _Chunk(enum.Enum):
    """Where in a chunked body the next input byte is."""

    SIZE = enum.auto()
    DATA = enum.auto()  # with the CRLF after it
    TRAILER = enum.auto()


class _Answer(enum.Enum):
    """How far the answer is."""

    NOT_BEGUN = enum.auto()
    STREAMING = enum.auto()
    DONE = enum.auto()


class HttpServer:
    """The server's side of one connection.

    Methods raise ``LocalProtocolError`` when they are called at a time, or with headers, that HTTP
    does not allow; nothing is changed then. What a client does wrong is an event.
    """

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._close = False
        self._begin_exchange()

    def _begin_exchange(self) -> None:
        self._h11 = h11.Connection(h11.SERVER, self._limits.max_header)
        self._reading = _Reading.HEAD
        self._answer = _Answer.NOT_BEGUN
        # Head.
        self._empty_lines = 0
        self._scanned = 0  # how much of the buffer the guard has looked at
        self._in_request = False  # a head was handed out
        self._bodiless = False  # the answer has no body, whatever its headers say: HEAD
        self._framed = True  # a stream is chunked: not for HTTP/1.0
        self._continue_owed = False
        # Body.
        self._body = bytearray()  # of a chunked one
        self._decoder: BodyDecoder | None = None  # takes the body's bytes as they come
        self._dropping = False  # the body's framing is followed, its bytes are not kept
        self._announced = 0  # bytes of the chunks that have begun
        self._remaining = 0  # bytes to come of a sized body, or of this chunk
        self._chunk = _Chunk.SIZE
        self._extras = 0  # bytes of chunk extensions and trailers
        # Answer. A flag of its own so that ``stream`` tests one thing.
        self._chunking = False

    # ------------------------------------------------------------------ input

    def receive(self, data: bytes) -> None:
        """Take in what the client sent. Costs no parsing; call ``next_event`` after it.

        Input that cannot matter any more (after ``BadRequest``, behind an answer that was given
        early, or once ``must_close`` is known) is dropped. While an answer is owed, what is held
        back for the next request is bounded by ``max_header + max_body``: beyond it, it is
        dropped and the connection closes after the answer, which leaves a client free to send
        again. A caller that wants less held back stops reading; see ``buffered``.
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
        """Bytes that were received and that no event has handed out yet."""
        decoding = 0 if self._decoder is None else self._decoder.buffered
        return len(self._buffer) + len(self._body) + decoding

    def next_event(self) -> HttpEvent | None:
        """The next event, or None: more input is needed, or an answer is owed.

        A request that the client sent before the answer to the last one (lawful pipelining) is
        held back until ``start_next``.
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
        """Have the body of the request whose head was the last event decoded as it comes in.

        Raises:
            LocalProtocolError: there is no such request, or some of its body was read already.
        """
        due = self._in_request and self._reading is not _Reading.NOTHING
        if not due or self._decoder is not None or self._dropping or self._announced:
            raise LocalProtocolError("decode_body is for a request whose body was not read yet")
        self._decoder = decoder

    def _drop_body(self) -> None:
        """Follow the framing of what is left of the body, which is of no interest any more."""
        self._decoder = None
        self._dropping = True
        self._body.clear()

    def _abandon_input(self) -> None:
        """What comes, and what is buffered, will not be looked at."""
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
        """The size of the head if the buffer holds all of it. Looks at each byte once.

        Each byte but those of CRLF must be one that a field can hold. This is checked as input
        comes and not only at the end: a client that ends its lines with LF alone would otherwise
        wait for an answer to a head that never ends.
        """
        buffer, limit = self._buffer, self._limits.max_header
        # Whatever is beyond the limit is not looked at, so that the outcome does not depend on
        # how input was cut into reads.
        found = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3), limit)
        end = found + 4 if found >= 0 else min(len(buffer), limit)
        if found < 0 and buffer.endswith(b"\r", 0, end):
            end -= 1  # a lone CR or half of a CRLF: the next byte tells
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
        request_line, *field_lines = raw[:-4].split(b"\r\n")
        method, target, version = _split_request_line(request_line)
        # Known before anything else can be refused: the refusal is an answer to this method.
        self._bodiless = method == b"HEAD"
        path, query = _split_target(method, target)
        if len(field_lines) > _MAX_FIELDS:
            raise _head_too_large(
                f"the request has more than {_MAX_FIELDS} header fields; send fewer"
            )
        fields = _Fields([_split_field(line) for line in field_lines])
        _check_host(fields.values(b"host"), version)
        length, chunked = _body_framing(fields, version, self._limits.max_body)

        self._h11.receive_data(raw)
        try:
            request = self._h11.next_event()
        except h11.RemoteProtocolError:
            request = None
        if not isinstance(request, h11.Request):
            raise _malformed("the request head is not valid HTTP/1.1")

        self._framed = version == b"1.1"
        # HTTP/1.0 connections end after one answer: keeping them would be optional (RFC 9112,
        # section 9.3) and would need a header that proxies of that age pass on by mistake.
        self._close = version == b"1.0" or b"close" in fields.tokens(b"connection")
        return RequestHead(
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

    def _read_sized_body(self) -> RequestBody | None:
        if self._decoder is not None or self._dropping:
            size = min(self._remaining, len(self._buffer))
            data = self._copy(0, size)
            del self._buffer[:size]
            self._remaining -= size
            self._pass_on(data)
            return None if self._remaining else self._end_body()
        # The body is accumulated where it was received: one copy, whatever the size of the reads.
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
        """Decode ``data``, the next of the body. May raise: it has to be counted as read before."""
        if self._decoder is not None:
            self._decoder.receive(data)

    def _read_chunked_body(self) -> RequestBody | None:
        buffer = self._buffer
        at = 0  # everything before is used up, and deleted in one go
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
                    # Left where it was received until it is complete, as a sized body is.
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
        """The line of chunk framing that begins at ``at``, without its CRLF, if it is complete."""
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
        # Trailers are never merged into the headers that were acted on (RFC 9110, section 6.5.1),
        # so what they say cannot matter; that they are well formed does.
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
        """The body is complete: ``data``, unless there is a decoder, which has all of it."""
        self._reading = _Reading.NOTHING
        self._continue_owed = False
        self._body.clear()
        if self._close:
            self._buffer.clear()  # the client said that nothing follows, or nothing may
        decoder, self._decoder = self._decoder, None
        return RequestBody(data if decoder is None else decoder.finish())

    # ------------------------------------------------------------------ output

    def wants_body(self) -> bytes:
        """What to send once it is decided that the body will be read: 100 Continue, or nothing.

        The interim answer is due only if the client asked for it and none of the body has come
        (RFC 9110, section 10.1.1), and only once.
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
        """A whole answer. Also before any request, for instance 408 to a head that is too late.

        ``content-length`` is added, and ``connection: close`` when the connection cannot serve
        another request, which ``close`` asks for. The answer to HEAD is the same without the body.

        Raises:
            LocalProtocolError: the answer has begun; ``status`` is not 200 to 999; ``body`` with
                status 204 or 304; a header is malformed, or one that is set here.
        """
        bodiless = self._bodiless
        fields = list(headers)
        if status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            if body:
                raise LocalProtocolError(f"an answer with status {status} cannot have a body")
        else:
            fields.append((b"content-length", b"%d" % len(body)))
        head = self._begin_answer(status, headers, fields, close=close)
        self._answer = _Answer.DONE
        return head if bodiless else head + body

    def start_stream(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The head of a 200 whose body follows by ``stream``, and ends with ``end_stream``.

        The body is chunked; for an HTTP/1.0 client it is not framed and ends with the connection.

        Raises:
            LocalProtocolError: there is no request; the answer has begun; a header is malformed,
                or one that is set here.
        """
        if not self._in_request:
            raise LocalProtocolError("there is no request to answer with a stream")
        head = self._begin_answer(HTTPStatus.OK, headers, headers, close=False)
        self._answer = _Answer.STREAMING
        self._chunking = self._framed and not self._bodiless
        return head

    def _begin_answer(
        self,
        status: int,
        given: list[tuple[bytes, bytes]],
        fields: list[tuple[bytes, bytes]],
        *,
        close: bool,
    ) -> bytes:
        if self._answer is not _Answer.NOT_BEGUN:
            raise LocalProtocolError("the answer to this request has begun already")
        for name, _ in given:
            if name.lower() in _OWN_HEADERS:
                raise LocalProtocolError(f"{name.decode('ascii', 'replace')} is set by HttpServer")
        reason = _REASONS.get(status, b"")
        try:
            response = h11.Response(status_code=status, headers=fields, reason=reason)
        except h11.LocalProtocolError as exc:
            raise LocalProtocolError(f"the answer cannot be written: {exc}") from exc

        # Nothing can be refused from here on. A request that is in but was not looked at, such as
        # one without a body, costs the connection nothing; one that is not has to end it.
        if self._reading is not _Reading.NOTHING:
            self._drop_body()
            if not self._in_request or not isinstance(self.next_event(), RequestBody):
                self._abandon_input()
        if close and not self._close:
            self._close = True
            self._buffer.clear()
        if self._close:
            response = h11.Response(
                status_code=status, headers=[*fields, (b"connection", b"close")], reason=reason
            )
        return self._h11.send(response)

    def stream(self, data: bytes) -> bytes:
        """The next part of a stream's body, framed; ``b""`` for nothing, and for HEAD.

        Raises:
            LocalProtocolError: no stream is under way.
        """
        if self._chunking and data:
            return b"%x\r\n%b\r\n" % (len(data), data)
        if self._answer is not _Answer.STREAMING:
            raise LocalProtocolError("no stream is under way")
        return b"" if self._bodiless else data

    def end_stream(self) -> bytes:
        """The end of a stream; for an HTTP/1.0 client that is the connection's, so ``b""``.

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
        """Whether the answer was handed out completely."""
        return self._answer is _Answer.DONE

    @property
    def must_close(self) -> bool:
        """Whether this connection can serve no further request.

        Either side asked for it, the client speaks HTTP/1.0 or what it sent was refused, or the
        answer began before the request was complete. Final once ``answer_done``.
        """
        return self._close

    def start_next(self) -> None:
        """Get ready for the next request, which may be buffered already: take its events.

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
    """Carries a ``BadRequest`` out of the parsers; never leaves this module."""

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


_REASONS = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}

# Headers of an answer that say how it is framed and what becomes of the connection.
_OWN_HEADERS = frozenset({b"connection", b"content-length", b"transfer-encoding"})

# RFC 9110, section 5.5, lets a recipient keep control characters in field values. None has a use
# and several have meant the end of a line to somebody.
_FIELD_BYTES = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
_STRAY = re.compile(rb"(?<!\r)\n|\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_METHOD = re.compile(_TOKEN)
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([^\x00]*)")
_VERSION = re.compile(rb"HTTP/([0-9]\.[0-9])")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_SCHEME = re.compile(rb"https?://", re.IGNORECASE)

# RFC 9112, section 7.1.1. More digits than 16 cannot be meant.
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})"
    rb"(?:[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*"
)
_TRAILER_LINE = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*")

# RFC 3986, section 3.2.2, without userinfo. The comma is left out although a name may hold it: a
# comma is what two Host fields become when something on the way folds them into one.
_HOST = re.compile(
    rb"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?:[-.~_!$&'()*+;=0-9A-Za-z]|%[0-9A-Fa-f]{2})+)"
    rb"(?::(?P<port>[0-9]{0,5}))?"
)


def _stray_byte(buffer: bytearray, end: int) -> _RefusedError:
    """The refusal of a head that has a byte it cannot have before ``end``."""
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
    """Method, target, version as ``b"1.1"`` or ``b"1.0"``."""
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

    A client that takes this server for its proxy sends ``http://host/path``, and every server has
    to accept it. So does one behind something that ends TLS, with https. The other two forms are
    for proxies (CONNECT) and for questions about the server as a whole (OPTIONS), and not served.
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
    """Lower-case name and trimmed value of a field line."""
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
    """The header fields as they came, before anybody merged or tidied them."""

    items: list[tuple[bytes, bytes]]

    def values(self, name: bytes) -> list[bytes]:
        """The value of every field line called ``name``."""
        return [value for key, value in self.items if key == name]

    def tokens(self, name: bytes) -> list[bytes]:
        """The members, lower-case, of the list that all lines called ``name`` make together."""
        members = b",".join(self.values(name)).split(b",")
        return [member.strip(b" \t").lower() for member in members]


def _check_host(values: list[bytes], version: bytes) -> None:
    """RFC 9112, section 3.2: one valid Host, which HTTP/1.0 may leave out.

    An empty one is lawful only where a target has no authority, and http targets have one
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
    """The declared length in bytes, if any, and whether the body is chunked.

    RFC 9112, section 6.3, with every choice that it leaves to the recipient made against the
    request: wherever two recipients may differ about where a body ends, requests are smuggled.
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
    # Conversion is quadratic in the digits, and refused beyond some thousands.
    if len(significant) > _MAX_LENGTH_DIGITS or int(significant) > max_body:
        raise _body_too_large(max_body)
    return int(significant), False
