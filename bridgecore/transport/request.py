"""A request that comes without a socket: from an HTTP server or a client around the bridge.

What belongs here: what each adapter of such a server or client would otherwise implement again, and
needs no event loop. See ``bridgecore.transport.RequestBegun``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from bridgecore import transport as tp
from bridgecore.transport.driver import DrivenConnection, Driver
from bridgecore.transport.sockets import HIGH_WATER

Headers = list[tuple[bytes, bytes]]
"""Names and values, as ``RequestBegun`` and ``Respond`` have them."""


def as_bytes(part: bytes | bytearray | memoryview) -> bytes:
    """``part`` of a body, as the bridge takes it. Programs have it in other forms, too, and one of
    a wrong type would be misuse of the bridge, which ends it for all requests.

    Raises:
        TypeError: it is no bytes.
    """
    return part if type(part) is bytes else bytes(memoryview(part))


class InProcessRequest:
    """A request and its answer, which waits here until it is taken; a ``DrivenConnection``.

    Call ``begin``, then ``receive`` for each part of the body, then ``end``. When ``wake`` is
    called, look at ``head``, ``paused`` and ``cut``, and ``take`` what has come of the body of the
    answer; ``unblock`` when that is written. Call ``leave`` at the end in any case.

    All methods except ``take`` are called in the thread of the event loop. ``over`` is the last
    thing that changes; a reader in another thread looks at it first.

    Args:
        driver: of the bridge: the server that ``serve(config, port=None)`` runs.
        wake: called after each change of what is here, in the event loop's thread.
        lock: held for a moment where ``take`` may be called in another thread meanwhile: a
            ``threading.Lock``. Not needed in one thread.
    """

    __slots__ = (
        *("_driver", "_lock", "_marks", "_parts", "_waiting", "_wake", "blocked"),
        *("conn", "cut", "head", "over", "paused"),
    )

    def __init__(
        self,
        driver: Driver[DrivenConnection],
        wake: Callable[[], None],
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self.conn = -1
        self.head: tuple[int, Headers] | None = None  # status and headers of the answer
        self.over = False  # nothing will follow what waits
        self.cut = False  # and the answer is incomplete: it must not look complete to the client
        self.paused = False  # the bridge wants no more of the request for now
        self.blocked = False  # too much waits: call ``unblock`` after ``take``
        self._driver, self._wake = driver, wake
        self._lock = nullcontext() if lock is None else lock  # of the next three
        self._parts: list[bytes] = []  # of the answer, that the reader has not taken
        self._waiting = 0  # bytes in them
        self._marks = 0  # DataSent to report once all is taken

    # ------------------------------------------------------------ for the server or client

    def begin(
        self, method: bytes, target: bytes, headers: Headers, scope: str | None = None
    ) -> None:
        """Report the head of the request. See ``RequestBegun`` for the arguments."""
        self._driver.report(tp.RequestBegun(-1, method, target, headers, scope), self)

    def receive(self, part: bytes | bytearray | memoryview) -> None:
        """Report a part of its body.

        Raises:
            TypeError: it is no bytes. Nothing was reported.
        """
        data = as_bytes(part)
        if data and not self.over:
            self._driver.report(tp.DataReceived(self.conn, data), self)

    def end(self) -> None:
        """Report that the body is complete."""
        if not self.over:
            self._driver.report(tp.RequestEnded(self.conn), self)

    def leave(self) -> None:
        """The client wants no more of the answer; ends the turn, if it still runs."""
        if not self.over:
            self.cut = self.over = True
            self._driver.report(tp.Disconnected(self.conn), self)

    def take(self) -> tuple[bytes, bool]:
        """What of the body has come since the last call, and whether nothing follows it. From any
        thread."""
        over = self.over
        with self._lock:
            parts, self._parts, self._waiting = self._parts, [], 0
        return (parts[0] if len(parts) == 1 else b"".join(parts)), over

    def unblock(self) -> None:
        """The reader has written what it took. May be called at any time."""
        if self._waiting > HIGH_WATER:
            return  # and more has come since, which it will take too
        if self.blocked and not self.over:
            self.blocked = False
            self._driver.report(tp.WriteUnblocked(self.conn), self)
        self._report_sent()

    def lose(self) -> None:
        """The bridge has stopped: the answer will not be completed."""
        if not self.over:
            self.cut = self.over = True
            self._wake()

    # ------------------------------------------------------------ for the driver

    def carry_out(self, effect: tp.ConnectionEffect) -> None:
        """Carry out an effect of the bridge."""
        if self.over:
            return
        match effect:
            case tp.Send():
                self._send(effect)
            case tp.Respond(status=101):
                self.leave()  # a WebSocket, which is no answer with a body: see Config.websocket
            case tp.Respond():
                self.head = (effect.status, effect.headers)
            case tp.Close() | tp.EndSending():
                # What waits needs no connection any more. ``Disconnected`` ends the request.
                self._report_sent()
                self._driver.report(tp.Disconnected(self.conn), self)
                self.over = True
            case tp.SendClose():
                raise AssertionError("only a WebSocket has a close frame")
            case tp.Abort():
                self.cut = self.over = True
            case tp.PauseReading():
                self.paused = True
            case tp.ResumeReading():
                self.paused = False
        self._wake()

    def _send(self, effect: tp.Send) -> None:
        with self._lock:
            self._parts.append(effect.data)
            self._waiting += len(effect.data)
            blocks = self._waiting > HIGH_WATER and not self.blocked
            self.blocked = self.blocked or blocks
        if blocks:
            self._driver.report(tp.WriteBlocked(self.conn), self)
        if effect.notify:
            self._marks += 1
            if not self.blocked:
                self._report_sent()

    def _report_sent(self) -> None:
        marks, self._marks = self._marks, 0
        for _ in range(marks):
            self._driver.report(tp.DataSent(self.conn), self)
