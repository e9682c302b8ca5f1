"""Who is who: turns, conversations and links. Messages in, effects out.

What belongs here: the second door for embedders. A ``Bridge`` gives each turn to a conversation,
each conversation a ``Session`` (which decides), each connection generation of it a link, and
carries what the session decides to the one turn and the one link it is meant for. It knows JSON
events, but no bytes of HTTP or WebSocket, and it decides nothing about a loss. What a driver
reports, and what it is told, is in ``bridgecore.messages``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import assert_never

import attrs

from bridgecore.admission.placement import Placement, place
from bridgecore.config import Ambiguous, Config, Rotation, replaying
from bridgecore.continuity.accounts import Accounts, account_of
from bridgecore.continuity.aliases import credential_scope
from bridgecore.continuity.memory import Manner, Memory, Recall
from bridgecore.messages import (
    AnswerError,
    AnswerEvents,
    BridgeEffect,
    BridgeEvent,
    BridgeTimeout,
    CloseLink,
    LinkFrameSent,
    LinkLost,
    LinkOpened,
    LinksEvicted,
    MessagesReceived,
    OpenLink,
    PauseLink,
    SendFrame,
    SocketsExhausted,
    TurnBlocked,
    TurnLeft,
    TurnReceived,
)
from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.failure import ErrorFrame, Malformed
from bridgecore.recovery.policy import Policy, Timeouts
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import Phase
from bridgecore.recovery.timers import Deadline, Timer
from bridgecore.rendering import http_error, render_answer
from bridgecore.schedule import Schedule
from bridgecore.wire.decisions import Recorder, hashed
from bridgecore.wire.responses import (
    EventKind,
    UpstreamEvent,
    outcome_of,
    output_items,
    read_error,
    read_event,
    read_usage,
    response_id,
)
from bridgecore.wire.transport import Log, LogLevel

# What of a client's head goes upstream. Everything else stays here: hop-by-hop headers, cookies
# and whatever a proxy put in must not leak to another host.
_UPSTREAM_HEADERS = frozenset(
    {
        b"authorization",
        b"openai-organization",
        b"openai-project",
        b"openai-beta",
        b"chatgpt-account-id",
        b"originator",
        b"session-id",
        b"thread-id",
        b"user-agent",
        b"x-client-request-id",
    }
)
# Events that came before response.created wait for it: a client helper insists that it be first.
_MAX_EARLY = 256  # events


@attrs.define(eq=False)
class _Turn:
    """A turn and what the bridge has to remember of it."""

    id: int
    recall: Recall
    conversation: _Conversation
    error: ErrorFrame | None = None  # the upstream's own words about it, the latest ones
    response: str | None = None  # the id of its response, once created
    items: list[bytes] = attrs.Factory(list)  # its response.output_item.done events
    form: fx.Form = fx.Form.AS_IS  # in which it was sent last
    sent: int = 0  # bytes of that frame
    warms: bool = False  # it is the bridge's own, to warm a socket: no client hears of it


@attrs.define(eq=False)
class _Conversation:
    """A session and what it stands for: one client's chain of responses."""

    id: int
    scope: str
    session: Session
    headers: list[tuple[bytes, bytes]]
    link: int | None = None  # of the present generation
    blocked_by: int | None = None  # the turn whose client is too slow: its link is not read
    sends: int = 0  # frames that were sent, on all links
    early: list[UpstreamEvent] = attrs.Factory(list)
    early_size: int = 0  # bytes
    unmatched: int = 0  # upstream events that no turn caused (invariant 27)
    manner: Manner | None = None  # of its latest turn, if sockets are to be warmed
    warmed: bool = False  # and nobody has used it since: an idle one is not warmed for ever
    stand_in: tuple[str, str] | None = None  # a response, and what the present socket knows it as


@attrs.define(eq=False)
class _Link:
    conversation: _Conversation
    generation: int


class Bridge:
    """Turns to sessions to links. See ``Config`` for what it is told."""

    def __init__(self, config: Config) -> None:
        self._config = config
        policy = config.policy
        if config.ambiguous is Ambiguous.REPLAY:
            policy = replaying(policy)
        self._policy: Policy = attrs.evolve(
            policy,
            timeouts=Timeouts(
                connect=config.connect_timeout,
                created=config.created_timeout,
                idle=config.idle_timeout,
                turn=config.turn_timeout,
                lifetime=config.upstream_lifetime,
                expiry=config.session_idle,
            ),
            budgets=attrs.evolve(
                config.policy.budgets,
                waiting=config.max_waiting,
                warm=config.rotation is Rotation.WARM,
            ),
        )
        self._turns: dict[int, _Turn] = {}
        self._links: dict[int, _Link] = {}
        self._conversations: OrderedDict[int, _Conversation] = OrderedDict()
        self._memory = Memory(config)
        self._schedule: Schedule[int] = Schedule()
        self._serial = 0
        self._out: list[BridgeEffect] = []
        self._recorder = Recorder(self._policy) if config.decisions else None
        self._accounts = Accounts()

    # ------------------------------------------------------------ what an observer may ask

    @property
    def turns(self) -> int:
        """How many turns of clients run or wait."""
        return sum(not turn.warms for turn in self._turns.values())

    @property
    def conversations(self) -> int:
        """How many conversations have a session."""
        return len(self._conversations)

    @property
    def memory(self) -> Memory:
        """What is known about responses, for its size."""
        return self._memory

    @property
    def accounts(self) -> Accounts:
        """What continuity has saved and cost so far."""
        return self._accounts

    @property
    def links(self) -> int:
        """How many links are open or being opened."""
        return len(self._links)

    def snapshot(self) -> tuple[object, ...]:
        """All that the next decision depends on, as a value: conversations, the one used longest
        ago first, turns, links, and what is remembered. For those who compare bridges."""
        return (
            tuple(
                (one.id, one.scope, one.session.state, one.link, one.blocked_by, len(one.early))
                for one in self._conversations.values()
            ),
            tuple(
                (turn.id, turn.conversation.id, turn.recall.standing, turn.recall.anchor)
                for turn in self._turns.values()
            ),
            tuple(
                (number, link.generation, link.conversation.id)
                for number, link in self._links.items()
            ),
            self._memory.snapshot(),
        )

    def next_timeout(self) -> Deadline | None:
        """When ``BridgeTimeout`` is to be reported if nothing else happens first."""
        first = self._schedule.next()
        if first is None:
            return None
        if first[1] == _MEMORY:
            return Deadline(first[0], Timer.EXPIRY)
        deadline = self._conversations[first[1]].session.next_timeout()
        return None if deadline is None else Deadline(first[0], deadline.reason)

    # ------------------------------------------------------------ events

    def handle(self, event: BridgeEvent, now: int) -> list[BridgeEffect]:
        """Take in what happened at ``now`` (ns); what to do about it, in order."""
        if isinstance(event, MessagesReceived):
            self._messages_received(event, now)
        elif isinstance(event, TurnReceived):
            self._turn_received(event, now)
        elif isinstance(event, TurnLeft):
            turn = self._turns.pop(event.turn, None)
            if turn is not None:
                self._step(turn.conversation, ev.TurnAbandoned(turn.id), now)
                self._log(LogLevel.INFO, "turn.abandoned", turn.conversation, turn=turn.id)
        elif isinstance(event, TurnBlocked):
            self._turn_blocked(event, now)
        elif isinstance(event, LinkOpened | LinkLost | LinkFrameSent):
            self._link_event(event, now)
        elif isinstance(event, LinksEvicted):
            for conversation in list(self._conversations.values()):
                self._evict(conversation, now)
        elif isinstance(event, SocketsExhausted):
            idle = self._idle_longest(with_link=True)
            if idle is not None:
                self._evict(idle, now)
        elif isinstance(event, BridgeTimeout):
            for key in self._schedule.due(now):
                if key == _MEMORY:
                    self._memory.expire(now)
                    self._schedule.set(_MEMORY, self._memory.next_expiry())
                    continue
                conversation = self._conversations[key]
                before = conversation.session.state
                effects = conversation.session.handle_timeout(now)
                if conversation.session.state is not before:
                    self._log(LogLevel.DEBUG, "session.deadline", conversation)
                self._carry_out(conversation, effects, now, None)
        else:
            assert_never(event)
        out, self._out = self._out, []
        if self._recorder is not None:
            out += self._recorder.take()
        return out

    def _turn_received(self, event: TurnReceived, now: int) -> None:
        scope = credential_scope(event.headers)
        headers = [header for header in event.headers if header[0] in _UPSTREAM_HEADERS]
        recall = self._memory.recall(scope, event.request, event.headers, now)
        conversation = self._place(recall)
        if conversation is None:
            if not self._make_room(now):
                message = "The bridge has as many conversations as it can hold. Retry later."
                error = http_error(503, fx.Answer.OVERLOADED.value, message)
                self._out.append(AnswerError(event.turn, error))
                return
            conversation = self._new_conversation(scope, headers)
        elif conversation.session.state.running is None:
            conversation.headers = headers
        if recall.alias is None or recall.alias.conversation not in self._conversations:
            self._memory.belongs(recall, conversation.id)
        self._conversations.move_to_end(conversation.id)
        conversation.warmed = False
        turn = _Turn(event.turn, recall, conversation)
        self._turns[turn.id] = turn
        standing = recall.standing
        self._log(
            LogLevel.DEBUG, "turn.received", conversation, turn=turn.id, standing=standing.value
        )
        submitted = ev.Turn(turn.id, standing, recall.anchor)
        self._step(conversation, ev.TurnSubmitted(submitted), now)

    def _place(self, recall: Recall) -> _Conversation | None:
        """The conversation that the turn joins; None for one of its own."""
        alias = recall.alias
        found = self._conversations.get(alias.conversation) if alias is not None else None
        state = found.session.state if found is not None else None
        if recall.match is not None and (
            state is None or not state.idle or state.live_anchor != recall.anchor
        ):
            recall.forgo_anchor()  # history was recognised, but no socket has it at hand
        if found is None or state is None:
            return None
        placement = place(
            recall.standing,
            known=True,
            idle=state.idle,
            displaces=state.live_anchor is not None and state.live_anchor != recall.anchor,
        )
        return found if placement is Placement.JOIN else None

    def _new_conversation(self, scope: str, headers: list[tuple[bytes, bytes]]) -> _Conversation:
        self._serial += 1
        if self._recorder is None:
            session = Session(self._policy)
        else:
            session = self._recorder.session(self._serial)
        conversation = _Conversation(self._serial, scope, session, headers)
        self._conversations[conversation.id] = conversation
        return conversation

    def _make_room(self, now: int) -> bool:
        """Evict the idle conversation that was used longest ago, if there are too many."""
        if len(self._conversations) < self._config.max_sessions:
            return True
        idle = self._idle_longest(with_link=False)
        if idle is None:
            return False
        self._evict(idle, now)
        return True

    def _idle_longest(self, *, with_link: bool) -> _Conversation | None:
        """The conversation without a client's turn that was used longest ago."""
        for conversation in self._conversations.values():
            idle = conversation.session.state.idle or self._only_warms(conversation)
            if idle and (conversation.link is not None or not with_link):
                return conversation
        return None

    def _evict(self, conversation: _Conversation, now: int) -> None:
        """Ask the session to give up its socket and its state; what it does for nobody goes."""
        turn = self._running(conversation)
        if turn is not None and self._only_warms(conversation):
            del self._turns[turn.id]
            self._step(conversation, ev.TurnAbandoned(turn.id), now)
        self._step(conversation, ev.EvictionRequested(), now)

    def _only_warms(self, conversation: _Conversation) -> bool:
        turn = self._running(conversation)
        return turn is not None and turn.warms and not conversation.session.state.waiting

    def _warm(self, conversation: _Conversation, anchor: str, now: int) -> None:
        """Have a new socket learn what the old one knew, unless nobody used that one either."""
        if conversation.manner is None or conversation.warmed:
            return
        recall = self._memory.warm_up(conversation.scope, anchor, conversation.manner, now)
        if recall is None:
            return
        self._serial += 1
        conversation.warmed = True
        turn = _Turn(-self._serial, recall, conversation, warms=True)  # clients' count from 1
        self._turns[turn.id] = turn
        submitted = ev.Turn(turn.id, recall.standing, recall.anchor)
        self._step(conversation, ev.TurnSubmitted(submitted), now)

    def _turn_blocked(self, event: TurnBlocked, now: int) -> None:
        turn = self._turns.get(event.turn)
        if turn is None:
            return
        conversation = turn.conversation
        if not event.blocked:
            self._unblock(conversation, turn.id, now)
        elif (
            # Before its answer begins nothing is relayed: not to read then would be to miss it.
            conversation.session.state.phase in _ANSWERING
            and self._running(conversation) is turn
            and conversation.blocked_by is None
            and conversation.link is not None
        ):
            conversation.blocked_by = turn.id
            self._out.append(PauseLink(conversation.link, True))
            self._step(conversation, ev.RelayPaused(turn.id, True), now)

    def _unblock(self, conversation: _Conversation, turn: int, now: int | None = None) -> None:
        """Read the link again, if it was ``turn`` that had it paused; ``now``: it goes on."""
        if conversation.blocked_by == turn:
            conversation.blocked_by = None
            if conversation.link is not None:
                self._out.append(PauseLink(conversation.link, False))
            if now is not None:
                self._step(conversation, ev.RelayPaused(turn, False), now)

    def _link_event(self, event: LinkOpened | LinkLost | LinkFrameSent, now: int) -> None:
        link = self._links.get(event.link)
        if link is None:
            return  # it was closed before this was reported
        conversation = link.conversation
        if isinstance(event, LinkOpened):
            early = _early(event.link, self._policy.timeouts.lifetime)
            self._step(conversation, ev.ConnectionOpened(link.generation, early), now)
        elif isinstance(event, LinkFrameSent):
            self._step(conversation, ev.FrameSent(link.generation), now)
        else:
            self._forget_link(event.link)
            turn = self._running(conversation)
            if turn is not None and event.error is not None:
                turn.error = event.error
            self._step(conversation, ev.ConnectionLost(link.generation, event.cause), now)
            self._log(LogLevel.INFO, "session.connection_lost", conversation)

    def _forget_link(self, number: int) -> None:
        link = self._links.pop(number, None)
        if link is not None and link.conversation.link == number:
            link.conversation.link = None
            link.conversation.blocked_by = None
            link.conversation.stand_in = None
            self._forget_early(link.conversation)

    # ------------------------------------------------------------ upstream messages

    def _messages_received(self, event: MessagesReceived, now: int) -> None:
        """Pass on what one read brought. The hot path: a delta in mid-output meets no rule."""
        link = self._links.get(event.link)
        if link is None:
            return
        conversation, generation = link.conversation, link.generation
        session = conversation.session
        plain: list[UpstreamEvent] = []  # in mid-output, for the turn that runs
        sends = conversation.sends
        in_output = session.state.phase is Phase.OUTPUT  # looked up once, not for every delta
        for message in event.messages:
            if conversation.sends != sends:
                # A frame was sent because of this read: nothing in it can be an answer to that.
                conversation.unmatched += 1
                continue
            upstream = read_event(message)
            if upstream is None:
                self._flush(conversation, plain, now)
                self._out.append(CloseLink(event.link))
                self._link_event(LinkLost(event.link, Malformed("unreadable message")), now)
                return
            kind = upstream.kind
            if in_output and kind in _PLAIN:
                plain.append(upstream)
                continue
            self._flush(conversation, plain, now)
            self._upstream_event(conversation, generation, upstream, now)
            in_output = session.state.phase is Phase.OUTPUT
            if event.link not in self._links:
                return  # what this read brought beyond it belongs to nobody
        self._flush(conversation, plain, now)

    def _flush(self, conversation: _Conversation, plain: list[UpstreamEvent], now: int) -> None:
        if plain:
            conversation.session.touch(now)
            turn = self._running(conversation)
            if turn is not None:
                self._answer(turn, plain.copy())
            plain.clear()

    def _upstream_event(
        self, conversation: _Conversation, generation: int, upstream: UpstreamEvent, now: int
    ) -> None:
        kind = upstream.kind
        turn = self._running(conversation)
        event: ev.Event
        if kind is EventKind.CREATED:
            if turn is not None and turn.response is None:
                turn.response = response_id(upstream)
            event = ev.ResponseCreated(generation)
        elif kind is EventKind.ENDED:
            error = read_error(upstream.data) if upstream.type == b"response.failed" else None
            if turn is not None and error is not None:
                turn.error = error
            outcome, response = outcome_of(upstream), response_id(upstream)
            if turn is not None and turn.warms and response and turn.recall.anchor:
                # It has the context of the client's response, and stands for it on this socket.
                conversation.stand_in = turn.recall.anchor, response
                response = turn.recall.anchor
            event = ev.ResponseEnded(generation, outcome, response, error)
        elif kind is EventKind.ERROR:
            error = read_error(upstream.data)
            if turn is not None:
                turn.error = error
            event = ev.UpstreamRefused(generation, error)
        elif kind is EventKind.OUTPUT or conversation.session.state.phase in _ANSWERING:
            # What there is no room to hold back is shown, and counts as output: no replay any more.
            full = self._is_full(conversation, upstream)
            event = ev.OutputReceived(generation, bearing=kind is EventKind.OUTPUT or full)
        elif turn is None or self._is_full(conversation, upstream):
            conversation.unmatched += 1
            return
        else:
            self._keep_early(conversation, upstream)
            return
        self._step(conversation, event, now, upstream)

    def _is_full(self, conversation: _Conversation, upstream: UpstreamEvent) -> bool:
        size = conversation.early_size + len(upstream.data)
        return len(conversation.early) >= _MAX_EARLY or size > self._config.max_message

    def _keep_early(self, conversation: _Conversation, upstream: UpstreamEvent) -> None:
        # A client helper insists that response.created be the first event.
        place = 0 if upstream.kind is EventKind.CREATED else len(conversation.early)
        conversation.early.insert(place, upstream)
        conversation.early_size += len(upstream.data)

    def _forget_early(self, conversation: _Conversation) -> None:
        conversation.early.clear()
        conversation.early_size = 0

    # ------------------------------------------------------------ what the session decides

    def _step(
        self,
        conversation: _Conversation,
        event: ev.Event,
        now: int,
        upstream: UpstreamEvent | None = None,
    ) -> None:
        effects = conversation.session.handle(event, now)
        self._carry_out(conversation, effects, now, upstream)

    def _carry_out(
        self,
        conversation: _Conversation,
        effects: tuple[fx.Effect, ...],
        now: int,
        upstream: UpstreamEvent | None,
    ) -> None:
        for effect in effects:
            if isinstance(effect, fx.DeliverEvent):
                if effect.held and upstream is not None:
                    self._keep_early(conversation, upstream)
                else:
                    self._deliver(conversation, effect.turn, upstream)
            elif isinstance(effect, fx.CompleteTurn):
                self._deliver(conversation, effect.turn, upstream)
                self._complete(conversation, effect.turn, upstream, now)
            elif isinstance(effect, fx.FailTurn):
                self._fail(conversation, effect)
            elif isinstance(effect, fx.SendTurn):
                self._send(conversation, effect)
            elif isinstance(effect, fx.OpenConnection):
                self._serial += 1
                conversation.link = self._serial
                self._links[self._serial] = _Link(conversation, effect.generation)
                self._out.append(OpenLink(self._serial, conversation.headers))
                self._log(LogLevel.INFO, "session.connect", conversation)
            elif isinstance(effect, fx.CloseConnection):
                if conversation.link is not None:
                    self._out.append(CloseLink(conversation.link))
                    self._forget_link(conversation.link)
                    self._log(LogLevel.INFO, "session.close", conversation)
            elif isinstance(effect, fx.RetireSession):
                self._conversations.pop(conversation.id, None)
                # Said at the end: what nobody caused is counted, not lost (invariant 27).
                unmatched = conversation.unmatched
                self._log(LogLevel.DEBUG, "session.retired", conversation, unmatched=unmatched)
            elif isinstance(effect, fx.Ignored):
                conversation.unmatched += upstream is not None
                self._log(LogLevel.DEBUG, "session.ignored", conversation, reason=effect.reason)
            elif isinstance(effect, fx.WarmSession):
                self._warm(conversation, effect.anchor, now)
            elif isinstance(effect, fx.RebindSession):
                self._log(LogLevel.INFO, "session.rebound", conversation)
            else:
                assert_never(effect)
        if conversation.id in self._conversations:
            deadline = conversation.session.next_timeout()
            self._schedule.set(conversation.id, None if deadline is None else deadline.at)
        else:
            self._schedule.set(conversation.id, None)

    def _running(self, conversation: _Conversation) -> _Turn | None:
        running = conversation.session.state.running
        return None if running is None else self._turns.get(running.turn.id)

    def _deliver(
        self, conversation: _Conversation, number: int, upstream: UpstreamEvent | None
    ) -> None:
        turn = self._turns.get(number)
        if turn is None or upstream is None:
            return
        events = [upstream]
        if conversation.early:
            # What came before response.created follows it; all else is in the order it came in.
            if upstream.kind is EventKind.CREATED:
                events = [upstream, *conversation.early]
            else:
                events = [*conversation.early, upstream]
            self._forget_early(conversation)
        self._answer(turn, events)

    def _answer(self, turn: _Turn, events: list[UpstreamEvent]) -> None:
        if turn.warms:
            return
        for event in events:
            if event.type == b"response.output_item.done":
                turn.items.append(event.data)
        last = self._out[-1] if self._out else None
        if isinstance(last, AnswerEvents) and last.turn == turn.id:
            last.events.extend(events)
        else:
            self._out.append(AnswerEvents(turn.id, events))

    def _complete(
        self, conversation: _Conversation, number: int, upstream: UpstreamEvent | None, now: int
    ) -> None:
        turn = self._turns.pop(number, None)
        if turn is None or upstream is None:
            return
        response = response_id(upstream) or turn.response
        read, written = read_usage(upstream)
        if turn.warms:
            self._warmed(turn, read, outcome_of(upstream))
            return
        account = Accounts()
        if response is not None and upstream.type == b"response.completed":
            account = account_of(turn.recall, turn.form, turn.sent)
            self._accounts += account
            output = output_items(upstream, turn.items)
            tokens = read + written
            self._memory.remember(turn.recall, response, output, conversation.id, tokens, now)
            if self._policy.budgets.warm:
                conversation.manner = turn.recall.manner(conversation.manner)
            self._schedule.set(_MEMORY, self._memory.next_expiry())
        self._unblock(conversation, turn.id)
        self._log(
            LogLevel.INFO,
            "turn.completed",
            conversation,
            turn=turn.id,
            outcome=outcome_of(upstream).value,
            response=_hashed(response),
            input_tokens=read,
            output_tokens=written,
            bytes_saved=account.bytes_saved,
            bytes_spent=account.bytes_spent,
            tokens_saved=account.tokens_saved,
            tokens_spent=account.tokens_spent,
        )

    def _warmed(self, turn: _Turn, tokens: int, outcome: ev.Outcome) -> None:
        if outcome is ev.Outcome.COMPLETED:
            self._accounts += Accounts(warmed=1, bytes_spent=turn.sent, tokens_spent=tokens)
        fields = {"outcome": outcome.value, "input_tokens": tokens, "bytes_spent": turn.sent}
        self._log(LogLevel.INFO, "session.warmed", turn.conversation, **fields)

    def _fail(self, conversation: _Conversation, effect: fx.FailTurn) -> None:
        turn = self._turns.pop(effect.turn, None)
        if turn is None:
            return
        if turn.warms:
            why = effect.failure.detail if effect.failure is not None else "none"
            self._log(LogLevel.INFO, "session.not_warmed", conversation, cause=why)
            return
        anchor = turn.recall.request.previous_response_id
        error = render_answer(effect.answer, effect.failure, turn.error, anchor)
        self._out.append(AnswerError(turn.id, error))
        self._unblock(conversation, turn.id)
        self._log(
            LogLevel.WARNING,
            "turn.refused",
            conversation,
            turn=turn.id,
            standing=turn.recall.standing.value,
            status=error.status,
            code=effect.answer.value,
            cause=effect.failure.detail if effect.failure is not None else "none",
            anchor=_hashed(anchor),
            # How often the anchor was refused so far, of a bounded number of times.
            refusals=dict(conversation.session.state.refusals).get(turn.recall.anchor, 0),
        )

    def _send(self, conversation: _Conversation, effect: fx.SendTurn) -> None:
        turn = self._turns.get(effect.turn)
        if turn is None or conversation.link is None:
            return
        turn.error = None  # each attempt starts with a clean slate (invariant 16)
        turn.response = None
        turn.items.clear()
        self._forget_early(conversation)
        conversation.sends += 1
        meant, stand_in = conversation.stand_in or (None, None)
        at_hand = meant is not None and conversation.session.state.live_anchor == meant
        known = at_hand and turn.recall.anchor == meant
        frame = turn.recall.frame(effect.form, stand_in if known else None)
        turn.form, turn.sent = effect.form, len(frame)
        self._out.append(SendFrame(conversation.link, frame))
        self._log(
            LogLevel.INFO,
            "turn.sent",
            conversation,
            turn=turn.id,
            standing=turn.recall.standing.value,
            form=effect.form.value,
            bytes=len(frame),
            # What reduction saved; below 0, what rehydration cost.
            saved=len(turn.recall.request.frame) - len(frame),
            anchor=_hashed(turn.recall.anchor),
        )

    def _log(
        self, level: LogLevel, event: str, conversation: _Conversation, **fields: str | int
    ) -> None:
        session = conversation.session
        common: dict[str, str | int] = {
            "session": conversation.id,
            "generation": session.state.generation,
            "rule": session.rule,
        }
        self._out.append(Log(level, event, {**fields, **common}))


_MEMORY = 0  # the schedule's key for what is remembered; conversations count from 1
_ANSWERING = frozenset({Phase.CREATED, Phase.OUTPUT})
_PLAIN = frozenset({EventKind.OUTPUT, EventKind.PROGRESS, EventKind.OTHER})


def _early(link: int, lifetime: int) -> int:
    """By how many ns the socket of ``link`` is replaced before its lifetime is over: up to a tenth
    of it. Sockets that were opened together, after a deploy, say, must not all go together; the
    golden ratio spreads their numbers evenly, whatever their count."""
    return (link * _GOLDEN % _RANGE) * (lifetime // 10) // _RANGE


_RANGE = 1 << 32
_GOLDEN = 2_654_435_769  # the golden ratio's part of it


def _hashed(response: str | None) -> str:
    """An id as logs show it: comparable, not usable."""
    return "-" if response is None else hashed(response)


__all__ = [
    "Accounts",
    "AnswerError",
    "AnswerEvents",
    "Bridge",
    "BridgeEffect",
    "BridgeEvent",
    "BridgeTimeout",
    "CloseLink",
    "LinkFrameSent",
    "LinkLost",
    "LinkOpened",
    "LinksEvicted",
    "MessagesReceived",
    "OpenLink",
    "PauseLink",
    "SendFrame",
    "SocketsExhausted",
    "TurnBlocked",
    "TurnLeft",
    "TurnReceived",
]
