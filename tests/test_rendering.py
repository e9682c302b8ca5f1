"""Tests of rendering.py: every decision as a client sees it."""

from __future__ import annotations

import json

import pytest

from bridgecore.recovery.effects import Answer
from bridgecore.recovery.failure import (
    Closed,
    ErrorFrame,
    Evidence,
    TimedOut,
    Unreachable,
    UpgradeRefused,
    classify,
)
from bridgecore.recovery.timers import Timer
from bridgecore.rendering import http_error, render_answer, render_failed_response


@pytest.mark.parametrize("answer", Answer)
@pytest.mark.parametrize(
    "evidence",
    [
        None,
        Closed(1006),
        TimedOut(Timer.CREATED),
        Unreachable("refused"),
        UpgradeRefused(503, 9),
        ErrorFrame(),
        ErrorFrame(429, retry_after=9),
        ErrorFrame(400, "previous_response_not_found"),
    ],
    ids=repr,
)
def test_every_answer(answer: Answer, evidence: Evidence | None) -> None:
    failure = None if evidence is None else classify(evidence)
    frame = evidence if isinstance(evidence, ErrorFrame) else None
    error = render_answer(answer, failure, frame, "resp_1")
    assert error.status in (400, 429, 502, 503)
    assert (error.retry_after is not None) == (error.status != 400)
    assert error.retry_after != 0
    body = json.loads(error.body)["error"]
    assert body["code"] == error.code != ""
    assert body["message"]
    assert body["type"]
    if error.status == 400:
        assert (error.code, error.param) == (
            "previous_response_not_found", "previous_response_id",
        )  # fmt: skip
        assert "resp_1" in error.message
    elif answer is not Answer.UPSTREAM_ERROR:
        assert error.code == answer.value


@pytest.mark.parametrize(("status", "asks"), [(429, True), (503, True), (500, False), (400, False)])
def test_retry_after_follows_the_status(status: int, asks: bool) -> None:
    assert http_error(status, "c", "m").retry_after == (1 if asks else None)
    assert http_error(status, "c", "m", retry_after=30).retry_after == (30 if asks else None)
    assert http_error(status, "c", "m", retry_after=0).retry_after == (1 if asks else None)


@pytest.mark.parametrize(
    ("status", "type_"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (429, "rate_limit_error"),
        (502, "server_error"),
    ],
)
def test_types(status: int, type_: str) -> None:
    assert http_error(status, "c", "m").type == type_
    assert http_error(status, "c", "m", type_="theirs").type == "theirs"


@pytest.mark.parametrize(
    ("frame", "status", "code"),
    [
        (ErrorFrame(400, "x"), 400, "x"),
        (ErrorFrame(401, "x"), 401, "x"),
        (ErrorFrame(400, "websocket_connection_limit_reached"), 502, None),
        (ErrorFrame(400, "rate_limit_exceeded"), 429, "rate_limit_exceeded"),
        (ErrorFrame(500, "x"), 502, "x"),
        (ErrorFrame(200, "x"), 502, "x"),
        (ErrorFrame(None, "x"), 502, "x"),
        (ErrorFrame(None, None, "theirs"), 502, "theirs"),
        (ErrorFrame(), 502, "upstream_error"),
    ],
    ids=repr,
)
def test_the_upstreams_own_errors(frame: ErrorFrame, status: int, code: str | None) -> None:
    error = render_failed_response(frame, None)
    assert error.status == status
    assert error.code == (code or frame.code)
    assert error.message


def test_a_not_found_names_the_anchor() -> None:
    frame = ErrorFrame(message="Invalid `previous_response_id`.", type="invalid_request_error")
    error = render_failed_response(frame, "resp_7")
    assert (error.status, error.code) == (400, "previous_response_not_found")
    assert "resp_7" in error.message


def test_a_not_found_that_no_turn_asked_for_is_the_upstreams_fault() -> None:
    """A client that named no id would drop one that it does not have, for ever."""
    error = ErrorFrame(status=400, code="previous_response_not_found")
    said = render_answer(Answer.UPSTREAM_ERROR, classify(error), error, None)
    assert (said.status, said.code, said.retry_after) == (502, "upstream_error", 1)
