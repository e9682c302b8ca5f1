"""Tests of testing/emulator/resource.py: the response object and the settings in it."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import Response

from bridgecore.testing.emulator.resource import in_progress, invalid

Json = dict[str, Any]

# The members that the Open Responses specification requires of a response.
REQUIRED = {
    "id",
    "object",
    "created_at",
    "completed_at",
    "status",
    "incomplete_details",
    "model",
    "previous_response_id",
    "instructions",
    "output",
    "error",
    "tools",
    "tool_choice",
    "truncation",
    "parallel_tool_calls",
    "text",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "temperature",
    "reasoning",
    "user",
    "usage",
    "max_output_tokens",
    "max_tool_calls",
    "store",
    "background",
    "service_tier",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
}


def test_every_required_member_is_there() -> None:
    assert in_progress({"model": "m"}, "resp_1", 7).keys() == REQUIRED
    Response.model_validate(in_progress({"model": "m"}, "resp_1", 7))


@pytest.mark.parametrize(
    ("name", "asked", "shown"),
    [
        ("temperature", 0.5, 0.5),
        ("top_p", None, 1.0),
        ("frequency_penalty", 0.1, 0.1),
        ("presence_penalty", -1, -1),
        ("top_logprobs", 3, 3),
        ("max_output_tokens", 99, 99),
        ("max_tool_calls", 2, 2),
        ("metadata", {"a": "b"}, {"a": "b"}),
        ("store", False, False),
        ("service_tier", "auto", "default"),
        ("service_tier", "flex", "flex"),
        ("reasoning", {"effort": "low"}, {"effort": "low", "summary": None}),
        ("text", {"verbosity": "low"}, {"verbosity": "low", "format": {"type": "text"}}),
        (
            "text",
            {"format": {"type": "json_schema", "name": "n", "schema": {}}},
            {
                "verbosity": "medium",
                "format": {
                    "type": "json_schema",
                    "name": "n",
                    "description": None,
                    "schema": {},
                    "strict": False,
                },
            },
        ),
        ("tool_choice", "none", "none"),
        (
            "tool_choice",
            {"type": "allowed_tools", "tools": []},
            {"type": "allowed_tools", "tools": [], "mode": "auto"},
        ),
        (
            "tools",
            [{"type": "function", "name": "f"}],
            [
                {
                    "type": "function",
                    "name": "f",
                    "description": None,
                    "parameters": None,
                    "strict": True,
                }
            ],
        ),
        ("tools", [{"type": "web_search"}], [{"type": "web_search"}]),
    ],
)
def test_settings_are_shown(name: str, asked: object, shown: object) -> None:
    response = in_progress({"model": "m", name: asked}, "resp_1", 7)
    assert response[name] == shown
    Response.model_validate(response)


def test_a_prompt_needs_no_model() -> None:
    body = {"prompt": {"id": "pmpt_1"}}
    assert invalid(body) is None
    assert isinstance(in_progress(body, "resp_1", 7)["model"], str)


TOOL = {"type": "function", "name": "f"}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"model": None}, "missing_required_parameter", "model"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"temperature": True}, "invalid_type", "temperature"),
        ({"top_logprobs": 1.5}, "invalid_type", "top_logprobs"),
        ({"metadata": []}, "invalid_type", "metadata"),
        ({"tools": {}}, "invalid_type", "tools"),
        ({"tools": ["f"]}, "invalid_type", "tools[0]"),
        ({"tools": [TOOL, {"type": "function"}]}, "missing_required_parameter", "tools[1].name"),
        ({"tool_choice": "required"}, None, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "g"}, "tools": [TOOL]}, None, "tool_choice"),
        ({"max_output_tokens": 15}, "integer_below_min_value", "max_output_tokens"),
        ({"background": True}, "unsupported_parameter", "background"),
    ],
)
def test_what_is_refused(fields: Json, code: str | None, param: str) -> None:
    error = invalid({"model": "m", **fields})
    assert error is not None
    assert (error.status, error.code, error.param) == (400, code, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_output_tokens": 16},
        {"temperature": 1, "top_p": 0.5, "store": None, "tools": None},
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}},
        {"input": None},
    ],
)
def test_what_is_not_refused(fields: Json) -> None:
    assert invalid({"model": "m", "input": [], **fields}) is None
