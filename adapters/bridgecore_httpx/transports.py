"""The transports: requests of a client of httpx or httpx2, answered by a bridge in the process.

What belongs here: which requests are turns, waiting for answers in a task or a thread, timeouts,
and the exceptions that clients of the two libraries expect.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Any

import anyio

from bridgecore.config import Config, Store
from bridgecore.transport import Log, ResponseDeleted
from bridgecore.transport.driver import StoreClient
from bridgecore.transport.request import InProcessRequest, as_bytes
from bridgecore.wire.passing import REBUILT, deleted_response, is_passed
from bridgecore.wire.requests import InvalidBodyError, parse_reference
from bridgecore_httpx.libraries import (
    AsyncStreamBase,
    AsyncTransport,
    AsyncTransportBase,
    Request,
    StreamBase,
    Transport,
    TransportBase,
    library_of,
)
from bridgecore_httpx.running import Running, Settings, identity, stopped

# Every answer names a version, as clients expect. It is that of the bridge's listener.
_EXTENSIONS = {"http_version": b"HTTP/1.1"}


def target_of(request: Request, config: Config, *, running: bool) -> bytes | None:
    """The target under which the bridge gets a request, whatever the client has before
    ``/responses``; None if it is for the inner transport. ``running``: the bridge has started."""
    if request.method != "POST":
        return None
    segments = _segments(request)
    target = b"/v1/responses"
    if segments[-1:] != ("responses",):
        knows = running or config.store is Store.DRIVER
        if not (
            knows and segments[-2:] in REBUILT and is_passed(segments[-2:], config.pass_through)
        ):
            return None
        if not _names_a_response(request):
            return None
        target += b"/" + segments[-1].encode()
    query = request.url.query
    return target + b"?" + query if query else target


def _segments(request: Request) -> tuple[str, ...]:
    """The segments of its path, as they are sent."""
    path: bytes = request.url.raw_path
    return tuple(path.partition(b"?")[0].decode("ascii").split("/"))


def _names_a_response(request: Request) -> bool:
    """Whether the body of a request about a context names a response, which only the bridge may
    know. A body that is not in memory is not looked at, nor is a compressed one."""
    try:
        return bool(parse_reference(request.content).previous_response_id)
    except (InvalidBodyError, library_of(request).RequestNotRead):
        return False


def deleted_by(request: Request, status: int, scope: str | None) -> ResponseDeleted | None:
    """What to report to the bridge of a request that the inner transport has carried; None if it
    has deleted no response. ``status``: of its answer."""
    # 404: the upstream does not have it, and what is held of it here is all there is.
    if not (200 <= status < 300 or status == 404):
        return None
    response = deleted_response(request.method.encode(), _segments(request)[-2:])
    if response is None:
        return None
    return ResponseDeleted(response, request.headers.raw, scope=scope)


def timeout_of(request: Request, which: str) -> float | None:
    """A timeout of the request, in seconds; None: no limit."""
    found: float | None = request.extensions.get("timeout", {}).get(which)
    return found


def timed_out(request: Request, which: str, what: str) -> Exception:
    """The exception for the timeout ``which``: ``connect``, ``read`` or ``write``."""
    kind = getattr(library_of(request), f"{which.capitalize()}Timeout")
    seconds = timeout_of(request, which)
    error: Exception = kind(f"{what} within {seconds:g} s", request=request)
    return error


def broken(request: Request, *, begun: bool) -> Exception:
    """The exception for an answer that was cut off. ``begun``: its head has come."""
    what = "before the answer was complete" if begun else "without an answer"
    kind = library_of(request).RemoteProtocolError
    error: Exception = kind(f"the bridge closed the connection {what}", request=request)
    return error


def has_head(request: Request, exchange: InProcessRequest) -> bool:
    """Whether the head of the answer has come.

    Raises:
        RemoteProtocolError: of the client's library: none will come.
    """
    over = exchange.over
    if exchange.head is None and over:
        raise broken(request, begun=False)
    return exchange.head is not None


def part_of(request: Request, exchange: InProcessRequest) -> bytes | None:
    """The next part of the answer; empty if it has not come yet, None at the end.

    Raises:
        RemoteProtocolError: of the client's library: the answer was cut off.
    """
    data, over = exchange.take()
    if data or not over:
        return data
    if exchange.cut:
        raise broken(request, begun=True)
    return None


def response_to(request: Request, exchange: InProcessRequest, stream: object) -> Any:
    """The response whose head has come."""
    assert exchange.head is not None
    status, headers = exchange.head
    return library_of(request).Response(
        status, headers=headers, stream=stream, extensions=dict(_EXTENSIONS)
    )


# ------------------------------------------------------------------ async


class BridgeTransport(AsyncTransportBase):
    """A transport for ``AsyncClient`` that answers turns by a bridge in this process.

    A turn is a ``POST`` whose path ends in ``/responses``. Host and scheme of its URL are not used,
    as the bridge connects to ``config.upstream``; the ``Authorization`` header is sent there as it
    came. All other requests are passed to ``inner``, except those to compact or to count the
    context of a response, which only the bridge may know. A response that is deleted is forgotten
    here, too.

    The bridge starts with the first turn, or when the context of the client or of the transport is
    entered, in the background of the event loop that runs then, which is the only one that may use
    it. It ends with ``aclose``: running turns have ``config.drain_timeout`` to end. Leaving the
    context by an exception ends them at once. So does the end of the event loop.

    Of the timeouts of a request, ``read`` is the longest silence before and within an answer,
    ``write`` the longest time that the bridge takes no part of the request, and ``connect`` that of
    the bridge's start. ``pool`` is not needed: there is no pool. What the bridge takes to connect
    to the upstream counts as silence.

    Args:
        config: settings of the bridge.
        inner: for requests that are no turns. None: ``AsyncHTTPTransport()`` of the library whose
            client sends them. It is closed with this transport.
        store: where a bridge with ``Store.DRIVER`` keeps responses. The caller closes it.
        upstream_ssl: for connections to the upstream. None: certificates are verified against the
            system's trust store.
        log: called with every log record. None: they are dropped.
        scope: the tenant of all turns, see ``RequestBegun``. None: tenants are told apart by their
            credentials.
    """

    def __init__(
        self,
        config: Config,
        *,
        inner: AsyncTransport | None = None,
        store: StoreClient | None = None,
        upstream_ssl: ssl.SSLContext | None = None,
        log: Callable[[Log], None] | None = None,
        scope: str | None = None,
    ) -> None:
        self._settings = Settings(config, store, upstream_ssl, log, scope)
        self._inner: Any = inner  # takes the requests of either library, or of one
        self._running: Running | None = None
        self._closed = False

    async def __aenter__(self) -> BridgeTransport:
        """Start the bridge."""
        await self._started()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """End the bridge; at once, if the context is left by an exception."""
        if exc_type is not None and self._running is not None:
            self._refuse_other_loop(self._running)
            await self._running.stop()
        await self.aclose()

    async def aclose(self) -> None:
        """Let running turns end, then end the bridge.

        Raises:
            RuntimeError: the bridge runs in another event loop. Nothing was closed.
            Exception: what has ended the bridge before, which is a bug.
        """
        if self._running is not None and not self._running.ended.is_set():
            self._refuse_other_loop(self._running)
        self._closed = True
        running, self._running = self._running, None
        try:
            if running is not None and not running.ended.is_set():
                await running.drain()
            if running is not None and running.error is not None:
                raise running.error
        finally:
            if self._inner is not None:
                await self._inner.aclose()

    async def handle_async_request(self, request: Request) -> Any:
        """The response to ``request``; its stream has to be closed."""
        settings = self._settings
        target = target_of(request, settings.config, running=self._running is not None)
        if target is None:
            return await self._pass_on(request)
        running = await self._started(request)
        answer = _Answer(request, target, running, self)
        try:
            await answer.begin(self._settings.scope)
        except BaseException:
            running.forget(answer.exchange)
            raise
        return response_to(request, answer.exchange, answer)

    async def _pass_on(self, request: Request) -> Any:
        """The inner transport's response to ``request``. A response that was deleted so is
        forgotten before the client knows, so that its next turn does not continue it."""
        if self._inner is None:
            self._inner = library_of(request).AsyncHTTPTransport()
        settings = self._settings
        if deleted_by(request, 200, None) is not None and settings.config.store is Store.DRIVER:
            await self._started(request)  # the store may hold it, whatever this bridge does
        response = await self._inner.handle_async_request(request)
        deleted = deleted_by(request, response.status_code, settings.scope)
        if deleted is not None and self._running is not None:
            self._running.report(deleted)
        return response

    async def _started(self, request: Request | None = None) -> Running:
        """The running bridge; it is started if necessary, for ``request``."""
        running = self._running
        if running is None:
            if self._closed:
                raise RuntimeError("this transport is closed")
            running = self._running = Running(self._settings)
            running.loop.spawn(running.run)
            weakref.finalize(self, running.stop_soon).atexit = False
        self._refuse_other_loop(running)
        if not running.started.is_set():
            timeout = None if request is None else timeout_of(request, "connect")
            with anyio.move_on_after(timeout) as scope:
                await running.started.wait()
            if request is not None and scope.cancelled_caught:
                raise timed_out(request, "connect", "the bridge did not start")
        if running.failed_to_start:
            raise running.failed_to_start
        return running

    def _refuse_other_loop(self, running: Running) -> None:
        if running.loop.identity is not identity():
            raise RuntimeError(
                "this transport was first used in another event loop, where its bridge runs; "
                "create one transport for each event loop"
            )


class _Answer(AsyncStreamBase):
    """The answer to a turn, read in the event loop of its bridge. It keeps ``owner``, because the
    bridge ends when that is collected as garbage."""

    def __init__(
        self, request: Request, target: bytes, running: Running, owner: BridgeTransport
    ) -> None:
        self._request, self._target = request, target
        self._running, self._owner = running, owner
        self._read_timeout = timeout_of(request, "read")
        self._changed = running.loop.signal()
        self.exchange = running.exchange(self._changed.wake)

    async def begin(self, scope: str | None) -> None:
        """Send the request; return when the head of the answer has come."""
        request, exchange = self._request, self.exchange
        exchange.begin(request.method.encode(), self._target, request.headers.raw, scope)
        body = aiter(request.stream)  # type: ignore[arg-type]  # of an AsyncClient, so it is async
        try:
            async for part in body:
                exchange.receive(part)
                while exchange.paused and not exchange.over:
                    if not await self._changed.wait(timeout_of(request, "write")):
                        raise timed_out(request, "write", "no part of the request was taken")
                if exchange.head is not None or exchange.over:
                    break  # it is refused before it is complete
            else:
                exchange.end()
        finally:
            if isinstance(body, AsyncGenerator):
                await body.aclose()  # trio warns of generators that are left to be collected
        while not has_head(request, exchange):
            if not await self._changed.wait(self._read_timeout):
                raise timed_out(request, "read", "no answer came")

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        exchange = self.exchange
        try:
            while (part := part_of(self._request, exchange)) is not None:
                if exchange.blocked:
                    exchange.unblock()
                if part:
                    return part
                if not await self._changed.wait(self._read_timeout):
                    raise timed_out(self._request, "read", "no part of the answer came")
        except BaseException:
            self._running.forget(exchange)
            raise
        self._running.forget(exchange)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the turn, if it still runs."""
        self._running.forget(self.exchange)


# ------------------------------------------------------------------ sync


class SyncBridgeTransport(TransportBase):
    """A transport for ``Client`` that answers turns by a bridge in this process.

    As ``BridgeTransport``, with the same arguments. The bridge runs in a thread of its own, on
    asyncio, from the first turn or the context's start to ``close``; any thread may use it. The
    thread does not keep the interpreter from ending. A child of ``os.fork`` needs a transport of
    its own, because it has no threads of its parent. ``inner``: by default ``HTTPTransport()``.
    """

    def __init__(
        self,
        config: Config,
        *,
        inner: Transport | None = None,
        store: StoreClient | None = None,
        upstream_ssl: ssl.SSLContext | None = None,
        log: Callable[[Log], None] | None = None,
        scope: str | None = None,
    ) -> None:
        self._settings = Settings(config, store, upstream_ssl, log, scope)
        self._inner: Any = inner  # takes the requests of either library, or of one
        self._lock = threading.Lock()  # of the next two, and of ``inner``
        self._thread: _Thread | None = None
        self._closed = False

    def __enter__(self) -> SyncBridgeTransport:
        """Start the bridge."""
        self._started()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """End the bridge; at once, if the context is left by an exception."""
        if exc_type is not None and self._thread is not None:
            self._thread.end(at_once=True)
        self.close()

    def close(self) -> None:
        """Let running turns end, then end the bridge and its thread.

        Raises:
            Exception: what has ended the bridge before, which is a bug.
        """
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        try:
            if thread is not None:
                thread.end()
        finally:
            if self._inner is not None:
                self._inner.close()

    def handle_request(self, request: Request) -> Any:
        """The response to ``request``; its stream has to be closed."""
        config = self._settings.config
        target = target_of(request, config, running=self._thread is not None)
        if target is None:
            return self._pass_on(request)
        running = self._started(request)
        answer = _SyncAnswer(request, target, running, self)
        try:
            answer.begin(self._settings.scope)
        except BaseException:
            answer.close()
            raise
        return response_to(request, answer.exchange, answer)

    def _pass_on(self, request: Request) -> Any:
        """As in ``BridgeTransport``."""
        with self._lock:
            if self._inner is None:
                self._inner = library_of(request).HTTPTransport()
        settings = self._settings
        if deleted_by(request, 200, None) is not None and settings.config.store is Store.DRIVER:
            self._started(request)
        response = self._inner.handle_request(request)
        deleted = deleted_by(request, response.status_code, settings.scope)
        thread = self._thread
        if deleted is not None and thread is not None:
            thread.report(deleted)
        return response

    def _started(self, request: Request | None = None) -> Running:
        """The running bridge; it is started if necessary, for ``request``."""
        with self._lock:
            if self._closed:
                raise RuntimeError("this transport is closed")
            if (thread := self._thread) is None:
                thread = self._thread = _Thread(self._settings)
                thread.start()
                weakref.finalize(self, thread.stop_soon).atexit = False
        if request is not None and not thread.up.done():
            wait([thread.up], timeout_of(request, "connect"))
            if not thread.up.done():
                raise timed_out(request, "connect", "the bridge did not start")
        running = thread.up.result()
        if not thread.is_alive():  # in a child of ``os.fork``, which has no thread of its parent
            raise stopped()
        return running


class _Thread(threading.Thread):
    """Runs a bridge on an asyncio loop of its own. ``up``: it runs."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="bridgecore", daemon=True)
        self.up: Future[Running] = Future()
        self._settings = settings

    def run(self) -> None:
        """Run it until ``end``."""
        try:
            asyncio.run(self._main())
        except BaseException as exc:
            if self.up.done():
                raise
            self.up.set_exception(exc)

    async def _main(self) -> None:
        running = Running(self._settings)
        running.loop.spawn(running.run)
        await running.started.wait()
        if running.failed_to_start is not None:
            raise running.failed_to_start
        self.up.set_result(running)
        await running.closing.wait()
        await running.drain()

    def report(self, event: ResponseDeleted) -> None:
        """Report ``event`` to the bridge, before what follows from this thread. If it is starting
        or has failed to, it knows of no response yet, or will not."""
        if self.up.done() and self.up.exception() is None:
            self.up.result().report(event)

    def stop_soon(self) -> None:
        """Have it stop at once, when it runs; without waiting."""

        def stop(up: Future[Running]) -> None:
            if up.exception() is None:
                up.result().stop_soon()

        self.up.add_done_callback(stop)

    def end(self, *, at_once: bool = False) -> None:
        """Have it end, and wait until it has. An interrupted wait ends it at once."""
        try:
            if self.up.exception() is not None or not self.is_alive():
                return  # it has not started, which was reported
            running = self.up.result()
            if at_once:
                running.stop_soon()
            else:
                running.post(running.closing.set)
            self.join()
        except BaseException:
            self.stop_soon()
            raise
        if running.error is not None:
            raise running.error


class _SyncAnswer(StreamBase):
    """The same, read in another thread than that of its bridge."""

    def __init__(
        self, request: Request, target: bytes, running: Running, owner: SyncBridgeTransport
    ) -> None:
        self._request, self._target = request, target
        self._running, self._owner = running, owner
        self._closed = False
        self._read_timeout = timeout_of(request, "read")
        self._changed = threading.Event()
        self.exchange = running.exchange(self._changed.set)

    def begin(self, scope: str | None) -> None:
        """Send the request; return when the head of the answer has come."""
        request, exchange, post = self._request, self.exchange, self._running.post
        body = iter(request.stream)  # type: ignore[arg-type]  # of a Client, so it is not async
        start, after = as_bytes(next(body, b"")), next(body, None)

        def first() -> None:
            method = request.method.encode()
            exchange.begin(method, self._target, request.headers.raw, scope)
            exchange.receive(start)
            if after is None:  # as almost always: then the event loop is woken once
                exchange.end()

        post(first)
        if after is not None:
            for part in chain([after], body):
                self._await_room()
                if exchange.head is not None or exchange.over:
                    break  # it is refused before it is complete
                post(partial(exchange.receive, as_bytes(part)))
            else:
                post(exchange.end)
        self._changed.clear()
        while not has_head(request, exchange):
            if not self._changed.wait(self._read_timeout):
                raise timed_out(request, "read", "no answer came")
            self._changed.clear()

    def _await_room(self) -> None:
        """Wait until the bridge takes more of the request."""
        request, exchange = self._request, self.exchange
        handled = threading.Event()
        self._running.post(handled.set)  # after what was posted before
        seconds = timeout_of(request, "write")
        in_time = handled.wait(seconds)
        self._changed.clear()
        while in_time and exchange.paused and not exchange.over:
            in_time = self._changed.wait(seconds)
            self._changed.clear()
        if not in_time:
            raise timed_out(request, "write", "no part of the request was taken")

    def __iter__(self) -> Iterator[bytes]:
        request, exchange = self._request, self.exchange
        try:
            self._changed.clear()
            while (part := part_of(request, exchange)) is not None:
                if exchange.blocked:
                    self._running.post(exchange.unblock)
                if part:
                    yield part
                elif not self._changed.wait(self._read_timeout):
                    raise timed_out(request, "read", "no part of the answer came")
                self._changed.clear()
        finally:
            self.close()

    def close(self) -> None:
        """End the turn, if it still runs."""
        if not self._closed:  # a client closes also what was read to its end
            self._closed = True
            self._running.post(partial(self._running.forget, self.exchange))
