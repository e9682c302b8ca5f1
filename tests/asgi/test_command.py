"""``python -m bridgecore_asgi`` as a process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import uvicorn
import websockets.exceptions

from bridgecore.testing import CreateFrame, Emulator, Fault, Output, Point, Silence, echo
from bridgecore_asgi.command import main
from tests.asgi.conftest import connect
from tests.e2e.conftest import (
    TIME_LIMIT,
    Process,
    Raw,
    Upstream,
    ask,
    emulating,
    environment,
    eventually,
    post,
    request,
    running,
    sdk,
)

COMMAND = (sys.executable, "-W", "error", "-m", "bridgecore_asgi")
STREAM = {"model": "m", "input": "hi", "stream": True}


@contextmanager
def started(*arguments: str) -> Iterator[Process]:
    with running(*arguments, command=COMMAND) as process:
        yield process


def accepts(port: int) -> bool:
    """Whether a server listens on ``port``; the command does until it begins to stop."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_the_first_run_needs_no_upstream() -> None:
    with started() as process:
        with sdk(process.port) as client:
            answer = client.responses.create(model="m", input="hello")
            assert answer.output_text == "turn 1: hello"
        process.terminate()
        assert process.exit_code() == 0


def test_a_signal_drains(upstream: Upstream) -> None:
    upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    settings = ("--upstream", upstream.url, "--drain-timeout", "1", "--http", "httptools")
    with started(*settings) as process, Raw(process.port) as raw:
        raw.send(post(STREAM))
        assert raw.head().status == 200
        events = raw.events()
        assert next(events).name == "response.created"
        process.terminate()
        assert list(events)[-1].name == "response.failed"
        assert process.exit_code() == 0
        assert "drain.started by=SIGTERM" in process.logged()
        assert "Traceback" not in process.logged()


def test_a_signal_lets_turns_over_a_websocket_end() -> None:
    asked, go = threading.Event(), threading.Event()

    def answer(request: CreateFrame) -> Sequence[Output]:
        asked.set()
        assert go.wait(TIME_LIMIT)
        return echo(request)

    with (
        emulating(Emulator(answer=answer)) as upstream,
        started("--upstream", upstream.url, "--websocket", "true") as process,
        connect(process.port) as ws,
    ):
        ws.send(json.dumps({"type": "response.create", "model": "m", "input": "hi"}))
        assert asked.wait(TIME_LIMIT)
        process.terminate()
        eventually(lambda: not accepts(process.port))  # uvicorn has heard of it
        go.set()
        while json.loads(ws.recv(TIME_LIMIT))["type"] != "response.completed":
            pass
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            ws.recv(TIME_LIMIT)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason[:10]) == (1012, "the server")
        assert process.exit_code() == 0
        assert "drain.started by=SIGTERM" in process.logged()
        assert "Traceback" not in process.logged()


def test_the_bridge_drains_if_uvicorn_stops_without_a_signal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def on_tick(server: uvicorn.Server, counter: int) -> bool:
        return True

    monkeypatch.setattr(uvicorn.Server, "on_tick", on_tick)
    assert main(["--port", "0"]) == 0
    assert "drain.started by=uvicorn" in capfd.readouterr().err


def test_a_second_signal_ends_it_at_once(upstream: Upstream) -> None:
    upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    with started("--upstream", upstream.url) as process, Raw(process.port) as raw:
        raw.send(post(STREAM))
        assert raw.head().status == 200
        assert next(raw.events()).name == "response.created"
        process.terminate()
        process.await_logged("drain.started")
        eventually(lambda: not accepts(process.port))  # it waits for the turn
        process.terminate()
        assert process.exit_code() == 128 + 15


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_no_event_is_held_back_to_fill_segments(parser: str) -> None:
    """With Nagle's algorithm what follows the head of an answer waits 40 ms for the client's
    acknowledgement, from the second answer of a connection on."""
    with started("--http", parser) as process, Raw(process.port) as raw:
        begun = time.monotonic()
        for _ in range(25):
            raw.send(post(STREAM))
            assert raw.head().status == 200
            assert [*raw.events()][-1].name == "response.completed"
        assert time.monotonic() - begun < 25 * 0.04


def test_a_websocket_gets_the_answer_of_the_core() -> None:
    with started() as process:
        handshake = {
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec_websocket_version": "13",
            "sec_websocket_key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        answer = ask(process.port, request("GET", "/v1/responses", b"", **handshake))
        assert answer.status == 426
        assert "server" not in answer.headers


def test_requests_that_not_every_parser_takes() -> None:
    """In absolute form, as to a proxy; and with an offer of HTTP/2, as from Java's HttpClient."""
    offer = {
        "connection": "Upgrade, HTTP2-Settings",
        "upgrade": "h2c",
        "http2_settings": "AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
    }
    body = json.dumps(STREAM).encode()
    with started() as process:
        for data in (
            request("POST", "http://bridge/v1/responses", body),
            request("POST", "/v1/responses", body, **offer),
            request("POST", "/v1/responses", b"", transfer_encoding="chunked", **offer)
            + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        ):
            with Raw(process.port) as raw:
                raw.send(data)
                assert raw.head().status == 200
                assert list(raw.events())[-1].name == "response.completed"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--backend", "trio"), 78, "backend: only bridgecore serve has this setting"),
        (("--workers", "2"), 78, "workers: only bridgecore serve has this setting"),
        (("--port", "70000"), 2, "--port: '70000' is not a port"),
        (("--upstream", "http:"), 78, "--upstream: "),
    ],
)
def test_settings_that_it_cannot_have(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = refused(*arguments)
    assert done.returncode == code
    assert done.stderr.startswith("bridgecore: error: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = refused("--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"cannot listen on 127.0.0.1:{port}: " in done.stderr
    assert (
        "; end the program that listens there, or choose another port (0: any that is free)"
        in done.stderr
    )


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
