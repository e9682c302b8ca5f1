"""The bridge on real ASGI servers: what a client of each gets.

What belongs here: whole requests through uvicorn and hypercorn on real sockets, with the emulator
as upstream.
"""

from __future__ import annotations

import gzip
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import openai
import pytest
import websockets.exceptions
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Mount

from bridgecore import NS_PER_SECOND
from bridgecore.testing import (
    CloseWith,
    CreateFrame,
    Fault,
    Outcome,
    Output,
    Point,
    Silence,
    Text,
    ToolCall,
)
from bridgecore.transport.sockets import HIGH_WATER, READ_SIZE
from bridgecore_asgi import BridgeApp, Receive, Scope, Send
from tests.asgi.conftest import SERVERS, config, connect, serving
from tests.e2e.conftest import (
    KEY,
    TIME_LIMIT,
    Json,
    Raw,
    Upstream,
    ask,
    emulating,
    eventually,
    post,
    request,
    sdk,
)

TURN: Json = {"model": "m", "input": "hi"}
STREAM: Json = {**TURN, "stream": True}
MIB = 2**20


@pytest.fixture(scope="module", params=[*SERVERS, "uvicorn-h11"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """A bridge with a small ``max_body`` on each of the servers, and with the other parser of
    uvicorn, which uses httptools if it is installed."""
    kind = request.param.removesuffix("-h11")
    options = {} if kind == request.param else {"http": "h11"}
    with (
        emulating() as upstream,
        serving(kind, BridgeApp(config(upstream, max_body=100_000)), **options) as server,
    ):
        yield server.port


# ------------------------------------------------------------------ requests and answers


def test_a_stream_and_a_json_answer_on_one_connection(port: int) -> None:
    with Raw(port) as raw:
        raw.send(post({**TURN, "stream": True}))
        head = raw.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        events = list(raw.events())
        assert events[0].name == "response.created"
        assert events[-1].name == "response.completed"
        raw.send(post(TURN))
        answer = raw.answer()
        assert (answer.status, answer.json["status"]) == (200, "completed")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (request("GET", "/livez"), 200, None),
        (request("GET", "/readyz?x=1"), 200, None),
        (request("GET", "http://other:80/readyz?x=1"), 200, None),
        (request("POST", "http://other/v1/responses", json.dumps(TURN).encode()), 200, None),
        (request("GET", "/nowhere?x=%2F"), 404, "not_found"),
        (request("POST", "/v1/%72esponses", b"{}"), 404, "not_found"),
        (request("GET", "/v1/responses"), 405, "method_not_allowed"),
        (post(b"{"), 400, "invalid_request_body"),
        (
            post(gzip.compress(json.dumps(TURN).encode(), mtime=0), content_encoding="gzip"),
            200,
            None,
        ),
        (post(b"{}", content_encoding="br"), 415, "unsupported_content_encoding"),
        (post(b" " * 100_001), 413, "body_too_large"),
        (post({**TURN, "previous_response_id": "resp_no"}), 400, "previous_response_not_found"),
        (post(TURN, openai_beta="a=b \t"), 200, None),
    ],
)
def test_statuses_and_errors(port: int, data: bytes, status: int, code: str | None) -> None:
    answer = ask(port, data)
    assert answer.status == status
    assert code is None or answer.code == code


def test_a_body_whose_end_is_in_doubt_ends_the_connection(port: int) -> None:
    """h11 takes it: a proxy before the server may have found another end."""
    data = request("POST", "/v1/responses", content_length="5", transfer_encoding="chunked")
    with Raw(port) as raw:
        raw.send(data)
        while not raw.ended():
            assert raw.answer().status == 400


def test_head(port: int) -> None:
    with Raw(port) as raw:
        raw.send(request("HEAD", "/livez") + request("GET", "/livez"))
        assert raw.answer(of_head=True).headers["content-length"] == "15"
        assert raw.answer().json == {"status": "ok"}


def test_the_openai_client(port: int) -> None:
    with sdk(port) as client:
        first = client.responses.create(model="m", input="one")
        with client.responses.stream(
            model="m", input="two", previous_response_id=first.id
        ) as stream:
            assert stream.get_final_response().output_text == "turn 2: two"
        assert client.responses.retrieve(first.id).id == first.id  # passed on to the upstream
        with pytest.raises(openai.NotFoundError, match="Unknown path"):
            client.post("/nowhere", cast_to=object)


def weather(frame: CreateFrame) -> list[Output]:
    """Asks a tool, then repeats what it said."""
    last = frame.input[-1]
    if last.get("type") == "function_call_output":
        return [Text(f"It is {last['output']}.")]
    return [ToolCall("get_weather", "{}")]


def test_a_tool_call_whose_upstream_connection_is_lost_before_the_output(
    kind: str, upstream: Upstream
) -> None:
    upstream.emulator.answer = weather
    upstream.emulator.faults.add(1, Fault(Point.AFTER_TERMINAL, CloseWith(1011)))
    with serving(kind, BridgeApp(config(upstream))) as server, sdk(server.port) as client:
        first = client.responses.create(model="m", input="weather?", store=False)
        (call,) = first.output
        assert call.type == "function_call"
        eventually(lambda: upstream.emulator.connections == 0)
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "dry"}
        second = client.responses.create(
            model="m", input=[output], previous_response_id=first.id, store=False
        )
        assert second.output_text == "It is dry."


def test_tenants_are_those_of_the_application(kind: str, upstream: Upstream) -> None:
    def tenant(scope: Scope) -> str | bytes:
        name = dict(scope["headers"])[b"x-tenant"]
        return bytes(name) if name == b"b" else name.decode()

    with serving(kind, BridgeApp(config(upstream), scope_of=tenant)) as server:
        first = ask(server.port, post({**TURN, "store": False}, x_tenant="a", key="1")).json
        body = {**TURN, "store": False, "previous_response_id": first["id"]}
        assert ask(server.port, post(body, x_tenant="a", key="2")).status == 200
        assert ask(server.port, post(body, x_tenant="b", key="1")).status != 200


def test_tenants_with_one_key_reach_their_own_responses_only(kind: str, upstream: Upstream) -> None:
    def tenant(scope: Scope) -> str:
        return bytes(dict(scope["headers"]).get(b"x-tenant", b"")).decode()

    settings = config(upstream, shared_credential=True)
    with serving(kind, BridgeApp(settings, scope_of=tenant)) as server:
        first = ask(server.port, post(TURN, x_tenant="a")).json["id"]
        again = {**TURN, "previous_response_id": first}
        path = f"/v1/responses/{first}"

        def asked(method: str, name: str) -> int:
            return ask(
                server.port, request(method, path, authorization=f"Bearer {KEY}", x_tenant=name)
            ).status

        refused = ask(server.port, post(again, x_tenant="b"))
        assert (refused.status, refused.code) == (400, "previous_response_not_found")
        assert [asked(method, "b") for method in ("GET", "DELETE")] == [404, 404]
        assert ask(server.port, post(again, x_tenant="a")).status == 200
        assert [asked(method, "a") for method in ("GET", "DELETE", "GET")] == [200, 200, 404]


# ------------------------------------------------------------------ clients that leave, or are slow


def test_a_client_that_leaves_ends_its_turn(kind: str, upstream: Upstream) -> None:
    upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    with serving(kind, BridgeApp(config(upstream))) as server:
        with Raw(server.port) as raw:
            raw.send(post(STREAM))
            assert raw.head().status == 200
            assert next(raw.events()).name == "response.created"
        eventually(lambda: upstream.emulator.connections == 0)
        assert ask(server.port, post(TURN)).status == 200


def test_a_client_that_reads_slowly_costs_little_memory(kind: str, upstream: Upstream) -> None:
    size = 24 * MIB
    upstream.emulator.answer = lambda frame: [Text("x" * size)]
    upstream.emulator.deltas = 2000
    bridge = BridgeApp(config(upstream))
    with serving(kind, bridge) as server, Raw(server.port) as raw:
        raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        raw.send(post(STREAM))
        assert raw.head().status == 200
        (exchange,) = bridge._exchanges
        eventually(lambda: exchange._blocked)
        (turn,) = upstream.emulator.turns
        peak = text = 0
        for event in raw.events():
            peak = max(peak, exchange._waiting)
            if event.name == "response.output_text.delta":
                text += len(event.json["delta"])
            if turn.unsent:  # the terminal event is one large message
                assert exchange._waiting < HIGH_WATER + 8 * READ_SIZE
        assert text == size
        assert peak > HIGH_WATER


# ------------------------------------------------------------------ mounts


def mounted(bridge: BridgeApp, *, alive: bool = True, middleware: bool = False) -> Starlette:
    """An application with the bridge at ``/llm``. ``alive``: its lifespan starts the bridge."""
    through = [Middleware(BaseHTTPMiddleware, dispatch=lambda r, call: call(r))]
    return Starlette(
        routes=[Mount("/llm", app=bridge)],
        lifespan=(lambda _: bridge.lifespan()) if alive else None,
        middleware=through if middleware else [],
    )


@pytest.mark.parametrize("middleware", [False, True])
def test_a_mount(kind: str, upstream: Upstream, middleware: bool) -> None:
    app = mounted(BridgeApp(config(upstream)), middleware=middleware)
    with serving(kind, app) as server:
        with Raw(server.port) as raw:
            raw.send(request("POST", "/llm/v1/responses?x=1", json.dumps(STREAM).encode()))
            assert raw.head().status == 200
            assert list(raw.events())[-1].name == "response.completed"
        assert ask(server.port, request("GET", "/llm/livez")).status == 200
        assert ask(server.port, request("GET", "/livez")).status == 404


def test_a_mount_that_was_not_started_says_how_to(
    kind: str, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(kind, mounted(BridgeApp(config(upstream)), alive=False)) as server:
        for _ in range(2):
            answer = ask(server.port, request("GET", "/llm/livez"))
            assert (answer.status, answer.code) == (500, "bridge_not_running")
            assert answer.headers["x-request-id"].startswith("req_")
            assert "async with bridge.lifespan()" in answer.error["message"]
    said = [record for record in caplog.records if record.name == "bridgecore_asgi.app"]
    assert [record.levelno for record in said] == [logging.ERROR]


# ------------------------------------------------------------------ WebSocket

HANDSHAKE: dict[str, Any] = {
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec_websocket_version": "13",
    "sec_websocket_key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def test_a_websocket_is_refused_with_the_answer_of_the_core(port: int) -> None:
    answer = ask(port, request("GET", "/v1/responses", **HANDSHAKE))
    assert (answer.status, answer.code) == (426, "upgrade_required")
    assert ask(port, request("GET", "/nowhere", **HANDSHAKE)).code == "not_found"


def test_a_websocket_is_refused_by_servers_without_the_extension(
    kind: str, upstream: Upstream
) -> None:
    bridge = BridgeApp(config(upstream))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope.get("extensions", {}).pop("websocket.http.response", None)
        await bridge(scope, receive, send)

    with serving(kind, app) as server:
        assert ask(server.port, request("GET", "/v1/responses", **HANDSHAKE)).status == 403


def test_a_handshake_that_the_server_takes_for_a_request_is_refused(upstream: Upstream) -> None:
    """Because it has no WebSockets, or because the header offers something else, too."""
    bridge = BridgeApp(config(upstream, websocket=True))
    several = {**HANDSHAKE, "upgrade": "websocket, foo"}
    for options, handshake in (({"ws": "none"}, HANDSHAKE), ({}, several)):
        for parser in ("h11", "httptools"):
            with serving("uvicorn", bridge, http=parser, **options) as server:
                answer = ask(server.port, request("GET", "/v1/responses", **handshake))
                assert (answer.status, answer.code) == (426, "upgrade_required")


def turn_on(ws: Any, **more: Any) -> list[Json]:
    """The events of a turn on a WebSocket."""
    ws.send(json.dumps({"type": "response.create", **TURN, **more}))
    events = [json.loads(ws.recv(TIME_LIMIT))]
    while events[-1]["type"] not in ("response.completed", "error"):
        events.append(json.loads(ws.recv(TIME_LIMIT)))
    return events


def test_turns_over_a_websocket(kind: str, upstream: Upstream) -> None:
    app = mounted(BridgeApp(config(upstream, websocket=True)))
    with serving(kind, app) as server, connect(server.port, "/llm/v1/responses") as ws:
        first = turn_on(ws)
        assert first[0]["type"] == "response.created"
        second = turn_on(ws, previous_response_id=first[-1]["response"]["id"])
        assert second[-1]["response"]["output"][0]["content"][0]["text"] == "turn 2: hi"
        (error,) = turn_on(ws, model=7)
        assert error["error"]["param"] == "model"


def test_a_websocket_client_that_leaves_ends_its_turn(kind: str, upstream: Upstream) -> None:
    upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    with serving(kind, BridgeApp(config(upstream, websocket=True))) as server:
        with connect(server.port) as ws:
            ws.send(json.dumps({"type": "response.create", **TURN}))
            assert json.loads(ws.recv(TIME_LIMIT))["type"] == "response.created"
        eventually(lambda: upstream.emulator.connections == 0)


def test_a_drain_closes_websockets(kind: str, upstream: Upstream) -> None:
    bridge = BridgeApp(config(upstream, websocket=True))
    with serving(kind, bridge) as server, connect(server.port) as ws:
        turn_on(ws)
        bridge.request_drain()
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            ws.recv(TIME_LIMIT)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason[:10]) == (1012, "the server")


# ------------------------------------------------------------------ the end


def test_a_stop_waits_for_running_streams(kind: str, upstream: Upstream) -> None:
    upstream.emulator.delta_interval = NS_PER_SECOND // 10
    with serving(kind, BridgeApp(config(upstream))) as server, Raw(server.port) as raw:
        raw.send(post(STREAM))
        events = raw.events() if raw.head().status == 200 else iter(())
        assert next(events).name == "response.created"
        server.stop()
        assert list(events)[-1].name == "response.completed"
        server.thread.join(10)
        assert not server.thread.is_alive()
        (turn,) = upstream.emulator.turns
        assert turn.outcome is Outcome.COMPLETED


def test_a_drain_refuses_new_turns_and_ends_hung_ones(kind: str, upstream: Upstream) -> None:
    upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    bridge = BridgeApp(config(upstream, drain_timeout=NS_PER_SECOND))
    with serving(kind, bridge) as server, Raw(server.port) as raw:
        raw.send(post(STREAM))
        assert raw.head().status == 200
        events = raw.events()
        assert next(events).name == "response.created"
        bridge.request_drain("SIGTERM")
        eventually(lambda: ask(server.port, request("GET", "/readyz")).status == 503)
        assert ask(server.port, post(TURN)).code == "server_shutting_down"
        last = list(events)[-1]
        assert last.name == "response.failed"
        # The server has not stopped: the bridge still refuses, however often it is asked.
        eventually(lambda: bridge._server is not None and bridge._server._stopped.is_set())
        assert ask(server.port, post(TURN)).code == "server_shutting_down"


class Breaking:
    """A host in which the bridge's lifespan ends with an exception, while it goes on."""

    def __init__(self, bridge: BridgeApp) -> None:
        self.bridge = bridge

    def break_down(self) -> None:
        anyio.from_thread.run_sync(self.broken.set, token=self.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.bridge(scope, receive, send)
            return
        await receive()
        self.token, self.broken = anyio.lowlevel.current_token(), anyio.Event()
        try:
            async with self.bridge.lifespan():
                await send({"type": "lifespan.startup.complete"})
                await self.broken.wait()
                raise RuntimeError("the host is broken")
        except RuntimeError:
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


@pytest.mark.parametrize("middleware", [False, True])
def test_an_answer_that_is_cut_off_does_not_look_complete(
    kind: str, upstream: Upstream, middleware: bool
) -> None:
    upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    host = Breaking(BridgeApp(config(upstream)))
    app: Any = host
    if middleware:
        app = BaseHTTPMiddleware(host, dispatch=lambda request, call: call(request))
    with serving(kind, app) as server, Raw(server.port) as raw:
        raw.send(post(STREAM))
        assert raw.head().status == 200
        events = raw.events()
        assert next(events).name == "response.created"
        host.break_down()
        with pytest.raises(EOFError):
            list(events)
        assert ask(server.port, post(TURN)).code == "bridge_failed"
