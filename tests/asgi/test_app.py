"""The application: its life, its errors, and targets below a mount."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from bridgecore import NS_PER_SECOND, Config, ConfigError, LocalProtocolError, Store, UpstreamUrl
from bridgecore import transport as tp
from bridgecore.testing import Emulator
from bridgecore_asgi import BridgeApp, Scope
from bridgecore_asgi.app import target_of

if TYPE_CHECKING:
    from tests.conftest import Backend

NOWHERE = UpstreamUrl.parse("ws://127.0.0.1:1/v1/responses")


@pytest.mark.parametrize(
    ("path", "raw", "root", "target"),
    [
        ("/v1/responses", b"/v1/responses", "", b"/v1/responses"),
        ("/llm/v1/responses", b"/llm/v1/responses", "/llm", b"/v1/responses"),
        ("/llm/v1/responses", None, "/llm", b"/v1/responses"),
        # hypercorn's setting is not a part of the path.
        ("/v1/responses", b"/v1/responses", "/llm", b"/v1/responses"),
        ("/llmx/v1", b"/llmx/v1", "/llm", b"/llmx/v1"),
        ("/llm", b"/llm", "/llm", b"/"),
        ("/a b/é/x/y", b"/a%20b/%c3%a9/x%2Fy", "/a b/é", b"/x%2Fy"),
        ("/a b/é/x/y", b"/a%20b/%c3%A9/%78/y", "/a b/é", b"/%78/y"),
        ("/m/é %", None, "/m", b"/%C3%A9%20%25"),
        # A slash of the mount that is written as %2F: the raw path cannot be cut.
        ("/a/b/x", b"/a%2Fb/x", "/a/b", b"/x"),
        ("/m/\ufffd", b"/m/%ff", "/m", b"/%ff"),
        ("/m/\udcff", None, "/m", b"/%FF"),
        ("/v1/rewritten", b"/v1/original", "", b"/v1/rewritten"),
        # Absolute form, which h11 gives to uvicorn and hypercorn as it came.
        ("http://h:8/v1/responses", b"http://h:8/v1/responses", "", b"/v1/responses"),
        ("http://h/v1/a b", b"HTTP://%68/v1/a%20b", "", b"/v1/a%20b"),
        ("https://h/v1", None, "", b"/v1"),
        ("http://h", b"http://h", "", b"/"),
        ("/llmhttp://h/v1", b"/llmhttp://h/v1", "/llm", b"/v1"),  # uvicorn's own root_path
        ("http://h/v1", b"http://h/v1", "/llm", b"/v1"),  # hypercorn's
        ("/http://h/v1", b"/http://h/v1", "", b"/http://h/v1"),
    ],
)
def test_targets_are_below_the_mount(
    path: str, raw: bytes | None, root: str, target: bytes
) -> None:
    scope: Scope = {"path": path, "root_path": root, "query_string": b"x=%2F"}
    if raw is not None:
        scope["raw_path"] = raw
    assert target_of(scope) == target + b"?x=%2F"


class Server:
    """The messages of a server for one scope, and those that it gets."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if not self.messages:
            await anyio.sleep_forever()
        return self.messages.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)


STARTUP, SHUTDOWN = {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}


def http(path: str, method: str = "GET", **more: Any) -> Scope:
    return {"type": "http", "method": method, "path": path, "headers": [], **more}


async def get(app: BridgeApp, path: str, method: str = "GET") -> tuple[int, Any]:
    server = Server({"type": "http.request"})
    await app(http(path, method), server.receive, server.send)
    start, body = server.sent
    return start["status"], json.loads(body["body"] or b"null")


def test_a_failed_start_is_said_to_the_server(backend: Backend) -> None:
    async def body() -> None:
        app = BridgeApp(Config(upstream=NOWHERE, store=Store.DRIVER))
        server = Server(STARTUP)
        await app({"type": "lifespan"}, server.receive, server.send)
        (failed,) = server.sent
        assert failed["type"] == "lifespan.startup.failed"
        assert "ConfigError" in failed["message"]
        with pytest.raises(ConfigError):
            async with app.lifespan():
                pass

    backend.run(body)


def test_its_end_can_be_awaited_before_the_lifespan_ends(backend: Backend) -> None:
    async def body() -> None:
        app = BridgeApp(Config(upstream=NOWHERE))
        async with app.lifespan():
            with anyio.move_on_after(0.01) as waiting:
                await app.wait_stopped()
            assert waiting.cancelled_caught
            app.request_drain()
            await app.wait_stopped()

    backend.run(body)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tenant": 5},
        {"tenant": None},
        {"headers": [("authorization", b"x")]},
        {"headers": [(b"authorization", "x")]},
        {"headers": [(b"authorization", None)]},
    ],
)
def test_what_the_application_gives_wrong_fails_alone(
    backend: Backend, wrong: dict[str, Any]
) -> None:
    """The number of a tenant instead of its name, or headers that middleware has added as text: the
    core would take them for misuse by its driver, which ends it."""

    async def body() -> None:
        app = BridgeApp(Config(upstream=NOWHERE), scope_of=lambda scope: scope.get("tenant", "t"))
        async with app.lifespan():
            server = Server()
            scope = {"type": "http", "method": "GET", "path": "/livez", "headers": [], **wrong}
            with pytest.raises(TypeError, match="bytes"):
                await app(scope, server.receive, server.send)
            assert await get(app, "/livez") == (200, {"status": "ok"})

    backend.run(body)


def test_a_life(backend: Backend) -> None:
    async def body() -> None:
        logged: list[tp.Log] = []
        app = BridgeApp(Config(upstream=NOWHERE), log=logged.append)
        assert (await get(app, "/livez"))[0] == 500
        assert await get(app, "/livez", "HEAD") == (500, None)
        for _ in range(2):  # it can be started again
            await app.wait_stopped()  # at once
            async with app.lifespan():
                assert await get(app, "/livez") == (200, {"status": "ok"})
                with pytest.raises(LocalProtocolError, match="running already"):
                    async with app.lifespan():
                        pass
                assert await get(app, "/livez") == (200, {"status": "ok"})
            server = Server({"type": "http.request"})
            named = {**http("/livez"), "headers": [(b"x-request-id", b"mine")]}
            await app(named, server.receive, server.send)
            start, answer = server.sent
            assert start["status"] == 503
            assert json.loads(answer["body"])["error"]["code"] == "server_shutting_down"
            fields = dict(start["headers"])
            assert fields[b"x-request-id"] == b"mine"
            assert fields[b"retry-after-ms"] == fields[b"retry-after"] + b"000"
        drains = [record for record in logged if record.event == "drain.started"]
        assert [record.fields["by"] for record in drains] == ["lifespan", "lifespan"]

    backend.run(body)


def test_a_host_that_fails_ends_the_bridge_at_once(backend: Backend) -> None:
    async def body() -> None:
        app = BridgeApp(Config(upstream=NOWHERE))
        with pytest.raises(KeyError):
            async with app.lifespan():
                raise KeyError
        assert (await get(app, "/livez"))[1]["error"]["code"] == "bridge_failed"
        app.request_drain("before the start")

    backend.run(body)


def test_a_bug_in_the_core_is_said_to_the_server(backend: Backend) -> None:
    async def body() -> None:
        def fails(record: tp.Log) -> None:
            raise ZeroDivisionError(record.event)

        app = BridgeApp(Config(upstream=NOWHERE), log=fails)
        server = Server(STARTUP)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app, {"type": "lifespan"}, server.receive, server.send)
            await anyio.wait_all_tasks_blocked()
            app.request_drain()
        assert [message["type"] for message in server.sent] == [
            "lifespan.startup.complete",
            "lifespan.shutdown.failed",
        ]
        assert (await get(app, "/livez"))[1]["error"]["code"] == "bridge_failed"

    backend.run(body)


def test_a_scope_function_that_fails_or_a_scope_that_is_unknown(backend: Backend) -> None:
    async def body() -> None:
        app = BridgeApp(Config(upstream=NOWHERE), scope_of=lambda scope: scope["user"])
        async with app.lifespan():
            with pytest.raises(KeyError, match="user"):
                await get(app, "/livez")
            server = Server()
            with pytest.raises(NotImplementedError, match="'webtransport'"):
                await app({"type": "webtransport"}, server.receive, server.send)

    backend.run(body)


def test_a_websocket_over_http_2_is_refused_like_others(backend: Backend) -> None:
    """Its handshake has no ``Upgrade``."""

    async def body() -> None:
        app = BridgeApp(Config(upstream=NOWHERE))
        scope: Scope = {"type": "websocket", "path": "/v1/responses", "headers": []}
        async with app.lifespan():
            denial = Server({"type": "websocket.connect"})
            extended = {**scope, "extensions": {"websocket.http.response": {}}}
            await app(extended, denial.receive, denial.send)
            assert denial.sent[0]["status"] == 426
            plain = Server({"type": "websocket.connect"})
            await app(scope, plain.receive, plain.send)
            assert plain.sent == [{"type": "websocket.close"}]
            gone = Server({"type": "websocket.disconnect"})
            await app(scope, gone.receive, gone.send)
        not_running = Server()
        await app(scope, not_running.receive, not_running.send)
        assert not_running.sent == [{"type": "websocket.close"}]

    backend.run(body)


def test_a_message_of_a_websocket_that_is_a_bytearray_ends_that_websocket_only(
    backend: Backend,
) -> None:
    """It is binary, which is refused; the core would take its type for misuse, which ends it."""

    async def body() -> None:
        app = BridgeApp(Config(upstream=NOWHERE, websocket=True))
        scope: Scope = {"type": "websocket", "path": "/v1/responses", "headers": []}
        async with app.lifespan():
            server = Server(
                {"type": "websocket.connect"},
                {"type": "websocket.receive", "bytes": bytearray(b"x")},
            )
            await app(scope, server.receive, server.send)
            assert server.sent[0]["type"] == "websocket.accept"
            assert (server.sent[-1]["type"], server.sent[-1]["code"]) == ("websocket.close", 1003)
            assert await get(app, "/livez") == (200, {"status": "ok"})

    backend.run(body)


def test_a_life_waits_for_running_turns(backend: Backend) -> None:
    async def body() -> None:
        emulator = Emulator(delta_interval=NS_PER_SECOND // 20)
        async with backend.serve(emulator) as upstream:
            url = UpstreamUrl.parse(f"ws://127.0.0.1:{upstream.port}/v1/responses")
            app = BridgeApp(Config(upstream=url))
            turn = b'{"model": "m", "input": "hi"}'
            server = Server({"type": "http.request", "body": turn})
            async with anyio.create_task_group() as tasks:
                async with app.lifespan():
                    scope = http("/v1/responses", "POST")
                    tasks.start_soon(app, scope, server.receive, server.send)
                    while not emulator.turns:
                        await backend.tick()
                assert server.sent[-1]["more_body"] is False
            assert server.sent[0]["status"] == 200

    backend.run(body)
