"""The server side of one HTTP request without its bytes, for a program that has an HTTP server.

What belongs here: the same steps as in ``bridgecore.wire.http``, for a request whose head was read
and whose body was unframed by somebody else, and whose answer is framed by somebody else. Whatever
that server speaks, HTTP/1.1 or HTTP/2, is its own matter.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from bridgecore.wire.codings import (
    BodyDecoder,
    BodyTooLargeError,
    UndecodableBodyError,
    UnsupportedCodingError,
)
from bridgecore.wire.http import (
    BODILESS,
    BadRequest,
    BodyPart,
    BodyRefused,
    ByParts,
    HttpEvent,
    HttpLimits,
    HttpPhase,
    RequestBody,
)
from bridgecore.wire.request_heads import RequestHead, body_too_large

Head = tuple[int, list[tuple[bytes, bytes]]]
"""The status and the headers of an answer."""

_NOTHING: Final = b""


class HttpMessages:
    """One request. Its methods are those of ``HttpServer``; what they return is a part of the
    answer's body, and ``take_head`` has the head.

    ``head``: or why the request is refused, because the end of its body is in doubt. Then the
    server is asked to close the connection, as what follows on it is in doubt, too. That is a
    connection of HTTP/1.1: other versions do not mark the end of a body by headers.
    """

    def __init__(
        self, limits: HttpLimits, head: RequestHead | BadRequest, by_parts: ByParts
    ) -> None:
        self._limits = limits
        self._refused = isinstance(head, BadRequest)
        self._parting = not isinstance(head, BadRequest) and by_parts(head)
        self._events: deque[HttpEvent] = deque([head])
        # Without the headers that frame a body, a request of HTTP/1.1 has none; one of a later
        # version can have. So a head that is passed on waits for what comes: only a body is chunked
        # upstream (servers refuse a GET that is).
        self._unframed: RequestHead | None = None
        if not isinstance(head, BadRequest) and self._parting and not _is_framed(head):
            self._unframed = head
            self._events.clear()
        # Of a refused one, it is the server that leaves out the body of an answer to HEAD.
        self._bodiless = not isinstance(head, BadRequest) and head.method == b"HEAD"
        self._body = bytearray()
        self._decoder: BodyDecoder | None = None
        self._read = False  # the request is complete, or its rest is dropped
        self._head: Head | None = None
        self._begun = self._done = False

    # ------------------------------------------------------------------ input

    def receive(self, data: bytes) -> None:
        """Take a part of the body."""
        self._take(data, last=False)

    def end(self) -> None:
        """The body is complete."""
        self._take(b"", last=True)

    def _take(self, data: bytes, *, last: bool) -> None:
        if self._read:
            return
        if self._unframed is not None and (data or last):
            self._unframed.chunked = bool(data)
            self._events.append(self._unframed)
            self._unframed = None
        event: HttpEvent
        if self._parting and not last:
            if data:
                self._events.append(BodyPart(data))
            return
        try:
            if self._decoder is not None:
                self._decoder.receive(data)
            else:
                self._body += data
                if len(self._body) > self._limits.max_body:
                    raise BodyTooLargeError
            if not last:
                return
            event = RequestBody(self._decoder.finish() if self._decoder else bytes(self._body))
        except UndecodableBodyError as exc:
            event = BodyRefused(400, "undecodable_body", str(exc))
        except UnsupportedCodingError as exc:
            event = BodyRefused(415, "unsupported_content_encoding", str(exc))
        except BodyTooLargeError:
            refusal = body_too_large(self._limits.max_body)
            event = BodyRefused(refusal.status, refusal.code, str(refusal))
        self._read = True
        self._body.clear()
        self._decoder = None
        self._events.append(event)

    def next_event(self) -> HttpEvent | None:
        """The next event; None if more input is needed."""
        return self._events.popleft() if self._events else None

    def decode_body(self, decoder: BodyDecoder) -> None:
        """Decode the body while it is received."""
        self._decoder = decoder

    def wants_body(self) -> bytes:
        """Nothing: who reads the body has asked for it, if it had to."""
        return _NOTHING

    # ------------------------------------------------------------------ output

    def take_head(self) -> Head | None:
        """The head of the answer, once; None if there is no new one."""
        head, self._head = self._head, None
        return head

    def respond(
        self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, close: bool = False
    ) -> bytes:
        """A complete answer."""
        closing = [(b"connection", b"close")] if self._refused else []
        self._head = status, [*headers, *closing, (b"content-length", b"%d" % len(body))]
        self._begun = self._done = self._read = True
        self._events.clear()
        return _NOTHING if self._bodiless else body

    def switch(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The head of the answer that accepts an upgrade."""
        self._head = 101, [*headers]
        self._begun = self._done = self._read = True
        return _NOTHING

    def start_stream(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The head of an answer with status 200 whose length is not known."""
        self._head = 200, [*headers]
        self._begun = True
        return _NOTHING

    def start_answer(
        self, status: int, headers: list[tuple[bytes, bytes]], length: int | None, *, close: bool
    ) -> bytes:
        """The head of an answer with any status, and a body of ``length`` bytes, if that is
        known. With 204 and 304 there is no body, and a server would wait for one that is
        announced."""
        bare = status in BODILESS
        known = [] if length is None or bare else [(b"content-length", b"%d" % length)]
        self._head = status, [*headers, *known]
        self._begun = True
        return _NOTHING

    def interim(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Nothing: a server of this kind has no way to send interim answers."""
        return _NOTHING

    def stream(self, data: bytes) -> bytes:
        """The next part of the body."""
        return _NOTHING if self._bodiless else data

    def end_stream(self) -> bytes:
        """The end of the body."""
        self._done = self._read = True
        return _NOTHING

    # ------------------------------------------------------------------ state

    @property
    def answering(self) -> bool:
        """Whether an answer has begun and is not complete."""
        return self._begun and not self._done

    @property
    def must_close(self) -> bool:
        """Always: there is one request."""
        return True

    @property
    def phase(self) -> HttpPhase:
        """What is awaited."""
        if self._done:
            return HttpPhase.CLOSED
        return HttpPhase.ANSWERING if self._read else HttpPhase.BODY


def _is_framed(head: RequestHead) -> bool:
    """Whether the headers say how long the body is, or that it is chunked."""
    if head.content_length is not None:
        return True
    return any(name == b"transfer-encoding" for name, _ in head.headers)
