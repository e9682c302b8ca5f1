"""Tests of testing/conformance/recording.py: the rules that hold for the events of every check."""

from __future__ import annotations

import pytest

from bridgecore.testing.conformance import ConformanceError
from bridgecore.testing.conformance.recording import RecordingMachine
from bridgecore.transport import (
    Accepted,
    AcceptFailed,
    Connected,
    ConnectError,
    ConnectFailed,
    DataReceived,
    DataSent,
    Disconnected,
    DrainRequested,
    TransportEffect,
    TransportEvent,
)

FAILED = ConnectFailed(7, ConnectError.REFUSED, "refused")


def driven(*events: TransportEvent) -> RecordingMachine:
    """A machine to which these events were reported, one in each nanosecond."""
    machine = RecordingMachine()
    for now, event in enumerate(events):
        machine.handle(event, now)
    return machine


def test_a_correct_driver_breaks_no_rule() -> None:
    machine = driven(
        Accepted(1),
        AcceptFailed("too many open files"),
        DataReceived(1, b"x"),
        FAILED,
        Connected(8),
        Disconnected(1),
        DataSent(8),
        Disconnected(8),
        DrainRequested(),
    )
    machine.verify()


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([DataReceived(1, b"x")], "before Accepted or Connected"),
        ([Disconnected(1)], "before Accepted or Connected"),
        ([Accepted(1), Disconnected(1), DataReceived(1, b"x")], "after the end"),
        ([Accepted(1), Disconnected(1), Disconnected(1)], "after the end"),
        ([FAILED, Connected(7)], "after the end"),
        ([FAILED, FAILED], "after the end"),
        ([Accepted(1), DataReceived(1, b"")], "without data"),
    ],
)
def test_an_event_that_cannot_be_is_a_violation(events: list[TransportEvent], words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        driven(*events).verify()


@pytest.mark.parametrize("now", [4, 5.5, True])
def test_times_are_integers_that_never_decrease(now: int) -> None:
    machine = RecordingMachine()
    machine.handle(DrainRequested(), 5)
    machine.handle(DrainRequested(), 5)
    machine.verify()
    machine.handle(DrainRequested(), now)
    with pytest.raises(ConformanceError, match="must be integers"):
        machine.verify()


def test_an_event_inside_another_is_a_violation() -> None:
    def answer(event: TransportEvent) -> list[TransportEffect]:
        if isinstance(event, Accepted):
            machine.handle(DataReceived(1, b"x"), 1)
        return []

    machine = RecordingMachine(answer)
    machine.handle(Accepted(1), 1)
    with pytest.raises(ConformanceError, match="while another event was handled"):
        machine.verify()


def test_data_of_neighbouring_events_is_put_together() -> None:
    machine = driven(
        Accepted(1),
        Accepted(2),
        DataReceived(1, b"a"),
        DataReceived(1, b"b"),
        DataReceived(2, b"c"),
        DataReceived(1, b"d"),
    )
    expected = [DataReceived(1, b"ab"), DataReceived(2, b"c"), DataReceived(1, b"d")]
    assert machine.events()[2:] == expected


def test_a_wait_has_an_end() -> None:
    machine = RecordingMachine(patience=0.01)
    with pytest.raises(ConformanceError, match="DrainRequested must be reported"):
        machine.saw(DrainRequested)
