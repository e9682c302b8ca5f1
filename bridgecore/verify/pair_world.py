"""Two bridges over one store, as a world that an explorer moves.

What belongs here: what happens in the environment of two ``Bridge``s that forward turns to each
other (the store, the network between them, the upstream, clients), what becomes of the bridges'
effects, and the checks of the properties.

Theory of operation. A *world* is two processes, the store, the upstream's connections and what is
on its way (pair_records.py). A client has one conversation and continues it, turn by turn, at
either replica. A turn that ends without an answer is asked again, as another *attempt*. Time passes
in ticks. What can happen at a moment, and what can go wrong, is in pair_moves.py; which worlds are
alike in pair_key.py.

The properties (pair_properties.py) are checked on events and effects, with records that the world
keeps of them; none reads the state by which a bridge decides. For liveness, ``explore_pair``
continues each world without faults.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Final

import attrs

from bridgecore.api_error import NOT_DISPATCHED, ApiError
from bridgecore.bridge import Bridge
from bridgecore.config import Config, PeerUrl, UpstreamUrl
from bridgecore.config import Store as StoreSetting
from bridgecore.continuity.aliases import named_scope
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
from bridgecore.telemetry import LogLevel
from bridgecore.verify.pair_machine import FAR, TICK, MachineState
from bridgecore.verify.pair_messages import (
    answer_of,
    failure_of,
    json_of,
    request_of,
    text_of,
    turn_of,
)
from bridgecore.verify.pair_properties import ALL, PairProperty, PairViolationError
from bridgecore.verify.pair_records import (
    FAULTS,
    OF_LEASE,
    REPLICAS,
    TICKS,
    Asked,
    Attempt,
    Client,
    Context,
    LinkKey,
    Move,
    PairBounds,
    Passing,
    Process,
    Query,
    Said,
    TurnKey,
    Upstream,
)
from bridgecore.verify.store_model import StoreModel
from bridgecore.wire.requests import parse_create
from bridgecore.wire.responses import EventKind

_P = PairProperty
_SECRET: Final = b"a secret of the cluster, long enough"
_TENANT: Final = "tenant"
_SCOPE: Final = named_scope(_TENANT)
_NAMES: Final = ("a", "b")
_URLS: Final = tuple(PeerUrl.parse(f"http://{name}:81") for name in _NAMES)


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
    """Two bridges and their environment. A new one has just started both processes; what they do
    first is under way (``pair_moves.started`` lets it happen).

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

    # ------------------------------------------------------------ what is known of a replica

    def takes_turns(self, replica: int) -> bool:
        """Whether clients reach ``replica``."""
        process = self.processes[replica]
        return process.state is not None and not process.paused and not process.draining

    def is_paused(self, replica: int) -> bool:
        """Whether ``replica`` handles nothing now."""
        return self.processes[replica].paused

    def is_due(self, replica: int) -> bool:
        """Whether ``replica`` runs and has a deadline that has come."""
        process = self.processes[replica]
        if process.state is None or process.paused:
            return False
        return process.state.due is not None and process.state.due <= self.now

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
                self._leave((self.attempts[number].replica, turn_of(number)))
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
                if not self.is_due(replica):
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
                if asked.answer is None and not isinstance(asked.question, OF_LEASE):
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
        known = client.last is not None and self.conversation_of(client.last) is not None
        made = Attempt(attempt, number, replica, (*client.context, text), client.last, known)
        branch = self._branches_off(replica, made)
        self.attempts[attempt] = attrs.evolve(made, branch=branch)
        self.clients[number] = attrs.evolve(client, attempt=attempt)
        turn = turn_of(attempt)
        self.turns[replica, turn] = attempt, None
        request = request_of(text, client.last)
        self._tell(replica, TurnReceived(turn, request, [], scope=_TENANT))

    def _leave(self, turn: TurnKey) -> None:
        """Report that the client of a turn, or the sender of a forward, is gone. In the same call
        the turn may end because of what was due before; that answer reaches no one."""
        del self.turns[turn]
        self.leaving = turn
        self._tell(turn[0], TurnLeft(turn[1]))
        self.leaving = None

    def conversation_of(self, response: str) -> bytes | None:
        """The conversation of ``response`` in the store; None: it is not there."""
        return self.store.conversation_of(_SCOPE, response)

    def is_stored(self, response: str) -> bool:
        """Whether the store has ``response``."""
        return self.conversation_of(response) is not None

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
            self._tell(replica, MessagesReceived(number, [json_of(event)]))
            return
        messages = answer_of(attempt)
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
        turn = turn_of(one.attempt) + number
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
            messages = (failure_of(effect.error, begun=begun),)
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
            lease, before = question.owner.incarnation, question.instead
            self._set(replica, lease=lease, before=before, until=None)
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
        texts = tuple(map(text_of, frame["input"]))
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
        process, key = self.processes[replica], self.conversation_of(anchor or "")
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
