"""Tests of testing/faults.py: each fault at each point of a turn happens as planned, and only
there.

The faults that have names are in test_catalogue.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.testing import (
    EVERY,
    Abort,
    CloseWith,
    Error,
    ErrorShape,
    Fault,
    FaultPlan,
    Freeze,
    Garbage,
    Outcome,
    Point,
    Reject,
    SendEvents,
    Silence,
)
from bridgecore.testing.faults import Action
from bridgecore.transport import (
    EofReceived,
)
from bridgecore.wire.websocket import (
    CloseReceived,
    Failed,
    PongReceived,
    Upgraded,
    UpgradeRejected,
)
from tests.testing.emulator_world import (
    CREATED,
    POINTS,
    TO_FIRST_DELTA,
    TO_LAST,
    WHOLE,
    Link,
    faulty,
    said,
    types,
    world,
)


@pytest.mark.parametrize(("point", "expected"), POINTS)
def test_close_at_every_point(point: Point, expected: list[str]) -> None:
    w = faulty(point, CloseWith(1011, "oops"))
    link = w.connect()
    assert types(link.create()) == expected
    assert link.events[-1] == CloseReceived(1011, "oops")
    assert link.ended == ""
    link.send(link.ws.data_to_send())
    assert link.ended == "close"
    done = point is Point.AFTER_TERMINAL
    assert w.emulator.turns[0].outcome is (Outcome.COMPLETED if done else Outcome.LOST)


@pytest.mark.parametrize(("point", "expected"), POINTS)
def test_abort_at_every_point_comes_after_earlier_bytes(point: Point, expected: list[str]) -> None:
    w = faulty(point, Abort())
    link = w.connect()
    assert types(link.create()) == expected
    assert link.ended == "abort"
    assert w.emulator.connections == 0


@pytest.mark.parametrize(("point", "expected"), POINTS)
def test_silence_at_every_point_leaves_pongs(point: Point, expected: list[str]) -> None:
    w = faulty(point, Silence())
    link = w.connect()
    assert types(link.create()) == expected
    assert link.create() == []
    assert types(link.create(stream_id="other")) == WHOLE
    link.send(link.ws.ping())
    assert link.events[-1] == PongReceived()
    assert w.emulator.next_timeout() is None


@pytest.mark.parametrize(("point", "expected"), POINTS)
def test_freeze_at_every_point_is_dead_air(point: Point, expected: list[str]) -> None:
    w = faulty(point, Freeze())
    link = w.connect()
    assert types(link.create()) == expected
    sends = link.sends
    link.send(link.ws.ping())
    link.create()
    assert link.sends == sends
    assert w.emulator.connections == 1
    w.tell(EofReceived(link.conn))
    assert link.ended == "close"


@pytest.mark.parametrize(("point", "expected"), POINTS)
def test_error_at_every_point(point: Point, expected: list[str]) -> None:
    error = Error(429, "rate_limit_exceeded", "requests", "Slow down.", None, ErrorShape.NO_STATUS)
    w = faulty(point, error)
    link = w.connect()
    frames = link.create()
    assert types(frames) == [*expected, "error"]
    assert frames[-1]["error"]["code"] == "rate_limit_exceeded"
    assert "status" not in frames[-1]
    link.ask()


@pytest.mark.parametrize(("point", "expected"), POINTS)
def test_garbage_as_text_does_not_end_the_turn(point: Point, expected: list[str]) -> None:
    link = faulty(point, Garbage(b"\x00 not json")).connect()
    assert types(link.create()) == [*expected, "not json", *WHOLE[len(expected) :]]


def test_raw_garbage_breaks_the_connection() -> None:
    link = faulty(Point.AFTER_CREATED, Garbage(b"\xff\xff\xff", raw=True)).connect()
    assert types(link.create()) == CREATED
    assert isinstance(link.events[-1], Failed)
    assert link.create() == []


def test_scripted_events_go_out_as_they_are() -> None:
    unknown = b'{"type":"response.custom.thing", "sequence_number":%SEQUENCE%,"x": 1}'
    link = faulty(Point.MID_OUTPUT, SendEvents((unknown,)), deltas=2).connect()
    frames = link.create()
    assert types(frames) == [*TO_FIRST_DELTA, WHOLE[4], "response.custom.thing", *WHOLE[6:]]
    assert [f["sequence_number"] for f in frames] == list(range(len(frames)))
    assert unknown.replace(b"%SEQUENCE%", b"6") in link.raw


@pytest.mark.parametrize("kind", ["response.failed", "response.incomplete", "error"])
def test_scripted_terminal_ends_the_turn(kind: str) -> None:
    event = b'{"type":"%s","response":{"id":"%%RESPONSE_ID%%"}}' % kind.encode()
    w = faulty(Point.BEFORE_TERMINAL, SendEvents((event,)), nth=2)
    link = w.connect()
    first = link.ask(store=False)
    frames = link.create(store=False, previous_response_id=first["id"])
    assert types(frames) == [*TO_LAST, kind]
    assert frames[-1]["response"]["id"] == w.emulator.response_id(2)
    assert w.emulator.turns[1].outcome is Outcome.FAILED
    if kind == "response.incomplete":
        link.ask(store=False, previous_response_id=first["id"])
    else:
        link.refused(store=False, previous_response_id=first["id"])


@pytest.mark.parametrize(("deltas", "seen"), [(0, 0), (1, 1), (3, 3), (4, 4), (99, 4)])
def test_mid_output_counts_deltas(deltas: int, seen: int) -> None:
    link = faulty(Point.MID_OUTPUT, Silence(), deltas=deltas).connect()
    assert types(link.create()).count("response.output_text.delta") == seen


def test_mid_output_of_a_warmup_and_of_a_call() -> None:
    link = faulty(Point.MID_OUTPUT, Silence()).connect()
    assert types(link.create(generate=False)) == CREATED
    link = faulty(Point.MID_OUTPUT, Silence()).connect()
    frames = link.create('call tool f {"some": "arguments"}')
    assert types(frames)[-1] == "response.function_call_arguments.delta"


def test_faults_of_one_point_strike_in_order() -> None:
    plan = FaultPlan().add(
        1,
        Fault(Point.MID_OUTPUT, SendEvents((b'{"type":"x.1"}',))),
        Fault(Point.MID_OUTPUT, SendEvents((b'{"type":"x.2"}',))),
        Fault(Point.BEFORE_CREATED, SendEvents((b'{"type":"x.0"}',))),
    )
    link = world(faults=plan).connect()
    assert types(link.create()) == ["x.0", *TO_FIRST_DELTA, "x.1", "x.2", *WHOLE[5:]]


def test_close_codes_without_a_code_and_without_a_frame() -> None:
    link = faulty(Point.AFTER_CREATED, CloseWith(1005)).connect()
    link.create()
    assert link.events[-1] == CloseReceived(1005, "")
    link = faulty(Point.AFTER_CREATED, CloseWith(1006)).connect()
    assert types(link.create()) == CREATED
    assert not any(isinstance(e, CloseReceived) for e in link.events)
    assert link.ended == "close"


def test_close_does_not_wait_for_its_answer_for_ever() -> None:
    w = faulty(Point.AFTER_CREATED, CloseWith())
    link = w.connect()
    link.create()
    deadline = w.emulator.next_timeout()
    assert deadline is not None
    assert deadline.reason is Timer.CLOSE_HANDSHAKE
    assert w.wait() == 2 * NS_PER_SECOND
    assert link.ended == "close"


def begin_large_frame(link: Link) -> None:
    body = {"type": "response.create", "model": "m", "input": "x" * 100_000}
    link.send(link.ws.send_text(json.dumps(body).encode())[:60_000])


CHECKS: list[tuple[Action, Callable[[Link], bool]]] = [
    (CloseWith(1012), lambda link: link.events[-1] == CloseReceived(1012, "")),
    (Abort(), lambda link: link.ended == "abort"),
    (Silence(), lambda link: link.sends == 1),
    (Freeze(), lambda link: link.sends == 1),
    (Error(503), lambda link: link.frames[-1]["status"] == 503),
    (Garbage(b"?"), lambda link: link.raw == [b"?"]),
    (SendEvents((b'{"type":"x"}',)), lambda link: link.raw == [b'{"type":"x"}']),
]


@pytest.mark.parametrize(("action", "check"), CHECKS)
def test_fault_while_receiving_stops_reading(action: Action, check: Callable[[Link], bool]) -> None:
    w = faulty(Point.WHILE_RECEIVING, action)
    link = w.connect()
    begin_large_frame(link)
    assert check(link)
    if link.ended != "abort":
        assert link.paused
        sends = link.sends
        link.send(b"more of the frame")
        assert link.sends == sends
    assert w.emulator.requests == []
    assert said(w.connect().ask("next")) == "turn 1: next"  # turn 2 has no fault
    assert w.emulator.requests[0].number == 2


def test_garbage_while_receiving_leaves_no_connection() -> None:
    """The peer closes it; the emulator, which does not read, would never see that."""
    w = faulty(Point.WHILE_RECEIVING, Garbage(b"\x00\x00", raw=True))
    link = w.connect()
    begin_large_frame(link)
    assert (link.paused, link.ended) == (True, "")
    assert w.wait() == 2 * NS_PER_SECOND
    assert link.ended == "close"


def test_small_frames_are_never_met_while_receiving() -> None:
    link = faulty(Point.WHILE_RECEIVING, Abort()).connect()
    link.ask()


CONNECT_CHECKS: list[tuple[Action, Callable[[Link], bool]]] = [
    (CloseWith(), lambda link: link.ended == "close" and link.sends == 0),
    (Abort(), lambda link: link.ended == "abort"),
    (Silence(), lambda link: not link.ended and link.sends == 0),
    (Freeze(), lambda link: not link.ended and link.sends == 0),
    (Garbage(b"SSH-2.0\r\n"), lambda link: isinstance(link.events[-1], Failed)),
]


@pytest.mark.parametrize("point", [Point.ON_CONNECT, Point.ON_UPGRADE])
@pytest.mark.parametrize(("action", "check"), CONNECT_CHECKS)
def test_faults_before_the_upgrade(
    point: Point, action: Action, check: Callable[[Link], bool]
) -> None:
    w = faulty(point, action, nth=2)
    assert isinstance(w.connect().events[0], Upgraded)
    link = w.accept()
    request = link.ws.connect()
    if point is Point.ON_UPGRADE:
        assert link.sends == 0
        assert not link.ended
    link.send(request)
    assert check(link)
    assert isinstance(w.connect().events[0], Upgraded)


def test_upgrade_is_rejected_as_planned() -> None:
    action = Reject(429, ((b"retry-after", b"7"),), b"later")
    w = faulty(Point.ON_UPGRADE, action, nth=EVERY)
    for _ in range(2):
        link = w.connect()
        (event,) = link.events
        assert isinstance(event, UpgradeRejected)
        assert (event.status, event.body) == (429, b"later")
        assert (b"retry-after", b"7") in event.headers
        assert link.ended == "close"
    w.emulator.faults.clear()
    assert isinstance(w.connect().events[0], Upgraded)
    assert w.emulator.rejections == 2


def test_faults_can_be_added_while_running() -> None:
    w = world()
    link = w.connect()
    link.ask()
    w.emulator.faults.add(2, Fault(Point.BEFORE_CREATED, CloseWith(1013)))
    assert link.create() == []
    assert link.events[-1] == CloseReceived(1013, "")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fault(Point.ON_CONNECT, Reject(500)),
        lambda: Fault(Point.AFTER_CREATED, Reject(500)),
        lambda: Fault(Point.ON_UPGRADE, Error()),
        lambda: Fault(Point.ON_CONNECT, SendEvents(())),
        lambda: Fault(Point.MID_OUTPUT, Abort(), deltas=-1),
        lambda: FaultPlan().add(-1),
        lambda: CloseWith(1004),
        lambda: CloseWith(1015),
        lambda: CloseWith(2000),
        lambda: CloseWith(5000),
        lambda: Garbage(b"\xff"),
        lambda: SendEvents((b"\xff",)),
    ],
)
def test_plans_without_meaning_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        make()
