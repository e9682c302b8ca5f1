"""A connection to the upstream's HTTP API for one request: what is written when, and its time."""

from __future__ import annotations

import attrs
import pytest

from bridgecore.config import Config, HttpUrl, UpstreamUrl
from bridgecore.links.passage import PassageConnection
from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.wire.http_client import AnswerDone, AnswerHead, BadAnswerError
from bridgecore.wire.passing import PassedRequest

S = NS_PER_SECOND
CONFIG = Config(
    upstream=UpstreamUrl.parse("wss://up/v1/responses"),
    upstream_http=HttpUrl.parse("https://api:444/v2/?a=b"),
)
UPLOAD = PassedRequest(b"POST", ("files",), b"", [(b"accept", b"x")], 4, False, "req_1")
HEAD = (
    b"POST /v2/files?a=b HTTP/1.1\r\nhost: api:444\r\naccept: x\r\nconnection: close\r\n"
    b"content-length: 4\r\n\r\n"
)


def link(request: PassedRequest = UPLOAD) -> PassageConnection:
    return PassageConnection(CONFIG, request, 0)


def test_nothing_is_written_before_the_connection_is_open() -> None:
    passage = link()
    assert passage.send(b"ab", 1, last=False) == b""
    assert (passage.begun, passage.sent) == (False, False)
    assert passage.connect(2) == HEAD + b"ab"
    assert (passage.begun, passage.sent) == (True, False)
    assert passage.send(b"cd", 3, last=True) == b"cd"
    assert passage.sent


@pytest.mark.parametrize("first", ["body", "connection"])
def test_a_body_that_is_replaced_is_described_anew(first: str) -> None:
    headers = [(b"content-encoding", b"gzip"), (b"content-type", b"application/json")]
    request = attrs.evolve(UPLOAD, headers=headers, length=None, whole=True)
    passage = link(request)
    if first == "body":
        written = passage.replace_body(b"{}") + passage.connect(1)
    else:
        written = passage.connect(1) + passage.replace_body(b"{}")
    assert written == (
        b"POST /v2/files?a=b HTTP/1.1\r\nhost: api:444\r\ncontent-type: application/json\r\n"
        b"connection: close\r\ncontent-length: 2\r\n\r\n{}"
    )
    assert passage.sent


def test_the_connection_has_its_own_time() -> None:
    passage = link()
    assert (passage.deadline, passage.timer) == (CONFIG.connect_timeout, Timer.CONNECT)
    assert passage.timeout(CONFIG.connect_timeout)


def test_what_moves_in_either_direction_extends_the_time() -> None:
    passage = link()
    passage.connect(1 * S)
    idle = CONFIG.idle_timeout
    assert (passage.deadline, passage.timer) == (1 * S + idle, Timer.IDLE)
    passage.send(b"abcd", 2 * S, last=True)
    assert not passage.timeout(1 * S + idle)
    assert passage.deadline == 2 * S + idle
    passage.receive(b"HTTP/1.1 200", 3 * S)
    assert not passage.timeout(2 * S + idle)
    assert passage.timeout(3 * S + idle)


def test_an_answer_is_read_in_its_parts() -> None:
    passage = link()
    passage.connect(1)
    answer = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nab"
    head, body, done = passage.receive(answer, 2)
    assert head == AnswerHead(201, [(b"content-length", b"2")], 2)
    assert body == b"ab"
    assert done == AnswerDone(True)


def test_an_answer_that_is_cut_off_is_an_error() -> None:
    passage = link()
    passage.connect(1)
    passage.receive(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na", 2)
    with pytest.raises(BadAnswerError):
        passage.receive(b"", 3)
