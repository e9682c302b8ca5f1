"""Which requests are passed through, where to, and with which headers: ``wire.passing``."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.wire.passing import (
    PASSED_PATHS,
    answer_headers,
    below_version,
    deleted_response,
    is_passed,
    passed_headers,
    passed_paths,
    target_of,
)

PIECES = ["v1", "models", "responses", "a", ".", "..", "%2e", "%2E", "%2f", "%5C", "%20", "%", "\\"]


@given(st.lists(st.sampled_from(["/", "/", *PIECES]), max_size=8).map("".join))
def test_a_path_is_compared_as_it_was_sent_or_not_at_all(path: str) -> None:
    segments = below_version(path)
    if segments:
        joined = "/" + "/".join(segments)
        assert path in (joined, "/v1" + joined)
        for segment in segments:
            plain = unquote(segment)
            assert plain not in ("", ".", "..")
            assert not set(plain) & set("/\\%")
    if is_passed(segments, PASSED_PATHS):
        assert segments[0] in ("models", "responses")
        assert segments != ("responses",)


def test_the_default_is_valid_and_sorted() -> None:
    assert passed_paths(PASSED_PATHS) == PASSED_PATHS
    assert sorted(PASSED_PATHS) == list(PASSED_PATHS)


@pytest.mark.parametrize("path", ["chat", "chat/completionsx", "chatx/completions", "completion"])
def test_segments_are_compared_whole(path: str) -> None:
    assert not is_passed(tuple(path.split("/")), ("chat/completions", "completions"))


@pytest.mark.parametrize(
    ("query", "base", "target"),
    [
        (b"", "", b"/v1/a/b"),
        (b"x=1&y", "", b"/v1/a/b?x=1&y"),
        (b"", "api-version=1", b"/v1/a/b?api-version=1"),
        (b"x=1", "api-version=1&k=2", b"/v1/a/b?api-version=1&k=2&x=1"),
        (b"api%2Dversion=3", "api-version=1&k=2", b"/v1/a/b?k=2&api%2Dversion=3"),
        (b"api-version", "api-version=1", b"/v1/a/b?api-version"),
    ],
)
def test_the_target(query: bytes, base: str, target: bytes) -> None:
    assert target_of(("a", "b"), query, "/v1", base) == target


def test_only_a_response_itself_is_deleted() -> None:
    assert deleted_response(b"DELETE", ("responses", "resp%5F1")) == "resp_1"
    assert deleted_response(b"GET", ("responses", "resp_1")) is None
    assert deleted_response(b"DELETE", ("responses", "resp_1", "input_items")) is None
    assert deleted_response(b"DELETE", ("files", "file_1")) is None


def test_cookies_and_framing_never_pass_in_either_direction() -> None:
    names = [b"set-cookie", b"content-length", b"transfer-encoding", b"connection", b"te"]
    names += [b"set-cookie2", b"trailer", b"upgrade", b"keep-alive", b"proxy-authorization"]
    headers = [(name, b"x") for name in names]
    assert answer_headers(headers) == []
    headers += [(b"cookie", b"x"), (b"cookie2", b"x"), (b"host", b"x")]
    assert passed_headers(headers, frozenset({b"authorization"})) == []


def test_what_connection_names_stays_on_its_connection() -> None:
    headers = [(b"connection", b"close, X-Own"), (b"connection", b"accept"), (b"x-own", b"1")]
    headers += [(b"accept", b"a"), (b"range", b"b")]
    assert passed_headers(headers, frozenset({b"x-own"})) == [(b"range", b"b")]
    assert answer_headers(headers) == [(b"range", b"b")]


def test_values_with_control_characters_are_dropped() -> None:
    headers = [(b"accept", b"a\x01b"), (b"range", b"b")]
    assert passed_headers(headers, frozenset()) == [(b"range", b"b")]
    assert answer_headers(headers) == [(b"range", b"b")]
