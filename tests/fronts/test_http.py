"""Tests of fronts/http.py: the bytes that a client's HTTP connection reads and writes, and when."""

from __future__ import annotations

import json

import attrs
import pytest

from bridgecore.api_error import api_error
from bridgecore.config import Config, UpstreamUrl
from bridgecore.fronts.http import HttpConnection
from bridgecore.messages import (
    AnswerBody,
    AnswerEvents,
    AnswerKeepalive,
    BeginAnswer,
    EndAnswer,
    FailAnswer,
)
from bridgecore.recovery.timers import Timer
from bridgecore.wire import request_heads
from bridgecore.wire.http import BodyPart, RequestBody
from bridgecore.wire.http_client import AnswerHead
from bridgecore.wire.passing import PassedRequest
from bridgecore.wire.responses import EventKind, UpstreamEvent, keepalive_event
from tests.endpoint_world import Answer, read_answers, request

CONFIG = Config(upstream=UpstreamUrl.parse("ws://up/"))
ERROR = api_error(502, "stream_incomplete", "Lost.")
DELTA = UpstreamEvent(EventKind.OUTPUT, b"response.output_text.delta", b'{"delta":"x"}')


def connected() -> HttpConnection:
    """A connection whose client has requested turn 1."""
    connection = HttpConnection(CONFIG, 0)
    connection.receive(request({"model": "m"}))
    received = connection.next_request(1, 0, draining=False)
    assert received is not None
    assert received.turn == 1
    assert json.loads(received.body) == {"model": "m"}
    assert connection.turns == [1]
    assert connection.deadline is None
    return connection


def said(connection: HttpConnection) -> Answer:
    (answer,) = read_answers(b"".join(connection.out))
    return answer


def test_a_stream() -> None:
    connection = connected()
    for effect in (
        BeginAnswer(1),
        AnswerKeepalive(1),
        AnswerEvents(1, [DELTA, DELTA]),
        AnswerKeepalive(1, keepalive_event(7)),
        EndAnswer(1),
    ):
        assert connection.turns == [1]
        connection.answer(effect)
    answer = said(connection)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.complete
    assert answer.body.startswith(b": keepalive\n\nevent: response.output_text.delta\ndata: {")
    assert answer.names == [*["response.output_text.delta"] * 2, "keepalive"]
    assert connection.turns == []
    assert not connection.closing
    assert connection.next_request(2, 3, draining=False) is None
    assert (connection.timer, connection.deadline) == (Timer.CLIENT_IDLE, 3 + CONFIG.client_idle)
    assert connection.idle


@pytest.mark.parametrize("shortcuts", [True, False])
def test_shortcuts_can_be_switched_off(shortcuts: bool) -> None:
    request_heads._parse_outline.cache_clear()
    connection = HttpConnection(attrs.evolve(CONFIG, shortcuts=shortcuts), 0)
    connection.receive(request({"model": "m"}))
    assert connection.next_request(1, 0, draining=False) is not None
    assert request_heads._parse_outline.cache_info().misses == shortcuts


def test_an_idle_connection_keeps_no_headers() -> None:
    connection = connected()
    assert connection._head is not None
    connection.answer(AnswerBody(1, b"{}"))
    assert connection._head is None


def test_a_json_answer() -> None:
    connection = connected()
    assert not connection.idle
    connection.answer(AnswerBody(1, b'{"id":"r"}'))
    answer = said(connection)
    assert (answer.status, answer.body) == (200, b'{"id":"r"}')
    assert answer.request_id.startswith("req_")


def test_an_error() -> None:
    connection = connected()
    connection.answer(FailAnswer(1, ERROR))
    answer = said(connection)
    assert (answer.status, answer.headers["retry-after"]) == (502, "1")
    assert answer.headers["retry-after-ms"] == "1000"
    assert answer.error["code"] == "stream_incomplete"
    assert connection.turns == []


@pytest.mark.parametrize("begun", [False, True])
def test_the_last_answer(begun: bool) -> None:
    connection = connected()
    if begun:
        connection.answer(BeginAnswer(1))
    connection.close_after_answers()
    connection.answer(EndAnswer(1) if begun else FailAnswer(1, ERROR))
    assert said(connection).complete
    assert connection.closing
    assert not connection.lingering
    connection.receive(request({"model": "m"}))
    assert connection.next_request(2, 1, draining=False) is None


def test_a_request_waits_for_the_answer_before_it() -> None:
    connection = connected()
    connection.receive(request({"model": "m"}))
    assert connection.next_request(2, 1, draining=False) is None
    connection.answer(FailAnswer(1, ERROR))
    received = connection.next_request(2, 1, draining=False)
    assert received is not None
    assert received.turn == 2


def test_draining() -> None:
    connection = HttpConnection(CONFIG, 0)
    connection.receive(request({"model": "m"}))
    assert connection.next_request(1, 0, draining=True) is None
    assert said(connection).error["code"] == "server_shutting_down"
    assert connection.closing


@pytest.mark.parametrize(("sent", "status"), [(b"", None), (b"GET", 503), (None, 503)])
def test_shut(sent: bytes | None, status: int | None) -> None:
    connection = HttpConnection(CONFIG, 0)
    connection.receive(request({"model": "m"})[:-1] if sent is None else sent)
    assert connection.next_request(1, 0, draining=False) is None
    connection.shut()
    assert connection.closing
    assert (said(connection).status if connection.out else None) == status
    assert connection.lingering == (status is not None)
    out = list(connection.out)
    connection.shut()
    assert connection.out == out


def test_shut_does_not_touch_a_running_turn() -> None:
    connection = connected()
    connection.shut()
    assert not connection.closing
    connection.answer(AnswerBody(1, b"{}"))
    assert said(connection).complete


def test_a_slow_head_is_answered_408_once() -> None:
    connection = HttpConnection(CONFIG, 0)
    assert (connection.timer, connection.deadline) == (Timer.CLIENT_IDLE, CONFIG.header_timeout)
    connection.receive(b"GET /")
    connection.next_request(1, 5, draining=False)
    assert (connection.timer, connection.deadline) == (Timer.HEADER, 5 + CONFIG.header_timeout)
    connection.timeout(connection.deadline or 0)
    assert said(connection).status == 408
    assert (connection.closing, connection.lingering, connection.deadline) == (True, True, None)


# ------------------------------------------------------------------ passed requests


def uploading(*, body: bytes = b"ab") -> HttpConnection:
    """A connection whose client has sent ``body`` of a body of four bytes for another path."""
    connection = HttpConnection(CONFIG, 0)
    connection.receive(request(None, path="/v1/files", headers="content-length: 4\r\n") + body)
    assert connection.next_request(1, 10, draining=False) is None
    return connection


def passes(connection: HttpConnection) -> PassedRequest | None:
    """What it passes through, by a call: type checkers assume that an attribute does not change."""
    return connection.passing


def test_a_passed_request_is_handed_over_by_parts() -> None:
    connection = uploading()
    passed, part = connection.passed
    assert isinstance(passed, PassedRequest)
    assert passes(connection) is passed
    assert (passed.method, passed.segments, passed.length) == (b"POST", ("files",), 4)
    assert part == BodyPart(b"ab")
    assert not connection.idle
    connection.passed.clear()
    connection.receive(b"cd" + request(None, method="GET", path="/livez"))
    assert connection.next_request(1, 20, draining=False) is None
    assert connection.passed == [RequestBody(b"cd")]
    assert connection.deadline is None  # it is the upstream that is waited for
    connection.begin_passed(AnswerHead(404, [(b"etag", b"e"), (b"set-cookie", b"s")], 2))
    connection.pass_on(b"{}")
    connection.end_passed()
    answer = said(connection)
    assert (answer.status, answer.body, answer.complete) == (404, b"{}", True)
    assert answer.headers == {"content-length": "2", "etag": "e"}
    assert (passes(connection), connection.closing) == (None, False)
    connection.out.clear()
    connection.next_request(1, 30, draining=False)
    assert said(connection).json == {"status": "ok"}


def test_the_time_for_a_passed_body_is_from_part_to_part() -> None:
    connection = uploading()
    assert (connection.timer, connection.deadline) == (Timer.BODY, 10 + CONFIG.body_timeout)
    connection.receive(b"c")
    connection.next_request(1, 20, draining=False)
    deadlines = [connection.deadline]
    for held in (True, False):
        connection.hold(held, 40)
        deadlines.append(connection.deadline)
    assert deadlines == [20 + CONFIG.body_timeout, None, 40 + CONFIG.body_timeout]


@pytest.mark.parametrize("begun", [False, True])
def test_a_passed_request_that_is_too_slow(begun: bool) -> None:
    connection = uploading()
    if begun:
        connection.begin_passed(AnswerHead(200, [], None))
    connection.timeout(connection.deadline or 0)
    assert connection.broken is begun  # a part must not be taken for the whole
    if not begun:
        assert said(connection).error["code"] == "request_timeout"
        assert connection.closing


def test_a_connection_that_passes_a_request_is_not_shut() -> None:
    connection = uploading()
    connection.shut()
    assert (connection.closing, connection.out) == (False, [])
    connection.refuse_passed(ERROR)
    assert said(connection).error["code"] == "stream_incomplete"
    # The rest of the body cannot be told from a next request.
    assert (connection.closing, connection.lingering) == (True, True)
