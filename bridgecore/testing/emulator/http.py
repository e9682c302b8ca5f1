"""A connection of the emulator that speaks HTTP: create frames come as ``POST`` requests.

What belongs here: a request as a ``response.create`` frame, so that a turn runs in the same way as
on a WebSocket, and what is sent for it as a stream of server-sent events, or as one JSON body. A
connection that speaks HTTP caches no response: each turn knows only what is stored.
"""

from __future__ import annotations

import attrs

from bridgecore.testing.answers import Json
from bridgecore.testing.emulator.api import HttpAnswer, HttpRequest, request_of
from bridgecore.testing.emulator.errors import http_answer
from bridgecore.testing.emulator.jsontext import decode, encode
from bridgecore.testing.faults import Error
from bridgecore.wire.http import (
    BadRequest,
    BodyRefused,
    HttpLimits,
    HttpPhase,
    HttpServer,
    RequestBody,
)
from bridgecore.wire.request_heads import RequestHead

_MAX_HEADER = 65_536  # bytes of a request head
_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]
_JSON = [(b"content-type", b"application/json")]
_ENDS = ("response.completed", "response.failed", "response.incomplete", "error")


@attrs.define(eq=False)
class HttpTurns:
    """The HTTP side of a connection. ``max_post``: bytes of a request's body; a larger one gets a
    413. ``whole``: answers are never streamed."""

    max_post: int
    whole: bool = False
    _server: HttpServer = attrs.field(init=False)
    _head: RequestHead | None = attrs.field(default=None, init=False)
    _streams: bool = attrs.field(default=False, init=False)  # the request asks for a stream
    _begun: bool = attrs.field(default=False, init=False)  # so does its answer
    _interim: bytes = attrs.field(default=b"", init=False)  # a 100 Continue to send

    def __attrs_post_init__(self) -> None:
        self._server = HttpServer(HttpLimits(_MAX_HEADER, self.max_post))

    # ------------------------------------------------------------ requests

    def receive(self, data: bytes) -> None:
        """Buffer ``data``; ``next_request`` parses it."""
        self._server.receive(data)

    def next_request(self) -> HttpRequest | Error | None:
        """The next complete request, or what is wrong with it; None if there is none, or the one
        before it is not answered."""
        if self._server.answer_done and not self._server.must_close:
            self._server.start_next()
            self._begun = False
        while (event := self._server.next_event()) is not None:
            if isinstance(event, RequestHead):
                self._head = event
                self._interim += self._server.wants_body()
            elif isinstance(event, RequestBody):
                assert self._head is not None, "a body follows its head"
                return request_of(self._head, event.data)
            elif isinstance(event, BadRequest | BodyRefused):
                return Error(event.status, event.code, "invalid_request_error", event.message)
            else:
                raise AssertionError("no body is asked for by parts")
        return None

    def take_interim(self) -> bytes:
        """What asks the client for the body of its request, if it waits for that."""
        interim, self._interim = self._interim, b""
        return interim

    def create_frame(self, posted: HttpRequest) -> bytes:
        """The ``response.create`` frame that a client of a WebSocket would have sent."""
        body = decode(posted.body)
        if not isinstance(body, dict):
            return posted.body  # refused like such a frame
        self._streams = body.pop("stream", None) is True and not self.whole
        return encode({"type": "response.create", **body})

    @property
    def mid_message(self) -> bool:
        """Whether a part of a request's body was received."""
        return self._server.phase is HttpPhase.BODY

    @property
    def between_requests(self) -> bool:
        """Whether all requests are answered, nothing of another one was received, and one may
        follow."""
        server = self._server
        done = server.answer_done and not server.must_close
        return (done or server.phase is HttpPhase.IDLE) and not server.buffered

    # ------------------------------------------------------------ answers

    @property
    def must_close(self) -> bool:
        """Whether the connection ends with the answer that is complete."""
        return self._server.answer_done and self._server.must_close

    def send(self, data: bytes) -> bytes:
        """Write an event of the answer; nothing if it has ended, or if the answer is no stream and
        goes on."""
        if self._server.answer_done:
            return b""
        event = decode(data)
        event = event if isinstance(event, dict) else {}
        if not self._streams:
            return self._whole_answer(event)
        out = b"" if self._begun else self._server.start_stream(_STREAM)
        self._begun = True
        kind = str(event.get("type", "message"))
        if kind == "error" and isinstance(error := event.get("error"), dict):
            # The error event of a stream is flat (API reference, "Streaming events").
            data = encode({**error, "type": "error"})
        out += self._server.stream(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))
        return out + self._server.end_stream() if kind in _ENDS else out

    def _whole_answer(self, event: Json) -> bytes:
        if event.get("type") not in _ENDS:
            return b""
        response = event.get("response")
        if isinstance(response, dict):
            return self._server.respond(200, _JSON, encode(response))
        return self._server.respond(500, _JSON, encode({"error": event.get("error")}))

    def answer(self, answer: HttpAnswer) -> bytes:
        """Answer a request that is no turn."""
        return self._server.respond(answer.status, _JSON, answer.body)

    def refuse(self, error: Error) -> bytes | None:
        """Answer the request with ``error`` and its status; None if the answer has begun."""
        if self._begun or self._server.answer_done:
            return None
        answer = http_answer(error)
        return self._server.respond(answer.status, list(answer.headers), answer.body)
