"""The settings of a run. A run is a pure function of them: the same ones give the same history."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from bridgecore.config import Config
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.policy import DEFAULT, Policy
from bridgecore.simulate.profiles import PROFILES, Profile


@attrs.frozen(kw_only=True)
class Scenario:
    """A run, completely: everything that happens in it follows from these values."""

    seed: int
    policy: Policy = DEFAULT
    clients: int = 32
    turns: int = 20  # of each client
    fault_every: int | None = 4  # turns for one trouble; None: nothing goes wrong
    odd: bool = True  # upstreams misbehave as in ``CATALOGUE``, too
    restarts: bool = True  # the upstream goes away and comes back, every few hours
    warm: bool = False  # sockets are given up after minutes, and those that follow are warmed
    profiles: tuple[Profile, ...] = PROFILES
    endpoint: Callable[[Config], Endpoint] = Endpoint  # what is tried
    only: frozenset[int] | None = None  # the clients that take part; None: all
    spared: frozenset[tuple[int, int]] = frozenset()  # (client, turn) whose trouble is left out
