"""Door 2, messages: a ``Gateway`` between an HTTP server and a WebSocket client of your own.

The HTTP server is h11 on asyncio streams, the WebSocket client wsproto on others. What they carry
goes to the gateway as messages, and its answers come back as messages. The upstream is the emulator
in the same process. Flow control, keepalives and log records are left out.
"""

from __future__ import annotations

import asyncio
import time
from itertools import count

import h11
import wsproto
from wsproto import events as ws

from bridgecore import Config, Gateway, UpstreamUrl
from bridgecore import messages as m
from bridgecore.recovery.failure import Closed
from bridgecore.testing import Emulator
from bridgecore.wire.sse import encode_event
from bridgecore_asyncio import serve

REQUEST = b'{"model": "m", "input": "Hello!", "stream": true}'
Client = tuple[h11.Connection, asyncio.StreamWriter]
Link = tuple[wsproto.WSConnection, asyncio.StreamWriter]


class Server:
    """Answers requests from one gateway."""

    def __init__(self, config: Config) -> None:
        self.config, self.gateway = config, Gateway(config)
        self.turns = count(1)
        self.clients: dict[int, Client] = {}  # by turn
        self.links: dict[int, Link] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.timer: asyncio.TimerHandle | None = None

    def handle(self, event: m.GatewayEvent) -> None:
        """Report an event and carry out its effects; then set the timer anew."""
        sent: list[m.GatewayEvent] = []
        for effect in self.gateway.handle(event, time.monotonic_ns()):
            match effect:
                case m.OpenLink():
                    task = asyncio.create_task(self.run_link(effect))
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)
                case m.SendFrame():
                    websocket, writer = self.links[effect.link]
                    writer.write(websocket.send(ws.TextMessage(effect.data.decode())))
                    sent.append(m.LinkFrameSent(effect.link))
                case m.CloseLink():
                    if (link := self.links.pop(effect.link, None)) is not None:
                        link[1].close()
                case m.BeginAnswer():
                    self.send(effect.turn, head(200, b"text/event-stream"))
                case m.AnswerEvents():
                    self.send(effect.turn, h11.Data(b"".join(map(encode_event, effect.events))))
                case m.EndAnswer():
                    self.send(effect.turn, h11.EndOfMessage())
                case m.AnswerBody(turn, body):
                    self.send(turn, head(200), h11.Data(body), h11.EndOfMessage())
                case m.FailAnswer(turn, error):
                    self.send(turn, head(error.status), h11.Data(error.body), h11.EndOfMessage())
                case _:
                    pass
        for event in sent:
            self.handle(event)
        self.set_timer()

    def set_timer(self) -> None:
        """Wait for the gateway's next deadline, which any event can move."""
        if self.timer is not None:
            self.timer.cancel()
        deadline = self.gateway.next_timeout()
        if deadline is not None:
            left = (deadline.at - time.monotonic_ns()) / 1e9
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(left, self.handle, m.BridgeTimeout())

    def send(self, turn: int, *events: h11.Event) -> None:
        """Write to the client of a turn; its connection ends with the answer."""
        http, writer = self.clients[turn]
        for event in events:
            writer.write(http.send(event) or b"")
            if isinstance(event, h11.EndOfMessage):
                del self.clients[turn]
                writer.close()

    async def serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Read one request and report it as a turn."""
        http, body = h11.Connection(h11.SERVER), b""
        headers: list[tuple[bytes, bytes]] = []
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                headers = list(event.headers)
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
        turn = next(self.turns)
        self.clients[turn] = (http, writer)
        self.handle(m.RequestReceived(turn, body, headers))

    async def run_link(self, wanted: m.OpenLink) -> None:
        """A WebSocket connection to the upstream, from its beginning to its end."""
        url, link = self.config.upstream, wanted.link
        reader, writer = await asyncio.open_connection(url.host, url.port)
        websocket = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        upgrade = ws.Request(url.authority, url.target, extra_headers=wanted.headers)
        writer.write(websocket.send(upgrade))
        self.links[link] = (websocket, writer)
        while data := await reader.read(65536):
            websocket.receive_data(data)
            text = ""
            for event in websocket.events():
                if isinstance(event, ws.AcceptConnection):
                    self.handle(m.LinkOpened(link))
                elif isinstance(event, ws.TextMessage):
                    text += event.data
                    if event.message_finished:
                        self.handle(m.MessagesReceived(link, [text.encode()]))
                        text = ""
        if self.links.pop(link, None) is not None:
            self.handle(m.LinkLost(link, Closed(1006)))
        writer.close()


def head(status: int, kind: bytes = b"application/json") -> h11.Response:
    """The head of an answer."""
    headers = [(b"content-type", kind), (b"connection", b"close")]
    return h11.Response(status_code=status, headers=headers)


async def ask(port: int) -> bytes:
    """A client: send the request, read the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(REQUEST) + REQUEST)
    answer = await reader.read()
    writer.close()
    return answer


async def run() -> bytes:
    """Have one request answered by the gateway, with the emulator as its upstream."""
    async with serve(Emulator()) as upstream:
        url = UpstreamUrl.parse(f"ws://127.0.0.1:{upstream.port}/v1/responses")
        server = Server(Config(upstream=url))
        async with await asyncio.start_server(server.serve_client, "127.0.0.1", 0) as listener:
            answer = await ask(listener.sockets[0].getsockname()[1])
        server.handle(m.DrainStarted())  # closes the link
        await asyncio.gather(*server.tasks)
    return answer


def main() -> bytes:
    """The bytes of the answer."""
    return asyncio.run(run())


if __name__ == "__main__":
    print(main().decode())
