"""Tests of front.py: what one client connection says, and when it is due to say something."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.config import Config, UpstreamUrl
from bridgecore.front import Front
from bridgecore.recovery.timers import Timer
from bridgecore.rendering import http_error
from bridgecore.wire.responses import UpstreamEvent, read_event
from tests.endpoint_world import SECOND, Answer, read_answers, request

CONFIG = Config(upstream=UpstreamUrl.parse("ws://up/"))
ERROR = http_error(502, "stream_incomplete", "Lost.")


def event(data: bytes) -> UpstreamEvent:
    found = read_event(data)
    assert found is not None
    return found


CREATED = event(b'{"type":"response.created","sequence_number":4,"response":{"id":"r"}}')
DELTA = event(b'{"type":"response.output_text.delta","sequence_number":5}')
OTHER = event(b'{"type":"other"}')
DONE = event(b'{"type":"response.completed","sequence_number":6,"response":{"id":"r"}}')


def front(**fields: object) -> Front:
    """A front whose client has asked for turn 1."""
    found = Front(CONFIG, 0)
    found.receive(request({"model": "m", **fields}))
    received = found.next_turn(1, 0, draining=False)
    assert received is not None
    assert received.turn == 1
    return found


def said(front: Front) -> Answer:
    (answer,) = read_answers(b"".join(front.out))
    return answer


def test_a_stream() -> None:
    stream = front(stream=True)
    assert set(stream.deadlines) == {Timer.HEAD}
    stream.events([CREATED, DELTA], 1)
    assert len(stream.out) == 1  # head and events leave together
    assert set(stream.deadlines) == {Timer.KEEPALIVE}
    stream.events([DONE], 2)
    assert said(stream).names == [
        "response.created", "response.output_text.delta", "response.completed",
    ]  # fmt: skip
    assert stream.answer is None
    assert not stream.closing
    assert stream.next_turn(2, 3, draining=False) is None
    assert stream.deadlines == {Timer.CLIENT_IDLE: 3 + CONFIG.client_idle}


def test_a_whole_answer() -> None:
    whole = front()
    assert whole.deadlines == {}
    whole.events([CREATED, DELTA], 1)
    assert whole.out == []
    whole.events([DONE], 2)
    assert said(whole).body == b'{"id":"r"}'


@pytest.mark.parametrize("begun", [False, True])
def test_an_error(begun: bool) -> None:
    stream = front(stream=True)
    if begun:
        stream.events([CREATED, OTHER], 1)
    stream.error(ERROR)
    answer = said(stream)
    assert answer.complete
    if begun:
        failed = answer.events[-1].json
        assert failed["sequence_number"] == 5
        assert (failed["response"]["id"], failed["response"]["status"]) == ("r", "failed")
    else:
        assert (answer.status, answer.headers["retry-after"]) == (502, "1")
    assert stream.answer is None
    stream.out.clear()
    stream.error(ERROR)  # too late: nobody waits for it
    stream.events([DELTA], 2)
    assert stream.out == []


@given(st.data())
def test_created_is_first_whatever_fails_when(data: st.DataObject) -> None:
    """Whatever the client has seen when its turn fails, head or no head, comments or none: it sees
    one ``response.created``, first, and one terminal event, last, of one response."""
    stream = front(stream=True)
    now = 1
    for _ in range(data.draw(st.integers(0, 2))):  # the head goes out, then comments
        now = min(stream.deadlines.values())
        stream.timeout(now)
    deltas = [DELTA, event(b'{"type":"response.output_text.delta","sequence_number":8}'), OTHER]
    whole = [CREATED, *deltas]
    shown = whole[: data.draw(st.integers(0, len(whole)))]
    while shown:
        size = data.draw(st.integers(1, len(shown)))
        stream.events(shown[:size], now)
        shown = shown[size:]
        if data.draw(st.booleans()):
            now = min(stream.deadlines.values())
            stream.timeout(now)
    begun = bool(stream.out)
    stream.error(ERROR)
    answer = said(stream)
    assert answer.complete
    if not begun:
        assert answer.status == 502
        return
    assert answer.names[0] == "response.created"
    assert answer.names.count("response.created") == 1
    assert answer.names[-1] == "response.failed"
    assert answer.names.count("response.failed") == 1
    first, last = answer.events[0].json, answer.events[-1].json
    assert first["response"]["id"] == last["response"]["id"]
    assert last["response"]["error"]["code"] == "stream_incomplete"
    numbers = [one.json["sequence_number"] for one in answer.events if one.name != "other"]
    assert numbers == sorted(numbers)
    assert numbers[-1] > first["sequence_number"]


def test_numbers_go_on_from_an_event_that_is_not_known() -> None:
    connection = front(stream=True)
    note = event(b'{"type":"response.note","sequence_number":7}')
    connection.events([CREATED, DELTA, note], 1)
    connection.error(ERROR)
    numbers = [one.json["sequence_number"] for one in said(connection).events]
    assert numbers == [4, 5, 7, 8]


def test_an_error_that_closes() -> None:
    stream = front(stream=True)
    stream.error(ERROR, close=True)
    assert stream.closing
    assert not stream.lingering
    stream.receive(request({"model": "m"}))
    assert stream.next_turn(2, 1, draining=False) is None


def test_keepalives() -> None:
    stream = front(stream=True)
    now = stream.deadlines[Timer.HEAD]
    stream.timeout(now - 1)
    assert stream.out == []
    stream.timeout(now)
    assert said(stream).body == b": keepalive\n\n"
    for _ in range(2):
        now = stream.deadlines[Timer.KEEPALIVE]
        stream.timeout(now)
        assert stream.deadlines[Timer.KEEPALIVE] > now
    assert said(stream).body == b": keepalive\n\n" * 3
    stream.events([CREATED, DELTA, OTHER], now + SECOND)
    stream.out.clear()
    now = stream.deadlines[Timer.KEEPALIVE]
    stream.timeout(now)  # something was said a while ago
    assert stream.out == []
    now = stream.deadlines[Timer.KEEPALIVE]
    stream.timeout(now)
    (chunk,) = stream.out
    data = chunk.split(b"data: ")[1].split(b"\n")[0]
    assert json.loads(data) == {"type": "keepalive", "sequence_number": 5}


def test_no_keepalives_for_a_client_that_does_not_read() -> None:
    stream = front(stream=True)
    stream.events([CREATED], 0)
    stream.out.clear()
    stream.blocked = True
    for _ in range(5):
        now = stream.deadlines[Timer.KEEPALIVE]
        stream.timeout(now)
        assert stream.deadlines[Timer.KEEPALIVE] > now
    assert stream.out == []


def test_a_request_waits_for_the_answer_before_it() -> None:
    stream = front(stream=True)
    stream.receive(request({"model": "m"}))
    assert stream.next_turn(2, 1, draining=False) is None
    stream.error(ERROR)
    received = stream.next_turn(2, 1, draining=False)
    assert received is not None
    assert received.turn == 2


def test_draining() -> None:
    found = Front(CONFIG, 0)
    found.receive(request({"model": "m"}))
    assert found.next_turn(1, 0, draining=True) is None
    assert said(found).error["code"] == "server_shutting_down"
    assert found.closing


@pytest.mark.parametrize(("sent", "status"), [(b"", None), (b"GET", 503), (None, 503)])
def test_shut(sent: bytes | None, status: int | None) -> None:
    found = Front(CONFIG, 0)
    found.receive(request({"model": "m"})[:-1] if sent is None else sent)
    assert found.next_turn(1, 0, draining=False) is None
    found.shut()
    assert found.closing
    assert (said(found).status if found.out else None) == status
    assert found.lingering == (status is not None)
    out = list(found.out)
    found.shut()
    assert found.out == out


def test_shut_does_not_touch_a_running_turn() -> None:
    stream = front(stream=True)
    stream.shut()
    assert not stream.closing
    stream.events([CREATED, DONE], 1)
    assert said(stream).complete


def test_a_slow_head_is_told_once() -> None:
    found = Front(CONFIG, 0)
    assert found.deadlines == {Timer.CLIENT_IDLE: CONFIG.header_timeout}
    found.receive(b"GET /")
    found.next_turn(1, 5, draining=False)
    assert found.deadlines == {Timer.HEADER: 5 + CONFIG.header_timeout}
    found.timeout(5 + CONFIG.header_timeout)
    assert said(found).status == 408
    assert (found.closing, found.lingering, found.deadlines) == (True, True, {})
