"""Tests of wire/http.py: one HTTP/1.1 connection of a server; what is accepted, refused, answered.

What belongs here: ``wire/http.py`` in bytes alone. Answers are parsed with h11's client, which
shares no code with ours. Which heads are accepted is tested in test_request_heads.py.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.errors import LocalProtocolError
from bridgecore.wire.codings import BodyDecoder
from bridgecore.wire.http import (
    BadRequest,
    BodyRefused,
    HttpEvent,
    HttpLimits,
    HttpPhase,
    HttpServer,
    RequestBody,
)
from bridgecore.wire.request_heads import RequestHead
from tests.http_input import (
    CHUNKED,
    GET,
    LIMITS,
    drain,
    feed,
    one_by_one,
    phase_of,
    post,
    refused,
    served,
    with_fields,
)


def read_answer(data: bytes, method: bytes = b"GET") -> tuple[h11.Response, bytes, type[object]]:
    """The answer as an h11 client parses it: its head, its body, and the state of the
    connection."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    if event is h11.NEED_DATA:  # a body that ends with the connection
        client.receive_data(b"")
        event = client.next_event()
    assert isinstance(event, h11.EndOfMessage)
    return head, body, client.their_state


# ---------------------------------------------------------------------- lawful requests


def test_a_request_without_a_body() -> None:
    head, body = served(b"GET /v1/x?q=1?2 HTTP/1.1\r\nHOST: a:8080\r\nX-Y:\t b  c \r\n\r\n")
    assert head == RequestHead(
        method=b"GET",
        path="/v1/x",
        query=b"q=1?2",
        headers=[(b"host", b"a:8080"), (b"x-y", b"b  c")],
        content_length=None,
        chunked=False,
        expects_continue=False,
    )
    assert not head.has_body
    assert body == b""


def test_a_request_with_a_length() -> None:
    head, body = served(post(b"{}\r\n\0"))
    assert (head.path, head.query) == ("/v1/responses", b"")
    assert head.content_length == 5
    assert head.has_body
    assert body == b"{}\r\n\0"


def test_a_length_of_zero_is_no_body() -> None:
    head, body = served(post(b""))
    assert head.content_length == 0
    assert not head.has_body
    assert body == b""


def test_a_chunked_request() -> None:
    wire = CHUNKED + b"5\r\nhello\r\n006;a=b\r\n world\r\nA\r\n0123456789\r\n0\r\n\r\n"
    head, body = served(wire)
    assert head.content_length is None
    assert head.chunked
    assert head.has_body
    assert body == b"hello world0123456789"


@pytest.mark.parametrize(
    "framing",
    [
        b'1 ; a ; b = "c\\" d" ;e=f\r\nx\r\n0\r\n\r\n',
        b"1\r\nx\r\n0;last\r\n\r\n",
        b"1\r\nx\r\n0\r\nX-Sum: abc\r\nHost: evil\r\nContent-Length: 7\r\n\r\n",
    ],
)
def test_chunk_extensions_and_trailers_are_dropped(framing: bytes) -> None:
    head, body = served(CHUNKED + framing)
    assert body == b"x"
    assert head.headers == [(b"host", b"a"), (b"transfer-encoding", b"chunked")]


# ---------------------------------------------------------------------- refusals


MALFORMED_CHUNKS: dict[str, tuple[bytes, str]] = {
    "no size": (b"\r\n", "size in hexadecimal"),
    "not hexadecimal": (b"g\r\n", "size in hexadecimal"),
    "prefixed": (b"0x5\r\nhello\r\n", "size in hexadecimal"),
    "signed": (b"+5\r\nhello\r\n", "size in hexadecimal"),
    "negative": (b"-1\r\n", "size in hexadecimal"),
    "underscore": (b"1_0\r\n", "size in hexadecimal"),
    "space before": (b" 5\r\nhello\r\n", "size in hexadecimal"),
    "space after": (b"5 \r\nhello\r\n", "size in hexadecimal"),
    "17 digits": (b"0" * 16 + b"5\r\nhello\r\n", "size in hexadecimal"),
    "size ends with LF": (b"5\nhello\r\n", "bare LF"),
    "size ends with CR": (b"5\rhello\r\n", "size in hexadecimal"),
    "LF in extension": (b"5;a\n\r\nhello\r\n", "bare LF"),
    "data longer": (b"4\r\nhello\r\n", "where its size says"),
    "data ends with LF": (b"5\r\nhello\n0\r\n\r\n", "where its size says"),
    "data ends with CR": (b"5\r\nhello\r0\r\n\r\n", "where its size says"),
    "empty extension": (b"5;\r\nhello\r\n", "size in hexadecimal"),
    "extension not a token": (b"5;a b\r\nhello\r\n", "size in hexadecimal"),
    "extension without value": (b"5;a=\r\nhello\r\n", "size in hexadecimal"),
    "extension unquoted": (b'5;a="b\r\nhello\r\n', "size in hexadecimal"),
    "extension with NUL": (b'5;a="\0"\r\nhello\r\n', "size in hexadecimal"),
    "long extension": (b"5;" + b"a" * 1024, "longer than 1024"),
    "long extension that ends": (b"5;" + b"a" * 1023 + b"\r\n", "longer than 1024"),
    "endless size line": (b"0" * 1026, "longer than 1024"),
    "many extensions": ((b"1;" + b"a" * 1000 + b"\r\nx\r\n") * 5, "exceed 4096"),
    "last chunk ends with LF": (b"0\n\r\n", "bare LF"),
    "trailer section ends with LF": (b"0\r\n\n", "bare LF"),
    "trailer ends with LF": (b"0\r\nA: b\n\r\n", "bare LF"),
    "trailer without colon": (b"0\r\nab\r\n\r\n", "trailer field is malformed"),
    "trailer folded": (b"0\r\nA: b\r\n c\r\n\r\n", "trailer field is malformed"),
    "trailer with CR": (b"0\r\nA: b\rc\r\n\r\n", "trailer field is malformed"),
    "trailer with space before colon": (b"0\r\nA : b\r\n\r\n", "trailer field is malformed"),
    "long trailer": (b"0\r\nA: " + b"a" * 1023, "longer than 1024"),
    "many trailers": (b"0\r\n" + (b"A: " + b"a" * 1000 + b"\r\n") * 5, "exceed 4096"),
    "a request where a trailer is": (b"0\r\n" + GET, "trailer field is malformed"),
}


@pytest.mark.parametrize(("data", "why"), MALFORMED_CHUNKS.values(), ids=MALFORMED_CHUNKS.keys())
def test_malformed_chunk_framing_is_refused(data: bytes, why: str) -> None:
    refusal = refused(CHUNKED + data)
    assert (refusal.status, refusal.code) == (400, "malformed_request")
    assert why in refusal.message


def test_a_refusal_comes_as_soon_as_it_is_certain() -> None:
    # Nothing would ever follow.
    assert isinstance(feed(HttpServer(LIMITS), b"GET / HTTP/1.1\n")[0], BadRequest)
    assert isinstance(feed(HttpServer(LIMITS), b"\x16")[0], BadRequest)
    _, refusal = feed(HttpServer(LIMITS), CHUNKED + b"5\n")
    assert isinstance(refusal, BadRequest)


# ---------------------------------------------------------------------- limits


def test_empty_lines_before_a_request_are_limited() -> None:
    assert len(feed(HttpServer(LIMITS), *one_by_one(b"\r\n" * 8 + GET))) == 2


def test_a_body_may_be_as_large_as_the_limit() -> None:
    body = b"x" * LIMITS.max_body
    assert served(post(body))[1] == body
    assert served(CHUNKED + b"3E7\r\n" + body[1:] + b"\r\n1\r\nx\r\n0\r\n\r\n")[1] == body


@pytest.mark.parametrize(
    "framing", [b"3E9\r\n", b"ffffffffffffffff\r\n", b"3E8\r\n" + b"x" * 1000 + b"\r\n1\r\n"]
)
def test_a_larger_chunked_body_is_refused_at_the_chunk_that_exceeds(framing: bytes) -> None:
    refusal = refused(CHUNKED + framing)
    assert (refusal.status, refusal.code) == (413, "body_too_large")


def test_chunk_framing_lines_may_be_as_long_as_the_limit() -> None:
    extension = b"1;" + b"a" * 1022 + b"\r\nx\r\n"
    trailer = b"A: " + b"b" * 1021 + b"\r\n"
    data = CHUNKED + extension + b"0\r\n" + trailer + b"\r\n"
    assert served(data)[1] == b"x"
    server = HttpServer(LIMITS)
    assert feed(server, *one_by_one(data))[-1] == RequestBody(b"x")
    assert server.buffered == 0


def test_the_limit_of_the_receive_buffer() -> None:
    allowed = LIMITS.max_header + LIMITS.max_body
    within, beyond = HttpServer(LIMITS), HttpServer(LIMITS)
    feed(within, GET, b"x" * allowed)
    assert within.buffered == allowed
    assert not within.must_close

    feed(beyond, GET, b"x" * allowed, b"x")
    assert beyond.buffered == 0
    assert beyond.must_close
    head, body, _ = read_answer(beyond.respond(200, [], b"first"))
    assert (b"connection", b"close") in head.headers
    assert body == b"first"
    assert phase_of(beyond) is HttpPhase.CLOSED


# ---------------------------------------------------------------------- any split

BODIES = st.binary(max_size=60)


EXTENSIONS = [b"", b";a", b';a="b;\\"c"', b";a;b=c"]


@st.composite
def requests(draw: st.DrawFn, extensions: list[bytes]) -> bytes:
    """A valid request, in bytes."""
    name = st.text("abcXYZ019-_", min_size=1, max_size=8).map(lambda s: "x-" + s)
    value = st.text(st.sampled_from("ab \t:,;=\"'/é"), max_size=12)
    fields = [f"{n}: {v}".encode() for n, v in draw(st.lists(st.tuples(name, value), max_size=4))]
    target = b"/" + draw(st.text("ab/?%2&=", max_size=12)).encode()
    method = draw(st.sampled_from([b"GET", b"HEAD", b"POST", b"DELETE"]))
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    wire = b""
    if framing == "length":
        wire = draw(BODIES)
        fields.append(b"Content-Length: %d" % len(wire))
    elif framing == "chunked":
        fields.append(b"Transfer-Encoding: chunked")
        extension = st.sampled_from(extensions)
        for piece in draw(st.lists(BODIES.filter(bool), max_size=4)):
            wire += b"%x%b\r\n%b\r\n" % (len(piece), draw(extension), piece)
        wire += b"0\r\n" + draw(st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC:\r\n"])) + b"\r\n"
    fields.insert(draw(st.integers(0, len(fields))), b"Host: a")
    lines = b"\r\n".join([method + b" " + target + b" HTTP/1.1", *fields])
    return draw(st.sampled_from([b"", b"\r\n"])) + lines + b"\r\n\r\n" + wire


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({p % (len(data) + 1) for p in places}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@settings(max_examples=150)
@given(requests([*EXTENSIONS, b" ; a = b"]), st.lists(st.integers(0, 10_000), max_size=8))
def test_events_do_not_depend_on_how_input_is_cut(data: bytes, places: list[int]) -> None:
    whole = feed(HttpServer(LIMITS), data)
    assert [type(event) for event in whole] == [RequestHead, RequestBody]
    assert feed(HttpServer(LIMITS), *cut(data, places)) == whole
    assert feed(HttpServer(LIMITS), *one_by_one(data)) == whole


# All but white space before an extension, which h11 refuses and RFC 9112 permits.
@settings(max_examples=150)
@given(requests(EXTENSIONS))
def test_h11_reads_lawful_requests_alike(data: bytes) -> None:
    head, body = served(data)
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(data.removeprefix(b"\r\n"))
    request = peer.next_event()
    assert isinstance(request, h11.Request)
    theirs = b""
    while isinstance(event := peer.next_event(), h11.Data):
        theirs += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert theirs == body
    assert request.method == head.method
    assert request.target.partition(b"?") == (
        head.path.encode(),
        b"?" if b"?" in request.target else b"",
        head.query,
    )
    assert list(request.headers) == head.headers


@settings(max_examples=300)
@given(
    requests([*EXTENSIONS, b" ; a = b"]),
    st.lists(
        st.tuples(
            st.integers(0, 10_000),
            st.integers(0, 2),
            st.sampled_from([b"", b"\n", b"\r", b"\r\n", b" ", b"\0", b":", b"0", b"-", b"\xff"]),
        ),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.integers(0, 10_000), max_size=4),
)
def test_damaged_requests_fail_alike_in_any_split(
    data: bytes, damage: list[tuple[int, int, bytes]], places: list[int]
) -> None:
    for place, gone, instead in damage:
        at = place % len(data)
        data = data[:at] + instead + data[at + gone :]
    whole = feed(HttpServer(LIMITS), data)
    assert feed(HttpServer(LIMITS), *cut(data, places)) == whole
    assert feed(HttpServer(LIMITS), *one_by_one(data)) == whole


@pytest.mark.parametrize(
    "data", [post(b"hello"), CHUNKED + b"5;x\r\nhello\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n"]
)
def test_every_single_cut(data: bytes) -> None:
    whole = feed(HttpServer(LIMITS), data)
    assert len(whole) == 2
    for at in range(len(data) + 1):
        assert feed(HttpServer(LIMITS), data[:at], data[at:]) == whole


# ---------------------------------------------------------------------- phases and order


def test_the_phases_of_an_exchange() -> None:
    server = HttpServer(LIMITS)
    data = post(b"hello")
    head_size = len(data) - 5
    assert phase_of(server) is HttpPhase.IDLE
    feed(server, b"\r\n")
    assert phase_of(server) is HttpPhase.IDLE
    feed(server, data[:1])
    assert phase_of(server) is HttpPhase.HEAD
    feed(server, data[1 : head_size - 1])
    assert phase_of(server) is HttpPhase.HEAD
    feed(server, data[head_size - 1 : head_size])
    assert phase_of(server) is HttpPhase.BODY
    feed(server, data[head_size:-1])
    assert phase_of(server) is HttpPhase.BODY
    assert server.buffered == 4
    feed(server, data[-1:])
    assert phase_of(server) is HttpPhase.ANSWERING
    assert server.buffered == 0
    server.respond(200, [], b"")
    assert phase_of(server) is HttpPhase.ANSWERING
    server.start_next()
    assert phase_of(server) is HttpPhase.IDLE


def test_an_answer_is_done_when_its_last_byte_was_handed_out() -> None:
    whole, streamed = HttpServer(LIMITS), HttpServer(LIMITS)
    feed(whole, GET)
    feed(streamed, GET)
    states = [whole.answer_done, streamed.answer_done]
    whole.respond(200, [], b"")
    streamed.start_stream([])
    states += [whole.answer_done, streamed.answer_done]
    streamed.end_stream()
    states.append(streamed.answer_done)
    assert states == [False, False, True, False, True]


def test_connections_are_kept() -> None:
    server = HttpServer(LIMITS)
    for n in range(3):
        assert len(feed(server, post(b"%d" % n))) == 2
        head, body, state = read_answer(server.respond(200, [], b"%d" % n))
        assert body == b"%d" % n
        assert b"connection" not in dict(head.headers)
        assert state is h11.DONE
        assert not server.must_close
        server.start_next()


def test_pipelined_requests_are_held_back() -> None:
    server = HttpServer(LIMITS)
    first = CHUNKED + b"1\r\nx\r\n0\r\n\r\n"
    head, body = feed(server, first + GET + post(b"third")[:-1])
    assert isinstance(head, RequestHead)
    assert head.method == b"POST"
    assert body == RequestBody(b"x")
    assert feed(server, b"d") == []

    server.respond(200, [], b"")
    assert server.next_event() is None
    server.start_next()
    assert phase_of(server) is HttpPhase.HEAD
    head, body = drain(server)
    assert isinstance(head, RequestHead)
    assert head.path == "/livez"
    assert body == RequestBody(b"")

    server.start_stream([])
    server.end_stream()
    assert server.next_event() is None
    server.start_next()
    head, body = drain(server)
    assert isinstance(head, RequestHead)
    assert body == RequestBody(b"third")
    assert server.buffered == 0


def test_a_malformed_request_behind_a_lawful_one_is_refused_in_its_turn() -> None:
    server = HttpServer(LIMITS)
    assert len(feed(server, GET + b"GET / HTTP/1.1\nHost: a\n\n")) == 2
    assert not server.must_close
    server.respond(200, [], b"")
    server.start_next()
    (refusal,) = drain(server)
    assert isinstance(refusal, BadRequest)


@pytest.mark.parametrize("connection", [b"close", b"Close", b"TE, close", b"keep-alive,close"])
def test_the_client_may_ask_to_close(connection: bytes) -> None:
    server = HttpServer(LIMITS)
    data = with_fields(b"Connection: " + connection, line=b"GET / HTTP/1.1")
    assert len(feed(server, data + GET)) == 2
    assert server.must_close
    assert phase_of(server) is HttpPhase.ANSWERING
    head, _, state = read_answer(server.respond(200, [], b""))
    assert (b"connection", b"close") in head.headers
    assert state is h11.MUST_CLOSE
    assert phase_of(server) is HttpPhase.CLOSED
    assert feed(server, GET) == []
    assert server.buffered == 0


def test_connection_fields_are_one_list() -> None:
    server = HttpServer(LIMITS)
    feed(server, with_fields(b"Connection: keep-alive", b"Connection: close"))
    assert server.must_close


def test_the_caller_may_ask_to_close() -> None:
    server = HttpServer(LIMITS)
    feed(server, GET + GET)
    answer = server.respond(503, [(b"Retry-After", b"1")], b"", close=True)
    head, _, _ = read_answer(answer)
    assert list(head.headers).count((b"connection", b"close")) == 1
    assert server.must_close
    assert phase_of(server) is HttpPhase.CLOSED
    assert server.buffered == 0


@pytest.mark.parametrize("connection", [b"", b"Connection: keep-alive\r\n"])
def test_http_1_0_gets_one_answer(connection: bytes) -> None:
    server = HttpServer(LIMITS)
    feed(server, b"POST / HTTP/1.0\r\n" + connection + b"Content-Length: 2\r\n\r\nhi")
    assert server.must_close
    head, body, _ = read_answer(server.respond(200, [], b"ho"))
    assert body == b"ho"
    assert (b"connection", b"close") in head.headers
    assert phase_of(server) is HttpPhase.CLOSED


# ---------------------------------------------------------------------- 100-continue


def expecting(body: bytes = b"hello", value: bytes = b"100-continue") -> tuple[bytes, bytes]:
    data = post(body, b"Expect: " + value)
    return data[: len(data) - len(body)], body


@pytest.mark.parametrize("value", [b"100-continue", b"100-Continue"])
def test_continue_is_sent_once(value: bytes) -> None:
    head_bytes, body_bytes = expecting(value=value)
    server = HttpServer(LIMITS)
    (head,) = feed(server, head_bytes)
    assert isinstance(head, RequestHead)
    assert head.expects_continue
    interim = server.wants_body()
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert server.wants_body() == b""
    assert feed(server, body_bytes) == [RequestBody(b"hello")]

    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.receive_data(interim + server.respond(200, [], b"done"))
    assert isinstance(client.next_event(), h11.InformationalResponse)
    assert isinstance(client.next_event(), h11.Response)


def test_continue_is_sent_for_a_chunked_body() -> None:
    server = HttpServer(LIMITS)
    feed(server, CHUNKED[:-2] + b"Expect: 100-continue\r\n\r\n")
    assert server.wants_body() != b""


@pytest.mark.parametrize(
    "data",
    [
        b"".join(expecting()),
        b"".join(expecting())[:-1],
        b"".join(expecting(b"")),
        post(b"hello")[:-5],
        post(b"hello", b"Expect: 200-maybe")[:-5],
        CHUNKED[:-2] + b"Expect: 100-continue\r\n\r\n5",
        CHUNKED[:-2] + b"Expect: 100-continue\r\n\r\n5\r\n",
        CHUNKED[:-2] + b"Expect: 100-continue\r\n\r\n\n",
        expecting()[0].replace(b"HTTP/1.1", b"HTTP/1.0"),
        with_fields(b"Expect: 100-continue", line=b"GET / HTTP/1.1"),
        b"",
    ],
)
def test_continue_is_sent_only_if_expected(data: bytes) -> None:
    server = HttpServer(LIMITS)
    feed(server, data)
    assert server.wants_body() == b""


def test_continue_is_not_owed_to_the_next_request() -> None:
    server = HttpServer(LIMITS)
    feed(server, b"".join(expecting()))
    server.respond(200, [], b"")
    server.start_next()
    feed(server, post(b"hello")[:-5])
    assert server.wants_body() == b""


def test_continue_is_not_sent_after_the_answer() -> None:
    server = HttpServer(LIMITS)
    feed(server, expecting()[0])
    server.respond(413, [], b"")
    assert server.wants_body() == b""
    assert server.must_close


# ---------------------------------------------------------------------- answers


def test_a_whole_answer() -> None:
    server = HttpServer(LIMITS)
    feed(server, GET)
    answer = server.respond(404, [(b"content-type", b"application/json")], b"{}")
    assert answer == (
        b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    )


def test_a_status_without_a_name() -> None:
    server = HttpServer(LIMITS)
    feed(server, GET)
    head, _, _ = read_answer(server.respond(599, [], b""))
    assert head.status_code == 599


@pytest.mark.parametrize("status", [204, 304])
def test_answers_that_have_no_body(status: int) -> None:
    server = HttpServer(LIMITS)
    feed(server, GET)
    with pytest.raises(LocalProtocolError, match="cannot have a body"):
        server.respond(status, [], b"x")
    answer = server.respond(status, [], b"")
    assert b"content-length" not in answer.lower()
    assert answer.endswith(b"\r\n\r\n")
    assert read_answer(answer)[2] is h11.DONE


def test_head_is_answered_without_the_body() -> None:
    server = HttpServer(LIMITS)
    feed(server, GET.replace(b"GET", b"HEAD"))
    answer = server.respond(200, [], b"hello")
    assert b"content-length: 5\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")
    assert not server.must_close
    server.start_next()
    feed(server, GET)
    assert server.respond(200, [], b"hello").endswith(b"\r\n\r\nhello")


def test_a_refused_head_request_is_answered_without_the_body() -> None:
    server = HttpServer(LIMITS)
    feed(server, b"HEAD * HTTP/1.1\r\nHost: a\r\n\r\n")
    assert server.respond(400, [], b"hello", close=True).endswith(b"\r\n\r\n")


def test_a_stream_of_head_is_only_a_head() -> None:
    server = HttpServer(LIMITS)
    feed(server, GET.replace(b"GET", b"HEAD"))
    answer = server.start_stream([]) + server.stream(b"x") + server.end_stream()
    assert b"transfer-encoding: chunked" in answer.lower()
    assert answer.endswith(b"\r\n\r\n")
    assert read_answer(answer, b"HEAD")[1] == b""
    assert not server.must_close


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_a_stream_is_read_back_by_a_client(parts: list[bytes]) -> None:
    server = HttpServer(LIMITS)
    feed(server, post(b"{}"))
    wire = server.start_stream([(b"content-type", b"text/event-stream")])
    for part in parts:
        framed = server.stream(part)
        assert bool(framed) == bool(part)
        wire += framed
        assert not server.answer_done
    wire += server.end_stream()
    assert server.answer_done
    head, body, state = read_answer(wire)
    assert head.status_code == 200
    assert head.reason == b"OK"
    assert list(head.headers) == [
        (b"content-type", b"text/event-stream"),
        (b"transfer-encoding", b"chunked"),
    ]
    assert body == b"".join(parts)
    assert state is h11.DONE
    server.start_next()
    assert len(feed(server, GET)) == 2


def test_large_parts_are_framed_with_their_size_in_hexadecimal() -> None:
    server = HttpServer(LIMITS)
    feed(server, GET)
    server.start_stream([])
    assert server.stream(b"x" * 300) == b"12c\r\n" + b"x" * 300 + b"\r\n"
    assert server.end_stream() == b"0\r\n\r\n"


def test_a_stream_to_http_1_0_ends_with_the_connection() -> None:
    server = HttpServer(LIMITS)
    feed(server, b"GET / HTTP/1.0\r\n\r\n")
    wire = server.start_stream([])
    assert b"transfer-encoding" not in wire.lower()
    assert server.stream(b"data: 1\n\n") == b"data: 1\n\n"
    wire += b"data: 1\n\n" + server.stream(b"") + server.stream(b"data: 2\n\n")
    assert server.end_stream() == b""
    head, body, _ = read_answer(wire)
    assert (b"connection", b"close") in head.headers
    assert body == b"data: 1\n\ndata: 2\n\n"
    assert phase_of(server) is HttpPhase.CLOSED


# ---------------------------------------------------------------------- early answers


@pytest.mark.parametrize("data", [post(b"hello")[:-1], CHUNKED + b"5\r\nhello\r\n", CHUNKED + b"g"])
def test_an_answer_before_the_body_is_complete_closes(data: bytes) -> None:
    server = HttpServer(LIMITS)
    server.receive(data)
    assert isinstance(server.next_event(), RequestHead)
    head, body, _ = read_answer(server.respond(404, [], b"no"))
    assert (b"connection", b"close") in head.headers
    assert body == b"no"
    assert server.must_close
    assert phase_of(server) is HttpPhase.CLOSED
    assert feed(server, b"o" + GET) == []
    assert server.buffered == 0


def test_a_stream_before_the_body_is_complete_closes() -> None:
    server = HttpServer(LIMITS)
    feed(server, post(b"hello")[:-1])
    head, _, _ = read_answer(server.start_stream([]) + server.stream(b"x") + b"0\r\n\r\n")
    assert (b"connection", b"close") in head.headers
    assert phase_of(server) is HttpPhase.ANSWERING
    assert feed(server, b"o") == []
    server.end_stream()
    assert phase_of(server) is HttpPhase.CLOSED


@pytest.mark.parametrize("data", [GET, post(b"hello"), CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"])
def test_an_answer_before_the_body_was_taken_keeps_the_connection_if_it_is_in(data: bytes) -> None:
    server = HttpServer(LIMITS)
    server.receive(data + GET)
    assert isinstance(server.next_event(), RequestHead)
    head, _, state = read_answer(server.respond(404, [], b"no"))
    assert b"connection" not in dict(head.headers)
    assert state is h11.DONE
    assert server.next_event() is None
    assert not server.must_close
    server.start_next()
    assert len(drain(server)) == 2


@pytest.mark.parametrize("data", [b"", b"GET / HT"])
def test_an_answer_before_any_request_closes(data: bytes) -> None:
    server = HttpServer(LIMITS)
    feed(server, data)
    head, _, _ = read_answer(server.respond(408, [], b"too late"))
    assert head.status_code == 408
    assert (b"connection", b"close") in head.headers
    assert phase_of(server) is HttpPhase.CLOSED
    assert feed(server, GET) == []


# ---------------------------------------------------------------------- misuse by the caller


def test_misuse_raises_and_changes_nothing() -> None:
    server = HttpServer(LIMITS)
    for too_early in (
        lambda: server.start_stream([]),
        lambda: server.stream(b"x"),
        lambda: server.stream(b""),
        server.end_stream,
        server.start_next,
    ):
        with pytest.raises(LocalProtocolError):
            too_early()
    assert phase_of(server) is HttpPhase.IDLE

    feed(server, post(b"hello")[:-1])
    for refused_answer in (
        lambda: server.respond(100, [], b""),
        lambda: server.respond(1000, [], b""),
        lambda: server.respond(200, [(b"x", b"a\r\nSet-Cookie: b")], b""),
        lambda: server.respond(200, [(b"x y", b"a")], b""),
        lambda: server.respond(200, [(b"Content-Length", b"0")], b""),
        lambda: server.respond(200, [(b"connection", b"close")], b""),
        lambda: server.start_stream([(b"transfer-encoding", b"chunked")]),
        lambda: server.start_stream([(b"x", b"a\n")]),
        server.start_next,
    ):
        with pytest.raises(LocalProtocolError):
            refused_answer()
    assert not server.must_close
    assert feed(server, b"o") == [RequestBody(b"hello")]

    server.start_stream([])
    for too_late in (
        lambda: server.start_stream([]),
        lambda: server.respond(200, [], b""),
        server.start_next,
    ):
        with pytest.raises(LocalProtocolError):
            too_late()
    assert server.stream(b"x") == b"1\r\nx\r\n"
    server.end_stream()
    for after_the_end in (
        server.end_stream,
        lambda: server.stream(b"x"),
        lambda: server.respond(200, [], b""),
    ):
        with pytest.raises(LocalProtocolError):
            after_the_end()
    server.start_next()
    assert len(feed(server, GET)) == 2


def test_a_refused_head_cannot_be_answered_with_a_stream() -> None:
    server = HttpServer(LIMITS)
    feed(server, b"GET / HTTP/1.1\n")
    with pytest.raises(LocalProtocolError):
        server.start_stream([])
    assert server.respond(400, [], b"", close=True)


# ---------------------------------------------------------------------- cost


def test_a_request_body_of_64_mib() -> None:
    limits = HttpLimits(max_header=65536, max_body=64 * 2**20)
    server = HttpServer(limits)
    piece = bytes(range(256)) * 1024
    feed(server, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 67108864\r\n\r\n")
    (body,) = feed(server, *[piece] * 256)
    assert isinstance(body, RequestBody)
    assert body.data == piece * 256


# ---------------------------------------------------------------------- compressed bodies


def chunks(data: bytes, *sizes: int) -> bytes:
    """``data`` in chunks of these sizes, the rest in one, and the end."""
    parts = []
    for size in (*sizes, len(data)):
        if data[:size]:
            parts.append(b"%x;ext\r\n%b\r\n" % (len(data[:size]), data[:size]))
        data = data[size:]
    return CHUNKED + b"".join(parts) + b"0\r\nTrailer: x\r\n\r\n"


def decoding(*pieces: bytes, max_body: int = 1000) -> tuple[HttpServer, list[HttpEvent]]:
    """All events of ``pieces``; every body is gzip."""
    server = HttpServer(HttpLimits(4096, max_body))
    events: list[HttpEvent] = []
    for piece in pieces:
        server.receive(piece)
        while (event := server.next_event()) is not None:
            events.append(event)
            if isinstance(event, RequestHead):
                server.decode_body(BodyDecoder(["gzip"], max_body))
    return server, events


BODY = b"x" * 900
ENCODED = gzip.compress(BODY)
SENT = {"sized": post(ENCODED), "chunked": chunks(ENCODED, 1, 7)}


@pytest.mark.parametrize("data", SENT.values(), ids=SENT)
def test_a_body_is_decoded_as_it_comes_in(data: bytes) -> None:
    server, (_, body) = decoding(data)
    assert body == RequestBody(BODY)
    assert server.buffered == 0
    server.respond(200, [], b"")
    server.start_next()
    assert feed(server, post(b"plain"))[1] == RequestBody(b"plain")


@pytest.mark.parametrize("name", SENT)
@given(cuts=st.lists(st.integers(0, 200), max_size=6), flaw=st.sampled_from(["", "end", "extra"]))
def test_decoding_does_not_depend_on_reads(name: str, cuts: list[int], flaw: str) -> None:
    encoded = {"": ENCODED, "end": ENCODED[:-3], "extra": ENCODED + b"!"}[flaw]
    data = post(encoded) if name == "sized" else chunks(encoded, 1, 7)
    bounds = [0, *sorted(cuts), len(data)]
    server, events = decoding(*(data[a:b] for a, b in pairwise(bounds)))
    assert events == decoding(data)[1]
    assert isinstance(events[1], BodyRefused) == bool(flaw)
    server.respond(400, [], b"")
    assert not server.must_close


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_cannot_be_decoded_costs_its_connection_nothing(chunked: bool) -> None:
    bad = b"\x1f\x8b" + bytes(100)
    data = chunks(bad, 10) if chunked else post(bad)
    server, (_, refusal) = decoding(data + GET)
    assert isinstance(refusal, BodyRefused)
    assert (refusal.status, refusal.code) == (400, "undecodable_body")
    assert b"connection" not in server.respond(400, [], b"no").lower()
    server.start_next()
    (head, _) = drain(server)
    assert isinstance(head, RequestHead)
    assert head.path == "/livez"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_bomb_is_refused_at_once(chunked: bool) -> None:
    bomb = gzip.compress(bytes(10_000_000)) * 30
    data = chunks(bomb, 70_000, 70_000) if chunked else post(bomb)
    server, (_, refusal) = decoding(data[:100_000], max_body=len(bomb))
    assert isinstance(refusal, BodyRefused)
    assert (refusal.status, refusal.code) == (413, "body_too_large")
    assert b"connection: close" in server.respond(413, [], b"no").lower()
    assert server.buffered == 0


def test_encoded_and_decoded_body_share_one_limit() -> None:
    for body, status in ((b"x" * 1000, None), (b"x" * 1001, 413)):
        for data in (post(gzip.compress(body)), chunks(gzip.compress(body), 5)):
            _, (_, event) = decoding(data)
            assert event == RequestBody(body) if status is None else isinstance(event, BodyRefused)
    # Empty members: there is no output.
    for data in (post(gzip.compress(b"") * 51), chunks(gzip.compress(b"") * 51, 500)):
        refusal = decoding(data)[1][-1]
        assert isinstance(refusal, BadRequest)
        assert refusal.status == 413


def test_an_early_answer_decodes_nothing() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    server = HttpServer(HttpLimits(4096, len(bomb)))
    server.receive(post(bomb))
    assert isinstance(server.next_event(), RequestHead)
    server.decode_body(BodyDecoder(["gzip"], len(bomb)))
    server.respond(404, [], b"")
    assert not server.must_close
    server.start_next()
    assert feed(server, GET)


def test_when_a_body_can_be_decoded() -> None:
    server = HttpServer(LIMITS)
    decoder = BodyDecoder(["gzip"], 10)
    with pytest.raises(LocalProtocolError):
        server.decode_body(decoder)
    server.receive(CHUNKED)
    drain(server)
    server.decode_body(decoder)
    with pytest.raises(LocalProtocolError):
        server.decode_body(decoder)
    server = HttpServer(LIMITS)
    feed(server, CHUNKED + b"2\r\n{}\r\n")
    with pytest.raises(LocalProtocolError):
        server.decode_body(decoder)
    feed(server, b"0\r\n\r\n")
    with pytest.raises(LocalProtocolError):
        server.decode_body(decoder)
