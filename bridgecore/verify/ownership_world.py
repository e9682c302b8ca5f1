"""Two replicas over one store, as a world that an explorer moves, and what must hold in it.

What belongs here: the environment of two ``Holdings`` (a store, a network that delays and loses,
clocks, clients), the properties of ownership, and the records by which they are checked.

Theory of operation. A *world* is two replicas, the store and what is on its way between them. Time
passes in ticks of the store's clock; a replica's clock may miss some of them. As long as nothing
goes wrong, a question is answered within the tick, at any moment of it. What goes wrong is a
*fault*, and their number is bounded:

* ``slow``: a question is carried out at any later time, or never; its answer is delivered at any
  later time, or never;
* ``fail``: ``Failed`` is reported; what becomes of the question is not known: it was carried out,
  or it is slow from now on;
* ``pause``: a replica handles nothing, while time passes, until it goes on;
* ``crash``: a replica loses its memory, and may be started again, under the same name;
* ``roll back``: the store loses what has changed since a copy was made of it;
* ``drain``: a replica gives up its lease.

In each world every replica may send what ``may_send`` allows it at that moment, also while it is
paused: a process does not notice that it was not running. The properties are checked on questions,
answers and effects, with records that the world keeps of them; none reads the state by which a
replica decides. For liveness, ``explore_ownership`` continues each world without faults.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Final, NamedTuple

import attrs

from bridgecore.errors import BridgecoreError
from bridgecore.ownership import lease as ls
from bridgecore.ownership import store as st
from bridgecore.ownership.holdings import (
    Fence,
    Holdings,
    HoldingsEffect,
    Resolved,
    Settled,
)
from bridgecore.ownership.store import AskStore
from bridgecore.verify.cost import CostedProperty, Rank
from bridgecore.verify.store_model import StoreModel


class OwnershipProperty(CostedProperty):
    """The properties of ownership. The value says what must hold."""

    ONE_LIVE_OWNER = (
        "two replicas never may send turns of one stored conversation at the same moment, if "
        "no clock falls behind by more than the margin during a lease and the store has lost "
        "nothing; in any case a replica that the store tells of another owner sends nothing "
        "more",
        Rank.HARM,
        "two replicas run turns of one conversation at the same time: it splits in two",
    )
    EPOCHS_ONLY_GROW = (
        "a replica believes only a claim whose epoch is above all that it has heard of for "
        "the conversation, even after the store has lost memory; in the store an epoch grows "
        "with each new owner and never shrinks",
        Rank.HARM,
        "a former owner overwrites what the present one has stored",
    )
    STALE_EPOCH_CHANGES_NOTHING = (
        "a commit or a release under another epoch than the present one, or by another owner, "
        "leaves the store as it is",
        Rank.HARM,
        "a former owner overwrites what the present one has stored",
    )
    NO_SEND_WITHOUT_A_LEASE = (
        "a replica may send turns of a conversation that the store can know only until its "
        "lease ends, counted from the question; a lease that has ended is not renewed; a "
        "claim that ends without being given back is followed by a fence",
        Rank.HARM,
        "a replica runs turns of a conversation that another one has taken over",
    )
    UNKNOWN_IS_NOT_GRANTED = (
        "a claim counts as granted only if the store has granted it under the present lease "
        "while its turn waits; one that is granted late is given back",
        Rank.HARM,
        "a replica runs a turn of a conversation that it does not own",
    )
    DURABLE_IS_STORED = (
        "a response is called durable only if the store has it",
        Rank.HARM,
        "a response that was called durable is gone after a crash, and the conversation with it",
    )
    EVERY_TURN_IS_RESOLVED = (
        "each turn that waits for a claim or a commit gets its result exactly once",
        Rank.STUCK,
        "a turn waits for the store until its deadline, or is answered twice",
    )
    LIVENESS = (
        "without further faults, a client that retries at one sound replica soon gets a "
        "stored conversation, or the name of a live owner that has it or gets it when it is "
        "asked; what a dead replica owned is free when its lease has ended",
        Rank.STUCK,
        "a conversation that no replica serves, however often its client retries",
    )
    RELEASES_ARE_REPEATED = (
        "without further faults, a release that failed is repeated until it is carried out, unless "
        "the conversation is claimed again or the lease ends",
        Rank.STUCK,
        "a conversation that its owner has given up is kept from all other replicas",
    )
    NO_ERROR = (
        "a replica raises no exception for an event that can happen",
        Rank.LOSS,
        "the replica fails with an internal error, and its turns with it",
    )


_P = OwnershipProperty
ALL: Final = frozenset(OwnershipProperty)
TICKS: Final = ls.LeaseTimes(ttl=4, margin=1, timeout=1, retry=1)
# In ticks: the lease of a dead owner, or of an earlier process of the same name, ends; a question
# that was lost is given up and asked again, twice.
PATIENCE: Final = TICKS.ttl + 2 * (TICKS.timeout + TICKS.retry)
FAULTS: Final = frozenset(("slow", "fail", "pause", "crash", "roll back", "drain"))


@attrs.frozen
class OwnershipBounds:
    """What an exploration leaves out. ``faults``: how many there are, of those ``kinds``. ``skew``:
    ticks that each replica's clock may miss. ``joined``: begin when both replicas have a lease.
    ``one_name``: both replicas have the same name."""

    name: str
    conversations: int
    turns: int
    faults: int
    kinds: frozenset[str] = FAULTS - {"roll back", "drain"}
    skew: int = 0
    joined: bool = True
    one_name: bool = False
    times: ls.LeaseTimes = TICKS
    max_worlds: int = 5_000_000


class Move(NamedTuple):
    """One thing that can happen, and the replica, conversation or query it happens to."""

    what: str
    about: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.what, *map(str, self.about)])


class OwnershipViolationError(BridgecoreError):
    """The property ``prop`` does not hold; ``text`` says what was observed."""

    def __init__(self, prop: OwnershipProperty, text: str) -> None:
        super().__init__(f"{prop.name}: {text}")
        self.prop = prop
        self.text = text


# ---------------------------------------------------------------- the environment


@attrs.define(eq=False)
class Process:
    """A replica and what the world records of it. ``holdings``: None: it has crashed. ``number``:
    how many processes of this replica there were. ``behind``: ticks that its clock has missed.
    ``woken``: it was paused in this tick, so what is due may come after other calls.

    ``until``: when its lease ends by its own clock, as follows from the answers delivered.
    ``offered``: conversations that it has shown to the store. ``heard``: the highest epoch of each
    conversation that an answer has named. ``unreleased``: conversations with the epochs that it
    has tried to release in vain.
    """

    name: str
    holdings: Holdings | None = None
    number: int = 0
    behind: int = 0
    paused: bool = False
    woken: bool = False
    until: int | None = None
    offered: frozenset[bytes] = frozenset()
    heard: dict[bytes, int] = attrs.Factory(dict)
    unreleased: frozenset[tuple[bytes, int]] = frozenset()

    def copy(self) -> Process:
        other = Process.__new__(Process)
        other.name, other.number, other.behind = self.name, self.number, self.behind
        other.paused, other.woken = self.paused, self.woken
        other.until, other.offered = self.until, self.offered
        other.unreleased = self.unreleased
        other.heard = self.heard.copy()
        other.holdings = None if self.holdings is None else self.holdings.copy()
        return other


@attrs.frozen
class Message:
    """A question on its way to the store, or, once there is an ``answer``, on its way back.

    ``turn``: the turn that waits for it, None if there is none. ``asked``: when, by the clock of
    its replica. ``slow``: it may take longer than a tick. ``failed``: ``Failed`` was reported, so
    that no other answer follows.
    """

    question: st.Question
    turn: int | None
    asked: int
    answer: st.Answer | None = None
    slow: bool = False
    failed: bool = False


class Phase(enum.Enum):
    RESOLVING = "resolving"
    RUNNING = "running"
    COMMITTING = "committing"


class Turn(NamedTuple):
    """The open turn of a conversation, at a replica."""

    number: int
    replica: int
    phase: Phase


def key_of(conversation: int) -> bytes:
    return b"c%d" % conversation


def row_of(turn: int) -> bytes:
    return b"response of turn %d" % turn


_SCOPE: Final = "scope"
REPLICAS: Final = (0, 1)
_OF_LEASE: Final = (st.Join, st.Renew, st.Leave)
Query = tuple[int, int, int]  # replica, number of the process, query


class World:
    """Two replicas and their environment.

    Args:
        bounds: what can happen.
        make: makes the ``Holdings`` of a process.
        store: the store.
        judged: the properties to check.
        checked: counts the checks.
    """

    def __init__(
        self,
        bounds: OwnershipBounds,
        make: Callable[..., Holdings] = Holdings,
        store: Callable[[], StoreModel] = StoreModel,
        judged: Collection[OwnershipProperty] = ALL,
        checked: Counter[OwnershipProperty] | None = None,
    ) -> None:
        self.bounds = bounds
        self.make = make
        self.judged = judged
        self.checked: Counter[OwnershipProperty] = Counter() if checked is None else checked
        self.now = 0
        self.store = store()
        self.content = self.store.snapshot()
        self.backup: StoreModel | None = None
        self.lost: frozenset[bytes] = frozenset()  # conversations harmed by a rollback
        self.rolled_back = False
        self.messages: dict[Query, Message] = {}  # in the order in which they were asked
        names = ("a", "a") if bounds.one_name else ("a", "b")
        self.processes = [Process(name) for name in names]
        self._owned = [True, True]  # False: another world has the same object
        self.turns: dict[int, Turn] = {}  # the open ones, by conversation
        self.begun = 0  # conversations
        self.submitted = 0
        self.faults = 0
        self.results: list[object] = []  # what turns were told since the last call
        for replica in REPLICAS:
            self.start(replica)
            if bounds.joined:
                for query in list(self.messages):
                    self._answer(query)

    def copy(self) -> World:
        """An independent copy; processes and stores are copied before they change."""
        other = World.__new__(World)
        vars(other).update(vars(self))
        other.messages = self.messages.copy()
        other.processes = self.processes.copy()
        other._owned = [False, False]
        other.turns = self.turns.copy()
        return other

    def clock(self, replica: int) -> int:
        """The time by the clock of ``replica``."""
        return self.now - self.processes[replica].behind

    # ------------------------------------------------------------ moves

    def moves(self) -> Iterator[Move]:
        """Everything that can happen now."""
        kinds = self.bounds.kinds if self.faults < self.bounds.faults else frozenset[str]()
        urgent = self._urgent()
        if urgent is not None:
            # Nothing else happens before it, unless it is slow: other orders cost a fault.
            if urgent.what == "timeout":
                yield from self._deliveries(urgent.about[0], kinds)
            else:
                query = (urgent.about[0], urgent.about[1], urgent.about[2])
                yield from self._moves_of(query, self.messages[query], kinds)
                return
            yield urgent
            return
        for query, message in self.messages.items():
            yield from self._moves_of(query, message, kinds)
        for replica in REPLICAS:
            yield from self._moves_of_process(replica, kinds)
        if "roll back" in self.bounds.kinds:
            if self.backup is None:
                yield Move("copy")
            elif "roll back" in kinds and not self.rolled_back:
                yield Move("roll back")
        yield from self._moves_of_clients()
        if self.may_tick():
            yield Move("tick")
            for replica, process in enumerate(self.processes):
                if process.behind < self.bounds.skew and self.is_up(replica):
                    yield Move("tick without", (replica,))

    def _urgent(self) -> Move | None:
        """What a sound replica or the store does at once: about leases, and what is due."""
        for query, message in self.messages.items():
            of_lease = isinstance(message.question, _OF_LEASE)
            if of_lease and not message.slow and message.answer is None:
                return Move("answer", query)
        for replica, process in enumerate(self.processes):
            if self.is_up(replica) and not process.woken and self.is_due(replica):
                return Move("timeout", (replica,))
        return None

    def _deliveries(self, replica: int, kinds: frozenset[str]) -> Iterator[Move]:
        """Answers that come just before ``replica`` gives up waiting."""
        for query, message in self.messages.items():
            if query[0] == replica and not message.failed:
                yield from self._moves_of(query, message, kinds - {"slow"})

    def _moves_of_process(self, replica: int, kinds: frozenset[str]) -> Iterator[Move]:
        process = self.processes[replica]
        if process.holdings is None:
            yield Move("start", (replica,))
            return
        if process.paused:
            yield Move("go on", (replica,))
        elif self.is_due(replica):
            yield Move("timeout", (replica,))
        # A pause that ends in the same tick changes nothing.
        if "pause" in kinds and not process.paused and self.may_tick():
            yield Move("pause", (replica,))
        if "crash" in kinds:
            yield Move("crash", (replica,))
        idle = all(turn.replica != replica for turn in self.turns.values())
        if "drain" in kinds and idle and not process.paused and process.until is not None:
            yield Move("drain", (replica,))

    def _moves_of(self, query: Query, message: Message, kinds: frozenset[str]) -> Iterator[Move]:
        if message.answer is None:
            apart = message.slow or self.processes[query[0]].paused
            yield Move("carry out" if apart else "answer", query)
            if "slow" in kinds and not message.slow:
                yield Move("slow", query)
        elif not self.processes[query[0]].paused:
            yield Move("deliver", query)
        if "fail" in kinds and not message.failed and not self.processes[query[0]].paused:
            yield Move("fail", query)

    def _moves_of_clients(self) -> Iterator[Move]:
        more = self.submitted < self.bounds.turns
        if more and self.begun < self.bounds.conversations:
            # The replicas are alike, so the first one begins the first conversation.
            for replica in REPLICAS if self.begun else (0,):
                if self.is_up(replica):
                    yield Move("begin", (self.begun, replica))
        for conversation in range(self.begun):
            turn = self.turns.get(conversation)
            if turn is None:
                for replica in REPLICAS:
                    if self.is_up(replica) and more:
                        yield Move("turn", (conversation, replica))
            elif self.is_up(turn.replica):
                if turn.phase is Phase.RUNNING:
                    yield Move("commit", (conversation,))
                elif turn.phase is Phase.RESOLVING:
                    yield Move("client leaves", (conversation,))
            for replica, process in enumerate(self.processes):
                busy = turn is not None and turn.replica == replica
                holdings = process.holdings
                if holdings is not None and not process.paused and not busy:
                    key = key_of(conversation)
                    if holdings.epoch(key) or holdings.may_send(key, self.clock(replica)):
                        yield Move("unused", (conversation, replica))

    def is_up(self, replica: int) -> bool:
        process = self.processes[replica]
        return process.holdings is not None and not process.paused

    def is_due(self, replica: int) -> bool:
        holdings = self.processes[replica].holdings
        due = None if holdings is None else holdings.next_timeout()
        return due is not None and due <= self.clock(replica)

    def may_tick(self) -> bool:
        """Whether nothing has to happen before time passes."""
        for query, message in self.messages.items():
            waits = message.answer is not None and self.processes[query[0]].paused
            if not message.slow and not waits:
                return False
        return not any(self.is_up(replica) and self.is_due(replica) for replica in REPLICAS)

    def happens(self, move: Move) -> None:
        """Let ``move`` happen.

        Raises:
            OwnershipViolationError: a property does not hold.
        """
        what, about = move
        match what:
            case "tick" | "tick without":
                self.now += 1
                for replica in about:
                    self.own(replica).behind += 1
                for replica, process in enumerate(self.processes):
                    if process.woken:
                        self.own(replica).woken = False
            case "answer" | "carry out" | "deliver" | "fail" | "slow":
                self._of_message(what, (about[0], about[1], about[2]))
            case "timeout":
                self.own(about[0]).woken = False
                self.call(about[0], lambda holdings, now: holdings.timeout(now))
            case "start" | "crash" | "pause" | "go on" | "drain":
                self.of_process(what, about[0])
            case "copy":
                self.backup = self.store
            case "roll back":
                self._roll_back()
            case _:
                self._of_client(what, about[0], about[-1])
        self._judge()

    def _of_message(self, what: str, query: Query) -> None:
        message = self.messages[query]
        match what:
            case "answer":
                self._answer(query)
            case "carry out":
                self.carry_out(query)
            case "deliver":
                del self.messages[query]
                self.deliver(query, message, message.answer)
            case "slow":
                self.faults += 1
                self.messages[query] = attrs.evolve(message, slow=True)
            case _:
                self.faults += 1
                if message.answer is None:
                    self.messages[query] = attrs.evolve(message, slow=True, failed=True)
                else:
                    del self.messages[query]
                self.deliver(query, message, st.Failed("no connection"))

    def of_process(self, what: str, replica: int) -> None:
        process = self.own(replica)
        match what:
            case "start":
                self.start(replica)
                return
            case "go on":
                process.paused, process.woken = False, self.is_due(replica)
                return
            case "pause":
                process.paused = True
            case "drain":
                self.call(replica, lambda holdings, now: holdings.leave(now))
                process = self.processes[replica]
                process.until = None
            case _:
                process.holdings, process.paused, process.woken = None, False, False
                process.until, process.offered, process.heard = None, frozenset(), {}
                process.unreleased = frozenset()
                self.turns = {
                    conversation: turn
                    for conversation, turn in self.turns.items()
                    if turn.replica != replica
                }
                for query, message in list(self.messages.items()):
                    if query[0] == replica and message.answer is None:
                        self.messages[query] = attrs.evolve(
                            message, slow=True, failed=True, turn=None
                        )
                    elif query[0] == replica:
                        del self.messages[query]
        self.faults += 1

    def start(self, replica: int) -> None:
        old = self.processes[replica]
        process = Process(old.name, number=old.number + 1, behind=old.behind)
        seed = b"%d/%d" % (replica, process.number)
        url = f"http://{process.name}"
        process.holdings = self.make(process.name, url, self.bounds.times, seed)
        self.processes[replica] = process
        self._owned[replica] = True
        self.call(replica, lambda holdings, now: holdings.start(now))

    def _roll_back(self) -> None:
        self.faults += 1
        if self.backup is None:
            return
        leases, conversations, _ = self.content
        self.content = self.backup.snapshot()
        leases_then, conversations_then, _ = self.content
        lost = {each[0] for each in set(conversations) ^ set(conversations_then)}
        if set(leases) != set(leases_then):  # whatever a replica has, the store may give away
            lost = {key_of(each) for each in range(self.bounds.conversations)}
        self.lost |= lost
        self.store, self.rolled_back = self.backup, True

    def _of_client(self, what: str, conversation: int, replica: int) -> None:
        key = key_of(conversation)
        match what:
            case "begin":
                self.begun += 1
                self.submit(conversation, replica, Phase.RUNNING)
                self.call(replica, lambda holdings, _: holdings.begin(key))
            case "turn":
                holdings = self.processes[replica].holdings
                here = holdings is not None and holdings.may_send(key, self.clock(replica))
                self.submit(conversation, replica, Phase.RUNNING if here else Phase.RESOLVING)
                if not here:
                    self.resume(conversation, replica, self.submitted)
            case "commit":
                self._commit(conversation)
            case "client leaves":
                turn = self.turns.pop(conversation)
                self.call(turn.replica, lambda holdings, _: holdings.forget(turn.number))
            case _:
                self.call(replica, lambda holdings, now: holdings.unused(key, now), given_back=key)

    def submit(self, conversation: int, replica: int, phase: Phase) -> None:
        self.submitted += 1
        self.turns[conversation] = Turn(self.submitted, replica, phase)

    def resume(self, conversation: int, replica: int, turn: int) -> None:
        self.call(
            replica,
            lambda holdings, now: holdings.resume(
                turn, _SCOPE, f"resp_{conversation}", now, load=False
            ),
        )

    def _commit(self, conversation: int) -> None:
        """The turn has ended upstream. All responses of a conversation have one id, as those of
        some upstreams have."""
        turn = self.turns[conversation]
        self.turns[conversation] = turn._replace(phase=Phase.COMMITTING)
        key, names = key_of(conversation), (f"resp_{conversation}",)
        response = st.StoredResponse(row_of(turn.number), _SCOPE, names, None, None, b"")
        self.call(
            turn.replica,
            lambda holdings, now: holdings.commit(turn.number, key, (response,), now),
        )

    # ------------------------------------------------------------ the store

    def _answer(self, query: Query) -> None:
        self.carry_out(query)
        message = self.messages.pop(query)
        self.deliver(query, message, message.answer)

    def carry_out(self, query: Query) -> None:
        message, question = self.messages[query], self.messages[query].question
        before = self.content
        self.store = self.store.copy()
        answer = self.store.handle(question, self.now)
        self.content = after = self.store.snapshot()
        if message.failed:
            del self.messages[query]
        else:
            self.messages[query] = attrs.evolve(message, answer=answer)
        was = {key: (epoch, owner) for key, epoch, owner in before[1]}
        for key, epoch, owner in after[1]:
            epoch_before, owner_before = was.get(key, (0, None))
            grows = epoch > epoch_before or (
                epoch == epoch_before and owner in (owner_before, None)
            )
            self.check(
                _P.EPOCHS_ONLY_GROW,
                grows,
                *("epoch", epoch_before, "of", owner_before, "then", epoch, "of", owner),
            )
        if isinstance(question, st.Commit):
            epoch_now, owner_now = was.get(question.conversation, (0, None))
            new = question.epoch == 0 and epoch_now == 0
            present = (question.epoch or 1, question.owner) == (epoch_now, owner_now)
            self.check(
                _P.STALE_EPOCH_CHANGES_NOTHING,
                new or present or before == after,
                *("epoch", epoch_now, "of", owner_now, "asked:", question),
            )
        elif isinstance(question, st.Release):
            now = {key: (epoch, owner) for key, epoch, owner in after[1]}
            for key, epoch in question.conversations:
                stale = was.get(key) != (epoch, question.owner)
                self.check(
                    _P.STALE_EPOCH_CHANGES_NOTHING,
                    not stale or was.get(key) == now.get(key),
                    *(was.get(key), "asked:", question),
                )

    def deliver(self, query: Query, message: Message, answer: st.Answer | None) -> None:
        replica, number, place = query
        process = self.own(replica)
        holdings = process.holdings
        if holdings is None or process.number != number or answer is None:
            return
        now, owner = self.clock(replica), holdings.owner
        question = message.question
        mine = question.owner == owner
        if mine and isinstance(answer, st.Joined | st.Renewed):
            end = message.asked + self.bounds.times.usable
            process.until = end if process.until is None else max(end, process.until)
        elif mine and isinstance(answer, st.LeaseEnded):
            process.until = None
        waiting = any(
            turn.number == message.turn and turn.phase is Phase.RESOLVING
            for turn in self.turns.values()
        )
        had = isinstance(answer, st.Claimed) and (
            bool(holdings.epoch(answer.conversation)) or holdings.may_send(answer.conversation, now)
        )
        if mine and isinstance(question, st.Release) and isinstance(answer, st.Failed):
            process.unreleased |= frozenset(question.conversations)
        valid = process.until is not None and now < process.until
        claimed = holdings.epoch(question.conversation) if isinstance(question, st.Commit) else 0
        effects = self.call(
            replica,
            lambda holdings, now: holdings.answered(place, answer, now),
            heard=answer,
            granted=mine and waiting and valid,
        )
        self._judge_contradicted(replica, message, answer, claimed)
        if isinstance(answer, st.Claimed) and not waiting and not had:
            after = self.processes[replica].holdings
            released = ((answer.conversation, answer.epoch),)
            back = any(
                isinstance(effect, AskStore)
                and isinstance(effect.question, st.Release)
                and effect.question.conversations == released
                for effect in effects
            )
            kept = after is not None and after.epoch(answer.conversation) != 0
            self.check(
                _P.UNKNOWN_IS_NOT_GRANTED,
                not kept and (back or not mine or after is None or not after.has_lease(now)),
                *("epoch", answer.epoch, "was granted to turn", message.turn, "that does not wait"),
            )

    def _judge_contradicted(
        self, replica: int, message: Message, answer: st.Answer, claimed: int
    ) -> None:
        """Check what a replica does when an answer names another owner. ``claimed``: the epoch of
        its own claim. An answer to a commit of an earlier claim does not concern that one."""
        question, holdings = message.question, self.processes[replica].holdings
        if isinstance(answer, st.OwnedElsewhere):
            key = answer.conversation
        elif isinstance(answer, st.Fenced) and isinstance(question, st.Commit):
            key = question.conversation
            if (question.epoch or 1) != (claimed or 1):
                return
        else:
            return
        if holdings is not None and holdings.owner == question.owner:
            sends = holdings.may_send(key, self.clock(replica))
            self.check(_P.ONE_LIVE_OWNER, not sends, "sends after", answer)

    # ------------------------------------------------------------ replicas

    def own(self, replica: int) -> Process:
        """The process of ``replica``, which no other world has."""
        if not self._owned[replica]:
            self._owned[replica] = True
            self.processes[replica] = self.processes[replica].copy()
        return self.processes[replica]

    def call(
        self,
        replica: int,
        call: Callable[[Holdings, int], list[HoldingsEffect] | None],
        *,
        heard: st.Answer | None = None,
        granted: bool = False,
        given_back: bytes | None = None,
    ) -> list[HoldingsEffect]:
        """Call the holdings of ``replica`` and look at what they do. ``heard``: the answer that is
        delivered. ``granted``: if it grants a claim, it may be believed."""
        process = self.own(replica)
        holdings, now = process.holdings, self.clock(replica)
        if holdings is None:
            return []
        keys = [key_of(conversation) for conversation in range(self.begun)]
        before = {key: (holdings.epoch(key), holdings.may_send(key, now)) for key in keys}
        self.checked[_P.NO_ERROR] += 1
        try:
            effects = call(holdings, now) or []
        except Exception as error:  # any exception is a bug: this can happen
            if _P.NO_ERROR not in self.judged:
                return []
            text = f"{type(error).__name__}: {error}"
            raise OwnershipViolationError(_P.NO_ERROR, text) from error
        for effect in effects:
            self._done(replica, process, effect, now, heard if granted else None)
        fenced = {effect.conversation for effect in effects if isinstance(effect, Fence)}
        for key in keys:
            epoch, sent = before[key]
            after = holdings.epoch(key)
            if after and after != epoch:
                self.check(
                    _P.EPOCHS_ONLY_GROW,
                    after > process.heard.get(key, 0),
                    *("epoch", after, "is believed, heard of before:", process.heard.get(key, 0)),
                )
            ended = (epoch and not after) or (sent and not holdings.may_send(key, now))
            if ended and key != given_back:
                drained = process.until is not None and not holdings.has_lease(now)
                self.check(
                    _P.NO_SEND_WITHOUT_A_LEASE,
                    key in fenced or drained,
                    *("the claim of", key, "ended without a fence"),
                )
        if isinstance(heard, st.Claimed | st.OwnedElsewhere):
            key = heard.conversation
            process.heard[key] = max(heard.epoch, process.heard.get(key, 0))
        return effects

    def _done(
        self,
        replica: int,
        process: Process,
        effect: HoldingsEffect,
        now: int,
        granted: st.Answer | None,
    ) -> None:
        if isinstance(effect, AskStore):
            self._asked(replica, process, effect, now)
        elif isinstance(effect, Resolved):
            turn = self._told(replica, effect.turn, Phase.RESOLVING)
            if isinstance(effect.answer, st.Claimed):
                self.check(
                    _P.UNKNOWN_IS_NOT_GRANTED,
                    effect.answer == granted,
                    *("turn", effect.turn, "gets", effect.answer, "granted is", granted),
                )
                if turn is not None:
                    self.turns[turn] = self.turns[turn]._replace(phase=Phase.RUNNING)
            elif turn is not None:
                del self.turns[turn]
            self.results.append(effect.answer)
        elif isinstance(effect, Settled):
            turn = self._told(replica, effect.turn, Phase.COMMITTING)
            if turn is not None:
                del self.turns[turn]
            if effect.durable:
                has = self.rolled_back or row_of(effect.turn) in self.content[2]
                self.check(_P.DURABLE_IS_STORED, has, "the response of turn", effect.turn)

    def _told(self, replica: int, number: int, phase: Phase) -> int | None:
        """The conversation of the turn that gets its result."""
        found = None
        for conversation, turn in self.turns.items():
            if turn == (number, replica, phase):
                found = conversation
        self.check(
            _P.EVERY_TURN_IS_RESOLVED, found is not None, "turn", number, "is not", phase.value
        )
        return found

    def _asked(self, replica: int, process: Process, effect: AskStore, now: int) -> None:
        question, waiting = effect.question, None
        if isinstance(question, st.Resume) and question.response is not None:
            turn = self.turns.get(int(question.response.removeprefix("resp_")))
            if turn is not None and turn.replica == replica:
                waiting = turn.number
        elif isinstance(question, st.Commit):
            process.offered |= {question.conversation}
        elif isinstance(question, st.Join):
            process.until = None
        elif isinstance(question, st.Renew):
            held = process.until is not None and now < process.until
            self.check(_P.NO_SEND_WITHOUT_A_LEASE, held, "a lease that has ended is renewed")
        query = (replica, process.number, effect.query)
        self.messages[query] = Message(question, waiting, now)

    # ------------------------------------------------------------ properties

    def kept(self, replica: int) -> tuple[tuple[bytes, int], ...]:
        """What ``replica`` has tried to release in vain, and has not claimed since, although the
        store has it as its own."""
        process = self.processes[replica]
        holdings = process.holdings
        if holdings is None or not process.unreleased:
            return ()
        present = {(key, epoch) for key, epoch, owner in self.content[1] if owner == holdings.owner}
        failed = process.unreleased & present
        return tuple(sorted(pair for pair in failed if not holdings.epoch(pair[0])))

    def check(self, prop: OwnershipProperty, holds: bool, *text: object) -> None:
        self.checked[prop] += 1
        if not holds and prop in self.judged:
            raise OwnershipViolationError(prop, " ".join(map(str, text)))

    def _judge(self) -> None:
        """Check what each replica may send at this moment."""
        for conversation in range(self.begun):
            key = key_of(conversation)
            known = self.store.epoch(key) > 0
            senders = []
            for replica, process in enumerate(self.processes):
                now, holdings = self.clock(replica), process.holdings
                if holdings is None or not holdings.may_send(key, now):
                    continue
                senders.append(process.name)
                if known or key in process.offered:
                    self.check(
                        _P.NO_SEND_WITHOUT_A_LEASE,
                        process.until is not None and now < process.until,
                        *(process.name, "at", now, "its lease until", process.until),
                    )
            if known and key not in self.lost:
                self.check(_P.ONE_LIVE_OWNER, len(senders) < 2, *senders, "may send")
