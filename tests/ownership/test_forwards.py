"""Signing forwards, and refusing what is not one."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.ownership.forwards import (
    SIGNATURE,
    Forward,
    ForwardSigner,
    ForwardVerifier,
    Rejection,
    digest_of,
    signed_headers,
)

NEW, OLD = b"the newest secret of the cluster", b"the one that it replaces, still in"
FORWARD = Forward(
    to="a" * 32,
    sender="b" * 32,
    sequence=1,
    conversation=bytes(range(16)),
    epoch=3,
    scope="c" * 64,
    budget=7_000_000_000,
    digest=digest_of(b"body"),
)
HEADERS = [(b"authorization", b"Bearer sk-1"), (b"thread-id", b"t")]
Headers = list[tuple[bytes, bytes]]


def signed(forward: Forward = FORWARD, headers: Headers = HEADERS, secret: bytes = NEW) -> Headers:
    """The headers of the request that carries ``forward``."""
    own = [(b"host", b"owner:81"), (b"content-length", b"4")]
    return [*own, *headers, (SIGNATURE, ForwardSigner([secret]).sign(forward, headers))]


def test_a_forward_says_what_its_sender_said() -> None:
    assert ForwardVerifier([NEW]).check(signed()) == FORWARD
    assert signed_headers(signed()) == HEADERS


def test_each_secret_of_the_cluster_is_believed_and_the_newest_one_signs() -> None:
    """So secrets can be replaced one replica after another: first added, then put first."""
    both = ForwardVerifier([NEW, OLD])
    assert both.check(signed(secret=OLD)) == FORWARD
    by_both = [(SIGNATURE, ForwardSigner([NEW, OLD]).sign(FORWARD, HEADERS)), *HEADERS]
    assert ForwardVerifier([OLD]).check(by_both) is Rejection.FOREIGN
    assert ForwardVerifier([NEW]).check(by_both) == FORWARD


def test_without_secrets_nothing_is_believed() -> None:
    assert ForwardVerifier([]).check(signed()) is Rejection.FOREIGN


CHANGES: dict[str, Any] = {
    "to": "0" * 32,
    "sender": "0" * 32,
    "sequence": 2,
    "conversation": bytes(16),
    "epoch": 4,
    "scope": "0" * 64,
    "budget": 8,
    "digest": digest_of(b"another body"),
}


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(Forward)])
def test_nothing_that_a_forward_says_can_be_changed(name: str) -> None:
    *headers, (_, value) = signed()
    other = signed(attrs.evolve(FORWARD, **{name: CHANGES[name]}))[-1][1]
    code = value.rpartition(b" ")[2]
    mixed = b"%b %b" % (other.rpartition(b" ")[0], code)
    assert ForwardVerifier([NEW]).check([*headers, (SIGNATURE, mixed)]) is Rejection.FOREIGN


@pytest.mark.parametrize(
    "headers",
    [
        [],
        HEADERS[:1],
        [*HEADERS, (b"x-more", b"")],
        [(b"authorization", b"Bearer sk-2"), HEADERS[1]],
        # The same bytes, divided otherwise.
        [(b"authorization", b"Bearer sk-1t"), (b"hread-id", b"t")],
    ],
)
def test_no_header_of_the_client_can_be_changed(headers: Headers) -> None:
    found = ForwardVerifier([NEW]).check([*headers, signed()[-1]])
    assert found is Rejection.FOREIGN


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([], Rejection.UNSIGNED),
        ([signed()[-1][1]] * 2, Rejection.UNSIGNED),
        ([b""], Rejection.UNREADABLE),
        ([signed()[-1][1] + b" "], Rejection.UNREADABLE),
        ([signed()[-1][1].replace(b"v1", b"v2")], Rejection.UNREADABLE),
        ([signed()[-1][1].upper()], Rejection.UNREADABLE),
    ],
)
def test_what_is_no_signature_is_refused(values: list[bytes], why: Rejection) -> None:
    headers = [*HEADERS, *((SIGNATURE, value) for value in values)]
    assert ForwardVerifier([NEW]).check(headers) is why


@given(st.lists(st.integers(1, 9000), max_size=60))
def test_no_number_of_a_sender_is_taken_twice(numbers: list[int]) -> None:
    receiver = ForwardVerifier([NEW])
    taken: set[int] = set()
    for number in numbers:
        found = receiver.check(signed(attrs.evolve(FORWARD, sequence=number)))
        late = number <= max(taken, default=0) - 4096
        assert (found is Rejection.REPLAYED) is (number in taken or late)
        if not isinstance(found, Rejection):
            taken.add(number)


def test_senders_have_numbers_of_their_own() -> None:
    receiver = ForwardVerifier([NEW])
    senders = [attrs.evolve(FORWARD, sender=name * 32) for name in "121"]
    found = [receiver.check(signed(sender)) for sender in senders]
    assert found == [senders[0], senders[1], Rejection.REPLAYED]


def test_a_replica_numbers_its_forwards() -> None:
    sender = ForwardSigner([NEW])
    assert [sender.next_sequence() for _ in range(3)] == [1, 2, 3]
