"""Carries out the outages of a run of several replicas.

What belongs here: when the next one begins, what it does to the cluster, and when it is over. Which
there are is defined in ``outages.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, assert_never

from bridgecore import transport as tp
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.simulate.outages import OUTAGES, Outage, Planned, planned
from bridgecore.simulate.paths import Paths
from bridgecore.simulate.process import Process
from bridgecore.simulate.report import Journal
from bridgecore.simulate.scenario import Scenario
from bridgecore.simulate.shared_store import Loss, SharedStore
from bridgecore.testing.network import MILLISECOND, Fate, Network

# A lease ends, its conversations are claimed, half-open connections between replicas are given up.
_AFTERMATH = 90 * NS_PER_SECOND


class Replicas(Protocol):
    """The cluster to which outages are done. ``running``: its processes, by name."""

    scenario: Scenario
    network: Network
    paths: Paths
    journal: Journal
    store: SharedStore
    names: list[str]
    running: dict[str, Process]

    def start(self, name: str) -> None:
        """Start a process of the replica ``name``, if none runs."""

    def kill(self, process: Process) -> None:
        """End a process at once, if it still runs."""


class Disruption:
    """The outages of ``cluster``. ``over``: whether there are no more."""

    def __init__(self, cluster: Replicas, over: Callable[[], bool]) -> None:
        self.until = 0  # ns, until when the effects of outages last or lasted
        self._cluster = cluster
        self._network = cluster.network
        self._over = over
        self._deploying: list[Process] = []  # processes that are still to be replaced
        self._partitions = 0
        if cluster.scenario.outages:
            self._schedule(0)

    def _schedule(self, nth: int) -> None:
        """Plan the ``nth`` outage, and from there the next one, until the run ends."""
        scenario = self._cluster.scenario
        plan = planned(scenario.seed, nth, scenario.outages)

        def happen() -> None:
            if self._over():
                return
            self._cluster.journal.report.outages = nth + 1
            if (OUTAGES, nth) not in scenario.spared:
                self._carry_out(plan)
            self._schedule(nth + 1)

        self._network.at(self._network.now + plan.after, happen)

    def _carry_out(self, plan: Planned) -> None:
        cluster = self._cluster
        names = cluster.names
        name = names[plan.replica % len(names)]
        process = cluster.running.get(name)
        if process is None or process.paused:
            return  # something is the matter with it already
        end = self._network.now + plan.duration
        self.until = max(self.until, end + _AFTERMATH)
        cluster.journal.report.troubles[plan.what.name] += 1
        match plan.what:
            case Outage.CRASH:
                self._note(f"{name} crashes, to be started again in {_seconds(plan.duration)}")
                cluster.kill(process)
                self._network.at(end, lambda: self._restart(name))
            case Outage.DEPLOY:
                self._deploy(plan)
            case Outage.PARTITION:
                index = plan.replica % len(names)
                other = names[(index + 1 + plan.other % (len(names) - 1)) % len(names)]
                self._part(process, other, plan, end)
            case Outage.STORE_LOST | Outage.STORE_MUTE:
                self._cut_off(process, plan, end)
            case Outage.STORE_SLOW:
                self._slow_down(plan, end)
            case Outage.FAILOVER:
                self._fail_over(plan, end)
            case Outage.PAUSE:
                self._note(f"{name} is paused for {_seconds(plan.duration)}")
                process.pause(end)
            case _:
                assert_never(plan.what)

    def _note(self, text: str) -> None:
        self._cluster.journal.note(text)

    # ------------------------------------------------------------ processes

    def _restart(self, name: str) -> None:
        self._note(f"{name} is started again")
        self._cluster.start(name)

    def _deploy(self, plan: Planned) -> None:
        if self._deploying:
            return  # one is under way
        self._deploying = [
            self._cluster.running[name]
            for name in self._cluster.names
            if name in self._cluster.running
        ]
        self._note("a new version is deployed")
        self._replace(plan.duration)

    def _replace(self, pause: int) -> None:
        """Drain the next process, wait for its end, and start a new one of its name. A process that
        ends by itself is started again by the cluster."""
        running = self._cluster.running
        self.until = max(self.until, self._network.now + _AFTERMATH)
        while self._deploying and running.get(self._deploying[0].name) is not self._deploying[0]:
            self._deploying.pop(0)  # it has crashed
        if self._deploying:
            process = self._deploying[0]
            if not process.over:
                self._note(f"{process.name} drains")
                self._network.handle(process, tp.DrainRequested())
            self._network.at(self._network.now + pause, lambda: self._wait_for(process, pause))

    def _wait_for(self, process: Process, pause: int) -> None:
        if self._cluster.running.get(process.name) is not process:
            self._note(f"{process.name} is replaced")
            self._deploying.pop(0)
            self._replace(pause)
        else:
            self._network.at(self._network.now + pause, lambda: self._wait_for(process, pause))

    # ------------------------------------------------------------ the network

    def _part(self, process: Process, other: str, plan: Planned, end: int) -> None:
        """Connections from ``process`` to ``other`` break and cannot be opened; with some variants
        also those in the other direction."""
        network, cluster = self._network, self._cluster
        fate = Fate.REFUSED if plan.variant % 2 else Fate.UNANSWERED
        pairs = [(process, other)]
        if plan.variant % 3 and (peer := cluster.running.get(other)) is not None:
            pairs.append((peer, process.name))
        for machine, host in pairs:
            self._note(
                f"{machine.name} cannot reach {host} for {_seconds(plan.duration)}: its connects "
                f"are {fate.name.lower()}"
            )
            cluster.paths.barred[machine, host] = fate
            for each in network.ends(machine):
                if each.place is not None and each.place[0] == host:
                    network.vanish(each)

        def heal() -> None:
            for pair in pairs:
                cluster.paths.barred.pop(pair, None)

        network.at(end, heal)

    def _cut_off(self, process: Process, plan: Planned, end: int) -> None:
        loss = Loss.QUESTIONS if plan.what is Outage.STORE_LOST else Loss.ANSWERS
        self._note(
            f"{process.name} is cut off from the store for {_seconds(plan.duration)}: {loss.value}"
        )
        process.path.loss = loss

        def heal() -> None:
            process.path.loss = None

        self._network.at(end, heal)

    # ------------------------------------------------------------ the store

    def _slow_down(self, plan: Planned, end: int) -> None:
        store = self._cluster.store
        usual = 5 * MILLISECOND
        store.latency = (100, 900, 1900, 3000)[plan.variant % 4] * MILLISECOND
        self._note(f"the store takes up to {_seconds(2 * store.latency)} to answer")

        def heal() -> None:
            store.latency = usual

        self._network.at(end, heal)

    def _fail_over(self, plan: Planned, end: int) -> None:
        """What the store gets from now on is lost when it fails over to a copy of now."""
        store = self._cluster.store
        backup = store.model.copy()

        def fail_over() -> None:
            lost = store.fail_over(backup)
            self._cluster.journal.report.cluster["ids lost in failovers"] += lost
            store.down = self._network.now + (0, 1000, 5000)[plan.variant % 3] * MILLISECOND
            self._note(
                f"the store fails over to a copy {_seconds(plan.duration)} old: {lost} ids are lost"
            )

        self._network.at(end, fail_over)


def _seconds(duration: int) -> str:
    return f"{duration / NS_PER_SECOND:g} s"
