"""Tests of wire/errors.py: each shape that upstreams use, what is read from it, and what the client
gets."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.api_error import render_failed_response
from bridgecore.recovery.failure import ErrorFrame, FailureKind, classify
from bridgecore.wire.errors import (
    find_error,
    longest,
    read_error,
    read_error_body,
    read_seconds,
    read_wait,
)

E = ErrorFrame
K = FailureKind
YEAR = 366 * 86_400
WHOLE = ErrorFrame(400, "c", "t", "m", "p")

# Shape, what is read, its kind, and the status that a client gets.
SHAPES: list[tuple[str, ErrorFrame, FailureKind, int]] = [
    # OpenAI, WebSocket mode.
    (
        '{"type":"error","status":400,"error":{"type":"t","code":"c","message":"m","param":"p"}}',
        WHOLE,
        K.INVALID,
        400,
    ),
    ('{"type":"error","status_code":400,"error":{"code":"c"}}', E(400, "c"), K.INVALID, 400),
    ('{"type":"error","statusCode":"403 Forbidden","error":{}}', E(403), K.INVALID, 403),
    ('{"type":"error","error":{"status":"404"}}', E(404, more='{"status":"404"}'), K.INVALID, 404),
    ('{"type":"error","error":"m"}', E(message="m"), K.SERVER_ERROR, 502),
    ('{"type":"error","status":null,"error":null}', E(), K.SERVER_ERROR, 502),
    ('{"type":"error"}', E(), K.SERVER_ERROR, 502),
    # The flat error event of a stream.
    (
        '{"type":"error","code":"invalid_prompt","message":"m","param":null,"sequence_number":3}',
        E(code="invalid_prompt", message="m"),
        K.INVALID,
        400,
    ),
    ('{"type":"error","code":"c"}', E(code="c"), K.SERVER_ERROR, 502),
    # A response that failed.
    (
        '{"type":"response.failed","sequence_number":4,"response":{"id":"r","status":"failed",'
        '"error":{"code":"rate_limit_exceeded","message":"m"}}}',
        E(code="rate_limit_exceeded", message="m"),
        K.RATE_LIMITED,
        429,
    ),
    (
        '{"type":"response.failed","response":{"status_details":{"error":{"type":"t"}}}}',
        E(type="t"),
        K.SERVER_ERROR,
        502,
    ),
    ('{"type":"response.failed","response":{"error":null}}', E(), K.SERVER_ERROR, 502),
    ('{"type":"response.failed"}', E(), K.SERVER_ERROR, 502),
    # xAI, vLLM, SGLang: no type; the status in the code, as a number or a text.
    (
        '{"error":{"message":"m","type":"api_error"}}',
        E(message="m", type="api_error"),
        K.SERVER_ERROR,
        502,
    ),
    (
        '{"status":403,"error":{"code":"unauthenticated:bad-credentials","message":"m"}}',
        E(403, "unauthenticated:bad-credentials", message="m"),
        K.INVALID,
        403,
    ),
    (
        '{"error":{"type":"BadRequestError","code":400,"message":"m","param":null}}',
        E(400, type="BadRequestError", message="m"),
        K.INVALID,
        400,
    ),
    ('{"error":{"code":"429"}}', E(429), K.RATE_LIMITED, 429),
    ('{"error":{"code":20012,"message":"m"}}', E(code="20012", message="m"), K.SERVER_ERROR, 502),
    ('{"error":{"code":7,"message":"m"}}', E(code="7", message="m"), K.SERVER_ERROR, 502),
    (
        '{"error":{"code":true,"status":false,"message":7}}',
        E(more='{"status":false}'),
        K.SERVER_ERROR,
        502,
    ),
    ('{"error":{}}', E(), K.SERVER_ERROR, 502),
    ('{"code":"No credits","error":"m"}', E(code="No credits", message="m"), K.SERVER_ERROR, 502),
    ('{"type":null,"error":"m"}', E(message="m"), K.SERVER_ERROR, 502),
    # Gateways that wrap.
    (
        '{"type":"error","status":400,"body":{"error":{"code":"bad_tool","message":"m"}}}',
        E(400, "bad_tool", message="m"),
        K.INVALID,
        400,
    ),
    (
        json.dumps({"status": 400, "body": json.dumps({"error": {"code": "bad_tool"}})}),
        E(400, "bad_tool"),
        K.INVALID,
        400,
    ),
    ('{"status":401,"body":{"message":"m"}}', E(401, message="m"), K.INVALID, 401),
    (
        '{"error":{"error":{"code":"c","message":"m"}}}',
        E(code="c", message="m"),
        K.SERVER_ERROR,
        502,
    ),
    # FastAPI, and RFC 9457, whose detail is of the same kind.
    ('{"detail":"m"}', E(message="m"), K.SERVER_ERROR, 502),
    ('{"status":409,"detail":"m"}', E(409, message="m"), K.INVALID, 409),
    (
        '{"detail":{"error":{"code":"c","message":"m"}}}',
        E(code="c", message="m"),
        K.SERVER_ERROR,
        502,
    ),
    ('{"detail":{"message":"m"}}', E(message="m"), K.SERVER_ERROR, 502),
    (
        '{"detail":[{"type":"missing","loc":["body","input",0],"msg":"Field required"},'
        '{"msg":"n"}]}',
        E(
            422,
            message="input.0: Field required; n",
            param="input.0",
            more='{"detail":[{"type":"missing","loc":["body","input",0],"msg":"Field required"},'
            '{"msg":"n"}]}',
        ),
        K.INVALID,
        422,
    ),
    # OAuth.
    (
        '{"error":"invalid_token","error_description":"m"}',
        E(code="invalid_token", message="m", more='{"error_description":"m"}'),
        K.INVALID,
        401,
    ),
    # gRPC and Google.
    (
        '{"code":5,"message":"m","details":[]}',
        E(404, "not_found", message="m", more='{"details":[]}'),
        K.INVALID,
        404,
    ),
    (
        '{"error":{"code":16,"message":"m","details":[]}}',
        E(401, "unauthenticated", message="m", more='{"details":[]}'),
        K.INVALID,
        401,
    ),
    (
        '{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}',
        E(429, "RESOURCE_EXHAUSTED", message="m", more='{"status":"RESOURCE_EXHAUSTED"}'),
        K.RATE_LIMITED,
        429,
    ),
    # AWS API Gateway.
    (
        '{"message":"m","connectionId":"x","requestId":"r"}',
        E(message="m", more='{"requestId":"r"}'),
        K.SERVER_ERROR,
        502,
    ),
    ('{"status":403,"message":"m"}', E(403, message="m"), K.INVALID, 403),
]


@pytest.mark.parametrize(("message", "frame", "kind", "status"), SHAPES, ids=lambda v: str(v)[:60])
def test_every_error_shape_is_read(
    message: str, frame: ErrorFrame, kind: FailureKind, status: int
) -> None:
    for data in (message, json.dumps(json.loads(message), indent=1)):
        found = read_error(data.encode())
        assert (found.more is None) == (frame.more is None)
        if found.more is not None and frame.more is not None:
            assert json.loads(found.more) == json.loads(frame.more)
    assert read_error(message.encode()) == frame
    assert find_error(message.encode()) == frame
    assert classify(frame).kind is kind
    shown = render_failed_response(frame, None)
    assert shown.status == status
    error = json.loads(shown.body)["error"]
    assert isinstance(error["code"], str)
    assert error["code"]
    assert error["message"] == frame.message or frame.message is None


@pytest.mark.parametrize(
    "message",
    [
        *("", "null", "[]", "5", '"ping"', "ping", "[DONE]", "{}", '{"error":{}', '{"error":{}}x'),
        *('{"event":"ping"}', '{"type":null}', '{"type":7}', '{"type":""}', '{"status":500}'),
        *('{"error":null}', '{"error":""}', '{"error":false}', '{"error":[]}', '{"error":7}'),
        *('{"detail":""}', '{"detail":[]}', '{"detail":[{}]}', '{"detail":{}}', '{"body":{}}'),
        *('{"event":"x","body":{"message":"hi"}}', '{"status":200,"body":{"message":"hi"}}'),
        *('{"message":"hi"}', '{"status":"ok","message":"hi"}', '{"status":200,"message":"hi"}'),
        *('{"type":"response.created","response":{"error":null}}', '{"response":"x"}'),
    ],
)
def test_no_error(message: str) -> None:
    assert find_error(message.encode()) is None
    assert read_error(message.encode()) == ErrorFrame()


# ------------------------------------------------------------------ further members


def test_further_members_are_kept_as_they_are_written() -> None:
    error = (
        '{"type":"t" , "resets_at": 1788879437.50, "message":"m", "deep" : [ {"a":1e5} ],'
        '"odd":"\\ud800","long":' + "9" * 5000 + "}"
    )
    frame = read_error(
        f'{{"type":"error","status":429,"plan_type":"plus","error":{error}}}'.encode()
    )
    assert frame.more == (
        '{"plan_type":"plus","resets_at":1788879437.50,"deep":[ {"a":1e5} ],"odd":"\\ud800","long":'
        + "9" * 5000
        + "}"
    )
    assert b'"odd":"\\ud800"' in render_failed_response(frame, None).body


def test_members_of_the_event_are_not_members_of_the_error() -> None:
    frame = read_error(
        b'{"type":"error","status":400,"event_id":"e","stream_id":"main","sequence_number":7,'
        b'"headers":{"set-cookie":"x"},"error":{"code":"c"}}'
    )
    assert frame == ErrorFrame(400, "c")
    failed = (
        b'{"type":"response.failed","plan_type":"x","response":{"id":"r","error":{"code":"c"}}}'
    )
    assert read_error(failed) == ErrorFrame(code="c")


def test_members_that_are_no_json_or_too_large_are_left_out() -> None:
    members = '"nan":NaN,"inner":[-Infinity],"large":"%s","small":1,"message":"m"' % ("x" * 20_000)
    frame = read_error(b'{"error":{%b}}' % members.encode())
    assert frame == ErrorFrame(message="m", more='{"small":1}')
    many = ",".join(f'"m{n}":"{"x" * 1000}"' for n in range(100))
    kept = read_error(b'{"error":{%b}}' % many.encode()).more
    assert kept is not None
    assert 10_000 < len(kept) < 17_000
    assert len(json.loads(kept)) == 16


def test_a_member_twice_counts_as_the_last() -> None:
    assert read_error(b'{"error":{"code":"a","code":"b","x":1,"x":2}}') == ErrorFrame(
        code="b", more='{"x":2}'
    )


def test_messages_have_no_lone_surrogates() -> None:
    frame = read_error(b'{"error":{"message":"a\\ud83d\\ude00b\\ud800","code":"\\udc00"}}')
    assert frame == ErrorFrame(message="a\U0001f600b?", code="?")
    assert b"a\xf0\x9f\x98\x80b?" in render_failed_response(frame, None).body


def test_a_code_is_short() -> None:
    long = read_error(b'{"error":{"code":"%b","type":" a type "}}' % (b"x" * 129))
    assert long == ErrorFrame(type="a type")


# ------------------------------------------------------------------ waits


@pytest.mark.parametrize(
    ("members", "wait"),
    [
        ('"error":{"resets_in_seconds":1.2}', 2),
        ('"error":{"resets_in_seconds":"596369"}', 596_369),
        ('"error":{"resets_in_seconds":1e300}', YEAR),
        ('"error":{"resets_in_seconds":%s}' % ("9" * 5000), YEAR),
        ('"error":{"resets_in_seconds":-1}', None),
        ('"error":{"resets_in_seconds":0}', None),
        ('"error":{"resets_in_seconds":true}', None),
        ('"error":{"resets_in_seconds":null,"resets_at":1788879437}', None),
        ('"error":{},"resets_in_seconds":7', 7),
        ('"error":{"retry_after":7}', 7),
        ('"error":{"retry_after_ms":7001}', 8),
        ('"headers":{"retry-after":9},"error":{}', 9),
        ('"headers":{"Retry-After":["9"]},"error":{}', 9),
        ('"headers":{"Retry-After":"soon"},"error":{}', None),
        ('"headers":[],"error":{"headers":{"RETRY-AFTER-MS":"350"}}', 1),
        ('"headers":{"x-codex-primary-used-percent":"100",'
         '"x-codex-primary-reset-after-seconds":"9569"},"error":{}', 9569),
        ('"headers":{"x-codex-secondary-used-percent":99.5,'
         '"x-codex-secondary-reset-after-seconds":9569},"error":{}', None),
        ('"headers":{"x-ratelimit-reset-requests":"6m0s"},"error":{}', None),
        ('"error":{"details":[{"@type":"x"},{"retryDelay":"34.07s"}]}', 35),
        # The longest is the one after which no request is rejected.
        ('"headers":{"retry-after":"9"},"error":{"resets_in_seconds":8,"retry_after":7}', 9),
        ('"headers":{"retry-after":"7"},"error":{"message":"Try again in 8s"}', 8),
    ],
)  # fmt: skip
def test_a_wait(members: str, wait: int | None) -> None:
    frame = read_error(b'{"type":"error",%b}' % members.encode())
    assert frame.retry_after == classify(frame).retry_after == wait


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("Rate limit reached. Please try again in 6m0s. Visit us.", 360),
        ("Please try again in 20s.", 20),
        ("Please try again in 1.5s", 2),
        ("Please try again in 350ms.", 1),
        ("try again in 1h2m3s", 3723),
        ("Try again in 3 days 4 hours and 5 minutes.", 273_900),
        ("Please retry after 20 seconds.", 20),
        ("Please retry in 34.07s.", 35),
        ("Please retry your request in 1 minute, 2 seconds", 62),
        ("Try again in 5 milliseconds", 1),
        ("try again in 0s", None),
        ("try again in 20", None),
        ("try again in 5 steps", None),
        ("It took 20s.", None),
        ("try again in " + "9" * 4000 + "d", YEAR),
        ("try again in " * 100_000, None),
        ("try again in " + "9m" * 100_000, 540 * 2493),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wait_in_the_message_is_read(text: str, wait: int | None) -> None:
    expected = None if wait is None else min(wait, YEAR)
    body = json.dumps({"error": {"message": text}}).encode()
    assert read_error(body).retry_after == expected
    assert read_error_body(body).retry_after == expected
    assert read_error_body(text.encode()).retry_after == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("0", 0),
        ("007", 7),
        ("0" * 5000 + "7", 7),
        ("596369", 596_369),
        ("99999999", YEAR),
        ("9" * 5000, YEAR),
        ("1.5", 2),
        ("-1", None),
        ("", None),
        ("\u0663", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_seconds(text: str, seconds: int | None) -> None:
    assert read_seconds(text) == seconds
    assert read_wait([("Server", "x"), ("Retry-After", text)]) == seconds


NOW = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("text", "now", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:50:07 GMT", NOW, 30),
        ("Mon, 07 Nov 1994 08:49:37 GMT", NOW, 86_400),
        ("Sun, 06 Nov 1994 08:50:07 GMT", None, None),
        ("Sun, 06 Nov 1994 08:50:07 GMT", "yesterday", None),
        (NOW, NOW, None),
        ("Sun, 06 Nov 1994 08:00:00 GMT", NOW, None),  # in the past
        ("Sun, 99 Nov 1994 99:99:99 GMT", NOW, None),
        ("Sun, 06 Xyz 1994 08:50:07 GMT", NOW, None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", NOW, YEAR),
        ("Fri, 31 Dec 0000 23:59:59 GMT", NOW, None),
        ("in a while", NOW, None),
    ],
)
def test_a_date_counts_from_that_of_its_answer(
    text: str, now: str | None, seconds: int | None
) -> None:
    dated = [] if now is None else [("Date", now)]
    assert read_wait([*dated, ("Retry-After", text)]) == seconds


@given(
    *[
        st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31)).map(
            lambda at: at.replace(microsecond=0)
        )
    ]
    * 2
)
def test_dates_are_those_of_the_calendar(since: datetime, until: datetime) -> None:
    dates = [format_datetime(at.replace(tzinfo=UTC), usegmt=True) for at in (since, until)]
    wait = min(int((until - since).total_seconds()), YEAR)
    assert read_wait([("Date", dates[0]), ("Retry-After", dates[1])]) == (
        wait if wait > 0 else None
    )


def test_the_longest() -> None:
    assert longest(None, 3, 7, None) == 7
    assert longest(None) is longest() is None


# ------------------------------------------------------------------ refused upgrades


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"error":{"code":"c","message":"m","plan_type":"x"}}',
         ErrorFrame(code="c", message="m", more='{"plan_type":"x"}')),
        ('[{"error":{"code":"c"}}]', ErrorFrame(code="c")),
        ('{"error":"m"}', ErrorFrame(message="m")),
        ('{"detail":"m"}', ErrorFrame(message="m")),
        ('{"message":"Forbidden"}', ErrorFrame(message="Forbidden")),
        ('{"code":"c","message":"m"}', ErrorFrame(code="c", message="m")),
        ('{"type":"invalid_request_error","message":"m"}',
         ErrorFrame(type="invalid_request_error", message="m")),
        ('{"ok":false,"reason":"r"}', ErrorFrame(more='{"ok":false,"reason":"r"}')),
        ('"Forbidden"', ErrorFrame(message="Forbidden")),
        ("\ufeff upstream  request\r\n\ttimeout\n", ErrorFrame(message="upstream request timeout")),
        ("<html><title>403</title></html>", ErrorFrame()),
        ('{"error":{"code":"c"', ErrorFrame()),  # truncated
        ("[]", ErrorFrame()),
        ("", ErrorFrame()),
        (" \n", ErrorFrame()),
        ("\x00\x01", ErrorFrame()),
        ('{"error":[]}', ErrorFrame()),
    ],
)  # fmt: skip
def test_the_body_of_an_answer(body: str, expected: ErrorFrame) -> None:
    assert read_error_body(body.encode()) == expected


def test_a_body_that_is_not_utf_8() -> None:
    assert read_error_body(b'{"error":"caf\xe9"}') == ErrorFrame(message="caf\ufffd")


# ------------------------------------------------------------------ total

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["error", "400", "invalid_request_error", "try again in 5s", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("type", "error", "status", "code", "message", "param", "detail", "headers"),
                    *("body", "response", "details", "loc", "msg", "retry-after", "\udc00", "x"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_JSON)
def test_any_json_is_read_and_can_be_shown(value: object) -> None:
    data = json.dumps(value).encode()
    for frame in (read_error(data), read_error_body(data)):
        hash(frame)
        shown = render_failed_response(frame, "resp_1")
        error = json.loads(shown.body.decode())["error"]
        assert set(error) >= {"message", "type", "code", "param"}
        assert isinstance(error["code"], str)
        assert b"NaN" not in shown.body.replace(b'"NaN"', b"")
        if frame.more is not None and shown.more is not None:
            members = json.loads(frame.more)
            assert members == {name: error[name] for name in members}
        shown.log_code.encode("ascii")


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\ue019 "', max_size=40).map(str.encode))
def test_any_bytes_are_read(data: bytes) -> None:
    for read in (read_error, read_error_body):
        assert isinstance(read(data), ErrorFrame)
    find_error(data)


@given(st.dictionaries(st.text(max_size=4), _JSON, max_size=4))
def test_members_are_found_like_the_standard_library_finds_them(members: dict[str, object]) -> None:
    """Only what strict parsers reject is left out."""
    members = {f"x{name}": value for name, value in members.items()}
    text = json.dumps({"error": members})
    kept = read_error(text.encode()).more
    strict = {name: value for name, value in members.items() if _is_strict(value)}
    assert (json.loads(kept) if kept is not None else {}) == json.loads(json.dumps(strict))


def _is_strict(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "data",
    [
        b'{"error":' + b"[" * 200_000,
        b'{"error":' * 50_000,
        b'{"error":{"message":"m","deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b"[" * 200_000,
        b'{"detail":[' + b'{"msg":"m"},' * 10_000 + b"{}]}",
    ],
    ids=lambda data: str(data[:20]),
)
def test_depth_and_length_do_no_harm(data: bytes) -> None:
    assert isinstance(read_error(data), ErrorFrame)
    assert isinstance(read_error_body(data), ErrorFrame)
