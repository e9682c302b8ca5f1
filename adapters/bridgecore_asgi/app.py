"""The bridge as an ASGI application: its life, and the requests of a server around it.

What belongs here: starting and ending the bridge, and the events by which the core gets a request:
its target below the mount, and its tenant. What is received and sent for one request is in
``exchange.py``.
"""

from __future__ import annotations

import contextlib
import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote, unquote

from bridgecore import transport as tp
from bridgecore.api_error import SHUTTING_DOWN, api_error
from bridgecore.config import Config
from bridgecore.errors import LocalProtocolError
from bridgecore.transport.driver import StoreClient
from bridgecore_asgi.exchange import (
    ClosingExchange,
    Exchange,
    Receive,
    Scope,
    Send,
    WebSocketExchange,
)
from bridgecore_asgi.tasks import AsyncioTasks, TrioTasks, in_trio

if TYPE_CHECKING:
    import bridgecore_asyncio
    import bridgecore_trio

    _Server: TypeAlias = bridgecore_asyncio.Server | bridgecore_trio.Server

NOT_RUNNING: Final = api_error(
    500,
    "bridge_not_running",
    "The bridge is not running. A server starts it by the lifespan of its application; an "
    "application that mounts it has to enter `async with bridge.lifespan():` in its own lifespan.",
)
FAILED: Final = api_error(
    500, "bridge_failed", "The bridge has stopped with an error, its own or of what it runs in."
)
_DENIAL: Final = "websocket.http.response"  # the extension that answers a handshake by HTTP
_PLAIN: Final = "/!$&'()*+,;=:@-._~"  # not encoded in a path (RFC 3986, section 3.3)
_ABSOLUTE: Final = re.compile("https?://[^/]*", re.IGNORECASE)
# A handshake as the core reads it. The server has checked the one of the client, and answers it;
# that of HTTP/2 has none of these headers (RFC 8441).
_HANDSHAKE: Final = (
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAA=="),
)


class BridgeApp:
    """An ASGI 3 application that answers ``/v1/responses``, ``/livez`` and ``/readyz``.

    It runs on asyncio and on trio. It is to be started before the first request: by the lifespan
    events of the server, or by ``lifespan()``, if it is mounted in another application.

    Args:
        config: the settings of the bridge. Those about connections of clients (``header_timeout``,
            ``client_idle``) are the server's matter here.
        scope_of: the tenant of a request, from its ASGI scope, for applications that authenticate
            clients themselves; see ``bridgecore.messages.RequestReceived``. Bytes are taken as
            ISO 8859-1. Without a function the tenant follows from the credential headers. An
            exception that it raises is the server's to answer, with a 500; so is the TypeError if
            it returns anything else, None included.
        upstream_ssl: for connections that the bridge opens with TLS, to the upstream and to other
            replicas. None: certificates are verified against the system's trust store.
        peer_host: where other replicas are listened to, if ``Config.advertise`` is set.
        peer_ssl: for connections accepted there. None: no TLS.
        store: where a bridge with ``Store.DRIVER`` keeps responses. The caller closes it.
        log: called with every log record. None: they are dropped.
    """

    def __init__(
        self,
        config: Config,
        *,
        scope_of: Callable[[Scope], str | bytes] | None = None,
        upstream_ssl: ssl.SSLContext | None = None,
        peer_host: str = "127.0.0.1",
        peer_ssl: ssl.SSLContext | None = None,
        store: StoreClient | None = None,
        log: Callable[[tp.Log], None] | None = None,
    ) -> None:
        self._config, self._scope_of, self._store, self._log = config, scope_of, store, log
        self._upstream_ssl, self._peer_host, self._peer_ssl = upstream_ssl, peer_host, peer_ssl
        self._server: _Server | None = None  # None: it is not running
        self._exchanges: set[Exchange] = set()
        # What requests are answered with while it is not running.
        self._refusal = NOT_RUNNING
        self._complained = False  # that it was not started

    # ------------------------------------------------------------ its life

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Run the bridge until the context is left, which waits until running turns have ended,
        at most ``drain_timeout``.

        For an application that mounts the bridge: servers send lifespan events only to the
        outermost one.

        Raises:
            LocalProtocolError: it is running already.
            ConfigError: the configuration and ``store`` contradict each other.
            OSError: other replicas cannot be listened to.
        """
        if self._server is not None:
            raise LocalProtocolError("the bridge is running already: its lifespan is entered once")
        async with self._run() as server:
            self._server, self._refusal = server, FAILED
            try:
                yield
                self._refusal = SHUTTING_DOWN
                server.request_drain("lifespan")
                await server.wait_stopped()
            finally:
                self._server = None
                for exchange in list(self._exchanges):
                    exchange.cut()

    def request_drain(self, by: str = "") -> None:
        """Ask the bridge to finish its turns and refuse new ones, for example when the server gets
        a signal to stop: it runs the end of the lifespan only when all connections are closed.

        May be called from any thread. ``by``: the origin for the log, such as ``SIGTERM``.
        """
        if self._server is not None:
            self._server.request_drain(by)

    async def wait_stopped(self) -> None:
        """Wait until the bridge has drained or its lifespan has ended; return at once if it does
        not run. All turns have ended then, and each WebSocket got its close frame.

        For a server that would close WebSockets in the middle of their turns when it stops, as
        uvicorn does: call ``request_drain``, await this, and only then let it stop. To be awaited
        in the event loop that the bridge runs in. Cancelling it changes nothing.
        """
        if self._server is not None:
            await self._server.wait_stopped()

    def _run(self) -> AbstractAsyncContextManager[_Server]:
        """A driver without a listener, for the library that runs this task."""
        serve: Callable[..., AbstractAsyncContextManager[Any]]
        if in_trio():
            from bridgecore_trio import serve
        else:
            from bridgecore_asyncio import serve
        return serve(
            self._config,
            host=self._peer_host,
            port=None,
            upstream_ssl=self._upstream_ssl,
            peer_ssl=self._peer_ssl,
            store=self._store,
            log=self._log,
        )

    async def _live(self, receive: Receive, send: Send) -> None:
        """Run from the server's startup event until its shutdown event."""
        await receive()  # lifespan.startup
        phase = "startup"
        try:
            async with self.lifespan():
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()  # lifespan.shutdown
        except Exception as exc:
            # A failed start, or a bug in the core. Said by a message, because a server takes an
            # exception for an application without a lifespan, and goes on.
            message = f"the bridge has failed: {type(exc).__name__}: {exc}"
            await send({"type": f"lifespan.{phase}.failed", "message": message})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    # ------------------------------------------------------------ its requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what ``scope`` describes: a request, a WebSocket handshake, or the server's life.

        Raises:
            AnswerCutError: the server has to close the connection, as an answer is not complete.
            TypeError: middleware or ``scope_of`` gave something of a wrong type.
        """
        kind = scope["type"]
        if kind == "lifespan":
            await self._live(receive, send)
        elif kind == "http":
            await self._answer(scope, Exchange, scope["method"], receive, send)
        elif kind == "websocket":
            denial = _DENIAL in (scope.get("extensions") or {})
            exchange = WebSocketExchange if denial else ClosingExchange
            await self._answer(scope, exchange, "GET", receive, send)
        else:
            # As the ASGI specification requires for kinds that an application does not know.
            raise NotImplementedError(f"the bridge has no answer to the ASGI scope {kind!r}")

    async def _answer(
        self, scope: Scope, kind: type[Exchange], method: str, receive: Receive, send: Send
    ) -> None:
        server = self._server
        if server is not None:
            tasks = TrioTasks() if in_trio() else AsyncioTasks()
            exchange = kind(server, tasks, receive, send)
            self._exchanges.add(exchange)
            try:
                if await exchange.run(self._begun(scope, method)):
                    return
            finally:
                self._exchanges.discard(exchange)
        elif self._refusal is NOT_RUNNING and not self._complained:
            self._complained = True
            logging.getLogger(__name__).error("%s", NOT_RUNNING.message)
        await kind.refuse(self._refusal, method, scope["headers"], send)

    def _begun(self, scope: Scope, method: str) -> tp.RequestBegun:
        """The head of a request.

        Raises:
            TypeError: headers or tenant are of a wrong type. The core would take that for misuse,
                which ends it for all requests.
        """
        headers = [(name, value) for name, value in scope["headers"]]
        for name, value in headers:
            if not (isinstance(name, bytes) and isinstance(value, bytes)):
                raise TypeError("the names and values of headers in an ASGI scope must be bytes")
        messages = scope["type"] == "websocket"
        if messages:
            replaced = dict(_HANDSHAKE)
            headers = [each for each in headers if each[0] not in replaced] + [*_HANDSHAKE]
        tenant = None if self._scope_of is None else self._tenant(self._scope_of(scope))
        target = target_of(scope)
        return tp.RequestBegun(-1, method.encode("latin-1"), target, headers, tenant, messages)

    def _tenant(self, found: object) -> str:
        """The tenant that ``scope_of`` has found. None is wrong, too: the credential headers would
        take its place, which all tenants may have in common.

        Raises:
            TypeError: it is neither str nor bytes.
        """
        if isinstance(found, bytes):
            return found.decode("latin-1")
        if not isinstance(found, str):
            raise TypeError(f"scope_of must return str or bytes, not {type(found).__name__}")
        return found


def target_of(scope: Scope) -> bytes:
    """Path and query of a request, as they were sent, below the mount that ``root_path`` names.

    ``path`` and ``raw_path`` of a scope begin with ``root_path``, except with hypercorn's setting
    of that name. If the request's target was in absolute form, servers that parse with h11 (uvicorn
    with that setting, hypercorn) have all of it there.
    """
    root = scope.get("root_path", "")
    path = _in_origin_form(scope["path"], root)
    below = path
    if root and path.startswith(root) and path[len(root) :][:1] in ("", "/"):
        below = path[len(root) :]
    raw: bytes | None = scope.get("raw_path")
    prefix = path[: len(path) - len(below)].count("/")
    target = quote(below, _PLAIN, errors="surrogateescape").encode("ascii")
    if raw is not None:
        # As many segments less as the mount has. It is not looked for in the raw path, where it
        # may be written in other ways.
        raw = _in_origin_form(raw.decode("latin-1"), root).encode("latin-1")
        rest = b"".join(b"/" + each for each in raw.split(b"/")[1 + prefix :])
        if unquote(rest.decode("latin-1")) == below:  # else middleware has rewritten the path
            target = rest
    query = scope.get("query_string", b"")
    return (target or b"/") + (b"?" + query if query else b"")


def _in_origin_form(path: str, root: str) -> str:
    """``path``, without scheme and authority if it has them (RFC 9112, section 3.2.2)."""
    rest = path.removeprefix(root)
    found = _ABSOLUTE.match(rest)
    return path if found is None else path[: -len(rest)] + (rest[found.end() :] or "/")
