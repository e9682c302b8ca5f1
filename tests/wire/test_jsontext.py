"""Tests of wire/jsontext.py: all its parsers agree on a text, and slices are those of the text."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.wire import jsontext
from bridgecore.wire.jsontext import (
    MAX_DEPTH,
    TooDeepError,
    UnreadableError,
    read_value,
    write_object,
)


def read_members(data: bytes) -> dict[str, bytes]:
    return {name: bytes(raw) for name, raw in jsontext.read_members(data).items()}


def read_array(data: bytes) -> list[bytes]:
    return [bytes(raw) for raw in jsontext.read_array(data)]


HALF = r"\ud83d"
READERS = [read_value, read_members, read_array]

# ------------------------------------------------------------------ texts

spaces = st.text(" \t\r\n", max_size=2)
strings = st.lists(
    st.sampled_from(
        ["a", "é", "😀", r"\n", r"\"", r"\\", r"\/", r"\u00e9", r"\ud83d\ude00", r"\uD83D\uDE00"]
    ),
    max_size=3,
).map(lambda parts: f'"{"".join(parts)}"')
cut_strings = st.lists(
    st.sampled_from(
        ["a", HALF, r"\uDE00", r"\ude00\ud83d", r"\\ud83d", r"\ud83d\n", "}", ",", "["]
    ),
    min_size=1,
    max_size=3,
).map(lambda parts: f'"{"".join(parts)}"')
scalars = st.sampled_from(
    ["null", "true", "false", "0", "-1", "1.50", "1E5", "-0.0", "12345678901"]
)


def texts(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """JSON texts of ``values``, with white space wherever it is allowed."""

    def spaced(parts: st.SearchStrategy[list[str]], brackets: str) -> st.SearchStrategy[str]:
        return st.tuples(parts, spaces, spaces).map(
            lambda found: (
                brackets[0] + found[1] + ("," + found[2]).join(found[0]) + found[2] + brackets[1]
            )
        )

    def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        member = st.tuples(strings, spaces, inner, spaces).map(
            lambda found: f"{found[0]}{found[1]}:{found[3]}{found[2]}{found[1]}"
        )
        element = st.tuples(inner, spaces).map("".join)
        return spaced(st.lists(member, max_size=3), "{}") | spaced(
            st.lists(element, max_size=3), "[]"
        )

    return st.tuples(spaces, st.recursive(values, nested, max_leaves=8), spaces).map("".join)


good_texts = texts(scalars | strings)
odd_texts = texts(scalars | strings | cut_strings)


def parts_of(data: bytes) -> dict[str, bytes] | list[bytes] | None:
    """The parts of an object or array; None if it is neither."""
    with contextlib.suppress(UnreadableError):
        return read_members(data)
    with contextlib.suppress(UnreadableError):
        return read_array(data)
    return None


# ------------------------------------------------------------------ properties


@given(good_texts)
def test_a_text_is_read_as_msgspec_reads_it(text: str) -> None:
    data = text.encode()
    assert read_value(data) == msgspec.json.decode(data)
    found = parts_of(data)
    value = msgspec.json.decode(data)
    if isinstance(value, dict):
        members = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        assert found == {name: bytes(raw) for name, raw in members.items()}
    elif isinstance(value, list):
        elements = msgspec.json.decode(data, type=list[msgspec.Raw])
        assert found == [bytes(raw) for raw in elements]
    else:
        assert found is None


@given(odd_texts)
def test_half_a_surrogate_pair_is_read_as_the_standard_library_reads_it(text: str) -> None:
    """Whatever its white space, and wherever in the text it is."""
    data = text.encode()
    value = json.loads(data)
    assert read_value(data) == value
    found = parts_of(data)
    if isinstance(value, dict):
        assert isinstance(found, dict)
        assert list(found) == list(value)
        assert {name: json.loads(raw) for name, raw in found.items()} == value
    elif isinstance(value, list):
        assert isinstance(found, list)
        assert [json.loads(raw) for raw in found] == value
    else:
        assert found is None


@given(st.lists(st.tuples(st.integers(0, 9), spaces, odd_texts.map(str.strip), spaces), max_size=4))
def test_slices_are_the_very_bytes(entries: list[tuple[int, str, str, str]]) -> None:
    unique = list({entry[0]: entry for entry in entries}.values())
    members = ",".join(f'"{n}":{before}{text}{after}' for n, before, text, after in unique)
    assert read_members(f" {{{members} }} ".encode()) == {
        str(number): text.encode() for number, _, text, _ in unique
    }
    elements = ",".join(f"{before}{text}{after}" for _, before, text, after in entries)
    assert read_array(f"[ {elements}]\n".encode()) == [text.encode() for _, _, text, _ in entries]


@given(st.dictionaries(st.text(max_size=4), odd_texts.map(str.strip), max_size=4))
def test_written_values_are_read_back(members: dict[str, str]) -> None:
    raw = {name: text.encode() for name, text in members.items()}
    assert read_members(write_object(raw)) == raw


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """Bytes of a text, truncated or with something in it that is not allowed."""
    data = draw(odd_texts.map(str.encode))
    at = draw(st.integers(0, len(data)))
    junk = draw(
        st.sampled_from([b"", b",", b"}", b"]", b'"', b"\xff", b"NaN", b"\\", b"\x00", b":"])
    )
    return data[:at] + junk + data[draw(st.integers(at, len(data))) :]


@given(st.binary(max_size=40) | broken())
def test_anything_else_is_unreadable(data: bytes) -> None:
    """What is accepted is accepted by the strictest of other parsers, too."""
    for read in READERS:
        with contextlib.suppress(UnreadableError):
            read(data)
    with contextlib.suppress(UnreadableError):
        assert read_value(data) == json.loads(data.decode())


# ------------------------------------------------------------------ examples


@pytest.mark.parametrize("space", ["", " ", "\n\t"])
def test_a_cut_emoji(space: str) -> None:
    data = f'{{{space}"delta":{space}"x{HALF}"{space},"n":1.0}}'.encode()
    assert read_value(data) == {"delta": "x\ud83d", "n": 1.0}
    assert read_members(data) == {"delta": f'"x{HALF}"'.encode(), "n": b"1.0"}


@pytest.mark.parametrize("half", ["", f'"{HALF}",'])
@pytest.mark.parametrize(
    "rest",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "01",
        "'x'",
        "1,",
        ",1",
        "1 2",
        '"\x01"',
        "1]]",
        "1} ",
        '"\\x"',
    ],
)
def test_invalid_json_stays_invalid_with_a_surrogate(half: str, rest: str) -> None:
    data = f"[{half}{rest}]".encode()
    for read in (read_value, read_array):
        with pytest.raises(UnreadableError):
            read(data)


@pytest.mark.parametrize(
    "text",
    [
        f'{{"a":"{HALF}"',
        f'{{"a":"{HALF}",}}',
        f'{{"a":"{HALF}" "b":1}}',
        f'{{"a" "{HALF}"}}',
        f'{{a:"{HALF}"}}',
        f'{{"a":"{HALF}"}}}}',
        f'{{"a":"{HALF}"}} x',
        f'{{"{HALF}":1}}',
        f'["{HALF}"]',
        f'"{HALF}"',
    ],
)
def test_no_members(text: str) -> None:
    with pytest.raises(UnreadableError):
        read_members(text.encode())


def test_of_equal_names_the_last_counts() -> None:
    for half in ("1", f'"{HALF}"'):
        assert read_members(f'{{"a":{half},"a":2}}'.encode()) == {"a": b"2"}


@pytest.mark.parametrize("half", ["", f'"{HALF}",'])
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
def test_deep_nesting(read: Any, half: str, brackets: str) -> None:
    opening, closing = brackets[:-1], brackets[-1]
    # Since Python 3.14 the limit is the size of the stack, and no number of calls.
    data = f"[{half}{opening * 1_000_000}1{closing * 1_000_000}]".encode()
    with pytest.raises(UnreadableError):
        read(data)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, tuple):  # a member
        return depth(value[1])
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(odd_texts, st.integers(-3, 3))
def test_a_value_has_a_fixed_number_of_levels(text: str, more: int) -> None:
    """Whatever strings contain: brackets, escaped quotes and backslashes make no difference."""
    value = json.loads(text, object_pairs_hook=lambda pairs: dict(enumerate(pairs)))
    levels = MAX_DEPTH - depth(value) + more
    quoted = rb'"[{\\\"[",'
    data = b"[" * levels + quoted + text.encode() + b"]" * levels
    if more > 0:
        with pytest.raises(TooDeepError):
            read_value(data)
    else:
        assert read_value(data) == json.loads(data)
    assert len(read_array(data)) == 1  # an item is not decoded, only passed on


@pytest.mark.parametrize("half", ["", f'"{HALF}",'])
def test_a_huge_integer_is_read_or_refused(half: str) -> None:
    """CPython refuses integers of more than 4,300 digits."""
    with contextlib.suppress(UnreadableError):
        read_value(f"[{half}{'9' * 5000}]".encode())


def test_no_message_repeats_the_text() -> None:
    for text in ('{"secret words', f'{{"secret words":"{HALF}"'):
        for read in READERS:
            with pytest.raises(UnreadableError) as caught:
                read(text.encode())
            assert not re.search("secret", str(caught.value))
