"""The last event of a response: reads it once, and mends it where upstreams leave something out.

What belongs here: what the bridge needs of a terminal event, bringing its output into line with the
items that were streamed before it, and giving a failure the code that clients require.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeGuard

import attrs
import msgspec

from bridgecore.recovery.events import Outcome
from bridgecore.wire.jsontext import (
    NULL,
    SURROGATE,
    Text,
    UnreadableError,
    begins,
    quoted,
    read_array,
    read_members,
    reader,
    text_of,
    value_of,
    write_object,
)
from bridgecore.wire.responses import FAILED, EventKind, UpstreamEvent, final_response

_OUTCOMES = {
    b"response.completed": Outcome.COMPLETED,
    b"response.failed": Outcome.FAILED,
    b"response.incomplete": Outcome.INCOMPLETE,
}


@attrs.define(eq=False)
class Terminal:
    """A terminal event, parsed once, in the form in which it is sent to the client.

    Attributes:
        event: one of the three standard ones, with its complete output.
        outcome: how the response ended.
        response_id: the id of the response.
        output: its output items; None if they are unknown.
        items: the ids of those items that have one.
        store: whether the upstream stores the response; None if the event does not say.
        usage: input tokens (of the whole context) and output tokens, as counted by the upstream;
            zeros if it did not count.
    """

    event: UpstreamEvent
    outcome: Outcome
    response_id: str | None
    output: list[bytes] | None
    items: tuple[str, ...]
    store: bool | None
    usage: tuple[int, int]

    @property
    def response(self) -> bytes:
        """The response object."""
        return final_response(self.event)


_STANDARD = {
    "completed": b"response.completed",
    "incomplete": b"response.incomplete",
    "failed": FAILED,
    "cancelled": FAILED,
    "canceled": FAILED,
}
_CANCELS = frozenset({"cancelled", "canceled"})
_CANCELLED = (
    b'{"code":"response_cancelled","message":"The upstream cancelled the response before its end."}'
)


def read_terminal(
    event: UpstreamEvent, streamed: Sequence[bytes], *, shortcuts: bool = True
) -> Terminal | None:
    """Parse a terminal event; None if there is no response in it that can be read.

    Two things are repaired, so that the stream, the JSON answer and the transcript agree. Otherwise
    the event is kept byte for byte:

    * an ``output`` that is empty, malformed or shorter than what was streamed is completed from
      ``streamed``, the ``response.output_item.done`` events of the answer;
    * ``response.done`` and ``response.cancelled`` are replaced by the standard event for the
      response's ``status``; if that is no final status, by the one for the name of the event. To a
      client that waits for the answer, a cancelled response is a failed one.

    ``shortcuts``: read the usual shape in a shorter way, with the same result.
    """
    usual = _read_usual_terminal(event, streamed) if shortcuts else None
    return usual or _read_any_terminal(event, streamed)


class _Usage(msgspec.Struct):
    input_tokens: Any = None
    output_tokens: Any = None


class _FinalResponse(msgspec.Struct):
    output: list[msgspec.Raw]
    id: str | None = None
    store: bool | None = None
    usage: _Usage | None = None


class _Ending(msgspec.Struct):
    response: _FinalResponse


class _FinalItem(msgspec.Struct):
    type: str
    id: str


class _ItemDone(msgspec.Struct):
    output_index: int
    item: msgspec.Raw


_read_ending = reader(_Ending)
_read_final_item = reader(_FinalItem)
_read_item_done = reader(_ItemDone)


def _read_usual_terminal(event: UpstreamEvent, streamed: Sequence[bytes]) -> Terminal | None:
    """``read_terminal`` for what upstreams send almost always, decoded once; None for all else.

    That is ``response.completed`` or ``response.incomplete`` with members of their usual types, an
    id of its own on each output item, and output items that are byte for byte those that were
    streamed, so that nothing has to be completed.
    """
    outcome = _OUTCOMES.get(event.type)
    # A name with half a surrogate pair makes the event unreadable, but is skipped here.
    if outcome is None or outcome is Outcome.FAILED or SURROGATE.search(event.data):
        return None
    try:
        response = _read_ending(event.data).response
        items = [_read_final_item(raw) for raw in response.output]
        done = [_read_item_done(data) for data in streamed]
    except UnreadableError:
        return None
    output = response.output
    names = tuple([item.id for item in items])
    if len({*names, ""}) <= len(names) or "" in [item.type for item in items]:
        return None  # an id twice, an empty one, or an empty type
    for each in done:
        if not 0 <= each.output_index < len(output) or output[each.output_index] != each.item:
            return None
    usage = response.usage
    return Terminal(
        event,
        outcome,
        response.id or None,
        [*map(bytes, output)],
        names,
        response.store,
        (0, 0) if usage is None else _counts(usage.input_tokens, usage.output_tokens),
    )


def _read_any_terminal(event: UpstreamEvent, streamed: Sequence[bytes]) -> Terminal | None:
    """``read_terminal`` for any event."""
    if event.response_members is None:
        return None
    members, response = dict(event.members), dict(event.response_members)
    mended = False
    name = event.type
    if name not in _OUTCOMES:
        status = text_of(response.get("status"))
        if status not in _STANDARD:
            status = "completed" if name == b"response.done" else "cancelled"
            response["status"] = b'"%b"' % status.encode()
        name = _STANDARD[status]
        members["type"] = b'"%b"' % name
        mended = True
        if status in _CANCELS and not begins(response.get("error", NULL), b"{"):
            response["error"] = _CANCELLED
    output = _read_output(response.get("output"))
    if name != FAILED:
        completed = _completed(output, streamed)
        if completed is not None:
            output = completed
            response["output"] = b"[%b]" % b",".join([item.raw for item in completed])
            mended = True
    if mended:
        members["response"] = write_object(response)
        data = write_object(members)
        event = UpstreamEvent(EventKind.ENDED, name, data, event.response, event.item)
        event.members, event.response_members = members, response
    return Terminal(
        event=event,
        outcome=_OUTCOMES[name],
        response_id=text_of(response.get("id")) or None,
        output=None if output is None else [item.raw for item in output],
        items=tuple(item.id for item in output or () if item.id),
        store=event.stored,
        usage=_read_usage(response.get("usage")),
    )


def lacks_error_code(event: UpstreamEvent) -> bool:
    """Whether the ``response.failed`` in ``event`` has no error code: a string that is not empty.

    Clients decide by the code whether they try again, and SDKs require ``error.code`` and
    ``error.message`` of a failed response.
    """
    return not text_of(_error_of(event).get("code")).strip()


def with_error_code(
    event: UpstreamEvent, code: str, message: str, more: str | None
) -> UpstreamEvent:
    """``event``, a ``response.failed`` without an error code, with the error completed.

    What the error has is kept byte for byte: only ``code`` is set, and ``message`` if it is no text
    or empty. If there is no error object, there is one afterwards.

    Args:
        event: see ``lacks_error_code``.
        code: for the error.
        message: for an error without one.
        more: further members, for an event without an error object, as the text of a JSON object.
    """
    error: dict[str, Text] = dict(_error_of(event))
    if not error and more is not None:
        error.update(read_members(more.encode()))
    error["code"] = quoted(code)
    if not text_of(error.get("message")):
        error["message"] = quoted(message)
    response = {**(event.response_members or {}), "error": write_object(error)}
    members = {**event.members, "response": write_object(response)}
    completed = UpstreamEvent(
        event.kind, event.type, write_object(members), event.response, event.item
    )
    completed.members, completed.response_members = members, response
    return completed


def _error_of(event: UpstreamEvent) -> Mapping[str, Text]:
    """The members of the error of the response in ``event``; empty if it is no object."""
    try:
        return read_members((event.response_members or {}).get("error", NULL))
    except UnreadableError:
        return {}


def _read_usage(raw: Text | None) -> tuple[int, int]:
    usage = value_of(raw)
    if not isinstance(usage, dict):
        return 0, 0
    return _counts(usage.get("input_tokens"), usage.get("output_tokens"))


def _counts(read: Any, written: Any) -> tuple[int, int]:
    return _tokens(read), _tokens(written)


# The highest integer that all readers of JSON take exactly (RFC 8259, section 6). No response has
# more tokens, and a store could not keep a number of 2**64.
_MOST_TOKENS: Final = 2**53 - 1


def _tokens(value: Any) -> int:
    return value if _is_count(value) and value <= _MOST_TOKENS else 0


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_output(raw: Text | None) -> list[_Item] | None:
    """The items of an ``output``; None if it is not an array of objects with a type."""
    try:
        items = [_Item.read(item) for item in read_array(NULL if raw is None else raw)]
    except UnreadableError:
        return None
    read = [item for item in items if item is not None]
    return read if len(read) == len(items) else None


@attrs.frozen
class _Item:
    """The identity of an output item. ``whole``: it has all members that its type requires."""

    raw: bytes
    type: str
    id: str | None
    call_id: str | None
    whole: bool
    said: dict[str, msgspec.Raw]  # its members without the id

    @classmethod
    def read(cls, raw: msgspec.Raw) -> _Item | None:
        try:
            members = read_members(raw)
        except UnreadableError:
            return None
        kind = text_of(members.get("type"))
        if not kind:
            return None
        whole = all(members.get(name, NULL) != NULL for name in _ESSENTIAL.get(kind, ()))
        name, call = text_of(members.pop("id", None)), text_of(members.get("call_id"))
        return cls(bytes(raw), kind, name or None, call or None, whole, members)


_ESSENTIAL = {
    "message": ("content",),
    "function_call": ("call_id", "name", "arguments"),
    "custom_tool_call": ("call_id", "name", "input"),
}


def _completed(output: list[_Item] | None, streamed: Sequence[bytes]) -> list[_Item] | None:
    """``output`` completed with streamed items that are missing or incomplete in it; None if there
    is nothing to complete. Items that were never streamed are kept.
    """
    there = output or []
    said = _streamed_items(streamed, {item.raw: item for item in there})
    places = _find_again(said, there)
    result = [*there]
    changed = output is None
    for index, item in said:
        place = places.get(index)
        if place is not None and item.whole and not there[place].whole:
            result[place] = item
            changed = True
    missing = [(index, item) for index, item in said if index not in places]
    for index, item in missing:
        result.insert(min(index, len(result)), item)
    return result if changed or missing else None


def _find_again(said: list[tuple[int, _Item]], there: list[_Item]) -> dict[int, int]:
    """Match streamed items with the items ``there``: streamed index -> position.

    They are matched by id, then by call id, then by content, then by position, because some
    upstreams give an item another id in each event. Each way is tried for all items before the
    next one, so that no item is matched by content or position with one that has another's id.
    """
    left = dict(enumerate(there))
    places: dict[int, int] = {}
    for alike in _WAYS:
        for index, item in said:
            if index in places:
                continue
            for place, other in left.items():
                if alike(item, index, other, place):
                    places[index] = place
                    del left[place]
                    break
    return places


def _one_call(item: _Item, other: _Item) -> bool:
    """Whether both can be the same item. Different calls never are, whatever ids they have."""
    return item.type == other.type and (
        item.call_id is None or other.call_id is None or item.call_id == other.call_id
    )


_WAYS: tuple[Callable[[_Item, int, _Item, int], bool], ...] = (
    lambda item, _, other, __: (
        item.id is not None and item.id == other.id and _one_call(item, other)
    ),
    lambda item, _, other, __: item.call_id is not None and item.call_id == other.call_id,
    lambda item, _, other, __: item.said == other.said,
    lambda item, index, other, place: index == place and _one_call(item, other),
)


def _streamed_items(
    events: Sequence[bytes], known: Mapping[bytes, _Item]
) -> list[tuple[int, _Item]]:
    """The items of ``response.output_item.done`` events with their positions, in order. If several
    have one position, the last is used. ``known``: items that were parsed before, by their text."""
    found: dict[int, _Item] = {}
    for number, data in enumerate(events):
        try:
            members = read_members(data)
        except UnreadableError:
            continue
        raw = members.get("item", NULL)
        item = known.get(bytes(raw)) or _Item.read(raw)
        index = value_of(members.get("output_index"))
        if item is not None:
            found[index if _is_count(index) else number] = item
    return sorted(found.items(), key=lambda entry: entry[0])
