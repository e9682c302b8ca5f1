"""State machines that never come to an end, for tests of liveness."""

from __future__ import annotations

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery.builder import TransitionBuilder
from bridgecore.recovery.events import Event
from bridgecore.recovery.policy import Policy
from bridgecore.recovery.rules import Transition, step
from bridgecore.recovery.state import SessionState
from bridgecore.recovery.timers import Timer


def refuses_longer(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """Asks for four more tries, more than the policy allows."""
    budgets = attrs.evolve(policy.budgets, refusals=4)
    return step(attrs.evolve(policy, budgets=budgets), state, event, now)


def opens_for_ever(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """Each connection is closed as soon as it is open, and another one is opened."""
    after = step(policy, state, event, now)
    if after.rule != "connection-opened":
        return after
    builder = TransitionBuilder(policy, state, now)
    builder.generation += 1
    builder.set_timer(Timer.CONNECT, policy.timeouts.connect)
    builder.emit(fx.CloseConnection(state.generation))
    builder.emit(fx.OpenConnection(builder.generation, builder.remote))
    return Transition(builder.finish(), tuple(builder.effects), after.rule)
