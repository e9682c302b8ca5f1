"""Checks the transitions of one session against the reference model, as they happen.

What belongs here: keeping one ``Model`` up to date for one session. Hypothesis machines and
scenarios give their sessions a monitor (``WatchedSession``); a simulation feeds one from the
decision log (``replay.Replay``). The explorer does not use a ``Monitor``: it visits many histories
at once and stores each model with the state that it belongs to.
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
from bridgecore.verify.model_effects import check_step
from bridgecore.verify.properties import Property, ViolationError
from bridgecore.verify.shown import shown


class Monitor:
    """Checks the transitions of one session, in the order in which they happen.

    ``model`` is the reference model after the last transition. ``violation`` is the first
    violation; nothing is checked after it, because the model is out of step with the session from
    there on. ``remote``: another replica owns the session at the beginning. ``without``: properties
    that are not checked, because the policy is known to break them.
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
        """Check the ``transition`` from the state ``before`` that ``event`` caused at ``now`` (ns).

        Raises:
            ViolationError: a property does not hold.
        """
        if self.violation is not None:
            return
        after, model = transition.state, self.model
        try:
            self.model = check_step(model, event, transition.effects, now, after.timers.next())
            if after != before and self.model is model:
                text = f"{shown(event)} should be ignored, but changed the state"
                raise ViolationError(Property.SPURIOUS_IS_NOTHING, text)
        except ViolationError as violation:
            self.violation = violation
            raise


class WatchedSession(Session):
    """A session that checks each transition before its effects are returned."""

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
