"""Tests of recovery/inflight.py: what an event says about the frame in flight."""

from __future__ import annotations

import pytest

from bridgecore.recovery.events import Turn
from bridgecore.recovery.failure import Closed, ErrorFrame, Evidence, TimedOut
from bridgecore.recovery.inflight import concerns_unsent, proves_too_large
from bridgecore.recovery.state import AttemptPhase, Lifecycle, Running, SessionState
from bridgecore.recovery.timers import Timer

P = AttemptPhase


def in_phase(phase: AttemptPhase) -> SessionState:
    return SessionState(lifecycle=Lifecycle.OPEN, running=Running(Turn(1), phase))


@pytest.mark.parametrize("cause", [Closed(1009), ErrorFrame(413)])
def test_a_frame_is_too_large_only_before_it_is_answered(cause: Evidence) -> None:
    for phase in (P.SENDING, P.SENT):
        assert proves_too_large(in_phase(phase), cause)
    for phase in (P.CREATED, P.OUTPUT):
        assert not proves_too_large(in_phase(phase), cause)
    assert not proves_too_large(SessionState(), cause)


@pytest.mark.parametrize(
    "cause", [Closed(1006), ErrorFrame(400), ErrorFrame(429), TimedOut(Timer.CREATED)]
)
def test_other_failures_say_nothing_about_the_size(cause: Evidence) -> None:
    for phase in (P.SENDING, P.SENT, P.CREATED, P.OUTPUT):
        assert not proves_too_large(in_phase(phase), cause)


def test_only_the_age_of_a_connection_concerns_a_frame_that_was_not_sent() -> None:
    assert concerns_unsent(ErrorFrame(400, "websocket_connection_limit_reached"))
    for error in (ErrorFrame(413), ErrorFrame(429), ErrorFrame(404, "previous_response_not_found")):
        assert not concerns_unsent(error)
