"""Several replicas that share a store, behind a balancer.

What belongs here: starting and ending the processes of a cluster, who gets a request, and the
checks of what replicas promise together. What goes wrong with them is in ``disruption.py``.

Checked here:

* *ownership*: a process that is granted a conversation is the only one that would send its turns,
  unless a failover has made the store forget who owned it;
* *not-found*: a response that a client was shown is lost only for a known reason: it was lost in a
  failover (what its replica commits after that has all that it continues); or the log said that it
  is not durable, and the store had not got it since when the turn was sent; or the upstream has
  refused an input that was rebuilt from it; or there is no transcript of it, because the upstream
  alone knew what it continues, and that does not store it;
* *wait*: a client has to wait for a lost owner no longer than a lease lasts.

The balancer is fair to each client by itself: its next request is sent to the next replica. If that
one refuses the connection it tries the others, as HAProxy does with ``option redispatch``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from bridgecore import transport as tp
from bridgecore.config import Config, PeerUrl, Store
from bridgecore.continuity.accounts import Accounts
from bridgecore.continuity.aliases import credential_scope
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.simulate.chance import Rng
from bridgecore.simulate.clients import Client
from bridgecore.simulate.deployment import config_of
from bridgecore.simulate.disruption import Disruption
from bridgecore.simulate.paths import Paths, Recorder
from bridgecore.simulate.process import Process
from bridgecore.simulate.report import Journal
from bridgecore.simulate.scenario import Scenario
from bridgecore.simulate.shared_store import ResponseFate, SharedStore, StorePath
from bridgecore.testing.network import NO_CLIENT, Network
from bridgecore.wire.decisions import hashed

PEERS: Final = 81
"""The port at which replicas take forwards."""
_SECRET: Final = b"the secret of a simulated cluster"
_KEEPS: Final = 4  # one request in so many stays on the connection of the one before


class Cluster:
    """Replicas named ``a``, ``b`` and so on; a ``Deployment``. ``over``: whether all clients are
    done, so that there are no more faults."""

    # Half-open connections last a quarter of an hour, all else is over before.
    settle = 1800 * NS_PER_SECOND
    settle_text = "half an hour"

    def __init__(
        self,
        scenario: Scenario,
        network: Network,
        paths: Paths,
        recorder: Recorder,
        journal: Journal,
        over: Callable[[], bool],
    ) -> None:
        self.scenario = scenario
        self.network = network
        self.paths = paths
        self.journal = journal
        self.store = SharedStore()
        self.names = [chr(ord("a") + n) for n in range(scenario.replicas)]
        self.running: dict[str, Process] = {}  # by name
        self._recorder = recorder
        self._config = _config(scenario)
        self._started = 0
        self._starts: dict[str, int] = {}  # by name
        self._accounts = Accounts()  # of processes that have ended
        self._leaving = False
        self._at: dict[int, int] = {}  # client -> index of the replica that it was sent to last
        self._refused: dict[int, int] = {}  # client -> connects refused, one after the other
        self._not_durable: set[str] = set()  # hashed ids
        # client -> what the store knew of its anchor when its latest attempt began
        self._fates: dict[int, ResponseFate] = {}
        for name in self.names:
            self.start(name)
        recorder.listen(self._logged)
        self._disruption = Disruption(self, over)

    # ------------------------------------------------------------ processes

    def start(self, name: str) -> None:
        """Start a process of the replica ``name``, if none runs."""
        if name in self.running:
            return
        self._started += 1
        started = self._starts[name] = self._starts.get(name, 0) + 1
        config = attrs.evolve(
            self._config, replica=name, advertise=PeerUrl.parse(f"http://{name}:{PEERS}")
        )
        endpoint = self.scenario.endpoint(config, b"%b/%d" % (name.encode(), self._started))
        path = StorePath(self.network, self.store, Rng(self.scenario.seed, 11, self._started))
        process = self.running[name] = Process(name, endpoint, path, self._claimed, self._stopped)
        self._recorder.names[id(process)] = name if started == 1 else f"{name}#{started}"
        self.network.add(process, name, 80, store=path)
        self.network.listen_for_peers(process, name, PEERS)

    def kill(self, process: Process) -> None:
        """End a process at once, if it still runs."""
        if self.running.get(process.name) is not process:
            return
        for end in self.network.ends(process):
            self.network.reset(end)
        self._remove(process)

    def _remove(self, process: Process) -> None:
        del self.running[process.name]
        self._accounts += process.endpoint.bridge.accounts
        self.network.remove(process)

    def _stopped(self, process: Process) -> None:
        if not self._leaving:
            self.network.at(self.network.now, lambda: self._ended(process))

    def _ended(self, process: Process) -> None:
        if self.running.get(process.name) is process:
            self._remove(process)
            self.start(process.name)

    # ------------------------------------------------------------ Deployment

    @property
    def away(self) -> int:
        """Until when the effects of faults last, ns."""
        return self._disruption.until

    @property
    def turns(self) -> int:
        """How many turns are not over, although nothing holds them up any more."""
        if self.network.now < self.away:
            return 0
        return sum(each.endpoint.bridge.turns for each in self.running.values())

    @property
    def accounts(self) -> Accounts:
        """What continuity has saved and cost."""
        running = (each.endpoint.bridge.accounts for each in self.running.values())
        return sum(running, self._accounts)

    def left(self) -> dict[str, int]:
        """What the processes, and the store, have left."""
        found: dict[str, int] = {}
        now = self.network.now
        for name, process in self.running.items():
            endpoint, holdings = process.endpoint, process.endpoint.bridge.holdings
            found[f"turns of {name}"] = endpoint.bridge.turns
            found[f"conversations of {name}"] = endpoint.bridge.conversations
            found[f"links of {name}"] = endpoint.bridge.links
            found[f"client connections of {name}"] = endpoint.clients
            found[f"upstream connections of {name}"] = endpoint.upstreams
            found[f"wires of {name}"] = len(self.network.ends(process))
            found[f"claims of {name}"] = 0 if holdings is None else holdings.claims
            if holdings is not None and not holdings.has_lease(now):
                found[f"lost leases of {name}"] = 1
        found["replicas that do not run"] = len(self.names) - len(self.running)
        return found

    def drain(self) -> int:
        """Begin to end all processes."""
        self._leaving = True
        for process in list(self.running.values()):
            self.network.handle(process, tp.DrainRequested())
        return self._config.drain_timeout * 2

    def drained(self) -> bool:
        """Whether all processes have ended."""
        return all(
            each.over and each.endpoint.next_timeout() is None for each in self.running.values()
        )

    # ------------------------------------------------------------ Balancer

    def moves(self, client: Client) -> bool:
        """Mostly; a request may also stay on the connection of the one before."""
        rng = Rng(self.scenario.seed, 12, client.number, client.turn, client.tries)
        return not rng.one_in(_KEEPS)

    def next(self, client: Client) -> str:
        """The replica after the one that ``client`` was sent to before."""
        self._refused[client.number] = 0
        return self._next(client.number)

    def refused(self, client: Client) -> str | None:
        """The replica after the one that does not listen; None if no other one does."""
        self._refused[client.number] += 1
        return self._next(client.number) if self._refused[client.number] < len(self.names) else None

    def _next(self, client: int) -> str:
        at = self._at[client] = (self._at.get(client, client) + 1) % len(self.names)
        return self.names[at]

    def gave_up(self, client: Client, server: tp.Machine) -> bool:
        """Whether ``server`` was draining, and its client reads slowly, so that there was no time
        left for it to read its answer; or its request was not read in time, because the process was
        paused."""
        assert isinstance(server, Process), "clients are served by replicas"
        woken = server.woke and self.network.now - server.woke < NS_PER_SECOND
        return server.draining and bool(client.profile.slow or woken)

    def unserved(self, client: Client) -> None:
        """All replicas are down at once; a balancer would answer 503."""
        self.journal.report.cluster["connects that no replica took"] += 1

    # ------------------------------------------------------------ checks

    def _claimed(self, process: Process, conversation: bytes) -> None:
        now = self.network.now
        self.journal.report.cluster["claims"] += 1
        if conversation in self.store.distrusted or not process.owns(conversation, now):
            return
        for other in self.running.values():
            if other is not process and other.owns(conversation, now):
                text = f"{process.name} owns a conversation that {other.name} owns, too"
                self.journal.violate("ownership", NO_CLIENT, text)

    def attempt_begins(self, client: Client) -> None:
        """Note what the store knows of the response that ``client`` continues."""
        if client.anchor is not None:
            self._fates[client.number] = self._fate(client, client.anchor)

    def _fate(self, client: Client, response: str) -> ResponseFate:
        scope = credential_scope([(b"authorization", client.asked().credential)])
        return self.store.fate(scope, response)

    def not_found(self, client: Client, response: str, refused: int, *, rejected: bool) -> None:
        """Check that there is a reason why the response is lost. A replica that has never heard of
        it says so at once. What the store got while the turn was on its way came too late."""
        before, now = self._fates[client.number], self._fate(client, response)
        bounded = refused >= self.scenario.policy.budgets.refusals
        if ResponseFate.FORGOTTEN in (before, now):
            reason = "responses lost in a failover"
        elif before in _NOT_STORED and hashed(response) in self._not_durable:
            reason = "responses lost that were not durable"
        elif rejected and bounded:
            reason = "responses lost as the upstream refused them"
        elif now is ResponseFate.BARE and client.profile.store and bounded:
            reason = "responses lost that have no transcript"
        else:
            text = f"not-found for {response}, but {now.value}"
            self.journal.violate("not-found", client.number, text, client.turn)
            return
        self.journal.report.cluster[reason] += 1

    def asked_to_wait(self, client: Client, code: str, wait: int) -> None:
        """Check that the wait for a lost owner is no longer than a lease lasts."""
        if code == "bridge_owner_unreachable" and wait * NS_PER_SECOND > self._config.lease_ttl:
            text = f"it has to wait {wait} s for an owner that is lost"
            self.journal.violate("wait", client.number, text, client.turn)

    def _logged(self, log: tp.Log) -> None:
        name = _COUNTED.get(log.event)
        if name is not None:
            self.journal.report.cluster[name] += 1
        if log.event == "turn.not_durable":
            self._not_durable.add(str(log.fields["response"]))


# What the store may know of a response of which the log says that it is not durable.
_NOT_STORED: Final = (ResponseFate.UNKNOWN, ResponseFate.SEVERED)
_COUNTED: Final = {
    "turn.forwarded": "forwards",
    "turn.not_durable": "commits that failed",
    "replica.lease_lost": "leases lost",
    "store.rolled_back": "claims not believed",
    "store.lost_responses": "conversations stored once more",
}


def _config(scenario: Scenario) -> Config:
    """The settings that all replicas share."""
    return attrs.evolve(
        config_of(scenario),
        store=Store.DRIVER,
        cluster_secrets=(_SECRET,),
        # Shorter, as the pauses of the clients are.
        session_idle=60 * NS_PER_SECOND,
        idle_timeout=120 * NS_PER_SECOND,
    )
