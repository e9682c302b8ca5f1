"""Shortcuts change nothing: an endpoint with them and one without do the same, event by event.

What belongs here: the comparison of two endpoints that differ only in ``Config.shortcuts``. Both
get the same transport events at the same times. After *each* event they must have returned the
same effects in the same order, and have the same next deadline, the same state of the bridge and
the same sizes of their tables. Bytes for clients and log records are compared as they are. Bytes
for upstreams are compared without what is random in them (RFC 6455, section 10.3): the key of the
upgrade request and the masks of frames.

A *program* is a list of commands: a client asks, an upstream says something, time passes, something
happens to a connection. Most commands are long runs of deltas of a turn in output, because these
are what most shortcuts are for. What a command needs and is not there yet, such as a turn for the
deltas, is brought about first, so almost any program is to the point, and shrinks well.

By hand, with more cases (about 40 minutes of CPU time for 100,000)::

    SHORTCUT_CASES=100000 make test ARGS='-n 0 tests/endpoint/test_shortcuts.py'
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import attrs
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bridgecore import transport as tp
from bridgecore.config import Config, Continuity, OnAmbiguousLoss, Rotation, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.errors import LocalProtocolError
from bridgecore.recovery.policy import POLICIES
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline
from tests.endpoint_input import (
    BODIES,
    FRAMES,
    MESSAGES,
    PLAIN,
    REJECTION,
    REQUESTS,
    Json,
    Upstream,
    accepting,
    frame,
    unmasked,
    websocket_key,
)

CASES: Final = int(os.environ.get("SHORTCUT_CASES", "200"))
T = TypeVar("T")

SECOND: Final = NS_PER_SECOND
MILLISECOND: Final = SECOND // 1000

# ------------------------------------------------------------------ two endpoints as one


@attrs.define
class UpgradeSent:
    """In place of the ``Send`` of an upgrade request: the request without its key."""

    conn: int
    request: bytes


@attrs.define
class FramesSent:
    """In place of a ``Send`` to an upstream: the first byte and the payload of each frame."""

    conn: int
    frames: list[tuple[int, bytes]]
    notify: bool


Effect: TypeAlias = tp.TransportEffect | UpgradeSent | FramesSent


class Side:
    """One of the two endpoints."""

    def __init__(self, config: Config) -> None:
        self.endpoint = Endpoint(config, b"seed")
        self.keys: dict[int, bytes] = {}  # of the upgrade requests sent
        self._upstreams: set[int] = set()

    def handle(self, event: tp.TransportEvent, now: int) -> list[Effect] | LocalProtocolError:
        """The effects of ``event``, or the error with which it was refused. Any other exception is
        a bug of the endpoint, whether the other side raises it or not."""
        try:
            effects = self.endpoint.handle(event, now)
        except LocalProtocolError as exc:
            return exc
        return [self._comparable(effect) for effect in effects]

    def _comparable(self, effect: tp.TransportEffect) -> Effect:
        """``effect`` without what is random in it."""
        if isinstance(effect, tp.Connect):
            self._upstreams.add(effect.conn)
        elif isinstance(effect, tp.Send) and effect.conn in self._upstreams:
            if effect.conn in self.keys:
                return FramesSent(effect.conn, unmasked(effect.data), effect.notify)
            key = self.keys[effect.conn] = websocket_key(effect.data)
            return UpgradeSent(effect.conn, effect.data.replace(key, b"KEY"))
        return effect

    def counts(self) -> tuple[object, ...]:
        endpoint, bridge = self.endpoint, self.endpoint.bridge
        return (
            endpoint.clients,
            endpoint.upstreams,
            bridge.turns,
            bridge.links,
            bridge.conversations,
            bridge.memory.size,
            bridge.accounts,
        )


class Twins:
    """An endpoint with shortcuts and one without, driven as if they were one."""

    def __init__(self, config: Config) -> None:
        self.sides = tuple(Side(attrs.evolve(config, shortcuts=on)) for on in (True, False))

    def new_connection(self) -> int:
        first, second = (side.endpoint.new_connection() for side in self.sides)
        assert first == second
        return first

    def next_timeout(self) -> Deadline | None:
        """The next deadline, which is the same for both after each event: an adapter would
        otherwise report ``TimeoutReached`` at other times."""
        return self.sides[0].endpoint.next_timeout()

    def accepting(self, conn: int) -> list[bytes]:
        """The answer to the upgrade request of each side."""
        return [accepting(side.keys[conn]) for side in self.sides]

    def handle(
        self, event: tp.TransportEvent, now: int, other: tp.TransportEvent | None = None
    ) -> list[Effect]:
        """Have both handle ``event`` and compare them. ``other``: the event of the second side, if
        its bytes depend on its key. Returns the effects, none if both refuse the event."""
        ours, theirs = self.sides
        got = ours.handle(event, now)
        expected = theirs.handle(event if other is None else other, now)
        if isinstance(expected, LocalProtocolError):
            assert repr(got) == repr(expected), event
        else:
            assert got == expected, event
        assert ours.endpoint.next_timeout() == theirs.endpoint.next_timeout(), event
        assert ours.counts() == theirs.counts(), event
        assert ours.endpoint.bridge.snapshot() == theirs.endpoint.bridge.snapshot(), event
        return got if isinstance(got, list) else []


# ------------------------------------------------------------------ programs


@attrs.frozen
class Ask:
    """A client sends a request, ``copies`` times in a row. ``continues``: which response."""

    client: int = 0
    head: str = "plain"
    body: str = "stream"
    continues: str = "latest"
    copies: int = 1
    cut: str = "whole"
    at: int = 0


@attrs.frozen
class Say:
    """An upstream sends messages or frames, each name as often as it says.

    ``turn``: what to do first, if no turn runs: nothing, or begin one that is answered by a stream
    or by JSON; its first events come in a read of their own, or, with ``together``, with the rest.
    ``pace``: ns between two reads.
    """

    what: tuple[tuple[str, int], ...]
    upstream: int = 0
    turn: str = "stream"
    together: bool = False
    cut: str = "whole"
    at: int = 0
    pace: int = 0


@attrs.frozen
class Wait:
    """Time passes."""

    until: str


@attrs.frozen
class Happen:
    """Something happens to a connection, to the next one, or to the process."""

    what: str
    which: int = 0


Command: TypeAlias = Ask | Say | Wait | Happen

CONTINUES: Final = ("latest", "older", "unknown response", "no response")
CUTS: Final = ("whole", "frames", "pairs", "in a header", "keep a header", "keep", "once", "pieces")
REQUEST_CUTS: Final = ("once", "after the head", "pieces")
WAITS: Final = (
    "moment",
    "second",
    "before the deadline",
    "the deadline",
    "after the deadline",
    "past the deadline, unnoticed",
    "clock goes back",
)
# To a client, to an upstream, to the next connection that is opened, to the process.
CLIENT_TROUBLE: Final = ("blocked", "unblocked", "client leaves", "client ends", "garbage")
UPSTREAM_TROUBLE: Final = ("upstream ends", "upstream resets", "upstream blocked")
NEXT_TROUBLE: Final = (
    "connect fails",
    "no descriptor",
    "connect is late",
    "upgrade is rejected",
    "upgrade is late",
    "upgrade with messages",
    "sent is late",
    "close is late",
)
PROCESS_TROUBLE: Final = ("drain", "accept fails", "misuse")

SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "pr397": {"policy": POLICIES["pr397"]},
    "v1_12": {"policy": POLICIES["v1_12"]},
    "passthrough": {"continuity": Continuity.PASSTHROUGH},
    "small messages": {"max_message": 1500},
    "small heads": {"max_header": 2000, "max_body": 5000},
    "short times": {
        "head_timeout": SECOND // 2,
        "keepalive": SECOND,
        "idle_timeout": 20 * SECOND,
        "created_timeout": 3 * SECOND,
        "client_idle": 10 * SECOND,
    },
    "decisions": {"decisions": True, "keepalive": 2 * SECOND},
    "replaying": {"ambiguous": OnAmbiguousLoss.REPLAY},
    "warm": {"rotation": Rotation.WARM, "upstream_lifetime": 10 * SECOND},
    "one session": {"max_sessions": 1, "max_waiting": 0},
}

# How a program ends. Each shows what an endpoint has kept of the events before it, such as the
# sequence number of the last one.
ENDINGS: Final[dict[str, tuple[Command, ...]]] = {
    "nothing": (),
    "loss": (Happen("upstream resets"),),
    "silence": (Wait("the deadline"),) * 4,
    "end of the turn": (Say((("item done", 1), ("completed, empty output", 1)), turn="nothing"),),
    "next turn": (
        Say((("completed", 1),), turn="nothing"),
        Say((("delta", 3), ("completed", 1))),
    ),
    "shutdown": (Happen("drain"), Wait("the deadline"), Wait("the deadline"), Wait("the deadline")),
}


@attrs.frozen
class Case:
    """A program, the settings under which it runs, and how it ends."""

    setting: str
    program: tuple[Command, ...]
    ending: str


class _Choices:
    """Choices that follow from bytes, two of them for each. Zeros choose the first option, as does
    the lack of bytes; so the first is to be the simplest."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def of(self, options: Sequence[T]) -> T:
        number = int.from_bytes(self._data[self._at : self._at + 2], "big")
        self._at += 2
        return options[number % len(options)]


_COMMANDS: Final = 16  # of a program, at most
_COMMAND: Final = 44  # bytes from which one is made
_HEAD: Final = 12  # bytes from which all but the commands is made
_SIZE: Final = _HEAD + _COMMANDS * _COMMAND
_CUTS: Final = ("whole",) * 6 + ("frames",) * 3 + CUTS
_ODD: Final = (*MESSAGES, *MESSAGES, *FRAMES)
_USUAL: Final = ("item done", "completed", "created", "rate limits", "completed")
_COUNTS: Final = (1, 2, 5, 20)


def case_of(data: bytes) -> Case:
    """The case that follows from random bytes.

    Of twelve commands five are deltas of a turn in output, three are messages of all kinds, two are
    requests, one is time and one is trouble. One value is drawn instead of a list of commands
    because Hypothesis copies parts of what it draws to other places, so that of seven programs one
    is new, and few kinds of messages would ever come. Each command has bytes of its own, and zeros
    are no command: so a program shrinks to the commands that matter.
    """
    choices = _Choices(data)
    setting = choices.of(("default",) * 4 + tuple(SETTINGS))
    ending = choices.of(tuple(ENDINGS))
    length = choices.of(range(_COMMANDS, 3, -1))
    program = []
    for start in range(_HEAD, _HEAD + length * _COMMAND, _COMMAND):
        command = _command_of(_Choices(data[start : start + _COMMAND]))
        if command is not None:
            program.append(command)
    # The last event before a loss or a silence has a part in what clients get then.
    program.append(Say((_message_of(choices, "mixed"),)))
    return Case(setting, tuple(program), ending)


def _command_of(choices: _Choices) -> Command | None:
    kind = choices.of(
        ("none",) + ("deltas",) * 5 + ("mixed",) * 3 + ("ask", "ask", "wait", "happen")
    )
    if kind in ("deltas", "mixed"):
        return Say(
            upstream=choices.of(range(3)),
            turn=choices.of(("stream",) * 4 + ("json", "json", "nothing")),
            together=choices.of((False, True)),
            cut=choices.of(_CUTS),
            at=choices.of(range(400)),
            pace=choices.of((0, 0, 0, MILLISECOND, SECOND)),
            what=tuple(_message_of(choices, kind) for _ in range(choices.of(range(1, 6)))),
        )
    if kind == "ask":
        return Ask(
            client=choices.of(range(3)),
            head=choices.of(("plain",) * 30 + tuple(REQUESTS)),
            body=choices.of(("stream",) * 8 + ("json",) * 4 + tuple(BODIES)),
            continues=choices.of(("latest", "latest", *CONTINUES)),
            copies=choices.of((1, 1, 1, 2)),
            cut=choices.of(("whole",) * 3 + REQUEST_CUTS),
            at=choices.of(range(400)),
        )
    if kind == "wait":
        return Wait(choices.of(WAITS))
    if kind == "happen":
        troubles = CLIENT_TROUBLE * 2 + UPSTREAM_TROUBLE + NEXT_TROUBLE + PROCESS_TROUBLE
        return Happen(choices.of(troubles), choices.of(range(3)))
    return None


def _message_of(choices: _Choices, kind: str) -> tuple[str, int]:
    form = choices.of(("plain", "plain", "usual", "odd")) if kind == "mixed" else "plain"
    if form == "plain":
        return choices.of(("delta",) * 4 + tuple(PLAIN)), choices.of(_COUNTS)
    return choices.of(_USUAL if form == "usual" else _ODD), 1


def cases() -> st.SearchStrategy[Case]:
    """All cases."""
    return st.binary(min_size=_SIZE, max_size=_SIZE).map(case_of)


# ------------------------------------------------------------------ carrying programs out

_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d+) ")
# What clients are to have received in the sample, beside statuses.
_ANSWERS: Final = {
    "failed after output": re.compile(rb"event: response\.failed\n.*sequence_number\":[1-9]"),
    "keepalive after output": re.compile(rb"event: keepalive\n.*sequence_number\":[1-9]"),
    "stream completed": re.compile(rb"event: response\.completed\n"),
    "JSON with output": re.compile(rb"content-type: application/json\r(?s:.)*\"output\":\[\{"),
}


class Stage:
    """The two endpoints and all that they talk to. ``seen`` counts what has occurred."""

    def __init__(self, config: Config, seen: Counter[str]) -> None:
        self.twins = Twins(config)
        self.seen = seen
        self.now = 0
        self.requests = 0
        self.known: list[tuple[str, list[Json]]] = []  # responses that have ended, and their output
        self.open: set[int] = set()  # connections that an adapter would know
        self.clients: dict[int, int] = {}  # connection of each client
        self.upstreams: dict[int, Upstream] = {}
        self.unread: dict[int, bytes] = {}  # sent by an upstream, but not read by the endpoint yet
        self.paused: set[int] = set()
        self.next: set[str] = set()  # trouble that is to strike the next connection
        self.late: list[tuple[tp.TransportEvent, tp.TransportEvent | None]] = []
        self.listening = True
        self.stopped = False
        self._queue: deque[tuple[tp.TransportEvent, tp.TransportEvent | None]] = deque()
        self._busy = False

    # ------------------------------------------------------------ the adapter

    def report(self, event: tp.TransportEvent, other: tp.TransportEvent | None = None) -> None:
        """Have the endpoints handle ``event``, carry out the effects, and report what follows."""
        self._queue.append((event, other))
        if self._busy:
            return
        self._busy = True
        while self._queue and not self.stopped:
            event, other = self._queue.popleft()
            conn = getattr(event, "conn", None)
            if conn is not None and conn not in self.open:
                continue  # aborted when this was queued
            if conn is not None and isinstance(event, tp.Disconnected | tp.ConnectFailed):
                self._forget(conn)
            for effect in self.twins.handle(event, self.now, other):
                self._carry_out(effect)
        self._busy = False

    def _forget(self, conn: int) -> None:
        self.open.discard(conn)
        self.upstreams.pop(conn, None)
        self.unread.pop(conn, None)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case tp.Connect(conn):
                self.open.add(conn)
                self._connect(conn)
            case UpgradeSent(conn):
                self._upgrade(conn)
            case FramesSent(conn, frames, notify):
                # The end of each message, whole or in fragments: a response.create.
                up = self.upstreams[conn]
                up.asked += sum(first in (0x80, 0x81) for first, _ in frames)
                if any(first == 0x88 for first, _ in frames):  # a close frame
                    up.give_up()
                if notify:
                    self._soon("sent is late", tp.DataSent(conn))
            case tp.Send(conn, data, notify):
                self._note_answer(data)
                if notify:
                    self._soon("sent is late", tp.DataSent(conn))
            case tp.Close(conn):
                self._soon("close is late", tp.Disconnected(conn))
            case tp.Abort(conn):
                self._forget(conn)
            case tp.PauseReading(conn):
                self.seen["paused"] += 1
                self.paused.add(conn)
            case tp.ResumeReading(conn):
                self.paused.discard(conn)
                if unread := self.unread.pop(conn, b""):
                    self.report(tp.DataReceived(conn, unread))
            case tp.StopListening():
                self.listening = False
            case tp.Stop():
                self.seen["stopped"] += 1
                self.stopped = True
            case _:
                pass

    def _note_answer(self, data: bytes) -> None:
        for status in _STATUS.findall(data):
            self.seen[f"status {status.decode()}"] += 1
        for name, pattern in _ANSWERS.items():
            if pattern.search(data):
                self.seen[name] += 1

    def _strikes(self, trouble: str) -> bool:
        """Whether ``trouble`` was announced; then it strikes now, once."""
        if trouble not in self.next:
            return False
        self.next.remove(trouble)
        self.seen[f"{trouble}: struck"] += 1
        return True

    def _soon(
        self, trouble: str, event: tp.TransportEvent, other: tp.TransportEvent | None = None
    ) -> None:
        """Report ``event`` next, or, with this trouble, after the command that follows."""
        if self._strikes(trouble):
            self.late.append((event, other))
        else:
            self.report(event, other)

    def _connect(self, conn: int) -> None:
        if self._strikes("connect fails"):
            self.report(tp.ConnectFailed(conn, tp.ConnectError.REFUSED, "refused"))
        elif self._strikes("no descriptor"):
            self.report(tp.ConnectFailed(conn, tp.ConnectError.LOCAL, "no descriptor"))
        else:
            self._soon("connect is late", tp.Connected(conn))

    def _upgrade(self, conn: int) -> None:
        if self._strikes("upgrade is rejected"):
            self.report(tp.DataReceived(conn, REJECTION))
            return
        up = self.upstreams[conn] = Upstream(conn)
        more = b""
        if self._strikes("upgrade with messages"):
            more = frame(MESSAGES["rate limits"](up)) + frame(MESSAGES["late done"](up))
        ours, theirs = (answer + more for answer in self.twins.accepting(conn))
        event = tp.DataReceived(conn, ours), tp.DataReceived(conn, theirs)
        self._soon("upgrade is late", *event)

    # ------------------------------------------------------------ commands

    def perform(self, command: Command) -> None:
        late, self.late = self.late, []
        match command:
            case Ask():
                self._ask(command)
            case Say():
                self._say(command)
            case Wait(until):
                self._wait(until)
            case Happen(what, which):
                self._happen(what, which)
        for event in late:
            self.report(*event)

    def _client(self, number: int) -> int | None:
        """The connection of a client, opened if it has none; None if no more are accepted."""
        conn = self.clients.get(number)
        if conn is not None and conn in self.open:
            return conn
        if not self.listening or self.stopped:
            return None
        conn = self.clients[number] = self.twins.new_connection()
        self.open.add(conn)
        self.report(tp.Accepted(conn))
        return conn

    def _ask(self, ask: Ask) -> None:
        conn = self._client(ask.client)
        if conn is None:
            return
        anchor: str | None = None
        output: list[Json] = []
        if ask.continues == "unknown response":
            anchor = "resp_unknown"
        elif ask.continues != "no response" and self.known:
            anchor, output = self.known[-1 if ask.continues == "latest" else 0]
        self.seen.update((ask.head, ask.body, ask.continues))
        data = b""
        for _ in range(ask.copies):
            self.requests += 1
            data += REQUESTS[ask.head](BODIES[ask.body](self.requests, anchor, output))
        for piece in _pieces(ask.cut, data, ask.at):
            self.report(tp.DataReceived(conn, piece))

    def _running(self) -> list[Upstream]:
        return [up for up in self.upstreams.values() if up.asked or up.running]

    def _say(self, say: Say) -> None:
        if say.turn != "nothing" and not self._running():
            self._ask(Ask(say.upstream, body=say.turn))
        ups = self._running() or list(self.upstreams.values())
        if not ups or self.stopped:
            return
        up = ups[say.upstream % len(ups)]
        opening = []
        if say.turn != "nothing" and up.asked and up.running is None and say.what[0][0] in PLAIN:
            opening = [frame(up.created()), frame(MESSAGES["in progress"](up))]
            opening.append(frame(up.item_added()))
        if opening and not say.together:
            self._read(up, b"".join(opening))
            opening.clear()
        # Whether the endpoint has received output of this turn, and is between two frames.
        calm = up.in_output and not opening and up.conn not in self.unread
        if up.conn in self.unread:
            opening.insert(0, self.unread.pop(up.conn))
        frames = [(data, False) for data in opening]
        for name, count in say.what:
            self.seen[name] += up.running is not None
            for _ in range(count):
                ended = len(up.ended)
                data = _encode(name, up)
                frames.append((data, calm and name in PLAIN and up.in_output))
                if len(up.ended) > ended:
                    self.known.append((up.ended[-1], [up.item]))
        self.seen[say.cut] += 1
        for data, plain in self._reads(up.conn, frames, say):
            self.seen["reads"] += 1
            self.seen["plain reads"] += plain
            self._read(up, data)
            self.now += say.pace

    def _reads(
        self, conn: int, frames: list[tuple[bytes, bool]], say: Say
    ) -> Iterator[tuple[bytes, bool]]:
        """The reads by which an endpoint gets these frames, each with whether it is a plain one;
        what it does not get yet is left in ``unread``."""
        if say.cut in ("whole", "frames", "pairs"):
            size = {"whole": len(frames), "frames": 1, "pairs": 2}[say.cut]
            for at in range(0, len(frames), size):
                part = frames[at : at + size]
                yield b"".join(data for data, _ in part), all(plain for _, plain in part)
            return
        data = b"".join(data for data, _ in frames)
        keep = 0
        if say.cut in ("in a header", "keep a header"):
            keep = max(0, len(frames[-1][0]) - 1 - say.at % 2)
        elif say.cut == "keep":
            keep = say.at % (len(data) + 1)
        if say.cut.startswith("keep"):
            self.unread[conn] = data[len(data) - keep :]
            pieces = [data[: len(data) - keep]]
        elif keep:
            pieces = [data[:-keep], data[-keep:]]
        else:
            pieces = list(_pieces(say.cut, data, say.at))
        yield from ((piece, False) for piece in pieces if piece)

    def _read(self, up: Upstream, data: bytes) -> None:
        if up.conn in self.paused:
            self.unread[up.conn] = self.unread.get(up.conn, b"") + data
        elif data:
            self.report(tp.DataReceived(up.conn, data))

    def _wait(self, until: str) -> None:
        self.seen[until] += 1
        deadline = self.twins.next_timeout()
        if until == "moment":
            self.now += MILLISECOND
        elif until == "second":
            self.now += SECOND
        elif until == "clock goes back":
            now, self.now = self.now, max(0, self.now - SECOND)
            self.report(tp.TimeoutReached())
            self.now = now
        elif deadline is not None:
            after = {"before the deadline": -1, "the deadline": 0}.get(until, 7 * MILLISECOND)
            self.now = max(self.now, deadline.at + after)
            if until != "past the deadline, unnoticed":
                self.report(tp.TimeoutReached())

    def _happen(self, what: str, which: int) -> None:
        self.seen[what] += 1
        if what in NEXT_TROUBLE:
            self.next.add(what)
        elif what in CLIENT_TROUBLE:
            clients = sorted(self.open.intersection(self.clients.values()))
            if clients:
                self.report(_client_trouble(what, clients[which % len(clients)]))
        elif what in UPSTREAM_TROUBLE:
            ups = self._running() or list(self.upstreams.values())
            if ups:
                self.report(_upstream_trouble(what, ups[which % len(ups)].conn))
        elif what == "drain":
            self.report(tp.DrainRequested("SIGTERM"))
        elif what == "accept fails":
            self.report(tp.AcceptFailed("no descriptor"))
        else:
            for conn in sorted(self.open)[:3]:
                self.report(tp.Accepted(conn))
                self.report(tp.DataReceived(conn, b""))
                self.report(tp.Connected(conn) if which else tp.DataSent(conn))


def _encode(name: str, up: Upstream) -> bytes:
    if name in FRAMES:
        return FRAMES[name](up)
    return frame((PLAIN.get(name) or MESSAGES[name])(up))


def _pieces(cut: str, data: bytes, at: int) -> Iterator[bytes]:
    """``data``, cut once, after the head of a request, in about twenty pieces of equal length, or
    not at all."""
    if cut == "after the head":
        at = data.find(b"\r\n\r\n") + 4
        cut = "once"
    if cut == "once":
        middle = at % len(data)
        yield from (piece for piece in (data[:middle], data[middle:]) if piece)
    elif cut == "pieces":
        size = max(1 + at % 40, len(data) // 20)
        yield from (data[start : start + size] for start in range(0, len(data), size))
    else:
        yield data


def _client_trouble(what: str, conn: int) -> tp.TransportEvent:
    events: dict[str, tp.TransportEvent] = {
        "blocked": tp.WriteBlocked(conn),
        "unblocked": tp.WriteUnblocked(conn),
        "client leaves": tp.Disconnected(conn),
        "client ends": tp.EofReceived(conn),
        "garbage": tp.DataReceived(conn, b"\xff\r\n\r\n"),
    }
    return events[what]


def _upstream_trouble(what: str, conn: int) -> tp.TransportEvent:
    events: dict[str, tp.TransportEvent] = {
        "upstream ends": tp.EofReceived(conn),
        "upstream resets": tp.Disconnected(conn),
        "upstream blocked": tp.WriteBlocked(conn),
    }
    return events[what]


def run(case: Case, seen: Counter[str]) -> None:
    """Carry out a program, comparing the endpoints after each event; count what occurs."""
    upstream = UpstreamUrl.parse("ws://up/v1/responses")
    stage = Stage(Config(upstream=upstream, **SETTINGS[case.setting]), seen)
    seen.update((case.setting, case.ending))
    for command in (*case.program, *ENDINGS[case.ending]):
        stage.perform(command)


# ------------------------------------------------------------------ the property


@pytest.mark.timeout(60 + CASES)  # that of a failing example to shrink, too
@settings(
    max_examples=CASES,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(cases())
def test_shortcuts_change_nothing(case: Case) -> None:
    run(case, Counter())


# ------------------------------------------------------------------ each kind of input, once

DELTA: Final = Say((("delta", 2),))
TURN: Final = Say((("delta", 2), ("completed", 1)))


def _in_output(name: str, turn: str, cut: str = "whole") -> tuple[Command, ...]:
    """A turn in output; then a read with ``name`` among deltas, and one of it alone."""
    among = Say((("delta", 2), (name, 1), ("delta", 2)), turn="nothing", cut=cut)
    return attrs.evolve(DELTA, turn=turn), among, DELTA, Say(((name, 1),), turn="nothing")


@pytest.mark.parametrize("names", [PLAIN, MESSAGES, FRAMES], ids=["plain", "messages", "frames"])
def test_each_message_in_output(names: Iterable[str]) -> None:
    """Random programs seldom have all forms of input; here are all, in the midst of a turn."""
    for name in names:
        seen: Counter[str] = Counter()
        run(Case("short times", _in_output(name, "stream", "frames"), "silence"), seen)
        run(Case("default", _in_output(name, "json"), "next turn"), seen)
        run(Case("passthrough", _in_output(name, "stream", "keep a header"), "loss"), seen)
        assert seen[name] >= 5, name
        # The same as the first message of a turn.
        run(Case("default", (Ask(), Say(((name, 1), ("delta", 2)))), "loss"), seen)


def test_each_request_twice() -> None:
    """Each head comes twice on one connection, with another length: a head may be remembered."""
    for head in REQUESTS:
        seen: Counter[str] = Counter()
        once, twice = Ask(head=head), Ask(head=head, copies=2)
        for cut in REQUEST_CUTS:
            asks = (Ask(head=head, cut=cut), TURN, Ask(), TURN, once, TURN, twice, TURN, TURN)
            run(Case("default", (*asks, Ask()), "end of the turn"), seen)
        assert seen[head] >= 9
        assert head != "expect" or seen["status 100"]
    for body in BODIES:
        for continues in CONTINUES:
            ask = Ask(body=body, continues=continues)
            run(Case("default", (Ask(), TURN, ask, TURN, ask, TURN), "next turn"), Counter())


def test_each_trouble_in_output() -> None:
    for what in CLIENT_TROUBLE + UPSTREAM_TROUBLE + NEXT_TROUBLE + PROCESS_TROUBLE:
        seen: Counter[str] = Counter()
        for which in (0, 1):
            trouble = Happen(what, which)
            closing = Ask(2, head="livez in HTTP/1.0")
            during = DELTA, trouble, TURN, DELTA, Ask(1), closing, DELTA
            run(Case("default", during, "next turn"), seen)
            run(Case("default", (trouble, DELTA, DELTA, Ask(1), DELTA), "silence"), seen)
        assert what not in NEXT_TROUBLE or seen[f"{what}: struck"], what
    for until in WAITS:
        for setting in SETTINGS:
            run(Case(setting, (DELTA, Wait(until)) * 2, "end of the turn"), Counter())


# ------------------------------------------------------------------ what the programs consist of


def test_programs_are_to_the_point() -> None:
    """In a fixed sample of the cases most have plain reads, and input of every class occurs. (All
    of each class occurs in the tests above.)"""
    seen: Counter[str] = Counter()
    plain = 0
    rng = random.Random(1)
    size = 70
    for _ in range(size):
        before = seen["plain reads"]
        run(case_of(rng.randbytes(_SIZE)), seen)
        plain += seen["plain reads"] > before
    # Plain reads are whole frames with nothing but deltas of a turn in output, as far as the test
    # knows.
    assert plain > 0.6 * size
    assert seen["plain reads"] > seen["reads"] / 3
    for names, least in {
        (*PLAIN, *CONTINUES, *CUTS): 1,
        (*MESSAGES, *FRAMES): 0.4,
        tuple(REQUESTS): 0.4,
        tuple(BODIES): 0.7,
        (*SETTINGS, *ENDINGS): 0.9,
        WAITS: 0.9,
        CLIENT_TROUBLE + UPSTREAM_TROUBLE + PROCESS_TROUBLE: 0.8,
        tuple(f"{name}: struck" for name in NEXT_TROUBLE): 0.5,
        (*_ANSWERS, "status 200", "status 400", "status 502", "paused", "stopped"): 1,
    }.items():
        missing = [name for name in names if not seen[name]]
        assert len(missing) <= (1 - least) * len(names), missing
