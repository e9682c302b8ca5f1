"""Tests of wire/headers.py: which headers are sent upstream, which name the tenant and
the request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.wire.headers import (
    CREDENTIAL_HEADERS,
    FORWARDED_HEADERS,
    credential_names,
    forwarded_names,
    make_request_id,
    request_id_of,
    upgrade_headers,
)

ALL = frozenset(name.encode() for name in FORWARDED_HEADERS)


def test_what_is_forwarded_by_default_may_be_forwarded() -> None:
    assert forwarded_names(FORWARDED_HEADERS) == FORWARDED_HEADERS
    assert ALL >= CREDENTIAL_HEADERS


@pytest.mark.parametrize("name", ["X-Tenant", "x!#$%&'*+-.^_`|~9"])
def test_a_name_is_any_token(name: str) -> None:
    assert forwarded_names([name]) == (name.lower(),)


@pytest.mark.parametrize(
    "name",
    [
        *("", "a b", "a:b", "a\r\nb", "a,b", "na\u00efve", "\u212a", "x\0"),
        *("Connection", "keep-alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "expect"),
        *("Proxy-Authorization", "proxy-authenticate", "proxy-connection", "http2-settings"),
        *("Host", "Content-Length", "content-type", "Content-Encoding", "accept-encoding"),
        *("Cookie", "set-cookie", "Sec-WebSocket-Key", "sec-websocket-protocol"),
    ],
)
def test_what_must_not_be_forwarded(name: str) -> None:
    with pytest.raises(ValueError, match=r"header|name"):
        forwarded_names([name])


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"responses=experimental", None),
        (b"Responses=Experimental", None),
        (b" , responses=experimental,", None),
        (b"responses_websockets=2026-02-06", b"responses_websockets=2026-02-06"),
        (b"a, responses=experimental", b"a"),
        (b"responses=experimental,a ,b", b"a, b"),
        (b"a,responses=experimental,b", b"a, b"),
        (b"a,b", b"a,b"),
        (b"responses=experimental2", b"responses=experimental2"),
        (b"xresponses=experimental", b"xresponses=experimental"),
        (b"assistants=v2, responses_websockets=1", b"assistants=v2, responses_websockets=1"),
    ],
)
def test_the_beta_header_of_http_is_not_forwarded(value: bytes, kept: bytes | None) -> None:
    headers = [(b"openai-beta", value), (b"user-agent", b"responses=experimental")]
    expected = [] if kept is None else [(b"openai-beta", kept)]
    assert upgrade_headers(headers, ALL) == [*expected, headers[1]]


def test_each_of_several_beta_headers_is_looked_at() -> None:
    headers = [(b"openai-beta", b"a"), (b"openai-beta", b"responses=experimental")]
    assert upgrade_headers(headers, ALL) == [(b"openai-beta", b"a")]


def test_unlisted_headers_are_not_forwarded() -> None:
    headers = [(b"authorization", b"k"), (b"cookie", b"c"), (b"x-tenant", b"t")]
    assert upgrade_headers(headers, ALL) == headers[:1]
    assert upgrade_headers(headers, frozenset({b"x-tenant"})) == headers[2:]
    assert upgrade_headers(headers, frozenset()) == []


def test_a_forwarded_header_of_unknown_meaning_is_a_credential() -> None:
    assert credential_names(FORWARDED_HEADERS) == CREDENTIAL_HEADERS
    assert credential_names(["x-api-key", "user-agent"]) == CREDENTIAL_HEADERS | {b"x-api-key"}


@pytest.mark.parametrize("value", [b"x", b"a-b_c.d~!", b"r" * 256])
def test_the_client_names_its_request(value: bytes) -> None:
    assert request_id_of([(b"host", b"h"), (b"x-request-id", value)]) == value.decode()


@pytest.mark.parametrize(
    "values",
    [[], [b""], [b"r" * 257], [b"a b"], [b"\xff"], [b"a\r\nb"], [b"a\x7f"], [b"a", b"a"]],
)
def test_an_unsafe_request_id_is_ignored(values: list[bytes]) -> None:
    assert request_id_of([(b"x-request-id", value) for value in values]) is None


@given(st.lists(st.tuples(st.integers(0, 99), st.binary(max_size=4)), unique=True))
def test_made_names_are_unique_and_safe(given_: list[tuple[int, bytes]]) -> None:
    ids = [make_request_id(seed, number) for number, seed in given_]
    assert len(set(ids)) == len(ids)
    assert all(request_id_of([(b"x-request-id", name.encode())]) == name for name in ids)
