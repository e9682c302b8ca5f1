"""A client connection that speaks HTTP/1.1: requests and answers as bytes.

What belongs here: the paths of this server, what of a request is refused before it is a turn,
answers as HTTP (a JSON body, or a stream of server-sent events), request ids, and the deadlines of
clients that send too slowly.
"""

from __future__ import annotations

from typing import assert_never

from bridgecore.api_error import SHUTTING_DOWN, ApiError, api_error
from bridgecore.config import Config
from bridgecore.messages import (
    AnswerBody,
    AnswerEffect,
    AnswerEvents,
    AnswerKeepalive,
    BeginAnswer,
    EndAnswer,
    FailAnswer,
    RequestReceived,
)
from bridgecore.recovery.timers import Timer
from bridgecore.wire.codings import (
    ACCEPTED,
    BodyDecoder,
    UnsupportedCodingError,
    parse_codings,
)
from bridgecore.wire.headers import make_request_id, request_id_of
from bridgecore.wire.http import (
    BadRequest,
    BodyRefused,
    HttpLimits,
    HttpPhase,
    HttpServer,
    RequestBody,
    RequestHead,
)
from bridgecore.wire.sse import COMMENT, encode_event

_JSON = (b"content-type", b"application/json")
# With a 415: what would have been accepted (RFC 9110, section 15.5.16).
_ACCEPT_ENCODING = (b"accept-encoding", ", ".join(ACCEPTED).encode("ascii"))
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_EXPECTED = {
    HttpPhase.IDLE: Timer.CLIENT_IDLE,
    HttpPhase.HEAD: Timer.HEADER,
    HttpPhase.BODY: Timer.BODY,
}
_ROUTES = {"/v1/responses": (b"POST",), "/livez": (b"GET", b"HEAD"), "/readyz": (b"GET", b"HEAD")}


class HttpConnection:
    """One connection of an HTTP client; a ``ClientConnection``.

    ``request_seed``: the ids of requests that bring none are made of it; no other connection has
    the same.
    """

    def __init__(self, config: Config, now: int, request_seed: bytes = b"") -> None:
        self._config = config
        self._request_seed = request_seed
        self._requests = 0  # answered so far
        self._request_id: str | None = None  # the client's own, of the request at hand
        self._http = HttpServer(HttpLimits(config.max_header, config.max_body))
        self._head: RequestHead | None = None
        self._read = False  # the request at hand is in completely
        self._last = False  # the connection is closed after the answer
        self._timer: Timer | None = Timer.CLIENT_IDLE
        self.deadline: int | None = now + config.header_timeout
        self.turns: list[int] = []  # one at most: HTTP/1.1 answers requests in their order
        self.out: list[bytes] = []
        self.closing = False
        self.lingering = False

    @property
    def timer(self) -> Timer:
        """Which timer ``deadline`` is of."""
        return self._timer or Timer.CLIENT_IDLE

    @property
    def idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self._timer is Timer.CLIENT_IDLE

    # ------------------------------------------------------------ requests

    def receive(self, data: bytes) -> None:
        """Buffer input; ``next_request`` reads it."""
        if not self.closing:
            self._http.receive(data)

    def next_request(self, turn: int, now: int, *, draining: bool) -> RequestReceived | None:
        """Answer what needs no turn, up to the next request that does; it is given number ``turn``.

        None: no request is complete, or the one before it has to be answered first.
        """
        received = None
        while received is None and not self.closing and not self.turns:
            event = self._http.next_event()
            if event is None:
                break
            if isinstance(event, BadRequest):
                self._read = False
                self._respond(api_error(event.status, event.code, event.message), close=True)
            elif isinstance(event, BodyRefused):
                self._read = self._http.phase is HttpPhase.ANSWERING
                self._respond(
                    api_error(event.status, event.code, event.message),
                    [_ACCEPT_ENCODING] if event.status == 415 else [],
                )
            elif isinstance(event, RequestHead):
                self._head = event
                self._request_id = request_id_of(event.headers)
                self._read = False
                error = self._route(event, draining=draining)
                if error is not None:
                    self._respond(*error, close=draining)
                elif interim := self._http.wants_body():
                    self.out.append(interim)
            else:
                received = self._request(event, turn, draining=draining)
        self._expect(now)
        return received

    def _expect(self, now: int) -> None:
        """Give the client a deadline for what it has to send next, if it has to send anything."""
        due = None if self.closing else _EXPECTED.get(self._http.phase)
        if due is self._timer:
            return
        self._timer = due
        if due is None:
            self.deadline = None
            return
        after = {
            Timer.CLIENT_IDLE: self._config.client_idle,
            Timer.HEADER: self._config.header_timeout,
            Timer.BODY: self._config.body_timeout,
        }[due]
        self.deadline = now + after

    def _route(
        self, head: RequestHead, *, draining: bool
    ) -> tuple[ApiError, list[tuple[bytes, bytes]]] | None:
        """The refusal of a request that need not be read any further, and extra headers."""
        methods = _ROUTES.get(head.path)
        if methods is None:
            message = f"Unknown path. This server has {', '.join(_ROUTES)}."
            return api_error(404, "not_found", message), []
        headers = dict(head.headers)
        if head.method not in methods:
            allow = [(b"allow", b", ".join(methods))]
            if headers.get(b"upgrade", b"").lower() == b"websocket":
                # Codex falls back to HTTP at once when it is told so.
                message = "This server speaks HTTP here, not WebSocket. Use POST /v1/responses."
                error = api_error(426, "upgrade_required", message)
                return error, [*allow, (b"upgrade", b"HTTP/1.1")]
            message = f"This path takes {b', '.join(methods).decode()}."
            return api_error(405, "method_not_allowed", message), allow
        if draining and head.path != "/livez":
            return SHUTTING_DOWN, []
        return self._decode_body(head) if head.path == "/v1/responses" else None

    def _decode_body(self, head: RequestHead) -> tuple[ApiError, list[tuple[bytes, bytes]]] | None:
        """Have the body decoded as its head says; the refusal if that is not possible."""
        try:
            codings = parse_codings(
                value for name, value in head.headers if name == b"content-encoding"
            )
        except UnsupportedCodingError as exc:
            error = api_error(415, "unsupported_content_encoding", str(exc))
            return error, [_ACCEPT_ENCODING]
        if codings:
            self._http.decode_body(BodyDecoder(codings, self._config.max_body))
        return None

    def _request(self, body: RequestBody, turn: int, *, draining: bool) -> RequestReceived | None:
        head = self._head
        assert head is not None, "a body follows its head"
        self._read = True
        if head.path != "/v1/responses":
            self._send_json(200, [], b'{"status":"ok"}', close=draining)
            return None
        if draining:
            self._respond(SHUTTING_DOWN, close=True)
            return None
        self.turns = [turn]
        return RequestReceived(turn, body.data, head.headers, request_id=self._id())

    # ------------------------------------------------------------ answers

    def answer(self, effect: AnswerEffect) -> None:
        """Write what the gateway has for the client."""
        if isinstance(effect, AnswerEvents):
            # One chunk and one write, whatever the number of events.
            payload = b"".join([encode_event(event) for event in effect.events])
            self.out.append(self._http.stream(payload))
        elif isinstance(effect, BeginAnswer):
            head = self._http.start_stream([*_STREAM_HEADERS, self._request_id_header()])
            self.out.append(head)
        elif isinstance(effect, EndAnswer):
            self._finish(self._http.end_stream(), close=self._last)
        elif isinstance(effect, AnswerKeepalive):
            text = COMMENT if effect.event is None else encode_event(effect.event)
            self.out.append(self._http.stream(text))
        elif isinstance(effect, AnswerBody):
            self._send_json(200, [], effect.body, close=self._last)
        elif isinstance(effect, FailAnswer):
            self._respond(effect.error, close=self._last)
        else:
            assert_never(effect)

    def close_after_answers(self) -> None:
        """Close the connection when the turn that is being answered has its answer."""
        self._last = True

    def _respond(
        self,
        error: ApiError,
        headers: list[tuple[bytes, bytes]] | None = None,
        *,
        close: bool = False,
    ) -> None:
        fields = list(headers or [])
        if error.retry_after is not None:
            fields.append((b"retry-after", b"%d" % error.retry_after))
            # OpenAI's SDKs look at this one first.
            fields.append((b"retry-after-ms", b"%d" % (error.retry_after * 1000)))
        self._send_json(error.status, fields, error.body, close=close)

    def _send_json(
        self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, close: bool = False
    ) -> None:
        """A whole answer, which is JSON."""
        fields = [_JSON, self._request_id_header(), *headers]
        self._finish(self._http.respond(status, fields, body, close=close))

    def _id(self) -> str:
        """What the request at hand is called in its answer and in log lines: the client's own id
        or, if it sent none, one of ours."""
        return self._request_id or make_request_id(self._request_seed, self._requests)

    def _request_id_header(self) -> tuple[bytes, bytes]:
        return b"x-request-id", self._id().encode("ascii")

    def _finish(self, data: bytes, *, close: bool = False) -> None:
        """The answer is complete with ``data``: on to the next request, or to the end."""
        self.out.append(data)
        self.turns = []
        self._requests += 1
        self._request_id = None
        self._timer = self.deadline = None
        if self._http.must_close or close:
            self.closing = True
            self.lingering = self._http.must_close and not self._read
        else:
            self._http.start_next()
            self._read = False

    def shut(self) -> None:
        """The server stops: read no more requests, and refuse one that is partly read."""
        if self.closing or self.turns:
            return
        if self._http.phase in (HttpPhase.HEAD, HttpPhase.BODY):
            self._respond(SHUTTING_DOWN, close=True)
        else:
            self.closing = True

    def timeout(self) -> None:
        """``deadline`` has come: the client did not send in time."""
        timer, self._timer, self.deadline = self._timer, None, None
        if timer is Timer.CLIENT_IDLE:
            self.closing = True  # nothing was asked, so nothing is answered
        elif timer in (Timer.HEADER, Timer.BODY):
            part = "head" if timer is Timer.HEADER else "body"
            message = f"The request's {part} was not complete in time."
            self._respond(api_error(408, "request_timeout", message), close=True)
