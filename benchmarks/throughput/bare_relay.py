"""A relay with the least Python that turns WebSocket frames into an SSE stream: a floor.

What belongs here: nothing that a byte on the wire does not need. Each client's connection has an
upstream WebSocket of its own. Nothing is validated, limited or timed, messages are assumed to be
whole text frames that begin with their type, and requests are masked with zeros. What a bridge
takes more than this is the price of its libraries and of what it decides.

    python bare_relay.py UPSTREAM_PORT      prints the port it listens on
"""

from __future__ import annotations

import asyncio
from typing import cast

from benchmarks.throughput.floor import dial, run

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
UPGRADE = (
    b"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
TYPE_AT = len(b'{"type":"')
COMPLETED = b"response.completed"


def masked(message: bytes) -> bytes:
    """A text frame as clients send it, with a mask of zeros: its payload is the message itself."""
    size = len(message)
    if size < 126:
        head = bytes((0x81, 0x80 | size))
    elif size < 1 << 16:
        head = b"\x81\xfe" + size.to_bytes(2, "big")
    else:
        head = b"\x81\xff" + size.to_bytes(8, "big")
    return head + bytes(4) + message


class Upstream(asyncio.Protocol):
    """Cuts the frames of one upstream connection and writes each as an event to the client."""

    def __init__(self, client: Client, request: bytes) -> None:
        self.client = client
        self.request = request
        self.rest = b""
        self.upgraded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(UPGRADE)

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        at = 0
        if not self.upgraded:
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                self.rest = data
                return
            self.upgraded = True
            self.transport.write(self.request)
        size = len(data)
        out = []
        while size - at >= 2:
            length, begin = data[at + 1], at + 2
            if length >= 126:
                begin += 2 if length == 126 else 8
                length = int.from_bytes(data[at + 2 : begin], "big")
            end = begin + length
            if end > size:
                break
            kind = data[begin + TYPE_AT : data.index(b'"', begin + TYPE_AT)]
            out.append(
                b"%x\r\nevent: %b\ndata: %b\n\n\r\n"
                % (length + len(kind) + 16, kind, data[begin:end])
            )
            if kind == COMPLETED:
                out.append(b"0\r\n\r\n")
            at = end
        self.rest = data[at:]
        if out:
            self.client.transport.write(b"".join(out))

    def connection_lost(self, error: Exception | None) -> None:
        self.client.transport.close()


class Client(asyncio.Protocol):
    """Reads the requests of one client, and sends their bodies upstream."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.received = b""
        self.upstream: Upstream | None = None

    def data_received(self, data: bytes) -> None:
        self.received += data
        head = self.received.find(b"\r\n\r\n")
        if head < 0:
            return
        length_at = self.received.index(b"Content-Length: ") + len(b"Content-Length: ")
        length = int(self.received[length_at : self.received.index(b"\r", length_at)])
        if len(self.received) < head + 4 + length:
            return
        body = self.received[head + 4 :]
        self.received = b""
        frame = masked(b'{"type":"response.create",' + body[1:])
        self.transport.write(HEAD)
        if self.upstream is None:
            self.upstream = Upstream(self, frame)
            self.dialling = dial(self.upstream)
        else:
            self.upstream.transport.write(frame)

    def connection_lost(self, error: Exception | None) -> None:
        if self.upstream is not None and hasattr(self.upstream, "transport"):
            self.upstream.transport.close()


if __name__ == "__main__":
    run(Client)
