"""Measures how a conversation's context grows, turn by turn, when connections are lost.

What belongs here: running the experiment behind the project (docs, "Recovery") in virtual time,
through a real endpoint with a real emulator. The figures are measured, not computed: tokens are
those of the ``usage`` that the upstream reports, and the context window is full when the upstream
answers ``context_length_exceeded``. Only the client is a model; ``experiment.py`` describes it.
"""

from __future__ import annotations

from collections.abc import Callable

from bridgecore import transport as tp
from bridgecore.config import Config, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer
from bridgecore.simulate.chance import Rng
from bridgecore.simulate.contract import CheckedAnswer
from bridgecore.simulate.experiment import (
    Dialogue,
    Experiment,
    Growth,
    LostBeforeCreated,
    TurnFigures,
    upstream_of,
)
from bridgecore.simulate.paths import Paths
from bridgecore.testing.client import HttpEnd, HttpHead, HttpReader
from bridgecore.testing.network import MILLISECOND, Network

_THINK = 20 * NS_PER_SECOND  # between two turns


def grow(
    experiment: Experiment, *, progress: Callable[[TurnFigures], None] | None = None
) -> Growth:
    """Run ``experiment``. ``progress`` is called with the figures of each turn that ends."""
    network = Network(conditions=Paths(experiment.seed))
    emulator = upstream_of(experiment)
    emulator.faults = LostBeforeCreated(experiment, emulator)
    client = _Client(experiment, progress)

    def forget() -> None:
        for request in emulator.requests:
            client.dialogue.reached(request)
        emulator.requests.clear()
        emulator.turns.clear()

    url = UpstreamUrl.parse("ws://upstream:80/v1/responses")
    endpoint = Endpoint(Config(upstream=url, policy=experiment.policy))

    def lose_sockets() -> None:
        for end in network.ends(emulator):
            network.reset(end)

    client.between_turns = lambda: network.at(network.now + 500 * MILLISECOND, lose_sockets)
    network.add(emulator, "upstream", 80, after=forget)
    network.add(endpoint, "bridge", 80)
    network.add(client, label=0)
    network.run((experiment.turns + 1) * 3600 * NS_PER_SECOND, lambda: client.dialogue.done)
    return client.dialogue.growth()


class _Client:
    """The client of the experiment on the virtual network. A ``Machine``."""

    def __init__(
        self, experiment: Experiment, progress: Callable[[TurnFigures], None] | None
    ) -> None:
        self.dialogue = Dialogue(experiment)
        self.between_turns: Callable[[], None] | None = None
        self._progress = progress
        self._experiment = experiment
        self._rng = Rng(experiment.seed, 6)
        self._wake: int | None = 2 * NS_PER_SECOND
        self._now = 0
        self._out: list[tp.TransportEffect] = []
        self._conn: int | None = None
        self._serial = 0
        self._reader = HttpReader()
        self._answer: CheckedAnswer | None = None
        self._asking = False

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
                self._rest(self.dialogue.connection_lost())
        out, self._out = self._out, []
        return out

    def _timeout(self) -> None:
        if self._wake is None or self._wake > self._now:
            return
        self._wake = None
        if self.dialogue.between_turns:
            self.dialogue.begin_turn()
        self._try()

    def _rest(self, seconds: int) -> None:
        self._asking = False
        self._wake = self._now + seconds * NS_PER_SECOND + self._rng.between(0, 500) * MILLISECOND

    def _try(self) -> None:
        if not self.dialogue.begin_try():
            return
        if self._conn is None:
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
        body = self.dialogue.body
        self._out.append(tp.Send(self._conn, head % len(body) + body))

    def _receive(self, data: bytes) -> None:
        for part in self._reader.feed(data):
            if isinstance(part, HttpHead):
                self._answer = CheckedAnswer(part)
            elif self._answer is not None and isinstance(part, HttpEnd):
                self._complete(self._answer)
            elif self._answer is not None and isinstance(part, bytes):
                self._answer.feed(part)

    def _complete(self, answer: CheckedAnswer) -> None:
        head, dialogue = answer.head, self.dialogue
        seconds = dialogue.answered(head.status, answer.final(), head.headers.get("retry-after"))
        if dialogue.between_turns:
            self._asking = False
            if self._progress is not None:
                self._progress(dialogue.rows[-1])
            if dialogue.done:
                return
            if self.between_turns is not None and self._experiment.is_hit(dialogue.turn + 1):
                self.between_turns()
            self._wake = self._now + _THINK
        elif dialogue.done:
            self._asking = False
        elif seconds:
            self._rest(seconds)
        else:
            self._try()
