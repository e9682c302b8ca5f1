"""The moves that rules are made of.

What belongs here: a ``Draft`` is one transition in the making. It holds the state so far and the
effects so far, and offers the few moves (connect, close, send, dispatch, recover, fail, release)
that every rule is written in, so that each decision stands in exactly one place. ``recover`` is the
only reader of the policy's table.

A draft lives inside one ``step`` and never leaves it; from outside, ``step`` is a pure function.
"""

from __future__ import annotations

from typing import assert_never

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery.effects import Answer, Effect, Form
from bridgecore.recovery.errors import InternalError
from bridgecore.recovery.events import Turn
from bridgecore.recovery.failure import Failure, FailureKind
from bridgecore.recovery.policy import Action, Policy, Situation
from bridgecore.recovery.state import AttemptPhase, Lifecycle, Running, SessionState, Waiting
from bridgecore.recovery.timers import Timer

# Situations in which the upstream may have the turn already: starting over is a replay.
_AMBIGUOUS = frozenset({Situation.LOST_SENDING, Situation.LOST_SENT, Situation.SILENT})
_USABLE = frozenset({Lifecycle.OPEN, Lifecycle.SEND_SKIPPED})


class Draft:
    """One transition in the making. Not for use outside ``recovery``."""

    __slots__ = ("effects", "now", "policy", "state")

    def __init__(self, policy: Policy, state: SessionState, now: int) -> None:
        self.policy = policy
        self.state = state
        self.now = now
        self.effects: list[Effect] = []

    # ------------------------------------------------------------ small changes

    @property
    def running(self) -> Running:
        """The turn that has the session; only for rules of phases that have one."""
        running = self.state.running
        if running is None:
            raise InternalError("no turn runs")
        return running

    def emit(self, effect: Effect) -> None:
        self.effects.append(effect)

    def advance(self, phase: AttemptPhase, *, paused: bool = False) -> None:
        """Record how far the attempt has come, and whether its client reads too slowly."""
        running = attrs.evolve(self.running, phase=phase, paused=paused)
        self.state = attrs.evolve(self.state, running=running)

    def set_timer(self, timer: Timer, after: int) -> None:
        """Make ``timer`` due ``after`` ns from now."""
        timers = self.state.timers.set(timer, self.now + after)
        self.state = attrs.evolve(self.state, timers=timers)

    def clear_timer(self, *timers: Timer) -> None:
        self.state = attrs.evolve(self.state, timers=self.state.timers.clear(*timers))

    def set_turn_timer(self) -> None:
        """The turn deadline of a session is the earliest of all turns that it has."""
        state = self.state
        deadlines = [waiting.deadline for waiting in state.waiting]
        if state.running is not None:
            deadlines.append(state.running.deadline)
        if deadlines:
            timers = state.timers.set(Timer.TURN, min(deadlines))
        else:
            timers = state.timers.clear(Timer.TURN)
        self.state = attrs.evolve(state, timers=timers)

    # ------------------------------------------------------------ turns

    def accept(self, turn: Turn) -> None:
        """Give the session to ``turn``; its budget begins now."""
        deadline = self.now + self.policy.timeouts.turn
        self._run(Waiting(turn, deadline))

    def queue(self, turn: Turn) -> None:
        """Let ``turn`` wait for the session; a full queue rejects at once (invariant 23)."""
        state = self.state
        if len(state.waiting) >= self.policy.budgets.waiting:
            self.emit(fx.FailTurn(turn.id, Answer.OVERLOADED, None))
            return
        waiting = Waiting(turn, self.now + self.policy.timeouts.turn)
        self.state = attrs.evolve(state, waiting=(*state.waiting, waiting))
        self.set_turn_timer()

    def drop_waiting(self, turn: int) -> bool:
        """Take ``turn`` out of the queue; False if it does not wait."""
        state = self.state
        kept = tuple(waiting for waiting in state.waiting if waiting.turn.id != turn)
        if len(kept) == len(state.waiting):
            return False
        self.state = attrs.evolve(state, waiting=kept)
        self.set_turn_timer()
        return True

    def _run(self, waiting: Waiting) -> None:
        running = Running(waiting.turn, waiting.deadline)
        timers = self.state.timers.clear(Timer.EXPIRY)
        self.state = attrs.evolve(self.state, running=running, timers=timers)
        self.set_turn_timer()

    def complete(self) -> None:
        """The turn's answer is complete."""
        self.emit(fx.CompleteTurn(self.running.turn.id))
        self.release()

    def fail(self, answer: Answer, failure: Failure | None) -> None:
        """End the turn with ``answer``."""
        self.emit(fx.FailTurn(self.running.turn.id, answer, failure))
        self.release()

    def release(self) -> None:
        """The session is free: rotate a worn socket, then take the next turn or begin to idle."""
        timers = self.state.timers.clear(Timer.CREATED, Timer.IDLE)
        self.state = attrs.evolve(self.state, running=None, timers=timers)
        if self.state.worn:
            self.close()
        if self.state.waiting:
            first, *rest = self.state.waiting
            self.state = attrs.evolve(self.state, waiting=tuple(rest))
            self._run(first)
            self.start()
        else:
            self.set_turn_timer()
            self.set_timer(Timer.EXPIRY, self.policy.timeouts.expiry)

    # ------------------------------------------------------------ the socket

    def disconnected(self) -> None:
        """There is no socket any more, and what it remembered went with it."""
        timers = self.state.timers.clear(Timer.CONNECT, Timer.CREATED, Timer.IDLE, Timer.LIFETIME)
        self.state = attrs.evolve(
            self.state, lifecycle=Lifecycle.CLOSED, live_anchor=None, worn=False, timers=timers
        )

    def close(self) -> None:
        """Close the socket, or stop opening it; without one, do nothing."""
        if self.state.lifecycle is not Lifecycle.CLOSED:
            self.emit(fx.CloseConnection(self.state.generation))
            self.disconnected()

    def retire(self) -> None:
        """The session is over."""
        self.close()
        self.state = attrs.evolve(self.state, timers=self.state.timers.clear(Timer.EXPIRY))
        self.emit(fx.RetireSession())

    def start(self) -> None:
        """Begin the turn: on the socket at hand, on the one that is being opened, or on a new one."""
        if self.state.lifecycle in _USABLE:
            self.dispatch()
        elif self.state.lifecycle is Lifecycle.CLOSED:
            self._connect()

    def _connect(self) -> None:
        state = self.state
        running = attrs.evolve(self.running, phase=AttemptPhase.UNSENT)
        if self.policy.budgets.reconnect_uses_replay and state.generation > 0:
            running = attrs.evolve(running, replays=max(running.replays, 1))
        self.state = attrs.evolve(
            state,
            lifecycle=Lifecycle.RECONNECTING,
            generation=state.generation + 1,
            running=running,
        )
        self.set_timer(Timer.CONNECT, self.policy.timeouts.connect)
        self.emit(fx.OpenConnection(self.state.generation, self.state.remote))

    def dispatch(self) -> None:
        """Send the turn on the socket at hand, if the socket can know its anchor.

        The socket knows an anchor only if it made that very response last (invariant 2). If it
        does not, the send is skipped and the policy says how the turn goes on.
        """
        running = self.running
        anchor = running.turn.anchor
        if running.form is not None:
            self._send(running.form)
        elif anchor is None or anchor == self.state.live_anchor or self.state.remote:
            self._send(Form.AS_IS)
        else:
            self.state = attrs.evolve(self.state, lifecycle=Lifecycle.SEND_SKIPPED)
            self.recover(Situation.SEND_SKIPPED, None)

    def _send(self, form: Form) -> None:
        running = attrs.evolve(self.running, phase=AttemptPhase.SENDING, form=None)
        self.state = attrs.evolve(self.state, lifecycle=Lifecycle.OPEN, running=running)
        self.set_timer(Timer.CREATED, self.policy.timeouts.created)
        self.emit(fx.SendTurn(self.state.generation, running.turn.id, form))

    # ------------------------------------------------------------ recovery

    def recover(self, situation: Situation, failure: Failure | None) -> None:
        """Do for the running turn what the policy says about ``situation``."""
        running = self.running
        remedy = self.policy.remedy(situation, running.turn.standing)
        action, answer = remedy.action, remedy.answer
        if action is Action.SEND:
            self._try_again(Form.AS_IS, situation, failure, answer)
        elif action is Action.REHYDRATE:
            self._try_again(Form.REHYDRATED, situation, failure, answer)
        elif action is Action.SEND_FULL:
            self._try_again(Form.CLIENT_FULL, situation, failure, answer)
        elif action is Action.RESEND:
            self._try_again(None, situation, failure, answer)
        elif action is Action.REFUSE:
            # When the reconnect for a resend fails, the client hears of the loss that began it.
            if situation is Situation.CONNECT_FAILED and running.fallback is not None:
                answer = running.fallback
            self.fail(answer, failure)
        elif action is Action.REFUSE_BOUNDED:
            self._refuse_bounded(answer, failure)
        elif action is Action.SURFACE:
            self.fail(Answer.UPSTREAM_ERROR, failure)
        elif action is Action.FAIL:
            self.fail(answer, failure)
        elif action is Action.REBIND:
            self.emit(fx.RebindSession())
            self.state = attrs.evolve(self.state, remote=False)
            self._try_again(None, situation, failure, answer)
        else:
            assert_never(action)

    def _try_again(
        self,
        form: Form | None,
        situation: Situation,
        failure: Failure | None,
        answer: Answer,
    ) -> None:
        """Send once more, as ``form`` or as ``dispatch`` finds; out of budget, say ``answer``."""
        running = self.running
        if situation in _AMBIGUOUS:
            if running.replays >= self.policy.budgets.replays:
                self.fail(answer, failure)
                return
            running = attrs.evolve(running, replays=running.replays + 1)
        elif failure is not None:
            # Each kind of refusal is recovered once a turn: a second one is the same wedge.
            if failure.kind in running.recovered:
                self.fail(answer, failure)
                return
            running = attrs.evolve(running, recovered=running.recovered | {failure.kind})
        if situation is not Situation.SEND_SKIPPED:
            running = attrs.evolve(running, fallback=answer)
        self.state = attrs.evolve(self.state, running=attrs.evolve(running, form=form))
        if form is not None and self.state.lifecycle in _USABLE:
            self._send(form)
        else:
            self.start()

    def _refuse_bounded(self, answer: Answer, failure: Failure | None) -> None:
        anchor = self.running.turn.anchor
        used = self.state.refusals if self.state.refused_anchor == anchor else 0
        if used >= self.policy.budgets.refusals:
            self.fail(Answer.NOT_FOUND, failure)
            return
        self.state = attrs.evolve(self.state, refused_anchor=anchor, refusals=used + 1)
        self.fail(answer, failure)

    def forget_anchor(self) -> None:
        """An in-band refusal evicts the id it referred to from the socket's memory."""
        if self.running.turn.anchor == self.state.live_anchor:
            self.state = attrs.evolve(self.state, live_anchor=None)


REFUSALS = {
    FailureKind.NOT_FOUND: Situation.NOT_FOUND,
    FailureKind.CONNECTION_LIMIT: Situation.CONNECTION_LIMIT,
}
