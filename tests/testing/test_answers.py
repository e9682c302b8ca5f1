"""Tests of testing/answers.py: the emulator's answers, and small instances of schemas."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.testing.answers import (
    CreateFrame,
    Reasoning,
    Text,
    ToolCall,
    as_read,
    count_users,
    echo,
    instance,
    invited,
    seal,
    since_compaction,
    unseal,
)

Json = dict[str, Any]

WEATHER = {"type": "function", "name": "get_weather", "parameters": None}
FLIGHTS = {"type": "function", "name": "find_flights", "parameters": None}
BOTH = "find me the weather and the flights"


def user(text: str) -> Json:
    return {"type": "message", "role": "user", "content": text}


def asked(*items: Json, **body: Any) -> CreateFrame:
    body = {"input": list(items), **body}
    return CreateFrame(1, 1, [], b"", body, 0, context=tuple(items))


# ------------------------------------------------------------------ calls


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("get_weather", "What's the weather like?", True),
        ("get_weather", "WEATHER, please", True),
        ("getWeather", "the weather?", True),
        ("get_weather", "whether or not", False),
        ("get_weather", "the weathers", False),
        ("find_flights", "are there flights?", False),
        ("find_flights", "find flights", True),
        ("f", "f f f", False),
        ("get", "get it", False),
        ("", "", False),
    ],
)
def test_a_tool_is_invited_by_the_words_of_its_name(name: str, text: str, expected: bool) -> None:
    assert invited(name, text) is expected


@pytest.mark.parametrize(
    ("text", "fields", "called"),
    [
        (BOTH, {}, ["get_weather", "find_flights"]),
        (BOTH, {"parallel_tool_calls": True}, ["get_weather", "find_flights"]),
        (BOTH, {"parallel_tool_calls": False}, ["get_weather"]),
        (BOTH, {"tool_choice": "none"}, []),
        (BOTH, {"tool_choice": {"type": "function", "name": "find_flights"}}, ["find_flights"]),
        ("hello", {}, []),
        ("hello", {"tool_choice": "required"}, ["get_weather"]),
        ("find flights", {"tool_choice": "required"}, ["find_flights"]),
        ("hello", {"tool_choice": {"type": "function", "name": "find_flights"}}, ["find_flights"]),
        ("call tool anything", {}, ["anything"]),
        ("call tool anything", {"tool_choice": "none"}, []),
    ],
)
def test_tool_choice(text: str, fields: Json, called: list[str]) -> None:
    output = echo(asked(user(text), tools=[WEATHER, FLIGHTS], **fields))
    assert [part.name for part in output if isinstance(part, ToolCall)] == called
    assert (len(output) == 1 and isinstance(output[0], Text)) is not bool(called)


@pytest.mark.parametrize(
    ("mode", "called"), [("auto", ["find_flights"]), ("none", []), ("required", ["find_flights"])]
)
def test_allowed_tools(mode: str, called: list[str]) -> None:
    choice = {
        "type": "allowed_tools",
        "mode": mode,
        "tools": [{"type": "function", "name": "find_flights"}],
    }
    output = echo(asked(user(BOTH), tools=[WEATHER, FLIGHTS], tool_choice=choice))
    assert [part.name for part in output if isinstance(part, ToolCall)] == called


def test_outputs_are_answered_with_text_unless_a_tool_is_required() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "rain"}
    items = [user("the weather?"), call, result]
    assert echo(asked(*items, tools=[WEATHER])) == [Text("turn 1: get_weather returned rain")]
    (again,) = echo(asked(*items, tools=[WEATHER], tool_choice="required"))
    assert isinstance(again, ToolCall)


def test_arguments_are_an_instance_of_the_parameters() -> None:
    parameters = {
        "type": "object",
        "properties": {"place": {"type": "string"}, "days": {"type": "integer", "minimum": 2}},
        "required": ["place", "days"],
    }
    tool = {**WEATHER, "parameters": parameters}
    (call,) = echo(asked(user("the weather?"), tools=[tool]))
    assert isinstance(call, ToolCall)
    assert json.loads(call.arguments) == {"place": "the weather?", "days": 2}


# ------------------------------------------------------------------ text and reasoning


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"type": "text"}, "turn 1: hi"),
        ({"type": "json_object"}, '{"text":"turn 1: hi"}'),
        ({"type": "json_schema", "name": "n", "schema": {"type": "string"}}, '"turn 1: hi"'),
        ({"type": "json_schema", "name": "n", "schema": {"const": [1]}}, "[1]"),
        ({"type": "json_schema", "name": "n"}, "null"),
    ],
)
def test_text_format(form: Json, expected: str) -> None:
    assert echo(asked(user("hi"), text={"format": form})) == [Text(expected)]


@pytest.mark.parametrize(
    ("fields", "reasons", "encrypted"),
    [
        ({}, False, False),
        ({"store": False}, False, True),
        ({"reasoning": {}}, False, False),
        ({"reasoning": {"effort": "none"}}, False, False),
        ({"reasoning": {"effort": "low"}}, True, False),
        ({"reasoning": {"effort": "low"}, "store": False}, True, True),
        ({"include": ["reasoning.encrypted_content"]}, True, True),
    ],
)
def test_when_there_is_reasoning(fields: Json, reasons: bool, encrypted: bool) -> None:
    request = asked(user("hi"), **fields)
    assert isinstance(echo(request)[0], Reasoning) is reasons
    assert request.wants_encrypted_reasoning is encrypted


def test_reasoning_has_a_summary_if_one_is_asked_for() -> None:
    first, _ = echo(asked(user("hi"), reasoning={"effort": "low", "summary": "auto"}))
    assert first == Reasoning("thoughts of turn 1")


# ------------------------------------------------------------------ items


def test_a_compaction_carries_the_number_of_user_messages() -> None:
    before = [user("a"), user("b")]
    compaction = {"type": "compaction", "encrypted_content": seal({"users": count_users(before)})}
    items = [*before, compaction, user("c")]
    assert since_compaction(items) == items[2:]
    assert count_users(since_compaction(items)) == 3
    assert since_compaction(before) == before
    assert count_users([{"type": "compaction", "encrypted_content": "from elsewhere"}]) == 0


@given(st.dictionaries(st.text(max_size=5), st.integers(0, 2**53) | st.text(max_size=5)))
def test_sealed_content_can_be_unsealed(content: Json) -> None:
    assert unseal(seal(content)) == content


@given(st.none() | st.text() | st.text().map(lambda text: "gAAAAA" + text) | st.integers())
def test_reading_content_sealed_elsewhere_never_fails(sealed: object) -> None:
    assert isinstance(unseal(sealed), dict)


def test_as_read_ignores_bookkeeping() -> None:
    parts = [{"type": "output_text", "text": "x", "annotations": []}]
    said = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant"}
    assert as_read({**said, "content": parts}) == as_read({"role": "assistant", "content": "x"})
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    assert as_read({**call, "id": "fc_1", "status": "completed"}) == as_read(call)
    assert as_read(call) != as_read({**call, "arguments": "{ }"})


# ------------------------------------------------------------------ instances


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "text"),
        ({"type": "string", "maxLength": 2}, "te"),
        ({"type": "string", "minLength": 6}, "text.."),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"type": ["null", "boolean"]}, False),
        ({"type": "null"}, None),
        ({"enum": ["b", "a"]}, "b"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 0),
        ({"type": "number", "maximum": -1.5}, -1.5),
        ({"type": "array", "items": {"type": "string"}}, []),
        ({"type": "array", "items": {"const": 1}, "minItems": 2}, [1, 1]),
        (
            {"properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["b"]},
            {"b": 2},
        ),
        (
            {"$defs": {"a/b": {"const": 3}}, "$ref": "#/$defs/a~1b"},
            3,
        ),
        (True, None),
        (None, None),
    ],
)
def test_instances(schema: object, expected: object) -> None:
    assert instance(schema, "text") == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {
            "type": "object",
            "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}},
            "required": ["a", "b"],
        },
        {"type": "array", "items": {"$ref": "#"}, "minItems": 10**9},
        {"type": "string", "minLength": 10**12},
    ],
)
def test_schemas_without_end_have_small_instances(schema: Json) -> None:
    assert len(json.dumps(instance(schema, ""))) < 20_000


WORDS = (
    st.sampled_from(("$ref", "#", "#/properties/a", "a"))
    | st.sampled_from(
        (
            "type",
            "object",
            "array",
            "string",
            "integer",
            "number",
            "properties",
            "required",
            "items",
        )
    )
    | st.sampled_from(("enum", "const", "anyOf", "minItems", "maxLength"))
)
SCHEMAS = st.recursive(
    WORDS | st.none() | st.booleans() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=200)
@given(SCHEMAS, st.text(max_size=9))
def test_any_schema_has_an_instance_that_is_json(schema: object, text: str) -> None:
    json.dumps(instance(schema, text))
