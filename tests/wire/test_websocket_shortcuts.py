"""The shortcuts of wire/websocket.py against wsproto, and its frames against those of wsproto.

What belongs here: properties that compare a connection with and without shortcuts.

More examples: ``HYPOTHESIS_EXAMPLES=100000 pytest -n 0 --timeout 0 FILE``.
"""

from __future__ import annotations

import functools
import os
import struct
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol
from wsproto.utilities import generate_accept_token

from bridgecore.wire import websocket
from bridgecore.wire.websocket import (
    FRAGMENT,
    Failed,
    MessageReceived,
    WebSocketClient,
    WebSocketEvent,
    WebSocketServer,
)
from tests.memory import taken

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "400"))
many = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow],
)

# The edges of the length encodings, and of the limits below
SIZES = [0, 1, 2, 9, 10, 11, 124, 125, 126, 127, 199, 200, 201]
LARGE = [65_535, 65_536, 65_537]
LIMITS = [0, 10, 126, 200, 200, 65_535, 65_536, 1 << 20, 1 << 20]
KEY = b"\x37\x00\xfa\x21"


def client(max_message: int, *, shortcuts: bool = True) -> WebSocketClient:
    """A client after its handshake."""
    peer = WebSocketClient(
        authority="h", target="/", headers=[], max_message=max_message, shortcuts=shortcuts
    )
    head = peer.connect()
    key = head.lower().split(b"sec-websocket-key: ")[1]
    key = head[len(head) - len(key) :].split(b"\r\n")[0]
    peer.receive(
        b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-accept: " + generate_accept_token(key) + b"\r\n\r\n"
    )
    assert peer.is_open
    return peer


def server(max_message: int) -> WebSocketServer:
    """A server after its handshake."""
    peer = WebSocketServer(max_message=max_message)
    peer.receive(client_request())
    peer.accept()
    assert peer.is_open
    return peer


def client_request() -> bytes:
    return WebSocketClient(authority="h", target="/", headers=[], max_message=0).connect()


def masked(data: bytes, key: bytes) -> bytes:
    """One byte at a time, so that it can be compared with what is faster."""
    return bytes(byte ^ key[at % 4] for at, byte in enumerate(data))


# ------------------------------------------------------------------ frames


def frame(
    first: int, payload: bytes, *, key: bytes = b"", declared: int | None = None, width: int = 0
) -> bytes:
    """A frame. ``width``: bytes of the extended length, also where they are too many;
    ``declared``: the length in the head."""
    size = len(payload) if declared is None else declared
    width = max(width, 0 if size < 126 else 2 if size < 1 << 16 else 8)
    mask = 0x80 if key else 0
    if width == 0:
        head = bytes([first, mask | size])
    elif width == 2:
        head = struct.pack("!BBH", first, mask | 126, size)
    else:
        head = struct.pack("!BBQ", first, mask | 127, size)
    if key:
        # Masked with integers, because a byte at a time takes too long for large frames.
        repeated = (key * (len(payload) // 4 + 1))[: len(payload)]
        number = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
        payload = number.to_bytes(len(payload), "big")
    return head + key + payload


def mostly(
    often: st.SearchStrategy[bytes], seldom: st.SearchStrategy[bytes]
) -> st.SearchStrategy[bytes]:
    return st.integers(0, 7).flatmap(lambda roll: often if roll else seldom)


TEXT_SIZES = st.sampled_from(SIZES * 2 + LARGE) | st.integers(0, 40)
UNITS = st.sampled_from(
    [unit.encode() for unit in ("x", "x", "{}\n", "\u00e9", "a\u20ac", "\U0001f600b", "\0")]
)
INVALID = st.sampled_from([b"\xff", b"\x80", b"\xe2\x82", b"\xed\xa0\x80", b"\xf4\x90", b"\xc0"])


@st.composite
def texts(draw: st.DrawFn, *, valid: bool = True) -> bytes:
    """Text of a size at an edge, with characters of every width. Not ``valid``: with an invalid
    byte, or cut within a character."""
    size = draw(TEXT_SIZES)
    unit = draw(UNITS)
    text = (unit * (size // len(unit) + 1))[:size]
    if valid:
        whole = text.decode(errors="ignore").encode()
        return whole + b"." * (size - len(whole))
    at = draw(st.sampled_from([0, size // 2, max(0, size - 1), min(size, 11), size]))
    bad = draw(INVALID)
    return text[:at] + bad + text[at + len(bad) :]


FRAGMENTED_TEXTS = mostly(texts(), texts(valid=False))


@st.composite
def messages_in_fragments(draw: st.DrawFn, key: bytes) -> bytes:
    """Valid, with control frames between the fragments; cut anywhere, also within a character."""
    text = draw(FRAGMENTED_TEXTS)
    edges = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    edges = [0, *edges, len(text)]
    wire = b""
    for index, (start, end) in enumerate(pairwise(edges)):
        last = index == len(edges) - 2
        wire += frame((0x80 if last else 0) | (not index), text[start:end], key=key)
        if not last:
            wire += draw(
                st.sampled_from([b"", b"", frame(0x89, b"p", key=key), frame(0x8A, b"", key=key)])
            )
    return wire


@functools.cache  # building it costs more than drawing from it
def closes(key: bytes) -> st.SearchStrategy[bytes]:
    payloads = st.sampled_from(
        [b"", b"\x03"]
        + [struct.pack("!H", code) + b"bye" for code in (999, 1000, 1001, 1004, 1005, 1006, 1012)]
        + [struct.pack("!H", code) for code in (1015, 1016, 2999, 3000, 4999, 5000)]
        + [struct.pack("!H", 1000) + reason for reason in (b"\xff", b"r" * 123, b"r" * 124)]
    )
    return st.builds(frame, st.just(0x88), payloads, key=st.just(key))


@functools.cache
def odd_frames(key: bytes) -> st.SearchStrategy[bytes]:
    """What ends a connection, nearly always."""
    other = b"" if key else KEY
    return st.one_of(
        closes(key),
        st.builds(frame, st.just(0x81), texts(valid=False), key=st.just(key)),
        st.builds(frame, st.just(0x81), texts(), key=st.just(other)),  # masked by the wrong side
        st.builds(
            frame, st.sampled_from([0xC1, 0xA1, 0x91, 0x41]), texts(), key=st.just(key)
        ),  # RSV
        st.builds(frame, st.integers(0, 255), texts(), key=st.just(key)),  # reserved opcodes, too
        st.builds(
            frame, st.sampled_from([0x02, 0x82, 0x80, 0x01, 0x00]), texts(), key=st.just(key)
        ),
        st.builds(frame, st.just(0x81), texts(), key=st.just(key), width=st.sampled_from([2, 8])),
        st.builds(
            frame,
            st.sampled_from([0x81, 0x01, 0x89]),
            texts(),
            key=st.just(key),
            declared=st.sampled_from(
                [0, 5, 126, 300, 1 << 16, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
            ),
        ),
        st.binary(max_size=20),
    )


@functools.cache
def good_frames(key: bytes) -> st.SearchStrategy[bytes]:
    text = st.builds(frame, st.just(0x81), texts(), key=st.just(key))
    control = st.builds(
        frame,
        st.sampled_from([0x89, 0x8A]),
        st.binary(max_size=3) | st.just(b"c" * 125),
        key=st.just(key),
    )
    return st.one_of(text, text, text, messages_in_fragments(key), control)


@functools.cache
def frames(key: bytes) -> st.SearchStrategy[list[bytes]]:
    return st.lists(mostly(good_frames(key), odd_frames(key)), min_size=1, max_size=10)


@st.composite
def streams(draw: st.DrawFn, key: bytes = b"") -> tuple[list[bytes], list[bytes]]:
    """The frames that a peer sends, and the same bytes as they are read, cut anywhere."""
    sent = draw(frames(key))
    wire = b"".join(sent)
    starts = [0]
    for one in sent:
        starts.append(starts[-1] + len(one))
    near = st.builds(int.__add__, st.sampled_from(starts), st.integers(-3, 15))
    cuts = draw(st.lists(near | st.integers(0, len(wire)), max_size=8))
    if len(wire) < 60 and draw(st.booleans()):
        cuts = list(range(len(wire)))  # each byte for itself
    edges = sorted({0, len(wire), *(cut for cut in cuts if 0 < cut < len(wire))})
    return sent, [wire[start:end] for start, end in pairwise(edges)]


def unmasked(data: bytes) -> list[tuple[int, bytes]]:
    """First byte and payload of each of a client's frames, which are short: their keys differ."""
    found = []
    while data:
        size = data[1] & 0x7F
        assert data[1] & 0x80
        assert size <= 125
        found.append((data[0], masked(data[6 : 6 + size], data[2:6])))
        data = data[6 + size :]
    return found


# ------------------------------------------------------------------ reading


@many
@given(
    streams(),
    st.sampled_from(LIMITS),
    st.sampled_from([None, None, None, 0, 1, 3]),
    st.booleans(),
)
def test_every_read_gives_what_wsproto_gives(
    stream: tuple[list[bytes], list[bytes]], limit: int, close_before: int | None, replies: bool
) -> None:
    """Events, replies and state after each read; ``close_before``: the read before which our side
    closes; ``replies``: whether replies are taken after each read or only at the end."""
    _, reads = stream
    short, alone = client(limit), client(limit, shortcuts=False)
    for index, data in enumerate(reads):
        if index == close_before:
            assert unmasked(short.close(1000)) == unmasked(alone.close(1000))
        events = short.receive(data)
        assert events == alone.receive(data)
        assert (short.is_open, short.mid_message) == (alone.is_open, alone.mid_message)
        if replies:
            assert unmasked(short.data_to_send()) == unmasked(alone.data_to_send())
        event("failed" if any(isinstance(one, Failed) for one in events) else "goes on")
    assert short.receive_eof() == alone.receive_eof()
    assert unmasked(short.data_to_send()) == unmasked(alone.data_to_send())


@settings(many, max_examples=EXAMPLES // 4)
@given(st.data(), st.sampled_from(LIMITS), st.booleans())
def test_events_do_not_depend_on_the_split(
    data: st.DataObject, limit: int, at_server: bool
) -> None:
    """Of either side, with masks for the server."""
    _, reads = data.draw(streams(KEY if at_server else b""))

    def play(reads: list[bytes]) -> list[WebSocketEvent]:
        peer = server(limit) if at_server else client(limit)
        return [one for read in reads for one in peer.receive(read)]

    assert play(reads) == play([b"".join(reads)])


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(0xC1, b"x"), 1002),
        (frame(0xA1, b"x"), 1002),
        (frame(0x91, b"x"), 1002),
        (frame(0x81, b"x", key=KEY), 1002),
        (frame(0x81, b"x" * 125, width=2), 1002),
        (frame(0x81, b"x" * 126, width=8), 1002),
        (frame(0x81, b"x" * 65_535, width=8), 1002),
        (frame(0x81, b"", declared=1 << 63), 1002),
        (frame(0x81, b"x" * 70_001), 1009),
        (frame(0x81, b"x\xe2\x82"), 1007),
        (frame(0x01, b"x") + frame(0x81, b"x"), 1002),
    ],
)
def test_what_wsproto_rejects_is_not_read_directly(data: bytes, code: int) -> None:
    good = frame(0x81, b"good")
    short, alone = client(70_000), client(70_000, shortcuts=False)
    events = short.receive(good + data + good)
    assert events == alone.receive(good + data + good)
    assert events[0] == MessageReceived(b"good")
    assert [one.code for one in events[1:] if isinstance(one, Failed)] == [code]


def test_plain_frames_are_read_without_wsproto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the property above would compare wsproto with itself."""
    peer = client(1 << 20)
    plain = frame(0x81, b"x" * 200) + frame(0x81, b"y") + frame(0x81, "\u20ac".encode() * 30_000)
    cut = frame(0x81, b"z" * 200)
    expected = [MessageReceived(text) for text in (b"x" * 200, b"y", "\u20ac".encode() * 30_000)]

    def fail(*_: object) -> None:
        raise AssertionError("wsproto is not needed")

    with monkeypatch.context() as patch:
        patch.setattr(websocket, "FrameProtocol", fail)
        assert peer.receive(plain) == expected
    # From the end of a frame that was cut, or of a ping, plain frames are read directly again.
    for before, after in ((cut[:1], cut[1:]), (cut[:9], cut[9:]), (b"", frame(0x89, b"p"))):
        made = count_readers(monkeypatch)
        assert peer.receive(plain + before) == expected
        done = [MessageReceived(b"z" * 200)] if before else []
        assert peer.receive(after + plain) == [*done, *expected]
        assert len(made) == 1
        monkeypatch.undo()


def count_readers(monkeypatch: pytest.MonkeyPatch) -> list[FrameProtocol]:
    made: list[FrameProtocol] = []

    def make(is_client: bool, extensions: list[object]) -> FrameProtocol:
        made.append(FrameProtocol(is_client, []))
        return made[-1]

    monkeypatch.setattr(websocket, "FrameProtocol", make)
    return made


def test_raw_messages_are_bytes_in_the_order_of_events() -> None:
    wire = (
        frame(0x81, b"a")
        + frame(0x8A, b"")
        + frame(0x01, b"b")
        + frame(0x80, b"c")
        + frame(0x88, b"")
    )
    found = client(10).receive_raw(wire)
    assert [type(one).__name__ for one in found] == [
        "bytes",
        "PongReceived",
        "bytes",
        "CloseReceived",
    ]
    assert found[::2][:2] == [b"a", b"bc"]
    again = client(10).receive_raw(bytearray(wire))
    assert [type(one) for one in again] == [type(one) for one in found]


def test_an_idle_connection_keeps_nothing_of_its_handshake() -> None:
    """With it, and with a reader of wsproto, it would take 6 kB, and 30 objects for a collector."""

    def upgraded_and_used() -> list[WebSocketClient]:
        peers = [client(1 << 20) for _ in range(50)]
        for peer in peers:
            peer.send_text(b"x" * 300)
            assert peer.receive(frame(0x81, b"a") + frame(0x89, b"ping") + frame(0x01, b"b")) != []
            assert peer.receive(frame(0x80, b"c")) != []
            peer.data_to_send()
        return peers

    _, size = taken(upgraded_and_used)
    assert size < 50 * 400


# ------------------------------------------------------------------ writing

sizes = st.sampled_from([*SIZES, *LARGE, 4095, 4096, 4097, 8190, 8193, 3 * FRAGMENT]) | st.integers(
    0, 9000
)


@settings(many, max_examples=EXAMPLES // 4)
@given(sizes, st.binary(min_size=4, max_size=4), st.booleans())
def test_frames_are_those_of_wsproto(size: int, key: bytes, queued: bool) -> None:
    """With the same key; its own encoding of the first frame, and of the rest of a message."""
    text = ("\u20acb{}c\u00e9" * (size // 8 + 1)).encode()[:size].decode(errors="ignore").encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", lambda count: key[:count])
        for peer, is_client in ((client(0), True), (server(0), False)):
            reference = FrameProtocol(is_client, [])
            if not queued:
                assert peer.send_text(text) == reference.send_data(text.decode())
                continue
            peer.queue_text(text)
            while sent := peer.next_frame():
                part = text[:FRAGMENT].decode(errors="ignore")
                text = text[len(part.encode()) :]
                assert sent == reference.send_data(part, fin=not text)
            assert text == b""


def test_each_frame_has_a_new_key() -> None:
    peer = client(0)
    keys = {peer.send_text(b"same")[2:6] for _ in range(20)}
    assert len(keys) > 15
