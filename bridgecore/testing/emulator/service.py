"""The emulator's machine: connections, create frames, lanes, and the running of turns.

What belongs here: what the service does with each event of the network, the checks of a create
frame, its limits, and when the steps of a turn are sent.

As the real service: ``compaction_trigger`` as an input item gets a compaction item and nothing
else. With ``context_management``, a context of more tokens than ``compact_threshold`` is compacted
before the answer.

Requests over HTTP are answered on the same port: a connection speaks HTTP until one of its requests
asks for an upgrade.

The path of a create frame: ``_message`` reads it and queues it for its lane; ``_start`` checks it
against its context and turns its answer into steps; ``_run`` sends the steps, as pacing and
backpressure permit, and carries out the faults between them.
"""

from __future__ import annotations

import re
from typing import Final, assert_never
from urllib.parse import urlsplit

import attrs

from bridgecore.errors import LocalProtocolError
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer
from bridgecore.testing import answers
from bridgecore.testing.answers import Answer, CreateFrame, Json, Output, echo
from bridgecore.testing.emulator import (
    api,
    context,
    conversations,
    errors,
    events,
    injection,
    resource,
)
from bridgecore.testing.emulator.connection import (
    CLOSE_GRACE,
    Connection,
    End,
    EndedResponse,
    SlowReading,
)
from bridgecore.testing.emulator.conversations import Conversation
from bridgecore.testing.emulator.http import HttpTurns
from bridgecore.testing.emulator.jsontext import decode, encode
from bridgecore.testing.emulator.turns import Finish, Outcome, RunningTurn, Turn
from bridgecore.testing.faults import (
    Change,
    Error,
    ErrorShape,
    Fault,
    FaultPlan,
    Point,
    ReadSlowly,
)
from bridgecore.transport import (
    Accepted,
    AcceptFailed,
    Connected,
    ConnectFailed,
    DataReceived,
    DataSent,
    Disconnected,
    DrainRequested,
    EofReceived,
    RequestBegun,
    RequestEnded,
    ResponseDeleted,
    Started,
    Stop,
    StopListening,
    StoreAnswered,
    TimeoutReached,
    TransportEffect,
    TransportEvent,
    WebSocketMessageReceived,
    WriteBlocked,
    WriteUnblocked,
)
from bridgecore.wire.websocket import (
    CloseReceived,
    Failed,
    MessageReceived,
    PongReceived,
    Upgraded,
    UpgradeRejected,
    UpgradeRequested,
    WebSocketServer,
)

MAX_IN_FLIGHT: Final = 16  # responses of one connection at a time; further ones wait
MAX_LANES: Final = 32  # distinct named lanes of one connection

_EPOCH: Final = 1_767_225_600  # Unix seconds at now=0; an arbitrary fixed date
_STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_MAX_HEAD: Final = 65_536  # bytes of the head of an HTTP request
# The beginning of a request over HTTP, as opposed to what only ``WebSocketServer`` has to judge.
_HTTP = re.compile(rb"([A-Z]+) ([!-~]+) HTTP/1\.[01]\r\n")
_UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)
_WRONG_KEY = Error(401, "invalid_api_key", "invalid_request_error", "Incorrect API key provided.")
_OPENING = frozenset({"response.created", "response.in_progress"})


@attrs.define(kw_only=True, eq=False)
class Emulator:
    """A Responses WebSocket-mode upstream, which takes ``POST`` requests, too; a ``Machine``. Its
    attributes may be changed at any time.

    Durations are ns, sizes bytes.
    """

    # Behaviour.
    answer: Answer = echo
    faults: FaultPlan = attrs.field(factory=FaultPlan)
    seed: int = attrs.field(default=0, validator=attrs.validators.ge(0))  # makes ids differ
    deltas: int = attrs.field(default=4, validator=attrs.validators.ge(1))  # of a text, at most
    delta_interval: int = attrs.field(default=0, validator=attrs.validators.ge(0))  # 0: all at once
    path: str = "/v1/responses"
    tokens: frozenset[str] | None = None  # bearer tokens that are accepted; None: any
    silent_on_unknown_anchor: bool = False  # neither an error nor response.created
    error_shape: ErrorShape = ErrorShape.FULL
    lifetime: int | None = None  # age of a connection from which create frames are refused
    lifetime_grace: int | None = None  # from that refusal to the close; None: the client closes
    context_window: int | None = None  # tokens
    max_message: int = 64 * 1024 * 1024  # a larger one gets close code 1009
    max_post: int = 64 * 1024 * 1024  # of a request's body over HTTP; a larger one gets a 413
    ignores_stream: bool = False  # answers over HTTP are JSON, also if a stream is asked for

    # Observations.
    requests: list[CreateFrame] = attrs.field(factory=list, init=False)
    turns: list[Turn] = attrs.field(factory=list, init=False)
    accepted: int = attrs.field(default=0, init=False)  # TCP connections, ended ones included
    upgrades: int = attrs.field(default=0, init=False)  # answered with 101
    posts: int = attrs.field(default=0, init=False)  # turns that came over HTTP
    rejections: int = attrs.field(default=0, init=False)  # answered with another status
    http_requests: list[api.HttpRequest] = attrs.field(factory=list, init=False)
    malformed: int = attrs.field(default=0, init=False)  # frames that are not create frames
    pongs: int = attrs.field(default=0, init=False)  # in answer to pings of ``ReadSlowly``

    _connections: dict[int, Connection] = attrs.field(factory=dict, init=False)
    _touched: dict[int, Connection] = attrs.field(factory=dict, init=False)
    _deadlines: dict[int, Deadline] = attrs.field(factory=dict, init=False)
    _storage: context.Storage = attrs.field(factory=context.Storage, init=False)
    _numbers: int = attrs.field(default=0, init=False)
    _creates: int = attrs.field(default=0, init=False)
    _now: int = attrs.field(default=0, init=False)
    _draining: bool = attrs.field(default=False, init=False)
    _stop_at: int = attrs.field(default=0, init=False)  # ns, the deadline of a drain
    _stopped: bool = attrs.field(default=False, init=False)

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def response_id(self, number: int) -> str:
        """The id of the response to the ``number``-th create frame."""
        return f"resp_{self._hex(number)}"

    def keep(self, item: Json, key: str) -> None:
        """Store ``item`` for clients with the bearer token ``key``, as if a response had produced
        it: ``item_reference`` finds it by its ``id``."""
        self._storage.add_item(b"Bearer " + key.encode(), item)

    # -- Machine

    def new_connection(self) -> int:
        """The number of a connection that was just accepted."""
        self._numbers += 1
        return self._numbers

    def next_timeout(self) -> Deadline | None:
        """When ``TimeoutReached`` is to be reported if nothing else happens first."""
        due = list(self._deadlines.values())
        if self._draining and not self._stopped:
            due.append(Deadline(self._stop_at, Timer.DRAIN))
        return min(due, key=lambda d: d.at, default=None)

    def handle(self, event: TransportEvent, now: int) -> list[TransportEffect]:
        """Handle ``event`` at ``now`` (ns, monotonic); the effects, in order.

        All bytes of one call for a connection are in one ``Send``. Events of unknown connections
        are stale and have no effect.
        """
        self._now = max(now, self._now)
        effects: list[TransportEffect] = []
        match event:
            case Accepted(number):
                self._accept(number)
            case DrainRequested():
                self._drain()
                effects.append(StopListening())
            case TimeoutReached():
                pass  # whatever is due is done below, after any event
            case AcceptFailed():
                pass  # there is no unused capacity to report
            case Connected() | ConnectFailed():
                pass  # it never opens a connection
            case Started() | StoreAnswered() | ResponseDeleted():
                pass  # it has no store, and no upstream
            case RequestBegun() | RequestEnded() | WebSocketMessageReceived():
                raise LocalProtocolError("the emulator takes connections, not requests")
            case _:
                conn = self._connections.get(event.conn)
                if conn is not None:
                    self._on_connection(conn, event)
        for number, deadline in list(self._deadlines.items()):
            if deadline.at <= self._now and number in self._connections:
                self._deadline_reached(self._connections[number])
        effects += self._flush()
        drained = not self._connections or self._stop_at <= self._now
        if self._draining and not self._stopped and drained:
            self._stopped = True
            effects.append(Stop())
        return effects

    # -- connections

    def _accept(self, number: int) -> None:
        self.accepted += 1
        ws = WebSocketServer(max_message=self.max_message)
        conn = Connection(number, self.accepted, self._now, ws)
        self._connections[number] = self._touched[number] = conn
        if self._draining:
            conn.end = End.CLOSE
        for fault in self.faults.at(conn.ordinal, Point.ON_CONNECT):
            injection.strike_before_upgrade(conn, fault.action)

    def _drain(self) -> None:
        if not self._draining:
            self._draining = True
            self._stop_at = self._now + CLOSE_GRACE
        for conn in self._connections.values():
            if conn.end is None:
                self._touched[conn.number] = conn
                if conn.ws.is_open:
                    conn.out += conn.ws.close(1001, "the server is going away")
                conn.finish(End.CLOSE)

    def _on_connection(
        self,
        conn: Connection,
        event: DataReceived | EofReceived | Disconnected | DataSent | WriteBlocked | WriteUnblocked,
    ) -> None:
        self._touched[conn.number] = conn
        match event:
            case DataReceived(_, data):
                if not conn.deaf and conn.end is None:
                    self._receive(conn, data)
            case EofReceived():
                if conn.end is None:  # also a frozen connection, so that its socket is not leaked
                    conn.finish(End.CLOSE)
            case Disconnected():
                conn.finish(End.GONE)
            case DataSent():
                if conn.end is End.ABORTING:
                    conn.end = End.ABORT
            case WriteBlocked():
                conn.blocked = True
            case WriteUnblocked():
                conn.blocked = False
                self._advance(conn)
            case _:
                assert_never(event)

    def _receive(self, conn: Connection, data: bytes) -> None:
        if conn.http is not None and conn.http.between_requests and conn.opening is None:
            conn.opening = bytearray()  # clients with a pool also reuse connections for upgrades
        if conn.opening is not None:
            conn.opening += data
            is_http = self._begins_http(conn.opening)
            if is_http is None:
                return
            data, conn.opening = bytes(conn.opening), None
            if not is_http:
                conn.http = None
            elif conn.http is None:
                conn.http = HttpTurns(self.max_post, self.ignores_stream)
        if conn.http is not None:
            self._receive_requests(conn, conn.http, data)
        else:
            self._receive_messages(conn, data)

    def _begins_http(self, opening: bytearray) -> bool | None:
        """Whether ``opening`` begins a request that asks for no upgrade; None if more of it has to
        be seen."""
        head, end, _ = bytes(opening).partition(b"\r\n\r\n")
        line = _HTTP.match(opening)
        if line is None:
            return None if opening[:1].isupper() and b"\n" not in opening and not end else False
        if not end and len(opening) <= _MAX_HEAD:
            return None
        path = urlsplit(line[2].decode("ascii")).path
        upgrade = _UPGRADE.search(head) is not None
        return not upgrade and not (line[1] == b"GET" and path == self.path)

    def _receive_requests(self, conn: Connection, http: HttpTurns, data: bytes) -> None:
        http.receive(data)
        while conn.end is None and (request := http.next_request()) is not None:
            if isinstance(request, Error):
                conn.send_error(request, None)
            elif (request.method, request.path) != ("POST", self.path):
                conn.out += http.answer(self._answer_http(request))
            elif (error := self._post_error(conn, request)) is not None:
                conn.send_error(error, None)
            else:
                self.posts += 1
                self._message(conn, http.create_frame(request))
        conn.out += http.take_interim()
        self._received_part(conn, http.mid_message)

    def _post_error(self, conn: Connection, request: api.HttpRequest) -> Error | None:
        conn.headers = request.headers
        conn.authorization = request.authorization
        return self._request_error("POST", request.path, conn.authorization)

    def _answer_http(self, request: api.HttpRequest) -> api.HttpAnswer:
        self.http_requests.append(request)
        if not self._is_authorized(request.authorization):
            return api.refuse(_WRONG_KEY)
        web = api.HttpApi(self._storage, self._mark, self._wall_clock)
        answer = web.answer(request)
        if request.method == "DELETE" and answer.status == 200:
            self._evict(request)
        return answer

    def _evict(self, request: api.HttpRequest) -> None:
        """Drop a response that was deleted from the caches of connections, too."""
        name = request.path.rpartition("/")[2]
        for conn in self._connections.values():
            if conn.authorization == request.authorization:
                for lane, prior in list(conn.cache.items()):
                    if name in prior.ids:
                        del conn.cache[lane]

    def _mark(self) -> str:
        """Makes the ids of one answer over HTTP differ from all others."""
        return f"{self._hex(self._creates)}{len(self.http_requests):08x}"

    def _receive_messages(self, conn: Connection, data: bytes) -> None:
        for event in conn.ws.receive(data):
            match event:
                case UpgradeRequested(target, headers):
                    self._upgrade(conn, target, headers)
                case MessageReceived(raw):
                    if not conn.mute:
                        self._message(conn, raw)
                case CloseReceived():
                    conn.out += conn.ws.data_to_send()
                    conn.finish(End.CLOSE)
                case Failed():
                    self.rejections += not conn.headers
                    conn.out += conn.ws.data_to_send()
                    conn.finish(End.CLOSE)
                case PongReceived():
                    if conn.slow is not None:
                        conn.slow.pongs += 1
                        self.pongs += 1
                case Upgraded() | UpgradeRejected():
                    raise AssertionError("a server is not answered")
                case _:
                    assert_never(event)
            if conn.deaf or conn.end is not None:
                return
        conn.out += conn.ws.data_to_send()
        self._received_part(conn, conn.ws.mid_message)

    def _received_part(self, conn: Connection, mid_message: bool) -> None:
        """A part of a frame or request was read, or the whole of it."""
        if mid_message and not conn.mute:
            if conn.slow is None:
                self._fault_while_receiving(conn)
            else:
                conn.read_slowly(conn.slow, self._now)
        elif not mid_message:
            conn.slow = None
        self._advance(conn)

    def _upgrade(self, conn: Connection, target: str, headers: list[tuple[bytes, bytes]]) -> None:
        conn.headers = headers
        conn.authorization = next((v for n, v in headers if n == b"authorization"), None)
        for fault in self.faults.at(conn.ordinal, Point.ON_UPGRADE):
            injection.strike_before_upgrade(conn, fault.action)
        if not conn.mute and conn.end is None:
            error = self._request_error("GET", target, conn.authorization)
            if error is not None:
                conn.reject(errors.http_answer(error))
            else:
                self.upgrades += 1
                conn.out += conn.ws.accept()
        self.rejections += conn.rejected

    def _request_error(self, method: str, target: str, authorization: bytes | None) -> Error | None:
        if urlsplit(target).path != self.path:
            return Error(404, None, "invalid_request_error", f"Invalid URL ({method} {target})")
        if not self._is_authorized(authorization):
            return _WRONG_KEY
        return None

    def _is_authorized(self, authorization: bytes | None) -> bool:
        if self.tokens is None:
            return True
        scheme, _, token = (authorization or b"").partition(b" ")
        return scheme.lower() == b"bearer" and token.decode("latin-1") in self.tokens

    def _deadline_reached(self, conn: Connection) -> None:
        self._touched[conn.number] = conn
        if conn.close_at is not None and conn.close_at <= self._now:
            conn.finish(End.CLOSE if conn.end is None else End.ABORT)
        elif conn.retire_at is not None and conn.retire_at <= self._now:
            conn.close(1001, "the connection is past its lifetime", self._now)
        else:
            if conn.slow is not None and conn.slow.due <= self._now:
                conn.read_on(conn.slow, self._now)
            self._advance(conn)

    def _flush(self) -> list[TransportEffect]:
        effects: list[TransportEffect] = []
        for number, conn in self._touched.items():
            effects += conn.flush(self._now)
            if conn.end is End.GONE:
                self._connections.pop(number, None)
            deadline = conn.deadline()
            if deadline is None:
                self._deadlines.pop(number, None)
            else:
                self._deadlines[number] = deadline
        self._touched.clear()
        return effects

    # -- create frames

    def _message(self, conn: Connection, raw: bytes) -> None:
        body = decode(raw)
        if not isinstance(body, dict):
            self.malformed += 1
            self._send_error(
                conn, None, resource.bad("invalid_json", "The message is not a JSON object.")
            )
            return
        if body.get("type") != "response.create":
            self.malformed += 1
            message = f"Unknown event type {body.get('type')!r}; expected 'response.create'."
            self._send_error(conn, None, resource.bad("invalid_value", message, "type"))
            return
        self._creates += 1
        request = CreateFrame(self._creates, conn.number, conn.headers, raw, body, self._now)
        self.requests.append(request)
        error = self._find_lane(conn, request)
        if error is None and self._is_past_lifetime(conn):
            message = "This connection has reached its time limit; please open a new one."
            error = resource.bad("websocket_connection_limit_reached", message)
        if error is None:
            conn.waiting.append(request)
        else:
            self._send_error(conn, request.lane, error)

    def _find_lane(self, conn: Connection, request: CreateFrame) -> Error | None:
        lane = request.body.get("stream_id")
        if lane is None:
            return None
        if not isinstance(lane, str) or not _STREAM_ID.fullmatch(lane):
            message = "stream_id must match ^[A-Za-z0-9_.-]{1,256}$."
            return resource.bad("invalid_stream_id", message, "stream_id")
        request.lane = lane
        if lane not in conn.lanes and len(conn.lanes) >= MAX_LANES:
            message = f"A connection may use at most {MAX_LANES} streams."
            return resource.bad("websocket_stream_limit_reached", message, "stream_id")
        conn.lanes.add(lane)
        return None

    def _is_past_lifetime(self, conn: Connection) -> bool:
        young = self.lifetime is None or self._now < conn.opened_at + self.lifetime
        if young or conn.http is not None:
            return False
        if self.lifetime_grace is not None and conn.retire_at is None:
            conn.retire_at = self._now + self.lifetime_grace
        return True

    def _advance(self, conn: Connection) -> None:
        """Start and run the turns that can go on: lanes in parallel, each lane first in,
        first out."""
        moved = True
        while moved and not conn.blocked:
            moved = False
            for request in list(conn.waiting):
                if conn.mute or len(conn.running) >= MAX_IN_FLIGHT:
                    break
                if request.lane not in conn.running:
                    conn.waiting.remove(request)
                    self._start(conn, request)
                    moved = True
            for lane, running in list(conn.running.items()):
                if conn.mute:
                    return
                self._run(conn, running)
                if not running.steps and not running.stuck:
                    del conn.running[lane]
                    moved = True
        if conn.http is not None and conn.http.must_close and conn.end is None:
            conn.finish(End.CLOSE)

    def _start(self, conn: Connection, request: CreateFrame) -> None:
        turn = Turn(request, self.response_id(request.number))
        running = RunningTurn(turn, due=self._now + self.delta_interval)
        self.turns.append(turn)
        conn.running[request.lane] = running
        for fault in self._faults(request, Point.BEFORE_CREATED):
            if not injection.strike(conn, running, fault.action, self._now):
                return
        error = self._prepare(conn, running)
        if error is not None:
            conn.refuse(running, attrs.evolve(error, shape=self.error_shape), self._now)

    def _prepare(self, conn: Connection, running: RunningTurn) -> Error | None:
        """Check the request against its context and prepare the steps of its answer; the error if
        it fails."""
        request = running.request
        error = resource.invalid(request.body)
        if error is not None:
            return error
        parent: context.PriorResponse | None = context.NO_RESPONSE
        if request.anchor is not None:
            parent = self._prior_response(conn, request.anchor)
            if parent is None and self.silent_on_unknown_anchor:
                running.silence()
                return None
        if parent is None:
            message = f"Previous response with id '{request.anchor}' not found."
            return resource.bad("previous_response_not_found", message, "previous_response_id")
        if (name := resource.conversation_in(request.body)) is not None:
            found = self._enter(conn, running, name)
            if isinstance(found, Error):
                return found
            parent = context.context_of(found)
        cached = conn.cache.values()
        prepared = context.prepare(request, parent, cached, self._storage, conn.authorization)
        if isinstance(prepared, Error):
            return prepared
        running.given = prepared.given
        if self.context_window is not None and request.context_tokens > self.context_window:
            message = (
                "Your input exceeds the context window of this model. "
                "Please adjust your input and try again."
            )
            return resource.bad("context_length_exceeded", message, "input")
        style = events.Style(
            mark=self._hex(request.number),
            deltas=self.deltas,
            created_at=self._wall_clock(),
            faults=lambda point: self._faults(request, point),
        )
        outputs = self._outputs(request, prepared.compact_only)
        running.steps.extend(events.write(running, prepared, outputs, style))
        return None

    def _enter(self, conn: Connection, running: RunningTurn, name: str) -> Conversation | Error:
        """Let a turn run in the conversation ``name``, in which none may run yet."""
        found = self._storage.conversation(conn.authorization, name)
        if found is None:
            return conversations.unknown(name)
        for other in self._connections.values():
            for one in other.running.values():
                if one.conversation is found and one.turn.outcome is Outcome.RUNNING:
                    return conversations.locked()
        error = found.duplicate(running.request.input)
        if error is not None:
            return error
        running.conversation = found
        return found

    def _prior_response(self, conn: Connection, anchor: str) -> context.PriorResponse | None:
        """The response with the id ``anchor``, from any lane's cache or from storage."""
        for prior in conn.cache.values():
            if anchor in prior.ids:
                return prior
        return self._storage.response(conn.authorization, anchor)

    # -- turns

    def _outputs(self, request: CreateFrame, triggered: bool) -> list[Output]:
        """The output of the turn. ``triggered``: the input asks for a compaction only."""
        if request.body.get("generate") is False:
            return []
        compaction: Json = {
            "type": "compaction",
            "encrypted_content": answers.seal({"users": answers.count_users(request.context)}),
        }
        if triggered:
            return [compaction]
        threshold = context.compact_threshold(request.body)
        if threshold is not None and request.context_tokens > threshold:
            return [compaction, *self.answer(request)]
        return list(self.answer(request))

    def _faults(self, request: CreateFrame, point: Point) -> list[Fault]:
        found = self.faults.at(request.number, point)
        return [fault for fault in found if injection.is_met(request, fault.when)]

    def _run(self, conn: Connection, running: RunningTurn) -> None:
        """Send the turn's steps, until one is not due yet or the turn has ended."""
        steps = running.steps
        while steps:
            step = steps[0]
            if isinstance(step, Fault):
                steps.popleft()
                if not injection.strike(conn, running, step.action, self._now):
                    return
            elif isinstance(step, Finish):
                steps.popleft()
                self._complete(conn, running, step)
            else:
                if self.delta_interval and step["type"].endswith(".delta"):
                    if running.due > self._now:
                        return
                    running.due += self.delta_interval
                steps.popleft()
                if Change.NO_CREATED in running.changes and step["type"] in _OPENING:
                    continue
                conn.send_event(running, step)

    def _complete(self, conn: Connection, running: RunningTurn, finish: Finish) -> None:
        turn = running.turn
        event = events.terminal(running, finish, self._wall_clock())
        conn.send_event(running, event)
        conn.ended = EndedResponse(turn.response_id, encode(event), conn.delta)
        sent = event.get("response")  # a Change may have removed or replaced it
        turn.usage = sent.get("usage") if isinstance(sent, dict) else None
        if Change.CANCELLED in running.changes:
            turn.outcome = Outcome.FAILED
            return
        turn.outcome = Outcome.INCOMPLETE if finish.incomplete else Outcome.COMPLETED
        if conn.http is None:
            conn.cache[turn.request.lane] = finish.prior
        if running.conversation is not None:
            items = (*running.given, *finish.output)
            mark = self._hex(turn.request.number)
            self._storage.extend(conn.authorization, running.conversation, items, mark)
        if finish.response["store"]:
            self._storage.add_response(conn.authorization, finish.prior)
            if isinstance(sent, dict):
                stored = context.Resource(sent, turn.request.context)
                self._storage.add_resource(conn.authorization, finish.prior, stored)

    def _send_error(self, conn: Connection, lane: str | None, error: Error) -> None:
        conn.send_error(attrs.evolve(error, shape=self.error_shape), lane)

    # -- faults

    def _fault_while_receiving(self, conn: Connection) -> None:
        faults = self.faults.at(self._creates + 1, Point.WHILE_RECEIVING)
        slow = [fault.action for fault in faults if isinstance(fault.action, ReadSlowly)]
        if slow:
            conn.slow = SlowReading(slow[0], self._now + slow[0].interval)
            conn.pause = True
            return
        if not faults:
            return
        self._creates += 1  # the frame counts, although it will never be complete
        conn.deaf = conn.pause = True
        for fault in faults:
            if not injection.strike(conn, None, fault.action, self._now):
                return

    # -- names and times

    def _hex(self, number: int) -> str:
        return f"{self.seed:016x}{number:032x}"

    def _wall_clock(self) -> int:
        """Unix seconds."""
        return _EPOCH + self._now // NS_PER_SECOND
