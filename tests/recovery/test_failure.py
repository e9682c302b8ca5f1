"""Tests of recovery/failure.py: the class of each evidence. Public error codes are not evidence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.recovery.effects import FailureReply
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
    known_name,
    known_param,
)
from bridgecore.recovery.timers import Timer

K = FailureKind


CODES = [*range(1000, 1009), *range(1010, 1016), 3000, 3999, 4000, 4001, 4999]


@pytest.mark.parametrize("code", CODES)
def test_any_close_code_but_one_is_a_loss(code: int) -> None:
    assert classify(Closed(code)) == Failure(K.LOST, f"close {code}")


def test_a_close_for_the_size_of_our_frame_is_evidence_of_its_own() -> None:
    """A frame of the upstream that is too large for the bridge is ``Malformed`` instead."""
    assert classify(Closed(1009)) == Failure(K.TOO_LARGE, "close 1009")
    assert classify(Malformed("protocol error 1009")).kind is K.LOST


@pytest.mark.parametrize("timer", list(Timer))
def test_a_timeout_names_its_deadline(timer: Timer) -> None:
    assert classify(TimedOut(timer)) == Failure(K.TIMED_OUT, f"{timer.value} deadline")


def test_a_broken_protocol_is_a_loss_and_no_socket_is_unreachable() -> None:
    assert classify(Malformed("unreadable message")) == Failure(K.LOST, "unreadable message")
    assert classify(Unreachable("refused")) == Failure(K.UNREACHABLE, "refused")
    assert classify(Unreachable("local")) == Failure(K.EXHAUSTED, "local")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, K.UNREACHABLE),
        (301, K.UNREACHABLE),
        (400, K.REJECTED),
        (401, K.REJECTED),
        (402, K.REJECTED),
        (403, K.REJECTED),
        (404, K.NO_WEBSOCKET),
        (405, K.NO_WEBSOCKET),
        (408, K.UNREACHABLE),
        (413, K.REJECTED),  # no frame was sent that could be too large
        (422, K.REJECTED),
        (426, K.NO_WEBSOCKET),
        (429, K.REJECTED),
        (451, K.REJECTED),
        (500, K.UNREACHABLE),
        (501, K.NO_WEBSOCKET),
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
    # Not found: by the code, in either place, whatever other members there are.
    (ErrorFrame(400, NF, "invalid_request_error", TEXT, "previous_response_id"), K.NOT_FOUND),
    (ErrorFrame(code=NF), K.NOT_FOUND),
    (ErrorFrame(type=NF), K.NOT_FOUND),
    (ErrorFrame(status=404, code=NF), K.NOT_FOUND),
    (ErrorFrame(status=500, type=NF), K.NOT_FOUND),
    # By the message, if there is no code.
    (ErrorFrame(message=TEXT), K.NOT_FOUND),
    (ErrorFrame(400, None, "invalid_request_error", TEXT), K.NOT_FOUND),
    (
        ErrorFrame(400, None, "invalid_request_error", "Invalid `previous_response_id`."),
        K.NOT_FOUND,
    ),
    (ErrorFrame(None, None, "invalid_request_error", "Invalid previous_response_id"), K.NOT_FOUND),
    (ErrorFrame(message="Invalid `previous_response_id`"), K.NOT_FOUND),
    (ErrorFrame(message=TEXT, param="previous_response_id"), K.NOT_FOUND),
    # The same words about something else, within other words, or beside another code do not count.
    (ErrorFrame(400, message=TEXT, param="input[0]"), K.INVALID),
    (ErrorFrame(400, message=f"The user said: {TEXT} What now?"), K.INVALID),
    (ErrorFrame(400, "context_length_exceeded", message=TEXT), K.INVALID),
    # In the wording of other services.
    (ErrorFrame(400, message="Previous response not found."), K.NOT_FOUND),
    (ErrorFrame(404, None, "NotFoundError", "Response with id 'r' not found."), K.NOT_FOUND),
    (ErrorFrame(404, None, None, "Response with id 'r' not found.", "response_id"), K.NOT_FOUND),
    (ErrorFrame(404, None, None, "There is no such thing.", "response_id"), K.NOT_FOUND),
    (ErrorFrame(message="gRPC error: Response with id=r not found", type="api_error"), K.NOT_FOUND),
    (
        ErrorFrame(500, message="rpc error: code = NotFound desc = Response with id=r not found"),
        K.NOT_FOUND,
    ),
    (ErrorFrame(400, message=f"litellm.BadRequestError: OpenAIException - {TEXT}"), K.NOT_FOUND),
    (
        ErrorFrame(message='E - Error code: 400 - {"error": {"message": "' + TEXT + '"}}'),
        K.NOT_FOUND,
    ),
    (ErrorFrame(400, message="E: {'error': {'code': 'previous_response_not_found'}}"), K.NOT_FOUND),
    (
        ErrorFrame(
            message="Prediction history node with id 'r' not found while attempting to build"
        ),
        K.NOT_FOUND,
    ),
    (
        ErrorFrame(400, "invalid_request_error", None, "Invalid `previous_response_id`."),
        K.NOT_FOUND,
    ),
    (ErrorFrame(message="Invalid previous_response_id: 'resp_1'"), K.NOT_FOUND),
    (ErrorFrame(message="previous_response_id 'resp_1' does not exist"), K.NOT_FOUND),
    (ErrorFrame(message="The referenced response has expired."), K.NOT_FOUND),
    (ErrorFrame(message="Response resp_1 could not be found"), K.NOT_FOUND),
    (ErrorFrame(message="Unknown response 'resp_1'."), K.NOT_FOUND),
    (ErrorFrame(message="No such response: resp_1"), K.NOT_FOUND),
    (ErrorFrame(message="No response found with id resp_1"), K.NOT_FOUND),
    (ErrorFrame(message="Could not find response with id resp_1"), K.NOT_FOUND),
    (ErrorFrame(message=f"Response with id '{'x' * 4096}' not found."), K.NOT_FOUND),
    (ErrorFrame(message="Previous  response\nwith id 'r' not found."), K.NOT_FOUND),
    (ErrorFrame(404, "response_not_found"), K.NOT_FOUND),
    (ErrorFrame(404, "response_expired"), K.NOT_FOUND),
    (ErrorFrame(code="PreviousResponseNotFound"), K.NOT_FOUND),
    # By the parameter.
    (ErrorFrame(400, "invalid_value", None, "Odd.", "previous_response_id"), K.NOT_FOUND),
    (ErrorFrame(404, None, None, None, "body.previous_response_id"), K.NOT_FOUND),
    (ErrorFrame(409, None, None, "Still running.", "previous_response_id"), K.INVALID),
    (ErrorFrame(403, None, None, TEXT, "previous_response_id"), K.INVALID),
    (ErrorFrame(429, None, None, TEXT, "previous_response_id"), K.RATE_LIMITED),
    (ErrorFrame(400, None, None, "Odd.", "response_id"), K.INVALID),
    # Something else is not found.
    (ErrorFrame(404, message="Item with id 'rs_1' not found. Set `store` to true."), K.INVALID),
    (ErrorFrame(404, message="The model `gpt-9` does not exist."), K.INVALID),
    (ErrorFrame(404, "model_not_found", message="Response model 'x' not found"), K.INVALID),
    (ErrorFrame(404, message="Conversation with id 'conv_1' not found."), K.INVALID),
    (ErrorFrame(404, message="Response format not found"), K.INVALID),
    (ErrorFrame(404, message="Vector store with id 'resp_1' not found"), K.INVALID),
    (ErrorFrame(404, message="Not found"), K.INVALID),
    (ErrorFrame(400, message="No response."), K.INVALID),
    (ErrorFrame(400, message=f"Invalid value: '{TEXT}'"), K.INVALID),
    (ErrorFrame(400, message=f"Tool failed: the log says: {TEXT}"), K.INVALID),
    # The limit of the connection's age.
    (ErrorFrame(400, LIMIT, "invalid_request_error"), K.CONNECTION_LIMIT),
    (ErrorFrame(code=LIMIT), K.CONNECTION_LIMIT),
    (ErrorFrame(type=LIMIT), K.CONNECTION_LIMIT),
    (ErrorFrame(status=429, code=LIMIT), K.CONNECTION_LIMIT),
    # Too many requests.
    (ErrorFrame(429), K.RATE_LIMITED),
    (ErrorFrame(code="rate_limit_exceeded"), K.RATE_LIMITED),
    (ErrorFrame(type="rate_limit_error"), K.RATE_LIMITED),
    (ErrorFrame(code="rate_limit_reached"), K.RATE_LIMITED),
    (ErrorFrame(400, "usage_limit_reached"), K.RATE_LIMITED),
    (ErrorFrame(code="usage_not_included"), K.RATE_LIMITED),
    (ErrorFrame(400, "insufficient_quota"), K.RATE_LIMITED),
    (ErrorFrame(code="too_many_requests"), K.RATE_LIMITED),
    (ErrorFrame(400, "websocket_stream_limit_reached"), K.RATE_LIMITED),
    (ErrorFrame(type="RateLimitError"), K.RATE_LIMITED),
    (ErrorFrame(code="RESOURCE_EXHAUSTED"), K.RATE_LIMITED),
    (ErrorFrame(code="credit_balance_exhausted"), K.RATE_LIMITED),
    # A status about the account keeps its meaning, whatever the message says.
    (ErrorFrame(401, "insufficient_quota"), K.INVALID),
    (ErrorFrame(402, "insufficient_quota"), K.INVALID),
    (ErrorFrame(403, "rate_limit_exceeded"), K.INVALID),
    (ErrorFrame(403, "payload_too_large"), K.INVALID),
    # The size of the message, which differs from the size of the context.
    (ErrorFrame(413), K.TOO_LARGE),
    (ErrorFrame(413, "too_large", "invalid_request_error"), K.TOO_LARGE),
    (ErrorFrame(400, "message_too_big"), K.TOO_LARGE),
    (ErrorFrame(type="request_too_large"), K.TOO_LARGE),
    (ErrorFrame(code="PayloadTooLargeError"), K.TOO_LARGE),
    (ErrorFrame(413, "context_length_exceeded"), K.INVALID),
    (ErrorFrame(413, "string_above_max_length"), K.INVALID),
    # Invalid requests.
    (ErrorFrame(404), K.INVALID),
    (ErrorFrame(None, None, "invalid_request_error"), K.INVALID),
    (ErrorFrame(200, "invalid_prompt"), K.INVALID),
    (ErrorFrame(400, "invalid_stream_id"), K.INVALID),
    (ErrorFrame(400, "context_length_exceeded"), K.INVALID),
    (ErrorFrame(401, "invalid_api_key"), K.INVALID),
    (ErrorFrame(400), K.INVALID),
    (ErrorFrame(499), K.INVALID),
    # Errors of the server, or without a reason.
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
    if frame.status is not None and frame.status >= 400:
        assert failure.status == frame.status


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, ["invalid_request_error", "BadRequestError", "context_length_exceeded"]),
        (400, ["invalid_prompt", "unsupported_parameter", "INVALID_ARGUMENT"]),
        (401, ["authentication_error", "invalid_api_key", "unauthenticated:bad-credentials"]),
        (402, ["insufficient_balance"]),
        (403, ["permission_error", "PermissionDeniedError", "PERMISSION_DENIED"]),
        (404, ["not_found_error", "NotFoundError", "model_not_found"]),
        (422, ["unprocessable_entity_error", "UnprocessableEntityError"]),
        (None, ["server_error", "api_error", "a_code_of_tomorrow", "error", ":", "", "x" * 9999]),
    ],
)
def test_without_a_status_the_code_decides(status: int | None, words: list[str]) -> None:
    kind = K.SERVER_ERROR if status is None else K.INVALID
    for word in words:
        for frame in (ErrorFrame(code=word), ErrorFrame(type=word), ErrorFrame(200, word)):
            failure = classify(frame)
            assert (failure.kind, failure.status) == (kind, status), frame
    # The code takes precedence over the type.
    frame = ErrorFrame(code="invalid_api_key", type="invalid_request_error")
    assert classify(frame).status == 401


@pytest.mark.parametrize("word", ["rate_limit_exceeded", "RateLimitError", "rate-limit-exceeded:x"])
def test_a_known_name_is_read_as_itself(word: str) -> None:
    known = known_name(word)
    assert known is not None
    assert known_name(known) == known
    assert classify(ErrorFrame(code=known)) == classify(ErrorFrame(code=word))


def test_an_unknown_name_is_not_taken_for_a_known_one() -> None:
    assert [known_name(word) for word in ("", ":", "error", "sk-secret", "a_code")] == [None] * 5
    assert known_param("body.previous_response_id") == "previous_response_id"
    assert known_param("input") is None


def test_every_kind_that_a_frame_can_show_is_in_the_table() -> None:
    others = {K.LOST, K.TIMED_OUT, K.UNREACHABLE, K.EXHAUSTED, K.REJECTED, K.NOT_DISPATCHED}
    others.add(K.NO_WEBSOCKET)
    assert {kind for _, kind in FRAMES} == set(FailureKind) - others


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 407, 409, 422, 429, 500])
def test_a_refusal_that_is_about_the_credential_is_not_about_the_input(status: int) -> None:
    failure = classify(ErrorFrame(status))
    assert failure.is_of_input is (status in (400, 404, 409, 422))


def test_retry_after_is_kept() -> None:
    assert classify(ErrorFrame(429, retry_after=12)).retry_after == 12


OURS = [answer for answer in FailureReply if answer is not FailureReply.NOT_FOUND]


@pytest.mark.parametrize("answer", OURS)
def test_a_code_of_our_own_is_no_evidence(answer: FailureReply) -> None:
    """With a bridge behind a bridge, public error codes come back as upstream errors: they must not
    influence recovery."""
    for status in (None, 400, 502):
        with_code = classify(ErrorFrame(status, answer.value, answer.value))
        assert with_code == classify(ErrorFrame(status))


texts = (
    st.none()
    | st.text(max_size=40)
    | st.sampled_from([NF, LIMIT, TEXT, "server_error"])
    | st.text(alphabet="'\"`{:=- ", max_size=200).map(lambda text: f"response with id {text}")
)
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


@pytest.mark.parametrize(
    "part", ["response ", "response '", "id ", "error: ", '{"message": "', "- "]
)
def test_a_long_message_is_classified_in_bounded_time(part: str) -> None:
    """Only the beginning is searched; otherwise each of these would take minutes."""
    assert classify(ErrorFrame(400, message=part * 1_000_000)).kind is K.INVALID
