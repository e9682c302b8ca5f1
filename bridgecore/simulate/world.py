"""One run: an endpoint, its upstream and many clients on a faulty network, in virtual time.

What belongs here: assembling the parts, the order in which they are notified of what a client does,
and the checks at the end. The parts: ``clients`` read answers and check what a client can check by
itself, ``strikes`` and ``upstream`` carry out faults, ``checks`` and ``witness`` compare both ends
of each turn, ``report`` has the result.

Checked here:

* *machine*: nothing raises, and no deadline that was handled is due again;
* *liveness*: every client comes to the end of its turns;
* *leak*: when all turns have ended and every timer has run out, nothing is left;
* *drain*: a drained endpoint stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.simulate.chance import Rng
from bridgecore.simulate.checks import Checks
from bridgecore.simulate.clients import Client, Probe
from bridgecore.simulate.cluster import Cluster
from bridgecore.simulate.deployment import Deployment, Single
from bridgecore.simulate.paths import Paths, Recorder
from bridgecore.simulate.report import Journal, Report
from bridgecore.simulate.scenario import Scenario
from bridgecore.simulate.strikes import Strikes
from bridgecore.simulate.upstream import HOST, PORT, Upstream, emulator_of
from bridgecore.testing.faults import Change
from bridgecore.testing.network import NO_CLIENT, WINDOW, MachineError, Network

_HOUR = 3600 * NS_PER_SECOND
_HORIZON = 60 * 24 * _HOUR  # virtual time after which unfinished clients count as stuck
_SLOW_WINDOW = 2048  # bytes that a slow reader leaves unread before the sender is blocked


def run(scenario: Scenario, record: Callable[[str], None] | None = None) -> Report:
    """Run ``scenario``. ``record`` is called with each line of the timeline."""
    return _World(scenario, record).run()


def run_many(scenario: Scenario, conversations: int) -> Iterator[tuple[Scenario, Report]]:
    """Run ``scenario`` with consecutive seeds until there were that many conversations; yields each
    run's scenario and report."""
    seed = scenario.seed
    while conversations > 0:
        one = attrs.evolve(scenario, seed=seed, clients=min(scenario.clients, conversations))
        yield one, run(one)
        conversations -= one.clients
        seed += 1


class _World:
    """A run. Also the ``Observer`` of its clients."""

    def __init__(self, scenario: Scenario, record: Callable[[str], None] | None) -> None:
        self._scenario = scenario
        self._clients: dict[int, Client] = {}
        self._undone = 0  # clients that have turns left
        self._journal = journal = Journal(scenario.seed, lambda: self._network.now, record)
        self._paths = paths = Paths(scenario.seed)
        note = journal.note if record is not None else None
        self._recorder = Recorder(note, lambda log, source: self._checks.logged(log, source))
        self._network = network = Network(conditions=paths, watcher=self._recorder)
        self._emulator = emulator = emulator_of(scenario.seed)
        self._strikes = Strikes(scenario, network, paths, emulator, journal)
        self._upstream = Upstream(
            scenario, network, emulator, self._strikes, self._clients, journal
        )
        self._checks = Checks(self._upstream, journal, warm=scenario.warm)
        network.add(emulator, HOST, PORT, after=self._checks.look_upstream)
        self._bridges = self._deployment()
        for number in range(scenario.clients):
            if scenario.only is None or number in scenario.only:
                self._add_client(number)
        for number, client in self._clients.items():
            if (neighbour := self._clients.get(number ^ 1)) is not None:
                client.add_neighbour(neighbour)
        if scenario.restarts and scenario.fault_every is not None:
            self._upstream.schedule_restart()

    def _deployment(self) -> Deployment:
        scenario, network, journal = self._scenario, self._network, self._journal
        if scenario.replicas == 1:
            return Single(scenario, network, journal)
        return Cluster(scenario, network, self._paths, self._recorder, journal, self._settled)

    def _add_client(self, number: int) -> None:
        scenario, network = self._scenario, self._network
        profile = scenario.profiles[number % len(scenario.profiles)]
        client = Client(
            number,
            profile,
            turns=scenario.turns,
            seed=scenario.seed,
            observer=self,
            balancer=self._bridges,
            haste=scenario.haste,
        )
        first = Rng(scenario.seed, 4, number).between(1, 600) * NS_PER_SECOND // scenario.haste
        client.start(network.now + first)
        window = _SLOW_WINDOW if profile.slow else WINDOW
        network.add(client, label=number, window=window)
        self._clients[number] = client
        self._undone += 1

    def run(self) -> Report:
        """Let everything happen; the report."""
        network, report = self._network, self._journal.report
        try:
            network.run(_HORIZON, self._settled)
            self._check_end()
        except MachineError as exc:
            self._journal.violate("machine", exc.label, str(exc))
        report.conversations = len(self._clients)
        for client in self._clients.values():
            report.conversation_time += max(0, client.ended - client.begun)
            report.turns += client.completed
            report.given_up += client.given_up
            report.probes += client.probes
            report.resends += client.resends
        self._checks.add_warmth(report.ledger)
        report.events = self._recorder.events
        report.digest = self._recorder.digest
        return report

    def _settled(self) -> bool:
        return self._undone == 0 or self._journal.full

    def _check_end(self) -> None:
        """After the last turn: everything has to time out, then all processes have to stop."""
        journal, network, bridges = self._journal, self._network, self._bridges
        if journal.full:
            return
        for client in self._clients.values():
            if not client.done:
                journal.violate("liveness", client.number, "is not done after two months")
        if bridges.turns:
            journal.violate("leak", NO_CLIENT, f"{bridges.turns} turns without a client")
        network.run(network.now + bridges.settle)
        left = {**bridges.left(), "connections at the upstream": self._emulator.connections}
        self._checks.close(bridges.accounts)
        for name, count in left.items():
            if count:
                text = f"{count} {name} {bridges.settle_text} after the last turn"
                journal.violate("leak", NO_CLIENT, text)
        network.run(network.now + bridges.drain())
        if not bridges.drained():
            journal.violate("drain", NO_CLIENT, "an endpoint without connections does not stop")

    # ------------------------------------------------------------ Observer

    def turn_begins(self, client: Client) -> None:
        """Prepare the fault of the turn."""
        self._strikes.turn_begins(client)

    def turn_ended(self, client: Client) -> None:
        """Count the client if it was its last turn; else prepare the fault before the next one."""
        if client.done:
            self._undone -= 1
        else:
            self._strikes.before_turn(client)

    def attempt_begins(self, client: Client) -> None:
        """The client sends its body once more."""
        self._journal.report.attempts += 1
        self._checks.attempt_begins(client)
        self._strikes.attempt_begins(client)
        self._bridges.attempt_begins(client)

    def answered(self, client: Client, response: str) -> None:
        """Check that ``response`` answers what was asked."""
        self._checks.answered(client, response)

    def foreign(self, client: Client) -> str | None:
        """A response id of another credential, if there is one."""
        others = [other for other in self._clients.values() if other.scope != client.scope]
        known = [other.latest for other in others if other.latest is not None]
        rng = Rng(self._scenario.seed, 7, client.number, client.turn)
        return rng.pick(known) if known else None

    def probed(self, client: Client, foreign: Probe, unknown: Probe) -> None:
        """Compare both answers and their costs, unless a fault may have changed one of them."""
        if not self._strikes.disturbed(client, max(self._upstream.away, self._bridges.away)):
            self._checks.probed(client, foreign, unknown)

    def unserved(self, client: Client) -> None:
        """No process accepts the client's connection."""
        self._bridges.unserved(client)

    def refused(self, client: Client, code: str, wait: int) -> None:
        """Check that the client has to wait no longer than it takes."""
        self._bridges.asked_to_wait(client, code, wait)

    def not_found(self, client: Client, response: str, refused: int) -> None:
        """Check that the response is lost indeed."""
        rejected = response in self._checks.rejected
        self._bridges.not_found(client, response, refused, rejected=rejected)

    def explained(self, client: Client, status: int | None) -> bool:
        """Whether the turn's fault explains ``status``; None: a lost connection."""
        if self._strikes.explained(client, status):
            return True
        server = self._strikes.server_of(client)
        return status is None and server is not None and self._bridges.gave_up(client, server)

    def altered(self, client: Client) -> Change | None:
        """How the events of the client's turn are altered, if they are."""
        return self._strikes.altered(client)

    def violate(self, prop: str, client: Client, text: str) -> None:
        """Record a violation that a client observed."""
        self._journal.violate(prop, client.number, text, client.turn)

    def note(self, text: str) -> None:
        """Add a line to the timeline."""
        self._journal.note(text)
