"""Who is who: turns, conversations and links. Messages in, effects out.

What belongs here: the second door for embedders. A ``Bridge`` gives each turn to a conversation,
each conversation a ``Session`` (which decides), each connection generation of it a link, and
carries what the session decides to the one turn and the one link it is meant for. It knows JSON
events, but no bytes of HTTP or WebSocket, and it decides nothing about a loss. What a driver
reports, and what it is told, is in ``bridgecore.messages``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import assert_never, get_args

import attrs
import msgspec

from bridgecore.admission.placement import Idle, Placement, place, take_over
from bridgecore.config import Ambiguous, Config, Rotation
from bridgecore.continuity.accounts import Accounts, account_of
from bridgecore.continuity.aliases import credential_scope, named_scope
from bridgecore.continuity.memory import Candidate, Manner, Memory, Recall
from bridgecore.continuity.refused import RefusedFrames
from bridgecore.errors import ConfigError, LocalProtocolError
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
from bridgecore.recovery.checks import EventCheck, check_time
from bridgecore.recovery.failure import ErrorFrame, Evidence, FailureKind, Malformed, classify
from bridgecore.recovery.policy import Policy, Timeouts, replaying
from bridgecore.recovery.rules import ENDED_RESPONSE
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import Phase, SessionState
from bridgecore.recovery.timers import Deadline, Timer
from bridgecore.rendering import http_error, render_answer
from bridgecore.schedule import Schedule
from bridgecore.stragglers import Stragglers
from bridgecore.wire.decisions import Recorder, hashed
from bridgecore.wire.errors import read_error
from bridgecore.wire.headers import credential_names, lower_names, upgrade_headers
from bridgecore.wire.responses import (
    ITEM_DONE,
    EventKind,
    Terminal,
    UpstreamEvent,
    created_event,
    read_event,
    read_stored,
    read_terminal,
    sequence_number,
)
from bridgecore.wire.transport import Log, LogLevel

# Events that came before response.created wait for it: a client helper insists that it be first.
_MAX_EARLY = 256  # events
# Frames that say nothing are skipped, so many between two that do: a gateway that keeps its sockets
# warm sends one every few seconds; one that sends nothing else is broken.
_MAX_NOISE = 1024  # frames
_MAX_NOISE_SIZE = 1024 * 1024  # bytes


@attrs.define(eq=False)
class _Turn:
    """A turn and what the bridge has to remember of it."""

    id: int
    recall: Recall
    conversation: _Conversation
    request: str = "-"  # the id of its request, for log lines
    error: ErrorFrame | None = None  # the upstream's own words about it, the latest ones
    names: list[str] = attrs.Factory(list)  # the ids that its response was called by
    opened: bool = False  # its client was given a response.created
    stored: bool | None = None  # whether that is stored, as far as response.created said
    items: list[bytes] = attrs.Factory(list)  # its response.output_item.done events
    form: fx.Form = fx.Form.AS_IS  # in which it was sent last
    sent: int = 0  # bytes of that frame
    frame: bytes = b""  # that frame, until the upstream has accepted it
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
    early: list[UpstreamEvent] = attrs.Factory(list)
    early_size: int = 0  # bytes
    unmatched: int = 0  # upstream events that no turn caused (invariant 27)
    manner: Manner | None = None  # of its latest turn, if sockets are to be warmed
    warmed: bool = False  # and nobody has used it since: an idle one is not warmed for ever
    stand_in: tuple[str, str] | None = None  # a response, and what the present socket knows it as
    family: bytes | None = None  # what its turns have in common with those of other conversations
    continued: bool = False  # its latest turn was anchored
    repeats: bool = False  # its latest turn brought a history: its client names no ids


@attrs.define(eq=False)
class _Link:
    """One connection generation of a conversation."""

    conversation: _Conversation
    generation: int
    stragglers: Stragglers = attrs.Factory(Stragglers)
    noise: int = 0  # frames that said nothing, since the last one that did
    noise_size: int = 0  # bytes of them


class Bridge:
    """Turns to sessions to links. See ``Config`` for what it is told."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError if ``config`` is no Config."""
        if not isinstance(config, Config):
            raise ConfigError(f"a Bridge needs a Config, not {config!r:.100}")
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
        # Everything else of a client's head stays here: hop-by-hop headers, cookies and whatever a
        # proxy put in must not leak to another host.
        self._forwarded = frozenset(name.encode("ascii") for name in config.forward_headers)
        self._credential = credential_names(config.forward_headers)
        self._turns: dict[int, _Turn] = {}
        self._links: dict[int, _Link] = {}
        self._conversations: OrderedDict[int, _Conversation] = OrderedDict()
        # By family: its conversations, the one used longest ago first.
        self._families: dict[bytes, OrderedDict[int, _Conversation]] = {}
        self._memory = Memory(config)
        self._schedule: Schedule[int] = Schedule()
        self._serial = 0
        self._out: list[BridgeEffect] = []
        self._recorder = Recorder(self._policy) if config.decisions else None
        self._accounts = Accounts()
        self._too_large = RefusedFrames()
        self._reading: int | None = None  # the link whose read is being weighed
        self._unsent: list[BridgeEffect] = []  # what is to be sent on it, if it is not lost

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
                (
                    one.id,
                    one.scope,
                    one.session.state,
                    one.link,
                    one.blocked_by,
                    len(one.early),
                    one.continued,
                    one.repeats,
                )
                for one in self._conversations.values()
            ),
            tuple(
                (turn.id, turn.conversation.id, turn.recall.standing, turn.recall.anchor)
                for turn in self._turns.values()
            ),
            tuple(
                (number, link.generation, link.conversation.id, link.stragglers.snapshot())
                for number, link in self._links.items()
            ),
            self._memory.snapshot(),
            self._too_large.snapshot(),
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
        """Take in what happened at ``now`` (ns, monotonic); what to do about it, in order.

        Reports about a turn or a link that is over are ignored: they may have been on their way.

        Raises:
            LocalProtocolError: ``event`` is none, a field of it or ``now`` has a wrong type, or it
                cannot happen: a turn whose number is in use, a link that was never asked for, or
                opened before. Nothing has changed.
        """
        _check_event(event)
        check_time(now)
        self._refuse_impossible(event)
        if isinstance(event, MessagesReceived):
            self._messages_received(event, now)
        elif isinstance(event, TurnReceived):
            self._turn_received(event, now)
        elif isinstance(event, TurnLeft):
            turn = self._turns.pop(event.turn, None)
            if turn is not None:
                self._step(turn.conversation, ev.TurnAbandoned(turn.id), now)
                self._log_left(event, turn)
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

    def _refuse_impossible(self, event: BridgeEvent) -> None:
        """Raise LocalProtocolError for what no lawful driver reports, before anything changes."""
        if isinstance(event, TurnReceived | TurnLeft | TurnBlocked):
            if event.turn < 0:
                raise LocalProtocolError(f"turn {event.turn}: a turn's number is 0 or more")
            if not isinstance(event, TurnReceived):
                return
            if event.turn in self._turns:
                what = "runs already: its number can be used again when it has ended"
                raise LocalProtocolError(f"turn {event.turn} {what}")
            if not all(map(_is_header, event.headers)):
                what = "headers must be a list of (name, value), both bytes"
                raise LocalProtocolError(f"turn {event.turn}: {what}")
        elif isinstance(event, MessagesReceived | LinkOpened | LinkLost | LinkFrameSent):
            if not 0 < event.link <= self._serial:
                raise LocalProtocolError(f"link {event.link} was never asked for by OpenLink")
            link = self._links.get(event.link)
            if link is None or isinstance(event, LinkLost):
                return
            opening = link.conversation.session.state.phase is Phase.RECONNECTING
            if isinstance(event, LinkOpened):
                if not opening:
                    raise LocalProtocolError(f"link {event.link} was opened before")
                return
            if opening:
                raise LocalProtocolError(f"{type(event).__name__} before LinkOpened({event.link})")
            if isinstance(event, MessagesReceived) and not set(map(type, event.messages)) <= _BYTES:
                raise LocalProtocolError(f"link {event.link}: messages must be a list of bytes")

    def _log_left(self, event: TurnLeft, turn: _Turn) -> None:
        about: dict[str, str | int] = {"turn": turn.id, "request_id": turn.request}
        if event.error is None:
            self._log(LogLevel.INFO, "turn.abandoned", turn.conversation, **about)
        else:
            about["code"] = event.error.code
            self._log(LogLevel.WARNING, "turn.cut_off", turn.conversation, **about)

    def _turn_received(self, event: TurnReceived, now: int) -> None:
        received = lower_names(event.headers)
        if event.scope is None:
            scope = credential_scope(received, self._credential)
        else:
            scope = named_scope(event.scope)
        headers = upgrade_headers(received, self._forwarded)
        recall = self._memory.recall(scope, event.request, received, now)
        conversation = self._place(recall, now)
        if conversation is None:
            if not self._make_room(now):
                message = "The bridge has as many conversations as it can hold. Retry later."
                error = http_error(503, fx.Answer.OVERLOADED.value, message)
                self._out.append(AnswerError(event.turn, error))
                fields: dict[str, str | int] = {"turn": event.turn, "status": error.status}
                self._out.append(
                    Log(LogLevel.WARNING, "turn.refused", {**fields, "code": error.code})
                )
                return
            conversation = self._new_conversation(scope, headers)
        elif conversation.session.state.running is None:
            conversation.headers = headers
        if recall.alias is None or recall.alias.conversation not in self._conversations:
            self._memory.belongs(recall, conversation.id)
        self._conversations.move_to_end(conversation.id)
        self._note_family(conversation, recall)
        conversation.warmed = False
        turn = _Turn(event.turn, recall, conversation, event.request_id or "-")
        self._turns[turn.id] = turn
        standing = recall.standing
        self._log(
            LogLevel.DEBUG,
            "turn.received",
            conversation,
            turn=turn.id,
            request_id=turn.request,
            standing=standing.value,
        )
        submitted = ev.Turn(turn.id, standing, recall.anchor)
        self._step(conversation, ev.TurnSubmitted(submitted), now)

    def _place(self, recall: Recall, now: int) -> _Conversation | None:
        """The conversation that the turn joins; None for one of its own."""
        for candidate in recall.candidates:
            at_hand = self._at_hand(candidate)
            if at_hand is not None:
                recall.inject(candidate)
                return at_hand
        alias = recall.alias
        found = self._conversations.get(alias.conversation) if alias is not None else None
        if found is not None:
            state = found.session.state
            placement = place(
                recall.standing,
                known=True,
                idle=state.idle,
                displaces=state.live_anchor is not None and state.live_anchor != recall.anchor,
            )
            if placement is Placement.JOIN:
                return found
        if recall.anchor is not None or recall.candidates:
            return None  # what continues from here on is recognised: its socket is its own
        return self._taken_over(recall, now)

    def _at_hand(self, candidate: Candidate) -> _Conversation | None:
        """The idle conversation whose socket remembers the candidate's response."""
        alias = candidate.alias
        found = self._conversations.get(alias.conversation) if alias is not None else None
        if found is None or not found.session.state.idle:
            return None
        live = found.session.state.live_anchor
        return found if live == candidate.match.node.response_id else None

    def _taken_over(self, recall: Recall, now: int) -> _Conversation | None:
        """The idle conversation of the turn's family that it takes the place of, if any."""
        family = recall.family
        if family is None:
            return None
        members = reversed(self._families.get(family.key, {}).values())
        idle = [one for one in islice(members, _KIN) if one.session.state.idle]
        facts = [Idle(one.continued, self._is_dispensable(one, now)) for one in idle]
        place = take_over(facts, repeats=family.repeats)
        return None if place is None else idle[place]

    def _is_dispensable(self, conversation: _Conversation, now: int) -> bool:
        live = conversation.session.state.live_anchor
        if live is None or conversation.repeats:
            return True
        return self._memory.keeps(conversation.scope, live, now)

    def _note_family(self, conversation: _Conversation, recall: Recall) -> None:
        """Remember what was learnt from the turn about other turns of its client."""
        conversation.continued = recall.anchor is not None
        conversation.repeats = recall.family is not None and recall.family.repeats
        self._leave_family(conversation)
        if recall.family is not None:
            conversation.family = recall.family.key
            members = self._families.setdefault(conversation.family, OrderedDict())
            members[conversation.id] = conversation

    def _leave_family(self, conversation: _Conversation) -> None:
        if conversation.family is not None:
            members = self._families[conversation.family]
            del members[conversation.id]
            if not members:
                del self._families[conversation.family]
            conversation.family = None

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
            self._link_opened(event, link, now)
        elif isinstance(event, LinkFrameSent):
            self._step(conversation, ev.FrameSent(link.generation, event.whole), now)
        else:
            self._link_lost(event, now)

    def _link_opened(self, event: LinkOpened, link: _Link, now: int) -> None:
        conversation = link.conversation
        early = _early(event.link, self._policy.timeouts.lifetime)
        self._reading = event.link
        self._step(conversation, ev.ConnectionOpened(link.generation, early), now)
        for message in event.messages:
            upstream = read_event(message)
            if upstream is None:
                self._is_noise(link, message)
            elif upstream.kind is EventKind.OTHER and not self._is_full(conversation, upstream):
                self._keep_early(conversation, upstream)  # such as codex.rate_limits
            else:
                self._behind_the_end(conversation, link, upstream, now)
        unsent, self._unsent, self._reading = self._unsent, [], None
        if event.link in self._links:
            self._out += unsent

    def _link_lost(self, event: LinkLost, now: int, *, unsent: bool = False) -> None:
        """``unsent``: the frame that the running turn was to be sent in has not left."""
        link = self._links.get(event.link)
        if link is None:
            return
        conversation = link.conversation
        self._forget_link(event.link)
        turn = self._running(conversation)
        if turn is not None and event.error is not None:
            turn.error = event.error
        if turn is not None and not unsent:
            self._note_size(turn, event.cause)
        self._step(conversation, ev.ConnectionLost(link.generation, event.cause, unsent), now)
        self._log(LogLevel.INFO, "session.connection_lost", conversation)

    def _note_size(self, turn: _Turn, cause: Evidence) -> None:
        """Remember a frame that is too large for the upstream, so that it is not sent again. One
        that the upstream has answered was not too large, whatever closed the connection then."""
        unanswered = turn.conversation.session.state.phase in _UNANSWERED
        if unanswered and turn.frame and classify(cause).kind is FailureKind.TOO_LARGE:
            self._too_large.add(turn.recall.scope, turn.frame)

    def _forget_link(self, number: int) -> None:
        link = self._links.pop(number, None)
        if link is not None and link.conversation.link == number:
            link.conversation.link = None
            link.conversation.blocked_by = None
            link.conversation.stand_in = None
            self._forget_early(link.conversation)

    # ------------------------------------------------------------ upstream messages

    def _messages_received(self, event: MessagesReceived, now: int) -> None:
        """Pass on what one read brought, then send what it leads to, if the link still stands."""
        link = self._links.get(event.link)
        if link is None:
            return
        self._reading = event.link
        self._read_messages(link, event.link, event.messages, now)
        unsent, self._unsent, self._reading = self._unsent, [], None
        if event.lost is not None:
            self._link_lost(event.lost, now, unsent=bool(unsent))
        elif event.link in self._links:
            self._out += unsent

    def _read_messages(self, link: _Link, number: int, messages: list[bytes], now: int) -> None:
        """The hot path: a delta in mid-output meets no rule."""
        conversation = link.conversation
        session = conversation.session
        plain: list[UpstreamEvent] = []  # in mid-output, for the turn that runs
        # Looked up once, not for every delta: whether it is in its output, and its names.
        in_output, names = session.state.phase is Phase.OUTPUT, _names(session.state)
        for message in messages:
            upstream = read_event(message)
            if upstream is None:
                if self._is_noise(link, message):
                    continue
                self._flush(conversation, plain, now)
                self._out.append(CloseLink(number))
                unsent = bool(self._unsent)
                self._unsent.clear()
                lost = LinkLost(number, Malformed("nothing but noise"))
                self._link_lost(lost, now, unsent=unsent)
                return
            link.noise = link.noise_size = 0
            kind = upstream.kind
            own = in_output and kind in _PLAIN and upstream.response in names
            if own and upstream.item is None:
                plain.append(upstream)
                continue
            if self._unsent:
                self._behind_the_end(conversation, link, upstream, now)
            elif link.stragglers.is_late(upstream, answering=_is_answering(session.state)):
                conversation.unmatched += 1
            elif own:
                link.stragglers.note(upstream)
                plain.append(upstream)
                continue
            else:
                self._flush(conversation, plain, now)
                self._upstream_event(conversation, link, upstream, now)
            in_output, names = session.state.phase is Phase.OUTPUT, _names(session.state)
            if number not in self._links:
                return  # what this read brought beyond it belongs to nobody
        self._flush(conversation, plain, now)

    def _is_noise(self, link: _Link, message: bytes) -> bool:
        """Count a frame that says nothing; False if there have been too many."""
        link.noise += 1
        link.noise_size += len(message)
        link.conversation.unmatched += 1
        return link.noise <= _MAX_NOISE and link.noise_size <= _MAX_NOISE_SIZE

    def _behind_the_end(
        self, conversation: _Conversation, link: _Link, upstream: UpstreamEvent, now: int
    ) -> None:
        """An event that was read together with the one that a frame is to be sent for: it cannot be
        an answer to that frame. Only that the socket is too old concerns the turn that waits."""
        if upstream.kind is EventKind.ERROR:
            error = read_error(upstream.data)
            if classify(error).kind is FailureKind.CONNECTION_LIMIT:
                self._unsent.clear()
                refused = ev.UpstreamRefused(link.generation, error, unsent=True)
                self._step(conversation, refused, now, upstream)
                return
        conversation.unmatched += 1

    def _flush(self, conversation: _Conversation, plain: list[UpstreamEvent], now: int) -> None:
        if plain:
            conversation.session.touch(now)
            turn = self._running(conversation)
            if turn is not None:
                self._answer(turn, plain.copy())
            plain.clear()

    def _upstream_event(
        self, conversation: _Conversation, link: _Link, upstream: UpstreamEvent, now: int
    ) -> None:
        kind, generation, named = upstream.kind, link.generation, upstream.response
        turn = self._running(conversation)
        words = turn.error if turn is not None else None
        terminal: Terminal | None = None
        event: ev.Event
        if kind is EventKind.CREATED:
            event = ev.ResponseCreated(generation, named)
        elif kind is EventKind.ENDED:
            terminal = read_terminal(upstream, turn.items if turn is not None else [])
            event = self._ended(conversation, generation, turn, upstream, terminal)
        elif kind is EventKind.ERROR:
            error = read_error(upstream.data)
            if turn is not None:
                turn.error = error
                self._note_size(turn, error)
            event = ev.UpstreamRefused(generation, error)
        elif kind is EventKind.OTHER and conversation.session.state.phase not in _ANSWERING:
            # Nobody knows what it is, so it changes nothing; if a turn waits, it waits, too.
            if turn is not None and not self._is_full(conversation, upstream):
                self._keep_early(conversation, upstream)
                return
            if turn is None:
                conversation.unmatched += 1
                return
            event = ev.OutputReceived(generation, bearing=False, room=False)
        else:
            bearing = kind is EventKind.OUTPUT
            room = not self._is_full(conversation, upstream)
            event = ev.OutputReceived(generation, bearing, room, named)
        self._step(conversation, event, now, upstream, terminal)
        if kind is EventKind.CREATED and turn is not None and turn.opened:
            turn.stored = read_stored(upstream)
        if turn is not None and conversation.session.rule == ENDED_RESPONSE:
            turn.error = words  # those of this event were about another response
        if conversation.session.state.phase is Phase.OUTPUT:
            link.stragglers.note(upstream)

    def _ended(
        self,
        conversation: _Conversation,
        generation: int,
        turn: _Turn | None,
        upstream: UpstreamEvent,
        terminal: Terminal | None,
    ) -> ev.ResponseEnded:
        """Translate a terminal event into the session's ``ResponseEnded``."""
        if terminal is None:
            cause = Malformed("a terminal event without a response that can be read")
            return ev.ResponseEnded(generation, ev.Outcome.FAILED, upstream.response, cause)
        error = None
        if terminal.outcome is ev.Outcome.FAILED:
            error = read_error(terminal.event.data)
            if turn is not None:
                turn.error = error
        response = terminal.response_id
        if turn is not None and turn.warms and response and turn.recall.anchor:
            # A warmed-up response has the same context as the client's: on this connection its id
            # is sent in place of the client's.
            conversation.stand_in = turn.recall.anchor, response
            response = turn.recall.anchor
        return ev.ResponseEnded(generation, terminal.outcome, response, error)

    def _is_full(self, conversation: _Conversation, upstream: UpstreamEvent) -> bool:
        size = conversation.early_size + len(upstream.data)
        return len(conversation.early) >= _MAX_EARLY or size > self._config.max_message

    def _keep_early(self, conversation: _Conversation, upstream: UpstreamEvent) -> None:
        # A client helper insists that response.created be the first event.
        place = 0 if upstream.kind is EventKind.CREATED else len(conversation.early)
        conversation.early.insert(place, upstream)
        conversation.early_size += len(upstream.data)

    def _take_early(self, conversation: _Conversation, names: Sequence[str]) -> list[UpstreamEvent]:
        """What was held back for the response of these ``names``. What names one that has ended
        is not the turn's: it was held because that could not be known."""
        ended = set(conversation.session.state.ended).difference(names)
        early = [each for each in conversation.early if each.response not in ended]
        conversation.unmatched += len(conversation.early) - len(early)
        self._forget_early(conversation)
        return early

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
        terminal: Terminal | None = None,
    ) -> None:
        effects = conversation.session.handle(event, now)
        self._carry_out(conversation, effects, now, upstream, terminal)

    def _carry_out(
        self,
        conversation: _Conversation,
        effects: tuple[fx.Effect, ...],
        now: int,
        upstream: UpstreamEvent | None,
        terminal: Terminal | None = None,
    ) -> None:
        for effect in effects:
            if isinstance(effect, fx.DeliverEvent):
                running = conversation.session.state.running
                names = running.responses if running is not None else ()
                if effect.held and upstream is not None:
                    self._keep_early(conversation, upstream)
                else:
                    self._deliver(conversation, effect.turn, upstream, names)
            elif isinstance(effect, fx.CompleteTurn):
                if upstream is not None and terminal is not None:
                    self._claim(conversation, effect, upstream, terminal)
                    self._deliver(conversation, effect.turn, terminal.event, effect.responses)
                    self._complete(conversation, effect, upstream, terminal, now)
            elif isinstance(effect, fx.FailTurn):
                self._fail(conversation, effect)
            elif isinstance(effect, fx.SendTurn):
                self._send(conversation, effect, now)
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
                if self._conversations.pop(conversation.id, None) is not None:
                    self._leave_family(conversation)
                # Said at the end: what nobody caused is counted, not lost (invariant 27).
                unmatched = conversation.unmatched
                self._log(LogLevel.DEBUG, "session.retired", conversation, unmatched=unmatched)
            elif isinstance(effect, fx.Ignored):
                conversation.unmatched += upstream is not None
                self._log(LogLevel.DEBUG, "session.ignored", conversation, reason=effect.reason)
            elif isinstance(effect, fx.StopInjecting):
                if (turn := self._turns.get(effect.turn)) is not None:
                    self._memory.injection_refused(turn.recall)
            elif isinstance(effect, fx.StopRebuilding):
                if (turn := self._turns.get(effect.turn)) is not None:
                    self._memory.rebuild_refused(turn.recall)
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
        self,
        conversation: _Conversation,
        number: int,
        upstream: UpstreamEvent | None,
        names: Sequence[str],
    ) -> None:
        turn = self._turns.get(number)
        if turn is None or upstream is None:
            return
        turn.frame = b""
        events = [upstream]
        if conversation.early:
            # What came before response.created follows it; all else is in the order it came in.
            early = self._take_early(conversation, names)
            if upstream.kind is EventKind.CREATED:
                events = [upstream, *early]
            else:
                events = [*early, upstream]
        self._answer(turn, events)

    def _answer(self, turn: _Turn, events: list[UpstreamEvent]) -> None:
        for event in events:
            if event.type == ITEM_DONE:
                turn.items.append(event.data)
        if turn.warms:
            return
        if not turn.opened:
            turn.opened = True
            if events[0].kind is not EventKind.CREATED:
                events = [self._own_created(turn, events), *events]
        last = self._out[-1] if self._out else None
        if isinstance(last, AnswerEvents) and last.turn == turn.id:
            last.events.extend(events)
        else:
            self._out.append(AnswerEvents(turn.id, events))

    def _claim(
        self,
        conversation: _Conversation,
        effect: fx.CompleteTurn,
        upstream: UpstreamEvent,
        terminal: Terminal,
    ) -> None:
        """Deliver what looked like an event of an earlier response and was this one's own."""
        link = self._links.get(conversation.link or 0)
        claimed = link.stragglers.claim(upstream, terminal.items) if link is not None else []
        conversation.unmatched -= len(claimed)
        for event in claimed:
            self._deliver(conversation, effect.turn, event, effect.responses)

    def _own_created(self, turn: _Turn, events: list[UpstreamEvent]) -> UpstreamEvent:
        """The response.created that the upstream left out. Its client may continue from the id in
        it, whatever the upstream calls the response at the end."""
        told = next((each for each in events if each.response is not None), events[0])
        # The number before the first of the upstream's, which may be 0: a client that takes numbers
        # which do not rise for repetitions must drop neither event.
        first = sequence_number(events[0].data)
        event = created_event(
            told,
            f"resp_{turn.conversation.id}_{turn.id}",
            turn.recall.request.model,
            sequence=first - 1 if first >= 0 else 0,
        )
        if event.response is not None:
            turn.names.append(event.response)
        return event

    def _complete(
        self,
        conversation: _Conversation,
        effect: fx.CompleteTurn,
        upstream: UpstreamEvent,
        terminal: Terminal,
        now: int,
    ) -> None:
        turn = self._turns.pop(effect.turn, None)
        if turn is None:
            return
        if (link := self._links.get(conversation.link or 0)) is not None:
            link.stragglers.ended(upstream, effect.responses)
        read, written = terminal.usage
        if turn.warms:
            self._warmed(turn, read, terminal.outcome)
            return
        account = Accounts()
        others = [name for name in (*turn.names, *effect.responses) if name != terminal.response_id]
        # The terminal event's id first; clients may name any other that they were told.
        ids = others if terminal.response_id is None else [terminal.response_id, *others]
        response = ids[0] if ids else None
        outcome = terminal.outcome
        if response is not None and outcome is ev.Outcome.COMPLETED:
            account = account_of(turn.recall, turn.form, turn.sent)
            self._accounts += account
        if response is not None and outcome in _CONTINUABLE:
            output = None if terminal.output is None else [*map(msgspec.Raw, terminal.output)]
            tokens = read + written
            stored = turn.stored if terminal.store is None else terminal.store
            self._memory.remember(
                turn.recall, ids, output, conversation.id, tokens, now, stored=stored
            )
            if self._policy.budgets.warm:
                conversation.manner = turn.recall.manner(conversation.manner)
            self._schedule.set(_MEMORY, self._memory.next_expiry())
        self._unblock(conversation, turn.id)
        self._log(
            LogLevel.INFO,
            "turn.completed",
            conversation,
            turn=turn.id,
            request_id=turn.request,
            outcome=outcome.value,
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
            request_id=turn.request,
            standing=turn.recall.standing.value,
            status=error.status,
            code=error.log_code,
            cause=effect.failure.detail if effect.failure is not None else "none",
            anchor=_hashed(anchor),
            # How often the anchor was refused so far, of a bounded number of times.
            refusals=dict(conversation.session.state.refusals).get(turn.recall.anchor, 0),
            **_cell(conversation.session, turn.id),
        )

    def _send(self, conversation: _Conversation, effect: fx.SendTurn, now: int) -> None:
        turn = self._turns.get(effect.turn)
        if turn is None or conversation.link is None:
            return
        turn.error = None  # each attempt starts with a clean slate (invariant 16)
        turn.stored = None
        turn.items.clear()
        self._forget_early(conversation)
        if (link := self._links.get(conversation.link)) is not None:
            link.stragglers.begin()
        meant, stand_in = conversation.stand_in or (None, None)
        at_hand = meant is not None and conversation.session.state.live_anchor == meant
        known = at_hand and turn.recall.anchor == meant
        frame = turn.recall.frame(effect.form, stand_in if known else None)
        turn.form, turn.sent, turn.frame = effect.form, len(frame), frame
        if (turn.recall.scope, frame) in self._too_large:
            turn.error = _TOO_LARGE
            refused = ev.UpstreamRefused(effect.generation, _TOO_LARGE, unsent=True)
            self._step(conversation, refused, now)
            return
        line = self._line(
            LogLevel.INFO,
            "turn.sent",
            conversation,
            turn=turn.id,
            request_id=turn.request,
            standing=turn.recall.standing.value,
            form=effect.form.value,
            bytes=len(frame),
            # What reduction saved; below 0, what rehydration cost.
            saved=len(turn.recall.request.frame) - len(frame),
            anchor=_hashed(turn.recall.anchor),
            **_cell(conversation.session, turn.id),
        )
        # What was read together with the event that leads to this is weighed first.
        out = self._unsent if conversation.link == self._reading else self._out
        out += [SendFrame(conversation.link, frame), line]

    def _log(
        self, level: LogLevel, event: str, conversation: _Conversation, **fields: str | int
    ) -> None:
        self._out.append(self._line(level, event, conversation, **fields))

    def _line(
        self, level: LogLevel, event: str, conversation: _Conversation, **fields: str | int
    ) -> Log:
        session = conversation.session
        common: dict[str, str | int] = {
            "session": conversation.id,
            "generation": session.state.generation,
            "rule": session.rule,
        }
        running = self._running(conversation)
        if running is not None and "request_id" not in fields:
            # Also what happens to the session happens to the request that it serves.
            common["request_id"] = running.request
        return Log(level, event, {**fields, **common})


def _cell(session: Session, turn: int) -> dict[str, str]:
    """The log field that names the cell of the policy's table by which ``session`` has just decided
    about ``turn``. Empty if the table was not asked: then the rule alone decided."""
    cells = [cell for cell in session.cells if cell.turn == turn]
    return {"cell": str(cells[-1])} if cells else {}


_check_event = EventCheck(BridgeEvent, "bridgecore.messages", *get_args(Evidence))
_BYTES = frozenset({bytes})


def _is_header(header: object) -> bool:
    return isinstance(header, tuple) and list(map(type, header)) == [bytes, bytes]


# What the upstream said of the frame before, by closing its connection or in words.
_TOO_LARGE = ErrorFrame(
    status=413,
    code="request_too_large",
    message="The upstream does not take a request of this size: it has refused this one before.",
)
_KIN = 64  # conversations of one family that are looked at, the latest used first
_CONTINUABLE = frozenset({ev.Outcome.COMPLETED, ev.Outcome.INCOMPLETE})
_MEMORY = 0  # the schedule's key for what is remembered; conversations count from 1
_UNANSWERED = frozenset({Phase.SENDING, Phase.SENT})
_ANSWERING = frozenset({Phase.CREATED, Phase.OUTPUT})
_PLAIN = frozenset({EventKind.OUTPUT, EventKind.PROGRESS, EventKind.OTHER})


def _is_answering(state: SessionState) -> bool:
    """Whether a ``response.created`` has come for the running turn, though it may be in doubt."""
    doubtful = state.running is not None and state.running.doubtful is not None
    return doubtful or state.phase in _ANSWERING


def _names(state: SessionState) -> tuple[str | None, ...]:
    """What an event may name as its response if it belongs to the running turn; None: nothing."""
    return (None,) if state.running is None else (None, *state.running.responses)


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
