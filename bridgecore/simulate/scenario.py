"""The settings of a run. A run is a pure function of them: equal settings give equal histories."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from bridgecore.config import Config
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.policy import DEFAULT, Policy
from bridgecore.simulate.outages import Outage
from bridgecore.simulate.profiles import PROFILES, Profile


@attrs.frozen(kw_only=True)
class Scenario:
    """All settings of a run, the random seed included."""

    seed: int
    policy: Policy = DEFAULT
    clients: int = 32
    turns: int = 20  # of each client
    fault_every: int | None = 4  # one of so many turns has a fault; None: none has
    odd: bool = True  # upstreams also have the faults in ``CATALOGUE``
    restarts: bool = True  # the upstream is restarted every few hours
    warm: bool = False  # connections are rotated after minutes, and new ones preloaded
    profiles: tuple[Profile, ...] = PROFILES
    endpoint: Callable[[Config, bytes], Endpoint] = Endpoint  # the class to test
    replicas: int = 1  # with more than one they share a store, and clients a balancer
    outages: tuple[Outage, ...] = tuple(Outage)  # the faults of replicas; (): none has any
    only: frozenset[int] | None = None  # the clients that take part; None: all
    spared: frozenset[tuple[int, int]] = frozenset()  # (client, turn) whose fault is left out

    @property
    def haste(self) -> int:
        """By what factor times are shorter than those of people. Replicas renew their leases all
        the time, so with long pauses there would be little else to see."""
        return 1 if self.replicas == 1 else 10
