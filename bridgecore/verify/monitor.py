"""The reference model on guard: it judges the transitions of a session while they happen.

What belongs here: keeping one ``Model`` for one session, whoever has the session. The explorer does
not use a ``Monitor``: it keeps each model as a value of its own, because many ways through the
states share one. Everybody else sees one history at a time: Hypothesis machines and scenarios give
their sessions one, a simulation has the lines of the decision log watched as they are written
(``replay.Replay``).
"""

from __future__ import annotations

import attrs

from bridgecore.recovery.events import Event
from bridgecore.recovery.policy import Policy
from bridgecore.recovery.rules import Transition
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import SessionState
from bridgecore.verify.environment import terms_of
from bridgecore.verify.model import Model
from bridgecore.verify.properties import Property, ViolationError


class Monitor:
    """Judges the transitions of one session, in the order in which they happen.

    ``model`` is what is known of the session so far, ``violation`` the first thing that was wrong:
    nothing is judged after it, because the model no longer knows what was meant to be. ``remote``:
    another replica owns the session at the beginning; ``without``: properties that are not
    demanded, because the policy is known to break them.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        remote: bool = False,
        without: frozenset[Property] = frozenset(),
    ) -> None:
        self.model = Model(attrs.evolve(terms_of(policy), without=without), remote=remote)
        self.violation: ViolationError | None = None

    def watch(self, before: SessionState, event: Event, transition: Transition, now: int) -> None:
        """Judge the ``transition`` that ``event`` led to from the state ``before`` at ``now`` (ns).

        Raises:
            ViolationError: a property does not hold.
        """
        if self.violation is not None:
            return
        after, model = transition.state, self.model
        try:
            self.model = model.after(event, transition.effects, now, after.timers.next())
            if after != before and self.model is model:
                text = f"{event} means nothing, and changed the state"
                raise ViolationError(Property.SPURIOUS_IS_NOTHING, text)
        except ViolationError as violation:
            self.violation = violation
            raise


class WatchedSession(Session):
    """A session that a monitor judges with every transition, before its effects are returned."""

    __slots__ = ("monitor",)

    def __init__(
        self, policy: Policy, *, remote: bool = False, without: frozenset[Property] = frozenset()
    ) -> None:
        super().__init__(policy, SessionState(remote=remote))
        self.monitor = Monitor(policy, remote=remote, without=without)

    def _take(self, event: Event, now: int, transition: Transition) -> None:
        before = self.state
        super()._take(event, now, transition)
        self.monitor.watch(before, event, transition, now)
