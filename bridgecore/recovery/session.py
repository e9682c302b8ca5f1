"""A session with a memory: the thin mutable facade over ``step``.

What belongs here: keeping the state between calls, clamping a clock that goes backwards, folding
the events of a running answer together, checking what the caller gave, and telling what led to a
broken invariant. No decision.
"""

from __future__ import annotations

import contextlib
from collections import deque
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

_TRACE = 16  # transitions kept for the text of an InternalError


class Session:
    """Decides what becomes of one conversation's turns when its upstream connection is lost.

    Report what happens to ``handle``, and carry out the effects that it returns, in order. Call
    ``handle_timeout`` when the time that ``next_timeout`` names has come. Events are in
    ``bridgecore.recovery.events``, effects in ``bridgecore.recovery.effects``. Times are integer
    nanoseconds of one monotonic clock.

    Attributes, to be read only: ``policy``; ``state``, a ``SessionState``; ``rule``, the id of the
    rule that was applied last, empty before the first event; ``cells``, those of the policy's table
    that decided in the last call, in order (``Cell``).
    """

    __slots__ = ("_now", "_touched", "_trace", "cells", "policy", "rule", "state")

    def __init__(self, policy: Policy = DEFAULT, state: SessionState | None = None) -> None:
        """Raises ConfigError if ``policy`` is no Policy or ``state`` no SessionState."""
        if not isinstance(policy, Policy):
            raise ConfigError(f"policy must be a Policy such as DEFAULT, not {policy!r:.100}")
        if not isinstance(state, SessionState | None):
            raise ConfigError(f"state must be a SessionState, not {state!r:.100}")
        self.policy = policy
        self.state = state if state is not None else SessionState()
        self.rule = ""  # the id of the rule that ruled last
        self.cells: tuple[Cell, ...] = ()  # of the table, that decided in the last call, in order
        self._now = 0
        self._touched: int | None = None
        # Events, not their text: that is made only if somebody is to read it.
        self._trace: deque[tuple[str, Event]] = deque(maxlen=_TRACE)

    def handle(self, event: Event, now: int) -> tuple[Effect, ...]:
        """Take in ``event``; what to do about it, in order.

        Raises:
            LocalProtocolError: ``event`` is no event, a field of it or ``now`` has a wrong type, or
                it cannot happen now; nothing has changed.
            InternalError: a bug in bridgecore; the text has the rule and the last transitions.
        """
        _check_event(event)
        check_time(now)
        now = max(self._now, now)
        if self._touched is not None:
            # Whether the event is lawful is found out before the output is folded in, which could
            # not be undone. Folding changes deadlines only, so that the answer is the same.
            self._refuse_unlawful(event, now)
            self._fold()
        effects = self._step(event, now)
        self._now = now
        return effects

    def touch(self, now: int) -> None:
        """More output of the running answer came at ``now``: what ``OutputReceived`` says once
        a turn is in its output, without the cost of a transition for every delta.

        Raises:
            LocalProtocolError: ``now`` is no time; nothing has changed.
        """
        check_time(now)
        self._now = self._touched = max(self._now, now)

    def snapshot(self) -> tuple[SessionState, int | None]:
        """What the next decision depends on: the state, and when more output came that the state
        does not know of yet (ns; see ``touch``)."""
        return self.state, self._touched

    def next_timeout(self) -> Deadline | None:
        """The earliest deadline. It may turn out early (see ``touch``): then nothing happens."""
        return self.state.timers.next()

    def handle_timeout(self, now: int) -> tuple[Effect, ...]:
        """Let every deadline that is due at ``now`` pass, in the order of their times.

        Raises:
            LocalProtocolError: ``now`` is no time; nothing has changed.
            InternalError: a bug in bridgecore; the text has the rule and the last transitions.
        """
        check_time(now)
        now = self._now = max(self._now, now)
        self._fold()
        effects: list[Effect] = []
        cells: list[Cell] = []
        while (deadline := self.state.timers.next()) is not None and deadline.at <= now:
            effects += self._step(DeadlineReached(deadline.reason), now)
            cells += self.cells
        self.cells = tuple(cells)
        return tuple(effects)

    def _refuse_unlawful(self, event: Event, now: int) -> None:
        # A bug is met again when the event is handled, and then told with its trace.
        with contextlib.suppress(InternalError):
            step(self.policy, self.state, event, now)

    def _fold(self) -> None:
        """Let the state know of the output that ``touch`` told of, as of the time it came."""
        touched, self._touched = self._touched, None
        if touched is not None and self.state.phase is Phase.OUTPUT:
            self._step(OutputReceived(self.state.generation), touched)

    def _step(self, event: Event, now: int) -> tuple[Effect, ...]:
        try:
            transition = step(self.policy, self.state, event, now)
            if isinstance(event, DeadlineReached):
                again = transition.state.timers.get(event.timer)
                if again is not None and again <= now:
                    text = f"rule {transition.rule!r} set {event.timer.value} in the past"
                    raise InternalError(f"{text} (invariant 29)")
        except InternalError as error:
            raise InternalError(f"{error}; {event}, after {list(self._trace)}") from error
        self._take(event, now, transition)
        return transition.effects

    def _take(self, event: Event, now: int, transition: Transition) -> None:
        """Make ``transition`` the session's own. Every transition comes by here: that of an event,
        of each deadline, and the one that ``touch`` led to, at the time of the touch. Overridden,
        inside bridgecore, by sessions that are recorded."""
        self._trace.append((transition.rule, event))
        self.rule, self.state, self.cells = transition.rule, transition.state, transition.cells


_check_event = EventCheck(Event, "bridgecore.recovery.events", Turn, *get_args(Evidence))
