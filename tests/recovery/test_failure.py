"""The classification table: each evidence, and what it shows. Total, and blind to our own codes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.recovery.effects import Answer
from bridgecore.recovery.failure import (
    Closed,
    ErrorFrame,
    Evidence,
    Failure,
    FailureKind,
    Malformed,
    TimedOut,
    Unreachable,
    UpgradeRefused,
    classify,
)
from bridgecore.recovery.timers import Timer

K = FailureKind


CODES = [*range(1000, 1016), 3000, 3999, 4000, 4001, 4999]


@pytest.mark.parametrize("code", [code for code in CODES if code != 1009])
def test_any_close_code_but_one_is_a_loss(code: int) -> None:
    assert classify(Closed(code)) == Failure(K.LOST, f"close {code}")


def test_a_close_for_size_tells_that_nothing_was_processed() -> None:
    """RFC 6455, section 7.4.1."""
    assert classify(Closed(1009)) == Failure(K.TOO_LARGE, "close 1009")


@pytest.mark.parametrize("timer", list(Timer))
def test_what_timed_out_is_told_by_the_deadline(timer: Timer) -> None:
    assert classify(TimedOut(timer)) == Failure(K.TIMED_OUT, f"{timer.value} deadline")


def test_a_broken_protocol_is_a_loss_and_no_socket_is_unreachable() -> None:
    assert classify(Malformed("unreadable message")) == Failure(K.LOST, "unreadable message")
    assert classify(Unreachable("refused")) == Failure(K.UNREACHABLE, "refused")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, K.UNREACHABLE),
        (301, K.UNREACHABLE),
        (400, K.UNREACHABLE),
        (401, K.REJECTED),
        (403, K.REJECTED),
        (404, K.UNREACHABLE),
        (426, K.UNREACHABLE),
        (429, K.REJECTED),
        (500, K.UNREACHABLE),
        (503, K.UNREACHABLE),
    ],
)
def test_an_upgrade_that_is_refused(status: int, kind: FailureKind) -> None:
    assert classify(UpgradeRefused(status)) == Failure(kind, f"upgrade {status}", status)
    assert classify(UpgradeRefused(status, retry_after=7)).retry_after == 7


NF = "previous_response_not_found"
LIMIT = "websocket_connection_limit_reached"
TEXT = "Previous response with id 'resp_abc' not found."
FRAMES: list[tuple[ErrorFrame, FailureKind]] = [
    # Not found: by the code, in either place, whatever else is there or is missing.
    (ErrorFrame(400, NF, "invalid_request_error", TEXT, "previous_response_id"), K.NOT_FOUND),
    (ErrorFrame(code=NF), K.NOT_FOUND),
    (ErrorFrame(type=NF), K.NOT_FOUND),
    (ErrorFrame(status=404, code=NF), K.NOT_FOUND),
    (ErrorFrame(status=500, type=NF), K.NOT_FOUND),
    # By the words, when there is no code.
    (ErrorFrame(message=TEXT), K.NOT_FOUND),
    (ErrorFrame(400, None, "invalid_request_error", TEXT), K.NOT_FOUND),
    (
        ErrorFrame(400, None, "invalid_request_error", "Invalid `previous_response_id`."),
        K.NOT_FOUND,
    ),
    (ErrorFrame(None, None, "invalid_request_error", "Invalid previous_response_id"), K.NOT_FOUND),
    (ErrorFrame(message="Invalid `previous_response_id`"), K.NOT_FOUND),
    (ErrorFrame(message=TEXT, param="previous_response_id"), K.NOT_FOUND),
    # The same words about something else, inside other words, or beside another code are not it.
    (ErrorFrame(400, message=TEXT, param="input[0]"), K.INVALID),
    (ErrorFrame(400, message=f"The user said: {TEXT} What now?"), K.INVALID),
    (ErrorFrame(400, "context_length_exceeded", message=TEXT), K.INVALID),
    (ErrorFrame(400, message="Previous response not found."), K.INVALID),
    # The limit of the connection's age.
    (ErrorFrame(400, LIMIT, "invalid_request_error"), K.CONNECTION_LIMIT),
    (ErrorFrame(code=LIMIT), K.CONNECTION_LIMIT),
    (ErrorFrame(type=LIMIT), K.CONNECTION_LIMIT),
    (ErrorFrame(status=429, code=LIMIT), K.CONNECTION_LIMIT),
    # Too much.
    (ErrorFrame(429), K.RATE_LIMITED),
    (ErrorFrame(code="rate_limit_exceeded"), K.RATE_LIMITED),
    (ErrorFrame(type="rate_limit_error"), K.RATE_LIMITED),
    (ErrorFrame(code="rate_limit_reached"), K.RATE_LIMITED),
    (ErrorFrame(400, "usage_limit_reached"), K.RATE_LIMITED),
    (ErrorFrame(code="usage_not_included"), K.RATE_LIMITED),
    (ErrorFrame(400, "insufficient_quota"), K.RATE_LIMITED),
    (ErrorFrame(code="too_many_requests"), K.RATE_LIMITED),
    (ErrorFrame(400, "websocket_stream_limit_reached"), K.RATE_LIMITED),
    # The request.
    (ErrorFrame(400, "invalid_stream_id"), K.INVALID),
    (ErrorFrame(400, "context_length_exceeded"), K.INVALID),
    (ErrorFrame(401, "invalid_api_key"), K.INVALID),
    (ErrorFrame(400), K.INVALID),
    (ErrorFrame(499), K.INVALID),
    # Its own trouble, or no reason given at all.
    (ErrorFrame(500, "server_error"), K.SERVER_ERROR),
    (ErrorFrame(None, "server_error"), K.SERVER_ERROR),
    (ErrorFrame(503), K.SERVER_ERROR),
    (ErrorFrame(399), K.SERVER_ERROR),
    (ErrorFrame(message="Something went wrong."), K.SERVER_ERROR),
    (ErrorFrame(), K.SERVER_ERROR),
]


@pytest.mark.parametrize(("frame", "kind"), FRAMES, ids=lambda value: str(value)[:70])
def test_an_error_frame(frame: ErrorFrame, kind: FailureKind) -> None:
    failure = classify(frame)
    assert failure.kind is kind
    assert failure.status == frame.status


def test_every_kind_that_a_frame_can_show_is_in_the_table() -> None:
    others = {K.LOST, K.TIMED_OUT, K.UNREACHABLE, K.REJECTED, K.TOO_LARGE}
    assert {kind for _, kind in FRAMES} == set(FailureKind) - others


def test_retry_after_is_kept() -> None:
    assert classify(ErrorFrame(429, retry_after=12)).retry_after == 12


OURS = [answer for answer in Answer if answer is not Answer.NOT_FOUND]


@pytest.mark.parametrize("answer", OURS)
def test_a_code_of_our_own_is_no_evidence(answer: Answer) -> None:
    """A bridge in front of a bridge: our words, coming back, choose nothing (invariant 10)."""
    for status in (None, 400, 502):
        with_code = classify(ErrorFrame(status, answer.value, answer.value))
        assert with_code == classify(ErrorFrame(status))


texts = st.none() | st.text(max_size=40) | st.sampled_from([NF, LIMIT, TEXT, "server_error"])
numbers = st.none() | st.integers(-1, 1000)
evidence = st.one_of(
    st.builds(Closed, st.integers(0, 5000)),
    st.builds(Malformed, st.text(max_size=20)),
    st.builds(Unreachable, st.text(max_size=20)),
    st.builds(UpgradeRefused, st.integers(100, 999), numbers),
    st.builds(ErrorFrame, numbers, texts, texts, texts, texts, numbers),
    st.builds(TimedOut, st.sampled_from(Timer)),
)


@given(evidence)
def test_classification_is_total_and_repeats_no_upstream_text(shown: Evidence) -> None:
    failure = classify(shown)
    assert failure == classify(shown)
    if isinstance(shown, ErrorFrame):
        status = "without status" if shown.status is None else str(shown.status)
        assert failure.detail == f"error frame {status}: {failure.kind.value}"
