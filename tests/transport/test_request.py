"""Tests of a request without a socket, step by step. ``tests/httpx/test_exchange.py`` has the order
of events, on an event loop; ``tests/test_examples.py`` a server around it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from bridgecore import transport as tp
from bridgecore.transport.request import InProcessRequest
from bridgecore.transport.sockets import HIGH_WATER
from tests.transport.test_driver import Adapter


class World:
    """A driver whose machine returns what a test wants, and a request that has begun."""

    def __init__(self) -> None:
        self.adapter, self.woken = Adapter(), 0
        self.request = InProcessRequest(cast(Any, self.adapter), self.wake)
        self.request.begin(b"POST", b"/v1/responses", [])

    def wake(self) -> None:
        self.woken += 1

    def carry_out(self, *effects: tp.TransportEffect) -> None:
        """Have the machine return effects, because of an event that is about nothing."""
        self.adapter.inner.effects = list(effects)
        self.adapter.report(tp.TimeoutReached())
        self.seen()

    def seen(self) -> list[str]:
        """The kinds of the events that were reported since the last call."""
        events, self.adapter.inner.seen = self.adapter.inner.seen, []
        return [type(event).__name__ for event in events]


def test_an_answer_is_taken_in_parts_to_its_end() -> None:
    world = World()
    request = world.request
    request.receive(b"")
    request.receive(b"{")
    request.end()
    assert world.seen() == ["RequestBegun", "DataReceived", "RequestEnded"]
    world.carry_out(tp.Respond(1, 200, [(b"a", b"b")]), tp.Send(1, b"one"), tp.Send(1, b"two"))
    assert (request.head, world.woken) == ((200, [(b"a", b"b")]), 3)
    assert request.take() == (b"onetwo", False)
    world.carry_out(tp.Send(1, b"three"), tp.Close(1))
    assert request.take() == (b"three", True)
    assert not request.cut
    request.leave()
    assert world.seen() == []


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_a_part_of_a_body_may_be_anything_that_has_bytes(kind: Any) -> None:
    world = World()
    world.request.receive(kind(b"{}"))
    assert world.adapter.inner.seen[-1] == tp.DataReceived(1, b"{}")


@pytest.mark.parametrize("part", ["text", 123, object()])
def test_a_part_that_has_no_bytes_is_refused_before_it_is_reported(part: Any) -> None:
    """The machine takes it for misuse, which would end it."""
    world = World()
    with pytest.raises(TypeError):
        world.request.receive(part)
    assert world.seen() == ["RequestBegun"]


def test_a_body_is_paused_and_goes_on() -> None:
    world = World()
    world.carry_out(tp.PauseReading(1))
    assert world.request.paused
    world.carry_out(tp.ResumeReading(1))
    assert (world.request.paused, world.woken) == (False, 2)


def test_what_waits_for_a_slow_reader_blocks_the_answer() -> None:
    world = World()
    world.adapter.inner.effects = [tp.Send(1, bytes(HIGH_WATER + 1), notify=True)]
    world.adapter.report(tp.TimeoutReached())
    assert world.seen() == ["RequestBegun", "TimeoutReached", "WriteBlocked"]
    world.request.unblock()  # it has written something, but not taken this
    assert world.seen() == []
    world.request.take()
    world.request.unblock()
    world.request.unblock()
    assert world.seen() == ["WriteUnblocked", "DataSent"]


@pytest.mark.parametrize("effect", [tp.Abort(1), tp.Respond(1, 101, [])])
def test_an_answer_that_cannot_be_completed_is_cut(effect: tp.TransportEffect) -> None:
    """An upgrade to WebSocket is one: it has no body."""
    world = World()
    world.carry_out(effect)
    assert world.request.cut
    assert world.request.take() == (b"", True)
    assert world.woken == 1
    world.request.leave()
    world.request.end()
    assert world.seen() == []


def test_a_bridge_that_stops_cuts_the_answer() -> None:
    world = World()
    world.request.lose()
    world.request.lose()
    assert (world.request.cut, world.woken) == (True, 1)


def test_a_client_that_leaves_is_reported_once() -> None:
    world = World()
    world.request.leave()
    world.request.leave()
    assert world.seen() == ["RequestBegun", "Disconnected"]
