"""An HTTP upstream on the virtual network that answers only what a test says.

What belongs here: recording what is received, and sending bytes, so that a test decides about each
byte of an answer and when it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import h11

from bridgecore import transport as tp
from bridgecore.config import HttpUrl
from bridgecore.recovery.timers import Deadline
from bridgecore.testing.network import ByteClient
from tests.endpoint_world import World

Headers = dict[bytes, bytes]


class HttpUpstream:
    """A machine that accepts connections. The first one has the number 1."""

    def __init__(self) -> None:
        self.received: dict[int, bytearray] = {}
        self.ended: dict[int, str] = {}  # how the other side has ended a connection
        self.unblocked = 0
        self._numbers = 0

    @property
    def latest(self) -> int:
        """The connection that was accepted last."""
        return self._numbers

    def new_connection(self) -> int:
        self._numbers += 1
        return self._numbers

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        if isinstance(event, tp.Accepted):
            self.received[event.conn] = bytearray()
        elif isinstance(event, tp.DataReceived):
            self.received[event.conn] += event.data
        elif isinstance(event, tp.EofReceived):
            self.ended[event.conn] = "eof"
            return [tp.Close(event.conn)]
        elif isinstance(event, tp.Disconnected):
            self.ended.setdefault(event.conn, "reset")
        elif isinstance(event, tp.WriteUnblocked):
            self.unblocked += 1
        return []

    def next_timeout(self) -> Deadline | None:
        return None


class PassingWorld(World):
    """A ``World`` whose HTTP API is an ``HttpUpstream`` at ``http://api/base``."""

    def __init__(
        self, *, split: Callable[[bytes], Iterable[bytes]] | None = None, **settings: Any
    ) -> None:
        settings.setdefault("upstream_http", HttpUrl.parse("http://api/base"))
        super().__init__(split=split, **settings)
        self.api = HttpUpstream()
        self.net.add(self.api, "api", 80)

    def reply(self, data: bytes, *, then: str = "") -> None:
        """Send on the latest connection to the upstream. ``then``: ``close`` or ``abort`` it."""
        conn = self.api.latest
        effects: list[tp.TransportEffect] = [tp.Send(conn, data)] if data else []
        if then == "close":
            effects.append(tp.Close(conn))
        elif then == "abort":
            effects.append(tp.Abort(conn))
        self.net.carry_out(self.api, effects)

    @property
    def request(self) -> h11.Request:
        """The head of the request on the latest connection to the upstream."""
        return self.whole_request()[0]

    def whole_request(self) -> tuple[h11.Request, bytes | None]:
        """That request and its body; None if the body is incomplete."""
        parser = h11.Connection(h11.SERVER)
        parser.receive_data(bytes(self.api.received[self.api.latest]))
        head = parser.next_event()
        assert isinstance(head, h11.Request), head
        body = b""
        while isinstance(event := parser.next_event(), h11.Data):
            body += event.data
        return head, body if isinstance(event, h11.EndOfMessage) else None


def read(
    client: ByteClient, method: bytes = b"GET", *, ended: bool = False
) -> list[h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]]:
    """What ``client`` has received, as h11 reads it: an independent reader, which also takes what
    the package's own is too strict for. ``ended``: the connection has ended.

    Raises:
        h11.RemoteProtocolError: the answer is cut off, or no HTTP.
    """
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"a")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(bytes(client.received))
    if ended:
        parser.receive_data(b"")
    events: list[Any] = []
    while not events or events[-1] not in (h11.NEED_DATA, h11.PAUSED, h11.ConnectionClosed()):
        events.append(parser.next_event())
        if isinstance(events[-1], h11.ConnectionClosed | h11.EndOfMessage):
            break
    return events


def answered(client: ByteClient, method: bytes = b"GET") -> tuple[int, Headers, bytes]:
    """Status, headers and body of the one complete answer that ``client`` has received."""
    head, *parts = [
        each
        for each in read(client, method, ended=client.eof)
        if not isinstance(each, h11.InformationalResponse)
    ]
    assert isinstance(head, h11.Response), head
    assert isinstance(parts[-1], h11.EndOfMessage), parts
    body = b"".join(bytes(part.data) for part in parts if isinstance(part, h11.Data))
    return head.status_code, dict(head.headers), body
