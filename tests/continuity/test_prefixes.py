"""Tests of continuity/prefixes.py: finding the beginning of an input by its bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridgecore.continuity.prefixes import (
    PREFIX_OVERHEAD,
    Digester,
    Prefix,
    PrefixTable,
    note_prefix,
)
from tests.memory import taken


def prefix(text: bytes, end: int, begin: int = 0, *, store: bool = True) -> Prefix:
    """The bytes of ``text`` up to ``end`` as a prefix of one item."""
    digester = Digester(text, begin)
    noted = note_prefix(
        text, begin, end, digester, store=store, count=1, chain=b"c" * 16, repeats=None
    )
    assert noted is not None
    return noted


@given(st.binary(max_size=400), st.binary(min_size=64, max_size=400), st.binary(max_size=9))
def test_a_prefix_is_found_wherever_the_input_begins(
    before: bytes, told: bytes, after: bytes
) -> None:
    table = PrefixTable(64)
    noted = prefix(told, len(told))
    table.add(noted)
    text = before + told + b"," + after
    end = len(text)
    found = table.find(text, len(before), end, store=True)
    assert found is not None
    assert found.prefix is noted
    for other in (
        table.find(text, len(before), end, store=False),
        table.find(text, len(before), len(before) + len(told), store=True),
        table.find(before + told + b" " + after, len(before), end, store=True),
    ):
        assert other is None
    for place in {0, len(told) // 2, len(told) - 1}:
        changed = bytearray(text)
        changed[len(before) + place] ^= 1
        assert table.find(bytes(changed), len(before), end, store=True) is None
    table.remove(noted)
    assert table.find(text, len(before), end, store=True) is None


def test_the_longest_of_a_few_is_found() -> None:
    text = bytes(range(48, 58)) * 100
    lengths = (100, 150, 300, 700)
    table = PrefixTable(64)
    noted = [prefix(text, length) for length in lengths]
    for each in noted:
        table.add(each)
    for length in lengths:
        repeated = text[:length] + b"," + text
        found = table.find(repeated, 0, len(repeated), store=True)
        assert found is not None
        assert found.prefix.length == length


def test_of_many_alike_the_latest_are_found() -> None:
    table = PrefixTable(64)
    texts = [b"x" * 70 + b"%03d" % number + b"y" * 50 for number in range(20)]
    noted = [prefix(text, len(text)) for text in texts]
    for each in noted:
        table.add(each)
    assert sum(table.find(text + b",", 0, 124, store=True) is not None for text in texts) < 20
    found = table.find(texts[-1] + b",1", 0, 125, store=True)
    assert found is not None
    assert found.prefix is noted[-1]
    for each in noted:
        table.remove(each)
    assert table.find(texts[-1] + b",1", 0, 125, store=True) is None


def test_a_digester_does_not_go_back() -> None:
    digester = Digester(b"x" * 100, 10)
    assert digester.upto(50) is not None
    assert digester.upto(40) is None
    assert digester.upto(90) == Digester(b"x" * 80, 0).upto(80)


def test_memory() -> None:
    def add() -> tuple[PrefixTable, list[Prefix]]:
        table = PrefixTable()
        noted = [prefix(b"%020d" % number * 1000, 19_999) for number in range(500)]
        for each in noted:
            table.add(each)
        return table, noted

    _, size = taken(add)
    assert 500 * PREFIX_OVERHEAD // 2 <= size <= 500 * PREFIX_OVERHEAD
