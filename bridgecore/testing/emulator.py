"""An emulator of the upstream: a Responses WebSocket-mode service as a machine without sockets.

What belongs here: how such a service behaves (lanes, continuation cache, storage, limits, errors)
and what it answers. It implements ``bridgecore.transport.Machine``, so any adapter can serve it;
faults are defined in ``faults.py``.

Everything that it sends follows from its settings and its input: there is no randomness, and times
come from ``now``. The default answers are described in ``answers.py``. They depend only on the
turn's *effective context*, so a rebuilt conversation gets the same answer as an unbroken one.

Its ``usage`` follows from the effective context, too: what a model reads of the items
(``count_tokens``), and of instructions and tools. Ids, statuses and the like cost nothing, so a
context costs the same in whichever form it was sent.

As the real service:

* ``item_reference`` is resolved against the context of the anchor and the stored items; 404 if it
  cannot be, as for a reasoning item that has an id and no encrypted content;
* ``max_output_tokens``: what exceeds the limit is cut off, and the response is incomplete. It can
  be continued;
* ``compaction_trigger`` as an input item: the answer is a compaction item and nothing else. With
  ``context_management``, a context of more tokens than ``compact_threshold`` is compacted before
  the answer. What precedes the latest compaction item is no longer part of the context;
* reasoning items with ``encrypted_content`` are bound to the context before them and to the model.
  In another context they are dropped, and ``input_transformations`` says so.

The path of a create frame: ``_message`` reads it and queues it for its lane; ``_start`` checks it
against its context and turns its answer into steps; ``_run`` sends the steps, as pacing and
backpressure permit, and carries out the faults between them.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, TypeAlias, assert_never
from urllib.parse import urlsplit

import attrs
import msgspec

from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer
from bridgecore.testing import answers, resource
from bridgecore.testing.answers import (
    Answer,
    CreateRequest,
    Json,
    Output,
    Reasoning,
    Text,
    ToolCall,
    echo,
)
from bridgecore.testing.faults import (
    Abort,
    Action,
    Alter,
    Change,
    CloseWith,
    Error,
    ErrorShape,
    Fault,
    FaultPlan,
    Freeze,
    Garbage,
    Point,
    ReadSlowly,
    Reject,
    SendEvents,
    Silence,
    Stale,
    StaleEvent,
    When,
)
from bridgecore.transport import Abort as AbortConnection
from bridgecore.transport import (
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
    ResumeReading,
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

MAX_IN_FLIGHT: Final = 16  # responses of one connection at a time; further ones wait
MAX_LANES: Final = 32  # distinct named lanes of one connection

_EPOCH: Final = 1_767_225_600  # Unix seconds at now=0; an arbitrary fixed date
_CLOSE_GRACE: Final = 2 * NS_PER_SECOND  # for the peer to read the last bytes and answer the close
_STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_OPENING = frozenset({"response.created", "response.in_progress"})
_TERMINAL = frozenset({"response.completed", "response.failed", "response.incomplete", "error"})


def _encode(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # half a surrogate pair, which needs an escape
        return json.dumps(value, separators=(",", ":")).encode()


# ------------------------------------------------------------------ turns


class Outcome(enum.Enum):
    """The result of a turn."""

    RUNNING = "running"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"  # cut off by max_output_tokens; can be continued
    FAILED = "failed"  # ended with an error frame, or with a scripted terminal event
    SILENT = "silent"  # nothing more will be sent for it
    LOST = "lost"  # its connection ended first


@attrs.define(eq=False)
class Turn:
    """A create frame that was started in its lane, and its result."""

    request: CreateRequest
    response_id: str
    outcome: Outcome = Outcome.RUNNING
    usage: Json | None = None  # as in its terminal event
    created_id: str = ""  # the id in response.created, if it is not response_id
    _changes: set[Change] = attrs.field(factory=set, init=False)
    _transformations: list[Json] | None = attrs.field(default=None, init=False)
    _sequence: int = attrs.field(default=0, init=False)
    _steps: deque[_Step] = attrs.field(factory=deque, init=False)
    _due: int = attrs.field(default=0, init=False)  # ns, when the next delta may be sent
    _stuck: bool = attrs.field(default=False, init=False)  # holds its lane for ever


def _split(text: str, count: int) -> tuple[str, ...]:
    """``text`` in at most ``count`` parts of nearly equal length, none of them empty."""
    count = max(1, min(count, len(text)))
    edges = [len(text) * n // count for n in range(count + 1)]
    return tuple(text[a:b] for a, b in pairwise(edges) if a < b)


# ------------------------------------------------------------------ state


@attrs.frozen
class _Chain:
    """A completed or incomplete response that can be continued."""

    ids: tuple[str, ...]  # one, except with ``Change.TWO_IDS``
    items: tuple[Json, ...]
    size: int  # bytes that a model reads of the items


@attrs.frozen
class _Finish:
    """The last step: the terminal event, and the response to continue."""

    output: list[Json]
    usage: Json
    chain: _Chain
    response: Json
    incomplete: bool


@attrs.frozen
class _Ended:
    """Events of the latest response that ended on a connection, for late copies of it."""

    response_id: str
    terminal: bytes
    delta: bytes | None


_Step: TypeAlias = Json | Fault | _Finish


class _End(enum.Enum):
    CLOSE = enum.auto()  # flush, then close
    ABORT = enum.auto()  # reset, but first write what is queued
    ABORTING = enum.auto()  # reset once the operating system has it
    ENDED = enum.auto()  # the adapter has been told


@attrs.define
class _SlowReading:
    """A create frame that is read slowly: see ``ReadSlowly``."""

    how: ReadSlowly
    due: int  # ns, when to read on
    pings: int = 0
    pongs: int = 0


@attrs.define(eq=False)
class _Connection:
    number: int
    ordinal: int  # from 1, by order of acceptance
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
    pause: bool = False  # PauseReading is to be sent
    resume: bool = False  # ResumeReading is to be sent
    mute: bool = False  # frozen, or in its closing handshake: turns send nothing
    deaf: bool = False  # input is dropped
    blocked: bool = False  # the peer does not read
    ended: _Ended | None = None
    delta: bytes | None = None  # the latest one that was sent
    slow: _SlowReading | None = None
    close_at: int | None = None  # ns, the deadline of the closing handshake
    retire_at: int | None = None  # ns, when a connection past its lifetime is closed

    def say(self, data: bytes) -> None:
        self.out += self.ws.send_text(data)


# ------------------------------------------------------------------ the machine


@attrs.define(kw_only=True, eq=False)
class Emulator:
    """A Responses WebSocket-mode upstream; a ``Machine``. Its attributes may be changed at any
    time.

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

    # Observations.
    requests: list[CreateRequest] = attrs.field(factory=list, init=False)
    turns: list[Turn] = attrs.field(factory=list, init=False)
    accepted: int = attrs.field(default=0, init=False)  # TCP connections, ended ones included
    upgrades: int = attrs.field(default=0, init=False)  # answered with 101
    rejections: int = attrs.field(default=0, init=False)  # answered with another status
    malformed: int = attrs.field(default=0, init=False)  # frames that are not create frames
    pongs: int = attrs.field(default=0, init=False)  # in answer to pings of ``ReadSlowly``

    _connections: dict[int, _Connection] = attrs.field(factory=dict, init=False)
    _touched: dict[int, _Connection] = attrs.field(factory=dict, init=False)
    _deadlines: dict[int, Deadline] = attrs.field(factory=dict, init=False)
    _storage: dict[tuple[bytes | None, str], _Chain] = attrs.field(factory=dict, init=False)
    _items: dict[tuple[bytes | None, str], Json] = attrs.field(factory=dict, init=False)  # stored
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
        self._items[b"Bearer " + key.encode(), item["id"]] = item

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
                if conn.end is None:  # also a frozen connection, so that its socket is not leaked
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
        if conn.ws.mid_message and not conn.mute:
            if conn.slow is None:
                self._fault_while_receiving(conn)
            else:
                self._read_slowly(conn, conn.slow)
        elif not conn.ws.mid_message:
            conn.slow = None
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
        """Begin the closing handshake; running turns end."""
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
            if conn.slow is not None and conn.slow.due <= self._now:
                self._read_on(conn, conn.slow)
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
                if conn.resume:
                    effects.append(ResumeReading(number))
                if conn.end is _End.CLOSE:
                    effects.append(Close(number))
                    conn.end = _End.ENDED
                elif conn.end is _End.ABORT:
                    effects.append(AbortConnection(number))
                    conn.end = _End.ENDED
                    del self._connections[number]
            conn.out.clear()
            conn.pause = conn.resume = False
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
        if conn.slow is not None:
            due.append(Deadline(conn.slow.due, Timer.PING))
        if not conn.blocked and not conn.mute:
            due += (
                Deadline(turn._due, Timer.KEEPALIVE)
                for turn in conn.running.values()
                if turn._steps
            )
        return min(due, key=lambda d: d.at, default=None)

    # -- create frames

    def _message(self, conn: _Connection, raw: bytes) -> None:
        body = _decode(raw)
        if not isinstance(body, dict):
            self.malformed += 1
            self._say_error(
                conn, None, resource.bad("invalid_json", "The message is not a JSON object.")
            )
            return
        if body.get("type") != "response.create":
            self.malformed += 1
            message = f"Unknown event type {body.get('type')!r}; expected 'response.create'."
            self._say_error(conn, None, resource.bad("invalid_value", message, "type"))
            return
        self._creates += 1
        request = CreateRequest(self._creates, conn.number, conn.headers, raw, body, self._now)
        self.requests.append(request)
        error = self._find_lane(conn, request)
        if error is None and self._is_past_lifetime(conn):
            message = "This connection has reached its time limit; please open a new one."
            error = resource.bad("websocket_connection_limit_reached", message)
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
            return resource.bad("invalid_stream_id", message, "stream_id")
        request.lane = lane
        if lane not in conn.lanes and len(conn.lanes) >= MAX_LANES:
            message = f"A connection may use at most {MAX_LANES} streams."
            return resource.bad("websocket_stream_limit_reached", message, "stream_id")
        conn.lanes.add(lane)
        return None

    def _is_past_lifetime(self, conn: _Connection) -> bool:
        if self.lifetime is None or self._now < conn.opened_at + self.lifetime:
            return False
        if self.lifetime_grace is not None and conn.retire_at is None:
            conn.retire_at = self._now + self.lifetime_grace
        return True

    def _advance(self, conn: _Connection) -> None:
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
        for fault in self._faults(request, Point.BEFORE_CREATED):
            if not self._act(conn, turn, fault.action):
                return
        error = self._prepare(conn, turn)
        if error is not None:
            self._refuse(conn, turn, attrs.evolve(error, shape=self.error_shape))

    def _prepare(self, conn: _Connection, turn: Turn) -> Error | None:
        """Check the request against its context and prepare the steps of its answer; the error if
        it fails."""
        request = turn.request
        error = resource.invalid(request.body)
        if error is not None:
            return error
        parent = _Chain((), (), 0)
        if request.anchor is not None:
            found = self._find_chain(conn, request.anchor)
            if found is None and self.silent_on_unknown_anchor:
                self._silence(turn)
                return None
            if found is None:
                message = f"Previous response with id '{request.anchor}' not found."
                return resource.bad("previous_response_not_found", message, "previous_response_id")
            parent = found
        given: list[Json] = []
        for item in request.input:
            resolved = self._resolve(conn, parent, item)
            if isinstance(resolved, Error):
                return resolved
            given.append(resolved)
        given = self._drop_reasoning(turn, parent, given)
        triggered = any(item.get("type") == "compaction_trigger" for item in given)
        given = [item for item in given if item.get("type") != "compaction_trigger"]
        shown = answers.since_compaction((*parent.items, *given))
        request.context = tuple(shown)
        whole = len(shown) == len(parent.items) + len(given)
        size = parent.size + answers.read_size(given) if whole else answers.read_size(shown)
        fixed = answers.read_size([request.body.get("instructions")])
        tools = request.body.get("tools")  # the model reads the schemas unchanged
        fixed += len(_encode(tools)) if tools else 0
        request.context_tokens = answers.tokens(size + fixed)
        error = _unpaired(request.context)
        if error is not None:
            return error
        if self.context_window is not None and request.context_tokens > self.context_window:
            message = (
                "Your input exceeds the context window of this model. "
                "Please adjust your input and try again."
            )
            return resource.bad("context_length_exceeded", message, "input")
        cached = answers.tokens(parent.size) if whole else 0
        self._write_steps(turn, self._outputs(request, triggered), size, cached)
        return None

    def _find_chain(self, conn: _Connection, anchor: str) -> _Chain | None:
        for chain in conn.cache.values():
            if anchor in chain.ids:
                return chain
        return self._storage.get((conn.authorization, anchor))

    def _resolve(self, conn: _Connection, parent: _Chain, item: Json) -> Json | Error:
        """The input item; if it is a reference, the item that it names; 404 if that is unknown."""
        name = item.get("id")
        reference = item.get("type") == "item_reference" or item.keys() == {"id"}
        # A reasoning item without content is a reference to a stored one.
        thoughts = item.get("type") == "reasoning" and not (
            item.get("encrypted_content") or item.get("content")
        )
        if not reference and not (thoughts and name):
            return item
        chains = (parent, *conn.cache.values())
        known = (one for chain in chains for one in chain.items if one.get("id") == name)
        found = next(known, None) or self._items.get((conn.authorization, str(name)))
        if found is not None:
            return found
        message = f"Item with id '{name}' not found. Items are not kept when 'store' is false."
        return attrs.evolve(resource.bad(None, message, "input"), status=404)

    def _drop_reasoning(self, turn: Turn, parent: _Chain, given: list[Json]) -> list[Json]:
        """``given`` without reasoning that was made in another context, or by another model."""
        kept: list[Json] = []
        for item in given:
            bound = answers.unseal(item.get("encrypted_content"))
            if item.get("type") != "reasoning" or not bound:
                kept.append(item)
                continue
            if turn._transformations is None:
                turn._transformations = []
            reason = None
            if bound.get("model") != turn.request.body.get("model"):
                reason = "model_mismatch"
            elif bound.get("prefix") != _digest((*parent.items, *kept)):
                reason = "prefix_mismatch"
            if reason is None:
                kept.append(item)
            else:
                entry = {"type": "reasoning_dropped", "item_id": item.get("id"), "reason": reason}
                turn._transformations.append(entry)
        return kept

    # -- turns

    def _outputs(self, request: CreateRequest, triggered: bool) -> list[Output]:
        """The output of the turn. ``triggered``: the input asks for a compaction only."""
        if request.body.get("generate") is False:
            return []
        compaction: Json = {
            "type": "compaction",
            "encrypted_content": answers.seal({"users": answers.count_users(request.context)}),
        }
        if triggered:
            return [compaction]
        threshold = _compact_threshold(request.body)
        if threshold is not None and request.context_tokens > threshold:
            return [compaction, *self.answer(request)]
        return list(self.answer(request))

    def _write_steps(self, turn: Turn, outputs: list[Output], size: int, cached: int) -> None:
        request, changes = turn.request, turn._changes
        if Change.CHAIN_ID in changes and request.anchor is not None:
            turn.response_id = request.anchor
        base = resource.in_progress(request.body, turn.response_id, self._wall_clock())
        if turn._transformations is not None:
            base["input_transformations"] = turn._transformations
        if Change.STORE_FALSE in changes and request.body.get("store") is None:
            base["store"] = False
        ids: tuple[str, ...] = (turn.response_id,)
        begun = base
        if Change.TWO_IDS in changes:
            turn.created_id = f"{turn.response_id}c"
            ids = (*ids, turn.created_id)
            begun = {**base, "id": turn.created_id}
        outputs, incomplete = _fit(outputs, request.body.get("max_output_tokens"))
        output: list[Json] = []
        said: list[_Step] = []
        for index, part in enumerate(outputs):
            cut = incomplete and index == len(outputs) - 1 and isinstance(part, Text)
            item, events = self._item(turn, index, part, cut)
            output.append(item)
            said += events
        if request.body.get("generate") is not False:
            said.insert(0, {"type": "response.in_progress", "response": begun})
        for fault in reversed(self._faults(request, Point.MID_OUTPUT)):
            said.insert(_after_deltas(said, fault.deltas), fault)
        shown = answers.since_compaction((*request.context, *output))
        said_size = answers.read_size(output)
        whole = len(shown) == len(request.context) + len(output)
        chain_size = size + said_size if whole else answers.read_size(shown)
        thoughts = [item for item in output if item.get("type") == "reasoning"]
        produced = answers.tokens(said_size)
        usage = {
            "input_tokens": request.context_tokens,
            "input_tokens_details": {
                "cached_tokens": min(cached, request.context_tokens),
                "cache_write_tokens": 0,
            },
            "output_tokens": produced,
            "output_tokens_details": {"reasoning_tokens": answers.count_tokens(thoughts)},
            "total_tokens": request.context_tokens + produced,
        }
        turn._steps += [
            {"type": "response.created", "response": begun},
            *self._faults(request, Point.AFTER_CREATED),
            *said,
            *self._faults(request, Point.BEFORE_TERMINAL),
            _Finish(output, usage, _Chain(ids, tuple(shown), chain_size), base, incomplete),
            *self._faults(request, Point.AFTER_TERMINAL),
        ]

    def _faults(self, request: CreateRequest, point: Point) -> list[Fault]:
        found = self.faults.at(request.number, point)
        return [fault for fault in found if is_met(request, fault.when)]

    def _item(self, turn: Turn, index: int, part: Output, cut: bool) -> tuple[Json, list[Json]]:
        """A finished output item, and the events that produce it. ``cut``: it is incomplete."""
        mark = f"{self._hex(turn.request.number)}{index:02x}"
        where: Json = {"output_index": index}
        middle: list[Json] = []
        if isinstance(part, Text):
            text = part.text + ("\ud83d" if Change.SURROGATE in turn._changes else "")
            deltas = part.deltas
            if deltas is None or text != part.text:
                deltas = _split(text, self.deltas)
            begun: Json = {
                "id": f"msg_{mark}",
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
            where_text = {"item_id": begun["id"], **where, "content_index": 0}
            empty = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
            full = {**empty, "text": text}
            status = "incomplete" if cut else "completed"
            done = {**begun, "status": status, "content": [full]}
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
                    "text": text,
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
        elif isinstance(part, Reasoning):
            begun = {"id": f"rs_{mark}", "type": "reasoning", "summary": []}
            done, middle = self._reasoning(turn.request, begun, where, part)
        else:
            begun = done = {"id": f"item_{mark}", **part}
            if part.get("type") == "compaction" and "id" not in part:
                begun = done = {"id": f"cmp_{mark}", **part}
        return done, [
            {"type": "response.output_item.added", **where, "item": begun},
            *middle,
            {"type": "response.output_item.done", **where, "item": done},
        ]

    def _reasoning(
        self, request: CreateRequest, begun: Json, where: Json, part: Reasoning
    ) -> tuple[Json, list[Json]]:
        """A finished reasoning item, and the events between its first and its last one."""
        done = dict(begun)
        middle: list[Json] = []
        if part.summary:
            empty = {"type": "summary_text", "text": ""}
            full = {**empty, "text": part.summary}
            done["summary"] = [full]
            name = "response.reasoning_summary_"
            at = {"item_id": begun["id"], **where, "summary_index": 0}
            middle = [
                {"type": f"{name}part.added", **at, "part": empty},
                *(
                    {"type": f"{name}text.delta", **at, "delta": delta}
                    for delta in _split(part.summary, self.deltas)
                ),
                {"type": f"{name}text.done", **at, "text": part.summary},
                {"type": f"{name}part.done", **at, "part": full},
            ]
        if request.wants_encrypted_reasoning:
            bound = {"prefix": _digest(request.context), "model": request.body.get("model")}
            done["encrypted_content"] = answers.seal(bound)
        return done, middle

    def _run(self, conn: _Connection, turn: Turn) -> None:
        """Send the turn's steps, until one is not due yet or the turn has ended."""
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
                if Change.NO_CREATED in turn._changes and step["type"] in _OPENING:
                    continue
                self._say_event(conn, turn, step)

    def _complete(self, conn: _Connection, turn: Turn, finish: _Finish) -> None:
        changes = turn._changes
        status = "incomplete" if finish.incomplete else "completed"
        response = {
            **finish.response,
            "status": status,
            "completed_at": None if finish.incomplete else self._wall_clock(),
            "output": finish.output,
            "usage": finish.usage,
        }
        if finish.incomplete:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        event: Json = {"type": f"response.{status}", "response": response}
        for change in sorted(changes, key=lambda one: one.value):
            _change_terminal(event, change)
        self._say_event(conn, turn, event)
        conn.ended = _Ended(turn.response_id, _encode(event), conn.delta)
        told = event.get("response")
        turn.usage = told.get("usage") if isinstance(told, dict) else None
        if Change.CANCELLED in changes:
            turn.outcome = Outcome.FAILED
            return
        turn.outcome = Outcome.INCOMPLETE if finish.incomplete else Outcome.COMPLETED
        conn.cache[turn.request.lane] = finish.chain
        if finish.response["store"]:
            for name in finish.chain.ids:
                self._storage[conn.authorization, name] = finish.chain
            for item in finish.chain.items:
                if isinstance(item.get("id"), str):
                    self._items[conn.authorization, item["id"]] = item

    def _say_event(self, conn: _Connection, turn: Turn, event: Json) -> None:
        if Change.NO_SEQUENCE not in turn._changes:
            event["sequence_number"] = turn._sequence
        turn._sequence += 1
        if turn.request.lane is not None:
            event["stream_id"] = turn.request.lane
        data = _encode(event)
        if event["type"].endswith(".delta"):
            conn.delta = data
        conn.say(data)

    def _refuse(self, conn: _Connection, turn: Turn, error: Error) -> None:
        """End the turn with an error frame. A failed continuation evicts its anchor from
        the cache."""
        conn.say(_error_frame(error, turn.request.lane, turn))
        if turn.outcome is Outcome.RUNNING:
            turn.outcome = Outcome.FAILED
            if error.status >= 400:
                self._evict(conn, turn.request)
        if error.close is not None:
            self._close(conn, error.close, "")
        turn._steps.clear()

    def _evict(self, conn: _Connection, request: CreateRequest) -> None:
        cached = conn.cache.get(request.lane)
        if cached is not None and request.anchor in cached.ids:
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
            case Error() | SendEvents() | Stale() | Alter() | ReadSlowly():
                raise AssertionError("Fault does not allow this before the upgrade")
            case _:
                assert_never(action)

    def _fault_while_receiving(self, conn: _Connection) -> None:
        faults = self.faults.at(self._creates + 1, Point.WHILE_RECEIVING)
        slow = [fault.action for fault in faults if isinstance(fault.action, ReadSlowly)]
        if slow:
            conn.slow = _SlowReading(slow[0], self._now + slow[0].interval)
            conn.pause = True
            return
        if not faults:
            return
        self._creates += 1  # the frame counts, although it will never be complete
        conn.deaf = conn.pause = True
        for fault in faults:
            if not self._act(conn, None, fault.action):
                return

    def _act(self, conn: _Connection, turn: Turn | None, action: Action) -> bool:
        """Carry out a fault. ``turn``: the turn that it strikes; None while its frame is
        incomplete.

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
                    if action.close is not None:
                        self._close(conn, action.close, "")
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
            case Stale(event):
                self._say_stale(conn, event)
                return True
            case Alter(change):
                if turn is not None:
                    turn._changes.add(change)
                return True
            case Reject() | ReadSlowly():
                raise AssertionError("Fault does not allow this here")
            case _:
                assert_never(action)

    def _read_slowly(self, conn: _Connection, slow: _SlowReading) -> None:
        """A piece of the frame arrived: pause reading until the next one is due."""
        conn.pause = True
        if slow.due <= self._now:
            slow.due = self._now + slow.how.interval

    def _read_on(self, conn: _Connection, slow: _SlowReading) -> None:
        if slow.pings - slow.pongs >= slow.how.patience:
            self._close(conn, 1011, "keepalive ping timeout")
            return
        if slow.pings < slow.how.pings:
            conn.out += conn.ws.ping()
            slow.pings += 1
        slow.due = self._now + slow.how.interval
        conn.resume = True

    def _say_stale(self, conn: _Connection, event: StaleEvent) -> None:
        if conn.ended is None:
            return
        match event:
            case StaleEvent.TERMINAL:
                conn.say(conn.ended.terminal)
            case StaleEvent.DELTA:
                if conn.ended.delta is not None:
                    conn.say(conn.ended.delta)
            case StaleEvent.DONE:
                response = {"id": conn.ended.response_id, "usage": {"input_tokens": 1}}
                conn.say(_encode({"type": "response.done", "response": response}))
            case _:
                assert_never(event)

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


def _decode(raw: bytes) -> object:
    """JSON, or None. Nested too deeply is None, too: what is echoed later has to be encoded."""
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        try:
            body = json.loads(raw)  # half a surrogate pair, which msgspec rejects
        except (ValueError, RecursionError):
            return None
    except RecursionError:
        return None
    try:
        _encode([[[[[[[[body]]]]]]]])
    except RecursionError:
        return None
    return body


def is_met(request: CreateRequest, when: When) -> bool:
    """Whether a fault with the condition ``when`` strikes the frame of ``request``."""
    match when:
        case When.ALWAYS:
            return True
        case When.ANCHORED:
            return request.anchor is not None
        case When.REBUILT:
            return request.anchor is None and any(map(_is_answer, request.input))
        case _:
            assert_never(when)


def _is_answer(item: object) -> bool:
    """Whether ``item`` is former output of a model."""
    if not isinstance(item, dict):
        return False
    kinds = ("reasoning", "compaction")
    return item.get("role") == "assistant" or answers.is_call(item) or item.get("type") in kinds


def _digest(items: Sequence[Json]) -> str:
    """A digest of a context as a model reads it. Reasoning is left out, as clients may do."""
    read = [answers.as_read(item) for item in items if item.get("type") != "reasoning"]
    return hashlib.blake2b(_encode(read), digest_size=8).hexdigest()


def _compact_threshold(body: Json) -> int | None:
    """The token count above which a context is compacted first, set by ``context_management``."""
    for entry in body.get("context_management") or []:
        if isinstance(entry, dict) and entry.get("type") == "compaction":
            threshold = entry.get("compact_threshold")
            return threshold if isinstance(threshold, int) else None
    return None


def _fit(outputs: list[Output], limit: int | None) -> tuple[list[Output], bool]:
    """The part of ``outputs`` that fits into ``limit`` tokens, and whether that is less. A text is
    cut; anything else that does not fit is left out."""
    if limit is None:
        return outputs, False
    left = limit * answers.BYTES_PER_TOKEN
    kept: list[Output] = []
    for part in outputs:
        if isinstance(part, Text):
            data = part.text.encode(errors="replace")
            if len(data) > left:
                kept.append(Text(data[:left].decode(errors="ignore")))
                return kept, True
            size = len(data)
        elif isinstance(part, ToolCall):
            size = answers.read_size([part.name, part.arguments])
        elif isinstance(part, Reasoning):
            size = answers.read_size([part.summary])
        else:
            size = answers.read_size([part])
        if size > left:
            return kept, True
        left -= size
        kept.append(part)
    return kept, False


def _change_terminal(event: Json, change: Change) -> None:
    """Apply ``change`` to a terminal event."""
    response = event.get("response")
    if not isinstance(response, dict):
        return
    match change:
        case Change.OUTPUT_EMPTY:
            response["output"] = []
        case Change.OUTPUT_SHORT:
            response["output"] = response["output"][:-1]
        case Change.OUTPUT_NULL:
            response["output"] = None
        case Change.OUTPUT_MISSING:
            del response["output"]
        case Change.OUTPUT_MALFORMED:
            response["output"] = [None, "item", 7]
        case Change.USAGE_NULL:
            response["usage"] = None
        case Change.RESPONSE_MISSING:
            del event["response"]
        case Change.RESPONSE_NULL:
            event["response"] = None
        case Change.RESPONSE_STRING:
            event["response"] = response["id"]
        case Change.DONE:
            event["type"] = "response.done"
        case Change.CANCELLED:
            event["type"] = "response.cancelled"
            response["status"] = "cancelled"
        case (
            Change.TWO_IDS
            | Change.CHAIN_ID
            | Change.STORE_FALSE
            | Change.NO_CREATED
            | Change.NO_SEQUENCE
            | Change.SURROGATE
        ):
            pass  # these change other events, or all
        case _:
            assert_never(change)


def _type(event: bytes) -> str | None:
    try:
        value = msgspec.json.decode(event)
    except (msgspec.DecodeError, RecursionError):
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _after_deltas(steps: Sequence[_Step], count: int) -> int:
    """The index in ``steps`` after ``count`` deltas, or after all if they are fewer."""
    deltas = [
        index
        for index, step in enumerate(steps)
        if isinstance(step, dict) and step["type"].endswith(".delta")
    ]
    if not deltas:
        return len(steps)
    return deltas[0] if count == 0 else deltas[min(count, len(deltas)) - 1] + 1


def _unpaired(items: Sequence[Json]) -> Error | None:
    """The error for a tool output without its call, or a call without its output."""
    calls: set[object] = set()
    pending: dict[object, None] = {}
    for item in items:
        call_id = item.get("call_id")
        if answers.is_call(item):
            calls.add(call_id)
            pending[call_id] = None
        elif answers.is_output(item):
            if call_id not in calls:
                message = f"No tool call found for function call output with call_id {call_id}."
                return resource.bad(None, message, "input")
            pending.pop(call_id, None)
    for call_id in pending:
        message = f"No tool output found for function call {call_id}."
        return resource.bad(None, message, "input")
    return None


def _error_frame(error: Error, lane: str | None, turn: Turn | None = None) -> bytes:
    """The frame that has ``error`` in its shape. ``turn``: the one that is refused."""
    missed = error.code == "previous_response_not_found"
    words = {
        "type": error.type,
        "code": error.code,
        "message": error.message,
        "param": error.param,
        **dict(error.members),
    }
    frame: Json = {"type": "error", "status": error.status}
    match error.shape:
        case ErrorShape.FULL:
            frame["error"] = words
        case ErrorShape.NO_STATUS:
            frame = {"type": "error", "error": words}
        case ErrorShape.TERSE:
            message = "Invalid `previous_response_id`." if missed else error.message
            frame["error"] = {"type": error.type, "message": message}
        case ErrorShape.CODE_IN_TYPE:
            del words["code"]
            frame["error"] = {**words, "type": error.code or error.type}
        case ErrorShape.FLAT:
            del words["type"]
            frame |= words
        case ErrorShape.BARE:
            frame = {"error": words}
        case ErrorShape.BARE_STATUS:
            frame = {"status": error.status, "error": words}
        case ErrorShape.DETAIL:
            frame = {"detail": error.message}
        case ErrorShape.BODY:
            frame["body"] = {"error": words}
        case ErrorShape.STATUS_CODE:
            frame = {"type": "error", "status_code": error.status, "error": words}
        case ErrorShape.STATUS_STRING:
            frame["status"] = str(error.status)
            frame["error"] = words
        case ErrorShape.INTEGER_CODE:
            status = 404 if missed else error.status
            anchor = turn.request.anchor if turn is not None else None
            message = f"Response with id '{anchor}' not found." if missed else error.message
            kind = "NotFoundError" if missed else error.type
            frame = {"error": {**words, "message": message, "type": kind, "code": status}}
        case ErrorShape.GRPC:
            kind = "NotFound" if missed else "Unknown"
            message = f"rpc error: code = {kind} desc = {error.message}"
            frame = {"error": {"message": message, "type": "api_error"}}
        case ErrorShape.RESPONSE_FAILED:
            code = error.code or error.type
            failed = {
                "id": turn.response_id if turn is not None else "resp_none",
                "object": "response",
                "status": "failed",
                "output": [],
                "error": {"code": code, "message": error.message, **dict(error.members)},
            }
            frame = {"type": "response.failed", "sequence_number": 0, "response": failed}
        case _:
            assert_never(error.shape)
    if lane is not None:
        frame["stream_id"] = lane
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
