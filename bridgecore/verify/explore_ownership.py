"""Explores how two replicas can come to own the same conversations, over one store.

What belongs here: the environment of two ``Holdings`` (a store, a network that delays and loses,
clocks, clients), the properties of ownership, and the bounds. How a session treats a turn that it
may send is the subject of explore.py. The search itself is search.py.

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
replica decides. For liveness, each world is continued without faults (``_Probe``).

Worlds are compared by value: times relative to now, queries by their order, owners by the order in
which they are met.
"""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import attrs

from bridgecore.errors import BridgecoreError
from bridgecore.ownership import claims as cl
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
from bridgecore.testing.store import StoreModel
from bridgecore.verify.search import Search


class OwnershipProperty(enum.Enum):
    """The properties of ownership. The value says what must hold."""

    ONE_LIVE_OWNER = (
        "two replicas never may send turns of one stored conversation at the same moment, if no "
        "clock falls behind by more than the margin during a lease and the store has lost nothing;"
        " in any case a replica that the store tells of another owner sends nothing more"
    )
    EPOCHS_ONLY_GROW = (
        "a replica believes only a claim whose epoch is above all that it has heard of for the "
        "conversation, even after the store has lost memory; in the store an epoch grows with "
        "each new owner and never shrinks"
    )
    STALE_EPOCH_CHANGES_NOTHING = (
        "a commit or a release under another epoch than the present one, or by another owner, "
        "leaves the store as it is"
    )
    NO_SEND_WITHOUT_A_LEASE = (
        "a replica may send turns of a conversation that the store can know only until its lease "
        "ends, counted from the question; a lease that has ended is not renewed; a claim that "
        "ends without being given back is followed by a fence"
    )
    UNKNOWN_IS_NOT_GRANTED = (
        "a claim counts as granted only if the store has granted it under the present lease while "
        "its turn waits; one that is granted late is given back"
    )
    DURABLE_IS_STORED = "a response is called durable only if the store has it"
    EVERY_TURN_IS_RESOLVED = (
        "each turn that waits for a claim or a commit gets its result exactly once"
    )
    LIVENESS = (
        "without further faults, a client that retries at one sound replica soon gets a stored "
        "conversation, or the name of a live owner that has it or gets it when it is asked; what a "
        "dead replica owned is free when its lease has ended"
    )
    NO_ERROR = "a replica raises no exception for an event that can happen"


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


@attrs.frozen
class OwnershipCounterexample:
    """A violation with a shortest path to it."""

    prop: OwnershipProperty
    text: str
    path: tuple[str, ...]


@attrs.define
class OwnershipReport:
    """The result of an exploration."""

    bounds: OwnershipBounds
    worlds: int = 0
    edges: int = 0
    complete: bool = False
    checked: Counter[OwnershipProperty] = attrs.Factory(Counter)
    counterexamples: list[OwnershipCounterexample] = attrs.Factory(list)


class OwnershipViolationError(BridgecoreError):
    """The property ``prop`` does not hold; ``text`` says what was observed."""

    def __init__(self, prop: OwnershipProperty, text: str) -> None:
        super().__init__(f"{prop.name}: {text}")
        self.prop = prop
        self.text = text


# ---------------------------------------------------------------- the environment


@attrs.define(eq=False)
class _Process:
    """A replica and what the world records of it. ``holdings``: None: it has crashed. ``number``:
    how many processes of this replica there were. ``behind``: ticks that its clock has missed.
    ``woken``: it was paused in this tick, so what is due may come after other calls.

    ``until``: when its lease ends by its own clock, as follows from the answers delivered.
    ``offered``: conversations that it has shown to the store. ``heard``: the highest epoch of each
    conversation that an answer has named.
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

    def copy(self) -> _Process:
        other = _Process.__new__(_Process)
        other.name, other.number, other.behind = self.name, self.number, self.behind
        other.paused, other.woken = self.paused, self.woken
        other.until, other.offered = self.until, self.offered
        other.heard = self.heard.copy()
        other.holdings = None if self.holdings is None else self.holdings.copy()
        return other


@attrs.frozen
class _Message:
    """A question on its way to the store, or, once there is an ``answer``, on its way back.

    ``turn``: the turn that waits for it, None if there is none. ``asked``: when, by the clock of
    its replica. ``slow``: it may take longer than a tick. ``told``: ``Failed`` was reported, so
    that no other answer follows.
    """

    question: st.Question
    turn: int | None
    asked: int
    answer: st.Answer | None = None
    slow: bool = False
    told: bool = False


class _Phase(enum.Enum):
    RESOLVING = "resolving"
    RUNNING = "running"
    COMMITTING = "committing"


class _Turn(NamedTuple):
    """The open turn of a conversation, at a replica."""

    number: int
    replica: int
    phase: _Phase


def _key(conversation: int) -> bytes:
    return b"c%d" % conversation


def _row(turn: int) -> bytes:
    return b"response of turn %d" % turn


_SCOPE: Final = "scope"
_REPLICAS: Final = (0, 1)
_OF_LEASE: Final = (st.Join, st.Renew, st.Leave)
_Query = tuple[int, int, int]  # replica, number of the process, query


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
        self.messages: dict[_Query, _Message] = {}  # in the order in which they were asked
        names = ("a", "a") if bounds.one_name else ("a", "b")
        self.processes = [_Process(name) for name in names]
        self._owned = [True, True]  # False: another world has the same object
        self.turns: dict[int, _Turn] = {}  # the open ones, by conversation
        self.begun = 0  # conversations
        self.submitted = 0
        self.faults = 0
        self.results: list[object] = []  # what turns were told since the last call
        for replica in _REPLICAS:
            self._start(replica)
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
        for replica in _REPLICAS:
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
                if process.behind < self.bounds.skew and self._is_up(replica):
                    yield Move("tick without", (replica,))

    def _urgent(self) -> Move | None:
        """What a sound replica or the store does at once: about leases, and what is due."""
        for query, message in self.messages.items():
            of_lease = isinstance(message.question, _OF_LEASE)
            if of_lease and not message.slow and message.answer is None:
                return Move("answer", query)
        for replica, process in enumerate(self.processes):
            if self._is_up(replica) and not process.woken and self._is_due(replica):
                return Move("timeout", (replica,))
        return None

    def _deliveries(self, replica: int, kinds: frozenset[str]) -> Iterator[Move]:
        """Answers that come just before ``replica`` gives up waiting."""
        for query, message in self.messages.items():
            if query[0] == replica and not message.told:
                yield from self._moves_of(query, message, kinds - {"slow"})

    def _moves_of_process(self, replica: int, kinds: frozenset[str]) -> Iterator[Move]:
        process = self.processes[replica]
        if process.holdings is None:
            yield Move("start", (replica,))
            return
        if process.paused:
            yield Move("go on", (replica,))
        elif self._is_due(replica):
            yield Move("timeout", (replica,))
        # A pause that ends in the same tick changes nothing.
        if "pause" in kinds and not process.paused and self.may_tick():
            yield Move("pause", (replica,))
        if "crash" in kinds:
            yield Move("crash", (replica,))
        idle = all(turn.replica != replica for turn in self.turns.values())
        if "drain" in kinds and idle and not process.paused and process.until is not None:
            yield Move("drain", (replica,))

    def _moves_of(self, query: _Query, message: _Message, kinds: frozenset[str]) -> Iterator[Move]:
        if message.answer is None:
            apart = message.slow or self.processes[query[0]].paused
            yield Move("carry out" if apart else "answer", query)
            if "slow" in kinds and not message.slow:
                yield Move("slow", query)
        elif not self.processes[query[0]].paused:
            yield Move("deliver", query)
        if "fail" in kinds and not message.told and not self.processes[query[0]].paused:
            yield Move("fail", query)

    def _moves_of_clients(self) -> Iterator[Move]:
        more = self.submitted < self.bounds.turns
        if more and self.begun < self.bounds.conversations:
            # The replicas are alike, so the first one begins the first conversation.
            for replica in _REPLICAS if self.begun else (0,):
                if self._is_up(replica):
                    yield Move("begin", (self.begun, replica))
        for conversation in range(self.begun):
            turn = self.turns.get(conversation)
            if turn is None:
                for replica in _REPLICAS:
                    if self._is_up(replica) and more:
                        yield Move("turn", (conversation, replica))
            elif self._is_up(turn.replica):
                if turn.phase is _Phase.RUNNING:
                    yield Move("commit", (conversation,))
                elif turn.phase is _Phase.RESOLVING:
                    yield Move("client leaves", (conversation,))
            for replica, process in enumerate(self.processes):
                busy = turn is not None and turn.replica == replica
                holdings = process.holdings
                if holdings is not None and not process.paused and not busy:
                    key = _key(conversation)
                    if holdings.epoch(key) or holdings.may_send(key, self.clock(replica)):
                        yield Move("unused", (conversation, replica))

    def _is_up(self, replica: int) -> bool:
        process = self.processes[replica]
        return process.holdings is not None and not process.paused

    def _is_due(self, replica: int) -> bool:
        holdings = self.processes[replica].holdings
        due = None if holdings is None else holdings.next_timeout()
        return due is not None and due <= self.clock(replica)

    def may_tick(self) -> bool:
        """Whether nothing has to happen before time passes."""
        for query, message in self.messages.items():
            waits = message.answer is not None and self.processes[query[0]].paused
            if not message.slow and not waits:
                return False
        return not any(self._is_up(replica) and self._is_due(replica) for replica in _REPLICAS)

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
                    self._own(replica).behind += 1
                for replica, process in enumerate(self.processes):
                    if process.woken:
                        self._own(replica).woken = False
            case "answer" | "carry out" | "deliver" | "fail" | "slow":
                self._of_message(what, (about[0], about[1], about[2]))
            case "timeout":
                self._own(about[0]).woken = False
                self._call(about[0], lambda holdings, now: holdings.timeout(now))
            case "start" | "crash" | "pause" | "go on" | "drain":
                self._of_process(what, about[0])
            case "copy":
                self.backup = self.store
            case "roll back":
                self._roll_back()
            case _:
                self._of_client(what, about[0], about[-1])
        self._judge()

    def _of_message(self, what: str, query: _Query) -> None:
        message = self.messages[query]
        match what:
            case "answer":
                self._answer(query)
            case "carry out":
                self._carry_out(query)
            case "deliver":
                del self.messages[query]
                self._deliver(query, message, message.answer)
            case "slow":
                self.faults += 1
                self.messages[query] = attrs.evolve(message, slow=True)
            case _:
                self.faults += 1
                if message.answer is None:
                    self.messages[query] = attrs.evolve(message, slow=True, told=True)
                else:
                    del self.messages[query]
                self._deliver(query, message, st.Failed("no connection"))

    def _of_process(self, what: str, replica: int) -> None:
        process = self._own(replica)
        match what:
            case "start":
                self._start(replica)
                return
            case "go on":
                process.paused, process.woken = False, self._is_due(replica)
                return
            case "pause":
                process.paused = True
            case "drain":
                self._call(replica, lambda holdings, now: holdings.leave(now))
                process = self.processes[replica]
                process.until = None
            case _:
                process.holdings, process.paused, process.woken = None, False, False
                process.until, process.offered, process.heard = None, frozenset(), {}
                self.turns = {
                    conversation: turn
                    for conversation, turn in self.turns.items()
                    if turn.replica != replica
                }
                for query, message in list(self.messages.items()):
                    if query[0] == replica and message.answer is None:
                        self.messages[query] = attrs.evolve(
                            message, slow=True, told=True, turn=None
                        )
                    elif query[0] == replica:
                        del self.messages[query]
        self.faults += 1

    def _start(self, replica: int) -> None:
        old = self.processes[replica]
        process = _Process(old.name, number=old.number + 1, behind=old.behind)
        seed = b"%d/%d" % (replica, process.number)
        url = f"http://{process.name}"
        process.holdings = self.make(process.name, url, self.bounds.times, seed)
        self.processes[replica] = process
        self._owned[replica] = True
        self._call(replica, lambda holdings, now: holdings.start(now))

    def _roll_back(self) -> None:
        self.faults += 1
        if self.backup is None:
            return
        leases, conversations, _ = self.content
        self.content = self.backup.snapshot()
        leases_then, conversations_then, _ = self.content
        lost = {each[0] for each in set(conversations) ^ set(conversations_then)}
        if set(leases) != set(leases_then):  # whatever a replica has, the store may give away
            lost = {_key(each) for each in range(self.bounds.conversations)}
        self.lost |= lost
        self.store, self.rolled_back = self.backup, True

    def _of_client(self, what: str, conversation: int, replica: int) -> None:
        key = _key(conversation)
        match what:
            case "begin":
                self.begun += 1
                self._submit(conversation, replica, _Phase.RUNNING)
                self._call(replica, lambda holdings, _: holdings.begin(key))
            case "turn":
                holdings = self.processes[replica].holdings
                here = holdings is not None and holdings.may_send(key, self.clock(replica))
                self._submit(conversation, replica, _Phase.RUNNING if here else _Phase.RESOLVING)
                if not here:
                    self._resume(conversation, replica, self.submitted)
            case "commit":
                self._commit(conversation)
            case "client leaves":
                turn = self.turns.pop(conversation)
                self._call(turn.replica, lambda holdings, _: holdings.forget(turn.number))
            case _:
                self._call(replica, lambda holdings, now: holdings.unused(key, now), given_back=key)

    def _submit(self, conversation: int, replica: int, phase: _Phase) -> None:
        self.submitted += 1
        self.turns[conversation] = _Turn(self.submitted, replica, phase)

    def _resume(self, conversation: int, replica: int, turn: int) -> None:
        self._call(
            replica,
            lambda holdings, now: holdings.resume(
                turn, _SCOPE, f"resp_{conversation}", now, load=False
            ),
        )

    def _commit(self, conversation: int) -> None:
        """The turn has ended upstream. All responses of a conversation have one id, as those of
        some upstreams have."""
        turn = self.turns[conversation]
        self.turns[conversation] = turn._replace(phase=_Phase.COMMITTING)
        key, names = _key(conversation), (f"resp_{conversation}",)
        response = st.StoredResponse(_row(turn.number), _SCOPE, names, None, None, b"")
        self._call(
            turn.replica,
            lambda holdings, now: holdings.commit(turn.number, key, (response,), now),
        )

    # ------------------------------------------------------------ the store

    def _answer(self, query: _Query) -> None:
        self._carry_out(query)
        message = self.messages.pop(query)
        self._deliver(query, message, message.answer)

    def _carry_out(self, query: _Query) -> None:
        message, question = self.messages[query], self.messages[query].question
        before = self.content
        self.store = self.store.copy()
        answer = self.store.handle(question, self.now)
        self.content = after = self.store.snapshot()
        if message.told:
            del self.messages[query]
        else:
            self.messages[query] = attrs.evolve(message, answer=answer)
        was = {key: (epoch, owner) for key, epoch, owner in before[1]}
        for key, epoch, owner in after[1]:
            epoch_before, owner_before = was.get(key, (0, None))
            grows = epoch > epoch_before or (
                epoch == epoch_before and owner in (owner_before, None)
            )
            self._check(
                _P.EPOCHS_ONLY_GROW,
                grows,
                *("epoch", epoch_before, "of", owner_before, "then", epoch, "of", owner),
            )
        if isinstance(question, st.Commit):
            epoch_now, owner_now = was.get(question.conversation, (0, None))
            new = question.epoch == 0 and epoch_now == 0
            present = (question.epoch or 1, question.owner) == (epoch_now, owner_now)
            self._check(
                _P.STALE_EPOCH_CHANGES_NOTHING,
                new or present or before == after,
                *("epoch", epoch_now, "of", owner_now, "asked:", question),
            )
        elif isinstance(question, st.Release):
            now = {key: (epoch, owner) for key, epoch, owner in after[1]}
            for key, epoch in question.conversations:
                stale = was.get(key) != (epoch, question.owner)
                self._check(
                    _P.STALE_EPOCH_CHANGES_NOTHING,
                    not stale or was.get(key) == now.get(key),
                    *(was.get(key), "asked:", question),
                )

    def _deliver(self, query: _Query, message: _Message, answer: st.Answer | None) -> None:
        replica, number, place = query
        process = self._own(replica)
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
            turn.number == message.turn and turn.phase is _Phase.RESOLVING
            for turn in self.turns.values()
        )
        had = isinstance(answer, st.Claimed) and (
            bool(holdings.epoch(answer.conversation)) or holdings.may_send(answer.conversation, now)
        )
        valid = process.until is not None and now < process.until
        claimed = holdings.epoch(question.conversation) if isinstance(question, st.Commit) else 0
        effects = self._call(
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
            self._check(
                _P.UNKNOWN_IS_NOT_GRANTED,
                not kept and (back or not mine or after is None or not after.has_lease(now)),
                *("epoch", answer.epoch, "was granted to turn", message.turn, "that does not wait"),
            )

    def _judge_contradicted(
        self, replica: int, message: _Message, answer: st.Answer, claimed: int
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
            self._check(_P.ONE_LIVE_OWNER, not sends, "sends after", answer)

    # ------------------------------------------------------------ replicas

    def _own(self, replica: int) -> _Process:
        """The process of ``replica``, which no other world has."""
        if not self._owned[replica]:
            self._owned[replica] = True
            self.processes[replica] = self.processes[replica].copy()
        return self.processes[replica]

    def _call(
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
        process = self._own(replica)
        holdings, now = process.holdings, self.clock(replica)
        if holdings is None:
            return []
        keys = [_key(conversation) for conversation in range(self.begun)]
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
                self._check(
                    _P.EPOCHS_ONLY_GROW,
                    after > process.heard.get(key, 0),
                    *("epoch", after, "is believed, heard of before:", process.heard.get(key, 0)),
                )
            ended = (epoch and not after) or (sent and not holdings.may_send(key, now))
            if ended and key != given_back:
                drained = process.until is not None and not holdings.has_lease(now)
                self._check(
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
        process: _Process,
        effect: HoldingsEffect,
        now: int,
        granted: st.Answer | None,
    ) -> None:
        if isinstance(effect, AskStore):
            self._asked(replica, process, effect, now)
        elif isinstance(effect, Resolved):
            turn = self._told(replica, effect.turn, _Phase.RESOLVING)
            if isinstance(effect.answer, st.Claimed):
                self._check(
                    _P.UNKNOWN_IS_NOT_GRANTED,
                    effect.answer == granted,
                    *("turn", effect.turn, "gets", effect.answer, "granted is", granted),
                )
                if turn is not None:
                    self.turns[turn] = self.turns[turn]._replace(phase=_Phase.RUNNING)
            elif turn is not None:
                del self.turns[turn]
            self.results.append(effect.answer)
        elif isinstance(effect, Settled):
            turn = self._told(replica, effect.turn, _Phase.COMMITTING)
            if turn is not None:
                del self.turns[turn]
            if effect.durable:
                has = self.rolled_back or _row(effect.turn) in self.content[2]
                self._check(_P.DURABLE_IS_STORED, has, "the response of turn", effect.turn)

    def _told(self, replica: int, number: int, phase: _Phase) -> int | None:
        """The conversation of the turn that gets its result."""
        found = None
        for conversation, turn in self.turns.items():
            if turn == (number, replica, phase):
                found = conversation
        self._check(
            _P.EVERY_TURN_IS_RESOLVED, found is not None, "turn", number, "is not", phase.value
        )
        return found

    def _asked(self, replica: int, process: _Process, effect: AskStore, now: int) -> None:
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
            self._check(_P.NO_SEND_WITHOUT_A_LEASE, held, "a lease that has ended is renewed")
        query = (replica, process.number, effect.query)
        self.messages[query] = _Message(question, waiting, now)

    # ------------------------------------------------------------ properties

    def _check(self, prop: OwnershipProperty, holds: bool, *text: object) -> None:
        self.checked[prop] += 1
        if not holds and prop in self.judged:
            raise OwnershipViolationError(prop, " ".join(map(str, text)))

    def _judge(self) -> None:
        """Check what each replica may send at this moment."""
        for conversation in range(self.begun):
            key = _key(conversation)
            known = self.store.epoch(key) > 0
            senders = []
            for replica, process in enumerate(self.processes):
                now, holdings = self.clock(replica), process.holdings
                if holdings is None or not holdings.may_send(key, now):
                    continue
                senders.append(process.name)
                if known or key in process.offered:
                    self._check(
                        _P.NO_SEND_WITHOUT_A_LEASE,
                        process.until is not None and now < process.until,
                        *(process.name, "at", now, "its lease until", process.until),
                    )
            if known and key not in self.lost:
                self._check(_P.ONE_LIVE_OWNER, len(senders) < 2, *senders, "may send")

    # ------------------------------------------------------------ identity

    def key(self) -> tuple[int, int, bytes]:
        """Equal for worlds with the same future. The last part leaves out what the bounds still
        allow."""
        return (self.faults, self.submitted, self.state())

    def state(self) -> bytes:
        """Equal for worlds with the same future if more happens than the bounds allow."""
        # A digest, because millions of states are kept.
        return hashlib.blake2b(repr(self._state()).encode(), digest_size=16).digest()

    def _state(self) -> tuple[Any, ...]:
        fold = _Fold(self)
        processes = tuple(fold.process(replica) for replica in _REPLICAS)
        messages = tuple(fold.message(query) for query in self.messages)
        turns = tuple(
            (conversation, turn.replica, turn.phase.value,
             turn.phase is _Phase.COMMITTING and _row(turn.number) in fold.rows)
            for conversation, turn in sorted(self.turns.items())
        )  # fmt: skip
        backup = (
            None if self.backup is None or self.rolled_back else fold.store(self.backup.snapshot())
        )
        lost = (self.rolled_back, tuple(sorted(self.lost)))
        return (
            self.begun,
            processes,
            tuple(sorted(messages)),
            turns,
            fold.store(self.content),
            backup,
            lost,
        )


_STAGES: Final = {stage: place for place, stage in enumerate(ls.LeaseStage)}
_CLAIM_STAGES: Final = {stage: place for place, stage in enumerate(cl.ClaimStage)}
_HOLDING: Final = (ls.LeaseStage.HELD, ls.LeaseStage.RENEWING)
_WAITING: Final = (ls.LeaseStage.JOINING, ls.LeaseStage.RENEWING)


class _Fold:
    """Turns the parts of a world into values that are equal if the parts are alike."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.owners: dict[str, int] = {}
        self.turns = {turn.number: each for each, turn in world.turns.items()}
        self.rows = world.content[2]
        for process in world.processes:  # the present owners get the first numbers
            if process.holdings is not None:
                self.owner(process.holdings.owner)

    def owner(self, owner: st.Owner | None) -> int:
        if owner is None:
            return -1
        return self.owners.setdefault(owner.incarnation, len(self.owners))

    def turn(self, number: int | None) -> int:
        return -1 if number is None else self.turns.get(number, -1)

    def process(self, replica: int) -> tuple[Any, ...]:
        process, now = self.world.processes[replica], self.world.clock(replica)
        if process.holdings is None:
            return (process.behind,)
        lease, claims, seen, asked, of_lease, waiting = process.holdings.snapshot()
        stage = lease.stage
        return (
            process.behind,
            process.paused,
            process.woken,
            -1 if process.until is None else max(process.until - now, 0),
            tuple(sorted(process.offered)),
            tuple(sorted(process.heard.items())),
            _STAGES[stage],
            max(lease.until - now, 0) if stage in _HOLDING else 0,
            now - lease.asked if stage in _WAITING else 0,
            None if lease.wake is None else max(lease.wake - now, 0),
            lease.taken,
            tuple(
                sorted(
                    (key, _CLAIM_STAGES[claim.stage], claim.epoch, claim.seen, claim.offered)
                    for key, claim in claims
                )
            ),
            tuple(sorted(seen)),
            tuple(
                (
                    type(question).__name__,
                    query == of_lease,
                    self.owner(owner),
                    self.turn(turn),
                    max(deadline - now, 0),
                    distrusted,
                )
                for query, question, owner, turn, deadline, distrusted in asked
                if (replica, process.number, query) in self.world.messages
            ),
            tuple(
                (
                    self.turn(turn),
                    max(deadline - now, 0),
                    question.floor if isinstance(question, st.Resume) else question.conversation,
                )
                for turn, question, deadline in waiting
            ),
        )

    def message(self, query: _Query) -> tuple[Any, ...]:
        message = self.world.messages[query]
        process = self.world.processes[query[0]]
        place = -1
        if not message.told:  # its place among the open questions of its replica
            same = [each for each in self.world.messages if each[:2] == query[:2]]
            place = same.index(query)
        question, answer = message.question, message.answer
        about: tuple[Any, ...] = ()
        if isinstance(question, st.Resume):
            about = (question.response, question.floor)
        elif isinstance(question, st.Commit):
            about = (question.conversation, question.epoch, self._of_row(question))
        elif isinstance(question, st.Release):
            about = question.conversations
        told: tuple[Any, ...] = ()
        if answer is not None:
            told = (type(answer).__name__,)
            if isinstance(answer, st.Claimed):
                told += (answer.conversation, answer.epoch)
            elif isinstance(answer, st.OwnedElsewhere):
                told += (answer.conversation, answer.epoch, self.owner(answer.owner))
            elif isinstance(answer, st.NameTaken):
                told += (answer.remaining,)
            elif isinstance(answer, st.Committed | st.Fenced):
                told += (answer.epoch,)
        return (
            query[0],
            query[1] == process.number,
            place,
            type(question).__name__,
            self.owner(question.owner),
            about,
            self.turn(message.turn),
            self._age(query, message),
            told,
            message.slow,
            message.told,
        )

    def _age(self, query: _Query, message: _Message) -> int:
        """How long ago it was asked, as far as that matters: what it extends."""
        if message.told or not isinstance(message.question, st.Join | st.Renew):
            return 0
        return min(self.world.clock(query[0]) - message.asked, self.world.bounds.times.usable)

    def _of_row(self, commit: st.Commit) -> int:
        """The conversation whose open turn is committed; -1 if that turn has ended."""
        for response in commit.responses:
            for number, conversation in self.turns.items():
                if response.key == _row(number):
                    return conversation
        return -1

    def store(self, content: tuple[Any, ...]) -> tuple[Any, ...]:
        leases, conversations, _ = content
        now = self.world.now
        return (
            tuple(
                sorted((self.owner(owner), until - now) for owner, until in leases if until > now)
            ),
            tuple(sorted((key, epoch, self.owner(owner)) for key, epoch, owner in conversations)),
        )


# ---------------------------------------------------------------- liveness


class _Probe:
    """Continues worlds without faults, to see what a client that retries gets.

    Many worlds are alike once what is on its way has arrived; each of those is tried once.
    """

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._tried: set[tuple[bytes, int, bool]] = set()

    def look(self, world: World, state: bytes) -> None:
        """Try each replica, with the other one sound, and with the other one dead."""
        if not {_P.LIVENESS, _P.EVERY_TURN_IS_RESOLVED} & set(world.judged):
            return
        stored = any(world.store.epoch(_key(each)) for each in range(world.begun))
        # What is still to happen in this tick, without a fault, leads to a world that is looked at.
        if state in self._known or not world.may_tick() or not (stored or world.turns):
            return
        self._known.add(state)
        # Of two processes with one name, one waits as long as the other one lives.
        for replica in _REPLICAS:
            for alone in (True,) if world.bounds.one_name else (False, True):
                trial = world.copy()
                trial.judged = set(world.judged) & {_P.LIVENESS, _P.EVERY_TURN_IS_RESOLVED}
                self._mend(trial, replica, alone)
                self._settle(trial, replica, alone)
                name = (trial.state(), replica, alone)
                if name not in self._tried:
                    self._tried.add(name)
                    self._try(trial, replica, alone)

    def _mend(self, trial: World, replica: int, alone: bool) -> None:
        for each in _REPLICAS:
            process = trial._own(each)
            if alone and each != replica:
                process.paused = True
                continue
            process.paused = False
            holdings = process.holdings
            ended = holdings is None or holdings.snapshot()[0].stage in _ENDED
            if ended:
                if holdings is not None:
                    trial._of_process("crash", each)
                trial._start(each)
        trial.turns = {
            conversation: turn
            for conversation, turn in trial.turns.items()
            if not trial.processes[turn.replica].paused
        }

    def _settle(self, trial: World, replica: int, alone: bool) -> None:
        """Let everything happen that happens within a tick."""
        busy = True
        while busy:
            busy = False
            for query in list(trial.messages):
                if query in trial.messages:
                    if trial.messages[query].answer is None:
                        trial._carry_out(query)
                        busy = True
                    if query in trial.messages and not trial.processes[query[0]].paused:
                        message = trial.messages.pop(query)
                        trial._deliver(query, message, message.answer)
                        busy = True
            for each in _REPLICAS:
                if trial._is_up(each) and trial._is_due(each):
                    trial._call(each, lambda holdings, now: holdings.timeout(now))
                    busy = True
        trial.turns = {  # those that run end, or are cut off
            conversation: turn
            for conversation, turn in trial.turns.items()
            if turn.phase is not _Phase.RUNNING
        }

    def _try(self, trial: World, replica: int, alone: bool) -> None:
        left = set(range(trial.begun))
        for _ in range(PATIENCE + 1):
            for conversation in sorted(left):
                if self._gets(trial, conversation, replica, alone):
                    left.discard(conversation)
            if not left and not trial.turns:
                break
            trial.now += 1
            self._settle(trial, replica, alone)
        trial._check(
            _P.EVERY_TURN_IS_RESOLVED, not trial.turns, "still waiting:", *trial.turns.values()
        )
        trial._check(
            _P.LIVENESS,
            not left,
            *(f"replica {replica} does not get {sorted(left)} in {PATIENCE} ticks", alone),
        )

    def _gets(self, trial: World, conversation: int, replica: int, alone: bool) -> bool:
        """Whether a client that asks ``replica`` for ``conversation`` now gets an answer."""
        key = _key(conversation)
        if trial.store.epoch(key) == 0:
            return True  # it is not stored: there is nothing to get
        answer = self._ask(trial, conversation, replica, alone)
        if not isinstance(answer, st.OwnedElsewhere):
            return answer is True
        other = 1 - replica
        holdings = trial.processes[other].holdings
        if alone or holdings is None or answer.owner != holdings.owner:
            return False
        return self._ask(trial, conversation, other, alone) is True

    def _ask(self, trial: World, conversation: int, replica: int, alone: bool) -> object:
        """What a client gets: True if the replica owns the conversation."""
        key, holdings = _key(conversation), trial.processes[replica].holdings
        if holdings is not None and holdings.may_send(key, trial.clock(replica)):
            return True
        if conversation in trial.turns:
            return None  # an earlier turn still waits
        trial._submit(conversation, replica, _Phase.RESOLVING)
        trial.results = []
        trial._resume(conversation, replica, trial.submitted)
        self._settle(trial, replica, alone)
        holdings = trial.processes[replica].holdings
        if holdings is not None and holdings.may_send(key, trial.clock(replica)):
            return True
        return trial.results[-1] if trial.results else None


_ENDED: Final = (ls.LeaseStage.LEAVING, ls.LeaseStage.LEFT)


# ---------------------------------------------------------------- the search

_SLOW, _PAUSE, _BACK = frozenset({"slow"}), frozenset({"pause"}), frozenset({"roll back"})
_ONCE = OwnershipBounds("anything goes wrong once", 1, 2, 1, FAULTS - _BACK)
_CLOCK = OwnershipBounds("a slow clock", 1, 2, 1, _PAUSE, skew=1)
_NAME = OwnershipBounds("two processes of one name", 1, 2, 1, joined=False, one_name=True)
OWNERSHIP_BOUNDS: Mapping[str, Sequence[OwnershipBounds]] = {
    "small": (
        _ONCE,
        OwnershipBounds("a slow clock", 1, 1, 1, _PAUSE, skew=1),
        OwnershipBounds("two conversations", 2, 2, 1, frozenset({"crash"})),
        OwnershipBounds("the store is rolled back", 1, 2, 1, _BACK),
    ),
    "ci": (
        _ONCE,
        _CLOCK,
        _NAME,
        OwnershipBounds("late answers", 1, 3, 1, _SLOW),
        OwnershipBounds("two conversations", 2, 2, 1, FAULTS - _BACK),
        OwnershipBounds("the store is rolled back", 1, 2, 1, _BACK),
        OwnershipBounds("leaving late", 1, 1, 2, frozenset({"drain", "slow", "fail"})),
    ),
    "nightly": (
        OwnershipBounds("anything goes wrong twice", 1, 2, 2, FAULTS - _BACK),
        OwnershipBounds("slow clocks", 1, 2, 2, frozenset({"pause", "slow"}), skew=1),
        attrs.evolve(_NAME, faults=2),
        OwnershipBounds("late answers", 1, 3, 2, _SLOW),
        OwnershipBounds("two conversations", 2, 3, 1, FAULTS - _BACK),
        OwnershipBounds("the store is rolled back", 1, 3, 2, frozenset({"slow", "roll back"})),
    ),
}


def explore_ownership(
    bounds: OwnershipBounds,
    *,
    make: Callable[..., Holdings] = Holdings,
    store: Callable[[], StoreModel] = StoreModel,
    judged: Collection[OwnershipProperty] = ALL,
    progress: Callable[[OwnershipReport], None] | None = None,
) -> OwnershipReport:
    """Explore replicas made by ``make`` over a store made by ``store``, until the first violation
    of a property in ``judged`` or the end of the bounds."""
    report = OwnershipReport(bounds)
    search: Search[tuple[int, int, bytes], Move] = Search(most=bounds.max_worlds)
    probe = _Probe()
    start = World(bounds, make, store, judged, report.checked)
    worlds = {search.reach(start.key()): start}  # those that are not yet expanded

    def look(number: int, key: tuple[int, int, bytes]) -> bool:
        here = worlds.pop(number)
        move: Move | None = None
        try:
            probe.look(here, key[2])
            for move in list(here.moves()):
                report.edges += 1
                world = here.copy()
                world.happens(move)
                found = len(search)
                if search.reach(world.key(), number, move) == found:
                    worlds[found] = world
                move = None
        except OwnershipViolationError as violation:
            way = search.way(number)[1]
            names = tuple(map(str, way if move is None else (*way, move)))
            shown = OwnershipCounterexample(violation.prop, violation.text, names)
            report.counterexamples.append(shown)
            return False
        return True

    def show() -> None:
        report.worlds = len(search)
        if progress is not None:
            progress(report)

    search.run(look, show, 1000)
    report.worlds = len(search)
    report.complete = search.complete
    return report
