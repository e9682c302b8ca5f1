"""The client's side of an HTTP/1.1 connection: requests to bytes, and bytes to answers.

What belongs here: one exchange after the other on one connection, with answers of any framing.
Heads of answers are parsed by h11, or, if they have the form that nearly all have, by an expression
that accepts less. Bodies are framed here, as in ``wire.http``: the chunks of a stream are the hot
path.
"""

from __future__ import annotations

import enum
import re
from typing import Final, TypeAlias

import attrs
import h11

from bridgecore.errors import BridgecoreError, LocalProtocolError
from bridgecore.wire.headers import VALUE, Headers


class BadAnswerError(BridgecoreError):
    """The server broke the protocol. The text is a short phrase without data of the answer."""


@attrs.frozen
class InterimHead:
    """An interim answer (1xx); the answer itself is still to come. ``headers``: as below."""

    status: int
    headers: Headers


@attrs.frozen
class AnswerHead:
    """The head of an answer. ``headers``: names in lower case. ``length``: bytes of its body, if
    its head says so; of an answer to HEAD, those that one to GET would have."""

    status: int
    headers: Headers
    length: int | None = None


@attrs.frozen
class AnswerDone:
    """The answer is complete. ``reusable``: the connection can carry another request."""

    reusable: bool


AnswerPart: TypeAlias = InterimHead | AnswerHead | bytes | AnswerDone
"""A part of an answer: interim answers, its head, bytes of its body, its end. Interim answers are
given only for a request that was begun with ``HttpClient.begin``."""


class _Reading(enum.Enum):
    """What comes next."""

    NOTHING = enum.auto()  # no request was sent
    HEAD = enum.auto()
    SIZED = enum.auto()  # a body whose length the head has
    SIZE = enum.auto()  # of a chunk
    CHUNK = enum.auto()  # its data, and the CRLF after it
    TRAILER = enum.auto()  # fields after the last chunk
    UNTIL_CLOSE = enum.auto()  # a body that ends with the connection


class HttpClient:
    """One connection to an HTTP server. ``max_head``: bytes of an answer's head, and of what is
    not data in its body."""

    def __init__(self, max_head: int) -> None:
        self._max_head = max_head
        self._buffer = b""  # of a head or a line that is not complete
        self._reading = _Reading.NOTHING
        self._left = 0  # bytes of a sized body or a chunk that are still to come
        self._reusable = True
        self._bodiless = False  # the request was HEAD
        self._interim = False  # interim answers are given
        self._chunking = False  # the body of the request is chunked
        self._unsent = 0  # bytes that are missing of a request body of known length

    def request(self, method: bytes, target: bytes, headers: Headers, body: bytes) -> bytes:
        """The bytes of a request.

        Args:
            headers: with ``host``, without those that frame the body; valid ones (RFC 9110, section
                5.5), or ``ValueError`` is raised.
        """
        lines = _write(headers)
        self._expect(method, interim=False)
        start = b"%b %b HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n"
        return start % (method, target, lines, len(body)) + body

    def begin(
        self, method: bytes, target: bytes, headers: Headers, length: int | None, *, chunked: bool
    ) -> bytes:
        """The head of a request whose body is given by parts, to ``body``.

        Args:
            headers: as for ``request``.
            length: bytes of the body; None if they are not known, or if it has none.
            chunked: whether it has a body of unknown length.
        """
        lines = _write(headers)
        self._expect(method, interim=True)
        self._chunking, self._unsent = chunked, length or 0
        framing = b"transfer-encoding: chunked\r\n" if chunked else b""
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method, target, lines, framing)

    def body(self, data: bytes, *, last: bool = False) -> bytes:
        """The next part of a request's body, framed. ``last``: the body is complete with it.

        Raises:
            LocalProtocolError: the body has another length than was announced.
        """
        if self._chunking:
            chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            return chunk + b"0\r\n\r\n" if last else chunk
        self._unsent -= len(data)
        if self._unsent < 0 or (last and self._unsent):
            raise LocalProtocolError("the body has another length than its head says")
        return data

    def _expect(self, method: bytes, *, interim: bool) -> None:
        self._reading = _Reading.HEAD
        self._bodiless, self._interim = method == b"HEAD", interim

    def receive(self, data: bytes) -> list[AnswerPart]:
        """The parts of the answer that ``data`` completes; ``data`` is empty at the end of the
        stream.

        Raises:
            BadAnswerError: the server broke the protocol, or closed in mid-answer.
        """
        parts: list[AnswerPart] = []
        self.receive_into(parts, data)
        return parts

    def receive_into(self, parts: list[AnswerPart], data: bytes) -> None:
        """``receive`` that adds to ``parts``: those before an error are in it, too."""
        if not data:
            self._end_of_stream(parts)
            return
        text = self._buffer + data if self._buffer else data
        at = 0
        while at < len(text):
            reading = self._reading
            if reading is _Reading.NOTHING:
                raise BadAnswerError("data without a request")
            if reading is _Reading.HEAD:
                end = text.find(b"\r\n\r\n", at)
                if end < 0:
                    break
                self._begin(text[at : end + 4], parts)
                at = end + 4
            elif reading is _Reading.UNTIL_CLOSE:
                parts.append(text[at:])
                at = len(text)
            elif reading is _Reading.SIZED:
                piece = text[at : at + self._left]
                parts.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._finish(parts)
            elif reading is _Reading.CHUNK:
                at = self._read_chunk(text, at, parts)
                if self._left == 2 and len(text) - at == 1:
                    break  # the CRLF is not complete
            else:
                end = text.find(b"\r\n", at)
                if end < 0:
                    break
                self._read_line(text[at:end], parts)
                at = end + 2
        self._buffer = text[at:]
        if len(self._buffer) > self._max_head:
            raise BadAnswerError("unreadable answer")

    # ------------------------------------------------------------ heads

    def _begin(self, raw: bytes, parts: list[AnswerPart]) -> None:
        """Read a head."""
        version, status, headers = _usual_head(raw) or _any_head(raw)
        if status == 101:
            raise BadAnswerError("a change of protocol that was not asked for")
        if status < 200:
            if self._interim:
                parts.append(InterimHead(status, headers))
            return
        fields = dict(headers)
        coding = fields.get(b"transfer-encoding")
        connection = fields.get(b"connection", b"").lower()
        self._reusable = version == b"1.1" and b"close" not in connection
        digits = fields.get(b"content-length") if coding is None else None
        if digits is not None and (not digits.isdigit() or len(digits) > 18):
            raise BadAnswerError("unreadable answer")
        length = None if digits is None else int(digits)
        parts.append(AnswerHead(status, headers, length))
        if status in (204, 304) or self._bodiless:
            self._finish(parts)
        elif coding is not None:
            if coding.lower() != b"chunked":
                raise BadAnswerError("a transfer coding that was not asked for")
            self._reading = _Reading.SIZE
        elif length is not None:
            self._left = length
            self._reading = _Reading.SIZED
            if not self._left:
                self._finish(parts)
        else:
            self._reading, self._reusable = _Reading.UNTIL_CLOSE, False

    # ------------------------------------------------------------ bodies

    def _read_line(self, line: bytes, parts: list[AnswerPart]) -> None:
        """Read a line of chunk framing: the size of a chunk, or of the trailer."""
        if self._reading is _Reading.TRAILER:
            if not line:
                self._finish(parts)
            return
        size = _SIZE.match(line)
        if size is None:
            raise BadAnswerError("unreadable answer")
        self._left = int(size[1], 16) + 2  # with its CRLF
        self._reading = _Reading.CHUNK if self._left > 2 else _Reading.TRAILER

    def _read_chunk(self, text: bytes, at: int, parts: list[AnswerPart]) -> int:
        """Read data of a chunk from ``at`` on; where it goes on."""
        piece = text[at : at + self._left - 2]
        if piece:
            parts.append(piece)
            at += len(piece)
            self._left -= len(piece)
        if self._left == 2 and len(text) - at >= 2:
            if not text.startswith(b"\r\n", at):
                raise BadAnswerError("unreadable answer")
            at += 2
            self._reading = _Reading.SIZE
        return at

    def _finish(self, parts: list[AnswerPart]) -> None:
        parts.append(AnswerDone(self._reusable))
        self._reading = _Reading.NOTHING

    def _end_of_stream(self, parts: list[AnswerPart]) -> None:
        if self._reading is _Reading.UNTIL_CLOSE:
            self._reading = _Reading.NOTHING
            parts.append(AnswerDone(False))
        elif self._reading is not _Reading.NOTHING:
            raise BadAnswerError("unreadable answer")


def _write(headers: Headers) -> bytes:
    """The lines of the headers of a request. Raises ValueError if one cannot be sent."""
    for name, value in headers:
        if _NAME.fullmatch(name) is None or VALUE.fullmatch(value) is None:
            raise ValueError(f"the header {name!r:.100} has a value that cannot be sent")
    return b"".join([b"%b: %b\r\n" % header for header in headers])


_NAME: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;|\Z)")
_STATUS: Final = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9]{2}) [\t\x20-\x7e\x80-\xff]*")
_FIELD: Final = re.compile(rb"([-!#$%&'*+.^_`|~0-9A-Za-z]+):[ \t]*([\x21-\x7e]+(?: [\x21-\x7e]+)*)")


def _usual_head(raw: bytes) -> tuple[bytes, int, Headers] | None:
    """The version, status and headers of a head with simple values, each name once; None if it has
    another form."""
    start, *lines = raw[:-4].split(b"\r\n")
    status = _STATUS.fullmatch(start)
    if status is None:
        return None
    headers = []
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            return None
        headers.append((field[1].lower(), field[2]))
    if len(dict(headers)) != len(headers):
        return None
    return status[1], int(status[2]), headers


def _any_head(raw: bytes) -> tuple[bytes, int, Headers]:
    """The same of any head, by h11."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method=b"GET", target=b"/", headers=[(b"host", b"a")]))
    http.send(h11.EndOfMessage())
    try:
        http.receive_data(raw)
        event = http.next_event()
    except h11.RemoteProtocolError:
        raise BadAnswerError("unreadable answer") from None
    if not isinstance(event, h11.Response | h11.InformationalResponse):
        raise BadAnswerError("unreadable answer")
    return event.http_version, event.status_code, list(event.headers)
