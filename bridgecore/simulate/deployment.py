"""What a run tests: one bridge, or several replicas of it behind a balancer.

What belongs here: what the other parts of a run need of either (``Deployment``), and the simple
case (``Single``). Replicas are in ``cluster.py``.
"""

from __future__ import annotations

from typing import Final, Protocol

import attrs

from bridgecore import transport as tp
from bridgecore.config import Config, Rotation, UpstreamUrl
from bridgecore.continuity.accounts import Accounts
from bridgecore.recovery.policy import DEFAULT
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.simulate.clients import Balancer, Client
from bridgecore.simulate.report import Journal
from bridgecore.simulate.scenario import Scenario
from bridgecore.simulate.upstream import HOST, PORT
from bridgecore.testing.network import Network

_HOST: Final = "bridge"
_HOUR: Final = 3600 * NS_PER_SECOND


class Deployment(Balancer, Protocol):
    """The processes that serve the clients of a run. It is also their balancer."""

    @property
    def settle(self) -> int:
        """How long after the last turn everything has timed out, ns."""

    @property
    def settle_text(self) -> str:
        """The same, in words."""

    @property
    def away(self) -> int:
        """Until when the effects of faults of its processes last or lasted, ns."""

    @property
    def turns(self) -> int:
        """How many turns are not over, although nothing holds them up any more."""

    @property
    def accounts(self) -> Accounts:
        """What continuity has saved and cost, over all processes so far."""

    def left(self) -> dict[str, int]:
        """Counts that are 0 once everything has timed out, by what is counted."""

    def drain(self) -> int:
        """Begin to end all processes; how long that may take, ns."""

    def drained(self) -> bool:
        """Whether all processes have ended."""

    def attempt_begins(self, client: Client) -> None:
        """``client`` sends its body once more."""

    def unserved(self, client: Client) -> None:
        """No process accepts the connection of ``client``."""

    def asked_to_wait(self, client: Client, code: str, wait: int) -> None:
        """``client`` got an error with ``code`` and ``Retry-After: wait`` (seconds)."""

    def not_found(self, client: Client, response: str, refused: int, *, rejected: bool) -> None:
        """``client`` got ``previous_response_not_found`` for ``response``, after ``refused``
        answers with an error that can be retried. ``rejected``: the upstream has refused an input
        that was rebuilt from it."""

    def gave_up(self, client: Client, server: tp.Machine) -> bool:
        """Whether ``server`` is about to end and does not wait for ``client`` any longer."""


def config_of(scenario: Scenario) -> Config:
    """The settings of each process of a run."""
    config = Config(
        upstream=UpstreamUrl.parse(f"ws://{HOST}:{PORT}/v1/responses"),
        policy=scenario.policy,
        # With the default interval pings would be most of the events, and test nothing more.
        ping_interval=300 * NS_PER_SECOND,
        # The reference model knows what is right under these cells only.
        decisions=scenario.policy.cells == DEFAULT.cells,
    )
    if scenario.warm:
        lifetime = 200 * NS_PER_SECOND
        config = attrs.evolve(config, rotation=Rotation.WARM, upstream_lifetime=lifetime)
    return config


class Single:
    """One bridge, without a store; a ``Deployment``."""

    settle = 3 * _HOUR
    settle_text = "three hours"
    away = 0

    def __init__(self, scenario: Scenario, network: Network, journal: Journal) -> None:
        self._network = network
        self._journal = journal
        self._config = config_of(scenario)
        self._refusals = scenario.policy.budgets.refusals
        self._endpoint = scenario.endpoint(self._config, b"")
        network.add(self._endpoint, _HOST, 80)

    @property
    def turns(self) -> int:
        """How many turns are not over."""
        return self._endpoint.bridge.turns

    @property
    def accounts(self) -> Accounts:
        """What continuity has saved and cost."""
        return self._endpoint.bridge.accounts

    def left(self) -> dict[str, int]:
        """What the endpoint has left."""
        endpoint = self._endpoint
        return {
            "turns": endpoint.bridge.turns,
            "conversations": endpoint.bridge.conversations,
            "links": endpoint.bridge.links,
            "client connections": endpoint.clients,
            "upstream connections": endpoint.upstreams,
            "wires of the endpoint": len(self._network.ends(endpoint)),
        }

    def drain(self) -> int:
        """Begin to end the process."""
        self._network.handle(self._endpoint, tp.DrainRequested())
        return self._config.drain_timeout * 2

    def drained(self) -> bool:
        """Whether the process has ended."""
        endpoint = self._endpoint
        return endpoint in self._network.stopped and endpoint.next_timeout() is None

    def moves(self, client: Client) -> bool:
        """Never: there is one process."""
        return False

    def next(self, client: Client) -> str:
        """The bridge."""
        return _HOST

    def refused(self, client: Client) -> str | None:
        """Nowhere else."""
        return None

    def attempt_begins(self, client: Client) -> None:
        """Nothing needs to be noted."""

    def unserved(self, client: Client) -> None:
        """The bridge always listens."""
        text = "the endpoint does not accept connections"
        self._journal.violate("http", client.number, text, client.turn)

    def asked_to_wait(self, client: Client, code: str, wait: int) -> None:
        """Any time is right: there is nothing to compare it with."""

    def not_found(self, client: Client, response: str, refused: int, *, rejected: bool) -> None:
        """Check that it was refused often enough before: the bridge has known the response."""
        wanted = self._refusals
        if refused < wanted:
            text = f"not-found after {refused} refusals of the id, not {wanted}"
            self._journal.violate("not-found", client.number, text, client.turn)

    def gave_up(self, client: Client, server: tp.Machine) -> bool:
        """It does not end while it has clients."""
        return False
