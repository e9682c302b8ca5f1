"""The requests and answers of the emulator: input, output items, and the default answer.

What belongs here: everything that depends only on a request's body and context. Connections,
continuation, storage and the response object are in ``bridgecore.testing.emulator``.

The default answer (``echo``) depends only on the turn's *effective context*: the context of the
anchor, plus this input. So a conversation that was rebuilt from a transcript gets the same answer
as an unbroken one. The first rule that applies decides:

* ``tool_choice`` demands a tool (``required``, or a function by name): a call of it;
* the last input item is ``call tool NAME ARGS``: a call of that function; the default of ARGS is
  ``{}``;
* a user's text invites a function tool (``invited``): a call of it, or of each invited one if
  ``parallel_tool_calls`` permits it. The arguments are a small instance of its schema;
* the input ends with function call outputs: ``turn N: NAME returned OUTPUT``;
* ``repeat N ...``: N deltas, ``1 `` to ``N ``;
* any other text of a user: ``turn N: TEXT``, N being the number of user messages in the context.

With ``tool_choice: none`` there are no calls. With ``text.format`` the answer is JSON: a small
instance of the schema, or ``{"text": ...}``. If the request asks for reasoning, a reasoning item
comes first.

A compaction item replaces the context before it. It carries the number of user messages in there,
so that the count goes on.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any, Final, TypeAlias

import attrs
import msgspec

Json: TypeAlias = dict[str, Any]

BYTES_PER_TOKEN: Final = 4
MAX_REPEAT: Final = 100_000  # deltas that ``repeat`` can ask for
_MAX_VALUES: Final = 200  # of an instance of a schema, within Python's recursion limit
_MAX_LENGTH: Final = 10_000  # of a string of such an instance

_CALL_TOOL = re.compile(r"call tool ([A-Za-z0-9_.-]+)[ \t]*([^\n]*)")
_REPEAT = re.compile(r"repeat ([0-9]{1,9})\b")
_SEAL: Final = "gAAAAA"  # the prefix of encrypted contents at real services


# ------------------------------------------------------------------ requests


@attrs.define(eq=False)
class CreateFrame:
    """A ``response.create`` frame as the emulator received it."""

    number: int  # from 1, over all connections of the emulator
    conn: int
    headers: list[tuple[bytes, bytes]]  # of the upgrade request, names lower-case
    raw: bytes
    body: Json
    at: int  # ns, when the frame was complete
    lane: str | None = None
    # The effective context: that of the anchor, then the input, references resolved, from the
    # latest compaction item on. Set when the turn starts.
    context: tuple[Json, ...] = ()
    context_tokens: int = 0  # with instructions and tools; set when the turn starts

    @property
    def input(self) -> list[Json]:
        """The frame's own input items; a plain string is one user message."""
        given = self.body.get("input")
        if isinstance(given, str):
            content = [{"type": "input_text", "text": given}]
            return [{"type": "message", "role": "user", "content": content}]
        return given if isinstance(given, list) else []

    @property
    def anchor(self) -> str | None:
        """``previous_response_id``."""
        anchor = self.body.get("previous_response_id")
        return anchor if isinstance(anchor, str) else None

    @property
    def tools(self) -> list[Json]:
        """The function tools that may be called, those in ``allowed_tools`` if it is given."""
        given = self.body.get("tools")
        tools = [tool for tool in given if is_function(tool)] if isinstance(given, list) else []
        choice = self.body.get("tool_choice")
        if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
            named = choice.get("tools")
            allowed = named if isinstance(named, list) else []
            names = [one.get("name") for one in allowed if isinstance(one, dict)]
            tools = [tool for tool in tools if tool["name"] in names]
        return tools

    @property
    def tool_mode(self) -> str:
        """``auto``, ``none`` or ``required``, or the name of the function that must be called."""
        choice = self.body.get("tool_choice")
        if isinstance(choice, dict) and choice.get("type") == "function":
            return str(choice.get("name"))
        if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
            choice = choice.get("mode")
        return choice if choice in ("none", "required") else "auto"

    @property
    def wants_encrypted_reasoning(self) -> bool:
        """Whether reasoning comes with its encrypted content, as ``include`` asks for it, or the
        response is not stored, so that the content is needed to continue."""
        return self._includes_encrypted or self.body.get("store") is False

    @property
    def reasons(self) -> bool:
        """Whether the request asks for a reasoning item."""
        reasoning = self.body.get("reasoning")
        effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
        return effort not in (None, "none") or self._includes_encrypted

    @property
    def _includes_encrypted(self) -> bool:
        include = self.body.get("include")
        return isinstance(include, list) and "reasoning.encrypted_content" in include


def is_function(tool: object) -> bool:
    """Whether ``tool`` is a function tool as requests define them."""
    return (
        isinstance(tool, dict)
        and tool.get("type") == "function"
        and isinstance(tool.get("name"), str)
    )


# ------------------------------------------------------------------ output


@attrs.frozen
class Text:
    """An assistant's message. ``deltas`` must join to ``text``; None: the emulator splits it."""

    text: str
    deltas: tuple[str, ...] | None = None


@attrs.frozen
class ToolCall:
    """A function call; the emulator makes the call id, unique in its response."""

    name: str
    arguments: str = "{}"


@attrs.frozen
class Reasoning:
    """A reasoning item, with its encrypted content if the request asks for it."""

    summary: str = ""  # empty: no summary part


Output: TypeAlias = Text | ToolCall | Reasoning | Json
"""An output item of an answer; a JSON object is sent unchanged."""
Answer: TypeAlias = Callable[[CreateFrame], Sequence[Output]]
"""What an emulator answers a request with."""


def echo(request: CreateFrame) -> Sequence[Output]:
    """The default answer: see the module's docstring."""
    turn = count_users(request.context)
    output: list[Output] = []
    if request.reasons:
        reasoning = request.body.get("reasoning")
        summary = reasoning.get("summary") if isinstance(reasoning, dict) else None
        output.append(Reasoning(f"thoughts of turn {turn}" if summary is not None else ""))
    calls = _calls(request)
    return [*output, *calls] if calls else [*output, _say(request, turn)]


def _say(request: CreateFrame, turn: int) -> Text:
    items, text = request.input, _latest_text(request)
    if items and is_output(items[-1]):
        # Earlier outputs were answered when they were new.
        tail = [*takewhile(is_output, reversed(request.context))][::-1]
        names = {item.get("call_id"): item.get("name") for item in request.context if is_call(item)}
        text = ", ".join(
            f"{names[item.get('call_id')]} returned {_text(item.get('output'))}" for item in tail
        )
    elif items and items[-1].get("role") == "user" and (repeat := _REPEAT.match(text)):
        deltas = tuple(f"{n} " for n in range(1, min(int(repeat[1]), MAX_REPEAT) + 1))
        return Text("".join(deltas), deltas)
    text = f"turn {turn}: {text}"
    wanted = request.body.get("text")
    form = wanted.get("format") if isinstance(wanted, dict) else None
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "json_schema" and isinstance(form, dict):
        return Text(_dump(instance(form.get("schema"), text)))
    return Text(_dump({"text": text}) if kind == "json_object" else text)


def _calls(request: CreateFrame) -> list[ToolCall]:
    mode, tools, items = request.tool_mode, request.tools, request.input
    if mode == "none":
        return []
    text = _latest_text(request)
    asked = bool(items) and items[-1].get("role") == "user"
    if mode not in ("auto", "required"):
        tools = [tool for tool in tools if tool["name"] == mode][:1]
        return [_call(tool, text) for tool in tools] or [ToolCall(mode)]
    if asked and (call := _CALL_TOOL.search(text)):
        return [ToolCall(call[1], call[2].strip() or "{}")]
    wanted = [tool for tool in tools if asked and invited(tool["name"], text)]
    if mode == "required" and not wanted:
        wanted = tools[:1]
    if request.body.get("parallel_tool_calls") is False:
        wanted = wanted[:1]
    return [_call(tool, text) for tool in wanted]


def _call(tool: Json, text: str) -> ToolCall:
    arguments = instance(tool.get("parameters"), text)
    return ToolCall(tool["name"], _dump(arguments) if isinstance(arguments, dict) else "{}")


def invited(name: str, text: str) -> bool:
    """Whether ``text`` invites the tool ``name``: each word of the name with more than three
    letters is a word of the text, and there is at least one. ``get_weather`` is invited by "What is
    the weather?"; a name like ``f`` is never invited."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name) if len(word) > 3]
    said = set(re.findall(r"[a-z]+", text.lower())) if words else set()
    return bool(words) and said.issuperset(words)


def _latest_text(request: CreateFrame) -> str:
    users = [item for item in request.context if item.get("role") == "user"]
    return _text(users[-1].get("content")) if users else ""


def _text(content: object) -> str:
    """The text of a message's content or of a tool's output: a string or a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


# ------------------------------------------------------------------ items


def is_call(item: Json) -> bool:
    """Whether ``item`` is a tool call that needs an output."""
    return str(item.get("type")).endswith("_call") and "call_id" in item


def is_output(item: Json) -> bool:
    """Whether ``item`` is the output of a tool call."""
    return str(item.get("type")).endswith("_call_output")


def count_users(items: Iterable[Json]) -> int:
    """The number of user messages in a context, those replaced by its compaction item included."""
    count = 0
    for item in items:
        if item.get("type") == "compaction":
            users = unseal(item.get("encrypted_content")).get("users")
            count += users if isinstance(users, int) else 0
        elif item.get("role") == "user":
            count += 1
    return count


def since_compaction(items: Sequence[Json]) -> Sequence[Json]:
    """``items`` from the latest compaction item on, which replaces the ones before it."""
    for index in range(len(items) - 1, -1, -1):
        if items[index].get("type") == "compaction":
            return items[index:]
    return items


def seal(content: Json) -> str:
    """``content`` as an ``encrypted_content`` that ``unseal`` can read."""
    return _SEAL + base64.urlsafe_b64encode(msgspec.json.encode(content)).decode()


def unseal(sealed: object) -> Json:
    """The content of an ``encrypted_content`` made by ``seal``; empty for anything else."""
    if not isinstance(sealed, str) or not sealed.startswith(_SEAL):
        return {}
    try:
        content = msgspec.json.decode(base64.urlsafe_b64decode(sealed[len(_SEAL) :]))
    except (ValueError, msgspec.DecodeError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


# Members that differ between items with the same content.
_BOOKKEEPING: Final = frozenset(
    {
        "id",
        "status",
        "internal_chat_message_metadata_passthrough",  # Codex, on each item that it sends
    }
)
# Members that no model reads. A service accepts an item without them as the same item.
_FOR_MACHINES: Final = _BOOKKEEPING | {"type", "role", "call_id", "logprobs"}


def count_tokens(items: Iterable[Json]) -> int:
    """The tokens of ``items``: one for every four bytes, rounded up, of what a model
    reads of them."""
    return tokens(read_size(items))


def read_size(values: Iterable[Any]) -> int:
    """Bytes of what a model reads of ``values``: texts, and numbers as in JSON."""
    size = 0
    # a stack instead of recursion: the nesting may be deeper than Python's recursion limit
    left = list(values)
    while left:
        value = left.pop()
        if isinstance(value, str):
            size += len(value) if value.isascii() else len(value.encode(errors="replace"))
        elif isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += [part for name, part in value.items() if name not in _FOR_MACHINES]
        elif value is not None:
            size += len(msgspec.json.encode(value))
    return size


def tokens(size: int) -> int:
    """The tokens of ``size`` bytes, rounded up."""
    return -(-size // BYTES_PER_TOKEN)


def as_read(item: Json) -> list[object]:
    """An item as a model reads it: equal for items that differ only in ids, status and the like. A
    null member equals an absent one."""
    if "role" in item:
        return [item.get("role"), _text(item.get("content"))]
    names = sorted(item.keys() - _BOOKKEEPING)
    return [[name, item[name]] for name in names if item[name] is not None]


# ------------------------------------------------------------------ instances of JSON Schema

_FORMATS: Final[dict[str, str]] = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "email": "a@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def instance(schema: object, text: str) -> Any:
    """A small instance of a JSON Schema, with the required parts only. Strings without restrictions
    are ``text``, so that an answer shows which turn it belongs to.

    Supports what the API's strict mode permits (types, ``enum``, ``const``, ``anyOf``, ``$ref``
    into the schema itself, bounds of numbers, strings and arrays, formats); patterns are ignored.
    An invalid schema, and one that needs more than ``_MAX_VALUES`` values, gives null.
    """
    return _Maker(schema, text).make(schema)


@attrs.define
class _Maker:
    """Builds one instance. Counts values, because a recursive schema has no end."""

    root: object
    text: str
    left: int = _MAX_VALUES

    def make(self, schema: object) -> Any:
        self.left -= 1
        if not isinstance(schema, dict) or self.left < 0:
            return None
        if isinstance(schema.get("$ref"), str):
            return self.make(_resolve(schema["$ref"], self.root))
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return schema["enum"][0]
        for name in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(name), list) and schema[name]:
                return self.make(schema[name][0])
        kind = schema.get("type", "object" if "properties" in schema else None)
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        match kind:
            case "object":
                return self._object(schema)
            case "array":
                return self._array(schema)
            case "string":
                return self._string(schema)
            case "integer" | "number":
                return _number(schema)
            case "boolean":
                return False
            case _:
                return None

    def _object(self, schema: Json) -> Json:
        found, required = schema.get("properties"), schema.get("required")
        properties = found if isinstance(found, dict) else {}
        names = required if isinstance(required, list) else []
        return {name: self.make(properties.get(name)) for name in names if isinstance(name, str)}

    def _array(self, schema: Json) -> list[Any]:
        items: list[Any] = []
        while len(items) < _bound(schema, "minItems", 0) and self.left > 0:
            items.append(self.make(schema.get("items")))
        return items

    def _string(self, schema: Json) -> str:
        if isinstance(schema.get("format"), str):
            return _FORMATS.get(schema["format"], self.text)
        low = _bound(schema, "minLength", 0)
        high = _bound(schema, "maxLength", max(low, len(self.text)))
        return self.text[:high].ljust(min(low, _MAX_LENGTH), ".")


def _number(schema: Json) -> int | float:
    low, high = schema.get("minimum"), schema.get("maximum")
    if isinstance(low, int | float):
        return low
    return min(0, high) if isinstance(high, int | float) else 0


def _bound(schema: Json, name: str, default: int) -> int:
    value = schema.get(name)
    return value if isinstance(value, int) and value >= 0 else default


def _resolve(reference: str, root: object) -> object:
    """The value that a ``#/a/b`` reference names in ``root``."""
    found = root
    for name in reference.removeprefix("#").split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found
