"""The whole system in virtual time: an endpoint, an upstream, many clients, and a hostile network.

What belongs here: what goes wrong in a run and when (drawn from the scenario's seed), the checks
that need more than one client's view, the search for a smaller run that fails alike, and the
totals. Wires and chance are ``sim_network``'s, what a client does and can check by itself is
``sim_clients``'.

A run is a pure function of its ``Scenario``: the same scenario gives the same history, byte for
byte (``Report.digest``). What goes wrong for a turn is drawn from (seed, client, turn) alone, so a
scenario with fewer clients or fewer troubles keeps the rest as it was; that is what ``shrink``
relies on.

What is checked, beside what clients check (streams, isolation, not-found only after bounded
refusals, honest statuses, liveness):

* *execution*: the upstream never sees more sends of a turn that it did not refuse than its client
  made attempts (invariant 11);
* *context*, *self-contained*, *credential*, *sibling*: what goes upstream is what clients mean
  (``sim_upstream``: invariants 3, 6 to 8, 39 and 40);
* *foreign*: who names a response of another credential's is told, and costs the upstream, exactly
  what is due for one that nobody has (invariant 39);
* *accounts*: what the bridge says that continuity saved and cost, turn by turn and in all, is what
  can be seen from outside;
* *session*: the transitions of every session, as the decision log has them, are replayed and judged
  by the reference model of the explorer (``monitor``), if the policy has the cells of the safe one:
  what others break, ``bridgecore verify`` tells;
* *machine*: nothing raises, and no deadline that was handled is due again (invariant 29);
* *leak*: when all is over and every timer has run out, nothing is left (invariants 18 to 21);
* *drain*: a drained endpoint stops.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import attrs

from bridgecore.config import Config, Rotation, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.policy import DEFAULT, Policy
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.testing.answers import CreateRequest
from bridgecore.testing.emulator import Emulator, Outcome, Turn, is_met
from bridgecore.testing.faults import (
    CATALOGUE,
    NOT_FOUND,
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
    When,
)
from bridgecore.verify.properties import ViolationError
from bridgecore.verify.replay import Replay
from bridgecore.verify.sim_clients import PROFILES, Client, Probe, Profile, answer, marks
from bridgecore.verify.sim_network import MILLISECOND, NOBODY, End, MachineError, Rng, SimNetwork
from bridgecore.verify.sim_upstream import Asked, Json, Ledger, Witness, encode
from bridgecore.wire import transport as tp
from bridgecore.wire.decisions import DECISION, hashed

T = TypeVar("T", bound=Any)  # sortable

_HOUR = 3600 * NS_PER_SECOND
_HORIZON = 60 * 24 * _HOUR  # virtual time after which clients that are not done never will be
_MAX_VIOLATIONS = 20  # of one run: more tell nothing new


# ------------------------------------------------------------------ what goes wrong


class Strike(enum.Enum):
    """What can be done to a turn on the network. The value is how a timeline calls it."""

    CLIENT_CUT_UP = "the client's connection breaks in its request"
    CLIENT_CUT_DOWN = "the client's connection breaks in its answer"
    CLIENT_STALL = "the client's connection stalls"
    LINK_CUT_UP = "the upstream socket breaks while it is written to"
    LINK_CUT_DOWN = "the upstream socket breaks in the answer"
    LINK_STALL_UP = "the upstream socket stalls while it is written to"
    LINK_STALL_DOWN = "the upstream socket stalls in the answer"
    LINK_HALF_OPEN = "the upstream socket goes half-open"
    IDLE_RESET = "the upstream socket was reset between turns"
    IDLE_CLOSED = "the upstream socket was closed between turns, without a close frame"
    IDLE_HALF_OPEN = "the upstream socket went half-open between turns"
    REFUSED = "the socket was reset and the next connects are refused"
    SWALLOWED = "the socket was reset and the next connect is not answered"


@attrs.frozen
class Trouble:
    """What goes wrong in one turn: a strike, or a fault of the upstream's."""

    what: Strike | Fault
    count: int = 0  # bytes after which a wire breaks; connects that are refused
    duration: int = 0  # ns of a stall

    def __str__(self) -> str:
        if isinstance(self.what, Strike):
            return self.what.value
        return f"the upstream: {self.what.action} {self.what.point.value}"


_LIMIT = Error(
    400,
    "websocket_connection_limit_reached",
    "invalid_request_error",
    "This connection has reached its time limit; please open a new one.",
)
_FAILED = (
    b'{"type":"response.failed","sequence_number":%SEQUENCE%,"response":{"id":"%RESPONSE_ID%",'
    b'"status":"failed","output":[],"error":{"code":"server_error","message":"scripted"}}}'
)
_INCOMPLETE = (
    b'{"type":"response.incomplete","sequence_number":%SEQUENCE%,"response":{"id":"%RESPONSE_ID%",'
    b'"status":"incomplete","output":[],"error":null,'
    b'"incomplete_details":{"reason":"max_output_tokens"}}}'
)
_STRANGE = b'{"type":"response.strange","sequence_number":%SEQUENCE%,"new":true}'

_CLOSES: Final[tuple[Action, ...]] = (
    Abort(),
    *(CloseWith(code) for code in (1000, 1001, 1005, 1006, 1011, 1012, 1013, 4000)),
)
_SILENCES: Final[tuple[Action, ...]] = (Silence(), Freeze())
_LATER = (Point.AFTER_CREATED, Point.MID_OUTPUT, Point.BEFORE_TERMINAL)
# Each list is one kind of trouble, all kinds equally likely.
_UPSTREAM_FAULTS: Final[tuple[tuple[Fault, ...], ...]] = (
    tuple(Fault(Point.BEFORE_CREATED, action) for action in _CLOSES),
    tuple(Fault(point, action) for point in _LATER for action in _CLOSES),
    tuple(Fault(Point.AFTER_TERMINAL, action) for action in _CLOSES),
    tuple(Fault(Point.BEFORE_CREATED, action) for action in _SILENCES),
    tuple(Fault(point, action) for point in _LATER for action in _SILENCES),
    (
        Fault(Point.BEFORE_CREATED, Error()),
        Fault(Point.BEFORE_CREATED, Error(shape=ErrorShape.NO_STATUS)),
        Fault(Point.BEFORE_CREATED, Error(429, "rate_limit_exceeded", "rate_limit_error")),
        Fault(Point.BEFORE_CREATED, Error(400, "invalid_prompt", "invalid_request_error")),
        Fault(Point.MID_OUTPUT, Error()),
    ),
    tuple(
        # No upstream misses a response that nobody asked for.
        Fault(Point.BEFORE_CREATED, attrs.evolve(NOT_FOUND, shape=shape), when=When.ANCHORED)
        for shape in ErrorShape
    ),
    (
        Fault(Point.BEFORE_CREATED, _LIMIT),
        Fault(Point.BEFORE_CREATED, attrs.evolve(_LIMIT, shape=ErrorShape.CODE_IN_TYPE)),
    ),
    (
        Fault(Point.AFTER_CREATED, SendEvents((_FAILED,))),
        Fault(Point.MID_OUTPUT, SendEvents((_FAILED,))),
        Fault(Point.BEFORE_TERMINAL, SendEvents((_INCOMPLETE,))),
        Fault(Point.MID_OUTPUT, SendEvents((_STRANGE,))),
        Fault(Point.MID_OUTPUT, Garbage(b"not json")),
        Fault(Point.MID_OUTPUT, Garbage(b"\x8f\xff", raw=True)),
    ),
    (
        Fault(Point.ON_CONNECT, Abort()),
        Fault(Point.ON_CONNECT, Freeze()),
        Fault(Point.ON_UPGRADE, CloseWith(1006)),
        Fault(Point.ON_UPGRADE, Silence()),
        Fault(Point.ON_UPGRADE, Reject(503, ((b"retry-after", b"3"),))),
        Fault(Point.ON_UPGRADE, Reject(404)),
        Fault(Point.ON_UPGRADE, Reject(429)),
    ),
)
_OF_CONNECTIONS = frozenset({Point.ON_CONNECT, Point.ON_UPGRADE})
# Of the faults of real services these are not drawn. What happens while a frame is received cannot
# be attributed to a client (upstreams that read slowly are drawn for a whole run); and turns are
# told apart by the ids of their responses.
_NOT_DRAWN: Final = frozenset({"slow-reader", "too-large-while-receiving", "chain-id"})
_USUAL: Final = {fault for kind in _UPSTREAM_FAULTS for fault in kind}
_ODD_NAMES: Final[dict[Fault, str]] = {
    named.fault: name
    for name, named in CATALOGUE.items()
    if name not in _NOT_DRAWN and named.fault not in _USUAL
}


def _odd_kinds() -> tuple[tuple[Fault, ...], ...]:
    """The faults of real services, each list one kind of trouble."""
    kinds: dict[str, list[Fault]] = {}
    for fault in _ODD_NAMES:
        match fault.action:
            case Stale() | Alter():
                kind = type(fault.action).__name__
            case Garbage() | SendEvents():
                kind = "noise"
            case _:
                kind = "anchor" if fault.when is not When.ALWAYS else "refusal"
        kinds.setdefault(kind, []).append(fault)
    return tuple(map(tuple, kinds.values()))


_ODD_FAULTS: Final = _odd_kinds()
_SLOWLY: Final = Fault(Point.WHILE_RECEIVING, ReadSlowly())


def trouble(
    seed: int, client: int, turn: int, every: int | None, *, odd: bool = True
) -> Trouble | None:
    """What goes wrong in the turn, once in ``every`` turns; None: nothing, as for most. ``odd``:
    the faults of ``CATALOGUE`` are drawn, too."""
    rng = Rng(seed, 3, client, turn)
    if every is None or not rng.one_in(every):
        return None
    if rng.one_in(2):
        kinds = (*_UPSTREAM_FAULTS, *_ODD_FAULTS) if odd else _UPSTREAM_FAULTS
        return Trouble(rng.pick(rng.pick(kinds)))
    strike = rng.pick(tuple(Strike))
    count = rng.between(1, 3) if strike is Strike.REFUSED else _bytes(rng)
    # Mostly shorter than any deadline, sometimes longer than most.
    duration = rng.pick((1, 4, 20, 70, 400)) * NS_PER_SECOND
    return Trouble(strike, count, duration)


def _bytes(rng: Rng) -> int:
    """How many bytes a wire still carries: any of the first few, or any of the first thousands."""
    return rng.between(0, rng.pick((4, 300, 2500, 9000)))


# ------------------------------------------------------------------ scenarios and reports


@attrs.frozen(kw_only=True)
class Scenario:
    """A run, completely: everything that happens in it follows from these values."""

    seed: int
    policy: Policy = DEFAULT
    clients: int = 32
    turns: int = 20  # of each client
    fault_every: int | None = 4  # turns for one trouble; None: nothing goes wrong
    odd: bool = True  # upstreams misbehave as in ``CATALOGUE``, too
    restarts: bool = True  # the upstream goes away and comes back, every few hours
    warm: bool = False  # sockets are given up after minutes, and those that follow are warmed
    profiles: tuple[Profile, ...] = PROFILES
    endpoint: Callable[[Config], Endpoint] = Endpoint  # what is tried
    only: frozenset[int] | None = None  # the clients that take part; None: all
    spared: frozenset[tuple[int, int]] = frozenset()  # (client, turn) whose trouble is left out


@attrs.frozen
class Violation:
    """Something that must not be, seen at ``at`` (ns since the run began)."""

    prop: str
    seed: int
    at: int
    client: int  # NOBODY: no client in particular
    turn: int
    text: str

    def __str__(self) -> str:
        who = "" if self.client == NOBODY else f", client {self.client} turn {self.turn}"
        return f"{self.prop}: {self.text} (seed {self.seed}{who}, t+{self.at / 1e9:.3f} s)"


@attrs.define
class Report:
    """What a run, or many of them, came to. Times are ns of virtual time."""

    violations: list[Violation] = attrs.Factory(list)
    conversations: int = 0
    conversation_time: int = 0  # of all conversations together, each from its begin to its end
    turns: int = 0  # that succeeded
    given_up: int = 0  # turns that an honest refusal ended
    attempts: int = 0
    probes: int = 0  # turns that were spent on naming what is somebody else's
    resends: int = 0  # whole histories that were sent after a not-found
    ledger: Ledger = attrs.Factory(Ledger)  # what continuity saved and cost
    events: int = 0  # that machines handled
    upstream_turns: int = 0
    restarts: int = 0
    troubles: Counter[str] = attrs.Factory(Counter)
    digest: str = ""  # of the latest run

    @property
    def hours(self) -> float:
        """Conversation-hours."""
        return self.conversation_time / _HOUR

    def add(self, other: Report) -> None:
        """Take in another run."""
        self.violations += other.violations
        self.conversations += other.conversations
        self.conversation_time += other.conversation_time
        self.turns += other.turns
        self.given_up += other.given_up
        self.attempts += other.attempts
        self.probes += other.probes
        self.resends += other.resends
        self.ledger.add(other.ledger)
        self.events += other.events
        self.upstream_turns += other.upstream_turns
        self.restarts += other.restarts
        self.troubles += other.troubles
        self.digest = other.digest


def run(scenario: Scenario, record: Callable[[str], None] | None = None) -> Report:
    """Run ``scenario``. ``record`` is told what happens, a line at a time: for people."""
    return _World(scenario, record).run()


def run_many(scenario: Scenario, conversations: int) -> Iterator[tuple[Scenario, Report]]:
    """Run ``scenario`` with consecutive seeds until that many conversations were had; each run's
    scenario and report as soon as it is over."""
    seed = scenario.seed
    while conversations > 0:
        one = attrs.evolve(scenario, seed=seed, clients=min(scenario.clients, conversations))
        yield one, run(one)
        conversations -= one.clients
        seed += 1


# ------------------------------------------------------------------ a run


class _UpstreamFaults(FaultPlan):
    """Faults by client and turn, where ``FaultPlan`` goes by number."""

    def __init__(self, world: _World) -> None:
        super().__init__()
        self._world = world

    def at(self, nth: int, point: Point) -> list[Fault]:
        """The faults that the ``nth`` connection or turn meets at ``point``."""
        if point is Point.WHILE_RECEIVING:  # apart from this, the network breaks frames in two
            return [_SLOWLY] if self._world.reads_slowly else []
        fault = self._world.fault(nth, point)
        return [] if fault is None else [fault]


@attrs.define
class _Sends:
    """The sends of one turn as the upstream saw them."""

    attempts: int = 0
    asked: list[Asked] = attrs.Factory(list)  # one for all attempts that ask the same
    turns: list[Turn] = attrs.Factory(list)
    responses: dict[str, Turn] = attrs.Factory(dict)


class _World:
    """One run. Also the ``Observer`` of its clients."""

    def __init__(self, scenario: Scenario, record: Callable[[str], None] | None) -> None:
        self._scenario = scenario
        self._record = record
        self._report = Report()
        seed = scenario.seed
        rng = Rng(seed, 0)
        self._network = network = SimNetwork(seed)
        network.record = self.note if record is not None else None
        network.told = self._told
        self._troubles: dict[int, Trouble | None] = {}  # client -> trouble of its turn
        self._struck: dict[int, set[int]] = {}  # client -> turns whose upstream fault has struck
        self._of_create: dict[int, tuple[int, int]] = {}  # create frame -> client, turn
        self._whens: dict[int, set[When]] = {}  # create frame -> which faults strike it
        self.reads_slowly = scenario.odd and Rng(seed, 8).one_in(4)
        self._sends: dict[tuple[int, int], _Sends] = {}
        self._faulted: dict[int, Fault] = {}  # create frame -> what it met
        self._wires: dict[int, End] = {}  # client -> its connection, as of its latest attempt
        self._witness = Witness()
        self._began: dict[int, int] = {}  # client -> ns, when its turn did
        self._away = 0  # ns, until when the upstream is or was away
        self._completed: dict[str, tuple[_Sends, Turn]] = {}  # by response id, as logs show it
        self._accounted: dict[str, Ledger] = {}  # by the same: what the bridge said of it
        self._believed: dict[tuple[int, int], list[Json]] = {}  # what was said up to a turn's end
        self._silent: list[Turn] = []  # turns that answer nothing
        self._warmth = Ledger()  # what the bridge said that they cost
        self._emulator = Emulator(
            seed=seed,
            answer=answer,
            deltas=2,
            delta_interval=rng.pick((0, 0, 150)) * MILLISECOND,
            lifetime=rng.pick((None, 1500, 3600)),
            lifetime_grace=rng.pick((None, 5)),
        )
        emulator = self._emulator
        if emulator.lifetime is not None:
            emulator.lifetime *= NS_PER_SECOND
        if emulator.lifetime_grace is not None:
            emulator.lifetime_grace *= NS_PER_SECOND
        emulator.faults = _UpstreamFaults(self)
        self._config = Config(
            upstream=UpstreamUrl.parse("ws://upstream:80/v1/responses"),
            policy=scenario.policy,
            # At the usual pace pings would be most of what is simulated, and show no more.
            ping_interval=300 * NS_PER_SECOND,
            decisions=scenario.policy.cells == DEFAULT.cells,
        )
        self._decisions = Replay(watched=True)
        if scenario.warm:
            lifetime = 200 * NS_PER_SECOND
            self._config = attrs.evolve(
                self._config, rotation=Rotation.WARM, upstream_lifetime=lifetime
            )
        self._endpoint = scenario.endpoint(self._config)
        network.add(emulator, host="upstream", after=self._look_upstream)
        network.add(self._endpoint, host="bridge")
        self._clients: dict[int, Client] = {}
        self._undone = 0  # clients that have turns left
        for number in range(scenario.clients):
            if scenario.only is not None and number not in scenario.only:
                continue
            profile = scenario.profiles[number % len(scenario.profiles)]
            client = Client(
                number,
                profile,
                turns=scenario.turns,
                refusals=scenario.policy.budgets.refusals,
                seed=seed,
                observer=self,
            )
            client.start(network.now + Rng(seed, 4, number).between(1, 600) * NS_PER_SECOND)
            if profile.slow:
                network.windows[number] = 2048
            network.add(client, label=number)
            self._clients[number] = client
            self._undone += 1
        for number, client in self._clients.items():
            if (neighbour := self._clients.get(number ^ 1)) is not None:
                client.befriend(neighbour)
        if scenario.restarts and scenario.fault_every is not None:
            self._next_restart(0)

    def run(self) -> Report:
        network, report = self._network, self._report
        try:
            network.run(_HORIZON, self._settled)
            self._check_end()
        except MachineError as exc:
            self._violate("machine", exc.label, str(exc))
        report.conversations = len(self._clients)
        for client in self._clients.values():
            report.conversation_time += max(0, client.ended - client.begun)
            report.turns += client.completed
            report.given_up += client.given_up
            report.probes += client.probes
            report.resends += client.resends
        report.ledger.add(self._warmth)
        report.events = network.events
        report.digest = network.digest
        return report

    def _settled(self) -> bool:
        return self._undone == 0 or self._full()

    def _full(self) -> bool:
        return len(self._report.violations) >= _MAX_VIOLATIONS

    def _check_end(self) -> None:
        """Clients are done: what is left has to go by itself, then the endpoint has to stop."""
        if self._full():
            return
        network, endpoint, emulator = self._network, self._endpoint, self._emulator
        for client in self._clients.values():
            if not client.done:
                self._violate("liveness", client.number, "is not done after two months")
        if endpoint.bridge.turns:
            self._violate("leak", NOBODY, f"{endpoint.bridge.turns} turns without a client")
        network.run(network.now + 3 * _HOUR, lambda: False)
        left = {
            "turns": endpoint.bridge.turns,
            "conversations": endpoint.bridge.conversations,
            "links": endpoint.bridge.links,
            "client connections": endpoint.clients,
            "upstream connections": endpoint.upstreams,
            "connections at the upstream": emulator.connections,
            "wires of the endpoint": len(network.ends(endpoint)),
        }
        total = attrs.evolve(self._warmth)
        for account in self._accounted.values():
            total.add(account)
        said = endpoint.bridge.accounts
        if attrs.astuple(total) != attrs.astuple(said):
            self._violate("accounts", NOBODY, f"all in all {said}, turn by turn {total}")
        for name, count in left.items():
            if count:
                self._violate("leak", NOBODY, f"{count} {name} three hours after the last turn")
        network.tell(endpoint, tp.DrainRequested())
        network.run(network.now + self._config.drain_timeout * 2, lambda: False)
        if endpoint not in network.stopped or endpoint.next_timeout() is not None:
            self._violate("drain", NOBODY, "an endpoint without connections does not stop")

    # ------------------------------------------------------------ the upstream

    def _next_restart(self, nth: int) -> None:
        rng = Rng(self._scenario.seed, 5, nth)
        when = self._network.now + rng.between(1800, 9000) * NS_PER_SECOND
        if (NOBODY, nth) not in self._scenario.spared:
            self._network.at(when, lambda: self._restart(rng))
        self._network.at(when, lambda: None if self._settled() else self._next_restart(nth + 1))

    def _restart(self, rng: Rng) -> None:
        if self._settled():
            return
        seconds = rng.pick((0, 2, 20, 90))
        self.note(f"the upstream restarts and is away for {seconds} s")
        self._report.restarts += 1
        self._away = self._network.now + seconds * NS_PER_SECOND
        self._network.shut("upstream")
        self._network.at(
            self._network.now + seconds * NS_PER_SECOND,
            lambda: self._network.listen("upstream", self._emulator),
        )

    def fault(self, nth: int, point: Point) -> Fault | None:
        """The fault that the ``nth`` connection or turn of the upstream meets at ``point``."""
        whens = set(When)
        if point in _OF_CONNECTIONS:
            client = self._network.accepted(self._emulator, nth).label
        else:
            found = self._key(nth)
            if found is None:
                return None
            client = found[0]
            if found[1] != self._turn_of(client):
                return None  # a straggler of a turn that is over
            whens = self._whens[nth]
        met = self._troubles.get(client)
        if met is None or not isinstance(met.what, Fault) or met.what.point is not point:
            return None
        if met.what.when not in whens:
            return None
        turn = self._turn_of(client)
        struck = self._struck.setdefault(client, set())
        if turn in struck:
            return None  # each fault strikes once
        struck.add(turn)
        if point not in _OF_CONNECTIONS:
            self._faulted[nth] = met.what
        self.note(f"client {client} turn {turn}: {met}")
        return met.what

    def _turn_of(self, client: int) -> int:
        found = self._clients.get(client)
        return 0 if found is None else found.turn

    def _key(self, nth: int) -> tuple[int, int] | None:
        """The client and turn of the ``nth`` create frame."""
        if nth not in self._of_create:
            for request in self._emulator.requests:
                self._of_create.setdefault(request.number, _whose(request))
                self._whens[request.number] = {one for one in When if is_met(request, one)}
        return self._of_create.get(nth)

    def _look_upstream(self) -> None:
        """The upstream handled something: take note of what it saw."""
        emulator = self._emulator
        for turn in emulator.turns:
            key = self._key(turn.request.number)
            if key is not None:
                self._sent(key, turn)
        emulator.turns.clear()
        emulator.requests.clear()

    def _sent(self, key: tuple[int, int], turn: Turn) -> None:
        client, number = key
        sends = self._sends.setdefault(key, _Sends())
        if self._record is not None:
            what = f"create frame {turn.request.number}, anchor {turn.request.anchor}"
            self.note(f"upstream: client {client} turn {number}: {what}, {turn.outcome.value}")
        self._report.upstream_turns += 1
        if self._is_of_the_bridge(turn, sends):
            self._warming(key, turn, sends)
            return
        sends.turns.append(turn)
        sends.responses[turn.response_id] = turn
        self._completed[hashed(turn.response_id)] = sends, turn
        if sends.asked:
            for prop, found in self._witness.saw(turn, sends.asked):
                self._violate(prop, client, found, number)
        count = self._runs(sends)
        if count > sends.attempts:
            text = f"sent upstream {count} times in {sends.attempts} attempts (invariant 11)"
            self._violate("execution", client, text, number)

    def _runs(self, sends: _Sends) -> int:
        return sum(1 for sent in sends.turns if not self._refused(sent))

    def _is_of_the_bridge(self, turn: Turn, sends: _Sends) -> bool:
        """Whether it answers nothing, and no client asked for that."""
        if turn.request.body.get("generate") is not False:
            return False
        self._silent.append(turn)
        return not sends.asked[-1].warms or self._runs(sends) >= sends.attempts

    def _warming(self, key: tuple[int, int], turn: Turn, sends: _Sends) -> None:
        """The bridge has a socket learn what a turn that was answered came to."""
        answers = [one for one in sends.responses.values() if self._is_answer(one)]
        # Which of several it stands for cannot be told from outside; they were asked the same.
        meant = self._believed.get(key) if len(answers) == 1 else None
        for prop, found in self._witness.warmed(turn, answers[-1], sends.asked[-1], meant):
            self._violate(prop, key[0], found, key[1])

    def _is_answer(self, turn: Turn) -> bool:
        """Whether ``turn`` can be continued: it was completed or cut short. An end of the script's
        counts as a failure upstream, and may be such an end to those who read it."""
        fault = self._faulted.get(turn.request.number)
        scripted = fault is not None and isinstance(fault.action, SendEvents)
        return scripted or turn.outcome in (Outcome.COMPLETED, Outcome.INCOMPLETE)

    def _refused(self, turn: Turn) -> bool:
        """Whether the upstream refused the turn before it generated anything."""
        fault = self._faulted.get(turn.request.number)
        if turn.outcome is Outcome.LOST and fault is not None:
            # Close code 1009: it was not even read.
            return isinstance(fault.action, CloseWith) and fault.action.code == 1009
        if turn.outcome is not Outcome.FAILED or fault is None:
            return turn.outcome is Outcome.FAILED
        return fault.point is Point.BEFORE_CREATED and not isinstance(fault.action, Alter)

    def _told(self, log: tp.Log) -> None:
        """The bridge says what a session decided, or what a turn saved and cost: is it so?"""
        if log.event == DECISION:
            self._decided(str(log.fields["line"]))
            return
        if log.event == "session.warmed" and log.fields["outcome"] == "completed":
            cost = int(log.fields["bytes_spent"]), int(log.fields["input_tokens"])
            seen = [(len(t.request.raw), t.usage) for t in self._silent]
            costs = {(size, usage["input_tokens"] if usage else 0) for size, usage in seen}
            if cost not in costs:
                self._violate("accounts", NOBODY, f"no socket was warmed for {cost}")
            self._warmth.add(Ledger(warmed=1, bytes_spent=cost[0], tokens_spent=cost[1]))
        if log.event != "turn.completed" or log.fields["outcome"] != "completed":
            return
        name = str(log.fields["response"])
        figures = {field: int(log.fields[field]) for field in _FIGURES}
        sends, turn = self._completed[name]
        accounts = [self._witness.account(turn, asked) for asked in reversed(sends.asked)]
        fitting = [one for one in accounts if _figures(one) == figures]
        if not fitting:
            client, number = self._key(turn.request.number) or (NOBODY, 0)
            text = f"the bridge says {figures}, what was seen is {_figures(accounts[0])}"
            self._violate("accounts", client, text, number)
        self._accounted[name] = (fitting or accounts)[0]

    def _decided(self, line: str) -> None:
        try:
            found = self._decisions.take(line.encode())
        except ViolationError as violation:
            self._violate("session", NOBODY, str(violation))
            return
        if found is not None:
            self._violate("session", NOBODY, f"{found.expected}; replayed, {found.actual}")

    # ------------------------------------------------------------ Observer

    def turn_ended(self, client: Client) -> None:
        """What is to go wrong before the next turn begins."""
        if client.done:
            self._undone -= 1
            return
        met = self._draw(client.number, client.turn + 1)
        if met is None or met.what not in _BETWEEN:
            return
        network, number = self._network, client.number

        def strike() -> None:
            self.note(f"client {number}, before turn {client.turn + 1}: {met}")
            for end in self._links(number):
                if met.what is Strike.IDLE_CLOSED:
                    network.finish(end)
                elif met.what is Strike.IDLE_HALF_OPEN:
                    network.vanish(end)
                else:
                    network.reset(end)

        network.at(network.now + 300 * MILLISECOND, strike)

    def turn_begins(self, client: Client) -> None:
        """Prepare what is to go wrong in the turn."""
        network, number = self._network, client.number
        for upstream in (False, True):
            network.armed.pop((upstream, number), None)
        network.refuse.pop(number, None)
        network.swallow.pop(number, None)
        self._began[number] = network.now
        met = self._troubles[number] = self._draw(number, client.turn)
        if met is None:
            return
        what = met.what
        self._report.troubles[what.name if isinstance(what, Strike) else _fault_name(what)] += 1
        if not isinstance(what, Strike):
            return
        self.note(f"client {number} turn {client.turn}: {met}")
        if what is Strike.REFUSED:
            network.refuse[number] = met.count
        elif what is Strike.SWALLOWED:
            network.swallow[number] = 1
        elif what not in _BETWEEN:
            upstream = what not in _OF_CLIENT
            # An unanchored turn gets a socket of its own; what can be struck is the next one.
            fresh = upstream and client.anchor is None
            ends = self._links(number) if upstream else network.ends(client)
            if ends and not fresh:
                self._strike(ends[-1], what, met)
            else:
                strikes = network.armed.setdefault((upstream, number), [])
                strikes.append(lambda end: self._strike(end, what, met))

    def _strike(self, end: End, what: Strike, met: Trouble) -> None:
        """Do it to the wire of which ``end`` is the end that opened it."""
        network, peer = self._network, end.peer
        if peer is None:
            return
        if what in (Strike.CLIENT_CUT_UP, Strike.LINK_CUT_UP):
            network.cut_after(end, met.count)
        elif what in (Strike.CLIENT_CUT_DOWN, Strike.LINK_CUT_DOWN):
            network.cut_after(peer, met.count)
        elif what is Strike.LINK_HALF_OPEN:
            network.vanish(end)
        else:
            side = peer if what is Strike.LINK_STALL_DOWN else end
            network.stall(side, network.now + met.duration)

    def _links(self, client: int) -> list[End]:
        """The endpoint's ends of the client's upstream sockets, the oldest first."""
        ends = self._network.ends(self._emulator, client)
        return [end.peer for end in ends if end.peer is not None and end.peer.open]

    def _draw(self, client: int, turn: int) -> Trouble | None:
        scenario = self._scenario
        if (client, turn) in scenario.spared:
            return None
        return trouble(scenario.seed, client, turn, scenario.fault_every, odd=scenario.odd)

    def attempt_begins(self, client: Client) -> None:
        """The client sends its body once more."""
        self._report.attempts += 1
        sends = self._sends.setdefault((client.number, client.turn), _Sends())
        sends.attempts += 1
        asked = client.asked()
        if not sends.asked or sends.asked[-1].new is not asked.new:
            sends.asked.append(asked)
        self._wires[client.number] = self._network.ends(client)[-1]

    def answered(self, client: Client, response: str) -> None:
        """Is it the answer to what was asked? Enter what it saved and cost."""
        sends = self._sends[client.number, client.turn]
        turn = sends.responses.get(response)
        if turn is None:
            self._observe("context", client, "its response is not one of its turn's")
            return
        self._report.ledger.add(self._witness.account(turn, sends.asked[-1]))
        if self._scenario.warm:
            self._believed[client.number, client.turn] = client.history()
        if hashed(response) not in self._accounted:
            self._observe("accounts", client, "its turn is in no account")

    def foreign(self, client: Client) -> str | None:
        """A response of another credential's, if there is one."""
        others = [other for other in self._clients.values() if other.scope != client.scope]
        known = [other.latest for other in others if other.latest is not None]
        rng = Rng(self._scenario.seed, 7, client.number, client.turn)
        return rng.pick(known) if known else None

    def probed(self, client: Client, foreign: Probe, unknown: Probe) -> None:
        """Compare what the client was told, and what it cost, unless something went wrong."""
        number = client.number
        disturbed = max(self._away, self._network.disturbed.get(number, 0))
        if disturbed >= self._began[number] or self._troubles.get(number) is not None:
            return
        sends = self._sends[number, client.turn]
        cost = [
            sum(1 for turn in sends.turns if turn.request.anchor == probe.response)
            for probe in (foreign, unknown)
        ]
        if foreign.told != unknown.told or cost[0] != cost[1]:
            text = (
                f"of somebody else's response it was told {foreign.told} in {cost[0]} sends, of "
                f"one that nobody has {unknown.told} in {cost[1]} (invariant 39)"
            )
            self._observe("foreign", client, text)

    def explained(self, client: Client, status: int | None) -> bool:
        """Whether the turn's trouble explains ``status``; None: a connection lost."""
        if status is None and self._wires[client.number].harmed:
            return True
        met = self._troubles.get(client.number)
        if met is None:
            return False
        if isinstance(met.what, Strike):
            # Whose bytes do not come is told so, or taken for gone.
            return met.what is Strike.CLIENT_STALL and status in (None, 408)
        action = met.what.action
        match action:
            case Error():
                # Whoever names no response hears nothing of an anchor that was refused.
                named = met.what.when is not When.ANCHORED or client.anchor is not None
                return named and action.status == status
            case CloseWith():
                return action.code == 1009 and status == 413
            case Alter(change):
                return change is Change.CANCELLED and status == 200
            case _:
                return isinstance(action, SendEvents) and status == 200

    def altered(self, client: Client) -> Change | None:
        """How the events of the client's turn are altered, if they are."""
        met = self._troubles.get(client.number)
        if met is None or not isinstance(met.what, Fault):
            return None
        action = met.what.action
        return action.change if isinstance(action, Alter) else None

    def violate(self, prop: str, client: Client, text: str) -> None:
        """A client saw what must not be."""
        self._observe(prop, client, text)

    def note(self, text: str) -> None:
        """Something for the timeline."""
        if self._record is not None:
            self._record(f"{(self._network.now - NS_PER_SECOND) / 1e9:12.3f}  {text}")

    def _observe(self, prop: str, client: Client, text: str) -> None:
        self._violate(prop, client.number, text, client.turn)

    def _violate(self, prop: str, client: int, text: str, turn: int = 0) -> None:
        if self._full():
            return
        at = self._network.now - NS_PER_SECOND
        found = Violation(prop, self._scenario.seed, at, client, turn, text)
        self._report.violations.append(found)
        self.note(f"VIOLATION of {prop}: {text}")


_FIGURES = ("bytes_saved", "bytes_spent", "tokens_saved", "tokens_spent")


def _figures(account: Ledger) -> dict[str, int]:
    return {field: getattr(account, field) for field in _FIGURES}


_OF_CLIENT = frozenset({Strike.CLIENT_CUT_UP, Strike.CLIENT_CUT_DOWN, Strike.CLIENT_STALL})
_BETWEEN = frozenset(
    {
        Strike.IDLE_RESET,
        Strike.IDLE_CLOSED,
        Strike.IDLE_HALF_OPEN,
        Strike.REFUSED,
        Strike.SWALLOWED,
    }
)


def _fault_name(fault: Fault) -> str:
    if fault in _ODD_NAMES:
        return _ODD_NAMES[fault]
    return f"{type(fault.action).__name__} {fault.point.value}"


def _whose(request: CreateRequest) -> tuple[int, int]:
    """Whose create frame it is, by the last mark in it: earlier ones are of earlier turns."""
    for item in reversed(request.input):
        found = marks(encode(item))
        if found:
            return found.pop() if len(found) == 1 else (NOBODY, 0)
    return NOBODY, 0


# ------------------------------------------------------------------ shrinking


@attrs.frozen
class Shrunk:
    """A smallest scenario found that breaks the same property, and what happens in it."""

    scenario: Scenario
    violation: Violation
    timeline: tuple[str, ...]
    runs: int  # that it took to find it

    def __str__(self) -> str:
        scenario = self.scenario
        clients = "all" if scenario.only is None else ", ".join(map(str, sorted(scenario.only)))
        lines = [
            str(self.violation),
            f"policy {scenario.policy.name}, seed {scenario.seed}, client {clients} of "
            f"{scenario.clients}, {scenario.turns} turns; seconds, and what happened:",
            *self.timeline,
        ]
        return "\n".join(lines)


def shrink(scenario: Scenario, violation: Violation, max_runs: int = 400) -> Shrunk:
    """Look for a smaller scenario that breaks the property of ``violation``: fewer clients, then
    fewer turns, then fewer troubles. ``max_runs`` bounds the search.

    Raises:
        ValueError: ``scenario`` does not break the property.
    """
    search = _Search(violation.prop, max_runs)
    if not search.attempt(scenario):
        raise ValueError(f"the scenario does not break {violation.prop!r}")
    clients = frozenset(range(scenario.clients)) if scenario.only is None else scenario.only
    seen = search.violation
    if seen.client == NOBODY or not search.attempt_with(only=frozenset({seen.client})):
        _minimise(clients, lambda kept: search.attempt_with(only=kept))
    if 0 < search.violation.turn < search.best.turns:
        search.attempt_with(turns=search.violation.turn)
    while search.best.turns > 1 and search.attempt_with(turns=search.best.turns - 1):
        pass
    search.attempt_with(restarts=False)
    best = search.best
    met = {
        (client, turn)
        for client in (clients if best.only is None else best.only)
        for turn in range(1, best.turns + 1)
        if trouble(best.seed, client, turn, best.fault_every, odd=best.odd) is not None
    }
    if best.restarts:
        met |= {(NOBODY, nth) for nth in range(_RESTARTS_SPARED)}
    every, spared = frozenset(met) - best.spared, best.spared
    _minimise(every, lambda kept: search.attempt_with(spared=spared | (every - kept)))
    timeline: list[str] = []
    run(search.best, timeline.append)
    return Shrunk(search.best, search.violation, tuple(timeline), search.runs)


_RESTARTS_SPARED: Final = 16  # the first ones: what is found small does not last longer


class _Search:
    """The smallest failing scenario so far, and what it breaks."""

    best: Scenario
    violation: Violation

    def __init__(self, prop: str, max_runs: int) -> None:
        self.runs = 0
        self._prop = prop
        self._max_runs = max_runs

    def attempt(self, candidate: Scenario) -> bool:
        """Whether ``candidate`` fails alike; then it is the best."""
        if self.runs >= self._max_runs:
            return False
        self.runs += 1
        for violation in run(candidate).violations:
            if violation.prop == self._prop:
                self.best, self.violation = candidate, violation
                return True
        return False

    def attempt_with(self, **changes: Any) -> bool:
        """``attempt`` the best with ``changes``."""
        return self.attempt(attrs.evolve(self.best, **changes))


def _minimise(items: frozenset[T], still: Callable[[frozenset[T]], bool]) -> None:
    """Take away what is not needed for ``still``: big parts first, then one at a time (Zeller and
    Hildebrandt: "Simplifying and Isolating Failure-Inducing Input", 2002, without the subsets)."""
    kept = sorted(items)
    size = len(kept)
    while size:
        start = 0
        while start < len(kept):
            rest = kept[:start] + kept[start + size :]
            if still(frozenset(rest)):
                kept = rest
            else:
                start += size
        size //= 2
