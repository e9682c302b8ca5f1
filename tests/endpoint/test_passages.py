"""Requests that are passed through to the upstream's HTTP API, in whole endpoints.

What belongs here: which requests are passed, what goes upstream and what comes back, in parts and
with backpressure, and what becomes of one side when the other ends. The upstream answers byte for
byte what a test says; the emulator as upstream is in tests/endpoint/test_resources.py.
"""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore import transport as tp
from bridgecore.config import HttpUrl
from bridgecore.testing.network import ByteClient
from tests.endpoint_world import read_answers, request
from tests.http_upstream import PassingWorld, answered, read

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
NOT_CUT = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


def sent(world: PassingWorld, data: bytes) -> ByteClient:
    client = world.client()
    client.send(data)
    return client


def get(path: str, headers: str = "") -> bytes:
    return request(None, method="GET", path=path, headers=headers)


def upload(framing: str) -> bytes:
    """The head of a request with a body."""
    return request(None, path="/v1/files", headers=framing + "\r\n")


def code(client: ByteClient) -> tuple[int, str]:
    (answer,) = read_answers(bytes(client.received))
    return answer.status, str(answer.error["code"])


# ------------------------------------------------------------------ which requests


@pytest.mark.parametrize(
    ("method", "path", "target"),
    [
        ("GET", "/v1/models", b"/base/models"),
        ("GET", "/models", b"/base/models"),
        ("GET", "/v1/responses/resp_1?include[]=a", b"/base/responses/resp_1?include[]=a"),
        ("DELETE", "/responses/resp_1", b"/base/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel", b"/base/responses/resp_1/cancel"),
        ("POST", "/v1/chat/completions", b"/base/chat/completions"),
        ("PATCH", "/v1/files/a%20b", b"/base/files/a%20b"),
        ("OPTIONS", "/v1/embeddings", b"/base/embeddings"),
    ],
)
def test_other_paths_of_the_api_are_passed(method: str, path: str, target: bytes) -> None:
    world = PassingWorld()
    client = sent(world, request(None, method=method, path=path))
    assert (world.request.method.decode(), world.request.target) == (method, target)
    world.reply(OK)
    assert answered(client) == (
        200,
        {
            b"content-type": b"application/json",
            b"content-length": b"2",
            b"x-request-id": answered(client)[1][b"x-request-id"],
        },
        b"{}",
    )
    assert not client.eof
    assert world.endpoint.upstreams == 0


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/nothing", "/v1", "/v1/", "/v1/chat", "/v1/modelsx", "/v1/v1/models", "/v2/models"),
        *("/v1/models/", "/v1//models", "//v1/models", "/v1/models//a", "/v1/models/../files"),
        *("/v1/models/.", "/v1/models/%2e%2e/x", "/v1/models/.%2E/x", "/v1/models/a%2Fb"),
        *(
            "/v1/models/a%5cb",
            "/v1/models/a\\b",
            "/v1/models/%00",
            "/v1/models/%252e",
            "/v1/models/%",
        ),
        *("/v1/models/%0d%0a", "/v1/models/a%7f", "/v1/models/%zz", "/v1/organization/users"),
    ],
)
def test_paths_that_are_not_listed_or_could_be_read_in_two_ways_are_refused(path: str) -> None:
    world = PassingWorld()
    client = sent(world, get(path))
    assert code(client) == (404, "not_found")
    assert not client.eof
    assert world.api.latest == 0


def test_trace_is_not_passed() -> None:
    world = PassingWorld()
    assert code(sent(world, request(None, method="TRACE", path="/v1/models"))) == (404, "not_found")


def test_nothing_is_passed_if_no_path_is_listed() -> None:
    world = PassingWorld(pass_through=())
    assert code(sent(world, get("/v1/models"))) == (404, "not_found")
    assert world.api.latest == 0


def test_turns_are_served_without_the_version_in_their_path() -> None:
    world = PassingWorld()
    client = sent(world, request({"model": "m", "input": "hi"}, path="/responses"))
    (answer,) = read_answers(bytes(client.received))
    assert answer.text == "turn 1: hi"
    assert world.api.latest == 0


def test_the_query_of_the_base_goes_with_each_request() -> None:
    base = HttpUrl.parse("http://api/openai/?api-version=1&x=2")
    world = PassingWorld(upstream_http=base)
    sent(world, get("/v1/models"))
    assert world.request.target == b"/openai/models?api-version=1&x=2"
    sent(world, get("/v1/models?api-version=3"))
    assert world.request.target == b"/openai/models?x=2&api-version=3"


# ------------------------------------------------------------------ headers


def test_what_goes_upstream_and_what_comes_back() -> None:
    world = PassingWorld()
    headers = (
        "cookie: a=b\r\nx-custom: 1\r\nopenai-beta: assistants=v2\r\naccept: a/b\r\n"
        "accept-encoding: gzip\r\nidempotency-key: k\r\nif-none-match: e\r\nrange: bytes=0-1\r\n"
        "x-forwarded-for: 10.0.0.1\r\nconnection: keep-alive, if-none-match\r\nte: trailers\r\n"
        "x-request-id: mine\r\nupgrade: h2c\r\n"
    )
    client = sent(world, get("/v1/files/f/content", headers))
    assert dict(world.request.headers) == {
        b"host": b"api",
        b"authorization": b"Bearer sk-secret-one",
        b"openai-beta": b"assistants=v2",
        b"accept": b"a/b",
        b"accept-encoding": b"gzip",
        b"idempotency-key": b"k",
        b"range": b"bytes=0-1",
        b"connection": b"close",
    }
    world.reply(
        b"HTTP/1.1 206 Partial Content\r\nset-cookie: a=b\r\netag: e\r\nx-hop: 1\r\nvary: a\r\n"
        b"content-range: bytes 0-1/9\r\nconnection: close, x-hop\r\nx-request-id: theirs\r\n"
        b"strict-transport-security: max-age=1\r\nvary: b\r\nkeep-alive: timeout=5\r\n"
        b"openai-processing-ms: 7\r\ncontent-length: 2\r\n\r\nab"
    )
    head = read(client)[0]
    assert isinstance(head, h11.Response)
    assert sorted(head.headers) == [
        (b"content-length", b"2"),
        (b"content-range", b"bytes 0-1/9"),
        (b"etag", b"e"),
        (b"openai-processing-ms", b"7"),
        (b"vary", b"a"),
        (b"vary", b"b"),
        (b"x-request-id", b"mine"),
    ]
    assert answered(client)[2] == b"ab"
    (log,) = [log for log in world.net.logs if log.event == "passage.completed"]
    assert log.fields == {
        "request_id": "mine",
        "method": "GET",
        "route": "files",
        "status": 206,
        "bytes_sent": 0,
        "bytes_received": 2,
        "upstream_request_id": "theirs",
    }


# ------------------------------------------------------------------ bodies of requests


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_goes_upstream_as_it_comes_however_large(chunked: bool) -> None:
    world = PassingWorld(max_body=10)
    client = sent(
        world, upload("transfer-encoding: chunked" if chunked else "content-length: 300000")
    )
    for number in range(3):
        part = b"%d" % number * 100_000
        client.send(b"186a0\r\n%b\r\n" % part if chunked else part)
        body = world.api.received[1].partition(b"\r\n\r\n")[2]
        assert part in body  # at once
    client.send(b"0\r\nx-trailer: 1\r\n\r\n" if chunked else b"")
    head, whole = world.whole_request()
    assert whole == b"0" * 100_000 + b"1" * 100_000 + b"2" * 100_000
    name = b"transfer-encoding" if chunked else b"content-length"
    assert dict(head.headers)[name] == (b"chunked" if chunked else b"300000")
    world.reply(OK)
    assert answered(client)[0] == 200
    client.take()
    client.send(get("/livez"))  # the connection goes on
    assert answered(client)[0] == 200


def test_an_upstream_that_takes_nothing_stops_the_client() -> None:
    world = PassingWorld()
    client = sent(world, upload("content-length: 50000000"))
    world.net.carry_out(world.api, [tp.PauseReading(1)])
    for _ in range(500):
        client.send(b"x" * 100_000)
    (to_api,) = world.net.ends(world.api)
    assert to_api.unread < 1_000_000
    world.advance(100)  # longer than body_timeout: it is not the client that is slow
    world.net.carry_out(world.api, [tp.ResumeReading(1)])
    assert world.whole_request()[1] == b"x" * 50_000_000
    world.reply(OK)
    assert answered(client)[0] == 200


def test_a_body_is_not_read_before_the_upstream_is_connected() -> None:
    world = PassingWorld()
    world.net.swallow_connects("api", 80)
    client = sent(world, upload("content-length: 1000000") + b"x" * 1000)
    client.send(b"x" * 999_000)
    assert max(end.unread for end in world.net.ends(world.endpoint)) == 999_000
    world.advance(10)
    assert code(client) == (502, "upstream_unavailable")
    assert client.eof


def test_an_upload_that_does_not_go_on_is_refused() -> None:
    world = PassingWorld()
    client = sent(world, upload("content-length: 9"))
    for _ in range(3):
        world.advance(59)
        client.send(b"x")  # the time is that from one part to the next
    world.advance(60)
    assert code(client) == (408, "request_timeout")
    assert world.api.ended[1] == "reset"
    client.half_close()
    world.assert_empty()


def test_the_time_for_the_body_is_over_with_the_body() -> None:
    world = PassingWorld()
    client = sent(world, upload("content-length: 2"))
    client.send(b"x")
    client.send(b"y")
    world.advance(1000)
    world.reply(OK)
    assert answered(client)[0] == 200


def test_a_malformed_upload_is_refused_and_not_passed_on_as_complete() -> None:
    world = PassingWorld()
    client = sent(world, upload("transfer-encoding: chunked") + b"3\r\nabc\r\n")
    client.send(b"x\r\n")
    assert code(client) == (400, "malformed_request")
    assert world.api.ended[1] == "reset"
    assert world.whole_request()[1] is None


def test_a_client_that_waits_for_100_gets_it_from_the_upstream() -> None:
    world = PassingWorld()
    client = sent(world, upload("content-length: 3\r\nexpect: 100-continue"))
    assert dict(world.request.headers)[b"expect"] == b"100-continue"
    assert client.take() == b""
    world.reply(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"abc")
    assert world.whole_request()[1] == b"abc"
    world.reply(OK)
    assert answered(client)[0] == 200


def test_a_client_that_waits_for_100_can_be_refused() -> None:
    world = PassingWorld()
    client = sent(world, upload("content-length: 3\r\nexpect: 100-continue"))
    world.reply(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
    assert answered(client)[::2] == (413, b"no")
    assert client.eof  # whether the body follows cannot be told
    client.half_close()
    world.assert_empty()


def test_the_upstream_may_answer_while_the_body_is_sent() -> None:
    world = PassingWorld()
    client = sent(world, upload("content-length: 3") + b"a")
    world.reply(NOT_CUT[:-5])
    assert client.received.endswith(b"\r\n3\r\nabc\r\n")
    client.send(b"bc")
    assert world.whole_request()[1] == b"abc"
    world.reply(NOT_CUT[-5:])
    assert answered(client)[::2] == (200, b"abc")
    assert not client.eof


def test_the_upstream_may_answer_without_reading_the_body() -> None:
    world = PassingWorld()
    client = sent(world, upload("content-length: 3") + b"a")
    world.reply(NOT_CUT)
    assert answered(client)[::2] == (200, b"abc")
    assert client.eof
    assert world.api.ended[1] == "reset"


# ------------------------------------------------------------------ answers


def test_interim_answers_are_passed_on() -> None:
    world = PassingWorld()
    client = sent(world, get("/v1/models"))
    world.reply(b"HTTP/1.1 100 Continue\r\n\r\n")  # not asked for
    assert client.take() == b""
    world.reply(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\nset-cookie: b\r\n\r\n")
    assert client.take() == b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"
    world.reply(OK)
    assert answered(client)[0] == 200


def test_a_change_of_protocol_is_not_passed_on() -> None:
    world = PassingWorld()
    client = sent(world, get("/v1/models", "upgrade: websocket\r\nconnection: upgrade\r\n"))
    world.reply(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n")
    assert code(client) == (502, "upstream_unavailable")


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"200 OK\r\ncontent-length: 70"),
        ("HEAD", b"200 OK\r\ntransfer-encoding: chunked"),
        ("DELETE", b"204 No Content"),
        ("GET", b"304 Not Modified\r\netag: e\r\ncontent-length: 70"),
    ],
)
def test_answers_without_a_body(method: str, head: bytes) -> None:
    world = PassingWorld()
    client = sent(world, request(None, method=method, path="/v1/files/f"))
    world.reply(b"HTTP/1.1 %b\r\n\r\n" % head)
    status, headers, body = answered(client, method.encode())
    assert (b"%d" % status, body) == (head[:3], b"")
    if method == "HEAD" and b"70" in head:
        assert headers[b"content-length"] == b"70"
    client.take()
    client.send(get("/livez"))  # the next answer begins where this one ends
    assert answered(client)[0] == 200


def test_events_of_a_stream_are_passed_on_as_they_come() -> None:
    world = PassingWorld()
    client = sent(world, request({"stream": True}, path="/v1/chat/completions"))
    world.reply(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    assert b"text/event-stream" in client.take()
    for number in range(3):
        world.reply(b"b\r\ndata: %d\r\n\r\n\r\n" % number)
        assert client.take() == b"b\r\ndata: %d\r\n\r\n\r\n" % number
        world.advance(1000)  # less than idle_timeout
    world.reply(b"0\r\n\r\n")
    assert client.take() == b"0\r\n\r\n"


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
def test_an_answer_without_a_length_is_chunked(version: bytes) -> None:
    world = PassingWorld()
    client = sent(world, get("/v1/models"))
    world.reply(version + b" 200 OK\r\n\r\nabc")
    assert client.received.endswith(b"\r\n\r\n3\r\nabc\r\n")
    world.reply(b"", then="close")
    assert answered(client)[::2] == (200, b"abc")


def test_a_client_of_http_1_0_gets_an_answer_that_ends_with_the_connection() -> None:
    world = PassingWorld()
    client = sent(world, b"GET /v1/models HTTP/1.0\r\n\r\n")
    world.reply(b"HTTP/1.1 103 Early Hints\r\n\r\n" + NOT_CUT)
    assert answered(client)[::2] == (200, b"abc")
    assert client.eof


def test_a_client_that_does_not_read_stops_the_upstream() -> None:
    world = PassingWorld()
    client = sent(world, get("/v1/files/f/content"))
    client.pause()
    world.reply(b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n")
    for _ in range(500):
        world.reply(b"x" * 100_000)
    at_client = sum(end.peer.unread for end in world.net.ends(world.endpoint) if end.peer)
    assert at_client < 1_000_000
    client.resume()
    assert answered(client)[::2] == (200, b"x" * 50_000_000)


def test_a_client_that_reads_nothing_is_given_up() -> None:
    world = PassingWorld()
    client = sent(world, get("/v1/files/f/content"))
    client.pause()
    world.reply(b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n" + b"x" * 1_000_000)
    world.advance(1200)
    assert world.api.ended[1] == "reset"
    assert world.endpoint.clients == 0


# ------------------------------------------------------------------ failures


def test_an_upstream_that_cannot_be_reached() -> None:
    world = PassingWorld(upstream_http=HttpUrl.parse("http://nowhere/v1"))
    client = sent(world, get("/v1/models"))
    (answer,) = read_answers(bytes(client.received))
    assert (answer.status, answer.error["code"]) == (502, "upstream_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert "nothing of it was sent" in str(answer.error["message"])
    assert not client.eof
    client.take()
    client.send(get("/livez"))
    assert answered(client)[0] == 200


@pytest.mark.parametrize("then", ["close", "abort"])
@pytest.mark.parametrize("whole", [OK, NOT_CUT, b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"])
def test_an_answer_that_is_cut_off_never_looks_complete(whole: bytes, then: str) -> None:
    head = whole.index(b"\r\n\r\n") + 4
    for cut in range(len(whole)):
        world = PassingWorld()
        client = sent(world, get("/v1/models"))
        world.reply(whole[:cut], then=then)
        if cut < head:
            assert code(client) == (502, "upstream_unavailable")
            assert not client.eof
        else:
            assert client.closed
            with pytest.raises(h11.RemoteProtocolError):
                read(client, ended=True)
        client.abort()
        world.assert_empty()


def test_a_body_without_a_length_that_is_reset_never_looks_complete() -> None:
    world = PassingWorld()
    client = sent(world, get("/v1/models"))
    world.reply(b"HTTP/1.1 200 OK\r\n\r\nabc", then="abort")
    assert client.closed
    with pytest.raises(h11.RemoteProtocolError):
        read(client, ended=True)


def test_an_upstream_that_does_not_answer_is_given_up() -> None:
    world = PassingWorld()
    client = sent(world, get("/v1/models"))
    world.advance(1199)
    assert client.received == b""
    world.advance(1)
    assert code(client) == (502, "upstream_unavailable")
    assert world.api.ended[1] == "reset"


def test_an_upstream_that_does_not_go_on_is_given_up() -> None:
    world = PassingWorld()
    client = sent(world, get("/v1/models"))
    world.advance(1000)
    world.reply(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")
    world.advance(1199)
    assert not client.eof
    world.advance(1)
    assert client.closed


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"])
@pytest.mark.parametrize("leave", ["abort", "half_close"])
def test_a_client_that_leaves_ends_the_request_to_the_upstream(begun: bytes, leave: str) -> None:
    world = PassingWorld()
    client = sent(world, get("/v1/models"))
    world.reply(begun)
    getattr(client, leave)()
    assert world.api.ended[1] == "reset"
    assert client.closed or leave == "abort"
    world.assert_empty()


def test_a_client_that_leaves_while_the_connection_is_opened() -> None:
    world = PassingWorld()
    world.net.swallow_connects("api", 80)
    client = sent(world, upload("content-length: 9"))
    client.abort()
    world.assert_empty()


def test_without_a_socket_for_the_upstream_the_request_is_refused() -> None:
    world = PassingWorld()
    world.net.limit(world.endpoint, 1)
    assert code(sent(world, get("/v1/models"))) == (503, "bridge_overloaded")


# ------------------------------------------------------------------ several requests


def test_requests_on_one_connection_are_answered_in_order() -> None:
    world = PassingWorld()
    client = sent(world, get("/v1/models") + upload("content-length: 3") + b"abc" + get("/livez"))
    assert world.api.latest == 1
    world.reply(OK)
    assert world.api.latest == 2
    assert world.whole_request()[1] == b"abc"
    world.reply(OK)
    assert bytes(client.received).count(b"HTTP/1.1 200 OK\r\n") == 3


def test_passages_of_several_clients_run_side_by_side() -> None:
    world = PassingWorld()
    clients = [sent(world, get(f"/v1/models/{number}")) for number in range(3)]
    for conn in (2, 3, 1):
        world.net.carry_out(world.api, [tp.Send(conn, OK)])
    assert [answered(client)[0] for client in clients] == [200, 200, 200]


# ------------------------------------------------------------------ the end of the process


def test_a_drain_lets_what_runs_end() -> None:
    world = PassingWorld()
    client = sent(world, upload("content-length: 3") + b"a")
    world.drain()
    assert code(sent(world, get("/v1/models"))) == (503, "server_shutting_down")
    client.send(b"bc")
    world.reply(OK)
    assert answered(client)[0] == 200
    assert client.eof
    world.advance(3)
    assert world.net.stopped == [world.endpoint]


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"])
def test_the_end_of_a_drain_cuts_what_still_runs(begun: bytes) -> None:
    world = PassingWorld()
    client = sent(world, get("/v1/models"))
    world.reply(begun)
    world.drain()
    world.advance(30)
    if begun:
        with pytest.raises(h11.RemoteProtocolError):
            read(client, ended=True)
    else:
        assert code(client) == (503, "server_shutting_down")
    world.advance(3)
    assert world.net.stopped == [world.endpoint]
    assert world.net.open_connections(world.endpoint) == 0


# ------------------------------------------------------------------ any split


@settings(max_examples=60)
@given(data=st.data(), body=st.binary(max_size=40), chunked=st.booleans(), framed=st.booleans())
def test_what_is_passed_does_not_depend_on_how_it_was_split(
    data: st.DataObject, body: bytes, chunked: bool, framed: bool
) -> None:
    def split(text: bytes) -> list[bytes]:
        cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=5).map(sorted))
        places = [0, *cuts, len(text)]
        return [text[a:b] for a, b in pairwise(places) if a < b]

    world = PassingWorld(split=split)
    chunks = b"".join(b"%x\r\n%b\r\n" % (1, body[at : at + 1]) for at in range(len(body)))
    length = "transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"
    client = sent(world, upload(length) + (chunks + b"0\r\n\r\n" if chunked else body))
    assert world.whole_request()[1] == body
    head = b"HTTP/1.1 201 Created\r\n"
    if framed:
        world.reply(head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    else:
        world.reply(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    assert answered(client)[::2] == (201, body)
    client.half_close()
    world.assert_empty()


ANSWERS = [
    OK,
    NOT_CUT,
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n" + b"x" * 200_000,
    b"x" * 100_000,
    b"garbage\r\n\r\n",
]
REQUESTS = [
    get("/v1/models"),
    get("/v1/none"),
    request(None, method="HEAD", path="/v1/models"),
    upload("content-length: 300000") + b"x" * 100_000,
    upload("transfer-encoding: chunked") + b"3\r\nabc\r\n",
    upload("content-length: 3\r\nexpect: 100-continue"),
    b"0\r\n\r\n",
    b"x" * 100_000,
    request({"previous_response_id": "resp_1"}, path="/v1/responses/compact"),
    request({"model": "m", "input": "hi"}),
]


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("new"), st.just(0)),
            st.tuples(st.just("send"), st.integers(0, len(REQUESTS) - 1)),
            st.tuples(st.just("reply"), st.integers(0, len(ANSWERS) - 1)),
            st.tuples(st.sampled_from(["close", "reset"]), st.just(0)),
            st.tuples(st.sampled_from(["pause", "resume", "half_close", "abort"]), st.just(0)),
            st.tuples(st.sampled_from(["api pauses", "api resumes"]), st.just(0)),
            st.tuples(st.just("wait"), st.sampled_from([1, 61, 1201])),
        ),
        max_size=25,
    ),
    st.booleans(),
)
def test_whatever_both_sides_do_nothing_is_left(steps: list[tuple[str, int]], drain: bool) -> None:
    world = PassingWorld()
    clients = [world.client()]
    for what, number in steps:
        conn = world.api.latest
        if what == "new":
            clients.append(world.client())
        elif what == "send":
            clients[-1].send(REQUESTS[number])
        elif what == "wait":
            world.advance(number)
        elif what in ("pause", "resume", "half_close", "abort"):
            getattr(clients[-1], what)()
        elif conn and conn not in world.api.ended:
            if what == "reply":
                world.reply(ANSWERS[number])
            elif what in ("close", "reset"):
                world.reply(b"", then="close" if what == "close" else "abort")
            else:
                effect = tp.PauseReading if what == "api pauses" else tp.ResumeReading
                world.net.carry_out(world.api, [effect(conn)])
        passing = len(world.endpoint._passages)
        assert passing <= len(clients)
    if drain:
        world.drain()
        world.advance(40)
        assert world.net.stopped == [world.endpoint]
        assert world.net.open_connections(world.endpoint) == 0
    else:
        for client in clients:
            client.abort()
        world.assert_empty()
