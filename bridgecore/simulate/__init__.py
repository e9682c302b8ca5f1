"""Simulates crowds of clients on a faulty network, in virtual time.

``run`` carries out a ``Scenario``: a real ``Endpoint``, a real ``testing.Emulator`` and many
clients, on connections that break, stall and go half-open. All randomness follows from the
scenario's seed, so a run can be repeated byte for byte (``Report.digest``), and ``shrink`` can look
for a smaller run with the same failure. ``grow`` is an experiment with one long conversation: how
its context grows when connections are lost.

With ``Scenario.replicas`` there are several endpoints, which share a store, behind a balancer. Then
processes crash and are replaced, paused or cut off, and the store loses memory (``Outage``).

What belongs here: checks that need the whole system. Single sessions and bridges are explored
exhaustively by ``bridgecore.verify``.

Public are the names here; the modules are internal.
"""

from bridgecore.simulate.experiment import Experiment, Growth, TurnFigures
from bridgecore.simulate.growth import grow
from bridgecore.simulate.outages import Outage
from bridgecore.simulate.profiles import PROFILES, Profile
from bridgecore.simulate.report import Report, Violation
from bridgecore.simulate.scenario import Scenario
from bridgecore.simulate.shrink import Shrunk, shrink
from bridgecore.simulate.witness import Ledger
from bridgecore.simulate.world import run, run_many

__all__ = [
    "PROFILES",
    "Experiment",
    "Growth",
    "Ledger",
    "Outage",
    "Profile",
    "Report",
    "Scenario",
    "Shrunk",
    "TurnFigures",
    "Violation",
    "grow",
    "run",
    "run_many",
    "shrink",
]
