"""One conversation: a chain of responses, with the session, the link and the turns that make it.

What belongs here: translating between messages and the session. A ``Conversation`` receives
messages about its turns and its link, reports them to its ``Session`` as events of
``bridgecore.recovery``, and returns the effects of the session as messages. It reads JSON events,
but no bytes of HTTP or WebSocket, and does not know other conversations. What to do about a loss is
decided by the session.

Call structure: ``Bridge`` calls the public methods, and each returns its effects in order.
``_read`` and what it calls turn upstream messages into events; ``_step`` passes an event to the
session; ``_carry_out`` and what it calls turn the session's effects into messages. ``_carry_out``
may call ``_step`` again: a frame that the upstream has refused for its size before is not sent,
and neither is anything of a conversation that is fenced; both are events in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, assert_never

import attrs

from bridgecore.api_error import (
    OWNER_LOST,
    OWNERSHIP_LOST,
    ApiError,
    owner_misdirected,
    render_answer,
)
from bridgecore.config import PeerUrl
from bridgecore.continuity.accounts import Accounts, account_of
from bridgecore.continuity.memory import Memory, RequestTemplate, Unstored
from bridgecore.continuity.refused import RefusedFrames
from bridgecore.errors import InternalError
from bridgecore.generation import Generation, HeldEvents
from bridgecore.messages import (
    AnswerEvents,
    BridgeEffect,
    CloseLink,
    FailAnswer,
    LinkLost,
    OpenLink,
    PauseLink,
    SendFrame,
)
from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.failure import (
    NO_REPLICA,
    ErrorFrame,
    Evidence,
    Failure,
    Malformed,
    NotDispatched,
    Unreachable,
)
from bridgecore.recovery.inflight import (
    ANSWERING,
    concerns_unsent,
    proves_no_websocket,
    proves_too_large,
)
from bridgecore.recovery.policy import Policy
from bridgecore.recovery.refusals import SocketRefusals
from bridgecore.recovery.rules import ENDED_RESPONSE
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import Phase
from bridgecore.recovery.timers import Deadline
from bridgecore.relay import Relay
from bridgecore.stragglers import is_answering, running_names, running_only
from bridgecore.telemetry import Log, LogLevel
from bridgecore.turns import RoutedTurn
from bridgecore.wire.decisions import logged_id
from bridgecore.wire.headers import Headers
from bridgecore.wire.responses import EventKind, UpstreamEvent, read_event
from bridgecore.wire.terminal import Terminal, read_terminal


@attrs.define
class Numbers:
    """Draws the numbers of a bridge's conversations, links and own turns. None is used twice."""

    last: int = 0

    def next(self) -> int:
        """The next unused number, from 1 on."""
        self.last += 1
        return self.last


@attrs.define(eq=False)
class Shared:
    """What all conversations of one bridge use together. ``refused``: frames that the upstream took
    for too large on a WebSocket, ``refused_http``: those over HTTP. ``sockets``: what else it has
    refused on one. ``max_held``: bytes of events that a link may hold back, so that an upstream
    cannot fill the memory before its first output. ``log_level``: log records below it are not
    made. ``shortcuts``: see ``Config``."""

    policy: Policy
    memory: Memory
    refused: RefusedFrames
    max_held: int
    log_level: LogLevel = LogLevel.DEBUG
    shortcuts: bool = True
    refused_http: RefusedFrames = attrs.Factory(RefusedFrames)
    sockets: SocketRefusals = attrs.Factory(SocketRefusals)
    numbers: Numbers = attrs.Factory(Numbers)


@attrs.frozen
class ForwardTarget:
    """Another replica, which owns what forwarded turns continue: where it takes them, and the
    incarnation of its lease. ``replica``: its name; ``remaining``: ns until its lease ends unless
    it is renewed, as the store has said it."""

    url: PeerUrl
    lease: str
    replica: str = ""
    remaining: int = 0


@attrs.frozen
class Returned:
    """The number of a turn that its owner has not sent, and how that became known. ``rejected``,
    ``by``: see ``NotDispatched``."""

    turn: int
    failure: Failure | None
    rejected: bool = False
    by: str | None = None


@attrs.define(eq=False)
class Conversation:
    """One conversation. Its methods handle a message each and return the effects, in order.

    ``scope``: the tenant; the bridge never brings a turn of another one here. ``headers``: for the
    upgrade request of the next link, or for requests over HTTP, from the latest turn that came
    while no other was running.
    ``retired``: the session is over; the bridge then drops the conversation. ``key``: names it in
    the store, empty without one. ``fenced``: another replica may own it, so nothing more is sent.
    ``owner``: the replica to which it leads, if its turns are forwarded there. Then nothing about
    its responses is kept here, and a turn that its owner has not sent is ``returned``.
    ``misdirected``: what has answered there is no replica.
    """

    id: int
    scope: str
    session: Session
    headers: Headers
    shared: Shared
    key: bytes = b""
    fenced: bool = False
    owner: ForwardTarget | None = None
    misdirected: bool = False
    returned: Returned | None = None  # the turn that is to be routed again
    turns: dict[int, RoutedTurn] = attrs.Factory(dict)  # running and waiting, by number
    link: Generation | None = None  # the current one
    template: RequestTemplate | None = None  # from its latest turn; only if rotation is warm
    warmed: bool = False  # the last preload has not been used by a turn yet
    retired: bool = False
    accounts: Accounts = attrs.Factory(Accounts)  # tokens and bytes saved and spent in it
    unmatched: int = 0  # upstream events that belong to no turn, for the log
    # Of the responses that the current call has ended and that can be continued, by turn: what is
    # to be committed before their terminal events are shown; the ids of those of another replica.
    unstored: dict[int, Unstored] = attrs.Factory(dict)
    remembered: dict[int, list[str]] = attrs.Factory(dict)
    _relay: Relay | None = None  # valid while the session has the same state
    _out: list[BridgeEffect] = attrs.Factory(list)  # effects of the current call

    # ------------------------------------------------------------ properties

    @property
    def running(self) -> RoutedTurn | None:
        """The turn that the session is running, if any."""
        running = self.session.state.running
        return None if running is None else self.turns.get(running.turn.id)

    @property
    def spare(self) -> bool:
        """Whether it can be evicted: no client's turn runs or waits. A preload does not count."""
        return self.session.state.idle or self._only_warms

    @property
    def _only_warms(self) -> bool:
        turn = self.running
        return turn is not None and turn.warms and not self.session.state.waiting

    def next_timeout(self) -> Deadline | None:
        """When to call ``timeout`` (ns), and why; None if there is no deadline."""
        return self.session.next_timeout()

    # ------------------------------------------------------------ turns

    def submit(self, turn: RoutedTurn, headers: Headers, now: int) -> list[BridgeEffect]:
        """Take in a turn that was routed here: run it, or queue it behind the running one.
        ``headers``: for an upgrade request, if the turn opens a link."""
        if self.session.state.running is None:
            self.headers = headers
        self.warmed = False
        self.turns[turn.id] = turn
        self._log(LogLevel.DEBUG, "turn.received", **_about(turn), standing=_standing(turn))
        self._submit(turn, now)
        return self._take()

    def _submit(self, turn: RoutedTurn, now: int) -> None:
        submitted = ev.Turn(turn.id, turn.recall.standing, turn.recall.anchor)
        self._step(ev.TurnSubmitted(submitted, turn.deadline), now)

    def abandon(self, number: int, error: ApiError | None, now: int) -> list[BridgeEffect]:
        """End a turn whose client is gone, or, with ``error``, that the driver has ended so."""
        turn = self.turns.pop(number)
        self._step(ev.TurnAbandoned(number), now)
        if error is None:
            self._log(LogLevel.INFO, "turn.abandoned", **_about(turn))
        else:
            self._log(LogLevel.WARNING, "turn.cut_off", **_about(turn), code=error.code)
        return self._take()

    def block(self, number: int, now: int) -> list[BridgeEffect]:
        """Stop reading the link, because the client of a turn does not read its answer."""
        turn, link = self.running, self.link
        if (
            turn is not None
            and turn.id == number
            # Before the answer begins there is nothing to relay, and if the link were not read
            # then, response.created would be taken for missing at its deadline.
            and self.session.state.phase in ANSWERING
            and link is not None
            and link.paused_for is None
        ):
            link.paused_for = number
            self._out.append(PauseLink(link.number, True))
            self._step(ev.RelayPaused(number, True), now)
        return self._take()

    def unblock(self, number: int, now: int) -> list[BridgeEffect]:
        """Read the link again: the client of the turn has caught up."""
        if self._resume(number):
            self._step(ev.RelayPaused(number, False), now)
        return self._take()

    def _resume(self, number: int) -> bool:
        """Read the link again, if it was paused for this turn; whether it was."""
        link = self.link
        if link is None or link.paused_for != number:
            return False
        link.paused_for = None
        self._out.append(PauseLink(link.number, False))
        return True

    # ------------------------------------------------------------ the link

    def opened(self, messages: list[bytes], now: int) -> list[BridgeEffect]:
        """The link is open. ``messages``: read together with the answer to the upgrade, so before
        any frame was sent."""
        link = self._present_link
        early = _early(link.number, self.shared.policy.timeouts.lifetime)
        remembers = ev.Remembers.STORED if link.http else ev.Remembers.LATEST
        link.reading = True
        self._step(ev.ConnectionOpened(link.generation, early, remembers), now)
        for message in messages:
            event = read_event(message)
            if event is None:
                self._count_noise(link, message)
            elif event.kind is EventKind.OTHER and link.held.has_room_for(event):
                link.held.hold(event)  # such as codex.rate_limits
            else:
                self._before_the_frame(link, event, now)
        unsent = link.end_read()
        if self.link is link:
            self._out += unsent
        return self._take()

    def frame_sent(self, whole: bool, now: int) -> list[BridgeEffect]:
        """The operating system has taken the turn's frame (``whole``) or another part of it."""
        self._step(ev.FrameSent(self._present_link.generation, whole), now)
        return self._take()

    def lost(self, loss: LinkLost, now: int) -> list[BridgeEffect]:
        """The link was lost, or could not be opened."""
        self._connection_lost(self._present_link, loss.cause, loss.error, now, unsent=loss.unsent)
        return self._take()

    @property
    def relay(self) -> Relay | None:
        """The shortcut for the running answer, while it is in its output and its client has
        received the beginning; see ``bridgecore.relay``."""
        if self._relay is None or not self._relay.valid:
            turn, link = self.running, self.link
            output = self.session.state.phase is Phase.OUTPUT
            if turn is None or link is None or not output or not turn.opened or turn.warms:
                self._relay = None
            else:
                self._relay = Relay.of(turn.id, self.session, link)
        return self._relay

    def received(
        self, messages: list[bytes], lost: LinkLost | None, now: int
    ) -> list[BridgeEffect]:
        """Handle the messages of one read. ``lost``: the loss of the link, if the same read had it.

        A frame to which the messages lead is sent only after all of them, if the link is not lost:
        on a link that has ended it would only make the outcome of its turn ambiguous.
        """
        link = self._present_link
        link.reading = True
        self._read(link, messages, now)
        unsent = link.end_read()
        if self.link is link:
            if lost is None:
                self._out += unsent
            else:
                held = bool(unsent) or lost.unsent
                self._connection_lost(link, lost.cause, lost.error, now, unsent=held)
        return self._take()

    @property
    def _present_link(self) -> Generation:
        if self.link is None:
            raise InternalError(f"conversation {self.id} has no link, but got an event of one")
        return self.link

    # ------------------------------------------------------------ eviction and deadlines

    def evict(self, now: int) -> list[BridgeEffect]:
        """Close the link and retire the session, to make room, unless a client's turn runs or
        waits."""
        turn = self.running
        if turn is not None and self._only_warms:
            del self.turns[turn.id]
            self._step(ev.TurnAbandoned(turn.id), now)
        self._step(ev.EvictionRequested(), now)
        return self._take()

    def fence(self, now: int) -> list[BridgeEffect]:
        """Send nothing more: this replica does not own the conversation any more.

        A turn that was sent goes on to its end. Turns that wait for it are refused at once, so that
        their clients' retries find the new owner.
        """
        self.fenced = True
        for waiting in self.session.state.waiting:
            turn = self.turns.pop(waiting.turn.id)
            self._step(ev.TurnAbandoned(turn.id), now)
            self._out.append(FailAnswer(turn.id, OWNERSHIP_LOST))
            self._log(LogLevel.WARNING, "turn.refused", **_about(turn), code=OWNERSHIP_LOST.code)
        self._log(LogLevel.WARNING, "session.fenced")
        return self.evict(now) if self.spare else self._take()

    def timeout(self, now: int) -> list[BridgeEffect]:
        """A deadline may have passed. If none has, nothing happens."""
        before = self.session.state
        effects = self.session.handle_timeout(now)
        if self.session.state is not before:
            self._log(LogLevel.DEBUG, "session.deadline")
        self._carry_out(effects, now, None)
        return self._take()

    def _take(self) -> list[BridgeEffect]:
        out, self._out = self._out, []
        return out

    # ------------------------------------------------------------ upstream messages

    def _read(self, link: Generation, messages: list[bytes], now: int) -> None:
        """Handle the messages of one read.

        This is the hot path. Once a turn has output, its deltas lead to no decision: they are
        collected in ``plain`` and delivered together, without an event of the session for each.
        """
        session = self.session
        plain: list[UpstreamEvent] = []  # deltas of the running turn that are not delivered yet
        # Computed after each decision and not for each delta.
        in_output, names = session.state.phase is Phase.OUTPUT, running_names(session.state)
        for message in messages:
            event = read_event(message)
            if event is None:
                if self._count_noise(link, message):
                    continue
                self._flush(plain, now)
                self._give_up(link, now)
                return
            link.noise = link.noise_size = 0
            own = in_output and event.kind in _PLAIN and event.response in names
            if own and not link.stragglers.concerns(event):
                plain.append(event)
                continue
            if link.unsent:
                self._before_the_frame(link, event, now)
            elif link.stragglers.is_late(event, answering=is_answering(session.state)):
                self.unmatched += 1
            elif own:
                link.stragglers.note(event)
                plain.append(event)
                continue
            else:
                self._flush(plain, now)
                self._upstream_event(link, event, now)
            in_output, names = session.state.phase is Phase.OUTPUT, running_names(session.state)
            if self.link is not link:
                return  # the link was closed: the rest of this read belongs to no turn
        self._flush(plain, now)

    def _flush(self, plain: list[UpstreamEvent], now: int) -> None:
        """Deliver output that needs no decision. The session gets only its time, for its
        deadlines."""
        if plain:
            self.session.touch(now)
            turn = self.running
            if turn is not None:
                self._answer(turn, plain.copy())
            plain.clear()

    def _count_noise(self, link: Generation, message: bytes) -> bool:
        """Count a message that is no event, such as a blank frame; False if there were too many."""
        self.unmatched += 1
        return link.count_noise(len(message))

    def _give_up(self, link: Generation, now: int) -> None:
        """Close a link that sends nothing but noise. To the session it is lost."""
        self._out.append(CloseLink(link.number))
        unsent = bool(link.end_read())
        self._connection_lost(link, Malformed("nothing but noise"), None, now, unsent=unsent)

    def _before_the_frame(self, link: Generation, event: UpstreamEvent, now: int) -> None:
        """Handle an event that was read before the turn's frame was sent, so that it cannot be an
        answer to it. Only an error can matter then; see ``concerns_unsent``."""
        if event.kind is EventKind.ERROR:
            error = event.error
            if concerns_unsent(error):
                link.unsent.clear()
                self._step(ev.UpstreamRefused(link.generation, error, unsent=True), now, event)
                return
        self.unmatched += 1

    def _upstream_event(self, link: Generation, upstream: UpstreamEvent, now: int) -> None:
        """Report an upstream event to the session, in the session's terms."""
        kind, generation, named = upstream.kind, link.generation, upstream.response
        turn = self.running
        error_before = turn.error if turn is not None else None
        terminal: Terminal | None = None
        event: ev.Event | None
        if kind is EventKind.CREATED:
            event = ev.ResponseCreated(generation, named)
        elif kind is EventKind.ENDED:
            streamed = turn.items if turn is not None else []
            terminal = read_terminal(upstream, streamed, shortcuts=self.shared.shortcuts)
            event = self._ended(link, turn, upstream, terminal)
        elif kind is EventKind.ERROR:
            event = self._refused(link, turn, upstream.error, now)
        elif kind is EventKind.OTHER and self.session.state.phase not in ANSWERING:
            event = self._unknown(link, turn, upstream)
            if event is None:
                return
        else:
            room = link.held.has_room_for(upstream)
            event = ev.OutputReceived(generation, kind is EventKind.OUTPUT, room, named)
        self._step(event, now, upstream, terminal)
        if kind is EventKind.CREATED and turn is not None and turn.opened:
            turn.stored = upstream.stored
        if turn is not None and self.session.rule == ENDED_RESPONSE:
            turn.error = error_before  # the event's error was about a response that has ended
        if self.session.state.phase is Phase.OUTPUT:
            link.stragglers.note(upstream)

    def _refused(
        self, link: Generation, turn: RoutedTurn | None, error: ErrorFrame, now: int
    ) -> ev.Event:
        """An error frame, as an event of the session."""
        if turn is not None:
            turn.error = error
            self._remember_size(link, turn, error, now)
        return ev.UpstreamRefused(link.generation, error)

    def _unknown(
        self, link: Generation, turn: RoutedTurn | None, upstream: UpstreamEvent
    ) -> ev.Event | None:
        """Hold back an event of an unknown type until the answer begins. If the buffer is full, the
        upstream does not speak the protocol: then an event for the session is returned."""
        if turn is None:
            self.unmatched += 1
        elif link.held.has_room_for(upstream):
            link.held.hold(upstream)
        else:
            return ev.OutputReceived(link.generation, bearing=False, room=False)
        return None

    def _ended(
        self,
        link: Generation,
        turn: RoutedTurn | None,
        upstream: UpstreamEvent,
        terminal: Terminal | None,
    ) -> ev.Event:
        """A terminal event, as an event of the session."""
        generation = link.generation
        if terminal is None:
            cause = Malformed("a terminal event without a response that can be read")
            return ev.ResponseEnded(generation, ev.Outcome.FAILED, upstream.response, cause)
        error = None
        if terminal.outcome is ev.Outcome.FAILED:
            error = terminal.event.error
            if turn is not None:
                turn.error = error
        response = terminal.response_id
        if turn is not None and turn.warms and response and turn.recall.anchor:
            # The preloaded response has the same context as the client's, so the session treats it
            # as that one. On this connection its id is sent in place of the client's.
            link.stand_in = turn.recall.anchor, response
            response = turn.recall.anchor
        return ev.ResponseEnded(generation, terminal.outcome, response, error)

    def _connection_lost(
        self,
        link: Generation,
        cause: Evidence,
        error: ErrorFrame | None,
        now: int,
        *,
        unsent: bool,
    ) -> None:
        """Report the loss of the link. ``unsent``: the frame of the running turn was not sent."""
        self.link = None
        turn = self.running
        if turn is not None and error is not None:
            turn.error = error
        if turn is not None and not unsent:
            self._remember_size(link, turn, cause, now)
        if proves_no_websocket(cause):
            self.shared.sockets.refused(now)
        self.misdirected = self.owner is not None and cause == NO_REPLICA
        self._step(ev.ConnectionLost(link.generation, cause, unsent), now)
        if self.returned is not None and isinstance(cause, NotDispatched):
            self.returned = attrs.evolve(self.returned, rejected=cause.rejected, by=cause.by)
        self._log(LogLevel.INFO, "session.connection_lost")

    def _remember_size(self, link: Generation, turn: RoutedTurn, cause: Evidence, now: int) -> None:
        """If ``cause`` proves that the turn's frame is too large, do not send that frame again in
        the same way."""
        if turn.frame and proves_too_large(self.session.state, cause):
            self._too_large(link).add(turn.recall.scope, turn.frame)
            if not link.http:
                self.shared.sockets.too_large(len(turn.frame), now)

    def _too_large(self, link: Generation) -> RefusedFrames:
        """The frames that the upstream does not take on a link of that kind."""
        return self.shared.refused_http if link.http else self.shared.refused

    # ------------------------------------------------------------ the session's effects

    def _step(
        self,
        event: ev.Event,
        now: int,
        upstream: UpstreamEvent | None = None,
        terminal: Terminal | None = None,
    ) -> None:
        """Pass ``event`` to the session and carry out its effects. ``upstream``: the upstream event
        behind it, if any; ``terminal``: the same, parsed, if it is a terminal event."""
        self._carry_out(self.session.handle(event, now), now, upstream, terminal)

    def _carry_out(
        self,
        effects: tuple[fx.Effect, ...],
        now: int,
        upstream: UpstreamEvent | None,
        terminal: Terminal | None = None,
    ) -> None:
        for effect in effects:
            if self.returned is not None:
                return  # all that follows is about the turn that leaves this conversation
            match effect:
                case fx.DeliverEvent():
                    self._deliver_or_hold(effect, upstream)
                case fx.CompleteTurn():
                    if upstream is not None and terminal is not None:
                        self._complete(effect, upstream, terminal, now)
                case fx.FailTurn():
                    self._fail(effect)
                case fx.SendTurn():
                    self._send(effect, now)
                case fx.OpenConnection():
                    self._open(effect, now)
                case fx.CloseConnection():
                    self._close()
                case fx.RetireSession():
                    self.retired = True
                    # The number of unmatched events is logged once, at the end.
                    self._log(LogLevel.DEBUG, "session.retired", unmatched=self.unmatched)
                case fx.Ignored():
                    self.unmatched += upstream is not None
                    self._log(LogLevel.DEBUG, "session.ignored", reason=effect.reason)
                case fx.StopInjecting():
                    if (turn := self.turns.get(effect.turn)) is not None:
                        self.shared.memory.injection_refused(turn.recall)
                case fx.StopRebuilding():
                    if (turn := self.turns.get(effect.turn)) is not None:
                        self.shared.memory.rebuild_refused(turn.recall)
                case fx.WarmSession():
                    self._warm(effect.anchor, now)
                case fx.RebindSession(failure):
                    cause = "none" if failure is None else failure.detail
                    self._log(LogLevel.INFO, "session.rebound", cause=cause)
                    self._return(failure, now)
                case _:
                    assert_never(effect)

    def _return(self, failure: Failure | None, now: int) -> None:
        """Hand the running turn back: its owner has not sent it, so this replica may take it over,
        once it owns the conversation. That is decided before a turn is routed."""
        turn = self.running
        if turn is None:
            return
        self.returned = Returned(turn.id, failure)
        del self.turns[turn.id]
        self.session.handle(ev.TurnAbandoned(turn.id), now)

    # ------------------------------------------------------------ links and frames

    def _open(self, effect: fx.OpenConnection, now: int) -> None:
        http = effect.http or (self.owner is None and self.shared.sockets.http(now))
        turn = self.running
        if self.fenced or (http and turn is not None and turn.warms):
            cause = _NOT_OWNED if self.fenced else _NOTHING_TO_PRELOAD
            self._step(ev.ConnectionLost(effect.generation, cause), now)
            return
        number = self.shared.numbers.next()
        held = HeldEvents(self.shared.max_held)
        self.link = Generation(number, effect.generation, held, http)
        self.misdirected = False
        self._out.append(
            OpenLink(number, self.headers, None if self.owner is None else self.owner.url, http)
        )
        self._log(LogLevel.INFO, "session.connect", **({"over": "http"} if http else {}))

    def _close(self) -> None:
        if self.link is not None:
            self._out.append(CloseLink(self.link.number))
            self.link = None
            self._log(LogLevel.INFO, "session.close")

    def _send(self, effect: fx.SendTurn, now: int) -> None:
        """Send a turn's frame, unless the upstream has refused the same one for its size before."""
        turn, link = self.turns.get(effect.turn), self.link
        if turn is None or link is None:
            return
        if self.fenced:
            self._out.append(CloseLink(link.number))
            self._connection_lost(link, _NOT_OWNED, None, now, unsent=True)
            return
        turn.begin_attempt()
        link.held.take()  # drop events of an earlier attempt or of a response that has ended
        link.stragglers.begin()
        frame = turn.recall.frame(effect.form, self._stand_in(link, turn))
        turn.form, turn.sent, turn.frame = effect.form, len(frame), frame
        known = (turn.recall.scope, frame) in self._too_large(link)
        if known or not (link.http or self.shared.sockets.takes(len(frame), now)):
            turn.error = _TOO_LARGE
            self._step(ev.UpstreamRefused(effect.generation, _TOO_LARGE, unsent=True), now)
            return
        turn.cell = _cell(self.session, turn.id)
        out = link.unsent if link.reading else self._out
        headers = self.headers if link.http else []
        if turn.sign is not None:
            headers = turn.sign(frame, now)
        out.append(SendFrame(link.number, frame, headers))
        if self.shared.log_level <= LogLevel.DEBUG:
            out.append(self._line(LogLevel.DEBUG, "turn.sent", {**_about(turn), **_sent(turn)}))

    def _stand_in(self, link: Generation, turn: RoutedTurn) -> str | None:
        """The id to send in place of the turn's anchor, if the connection was preloaded with that
        context and still has it cached; else None."""
        if link.stand_in is None:
            return None
        anchor, stand_in = link.stand_in
        known = self.session.state.cached_response == anchor == turn.recall.anchor
        return stand_in if known else None

    def _warm(self, anchor: str, now: int) -> None:
        """Preload a new connection with the context (``generate: false``).

        Skipped if no turn came since the last preload, or a conversation that is no longer used
        would be preloaded for ever, and each time costs its input tokens.
        """
        if self.template is None or self.warmed or self.shared.sockets.http(now):
            return
        recall = self.shared.memory.warm_up(self.scope, anchor, self.template, now)
        if recall is None:
            return
        self.warmed = True
        # Turns of clients have numbers from 0 up, so a negative one is free.
        turn = RoutedTurn(-self.shared.numbers.next(), recall, warms=True)
        self.turns[turn.id] = turn
        self._submit(turn, now)

    # ------------------------------------------------------------ answers

    def _deliver_or_hold(self, effect: fx.DeliverEvent, upstream: UpstreamEvent | None) -> None:
        turn = self.turns.get(effect.turn)
        if upstream is None:
            return
        if effect.held:
            if self.link is not None:
                self.link.held.hold(upstream)
        elif turn is not None:
            running = self.session.state.running
            self._deliver(turn, upstream, running.responses if running is not None else ())

    def _deliver(self, turn: RoutedTurn, event: UpstreamEvent, names: Sequence[str]) -> None:
        """Deliver an event and the events that were held back. ``names``: ids of the response.

        The order is that of arrival, but ``response.created`` comes first.
        """
        turn.frame = b""
        held = self._release_held(names)
        self._answer(turn, [event, *held] if event.kind is EventKind.CREATED else [*held, event])

    def _release_held(self, names: Sequence[str]) -> list[UpstreamEvent]:
        if self.link is None or not self.link.held.events:
            return []
        held = self.link.held.take()
        own = running_only(held, self.session.state, names)
        self.unmatched += len(held) - len(own)
        return own

    def _answer(self, turn: RoutedTurn, events: list[UpstreamEvent]) -> None:
        """Deliver events to a turn's client. Those of one read share one effect, so one write."""
        shown = turn.deliver(events, self.id)
        if not shown:
            return
        last = self._out[-1] if self._out else None
        if isinstance(last, AnswerEvents) and last.turn == turn.id:
            last.events.extend(shown)
        else:
            self._out.append(AnswerEvents(turn.id, shown))

    def _complete(
        self, effect: fx.CompleteTurn, upstream: UpstreamEvent, terminal: Terminal, now: int
    ) -> None:
        """Deliver the terminal event of a turn, and remember the response."""
        turn, link = self.turns.get(effect.turn), self.link
        if turn is None:
            return
        if link is not None:
            # Events that were taken for an earlier response's and belong to this one.
            claimed = link.stragglers.claim(upstream, terminal.items)
            self.unmatched -= len(claimed)
            for event in claimed:
                self._deliver(turn, event, effect.responses)
        self._deliver(turn, terminal.event, effect.responses)
        del self.turns[turn.id]
        if link is not None:
            link.stragglers.ended(upstream, effect.responses)
        if turn.warms:
            self._warmed(turn, terminal)
            return
        ids = turn.response_ids(terminal, effect.responses)
        account = self._account(turn, terminal, ids)
        if self.owner is not None:
            self.remembered[turn.id] = ids
        else:
            self._remember(turn, terminal, ids, now)
        self._resume(turn.id)
        # A turn that was forwarded is logged as completed by its owner: once, under one request id.
        level = LogLevel.INFO if self.owner is None else LogLevel.DEBUG
        if level < self.shared.log_level:
            return
        self._log(
            level,
            "turn.completed",
            **_about(turn),
            **_sent(turn),
            outcome=terminal.outcome.value,
            response=logged_id(ids[0] if ids else None),
            input_tokens=terminal.usage[0],
            output_tokens=terminal.usage[1],
            bytes_saved=account.bytes_saved,
            bytes_spent=account.bytes_spent,
            tokens_saved=account.tokens_saved,
            tokens_spent=account.tokens_spent,
        )

    def _account(self, turn: RoutedTurn, terminal: Terminal, ids: list[str]) -> Accounts:
        """The tokens and bytes that continuity saved and cost in a completed turn."""
        if not ids or terminal.outcome is not ev.Outcome.COMPLETED or self.owner is not None:
            return Accounts()  # a forwarded turn is its owner's to count
        account = account_of(turn.recall, turn.form, turn.sent)
        self.accounts += account
        return account

    def _remember(self, turn: RoutedTurn, terminal: Terminal, ids: list[str], now: int) -> None:
        """Remember the response, if it can be continued: a failed one cannot."""
        if not ids or terminal.outcome not in _CONTINUABLE:
            return
        stored = turn.stored if terminal.store is None else terminal.store
        tokens = sum(terminal.usage)
        unstored = self.shared.memory.remember(
            turn.recall, ids, terminal.output, self.id, tokens, now, stored=stored
        )
        if unstored is not None:
            self.unstored[turn.id] = unstored
        if self.shared.policy.budgets.warm:
            self.template = turn.recall.template(self.template)

    def _warmed(self, turn: RoutedTurn, terminal: Terminal) -> None:
        tokens, outcome = terminal.usage[0], terminal.outcome
        if outcome is ev.Outcome.COMPLETED:
            self.accounts += Accounts(warmed=1, bytes_spent=turn.sent, tokens_spent=tokens)
        fields = {"outcome": outcome.value, "input_tokens": tokens, "bytes_spent": turn.sent}
        self._log(LogLevel.INFO, "session.warmed", **fields)

    def _fail(self, effect: fx.FailTurn) -> None:
        """End a turn's answer with an error."""
        turn = self.turns.pop(effect.turn, None)
        if turn is None:
            return
        cause = effect.failure.detail if effect.failure is not None else "none"
        if turn.warms:
            self._log(LogLevel.INFO, "session.not_warmed", cause=cause)
            return
        anchor = turn.recall.request.previous_response_id
        if effect.answer is fx.FailureReply.OWNER_UNREACHABLE and self.owner is not None:
            error = owner_misdirected(self.owner.remaining) if self.misdirected else OWNER_LOST
        else:
            error = render_answer(effect.answer, effect.failure, turn.error, anchor)
        self._out.append(FailAnswer(turn.id, error))
        self._resume(turn.id)
        fields = _sent(turn) if turn.sent else {"standing": _standing(turn)}
        fields["anchor"] = logged_id(anchor)  # the client's own
        self._log(
            LogLevel.WARNING,
            "turn.refused",
            **_about(turn),
            **{**fields, **_cell(self.session, turn.id)},
            status=error.status,
            code=error.log_code,
            cause=cause,
            # How often turns with this anchor were refused; the policy has a limit.
            refusals=dict(self.session.state.refusals).get(turn.recall.anchor, 0),
        )

    # ------------------------------------------------------------ log lines

    def _log(self, level: LogLevel, event: str, **fields: str | int) -> None:
        """Add a log record to the effects, if records of its level are made."""
        if level >= self.shared.log_level:
            self._out.append(self._line(level, event, fields))

    def _line(self, level: LogLevel, event: str, fields: dict[str, str | int]) -> Log:
        fields["session"] = self.id
        fields["generation"] = self.session.state.generation
        fields["rule"] = self.session.rule
        if "request_id" not in fields and (running := self.running) is not None:
            # A record about the session is also about the request that it is serving.
            fields["request_id"] = running.request
        return Log(level, event, fields)


# The error for a frame that the upstream has refused for its size before, with an error or by
# closing the connection.
_TOO_LARGE: Final = ErrorFrame(
    status=413,
    code="request_too_large",
    message="The upstream does not take a request of this size: it has refused this one before.",
)
# The cause for a turn that must not be sent, because this replica does not own its conversation.
_NOT_OWNED: Final = Unreachable("not owned")
# The same for a preload of a connection that would speak HTTP, and remember nothing.
_NOTHING_TO_PRELOAD: Final = Unreachable("over HTTP")
_CONTINUABLE: Final = frozenset({ev.Outcome.COMPLETED, ev.Outcome.INCOMPLETE})
_PLAIN: Final = frozenset({EventKind.OUTPUT, EventKind.PROGRESS, EventKind.OTHER})


def _about(turn: RoutedTurn) -> dict[str, str | int]:
    return {"turn": turn.id, "request_id": turn.request}


def _standing(turn: RoutedTurn) -> str:
    return str(turn.recall.standing.value)


def _sent(turn: RoutedTurn) -> dict[str, str | int]:
    """How a turn was sent, the latest time: the log fields of ``turn.sent``."""
    return {
        "standing": _standing(turn),
        "form": turn.form.value,
        "bytes": turn.sent,
        # Bytes less than the client sent; negative if the context was added.
        "saved": turn.recall.request.size - turn.sent,
        "anchor": logged_id(turn.recall.anchor),
        **turn.cell,
    }


def _cell(session: Session, turn: int) -> dict[str, str]:
    """The log field that names the cell of the policy's table that has just decided about ``turn``;
    empty if a rule decided without the table."""
    cells = [cell for cell in session.cells if cell.turn == turn]
    return {"cell": str(cells[-1])} if cells else {}


def _early(link: int, lifetime: int) -> int:
    """How many ns before the end of its lifetime the connection of ``link`` is replaced: up to a
    tenth of the lifetime. Connections that were opened together, for example after a deploy, must
    not all be replaced together. Multiples of the golden ratio spread them evenly, however many
    there are."""
    return (link * _GOLDEN % _RANGE) * (lifetime // 10) // _RANGE


_RANGE: Final = 1 << 32
_GOLDEN: Final = 2_654_435_769  # _RANGE divided by the golden ratio
