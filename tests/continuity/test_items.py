"""Tests of continuity/items.py: input form, digests, proofs, prompts."""

from __future__ import annotations

import json
import re
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import response_input_item_param as reference

from bridgecore.continuity import items as module
from bridgecore.continuity.items import (
    ROOT,
    Prompt,
    Proof,
    chain_digest,
    input_form,
    prove,
    read_head,
    read_heads,
    referred,
    repeats_answers,
)
from bridgecore.wire.requests import parse_create

Item = dict[str, Any]


def digest(item: object) -> bytes:
    """The digest of a list of one item, given as a value or as JSON text."""
    return chain_digest(ROOT, item if isinstance(item, bytes) else json.dumps(item).encode())


def prompt(*narrow: bytes, **members: object) -> Prompt:
    return Prompt(parse_create(json.dumps({"model": "m", **members}).encode()), narrow)


def form(item: Item, *, stored: bool = False) -> Item | None:
    raw = input_form(json.dumps(item).encode(), stored=stored)
    if raw is None:
        return None
    value = json.loads(raw)
    assert isinstance(value, dict)
    return value


MESSAGE: Item = {
    "id": "msg_1",
    "type": "message",
    "status": "completed",
    "content": [{"type": "output_text", "annotations": [], "logprobs": [], "text": "hi\n"}],
    "role": "assistant",
}
CALL: Item = {
    "id": "fc_1",
    "type": "function_call",
    "status": "completed",
    "arguments": '{"a": null}',
    "call_id": "call_1",
    "name": "f",
}
RESULT: Item = {"type": "function_call_output", "call_id": "call_1", "output": "one"}
REASONING: Item = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "gAAA"}
USER: Item = {"role": "user", "content": "hello"}
# Readable reasoning, as open models return it.
THOUGHT: Item = {"type": "reasoning_text", "text": "hm"}
READABLE: Item = {"id": "rs_1", "type": "reasoning", "summary": [], "content": [THOUGHT]}
CODEX = "internal_chat_message_metadata_passthrough"

# ------------------------------------------------------------------ input form


def test_bookkeeping_is_cut_out_and_every_other_byte_kept() -> None:
    raw = (
        b'{"id":"fc_1","name":"f\\u00e9","status":"completed","arguments":"{\\"a\\": 1.0}",'
        b'"type":"function_call","extra":[ 1.50 , {"b":null}],"call_id":"call_1"}'
    )
    assert input_form(raw, stored=False) == (
        b'{"name":"f\\u00e9","arguments":"{\\"a\\": 1.0}",'
        b'"type":"function_call","extra":[ 1.50 , {"b":null}],"call_id":"call_1"}'
    )


def test_an_item_without_bookkeeping_keeps_its_very_bytes() -> None:
    raw = b'{ "type" : "function_call", "call_id":"c", "name":"f", "arguments":"" }'
    assert input_form(raw, stored=False) == raw


def test_annotations_are_kept_and_log_probabilities_are_not() -> None:
    citation = {"type": "url_citation", "url": "u", "title": "t", "start_index": 0, "end_index": 1}
    part = {"type": "output_text", "annotations": [citation], "text": "a"}
    refusal = {"type": "refusal", "refusal": "no", "logprobs": 1}
    item = {**MESSAGE, "content": [{**part, "logprobs": [{"token": "a"}]}, refusal]}
    assert form(item) == {
        "type": "message",
        "content": [part, refusal],
        "role": "assistant",
    }


@pytest.mark.parametrize("status", ["incomplete", "in_progress"])
def test_a_status_that_says_something_stays(status: str) -> None:
    assert form({**CALL, "status": status}) == {
        **{name: value for name, value in CALL.items() if name != "id"},
        "status": status,
    }


@pytest.mark.parametrize("encrypted", [{}, {"encrypted_content": None}, {"encrypted_content": ""}])
def test_reasoning_without_encrypted_content_is_dropped_unless_stored(encrypted: Item) -> None:
    item = {"id": "rs_1", "type": "reasoning", "summary": [{"text": "t"}], **encrypted}
    assert form(item) is None
    assert form(item, stored=True) == item
    assert form(REASONING) == {name: REASONING[name] for name in REASONING if name != "id"}


@pytest.mark.parametrize("content", ["null", "[]", "[ ]", '""'])
def test_reasoning_with_any_form_of_empty_content_is_dropped(content: str) -> None:
    raw = b'{"type":"reasoning","id":"rs_1","content":' + content.encode() + b"}"
    assert input_form(raw, stored=False) is None
    assert chain_digest(ROOT, raw, stored=False) == ROOT


def test_reasoning_that_can_be_read_is_context() -> None:
    assert form(READABLE) == {name: READABLE[name] for name in READABLE if name != "id"}


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": []}])
def test_without_a_store_reasoning_without_content_is_no_item(content: Item) -> None:
    bare = json.dumps({"id": "rs_1", "type": "reasoning", "summary": [], **content}).encode()
    before = digest(USER)
    assert chain_digest(before, bare, stored=False) == before
    assert chain_digest(before, bare, stored=True) != before
    for item in (REASONING, READABLE, MESSAGE):
        assert chain_digest(before, json.dumps(item).encode(), stored=False) != before


@pytest.mark.parametrize(
    ("item", "name"),
    [
        ({"type": "item_reference", "id": "msg_1"}, "msg_1"),
        ({"id": "msg_1"}, "msg_1"),
        ({"id": "msg_1", "type": None}, "msg_1"),
        ({"id": "", "type": "item_reference"}, None),
        ({"type": "item_reference"}, None),
        ({"id": 1, "type": "item_reference"}, None),
        ({"id": "msg_1", "role": "user", "content": "a"}, None),
        (MESSAGE, None),
        ("text", None),
    ],
)
def test_item_references_are_recognised(item: object, name: str | None) -> None:
    assert referred(read_head(json.dumps(item).encode())) == name


@pytest.mark.parametrize(
    ("item", "made"),
    [
        (MESSAGE, True),
        (CALL, True),
        (REASONING, True),
        ({"role": "assistant", "content": "hi"}, True),
        ({"type": "custom_tool_call", "call_id": "c"}, True),
        ({"type": "compaction", "encrypted_content": "x"}, True),
        ({"type": "item_reference", "id": "msg_1"}, True),
        (USER, False),
        ({"role": "developer", "content": "be brief"}, False),
        (RESULT, False),
        ("text", False),
    ],
)
def test_a_history_has_something_that_a_model_made(item: object, made: bool) -> None:
    assert repeats_answers(read_heads(json.dumps([USER, item])[1:-1].encode())) is made


@pytest.mark.parametrize("item", [MESSAGE, CALL, REASONING])
def test_a_stored_item_is_sent_back_unchanged(item: Item) -> None:
    assert form(item, stored=True) == item


@pytest.mark.parametrize(
    "item",
    [
        {"id": "cmp_1", "type": "compaction", "encrypted_content": "x", "created_by": "y"},
        {"id": "mcpr_1", "type": "mcp_approval_request", "name": "n", "status": "completed"},
        {"id": "x_1", "type": "something_new", "status": "completed"},
        {"id": "x_1", "status": "completed"},
    ],
)
def test_compactions_handles_and_unknown_items_stay_whole(item: Item) -> None:
    assert form(item) == item


@pytest.mark.parametrize("raw", [b'"text"', b"[1]", b"1", b'{"type":"message"'])
def test_an_unreadable_item_passes_through(raw: bytes) -> None:
    assert input_form(raw, stored=False) == raw


def test_half_a_surrogate_pair_does_not_make_an_item_unreadable() -> None:
    raw = b'{"type":"message","id":"\\ud800","content":"\\ud83d"}'
    assert input_form(raw, stored=False) == b'{"type":"message","content":"\\ud83d"}'


def reference_types() -> dict[str, list[type]]:
    """The input item types of the API reference, by the value of ``type``."""
    found: dict[str, list[type]] = {}
    for each in typing.get_args(reference.ResponseInputItemParam):
        hint = str(typing.get_type_hints(each)["type"])
        for name in re.findall(r"'(\w+)'", hint):
            found.setdefault(name, []).append(each)
    return found


def required(kind: type) -> set[str]:
    """The members that the reference requires. Their names are read from deferred annotations."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name for name, hint in hints.items() if str(hint).split("[")[0].endswith("Required")}


def test_required_members_are_kept_in_input_form() -> None:
    types = reference_types()
    cut = {name: fields for name, fields in module._BOOKKEEPING.items() if name in types}
    assert cut.keys() == module._BOOKKEEPING.keys()
    wanted = {
        (name, field)
        for name, fields in cut.items()
        for field in fields
        if all(field in required(each) for each in types[name])
    }
    # With store=false these ids have no meaning, and Codex sends none of them.
    assert wanted == {("reasoning", "id"), ("local_shell_call", "id"), ("web_search_call", "id")}


# ------------------------------------------------------------------ digests

SAME: list[tuple[str, Item, Item]] = [
    (
        "string content",
        USER,
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    ),
    ("type", USER, {"type": "message", **USER}),
    (
        "string of the assistant",
        {"role": "assistant", "content": "hi\n"},
        MESSAGE,
    ),
    ("input form", MESSAGE, form(MESSAGE) or {}),
    (
        "Codex",
        MESSAGE,
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "hi\n"}],
        },
    ),
    ("null members", {**MESSAGE, "phase": None}, MESSAGE),
    ("null id", {**CALL, "id": None, "status": None}, CALL),
    (
        "null in a part",
        USER,
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "hello", "prompt_cache_breakpoint": None}],
        },
    ),
    ("ids", CALL, {name: value for name, value in CALL.items() if name not in ("id", "status")}),
    ("other ids", CALL, {**CALL, "id": "fc_2"}),
    ("order", CALL, dict(reversed(CALL.items()))),
    ("reasoning without id", REASONING, {**REASONING, "id": None}),
    ("arguments with other white space", CALL, {**CALL, "arguments": ' {"a":null}\n'}),
    (
        "arguments with other escapes and order",
        {**CALL, "arguments": '{"a":"\\u00e9","b":[1,2.50]}'},
        {**CALL, "arguments": '{ "b" : [1, 2.5], "a" : "é" }'},
    ),
    ("what Codex adds to a message", MESSAGE, {**MESSAGE, CODEX: {"turn_id": "t", "kinds": [{}]}}),
    ("what Codex adds to a call", {**CALL, CODEX: {"turn_id": "1"}}, {**CALL, CODEX: None}),
    ("what Codex adds to an unknown item", {"type": "new"}, {"type": "new", CODEX: {"x": 1}}),
    (
        "null in the action of a search",
        {"type": "web_search_call", "id": "ws_1", "action": {"type": "open_page", "url": None}},
        {"type": "web_search_call", "id": "ws_1", "action": {"type": "open_page"}},
    ),
    (
        "null in the action of a shell",
        {"type": "shell_call", "call_id": "c", "action": {"commands": [""], "timeout_ms": None}},
        {"type": "shell_call", "call_id": "c", "action": {"commands": [""]}},
    ),
    ("readable reasoning without id", READABLE, {**READABLE, "id": None}),
    ("empty content", REASONING, {**REASONING, "content": []}),
    ("null content", REASONING, {**REASONING, "content": None}),
    (
        "compaction without id",
        {"type": "compaction", "id": "cmp_1", "encrypted_content": "x"},
        {"type": "compaction", "encrypted_content": "x"},
    ),
]

DIFFERENT: list[tuple[str, Item, Item]] = [
    ("role", USER, {**USER, "role": "developer"}),
    ("text", USER, {**USER, "content": "hello "}),
    (
        "parts",
        USER,
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "hel"},
                {"type": "input_text", "text": "lo"},
            ],
        },
    ),
    ("part type", USER, {"role": "user", "content": [{"type": "output_text", "text": "hello"}]}),
    (
        "cache breakpoint",
        USER,
        {
            "role": "user",
            "content": [
                {
                    "type": "input_text",
                    "text": "hello",
                    "prompt_cache_breakpoint": {"mode": "explicit"},
                }
            ],
        },
    ),
    ("phase", MESSAGE, {**MESSAGE, "phase": "commentary"}),
    ("status", CALL, {**CALL, "status": "incomplete"}),
    (
        "annotations",
        MESSAGE,
        {
            **MESSAGE,
            "content": [
                {**MESSAGE["content"][0], "annotations": [{"type": "file_path", "file_id": "f"}]}
            ],
        },
    ),
    (
        "what an action says",
        {"type": "web_search_call", "action": {"type": "search", "query": "a"}},
        {"type": "web_search_call", "action": {"type": "search", "query": "a", "queries": ["a"]}},
    ),
    (
        "a null in the action of an item that is not known that well",
        {"type": "computer_call", "action": {"type": "wait", "ms": None}},
        {"type": "computer_call", "action": {"type": "wait"}},
    ),
    ("arguments of another value", CALL, {**CALL, "arguments": '{"a":0}'}),
    ("a null in arguments", CALL, {**CALL, "arguments": "{}"}),
    ("arguments that are no JSON", {**CALL, "arguments": "{a}"}, {**CALL, "arguments": "{a }"}),
    ("arguments that are no object", {**CALL, "arguments": "a"}, {**CALL, "arguments": "a "}),
    (
        "numbers in arguments",
        {**CALL, "arguments": '{"a":1}'},
        {**CALL, "arguments": '{"a":1.0}'},
    ),
    (
        "numbers in arguments that are too large",
        {**CALL, "arguments": '{"a":123456789012345678901234567890}'},
        {**CALL, "arguments": '{"a": 123456789012345678901234567890}'},
    ),
    (
        "arguments as a text and as a value",
        {**CALL, "arguments": '{"a": null}'},
        {**CALL, "arguments": [{"a": None}]},
    ),
    (
        "input of a custom tool, to the byte",
        {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": '{"a":1}'},
        {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": '{"a": 1}'},
    ),
    (
        "output that is JSON, to the byte",
        {**RESULT, "output": '{"a":1}'},
        {**RESULT, "output": '{"a": 1}'},
    ),
    ("readable reasoning", READABLE, {**READABLE, "content": [{**THOUGHT, "text": "x"}]}),
    ("call id", CALL, {**CALL, "call_id": "call_2"}),
    ("name", CALL, {**CALL, "name": "g"}),
    ("unknown member", CALL, {**CALL, "mood": "good"}),
    ("output as a list", RESULT, {**RESULT, "output": [{"type": "input_text", "text": "one"}]}),
    ("ciphertext", REASONING, {**REASONING, "encrypted_content": "gAAB"}),
    ("summary", REASONING, {**REASONING, "summary": [{"type": "summary_text", "text": "t"}]}),
    (
        "reasoning by id alone",
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "reasoning", "id": "rs_2", "summary": []},
    ),
    ("references", {"type": "item_reference", "id": "a"}, {"type": "item_reference", "id": "b"}),
    ("references without a type", {"id": "a"}, {"id": "b"}),
    ("ids of unknown items", {"type": "new", "id": "a"}, {"type": "new", "id": "b"}),
    ("nulls of unknown items", {"type": "new", "a": None}, {"type": "new"}),
    (
        "ids that are handles",
        {"type": "mcp_approval_request", "id": "a"},
        {"type": "mcp_approval_request", "id": "b"},
    ),
    (
        "status of a patch",
        {"type": "apply_patch_call_output", "call_id": "c", "status": "failed"},
        {"type": "apply_patch_call_output", "call_id": "c", "status": "completed"},
    ),
    (
        "nulls in schemas",
        {"type": "additional_tools", "tools": [{"parameters": {"default": None}}]},
        {"type": "additional_tools", "tools": [{"parameters": {}}]},
    ),
    ("number types", {"type": "new", "a": 1}, {"type": "new", "a": True}),
    ("numbers and strings", {"type": "new", "a": 1}, {"type": "new", "a": "1"}),
]


@pytest.mark.parametrize(("left", "right"), [pair[1:] for pair in SAME], ids=[p[0] for p in SAME])
def test_the_same_context_has_the_same_digest(left: Item, right: Item) -> None:
    assert digest(left) == digest(right)


@pytest.mark.parametrize(
    ("left", "right"), [pair[1:] for pair in DIFFERENT], ids=[p[0] for p in DIFFERENT]
)
def test_another_context_has_another_digest(left: Item, right: Item) -> None:
    assert digest(left) != digest(right)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type":"function_call_output","output":"\\ud83d","call_id":"c"}',
        b'{"type":"new","number":123456789012345678901234567890}',
        b'{"type":"new","number":1e999}',
        b'{"type":"new","deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_an_unreadable_item_equals_only_its_own_bytes(raw: bytes) -> None:
    assert digest(raw) == digest(bytes(bytearray(raw)))
    assert digest(raw) != digest(raw.replace(b":", b": ", 1))


@st.composite
def wordings(draw: st.DrawFn, item: Item) -> bytes:
    """``item`` as some client might encode it: order, white space, escapes, ids and status."""
    members = {
        name: value
        for name, value in item.items()
        if name not in ("id", "status") or draw(st.booleans())
    }
    if draw(st.booleans()):
        members["status"] = draw(st.sampled_from(["completed", None]))
    if draw(st.booleans()):
        members["id"] = draw(st.sampled_from(["x_1", None]))
    names = draw(st.permutations(list(members)))
    return json.dumps(
        {name: members[name] for name in names},
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 0, 2])),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")])),
    ).encode()


texts = st.text(st.characters(codec="utf-8"), max_size=12)


@given(st.data(), texts, texts)
@settings(max_examples=150)
def test_the_digest_ignores_formatting_and_sees_every_change(
    data: st.DataObject, one: str, other: str
) -> None:
    def say(text: str) -> Item:
        return data.draw(st.sampled_from([
            {**RESULT, "output": text},
            {**CALL, "arguments": text},
            {**USER, "type": "message", "content": text},
        ]))  # fmt: skip

    item = say(one)
    assert digest(data.draw(wordings(item))) == digest(data.draw(wordings(item)))
    changed = {
        name: other if value == one and name in ("output", "arguments", "content") else value
        for name, value in item.items()
    }
    assert (digest(data.draw(wordings(item))) == digest(data.draw(wordings(changed)))) == (
        one == other
    )


@given(st.data(), texts)
@settings(max_examples=100)
def test_the_input_form_of_an_item_is_the_same_context(data: st.DataObject, text: str) -> None:
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
    item = data.draw(st.sampled_from([{**MESSAGE, "content": [part]}, {**CALL, "name": text}]))
    raw = data.draw(wordings(item))
    sent = input_form(raw, stored=False)
    assert sent is not None
    assert digest(sent) == digest(raw)
    assert "id" not in json.loads(sent)
    assert input_form(sent, stored=False) == sent


def test_the_order_of_items_matters() -> None:
    a, b = json.dumps(USER).encode(), json.dumps(MESSAGE).encode()
    assert chain_digest(chain_digest(ROOT, a), b) != chain_digest(chain_digest(ROOT, b), a)


# ------------------------------------------------------------------ proofs


def proof(*items: Item) -> Proof:
    return prove(read_heads(json.dumps(items).encode()[1:-1]))


def test_a_body_with_every_call_is_self_contained() -> None:
    assert proof(USER, CALL, RESULT) == Proof((), (), 0)
    assert proof(USER, CALL, RESULT).self_contained


def test_an_output_without_its_call_needs_the_upstream() -> None:
    assert proof(USER, RESULT) == Proof(("call_1",), (), 0)
    assert not proof(USER, RESULT).self_contained


def test_a_call_does_not_follow_its_output() -> None:
    assert proof(RESULT, CALL) == Proof(("call_1",), ("call_1",), 0)


def test_an_output_does_not_answer_another_call() -> None:
    assert proof({**CALL, "call_id": "call_2"}, RESULT) == Proof(("call_1",), ("call_2",), 0)


def test_a_pending_call_is_reported_and_still_self_contained() -> None:
    assert proof(CALL, {**CALL, "call_id": "call_2"}, RESULT) == Proof((), ("call_2",), 0)
    assert proof(CALL).self_contained


@pytest.mark.parametrize("item", [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}])
def test_a_reference_needs_the_upstream(item: Item) -> None:
    assert proof(USER, item) == Proof((), (), 1)
    assert not proof(USER, item).self_contained


@pytest.mark.parametrize("text", [b"1", b'{"type":', b"null"])
def test_an_unreadable_input_is_not_self_contained(text: bytes) -> None:
    assert not prove(read_heads(text)).self_contained


@pytest.mark.parametrize(
    ("call", "output"),
    [
        ("custom_tool_call", "custom_tool_call_output"),
        ("computer_call", "computer_call_output"),
        ("shell_call", "shell_call_output"),
        ("apply_patch_call", "apply_patch_call_output"),
        ("tool_search_call", "tool_search_output"),
        ("program", "program_output"),
        ("local_shell_call", "function_call_output"),
    ],
)
def test_every_kind_of_output_wants_its_call(call: str, output: str) -> None:
    said, answered = {"type": call, "call_id": "c"}, {"type": output, "call_id": "c"}
    assert proof(said, answered) == Proof((), (), 0)
    assert proof(answered) == Proof(("c",), (), 0)
    assert proof(said) == Proof((), ("c",), 0)


def test_calls_and_outputs_paired_by_other_members() -> None:
    shell = {"type": "local_shell_call", "id": "lsh_1", "call_id": "c"}
    assert proof(shell, {"type": "local_shell_call_output", "id": "c"}) == Proof((), (), 0)
    approval = {"type": "mcp_approval_request", "id": "mcpr_1"}
    answer = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
    assert proof(approval, answer) == Proof((), (), 0)
    assert not proof(answer).self_contained
    assert proof({"type": "tool_search_call"}, {"type": "tool_search_output"}).self_contained
    assert not proof(CALL, {"type": "function_call_output", "output": "x"}).self_contained


# ------------------------------------------------------------------ prompts


def test_items_are_the_very_bytes_of_the_list() -> None:
    body = b'{"model":"m","input":[ {"role":"user", "content":"a,]"} ,\n{"x":[1, 2]} ]}'
    said = Prompt(parse_create(body))
    assert [bytes(item) for item in said.items] == [
        b'{"role":"user", "content":"a,]"}',
        b'{"x":[1, 2]}',
    ]
    assert said.text == b'{"role":"user", "content":"a,]"},{"x":[1, 2]}'
    assert said.text_from(1) == b'{"x":[1, 2]}'
    assert said.text_from(2) == b""


def test_a_string_is_one_message_of_the_user() -> None:
    said = prompt(input='say "é"')
    assert [json.loads(bytes(item)) for item in said.items] == [
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": 'say "é"'}],
        }
    ]


def test_a_string_keeps_its_bytes() -> None:
    said = Prompt(parse_create(b'{"model":"m","input":"\\u0041 \\u00e9"}'))
    assert b'"text":"\\u0041 \\u00e9"' in said.text


@pytest.mark.parametrize("members", [{}, {"input": None}, {"input": []}])
def test_no_input_is_no_items(members: Item) -> None:
    said = prompt(**members)
    assert said.items == []
    assert said.text == said.text_from(0) == b""


@pytest.mark.parametrize("value", [1, {"role": "user"}, True])
def test_an_input_that_has_no_items_is_an_error(value: object) -> None:
    with pytest.raises(ValueError, match="input"):
        prompt(input=value)


def test_a_frame_keeps_all_other_members_unchanged() -> None:
    body = (
        b'{"model":"m","temperature":1.0,"input":"x","metadata":{ "k": [1,  2] },'
        b'"previous_response_id":"resp_1","stream":true}'
    )
    said = Prompt(parse_create(body))
    assert said.frame(b'{"a":1}', None) == (
        b'{"type":"response.create","model":"m","temperature":1.0,"input":[{"a":1}],'
        b'"metadata":{ "k": [1,  2] }}'
    )
    assert json.loads(said.frame(b"", 'r"2'))["previous_response_id"] == 'r"2'
    assert json.loads(prompt().frame(b"1", None))["input"] == [1]


def test_bounds_and_encodings_of_items() -> None:
    said = prompt(input=[12, 1, 23, 1])
    assert said.text == b"12,1,23,1"
    assert said.bounds == [0, 3, 5, 8, 10]
    assert said.wording(1, 2) == said.wording(3, 4)
    assert said.wording(1, 2) != said.wording(0, 1)
    assert said.wording(0, 4) == prompt(input=[12, 1, 23, 1, 5]).wording(0, 4)


@pytest.mark.parametrize(
    "name",
    [
        "model", "instructions", "tools", "tool_choice", "parallel_tool_calls", "reasoning",
        "include", "service_tier", "prompt_cache_key", "text", "truncation",
        "context_management",
    ],
)  # fmt: skip
def test_settings_that_change_the_answer_are_compared(name: str) -> None:
    assert prompt(**{name: "a"}).settings != prompt(**{name: "b"}).settings
    assert prompt(**{name: "a"}).settings != prompt().settings


def test_settings_are_compared_by_value_and_null_is_absent() -> None:
    one = prompt(tools=[{"name": "f", "strict": True}], reasoning=None, store=True)
    other = prompt(tools=[{"strict": True, "name": "f"}], temperature=1)
    assert one.settings == other.settings
    assert prompt(store=False).settings != prompt(store=True).settings
    assert prompt(b"a").settings != prompt(b"b").settings
    assert prompt(b"ab", b"").settings != prompt(b"a", b"b").settings


@pytest.mark.parametrize("name", ["conversation", "prompt"])
def test_context_outside_the_input_is_noticed(name: str) -> None:
    assert not prompt(**{name: {"id": "x"}}).whole
    assert prompt(**{name: None}).whole
