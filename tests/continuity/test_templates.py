"""Tests of continuity/templates.py: how items are stored, and which ones count as equal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.continuity.items import ROOT, chain_digest
from bridgecore.continuity.templates import PLAIN, SPARE, TemplateTable, split
from tests.memory import taken

Item = dict[str, Any]


def dump(item: object) -> bytes:
    return json.dumps(item, separators=(",", ":")).encode()


def is_same(table: TemplateTable, encoded: bytes, *items: bytes) -> bool:
    """Whether the items equal the stored ones, as far as the table can tell."""
    bounds = [0]
    for item in items:
        bounds.append(bounds[-1] + len(item) + 1)
    return table.is_at(encoded, b",".join(items), bounds, 0) == len(items)


def user(text: str) -> Item:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def call(number: str, arguments: str) -> Item:
    return {"type": "function_call", "call_id": number, "name": "f", "arguments": arguments}


def thought(content: object, **members: object) -> Item:
    return {"type": "reasoning", "summary": [], "encrypted_content": content, **members}


# ------------------------------------------------------------------ items as templates


@pytest.mark.parametrize(
    ("item", "names"),
    [
        (user("a"), ("content.0.text",)),
        ({"role": "user", "content": "a"}, ("content.0.text",)),
        (call("c", "{}"), ("call_id", "name", "arguments")),
        ({"id": "fc_1", **call("c", "{}")}, ("id", "call_id", "name", "arguments")),
        ({"type": "function_call_output", "call_id": "c", "output": "x"}, ("call_id", "output")),
        (thought("e", id="rs_1"), ("encrypted_content", "id")),
        (
            thought("e", summary=[{"type": "summary_text", "text": "s"}]),
            ("summary.0.text", "encrypted_content"),
        ),
    ],
)
def test_the_values_of_an_item(item: Item, names: tuple[str, ...]) -> None:
    template, values = split(dump(item))
    assert template.names == names
    assert len(template.words) == len(values) + 1
    assert template.values(dump(item)) == values


@pytest.mark.parametrize(
    "item",
    [
        b'{"type": "message", "role": "user", "content": "white space"}',
        b'{"type":"message","r\\u006fle":"user","content":"a"}',
        b'{"type":"message","role":"user","content":"a","content":"b"}',
        b'{"type":"message","role":"user","content":[]}',
        b'{"type":"item_reference","id":"msg_1"}',
        b'{"type":"mcp_approval_request","id":"m_1","name":"f","arguments":"{}"}',
        b'{"type":"compaction_unheard_of","encrypted_content":"x"}',
        dump(thought("", id="rs_1")),
        dump(thought(None, id="rs_1")),
        dump({"type": "reasoning", "id": "rs_1", "summary": []}),
        dump({**user("a"), "annotated": "x" * 40}),
        dump({**user("a"), **{f"member{number}": "x" * 30 for number in range(20)}}),
        b'"text"',
        b"{",
    ],
)
def test_items_without_a_template_are_kept_as_they_are(item: bytes) -> None:
    assert split(item) == (PLAIN, [item])
    table = TemplateTable()
    assert table.items(table.encode([item])) == [item]
    assert table.size == SPARE


def test_a_template_is_read_as_json_and_not_as_text() -> None:
    """Each value of the template has to be one JSON string."""
    template, _ = split(dump({"type": "function_call_output", "call_id": "c", "output": "x"}))
    for other in (
        b'{"type":"function_call_output","call_id":"c","x":"","output":"x"}',
        b'{"type":"function_call_output","call_id":"c","output":"x","y":"z"}',
        b'{"type":"function_call_output","call_id":"c","output":null}',
        b'{"type":"function_call_output","call_id":"c","output":["x"]}',
        b'{"type":"function_call_output","call_id":"c"}',
        b'{"type":"function_call_output","output":"x","call_id":"c"}',
        b'{"type":"function_call_output","call_id":"c","output":"x" }',
    ):
        assert template.values(other) is None, other
    tricky = dump({"type": "function_call_output", "call_id": '","output":"', "output": '\\"}'})
    assert template.values(tricky) == [b'"\\",\\"output\\":\\""', b'"\\\\\\"}"']


# ------------------------------------------------------------------ other words


def test_a_form_learnt_from_one_item_holds_for_its_template() -> None:
    table = TemplateTable()
    one, two = table.encode([dump(call("1", "a"))]), table.encode([dump(call("2", "b"))])
    size = table.size
    other = {"id": "fc_1", "arguments": "a", "call_id": "1", "type": "function_call", "name": "f"}
    assert not is_same(table, one, dump(other))
    table.learn(one, [dump(other)])
    assert is_same(table, one, dump(other))
    assert is_same(table, one, dump({**other, "id": "fc_another"}))
    assert is_same(table, two, dump({**other, "arguments": "b", "call_id": "2"}))
    assert not is_same(table, two, dump({**other, "arguments": "b"}))
    assert not is_same(table, two, dump({**other, "arguments": "b", "call_id": "2", "name": "g"}))
    assert is_same(table, two, dump(call("2", "b")))
    assert table.size == size  # there was room for it


@pytest.mark.parametrize("unread", ['"', "\\", "x" * 200])
def test_an_id_is_a_plain_string(unread: str) -> None:
    table = TemplateTable()
    encoded = table.encode([dump(call("1", "a"))])
    table.learn(encoded, [dump({"id": "fc_1", **call("1", "a")})])
    assert is_same(table, encoded, dump({"id": "fc_2", **call("1", "a")}))
    assert not is_same(table, encoded, dump({"id": unread, **call("1", "a")}))
    assert not is_same(table, encoded, b'{"id":"a","id":"b"' + dump(call("1", "a"))[1:])


CODEX = "internal_chat_message_metadata_passthrough"


@pytest.mark.parametrize("place", [0, 1, 4])
def test_members_added_by_a_client_are_not_compared(place: int) -> None:
    """It differs in each item, so no two items would have the same encoding."""
    table = TemplateTable()
    one, two = table.encode([dump(call("1", "a"))]), table.encode([dump(call("2", "b"))])

    def with_note(item: Item, note: object) -> bytes:
        members = list(item.items())
        return dump(dict([*members[:place], (CODEX, note), *members[place:]]))

    first = {"turn_id": "01a059de", "create_time": 1788214171.12, "kinds": ["a", "b"]}
    table.learn(one, [with_note(call("1", "a"), first)])
    for note in (first, {"turn_id": "x"}, {}, "t"):
        assert is_same(table, two, with_note(call("2", "b"), note))
        assert not is_same(table, two, with_note(call("2", "c"), note))
    # An input item is stored with all its members.
    asked = with_note(call("3", "c"), first)
    encoded = table.encode([asked, with_note(call("4", "d"), {"turn_id": "y"})])
    assert table.items(encoded)[0] == asked
    assert is_same(table, encoded, dump(call("3", "c")), dump(call("4", "d"))) is False
    table.learn(encoded, [dump(call("3", "c")), dump(call("4", "d"))])
    assert is_same(table, encoded, dump(call("3", "c")), dump(call("4", "d")))


def test_arguments_formatted_differently_add_no_second_form() -> None:
    table = TemplateTable()
    encoded = table.encode([dump(call("1", '{"a":1}'))])
    other = {"type": "function_call", "name": "f", "call_id": "1"}
    for space in range(9):
        table.learn(encoded, [dump({**other, "arguments": '{"a":%s1}' % (" " * space)})])
    assert [len(spellings) for spellings in table._spellings] == [1, 2]
    assert is_same(table, encoded, dump({**other, "arguments": '{"a":1}'}))


def test_a_thought_without_its_content_is_its_id() -> None:
    table = TemplateTable()
    known = table.encode([dump(thought("e"))])
    table.learn(known, [dump({"id": "rs_1", **thought("e")})])
    assert is_same(table, known, dump({"id": "rs_2", **thought("e")}))
    empty = table.encode([dump(thought(""))])
    assert not is_same(table, empty, dump({"id": "rs_1", **thought("")}))
    assert is_same(table, empty, dump(thought("")))


def test_a_form_is_learnt_from_a_value_escaped_differently() -> None:
    table = TemplateTable()
    encoded = table.encode([dump(user("caf\u00e9"))])
    other = '{"role":"user","content":"%s"}'
    table.learn(encoded, [(other % "caf\u00e9").encode()])
    assert not is_same(table, encoded, (other % "caf\u00e9").encode())
    assert is_same(table, encoded, (other % "caf\\u00e9").encode())
    assert is_same(table, table.encode([dump(user("cafe"))]), (other % "cafe").encode())


def test_an_item_with_other_values_adds_no_form() -> None:
    table = TemplateTable()
    encoded = table.encode([dump(user("a"))])
    two = {**user("a"), "content": [*user("a")["content"], *user("a")["content"]]}
    for item in (b"7", dump(two), json.dumps(user("a")).encode()):
        table.learn(encoded, [item])
        assert not is_same(table, encoded, item)
    assert not is_same(table, table.encode([b"1"]), b"12")


def test_the_number_of_learnt_forms_is_bounded() -> None:
    table = TemplateTable()
    encoded = table.encode([dump(user("a"))])

    def way(number: int) -> bytes:
        return dump({"role": "user", **dict.fromkeys("abcdefgh"[:number]), **user("a")})

    known = 0
    for _ in range(20):
        for number in range(8):
            table.learn(encoded, [way(number)])
        found = [number for number in range(8) if is_same(table, encoded, way(number))]
        assert len(found) >= known
        known = len(found)
        table.grow()
    assert known == 3
    assert is_same(table, encoded, dump(user("a")))
    assert table.size < 5 * SPARE


def test_the_number_of_sequences_is_bounded() -> None:
    table = TemplateTable()
    kinds = [dump({**user("a"), "phase": f"p{number}"}) for number in range(6)]
    pairs = [(one, two) for one in kinds for two in kinds]
    for one, two in [*pairs, *pairs]:
        assert is_same(table, table.encode([one, two]), one, two)
        assert not is_same(table, table.encode([one, two]), two, dump(user("a")))
        table.grow()
    size = table.size
    assert size < 8 * SPARE
    for one, two in pairs:
        assert is_same(table, table.encode([one, two, one]), one, two, one)
        table.grow()
    assert is_same(table, table.encode(kinds * 4), *kinds * 4)
    table.grow()
    assert table.size == size


def test_long_sequences_are_not_remembered() -> None:
    table = TemplateTable()
    kinds = [dump({**user("a"), "phase": f"p{number}"}) for number in range(9)]
    table.encode(kinds)
    size = table.size
    for first in range(9):
        row = kinds[first:] + kinds[:first]
        assert is_same(table, table.encode(row), *row)
        table.grow()
    assert table.size == size


def test_a_full_book_keeps_items_as_they_are() -> None:
    table = TemplateTable()
    items = [dump({**user("a"), "phase": f"p{number}"}) for number in range(60)]
    encoded = table.encode(items)
    assert table.items(encoded) == items
    size = table.size
    more = table.encode(dump({**user("b"), "phase": f"q{number}"}) for number in range(60))
    assert table.size == size
    assert len(table.items(more)) == 60


def test_items_are_looked_for_one_after_another() -> None:
    table = TemplateTable()
    one, two, three = (dump(user(text)) for text in "123")
    encoded = table.encode([one, two])
    for items, count in (
        ([one, two, three], 2), ([one, three], 1), ([one], 1), ([two, one], 0), ([], 0)
    ):  # fmt: skip
        bounds = [0, 5]
        for item in items:
            bounds.append(bounds[-1] + len(item) + 1)
        assert table.is_at(encoded, b",".join([b"null", *items]), bounds, 1) == count


def test_invalid_json_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        TemplateTable().encode([b'"a\0b"'])


def test_the_size_of_a_table_is_its_memory() -> None:
    def fill() -> list[TemplateTable]:
        tables = []
        for number in range(30):
            table = TemplateTable()
            for each in range(20):
                encoded = table.encode([dump({**user("a"), "phase": f"p{number}.{each}"})])
                other = {"phase": f"p{number}.{each}", "role": "user", "content": "a"}
                table.learn(encoded, [dump(other)])
                table.grow()
            tables.append(table)
        return tables

    tables, size = taken(fill)
    said = sum(table.size for table in tables)
    assert 0.7 * said <= size <= said


# ------------------------------------------------------------------ as sure as digests

texts = st.sampled_from(["", "a", "b", '"', "\\", '","text":"', '"}]}', "\u00e9", "\0", "</x>"])
statuses = st.sampled_from(["completed", "completed", "in_progress", None])


@st.composite
def items(draw: st.DrawFn) -> Item:
    """An item with one of a few contents, in one of many encodings."""
    kind = draw(st.sampled_from(["message", "message", "function_call", "output", "reasoning"]))
    text = draw(texts)
    item: Item
    if kind == "message":
        role = draw(st.sampled_from(["user", "assistant"]))
        part: Item = {"type": draw(st.sampled_from(["input_text", "output_text"])), "text": text}
        more: Item = {"annotations": [], "logprobs": [], "x": None, "y": 1}
        part |= {name: value for name, value in more.items() if draw(st.integers(0, 3)) == 0}
        part = shuffled(draw, part)
        content = draw(st.sampled_from([text, [part], [part], [part, part], []]))
        item = {"type": kind, "role": role, "content": content}
        if draw(st.booleans()):
            del item["type"]
    elif kind == "function_call":
        made = draw(st.sampled_from([text, '{"a":1}', '{"a": 1}', '{"a":1.0}', '{"b":1,"a":1}']))
        item = {"type": kind, "call_id": draw(texts), "name": "f", "arguments": made}
    elif kind == "output":
        item = {"type": "function_call_output", "call_id": draw(texts), "output": text}
    else:
        summary = draw(st.sampled_from([[], [{"type": "summary_text", "text": text}]]))
        item = {"type": kind, "summary": summary}
        if draw(st.booleans()):
            item["encrypted_content"] = draw(texts)
        if draw(st.integers(0, 2)) == 0:
            readable = [{"type": "reasoning_text", "text": text}]
            item["content"] = draw(st.sampled_from([[], None, readable]))
    if draw(st.booleans()):
        item["id"] = draw(st.sampled_from(["i", "j", None, 7, '"']))
    if draw(st.booleans()):
        item["status"] = draw(statuses)
    if draw(st.integers(0, 3)) == 0:
        item[CODEX] = draw(st.sampled_from([None, {}, {"t": "1"}, {"t": {}}, {"t": '"'}, "t"]))
    if draw(st.integers(0, 3)) == 0:
        item["phase"] = draw(st.sampled_from(["x", "y", None]))
    return shuffled(draw, item)


def shuffled(draw: st.DrawFn, members: Item) -> Item:
    return {name: members[name] for name in draw(st.permutations(sorted(members)))}


@st.composite
def written(draw: st.DrawFn) -> bytes:
    separators = draw(st.sampled_from([(",", ":"), (",", ":"), (",", ":"), (", ", ": ")]))
    ascii_only = draw(st.booleans())
    text = json.dumps(draw(items()), separators=separators, ensure_ascii=ascii_only)
    return text.encode()


@given(st.lists(written(), min_size=2, max_size=12))
@settings(max_examples=300)
def test_encoded_items_are_decoded_to_the_same_bytes(said: list[bytes]) -> None:
    table = TemplateTable()
    assert table.items(table.encode(said)) == said
    assert table.items(table.encode(said)) == said  # now that their templates are known


def reworded(item: bytes, order: list[str], unread: str | None) -> bytes:
    """The same item with its members in another order, and with another id."""
    members = json.loads(item)
    if unread is not None and members.get("encrypted_content"):
        members["id"] = unread
    ranks = {name: place for place, name in enumerate(order)}
    return dump(dict(sorted(members.items(), key=lambda pair: ranks.get(pair[0], 99))))


@given(
    st.lists(written(), min_size=2, max_size=12),
    st.permutations(["type", "role", "content", "call_id", "arguments", "output", "id", "summary"]),
    st.sampled_from([None, "k", "l"]),
)
@settings(max_examples=600)
def test_items_with_different_digests_never_compare_equal(
    said: list[bytes], order: list[str], unread: str | None
) -> None:
    table = TemplateTable()
    said += [reworded(item, order, unread) for item in said]
    encoded = [table.encode([item]) for item in said]
    digests = [chain_digest(ROOT, item) for item in said]
    pairs = [(a, b) for a in range(len(said)) for b in range(len(said))]
    for a, b in pairs:
        if digests[a] == digests[b]:
            table.learn(encoded[a], [said[b]])
            table.grow()
    for a, b in pairs:
        if is_same(table, encoded[a], said[b]):
            assert digests[a] == digests[b], (said[a], said[b])


@given(st.lists(st.lists(written(), min_size=2, max_size=3), min_size=2, max_size=5), st.data())
@settings(max_examples=200)
def test_a_sequence_is_equal_if_each_of_its_items_is(
    rows: list[list[bytes]], data: st.DataObject
) -> None:
    table = TemplateTable()
    order = data.draw(st.permutations(["type", "role", "content", "call_id", "output", "id"]))
    unread = data.draw(st.sampled_from([None, "k"]))
    rows += [[reworded(item, order, unread) for item in row] for row in rows]
    digests = [[chain_digest(ROOT, item) for item in row] for row in rows]
    encoded = [table.encode(row) for row in rows]
    for one, held in zip(digests, encoded, strict=True):
        for other, row in zip(digests, rows, strict=True):
            if one == other:
                table.learn(held, row)
                table.grow()
    for _ in range(2):  # items found one by one are then found at once
        for one, held in zip(digests, encoded, strict=True):
            for other, row in zip(digests, rows, strict=True):
                assert one[: len(other)] == other or not is_same(table, held, *row)
                table.grow()
        assert all(is_same(table, held, *row) for held, row in zip(encoded, rows, strict=True))


@st.composite
def item_twice(draw: st.DrawFn) -> tuple[Item, Item]:
    item = draw(items())
    return item, shuffled(draw, item)


@given(item_twice(), texts)
@settings(max_examples=200)
def test_a_learnt_form_holds_for_any_values(twice: tuple[Item, Item], new: str) -> None:
    """Two encodings of one content are two encodings of any other."""
    table = TemplateTable()
    table.learn(table.encode([dump(twice[0])]), [dump(twice[1])])
    for name in ("output", "arguments"):
        if name in twice[0]:
            one, two = (dump({**each, name: new}) for each in twice)
            assert is_same(table, table.encode([one]), two)
