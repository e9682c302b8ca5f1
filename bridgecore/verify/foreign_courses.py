"""What may have happened to another bridge up to a line of its log: the states that are searched.

What belongs here: one state (``Guess``), the history that leads to it (``Step``), why a course was
given up (``Failure``), and functions of these alone. The search itself is foreign_search.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import attrs

from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect
from bridgecore.recovery.events import Event, Turn
from bridgecore.verify.cost import CostedProperty
from bridgecore.verify.model import Model
from bridgecore.verify.model_effects import check_step
from bridgecore.verify.properties import ViolationError

ELSEWHERE = -1
"""The generation of an event that came for another turn."""


class Step(NamedTuple):
    """One event of a course, with its effects; a list that leads back to the beginning.

    ``since``: the line of the event. ``line``, ``until``: the last line about it, and its time.
    """

    at: int
    event: Event
    effects: tuple[Effect, ...]
    assumed: bool
    before: Step | None
    since: int
    line: int
    until: int


class Logged(NamedTuple):
    """An event of the log that the bridge has not noticed yet."""

    line: int
    at: int
    event: Event


class Guess(NamedTuple):
    """One state that the lines so far allow.

    ``model``: before ``event``, which is being handled with ``effects`` so far; None: nothing is.
    ``line``, ``until``: the last line about it, and its time; ``since``: the line of the event
    itself. ``refused``: anchors that were refused when the bridge had injected them. ``cost``: of
    the unlogged events on the way here. ``past`` does not tell states apart.
    """

    model: Model
    line: int
    at: int
    event: Event | None
    effects: tuple[Effect, ...]
    queue: tuple[Logged, ...]
    refused: frozenset[str]
    assumed: bool
    cost: int
    past: Step | None
    since: int = 0
    until: int = 0

    def key(self, now: int) -> tuple[object, ...]:
        """Equal for states that allow the same future after ``now``. Deadlines that have passed are
        alike, whenever that was, and so are the numbers of connections."""
        base = self.model.generation
        return (
            self.model.key_after(now), self.at, relative(self.event, base),
            tuple([relative(effect, base) for effect in self.effects]), self.queue, self.refused,
        )  # fmt: skip

    @property
    def step(self) -> Step | None:
        """The history, with the event that is being handled."""
        if self.event is None:
            return self.past
        return self.stepped(self.event, self.effects)

    def stepped(self, event: Event, effects: tuple[Effect, ...]) -> Step:
        """The history with ``event`` and ``effects`` at its end."""
        return Step(
            self.at, event, effects, self.assumed, self.past, self.since, self.line, self.until
        )


class Failure(NamedTuple):
    """A course that breaks a property at ``line``.

    The least one is shown: one that explains the line (see ``_ODD``), with the fewest unlogged
    events, and of those the one in which the bridge has noticed the most, and which fails last.
    """

    odd: bool
    cost: int
    behind: int
    earliness: int  # the line, negative
    order: int
    line: int
    prop: CostedProperty
    text: str
    step: Step | None


def relative(value: Event | Effect | None, base: int) -> object:
    """``value`` with the number of its connection counted from ``base``."""
    generation = getattr(value, "generation", None)
    if value is None or generation is None:
        return value
    changed: Any = value
    return attrs.evolve(changed, generation=generation - base)


def of_connection(event: Event, generation: int) -> Event:
    """``event``, of the connection of ``generation`` if it is of one."""
    if isinstance(event, ev.TurnSubmitted | ev.TurnAbandoned | ev.DeadlineReached):
        return event
    if isinstance(event, ev.RelayPaused | ev.EvictionRequested) or event.generation == ELSEWHERE:
        return event
    return attrs.evolve(event, generation=generation)


def as_sent(guess: Guess, turn: Turn) -> Guess:
    """``guess`` with the anchor that ``turn`` is sent with now, which may be another id for the
    response that its client named."""
    event, model = guess.event, guess.model
    if isinstance(event, ev.TurnSubmitted) and event.turn.id == turn.id and event.turn != turn:
        guess = guess._replace(event=attrs.evolve(event, turn=turn))
    turns = tuple(
        [
            one._replace(anchor=turn.anchor, standing=turn.standing) if one.id == turn.id else one
            for one in model.turns
        ]
    )
    if turns != model.turns:
        model = model.copy()
        model.turns = turns
        guess = guess._replace(model=model)
    return guess


def after_effects(guess: Guess, effects: tuple[Effect, ...] | None = None) -> Model:
    """The model after what is being handled has had ``effects``, by default those so far."""
    if guess.event is None:
        return guess.model
    effects = guess.effects if effects is None else effects
    try:
        return check_step(guess.model, guess.event, effects, guess.at, None, whole=False)
    except ViolationError:
        return guess.model
