"""Two bridges over one store, as a world that an explorer moves, and what must hold in it.

What belongs here: the environment of two ``Bridge``s that forward turns to each other (the store,
the network between them, the upstream, clients), the properties, and the records by which they are
checked.

Theory of operation. A *world* is two processes, the store, the upstream's connections and what is
on its way. A client has one conversation and continues it, turn by turn, at either replica. A turn
that ends without an answer is asked again, as another *attempt*. Time passes in ticks.

As long as nothing goes wrong, whatever is on its way to the store or to the other replica arrives
at once, before anything else happens. The upstream answers at any moment. What goes wrong is a
*fault*, and their number is bounded:

* ``slow``: a question, or what a forward carries, takes any time from now on, or for ever;
* ``fail``: a question is reported as ``Failed``; it is carried out at any time, or never;
* ``cut``: a replica cannot ask the store, until that is mended;
* ``pause``: a replica handles nothing, while time passes, until it goes on;
* ``crash``: a replica loses its memory and its connections; it may be started again;
* ``drain``: a replica ends as soon as it has no turn left;
* ``evict``: a replica gives up a conversation that is idle;
* ``lose``: a connection between the replicas is lost, with all that it carries;
* ``break``: a connection to the upstream is lost;
* ``leave``: a client does not wait for the end of its turn.

The properties are checked on events and effects, with records that the world keeps of them; none
reads the state by which a bridge decides. For liveness, ``explore_pair`` continues each world
without faults.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, NamedTuple, TypeAlias

import attrs

from bridgecore.api_error import NOT_DISPATCHED, ApiError
from bridgecore.bridge import Bridge
from bridgecore.config import Config, PeerUrl, UpstreamUrl
from bridgecore.config import Store as StoreSetting
from bridgecore.continuity.aliases import named_scope
from bridgecore.errors import BridgecoreError
from bridgecore.messages import (
    AnswerEvents,
    AskStore,
    BridgeEffect,
    BridgeEvent,
    BridgeTimeout,
    CloseLink,
    DrainStarted,
    FailAnswer,
    LinkFrameSent,
    LinkLost,
    LinkOpened,
    MessagesReceived,
    OpenLink,
    ProcessStarted,
    SendFrame,
    SocketsExhausted,
    StoreAnswered,
    TurnLeft,
    TurnReceived,
)
from bridgecore.ownership import store as st
from bridgecore.ownership.forwards import Forward, ForwardVerifier, digest_of, signed_headers
from bridgecore.ownership.lease import LeaseTimes
from bridgecore.recovery.failure import (
    NOT_FOUND_CODE,
    Closed,
    Evidence,
    NotDispatched,
    TimedOut,
    Unreachable,
)
from bridgecore.recovery.policy import DEFAULT, Policy
from bridgecore.recovery.timers import Timer
from bridgecore.statevalue import LINK, QUESTION, Ref
from bridgecore.telemetry import LogLevel
from bridgecore.verify.cost import CostedProperty, Rank
from bridgecore.verify.pair_machine import FAR, INCARNATION, TICK, Digest, MachineState
from bridgecore.verify.store_model import StoreModel
from bridgecore.wire.requests import CreateRequest, parse_create
from bridgecore.wire.responses import EventKind, created_event, failed_event


class PairProperty(CostedProperty):
    """The properties of two bridges over one store. The value says what must hold."""

    ONE_OWNER_SENDS = (
        "a turn that goes on with a stored conversation is sent upstream only by the replica "
        "that the store names as the live owner of the conversation at that moment",
        Rank.HARM,
        "two replicas run turns of one conversation: it splits in two",
    )
    NO_SEND_WITHOUT_A_LEASE = (
        "a turn that goes on with a stored conversation is sent upstream only until the lease "
        "of its sender ends, counted from the question, by the sender's own records of "
        "answers",
        Rank.HARM,
        "a replica runs turns of a conversation that another one has taken over",
    )
    DEPTH_ONE = (
        "a turn that was forwarded is not forwarded again",
        Rank.STUCK,
        "a turn goes round between replicas until its deadline",
    )
    FORWARD_IS_FOR_ITS_LEASE = (
        "a forward is served only under the lease that it names: one that comes too late, or "
        "to another process, is not sent upstream",
        Rank.HARM,
        "a late forward runs a turn that its client has long tried again",
    )
    SENT_ONCE = (
        "each attempt of a client is sent upstream once, by one replica, unless the upstream "
        "has refused it before",
        Rank.HARM,
        "a turn that runs twice: its tool calls, side effects and tokens",
    )
    UNKNOWN_IS_LEFT_TO_THE_CLIENT = (
        "a replica that does not know what became of a turn that it has forwarded does not "
        "send it again, neither upstream nor to the other replica",
        Rank.HARM,
        "a turn that runs twice: its tool calls, side effects and tokens",
    )
    CONTEXT_IS_MEANT = (
        "the context that the upstream has for a turn equals what its client means",
        Rank.HARM,
        "the model answers in the context of another conversation, or without a part of its own",
    )
    ONE_END = (
        "each attempt ends once at its client, with the answer that was made for it or an "
        "error; without further faults it ends",
        Rank.LOSS,
        "a client that gets two ends of its turn, or none",
    )
    LIVENESS = (
        "without further faults, a client that retries at one sound replica, after the time "
        "that its error names, gets an answer within bounded time and tries, unless the "
        "response that it continues was lost before the store had it",
        Rank.STUCK,
        "a conversation that no replica serves, however often its client retries",
    )
    NO_ERROR = (
        "a bridge raises no exception for an event that can happen",
        Rank.LOSS,
        "the turn ends with an internal error, and its conversation with it",
    )


_P = PairProperty
ALL: Final = frozenset(PairProperty)
TICKS: Final = LeaseTimes(ttl=4, margin=1, timeout=1, retry=1)
FAULTS: Final = frozenset(
    ("slow", "fail", "cut", "pause", "crash", "drain", "evict", "lose", "break", "leave")
)
REPLICAS: Final = (0, 1)


@attrs.frozen
class PairBounds:
    """What an exploration leaves out. ``clients``: each has one conversation of ``turns`` turns.
    ``attempts``: of all clients together. ``faults``: how many there are, of those ``kinds``, each
    kind once."""

    name: str
    clients: int
    turns: int
    attempts: int
    faults: int
    kinds: frozenset[str] = FAULTS
    max_worlds: int = 2_000_000


class Move(NamedTuple):
    """One thing that can happen, and the replica, link, query or client it happens to."""

    what: str
    about: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.what, *map(str, self.about)])


class PairViolationError(BridgecoreError):
    """The property ``prop`` does not hold; ``text`` says what was observed."""

    def __init__(self, prop: PairProperty, text: str) -> None:
        super().__init__(f"{prop.name}: {text}")
        self.prop = prop
        self.text = text


# ---------------------------------------------------------------- the environment


@attrs.frozen
class Process:
    """A replica and what the world records of it. ``state``: None: it has crashed or ended.
    ``number``: how many processes of this replica there were. ``woken``: it was paused in this
    tick, so what is due may come after other events. ``cut``: it does not reach the store.

    ``lease``: the incarnation that it has asked a lease for last; ``until``: the tick at which that
    ends by its own clock, as follows from the answers delivered.
    """

    state: MachineState | None = None
    number: int = 0
    paused: bool = False
    woken: bool = False
    cut: bool = False
    draining: bool = False
    lease: str = ""
    until: int | None = None


@attrs.frozen
class Asked:
    """A question on its way to the store, or, once there is an ``answer``, on its way back.
    ``at``: the tick at which it was asked. ``failed``: ``Failed`` was reported."""

    question: st.Question
    at: int
    answer: st.Answer | None = None
    slow: bool = False
    failed: bool = False


@attrs.frozen
class Upstream:
    """A connection to the upstream, as that knows it. ``cached``: the response that it can
    continue, and the context up to its end. ``attempt``: what it is answering, in the ``context``,
    which is None if the frame names a response that it does not know. ``shown``: events of the
    answer that were sent."""

    open: bool = False
    cached: tuple[str, Context] | None = None
    attempt: int | None = None
    context: Context | None = None
    shown: int = 0


@attrs.frozen
class Passing:
    """A connection to the other replica's process ``number``. ``attempt``: what it carries.
    ``sent``: the forward, until it has arrived. ``turn``: its number at the receiver, while that
    has not ended it. ``back``: what the receiver has answered and the sender has not read.
    ``begun``: the receiver has answered events. ``closed``: by the sender; ``dead``: its receiver
    is gone."""

    to: int
    number: int
    open: bool = False
    attempt: int | None = None
    sent: tuple[bytes, Forward, tuple[tuple[bytes, bytes], ...]] | None = None
    turn: int | None = None
    back: tuple[Said, ...] = ()
    begun: bool = False
    slow: bool = False
    closed: bool = False
    dead: bool = False


class Said(NamedTuple):
    """Part of the answer to a forward: messages, or the end of it without any. ``last``: the answer
    is complete."""

    messages: tuple[bytes, ...]
    last: bool


@attrs.frozen
class Attempt:
    """One attempt of a client to have a turn answered.

    ``replica``: where it asked. ``meaning``: the context that it means. ``anchor``: the response
    that it continues. ``known``: the store had that when it asked. ``sent``: the processes that
    have sent it upstream, as replica and number. ``done``: the upstream has answered all of it.
    ``lost``: its replica does not know what became of it. ``branch``: it may begin a conversation
    of its own. ``arrived``: how often it was taken as a forward. ``foreign``: the latest forward of
    it named another lease than that of its receiver.
    """

    number: int
    client: int
    replica: int
    meaning: Context
    anchor: str | None
    known: bool
    sent: tuple[tuple[int, int], ...] = ()
    done: bool = False
    lost: bool = False
    branch: bool = False
    arrived: int = 0
    foreign: bool = False


@attrs.frozen
class Client:
    """A client: the context that it knows, the response at its end, the open attempt. ``over``: it
    got ``previous_response_not_found``."""

    context: Context = ()
    last: str | None = None
    turns: int = 0
    attempt: int | None = None
    over: bool = False


Context: TypeAlias = tuple[str, ...]  # texts of the items
Query: TypeAlias = tuple[int, int, int]  # replica, number of the process, query
LinkKey: TypeAlias = tuple[int, int]  # replica, link
Key: TypeAlias = tuple[frozenset[str] | None, int, bytes]
TurnKey: TypeAlias = tuple[int, int]  # replica, turn

_SECRET: Final = b"a secret of the cluster, long enough"
_TENANT: Final = "tenant"
SCOPE: Final = named_scope(_TENANT)
_NAMES: Final = ("a", "b")
_URLS: Final = tuple(PeerUrl.parse(f"http://{name}:81") for name in _NAMES)
_OF_LEASE: Final = (st.Join, st.Renew)
_NOTHING: Final = Digest("", (), {})  # of a process that has ended


def config_of(replica: int, policy: Policy = DEFAULT) -> Config:
    """The settings of a replica. Deadlines other than those of the store are out of reach."""
    far = dict.fromkeys(
        ("connect_timeout", "created_timeout", "idle_timeout", "turn_timeout", "session_idle",
         "upstream_lifetime", "transcript_age"),
        FAR,
    )  # fmt: skip
    return Config(
        upstream=UpstreamUrl.parse("ws://upstream/"),
        policy=policy,
        store=StoreSetting.DRIVER,
        replica=_NAMES[replica],
        advertise=_URLS[replica],
        cluster_secrets=(_SECRET,),
        lease_ttl=TICKS.ttl * TICK,
        lease_margin=TICKS.margin * TICK,
        store_timeout=TICKS.timeout * TICK,
        log_level=LogLevel.ERROR,
        shortcuts=False,
        **far,  # type: ignore[arg-type]  # all of them are durations
    )


class World:
    """Two bridges and their environment.

    Args:
        bounds: what can happen.
        make: makes the ``Bridge`` of a process, from its settings and its seed.
        judged: the properties to check.
        checked: counts the checks.
    """

    def __init__(
        self,
        bounds: PairBounds,
        make: Callable[..., Bridge] = Bridge,
        judged: Collection[PairProperty] = ALL,
        checked: Counter[PairProperty] | None = None,
    ) -> None:
        self.bounds = bounds
        self.make = make
        self.judged = judged
        self.checked: Counter[PairProperty] = Counter() if checked is None else checked
        self.now = 0
        self.store = StoreModel()
        self.processes = [Process(), Process()]
        self.asked: dict[Query, Asked] = {}  # in the order in which they were asked
        self.upstream: dict[LinkKey, Upstream] = {}
        self.passing: dict[LinkKey, Passing] = {}
        self.turns: dict[TurnKey, tuple[int, LinkKey | None]] = {}  # attempt, and its forward
        self.attempts: dict[int, Attempt] = {}
        self.clients = [Client() for _ in range(bounds.clients)]
        self.faults: frozenset[str] = frozenset()  # the kinds that have happened
        self.leaving: TurnKey | None = None  # the turn whose end is just being reported
        self.trail: list[Move] = []  # what has happened since it was copied
        self.errors: dict[int, ApiError | None] = {}  # how the latest attempt of a client failed
        for replica in REPLICAS:
            self._start(replica)
        while (urgent := self.urgent()) is not None:
            self.happens(urgent)
        self.trail = []

    def copy(self) -> World:
        """An independent copy. All values in the tables are immutable, but for the store, which is
        copied before it changes."""
        other = World.__new__(World)
        vars(other).update(vars(self))
        other.processes, other.clients = self.processes.copy(), self.clients.copy()
        other.asked, other.upstream = self.asked.copy(), self.upstream.copy()
        other.passing, other.turns = self.passing.copy(), self.turns.copy()
        other.attempts, other.errors = self.attempts.copy(), self.errors.copy()
        other.trail = []
        return other

    # ------------------------------------------------------------ moves

    def moves(self) -> Iterator[Move]:
        """Everything that can happen now."""
        kinds, urgent = self._kinds(), self.urgent()
        if urgent is not None:
            yield urgent
            yield from self._faults_of(urgent, kinds)
            return
        yield from self._late()
        for key, link in self.upstream.items():
            yield from self._moves_of_upstream(key, link, kinds)
        for key, one in self.passing.items():
            if "lose" in kinds and not one.closed and not one.dead:
                yield Move("lose", key)
        for replica in REPLICAS:
            yield from self._moves_of_process(replica, kinds)
        if "leave" in kinds:
            yield from self._leaving()
        yield from self._moves_of_clients()
        if self.may_tick():
            yield Move("tick")

    def _kinds(self) -> frozenset[str]:
        """The kinds of faults that can still happen."""
        if len(self.faults) == self.bounds.faults:
            return frozenset()
        return self.bounds.kinds - self.faults

    def settle(self) -> None:
        """Let everything happen to which there is no alternative."""
        while (urgent := self.urgent()) is not None:
            if next(self._faults_of(urgent, self._kinds()), None) is not None:
                return
            self.happens(urgent)

    def urgent(self) -> Move | None:
        """What happens before anything else, because nothing is wrong."""
        for query, asked in self.asked.items():
            if not asked.slow and not self._is_paused(query[0]):
                return Move("answer", query)
        for key, one in self.passing.items():
            if (what := self._next_of(key, one)) is not None and not one.slow:
                return Move(what, key)
        for key, link in self.upstream.items():
            if link.attempt is not None and link.context is None and not self._is_paused(key[0]):
                return Move("not found", key)
        for replica, process in enumerate(self.processes):
            if not process.woken and self._is_due(replica):
                return Move("timeout", (replica,))
        return None

    def _next_of(self, key: LinkKey, one: Passing) -> str | None:
        """What happens next on a connection between replicas; None: nothing, as far as that is
        known, or its end is paused."""
        sender, receiver = self._is_paused(key[0]), self._is_paused(one.to)
        if one.closed:
            if one.sent is not None and not one.dead:
                return None if receiver else "arrives"
            return None if receiver else "cancelled"
        if sender:
            return None
        if not one.open:
            return "connected"
        if one.back:
            return "heard"
        if one.dead:
            return "ended"
        if one.sent is not None and not receiver:
            return "arrives"
        return None

    def _faults_of(self, urgent: Move, kinds: frozenset[str]) -> Iterator[Move]:
        """What goes wrong with something that is on its way."""
        what, about = urgent
        ends: tuple[int, ...] = about[:1]
        if what == "answer":
            for kind in ("slow", "fail"):
                if kind in kinds:
                    yield Move(kind, about)
        elif what == "timeout":
            yield from self._late(about[0])
        elif what in ("connected", "arrives", "heard", "ended", "cancelled"):
            one = self.passing[about[0], about[1]]
            ends = (about[0], one.to)
            if "lose" in kinds and not one.closed and not one.dead:
                yield Move("lose", about)
            if "slow" in kinds and what in ("arrives", "heard"):
                yield Move("delay", about)
        if "crash" in kinds:
            for replica in ends:
                if self.processes[replica].state is not None:
                    yield Move("crash", (replica,))
        if "leave" in kinds:
            yield from self._leaving()

    def _late(self, replica: int | None = None) -> Iterator[Move]:
        """What is slow, and may come now or later. ``replica``: only what comes to it."""
        for query, asked in self.asked.items():
            if asked.slow and replica in (None, query[0]):
                if asked.answer is None:
                    yield Move("carry out", query)
                elif not self._is_paused(query[0]):
                    yield Move("deliver", query)
        for key, one in self.passing.items():
            what = self._next_of(key, one)
            if one.slow and what is not None and replica is None:
                yield Move(what, key)
            running = one.open and one.attempt is not None and not one.closed and not one.dead
            stuck = one.slow or (self._is_paused(one.to) and not one.back)
            if running and stuck and not self._is_paused(key[0]) and replica is None:
                yield Move("give up", key)

    def _moves_of_upstream(
        self, key: LinkKey, link: Upstream, kinds: frozenset[str]
    ) -> Iterator[Move]:
        if self._is_paused(key[0]):
            return
        if not link.open:
            yield Move("opened", key)
        elif link.attempt is not None:
            if link.shown < 1:
                yield Move("created", key)
            if link.shown < 2:
                yield Move("output", key)
            yield Move("completed", key)
        if "break" in kinds:
            yield Move("break", key)

    def _moves_of_process(self, replica: int, kinds: frozenset[str]) -> Iterator[Move]:
        process = self.processes[replica]
        if process.state is None:
            yield Move("start", (replica,))
            return
        if process.paused:
            yield Move("go on", (replica,))
        elif self._is_due(replica):
            yield Move("timeout", (replica,))
        if process.cut:
            yield Move("mend", (replica,))
        if "crash" in kinds:
            yield Move("crash", (replica,))
        if process.paused:
            return
        if "pause" in kinds and self.may_tick():
            yield Move("pause", (replica,))
        if "cut" in kinds and not process.cut:
            yield Move("cut", (replica,))
        if "drain" in kinds and not process.draining:
            yield Move("drain", (replica,))
        if "evict" in kinds and any(key[0] == replica for key in (*self.upstream, *self.passing)):
            yield Move("evict", (replica,))

    def _leaving(self) -> Iterator[Move]:
        for number, client in enumerate(self.clients):
            attempt = self.attempts.get(client.attempt or 0)
            if attempt is not None and not self._is_paused(attempt.replica):
                yield Move("leave", (number,))

    def _moves_of_clients(self) -> Iterator[Move]:
        if len(self.attempts) == self.bounds.attempts:
            return
        for number, client in enumerate(self.clients):
            if client.attempt is None and not client.over and client.turns < self.bounds.turns:
                for replica in REPLICAS if self.attempts else (0,):  # they are alike at first
                    if self.takes_turns(replica):
                        yield Move("ask", (number, replica))

    def takes_turns(self, replica: int) -> bool:
        """Whether clients reach ``replica``."""
        process = self.processes[replica]
        return process.state is not None and not process.paused and not process.draining

    def _is_paused(self, replica: int) -> bool:
        return self.processes[replica].paused

    def _is_due(self, replica: int) -> bool:
        process = self.processes[replica]
        if process.state is None or process.paused:
            return False
        return process.state.due is not None and process.state.due <= self.now

    def may_tick(self) -> bool:
        """Whether nothing has to happen before time passes."""
        return self.urgent() is None and not any(map(self._is_due, REPLICAS))

    def at_rest(self) -> bool:
        """Whether, without faults, clients and time, nothing more happens. A question that was
        reported as failed may never be carried out."""
        return (
            self.may_tick()
            and not any(each.paused or each.cut for each in self.processes)
            and not any(asked.slow and not asked.failed for asked in self.asked.values())
            and not any(one.slow for one in self.passing.values())
            and all(link.open and link.attempt is None for link in self.upstream.values())
        )

    # ------------------------------------------------------------ what happens

    def happens(self, move: Move) -> None:
        """Let ``move`` happen.

        Raises:
            PairViolationError: a property does not hold.
        """
        what, about = move
        self.trail.append(move)
        if what in FAULTS or what == "delay":
            self.faults |= {"slow" if what == "delay" else what}
        match what:
            case "tick":
                self.now += 1
                for replica, process in enumerate(self.processes):
                    if process.woken:
                        self._set(replica, woken=False)
            case "answer" | "carry out" | "deliver" | "fail" | "slow":
                self._of_question(what, (about[0], about[1], about[2]))
            case "timeout":
                self._set(about[0], woken=False)
                self._tell(about[0], BridgeTimeout())
            case "ask":
                self._ask(*about)
            case "leave":
                number = self.clients[about[0]].attempt
                assert number is not None
                self.clients[about[0]] = attrs.evolve(self.clients[about[0]], attempt=None)
                self._leave((self.attempts[number].replica, _turn_of(number)))
            case "opened" | "created" | "output" | "completed" | "not found" | "break":
                self._of_upstream(what, (about[0], about[1]))
            case "connected" | "arrives" | "heard" | "ended" | "cancelled" | "give up" | "lose":
                self._of_passing(what, (about[0], about[1]))
            case "delay":
                key = about[0], about[1]
                self.passing[key] = attrs.evolve(self.passing[key], slow=True)
            case _:
                self._of_process(what, about[0])
        self._judge()

    def _set(self, replica: int, **changes: Any) -> None:
        self.processes[replica] = attrs.evolve(self.processes[replica], **changes)

    def _of_process(self, what: str, replica: int) -> None:
        match what:
            case "start":
                self._start(replica)
            case "crash":
                self._gone(replica)
            case "pause":
                self._set(replica, paused=True)
            case "go on":
                self._set(replica, paused=False, woken=True)
                if not self._is_due(replica):
                    self._set(replica, woken=False)
            case "cut":
                self._set(replica, cut=True)
            case "mend":
                self._set(replica, cut=False)
            case "drain":
                self._set(replica, draining=True)
                self._tell(replica, DrainStarted())
            case _:
                self._tell(replica, SocketsExhausted())

    def _start(self, replica: int) -> None:
        number = self.processes[replica].number + 1
        seed = b"%d/%d" % (replica, number)
        bridge = self.make(config_of(replica), seed=seed)
        self.processes[replica] = Process(MachineState(bridge), number)
        self._tell(replica, ProcessStarted())

    def _gone(self, replica: int) -> None:
        """A process has ended, or was killed: its connections are closed, its memory is lost."""
        self.processes[replica] = Process(number=self.processes[replica].number)
        for query, asked in list(self.asked.items()):
            if query[0] == replica:
                if asked.answer is None and not isinstance(asked.question, _OF_LEASE):
                    self.asked[query] = attrs.evolve(asked, slow=True, failed=True)
                else:
                    del self.asked[query]
        for key in [key for key in self.upstream if key[0] == replica]:
            del self.upstream[key]
        for key, one in list(self.passing.items()):
            if key[0] == replica:
                if key[1] > 0:
                    self._orphan(key)
            elif one.to == replica:
                if one.closed:
                    del self.passing[key]
                else:
                    self.passing[key] = attrs.evolve(
                        one, sent=None, turn=None, back=(), slow=False, dead=True
                    )
        for turn, (number, forward) in list(self.turns.items()):
            if turn[0] == replica:
                del self.turns[turn]
                if forward is None:
                    self._ended(number, None)

    # ------------------------------------------------------------ clients

    def _ask(self, number: int, replica: int) -> None:
        client = self.clients[number]
        attempt = len(self.attempts) + 1
        text = f"u{attempt}"
        known = client.last is not None and self._key_of(client.last) is not None
        made = Attempt(attempt, number, replica, (*client.context, text), client.last, known)
        branch = self._branches_off(replica, made)
        self.attempts[attempt] = attrs.evolve(made, branch=branch)
        self.clients[number] = attrs.evolve(client, attempt=attempt)
        turn = _turn_of(attempt)
        self.turns[replica, turn] = attempt, None
        request = _request(text, client.last)
        self._tell(replica, TurnReceived(turn, request, [], scope=_TENANT))

    def _leave(self, turn: TurnKey) -> None:
        """Report that the client of a turn, or the sender of a forward, is gone. In the same call
        the turn may end because of what was due before; that answer reaches no one."""
        del self.turns[turn]
        self.leaving = turn
        self._tell(turn[0], TurnLeft(turn[1]))
        self.leaving = None

    def _key_of(self, response: str) -> bytes | None:
        return self.store.conversation_of(SCOPE, response)

    def is_stored(self, response: str) -> bool:
        """Whether the store has ``response``."""
        return self._key_of(response) is not None

    def _ended(self, number: int, error: ApiError | None, output: str | None = None) -> None:
        """An attempt has ended at its client: with an error, with ``output``, or cut off."""
        attempt = self.attempts[number]
        client = self.clients[attempt.client]
        self.check(_P.ONE_END, client.attempt == number, "attempt", number, "ends again")
        self.errors[attempt.client] = error
        if output is None:
            over = error is not None and error.code == NOT_FOUND_CODE
            self.clients[attempt.client] = attrs.evolve(client, attempt=None, over=over)
            return
        context = (*attempt.meaning, output)
        self.clients[attempt.client] = Client(context, f"r{number}", client.turns + 1)

    # ------------------------------------------------------------ the store

    def _of_question(self, what: str, query: Query) -> None:
        asked = self.asked[query]
        match what:
            case "answer":
                if self.processes[query[0]].cut:
                    del self.asked[query]
                    self._deliver(query, asked, st.Failed("no connection"))
                    return
                answer = self._carry_out(asked.question)
                del self.asked[query]
                self._deliver(query, asked, answer)
            case "carry out":
                answer = self._carry_out(asked.question)
                if asked.failed:
                    del self.asked[query]
                else:
                    self.asked[query] = attrs.evolve(asked, answer=answer)
            case "deliver":
                del self.asked[query]
                assert asked.answer is not None
                self._deliver(query, asked, asked.answer)
            case "slow":
                self.asked[query] = attrs.evolve(asked, slow=True)
            case _:
                self.asked[query] = attrs.evolve(asked, slow=True, failed=True)
                self._deliver(query, asked, st.Failed("no connection"))

    def _carry_out(self, question: st.Question) -> st.Answer:
        self.store = self.store.copy()
        return self.store.handle(question, self.now * TICK)

    def _deliver(self, query: Query, asked: Asked, answer: st.Answer) -> None:
        replica, number, place = query
        process = self.processes[replica]
        if process.state is None or process.number != number:
            return
        if asked.question.owner.incarnation == process.lease:
            if isinstance(answer, st.Joined | st.Renewed):
                until = asked.at + TICKS.ttl - TICKS.margin
                self._set(replica, until=max(until, process.until or 0))
            elif isinstance(answer, st.LeaseEnded):
                self._set(replica, until=None)
        self._tell(replica, StoreAnswered(place, answer))

    # ------------------------------------------------------------ the upstream

    def _of_upstream(self, what: str, key: LinkKey) -> None:
        link, (replica, number) = self.upstream[key], key
        if what == "opened":
            self.upstream[key] = attrs.evolve(link, open=True)
            self._tell(replica, LinkOpened(number))
            return
        if what == "break":
            del self.upstream[key]
            cause = Closed(1006) if link.open else Unreachable("refused")
            self._tell(replica, LinkLost(number, cause))
            return
        attempt = link.attempt
        assert attempt is not None
        if what == "not found":
            self.upstream[key] = attrs.evolve(link, attempt=None, cached=None)
            of = self.attempts[attempt]
            self.attempts[attempt] = attrs.evolve(of, sent=of.sent[:-1])
            error = {"type": "invalid_request_error", "code": NOT_FOUND_CODE, "message": "no"}
            event = {"type": "error", "status": 400, "error": error}
            self._tell(replica, MessagesReceived(number, [_json(event)]))
            return
        messages = _answer_of(attempt)
        upto = {"created": 1, "output": 2, "completed": 3}[what]
        if what == "completed":
            assert link.context is not None
            context = (*link.context, f"to {attempt}")
            self.upstream[key] = Upstream(open=True, cached=(f"r{attempt}", context))
            self.attempts[attempt] = attrs.evolve(self.attempts[attempt], done=True)
        else:
            self.upstream[key] = attrs.evolve(link, shown=upto)
        self._tell(replica, MessagesReceived(number, messages[link.shown : upto]))

    # ------------------------------------------------------------ between the replicas

    def _of_passing(self, what: str, key: LinkKey) -> None:
        one, (replica, number) = self.passing[key], key
        match what:
            case "connected":
                if one.dead:
                    self._lost(key, Unreachable("refused"))
                else:
                    self.passing[key] = attrs.evolve(one, open=True)
                    self._tell(replica, LinkOpened(number))
            case "arrives":
                self._arrives(key, one)
            case "heard":
                self._heard(key, one)
            case "ended":
                self._lost(key, Closed(1006 if one.attempt is not None else 1000))
            case "cancelled":
                del self.passing[key]
                if one.turn is not None and (one.to, one.turn) in self.turns:
                    self._leave((one.to, one.turn))
            case "give up":
                self._lost(key, TimedOut(Timer.PING), carried=True)
            case _:
                self._lost(key, Closed(1006))

    def _lost(self, key: LinkKey, cause: Evidence, *, carried: bool = False) -> None:
        """The sender learns that a connection is lost. ``carried``: what it carries may still
        arrive."""
        one = self.passing[key]
        if one.attempt is not None and not isinstance(cause, NotDispatched):
            of = self.attempts[one.attempt]
            self.attempts[one.attempt] = attrs.evolve(of, lost=True)
        if not carried:
            self.passing[key] = attrs.evolve(one, sent=None)
        self._close(key)
        self._tell(key[0], LinkLost(key[1], cause))

    def _close(self, key: LinkKey) -> None:
        """The sender's end is closed: what is on its way back is lost, the receiver will notice."""
        one = self.passing[key]
        if one.dead or (one.sent is None and one.turn is None):
            del self.passing[key]
        else:
            self.passing[key] = attrs.evolve(one, closed=True, back=())

    def _orphan(self, key: LinkKey) -> None:
        """The sender is gone: its next process may use the number of the link for another one."""
        self._close(key)
        one = self.passing.pop(key, None)
        if one is not None:
            other = key[0], min([0, *(number for _, number in self.passing)]) - 1
            self.passing[other] = one
            if one.turn is not None and (one.to, one.turn) in self.turns:
                self.turns[one.to, one.turn] = self.turns[one.to, one.turn][0], other

    def _arrives(self, key: LinkKey, one: Passing) -> None:
        assert one.sent is not None, "only what was sent arrives"
        assert one.attempt is not None, "what was sent is an attempt"
        body, forward, headers = one.sent
        process = self.processes[one.to]
        if process.draining:
            self.passing[key] = attrs.evolve(one, sent=None, slow=False, back=(Said((), True),))
            return
        attempt = self.attempts[one.attempt]
        present = process.until is not None and self.now < process.until
        foreign = forward.to != process.lease or not present
        number = attempt.arrived + 1
        branch = self._branches_off(one.to, attempt)
        self.attempts[one.attempt] = attrs.evolve(
            attempt, arrived=number, foreign=foreign, branch=branch
        )
        turn = _turn_of(one.attempt) + number
        # What is slow is not faster than its end.
        self.passing[key] = attrs.evolve(one, sent=None, turn=turn, slow=one.slow and one.closed)
        self.turns[one.to, turn] = one.attempt, key
        request = attrs.evolve(parse_create(body), stream=True)
        self._tell(one.to, TurnReceived(turn, request, list(headers), forward=forward))

    def _heard(self, key: LinkKey, one: Passing) -> None:
        said, *rest = one.back
        if not said.messages:
            self.passing[key] = attrs.evolve(one, back=())
            self._lost(key, NotDispatched("forward"))
            return
        attempt = None if said.last else one.attempt
        self.passing[key] = attrs.evolve(
            one, back=tuple(rest), attempt=attempt, slow=False, begun=not said.last
        )
        if not one.begun:
            self._tell(key[0], LinkFrameSent(key[1]))
        if key in self.passing and not self.passing[key].closed:
            self._tell(key[0], MessagesReceived(key[1], list(said.messages)))

    def _answer_forward(self, turn: TurnKey, key: LinkKey, effect: BridgeEffect) -> None:
        """The receiver of a forward has answered a part of it."""
        one = self.passing.get(key)
        ended = isinstance(effect, FailAnswer)
        messages: tuple[bytes, ...] = ()
        if isinstance(effect, AnswerEvents):
            messages = tuple(event.data for event in effect.events)
            ended = effect.events[-1].kind is EventKind.ENDED
        elif isinstance(effect, FailAnswer) and effect.error != NOT_DISPATCHED:
            begun = one is not None and (one.begun or bool(one.back))
            messages = (_failure(effect.error, begun=begun),)
        if ended:
            del self.turns[turn]
        if one is None or one.turn != turn[1]:
            return
        if one.closed:
            if ended:
                del self.passing[key]
            return
        back = (*one.back, Said(messages, ended))
        self.passing[key] = attrs.evolve(one, back=back, turn=None if ended else one.turn)

    # ------------------------------------------------------------ effects of the bridges

    def _tell(self, replica: int, event: BridgeEvent) -> None:
        process = self.processes[replica]
        if process.state is None:
            return
        self.checked[_P.NO_ERROR] += 1
        try:
            state, effects = process.state.step(event, self.now)
        except Exception as error:  # any exception is a bug: this can happen
            if _P.NO_ERROR not in self.judged:
                return
            text = f"{type(error).__name__}: {error}"
            raise PairViolationError(_P.NO_ERROR, text) from error
        self._set(replica, state=state)
        for effect in effects:
            self._done(replica, effect)
        if process.draining and state.finished and self.processes[replica].state is state:
            self._gone(replica)

    def _done(self, replica: int, effect: BridgeEffect) -> None:
        if isinstance(effect, AskStore):
            self._asks(replica, effect)
        elif isinstance(effect, OpenLink):
            key = replica, effect.link
            if effect.owner is None:
                self.upstream[key] = Upstream()
            else:
                to = _URLS.index(effect.owner)
                process = self.processes[to]
                dead = process.state is None
                self.passing[key] = Passing(to, process.number, dead=dead)
        elif isinstance(effect, CloseLink):
            key = replica, effect.link
            self.upstream.pop(key, None)
            if key in self.passing and not self.passing[key].closed:
                self._close(key)
        elif isinstance(effect, SendFrame):
            self._sends(replica, effect)
        elif isinstance(effect, AnswerEvents | FailAnswer):
            self._answers(replica, effect)

    def _asks(self, replica: int, effect: AskStore) -> None:
        process, question = self.processes[replica], effect.question
        if isinstance(question, st.Join):
            self._set(replica, lease=question.owner.incarnation, until=None)
        elif isinstance(question, st.Leave):
            self._set(replica, until=None)
        self.asked[replica, process.number, effect.query] = Asked(question, self.now)

    def _answers(self, replica: int, effect: AnswerEvents | FailAnswer) -> None:
        turn = replica, effect.turn
        if turn == self.leaving:
            return
        if turn not in self.turns:
            self.check(_P.ONE_END, False, "an answer to turn", effect.turn, "that has ended")
            return
        number, forward = self.turns[turn]
        if forward is not None:
            self._answer_forward(turn, forward, effect)
        elif isinstance(effect, FailAnswer):
            del self.turns[turn]
            self._ended(number, effect.error)
        elif effect.events[-1].kind is EventKind.ENDED:
            del self.turns[turn]
            end: Any = json.loads(effect.events[-1].data)["response"]
            if end.get("status") == "failed":
                self._ended(number, None)
                return
            own = end["id"] == f"r{number}"
            self.check(_P.ONE_END, own, "attempt", number, "is answered with", end["id"])
            self._ended(number, None, f"to {number}")

    def _sends(self, replica: int, effect: SendFrame) -> None:
        frame: Any = json.loads(effect.data)
        texts = tuple(map(_text_of, frame["input"]))
        number = int(texts[-1].removeprefix("u"))
        attempt = self.attempts[number]
        key = replica, effect.link
        if replica == attempt.replica:
            self.check(
                _P.UNKNOWN_IS_LEFT_TO_THE_CLIENT,
                not attempt.lost,
                *("attempt", number, "is sent again"),
            )
        if key in self.passing:
            self._passes_on(replica, key, attempt, effect)
            return
        self.check(
            _P.SENT_ONCE,
            not attempt.sent,
            *("attempt", number, "is sent by", replica, "after", *attempt.sent),
        )
        if replica != attempt.replica:
            late = not attempt.foreign
            self.check(_P.FORWARD_IS_FOR_ITS_LEASE, late, "attempt", number, "at", replica)
        sender = replica, self.processes[replica].number
        self.attempts[number] = attrs.evolve(attempt, sent=(*attempt.sent, sender))
        link = self.upstream[key]
        anchor = frame.get("previous_response_id")
        context: Context | None = texts
        if anchor is not None:
            at_hand = link.cached is not None and link.cached[0] == anchor
            context = (*link.cached[1], *texts) if link.cached is not None and at_hand else None
        right = context == attempt.meaning
        if context is None:  # a response that no replica can rebuild
            right = anchor == attempt.anchor and not attempt.known
        elif attempt.known and not attempt.branch and not self._branches_off(replica, attempt):
            self._judge_ownership(replica, attempt.anchor)
        self.check(_P.CONTEXT_IS_MEANT, right, f"{context}, the client means {attempt.meaning}")
        self.upstream[key] = attrs.evolve(link, attempt=number, context=context, shown=0)
        self._tell(replica, LinkFrameSent(effect.link))

    def _branches_off(self, replica: int, attempt: Attempt) -> bool:
        """Whether an attempt may begin a conversation of its own: what it continues has been
        continued by another attempt in this process, or is just being continued."""
        sender = replica, self.processes[replica].number
        here = {number for (where, _), (number, _) in self.turns.items() if where == replica}
        return any(
            other.number in here or (other.done and sender in other.sent)
            for other in self.attempts.values()
            if other.anchor == attempt.anchor and other.number != attempt.number
        )

    def _judge_ownership(self, replica: int, anchor: str | None) -> None:
        """Check that ``replica`` may send a turn that continues ``anchor`` at this moment."""
        process, key = self.processes[replica], self._key_of(anchor or "")
        if key is None:
            return
        owner = self.store.owner(key, self.now * TICK)
        mine = owner is not None and owner.incarnation == process.lease
        self.check(_P.ONE_OWNER_SENDS, mine, "replica", replica, "sends, the owner is", owner)
        valid = process.until is not None and self.now < process.until
        self.check(_P.NO_SEND_WITHOUT_A_LEASE, valid, "replica", replica, "until", process.until)

    def _passes_on(self, replica: int, key: LinkKey, attempt: Attempt, effect: SendFrame) -> None:
        self.check(
            _P.DEPTH_ONE,
            replica == attempt.replica,
            *("attempt", attempt.number, "is forwarded by", replica),
        )
        headers = [(name.lower(), value) for name, value in effect.headers]
        forward = ForwardVerifier((_SECRET,)).check(headers)
        assert isinstance(forward, Forward), forward
        assert forward.digest == digest_of(effect.data)
        sent = effect.data, forward, tuple(signed_headers(headers))
        self.passing[key] = attrs.evolve(
            self.passing[key], attempt=attempt.number, sent=sent, begun=False
        )

    # ------------------------------------------------------------ properties

    def check(self, prop: PairProperty, holds: bool, *text: object) -> None:
        """Count a check, and raise PairViolationError if the property is judged and broken."""
        self.checked[prop] += 1
        if not holds and prop in self.judged:
            raise PairViolationError(prop, " ".join(map(str, text)))

    def _judge(self) -> None:
        """Check that each bridge has the turns that it was given and has not ended."""
        for replica, process in enumerate(self.processes):
            if process.state is not None:
                open_ = sum(turn[0] == replica for turn in self.turns)
                self.check(_P.ONE_END, process.state.turns == open_, open_, "turns are open")

    # ------------------------------------------------------------ comparing

    def key(self) -> Key:
        """Equal for worlds with the same future. The last part leaves out what the bounds still
        allow."""
        left = self.faults if len(self.faults) < self.bounds.faults else None
        return left, len(self.attempts), self.state()

    def state(self) -> bytes:
        """Equal for worlds with the same future if more happens than the bounds allow."""
        now = self.now
        texts: list[str] = []
        names: list[dict[Ref, int]] = []
        for process in self.processes:
            digest = _NOTHING if process.state is None else process.state.digest(now)
            until = None if process.until is None else max(0, process.until - now)
            lease = "" if process.state is None else process.lease
            flags = process.paused, process.woken, process.cut, process.draining
            texts.append(f"{lease} {until} {flags} {digest.text} {digest.leases}")
            names.append(digest.names)
        open_ = {client.attempt for client in self.clients}
        open_ |= {link.attempt for link in self.upstream.values()}
        open_ |= {one.attempt for one in self.passing.values()}
        around = (
            self._questions(names),
            sorted(
                (key[0], names[key[0]].get(Ref(LINK, key[1]), -1), attrs.astuple(link))
                for key, link in self.upstream.items()
            ),
            sorted(
                map(repr, (self._of_passing_key(names, *each) for each in self.passing.items()))
            ),
            sorted((turn, number) for turn, (number, _) in self.turns.items()),
            [attrs.astuple(each) for each in self.attempts.values() if each.number in open_],
            self._siblings(),
            [attrs.astuple(client) for client in self.clients],
            self._of_store(),
        )
        texts.append(repr(around))
        leases: dict[str, str] = {}
        whole = INCARNATION.sub(
            lambda found: leases.setdefault(found[0], f"lease {len(leases)}"), "\n".join(texts)
        )
        # A digest, because many states are kept.
        return hashlib.blake2b(whole.encode(), digest_size=16).digest()

    def _siblings(self) -> list[tuple[object, ...]]:
        """The attempts by which what an open or later one continues has been continued, where."""
        anchors = {client.last for client in self.clients}
        present = {(replica, each.number) for replica, each in enumerate(self.processes)}
        return [
            (each.anchor, replica)
            for each in self.attempts.values()
            for replica, number in each.sent
            if each.done and each.anchor in anchors and (replica, number) in present
        ]

    def _questions(self, names: list[dict[Ref, int]]) -> list[str]:
        return sorted(
            repr(
                (
                    query[0],
                    query[1] == self.processes[query[0]].number,
                    names[query[0]].get(Ref(QUESTION, query[2]), -1),
                    asked.question,
                    # How long ago it was asked, as far as that matters: what it extends.
                    min(self.now - asked.at, TICKS.usable)
                    if isinstance(asked.question, _OF_LEASE) and not asked.failed
                    else 0,
                    asked.answer,
                    asked.slow,
                    asked.failed,
                )
            )
            for query, asked in self.asked.items()
        )

    def _of_passing_key(
        self, names: list[dict[Ref, int]], key: LinkKey, one: Passing
    ) -> tuple[object, ...]:
        sent = None if one.sent is None else (one.sent[0], one.sent[1].to)
        return (
            key[0],
            names[key[0]].get(Ref(LINK, key[1]), -1),
            one.number == self.processes[one.to].number,
            attrs.astuple(attrs.evolve(one, sent=None, number=0)),
            sent,
        )

    def _of_store(self) -> tuple[object, ...]:
        leases, conversations, _ = self.store.snapshot()
        now = self.now * TICK
        rows = [self._key_of(f"r{number}") for number in self.attempts]
        return (
            sorted(
                (owner.replica, owner.incarnation, until - now)
                for owner, until in leases
                if until > now
            ),
            sorted(
                (key, epoch, None if owner is None else owner.incarnation)
                for key, epoch, owner in conversations
            ),
            rows,
        )


def _turn_of(attempt: int) -> int:
    """The number of a client's turn; those above, up to the next, are its forwards."""
    return attempt * 10


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _request(text: str, anchor: str | None) -> CreateRequest:
    body: dict[str, Any] = {
        "model": "m",
        "store": False,
        "stream": True,
        "input": [{"role": "user", "content": text}],
    }
    if anchor is not None:
        body["previous_response_id"] = anchor
    return parse_create(_json(body))


def _text_of(item: Any) -> str:
    content = item["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _answer_of(attempt: int) -> list[bytes]:
    """The upstream's events for an attempt."""
    name = f"r{attempt}"
    text = {"type": "output_text", "text": f"to {attempt}", "annotations": []}
    item = {
        "type": "message",
        "id": f"m{attempt}",
        "role": "assistant",
        "status": "completed",
        "content": [text],
    }
    response = {"id": name, "status": "completed", "output": [item]}
    return [
        _json({"type": "response.created", "response": {"id": name}}),
        _json({"type": "response.output_item.done", "item": item}),
        _json({"type": "response.completed", "response": response}),
    ]


def _failure(error: ApiError, *, begun: bool) -> bytes:
    """The end of a forward that has failed at its receiver, as its sender reads it: an event of a
    stream that has begun, or an error answer as ``links.forward`` reports it."""
    if begun:
        created = created_event(None, "resp_failed", "m", sequence=0)
        return failed_event(error.code, error.message, 9, created, error.more).data
    wait: dict[str, Any] = {}
    if error.retry_after is not None:
        wait["headers"] = {"retry-after": str(error.retry_after)}
    return _json({"type": "error", "status": error.status, **wait, **json.loads(error.body)})
