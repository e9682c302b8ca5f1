"""Requests that are passed through, with the real command and real sockets.

What belongs here: other paths of the API as clients use them: OpenAI's SDK, and a client of bytes
for uploads and downloads that are larger than what may be in memory. What goes wrong on either side
is tested byte by byte in tests/endpoint/test_passages.py.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import openai
import pytest
import trustme

from bridgecore.testing import EVERY, CloseWith, Emulator, Fault, Point
from tests.e2e.conftest import (
    TIME_LIMIT,
    Process,
    Raw,
    Shared,
    Upstream,
    ask,
    driven,
    request,
    running,
    sdk,
)

if TYPE_CHECKING:
    from openai.types.responses import ResponseInputItemParam

    from tests.conftest import Backend

MIB = 2**20


@pytest.fixture
def bridge(backend: Backend, shared: Shared, upstream: Upstream) -> Iterator[Process]:
    """A bridge whose upstream, over WebSocket and HTTP, is one emulator."""
    with running("--backend", backend.name, "--upstream", upstream.url) as process:
        yield process


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port that is connected to once; ``answer`` has the connection, in a thread."""
    done: Future[None] = Future()

    def serve() -> None:
        try:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(TIME_LIMIT)
                answer(sock)
            done.set_result(None)
        except BaseException as exc:
            done.set_exception(exc)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIME_LIMIT)
        thread = threading.Thread(target=serve, name="http upstream")
        thread.start()
        try:
            yield listener.getsockname()[1]
            done.result(TIME_LIMIT)
        finally:
            thread.join(TIME_LIMIT)


@contextmanager
def in_front_of(backend: Backend, port: int) -> Iterator[Process]:
    base = f"http://127.0.0.1:{port}/v1"
    with running("--backend", backend.name, "--upstream-http", base) as process:
        yield process


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """The head of a request, and what came after it."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def test_the_sdk_uses_stored_responses(bridge: Process) -> None:
    with sdk(bridge.port) as client:
        assert [model.id for model in client.models.list()] == ["emulator", "emulator-mini"]
        made = client.responses.create(model="m", input="hello")
        assert client.responses.retrieve(made.id).output_text == made.output_text
        items = client.responses.input_items.list(made.id)
        assert [item.type for item in items] == ["message"]
        client.responses.delete(made.id)
        with pytest.raises(openai.BadRequestError, match="not found"):
            client.responses.create(model="m", input="more", previous_response_id=made.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(made.id)


def test_the_sdk_counts_and_compacts_what_only_the_bridge_has(
    bridge: Process, upstream: Upstream
) -> None:
    with sdk(bridge.port) as client:
        made = client.responses.create(model="m", input="hello", store=False)
        counted = client.responses.input_tokens.count(
            model="m", input="more", previous_response_id=made.id
        )
        compacted = client.responses.compact(model="m", input="more", previous_response_id=made.id)
        again = client.responses.create(
            model="m", input="more", previous_response_id=made.id, store=False
        )
    assert again.usage is not None
    assert counted.input_tokens == again.usage.input_tokens
    assert compacted.output[-1].type == "compaction"
    assert all(b"previous_response_id" not in one.body for one in upstream.emulator.http_requests)


def test_the_sdk_keeps_a_conversation_at_the_upstream(bridge: Process, upstream: Upstream) -> None:
    """Its connections are lost after each answer. Items go over HTTP, turns over WebSocket."""
    lost = Fault(Point.AFTER_TERMINAL, CloseWith(1001))
    upstream.emulator.faults.add(EVERY, lost)
    with sdk(bridge.port) as client:
        keep, items = client.conversations, client.conversations.items
        made = keep.create(
            items=[{"role": "user", "content": "before"}], metadata={"topic": "tests"}
        )
        said = []
        for text in ("one", "two"):
            answer = client.responses.create(
                model="m", input=text, conversation=made.id, store=False
            )
            assert answer.conversation is not None
            assert answer.conversation.id == made.id
            said.append(answer.output_text)
        assert said == ["turn 2: one", "turn 3: two"]
        with client.responses.stream(
            model="m", input="call tool f", conversation=made.id, store=False
        ) as stream:
            (call,) = stream.get_final_response().output
        assert call.type == "function_call"
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
        added = items.create(made.id, items=[cast("ResponseInputItemParam", output)])
        assert added.data[0].type == "function_call_output"
        listed = list(items.list(made.id, order="asc", limit=3))  # in pages
        assert [item.type for item in listed] == [
            *(["message"] * 5),
            *("message", "function_call", "function_call_output"),
        ]
        assert len({item.id for item in listed}) == 8
        assert items.retrieve(str(call.id), conversation_id=made.id).type == "function_call"
        assert items.delete(str(listed[0].id), conversation_id=made.id).id == made.id
        with pytest.raises(openai.NotFoundError, match="not found in conversation"):
            items.retrieve(str(listed[0].id), conversation_id=made.id)
        assert keep.update(made.id, metadata={"topic": "more"}).metadata == {"topic": "more"}
        assert keep.retrieve(made.id).metadata == {"topic": "more"}
        with pytest.raises(openai.BadRequestError, match="Invalid 'after'"):
            items.list(made.id, after="msg_none")
        assert keep.delete(made.id).deleted
        with pytest.raises(openai.NotFoundError, match="not found") as gone:
            client.responses.create(model="m", input="hi", conversation=made.id, store=False)
    assert gone.value.type == "invalid_request_error"
    sent = upstream.emulator.requests
    assert [request.body["conversation"] for request in sent] == [made.id] * 4
    assert [len(request.input) for request in sent] == [1] * 4
    assert [len(request.context) for request in sent[:3]] == [2, 4, 6]


def test_the_embedded_emulator_answers_other_paths(backend: Backend, shared: Shared) -> None:
    bridge = shared("--backend", backend.name)
    assert ask(bridge.port, request("GET", "/models")).json["object"] == "list"
    assert ask(bridge.port, request("GET", "/v1/unknown")).code == "not_found"
    with sdk(bridge.port) as client:
        made = client.conversations.create()
        for text in ("one", "two"):
            client.responses.create(model="m", input=text, conversation=made.id)
        assert len(client.conversations.items.list(made.id).data) == 4


def test_nothing_is_passed_through_if_it_is_switched_off(shared: Shared) -> None:
    bridge = shared("--pass-through", "none")
    assert ask(bridge.port, request("GET", "/v1/models")).code == "not_found"


def test_an_upload_and_a_download_take_no_memory(backend: Backend) -> None:
    """100 MiB in each direction, through a bridge that may read bodies of 1 KiB."""
    size = 100 * MIB

    def answer(sock: socket.socket) -> None:
        head, rest = read_head(sock)
        assert head.startswith(b"POST /v1/files HTTP/1.1\r\n")
        left = size - len(rest)
        while left:
            data = sock.recv(MIB)
            assert data
            left -= len(data)
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size // MIB):
            sock.sendall(bytes(MIB))

    with serving(answer) as port:
        base = f"http://127.0.0.1:{port}/v1"
        flags = ("--backend", backend.name, "--upstream-http", base, "--max-body", "1024")
        with running(*flags) as bridge, Raw(bridge.port) as raw:
            before = bridge.memory()
            raw.send(request("POST", "/v1/files", content_length=str(size)))
            for _ in range(size // MIB):
                raw.send(bytes(MIB))
            assert raw.head().status == 200
            assert sum(map(len, raw._body())) == size
            assert bridge.memory() < before + 24 * MIB


def test_a_stream_is_not_held_back_and_ends_with_its_client(backend: Backend) -> None:
    gone = threading.Event()

    def answer(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        sock.sendall(_chunk(b"event: a\ndata: 1\n\n"))
        try:
            ended = not sock.recv(1)  # nothing until the client has left
        except ConnectionResetError:
            ended = True
        assert ended
        gone.set()

    with serving(answer) as port, in_front_of(backend, port) as bridge:
        with Raw(bridge.port) as raw:
            raw.send(request("GET", "/v1/responses/resp_1?stream=true"))
            assert raw.head().headers["content-type"] == "text/event-stream"
            assert next(raw.everything()).data == b"1"
            assert not gone.is_set()
        assert gone.wait(TIME_LIMIT)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_an_answer_that_is_cut_off_ends_the_connection(backend: Backend) -> None:
    def answer(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")

    with serving(answer) as port, in_front_of(backend, port) as bridge, Raw(bridge.port) as raw:
        raw.send(request("GET", "/v1/files/f/content"))
        with pytest.raises(EOFError):
            raw.answer()


def test_an_upstream_over_tls(backend: Backend, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    environ = {"SSL_CERT_FILE": str(file), "SSL_CERT_DIR": str(tmp_path / "none")}
    with driven(Emulator(), context) as port:
        url = f"wss://127.0.0.1:{port}/v1/responses"
        with running("--upstream", url, "--backend", backend.name, environ=environ) as bridge:
            assert ask(bridge.port, request("GET", "/v1/models")).json["object"] == "list"


def test_an_upstream_without_http_is_a_bad_gateway(backend: Backend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with in_front_of(backend, port) as bridge:
        assert ask(bridge.port, request("GET", "/v1/models")).code == "upstream_unavailable"
