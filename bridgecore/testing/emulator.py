"""An upstream to test against: a Responses WebSocket-mode service as a machine without sockets.

What belongs here: how such a service behaves (lanes, continuation cache, storage, limits, errors)
and what it answers. It speaks the vocabulary of ``wire/transport.py``, so that any adapter serves
it; what may go wrong is in ``faults.py``.

Everything it says follows from its settings and its input: there is no randomness, and times come
from ``now``. The answer to a turn depends on the turn's *effective context* alone (what the chain
holds, plus this input), so a conversation that was rebuilt from a transcript gets the very answer
that the unbroken one would have got:

* to a user's text: ``turn N: TEXT``, N counting the user messages of the context;
* to ``call tool NAME ARGS``, as the input's last item: a function call, without ARGS of ``{}``;
* to function call outputs that end an input: ``turn N: NAME returned OUTPUT``;
* to ``repeat N ...``: N deltas, ``1 `` to ``N ``.

Its ``usage`` follows from the effective context, too: what a model reads of the items
(``count_tokens``), and of instructions and tools. Ids, statuses and whatever else is there for
machines cost nothing, so a context costs the same whichever way it came.

The path of a create frame: ``_message`` reads it and queues it for its lane; ``_start`` checks it
against the chain and writes its events down as steps; ``_run`` says the steps, as pacing and the
peer's reading allow, and meets the faults that stand between them.
"""

from __future__ import annotations

import enum
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise, takewhile
from typing import Any, Final, TypeAlias, assert_never
from urllib.parse import urlsplit

import attrs
import msgspec

from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer
from bridgecore.testing.faults import (
    Abort,
    Action,
    CloseWith,
    Error,
    ErrorShape,
    Fault,
    FaultPlan,
    Freeze,
    Garbage,
    Point,
    Reject,
    SendEvents,
    Silence,
)
from bridgecore.wire.transport import Abort as AbortConnection
from bridgecore.wire.transport import (
    Accepted,
    AcceptFailed,
    Close,
    Connected,
    ConnectFailed,
    DataReceived,
    DataSent,
    Disconnected,
    DrainRequested,
    EofReceived,
    PauseReading,
    Send,
    Stop,
    StopListening,
    TimeoutReached,
    TransportEffect,
    TransportEvent,
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

Json: TypeAlias = dict[str, Any]

MAX_IN_FLIGHT: Final = 16  # responses of one connection that run at once; further ones wait
MAX_LANES: Final = 32  # distinct named lanes of one connection
MAX_REPEAT: Final = 100_000  # deltas that ``repeat`` can ask for

_EPOCH: Final = 1_767_225_600  # Unix seconds at now=0: where the clock starts is not told
_CLOSE_GRACE: Final = 2 * NS_PER_SECOND  # for a peer to take what is said last, and answer it
_STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_CALL_TOOL = re.compile(r"call tool ([A-Za-z0-9_.-]+)[ \t]*([^\n]*)")
_REPEAT = re.compile(r"repeat ([0-9]{1,9})\b")
_TERMINAL = frozenset({"response.completed", "response.failed", "response.incomplete", "error"})

_encode = msgspec.json.encode


# ------------------------------------------------------------------ what it was asked


@attrs.define(eq=False)
class CreateRequest:
    """A ``response.create`` frame as the emulator saw it."""

    number: int  # 1 for the first create frame of the emulator
    conn: int
    headers: list[tuple[bytes, bytes]]  # of the connection's upgrade request, names lower-case
    raw: bytes
    body: Json
    at: int  # ns, when the frame was complete
    lane: str | None = None
    context: tuple[Json, ...] = ()  # effective: chain, then input; set when the turn starts
    context_tokens: int = 0  # with instructions and tools; set when the turn starts

    @property
    def input(self) -> list[Json]:
        """The frame's own input items; a plain string is one user message."""
        given = self.body.get("input")
        if isinstance(given, str):
            content = [{"type": "input_text", "text": given}]
            return [{"type": "message", "role": "user", "content": content}]
        return given if isinstance(given, list) else []

    @property
    def anchor(self) -> str | None:
        """``previous_response_id``."""
        anchor = self.body.get("previous_response_id")
        return anchor if isinstance(anchor, str) else None


class Outcome(enum.Enum):
    """What became of a turn."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"  # ended with an error frame, or with a scripted terminal event
    SILENT = "silent"  # nothing more will be said about it
    LOST = "lost"  # its connection ended first


@attrs.define(eq=False)
class Turn:
    """A create frame whose lane came to it, and what became of it."""

    request: CreateRequest
    response_id: str
    outcome: Outcome = Outcome.RUNNING
    usage: Json | None = None  # as reported when it completed
    _sequence: int = attrs.field(default=0, init=False)
    _steps: deque[_Step] = attrs.field(factory=deque, init=False)
    _due: int = attrs.field(default=0, init=False)  # ns, when the next delta may go
    _stuck: bool = attrs.field(default=False, init=False)  # holds its lane for ever


# ------------------------------------------------------------------ what it answers


@attrs.frozen
class Text:
    """An assistant's message. ``deltas`` must join to ``text``; None: the emulator splits it."""

    text: str
    deltas: tuple[str, ...] | None = None


@attrs.frozen
class ToolCall:
    """A function call; the call id is the emulator's, unique in its response."""

    name: str
    arguments: str = "{}"


Output: TypeAlias = Text | ToolCall | Json  # an object is an output item, passed on as it is
Answer: TypeAlias = Callable[[CreateRequest], Sequence[Output]]


def echo(request: CreateRequest) -> Sequence[Output]:
    """The answer the module's docstring describes."""
    items = request.input
    users = [item for item in request.context if item.get("role") == "user"]
    turn = f"turn {len(users)}: "
    if items and _is_output(items[-1]):
        # Those before them were told when they were new, whichever way they came this time.
        tail = [*takewhile(_is_output, reversed(request.context))][::-1]
        names = {
            item.get("call_id"): item.get("name") for item in request.context if _is_call(item)
        }
        said = (
            f"{names[item.get('call_id')]} returned {_text(item.get('output'))}" for item in tail
        )
        return [Text(turn + ", ".join(said))]
    text = _text(users[-1].get("content")) if users else ""
    if items and items[-1].get("role") == "user":
        if call := _CALL_TOOL.search(text):
            return [ToolCall(call[1], call[2].strip() or "{}")]
        if repeat := _REPEAT.match(text):
            deltas = tuple(f"{n} " for n in range(1, min(int(repeat[1]), MAX_REPEAT) + 1))
            return [Text("".join(deltas), deltas)]
    return [Text(turn + text)]


def _text(content: object) -> str:
    """The text of a message's content or of a tool's output: a string or a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def _is_call(item: Json) -> bool:
    return str(item.get("type")).endswith("_call") and "call_id" in item


def _is_output(item: Json) -> bool:
    return str(item.get("type")).endswith("_call_output")


def _split(text: str, count: int) -> tuple[str, ...]:
    """``text`` in at most ``count`` parts of nearly equal length, none of them empty."""
    count = max(1, min(count, len(text)))
    edges = [len(text) * n // count for n in range(count + 1)]
    return tuple(text[a:b] for a, b in pairwise(edges) if a < b)


# What is in an item for machines: no model reads it, and a service that is shown an item again
# without it takes it for the same.
_FOR_MACHINES: Final = frozenset({"type", "role", "id", "call_id", "status", "logprobs"})


def count_tokens(items: Iterable[Json]) -> int:
    """What ``items`` cost: a token for four bytes, rounded up, of what a model reads of them."""
    return _tokens(_read_size(items))


def _read_size(values: Iterable[Any]) -> int:
    """Bytes of what a model reads of ``values``: texts, and numbers as JSON writes them."""
    size = 0
    left = list(values)  # what could be read may be nested more deeply than calls can
    while left:
        value = left.pop()
        if isinstance(value, str):
            size += len(value) if value.isascii() else len(value.encode(errors="replace"))
        elif isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += [part for name, part in value.items() if name not in _FOR_MACHINES]
        elif value is not None:
            size += len(_encode(value))
    return size


def _tokens(size: int) -> int:
    """Tokens of ``size`` bytes: four bytes each, rounded up."""
    return -(-size // 4)


# ------------------------------------------------------------------ state


@attrs.frozen
class _Chain:
    """A completed response as something to continue from."""

    id: str
    items: tuple[Json, ...]
    size: int  # bytes that a model reads of the items


@attrs.frozen
class _Finish:
    """The last step: the terminal event, and the chain that it makes."""

    output: list[Json]
    usage: Json
    chain: _Chain
    response: Json


_Step: TypeAlias = Json | Fault | _Finish


class _End(enum.Enum):
    CLOSE = enum.auto()  # flush, then close
    ABORT = enum.auto()  # reset, but first say what is to be said
    ABORTING = enum.auto()  # reset once that is with the operating system
    ENDED = enum.auto()  # the adapter knows


@attrs.define(eq=False)
class _Connection:
    number: int
    ordinal: int  # 1 for the first accepted connection
    opened_at: int
    ws: WebSocketServer
    headers: list[tuple[bytes, bytes]] = attrs.Factory(list)
    authorization: bytes | None = None
    lanes: set[str] = attrs.Factory(set)  # names used so far
    cache: dict[str | None, _Chain] = attrs.Factory(dict)  # the latest response of each lane
    waiting: list[CreateRequest] = attrs.Factory(list)
    running: dict[str | None, Turn] = attrs.Factory(dict)
    out: bytearray = attrs.Factory(bytearray)
    end: _End | None = None
    pause: bool = False  # PauseReading is to be told
    mute: bool = False  # frozen, or in its closing handshake: no turn says anything
    deaf: bool = False  # input is dropped
    blocked: bool = False  # the peer does not read
    close_at: int | None = None  # ns, when the closing handshake has taken too long
    retire_at: int | None = None  # ns, when a connection past its lifetime is closed

    def say(self, data: bytes) -> None:
        self.out += self.ws.send_text(data)


# ------------------------------------------------------------------ the machine


@attrs.define(kw_only=True, eq=False)
class Emulator:
    """A Responses WebSocket-mode upstream; a ``Machine``. Its attributes may change at any time.

    Durations are ns, sizes bytes.
    """

    # How it behaves.
    answer: Answer = echo
    faults: FaultPlan = attrs.field(factory=FaultPlan)
    seed: int = attrs.field(default=0, validator=attrs.validators.ge(0))  # told apart by ids
    deltas: int = attrs.field(default=4, validator=attrs.validators.ge(1))  # of a text, at most
    delta_interval: int = attrs.field(default=0, validator=attrs.validators.ge(0))  # 0: at one go
    path: str = "/v1/responses"
    tokens: frozenset[str] | None = None  # bearer tokens that are let in; None: anybody is
    silent_on_unknown_anchor: bool = False  # no error, and no response.created either
    error_shape: ErrorShape = ErrorShape.FULL
    lifetime: int | None = None  # age of a connection from which create frames are refused
    lifetime_grace: int | None = None  # from that refusal to our close; None: the client closes
    context_window: int | None = None  # tokens
    max_message: int = 64 * 1024 * 1024

    # What it has seen.
    requests: list[CreateRequest] = attrs.field(factory=list, init=False)
    turns: list[Turn] = attrs.field(factory=list, init=False)
    accepted: int = attrs.field(default=0, init=False)  # TCP connections, gone ones included
    upgrades: int = attrs.field(default=0, init=False)  # answered with 101
    rejections: int = attrs.field(default=0, init=False)  # answered with anything else
    malformed: int = attrs.field(default=0, init=False)  # frames that are no create frames

    _connections: dict[int, _Connection] = attrs.field(factory=dict, init=False)
    _touched: dict[int, _Connection] = attrs.field(factory=dict, init=False)
    _deadlines: dict[int, Deadline] = attrs.field(factory=dict, init=False)
    _storage: dict[tuple[bytes | None, str], _Chain] = attrs.field(factory=dict, init=False)
    _numbers: int = attrs.field(default=0, init=False)
    _creates: int = attrs.field(default=0, init=False)
    _now: int = attrs.field(default=0, init=False)
    _draining: bool = attrs.field(default=False, init=False)
    _stop_at: int = attrs.field(default=0, init=False)  # ns, when a drain ends at the latest
    _stopped: bool = attrs.field(default=False, init=False)

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def response_id(self, number: int) -> str:
        """The id of the response to the ``number``-th create frame."""
        return f"resp_{self._hex(number)}"

    # -- Machine

    def new_connection(self) -> int:
        """A number for a connection that was just accepted."""
        self._numbers += 1
        return self._numbers

    def next_timeout(self) -> Deadline | None:
        """When ``TimeoutReached`` is to be reported if nothing else happens first."""
        due = list(self._deadlines.values())
        if self._draining and not self._stopped:
            due.append(Deadline(self._stop_at, Timer.DRAIN))
        return min(due, key=lambda d: d.at, default=None)

    def handle(self, event: TransportEvent, now: int) -> list[TransportEffect]:
        """Take in what happened at ``now`` (ns, monotonic); what to do about it, in order.

        All that one call has to say to a connection is one ``Send``. Events of unknown connections
        are stale and do nothing.
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
                pass  # all that it has is in use
            case Connected() | ConnectFailed():
                pass  # it never asks for a connection
            case _:
                conn = self._connections.get(event.conn)
                if conn is not None:
                    self._happened(conn, event)
        for number, deadline in list(self._deadlines.items()):
            if deadline.at <= self._now and number in self._connections:
                self._due(self._connections[number])
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
        conn = _Connection(number, self.accepted, self._now, ws)
        self._connections[number] = self._touched[number] = conn
        if self._draining:
            conn.end = _End.CLOSE
        for fault in self.faults.at(conn.ordinal, Point.ON_CONNECT):
            self._act_before_upgrade(conn, fault.action)

    def _drain(self) -> None:
        if not self._draining:
            self._draining = True
            self._stop_at = self._now + _CLOSE_GRACE
        for conn in self._connections.values():
            if conn.end is None:
                self._touched[conn.number] = conn
                if conn.ws.is_open:
                    conn.out += conn.ws.close(1001, "the server is going away")
                self._finish(conn, _End.CLOSE)

    def _happened(
        self,
        conn: _Connection,
        event: DataReceived | EofReceived | Disconnected | DataSent | WriteBlocked | WriteUnblocked,
    ) -> None:
        self._touched[conn.number] = conn
        match event:
            case DataReceived(_, data):
                if not conn.deaf and conn.end is None:
                    self._receive(conn, data)
            case EofReceived():
                if conn.end is None:  # a frozen connection too: its socket is not to be leaked
                    self._finish(conn, _End.CLOSE)
            case Disconnected():
                self._finish(conn, _End.ENDED)
                del self._connections[conn.number]
            case DataSent():
                if conn.end is _End.ABORTING:
                    conn.end = _End.ABORT
            case WriteBlocked():
                conn.blocked = True
            case WriteUnblocked():
                conn.blocked = False
                self._advance(conn)
            case _:
                assert_never(event)

    def _receive(self, conn: _Connection, data: bytes) -> None:
        for event in conn.ws.receive(data):
            match event:
                case UpgradeRequested(target, headers):
                    self._upgrade(conn, target, headers)
                case MessageReceived(raw):
                    if not conn.mute:
                        self._message(conn, raw)
                case CloseReceived():
                    conn.out += conn.ws.data_to_send()
                    self._finish(conn, _End.CLOSE)
                case Failed():
                    self.rejections += not conn.headers
                    conn.out += conn.ws.data_to_send()
                    self._finish(conn, _End.CLOSE)
                case PongReceived():
                    pass
                case Upgraded() | UpgradeRejected():
                    raise AssertionError("a server is not answered")
                case _:
                    assert_never(event)
            if conn.deaf or conn.end is not None:
                return
        conn.out += conn.ws.data_to_send()
        if conn.ws.mid_message and not conn.mute:
            self._fault_while_receiving(conn)
        self._advance(conn)

    def _upgrade(self, conn: _Connection, target: str, headers: list[tuple[bytes, bytes]]) -> None:
        conn.headers = headers
        conn.authorization = next((v for n, v in headers if n == b"authorization"), None)
        for fault in self.faults.at(conn.ordinal, Point.ON_UPGRADE):
            self._act_before_upgrade(conn, fault.action)
        if conn.mute or conn.end is not None:
            return
        if urlsplit(target).path != self.path:
            error = Error(404, None, "invalid_request_error", f"Invalid URL (GET {target})")
            self._reject(conn, _http_error(error))
        elif not self._is_let_in(conn.authorization):
            message = "Incorrect API key provided."
            error = Error(401, "invalid_api_key", "invalid_request_error", message)
            self._reject(conn, _http_error(error))
        else:
            self.upgrades += 1
            conn.out += conn.ws.accept()

    def _is_let_in(self, authorization: bytes | None) -> bool:
        if self.tokens is None:
            return True
        scheme, _, token = (authorization or b"").partition(b" ")
        return scheme.lower() == b"bearer" and token.decode("latin-1") in self.tokens

    def _reject(self, conn: _Connection, answer: Reject) -> None:
        self.rejections += 1
        conn.out += conn.ws.reject(answer.status, answer.headers, answer.body)
        conn.end = _End.CLOSE

    def _close(self, conn: _Connection, code: int, reason: str) -> None:
        """Begin the closing handshake; running turns end with it."""
        if code == 1006:
            self._finish(conn, _End.CLOSE)
            return
        conn.out += conn.ws.close(code, reason)
        self._mute(conn)
        conn.close_at = self._now + _CLOSE_GRACE

    def _finish(self, conn: _Connection, end: _End) -> None:
        self._mute(conn)
        conn.end = end

    def _mute(self, conn: _Connection) -> None:
        conn.mute = True
        conn.retire_at = None
        for turn in conn.running.values():
            turn._steps.clear()
            if turn.outcome is Outcome.RUNNING:
                turn.outcome = Outcome.LOST

    def _freeze(self, conn: _Connection) -> None:
        conn.mute = conn.deaf = True
        conn.retire_at = None
        for turn in conn.running.values():
            turn._steps.clear()
            if turn.outcome is Outcome.RUNNING:
                turn.outcome = Outcome.SILENT

    def _due(self, conn: _Connection) -> None:
        self._touched[conn.number] = conn
        if conn.close_at is not None and conn.close_at <= self._now:
            self._finish(conn, _End.CLOSE if conn.end is None else _End.ABORT)
        elif conn.retire_at is not None and conn.retire_at <= self._now:
            self._close(conn, 1001, "the connection is past its lifetime")
        else:
            self._advance(conn)

    def _flush(self) -> list[TransportEffect]:
        effects: list[TransportEffect] = []
        for number, conn in self._touched.items():
            if number in self._connections:
                if conn.out:
                    abort = conn.end is _End.ABORT
                    effects.append(Send(number, bytes(conn.out), notify=abort))
                    if abort:
                        conn.end = _End.ABORTING
                        conn.close_at = self._now + _CLOSE_GRACE
                if conn.pause:
                    effects.append(PauseReading(number))
                if conn.end is _End.CLOSE:
                    effects.append(Close(number))
                    conn.end = _End.ENDED
                elif conn.end is _End.ABORT:
                    effects.append(AbortConnection(number))
                    conn.end = _End.ENDED
                    del self._connections[number]
            conn.out.clear()
            conn.pause = False
            deadline = self._deadline(conn)
            if deadline is None:
                self._deadlines.pop(number, None)
            else:
                self._deadlines[number] = deadline
        self._touched.clear()
        return effects

    def _deadline(self, conn: _Connection) -> Deadline | None:
        if conn.end not in (None, _End.ABORTING):
            return None
        if conn.close_at is not None:
            return Deadline(conn.close_at, Timer.CLOSE_HANDSHAKE)
        due = []
        if conn.retire_at is not None:
            due.append(Deadline(conn.retire_at, Timer.LIFETIME))
        if not conn.blocked and not conn.mute:
            due += (
                Deadline(turn._due, Timer.KEEPALIVE)
                for turn in conn.running.values()
                if turn._steps
            )
        return min(due, key=lambda d: d.at, default=None)

    # -- create frames

    def _message(self, conn: _Connection, raw: bytes) -> None:
        try:
            body = msgspec.json.decode(raw)
            _encode([[[[[[[[body]]]]]]]])  # what is echoed later must not be nested too deeply
        except (msgspec.DecodeError, RecursionError):
            body = None
        if not isinstance(body, dict):
            self.malformed += 1
            self._say_error(conn, None, _bad("invalid_json", "The message is not a JSON object."))
            return
        if body.get("type") != "response.create":
            self.malformed += 1
            message = f"Unknown event type {body.get('type')!r}; expected 'response.create'."
            self._say_error(conn, None, _bad("invalid_value", message, "type"))
            return
        self._creates += 1
        request = CreateRequest(self._creates, conn.number, conn.headers, raw, body, self._now)
        self.requests.append(request)
        error = self._find_lane(conn, request)
        if error is None and self._is_past_lifetime(conn):
            message = "This connection has reached its time limit; please open a new one."
            error = _bad("websocket_connection_limit_reached", message)
        if error is None:
            conn.waiting.append(request)
        else:
            self._say_error(conn, request.lane, error)

    def _find_lane(self, conn: _Connection, request: CreateRequest) -> Error | None:
        lane = request.body.get("stream_id")
        if lane is None:
            return None
        if not isinstance(lane, str) or not _STREAM_ID.fullmatch(lane):
            message = "stream_id must match ^[A-Za-z0-9_.-]{1,256}$."
            return _bad("invalid_stream_id", message, "stream_id")
        request.lane = lane
        if lane not in conn.lanes and len(conn.lanes) >= MAX_LANES:
            message = f"A connection may use at most {MAX_LANES} streams."
            return _bad("websocket_stream_limit_reached", message, "stream_id")
        conn.lanes.add(lane)
        return None

    def _is_past_lifetime(self, conn: _Connection) -> bool:
        if self.lifetime is None or self._now < conn.opened_at + self.lifetime:
            return False
        if self.lifetime_grace is not None and conn.retire_at is None:
            conn.retire_at = self._now + self.lifetime_grace
        return True

    def _advance(self, conn: _Connection) -> None:
        """Start and run whatever may go on: lanes beside each other, each first in, first out."""
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
            for lane, turn in list(conn.running.items()):
                if conn.mute:
                    return
                self._run(conn, turn)
                if not turn._steps and not turn._stuck:
                    del conn.running[lane]
                    moved = True

    def _start(self, conn: _Connection, request: CreateRequest) -> None:
        turn = Turn(request, self.response_id(request.number))
        turn._due = self._now + self.delta_interval
        self.turns.append(turn)
        conn.running[request.lane] = turn
        for fault in self.faults.at(request.number, Point.BEFORE_CREATED):
            if not self._act(conn, turn, fault.action):
                return
        error = self._prepare(conn, turn)
        if error is not None:
            self._refuse(conn, turn, attrs.evolve(error, shape=self.error_shape))

    def _prepare(self, conn: _Connection, turn: Turn) -> Error | None:
        """Check the request against the chain and write down what to say; or what is wrong."""
        request = turn.request
        error = _invalid(request.body)
        if error is not None:
            return error
        parent = _Chain("", (), 0)
        if request.anchor is not None:
            found = self._find_chain(conn, request.anchor)
            if found is None and self.silent_on_unknown_anchor:
                self._silence(turn)
                return None
            if found is None:
                message = f"Previous response with id '{request.anchor}' not found."
                return _bad("previous_response_not_found", message, "previous_response_id")
            parent = found
        given = request.input
        request.context = (*parent.items, *given)
        size = parent.size + _read_size(given)
        fixed = _read_size([request.body.get("instructions")])
        tools = request.body.get("tools")  # a model is shown their schemas as they are
        fixed += len(_encode(tools)) if tools else 0
        request.context_tokens = _tokens(size + fixed)
        error = _unpaired(request.context)
        if error is not None:
            return error
        if self.context_window is not None and request.context_tokens > self.context_window:
            message = (
                "Your input exceeds the context window of this model. "
                "Please adjust your input and try again."
            )
            return _bad("context_length_exceeded", message, "input")
        self._write_steps(turn, size, _tokens(parent.size))
        return None

    def _find_chain(self, conn: _Connection, anchor: str) -> _Chain | None:
        for chain in conn.cache.values():
            if chain.id == anchor:
                return chain
        return self._storage.get((conn.authorization, anchor))

    # -- turns

    def _write_steps(self, turn: Turn, size: int, cached: int) -> None:
        request = turn.request
        base = _response(request, turn.response_id, self._wall_clock())
        output: list[Json] = []
        said: list[_Step] = []
        if request.body.get("generate") is not False:
            said.append({"type": "response.in_progress", "response": base})
            for index, part in enumerate(self.answer(request)):
                item, events = self._item(request.number, index, part)
                output.append(item)
                said += events
        for fault in reversed(self._faults(request, Point.MID_OUTPUT)):
            said.insert(_after_deltas(said, fault.deltas), fault)
        said_size = _read_size(output)
        produced = _tokens(said_size)
        usage = {
            "input_tokens": request.context_tokens,
            "input_tokens_details": {
                "cached_tokens": min(cached, request.context_tokens),
                "cache_write_tokens": 0,
            },
            "output_tokens": produced,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": request.context_tokens + produced,
        }
        items = (*request.context, *output)
        chain = _Chain(turn.response_id, items, size + said_size)
        turn._steps += [
            {"type": "response.created", "response": base},
            *self._faults(request, Point.AFTER_CREATED),
            *said,
            *self._faults(request, Point.BEFORE_TERMINAL),
            _Finish(output, usage, chain, base),
            *self._faults(request, Point.AFTER_TERMINAL),
        ]

    def _faults(self, request: CreateRequest, point: Point) -> list[Fault]:
        return self.faults.at(request.number, point)

    def _item(self, number: int, index: int, part: Output) -> tuple[Json, list[Json]]:
        """An output item as it ends up, and the events that bring it about."""
        mark = f"{self._hex(number)}{index:02x}"
        where: Json = {"output_index": index}
        middle: list[Json] = []
        if isinstance(part, Text):
            deltas = _split(part.text, self.deltas) if part.deltas is None else part.deltas
            begun: Json = {
                "id": f"msg_{mark}",
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
            where_text = {"item_id": begun["id"], **where, "content_index": 0}
            empty = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
            full = {**empty, "text": part.text}
            done = {**begun, "status": "completed", "content": [full]}
            middle = [
                {"type": "response.content_part.added", **where_text, "part": empty},
                *(
                    {
                        "type": "response.output_text.delta",
                        **where_text,
                        "delta": delta,
                        "logprobs": [],
                    }
                    for delta in deltas
                ),
                {
                    "type": "response.output_text.done",
                    **where_text,
                    "text": part.text,
                    "logprobs": [],
                },
                {"type": "response.content_part.done", **where_text, "part": full},
            ]
        elif isinstance(part, ToolCall):
            begun = {
                "id": f"fc_{mark}",
                "type": "function_call",
                "status": "in_progress",
                "arguments": "",
                "call_id": f"call_{mark}",
                "name": part.name,
            }
            done = {**begun, "status": "completed", "arguments": part.arguments}
            where_call = {"item_id": begun["id"], **where}
            middle = [
                *(
                    {
                        "type": "response.function_call_arguments.delta",
                        **where_call,
                        "delta": delta,
                    }
                    for delta in _split(part.arguments, self.deltas)
                ),
                {
                    "type": "response.function_call_arguments.done",
                    **where_call,
                    "name": part.name,
                    "arguments": part.arguments,
                },
            ]
        else:
            begun = done = {"id": f"item_{mark}", **part}
        return done, [
            {"type": "response.output_item.added", **where, "item": begun},
            *middle,
            {"type": "response.output_item.done", **where, "item": done},
        ]

    def _run(self, conn: _Connection, turn: Turn) -> None:
        """Say the turn's steps, until one is not due yet or the turn is over."""
        steps = turn._steps
        while steps:
            step = steps[0]
            if isinstance(step, Fault):
                steps.popleft()
                if not self._act(conn, turn, step.action):
                    return
            elif isinstance(step, _Finish):
                steps.popleft()
                self._complete(conn, turn, step)
            else:
                if self.delta_interval and step["type"].endswith(".delta"):
                    if turn._due > self._now:
                        return
                    turn._due += self.delta_interval
                steps.popleft()
                self._say_event(conn, turn, step)

    def _complete(self, conn: _Connection, turn: Turn, finish: _Finish) -> None:
        response = {
            **finish.response,
            "status": "completed",
            "completed_at": self._wall_clock(),
            "output": finish.output,
            "usage": finish.usage,
        }
        self._say_event(conn, turn, {"type": "response.completed", "response": response})
        turn.outcome = Outcome.COMPLETED
        turn.usage = finish.usage
        conn.cache[turn.request.lane] = finish.chain
        if response["store"]:
            self._storage[conn.authorization, finish.chain.id] = finish.chain

    def _say_event(self, conn: _Connection, turn: Turn, event: Json) -> None:
        event["sequence_number"] = turn._sequence
        turn._sequence += 1
        if turn.request.lane is not None:
            event["stream_id"] = turn.request.lane
        conn.say(_encode(event))

    def _refuse(self, conn: _Connection, turn: Turn, error: Error) -> None:
        """End the turn with an error frame. A lane's failed continuation evicts its parent."""
        conn.say(_error_frame(error, turn.request.lane))
        if turn.outcome is Outcome.RUNNING:
            turn.outcome = Outcome.FAILED
            if error.status >= 400:
                self._evict(conn, turn.request)
        turn._steps.clear()

    def _evict(self, conn: _Connection, request: CreateRequest) -> None:
        cached = conn.cache.get(request.lane)
        if cached is not None and cached.id == request.anchor:
            del conn.cache[request.lane]

    def _silence(self, turn: Turn) -> None:
        turn._stuck = True
        turn._steps.clear()
        if turn.outcome is Outcome.RUNNING:
            turn.outcome = Outcome.SILENT

    def _say_error(self, conn: _Connection, lane: str | None, error: Error) -> None:
        conn.say(_error_frame(attrs.evolve(error, shape=self.error_shape), lane))

    # -- faults

    def _act_before_upgrade(self, conn: _Connection, action: Action) -> None:
        if conn.end is not None:
            return
        match action:
            case CloseWith():
                self._finish(conn, _End.CLOSE)
            case Abort():
                self._finish(conn, _End.ABORT)
            case Silence() | Freeze():
                self._freeze(conn)
            case Garbage(data):
                conn.out += data
                self._freeze(conn)
            case Reject():
                self._reject(conn, action)
            case Error() | SendEvents():
                raise AssertionError("Fault does not allow this before the upgrade")
            case _:
                assert_never(action)

    def _fault_while_receiving(self, conn: _Connection) -> None:
        faults = self.faults.at(self._creates + 1, Point.WHILE_RECEIVING)
        if not faults:
            return
        self._creates += 1  # this frame is the one, though it will never be complete
        conn.deaf = conn.pause = True
        for fault in faults:
            if not self._act(conn, None, fault.action):
                return

    def _act(self, conn: _Connection, turn: Turn | None, action: Action) -> bool:
        """Let a fault strike. ``turn``: the one it meets; None while its frame is incomplete.

        Returns:
            Whether the turn goes on.
        """
        match action:
            case CloseWith(code, reason):
                self._close(conn, code, reason)
                return False
            case Abort():
                self._finish(conn, _End.ABORT)
                return False
            case Silence():
                if turn is not None:
                    self._silence(turn)
                return False
            case Freeze():
                self._freeze(conn)
                return False
            case Error():
                if turn is not None:
                    self._refuse(conn, turn, action)
                else:
                    conn.say(_error_frame(action, None))
                return False
            case Garbage(data, raw):
                if raw:
                    conn.out += data
                    self._freeze(conn)
                else:
                    conn.say(data)
                return not raw
            case SendEvents(events):
                return self._say_scripted(conn, turn, events)
            case Reject():
                raise AssertionError("Fault does not allow this after the upgrade")
            case _:
                assert_never(action)

    def _say_scripted(
        self, conn: _Connection, turn: Turn | None, events: tuple[bytes, ...]
    ) -> bool:
        for event in events:
            if turn is None:
                conn.say(event)
                continue
            data = event.replace(b"%RESPONSE_ID%", turn.response_id.encode())
            if b"%SEQUENCE%" in data:
                data = data.replace(b"%SEQUENCE%", b"%d" % turn._sequence)
                turn._sequence += 1
            conn.say(data)
            kind = _type(data)
            if kind in _TERMINAL:
                turn._steps.clear()
                if turn.outcome is Outcome.RUNNING:
                    turn.outcome = Outcome.FAILED
                    if kind in ("error", "response.failed"):
                        self._evict(conn, turn.request)
                return False
        return True

    # -- names and times

    def _hex(self, number: int) -> str:
        return f"{self.seed:016x}{number:032x}"

    def _wall_clock(self) -> int:
        """Unix seconds."""
        return _EPOCH + self._now // NS_PER_SECOND


# ------------------------------------------------------------------ JSON


def _type(event: bytes) -> str | None:
    try:
        value = msgspec.json.decode(event)
    except (msgspec.DecodeError, RecursionError):
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _after_deltas(steps: Sequence[_Step], count: int) -> int:
    """The place in ``steps`` after ``count`` deltas, or after all if they are fewer."""
    deltas = [
        index
        for index, step in enumerate(steps)
        if isinstance(step, dict) and step["type"].endswith(".delta")
    ]
    if not deltas:
        return len(steps)
    return deltas[0] if count == 0 else deltas[min(count, len(deltas)) - 1] + 1


def _bad(code: str, message: str, param: str | None = None) -> Error:
    return Error(400, code, "invalid_request_error", message, param)


def _invalid(body: Mapping[str, Any]) -> Error | None:
    """What is wrong with a create frame by itself."""
    if not isinstance(body.get("model"), str):
        return _bad("missing_required_parameter", "Missing required parameter: 'model'.", "model")
    if body.get("background") is True:
        message = "background is not supported in WebSocket mode."
        return _bad("unsupported_parameter", message, "background")
    for name, kind in (("store", bool), ("generate", bool), ("previous_response_id", str)):
        value = body.get(name)
        if value is not None and not isinstance(value, kind):
            message = f"Invalid type for '{name}': expected {kind.__name__}."
            return _bad("invalid_type", message, name)
    if body.get("conversation") is not None and body.get("previous_response_id") is not None:
        message = "conversation cannot be combined with previous_response_id."
        return _bad("mutually_exclusive_parameters", message, "conversation")
    given = body.get("input", [])
    items = given if isinstance(given, list) else []
    if not isinstance(given, str | list) or not all(isinstance(item, dict) for item in items):
        message = "Invalid type for 'input': expected a string or a list of objects."
        return _bad("invalid_type", message, "input")
    if not all(isinstance(item.get("call_id", ""), str) for item in items):
        return _bad("invalid_type", "Invalid type for 'call_id': expected a string.", "input")
    return None


def _unpaired(items: Sequence[Json]) -> Error | None:
    """Tool outputs need a call before them, and calls an output."""
    calls: set[object] = set()
    pending: dict[object, None] = {}
    for item in items:
        call_id = item.get("call_id")
        if _is_call(item):
            calls.add(call_id)
            pending[call_id] = None
        elif _is_output(item):
            if call_id not in calls:
                message = f"No tool call found for function call output with call_id {call_id}."
                return attrs.evolve(_bad("", message, "input"), code=None)
            pending.pop(call_id, None)
    for call_id in pending:
        message = f"No tool output found for function call {call_id}."
        return attrs.evolve(_bad("", message, "input"), code=None)
    return None


def _error_frame(error: Error, lane: str | None) -> bytes:
    frame: Json = {"type": "error"}
    if error.shape is not ErrorShape.NO_STATUS:
        frame["status"] = error.status
    if lane is not None:
        frame["stream_id"] = lane
    match error.shape:
        case ErrorShape.FULL | ErrorShape.NO_STATUS:
            frame["error"] = {
                "type": error.type,
                "code": error.code,
                "message": error.message,
                "param": error.param,
            }
        case ErrorShape.TERSE:
            missed = error.code == "previous_response_not_found"
            message = "Invalid `previous_response_id`." if missed else error.message
            frame["error"] = {"type": error.type, "message": message}
        case ErrorShape.CODE_IN_TYPE:
            frame["error"] = {
                "type": error.code or error.type,
                "message": error.message,
                "param": error.param,
            }
        case _:
            assert_never(error.shape)
    return _encode(frame)


def _http_error(error: Error) -> Reject:
    body = {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }
    return Reject(error.status, ((b"content-type", b"application/json"),), _encode(body))


def _response(request: CreateRequest, response_id: str, created_at: int) -> Json:
    """The response object as ``response.created`` shows it: what was asked, or its default."""
    defaults: Json = {
        "background": False,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "model": None,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
    }
    asked = {name: request.body[name] for name in defaults if request.body.get(name) is not None}
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        **defaults,
        **asked,
    }
