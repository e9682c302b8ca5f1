"""The result of a run: its violations, totals, and timeline.

What belongs here: what is reported. What counts as a violation is decided by the clients and in
``checks.py``, ``witness.py`` and ``world.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import attrs

from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.simulate.witness import Ledger
from bridgecore.testing.network import NO_CLIENT

_HOUR = 3600 * NS_PER_SECOND
VIOLATION = "VIOLATION of "
"""Begins each line of a timeline that is about a violation, after the time."""
_MAX_VIOLATIONS = 20  # of one run; more are usually repetitions


@attrs.frozen
class Violation:
    """A property that did not hold, at ``at`` (ns since the run began)."""

    prop: str
    seed: int
    at: int
    client: int  # NO_CLIENT: no client in particular
    turn: int
    text: str

    def __str__(self) -> str:
        who = "" if self.client == NO_CLIENT else f", client {self.client} turn {self.turn}"
        return f"{self.prop}: {self.text} (seed {self.seed}{who}, t+{self.at / 1e9:.3f} s)"


@attrs.define
class Report:
    """The totals of one run or several. Times are ns of virtual time."""

    violations: list[Violation] = attrs.Factory(list)
    conversations: int = 0
    conversation_time: int = 0  # sum over all conversations
    turns: int = 0  # that succeeded
    given_up: int = 0  # turns that ended with a final error
    attempts: int = 0
    probes: int = 0  # turns spent on naming responses of other credentials
    resends: int = 0  # whole histories sent after a not-found
    ledger: Ledger = attrs.Factory(Ledger)  # what continuity saved and cost
    events: int = 0  # handled by machines
    upstream_turns: int = 0
    restarts: int = 0
    troubles: Counter[str] = attrs.Factory(Counter)
    outages: int = 0  # of replicas
    cluster: Counter[str] = attrs.Factory(Counter)  # what replicas did, if there are several
    digest: str = ""  # of the latest run

    @property
    def hours(self) -> float:
        """Conversation-hours."""
        return self.conversation_time / _HOUR

    def add(self, other: Report) -> None:
        """Add the totals of another run."""
        self.violations += other.violations
        self.conversations += other.conversations
        self.conversation_time += other.conversation_time
        self.turns += other.turns
        self.given_up += other.given_up
        self.attempts += other.attempts
        self.probes += other.probes
        self.resends += other.resends
        self.ledger.add(other.ledger)
        self.events += other.events
        self.upstream_turns += other.upstream_turns
        self.restarts += other.restarts
        self.troubles += other.troubles
        self.outages += other.outages
        self.cluster += other.cluster
        self.digest = other.digest


class Journal:
    """Writes the report of a run in progress, and its timeline if it is recorded.

    ``clock`` returns the virtual time, ns. ``record`` is called with each line of the timeline.
    """

    def __init__(
        self, seed: int, clock: Callable[[], int], record: Callable[[str], None] | None
    ) -> None:
        self.report = Report()
        self.record = record
        self._seed = seed
        self._clock = clock

    @property
    def full(self) -> bool:
        """Whether so many violations were found that the run can end."""
        return len(self.report.violations) >= _MAX_VIOLATIONS

    def note(self, text: str) -> None:
        """Add a line to the timeline."""
        if self.record is not None:
            self.record(f"{self._elapsed() / 1e9:12.3f}  {text}")

    def violate(self, prop: str, client: int, text: str, turn: int = 0) -> None:
        """Record a violation of ``prop``; no effect once ``full``."""
        if self.full:
            return
        found = Violation(prop, self._seed, self._elapsed(), client, turn, text)
        self.report.violations.append(found)
        self.note(f"{VIOLATION}{prop}: {text}")

    def _elapsed(self) -> int:
        return self._clock() - NS_PER_SECOND  # the clock of a network begins at one second
