"""How a conversation's context grows, turn by turn, when sockets are lost.

What belongs here: the experiment behind the project (docs, "Recovery"), its table and its plot. One
incremental client has one long conversation through a real endpoint with a real emulator, both in
virtual time. Nothing is computed here that they could tell: the tokens are those of the ``usage``
that the upstream reports, the window is full when the upstream says ``context_length_exceeded``.

What goes wrong in a turn that is hit is what broken logs show: the socket is lost between turns,
and the fresh one after the create frame was sent, before ``response.created``.

What is modelled is the client. It sends the id of the latest response and new items only, and the
same again when it is told to retry. Told ``previous_response_not_found``, it takes its conversation
for lost and sends all of it as new input: system prompt, history, new items. Its requests are keyed
to a conversation on the way (by a session header, a prompt cache key, or a layer of its own), and
whoever keeps that key still has the latest id and puts it back. If the chain is really gone, the
second not-found says so, and the client begins a fresh chain: its context is as large as before. If
the not-found was untrue, the chain is still there, and the whole history lands on top of it, system
prompt included: that is how a context of 50 K tokens grows by 70 K a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import attrs
import msgspec

from bridgecore import transport as tp
from bridgecore.config import Config, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.policy import DEFAULT, Policy
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer
from bridgecore.testing.answers import CreateRequest, Output, Text, count_tokens
from bridgecore.testing.emulator import Emulator
from bridgecore.testing.faults import CloseWith, Fault, FaultPlan, Point
from bridgecore.verify.sim_clients import Answer, AnswerReader, End, Head, Json
from bridgecore.verify.sim_network import MILLISECOND, Rng, SimNetwork

_encode = msgspec.json.encode
_BYTES_PER_TOKEN = 4  # as the emulator counts
_OUTPUT_TOKENS = 300  # of the new tokens of a turn: what the model says
_THINK = 20 * NS_PER_SECOND  # between two turns
_MAX_TRIES = 50  # of one turn


@attrs.frozen(kw_only=True)
class Experiment:
    """What to try. Sizes are tokens as the emulator counts them: four bytes of text each."""

    policy: Policy = DEFAULT
    turns: int = 200
    fault_every: int | None = 1  # from turn 2 on, turns for one that is hit; None: none is
    seed: int = 0
    store: bool = True
    window: int = 876_000
    system_tokens: int = 50_000
    new_tokens: int = attrs.field(default=2_300, validator=attrs.validators.ge(500))


@attrs.frozen
class Row:
    """A turn. ``sent``: tokens of the input items of the request that was answered; ``grown``: by
    how much the context is larger than after the turn before; ``context``: its size, answer
    included; ``errors``: what the client was told before; ``upstream``: the bytes of all frames
    that the bridge sent upstream for the turn, those that were lost included."""

    turn: int
    sent: int
    grown: int
    context: int
    errors: tuple[str, ...]
    upstream: int


@attrs.frozen
class Growth:
    """What came of it. ``full``: the turn at which the window was full, None if it never was;
    ``stuck``: the turn that could not be had at all, None if there was none."""

    experiment: Experiment
    rows: tuple[Row, ...]
    full: int | None
    stuck: int | None

    @property
    def per_turn(self) -> float:
        """Tokens by which the context grew in a turn, on the mean, the first turn aside."""
        grown = [row.grown for row in self.rows[1:]]
        return sum(grown) / len(grown) if grown else 0.0

    @property
    def upstream(self) -> int:
        """The bytes of all frames that the bridge sent upstream."""
        return sum(row.upstream for row in self.rows)

    @property
    def sound(self) -> bool:
        """Every turn was had, and the window sufficed."""
        return self.full is None and self.stuck is None


def grow(experiment: Experiment) -> Growth:
    """Carry out ``experiment``."""
    network = SimNetwork(experiment.seed)
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
    network.add(emulator, host="upstream", after=forget)
    network.add(endpoint, host="bridge")
    network.add(client, label=0)
    network.run((experiment.turns + 1) * 3600 * NS_PER_SECOND, lambda: client.done)
    return Growth(experiment, tuple(client.rows), client.full, client.stuck)


def _is_hit(experiment: Experiment, turn: int) -> bool:
    every = experiment.fault_every
    return every is not None and turn >= 2 and (turn - 2) % every == 0


def _answer(request: CreateRequest) -> Sequence[Output]:
    return [Text("said ".ljust(_OUTPUT_TOKENS * _BYTES_PER_TOKEN, "."))]


class _LostBeforeCreated(FaultPlan):
    """The first create frame of each turn that is hit loses its socket."""

    def __init__(self, experiment: Experiment, emulator: Emulator) -> None:
        super().__init__()
        self._experiment = experiment
        self._emulator = emulator
        self._struck: set[int] = set()

    def at(self, nth: int, point: Point) -> list[Fault]:
        """The faults that the ``nth`` turn meets at ``point``."""
        if point is not Point.BEFORE_CREATED:
            return []
        requests = [request for request in self._emulator.requests if request.number == nth]
        turn = _turn_of(requests[0])
        if turn in self._struck or not _is_hit(self._experiment, turn):
            return []
        self._struck.add(turn)
        return [Fault(point, CloseWith(1011))]


def _turn_of(request: CreateRequest) -> int:
    text: str = request.input[-1]["content"][0]["text"]
    return int(text.split()[1])


def _message(role: str, text: str, tokens: int) -> Json:
    """A message of so many tokens."""
    text = text.ljust(tokens * _BYTES_PER_TOKEN, ".")
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": role, "content": content}


class _Client:
    """The client that the module's docstring describes. A ``Machine``."""

    def __init__(self, experiment: Experiment) -> None:
        self.rows: list[Row] = []
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
        self._reader = AnswerReader()
        self._answer: Answer | None = None
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
        """When it does something next, if nothing is said to it."""
        return None if self._wake is None else Deadline(self._wake, Timer.TURN)

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        """Take in what happened at ``now`` (ns); what to do about it, in order."""
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
        """The body: new items on the chain, or, after a not-found, everything (see above)."""
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
        if self._tries > _MAX_TRIES:
            self.stuck = self._turn
            self.done = True
        elif self._conn is None:
            self._serial += 1
            self._conn = self._serial
            self._reader = AnswerReader()
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
            if isinstance(part, Head):
                self._answer = Answer(part)
            elif self._answer is not None and isinstance(part, End):
                self._complete(self._answer)
            elif self._answer is not None and isinstance(part, bytes):
                self._answer.feed(part)

    def _complete(self, answer: Answer) -> None:
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
            wait = answer.head.headers.get(b"retry-after", b"1")
            self._rest(int(wait))

    def _succeed(self, response: Json) -> None:
        before = self.rows[-1].context if self.rows else 0
        context: int = response["usage"]["total_tokens"]
        sent = count_tokens(self._input)
        grown = context - before
        self.rows.append(Row(self._turn, sent, grown, context, tuple(self._errors), self.upstream))
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


# ------------------------------------------------------------------ showing it

_ALL_ROWS: Final = 30  # up to that many are shown, of more only a choice


def table(growth: Growth) -> str:
    """The turns as a table, a choice of them if they are many."""
    rows = growth.rows
    shown = rows
    if len(rows) > _ALL_ROWS:
        step = max(1, len(rows) // 15)
        shown = tuple(
            row for row in rows if row.turn <= 8 or row.turn % step == 0 or row == rows[-1]
        )
    lines = [
        f"{'turn':>5} {'sent':>9} {'grown':>9} {'context':>9} {'bytes up':>12}"
        "  what the client was told before"
    ]
    lines += [
        f"{row.turn:>5} {row.sent:>9,} {row.grown:>9,} {row.context:>9,} {row.upstream:>12,}"
        f"  {_told(row.errors)}"
        for row in shown
    ]
    return "\n".join(lines)


def _told(errors: tuple[str, ...]) -> str:
    parts: list[str] = []
    for error in dict.fromkeys(errors):
        count = errors.count(error)
        parts.append(error if count == 1 else f"{count} x {error}")
    return ", ".join(parts)


def summary(growth: Growth) -> str:
    """One sentence."""
    name = growth.experiment.policy.name
    turns = len(growth.rows)
    window = growth.experiment.window
    mean = f"{growth.per_turn:,.0f} tokens a turn, {growth.upstream:,} bytes upstream"
    if growth.full is not None:
        return f"{name}: the window of {window:,} tokens is full at turn {growth.full}; {mean}"
    if growth.stuck is not None:
        return f"{name}: turn {growth.stuck} could not be had in {_MAX_TRIES} tries; {mean}"
    context = growth.rows[-1].context if growth.rows else 0
    return f"{name}: {turns} turns use {context:,} of {window:,} tokens; {mean}"


_COLOURS: Final = ("#1a6fb5", "#c8371b", "#3a8f3a", "#8a5fb0")
_WIDTH, _HEIGHT = 860, 480
_LEFT, _RIGHT, _BOTTOM = 84, 24, 64  # margins around the plot; what is above holds the legend


def plot(growths: Sequence[Growth]) -> str:
    """The context against the turns, a line for each of ``growths``, as an SVG document."""
    window = max(growth.experiment.window for growth in growths)
    last = max([10, *(row.turn for growth in growths for row in growth.rows)])
    highest = max([window, *(row.context for growth in growths for row in growth.rows)]) * 1.06
    top = 56 + 20 * len(growths)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - top - _BOTTOM

    def x(turn: float) -> float:
        return _LEFT + width * turn / last

    def y(tokens: float) -> float:
        return top + height * (1 - tokens / highest)

    def text(at_x: float, at_y: float, words: str, anchor: str = "middle", more: str = "") -> str:
        place = f'x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}"'
        return f"<text {place}{more}>{_escaped(words)}</text>"

    def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
        return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'

    grid, axis = 'stroke="#ddd"', 'stroke="#333"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        text(_LEFT, 26, "Context of one conversation when sockets are lost", "start", _BOLD),
    ]
    for tokens in _ticks(highest):
        parts.append(line(_LEFT, y(tokens), _WIDTH - _RIGHT, y(tokens), grid))
        parts.append(text(_LEFT - 8, y(tokens) + 4, f"{tokens // 1000:,} K", "end"))
    for turn in _ticks(last):
        parts.append(line(x(turn), y(0), x(turn), y(0) + 5, axis))
        parts.append(text(x(turn), y(0) + 20, str(turn)))
    parts.append(line(_LEFT, y(0), _WIDTH - _RIGHT, y(0), axis))
    parts.append(line(_LEFT, top, _LEFT, y(0), axis))
    parts.append(text(_LEFT + width / 2, _HEIGHT - 18, "turn"))
    middle = top + height / 2
    turned = f' transform="rotate(-90 20 {middle:.1f})"'
    parts.append(text(20, middle, "context, tokens", more=turned))
    dashed = 'stroke="#777" stroke-dasharray="6 4"'
    parts.append(line(_LEFT, y(window), _WIDTH - _RIGHT, y(window), dashed))
    label = f"window, {window // 1000:,} K"
    parts.append(text(_WIDTH - _RIGHT, y(window) - 6, label, "end", ' fill="#777"'))
    for index, growth in enumerate(growths):
        colour = _COLOURS[index % len(_COLOURS)]
        points = " ".join(f"{x(row.turn):.1f},{y(row.context):.1f}" for row in growth.rows)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        )
        if growth.full is not None and growth.rows:
            end = growth.rows[-1]
            parts.append(
                f'<circle cx="{x(end.turn):.1f}" cy="{y(end.context):.1f}" r="5" fill="{colour}"/>'
            )
        row = 48 + 20 * index
        style = f'stroke="{colour}" stroke-width="3"'
        parts.append(line(_LEFT, row - 4, _LEFT + 24, row - 4, style))
        parts.append(text(_LEFT + 32, row, summary(growth), "start"))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


_BOLD = ' font-size="16" font-weight="bold"'


def _ticks(highest: float) -> list[int]:
    """Five to ten round numbers from 0 to ``highest``."""
    step = 1
    while highest / step > 10:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return list(range(0, int(highest) + 1, step))
