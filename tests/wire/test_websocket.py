"""Tests of wire/websocket.py: both ends against each other and against crafted bytes."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.utilities import generate_accept_token

from bridgecore.errors import LocalProtocolError
from bridgecore.wire.websocket import (
    FRAGMENT,
    MAX_FRAGMENTS,
    MAX_HEAD,
    MAX_PONGS,
    MAX_REJECT_BODY,
    CloseReceived,
    Failed,
    MessageReceived,
    PongReceived,
    Upgraded,
    UpgradeRejected,
    UpgradeRequested,
    WebSocketClient,
    WebSocketEvent,
    WebSocketServer,
)

LIMIT = 1 << 20


def make_client(max_message: int = LIMIT) -> WebSocketClient:
    return WebSocketClient(
        authority="127.0.0.1:8080",
        target="/v1/responses",
        headers=[(b"authorization", b"Bearer sk-1")],
        max_message=max_message,
    )


def opened(max_message: int = LIMIT) -> tuple[WebSocketClient, WebSocketServer]:
    """A client and a server after their handshake."""
    client, server = make_client(max_message), WebSocketServer(max_message=max_message)
    (request,) = server.receive(client.connect())
    assert isinstance(request, UpgradeRequested)
    (answer,) = client.receive(server.accept())
    assert isinstance(answer, Upgraded)
    return client, server


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    declared: int | None = None,
) -> bytes:
    """An unmasked frame, as a server sends it; ``declared`` replaces the length in its header."""
    size = len(payload) if declared is None else declared
    first = (fin << 7) | (rsv << 4) | opcode
    if size <= 125:
        return bytes([first, size]) + payload
    if size <= 0xFFFF:
        return bytes([first, 126]) + struct.pack("!H", size) + payload
    return bytes([first, 127]) + struct.pack("!Q", size) + payload


def feed(
    peer: WebSocketClient | WebSocketServer, data: bytes, cuts: Iterable[int] = ()
) -> list[WebSocketEvent]:
    events: list[WebSocketEvent] = []
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    for start, end in pairwise(edges):
        events += peer.receive(data[start:end])
    return events


# ------------------------------------------------------------------ handshake


def test_upgrade_carries_target_headers_and_no_extension() -> None:
    client, server = make_client(), WebSocketServer(max_message=LIMIT)
    data = client.connect()
    assert b"extensions" not in data.lower()
    (request,) = server.receive(data)
    assert isinstance(request, UpgradeRequested)
    assert request.target == "/v1/responses"
    assert (b"authorization", b"Bearer sk-1") in request.headers
    assert (b"host", b"127.0.0.1:8080") in request.headers
    (answer,) = client.receive(server.accept([(b"x-request-id", b"r1")]))
    assert answer == Upgraded([(b"x-request-id", b"r1")])
    assert client.is_open
    assert server.is_open


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", 1002),
        (b"\x15\x03\x01\x00\x02", 1002),
        (b"HTTP/2 101 x\r\n\r\n", 1002),
        (b"HTTP/1.1 abc\r\n\r\n", 1002),
        (b"HTTP/1.1 101 x\r\n\r\n", 1002),
        (b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", 1002),
        (b"HTTP/1.1 101 x\r\nconnection: \xff\r\n\r\n", 1002),
        (b"HTTP/1.1 100 c\r\n\r\n" * 9, 1002),
        (b"HTTP/1.1 200 ok\r\nx: " + b"y" * MAX_HEAD, 1002),
        (b"HTTP/1.1 200 ok\r\nx: " + b"y" * MAX_HEAD + b"\r\n\r\n", 1002),
    ],
)
def test_answer_that_is_no_answer_fails(answer: bytes, code: int) -> None:
    whole, bytewise = make_client(), make_client()
    whole.connect()
    bytewise.connect()
    (failure,) = whole.receive(answer)
    assert isinstance(failure, Failed)
    assert failure.code == code
    assert [type(e) for e in feed(bytewise, answer, range(0, len(answer), 7))] == [Failed]
    assert whole.receive(b"HTTP/1.1 200 ok\r\n\r\n") == []
    assert whole.data_to_send() == b""


def accepting_answer(request: bytes, *, key: bytes | None = None, extra: bytes = b"") -> bytes:
    match = re.search(rb"Sec-WebSocket-Key: (\S+)\r\n", request)
    assert match is not None
    token = generate_accept_token(key or match[1])
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + token + b"\r\n" + extra + b"\r\n"
    )


def test_wrong_accept_key_and_unasked_extension_fail() -> None:
    client = make_client()
    (failure,) = client.receive(accepting_answer(client.connect(), key=b"AAAA"))
    assert isinstance(failure, Failed)
    client = make_client()
    extra = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    (failure,) = client.receive(accepting_answer(client.connect(), extra=extra))
    assert isinstance(failure, Failed)


@given(st.lists(st.integers(0, 10_000), max_size=12))
def test_split_of_a_whole_connection_changes_nothing(cuts: list[int]) -> None:
    client = make_client()
    early = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    data = early + accepting_answer(client.connect(), extra=b"X-A: " + b"v" * 20_000 + b"\r\n")
    data += frame(1, b"one") + frame(1, "zw\u20ac".encode()[:3], fin=False) + frame(10)
    data += frame(0, "zw\u20ac".encode()[3:]) + frame(8, struct.pack("!H", 1001) + b"bye") + b"junk"
    events = feed(client, data, cuts)
    assert events == [
        Upgraded([(b"x-a", b"v" * 20_000)]),
        MessageReceived(b"one"),
        PongReceived(),
        MessageReceived("zw\u20ac".encode()),
        CloseReceived(1001, "bye"),
    ]


REJECTIONS = [
    (b"HTTP/1.1 401 no\r\ncontent-length: 5\r\nx: y\r\n\r\nnope!", 401, b"nope!"),
    (b"HTTP/1.1 429 no\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n", 429, b""),
    (
        b"HTTP/1.1 500 no\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        500,
        b"abcde",
    ),
    (b"HTTP/1.1 503 no\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", 503, b"abc"),
    (b"HTTP/1.1 103 hi\r\nlink: x\r\n\r\nHTTP/1.1 404 no\r\ncontent-length: 1\r\n\r\n.", 404, b"."),
]


@pytest.mark.parametrize(("answer", "status", "body"), REJECTIONS)
@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_rejection_is_reported_once_with_its_body(
    answer: bytes, status: int, body: bytes, cuts: list[int]
) -> None:
    client = make_client()
    client.connect()
    (event,) = feed(client, answer, cuts)
    assert isinstance(event, UpgradeRejected)
    assert (event.status, event.body) == (status, body)
    assert client.receive(b"more") == []
    assert client.receive_eof() == []


def test_rejection_body_may_end_with_the_stream_or_be_cut_by_it() -> None:
    for length in (b"", b"content-length: 100\r\n"):
        client = make_client()
        client.connect()
        assert client.receive(b"HTTP/1.1 502 no\r\n" + length + b"\r\npart") == []
        assert client.receive_eof() == [
            UpgradeRejected(502, [(b"content-length", b"100")] if length else [], b"part")
        ]


def test_rejection_body_is_bounded() -> None:
    client = make_client()
    client.connect()
    head = b"HTTP/1.1 502 no\r\n\r\n"
    assert client.receive(head + b"x" * (MAX_REJECT_BODY - 1)) == []
    (event,) = client.receive(b"y" * 300_000)
    assert isinstance(event, UpgradeRejected)
    assert event.body == b"x" * (MAX_REJECT_BODY - 1) + b"y"


def test_server_rejects_with_headers_and_body() -> None:
    client, server = make_client(), WebSocketServer(max_message=LIMIT)
    server.receive(client.connect())
    data = server.reject(429, [(b"retry-after", b"3")], b'{"error":{}}')
    (event,) = client.receive(data)
    assert isinstance(event, UpgradeRejected)
    assert (event.status, event.body) == (429, b'{"error":{}}')
    assert (b"retry-after", b"3") in event.headers
    assert server.receive(b"more") == []


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /v1/responses HTTP/1.1\r\nhost: a\r\n\r\n", 426),
        (b"POST /v1/responses HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}", 426),
        (b"POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 400),
        (
            b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-key: x\r\nsec-websocket-version: 8\r\n\r\n",
            426,
        ),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"hello\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * MAX_HEAD, 400),
    ],
)
def test_server_answers_requests_without_upgrade(request_: bytes, status: int) -> None:
    server = WebSocketServer(max_message=LIMIT)
    (event,) = server.receive(request_)
    assert isinstance(event, Failed)
    answer = server.data_to_send()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in answer.lower()
    assert server.receive(b"more") == []


def test_server_refuses_frames_before_its_answer() -> None:
    client, server = make_client(), WebSocketServer(max_message=LIMIT)
    (event,) = server.receive(client.connect() + b"\x81\x80abcd")
    assert isinstance(event, Failed)
    client, server = make_client(), WebSocketServer(max_message=LIMIT)
    server.receive(client.connect())
    (event,) = server.receive(b"\x81\x80abcd")
    assert isinstance(event, Failed)


def test_end_of_stream_while_opening() -> None:
    client, server = make_client(), WebSocketServer(max_message=LIMIT)
    server.receive(client.connect()[:20])
    client.receive(b"HTTP/1.1 1")
    for peer in (client, server):
        (event,) = peer.receive_eof()
        assert isinstance(event, Failed)
        assert event.code == 1006
        assert peer.receive_eof() == []


# ------------------------------------------------------------------ messages


@settings(max_examples=40)
@given(
    st.lists(st.text(max_size=300), max_size=8),
    st.lists(st.integers(0, 5_000), max_size=10),
)
def test_messages_survive_any_split_in_both_directions(texts: list[str], cuts: list[int]) -> None:
    client, server = opened()
    sent: list[WebSocketEvent] = [MessageReceived(text.encode()) for text in texts]
    assert feed(server, b"".join(client.send_text(t.encode()) for t in texts), cuts) == sent
    assert feed(client, b"".join(server.send_text(t.encode()) for t in texts), cuts) == sent


@settings(max_examples=40)
@given(st.data())
def test_fragments_with_control_frames_between_are_joined(data: st.DataObject) -> None:
    client, _ = opened()
    text = data.draw(st.text(max_size=60)).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    edges = [0, *cuts, len(text)]
    wire = b""
    for index, (start, end) in enumerate(pairwise(edges)):
        wire += frame(0 if index else 1, text[start:end], fin=index == len(cuts)) + frame(9, b"p")
    splits = data.draw(st.lists(st.integers(0, 300), max_size=6))
    assert feed(client, wire, splits) == [MessageReceived(text)]


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 200_000])
def test_every_length_encoding(size: int) -> None:
    client, server = opened()
    assert client.receive(server.send_text(b"x" * size)) == [MessageReceived(b"x" * size)]
    assert server.receive(client.send_text(b"x" * size)) == [MessageReceived(b"x" * size)]


def test_mid_message_tells_an_unfinished_message() -> None:
    client, server = opened()
    data = client.send_text(b"x" * 1000)
    assert server.receive(data[:500]) == []
    assert server.mid_message
    assert len(server.receive(data[500:])) == 1
    assert not server.mid_message


def mask_bit_set(data: bytes) -> bytes:
    return bytes([data[0], data[1] | 0x80]) + data[2:]


BROKEN: Sequence[tuple[bytes, int]] = [
    (mask_bit_set(frame(1, b"abcdefgh")), 1002),
    (frame(3), 1002),
    (frame(1, b"x", rsv=4), 1002),
    (frame(0, b"x"), 1002),
    (frame(1, b"x", fin=False) + frame(1, b"y"), 1002),
    (frame(9, b"", fin=False), 1002),
    (frame(9, b"x" * 126), 1002),
    (frame(8, b"x"), 1002),
    (frame(8, struct.pack("!H", 1006)), 1002),
    (frame(8, struct.pack("!H", 999)), 1002),
    (frame(8, struct.pack("!H", 1000) + b"\xff"), 1007),
    (frame(1, b"\xff\xfe"), 1007),
    (frame(1, "\u20ac".encode()[:2]), 1007),
    (frame(2, b"x"), 1003),
    (frame(2, b"x", fin=False), 1003),
]


@pytest.mark.parametrize(("wire", "code"), BROKEN)
def test_broken_frames_fail_and_end_everything(wire: bytes, code: int) -> None:
    client, server = opened()
    events = client.receive(wire)
    assert [type(e) for e in events] == [Failed]
    assert isinstance(events[0], Failed)
    assert events[0].code == code
    assert client.receive(frame(1, b"later")) == []
    (told,) = server.receive(client.data_to_send())
    assert isinstance(told, CloseReceived)
    assert told.code == code
    assert client.data_to_send() == b""
    assert client.send_text(b"x") == b""
    assert client.receive_eof() == []


EURO = "\u20ac".encode()


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"\x01\x02\x00\x80", 1007),  # the decoder counts from the start of the part that it has
        (frame(1, b"x" * 8 + b"\xff" * 12), 1007),
        (frame(1, b"x" * 12 + b"\xff" * 8), 1009),  # decoded at once it is invalid, cut too large
        (frame(1, b"x" * 4, fin=False) + frame(0, b"x" * 7 + b"\xff"), 1009),
        (frame(1, b"x" * 9 + EURO[:2] + b"x"), 1007),
        (frame(1, b"x" * 9, fin=False) + frame(8, struct.pack("!H", 1000) + b"xxx\xff"), 1007),
    ],
)
def test_the_cause_of_a_failure_does_not_depend_on_the_split(wire: bytes, code: int) -> None:
    whole = opened(max_message=10)[0].receive(wire)
    assert [event.code for event in whole if isinstance(event, Failed)] == [code]
    for cut in range(1, len(wire)):
        assert feed(opened(max_message=10)[0], wire, [cut]) == whole


def test_messages_before_a_broken_frame_are_delivered() -> None:
    client, _ = opened()
    events = client.receive(frame(1, b"good") + frame(3))
    assert [type(e) for e in events] == [MessageReceived, Failed]


def test_server_insists_on_masks() -> None:
    _, server = opened()
    (event,) = server.receive(frame(1, b"x"))
    assert isinstance(event, Failed)
    assert event.code == 1002


NOISE = st.lists(
    st.binary(max_size=40)
    | st.builds(
        frame,
        st.sampled_from([0, 1, 2, 8, 9, 10]),
        st.binary(max_size=8) | st.text(max_size=4).map(str.encode),
        fin=st.booleans(),
    )
    | st.sampled_from([b"HTTP/1.1 200 ok\r\n", b"content-length: 3\r\n", b"\r\n", b"GET / "]),
    max_size=8,
).map(b"".join)


@settings(max_examples=200)
@given(NOISE, st.lists(st.integers(0, 300), max_size=6), st.booleans(), st.booleans())
def test_any_bytes_give_events_that_do_not_depend_on_the_split(
    noise: bytes, cuts: list[int], upgraded: bool, at_server: bool
) -> None:
    def play(cuts: list[int]) -> list[WebSocketEvent]:
        client, server = opened() if upgraded else (make_client(), WebSocketServer(max_message=9))
        if not upgraded:
            client.connect()
        peer = server if at_server else client
        return feed(peer, noise, cuts) + peer.receive_eof()

    whole = play([])
    assert play(cuts) == whole
    ends = [e for e in whole if isinstance(e, Failed | CloseReceived | UpgradeRejected)]
    assert ends == whole[-1:]  # exactly one, and nothing after it


# ------------------------------------------------------------------ bounds


def test_message_limit_is_exact_and_incremental() -> None:
    client, _ = opened(max_message=1000)
    assert client.receive(frame(1, b"x" * 1000)) == [MessageReceived(b"x" * 1000)]
    assert client.receive(frame(1, b"x" * 600, fin=False)) == []
    (event,) = client.receive(frame(0, b"x" * 401, fin=False))
    assert isinstance(event, Failed)
    assert event.code == 1009


def test_frame_that_declares_2_to_the_62_is_dropped_at_the_limit() -> None:
    client, _ = opened(max_message=1000)
    assert client.receive(frame(1, b"x" * 1000, declared=1 << 62)) == []
    (event,) = client.receive(b"x")
    assert isinstance(event, Failed)
    assert event.code == 1009


def test_empty_fragments_are_bounded() -> None:
    client, _ = opened()
    lawful = frame(1, b"", fin=False) + frame(0, b"", fin=False) * (MAX_FRAGMENTS - 2) + frame(0)
    assert client.receive(lawful * 2) == [MessageReceived(b"")] * 2
    (event,) = client.receive(frame(1, b"", fin=False) + frame(0, b"", fin=False) * 100_000)
    assert isinstance(event, Failed)
    assert event.code == 1009


def test_ping_flood_owes_only_the_latest_pongs() -> None:
    client, server = opened()
    for n in range(1000):
        assert client.receive(frame(9, b"%d" % n)) == []
    owed = client.data_to_send()
    assert server.receive(owed) == [PongReceived()] * MAX_PONGS
    assert client.data_to_send() == b""


def test_pongs_carry_the_payload_in_order() -> None:
    client, server = opened()
    client_pings = bytes(client.ping())
    server.receive(client_pings)
    assert server.data_to_send() == frame(10)
    _, server = opened()
    masked = b"".join(bytes([0x89, 0x81, 0, 0, 0, 0]) + payload for payload in (b"a", b"b", b"c"))
    server.receive(masked)
    assert server.data_to_send() == frame(10, b"a") + frame(10, b"b") + frame(10, b"c")


@pytest.mark.parametrize("count", [1, 4])
def test_large_input_costs_time_in_proportion(count: int) -> None:
    # Small frames in one read, then one large message in one read. The bound is far above what a
    # slow machine needs, and far below what handling in quadratic time would take.
    size = count << 20
    client, _ = opened(max_message=size)
    small = frame(1, b"x" * 246)
    began = perf_counter()
    assert len(client.receive(small * (size // len(small)))) == size // len(small)
    (event,) = client.receive(frame(1, b"y" * size))
    assert event == MessageReceived(b"y" * size)
    assert perf_counter() - began < 20


def test_message_in_many_small_reads() -> None:
    client, _ = opened()
    data = frame(1, b"z" * 200_000)
    assert feed(client, data, range(0, len(data), 10)) == [MessageReceived(b"z" * 200_000)]


# ------------------------------------------------------------------ closing


def test_close_is_answered_once() -> None:
    client, server = opened()
    (event,) = client.receive(server.close(1001, "going"))
    assert event == CloseReceived(1001, "going")
    reply = client.data_to_send()
    assert server.receive(reply) == [CloseReceived(1001, "going")]
    assert server.data_to_send() == b""
    assert server.close(1000) == b""
    assert client.close(1000) == b""
    assert client.receive_eof() == []
    assert server.receive_eof() == []


def test_close_without_a_code_is_1005_and_answered_in_kind() -> None:
    client, server = opened()
    assert client.receive(server.close(1005)) == [CloseReceived(1005, "")]
    assert server.receive(client.data_to_send()) == [CloseReceived(1005, "")]


def test_crossing_closes_owe_no_reply() -> None:
    client, server = opened()
    from_client, from_server = client.close(1000), server.close(1001)
    assert client.receive(from_server) == [CloseReceived(1001, "")]
    assert server.receive(from_client) == [CloseReceived(1000, "")]
    assert client.data_to_send() == server.data_to_send() == b""


def test_after_our_close_messages_still_arrive_but_nothing_is_sent() -> None:
    client, server = opened()
    late = server.send_text(b"late") + server.ping()
    assert client.close(1000) != b""
    assert client.receive(late) == [MessageReceived(b"late")]
    assert client.data_to_send() == client.send_text(b"x") == client.ping() == b""
    assert not client.is_open


def test_pongs_owed_go_out_before_our_close_frame() -> None:
    client, server = opened()
    client.receive(server.ping())
    assert server.receive(client.close(1000)) == [PongReceived(), CloseReceived(1000, "")]


def test_end_of_stream_without_a_close_frame_is_1006() -> None:
    client, _ = opened()
    client.receive(frame(1, b"half", declared=100))
    (event,) = client.receive_eof()
    assert isinstance(event, Failed)
    assert event.code == 1006
    assert client.data_to_send() == b""


# ------------------------------------------------------------------ messages in fragments

long_texts = st.builds(
    lambda unit, count: (unit * count).encode(),
    st.text(min_size=1, max_size=9),  # characters of every width, so that some lie on an edge
    st.sampled_from([0, 1, 5_000, FRAGMENT // 4, FRAGMENT - 1, FRAGMENT, FRAGMENT + 1, 40_000]),
)


def frames_of(peer: WebSocketClient | WebSocketServer) -> list[bytes]:
    return list(iter(peer.next_frame, b""))


@settings(max_examples=60)
@given(st.data())
def test_queued_messages_arrive_whatever_goes_between_their_frames(data: st.DataObject) -> None:
    """Pongs, pings and replies are sent within a message, and the peer reads it whole."""
    client, server = opened(1 << 24)
    texts = data.draw(st.lists(long_texts, max_size=3))
    for text in texts:
        client.queue_text(text)
    received: list[WebSocketEvent] = []
    while frame_ := client.next_frame():
        assert len(frame_) <= FRAGMENT + 14  # RFC 6455, section 5.2: the longest head
        received += server.receive(frame_)
        between = data.draw(st.sampled_from(["nothing", "ping", "pinged", "message"]))
        if between == "ping":
            received += server.receive(client.ping())
            client.receive(server.data_to_send())
        elif between == "pinged":
            client.receive(server.ping())
            assert server.receive(client.data_to_send()) == [PongReceived()]
        elif between == "message":
            assert client.receive(server.send_text(b"meanwhile")) == [MessageReceived(b"meanwhile")]
    assert received == [MessageReceived(text) for text in texts]


@settings(max_examples=30)
@given(long_texts, st.integers(0, 5), st.sampled_from(["we close", "it closes", "it fails"]))
def test_queued_frames_are_dropped_at_a_close(text: bytes, sent: int, end: str) -> None:
    """Within a message a close frame is valid, and nothing follows it."""
    client, server = opened(1 << 24)
    client.queue_text(text)
    out = b"".join(client.next_frame() for _ in range(sent))
    if end == "we close":
        out += client.close(1000)
    else:
        client.receive(server.close(1009) if end == "it closes" else frame(2, b"binary"))
        out += client.data_to_send()
    assert client.next_frame() == b""
    client.queue_text(b"more")
    assert client.next_frame() == b""
    closed = [event for event in server.receive(out) if isinstance(event, CloseReceived)]
    assert len(closed) == 1


@pytest.mark.parametrize("size", [0, 1, FRAGMENT])
def test_a_message_that_fits_is_one_frame(size: int) -> None:
    client, server = opened()
    client.queue_text(b"x" * size)
    (only,) = frames_of(client)
    assert only[0] == 0x81  # FIN, text
    assert server.receive(only) == [MessageReceived(b"x" * size)]


def test_a_long_message_is_one_text_frame_and_continuations() -> None:
    client, _ = opened()
    client.queue_text(b"x" * (2 * FRAGMENT + 1))
    assert [frame_[0] for frame_ in frames_of(client)] == [0x01, 0x00, 0x80]


def test_frames_of_two_messages_do_not_mix() -> None:
    client, server = opened()
    client.queue_text(b"x" * (FRAGMENT + 1))
    first = client.next_frame()
    with pytest.raises(LocalProtocolError, match="queue"):
        client.send_text(b"y")
    client.queue_text(b"y")
    events = server.receive(first + b"".join(frames_of(client)) + client.send_text(b"z"))
    assert events == [MessageReceived(b"x" * (FRAGMENT + 1)), *map(MessageReceived, (b"y", b"z"))]


# ------------------------------------------------------------------ misuse


def test_misuse_raises_and_changes_nothing() -> None:
    client, server = make_client(), WebSocketServer(max_message=LIMIT)
    for peer in (client, server):
        for call in (lambda p=peer: p.send_text(b"x"), peer.ping, lambda p=peer: p.close(1000)):
            with pytest.raises(LocalProtocolError):
                call()
    with pytest.raises(LocalProtocolError):
        client.queue_text(b"x")
    with pytest.raises(LocalProtocolError):
        server.accept()
    server.receive(client.connect())
    for status in (101, 204, 304, 99):
        with pytest.raises(LocalProtocolError):
            server.reject(status, [], b"")
    with pytest.raises(LocalProtocolError):
        server.accept([(b"bad name", b"x")])
    assert isinstance(client.receive(server.accept())[0], Upgraded)
    with pytest.raises(LocalProtocolError):
        client.send_text(b"\xff")
    with pytest.raises(LocalProtocolError):
        client.queue_text(b"\xff")
    assert client.next_frame() == b""
    for code in (0, 999, 1004, 1006, 1015, 1016, 5000):
        with pytest.raises(LocalProtocolError):
            client.close(code)
    assert server.receive(client.send_text(b"x")) == [MessageReceived(b"x")]


@pytest.mark.parametrize(
    ("authority", "target", "headers"),
    [
        ("h", "/", [(b"Sec-WebSocket-Extensions", b"permessage-deflate")]),
        ("h", "/", [(b"host", b"other")]),
        ("h", "/", [(b"x", b"secret\r\nb: c")]),
        ("h", "/", [(b"x", b"secret ")]),
        ("h", "/ a", []),
        ("a..b", "/", []),
    ],
)
def test_client_refuses_what_cannot_be_asked(
    authority: str, target: str, headers: list[tuple[bytes, bytes]]
) -> None:
    client = WebSocketClient(authority=authority, target=target, headers=headers, max_message=LIMIT)
    with pytest.raises(LocalProtocolError) as caught:
        client.connect()
    assert "secret" not in str(caught.value)  # values are credentials, and this may be logged
