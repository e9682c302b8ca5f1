"""One client connection: requests in, answers out, what is due when.

What belongs here: the life of an HTTP exchange as its client sees it: routing, holding the head
back, stream or JSON, keepalives, deadlines for slow clients. It is the endpoint's: it hands bytes
back and never touches a socket. Which turn fails and with what answer is decided elsewhere.
"""

from __future__ import annotations

import attrs

from bridgecore.config import Config
from bridgecore.messages import TurnReceived
from bridgecore.recovery.timers import Timer
from bridgecore.rendering import HttpError, http_error, render_failed_response
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
from bridgecore.wire.responses import (
    CreateRequest,
    EventKind,
    InvalidBodyError,
    UpstreamEvent,
    created_event,
    failed_event,
    final_response,
    keepalive_event,
    parse_create,
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
SHUTTING_DOWN = http_error(503, "server_shutting_down", "The server is shutting down.")
_ROUTES = {"/v1/responses": (b"POST",), "/livez": (b"GET", b"HEAD"), "/readyz": (b"GET", b"HEAD")}


@attrs.define(eq=False)
class Exchange:
    """The answer to one turn, as far as it went out."""

    turn: int
    stream: bool
    anchor: str | None = None  # the turn's previous_response_id
    model: str | None = None  # the turn's
    begun: bool = False  # the head of the stream went out
    created: UpstreamEvent | None = None  # the response.created event that the client has seen
    last: UpstreamEvent | None = None  # the latest event of the response that the client has seen


class Front:
    """One client connection. ``out`` collects what is to be sent to it, in order.

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
        self._spoke = now  # when something was last sent to the client
        self._read = False  # the request at hand is in completely
        self.out: list[bytes] = []
        self.answer: Exchange | None = None
        self.deadlines: dict[Timer, int] = {Timer.CLIENT_IDLE: now + config.header_timeout}
        self.closing = False  # nothing more is sent, nothing more is understood
        # The client may still be sending what nobody will read: closing at once could destroy the
        # answer on its way (RFC 9112, section 9.6).
        self.lingering = False
        self.blocked = False  # the client reads too slowly

    # ------------------------------------------------------------ requests

    def receive(self, data: bytes) -> None:
        """Buffer input; ``next_turn`` makes sense of it."""
        if not self.closing:
            self._http.receive(data)

    def next_turn(self, turn: int, now: int, *, draining: bool) -> TurnReceived | None:
        """Answer what can be answered at once, up to the next turn, which is called ``turn``.

        None: no request is complete, or a turn is being answered and others have to wait.
        """
        received = None
        while received is None and not self.closing and self.answer is None:
            event = self._http.next_event()
            if event is None:
                break
            if isinstance(event, BadRequest):
                self._read = False
                self._respond(http_error(event.status, event.code, event.message), close=True)
            elif isinstance(event, BodyRefused):
                self._read = self._http.phase is HttpPhase.ANSWERING
                self._respond(
                    http_error(event.status, event.code, event.message),
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
                received = self._request(event, turn, now, draining=draining)
        self._expect(now)
        return received

    def _expect(self, now: int) -> None:
        """Keep the one deadline for what the client has to send next."""
        phase = HttpPhase.CLOSED if self.closing else self._http.phase
        due = _EXPECTED.get(phase)
        for timer in _EXPECTED.values():
            if timer is not due:
                self.deadlines.pop(timer, None)
        if due is not None and due not in self.deadlines:
            after = {
                Timer.CLIENT_IDLE: self._config.client_idle,
                Timer.HEADER: self._config.header_timeout,
                Timer.BODY: self._config.body_timeout,
            }[due]
            self.deadlines[due] = now + after

    def _route(
        self, head: RequestHead, *, draining: bool
    ) -> tuple[HttpError, list[tuple[bytes, bytes]]] | None:
        """The refusal of a request that need not be read any further, and extra headers."""
        methods = _ROUTES.get(head.path)
        if methods is None:
            message = f"Unknown path. This server has {', '.join(_ROUTES)}."
            return http_error(404, "not_found", message), []
        headers = dict(head.headers)
        if head.method not in methods:
            allow = [(b"allow", b", ".join(methods))]
            if headers.get(b"upgrade", b"").lower() == b"websocket":
                # Codex falls back to HTTP at once when it is told so.
                message = "This server speaks HTTP here, not WebSocket. Use POST /v1/responses."
                error = http_error(426, "upgrade_required", message)
                return error, [*allow, (b"upgrade", b"HTTP/1.1")]
            message = f"This path takes {b', '.join(methods).decode()}."
            return http_error(405, "method_not_allowed", message), allow
        if draining and head.path != "/livez":
            return SHUTTING_DOWN, []
        return self._decode_body(head) if head.path == "/v1/responses" else None

    def _decode_body(self, head: RequestHead) -> tuple[HttpError, list[tuple[bytes, bytes]]] | None:
        """Have the body decoded as its head says; the refusal if that is not possible."""
        try:
            codings = parse_codings(
                value for name, value in head.headers if name == b"content-encoding"
            )
        except UnsupportedCodingError as exc:
            error = http_error(415, "unsupported_content_encoding", str(exc))
            return error, [_ACCEPT_ENCODING]
        if codings:
            self._http.decode_body(BodyDecoder(codings, self._config.max_body))
        return None

    def _request(
        self, body: RequestBody, turn: int, now: int, *, draining: bool
    ) -> TurnReceived | None:
        head = self._head
        assert head is not None, "a body follows its head"
        self._read = True
        if head.path != "/v1/responses":
            self._send_json(200, [], b'{"status":"ok"}', close=draining)
            return None
        if draining:
            self._respond(SHUTTING_DOWN, close=True)
            return None
        try:
            request: CreateRequest = parse_create(body.data)
        except InvalidBodyError as exc:
            self._respond(http_error(400, "invalid_request_body", exc.message, param=exc.param))
            return None
        self.answer = Exchange(turn, request.stream, request.previous_response_id, request.model)
        if request.stream:
            self.deadlines[Timer.HEAD] = now + self._config.head_timeout
        return TurnReceived(turn, request, head.headers, request_id=self.request_id)

    # ------------------------------------------------------------ answers

    def events(self, events: list[UpstreamEvent], now: int) -> None:
        """Pass ``events`` on; a terminal one ends the answer. One chunk, whatever their number."""
        answer = self.answer
        if answer is None:
            return
        if not answer.stream:
            self._collect(answer, events)
            return
        head = b"" if answer.begun else self._begin(answer, now)
        if answer.created is None:
            for event in events:
                if event.kind is EventKind.CREATED:
                    answer.created = event
        # What is not known here need not carry a number; if it does, numbers go on from it.
        for event in reversed(events):
            if event.kind is not EventKind.OTHER or event.sequence_number >= 0:
                answer.last = event
                break
        self._spoke = now
        payload = b"".join([encode_event(event) for event in events])
        self.out.append(head + self._http.stream(payload))
        if events[-1].kind is EventKind.ENDED:
            self._finish(self._http.end_stream())

    def _begin(self, answer: Exchange, now: int) -> bytes:
        answer.begun = True
        self.deadlines.pop(Timer.HEAD, None)
        self.deadlines[Timer.KEEPALIVE] = now + self._config.keepalive
        return self._http.start_stream([*_STREAM_HEADERS, self._request_id_header()])

    def _collect(self, answer: Exchange, events: list[UpstreamEvent]) -> None:
        """Answer with the response object that the terminal event carries."""
        terminal = events[-1]
        if terminal.kind is not EventKind.ENDED:
            return
        if terminal.type == b"response.failed":
            self._respond(render_failed_response(terminal.error, answer.anchor))
        else:
            self._send_json(200, [], final_response(terminal))

    def error(self, error: HttpError, *, close: bool = False) -> None:
        """End the answer with ``error``: a status before the head, ``response.failed`` after.

        After the head ``response.created`` is the first event in any case: SDK helpers for streams
        raise an error of their own if it is another, and what had happened is lost.
        """
        answer = self.answer
        if answer is None:
            return
        if not answer.begun:
            self._respond(error, close=close)
            return
        events = []
        if answer.created is None:
            created = created_event(None, f"resp_failed_{answer.turn}", answer.model)
            answer.created = answer.last = created
            events.append(created)
        last = -1 if answer.last is None else answer.last.sequence_number
        sequence = max(0, last + 1)
        events.append(failed_event(error.code, error.message, sequence, answer.created, error.more))
        self.out.append(self._http.stream(b"".join([encode_event(event) for event in events])))
        self._finish(self._http.end_stream(), close=close)

    def _respond(
        self,
        error: HttpError,
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

    @property
    def request_id(self) -> str:
        """What the request at hand is called in its answer and in log lines: the client's own id
        or, if it sent none, one of ours."""
        return self._request_id or make_request_id(self._request_seed, self._requests)

    def _request_id_header(self) -> tuple[bytes, bytes]:
        return b"x-request-id", self.request_id.encode("ascii")

    def _finish(self, data: bytes, *, close: bool = False) -> None:
        """The answer is complete with ``data``: on to the next request, or to the end."""
        self.out.append(data)
        self.answer = None
        self._requests += 1
        self._request_id = None
        self.deadlines.clear()
        if self._http.must_close or close:
            self.closing = True
            self.lingering = self._http.must_close and not self._read
        else:
            self._http.start_next()
            self._read = False

    def shut(self) -> None:
        """The server goes: take nothing more, and refuse what has begun to come in."""
        if self.closing or self.answer is not None:
            return
        if self._http.phase in (HttpPhase.HEAD, HttpPhase.BODY):
            self._respond(SHUTTING_DOWN, close=True)
        else:
            self.closing = True

    # ------------------------------------------------------------ deadlines

    def timeout(self, now: int) -> None:
        """Let what is due at ``now`` happen."""
        for timer in [timer for timer, at in self.deadlines.items() if at <= now]:
            self.deadlines.pop(timer, None)
            if timer is Timer.HEAD and self.answer is not None:
                self.out.append(self._begin(self.answer, now) + self._http.stream(COMMENT))
                self._spoke = now
            elif timer is Timer.KEEPALIVE and self.answer is not None:
                self._keepalive(self.answer, now)
            elif timer is Timer.CLIENT_IDLE:
                self.closing = True  # nothing was asked, so nothing is answered
            elif timer in (Timer.HEADER, Timer.BODY):
                part = "head" if timer is Timer.HEADER else "body"
                message = f"The request's {part} was not complete in time."
                self._respond(http_error(408, "request_timeout", message), close=True)

    def _keepalive(self, answer: Exchange, now: int) -> None:
        if self._spoke + self._config.keepalive <= now and not self.blocked:
            if answer.last is None:
                text = COMMENT  # a client helper insists that response.created be the first event
            else:
                # It takes the number of the event before it: the upstream's go on from there.
                text = encode_event(keepalive_event(max(0, answer.last.sequence_number)))
            self.out.append(self._http.stream(text))
            self._spoke = now
        heard = now if self.blocked else self._spoke
        self.deadlines[Timer.KEEPALIVE] = heard + self._config.keepalive
