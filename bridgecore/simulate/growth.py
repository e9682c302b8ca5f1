"""Measures how a conversation's context grows, turn by turn, when connections are lost.

What belongs here: the experiment behind the project (docs, "Recovery"). One incremental client has
one long conversation through a real endpoint with a real emulator, in virtual time. The figures are
measured, not computed: tokens are those of the ``usage`` that the upstream reports, and the context
window is full when the upstream answers ``context_length_exceeded``.

A turn with a fault goes wrong as logs of a real bridge show: its connection is lost between turns,
and the new one is lost after the create frame was sent, before ``response.created``.

Only the client is a model. It sends the id of the latest response and new items, and repeats the
same body when the error asks for a retry. After ``previous_response_not_found`` it considers its
conversation lost and sends all of it as new input: system prompt, history, new items. On the way to
the upstream, requests are mapped to conversations by a key (a session header, a prompt cache key),
and a layer that keeps the key still has the latest id and adds it to the request again. If the
upstream really lost the response, a second not-found follows and the client starts without an
anchor: its context is as large as before. If the not-found was wrong, the upstream still has the
context, and the whole history is appended to it, system prompt included. That is how a context of
50 K tokens grows by 70 K a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import msgspec

from bridgecore import transport as tp
from bridgecore.config import Config, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.policy import DEFAULT, Policy
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer
from bridgecore.simulate.chance import Rng
from bridgecore.simulate.contract import CheckedAnswer, Json
from bridgecore.simulate.paths import Paths
from bridgecore.testing.answers import CreateFrame, Output, Text, count_tokens
from bridgecore.testing.client import HttpEnd, HttpHead, HttpReader
from bridgecore.testing.emulator import Emulator
from bridgecore.testing.faults import CloseWith, Fault, FaultPlan, Point
from bridgecore.testing.network import MILLISECOND, Network

_encode = msgspec.json.encode
_BYTES_PER_TOKEN = 4  # as the emulator counts
_OUTPUT_TOKENS = 300  # of the new tokens of a turn, those that the model generates
_THINK = 20 * NS_PER_SECOND  # between two turns
MAX_TRIES = 50  # of one turn


@attrs.frozen(kw_only=True)
class Experiment:
    """The settings of the experiment. Sizes are tokens as the emulator counts them: four bytes of
    text each."""

    policy: Policy = DEFAULT
    turns: int = 200
    fault_every: int | None = 1  # from turn 2 on, one of so many turns has a fault; None: none has
    seed: int = 0
    store: bool = True
    window: int = 876_000
    system_tokens: int = 50_000
    new_tokens: int = attrs.field(default=2_300, validator=attrs.validators.ge(500))


@attrs.frozen
class TurnFigures:
    """One turn. ``sent``: tokens of the input items of the request that was answered; ``grown``:
    growth of the context since the turn before; ``context``: its size, answer included; ``errors``:
    the errors that the client got before the answer; ``upstream``: the bytes of all frames that the
    bridge sent for the turn, lost ones included."""

    turn: int
    sent: int
    grown: int
    context: int
    errors: tuple[str, ...]
    upstream: int


@attrs.frozen
class Growth:
    """The result of the experiment. ``full``: the turn at which the context window was full;
    ``stuck``: the turn that did not succeed in ``MAX_TRIES`` tries; None if there was none."""

    experiment: Experiment
    rows: tuple[TurnFigures, ...]
    full: int | None
    stuck: int | None

    @property
    def per_turn(self) -> float:
        """Mean growth of the context in a turn, in tokens, without the first turn."""
        grown = [row.grown for row in self.rows[1:]]
        return sum(grown) / len(grown) if grown else 0.0

    @property
    def upstream(self) -> int:
        """The bytes of all frames that the bridge sent upstream."""
        return sum(row.upstream for row in self.rows)

    @property
    def sound(self) -> bool:
        """Whether every turn succeeded and the context stayed within the window."""
        return self.full is None and self.stuck is None


def grow(experiment: Experiment) -> Growth:
    """Run ``experiment``."""
    network = Network(conditions=Paths(experiment.seed))
    emulator = Emulator(
        seed=experiment.seed, context_window=experiment.window, answer=_answer, deltas=2
    )
    faults = _LostBeforeCreated(experiment, emulator)
    emulator.faults = faults

    def forget() -> None:
        client.upstream += sum(len(request.raw) for request in emulator.requests)
        emulator.requests.clear()
        emulator.turns.clear()

    url = UpstreamUrl.parse("ws://upstream:80/v1/responses")
    endpoint = Endpoint(Config(upstream=url, policy=experiment.policy))
    client = _Client(experiment)

    def lose_sockets() -> None:
        for end in network.ends(emulator):
            network.reset(end)

    client.between_turns = lambda: network.at(network.now + 500 * MILLISECOND, lose_sockets)
    network.add(emulator, "upstream", 80, after=forget)
    network.add(endpoint, "bridge", 80)
    network.add(client, label=0)
    network.run((experiment.turns + 1) * 3600 * NS_PER_SECOND, lambda: client.done)
    return Growth(experiment, tuple(client.rows), client.full, client.stuck)


def _is_hit(experiment: Experiment, turn: int) -> bool:
    every = experiment.fault_every
    return every is not None and turn >= 2 and (turn - 2) % every == 0


def _answer(request: CreateFrame) -> Sequence[Output]:
    return [Text("said ".ljust(_OUTPUT_TOKENS * _BYTES_PER_TOKEN, "."))]


class _LostBeforeCreated(FaultPlan):
    """The connection is lost at the first create frame of each turn with a fault."""

    def __init__(self, experiment: Experiment, emulator: Emulator) -> None:
        super().__init__()
        self._experiment = experiment
        self._emulator = emulator
        self._struck: set[int] = set()

    def at(self, nth: int, point: Point) -> list[Fault]:
        """The faults of the ``nth`` turn at ``point``."""
        if point is not Point.BEFORE_CREATED:
            return []
        requests = [request for request in self._emulator.requests if request.number == nth]
        turn = _turn_of(requests[0])
        if turn in self._struck or not _is_hit(self._experiment, turn):
            return []
        self._struck.add(turn)
        return [Fault(point, CloseWith(1011))]


def _turn_of(request: CreateFrame) -> int:
    text: str = request.input[-1]["content"][0]["text"]
    return int(text.split()[1])


def _message(role: str, text: str, tokens: int) -> Json:
    """A message of that many tokens."""
    text = text.ljust(tokens * _BYTES_PER_TOKEN, ".")
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": role, "content": content}


class _Client:
    """The client that the module's docstring describes. A ``Machine``."""

    def __init__(self, experiment: Experiment) -> None:
        self.rows: list[TurnFigures] = []
        self.full: int | None = None
        self.stuck: int | None = None
        self.done = False
        self.upstream = 0  # bytes of frames upstream, in this turn
        self.between_turns: Callable[[], None] | None = None
        self._experiment = experiment
        self._rng = Rng(experiment.seed, 6)
        self._wake: int | None = 2 * NS_PER_SECOND
        self._now = 0
        self._out: list[tp.TransportEffect] = []
        self._conn: int | None = None
        self._serial = 0
        self._reader = HttpReader()
        self._answer: CheckedAnswer | None = None
        self._turn = 0
        self._tries = 0
        self._asking = False
        self._anchor: str | None = None
        self._misses = 0  # not-founds in this turn
        self._history: list[Json] = []
        self._new: list[Json] = []
        self._input: list[Json] = []
        self._body = b""
        self._errors: list[str] = []
        self._system = _message("developer", "system prompt ", experiment.system_tokens)

    def new_connection(self) -> int:
        """A client accepts no connections."""
        raise AssertionError("a client does not listen")

    def next_timeout(self) -> Deadline | None:
        """When it acts next if nothing arrives before (ns)."""
        return None if self._wake is None else Deadline(self._wake, Timer.TURN)

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        """Handle ``event`` at ``now`` (ns); the effects, in order."""
        self._now = now
        if isinstance(event, tp.TimeoutReached):
            self._timeout()
        elif isinstance(event, tp.Connected):
            self._ask()
        elif isinstance(event, tp.DataReceived):
            self._receive(event.data)
        elif isinstance(event, tp.EofReceived | tp.Disconnected | tp.ConnectFailed):
            if isinstance(event, tp.EofReceived):
                self._out.append(tp.Close(event.conn))
            self._conn = None
            if self._asking:
                self._errors.append("connection lost")
                self._rest(1)
        out, self._out = self._out, []
        return out

    def _timeout(self) -> None:
        if self._wake is None or self._wake > self._now:
            return
        self._wake = None
        if self._turn == len(self.rows):
            self._turn += 1
            self._tries = self._misses = 0
            self._errors = []
            tokens = self._experiment.new_tokens - _OUTPUT_TOKENS
            self._new = [_message("user", f"turn {self._turn} ", tokens)]
            self._write()
        self._try()

    def _write(self) -> None:
        """Write the body: the anchor and new items, or, after a not-found, the whole history."""
        whole = self._anchor is None or self._misses > 0
        self._input = [self._system, *self._history, *self._new] if whole else self._new
        body: Json = {"model": "sim", "stream": True, "store": self._experiment.store}
        if self._anchor is not None and self._misses < 2:
            body["previous_response_id"] = self._anchor
        body["input"] = self._input
        self._body = _encode(body)

    def _rest(self, seconds: int) -> None:
        self._asking = False
        self._wake = self._now + seconds * NS_PER_SECOND + self._rng.between(0, 500) * MILLISECOND

    def _try(self) -> None:
        self._tries += 1
        if self._tries > MAX_TRIES:
            self.stuck = self._turn
            self.done = True
        elif self._conn is None:
            self._serial += 1
            self._conn = self._serial
            self._reader = HttpReader()
            self._asking = True
            self._out.append(tp.Connect(self._conn, "bridge", 80, False))
        else:
            self._ask()

    def _ask(self) -> None:
        assert self._conn is not None, "only a connected client asks"
        self._asking = True
        self._answer = None
        head = (
            b"POST /v1/responses HTTP/1.1\r\nhost: bridge\r\nauthorization: Bearer k\r\n"
            b"user-agent: c0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        self._out.append(tp.Send(self._conn, head % len(self._body) + self._body))

    def _receive(self, data: bytes) -> None:
        for part in self._reader.feed(data):
            if isinstance(part, HttpHead):
                self._answer = CheckedAnswer(part)
            elif self._answer is not None and isinstance(part, HttpEnd):
                self._complete(self._answer)
            elif self._answer is not None and isinstance(part, bytes):
                self._answer.feed(part)

    def _complete(self, answer: CheckedAnswer) -> None:
        status = answer.head.status
        response = answer.final()
        error = response.get("error")
        code = error["code"] if isinstance(error, dict) else None
        if status == 200 and response["status"] == "completed":
            self._succeed(response)
            return
        self._errors.append(f"{status} {code}")
        if status == 400 and code == "previous_response_not_found":
            self._misses += 1
            self._write()
            self._try()
        elif status == 400 and code == "context_length_exceeded":
            self.full = self._turn
            self.done = True
        else:
            wait = answer.head.headers.get("retry-after", "1")
            self._rest(int(wait))

    def _succeed(self, response: Json) -> None:
        before = self.rows[-1].context if self.rows else 0
        context: int = response["usage"]["total_tokens"]
        sent = count_tokens(self._input)
        grown = context - before
        self.rows.append(
            TurnFigures(self._turn, sent, grown, context, tuple(self._errors), self.upstream)
        )
        self.upstream = 0
        self._history += [*self._new, *response["output"]]
        self._anchor = response["id"]
        self._asking = False
        if self._turn == self._experiment.turns:
            self.done = True
            return
        if self.between_turns is not None and _is_hit(self._experiment, self._turn + 1):
            self.between_turns()
        self._wake = self._now + _THINK
