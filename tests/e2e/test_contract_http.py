"""The public contract seen from outside: the real command and a client of bytes.

What belongs here: HTTP, streams and operation of ``bridgecore serve`` as a black box. Its reaction
to a lost connection is in ``test_conversations.py``.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.testing import (
    EVERY,
    CloseWith,
    Emulator,
    Error,
    ErrorShape,
    Fault,
    Garbage,
    Outcome,
    Point,
    Reject,
    SendEvents,
    Silence,
    Text,
)
from tests.e2e.conftest import (
    KEY,
    TIME_LIMIT,
    Answer,
    Json,
    Process,
    Raw,
    Shared,
    Upstream,
    ask,
    driven,
    emulating,
    environment,
    eventually,
    post,
    request,
    running,
)

if TYPE_CHECKING:
    from tests.conftest import Backend

MIB = 2**20
TURN: Json = {"model": "m", "input": "hello"}
STREAM: Json = {**TURN, "stream": True}


@pytest.fixture
def plain(backend: Backend, shared: Shared) -> Process:
    """A bridge without settings except the backend, with the embedded emulator."""
    return shared("--backend", backend.name)


class Bridges:
    """Bridges and one emulator that the test can inspect and change."""

    def __init__(self, upstream: Upstream, shared: Shared) -> None:
        self.upstream = upstream
        self.shared = shared

    @property
    def emulator(self) -> Emulator:
        return self.upstream.emulator

    def strike(self, *faults: Fault) -> None:
        """Let the next frame, or the next connection, have ``faults``."""
        emulator = self.emulator
        emulator.faults.clear()
        for fault in faults:
            of_connection = fault.point in (Point.ON_CONNECT, Point.ON_UPGRADE)
            frames = emulator.requests[-1].number if emulator.requests else 0
            emulator.faults.add((emulator.accepted if of_connection else frames) + 1, fault)


@pytest.fixture(scope="module")
def emulated(shared: Shared) -> Iterator[Bridges]:
    with emulating() as upstream:
        yield Bridges(upstream, shared)


@pytest.fixture
def port(backend: Backend, emulated: Bridges) -> int:
    """A bridge with the default settings in front of ``emulated``."""
    emulated.emulator.faults.clear()
    return emulated.shared("--backend", backend.name, "--upstream", emulated.upstream.url).port


def text(answer: Json) -> str:
    """The text of a response."""
    return "".join(p["text"] for item in answer["output"] for p in item.get("content", []))


# ------------------------------------------------------------------ HTTP: what is served


def test_probes(plain: Process) -> None:
    with Raw(plain.port) as raw:
        for path in ("/livez", "/readyz", "/readyz?verbose=1"):
            raw.send(request("GET", path))
            answer = raw.answer()
            assert (answer.status, answer.json) == (200, {"status": "ok"})
        raw.send(request("HEAD", "/livez") + request("GET", "/livez"))
        assert raw.answer(of_head=True).status == 200
        assert raw.answer().json == {"status": "ok"}


def test_a_plain_turn(plain: Process) -> None:
    answer = ask(plain.port, post(TURN))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert text(answer.json) == "turn 1: hello"


def test_a_streamed_turn(plain: Process) -> None:
    with Raw(plain.port) as raw:
        raw.send(post(STREAM) + post(TURN))
        head = raw.head()
        events = list(raw.events())
        # Anything after the terminal event would be read as the next answer.
        assert text(raw.answer().json) == "turn 1: hello"
    assert head.status == 200
    assert head.headers["content-type"].startswith("text/event-stream")
    assert head.headers["transfer-encoding"] == "chunked"
    assert head.headers["cache-control"] == "no-cache"
    assert head.headers["x-accel-buffering"] == "no"
    assert "content-length" not in head.headers
    assert all(event.json["type"] == event.name for event in events)
    assert [event.json["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0].name == "response.created"
    assert events[-1].name == "response.completed"
    assert events[-1].json["response"]["id"] == events[0].json["response"]["id"]
    deltas = [e.json["delta"] for e in events if e.name == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == "turn 1: hello" == text(events[-1].json["response"])


def test_a_query_string(plain: Process) -> None:
    body = json.dumps(TURN).encode()
    assert ask(plain.port, request("POST", "/v1/responses?api-version=1&x=%2F", body)).status == 200


def test_expect_100_continue(plain: Process) -> None:
    whole = post(TURN, expect="100-continue")
    head, body = whole.split(b"\r\n\r\n")
    with Raw(plain.port) as raw:
        raw.send(head + b"\r\n\r\n")
        assert raw.head() == Answer(100, {})
        raw.send(body)
        assert raw.answer().status == 200


def test_pipelining(plain: Process) -> None:
    with Raw(plain.port) as raw:
        raw.send(
            post({**TURN, "input": "one"})
            + request("GET", "/livez")
            + post({**STREAM, "input": "two"})
            + request("GET", "/nowhere")
            + post({**TURN, "input": "three"})
        )
        assert text(raw.answer().json) == "turn 1: one"
        assert raw.answer().status == 200
        assert raw.head().status == 200
        assert text(list(raw.events())[-1].json["response"]) == "turn 1: two"
        assert raw.answer().status == 404
        assert text(raw.answer().json) == "turn 1: three"


def test_a_chunked_body(plain: Process) -> None:
    body = json.dumps(TURN).encode()
    chunks = b"".join(b"%x;x=y\r\n%b\r\n" % (1, body[n : n + 1]) for n in range(len(body)))
    with Raw(plain.port) as raw:
        raw.send(request("POST", "/v1/responses", transfer_encoding="chunked"))
        raw.send(chunks + b"0\r\nx-trailer: y\r\n\r\n")
        assert text(raw.answer().json) == "turn 1: hello"


def test_a_body_of_6_mb(plain: Process) -> None:
    blob = {"type": "reasoning", "summary": [], "encrypted_content": "x" * 6_000_000}
    items = [blob, {"role": "user", "content": "hello"}]
    assert text(ask(plain.port, post({**TURN, "input": items})).json) == "turn 1: hello"


def test_a_client_that_asks_for_the_end(plain: Process) -> None:
    with Raw(plain.port) as raw:
        raw.send(post(STREAM, connection="close"))
        assert raw.head().headers["connection"] == "close"
        assert list(raw.events())[-1].name == "response.completed"
        assert raw.ended()


# ------------------------------------------------------------------ HTTP: what is refused


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/responses/", "/v1/Responses", "/v1/none/resp_1", "/v1%2Fresponses"],
)
def test_an_unknown_path(plain: Process, path: str) -> None:
    answer = ask(plain.port, request("POST", path, b"{}"))
    assert answer.status == 404
    assert answer.code


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/responses", {"POST"}),
        ("DELETE", "/v1/responses", {"POST"}),
        ("POST", "/livez", {"GET", "HEAD"}),
        ("PUT", "/readyz", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method(plain: Process, method: str, path: str, allow: set[str]) -> None:
    answer = ask(plain.port, request(method, path))
    assert answer.status == 405
    assert answer.code
    assert set(answer.headers["allow"].replace(" ", "").split(",")) == allow


BODIES = {
    "nothing": b"",
    "not JSON": b"hello",
    "cut off": b'{"model":"m","input":"he',
    "something after it": b'{"model":"m"} {}',
    "a list": b'[{"model":"m"}]',
    "a string": b'"m"',
    "null": b"null",
    "no model": b'{"input":"hello"}',
    "model null": b'{"model":null}',
    "model a number": b'{"model":5}',
    "model a list": b'{"model":["m"]}',
    "NaN": b'{"model":"m","temperature":NaN}',
    "Infinity": b'{"model":"m","temperature":-Infinity}',
    "stream a string": b'{"model":"m","stream":"true"}',
    "store a number": b'{"model":"m","store":1}',
    "id a number": b'{"model":"m","previous_response_id":5}',
    "id a list": b'{"model":"m","previous_response_id":["resp_1"]}',
    "not UTF-8": b'{"model":"m","input":"\xff"}',
    "UTF-16": '{"model":"m"}'.encode("utf-16"),
    "a lone control character": b'{"model":"m","input":"\x01"}',
    "nested too deeply": b'{"model":"m","input":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested too deeply, unclosed": b'{"model":"m","input":' + b'{"a":' * 100_000,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_turn(plain: Process, body: bytes) -> None:
    """It is refused by the bridge, and costs neither the connection nor an upstream."""
    with Raw(plain.port) as raw:
        raw.send(request("POST", "/v1/responses", body, authorization=f"Bearer {KEY}"))
        answer = raw.answer()
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"
        assert answer.code
        raw.send(request("GET", "/livez"))
        assert raw.answer().status == 200


def head(*lines: str, request_line: str = "POST /v1/responses HTTP/1.1", host: str = "h") -> bytes:
    fields = [f"Host: {host}"] if host else []
    return "\r\n".join([request_line, *fields, *lines, "", ""]).encode("latin-1")


MALFORMED = {
    "length and coding": head("Content-Length: 13", "Transfer-Encoding: chunked"),
    "coding and length": head("Transfer-Encoding: chunked", "Content-Length: 13"),
    "different lengths": head("Content-Length: 13", "Content-Length: 14"),
    "the same length twice": head("Content-Length: 13", "Content-Length: 13"),
    "a list of lengths": head("Content-Length: 13, 13"),
    "a negative length": head("Content-Length: -13"),
    "a signed length": head("Content-Length: +13"),
    "a hexadecimal length": head("Content-Length: 0xd"),
    "an empty length": head("Content-Length:"),
    "coding in HTTP/1.0": head(
        "Transfer-Encoding: chunked", request_line="POST /v1/responses HTTP/1.0"
    ),
    "gzip": head("Transfer-Encoding: gzip"),
    "gzip, chunked": head("Transfer-Encoding: gzip, chunked"),
    "chunked twice": head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "identity": head("Transfer-Encoding: identity"),
    "bare LF": b"POST /v1/responses HTTP/1.1\nHost: h\nContent-Length: 0\n\n",
    "one bare LF": b"POST /v1/responses HTTP/1.1\r\nHost: h\nContent-Length: 0\r\n\r\n",
    "bare CR": b"GET /livez HTTP/1.1\r\nHost: h\rX: y\r\n\r\n",
    "obs-fold": head("X-Long: one", " two"),
    "a space before the colon": head("Content-Length : 0"),
    "no colon": head("Content-Length"),
    "no name": head(": value"),
    "NUL in a value": head("X-Zero: a\0b"),
    "no Host": head(host=""),
    "two Hosts": head("Host: h"),
    "a Host with a space": head(host="a b"),
    "a Host with a path": head(host="h/v1"),
    "a Host with a user": head(host="me@h"),
    "a Host with a strange port": head(host="h:8o"),
    "a target without a slash": head(request_line="POST v1/responses HTTP/1.1"),
    "a target with another scheme": head(request_line="GET ftp://h/livez HTTP/1.1"),
    "a target with a fragment": head(request_line="GET /livez#x HTTP/1.1"),
    "a target with a space": head(request_line="GET /live z HTTP/1.1"),
    "a target that is not ASCII": head(request_line="GET /liv\xe9z HTTP/1.1"),
    "an asterisk": head(request_line="OPTIONS * HTTP/1.1"),
    "no version": head(request_line="GET /livez"),
    "a version that is not spoken": head(request_line="GET /livez HTTP/2.0"),
    "a method that is no token": head(request_line="G(T /livez HTTP/1.1"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a chunk without a size": head("Transfer-Encoding: chunked") + b"zz\r\n",
    "a chunk that is longer than it says": head("Transfer-Encoding: chunked") + b"2\r\n{}}\r\n",
    "a chunk line that ends with LF": head("Transfer-Encoding: chunked") + b"2\n{}\n0\n\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_http(plain: Process, data: bytes) -> None:
    """Refused, and the connection is closed: what follows could be ambiguous."""
    with Raw(plain.port) as raw:
        raw.send(data)
        answer = raw.answer()
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"
        assert answer.headers["connection"] == "close"
        assert raw.ended()


def test_a_request_behind_a_malformed_one_is_not_served(plain: Process) -> None:
    with Raw(plain.port) as raw:
        both = head("Content-Length: 5", "Transfer-Encoding: chunked")
        raw.send(both + b"0\r\n\r\n" + request("GET", "/livez"))
        assert raw.answer().status == 400
        assert raw.ended()


def test_a_head_of_200_kb(plain: Process) -> None:
    with Raw(plain.port) as raw:
        raw.send(head("X-Large: " + "x" * 200_000))
        answer = raw.answer()
        assert answer.status == 431
        assert answer.code
        assert raw.ended()


def test_a_head_of_60_kb(plain: Process) -> None:
    answer = ask(plain.port, request("GET", "/livez", x_large="x" * 60_000))
    assert answer.status == 200


def test_a_body_larger_than_the_default(plain: Process) -> None:
    with Raw(plain.port) as raw:
        raw.send(head(f"Content-Length: {64 * MIB + 1}", "Expect: 100-continue"))
        answer = raw.answer()
        assert answer.status == 413
        assert answer.code
        assert raw.ended()


@pytest.fixture
def strict(backend: Backend, shared: Shared) -> Process:
    """Short deadlines and small limits."""
    return shared(
        *("--backend", backend.name, "--header-timeout", "0.3", "--body-timeout", "0.4"),
        *("--max-body", "1000", "--max-header", "2000"),
    )


def test_limits_that_were_set(strict: Process) -> None:
    fits = json.dumps({**TURN, "input": "x"}).encode().ljust(1000)
    assert ask(strict.port, post(fits)).status == 200
    assert ask(strict.port, post(fits + b" ")).status == 413
    chunked = head("Transfer-Encoding: chunked")
    assert ask(strict.port, chunked + b"3e8\r\n" + fits + b"\r\n1\r\n").status == 413
    assert ask(strict.port, head("X: " + "x" * 2000)).status == 431


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(b"P", id="a byte"),
        pytest.param(b"POST /v1/responses HTTP/1.1\r\nHost: h\r\n", id="part of the head"),
        pytest.param(head("Content-Length: 100"), id="no body"),
        pytest.param(head("Content-Length: 100") + b'{"model":', id="part of the body"),
        pytest.param(head("Transfer-Encoding: chunked") + b"5\r\n{", id="part of a chunk"),
    ],
)
def test_a_client_that_sends_too_slowly(strict: Process, part: bytes) -> None:
    with Raw(strict.port) as raw:
        raw.send(part)
        answer = raw.answer()
        assert answer.status == 408
        assert answer.code
        assert raw.ended()


def test_a_client_that_sends_nothing(strict: Process) -> None:
    """Without a request there is no answer."""
    with Raw(strict.port) as raw:
        assert raw.ended()


# ------------------------------------------------------------------ streams

# Spaces, unknown members, unknown events, numbers and escapes that must not be changed.
SCRIPT = (
    b'{ "type" : "response.created", "sequence_number":0, "response":{"id":"resp_x","status":'
    b'"in_progress","output":[], "unknown" : 1.10 } }',
    b'{"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_x"}}',
    b'{"type":"vendor.surprise","sequence_number":2,"n":1e400,"s":"\\u00e9\\/\xc3\xa9\xe2\x80\xa8"}',
    b'{\n  "type": "response.output_text.delta",\n  "sequence_number": 3,\n  "delta": "a"\n}',
    b'{"sequence_number":4,"delta":"b","type":"response.output_text.delta","obfuscation":"xyz"}',
)
DONE = (
    b'{"type":"response.completed","sequence_number":5,"response":{"id":"resp_x","status":'
    b'"completed" , "output":[{"type":"message","content":[{"text":"ab"}]}],"unknown":1.10}}'
)
INCOMPLETE = (
    b'{"type":"response.incomplete","sequence_number":5,"response":{"id":"resp_x","status":'
    b'"incomplete","incomplete_details":{"reason":"max_output_tokens"},"output":[{"type":"x"}]}}'
)


def scripted(*events: bytes) -> Fault:
    return Fault(Point.BEFORE_CREATED, SendEvents(events))


def test_events_pass_byte_for_byte(emulated: Bridges, port: int) -> None:
    emulated.strike(scripted(*SCRIPT, DONE))
    with Raw(port) as raw:
        raw.send(post(STREAM))
        assert raw.head().status == 200
        events = list(raw.everything())
    assert [event.data for event in events] == [*SCRIPT, DONE]
    assert [event.name for event in events] == [
        json.loads(data)["type"] for data in (*SCRIPT, DONE)
    ]


@pytest.mark.parametrize("terminal", [DONE, INCOMPLETE], ids=["completed", "incomplete"])
def test_json_and_stream_say_the_same(emulated: Bridges, port: int, terminal: bytes) -> None:
    emulated.strike(scripted(*SCRIPT, terminal))
    with Raw(port) as raw:
        raw.send(post(STREAM))
        assert raw.head().status == 200
        last = list(raw.events())[-1]
    emulated.strike(scripted(*SCRIPT, terminal))
    answer = ask(port, post(TURN))
    assert answer.status == 200
    assert last.data == terminal
    assert answer.body in terminal  # byte for byte
    assert answer.json == last.json["response"]


def test_the_body_goes_upstream_unchanged(emulated: Bridges, port: int) -> None:
    """All but ``stream``, which a WebSocket implies; and the credential unchanged."""
    members = (
        b'"model":"m","input":[ {"role":"user","content":"\\u00e9\\/\xc3\xa9"} ],"n":1.10,'
        b'"unknown":{"a": [1e2,null]},"temperature":0.70'
    )
    assert ask(port, post(b'{"stream":false,' + members + b"}", key="sk-other")).status == 200
    seen = emulated.emulator.requests[-1]
    assert seen.raw == b'{"type":"response.create",' + members + b"}"
    assert dict(seen.headers)[b"authorization"] == b"Bearer sk-other"


def test_an_upstream_message_of_3_mib(emulated: Bridges, port: int) -> None:
    event = b'{"type":"response.output_text.delta","delta":"' + b"x" * 3 * MIB + b'"}'
    emulated.strike(scripted(*SCRIPT, event, DONE))
    with Raw(port) as raw:
        raw.send(post(STREAM))
        assert raw.head().status == 200
        assert list(raw.events())[-2].data == event


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "plain"])
def test_an_upstream_message_beyond_the_limit(emulated: Bridges, port: int, stream: bool) -> None:
    event = b'{"type":"response.output_text.delta","delta":"' + b"x" * 16 * MIB + b'"}'
    emulated.strike(scripted(*SCRIPT, event, DONE))
    with Raw(port) as raw:
        raw.send(post(STREAM if stream else TURN))
        if stream:
            assert raw.head().status == 200
            events = list(raw.events())
            assert [event.data for event in events[:-1]] == list(SCRIPT)
            check_failed(events[-1].json)
        else:
            assert raw.answer().code
    assert emulated.emulator.turns[-1].outcome is not Outcome.COMPLETED


def check_failed(event: Json) -> str:
    """Check the ``response.failed`` that the bridge made; its code."""
    assert event["type"] == "response.failed"
    assert event["response"]["status"] == "failed"
    assert event["response"]["error"]["message"]
    code = event["response"]["error"]["code"]
    assert isinstance(code, str)
    assert code
    return code


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(Garbage(), id="no JSON"),
        pytest.param(Garbage(b"[]"), id="no object"),
        pytest.param(Garbage(b'{"type":5}'), id="no type"),
    ],
)
@pytest.mark.parametrize("where", [Point.BEFORE_CREATED, Point.AFTER_CREATED, Point.MID_OUTPUT])
def test_meaningless_frames_are_skipped(
    emulated: Bridges, port: int, noise: Garbage, where: Point
) -> None:
    emulated.strike(Fault(where, noise))
    with Raw(port) as raw:
        raw.send(post(STREAM))
        assert raw.head().status == 200
        events = list(raw.events())
    assert events[0].name == "response.created"
    assert events[-1].name == "response.completed"
    assert all(event.name.startswith("response.") for event in events)
    emulated.strike(Fault(where, noise))
    assert text(ask(port, post(TURN)).json) == text(events[-1].json["response"])


def test_an_upstream_that_cannot_be_understood(emulated: Bridges, port: int) -> None:
    garbage = Garbage(b"\xff\xff\xff\xff", raw=True)
    emulated.strike(Fault(Point.BEFORE_CREATED, garbage))
    answer = ask(port, post(STREAM))
    assert answer.status == 502
    assert answer.code == "stream_incomplete"
    emulated.strike(Fault(Point.AFTER_CREATED, garbage))
    with Raw(port) as raw:
        raw.send(post(STREAM))
        assert raw.head().status == 200
        events = list(raw.events())
        assert events[0].name == "response.created"
        assert check_failed(events[-1].json) == "stream_incomplete"
    emulated.strike()
    assert ask(port, post(TURN)).status == 200


def test_keepalives_and_deadlines(backend: Backend) -> None:
    """Comments before ``response.created``, typed events after it; neither extends a deadline."""
    times = [*("--head-timeout", "0.3"), *("--keepalive", "0.2")]
    times += [*("--created-timeout", "1.2"), *("--idle-timeout", "1.2")]
    silence = Silence()
    with emulating() as upstream, contextlib.ExitStack() as stack:
        upstream.emulator.faults.add(1, Fault(Point.BEFORE_CREATED, silence))
        upstream.emulator.faults.add(2, Fault(Point.AFTER_CREATED, silence))
        upstream.emulator.faults.add(3, Fault(Point.BEFORE_CREATED, silence))
        arguments = ("--upstream", upstream.url, "--backend", backend.name, *times)
        process = stack.enter_context(running(*arguments))
        clients = []
        # in parallel, because they take time
        for count, body in enumerate((STREAM, STREAM, TURN), 1):
            raw = stack.enter_context(Raw(process.port))
            raw.send(post(body))
            upstream.await_turns(count)
            clients.append(raw)
        not_created, created, plain = clients

        assert not_created.head().status == 200
        *comments, first, last = not_created.everything()
        assert len(comments) >= 3
        assert first.name == "response.created"  # made by the bridge
        assert all(comment.data.startswith(b":") for comment in comments)
        assert check_failed(last.json) == "upstream_request_timeout"

        assert created.head().status == 200
        events = list(created.everything())
        assert all(event.name for event in events)
        assert events[0].name == "response.created"
        keepalives = events[1:-1]
        assert len(keepalives) >= 3
        for event in keepalives:
            assert event.name == event.json["type"] == "keepalive"
            assert type(event.json["sequence_number"]) is int
        assert check_failed(events[-1].json)
        assert events[-1].json["response"]["id"] == events[0].json["response"]["id"]
        assert events[-1].json["sequence_number"] > events[0].json["sequence_number"]

        answer = plain.answer()
        assert answer.status == 502
        assert answer.code == "upstream_request_timeout"


# ------------------------------------------------------------------ an upstream that refuses

REFUSALS: list[tuple[str, Error, int]] = [
    ("400", Error(400, "invalid_value", "invalid_request_error", "Bad.", "input"), 400),
    ("401", Error(401, "invalid_api_key", "invalid_request_error"), 401),
    ("429", Error(429, "rate_limit_exceeded", "rate_limit_error"), 429),
    ("no status, rate limit", Error(0, "rate_limit_exceeded", shape=ErrorShape.NO_STATUS), 429),
    ("500", Error(500, "server_error"), 502),
    ("503", Error(503, "overloaded"), 502),
    ("no status", Error(0, "strange", shape=ErrorShape.NO_STATUS), 502),
    ("code in type", Error(400, "too_strange", shape=ErrorShape.CODE_IN_TYPE), 400),
]


@pytest.mark.parametrize(
    ("error", "status"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_an_error_in_place_of_an_answer(
    emulated: Bridges, port: int, error: Error, status: int
) -> None:
    for body in (TURN, STREAM):
        emulated.strike(Fault(Point.BEFORE_CREATED, error))
        answer = ask(port, post(body))
        assert answer.status == status
        assert answer.code == error.code
        if error.param is not None:
            assert answer.error["param"] == error.param
        assert ask(port, post(body)).status == 200


UPGRADES = [
    (Reject(401), 401, None),
    (Reject(403), 403, None),
    (Reject(429, ((b"retry-after", b"7"),)), 429, 7),
    (Reject(404), 502, None),
    (Reject(426), 502, None),
    (Reject(500), 502, None),
    (Reject(503, ((b"Retry-After", b"9"),)), 502, 9),
    (CloseWith(1006), 502, None),
    (Garbage(b"SSH-2.0-OpenSSH_9.9\r\n"), 502, None),
]


@pytest.mark.parametrize(
    ("action", "status", "wait"),
    UPGRADES,
    ids=["401", "403", "429", "404", "426", "500", "503", "end", "ssh"],
)
def test_an_upgrade_that_is_refused(
    emulated: Bridges, port: int, action: Any, status: int, wait: int | None
) -> None:
    emulator = emulated.emulator
    for body in (TURN, STREAM):
        before = emulator.accepted
        emulator.faults.clear()
        emulator.faults.add(EVERY, Fault(Point.ON_UPGRADE, action))
        answer = ask(port, post(body))
        assert answer.status == status
        assert answer.code
        if status == 502:
            assert answer.code == "upstream_unavailable"
        if wait is not None:
            assert int(answer.headers["retry-after"]) >= wait
        assert 1 <= emulator.accepted - before <= 3
    emulator.faults.clear()
    assert ask(port, post(TURN)).status == 200


def test_an_upstream_that_is_not_there(backend: Backend) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        url = f"ws://127.0.0.1:{taken.getsockname()[1]}/v1/responses"
        with running("--upstream", url, "--backend", backend.name) as process:
            for body in (TURN, STREAM, {**TURN, "previous_response_id": "resp_1"}):
                answer = ask(process.port, post(body))
                assert answer.status == 502
                assert answer.code == "upstream_unavailable"
            assert ask(process.port, request("GET", "/readyz")).status == 200


def test_an_unknown_id_is_answered_by_the_upstream(emulated: Bridges, port: int) -> None:
    """The upstream is asked once, its error is relayed; an id of another credential looks
    the same."""
    before = len(emulated.emulator.requests)
    answer = ask(port, post({**TURN, "previous_response_id": "resp_nobody"}))
    assert answer.status == 400
    assert answer.code == "previous_response_not_found"
    assert answer.error["param"] == "previous_response_id"
    assert "resp_nobody" in answer.error["message"]
    assert len(emulated.emulator.requests) == before + 1

    mine = ask(port, post(TURN)).json["id"]
    foreign = ask(port, post({**TURN, "previous_response_id": mine}, key="sk-somebody-else"))
    assert foreign.status == 400
    assert foreign.body.replace(mine.encode(), b"resp_nobody") == answer.body
    assert ask(port, post({**TURN, "previous_response_id": mine})).status == 200


def test_an_id_that_only_the_upstream_knows(backend: Backend, emulated: Bridges, port: int) -> None:
    """Made through a bridge that has ended: the next one forwards it, with success."""
    with running("--upstream", emulated.upstream.url, "--backend", backend.name) as process:
        first = ask(process.port, post(TURN)).json["id"]
    answer = ask(port, post({**TURN, "previous_response_id": first}))
    assert answer.status == 200
    assert text(answer.json) == "turn 2: hello"


# ------------------------------------------------------------------ TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_turn(
    backend: Backend, trusted: trustme.CA, issuer: trustme.CA, name: str, folder: Path
) -> tuple[Answer, Emulator]:
    """A turn over TLS to an upstream on 127.0.0.1 whose certificate is for ``name``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer.issue_cert(name).configure_cert(context)
    file = folder / "ca.pem"
    trusted.cert_pem.write_to_path(str(file))
    emulator = Emulator()
    with driven(emulator, context) as upstream_port:
        url = f"wss://127.0.0.1:{upstream_port}/v1/responses"
        environ = {"SSL_CERT_FILE": str(file), "SSL_CERT_DIR": str(folder / "none")}
        arguments = ("--upstream", url, "--backend", backend.name)
        with running(*arguments, environ=environ) as process:
            return ask(process.port, post(TURN)), emulator


def test_an_upstream_over_tls(backend: Backend, authority: trustme.CA, tmp_path: Path) -> None:
    answer, emulator = tls_turn(backend, authority, authority, "127.0.0.1", tmp_path)
    assert answer.status == 200
    assert text(answer.json) == "turn 1: hello"
    assert len(emulator.requests) == 1


@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_an_upstream_that_is_not_trusted(
    backend: Backend, authority: trustme.CA, tmp_path: Path, wrong: str
) -> None:
    """It does not receive the credential: there is no upgrade request."""
    issuer = trustme.CA() if wrong == "authority" else authority
    name = "127.0.0.2" if wrong == "name" else "127.0.0.1"
    answer, emulator = tls_turn(backend, authority, issuer, name, tmp_path)
    assert answer.status == 502
    assert answer.code == "upstream_unavailable"
    assert (emulator.upgrades, emulator.requests) == (0, [])


# ------------------------------------------------------------------ operation


def is_draining(raw: Raw) -> bool:
    """The answer of ``/readyz`` on a connection that was open before the signal."""
    raw.send(request("GET", "/readyz"))
    answer = raw.answer()
    assert answer.status in (200, 503)
    return answer.status == 503


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_running_turns_finish(
    backend: Backend, upstream: Upstream, signum: int
) -> None:
    emulator = upstream.emulator
    emulator.delta_interval = NS_PER_SECOND // 20
    with running("--upstream", upstream.url, "--backend", backend.name) as process:
        port = process.port
        with Raw(port) as stream, Raw(port) as plain, Raw(port) as kept, Raw(port) as other:
            other.send(request("GET", "/livez"))
            assert other.answer().status == 200
            stream.send(post({**STREAM, "input": "repeat 1000"}))
            assert stream.head().status == 200
            events = stream.events()
            assert next(events).name == "response.created"
            plain.send(post({**TURN, "input": "repeat 1000"}))
            upstream.await_turns(2)

            process.popen.send_signal(signum)
            eventually(lambda: is_draining(kept))
            other.send(post(TURN))
            answer = other.answer()
            assert answer.status == 503
            assert answer.code
            with contextlib.suppress(ConnectionRefusedError):
                assert ask(port, post(TURN)).status == 503
            assert process.popen.poll() is None

            emulator.delta_interval = 0  # the rest at once
            rest = list(events)
            assert rest[-1].name == "response.completed"
            numbers = "".join(str(number) + " " for number in range(1, 1001))
            assert text(rest[-1].json["response"]) == numbers
            assert text(plain.answer().json) == numbers
            assert stream.ended()
            assert plain.ended()
        assert process.exit_code() == 0
        assert len(emulator.requests) == 2
        assert "Traceback" not in process.output()
        with pytest.raises(ConnectionRefusedError):
            Raw(port)


def test_a_drain_ends_at_its_deadline(backend: Backend, upstream: Upstream) -> None:
    """Hung streams get an event or, before their head, a status."""
    upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    upstream.emulator.faults.add(2, Fault(Point.BEFORE_CREATED, Silence()))
    arguments = ("--upstream", upstream.url, "--backend", backend.name, "--drain-timeout", "0.5")
    with running(*arguments) as process, Raw(process.port) as begun, Raw(process.port) as held:
        begun.send(post(STREAM))
        assert begun.head().status == 200
        events = begun.events()
        assert next(events).name == "response.created"
        held.send(post(STREAM))
        upstream.await_turns(2)
        process.terminate()
        assert check_failed(list(events)[-1].json)
        assert begun.ended()
        answer = held.answer()
        assert answer.status == 503
        assert answer.code
        assert held.ended()
        assert process.exit_code() == 0
        eventually(lambda: not upstream.emulator.connections)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_it(backend: Backend, upstream: Upstream, second: int) -> None:
    upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    arguments = ("--upstream", upstream.url, "--backend", backend.name)
    with running(*arguments) as process, Raw(process.port) as hung, Raw(process.port) as kept:
        hung.send(post(STREAM))
        assert hung.head().status == 200
        process.terminate()
        eventually(lambda: is_draining(kept))
        assert process.popen.poll() is None
        process.popen.send_signal(second)
        process.exit_code(timeout=1.0)  # raises if it takes longer
        assert "Traceback" not in process.output()


def test_an_idle_bridge_ends_at_once(backend: Backend, upstream: Upstream) -> None:
    """Open connections and idle conversations do not delay it."""
    arguments = ("--upstream", upstream.url, "--backend", backend.name)
    with running(*arguments) as process, Raw(process.port) as idle, Raw(process.port) as used:
        used.send(post(TURN))
        assert used.answer().status == 200
        process.terminate()
        assert idle.ended()
        assert used.ended()
        assert process.exit_code(timeout=5.0) == 0  # of the 30 s that a drain may take
        eventually(lambda: not upstream.emulator.connections)


def test_a_port_in_use(backend: Backend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "bridgecore_cli", "serve", "--backend", backend.name]
        result = subprocess.run(
            [*command, "--port", port],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            check=False,
        )
    assert result.returncode == 1
    assert result.stdout == ""
    assert port in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_contents_and_credentials_are_never_logged(backend: Backend, upstream: Upstream) -> None:
    """At the most detailed level, for turns that succeed and for every kind of failure."""
    emulator = upstream.emulator
    secret = "kingfisher"  # in the input, in answers, in errors, in what is malformed
    turn = {**TURN, "input": secret, "instructions": secret, "store": False}
    emulator.answer = lambda _: [Text(f"about {secret}s")]
    # A code that is a name is logged; one that is more could be anything.
    error = Error(500, f"{secret}-1", f"{secret}_type", f"It is the {secret}.", secret)
    emulator.faults.add(2, Fault(Point.BEFORE_CREATED, error))
    emulator.faults.add(3, Fault(Point.MID_OUTPUT, error))
    emulator.faults.add(4, Fault(Point.BEFORE_CREATED, Garbage(secret.encode())))
    emulator.faults.add(5, Fault(Point.AFTER_CREATED, CloseWith(4000, secret)))
    emulator.faults.add(5, Fault(Point.ON_UPGRADE, Reject(401, (), secret.encode())))
    arguments = ("--upstream", upstream.url, "--backend", backend.name, "--log-level", "debug")
    with running(*arguments) as process:
        port = process.port
        done = ask(port, post(turn)).json
        assert secret in text(done)
        for body in (turn, {**turn, "stream": True}, turn, turn, turn):
            ask(port, post(body))
        ask(port, post({**turn, "previous_response_id": f"resp_{secret}"}))
        ask(port, post({**turn, "previous_response_id": done["id"]}))
        ask(port, post({**turn, "model": [secret]}))
        ask(port, post(secret.encode()))
        ask(port, request("POST", f"/v1/{secret}?{secret}={secret}", secret.encode()))
        ask(port, head(f"{secret}"))
        process.terminate()
        assert process.exit_code() == 0
        output = process.output()
    assert output.count(" turn.sent ") >= 5
    assert output.count(" turn.refused ") >= 4
    assert done["id"] not in output
    assert KEY not in output
    assert secret not in output.lower()
    assert "Traceback" not in output
