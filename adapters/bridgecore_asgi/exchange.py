"""One request of an ASGI server and its answer: effects of the core as ASGI messages.

What belongs here: what is received and sent for one ``http`` or ``websocket`` scope, and how much
may wait in between. Nothing here depends on what a request asks for; if it had to, the core would
lack an effect.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from bridgecore import transport as tp
from bridgecore.api_error import ApiError
from bridgecore.errors import BridgecoreError
from bridgecore.transport.driver import DrivenConnection, Driver
from bridgecore.transport.request import as_bytes
from bridgecore.transport.sockets import HIGH_WATER
from bridgecore.wire.headers import Headers, make_request_id, request_id_of
from bridgecore_asgi.tasks import Event, Tasks

Scope: TypeAlias = MutableMapping[str, Any]
"""What an ASGI server says about a connection or a request."""

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""How an ASGI application gets the next message from the server."""

Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
"""How an ASGI application gives a message to the server."""

# Seconds for middleware to take a message. If its client does not read, it never does.
_SPOILING: Final = 1.0


class AnswerCutError(BridgecoreError):
    """An answer ends before it is complete.

    Raised out of the application. ASGI has no message for it: a server closes the connection of an
    application that has begun an answer and raises, so that no client takes it for a whole one.
    Returning would not do, because middleware may end the answer then.
    """


class Exchange:
    """One request and its answer; the connection that the driver knows.

    Two things go on at once: ``_read`` takes from the server what the client sends, and ``_write``
    gives it what ``carry_out`` has collected.
    """

    __slots__ = (
        *("_blocked", "_cut", "_data", "_ended", "_head", "_left", "_marks", "_receive"),
        *("_resumed", "_send", "_server", "_tasks", "_waiting", "_wake", "conn"),
    )
    START, BODY = "http.response.start", "http.response.body"  # types of messages

    def __init__(
        self, server: Driver[DrivenConnection], tasks: Tasks, receive: Receive, send: Send
    ) -> None:
        self.conn = -1
        self._server, self._receive, self._send = server, receive, send
        self._tasks = tasks  # run ``_read`` and ``_write``
        self._head: tp.Respond | None = None  # not yet given to the server, like ``_data``
        self._data: list[bytes] = []
        self._waiting = 0  # bytes that the server has not taken: in ``_data``, or being sent
        self._blocked = False  # reported, as more than HIGH_WATER are waiting
        self._marks = 0  # DataSent to report once nothing waits: one for each Send with notify
        self._ended = False  # nothing follows ``_data``
        self._left = False  # the client is gone
        self._cut = False  # the answer must not be completed
        self._wake: Event | None = None  # awaited: something to write, or that nothing more will be
        self._resumed: Event | None = None  # reading is paused until it is set

    async def run(self, begun: tp.RequestBegun) -> bool:
        """Report the request and carry it through to the end of its answer.

        Returns False if the bridge does not run any more, and nothing was sent.

        Raises:
            AnswerCutError: the answer is not complete, and the client is still there.
        """
        self._report(begun)
        if self.conn == -1:
            return False
        try:
            await self._tasks.run(self._read, self._write)
        finally:
            # Also if the server has cancelled this task, or raised. Else it was reported already,
            # and the driver drops what it gets about a connection that is gone.
            self._report(tp.Disconnected(self.conn))
        if self._cut and not self._left:
            await self._spoil()
            raise AnswerCutError("the answer was cut off: the server has to close the connection")
        return True

    async def _spoil(self) -> None:
        """Make middleware fail that would complete the answer although the application raises, as
        Starlette's ``BaseHTTPMiddleware`` does: by a message that cannot be part of an answer."""

        async def spoil() -> None:
            with contextlib.suppress(Exception):
                await self._send({"type": "bridgecore.cut", "more_body": True})

        await self._tasks.within(_SPOILING, spoil)

    def cut(self) -> None:
        """End the exchange at once, without completing the answer."""
        self._cut = True
        self._tasks.cancel()

    def carry_out(self, effect: tp.ConnectionEffect) -> None:
        """Carry out an effect on this request."""
        if isinstance(effect, tp.Send):  # by far the most frequent
            if effect.data:
                self._data.append(effect.data)
                self._waiting += len(effect.data)
            self._marks += effect.notify
            if self._waiting > HIGH_WATER and not self._blocked:
                self._blocked = True
                self._report(tp.WriteBlocked(self.conn))
            self._awaken()
            return
        match effect:
            case tp.Respond():
                self._head = effect
                self._awaken()
            case tp.EndSending() | tp.Close():
                self._ended = True
                self._awaken()
            case tp.Abort():
                self.cut()
            case tp.SendClose():
                raise AssertionError("only an accepted WebSocket has a close frame")
            case tp.PauseReading():
                if self._resumed is None:
                    self._resumed = self._tasks.event()
            case tp.ResumeReading():
                if self._resumed is not None:
                    self._resumed.set()
                    self._resumed = None

    def _report(self, event: tp.TransportEvent) -> None:
        self._server.report(event, self)

    def _awaken(self) -> None:
        if self._wake is not None:
            self._wake.set()

    # ------------------------------------------------------------ what the client sends

    async def _read(self) -> None:
        """Report what the server has read, until the client is gone."""
        while True:
            if self._resumed is not None:
                await self._resumed.wait()
            if not self._received(await self._receive()):
                break
        self._leave()

    def _received(self, message: MutableMapping[str, Any]) -> bool:
        """Report one message; False if the client is gone."""
        if message["type"] == "http.disconnect":
            return False
        if body := as_bytes(message.get("body", b"")):
            self._report(tp.DataReceived(self.conn, body))
        if not message.get("more_body", False):
            self._report(tp.RequestEnded(self.conn))
        return True

    def _leave(self) -> None:
        """The client is gone."""
        self._left = True
        self._report(tp.Disconnected(self.conn))
        self._awaken()

    # ------------------------------------------------------------ what is sent to it

    async def _write(self) -> None:
        """Give the server what ``carry_out`` has collected, until the answer ends or the client is
        gone."""
        ended = False
        while not ended and not self._over:
            if not self._pending:
                self._wake = self._tasks.event()
                await self._wake.wait()
                self._wake = None
            try:
                ended = await self._write_all()
            except OSError:  # how servers say that the client is gone (ASGI 2.4)
                self._leave()

    @property
    def _over(self) -> bool:
        return self._left or self._cut

    @property
    def _pending(self) -> bool:
        return bool(self._head or self._data or self._ended)

    async def _write_all(self) -> bool:
        """Give the server all that is waiting. Whether that is the end of the answer."""
        ended = False
        while not ended and self._pending and not self._over:
            head, self._head = self._head, None
            if head is not None:
                await self._begin(head)
            ended = self._ended
            if self._data or ended:
                await self._pass_on(ended)
        self._taken()
        return ended

    async def _begin(self, head: tp.Respond) -> None:
        await self._send_head(self._send, head.status, head.headers)

    async def _pass_on(self, ended: bool) -> None:
        """Give the server what is in ``_data``. ``ended``: nothing follows it."""
        data = b"".join(self._data)
        self._data.clear()
        await self._send_data(self._send, data, ended)
        self._waiting -= len(data)

    def _taken(self) -> None:
        """The server has taken all that was waiting: report what is due then."""
        if self._blocked:
            self._blocked = False
            self._report(tp.WriteUnblocked(self.conn))
        marks, self._marks = self._marks, 0
        for _ in range(marks):
            self._report(tp.DataSent(self.conn))

    @classmethod
    async def _send_head(cls, send: Send, status: int, headers: Headers) -> None:
        await send({"type": cls.START, "status": status, "headers": headers})

    @classmethod
    async def _send_data(cls, send: Send, data: bytes, ended: bool) -> None:
        await send({"type": cls.BODY, "body": data, "more_body": not ended})

    @classmethod
    async def refuse(cls, error: ApiError, method: str, asked: Headers, send: Send) -> None:
        """Answer a request, with the headers ``asked``, that the core does not get, because it does
        not run. The answer has the headers of the core's own refusals."""
        body = error.body
        name = request_id_of(asked) or make_request_id(os.urandom(16), 0)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", name.encode("ascii")),
            *error.wait_headers,
        ]
        await cls._send_head(send, error.status, headers)
        await cls._send_data(send, b"" if method == "HEAD" else body, ended=True)


# Headers of an upgrade that the server writes itself.
_OF_HANDSHAKE: Final = frozenset({b"connection", b"sec-websocket-accept", b"upgrade"})


class WebSocketExchange(Exchange):
    """A WebSocket handshake, which the core sees as a GET with ``Upgrade``. It is answered by HTTP,
    or accepted, and then each ``Send`` is a text message.

    For servers that have the extension ``websocket.http.response``.
    """

    __slots__ = ("_accepted", "_goodbye")
    START, BODY = "websocket.http.response.start", "websocket.http.response.body"

    def __init__(
        self, server: Driver[DrivenConnection], tasks: Tasks, receive: Receive, send: Send
    ) -> None:
        super().__init__(server, tasks, receive, send)
        self._accepted = False
        self._goodbye = tp.SendClose(-1, 1000, "")  # the close frame

    def carry_out(self, effect: tp.ConnectionEffect) -> None:
        """Carry out an effect on this connection."""
        if isinstance(effect, tp.SendClose):
            self._goodbye = effect
        else:
            super().carry_out(effect)

    def _received(self, message: MutableMapping[str, Any]) -> bool:
        match message["type"]:
            case "websocket.connect":
                self._report(tp.RequestEnded(self.conn))
            case "websocket.receive":
                text = message.get("text")
                data = as_bytes(message.get("bytes") or b"") if text is None else text.encode()
                binary = text is None
                self._report(tp.WebSocketMessageReceived(self.conn, data, binary))
            case _:
                return False
        return True

    async def _begin(self, head: tp.Respond) -> None:
        self._accepted = head.status == 101
        if self._accepted:
            headers = [field for field in head.headers if field[0] not in _OF_HANDSHAKE]
            await self._send({"type": "websocket.accept", "headers": headers})
        else:
            await super()._begin(head)

    async def _pass_on(self, ended: bool) -> None:
        if not self._accepted:
            await super()._pass_on(ended)
            return
        messages, self._data = self._data, []
        for message in messages:
            await self._send({"type": "websocket.send", "text": message.decode()})
            self._waiting -= len(message)
        if ended:
            code, reason = self._goodbye.code, self._goodbye.reason
            await self._send({"type": "websocket.close", "code": code, "reason": reason})


class ClosingExchange(WebSocketExchange):
    """The same with other servers, which can only refuse a handshake with a 403, whatever the core
    answers."""

    __slots__ = ()

    @classmethod
    async def _send_head(cls, send: Send, status: int, headers: Headers) -> None:
        await send({"type": "websocket.close"})

    @classmethod
    async def _send_data(cls, send: Send, data: bytes, ended: bool) -> None:
        pass
