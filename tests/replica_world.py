"""Replicas over one store in virtual time: whole endpoints with one emulator as their upstream.

What belongs here: what several test modules need to set up such a cluster.
"""

from __future__ import annotations

from typing import Any

from bridgecore.config import Config, PeerUrl, Store, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.ownership.store import Join
from bridgecore.testing import Emulator
from bridgecore.testing.network import Network
from bridgecore.testing.store import StoreModel, VirtualStore
from tests.endpoint_world import World, in_segments

PEERS = 81
"""The port at which replicas take forwards."""
SECRET = b"a secret of the cluster, long enough"


class Replica(World):
    """A process: an endpoint with the store that others use, too."""

    def __init__(self, cluster: Cluster, name: str, **settings: Any) -> None:
        self.net, self.emulator = cluster.net, cluster.emulator
        self.host = f"{name}-{cluster.started}"
        cluster.started += 1
        self.store = cluster.kind(self.net, cluster.model, cluster.latency)
        self.config = Config(
            upstream=UpstreamUrl.parse("ws://up/v1/responses"),
            store=Store.DRIVER,
            replica=name,
            **{**(self.forwarding() if cluster.forwards else {}), **settings},
        )
        self.endpoint = Endpoint(self.config, self.host.encode())
        self.net.add(self.endpoint, self.host, 80, store=self.store)
        if cluster.forwards:
            self.net.listen_for_peers(self.endpoint, self.host, PEERS)

    def forwarding(self) -> dict[str, Any]:
        """The settings with which others forward to it."""
        url = PeerUrl.parse(f"http://{self.host}:{PEERS}")
        return {"advertise": url, "cluster_secrets": (SECRET,)}

    def client(self) -> Any:
        return self.net.connect(self.host, 80)

    @property
    def lease(self) -> str:
        """The incarnation of its lease."""
        joined = [asked for asked in self.store.asked if isinstance(asked, Join)]
        return joined[-1].owner.incarnation

    def kill(self) -> None:
        self.net.remove(self.endpoint)

    def logged(self) -> list[str]:
        return [log.event for log in self.net.logs]


class Cluster:
    """What replicas share: the network, the upstream, the store. ``latency``: of the store, ns.
    ``forwards``: they forward turns to each other."""

    kind = VirtualStore  # what each replica has of the store

    def __init__(self, latency: int = 0, *, forwards: bool = False) -> None:
        self.forwards = forwards
        self.net = Network(in_segments)
        self.emulator = Emulator()
        self.net.add(self.emulator, "up", 80)
        self.model = StoreModel()
        self.latency = latency
        self.started = 0

    def start(self, name: str = "a", **settings: Any) -> Replica:
        return Replica(self, name, **settings)
