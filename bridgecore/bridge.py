"""Routes turns to conversations and upstream links: messages in, effects out.

What belongs here: registries and dispatch. A ``Bridge`` knows which conversation a turn or a link
belongs to, which conversations form a family (see ``continuity.memory.Family``), and the earliest
deadline of each. It hands each event to the conversation concerned and keeps the registries in step
with the effects that come back. It decides nothing itself:

* what happens within one conversation: ``bridgecore.conversation``;
* which session gets a turn, and whether there is room for another: ``bridgecore.admission``;
* what is known about responses: ``bridgecore.continuity``;
* what to do about a loss: ``bridgecore.recovery``.

Its events and effects are those of ``bridgecore.messages`` with request bodies parsed; embedders
use it through ``bridgecore.gateway``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from typing import TypeAlias, assert_never, get_args

from bridgecore.admission.families import Families, LatestTurn
from bridgecore.admission.limits import Full, Resident, admit, longest_spare
from bridgecore.admission.peers import Peers
from bridgecore.admission.placement import Arrival, Branch, Kin, Seat, route
from bridgecore.api_error import NOT_DISPATCHED, ApiError, api_error, render_answer
from bridgecore.config import Config, Fallback, Store
from bridgecore.continuity.accounts import Accounts
from bridgecore.continuity.aliases import Alias
from bridgecore.continuity.memory import Memory, TurnContext
from bridgecore.continuity.refused import RefusedFrames
from bridgecore.conversation import Conversation, ForwardTarget, Returned, Shared
from bridgecore.errors import ConfigError, LocalProtocolError
from bridgecore.intake import Arriving, Intake, Resolver, Stage
from bridgecore.messages import (
    AnswerEvents,
    BridgeEffect,
    BridgeEvent,
    BridgeTimeout,
    CloseLink,
    ContextPrepared,
    ContextRequested,
    ContextUnavailable,
    DrainStarted,
    FailAnswer,
    KnownResponse,
    LinkFrameSent,
    LinkLost,
    LinkOpened,
    MessagesReceived,
    OpenLink,
    ProcessStarted,
    ResponseDeleted,
    SocketsExhausted,
    StoreAnswered,
    TurnBlocked,
    TurnLeft,
    TurnReceived,
    TurnResolved,
)
from bridgecore.ownership.forwards import Forward
from bridgecore.ownership.holdings import Holdings
from bridgecore.ownership.store import Answer
from bridgecore.recovery import effects as fx
from bridgecore.recovery.checks import EventCheck, check_time
from bridgecore.recovery.failure import Evidence, TimedOut, classify
from bridgecore.recovery.refusals import SocketRefusals
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import Phase, SessionState
from bridgecore.recovery.timers import Deadline, Timer
from bridgecore.reference import Reference
from bridgecore.relay import Relay
from bridgecore.replica import (
    FenceConversation,
    ForwardTurn,
    PlaceTurn,
    RefuseTurn,
    Replica,
    ReplicaEffect,
)
from bridgecore.statevalue import CONVERSATION, Compared, Value, fields_of
from bridgecore.telemetry import Log, LogLevel
from bridgecore.telemetry import metrics as mt
from bridgecore.tenancy import foreign_reference
from bridgecore.timer_queue import TimerQueue
from bridgecore.turns import RoutedTurn
from bridgecore.wire.decisions import CountedSession, Recorder, logged_id
from bridgecore.wire.headers import Headers, check_headers
from bridgecore.wire.responses import EventKind


class Bridge:
    """All conversations of one process.

    ``config``: its settings. ``resolver``: how the response that a turn continues is looked up, see
    ``bridgecore.intake``. ``seed``: random bytes, new for each process, for the names that other
    replicas see of it.
    """

    def __init__(
        self, config: Config, *, resolver: Resolver = Resolver.MEMORY, seed: bytes = b""
    ) -> None:
        """Raises ConfigError if ``config`` is no Config."""
        if not isinstance(config, Config):
            raise ConfigError(f"a Bridge needs a Config, not {config!r:.100}")
        self._config = config
        self._policy = config.session_policy
        self._memory = Memory(config)
        self._intake = Intake(config, self._memory, config.turn_timeout, resolver)
        self._refused = RefusedFrames()
        self._refused_http = RefusedFrames()
        self._sockets = SocketRefusals(
            always=config.upstream.http,
            enabled=config.fallback is Fallback.HTTP,
            period=config.fallback_period,
        )
        self._shared = Shared(
            self._policy,
            self._memory,
            self._refused,
            max_held=config.max_message,
            log_level=config.log_level,
            shortcuts=config.shortcuts,
            refused_http=self._refused_http,
            sockets=self._sockets,
        )
        self._replica: Replica | None = None
        if config.store is Store.DRIVER:
            self._replica = Replica(config, self._memory, seed)
        self._draining = False
        self._recorder = Recorder(self._policy) if config.decisions else None
        self.counts = mt.Counts() if config.metrics else None
        # Least recently used first: the order in which they are evicted.
        self._conversations: OrderedDict[int, Conversation] = OrderedDict()
        self._families = Families()
        self._turns: dict[int, Conversation] = {}  # by the number of a turn
        self._links: dict[int, Conversation] = {}  # by the number of a link
        self._forwarded: dict[int, Arriving] = {}  # turns that were forwarded, by number
        self._peers = Peers()
        self._schedule: TimerQueue[int] = TimerQueue()
        self._accounts = Accounts()  # the sum over conversations that are over
        self._out: list[BridgeEffect] = []

    # ------------------------------------------------------------ counts, for an observer

    @property
    def turns(self) -> int:
        """How many turns of clients run, wait, are being resolved, or are being committed."""
        ending = 0 if self._replica is None else self._replica.turns
        return len(self._turns) + len(self._intake) + ending

    @property
    def finished(self) -> bool:
        """Whether the process can end: after a drain, once no turn is left and the lease is given
        up."""
        return not self.turns and (self._replica is None or self._replica.gone)

    @property
    def conversations(self) -> int:
        """How many conversations have a session."""
        return len(self._conversations)

    @property
    def holdings(self) -> Holdings | None:
        """The conversations that this replica owns; None without a store."""
        return None if self._replica is None else self._replica.holdings

    @property
    def memory(self) -> Memory:
        """The memory of responses, for its size."""
        return self._memory

    @property
    def accounts(self) -> Accounts:
        """The tokens and bytes that continuity has saved and cost, over all conversations so
        far."""
        return sum((one.accounts for one in self._conversations.values()), self._accounts)

    @property
    def links(self) -> int:
        """How many links are open or being opened."""
        return len(self._links)

    def metrics(self) -> mt.Readings:
        """What was counted, and how much there is at present. Empty without ``Config.metrics``."""
        if self.counts is None:
            return {}
        sums = self.accounts
        now: dict[mt.Metric, int] = {
            mt.TURNS_RUNNING: self.turns,
            mt.CONVERSATIONS: self.conversations,
            mt.LINKS: self.links,
            mt.TRANSCRIPT_BYTES: self._memory.size,
            mt.TRANSCRIPT_RESPONSES: self._memory.responses,
            mt.REDUCED: sums.reduced,
            mt.REHYDRATED: sums.rehydrated,
            mt.WARMED: sums.warmed,
            mt.TOKENS_SAVED: sums.tokens_saved,
            mt.TOKENS_SPENT: sums.tokens_spent,
            mt.BYTES_SAVED: sums.bytes_saved,
            mt.BYTES_SPENT: sums.bytes_spent,
        }
        if self._replica is not None:
            now |= self._replica.metrics()
        return self.counts.read() | {metric: {(): value} for metric, value in now.items()}

    def snapshot(self) -> Value:
        """The state on which the next decision depends, as a hashable value, for the explorer.

        Derived from the bridge and all that it owns: see ``bridgecore.statevalue``.
        """
        return fields_of(vars(self), COMPARED)

    def next_timeout(self) -> Deadline | None:
        """When to report ``BridgeTimeout`` (ns), and why; None if there is no deadline."""
        first = self._schedule.next()
        if first is None:
            return None
        if first[1] == _MEMORY:
            return Deadline(first[0], Timer.EXPIRY)
        if first[1] == _STORE:
            return Deadline(first[0], Timer.STORE)
        if first[1] < _MEMORY:
            return Deadline(first[0], Timer.TURN)
        deadline = self._conversations[first[1]].next_timeout()
        return None if deadline is None else Deadline(first[0], deadline.reason)

    # ------------------------------------------------------------ events

    def handle(self, event: BridgeEvent, now: int) -> list[BridgeEffect]:
        """Handle an event that happened at ``now`` (ns, monotonic); return the effects, in order.

        An event about a turn or a link that is over is ignored: it may have been queued in the
        driver when that ended.

        Raises:
            LocalProtocolError: ``event`` or ``now`` has a wrong type, or the event is impossible:
                the number of a turn is in use, a query was never asked, a link was never asked
                for or is open already. The state is unchanged.
        """
        if type(event) is MessagesReceived and (answer := self._relay(event, now)) is not None:
            return [answer]
        _check_event(event)
        check_time(now)
        self._refuse_impossible(event)
        replica = self._replica
        if replica is not None:
            # First of all: if the process was paused, its lease may have ended in the meantime, and
            # nothing may be sent under it.
            self._obey(replica.timeout(now), now)
        if isinstance(event, MessagesReceived):
            self._messages_received(event, now)
        elif isinstance(event, LinkOpened | LinkLost | LinkFrameSent):
            self._link_event(event, now)
        elif isinstance(event, TurnReceived):
            self._turn_received(event, now)
        elif isinstance(event, TurnResolved):
            self._turn_resolved(event, now)
        elif isinstance(event, TurnLeft | TurnBlocked):
            self._turn_event(event, now)
        elif isinstance(event, StoreAnswered):
            if self._replica is not None:
                self._obey(self._replica.answered(event.query, event.answer, now), now)
        elif isinstance(event, ProcessStarted):
            if self._replica is not None:
                self._obey(self._replica.start(event.peer_port, now), now)
        elif isinstance(event, ResponseDeleted):
            scope, _ = self._intake.identify(event.headers, event.scope)
            deleted = self._memory.forget(scope, event.response, now)
            self._schedule.set(_MEMORY, self._memory.next_expiry())
            if replica is not None:
                self._obey(replica.forget(deleted, now), now)
        elif isinstance(event, ContextRequested):
            self._context_requested(event, now)
        elif isinstance(event, DrainStarted):
            self._draining = True
            for conversation in list(self._conversations.values()):
                self._follow(conversation, conversation.evict(now), now)
        elif isinstance(event, SocketsExhausted):
            spare = longest_spare(self._residents(), linked=True)
            if spare is not None:
                self._evict(spare, now)
        elif isinstance(event, BridgeTimeout):
            self._timeout(now)
        else:
            assert_never(event)
        if replica is not None:
            if self._draining and not self.turns:
                self._obey(replica.leave(now), now)
            self._schedule.set(_STORE, replica.next_timeout())
        out, self._out = self._out, []
        if self._recorder is not None:
            out += self._recorder.take()
        return out

    def _refuse_impossible(self, event: BridgeEvent) -> None:
        """Raise LocalProtocolError for an event that a correct driver cannot report. Called before
        any change, so that the state stays as it was."""
        if isinstance(event, _LinkEvent):
            self._refuse_impossible_of_link(event)
        elif isinstance(event, TurnReceived | TurnLeft | TurnBlocked):
            if event.turn < 0:
                raise LocalProtocolError(f"turn {event.turn}: a turn's number is 0 or more")
            if not isinstance(event, TurnReceived):
                return
            ending = self._replica is not None and event.turn in self._replica
            if event.turn in self._turns or event.turn in self._intake or ending:
                what = "runs already: its number can be used again when it has ended"
                raise LocalProtocolError(f"turn {event.turn} {what}")
            check_headers(event.headers, f"turn {event.turn}")
        elif isinstance(event, ResponseDeleted | ContextRequested):
            check_headers(event.headers, type(event).__name__)
        elif isinstance(event, TurnResolved) and not self._intake.was_asked(event.query):
            raise LocalProtocolError(f"query {event.query} was never asked by ResolveTurn")
        elif isinstance(event, StoreAnswered) and not (
            self._replica is not None and self._replica.was_asked(event.query)
        ):
            raise LocalProtocolError(f"query {event.query} was never asked by AskStore")

    def _refuse_impossible_of_link(self, event: _LinkEvent) -> None:
        if not 0 < event.link <= self._shared.numbers.last:
            raise LocalProtocolError(f"link {event.link} was never asked for by OpenLink")
        conversation = self._links.get(event.link)
        if conversation is None or isinstance(event, LinkLost):
            return
        opening = conversation.session.state.phase is Phase.RECONNECTING
        if isinstance(event, LinkOpened):
            if not opening:
                raise LocalProtocolError(f"link {event.link} was opened before")
            return
        if opening:
            raise LocalProtocolError(f"{type(event).__name__} before LinkOpened({event.link})")
        if isinstance(event, MessagesReceived) and not set(map(type, event.messages)) <= _BYTES:
            raise LocalProtocolError(f"link {event.link}: messages must be a list of bytes")

    # ------------------------------------------------------------ dispatch

    def _relay(self, event: MessagesReceived, now: int) -> AnswerEvents | None:
        """The answer to a read of plain output, for which nothing is decided: registries and
        deadlines stay as they are. None: not such a read, or an event that has to be checked."""
        if event.lost is not None or type(now) is not int or now < 0:
            return None
        if type(event.link) is not int or type(event.messages) is not list:
            return None
        relay = self.relay_of(event.link)
        return None if relay is None else relay.take(event.messages, now)

    def relay_of(self, link: int) -> Relay | None:
        """The shortcut for the answer that is running on ``link``; None if there is none now."""
        conversation = self._links.get(link) if self._config.shortcuts else None
        return None if conversation is None else conversation.relay

    def _messages_received(self, event: MessagesReceived, now: int) -> None:
        conversation = self._links.get(event.link)
        if conversation is None:
            return  # the link was closed before this was reported
        before = conversation.session.state
        effects = conversation.received(event.messages, event.lost, now)
        if conversation.session.state is before:
            # The hot path. No decision was made, so the registries and deadlines are up to date.
            self._out += effects
            return
        if event.lost is not None:
            self._links.pop(event.link, None)
        self._follow(conversation, effects, now)

    def _link_event(self, event: LinkOpened | LinkLost | LinkFrameSent, now: int) -> None:
        conversation = self._links.get(event.link)
        if conversation is None:
            return  # the link was closed before this was reported
        if self.counts is not None and not isinstance(event, LinkFrameSent):
            self._count_link(conversation, event, self.counts)
        if isinstance(event, LinkOpened):
            effects = conversation.opened(event.messages, now)
        elif isinstance(event, LinkFrameSent):
            effects = conversation.frame_sent(event.whole, now)
        else:
            del self._links[event.link]
            effects = conversation.lost(event, now)
        self._follow(conversation, effects, now)

    def _count_link(
        self, conversation: Conversation, event: LinkOpened | LinkLost, counts: mt.Counts
    ) -> None:
        to = "upstream" if conversation.owner is None else "replica"
        if isinstance(event, LinkOpened):
            result = "opened"
        elif conversation.session.state.phase is Phase.RECONNECTING:
            result = "failed"
        else:
            result = "lost"
        counts.add(mt.CONNECTIONS, to, result)

    def _turn_event(self, event: TurnLeft | TurnBlocked, now: int) -> None:
        conversation = self._turns.get(event.turn)
        if conversation is None:
            if isinstance(event, TurnLeft):
                self._left_on_its_way(event)
            return  # it has ended, or its answer has not begun: nothing to pause
        if isinstance(event, TurnLeft):
            self._over(event.turn)
            effects = conversation.abandon(event.turn, event.error, now)
        elif event.blocked:
            effects = conversation.block(event.turn, now)
        else:
            effects = conversation.unblock(event.turn, now)
        self._follow(conversation, effects, now)

    def _timeout(self, now: int) -> None:
        for key in self._schedule.due(now):
            if key == _MEMORY:
                self._memory.expire(now)
                self._schedule.set(_MEMORY, self._memory.next_expiry())
            elif key == _STORE:
                pass  # ``handle`` has begun with what is due there, and sets the next time
            elif key < _STORE:
                turn = self._intake.leave(_turn_of(key))
                if turn is not None:
                    if self._replica is not None:
                        self._replica.left(turn.id)
                    self._refuse_as_late(turn)
            else:
                conversation = self._conversations[key]
                self._follow(conversation, conversation.timeout(now), now)

    def _evict(self, key: int, now: int) -> None:
        conversation = self._conversations[key]
        self._follow(conversation, conversation.evict(now), now)

    def _follow(self, conversation: Conversation, effects: list[BridgeEffect], now: int) -> None:
        """Pass on the effects of a conversation, and update the registries accordingly: its turns
        that have ended, the link that it opened or closed, its end, its next deadline."""
        for effect in effects:
            if isinstance(effect, AnswerEvents):
                if effect.events[-1].kind is EventKind.ENDED:
                    self._schedule.set(_MEMORY, self._memory.next_expiry())
                    self._end(conversation, effect, now)
                    continue
            elif isinstance(effect, FailAnswer):
                if conversation.owner is not None:
                    self._forward_failed(conversation, conversation.owner, effect.turn)
                self._over(effect.turn)
            elif isinstance(effect, OpenLink):
                self._links[effect.link] = conversation
            elif isinstance(effect, CloseLink):
                self._links.pop(effect.link, None)  # absent if the same read had its loss
            self._out.append(effect)
        if conversation.returned is not None:
            self._take_back(conversation, conversation.returned, now)
            return
        if conversation.retired:
            self._conversations.pop(conversation.id, None)
            self._families.leave(conversation.id)
            self._accounts += conversation.accounts
            self._schedule.set(conversation.id, None)
            self._peers.leave(conversation.id)
            if conversation.owner is None and self._replica is not None:
                self._obey(self._replica.retire(conversation.id, now), now)
            return
        deadline = conversation.next_timeout()
        self._schedule.set(conversation.id, None if deadline is None else deadline.at)
        if (self._draining or conversation.fenced) and conversation.spare:
            self._evict(conversation.id, now)

    def _end(self, conversation: Conversation, answer: AnswerEvents, now: int) -> None:
        """Show the end of a turn; if its response can be continued and there is a store, only once
        that has it."""
        ids = conversation.remembered.pop(answer.turn, None)
        if ids is not None and self._replica is not None:  # its owner commits it
            self._replica.forward_ended(answer.turn, conversation.scope, ids)
        unstored = conversation.unstored.pop(answer.turn, None)
        self._over(answer.turn)
        if unstored is None or self._replica is None:
            self._out.append(answer)
            return
        *before, last = answer.events
        if before:
            self._out.append(AnswerEvents(answer.turn, before))
        end = AnswerEvents(answer.turn, [last])
        self._obey(self._replica.commit(end, unstored, conversation.key, now), now)

    def _over(self, turn: int) -> None:
        """A turn has ended, or leaves its conversation."""
        del self._turns[turn]
        if self._forwarded.pop(turn, None) is not None and self._replica is not None:
            self._replica.forward_ended(turn)

    # ------------------------------------------------------------ the store

    def _obey(self, effects: list[ReplicaEffect], now: int) -> None:
        """Carry out what this replica has to do about its ownership."""
        for effect in effects:
            if isinstance(effect, PlaceTurn | ForwardTurn | RefuseTurn):
                turn = self._intake.leave(effect.turn)
                if turn is None:
                    continue
                self._schedule.set(_key_of(turn.id), None)
                if isinstance(effect, PlaceTurn):
                    self._bring_in(turn, now, effect.claimed)
                elif isinstance(effect, ForwardTurn):
                    self._forward(turn, effect.owner, now)
                else:
                    self._refuse(turn, effect.error)
            elif isinstance(effect, FenceConversation):
                conversation = self._conversations.get(effect.number)
                if conversation is not None:  # else it was evicted by an effect before this one
                    self._follow(conversation, conversation.fence(now), now)
            else:
                if isinstance(effect, ContextPrepared):  # from what was read from the store
                    self._schedule.set(_MEMORY, self._memory.next_expiry())
                self._out.append(effect)

    def has(self, response: str, headers: Headers, scope: str | None, now: int) -> bool:
        """Whether ``response`` is known to be of the tenant that ``headers`` or ``scope`` name."""
        return self._memory.has(self._intake.identify(headers, scope)[0], response, now)

    def _context_requested(self, event: ContextRequested, now: int) -> None:
        """Prepare a request about a context; if there is a store, once that was asked."""
        scope, headers = self._intake.identify(event.headers, event.scope)
        shared = self._config.shared_credential
        reference = Reference.read(event.query, scope, event.body, headers, shared=shared)
        if isinstance(reference, ContextUnavailable):
            self._out.append(reference)
        elif reference is None:
            self._out.append(ContextPrepared(event.query, event.body))
        elif self._replica is None:
            self._out.append(reference.prepare(self._memory, now))
        else:
            self._obey(self._replica.look_up(reference, now), now)

    # ------------------------------------------------------------ turns of other replicas

    def _forward(self, arriving: Arriving, to: ForwardTarget, now: int) -> None:
        """Forward a turn to the replica that owns what it continues."""
        replica = self._replica
        assert replica is not None, "without a store no other replica is known"
        conversation = self._connection_to(to, arriving.scope, now)
        if conversation is None:
            replica.forward_ended(arriving.id)
            self._refuse_for_room(arriving)
            return
        self._conversations.move_to_end(conversation.id)
        self._turns[arriving.id] = conversation
        self._forwarded[arriving.id] = arriving
        fields: dict[str, str | int] = {"session": conversation.id, "owner": str(to.url)}
        self._log_turn(LogLevel.INFO, "turn.forwarded", arriving, **fields)
        turn = RoutedTurn(
            arriving.id,
            self._intake.foreign(arriving),
            arriving.request_id,
            arriving.deadline,
            sign=partial(replica.sign, arriving),
        )
        self._follow(conversation, conversation.submit(turn, [], now), now)

    def _connection_to(self, to: ForwardTarget, scope: str, now: int) -> Conversation | None:
        """A session that leads to another replica and runs no turn; None if there is no room for
        one."""
        for number in self._peers.members(to.lease, scope):
            if (found := self._conversations[number]).session.state.idle:
                return found
        if not self._make_room(now):
            return None
        conversation = self._new_session(scope, [], owner=to)
        self._peers.add(conversation.id, to.lease, scope)
        return conversation

    def _forward_failed(self, conversation: Conversation, owner: ForwardTarget, turn: int) -> None:
        """A turn that was forwarded to ``owner`` ends with an error."""
        replica = self._replica
        assert replica is not None, "without a store no turn is forwarded"
        misdirected = conversation.misdirected
        self._out += replica.forward_failed(self._forwarded[turn], owner, misdirected=misdirected)

    def _take_back(self, conversation: Conversation, returned: Returned, now: int) -> None:
        """Route a turn again that the owner of its conversation has not sent."""
        replica, owner = self._replica, conversation.owner
        assert replica is not None, "without a store no turn is forwarded"
        assert owner is not None, "only what was forwarded is returned"
        conversation.returned = None
        arriving = self._forwarded[returned.turn]
        self._over(returned.turn)
        self._evict(conversation.id, now)  # it leads to a replica that is not the owner
        self._hold(arriving)
        self._obey(replica.declined(arriving, owner, returned, now), now)

    # ------------------------------------------------------------ intake of turns

    def _turn_received(self, event: TurnReceived, now: int) -> None:
        turn = self._intake.receive(event, now)
        if turn.stage is Stage.RESOLVING:
            self._schedule.set(_key_of(turn.id), turn.deadline)
            self._out.append(self._intake.question(turn))
            self._log_turn(LogLevel.DEBUG, "turn.resolving", turn, query=turn.query)
        else:
            self._route(turn, now)

    def _route(self, turn: Arriving, now: int) -> None:
        """Place a turn whose look-up, if there was one, is complete; what it continues may have to
        be claimed first, or be another replica's."""
        replica = self._replica
        if replica is not None and not replica.takes(turn, now):
            self._refuse(turn, NOT_DISPATCHED)
        elif replica is not None and (lookup := replica.lookup(turn, now)) is not None:
            self._hold(turn)
            self._obey(replica.resume(turn, lookup, now), now)
        else:
            self._bring_in(turn, now)

    def _hold(self, turn: Arriving) -> None:
        """Keep a turn until this replica knows who owns what it continues."""
        self._intake.hold(turn)
        self._schedule.set(_key_of(turn.id), turn.deadline)
        self._log_turn(LogLevel.DEBUG, "turn.resolving", turn)

    def _log_turn(self, level: LogLevel, event: str, turn: Arriving, **fields: str | int) -> None:
        if level < self._config.log_level:
            return
        about: dict[str, str | int] = {"turn": turn.id, "request_id": turn.request_id}
        self._out.append(Log(level, event, {**about, **fields}))

    def _turn_resolved(self, event: TurnResolved, now: int) -> None:
        turn = self._intake.resolved(event)
        if turn is None:
            fields: dict[str, str | int] = {"query": event.query, "reason": _ANSWERED_LATE}
            self._out.append(Log(LogLevel.DEBUG, "turn.ignored", fields))
            return
        self._schedule.set(_key_of(turn.id), None)
        if turn.deadline <= now:
            self._refuse_as_late(turn)
        else:
            self._route(turn, now)

    def _left_on_its_way(self, event: TurnLeft) -> None:
        turn = self._intake.leave(event.turn)
        if self._replica is not None:
            self._replica.left(event.turn)
        if turn is None:
            return
        self._schedule.set(_key_of(turn.id), None)
        if event.error is None:
            self._log_turn(LogLevel.INFO, "turn.abandoned", turn)
        else:
            self._log_turn(LogLevel.WARNING, "turn.cut_off", turn, code=event.error.code)

    def _bring_in(self, arriving: Arriving, now: int, claimed: bytes | None = None) -> None:
        """Place a resolved turn, make room if it needs a session of its own, and submit it.
        ``claimed``: the conversation that was claimed for it."""
        if self._config.shared_credential:
            foreign = foreign_reference(self._memory, arriving.scope, arriving.request, now)
            if foreign is not None:
                if self._replica is not None:
                    self._obey(self._replica.decline(claimed, now), now)
                self._refuse(arriving, foreign)
                return
        recall = self._intake.recall(arriving, now)
        conversation = self._place(recall, arriving.headers, now, claimed)
        if self._replica is not None:
            self._obey(self._replica.decline(claimed, now), now)
        if conversation is None:
            self._refuse_for_room(arriving)
            return
        if recall.alias is None or recall.alias.conversation not in self._conversations:
            self._memory.belongs(recall, conversation.id)
        self._conversations.move_to_end(conversation.id)
        self._families.note(conversation.id, _latest(recall))
        self._turns[arriving.id] = conversation
        turn = RoutedTurn(arriving.id, recall, arriving.request_id, arriving.deadline)
        self._follow(conversation, conversation.submit(turn, arriving.headers, now), now)

    def _place(
        self, recall: TurnContext, headers: Headers, now: int, claimed: bytes | None
    ) -> Conversation | None:
        """The conversation for the turn, possibly a new one; None if there is no room for one."""
        where = route(
            _arrival(recall),
            candidates=(
                (one.match.node.response_id, self._seat(one.alias)) for one in recall.candidates
            ),
            home=self._seat(recall.alias),
            family=self._kin(recall, now),
        )
        if isinstance(where, Branch):
            room = self._make_room(now)
            return self._new_conversation(recall.scope, headers, claimed) if room else None
        if where.inject is not None:
            recall.inject(recall.candidates[where.inject])
        return self._conversations[where.key]

    def _seat(self, alias: Alias | None) -> Seat | None:
        """The session that made a response, as placement sees it; None if it is gone."""
        found = self._conversations.get(alias.conversation) if alias is not None else None
        if found is None:
            return None
        state = found.session.state
        return Seat(found.id, state.idle, state.cached_response)

    def _kin(self, recall: TurnContext, now: int) -> Iterator[Kin]:
        """The sessions of the turn's family, latest used first."""
        members = self._families.members(recall.family.key) if recall.family is not None else ()
        for key in members:
            conversation, latest = self._conversations[key], self._families.latest(key)
            idle, live = conversation.session.state.idle, conversation.session.state.cached_response
            dispensable = idle and (
                live is None or latest.repeats or self._memory.keeps(conversation.scope, live, now)
            )
            yield Kin(latest.continued, dispensable, key, idle)

    def _make_room(self, now: int) -> bool:
        """Evict an idle conversation if the limit is reached; False if none is idle."""
        limit = self._config.max_sessions
        admission = admit(len(self._conversations), limit, self._residents())
        if isinstance(admission, Full):
            return False
        if admission.evict is not None:
            self._evict(admission.evict, now)
        return True

    def _residents(self) -> Iterator[Resident]:
        for one in self._conversations.values():
            yield Resident(one.id, one.spare, one.link is not None)

    def _new_conversation(
        self, scope: str, headers: Headers, claimed: bytes | None
    ) -> Conversation:
        conversation = self._new_session(scope, headers)
        if self._replica is not None:
            conversation.key = self._replica.adopt(conversation.id, claimed)
        return conversation

    def _new_session(
        self, scope: str, headers: Headers, owner: ForwardTarget | None = None
    ) -> Conversation:
        """A conversation with a new session, which leads to the upstream or to ``owner``."""
        number = self._shared.numbers.next()
        state = SessionState(remote=owner is not None)
        if self._recorder is not None:
            session = self._recorder.session(number, state, self.counts)
        elif self.counts is not None:
            session = CountedSession(self._policy, state, self.counts)
        else:
            session = Session(self._policy, state)
        conversation = Conversation(number, scope, session, headers, self._shared, owner=owner)
        self._conversations[number] = conversation
        return conversation

    def _refuse_for_room(self, turn: Arriving) -> None:
        message = "The bridge serves as many conversations as it can. Retry later."
        self._refuse(turn, api_error(503, fx.FailureReply.OVERLOADED.value, message))

    def _refuse_as_late(self, turn: Arriving) -> None:
        """Refuse a turn whose time was used up before it was resolved."""
        failure = classify(TimedOut(Timer.TURN))
        anchor = turn.request.previous_response_id
        self._refuse(turn, render_answer(fx.FailureReply.REQUEST_TIMEOUT, failure, None, anchor))

    def _refuse(self, turn: Arriving, error: ApiError) -> None:
        """Refuse a turn that belongs to no conversation yet."""
        self._out.append(FailAnswer(turn.id, error))
        self._log_turn(
            LogLevel.WARNING,
            "turn.refused",
            turn,
            status=error.status,
            code=error.code,
            anchor=logged_id(turn.request.previous_response_id),
        )


_LinkEvent: TypeAlias = MessagesReceived | LinkOpened | LinkLost | LinkFrameSent
_check_event = EventCheck(
    BridgeEvent,
    "bridgecore.messages",
    KnownResponse,
    Forward,
    *get_args(Evidence),
    *get_args(Answer),
)
_BYTES = frozenset({bytes})
_ANSWERED_LATE = "its turn was abandoned, refused for its deadline, or resolved before"

# Keys of the timer queue: 0 for the memory, above 0 the number of a conversation, -1 for the store,
# below that a turn that is being resolved (numbers of turns begin at 0).
_MEMORY = 0
_STORE = -1


def _key_of(turn: int) -> int:
    """The key of a turn that is being resolved."""
    return -2 - turn


def _turn_of(key: int) -> int:
    """The turn of such a key."""
    return -2 - key


# How the attributes of a bridge are compared; all that are not listed are compared as they are.
COMPARED = Compared(
    names={"_conversations": CONVERSATION},
    left_out={
        "_config": "never changes",
        "_policy": "never changes",
        "_shared": "its parts are compared here; the next number is only a name",
        "_recorder": "records decisions and takes no part in them",
        "_turns": "an index over the turns of the conversations",
        "_links": "an index over the links of the conversations",
        # Of several idle ones that lead to one replica any is as good as another.
        "_peers": "an index over the conversations",
        "_schedule": "an index over the deadlines of sessions, turns and the memory",
        "_accounts": "sums for an observer",
        "counts": "for an observer",
        "_out": "empty between two calls",
    },
)


def _arrival(recall: TurnContext) -> Arrival:
    """What placement reads of a turn."""
    repeats = recall.family is not None and recall.family.repeats
    return Arrival(recall.standing, recall.anchor, bool(recall.candidates), repeats)


def _latest(recall: TurnContext) -> LatestTurn:
    """What placement reads of a session's latest turn when it places a later one."""
    family = recall.family
    return LatestTurn(
        family=family.key if family is not None else None,
        continued=recall.anchor is not None,
        repeats=family is not None and family.repeats,
    )
