"""The faults of replicas: what can go wrong between processes and with their store, and the draw
from the random seed that decides.

What belongs here: the kinds, and their probabilities. They are carried out in ``disruption.py``.
Faults of a single turn are in ``troubles.py``.

The ``nth`` outage of a run follows from (seed, nth) alone. So a scenario without some of them keeps
the others unchanged, which ``shrink`` relies on.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.simulate.chance import Rng
from bridgecore.testing.network import MILLISECOND


class Outage(enum.Enum):
    """A fault of replicas. The value is its text in the timeline."""

    CRASH = "crashes, and is started again later"
    DEPLOY = "all replicas are replaced, one after the other"
    PARTITION = "cannot reach another replica"
    STORE_LOST = "cannot reach the store"
    STORE_MUTE = "gets no answers from the store, which carries out its questions"
    STORE_SLOW = "the store is slow"
    FAILOVER = "the store fails over to an older copy of itself"
    PAUSE = "is paused"


OUTAGES: Final = -2
"""In ``Scenario.spared``, instead of a client's number: the second number is that of an outage."""


@attrs.frozen
class Planned:
    """One outage. Not all members matter to each kind.

    ``after``: ns since the one before began. ``replica``, ``other``: draws that choose replicas.
    ``duration``: ns. ``variant``: a draw that decides about details.
    """

    after: int
    what: Outage
    replica: int
    other: int
    duration: int
    variant: int


_DURATIONS: Final[dict[Outage, tuple[int, ...]]] = {
    Outage.CRASH: (200, 2_000, 10_000, 30_000),  # until it is started again
    Outage.DEPLOY: (500, 3_000),  # between the end of one replica and that of the next
    Outage.PARTITION: (2_000, 20_000, 60_000),
    Outage.STORE_LOST: (1_000, 4_000, 12_000, 40_000),
    Outage.STORE_MUTE: (1_000, 4_000, 12_000, 40_000),
    Outage.STORE_SLOW: (5_000, 20_000),
    Outage.FAILOVER: (5, 50, 500, 5_000),  # the age of the copy
    Outage.PAUSE: (3_000, 14_000, 40_000, 80_000),  # leases last 15 s, forwards wait for 50 s
}
"""Milliseconds."""


def planned(seed: int, nth: int, kinds: tuple[Outage, ...]) -> Planned:
    """The ``nth`` outage of a run, of one of ``kinds``."""
    rng = Rng(seed, 10, nth)
    what = rng.pick(kinds)
    replica = rng.between(0, 11)
    other = rng.between(0, 10)
    return Planned(
        after=rng.between(3, 60) * NS_PER_SECOND,
        what=what,
        replica=replica,
        other=other,
        duration=rng.pick(_DURATIONS[what]) * MILLISECOND,
        variant=rng.between(0, 11),
    )
