"""The objects of the Responses API, with every member that their schemas require.

What belongs here: how a request's settings appear in the response, the defaults of absent settings,
and which settings are refused; the usage; and the result of a compaction. Source: the Open
Responses specification (openresponses.org), ``ResponseResource``, ``CompactResource`` and the
models that they name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from bridgecore.testing import answers
from bridgecore.testing.answers import Json, is_function
from bridgecore.testing.faults import Error

MIN_OUTPUT_TOKENS: Final = 16  # the smallest valid max_output_tokens

_NUMBER: Final = (int, float)
_Types: TypeAlias = type | tuple[type, ...]

# The types of settings; null equals absent. Settings that are not listed are not checked.
_TYPES: Final[dict[str, _Types]] = {
    "background": bool,
    "context_management": list,
    "frequency_penalty": _NUMBER,
    "generate": bool,
    "include": list,
    "instructions": (str, list),
    "max_output_tokens": int,
    "max_tool_calls": int,
    "metadata": dict,
    "parallel_tool_calls": bool,
    "presence_penalty": _NUMBER,
    "previous_response_id": str,
    "prompt_cache_key": str,
    "reasoning": dict,
    "safety_identifier": str,
    "service_tier": str,
    "store": bool,
    "temperature": _NUMBER,
    "text": dict,
    "tool_choice": (str, dict),
    "tools": list,
    "top_logprobs": int,
    "top_p": _NUMBER,
    "truncation": str,
    "user": str,
}


def bad(code: str | None, message: str, param: str | None = None) -> Error:
    """An error with status 400, worded as by the API."""
    return Error(400, code, "invalid_request_error", message, param)


def invalid(body: Mapping[str, Any]) -> Error | None:
    """What is wrong with a create frame, independent of its context."""
    if not isinstance(body.get("model"), str) and not isinstance(body.get("prompt"), dict):
        return bad("missing_required_parameter", "Missing required parameter: 'model'.", "model")
    if body.get("background") is True:
        message = "background is not supported in WebSocket mode."
        return bad("unsupported_parameter", message, "background")
    for name, kinds in _TYPES.items():
        value = body.get(name)
        wrong = isinstance(value, bool) and kinds is not bool
        if value is not None and (wrong or not isinstance(value, kinds)):
            return bad("invalid_type", f"Invalid type for '{name}'.", name)
    limit = body.get("max_output_tokens")
    if limit is not None and limit < MIN_OUTPUT_TOKENS:
        message = f"Invalid 'max_output_tokens': expected a value >= {MIN_OUTPUT_TOKENS}."
        return bad("integer_below_min_value", message, "max_output_tokens")
    return _invalid_conversation(body) or _invalid_tools(body) or invalid_input(body.get("input"))


def conversation_in(body: Mapping[str, Any]) -> str | None:
    """The id of the conversation that a create frame names."""
    named = body.get("conversation")
    name = named.get("id") if isinstance(named, dict) else named
    return name if isinstance(name, str) else None


def _invalid_conversation(body: Mapping[str, Any]) -> Error | None:
    if body.get("conversation") is None:
        return None
    if conversation_in(body) is None:
        message = "Invalid type for 'conversation': expected an id, or an object with an id."
        return bad("invalid_type", message, "conversation")
    if body.get("previous_response_id") is not None:
        message = (
            "Mutually exclusive parameters: ''. "
            "Ensure you are only providing one of: 'previous_response_id' or 'conversation'."
        )
        return bad("mutually_exclusive_parameters", message)
    return None


def _invalid_tools(body: Mapping[str, Any]) -> Error | None:
    tools = body.get("tools") or []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            message = f"Invalid type for 'tools[{index}]': expected an object with a type."
            return bad("invalid_type", message, f"tools[{index}]")
        if tool["type"] == "function" and not is_function(tool):
            message = f"Missing required parameter: 'tools[{index}].name'."
            return bad("missing_required_parameter", message, f"tools[{index}].name")
    choice = body.get("tool_choice")
    if choice == "required" and not tools:
        message = "Tool choice 'required' must be specified with 'tools' parameter."
        return bad(None, message, "tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function":
        names = [tool["name"] for tool in tools if is_function(tool)]
        if choice.get("name") not in names:
            message = f"Tool choice '{choice.get('name')}' not found in 'tools' parameter."
            return bad(None, message, "tool_choice")
    return None


def unknown(kind: str, name: str) -> Error:
    """The error for the id of a ``kind`` of object that the service does not know."""
    return Error(404, None, "invalid_request_error", f"{kind} with id '{name}' not found.")


def invalid_input(given: object, param: str = "input") -> Error | None:
    """What is wrong with the items in the parameter ``param``."""
    items = given if isinstance(given, list) else []
    if not isinstance(given, str | list | None) or not all(
        isinstance(item, dict) for item in items
    ):
        message = f"Invalid type for '{param}': expected a string or a list of objects."
        return bad("invalid_type", message, param)
    if not all(isinstance(item.get("call_id", ""), str) for item in items):
        return bad("invalid_type", "Invalid type for 'call_id': expected a string.", param)
    return None


def in_progress(body: Mapping[str, Any], response_id: str, created_at: int) -> Json:
    """The response object in ``response.created``. ``created_at``: Unix seconds."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        **_settings(body),
        **_conversation(body),
    }


def usage(context: int, cached: int, output: Iterable[Json], produced: int) -> Json:
    """The usage, in tokens, of a turn that read ``context`` and wrote ``produced``."""
    reasoning = [item for item in output if item.get("type") == "reasoning"]
    return {
        "input_tokens": context,
        "input_tokens_details": {"cached_tokens": min(cached, context), "cache_write_tokens": 0},
        "output_tokens": produced,
        "output_tokens_details": {"reasoning_tokens": answers.count_tokens(reasoning)},
        "total_tokens": context + produced,
    }


def compaction(said: Iterable[Json], sealed: str, context: int, mark: str, created_at: int) -> Json:
    """The answer to a request to compact a context.

    Args:
        said: the messages that stay, in any form in which a client may send them.
        sealed: the ``encrypted_content`` of the item that replaces all others.
        context: tokens of the context.
        mark: a part of the ids, unique for the request.
        created_at: Unix seconds.
    """
    kept = [_message(item, f"msg_{mark}{index:02x}") for index, item in enumerate(said)]
    rest = {"id": f"cmp_{mark}", "type": "compaction", "encrypted_content": sealed}
    return {
        "id": f"resp_{mark}",
        "object": "response.compaction",
        "created_at": created_at,
        "output": [*kept, rest],
        "usage": usage(context, 0, [], 0),
    }


def _message(item: Json, name: str) -> Json:
    """An input message with the members that it has in an answer."""
    content = item.get("content")
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
    return {"id": name, "type": "message", "status": "completed", **item, "content": parts}


def _conversation(body: Mapping[str, Any]) -> Json:
    """The member that names the conversation; only responses that belong to one have it."""
    named = body.get("conversation")
    return {} if named is None else {"conversation": {"id": conversation_in(body)}}


def _settings(body: Mapping[str, Any]) -> Json:
    defaults: Json = {
        "background": False,
        "frequency_penalty": 0.0,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "model": "emulator",  # for a request with a prompt, which names the model
        "parallel_tool_calls": True,
        "presence_penalty": 0.0,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
    }
    asked = {name: body[name] for name in defaults if body.get(name) is not None}
    settings = {**defaults, **asked}
    if settings["service_tier"] == "auto":
        settings["service_tier"] = "default"  # the tier that processed it
    settings["reasoning"] = {"effort": None, "summary": None, **settings["reasoning"]}
    settings["text"] = _text(settings["text"])
    settings["tools"] = [_tool(tool) for tool in settings["tools"]]
    choice = settings["tool_choice"]
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        settings["tool_choice"] = {"mode": "auto", "tools": [], **choice}
    return settings


def _tool(tool: Json) -> Json:
    if tool["type"] != "function":
        return tool
    return {"description": None, "parameters": None, "strict": True, **tool}


def _text(text: Json) -> Json:
    form = text.get("format")
    if not isinstance(form, dict) or not isinstance(form.get("type"), str):
        form = {"type": "text"}
    elif form["type"] == "json_schema":
        form = {"name": "", "description": None, "schema": None, **form}
        form["strict"] = form.get("strict") is True
    return {"verbosity": "medium", **text, "format": form}
