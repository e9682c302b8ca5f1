"""``Session``: a mutable object around the pure function ``step``.

What belongs here: keeping the state between calls, checking arguments, clamping a clock that goes
backwards, summarising the deltas of a running answer, and adding the recent transitions to the text
of an ``InternalError``. It makes no decision.
"""

from __future__ import annotations

from typing import get_args

from bridgecore.errors import ConfigError, InternalError
from bridgecore.recovery.checks import EventCheck, check_time
from bridgecore.recovery.effects import Effect
from bridgecore.recovery.events import DeadlineReached, Event, OutputReceived, Turn
from bridgecore.recovery.failure import Evidence
from bridgecore.recovery.policy import DEFAULT, Cell, Policy
from bridgecore.recovery.rules import Transition, step
from bridgecore.recovery.state import Phase, SessionState
from bridgecore.recovery.timers import Deadline

_TRACE = 16  # transitions kept at most for the text of an InternalError; a turn has about seven


class Session:
    """Decides what to do for one conversation with its upstream connection and its turns.

    Report what happens to ``handle``, and carry out the effects that it returns, in order. Call
    ``handle_timeout`` when the time that ``next_timeout`` names has come. Events are in
    ``bridgecore.recovery.events``, effects in ``bridgecore.recovery.effects``. Times are integer
    nanoseconds of one monotonic clock. A session does no I/O and reads no clock.

    Attributes, to be read only: ``policy``; ``state``, a ``SessionState``; ``rule``, the id of the
    rule that was applied last, empty before the first event; ``cells``, those of the policy's table
    that decided in the last call, in order (``Cell``).
    """

    __slots__ = ("_now", "_touched", "_trace", "cells", "policy", "rule", "state")

    def __init__(self, policy: Policy = DEFAULT, state: SessionState | None = None) -> None:
        """Start in ``state``, by default without a connection or a turn.

        Raises:
            ConfigError: ``policy`` is not a ``Policy``, or ``state`` not a ``SessionState``.
        """
        if not isinstance(policy, Policy):
            raise ConfigError(f"policy must be a Policy such as DEFAULT, not {policy!r:.100}")
        if not isinstance(state, SessionState | None):
            raise ConfigError(f"state must be a SessionState, not {state!r:.100}")
        self.policy = policy
        self.state = state if state is not None else SessionState()
        self.rule = ""  # the id of the rule that was applied last
        self.cells: tuple[Cell, ...] = ()  # the cells that the last call applied, in order
        self._now = 0
        self._touched: int | None = None
        # Rules and events in turn, the latest last. Events rather than their text, which costs more
        # than the transition and is rarely needed.
        self._trace: list[str | Event] = []

    def handle(self, event: Event, now: int) -> tuple[Effect, ...]:
        """Handle ``event``, which happened at ``now`` (ns). Returns the effects, in order.

        A ``now`` earlier than that of the last call counts as that one.

        Raises:
            LocalProtocolError: ``event`` is not an event, a field of it or ``now`` has a wrong
                type, or the event cannot happen in this state; nothing has changed.
            InternalError: a bug in bridgecore; the text has the rule and the last transitions.
        """
        _check_event(event)
        check_time(now)
        now = max(self._now, now)
        # Output that is pending counts before the event. But an illegal event must change nothing,
        # so both transitions are computed before the first is adopted.
        output = self._output()
        transition = self._transition(self.state if output is None else output.state, event, now)
        self._fold(output)
        self._now = now
        self._take(event, now, transition)
        return transition.effects

    def touch(self, now: int) -> None:
        """Report more output of the running answer at ``now`` (ns), cheaply.

        Equivalent to ``OutputReceived`` while the turn is in its output, when all that changes is
        the idle deadline. A full transition for every text delta would cost several times more, so
        only the time of the latest output is kept, and applied before the next event or deadline.

        Raises:
            LocalProtocolError: ``now`` is not a time; nothing has changed.
        """
        check_time(now)
        self._now = self._touched = max(self._now, now)

    def snapshot(self) -> tuple[SessionState, int | None]:
        """All that the next decision depends on: the state, and the time (ns) of the latest output
        that was reported with ``touch`` and is not part of the state yet."""
        return self.state, self._touched

    def next_timeout(self) -> Deadline | None:
        """The earliest deadline; None if there is none.

        It may be too early, because output reported with ``touch`` extends the idle deadline only
        when it is applied. ``handle_timeout`` then applies it and does nothing else.
        """
        return self.state.timers.next()

    def handle_timeout(self, now: int) -> tuple[Effect, ...]:
        """Handle every deadline that is due at ``now`` (ns), in the order of their times. Returns
        the effects, in order.

        Raises:
            LocalProtocolError: ``now`` is not a time; nothing has changed.
            InternalError: a bug in bridgecore; the text has the rule and the last transitions.
        """
        check_time(now)
        now = self._now = max(self._now, now)
        self._fold(self._output())
        effects: list[Effect] = []
        cells: list[Cell] = []
        while (deadline := self.state.timers.next()) is not None and deadline.at <= now:
            event = DeadlineReached(deadline.reason)
            transition = self._transition(self.state, event, now)
            self._take(event, now, transition)
            effects += transition.effects
            cells += transition.cells
        self.cells = tuple(cells)
        return tuple(effects)

    def _output(self) -> Transition | None:
        """The transition of the output that ``touch`` reported, at the time it came; None if there
        was none."""
        if self._touched is None or self.state.phase is not Phase.OUTPUT:
            return None
        event = OutputReceived(self.state.generation)
        return self._transition(self.state, event, self._touched)

    def _fold(self, output: Transition | None) -> None:
        """Adopt the transition of ``_output``."""
        touched, self._touched = self._touched, None
        if output is not None and touched is not None:
            self._take(OutputReceived(output.state.generation), touched, output)

    def _transition(self, state: SessionState, event: Event, now: int) -> Transition:
        try:
            transition = step(self.policy, state, event, now)
            if isinstance(event, DeadlineReached):
                again = transition.state.timers.get(event.timer)
                if again is not None and again <= now:
                    text = f"rule {transition.rule!r} set {event.timer.value} in the past"
                    raise InternalError(f"{text} (DEADLINES_ARE_KEPT)")
        except InternalError as error:
            raise InternalError(f"{error}; {event}, after {self._trace}") from error
        return transition

    def _take(self, event: Event, now: int, transition: Transition) -> None:
        """Adopt the state of ``transition``.

        Called for every transition: of an event, of each deadline, and of the output that ``touch``
        reported, with the time of that output. Subclasses inside bridgecore override it to record.
        """
        self._trace += (transition.rule, event)
        if len(self._trace) > 2 * _TRACE:
            del self._trace[:_TRACE]  # the older half
        self.rule, self.state, self.cells = transition.rule, transition.state, transition.cells


_check_event = EventCheck(Event, "bridgecore.recovery.events", Turn, *get_args(Evidence))
