"""Tests of api_error.py: the error that a client gets for each decision."""

from __future__ import annotations

import json

import pytest

from bridgecore.api_error import api_error, render_answer, render_failed_response
from bridgecore.recovery.effects import FailureReply
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


@pytest.mark.parametrize("answer", FailureReply)
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
def test_every_answer(answer: FailureReply, evidence: Evidence | None) -> None:
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
    elif answer is not FailureReply.UPSTREAM_ERROR:
        assert error.code == answer.value


@pytest.mark.parametrize(("status", "asks"), [(429, True), (503, True), (500, False), (400, False)])
def test_retry_after_follows_the_status(status: int, asks: bool) -> None:
    assert api_error(status, "c", "m").retry_after == (1 if asks else None)
    assert api_error(status, "c", "m", retry_after=30).retry_after == (30 if asks else None)
    assert api_error(status, "c", "m", retry_after=0).retry_after == (1 if asks else None)


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
    assert api_error(status, "c", "m").type == type_
    assert api_error(status, "c", "m", type_="theirs").type == "theirs"


@pytest.mark.parametrize(
    ("frame", "status", "code"),
    [
        (ErrorFrame(400, "x"), 400, "x"),
        (ErrorFrame(401, "x"), 401, "x"),
        (ErrorFrame(400, "websocket_connection_limit_reached"), 502, None),
        (ErrorFrame(400, "rate_limit_exceeded"), 429, "rate_limit_exceeded"),
        (ErrorFrame(500, "x"), 502, "x"),
        (ErrorFrame(404, "x"), 404, "x"),
        (ErrorFrame(409, "x"), 409, "x"),
        (ErrorFrame(403, "rate_limit_exceeded"), 403, None),
        (ErrorFrame(413), 413, "request_too_large"),
        (ErrorFrame(400, "message_too_big"), 413, None),
        (ErrorFrame(413, "context_length_exceeded"), 413, None),
        (ErrorFrame(429), 429, "rate_limit_exceeded"),
        (ErrorFrame(None, "context_length_exceeded"), 400, None),
        (ErrorFrame(None, "invalid_api_key"), 401, None),
        (ErrorFrame(None, None, "permission_error"), 403, "permission_error"),
        (ErrorFrame(None, None, "not_found_error"), 404, "not_found_error"),
        (ErrorFrame(None, None, "rate_limit_error"), 429, "rate_limit_error"),
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
    said = render_answer(FailureReply.UPSTREAM_ERROR, classify(error), error, None)
    assert (said.status, said.code, said.retry_after) == (502, "upstream_error", 1)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 413, 422, 429, 451])
def test_a_refused_upgrade_that_concerns_the_client(status: int) -> None:
    failure = classify(UpgradeRefused(status, 9))
    words = ErrorFrame(None, "theirs", "their_type", "Their words.", "p", 9, '{"plan_type":"plus"}')
    error = render_answer(FailureReply.UPSTREAM_ERROR, failure, words, "resp_1")
    assert error.status == status
    assert error.retry_after == (9 if status == 429 else None)
    assert json.loads(error.body) == {
        "error": {
            "message": "Their words.",
            "type": "their_type",
            "code": "theirs",
            "param": "p",
            "plan_type": "plus",
        }
    }
    bare = render_answer(FailureReply.UPSTREAM_ERROR, failure, None, None)
    assert (bare.status, bare.code) == (status, "upstream_error")


@pytest.mark.parametrize(
    "code", ["previous_response_not_found", "websocket_connection_limit_reached"]
)
@pytest.mark.parametrize("status", [400, 401, 403, 429])
def test_an_upgrade_cannot_refuse_an_anchor_or_a_socket(status: int, code: str) -> None:
    """The upgrade named no anchor: with such an error a client would drop a valid id."""
    failure = classify(UpgradeRefused(status, 9))
    error = render_answer(FailureReply.UPSTREAM_ERROR, failure, ErrorFrame(code=code), "resp_1")
    assert (error.status, error.code, error.retry_after) == (502, "upstream_unavailable", 9)


def test_a_size_that_was_refused_by_a_close() -> None:
    error = render_answer(FailureReply.UPSTREAM_ERROR, classify(Closed(1009)), None, "resp_1")
    assert (error.status, error.code, error.retry_after) == (413, "request_too_large", None)
    assert error.type == "invalid_request_error"
    assert "close 1009" in error.message


@pytest.mark.parametrize(
    ("code", "logged"),
    [
        ("a_code.of_tomorrow", "a_code.of_tomorrow"),
        ("20012", "20012"),
        ("unauthenticated:sk-secret", "unauthenticated"),
        ("sk-secret", "upstream_error"),
        ("Some words of the request", "upstream_error"),
        ("x" * 65, "upstream_error"),
        ("0123456", "upstream_error"),
        ("a\nb", "upstream_error"),
    ],
)
def test_the_log_shows_names_only(code: str, logged: str) -> None:
    assert api_error(400, code, "m").log_code == logged
