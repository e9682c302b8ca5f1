"""Conversations: items that the service keeps under an id, for turns that name it.

What belongs here: the conversation object of the API, its items, and which parameters of its paths
are refused. How the paths are answered is in ``api``; turns with ``conversation`` are in
``service``.

As the real service: a turn in a conversation reads its items before its own input. Once it has
ended, its input and output are added together, so that a turn that was cut off leaves nothing
behind. Only one turn runs in a conversation at a time. A deleted conversation leaves its items in
storage, where ``item_reference`` finds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from bridgecore.testing import answers
from bridgecore.testing.answers import Json
from bridgecore.testing.emulator import resource
from bridgecore.testing.emulator.resource import bad
from bridgecore.testing.faults import Error

# Limits of the API reference, "Conversations".
MAX_ITEMS: Final = 20  # that one request may add
MAX_PAIRS: Final = 16  # of metadata
MAX_KEY: Final = 64  # characters of a key of metadata
MAX_VALUE: Final = 512  # characters of a value of metadata

# The prefixes of the ids of items, by type.
_PREFIXES: Final = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
    "compaction": "cmp",
}


@attrs.define(eq=False)
class Conversation:
    """A conversation and its items, each with an id, the oldest first."""

    id: str
    created_at: int  # Unix seconds
    metadata: Json
    items: list[Json] = attrs.field(factory=list, init=False)

    @property
    def size(self) -> int:
        """The bytes that a model reads of the items."""
        return answers.read_size(self.items)

    @property
    def resource(self) -> Json:
        """The conversation as it is retrieved."""
        return {
            "id": self.id,
            "object": "conversation",
            "created_at": self.created_at,
            "metadata": self.metadata,
        }

    def item(self, name: str) -> Json | None:
        """The item with the id ``name``."""
        return next((item for item in self.items if item["id"] == name), None)

    def add(self, items: Sequence[Json], mark: str) -> list[Json]:
        """Add ``items`` in the form in which they are listed.

        Args:
            items: in any form in which a client may send them.
            mark: a part of the ids of those that have none, unique for the request.

        Returns:
            The items that were added.
        """
        added = [_listed(item, f"{mark}i{index:02x}") for index, item in enumerate(items)]
        self.items += added
        return added

    def remove(self, item: Json) -> None:
        """Remove one of the items."""
        self.items.remove(item)

    def duplicate(self, items: Sequence[Json]) -> Error | None:
        """The error for ``items`` of which one is in the conversation already, or comes twice."""
        seen = {item["id"] for item in self.items}
        for item in items:
            name = item.get("id")
            if not isinstance(name, str):
                continue
            if name in seen:
                message = (
                    f"Duplicate item found with id {name}. "
                    "Remove duplicate items from your input and try again."
                )
                return bad(None, message, "input")
            seen.add(name)
        return None


def _listed(item: Json, mark: str) -> Json:
    """``item`` with the members that it has in a list."""
    kind, name = item.get("type"), item.get("id")
    if not isinstance(kind, str):
        kind = "message"
    if not isinstance(name, str) or not name:
        name = f"{_PREFIXES.get(kind, 'item')}_{mark}"
    listed = {"id": name, "type": kind, "status": "completed", **item}
    if kind == "message" and isinstance(text := item.get("content"), str):
        said = item.get("role") == "assistant"
        whose = {"type": "output_text", "annotations": []} if said else {"type": "input_text"}
        listed["content"] = [{**whose, "text": text}]
    return {**listed, "id": name, "type": kind}


# ------------------------------------------------------------------ parameters


def unknown(name: str) -> Error:
    """The error for a conversation that the service does not know."""
    return resource.unknown("Conversation", name)


def unknown_item(name: str) -> Error:
    """The error for an item that is not in the conversation."""
    message = f"Item with id '{name}' not found in conversation."
    return Error(404, None, "invalid_request_error", message)


def locked() -> Error:
    """The error for a turn in a conversation in which another one runs."""
    message = (
        "Another process is currently operating on this conversation. "
        "Please retry in a few seconds."
    )
    return bad("conversation_locked", message, "conversation")


def read_items(body: Mapping[str, Any], *, required: bool = False) -> list[Json] | Error:
    """The items that a request adds, or why they are refused."""
    given = body.get("items")
    if given is None:
        if required:
            message = "Missing required parameter: 'items'."
            return bad("missing_required_parameter", message, "items")
        return []
    if not isinstance(given, list):
        return bad("invalid_type", "Invalid type for 'items': expected an array.", "items")
    if len(given) > MAX_ITEMS:
        message = (
            f"Invalid 'items': array too long. Expected an array with maximum length {MAX_ITEMS}, "
            f"but got an array with length {len(given)} instead."
        )
        return bad("array_above_max_length", message, "items")
    for index, item in enumerate(given):
        where = f"items[{index}]"
        if not isinstance(item, dict) or not isinstance(item.get("type", ""), str | None):
            return bad("invalid_type", f"Invalid type for '{where}': expected an object.", where)
        if not isinstance(item.get("id"), str | None):
            message = f"Invalid type for '{where}.id': expected a string."
            return bad("invalid_type", message, f"{where}.id")
        if item.get("type") in (None, "message") and not isinstance(item.get("role"), str):
            message = f"Missing required parameter: '{where}.role'."
            return bad("missing_required_parameter", message, f"{where}.role")
    return resource.invalid_input(given, "items") or given


def read_metadata(body: Mapping[str, Any], *, required: bool = False) -> Json | Error:
    """The metadata that a request sets, or why they are refused."""
    if required and "metadata" not in body:
        message = "Missing required parameter: 'metadata'."
        return bad("missing_required_parameter", message, "metadata")
    given = body.get("metadata")
    if given is None:
        return {}
    if not isinstance(given, dict):
        return bad("invalid_type", "Invalid type for 'metadata': expected an object.", "metadata")
    if len(given) > MAX_PAIRS:
        message = f"Invalid 'metadata': expected at most {MAX_PAIRS} pairs."
        return bad("object_above_max_properties", message, "metadata")
    for key, value in given.items():
        where = f"metadata.{key}"
        if not isinstance(value, str):
            return bad("invalid_type", f"Invalid type for '{where}': expected a string.", where)
        if len(key) > MAX_KEY or len(value) > MAX_VALUE:
            message = (
                f"Invalid '{where}': a key has at most {MAX_KEY} characters, "
                f"a value at most {MAX_VALUE}."
            )
            return bad("string_above_max_length", message, "metadata")
    return given
