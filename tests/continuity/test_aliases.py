"""Tests of continuity/aliases.py: which response ids are kept, for whom, and within which
limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.continuity.aliases import Alias, Aliases, credential_scope, named_scope
from bridgecore.recovery.events import Standing
from tests.memory import taken

KEY = (b"authorization", b"Bearer sk-secret")


def test_the_scope_is_part_of_the_key() -> None:
    aliases = Aliases(10_000)
    alias = Alias(1, Standing.STORED)
    aliases.put("mine", "resp_1", alias)
    assert aliases.get("mine", "resp_1") is alias
    assert aliases.get("theirs", "resp_1") is None
    assert aliases.get("mine", "resp_2") is None


def size_of(scope: str, response: str) -> int:
    aliases = Aliases(1_000_000)
    aliases.put(scope, response, Alias(1, Standing.BOUND))
    return aliases.size


def test_the_least_recently_used_go_first() -> None:
    aliases = Aliases(2 * size_of("s", "a"))
    for name in ("a", "b"):
        aliases.put("s", name, Alias(1, Standing.BOUND))
    assert aliases.get("s", "a") is not None
    aliases.put("s", "c", Alias(2, Standing.BOUND))
    assert len(aliases) == 2
    assert [aliases.get("s", name) is not None for name in "abc"] == [True, False, True]
    aliases.put("s", "a", Alias(3, Standing.STORED))  # again: it is newer, and one of two still
    aliases.put("s", "d", Alias(4, Standing.STORED))
    assert [aliases.get("s", name) is not None for name in "acd"] == [True, False, True]


def test_a_large_entry_takes_the_place_of_several_small_ones() -> None:
    large = "\u20ac" * 128
    aliases = Aliases(2 * size_of("s", "1"))
    for number in range(2):
        aliases.put("s", str(number), Alias(1, Standing.BOUND))
    assert len(aliases) == 2
    aliases.put("s", large, Alias(1, Standing.BOUND))
    assert len(aliases) == 1
    assert aliases.get("s", large) is not None
    aliases.put(large, large, Alias(1, Standing.BOUND))  # larger than the limit
    assert (len(aliases), aliases.size) == (0, 0)


@pytest.mark.parametrize("letter", ["x", "\u20ac", "\ud800"])
def test_a_long_id_takes_little_memory_and_differs_from_others(letter: str) -> None:
    most = size_of("s", "x" * 128)
    aliases = Aliases(10 * most)
    names = [letter * length for length in (129, 130, 4096, 1_000_000)]
    for number, name in enumerate(names):
        aliases.put("s", name, Alias(number, Standing.BOUND))
    found = [aliases.get("s", name) for name in names]
    assert [alias.conversation for alias in found if alias is not None] == [0, 1, 2, 3]
    assert aliases.get("t", names[0]) is None
    assert aliases.size <= len(names) * most


@given(st.lists(st.tuples(st.sampled_from("st"), st.text(max_size=9)), max_size=60))
def test_the_size_is_that_of_the_entries(keys: list[tuple[str, str]]) -> None:
    aliases = Aliases(5000)
    for scope, response in keys:
        aliases.put(scope, response, Alias(1, Standing.BOUND))
        assert aliases.size <= 5000
    left = {key for key, *_ in aliases.snapshot()}
    assert aliases.size == sum(size_of(*key) for key in left)


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\u20ac", "\U0001f600"])
@pytest.mark.parametrize("length", [20, 465, 1024])
def test_the_bound_is_one_on_memory(letter: str, length: int) -> None:
    def fill() -> Aliases:
        aliases = Aliases(2_000_000)
        for number in range(10_000):
            scope = credential_scope([KEY])
            aliases.put(scope, f"{number}{letter * length}", Alias(number, Standing.BOUND))
        return aliases

    aliases, size = taken(fill)
    assert aliases.size <= 2_000_000
    assert size <= 2_000_000


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
        [KEY, (b"api-key", b"k")],
        [(b"api-key", b"Bearer sk-secret")],
        [(b"openai-project", b"Bearer sk-secret")],
    ],
)
def test_scopes_differ(headers: list[tuple[bytes, bytes]]) -> None:
    assert credential_scope(headers) != credential_scope([KEY])


def test_the_case_of_a_name_makes_no_scope() -> None:
    assert credential_scope([(b"AuthoriZation", KEY[1])]) == credential_scope([KEY])


def test_other_headers_can_belong_to_the_credential() -> None:
    one, two = [KEY, (b"X-Tenant", b"1")], [KEY, (b"x-tenant", b"2")]
    names = frozenset({b"authorization", b"x-tenant"})
    assert credential_scope(one) == credential_scope(two)
    assert credential_scope(one, names) != credential_scope(two, names)


def test_a_named_scope_equals_no_other_scope() -> None:
    names = ["", "a", "named:a", credential_scope([]), credential_scope([KEY]), "\ud800"]
    scopes = {named_scope(name) for name in names}
    assert len(scopes) == len(names)
    assert not scopes & {credential_scope([]), credential_scope([KEY]), *names}


def test_scopes_do_not_run_into_each_other() -> None:
    one = [(b"authorization", b"a"), (b"openai-project", b"b")]
    two = [(b"authorization", b"a14:openai-project1:b")]
    assert credential_scope(one) != credential_scope(two)
    assert credential_scope(one) == credential_scope(one[::-1])
