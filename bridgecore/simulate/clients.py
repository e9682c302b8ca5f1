"""Simulated HTTP clients: they behave as real ones do and check what real ones rely on.

What belongs here: how a client reads an answer, how it reacts to failures, what it takes its
conversation to be, and each check that a client can make by itself. A ``Client`` implements
``bridgecore.transport.Machine``, so a virtual network can drive it as well as a real adapter. How
clients differ is in ``profiles.py``.

Each text that a client sends contains its number and the turn's (``mark``). The emulator repeats
them, so an answer that was delivered to the wrong client is recognised by its text.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import Final, Protocol

import attrs

from bridgecore import transport as tp
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer
from bridgecore.simulate.chance import Rng
from bridgecore.simulate.contract import CheckedAnswer, Json
from bridgecore.simulate.profiles import Profile
from bridgecore.simulate.witness import Asked, encode
from bridgecore.testing.answers import CreateFrame, Output, ToolCall, echo
from bridgecore.testing.client import HttpEnd, HttpHead, HttpReader, ReadError
from bridgecore.testing.faults import Change
from bridgecore.testing.network import MILLISECOND

MAX_TRIES: Final = 30  # of one turn; more is a violation of liveness
# Longer than the endpoint's default turn timeout of an hour: an answer must have come by then.
PATIENCE: Final = 2 * 3600 * NS_PER_SECOND

_RETRIABLE = frozenset({429, 502, 503, 504})
# Members of each error; an upstream's error may have more.
_STANDARD: Final = frozenset({"message", "type", "code", "param"})
_MARK = re.compile(rb"<c(\d+)t(\d+)>")
_CALL_TOOLS = re.compile(r"call (\d) tools ")


def mark(client: int, turn: int) -> str:
    """The mark in the texts that a client sends in a turn."""
    return f"<c{client}t{turn}>"


def marks(data: bytes) -> set[tuple[int, int]]:
    """The (client, turn) pairs whose marks are in ``data``."""
    return {(int(client), int(turn)) for client, turn in _MARK.findall(data)}


def answer(request: CreateFrame) -> Sequence[Output]:
    """The emulator's answer: ``echo``, or, for ``call N tools``, N calls that differ only in their
    ids."""
    last = request.input[-1] if request.input else {}
    if last.get("role") == "user" and (found := _CALL_TOOLS.match(last["content"][0]["text"])):
        return [ToolCall("lookup")] * int(found[1])
    return echo(request)


class Observer(Protocol):
    """Is notified of what clients do, and knows what was done to them."""

    def turn_begins(self, client: Client) -> None:
        """A turn of ``client`` begins; nothing was sent for it yet."""

    def turn_ended(self, client: Client) -> None:
        """A turn of ``client`` has ended; another one follows unless ``client.done``."""

    def attempt_begins(self, client: Client) -> None:
        """``client`` sends its body for the ``client.tries``-th time."""

    def answered(self, client: Client, response: str) -> None:
        """A turn succeeded with the id ``response``."""

    def foreign(self, client: Client) -> str | None:
        """A response id of another credential, if there is one."""

    def probed(self, client: Client, foreign: Probe, unknown: Probe) -> None:
        """``client`` named two responses that it does not own; each ``Probe`` has the answers."""

    def unserved(self, client: Client) -> None:
        """No host accepts the connection of ``client``."""

    def refused(self, client: Client, code: str, wait: int) -> None:
        """``client`` got an error with ``code`` and ``Retry-After: wait`` (seconds)."""

    def not_found(self, client: Client, response: str, refused: int) -> None:
        """``client`` got ``previous_response_not_found`` for ``response``, after ``refused``
        answers with an error that can be retried."""

    def explained(self, client: Client, status: int | None) -> bool:
        """Whether a fault explains that the turn of ``client`` got ``status``; None: that its
        connection was lost."""

    def altered(self, client: Client) -> Change | None:
        """How the upstream alters the events of the client's turn, if it does."""

    def violate(self, prop: str, client: Client, text: str) -> None:
        """``client`` observed a violation of ``prop``."""

    def note(self, text: str) -> None:
        """Add a line to the timeline."""


class Balancer(Protocol):
    """Decides where the requests of clients go."""

    def moves(self, client: Client) -> bool:
        """Whether the next request of ``client`` gets a new connection, although it has one."""

    def next(self, client: Client) -> str:
        """The host to which ``client`` connects next."""

    def refused(self, client: Client) -> str | None:
        """The connect of ``client`` was refused: the host to try instead; None: there is none."""


class _State(enum.Enum):
    THINKING = "thinking"
    DIALLING = "dialling"
    ASKING = "asking"
    RESTING = "resting"  # until the next try
    DONE = "done"


@attrs.define
class _Checkpoint:
    """A response that can be continued, and the number of history items up to and with it."""

    response: str
    length: int


@attrs.define
class Probe:
    """A response that the client does not own, and the answers it got for naming it."""

    response: str
    answers: list[str] = attrs.Factory(list)


_NOT_FOUND = "previous_response_not_found"
_CALL = "function_call"
_OUTPUT = "function_call_output"


class Client:
    """One conversation of ``turns`` turns. A ``Machine``: see ``bridgecore.transport``.

    ``haste``: its pauses between turns are shorter by this factor.
    """

    def __init__(
        self,
        number: int,
        profile: Profile,
        *,
        turns: int,
        seed: int,
        observer: Observer,
        balancer: Balancer,
        haste: int = 1,
    ) -> None:
        self.number = number
        self.profile = profile
        self.host = ""  # to which its connection goes
        self.turn = 0  # the running turn, from 1
        self.tries = 0  # of this turn
        self._cut_off = 0  # of those, ended because it had not read its answer when a server ended
        self.conn: int | None = None
        self.begun = 0  # ns
        self.ended = 0  # ns
        self.completed = 0  # turns that succeeded
        self.given_up = 0  # turns that ended with a final error
        self.probes = 0  # turns that were spent on probes
        self.resends = 0  # of the whole history, after not-found
        self._turns = turns
        self._seed = seed
        self._rng = Rng(seed, 2, number, 0)
        self._observer = observer
        self._balancer = balancer
        self._haste = haste
        self._neighbour: Client | None = None
        self._serial = 0
        self._state = _State.THINKING
        self._wake: int | None = None
        self._now = 0
        self._out: list[tp.TransportEffect] = []
        self._history: list[Json] = []
        self._checkpoints: list[_Checkpoint] = []
        # id -> tries since it last worked, shared with neighbours
        self._attempted: dict[str, int] = {}
        self._new: list[Json] = []
        self._calls: set[str] = set()  # call ids of the tools that were run
        self._probing: list[Probe] = []  # the probes of this turn, the current one first
        self._probed: list[Probe] = []
        self._ours: list[Json] = []  # the items of the body
        self._body = b""
        self._anchor: _Checkpoint | None = None  # the anchor in the body
        self._reader = HttpReader()
        self._answer: CheckedAnswer | None = None
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
        """Whether all turns have ended."""
        return self._state is _State.DONE

    @property
    def anchor(self) -> str | None:
        """The anchor in the current body."""
        return None if self._anchor is None else self._anchor.response

    @property
    def latest(self) -> str | None:
        """The latest response that it received or took over."""
        return self._checkpoints[-1].response if self._checkpoints else None

    @property
    def scope(self) -> int:
        """The number of its credential."""
        return self.number // 2

    def history(self) -> list[Json]:
        """The history of the conversation, as the client knows it."""
        return list(self._history)

    def asked(self) -> Asked:
        """What the current body asks."""
        context = None if self._probing else [*self._history, *self._new]
        credential = b"Bearer k%d" % self.scope
        return Asked(self.number, credential, self.anchor, self._ours, context, self._warming)

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        """Handle ``event`` at ``now`` (ns); the effects, in order."""
        self._now = now
        if isinstance(event, tp.TimeoutReached):
            self._timeout()
        elif isinstance(event, tp.Connected) and event.conn == self.conn:
            self._ask()
        elif isinstance(event, tp.ConnectFailed) and event.conn == self.conn:
            self.conn = None
            if (host := self._balancer.refused(self)) is not None:
                self._connect(host)
            else:
                self._observer.unserved(self)
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

    def add_neighbour(self, neighbour: Client) -> None:
        """Take over parts of the conversation of ``neighbour`` now and then. The two share a
        credential, so they also share the count of refusals of an id."""
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
            self._violate("liveness", "no answer for two hours")
            self._hang_up()
            self._next_or_done()

    def _expect(self) -> None:
        """Set the next wake-up while an answer is awaited."""
        if self._leave_at is not None:
            self._wake = self._leave_at
        else:
            self._wake = self._asked_at + PATIENCE

    def _rest(self, seconds: int) -> None:
        self._state = _State.RESTING
        jitter = self._rng.between(0, 1000) * MILLISECOND
        self._wake = self._now + max(1, seconds * NS_PER_SECOND + jitter)

    def _think(self) -> int:
        """The time until the next turn, ns: the pace of an agent, of a reader, or after a break."""
        rng = self._rng
        kind = rng.between(1, 40)
        if kind <= 20:
            seconds = rng.between(1, 60)
        elif kind <= 34:
            seconds = rng.between(60, 300)
        elif kind <= 39:
            seconds = rng.between(420, 1500)  # past the idle expiry of a session
        else:
            seconds = rng.between(1500, 5400)  # past the lifetime of a connection
        return seconds * NS_PER_SECOND // self._haste

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
        self.tries = self._cut_off = 0
        self._probing = []
        # A generator for each turn: what happened in one turn does not change the draws of the
        # next.
        self._rng = Rng(self._seed, 2, self.number, self.turn)
        profile, rng = self.profile, self._rng
        if profile.branches and len(self._checkpoints) > 2 and rng.one_in(12):
            self._fork(self, rng.between(0, len(self._checkpoints) - 2))
            self._note("branches from an older response")
        elif profile.shares and self._neighbour is not None and rng.one_in(6):
            known = len(self._neighbour._checkpoints)
            if known:
                self._fork(self._neighbour, known - 1 - rng.between(0, min(known - 1, 2)))
                self._note(f"continues the conversation of client {self._neighbour.number}")
        elif profile.probing and rng.one_in(2):
            self._probe()
        self._new = self._compose()
        self._write_body()
        self._observer.turn_begins(self)
        self._try()

    def _fork(self, other: Client, index: int) -> None:
        """Continue from the response of ``other`` with that index, with the history up to it."""
        self._checkpoints = other._checkpoints[: index + 1]
        self._history = other._history[: self._checkpoints[-1].length]

    def _probe(self) -> None:
        """Spend the turn on two probes: a response of another credential, and one that does not
        exist."""
        foreign = self._observer.foreign(self)
        if foreign is not None:
            unknown = foreign[:-32] + f"{self._rng.bits():032x}"
            self._probing = [Probe(foreign), Probe(unknown)]
            self._probed = list(self._probing)

    def _outputs(self) -> list[Json]:
        """The outputs of the tool calls that have none yet."""
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
        """The new items of the turn: tool outputs that are due, or a user message."""
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
        # true is the default: half of the clients omit it
        if not profile.store or self.number % 24 < 12:
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
        """The conversation's key; neighbours with the profile "sharing" share one."""
        return f"f{self.scope}" if self.profile.shares else f"c{self.number}"

    def _try(self) -> None:
        if self._cut_off >= MAX_TRIES:
            self._note("reads so slowly that servers are replaced before it has read an answer")
            self.given_up += 1
            self._next_or_done()
            return
        if self.tries - self._cut_off >= MAX_TRIES:
            self._violate("liveness", f"not served in {MAX_TRIES} tries")
            self._next_or_done()
            return
        self.tries += 1
        if self._anchor is not None:
            known = self._anchor.response
            self._attempted[known] = self._attempted.get(known, 0) + 1
        if self.conn is not None and self._balancer.moves(self):
            self._hang_up()
        if self.conn is None:
            self._connect(self._balancer.next(self))
        else:
            self._ask()

    def _connect(self, host: str) -> None:
        self.host = host
        self._serial += 1
        self.conn = self._serial
        self._reader = HttpReader()
        self._state = _State.DIALLING
        self._asked_at = self._now
        self._wake = self._now + PATIENCE
        self._out.append(tp.Connect(self.conn, host, 80, False))

    def _ask(self) -> None:
        assert self.conn is not None, "only a connected client asks"
        self._state = _State.ASKING
        self._answer = None
        self._reading = True
        self._asked_at = self._now
        self._leave_at = None
        if self.profile.impatient and self._rng.one_in(5):
            # Mostly while the answer arrives, sometimes long before or after.
            after = self._rng.pick((50, 200, 400, 700, 1200, 20_000, 100_000))
            self._leave_at = self._now + max(1, self._rng.between(after // 2, after) * MILLISECOND)
        self._expect()
        self._observer.attempt_begins(self)
        self._note(f"POST to {self.host}, {len(self._body)} bytes, anchor {self.anchor}")
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
            self._violate("http", "an answer without a request")
            self._hang_up()
            return
        strange = {client for client, _ in marks(data)} - {self.number}
        if strange:
            self._violate("isolation", f"the answer has texts of clients {sorted(strange)}")
        try:
            for part in self._reader.feed(data):
                if isinstance(part, HttpHead):
                    if part.status < 200:
                        raise ReadError(f"an interim answer {part.status} without a request")
                    self._answer = CheckedAnswer(part)
                elif self._answer is None:
                    raise ReadError("a body without a head")
                elif isinstance(part, HttpEnd):
                    self._complete(self._answer)
                else:
                    self._answer.feed(part)
        except ReadError as exc:
            self._violate("stream", str(exc))
            self._hang_up()
            self._next_or_done()
            return
        self._slow_down()

    def _slow_down(self) -> None:
        """A slow reader stops reading now and then."""
        if not self.profile.slow or self._state is not _State.ASKING or self.conn is None:
            return
        if self._rng.one_in(2):
            self._reading = False
            self._out.append(tp.PauseReading(self.conn))
            self._wake = self._now + self._rng.between(1, 20_000) * MILLISECOND

    def _complete(self, answer: CheckedAnswer) -> None:
        """Handle a complete answer."""
        status = answer.head.status
        self._leave_at = None
        if answer.head.headers.get("connection", "").lower() == "close":
            self._hang_up()
        if status == 200:
            self._succeed(answer)
            return
        error = answer.final().get("error") if not answer.stream else None
        if not isinstance(error, dict) or not _STANDARD.issubset(error):
            raise ReadError(f"{status} without an error object")
        code = error["code"]
        self._note(f"{status} {code}")
        if status in _RETRIABLE:
            wait = answer.head.headers.get("retry-after", "")
            if not wait.isdigit() or int(wait) < 1:
                raise ReadError(f"{status} without an integer Retry-After")
            self._observer.refused(self, code, int(wait))
            if self._probing:
                self._probing[0].answers.append(f"{status} {code}, retry after {int(wait)} s")
            self._rest(min(int(wait) << min(self.tries - 1, 5), 60))
        elif self._probing and status == 400:
            self._probe_answered(f"400 {error}")
        elif status == 400 and code == _NOT_FOUND:
            self._not_found(error)
        else:
            if not self._observer.explained(self, status):
                self._violate("status", f"{status} {code} without a cause: {error['message']}")
            self.given_up += 1
            self._next_or_done()

    def _probe_answered(self, text: str) -> None:
        """A probe got its final answer: go on to the next one, or compare both."""
        probe = self._probing.pop(0)
        probe.answers.append(text.replace(probe.response, "ID"))
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
            raise ReadError("not-found for a turn that names no response")
        if error["param"] != "previous_response_id" or anchor.response not in error["message"]:
            raise ReadError("a not-found that does not name the id")
        refused = self._attempted[anchor.response] - 1
        self._observer.not_found(self, anchor.response, refused)
        self._note("drops the id and sends its whole history")
        self.resends += 1
        self._checkpoints.clear()
        self._write_body()
        self._try()

    def _succeed(self, answer: CheckedAnswer) -> None:
        response = answer.final()
        altered = self._observer.altered(self)
        # Without response.created from the upstream the bridge has to make up an id.
        if answer.renamed and altered not in (Change.TWO_IDS, Change.NO_CREATED):
            raise ReadError("the terminal event names another response")
        if answer.unnumbered and altered is not Change.NO_SEQUENCE:
            raise ReadError("an event without a sequence number")
        state = response.get("status")
        error = response.get("error")
        if state == "failed":
            code = error.get("code") if isinstance(error, dict) else None
            if not isinstance(code, str) or not code or not answer.stream:
                raise ReadError("a failed response without an error code")
            self._note(f"response.failed {code}")
            self._run_tools(answer.items, cut=True)
            self._rest(1)
            return
        self._run_tools(response["output"], cut=state != "completed")
        if self._probing:
            self._probe_answered(f"an answer: {state}")
            return
        if state in ("incomplete", "cancelled"):
            if not self._observer.explained(self, 200):
                self._violate("status", "an incomplete response without a cause")
            self._note("incomplete")
            self.given_up += 1
            self._next_or_done()
            return
        if state != "completed":
            raise ReadError(f"a complete answer whose status is {state}")
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
        """The answer breaks off: run the tool calls that arrived in full."""
        if self._answer is not None:
            self._run_tools(self._answer.items, cut=True)

    def _run_tools(self, items: Sequence[Json], *, cut: bool = False) -> None:
        """Run the called tools, each call id once. If the answer was ``cut`` short, a client that
        sends its whole history adds the calls and outputs to it, as real ones do."""
        calls = [item for item in items if item["type"] == _CALL]
        for call in calls:
            if call["call_id"] in self._calls:
                self._violate("tool", f"{call['call_id']} was delivered before")
            self._calls.add(call["call_id"])
        if cut and calls and not self.profile.anchored:
            self._history += [*self._new, *calls]
            self._new = self._outputs()
            self._warming = False
            self._write_body()

    def _check_text(self, output: list[Json], context: list[Json]) -> None:
        """Compare the number of user messages with the one in the emulator's answer."""
        users = sum(1 for item in context if item.get("role") == "user")
        for item in output:
            if item["type"] == "message":
                text = item["content"][0]["text"]
                if text.startswith("turn ") and not text.startswith(f"turn {users}: "):
                    self._violate(
                        "context", f"it sent {users} user messages, the answer is {text[:40]!r}"
                    )

    # ------------------------------------------------------------ connections

    def _hang_up(self) -> None:
        """Abort the connection."""
        if self.conn is not None:
            self._out.append(tp.Abort(self.conn))
            self.conn = None

    def _hung_up(self) -> None:
        """Handle the loss of the connection."""
        untouched = self._reader.untouched and self._answer is None
        self.conn = None
        if self._state is _State.ASKING:
            self._keep_calls()
            # A kept-alive connection may be closed while a request is on its way. If nothing of an
            # answer has come, the client tries again (RFC 9112, section 9.3.1).
            crossed = untouched and self._now - self._asked_at < NS_PER_SECOND
            explained = not crossed and self._observer.explained(self, None)
            self._cut_off += explained and self.profile.slow
            if not (crossed or explained):
                self._violate("stream", "the answer was cut short")
            self._note("the connection is lost")
            self._reading = True
            self._leave_at = None
            self._rest(1)
        elif self._state is _State.DIALLING:
            self._rest(1)


def _terse(item: Json) -> Json:
    """An item as clients send it that keep only its content."""
    if item["type"] == "message":
        parts = [{"type": part["type"], "text": part["text"]} for part in item["content"]]
        return {"role": item["role"], "content": parts}
    names = ("type", "name", "arguments", "call_id", "output")
    return {name: item[name] for name in names if name in item}
