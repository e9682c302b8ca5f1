"""The moves that rules are made of.

What belongs here: a ``TransitionBuilder`` is one transition in the making. It holds the state so
far and the effects so far, and offers the few moves (connect, close, send, dispatch, recover, fail,
release) that every rule is written in, so that each decision stands in exactly one place.

The policy's table is read in two places. ``recover`` reads the cell that decides about a loss or a
refusal, and notes it in ``cells``. ``deliver`` reads ahead: what a loss right now would lead to
tells whether the event is held back. Nothing is lost then, so that cell is no decision about the
turn, and is noted apart, as ``foreseen``.

A builder lives inside one ``step`` and never leaves it; from outside, ``step`` is a pure function.
"""

from __future__ import annotations

from typing import assert_never

import attrs

from bridgecore.errors import InternalError
from bridgecore.recovery import effects as fx
from bridgecore.recovery.effects import Effect, FailureReply, RequestForm
from bridgecore.recovery.events import Standing
from bridgecore.recovery.failure import Failure, FailureKind
from bridgecore.recovery.policy import Action, Cell, Policy, Situation
from bridgecore.recovery.state import AttemptPhase, Lifecycle, Running, SessionState, Waiting
from bridgecore.recovery.timers import Timer, Timers

_USABLE = (Lifecycle.OPEN, Lifecycle.SEND_SKIPPED)
# Where the upstream may have the turn already: starting over is a replay, whatever the cell says.
_UNANSWERED = {Situation.LOST_SENDING, Situation.LOST_SENT, Situation.SILENT}
_ANSWERING = {Situation.LOST_CREATED, Situation.LOST_OUTPUT, Situation.OWNER_LOST_OUTPUT}
_DISPATCHED = frozenset({*_UNANSWERED, *_ANSWERING, Situation.OWNER_LOST_DISPATCHED})
_FORMS = {
    Action.SEND: RequestForm.AS_IS,
    Action.REHYDRATE: RequestForm.REHYDRATED,
    Action.SEND_FULL: RequestForm.CLIENT_FULL,
}
_ANCHORS_COUNTED = 32  # for how many anchors refusals are counted; the oldest go first
# How many ids are remembered of one answer, and of answers that have ended on a socket. An upstream
# uses one or two for an answer; stragglers come right after the end, so a few answers are enough.
_IDS_OF_ONE = 8
_IDS_ENDED = 16


class TransitionBuilder:
    """One transition in the making. Not for use outside ``recovery``.

    It has the fields of ``SessionState``, to be changed in place, ``timers`` as a dict. ``phase``
    is where the session stood when the event came, ``running`` the turn that has the session.
    ``cells`` and ``foreseen`` are those of ``Transition``.
    """

    def __init__(self, policy: Policy, state: SessionState, now: int) -> None:
        self.policy, self.now, self.phase = policy, now, state.phase
        self.effects: list[Effect] = []
        self.cells: tuple[Cell, ...] = ()
        self.foreseen: Cell | None = None
        self.lifecycle, self.generation = state.lifecycle, state.generation
        self.cached_response, self.taken, self.waiting = (
            state.cached_response,
            state.running,
            state.waiting,
        )
        self.ended = state.ended
        self.refusals, self.past_lifetime, self.remote = (
            state.refusals,
            state.past_lifetime,
            state.remote,
        )
        self.timers = dict(state.timers.entries)

    def finish(self) -> SessionState:
        """The state that the moves have led to."""
        timers = Timers.of(self.timers)
        socket = (self.lifecycle, self.generation, self.cached_response, self.ended)
        turns = (self.taken, self.waiting, self.refusals)
        return SessionState(*socket, *turns, self.past_lifetime, self.remote, timers)

    @property
    def running(self) -> Running:
        """The turn that has the session; only for rules of phases that have one."""
        if self.taken is None:
            raise InternalError("no turn runs")
        return self.taken

    @property
    def standing(self) -> Standing:
        """What is in hand for the running turn: without an anchor, once the client's own input went
        in place of an injected one."""
        running = self.running
        gone = RequestForm.CLIENT_FULL in (running.form, running.sent)
        return Standing.UNANCHORED if gone else running.turn.standing

    def emit(self, effect: Effect) -> None:
        self.effects.append(effect)

    def advance(self, phase: AttemptPhase, *, paused: bool = False) -> None:
        """Record how far the attempt has come, and whether its client reads too slowly."""
        self.taken = attrs.evolve(self.running, phase=phase, paused=paused)

    def name(self, response: str | None) -> None:
        """Record an id by which the upstream calls the response of the running turn."""
        known = self.running.responses
        if response is not None and response not in known and len(known) < _IDS_OF_ONE:
            self.taken = attrs.evolve(self.running, responses=(*known, response), doubtful=None)

    def end_response(self, response: str | None) -> None:
        """Record that the running turn's response has ended, under every id it was called by."""
        self.name(response)
        names = list(self.running.responses)
        if response is not None and response not in names:
            names.append(response)  # one of too many to be remembered before
        self.ended = (*[name for name in self.ended if name not in names], *names)[-_IDS_ENDED:]

    def set_timer(self, timer: Timer, after: int) -> None:
        """Make ``timer`` due ``after`` ns from now."""
        self.timers[timer] = self.now + after

    def clear_timer(self, *timers: Timer) -> None:
        for timer in timers:
            self.timers.pop(timer, None)

    def drop_waiting(self, turn: int) -> bool:
        """Take ``turn`` out of the queue; False if it does not wait."""
        before = self.waiting
        self.waiting = tuple(waiting for waiting in before if waiting.turn.id != turn)
        if self.taken is not None:
            self.time_turns()
        return len(self.waiting) < len(before)

    def run(self, waiting: Waiting) -> None:
        """Give the session to the turn."""
        self.taken = Running(waiting.turn, deadline=waiting.deadline)
        self.clear_timer(Timer.EXPIRY)
        self.time_turns()

    def time_turns(self) -> None:
        """Make the turns' timer due with the first of their budgets. As a rule that is the running
        one's; but a turn whose way here took longer may wait behind one that came later."""
        ends = [self.running.deadline, *[waiting.deadline for waiting in self.waiting]]
        self.timers[Timer.TURN] = min(ends)

    def deliver(self) -> None:
        """Pass the event at hand to the client; hold it back as long as the turn may be replayed,
        because the client must not see two answers begin (invariants 13, 14)."""
        running = self.running
        early = running.phase is AttemptPhase.CREATED and not self.remote
        held = False
        # The table is asked last: after output begins, as for most events, it makes no difference.
        if early and running.replays < self.policy.budgets.replays:
            self.foreseen = self._read(Situation.LOST_CREATED)
            held = self.foreseen.remedy.action is Action.RESEND
        self.emit(fx.DeliverEvent(running.turn.id, held))

    def hold(self) -> None:
        """The event at hand waits: it is not known yet whether it belongs to the running turn."""
        self.emit(fx.DeliverEvent(self.running.turn.id, held=True))

    def fail(self, answer: FailureReply, failure: Failure | None) -> None:
        """End the turn with ``answer``."""
        self.emit(fx.FailTurn(self.running.turn.id, answer, failure))
        self.release()

    def release(self) -> None:
        """The session is free: rotate a worn socket, then take the next turn or begin to idle."""
        self.taken = None
        self.clear_timer(Timer.CREATED, Timer.IDLE, Timer.TURN)
        if self.past_lifetime:
            self.rotate()
        if self.waiting:
            first, self.waiting = self.waiting[0], self.waiting[1:]
            self.run(first)
            self.start()
        else:
            self.set_timer(Timer.EXPIRY, self.policy.timeouts.expiry)

    def disconnected(self) -> None:
        """There is no socket any more, and what it remembered went with it."""
        self.lifecycle, self.cached_response, self.past_lifetime = Lifecycle.CLOSED, None, False
        self.ended = ()
        self.clear_timer(Timer.CONNECT, Timer.CREATED, Timer.IDLE, Timer.LIFETIME)

    def close(self) -> None:
        """Close the socket, or stop opening it; without one, do nothing."""
        if self.lifecycle is not Lifecycle.CLOSED:
            self.emit(fx.CloseConnection(self.generation))
            self.disconnected()

    def rotate(self) -> None:
        """Give up the socket for its age; the next turn opens another, or it is warmed now."""
        anchor = self.cached_response
        self.close()
        if self.policy.budgets.warm and anchor is not None and not self.waiting:
            self.emit(fx.WarmSession(anchor))

    def retire(self) -> None:
        """The session is over."""
        self.close()
        self.clear_timer(Timer.EXPIRY)
        self.emit(fx.RetireSession())

    def start(self) -> None:
        """Begin the turn: on the socket at hand or being opened, else on a new one."""
        if self.lifecycle in _USABLE:
            self.dispatch()
        elif self.lifecycle is Lifecycle.CLOSED:
            self._connect()

    def _connect(self) -> None:
        # A response.created in doubt was of the connection before.
        self.taken = attrs.evolve(self.running, phase=AttemptPhase.UNSENT, doubtful=None)
        if self.policy.budgets.reconnect_uses_replay and self.generation > 0:
            self.taken = attrs.evolve(self.taken, replays=max(self.taken.replays, 1))
        self.lifecycle = Lifecycle.RECONNECTING
        self.generation += 1
        self.set_timer(Timer.CONNECT, self.policy.timeouts.connect)
        self.emit(fx.OpenConnection(self.generation, self.remote))

    def dispatch(self) -> None:
        """Send the turn on the socket at hand, if the socket can know its anchor.

        The socket knows an anchor only if it made that very response last (invariant 2). If it
        does not, the send is skipped and the policy says how the turn goes on.
        """
        running = self.running
        anchor = running.turn.anchor
        # An owner may know it, unless it was asked already.
        owned = self.remote and FailureKind.NOT_FOUND not in running.recovered
        if running.form is not None:
            self._send(running.form)
        elif running.sent is RequestForm.CLIENT_FULL:
            self._send(running.sent)  # its injected anchor was given up for good
        elif anchor is None or anchor == self.cached_response or owned:
            self._send(RequestForm.AS_IS)
        else:
            self.lifecycle = Lifecycle.SEND_SKIPPED
            self.recover(Situation.SEND_SKIPPED, None)

    def _send(self, form: RequestForm) -> None:
        self.taken = attrs.evolve(
            self.running,
            phase=AttemptPhase.SENDING,
            form=None,
            sent=form,
            responses=(),
            doubtful=None,
        )
        self.lifecycle = Lifecycle.OPEN
        self.set_timer(Timer.CREATED, self.policy.timeouts.created)
        self.emit(fx.SendTurn(self.generation, self.running.turn.id, form))

    def _read(self, situation: Situation) -> Cell:
        """The cell of the policy's table for the running turn in ``situation``."""
        standing = self.standing
        remedy = self.policy.remedy(situation, standing)
        return Cell(self.running.turn.id, situation, standing, remedy)

    def recover(self, situation: Situation, failure: Failure | None) -> None:
        """Do for the running turn what the policy says about ``situation``."""
        cell = self._read(situation)
        self.cells += (cell,)
        action, answer = cell.remedy.action, cell.remedy.answer
        if action is Action.REBIND:
            self.emit(fx.RebindSession())
            self.remote = False
        match action:
            case Action.SEND | Action.REHYDRATE | Action.SEND_FULL | Action.RESEND | Action.REBIND:
                self._try_again(_FORMS.get(action), situation, failure, answer)
            case Action.SEND_OR_REHYDRATE:
                form = RequestForm.REHYDRATED if self._tried_in_vain() else RequestForm.AS_IS
                self._try_again(form, situation, failure, answer)
            case Action.REFUSE_BOUNDED:
                self._refuse_bounded(answer, failure)
            case Action.REFUSE_THEN_REHYDRATE:
                if self.running.sent is RequestForm.AS_IS:
                    self.count_refusal(self.running.turn.anchor)
                self.fail(answer, failure)
            case Action.SURFACE:
                self.fail(FailureReply.UPSTREAM_ERROR, failure)
            case Action.REFUSE | Action.FAIL:
                # When the reconnect for a resend fails, the client hears of the loss before it.
                before = self.running.fallback if situation is Situation.CONNECT_FAILED else None
                self.fail(before or answer, failure)
            case _:
                assert_never(action)

    def _try_again(
        self,
        form: RequestForm | None,
        situation: Situation,
        failure: Failure | None,
        answer: FailureReply,
    ) -> None:
        """Send once more, as ``form`` or as ``dispatch`` finds; out of budget, say ``answer``."""
        running = self.running
        if situation in _DISPATCHED:
            spent = running.replays >= self.policy.budgets.replays
            running = attrs.evolve(running, replays=running.replays + 1)
        elif failure is not None:
            # Each kind of refusal is recovered once a turn, and what was refused is not sent again
            # in the same form: it would be the same wedge.
            spent = failure.kind in running.recovered or (form is not None and form is running.sent)
            running = attrs.evolve(running, recovered=running.recovered | {failure.kind})
        else:
            # Starting over on the socket that was skipped would skip it again, for ever.
            spent = form is None
        if spent:
            self.fail(answer, failure)
            return
        self.taken = attrs.evolve(running, form=form, fallback=answer)
        self.start()

    def _refuse_bounded(self, answer: FailureReply, failure: Failure | None) -> None:
        anchor = self.running.turn.anchor
        if dict(self.refusals).get(anchor, 0) >= self.policy.budgets.refusals:
            self.fail(FailureReply.NOT_FOUND, failure)
            return
        self.count_refusal(anchor)
        self.fail(answer, failure)

    def count_refusal(self, anchor: str | None) -> None:
        """Count a refusal of ``anchor`` or, for an anchor that need not be sent, a try in vain."""
        used = dict(self.refusals).get(anchor, 0)
        most = max(1, self.policy.budgets.refusals)  # more of them change nothing any more
        self.forgive(anchor)
        self.refusals = (*self.refusals, (anchor, min(used + 1, most)))[-_ANCHORS_COUNTED:]

    def _tried_in_vain(self) -> bool:
        """Whether the anchor was sent before and led nowhere: it was not found or met silence."""
        running = self.running
        unknown = FailureKind.NOT_FOUND in running.recovered
        return unknown or dict(self.refusals).get(running.turn.anchor, 0) > 0

    def forgive(self, anchor: str | None) -> None:
        """Forget how often ``anchor`` was refused; the counts of other anchors stand."""
        self.refusals = tuple(entry for entry in self.refusals if entry[0] != anchor)
