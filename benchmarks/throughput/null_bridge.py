"""A bridge without logic over h11 and wsproto: a floor for one that uses these libraries.

What belongs here: what any bridge over h11 and wsproto does for an event, in the obvious way. Each
client's connection has an upstream WebSocket of its own, which is opened by its first request.
There is no validation, flow control, deadline, log or memory of conversations.

    python null_bridge.py UPSTREAM_PORT     prints the port it listens on
"""

from __future__ import annotations

import asyncio
from typing import cast

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, Request, TextMessage

from benchmarks.throughput.floor import dial, run

TYPE_AT = len(b'{"type":"')
TERMINAL = {b"response.completed", b"response.failed", b"response.incomplete", b"error"}


class Upstream(asyncio.Protocol):
    """One upstream WebSocket; passes the messages of each read to its client together."""

    def __init__(self, client: Client, request: bytes) -> None:
        self.client = client
        self.request = request
        self.parts: list[str] = []
        self.websocket = WSConnection(ConnectionType.CLIENT)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.websocket.send(Request("127.0.0.1", "/v1/responses")))

    def data_received(self, data: bytes) -> None:
        self.websocket.receive_data(data)
        messages = []
        for event in self.websocket.events():
            if isinstance(event, TextMessage):
                self.parts.append(event.data)
                if event.message_finished:
                    messages.append("".join(self.parts).encode())
                    self.parts.clear()
            elif isinstance(event, AcceptConnection):
                self.send(self.request)
            elif isinstance(event, Ping):
                self.transport.write(self.websocket.send(event.response()))
            elif isinstance(event, CloseConnection):
                self.transport.close()
        if messages:
            self.client.deliver(messages)

    def send(self, message: bytes) -> None:
        self.transport.write(self.websocket.send(TextMessage(data=message.decode())))

    def connection_lost(self, error: Exception | None) -> None:
        self.client.transport.close()


class Client(asyncio.Protocol):
    """One client's connection: requests in, event streams out."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.http = h11.Connection(h11.SERVER)
        self.body: list[bytes] = []
        self.upstream: Upstream | None = None

    def data_received(self, data: bytes) -> None:
        self.http.receive_data(data)
        self.take_requests()

    def take_requests(self) -> None:
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            if isinstance(event, h11.Data):
                self.body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self.ask(b"".join(self.body))
                self.body.clear()
            elif isinstance(event, h11.ConnectionClosed):
                self.transport.close()
                return

    def ask(self, body: bytes) -> None:
        message = b'{"type":"response.create",' + body[1:]
        if self.upstream is None:
            self.upstream = Upstream(self, message)
            self.dialling = dial(self.upstream)
        else:
            self.upstream.send(message)
        headers = [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-cache"),
            ("transfer-encoding", "chunked"),
        ]
        self.send(h11.Response(status_code=200, headers=headers))

    def send(self, event: h11.Event) -> None:
        self.transport.write(self.http.send(event) or b"")

    def deliver(self, messages: list[bytes]) -> None:
        out = []
        ended = False
        for message in messages:
            kind = message[TYPE_AT : message.index(b'"', TYPE_AT)]
            event = b"event: " + kind + b"\ndata: " + message + b"\n\n"
            out.append(self.http.send(h11.Data(data=event)) or b"")
            ended |= kind in TERMINAL
        if ended:
            out.append(self.http.send(h11.EndOfMessage()) or b"")
        self.transport.write(b"".join(out))
        if ended:
            self.http.start_next_cycle()
            self.take_requests()

    def connection_lost(self, error: Exception | None) -> None:
        if self.upstream is not None and hasattr(self.upstream, "transport"):
            self.upstream.transport.close()


if __name__ == "__main__":
    run(Client)
