"""HTTP clients as machines: what real ones do, and what they may expect.

What belongs here: how a client reads an answer, what it does when it is refused, what it believes
its conversation to be, and every check that a client can make by itself. A ``Client`` speaks
``wire/transport.py``, so it can be driven by the simulator's network as well as by a real adapter.

The models (docs, "Protocol notes", section 2):

* *incremental*: the id of the latest response and new items only. It repeats the same body after
  a 502, 503, 504, 429 or a cut stream; after a 400 ``previous_response_not_found`` it drops the id
  and sends its whole history;
* *full history*: ``store: false`` and the whole history each time, never an id; *terse*: in words
  of its own, with what was said and no more. A tool whose call came before its stream was cut was
  run, so the next try's history has grown by the call and its output;
* *impatient*: it leaves in mid-turn now and then, and tries again;
* *slow reader*: it reads a little, then nothing for a while;
* *parallel*: its model calls several tools at once;
* *warm*: it sends ``generate: false`` ahead now and then;
* *relative*: it shares its keys with a neighbour, and takes over what that one said now and then;
* *nosy*: it names a response of somebody else's, then one that nobody has, and compares.

What it asks carries its own number and the turn's, which the emulator repeats, so that an answer
that was meant for somebody else is recognised by its text.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeAlias

import attrs
import msgspec

from bridgecore import transport as tp
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer
from bridgecore.testing.answers import CreateRequest, Output, ToolCall, echo
from bridgecore.testing.faults import Change
from bridgecore.verify.sim_network import MILLISECOND, Rng
from bridgecore.verify.sim_upstream import Asked, decode, encode

Json: TypeAlias = dict[str, Any]

MAX_TRIES: Final = 30  # of one turn: whoever needs more is not being served (invariant 35)
# A turn's whole budget in the endpoint is an hour by default; nobody waits longer for an answer.
PATIENCE: Final = 2 * 3600 * NS_PER_SECOND

_RETRIABLE = frozenset({429, 502, 503, 504})
_TERMINAL = frozenset({"response.completed", "response.failed", "response.incomplete"})
_MARK = re.compile(rb"<c(\d+)t(\d+)>")
_CALL_TOOLS = re.compile(r"call (\d) tools ")


def mark(client: int, turn: int) -> str:
    """What a client's texts of a turn carry."""
    return f"<c{client}t{turn}>"


def marks(data: bytes) -> set[tuple[int, int]]:
    """The (client, turn) pairs whose marks are in ``data``."""
    return {(int(client), int(turn)) for client, turn in _MARK.findall(data)}


def answer(request: CreateRequest) -> Sequence[Output]:
    """What the upstream says: ``echo``, or to ``call N tools``, N calls that differ in their ids
    alone."""
    last = request.input[-1] if request.input else {}
    if last.get("role") == "user" and (found := _CALL_TOOLS.match(last["content"][0]["text"])):
        return [ToolCall("lookup")] * int(found[1])
    return echo(request)


# ------------------------------------------------------------------ reading an answer


# Members of each error; an upstream's may have more.
_STANDARD: Final = frozenset({"message", "type", "code", "param"})


class AnswerError(Exception):
    """An answer that breaks HTTP or the contract for streams. The text says how."""


@attrs.define
class Head:
    """The status line and headers of an answer."""

    status: int
    headers: dict[bytes, bytes]


class End:
    """The answer is complete."""


_END: Final = End()


class _Reading(enum.Enum):
    HEAD = enum.auto()
    SIZED = enum.auto()
    CHUNK_SIZE = enum.auto()
    CHUNK = enum.auto()
    TRAILER = enum.auto()


class AnswerReader:
    """HTTP/1.1 answers out of bytes. Strict: what the endpoint need not send is an error."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._reading = _Reading.HEAD
        self._left = 0

    @property
    def untouched(self) -> bool:
        """Whether nothing of the next answer has come."""
        return self._reading is _Reading.HEAD and not self._buffer

    def feed(self, data: bytes) -> list[Head | bytes | End]:
        """What ``data`` completes.

        Raises:
            AnswerError: it is no HTTP/1.1 answer.
        """
        self._buffer += data
        found: list[Head | bytes | End] = []
        while (part := self._next()) is not None:
            found.append(part)
        return found

    def _next(self) -> Head | bytes | End | None:
        buffer = self._buffer
        if self._reading is _Reading.HEAD:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return None
            head = bytes(buffer[:end])
            del buffer[: end + 4]
            return self._head(head)
        if self._reading is _Reading.SIZED:
            if self._left == 0:
                self._reading = _Reading.HEAD
                return _END
            return self._take()
        if self._reading is _Reading.CHUNK_SIZE:
            line = self._line()
            if line is None:
                return None
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", line):
                raise AnswerError(f"a chunk size of {line!r}")
            self._left = int(line, 16)
            self._reading = _Reading.CHUNK if self._left else _Reading.TRAILER
            return b""
        if self._reading is _Reading.CHUNK:
            if self._left:
                return self._take()
            if len(buffer) < 2:
                return None
            if self._line() != b"":
                raise AnswerError("a chunk longer than its size")
            self._reading = _Reading.CHUNK_SIZE
            return b""
        if len(buffer) < 2:
            return None
        if self._line() != b"":
            raise AnswerError("trailers that nobody asked for")
        self._reading = _Reading.HEAD
        return _END

    def _take(self) -> bytes | None:
        part = bytes(self._buffer[: self._left])
        del self._buffer[: len(part)]
        self._left -= len(part)
        return part or None

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _head(self, data: bytes) -> Head:
        status_line, *lines = data.split(b"\r\n")
        match = re.fullmatch(rb"HTTP/1\.1 ([1-5][0-9]{2}) ?.*", status_line)
        if match is None:
            raise AnswerError(f"a status line {status_line[:80]!r}")
        headers: dict[bytes, bytes] = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or name.strip() != name or not name or name.lower() in headers:
                raise AnswerError(f"a header line {line[:80]!r}")
            headers[name.lower()] = value.strip()
        length = headers.get(b"content-length")
        chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        if chunked is (length is not None) or (length is not None and not length.isdigit()):
            raise AnswerError("not exactly one of Content-Length and chunked")
        self._reading = _Reading.CHUNK_SIZE if chunked else _Reading.SIZED
        self._left = 0 if length is None else int(length)
        return Head(int(match[1]), headers)


# Events of some upstreams that do not count as events of the response.
_NEVER_NUMBERED = frozenset({"response.metadata", "codex.rate_limits"})


class _Event(msgspec.Struct):
    type: str
    sequence_number: int | None = None


_event = msgspec.json.Decoder(_Event)


def _read(data: bytes) -> _Event:
    """What a reader of streams looks at in each event.

    Raises:
        AnswerError: it is no event.
    """
    try:
        return _event.decode(data)
    except msgspec.DecodeError:
        try:  # half a surrogate pair, which msgspec does not take
            return msgspec.convert(decode(data), _Event)
        except ValueError as exc:
            raise AnswerError(f"an event that cannot be read: {exc}") from None


@attrs.define(eq=False)
class Answer:
    """An answer as far as it has come, checked on the way."""

    head: Head
    body: bytearray = attrs.Factory(bytearray)  # of a stream: what is not a whole event yet
    events: int = 0
    response: str | None = None  # its id, once created
    sequence: int = -2  # the bridge's own response.created comes before number 0
    items: list[Json] = attrs.Factory(list)  # finished output items
    terminal: Json | None = None  # the last event of a stream, or None
    renamed: bool = False  # the terminal event names another response than response.created
    unnumbered: bool = False  # an event had no sequence number

    @property
    def stream(self) -> bool:
        return self.head.headers.get(b"content-type") == b"text/event-stream"

    def feed(self, data: bytes) -> None:
        """Take in a piece of the body.

        Raises:
            AnswerError: the stream breaks the contract.
        """
        self.body += data
        if self.stream:
            *blocks, rest = bytes(self.body).split(b"\n\n")
            self.body[:] = rest
            for block in blocks:
                self._block(block)

    def _block(self, block: bytes) -> None:
        name, data = b"", []
        for line in block.split(b"\n"):
            if line.startswith(b"event: "):
                name = line[7:]
            elif line.startswith(b"data: "):
                data.append(line[6:])
            elif not line.startswith(b":"):
                raise AnswerError(f"a line {line[:40]!r} in a stream")
        if not name and not data:
            if self.events:
                raise AnswerError("a comment after response.created, where idle timers ignore it")
            return
        if self.terminal is not None:
            raise AnswerError(f"{name.decode()} after the terminal event (invariant 25)")
        self._take(name.decode(), b"\n".join(data))

    def _take(self, name: str, data: bytes) -> None:
        event = _read(data)
        if event.type != name:
            raise AnswerError(f"event: {name}, but its data is {event.type}")
        number = event.sequence_number
        if number is None:
            self.unnumbered = self.unnumbered or name not in _NEVER_NUMBERED
            number = self.sequence + 1
        if name == "keepalive":
            if number < self.sequence:
                raise AnswerError("a keepalive whose sequence number falls")
            return
        if number <= self.sequence:
            raise AnswerError(f"{name}: the sequence number does not rise (invariant 14)")
        if event.sequence_number is not None:
            self.sequence = number
        first = self.events == 0
        self.events += 1
        if name == "response.created":
            if not first:
                raise AnswerError("response.created is not the first event, or not the only one")
            self.response = self._id_of(decode(data))
        elif first and name != "response.failed":
            raise AnswerError(f"the first event is {name}, not response.created (invariant 26)")
        elif name == "response.output_item.done":
            self.items.append(decode(data)["item"])
        elif name in _TERMINAL:
            self.terminal = decode(data)
            found = self._id_of(self.terminal)
            self.renamed = self.response is not None and found != self.response
        elif name == "error":
            raise AnswerError("an error event in a stream, which clients ignore")

    def _id_of(self, event: Json) -> str:
        response = event.get("response")
        found = response.get("id") if isinstance(response, dict) else None
        if not isinstance(found, str):
            raise AnswerError("a response without an id")
        return found

    def final(self) -> Json:
        """The response object that the complete answer holds.

        Raises:
            AnswerError: there is none, or it differs from what the stream brought.
        """
        if not self.stream:
            try:
                response = decode(self.body)
            except ValueError:
                raise AnswerError("a body that is no JSON") from None
            if not isinstance(response, dict):
                raise AnswerError("a body that is no object")
            if self.head.status == 200:
                _check_output(response)
            return response
        if self.terminal is None:
            raise AnswerError("a stream that ends without a terminal event (invariant 25)")
        if self.body:
            raise AnswerError("half an event at the end of a stream")
        response = self.terminal["response"]
        _check_output(response)
        completed = self.terminal["type"] == "response.completed"
        if completed and response["output"] != self.items:
            raise AnswerError("the output differs from the items that the stream brought")
        assert isinstance(response, dict), "the id was read from it"
        return response


def _check_output(response: Json) -> None:
    output = response.get("output")
    items = output if isinstance(output, list) else [None]
    if not all(isinstance(item, dict) and isinstance(item.get("type"), str) for item in items):
        raise AnswerError("a response whose output is no list of items")


# ------------------------------------------------------------------ the models


@attrs.frozen
class Profile:
    """How a client is. ``anchored``: it sends ``previous_response_id`` and new items only."""

    name: str
    anchored: bool = True
    store: bool = True
    stream: bool = True
    impatient: bool = False
    slow: bool = False
    branches: bool = False  # it goes on from an older response now and then
    terse: bool = False
    parallel: bool = False
    warm: bool = False
    relative: bool = False
    nosy: bool = False


# Clients 2n and 2n + 1 share a credential, and relatives their keys.
PROFILES: Final = (
    Profile("incremental", branches=True),
    Profile("incremental, store=false", store=False, branches=True),
    Profile("full history", anchored=False, store=False, warm=True, relative=True),
    Profile("terse full history", anchored=False, store=False, terse=True, relative=True),
    Profile("impatient", impatient=True, parallel=True),
    Profile("slow reader", slow=True),
    Profile("incremental, JSON", stream=False, warm=True),
    Profile("impatient, store=false", store=False, impatient=True),
    Profile("impatient full history", anchored=False, store=False, impatient=True, parallel=True),
    Profile("nosy", store=False, nosy=True),
    Profile("tools, store=false", store=False, parallel=True, warm=True, relative=True),
    Profile("forks, store=false", store=False, branches=True, relative=True),
)


class Observer(Protocol):
    """Who watches clients."""

    def turn_begins(self, client: Client) -> None:
        """A turn of ``client`` begins; nothing was sent for it."""

    def turn_ended(self, client: Client) -> None:
        """A turn of ``client`` is over; another one follows unless ``client.done``."""

    def attempt_begins(self, client: Client) -> None:
        """``client`` sends its body for the ``client.tries``-th time."""

    def answered(self, client: Client, response: str) -> None:
        """A turn succeeded."""

    def foreign(self, client: Client) -> str | None:
        """A response of another credential's, if there is one."""

    def probed(self, client: Client, foreign: Probe, unknown: Probe) -> None:
        """``client`` was told what it is told of two responses that it does not own."""

    def explained(self, client: Client, status: int | None) -> bool:
        """Whether something was done to ``client`` that explains a refusal of the turn with
        ``status``; None: that explains a connection lost."""

    def altered(self, client: Client) -> Change | None:
        """How the upstream alters the events of the turn of ``client``, if it does."""

    def violate(self, prop: str, client: Client, text: str) -> None:
        """``client`` saw what must not be."""

    def note(self, text: str) -> None:
        """Something worth a line in a timeline."""


class _State(enum.Enum):
    THINKING = "thinking"
    DIALLING = "dialling"
    ASKING = "asking"
    RESTING = "resting"  # until the next try
    DONE = "done"


@attrs.define
class _Checkpoint:
    """A response that can be continued from, and how much of the history it stands for."""

    response: str
    length: int


@attrs.define
class Probe:
    """A response that the client does not own, and what it was told of it."""

    response: str
    told: list[str] = attrs.Factory(list)


_NOT_FOUND = "previous_response_not_found"
_CALL = "function_call"
_OUTPUT = "function_call_output"


class Client:
    """One conversation of ``turns`` turns. A ``Machine``: see ``bridgecore.transport``.

    ``refusals``: how often one id must have been refused before an honest not-found.
    """

    def __init__(
        self,
        number: int,
        profile: Profile,
        *,
        turns: int,
        refusals: int,
        seed: int,
        observer: Observer,
    ) -> None:
        self.number = number
        self.profile = profile
        self.turn = 0  # of the turn that runs, from 1
        self.tries = 0  # of this turn
        self.conn: int | None = None
        self.begun = 0  # ns
        self.ended = 0  # ns
        self.completed = 0  # turns that succeeded
        self.given_up = 0  # turns that an honest refusal ended
        self.probes = 0  # turns that were spent on what is not its own
        self.resends = 0  # of the whole history after not-found
        self._turns = turns
        self._refusals = refusals
        self._seed = seed
        self._rng = Rng(seed, 2, number, 0)
        self._observer = observer
        self._neighbour: Client | None = None
        self._serial = 0
        self._state = _State.THINKING
        self._wake: int | None = None
        self._now = 0
        self._out: list[tp.TransportEffect] = []
        self._history: list[Json] = []
        self._checkpoints: list[_Checkpoint] = []
        self._attempted: dict[str, int] = {}  # id -> tries with it since it last worked for anybody
        self._new: list[Json] = []
        self._calls: set[str] = set()  # the tools that were run, by the id of their call
        self._probing: list[Probe] = []  # what this turn is spent on, the one at hand first
        self._probed: list[Probe] = []
        self._ours: list[Json] = []  # the items of the body
        self._body = b""
        self._anchor: _Checkpoint | None = None  # of the body
        self._reader = AnswerReader()
        self._answer: Answer | None = None
        self._asked_at = 0
        self._reading = True
        self._leave_at: int | None = None

    # ------------------------------------------------------------ Machine

    def new_connection(self) -> int:
        """A client accepts no connections."""
        raise AssertionError("a client does not listen")

    def next_timeout(self) -> Deadline | None:
        """When ``TimeoutReached`` is to be reported if nothing else happens first."""
        return None if self._wake is None else Deadline(self._wake, Timer.TURN)

    @property
    def done(self) -> bool:
        """Whether all turns are over."""
        return self._state is _State.DONE

    @property
    def anchor(self) -> str | None:
        """The id that the body at hand carries."""
        return None if self._anchor is None else self._anchor.response

    @property
    def latest(self) -> str | None:
        """The latest response that it was given, or took over."""
        return self._checkpoints[-1].response if self._checkpoints else None

    @property
    def scope(self) -> int:
        """The number of its credential."""
        return self.number // 2

    def history(self) -> list[Json]:
        """What was said so far, as it believes."""
        return list(self._history)

    def asked(self) -> Asked:
        """What the body at hand asks."""
        context = None if self._probing else [*self._history, *self._new]
        credential = b"Bearer k%d" % self.scope
        return Asked(self.number, credential, self.anchor, self._ours, context, self._warming)

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        """Take in what happened at ``now`` (ns); what to do about it, in order."""
        self._now = now
        if isinstance(event, tp.TimeoutReached):
            self._timeout()
        elif isinstance(event, tp.Connected) and event.conn == self.conn:
            self._ask()
        elif isinstance(event, tp.ConnectFailed) and event.conn == self.conn:
            self.conn = None
            self._violate("http", "the endpoint does not accept connections")
            self._rest(1)
        elif isinstance(event, tp.DataReceived) and event.conn == self.conn:
            self._data(event.data)
        elif isinstance(event, tp.EofReceived | tp.Disconnected) and event.conn == self.conn:
            if isinstance(event, tp.EofReceived):
                self._out.append(tp.Close(event.conn))
            self._hung_up()
        out, self._out = self._out, []
        return out

    def start(self, at: int) -> None:
        """Begin the first turn at ``at`` (ns)."""
        self.begun = self._wake = at

    def befriend(self, neighbour: Client) -> None:
        """Have ``neighbour`` for the one whose conversation may be taken over. The two share a
        credential: what was refused to one of them was refused to both."""
        self._neighbour = neighbour
        self._attempted = neighbour._attempted

    def _violate(self, prop: str, text: str) -> None:
        self._observer.violate(prop, self, text)

    def _note(self, text: str) -> None:
        name = f"client {self.number} turn {self.turn}"
        self._observer.note(f"{name} try {self.tries}: {text}" if self.tries else f"{name}: {text}")

    # ------------------------------------------------------------ time

    def _timeout(self) -> None:
        if self._wake is None or self._wake > self._now:
            return
        self._wake = None
        if self._state is _State.THINKING:
            self._next_turn()
        elif self._state is _State.RESTING:
            self._try()
        elif self._state is _State.ASKING and not self._reading:
            self._reading = True
            if self.conn is not None:
                self._out.append(tp.ResumeReading(self.conn))
            self._expect()
        elif self._state is _State.ASKING and self._leave_at is not None:
            self._note("leaves in mid-turn")
            self._leave_at = None
            self._keep_calls()
            self._hang_up()
            self._rest(self._rng.between(0, 5))
        elif self._state in (_State.ASKING, _State.DIALLING):
            self._violate("liveness", "no answer for two hours (invariant 35)")
            self._hang_up()
            self._next_or_done()

    def _expect(self) -> None:
        """The next wake-up while an answer is awaited."""
        if self._leave_at is not None:
            self._wake = self._leave_at
        else:
            self._wake = self._asked_at + PATIENCE

    def _rest(self, seconds: int) -> None:
        self._state = _State.RESTING
        jitter = self._rng.between(0, 1000) * MILLISECOND
        self._wake = self._now + max(1, seconds * NS_PER_SECOND + jitter)

    def _think(self) -> int:
        """How long until the next turn, ns: an agent's pace, a reader's, or a break."""
        rng = self._rng
        kind = rng.between(1, 40)
        if kind <= 20:
            seconds = rng.between(1, 60)
        elif kind <= 34:
            seconds = rng.between(60, 300)
        elif kind <= 39:
            seconds = rng.between(420, 1500)  # past the idle expiry of a session
        else:
            seconds = rng.between(1500, 5400)  # past the lifetime of a socket
        return seconds * NS_PER_SECOND

    # ------------------------------------------------------------ turns

    def _next_or_done(self) -> None:
        self.ended = self._now
        if self.turn < self._turns:
            self._state = _State.THINKING
            self._wake = self._now + self._think()
        else:
            self._state = _State.DONE
            self._wake = None
            self._hang_up()
        self._observer.turn_ended(self)

    def _next_turn(self) -> None:
        self.turn += 1
        self.tries = 0
        self._probing = []
        # Each turn has a generator of its own: what happened to another does not change it.
        self._rng = Rng(self._seed, 2, self.number, self.turn)
        profile, rng = self.profile, self._rng
        if profile.branches and len(self._checkpoints) > 2 and rng.one_in(12):
            self._fork(self, rng.between(0, len(self._checkpoints) - 2))
            self._note("branches from an older response")
        elif profile.relative and self._neighbour is not None and rng.one_in(6):
            known = len(self._neighbour._checkpoints)
            if known:
                self._fork(self._neighbour, known - 1 - rng.between(0, min(known - 1, 2)))
                self._note(f"goes on from what client {self._neighbour.number} was told")
        elif profile.nosy and rng.one_in(2):
            self._pry()
        self._new = self._compose()
        self._write_body()
        self._observer.turn_begins(self)
        self._try()

    def _fork(self, other: Client, index: int) -> None:
        """Let what ``other`` said up to its response of that index be what was said."""
        self._checkpoints = other._checkpoints[: index + 1]
        self._history = other._history[: self._checkpoints[-1].length]

    def _pry(self) -> None:
        """Spend the turn on a response of somebody else's and on one that nobody has."""
        foreign = self._observer.foreign(self)
        if foreign is not None:
            unknown = foreign[:-32] + f"{self._rng.bits():032x}"
            self._probing = [Probe(foreign), Probe(unknown)]
            self._probed = list(self._probing)

    def _outputs(self) -> list[Json]:
        """The outputs that are due."""
        said = mark(self.number, self.turn)
        answered = {item["call_id"] for item in self._history if item["type"] == _OUTPUT}
        due = [
            item["call_id"]
            for item in self._history
            if item["type"] == _CALL and item["call_id"] not in answered
        ]
        return [
            {"type": _OUTPUT, "call_id": call, "output": f"{n} {said}"}
            for n, call in enumerate(due)
        ]

    def _compose(self) -> list[Json]:
        """The new items of the turn: outputs that are due, or what a user says."""
        said = mark(self.number, self.turn)
        due = [] if self._probing else self._outputs()
        self._warming = self.profile.warm and not due and self._rng.one_in(6)
        if due:
            return due
        kind = self._rng.between(1, 10)
        if kind <= 3 and self.profile.parallel:
            text = f"call {self._rng.between(2, 3)} tools {said}"
        elif kind <= 3:
            text = f"call tool lookup {said}"
        elif kind == 4 or self.profile.slow:
            text = f"repeat {self._rng.between(10, 40)} {said}"
        else:
            text = f"{said} what is next?"
        content = [{"type": "input_text", "text": text}]
        return [{"type": "message", "role": "user", "content": content}]

    def _write_body(self) -> None:
        profile = self.profile
        self._anchor = self._checkpoints[-1] if profile.anchored and self._checkpoints else None
        if self._probing:
            self._anchor = _Checkpoint(self._probing[0].response, len(self._history))
        body: Json = {"model": "sim", "stream": profile.stream}
        if not profile.store or self.number % 24 < 12:  # true is what it is when it is left out
            body["store"] = profile.store
        if self._warming:
            body["generate"] = False
        length = 0
        if self._anchor is not None:
            body["previous_response_id"] = self._anchor.response
            length = self._anchor.length
        if not profile.anchored:
            body["prompt_cache_key"] = self._key
        self._ours = [*self._history[length:], *self._new]
        if profile.terse:
            self._ours = [_terse(item) for item in self._ours]
        body["input"] = self._ours
        self._body = encode(body)

    @property
    def _key(self) -> str:
        """What it calls its conversation; relatives call theirs alike."""
        return f"f{self.scope}" if self.profile.relative else f"c{self.number}"

    def _try(self) -> None:
        if self.tries >= MAX_TRIES:
            self._violate("liveness", f"not served in {MAX_TRIES} tries (invariant 35)")
            self._next_or_done()
            return
        self.tries += 1
        if self._anchor is not None:
            known = self._anchor.response
            self._attempted[known] = self._attempted.get(known, 0) + 1
        if self.conn is None:
            self._serial += 1
            self.conn = self._serial
            self._reader = AnswerReader()
            self._state = _State.DIALLING
            self._asked_at = self._now
            self._wake = self._now + PATIENCE
            self._out.append(tp.Connect(self.conn, "bridge", 80, False))
        else:
            self._ask()

    def _ask(self) -> None:
        assert self.conn is not None, "only a connected client asks"
        self._state = _State.ASKING
        self._answer = None
        self._reading = True
        self._asked_at = self._now
        self._leave_at = None
        if self.profile.impatient and self._rng.one_in(5):
            # Mostly while it is being answered, sometimes long before or after.
            after = self._rng.pick((50, 200, 400, 700, 1200, 20_000, 100_000))
            self._leave_at = self._now + max(1, self._rng.between(after // 2, after) * MILLISECOND)
        self._expect()
        self._observer.attempt_begins(self)
        self._note(f"POST, {len(self._body)} bytes, anchor {self.anchor}")
        head = (
            b"POST /v1/responses HTTP/1.1\r\nhost: bridge\r\nauthorization: Bearer k%d\r\n"
            b"user-agent: c%d\r\nthread-id: %b\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n"
        )
        head %= (self.scope, self.number, self._key.encode(), len(self._body))
        self._out.append(tp.Send(self.conn, head + self._body))

    # ------------------------------------------------------------ answers

    def _data(self, data: bytes) -> None:
        if self._state is not _State.ASKING:
            self._violate("http", "an answer that nobody asked for")
            self._hang_up()
            return
        strange = {client for client, _ in marks(data)} - {self.number}
        if strange:
            self._violate("isolation", f"its answer has texts of clients {sorted(strange)}")
        try:
            for part in self._reader.feed(data):
                if isinstance(part, Head):
                    self._answer = Answer(part)
                elif self._answer is None:
                    raise AnswerError("a body without a head")
                elif isinstance(part, End):
                    self._complete(self._answer)
                elif part:
                    self._answer.feed(part)
        except AnswerError as exc:
            self._violate("stream", str(exc))
            self._hang_up()
            self._next_or_done()
            return
        self._slow_down()

    def _slow_down(self) -> None:
        """A slow reader that waits for more looks elsewhere now and then."""
        if not self.profile.slow or self._state is not _State.ASKING or self.conn is None:
            return
        if self._rng.one_in(2):
            self._reading = False
            self._out.append(tp.PauseReading(self.conn))
            self._wake = self._now + self._rng.between(1, 20_000) * MILLISECOND

    def _complete(self, answer: Answer) -> None:
        """The answer is in: what now?"""
        status = answer.head.status
        self._leave_at = None
        if answer.head.headers.get(b"connection", b"").lower() == b"close":
            self._hang_up()
        if status == 200:
            self._succeed(answer)
            return
        error = answer.final().get("error") if not answer.stream else None
        if not isinstance(error, dict) or not _STANDARD.issubset(error):
            raise AnswerError(f"{status} without an error object")
        code = error["code"]
        self._note(f"{status} {code}")
        if status in _RETRIABLE:
            wait = answer.head.headers.get(b"retry-after", b"")
            if not wait.isdigit() or int(wait) < 1:
                raise AnswerError(f"{status} without an integer Retry-After")
            if self._probing:
                self._probing[0].told.append(f"{status} {code}, to be tried after {int(wait)} s")
            self._rest(min(int(wait) << min(self.tries - 1, 5), 60))
        elif self._probing and status == 400:
            self._told(f"400 {error}")
        elif status == 400 and code == _NOT_FOUND:
            self._not_found(error)
        else:
            if not self._observer.explained(self, status):
                self._violate("status", f"{status} {code} out of the blue: {error['message']}")
            self.given_up += 1
            self._next_or_done()

    def _told(self, text: str) -> None:
        """What the client was told, in the end, of a response that it does not own."""
        probe = self._probing.pop(0)
        probe.told.append(text.replace(probe.response, "ID"))
        self.tries = 0
        if self._probing:
            self._write_body()
            self._try()
            return
        self._observer.probed(self, *self._probed)
        self.probes += 1
        self._next_or_done()

    def _not_found(self, error: Json) -> None:
        anchor = self._anchor
        if anchor is None:
            raise AnswerError("not-found for a turn that names no response")
        if error["param"] != "previous_response_id" or anchor.response not in error["message"]:
            raise AnswerError("a not-found that does not name the id")
        refused = self._attempted[anchor.response] - 1
        if refused < self._refusals:
            text = f"told not-found after {refused} refusals of the id, not {self._refusals}"
            self._violate("not-found", f"{text} (invariant 1)")
        self._note("drops the id and sends its whole history")
        self.resends += 1
        self._checkpoints.clear()
        self._write_body()
        self._try()

    def _succeed(self, answer: Answer) -> None:
        response = answer.final()
        altered = self._observer.altered(self)
        # Without the upstream's response.created the bridge has to invent its id.
        if answer.renamed and altered not in (Change.TWO_IDS, Change.NO_CREATED):
            raise AnswerError("the terminal event names another response (invariant 14)")
        if answer.unnumbered and altered is not Change.NO_SEQUENCE:
            raise AnswerError("an event without a sequence number")
        state = response.get("status")
        error = response.get("error")
        if state == "failed":
            code = error.get("code") if isinstance(error, dict) else None
            if not isinstance(code, str) or not code or not answer.stream:
                raise AnswerError("a failed response without an error code")
            self._note(f"response.failed {code}")
            self._run_tools(answer.items, cut=True)
            self._rest(1)
            return
        self._run_tools(response["output"], cut=state != "completed")
        if self._probing:
            self._told(f"an answer: {state}")
            return
        if state in ("incomplete", "cancelled"):
            if not self._observer.explained(self, 200):
                self._violate("status", "an incomplete response out of the blue")
            self._note("incomplete")
            self.given_up += 1
            self._next_or_done()
            return
        if state != "completed":
            raise AnswerError(f"a complete answer whose status is {state}")
        given = len(self._history)
        context = [*self._history, *self._new]
        self._check_text(response["output"], context)
        self._history = [*context, *response["output"]]
        self._checkpoints.append(_Checkpoint(response["id"], len(self._history)))
        if self._anchor is not None:
            self._attempted.pop(self._anchor.response, None)
        self.completed += 1
        self._note(f"completed {response['id']}, {given} items before it")
        self._observer.answered(self, response["id"])
        self._next_or_done()

    def _keep_calls(self) -> None:
        """The answer will not be complete: what of it has come?"""
        if self._answer is not None:
            self._run_tools(self._answer.items, cut=True)

    def _run_tools(self, items: Sequence[Json], *, cut: bool = False) -> None:
        """Run the tools that were called; if the answer was ``cut`` short, who keeps the history
        itself sends it grown by them next time."""
        calls = [item for item in items if item["type"] == _CALL]
        for call in calls:
            if call["call_id"] in self._calls:
                self._violate("tool", f"{call['call_id']} was delivered before (invariant 15)")
            self._calls.add(call["call_id"])
        if cut and calls and not self.profile.anchored:
            self._history += [*self._new, *calls]
            self._new = self._outputs()
            self._warming = False
            self._write_body()

    def _check_text(self, output: list[Json], context: list[Json]) -> None:
        """The emulator counts the user's messages of the context that it sees."""
        users = sum(1 for item in context if item.get("role") == "user")
        for item in output:
            if item["type"] == "message":
                text = item["content"][0]["text"]
                if text.startswith("turn ") and not text.startswith(f"turn {users}: "):
                    self._violate(
                        "context", f"believes in {users} user messages, was answered {text[:40]!r}"
                    )

    # ------------------------------------------------------------ connections

    def _hang_up(self) -> None:
        """Drop the connection."""
        if self.conn is not None:
            self._out.append(tp.Abort(self.conn))
            self.conn = None

    def _hung_up(self) -> None:
        """The connection is gone."""
        untouched = self._reader.untouched and self._answer is None
        self.conn = None
        if self._state is _State.ASKING:
            self._keep_calls()
            # A kept connection may be closed just when a request is on its way: then nothing of an
            # answer has come, and to try again is right (RFC 9112, section 9.3.1).
            crossed = untouched and self._now - self._asked_at < NS_PER_SECOND
            if not (crossed or self._observer.explained(self, None)):
                self._violate("stream", "its answer was cut short (invariant 25)")
            self._note("the connection is lost")
            self._reading = True
            self._leave_at = None
            self._rest(1)
        elif self._state is _State.DIALLING:
            self._rest(1)


def _terse(item: Json) -> Json:
    """An item as clients word it that keep what was said and no more."""
    if item["type"] == "message":
        parts = [{"type": part["type"], "text": part["text"]} for part in item["content"]]
        return {"role": item["role"], "content": parts}
    names = ("type", "name", "arguments", "call_id", "output")
    return {name: item[name] for name in names if name in item}
