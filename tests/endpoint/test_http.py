"""HTTP as the clients of a whole endpoint see it: contract, "HTTP".

What belongs here: routes, statuses, ids and the life of client connections. The framing of HTTP in
bytes alone is tests/wire/test_http.py.
"""

from __future__ import annotations

import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore import transport as tp
from bridgecore.config import Continuity
from bridgecore.endpoint import Endpoint
from bridgecore.testing import Fault, Point, Silence
from bridgecore.testing.network import ByteClient
from tests.encoders import CODING, ENCODERS
from tests.endpoint_world import SECOND, Answer, World, read_answers, request

TURN = {"model": "m", "input": "hi"}


def exchange(data: bytes, world: World | None = None) -> tuple[Answer, ByteClient]:
    """One request; its answer, and the client, whose connection may have been closed."""
    client = (world or World()).client()
    client.send(data)
    head = data.startswith(b"HEAD ")
    (answer,) = read_answers(bytes(client.received), heads=[head])
    return answer, client


@pytest.mark.parametrize("path", ["/", "/v1/responses/", "/v1/response", "/livez/", "/v1/nothing"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_unknown_path(path: str, method: str) -> None:
    answer, client = exchange(request(None, method=method, path=path))
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/json"
    assert not client.eof


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/responses", "POST"),
        ("PUT", "/v1/responses", "POST"),
        ("OPTIONS", "/v1/responses", "POST"),
        ("POST", "/livez", "GET, HEAD"),
        ("DELETE", "/readyz", "GET, HEAD"),
    ],
)
def test_method_not_allowed(method: str, path: str, allow: str) -> None:
    answer, client = exchange(request(None, method=method, path=path))
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allow
    assert not client.eof


def test_head_of_responses_has_no_body() -> None:
    answer, client = exchange(request(None, method="HEAD"))
    assert (answer.status, answer.body) == (405, b"")
    assert not client.eof


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/livez?x=1"])
def test_health(path: str) -> None:
    answer, client = exchange(request(None, method="GET", path=path))
    assert (answer.status, answer.json) == (200, {"status": "ok"})
    client.take()
    client.send(request(None, method="HEAD", path=path))
    (again,) = read_answers(client.take(), heads=[True])
    assert (again.status, again.headers["content-length"]) == (200, str(len(answer.body)))
    assert not client.eof


def test_upgrade_is_sent_to_http() -> None:
    headers = "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    answer, _ = exchange(request(None, method="GET", headers=headers))
    assert (answer.status, answer.error["code"]) == (426, "upgrade_required")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("query", ["?", "?a=b", "?api-version=2025-04-01-preview&x=%20"])
def test_query_strings(query: str) -> None:
    answer, _ = exchange(request(TURN, path="/v1/responses" + query))
    assert answer.text == "turn 1: hi"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"7",
        b"null",
        b"{}",
        b'{"model":null}',
        b'{"model":7}',
        b'{"model":["m"]}',
        b'{"model":"m","stream":"yes"}',
        b'{"model":"m","stream":1}',
        b'{"model":"m","store":"no"}',
        b'{"model":"m","previous_response_id":7}',
        b'{"model":"m","temperature":NaN}',
        b'{"model":"m","temperature":-Infinity}',
        # Deeper than any stack: Python 3.14 has no other limit.
        b'{"model":"m","x":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
        b'{"model":"m","x":' + b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_001,
        b'{"model":"m","input":"\xff"}',
        b'{"model":"m"} trailing',
        b"{'model':'m'}",
    ],
    ids=lambda body: str(body[:40]),
)
def test_bad_bodies(body: bytes) -> None:
    world = World()
    answer, client = exchange(request(body), world)
    assert (answer.status, answer.error["code"]) == (400, "invalid_request_body")
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["message"]
    client.take()
    client.send(request(TURN))  # the connection goes on
    assert read_answers(client.take())[0].text == "turn 1: hi"
    assert len(world.frames) == 1


MALFORMED = {
    "CL with TE": b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
    b"transfer-encoding: chunked\r\n\r\n{}",
    "two CL": b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
    b"content-length: 2\r\n\r\n{}",
    "TE on 1.0": b"POST /v1/responses HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
    "TE gzip": b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
    "bare LF": b"GET /livez HTTP/1.1\nhost: x\n\n",
    "obs-fold": b"GET /livez HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n",
    "bad Host": b"GET /livez HTTP/1.1\r\nhost: a b\r\n\r\n",
    "bad target": b"GET livez HTTP/1.1\r\nhost: x\r\n\r\n",
    "garbage": b"\x00\x01\x02",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_http(data: bytes) -> None:
    world = World()
    other = world.client()
    answer, client = exchange(data, world)
    assert (answer.status, answer.error["code"]) == (400, "malformed_request")
    assert answer.headers["connection"] == "close"
    assert client.eof
    other.send(request(TURN))
    assert world.read(other).status == 200
    client.half_close()
    other.half_close()
    world.assert_empty()


def test_large_bodies_and_heads() -> None:
    world = World(max_body=1000)
    answer, client = exchange(request({**TURN, "input": "x" * 2000}), world)
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    client.half_close()
    answer, client = exchange(request(TURN, headers=f"x-long: {'x' * 200_000}\r\n"), world)
    assert (answer.status, answer.headers["connection"]) == (431, "close")
    assert client.eof
    client.half_close()
    world.assert_empty()


def test_a_default_bridge_takes_large_bodies_and_messages() -> None:
    world = World()
    answer = world.ask("x" * 6_000_000, stream=False)
    assert len(answer.text) == len("turn 1: ") + 6_000_000


# ------------------------------------------------------------------ compressed bodies


ENCODE = {CODING[name]: encode for name, encode in ENCODERS.items()}
ENCODE |= {"x-gzip": ENCODE["gzip"], "identity": bytes}


def encoded(body: object, *codings: str, headers: str = "") -> bytes:
    """A request whose body has these codings, in the order of their application."""
    data = json.dumps(body).encode()
    for coding in codings:
        data = ENCODE[coding.lower()](data)
    names = f"content-encoding: {', '.join(codings)}\r\n" if codings else ""
    return request(data, headers=names + headers)


@pytest.mark.parametrize(
    "codings",
    [
        *([], ["identity"], ["gzip"], ["x-gzip"], ["deflate"], ["zstd"], ["GZIP"]),
        *(["gzip", "identity"], ["gzip", "zstd"], ["zstd", "deflate"]),
    ],
)
def test_compressed_bodies(codings: list[str]) -> None:
    world = World()
    answer, client = exchange(encoded(TURN, *codings), world)
    assert answer.text == "turn 1: hi"
    client.take()
    client.send(request(TURN))
    assert read_answers(client.take())[0].text == "turn 1: hi"
    assert world.frames[0] == world.frames[1]


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, br", "gzip, gzip, gzip", "chunked"])
@pytest.mark.parametrize("head_first", [False, True])
def test_other_codings_are_refused_with_what_is_accepted(coding: str, head_first: bool) -> None:
    world = World()
    data = request(b"\x1f\x8b", headers=f"content-encoding: {coding}\r\n")
    cut = len(data) - 2 if head_first else len(data)
    client = world.client()
    client.send(data[:cut])
    (answer,) = read_answers(client.take())
    assert (answer.status, answer.error["code"]) == (415, "unsupported_content_encoding")
    assert answer.headers["accept-encoding"] == "gzip, deflate, zstd"
    assert "gzip, deflate, zstd" in answer.error["message"]
    if not head_first:  # the body was read, so the connection goes on
        client.send(request(TURN))
        assert read_answers(client.take())[0].text == "turn 1: hi"


def test_a_variant_that_is_not_supported_is_refused_like_an_unknown_coding() -> None:
    data = b"\x28\xb5\x2f\xfd" + json.dumps(TURN).encode()
    answer, client = exchange(request(data, headers="content-encoding: zstd\r\n"))
    assert (answer.status, answer.error["code"]) == (415, "unsupported_content_encoding")
    assert answer.headers["accept-encoding"] == "gzip, deflate, zstd"
    assert not client.eof


def test_the_coding_of_a_body_that_is_not_read_does_not_matter() -> None:
    headers = "content-encoding: br\r\n"
    for body in (None, b"x"):
        answer, _ = exchange(request(body, method="GET", path="/livez", headers=headers))
        assert answer.status == 200
        assert exchange(request(body, path="/v1", headers=headers))[0].status == 404


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "incomplete"),
        (gzip.compress(b"{}", mtime=0)[:-1], "incomplete"),
        (gzip.compress(b"{}", mtime=0) + b"{}", "followed by something else"),
        (b'{"model":"m"}', "not valid gzip"),
    ],
)
def test_bodies_that_cannot_be_decoded(data: bytes, why: str) -> None:
    world = World()
    answer, client = exchange(request(data, headers="content-encoding: gzip\r\n"), world)
    assert (answer.status, answer.error["code"]) == (400, "undecodable_body")
    assert why in answer.error["message"]
    assert "gzip" in answer.error["message"]
    client.take()
    client.send(request(TURN))
    assert read_answers(client.take())[0].text == "turn 1: hi"
    client.half_close()
    world.assert_empty()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_the_bound_is_on_the_decoded_size(coding: str) -> None:
    turn = {**TURN, "input": "x" * 2000}
    world = World(max_body=len(json.dumps(turn)))
    assert exchange(encoded(turn, coding), world)[0].status == 200
    turn["input"] += "x"
    answer, client = exchange(encoded(turn, coding), world)
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    client.half_close()
    world.assert_empty()


def test_a_bomb_is_refused_before_it_is_in() -> None:
    world = World()
    bomb = gzip.compress(bytes(100_000_000))
    client = world.client()
    client.send(request(bomb, headers="content-encoding: gzip\r\n")[:-1])
    (answer,) = read_answers(bytes(client.received))
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    client.half_close()
    world.assert_empty()


@given(cuts=st.lists(st.integers(1, 400), max_size=8), coding=st.sampled_from(["gzip", "zstd"]))
def test_a_compressed_body_in_any_pieces(cuts: list[int], coding: str) -> None:
    sized = encoded({**TURN, "input": "x" * 300}, coding)
    head, _, body = sized.partition(b"\r\n\r\n")
    head = re.sub(rb"content-length: \d+", b"transfer-encoding: chunked", head)
    chunks: list[bytes] = []
    while body:
        size = cuts[len(chunks) % len(cuts)] if cuts else len(body)
        chunks.append(b"%x\r\n%b\r\n" % (len(body[:size]), body[:size]))
        body = body[size:]
    world = World(split=lambda data: [data[i : i + 97] for i in range(0, len(data), 97)])
    answer, _ = exchange(head + b"\r\n\r\n" + b"".join(chunks) + b"0\r\n\r\n", world)
    assert answer.text == "turn 1: " + "x" * 300


# ------------------------------------------------------------------ targets and ids


@pytest.mark.parametrize(
    "target", ["http://bridge", "http://elsewhere:81", "HTTPS://bridge", "http://[::1]"]
)
def test_targets_in_absolute_form_are_served(target: str) -> None:
    world = World()
    answer, client = exchange(request(TURN, path=target + "/v1/responses?a=b"), world)
    assert answer.text == "turn 1: hi"
    client.take()
    client.send(request(None, method="GET", path=target + "/livez"))
    assert read_answers(client.take())[0].status == 200
    client.send(request(None, path=target))
    assert read_answers(client.take())[0].status == 404


def test_a_request_is_named_in_its_answer() -> None:
    """The client's id or, if it sends none, an id that no other request has."""
    world = World(max_body=1000)
    seen = set()
    malformed = b"GET /livez HTTP/1.1\r\nhost: a b\r\n"
    for name in ("", "x-request-id: a b\r\n", f"x-request-id: {'r' * 300}\r\n"):
        for data in (
            request(TURN, headers=name),
            request({**TURN, "stream": True}, headers=name),
            request({}, headers=name),
            request(b"x", headers=name + "content-encoding: br\r\n"),
            request(b"x" * 2000, headers=name),
            request(None, method="GET", path="/livez", headers=name),
            request(None, method="HEAD", path="/livez", headers=name),
            request(None, path="/v2", headers=name),
            request(None, method="GET", headers=name),
            malformed + name.encode() + b"\r\n",
        ):
            answer, client = exchange(data, world)
            assert re.fullmatch("req_[0-9a-f]{24}", answer.request_id)
            seen.add(answer.request_id)
            client.half_close()
    assert len(seen) == 30
    client = world.client()
    for number in range(3):
        client.send(request(TURN, headers=f"X-Request-ID: Mine/{number}\r\n"))
        assert read_answers(client.take())[0].request_id == f"Mine/{number}"
        client.send(request({**TURN, "stream": True}))
        seen.add(read_answers(client.take())[0].request_id)
    assert len(seen) == 33


def test_the_names_of_requests_follow_from_the_seed() -> None:
    def first(seed: bytes) -> str:
        endpoint = Endpoint(World().config, seed)
        conn = endpoint.new_connection()
        endpoint.handle(tp.Accepted(conn), 0)
        data = request(None, method="GET", path="/livez")
        effects = endpoint.handle(tp.DataReceived(conn, data), 0)
        (sent,) = [effect for effect in effects if isinstance(effect, tp.Send)]
        return read_answers(sent.data)[0].request_id

    assert first(b"a") == first(b"a") != first(b"b")


def test_log_lines_name_the_request() -> None:
    world = World()
    client = world.client()
    client.send(request(TURN, headers="x-request-id: one\r\n"))
    world.emulator.delta_interval = SECOND
    client.send(request({**TURN, "stream": True}, headers="x-request-id: two\r\n"))
    client.half_close()  # it leaves before its answer
    lines = [(log.event, log.fields.get("request_id")) for log in world.net.logs]
    events = {
        name: {event for event, request in lines if request == name} for name in ("one", "two")
    }
    assert events["one"] >= {"turn.received", "session.connect", "turn.sent", "turn.completed"}
    assert events["two"] >= {"turn.received", "turn.sent", "turn.abandoned"}
    assert all(request for event, request in lines if event.startswith("turn."))


@pytest.mark.parametrize("stream", [False, True])
def test_background_is_refused(stream: bool) -> None:
    world = World()
    answer, _ = exchange(request({**TURN, "background": True, "stream": stream}), world)
    assert (answer.status, answer.error["param"]) == (400, "background")
    assert world.frames == []


# ------------------------------------------------------------------ ids of responses


@pytest.mark.parametrize("continuity", list(Continuity))
@pytest.mark.parametrize("store", [False, True])
def test_turns_with_an_empty_id_do_not_wait_for_each_other(
    continuity: Continuity, store: bool
) -> None:
    """The upstream's error about it is relayed, and no turn waits for another."""
    world = World(continuity=continuity)
    world.emulator.delta_interval = SECOND
    clients = [world.start(f"q{n}", previous_response_id="", store=store) for n in range(4)]
    assert len(world.frames) == 4
    assert {frame["previous_response_id"] for frame in world.frames} == {""}
    world.advance(20)
    answers = [world.read(client) for client in clients]
    assert {answer.status for answer in answers} == {400}
    assert {answer.error["code"] for answer in answers} == {"previous_response_not_found"}


def test_ids_up_to_a_bound() -> None:
    world = World()
    for length, status in ((4096, 400), (4097, 400), (4_000_000, 400)):
        answer = world.ask(previous_response_id="x" * length, store=False, stream=False)
        assert answer.status == status
        assert answer.error["param"] == "previous_response_id"
        assert (answer.error["code"] == "invalid_request_body") == (length > 4096)


# ------------------------------------------------------------------ slow clients


def test_slow_head() -> None:
    world = World()
    client = world.client()
    client.send(b"POST /v1/resp")
    for _ in range(9):
        world.advance(1)
        client.send(b"o")
    assert not client.received
    world.advance(1)
    answer = world.read(client)
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert client.eof
    world.advance(5)
    assert world.endpoint.clients == 0
    world.assert_empty()


def test_slow_head_of_a_later_request() -> None:
    world = World()
    client = world.client()
    client.send(request(TURN) + b"POST /v1/resp")
    world.advance(10)
    assert [answer.status for answer in read_answers(client.take())] == [200, 408]
    assert client.eof
    assert not client.closed  # it may still be sending: a reset could destroy the answer
    world.assert_empty()


def test_slow_body() -> None:
    world = World()
    client = world.client()
    client.send(request(TURN)[:-1])
    for _ in range(59):
        world.advance(1)
        assert not client.received
    world.advance(1)
    assert world.read(client).status == 408
    assert client.eof
    assert world.endpoint.bridge.turns == 0
    world.assert_empty()


def test_idle_client_connections_are_closed() -> None:
    world = World(client_idle=100 * SECOND)
    fresh, used = world.client(), world.client()
    used.send(request(TURN))
    world.advance(10)
    assert fresh.closed
    assert not fresh.received
    world.advance(89)
    assert not used.eof
    world.advance(1)
    assert used.closed
    world.assert_empty()


def test_a_client_sends_more_after_its_refusal() -> None:
    world = World(max_body=1000)
    client = world.client()
    client.send(request({**TURN, "input": "x" * 2000})[:300])
    assert world.read(client).status == 413
    for _ in range(30):
        world.advance(1)
        client.send(b"x" * 100)
        assert not client.closed  # a reset could destroy the answer on its way
    world.advance(2)
    assert client.closed
    world.assert_empty()


def test_a_client_that_sends_for_ever_after_the_refusal() -> None:
    world = World(max_body=1000)
    client = world.client()
    client.send(request({**TURN, "input": "x" * 2000})[:300])
    for _ in range(61):
        world.advance(1)
        client.send(b"x")
    assert client.closed
    world.assert_empty()


# ------------------------------------------------------------------ exchanges in a row


def test_keep_alive() -> None:
    world = World()
    client = world.client()
    previous = None
    for n in range(1, 5):
        client.send(request({**TURN, "previous_response_id": previous, "stream": n % 2 == 0}))
        (answer,) = read_answers(client.take())
        assert answer.text == f"turn {n}: hi"
        previous = answer.response["id"]
    client.half_close()
    world.assert_empty()


def test_pipelining() -> None:
    world = World()
    world.emulator.delta_interval = SECOND
    client = world.client()
    parts = [
        request({**TURN, "stream": True}),
        request(None, method="GET", path="/livez"),
        request(b"nonsense"),
        request(TURN),
    ]
    client.send(b"".join(parts))
    assert len(world.frames) == 1
    world.advance(5)
    world.advance(5)
    answers = read_answers(client.take())
    assert [answer.status for answer in answers] == [200, 200, 400, 200]
    assert answers[0].text == answers[3].text == "turn 1: hi"
    client.half_close()
    world.assert_empty()


def test_connection_close() -> None:
    answer, client = exchange(request(TURN, headers="connection: close\r\n"))
    assert answer.status == 200
    assert client.closed


@pytest.mark.parametrize("stream", [True, False])
def test_http_1_0(stream: bool) -> None:
    data = request({**TURN, "stream": stream}).replace(b"HTTP/1.1", b"HTTP/1.0")
    answer, client = exchange(data)
    assert "transfer-encoding" not in answer.headers
    assert answer.text == "turn 1: hi"
    assert client.closed


def test_expect_continue() -> None:
    world = World()
    client = world.client()
    data = request(TURN, headers="expect: 100-continue\r\n")
    head, _, body = data.partition(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(body)
    assert read_answers(client.take())[0].status == 200


def test_expect_is_not_continued_for_a_refusal() -> None:
    data = request(TURN, path="/nowhere", headers="expect: 100-continue\r\n")
    answer, client = exchange(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    assert answer.status == 404
    assert client.eof


def test_chunked_bodies() -> None:
    payload = json.dumps(TURN).encode()
    head = b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in payload)
    answer, client = exchange(head + chunks + b"0\r\n\r\n")
    assert answer.text == "turn 1: hi"
    assert not client.eof


def test_bytes_after_connection_close_are_ignored() -> None:
    world = World()
    client = world.client()
    client.send(request(TURN, headers="connection: close\r\n") + request(TURN))
    assert world.read(client).status == 200
    assert len(world.frames) == 1


def test_half_closing_before_a_request_is_complete() -> None:
    world = World()
    client = world.client()
    client.send(request(TURN)[:-1])
    client.half_close()
    assert client.closed
    assert not client.received
    world.assert_empty()


def test_a_request_without_a_credential() -> None:
    """The upstream decides whether to refuse it."""
    world = World()
    world.emulator.tokens = frozenset({"right"})
    client = world.client()
    data = request(TURN).replace(b"authorization: Bearer sk-secret-one\r\n", b"")
    client.send(data)
    assert (world.read(client).status, world.read(client).error["code"]) == (401, "invalid_api_key")


# ------------------------------------------------------------------ several turns at once


def test_many_clients_at_once() -> None:
    world = World()
    world.emulator.delta_interval = SECOND
    world.emulator.faults.add(3, Fault(Point.MID_OUTPUT, Silence()))
    clients = [world.start(f"text {n}") for n in range(8)]
    assert world.endpoint.bridge.turns == 8
    world.advance(20)
    for n, client in enumerate(clients):
        answer = world.read(client)
        if n == 2:
            assert not answer.complete
        else:
            assert answer.text == f"turn 1: text {n}"
        client.abort()
    world.assert_empty()
