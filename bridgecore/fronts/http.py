"""A client connection that speaks HTTP/1.1.

What belongs here: the paths of this server, requests that are refused before they become turns,
answers in HTTP (a JSON body or a stream of server-sent events), requests that are passed through to
the upstream's HTTP API and their answers, request ids, and deadlines for clients that send too
slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, assert_never

from bridgecore import transport as tp
from bridgecore.api_error import SHUTTING_DOWN, ApiError, api_error
from bridgecore.config import Config
from bridgecore.fronts import ClientConnection
from bridgecore.fronts.websocket import MessagesOnSocket
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
from bridgecore.telemetry.metrics import CONTENT_TYPE
from bridgecore.wire.codings import (
    ACCEPTED,
    BodyDecoder,
    UnsupportedCodingError,
    parse_codings,
)
from bridgecore.wire.headers import Headers, make_request_id, request_id_of
from bridgecore.wire.http import (
    BadRequest,
    BodyPart,
    BodyRefused,
    HttpLimits,
    HttpPhase,
    HttpServer,
    RequestBody,
)
from bridgecore.wire.http_client import AnswerHead, InterimHead
from bridgecore.wire.http_messages import HttpMessages
from bridgecore.wire.passing import (
    REBUILT,
    TURN_ALIAS,
    PassedRequest,
    answer_headers,
    below_version,
    is_passed,
    is_shareable,
)
from bridgecore.wire.request_heads import RequestHead
from bridgecore.wire.sse import COMMENT, encode_event, encode_events
from bridgecore.wire.upgrade import UpgradeError, accept_upgrade, asks_for_websocket

_READ = (b"GET", b"HEAD")
# Answered after the first signal, too: whoever watches a drain needs them most.
_WHILE_DRAINING = frozenset({"/livez", "/metrics"})
_JSON = (b"content-type", b"application/json")
# Sent with a 415, so that the client can choose another coding (RFC 9110, section 15.5.16).
_ACCEPT_ENCODING = (b"accept-encoding", ", ".join(ACCEPTED).encode("ascii"))
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events before it passes them on
]


class HttpConnection:
    """One connection of an HTTP client; a ``ClientConnection``.

    ``request_seed``: unique to this connection; ids of requests without an ``x-request-id`` are
    derived from it. ``metrics``: gives what is counted, as text; None: it is not shown.
    """

    # There may be thousands of idle connections: no instance dictionaries.
    __slots__ = (
        *(
            "_config",
            "_head",
            "_held",
            "_http",
            "_last",
            "_metrics",
            "_read",
            "_request_id",
            "_scope",
            "_since",
        ),
        *("_request_seed", "_requests", "_timer", "broken", "closing", "deadline", "lingering"),
        *("out", "passed", "passing", "successor", "turns", "_since"),
    )

    ROUTES: ClassVar[Mapping[str, tuple[bytes, ...]]] = {
        "/v1/responses": (b"POST",),
        "/livez": _READ,
        "/readyz": _READ,
    }
    """The methods that each path supports."""
    TURNS: ClassVar = "/v1/responses"
    """The path that takes turns; the others answer whether the server is up."""
    METRICS: ClassVar = "/metrics"
    """The path that answers what is counted, if the settings say so."""
    PASSES: ClassVar = True
    """Whether requests for other paths may be passed through to the upstream."""
    ROOM: ClassVar = 0
    """Bytes that a head and a body may have beyond ``max_header`` and ``max_body``."""

    def __init__(
        self,
        config: Config,
        now: int,
        request_seed: bytes = b"",
        metrics: Callable[[], bytes] | None = None,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._request_seed = request_seed
        self._scope: str | None = None  # the tenant; None: it follows from the credential
        self._requests = 0  # answered so far
        self._request_id: str | None = None  # the x-request-id of the current request
        limits = HttpLimits(config.max_header + self.ROOM, config.max_body + self.ROOM)
        by_parts = self._comes_by_parts if self.PASSES else None
        self._http: HttpServer | HttpMessages = HttpServer(
            limits, shortcuts=config.shortcuts, by_parts=by_parts
        )
        self._head: RequestHead | None = None
        self._read = False  # the current request was received completely
        self._last = False  # close the connection after the current answer
        self._since = now  # ns, the time of the latest input
        self._timer: Timer | None = Timer.CLIENT_IDLE
        self.deadline: int | None = now + config.header_timeout
        self.turns: list[int] = []  # at most one: HTTP/1.1 answers requests in order
        # The request that is being passed through, and what the endpoint has not taken of it yet.
        self.passing: PassedRequest | None = None
        self.passed: list[PassedRequest | BodyPart | RequestBody] = []
        self._held = False  # it is not read, because its upstream reads too slowly
        self.broken = False  # the connection cannot go on: its answer has begun and will not end
        self.out: list[bytes] = []
        self.successor: ClientConnection | None = None  # after an upgrade
        self.closing = False
        self.lingering = False

    @property
    def timer(self) -> Timer:
        """The timer to which ``deadline`` belongs."""
        return self._timer or Timer.CLIENT_IDLE

    @property
    def idle(self) -> bool:
        """Whether no request is being read and no answer is in progress."""
        return self._timer is Timer.CLIENT_IDLE

    @property
    def _idle_limit(self) -> int:
        """How long the connection may be idle, ns."""
        return self._config.client_idle

    # ------------------------------------------------------------ requests

    def receive(self, data: bytes) -> None:
        """Buffer ``data``; ``next_request`` parses it."""
        if not self.closing:
            self._http.receive(data)

    def next_request(self, turn: int, now: int, *, draining: bool) -> RequestReceived | None:
        """The next request that is a turn, which gets the number ``turn``. Other requests, such as
        health checks and malformed ones, are answered on the way.

        None: no request is complete, or the one before it has to be answered first.
        """
        received = None
        self._since = now
        while not (received or self.closing or self.turns or self.broken or self.successor):
            event = self._http.next_event()
            if event is None:
                break
            if isinstance(event, BadRequest):
                self._read = False
                error = api_error(event.status, event.code, event.message)
                self.refuse_passed(error, close=True)
            elif isinstance(event, BodyRefused):
                self._read = self._http.phase is HttpPhase.ANSWERING
                self._respond(
                    api_error(event.status, event.code, event.message),
                    [_ACCEPT_ENCODING] if event.status == 415 else [],
                )
            elif isinstance(event, BodyPart):
                self._pass_part(event)
            elif isinstance(event, RequestHead):
                if event.path == TURN_ALIAS and self.PASSES:
                    event.path = self.TURNS
                self._head = event
                self._request_id = request_id_of(event.headers)
                self._read = False
                refusal = self._refusal(event, draining=draining)
                if refusal is not None:
                    self._respond(*refusal, close=draining)
                elif self._comes_by_parts(event):
                    self._pass(event, whole=False)
                elif interim := self._http.wants_body():
                    self.out.append(interim)
            else:
                received = self._request(event, turn, draining=draining)
        self._expect(now)
        return received

    def _expect(self, now: int) -> None:
        """Set the deadline for what the client has to send next, if anything.

        It is set once per phase: a client that sends a byte now and then does not extend it.
        """
        due: Timer | None = None
        after = 0
        if not self.closing and not self.turns and not self._held:
            phase, config = self._http.phase, self._config
            if phase is HttpPhase.IDLE:
                due, after = Timer.CLIENT_IDLE, self._idle_limit
            elif phase is HttpPhase.HEAD:
                due, after = Timer.HEADER, config.header_timeout
            elif phase is HttpPhase.BODY:
                due, after = Timer.BODY, config.body_timeout
        if due is not self._timer:
            self._timer = due
            self.deadline = None if due is None else now + after

    def _refusal(self, head: RequestHead, *, draining: bool) -> tuple[ApiError, Headers] | None:
        """The error, with extra headers, of a request that is refused for its head; else None."""
        methods = self.ROUTES.get(head.path)
        if self._metrics is not None and head.path == self.METRICS:
            methods = _READ
        if methods is None:
            if self._is_passed(head):
                if draining:
                    return SHUTTING_DOWN, []
                return self._decode_body(head) if self._is_rebuilt(head) else None
            message = f"Unknown path. This server serves {', '.join(self.ROUTES)}"
            message += " and paths of the API that it passes through." if self.PASSES else "."
            return api_error(404, "not_found", message), []
        if head.method not in methods:
            allow = [(b"allow", b", ".join(methods))]
            if asks_for_websocket(head.headers) and head.path == self.TURNS:
                if self._takes_upgrade(head):
                    return (SHUTTING_DOWN, []) if draining else self._upgrade_refusal(head)
                # Codex tries WebSocket first; on a 426 it falls back to HTTP at once.
                message = "This server speaks HTTP here, not WebSocket. Use POST /v1/responses."
                error = api_error(426, "upgrade_required", message)
                return error, [*allow, (b"upgrade", b"HTTP/1.1")]
            message = f"This path supports {b', '.join(methods).decode()}."
            return api_error(405, "method_not_allowed", message), allow
        if draining and head.path not in _WHILE_DRAINING:
            return SHUTTING_DOWN, []
        return self._decode_body(head) if head.path == self.TURNS else None

    def _takes_upgrade(self, head: RequestHead) -> bool:
        """Whether a request asks for an upgrade, and clients may speak WebSocket here."""
        asked = head.method == b"GET" and head.path == self.TURNS and self.PASSES
        return self._config.websocket and asked and asks_for_websocket(head.headers)

    def _upgrade_refusal(self, head: RequestHead) -> tuple[ApiError, Headers] | None:
        try:
            accept_upgrade(head.headers, self._config.websocket_origins)
        except UpgradeError as exc:
            return api_error(exc.status, exc.code, str(exc)), exc.headers
        return None

    def _upgrade(self, head: RequestHead) -> None:
        """Accept an upgrade that ``_upgrade_refusal`` has found nothing against."""
        accepted = accept_upgrade(head.headers, self._config.websocket_origins)
        answer = self._http.switch([*accepted, self._request_id_header()])
        self._timer = self.deadline = None
        self.successor = self._upgraded(head, answer)

    def _upgraded(self, head: RequestHead, answer: bytes) -> ClientConnection:
        assert isinstance(self._http, HttpServer), "HttpMessages has no bytes"
        rest = self._http.take_rest()
        return MessagesOnSocket(
            self._config,
            self._since,
            self._request_seed,
            head.headers,
            requests=self._requests,
            answer=answer,
            rest=rest,
        )

    def _decode_body(self, head: RequestHead) -> tuple[ApiError, Headers] | None:
        """Set up decoding of the body by its ``Content-Encoding``; the error if it is
        unsupported."""
        values = [value for name, value in head.headers if name == b"content-encoding"]
        if not values:
            return None
        try:
            codings = parse_codings(values)
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
        if self._is_passed(head):
            if self.passing is None:
                self._pass(head, whole=True)
            self._pass_part(body)
            return None
        if self._takes_upgrade(head):
            if body.data:
                message = "A request for an upgrade has no body."
                self._respond(api_error(400, "malformed_request", message), close=True)
            else:
                self._upgrade(head)
            return None
        if self._metrics is not None and head.path == self.METRICS:
            fields = [(b"content-type", CONTENT_TYPE), self._request_id_header()]
            self._finish(self._http.respond(200, fields, self._metrics(), close=draining))
            return None
        if head.path != self.TURNS:
            self._send_json(200, [], b'{"status":"ok"}', close=draining)
            return None
        if draining:
            self._respond(SHUTTING_DOWN, close=True)
            return None
        received = self._received(head, body, turn)
        if received is not None:
            self.turns = [turn]
        return received

    def _received(self, head: RequestHead, body: RequestBody, turn: int) -> RequestReceived | None:
        """The turn of a complete request; None if it was refused."""
        return RequestReceived(
            turn, body.data, head.headers, scope=self._scope, request_id=self._id()
        )

    # ------------------------------------------------------------ requests that are passed through

    def _is_passed(self, head: RequestHead) -> bool:
        # TRACE would show the credential to whoever can have a browser send it.
        if not self.PASSES or head.path in self.ROUTES or head.method == b"TRACE":
            return False
        segments = below_version(head.path)
        if self._config.shared_credential and not is_shareable(head.method, segments):
            return False
        return is_passed(segments, self._config.pass_through)

    def _is_rebuilt(self, head: RequestHead) -> bool:
        return head.method == b"POST" and below_version(head.path) in REBUILT

    def _comes_by_parts(self, head: RequestHead) -> bool:
        """Whether the body of a request is passed on as it comes."""
        return self._is_passed(head) and not self._is_rebuilt(head)

    def _pass(self, head: RequestHead, *, whole: bool) -> None:
        """Begin to pass a request through. ``whole``: its body is complete."""
        expects = head.expects_continue and not whole
        self.passing = PassedRequest(
            head.method,
            below_version(head.path),
            head.query,
            [field for field in head.headers if expects or field[0] != b"expect"],
            None if whole else head.content_length,
            head.chunked and not whole,
            self._id(),
            whole,
            self._scope,
        )
        self.passed.append(self.passing)

    def _pass_part(self, part: BodyPart | RequestBody) -> None:
        self._read = isinstance(part, RequestBody)
        self.passed.append(part)
        # The time for a body is that from one part to the next here.
        self._timer = self.deadline = None

    def hold(self, held: bool, now: int) -> None:
        """The body of the passed request is not read for now, or, if ``held`` is False, is again:
        meanwhile the client cannot send too slowly."""
        self._held = held
        self._timer = self.deadline = None
        self._expect(now)

    def interim(self, head: InterimHead) -> None:
        """Write an interim answer to the passed request, if the client can have one."""
        expected = self.passing is not None and b"expect" in dict(self.passing.headers)
        if head.status != 100 or expected:
            self.out.append(self._http.interim(head.status, answer_headers(head.headers)))

    def begin_passed(self, head: AnswerHead) -> None:
        """Write the head of the answer to the passed request."""
        fields = [*answer_headers(head.headers), self._request_id_header()]
        self.out.append(self._http.start_answer(head.status, fields, head.length, close=self._last))

    def pass_on(self, data: bytes) -> None:
        """Write a part of the body of that answer."""
        self.out.append(self._http.stream(data))

    def end_passed(self) -> None:
        """Write the end of that answer."""
        self._finish(self._http.end_stream(), close=self._last)

    def refuse_passed(self, error: ApiError, *, close: bool = False) -> None:
        """Answer the current request with ``error``. If its answer has begun, the connection cannot
        go on: the client must not take what it has for the whole."""
        if self._http.answering:
            self.broken = True
        else:
            self._respond(error, close=close or self._last)

    # ------------------------------------------------------------ answers

    def answer(self, effect: AnswerEffect) -> None:
        """Write an effect of the gateway to ``out``."""
        if isinstance(effect, AnswerEvents):
            # All events in one chunk: one write.
            self.out.append(self._http.stream(encode_events(effect.events)))
        elif isinstance(effect, BeginAnswer):
            headers = [*_STREAM_HEADERS, self._request_id_header(), *self._extra_headers(None)]
            self.out.append(self._http.start_stream(headers))
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

    def write(self, conn: int, *, notify: bool) -> list[tp.TransportEffect]:
        """The effects that send what is in ``out``."""
        if not self.out:
            return []
        data = b"".join(self.out)
        self.out.clear()
        return [tp.Send(conn, data, notify)]

    def close_after_answers(self) -> None:
        """Close the connection once the answer in progress is complete."""
        self._last = True

    def _respond(
        self,
        error: ApiError,
        headers: Headers | None = None,
        *,
        close: bool = False,
    ) -> None:
        fields = [*(headers or []), *self._extra_headers(error), *error.wait_headers]
        self._send_json(error.status, fields, error.body, close=close)

    def _extra_headers(self, error: ApiError | None) -> Headers:
        """Headers that each answer has besides the usual ones. ``error``: what it consists of; None
        for a stream."""
        return []

    def _send_json(
        self, status: int, headers: Headers, body: bytes, *, close: bool = False
    ) -> None:
        """Write a complete JSON answer."""
        fields = [_JSON, self._request_id_header(), *headers]
        self._finish(self._http.respond(status, fields, body, close=close))

    def _id(self) -> str:
        """The id of the current request, for its answer and the log: the client's, or a new one."""
        if self._request_id is None:
            self._request_id = make_request_id(self._request_seed, self._requests)
        return self._request_id

    def _request_id_header(self) -> tuple[bytes, bytes]:
        return b"x-request-id", self._id().encode("ascii")

    def _finish(self, data: bytes, *, close: bool = False) -> None:
        """Write ``data``, the end of an answer; then get ready for the next request, or close."""
        self.out.append(data)
        self.turns = []
        self.passing = None
        self._held = False
        self._head = None  # an idle connection keeps no headers
        self._requests += 1
        self._request_id = None
        self._timer = self.deadline = None
        if self._http.must_close or close:
            self.closing = True
            self.lingering = self._http.must_close and not self._read
        else:
            assert isinstance(self._http, HttpServer), "HttpMessages has one request"
            self._http.start_next()
            self._read = False

    def shut(self) -> None:
        """The server is stopping: close if idle, and refuse a request that is partly received."""
        if self.closing or self.turns or self.passing is not None:
            return
        if self._http.phase in (HttpPhase.HEAD, HttpPhase.BODY):
            self._respond(SHUTTING_DOWN, close=True)
        else:
            self.closing = True

    def timeout(self, now: int) -> None:
        """``deadline`` has passed: the client did not send in time."""
        timer, self._timer, self.deadline = self._timer, None, None
        if timer is Timer.CLIENT_IDLE:
            self.closing = True  # there is no request to answer
        elif timer in (Timer.HEADER, Timer.BODY):
            part = "head" if timer is Timer.HEADER else "body"
            message = f"The request's {part} was not complete in time."
            self.refuse_passed(api_error(408, "request_timeout", message), close=True)
