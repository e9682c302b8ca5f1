"""Which of our rules and cells the log of another bridge has met, as ``default`` would decide.

What belongs here: a session of ours that gets the events of a course that foreign_search.py has
found. It decides for itself. Where the other bridge has done something else, the session is brought
to where that bridge is, with events that do not count: its turn leaves, its connection opens or is
lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeAlias

import attrs

from bridgecore.errors import BridgecoreError
from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect
from bridgecore.recovery.events import Event
from bridgecore.recovery.failure import Closed
from bridgecore.recovery.policy import DEFAULT, Timeouts
from bridgecore.recovery.rules import step
from bridgecore.recovery.state import Phase, SessionState
from bridgecore.wire.decisions import cell_names

Course: TypeAlias = Iterable[tuple[int, Event, tuple[Effect, ...]]]
"""The time of each event, the event, and what the other bridge did."""


class Coverage:
    """How often each rule and each cell was met, by name. ``timeouts``: those of the bridge.
    ``frames``: the log says when a frame was sent; otherwise it is taken to be sent at once."""

    def __init__(self, timeouts: Timeouts, *, frames: bool) -> None:
        self.frames = frames
        self.rules: Counter[str] = Counter()
        self.cells: Counter[str] = Counter()
        self._policy = attrs.evolve(DEFAULT, timeouts=timeouts)

    def add(self, course: Course) -> None:
        """Count what the course of one conversation meets."""
        session = _Session(self)
        for at, event, effects in course:
            session.take(at, event, effects)

    def apply(self, state: SessionState, event: Event, at: int, *, counts: bool) -> SessionState:
        """The state after ``event``; the same if it is not possible there."""
        try:
            transition = step(self._policy, state, event, at)
        except BridgecoreError:
            return state
        if counts:
            self.rules[transition.rule] += 1
            self.cells.update(name.partition("=")[0] for name in cell_names(transition))
        return transition.state


class _Session:
    """Our session, and what is known of the other bridge: the number of its connection, and how
    far that is."""

    def __init__(self, coverage: Coverage) -> None:
        self._coverage = coverage
        self._state = SessionState()
        self._generation = 0
        self._socket = "none"
        self._at = 0  # of the latest event

    def take(self, at: int, event: Event, effects: tuple[Effect, ...]) -> None:
        generation = getattr(event, "generation", None)
        if generation is not None:
            if generation != self._generation:
                return  # of an old connection, or for another turn
            changed: Any = event
            event = attrs.evolve(changed, generation=self._state.generation)
        if isinstance(event, ev.ConnectionOpened):
            self._socket = "open"
        elif isinstance(event, ev.ConnectionLost):
            self._socket = "none"
        unsent = isinstance(event, ev.ConnectionLost) and event.unsent
        if self._state.phase is Phase.SENDING and not self._coverage.frames and not unsent:
            self._brought(ev.FrameSent(self._state.generation), self._at)  # when it was sent
        self._at = at
        self._state = self._coverage.apply(self._state, event, at, counts=True)
        for effect in effects:
            if isinstance(effect, fx.OpenConnection):
                self._socket, self._generation = "connecting", effect.generation
            elif isinstance(effect, fx.CloseConnection):
                self._socket = "none"
            elif isinstance(effect, fx.FailTurn | fx.CompleteTurn):
                self._brought(ev.TurnAbandoned(effect.turn), at)
        if self._socket == "open" and self._state.phase is Phase.RECONNECTING:
            self._brought(ev.ConnectionOpened(self._state.generation), at)
        elif self._socket == "none" and self._state.phase is Phase.OPEN:
            self._brought(ev.ConnectionLost(self._state.generation, Closed(1006)), at)

    def _brought(self, event: Event, at: int) -> None:
        self._state = self._coverage.apply(self._state, event, at, counts=False)
