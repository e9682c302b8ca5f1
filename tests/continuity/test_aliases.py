"""Tests of continuity/aliases.py."""

from __future__ import annotations

import pytest

from bridgecore.continuity.aliases import Alias, Aliases, credential_scope
from bridgecore.recovery.events import Standing

KEY = (b"authorization", b"Bearer sk-secret")


def test_the_scope_is_part_of_the_key() -> None:
    aliases = Aliases(10)
    alias = Alias(1, Standing.STORED)
    aliases.put("mine", "resp_1", alias)
    assert aliases.get("mine", "resp_1") is alias
    assert aliases.get("theirs", "resp_1") is None
    assert aliases.get("mine", "resp_2") is None


def test_the_least_recently_used_go_first() -> None:
    aliases = Aliases(2)
    for name in ("a", "b"):
        aliases.put("s", name, Alias(1, Standing.BOUND))
    assert aliases.get("s", "a") is not None
    aliases.put("s", "c", Alias(2, Standing.BOUND))
    assert len(aliases) == 2
    assert [aliases.get("s", name) is not None for name in "abc"] == [True, False, True]
    aliases.put("s", "a", Alias(3, Standing.STORED))  # again: newer, and one of two still
    aliases.put("s", "d", Alias(4, Standing.STORED))
    assert [aliases.get("s", name) is not None for name in "acd"] == [True, False, True]


def test_a_scope_does_not_tell_the_credential() -> None:
    scope = credential_scope([KEY])
    assert "secret" not in scope
    assert scope == credential_scope([(b"user-agent", b"x"), KEY, (b"thread-id", b"7")])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer sk-other")],
        [(b"authorization", b"")],
        [KEY, KEY],
        [KEY, (b"openai-organization", b"o")],
        [KEY, (b"openai-project", b"o")],
        [KEY, (b"chatgpt-account-id", b"o")],
        [(b"openai-project", b"Bearer sk-secret")],
    ],
)
def test_scopes_differ(headers: list[tuple[bytes, bytes]]) -> None:
    assert credential_scope(headers) != credential_scope([KEY])


def test_scopes_do_not_run_into_each_other() -> None:
    one = [(b"authorization", b"a"), (b"openai-project", b"b")]
    two = [(b"authorization", b"a14:openai-project1:b")]
    assert credential_scope(one) != credential_scope(two)
    assert credential_scope(one) == credential_scope(one[::-1])
