"""A bridge in front of an emulator in virtual time: no sockets, no waiting, the same run each time.

What belongs here: the two machines and a client, put together on a ``Network`` as most tests need
them. For anything else, such as several bridges, put a ``Network`` together yourself.
"""

from __future__ import annotations

import json
from typing import Any

from bridgecore.config import Config, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.testing.client import HttpAnswer, ReadError, read_answers
from bridgecore.testing.emulator import Emulator
from bridgecore.testing.network import ByteClient, Network

_PORT = 80


class VirtualRequest:
    """A request to a ``VirtualBridge``; ``client`` has its connection."""

    def __init__(self, client: ByteClient) -> None:
        self.client = client

    @property
    def answered(self) -> bool:
        """Whether the whole answer has arrived."""
        answers = read_answers(bytes(self.client.received))
        return bool(answers) and answers[-1].complete

    @property
    def answer(self) -> HttpAnswer:
        """The answer as far as it has arrived.

        Raises:
            ReadError: nothing has.
        """
        answers = read_answers(bytes(self.client.received))
        if not answers:
            raise ReadError("no answer has arrived yet; time passes in network.advance only")
        return answers[-1]


class VirtualBridge:
    """A bridge (``endpoint``) in front of an emulator (``upstream``), on a ``network`` in virtual
    time. ``settings``: fields of ``Config``, such as ``policy`` or ``created_timeout`` (ns).

    All that follows from a request at once has happened when ``post`` returns. Time passes in
    ``network.advance`` only, which reports each deadline on the way.
    """

    def __init__(self, **settings: Any) -> None:
        self.network = Network()
        self.upstream = Emulator()
        upstream = UpstreamUrl.parse(f"ws://upstream:{_PORT}/v1/responses")
        self.endpoint = Endpoint(Config(upstream=upstream, **settings))
        self.network.add(self.upstream, "upstream", _PORT)
        self.network.add(self.endpoint, "bridge", _PORT)

    def post(self, body: object, *, authorization: str = "Bearer key") -> VirtualRequest:
        """Send a turn, on a connection of its own. ``body``: as JSON, unless it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        client = self.network.connect("bridge", _PORT)
        head = (
            "POST /v1/responses HTTP/1.1\r\nHost: bridge\r\nContent-Type: application/json\r\n"
            f"Authorization: {authorization}\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        client.send(head.encode() + data)
        return VirtualRequest(client)
