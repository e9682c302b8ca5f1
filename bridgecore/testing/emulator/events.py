"""The answer to a turn, written as the events of the API.

What belongs here: the order and members of events, what ``max_output_tokens`` cuts off, and
how a ``Change`` alters a turn's events. What is answered is decided by the emulator's
``answer``; when an event is sent, by ``service``.

As the real service: what exceeds ``max_output_tokens`` is cut off, and the response is incomplete.
It can be continued.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import assert_never

import attrs

from bridgecore.testing import answers
from bridgecore.testing.answers import CreateFrame, Json, Output, Reasoning, Text, ToolCall
from bridgecore.testing.emulator.context import Prepared, PriorResponse, digest
from bridgecore.testing.emulator.resource import in_progress, usage
from bridgecore.testing.emulator.turns import Finish, RunningTurn, Step
from bridgecore.testing.faults import Change, Fault, Point


@attrs.frozen(kw_only=True)
class Style:
    """How the events of a turn are written, apart from what they say."""

    mark: str  # a part of the ids of items, unique for the turn
    deltas: int  # of a text, at most
    created_at: int  # Unix seconds
    faults: Callable[[Point], Sequence[Fault]]  # those that strike the turn at a point


def write(
    running: RunningTurn, prepared: Prepared, outputs: Sequence[Output], style: Style
) -> list[Step]:
    """The steps of a turn that answers with ``outputs``: its events, the faults between them, and
    the end. Sets the ids of the turn."""
    turn, request, changes = running.turn, running.request, running.changes
    if Change.CHAIN_ID in changes and request.anchor is not None:
        turn.response_id = request.anchor
    base = in_progress(request.body, turn.response_id, style.created_at)
    if prepared.transformations is not None:
        base["input_transformations"] = prepared.transformations
    if Change.STORE_FALSE in changes and request.body.get("store") is None:
        base["store"] = False
    ids: tuple[str, ...] = (turn.response_id,)
    begun = base
    if Change.TWO_IDS in changes:
        turn.created_id = f"{turn.response_id}c"
        ids = (*ids, turn.created_id)
        begun = {**base, "id": turn.created_id}
    outputs, incomplete = _fit(outputs, request.body.get("max_output_tokens"))
    items = _ItemWriter(request, style, "\ud83d" if Change.SURROGATE in changes else "")
    output: list[Json] = []
    said: list[Step] = []
    for index, part in enumerate(outputs):
        cut = incomplete and index == len(outputs) - 1 and isinstance(part, Text)
        item, events = items.write(index, part, cut)
        output.append(item)
        said += events
    if request.body.get("generate") is not False:
        said.insert(0, {"type": "response.in_progress", "response": begun})
    for fault in reversed(style.faults(Point.MID_OUTPUT)):
        said.insert(_after_deltas(said, fault.deltas), fault)
    shown = answers.since_compaction((*request.context, *output))
    size = answers.read_size(output)
    whole = len(shown) == len(request.context) + len(output)
    # Adding to the context's size keeps the cost independent of the conversation's length.
    prior_size = prepared.size + size if whole else answers.read_size(shown)
    spent = usage(request.context_tokens, prepared.cached, output, answers.tokens(size))
    prior = PriorResponse(ids, tuple(shown), prior_size)
    return [
        {"type": "response.created", "response": begun},
        *style.faults(Point.AFTER_CREATED),
        *said,
        *style.faults(Point.BEFORE_TERMINAL),
        Finish(output, spent, prior, base, incomplete),
        *style.faults(Point.AFTER_TERMINAL),
    ]


def terminal(running: RunningTurn, finish: Finish, now: int) -> Json:
    """The terminal event of a turn. ``now``: Unix seconds."""
    status = "incomplete" if finish.incomplete else "completed"
    response = {
        **finish.response,
        "status": status,
        "completed_at": None if finish.incomplete else now,
        "output": finish.output,
        "usage": finish.usage,
    }
    if finish.incomplete:
        response["incomplete_details"] = {"reason": "max_output_tokens"}
    event: Json = {"type": f"response.{status}", "response": response}
    for change in sorted(running.changes, key=lambda one: one.value):
        _change_terminal(event, change)
    return event


# ------------------------------------------------------------------ output items


@attrs.frozen
class _ItemWriter:
    """Writes the output items of one turn, and the events between their first and last one."""

    request: CreateFrame
    style: Style
    suffix: str  # added to each text

    def write(self, index: int, part: Output, cut: bool) -> tuple[Json, list[Json]]:
        """A finished output item, and the events that produce it. ``cut``: it is incomplete."""
        mark = f"{self.style.mark}{index:02x}"
        where: Json = {"output_index": index}
        if isinstance(part, Text):
            begun, middle, done = self._message(f"msg_{mark}", where, part, cut)
        elif isinstance(part, ToolCall):
            begun, middle, done = self._call(mark, where, part)
        elif isinstance(part, Reasoning):
            begun, middle, done = self._reasoning(f"rs_{mark}", where, part)
        else:
            compaction = part.get("type") == "compaction"
            done = {"id": f"cmp_{mark}" if compaction else f"item_{mark}", **part}
            begun, middle = done, []
        return done, [
            {"type": "response.output_item.added", **where, "item": begun},
            *middle,
            {"type": "response.output_item.done", **where, "item": done},
        ]

    def _message(
        self, name: str, where: Json, part: Text, cut: bool
    ) -> tuple[Json, list[Json], Json]:
        text = part.text + self.suffix
        deltas = part.deltas
        if deltas is None or text != part.text:
            deltas = self._split(text)
        begun: Json = {
            "id": name,
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        at = {"item_id": name, **where, "content_index": 0}
        empty = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
        full = {**empty, "text": text}
        kind = "response.output_text"
        middle: list[Json] = [
            {"type": "response.content_part.added", **at, "part": empty},
            *({"type": f"{kind}.delta", **at, "delta": one, "logprobs": []} for one in deltas),
            {"type": f"{kind}.done", **at, "text": text, "logprobs": []},
            {"type": "response.content_part.done", **at, "part": full},
        ]
        status = "incomplete" if cut else "completed"
        return begun, middle, {**begun, "status": status, "content": [full]}

    def _call(self, mark: str, where: Json, part: ToolCall) -> tuple[Json, list[Json], Json]:
        begun: Json = {
            "id": f"fc_{mark}",
            "type": "function_call",
            "status": "in_progress",
            "arguments": "",
            "call_id": f"call_{mark}",
            "name": part.name,
        }
        at = {"item_id": begun["id"], **where}
        kind = "response.function_call_arguments"
        called = {"name": part.name, "arguments": part.arguments}
        middle: list[Json] = [
            *({"type": f"{kind}.delta", **at, "delta": one} for one in self._split(part.arguments)),
            {"type": f"{kind}.done", **at, **called},
        ]
        return begun, middle, {**begun, "status": "completed", "arguments": part.arguments}

    def _reasoning(self, name: str, where: Json, part: Reasoning) -> tuple[Json, list[Json], Json]:
        begun: Json = {"id": name, "type": "reasoning", "summary": []}
        done = dict(begun)
        middle: list[Json] = []
        if part.summary:
            empty = {"type": "summary_text", "text": ""}
            full = {**empty, "text": part.summary}
            done["summary"] = [full]
            kind = "response.reasoning_summary_"
            at = {"item_id": name, **where, "summary_index": 0}
            deltas = self._split(part.summary)
            middle = [
                {"type": f"{kind}part.added", **at, "part": empty},
                *({"type": f"{kind}text.delta", **at, "delta": delta} for delta in deltas),
                {"type": f"{kind}text.done", **at, "text": part.summary},
                {"type": f"{kind}part.done", **at, "part": full},
            ]
        if self.request.wants_encrypted_reasoning:
            model = self.request.body.get("model")
            bound = {"prefix": digest(self.request.context), "model": model}
            done["encrypted_content"] = answers.seal(bound)
        return begun, middle, done

    def _split(self, text: str) -> tuple[str, ...]:
        """``text`` in deltas of nearly equal length, none of them empty."""
        count = max(1, min(self.style.deltas, len(text)))
        edges = [len(text) * n // count for n in range(count + 1)]
        return tuple(text[a:b] for a, b in pairwise(edges) if a < b)


def _fit(outputs: Sequence[Output], limit: int | None) -> tuple[Sequence[Output], bool]:
    """The part of ``outputs`` that fits into ``limit`` tokens, and whether that is less. A text is
    cut; anything else that does not fit is left out."""
    if limit is None:
        return outputs, False
    left = limit * answers.BYTES_PER_TOKEN
    kept: list[Output] = []
    for part in outputs:
        if isinstance(part, Text):
            data = part.text.encode(errors="replace")
            if len(data) > left:
                kept.append(Text(data[:left].decode(errors="ignore")))
                return kept, True
            size = len(data)
        elif isinstance(part, ToolCall):
            size = answers.read_size([part.name, part.arguments])
        elif isinstance(part, Reasoning):
            size = answers.read_size([part.summary])
        else:
            size = answers.read_size([part])
        if size > left:
            return kept, True
        left -= size
        kept.append(part)
    return kept, False


# ------------------------------------------------------------------ changes


def _after_deltas(steps: Sequence[Step], count: int) -> int:
    """The index in ``steps`` after ``count`` deltas, or after all if they are fewer."""
    deltas = [
        index
        for index, step in enumerate(steps)
        if isinstance(step, dict) and step["type"].endswith(".delta")
    ]
    if not deltas:
        return len(steps)
    return deltas[0] if count == 0 else deltas[min(count, len(deltas)) - 1] + 1


def _change_terminal(event: Json, change: Change) -> None:
    """Apply ``change`` to a terminal event."""
    response = event.get("response")
    if not isinstance(response, dict):
        return
    match change:
        case Change.OUTPUT_EMPTY:
            response["output"] = []
        case Change.OUTPUT_SHORT:
            response["output"] = response["output"][:-1]
        case Change.OUTPUT_NULL:
            response["output"] = None
        case Change.OUTPUT_MISSING:
            del response["output"]
        case Change.OUTPUT_MALFORMED:
            response["output"] = [None, "item", 7]
        case Change.USAGE_NULL:
            response["usage"] = None
        case Change.RESPONSE_MISSING:
            del event["response"]
        case Change.RESPONSE_NULL:
            event["response"] = None
        case Change.RESPONSE_STRING:
            event["response"] = response["id"]
        case Change.DONE:
            event["type"] = "response.done"
        case Change.CANCELLED:
            event["type"] = "response.cancelled"
            response["status"] = "cancelled"
        case (
            Change.TWO_IDS
            | Change.CHAIN_ID
            | Change.STORE_FALSE
            | Change.NO_CREATED
            | Change.NO_SEQUENCE
            | Change.SURROGATE
        ):
            pass  # these change other events, or all
        case _:
            assert_never(change)
