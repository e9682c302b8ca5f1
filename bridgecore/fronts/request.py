"""One request that a server around the bridge has read, such as an ASGI server.

What belongs here: what differs from a connection of our own listener, which is that there are no
bytes of HTTP. Paths, refusals, deadlines and the form of answers are the same: see
``bridgecore.fronts.http``.
"""

from __future__ import annotations

from collections.abc import Callable

from bridgecore import transport as tp
from bridgecore.config import Config
from bridgecore.fronts.http import HttpConnection
from bridgecore.fronts.websocket import MessageConnection, max_message
from bridgecore.wire.headers import VALUE, Headers, lower_names
from bridgecore.wire.http import BadRequest, HttpLimits
from bridgecore.wire.http_messages import Head, HttpMessages
from bridgecore.wire.request_heads import RefusedError, RequestHead, check_framing, malformed
from bridgecore.wire.websocket import NO_BINARY, TOO_LARGE, UNSUPPORTED_DATA


class RequestConnection(HttpConnection):
    """One request; a ``ClientConnection`` that ends with it. ``event``: its head;
    ``request_seed``, ``metrics``: see ``HttpConnection``."""

    __slots__ = ("_carries", "_messages")

    def __init__(
        self,
        config: Config,
        now: int,
        request_seed: bytes,
        event: tp.RequestBegun,
        metrics: Callable[[], bytes] | None = None,
    ) -> None:
        super().__init__(config, now, request_seed, metrics)
        self._scope = event.scope
        self._carries = event.messages
        limits = HttpLimits(config.max_header, config.max_body)
        self._http = self._messages = HttpMessages(limits, _read(event), self._comes_by_parts)

    def end(self) -> None:
        """The body is complete."""
        self._messages.end()

    def write(self, conn: int, *, notify: bool) -> list[tp.TransportEffect]:
        """The effects that send what is in ``out``."""
        effects: list[tp.TransportEffect] = []
        head = self._messages.take_head()
        if head is not None:
            effects.append(tp.Respond(conn, *head))
        data = b"".join(self.out)
        self.out.clear()
        if data or notify:
            effects.append(tp.Send(conn, data, notify))
        return effects

    def _takes_upgrade(self, head: RequestHead) -> bool:
        # A server may hand over a handshake as a request like any other, because it has no
        # WebSockets or does not take it for one. It could not do anything with a 101.
        return self._carries and super()._takes_upgrade(head)

    def _upgraded(self, head: RequestHead, answer: bytes) -> MessagesOnRequest:
        accepted = self._messages.take_head()
        assert accepted is not None, "the upgrade was just accepted"
        return MessagesOnRequest(
            self._config, self._since, self._request_seed, head.headers, self._scope, accepted
        )


class MessagesOnRequest(MessageConnection):
    """Messages that a server around the bridge reads and writes, after an upgrade. ``accepted``:
    status and headers of the answer to its request. That server sends pings and awaits pongs."""

    __slots__ = ("_accepted", "_goodbye")

    def __init__(
        self,
        config: Config,
        now: int,
        request_seed: bytes,
        headers: Headers,
        scope: str | None,
        accepted: Head,
    ) -> None:
        super().__init__(config, now, request_seed, headers, scope)
        self._accepted: Head | None = accepted
        self._goodbye: tuple[int, str] | None = None

    def receive(self, data: bytes) -> None:
        """Nothing: there are only whole messages, see ``receive_message``."""

    def receive_message(self, data: bytes, *, binary: bool) -> None:
        """Take a message. What ends a connection is the same as in ``WebSocketServer``, which reads
        the bytes of those that have no server around them."""
        limit = max_message(self._config)
        if self.closing:
            pass
        elif binary:
            self._close(UNSUPPORTED_DATA, NO_BINARY)
        elif len(data) > limit:
            self._close(TOO_LARGE, f"a message is larger than {limit} bytes")
        else:
            self._heard(1)
            self._add(data)

    def write(self, conn: int, *, notify: bool) -> list[tp.TransportEffect]:
        """The effects that send what is in ``out``."""
        effects: list[tp.TransportEffect] = []
        if self._accepted is not None:
            effects.append(tp.Respond(conn, *self._accepted))
            self._accepted = None
        sends = [tp.Send(conn, message) for message in self.out]
        if sends:
            sends[-1].notify = notify
        effects += sends
        if self._goodbye is not None:
            effects.append(tp.SendClose(conn, *self._goodbye))
            self._goodbye = None
        self.out.clear()
        return effects

    def _send(self, messages: list[bytes]) -> None:
        self.out += messages

    def _send_close(self, code: int, reason: str) -> None:
        self._goodbye = code, reason


def _read(event: tp.RequestBegun) -> RequestHead | BadRequest:
    path, _, query = event.target.partition(b"?")
    # White space around a value is no part of it (RFC 9110, section 5.5). The server around the
    # bridge may have left it there, and in a client's own process nothing has parsed the value.
    headers = [(name, value.strip(b" \t")) for name, value in lower_names(event.headers)]
    try:
        for name, value in headers:
            if VALUE.fullmatch(value) is None:
                # Refused here, because to send it upstream would be an error of this program.
                text = f"the header {name.decode('latin-1')!a} has a control character in its"
                raise malformed(f"{text} value; remove or encode it")
        length = check_framing(headers)
    except RefusedError as refused:
        return BadRequest(refused.status, refused.code, str(refused))
    return RequestHead(
        event.method,
        path.decode("latin-1"),
        query,
        headers,
        content_length=length,
        chunked=length is None,
        expects_continue=False,
    )
