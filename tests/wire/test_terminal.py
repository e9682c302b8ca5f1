"""Tests of wire/terminal.py: terminal events, usual ones and others, and what is mended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.recovery.events import Outcome
from bridgecore.wire.jsontext import Text
from bridgecore.wire.responses import (
    EventKind,
    UpstreamEvent,
    final_response,
    read_event,
)
from bridgecore.wire.terminal import Terminal, lacks_error_code, read_terminal, with_error_code

Json = dict[str, Any]


def ended(data: bytes) -> UpstreamEvent:
    event = read_event(data)
    assert event is not None
    assert event.kind is EventKind.ENDED
    return event


def terminal(data: bytes, streamed: list[bytes] | None = None) -> Terminal:
    found = read_terminal(ended(data), streamed or [])
    assert found is not None
    return found


def completed(response: str, kind: str = "response.completed") -> bytes:
    return f'{{"type":"{kind}","sequence_number":9,"response":{response},"x":1.0}}'.encode()


def message(name: str | None, text: str) -> Json:
    return {"type": "message", "id": name, "content": [{"type": "output_text", "text": text}]}


def call(name: str, call_id: str) -> Json:
    return {"type": "function_call", "id": name, "call_id": call_id, "name": "f", "arguments": "{}"}


def done(item: object, index: object = None) -> bytes:
    event = {"type": "response.output_item.done", "output_index": index, "item": item}
    return json.dumps(event).encode()


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("response.completed", Outcome.COMPLETED),
        ("response.incomplete", Outcome.INCOMPLETE),
        ("response.failed", Outcome.FAILED),
    ],
)
@pytest.mark.parametrize("streamed", [[], [message("m", "a")]])
def test_a_standard_terminal_event_is_unchanged(
    kind: str, outcome: Outcome, streamed: list[Json]
) -> None:
    output = json.dumps(streamed)
    response = f'{{ "id" : "r\\u0031","output":{output} ,"store" : false,"y":"\\u00e9\\ud83d" }}'
    data = completed(response, kind)
    found = terminal(data, [done(item, index) for index, item in enumerate(streamed)])
    assert found.event.data == data
    assert found.response == final_response(found.event) == response.encode()
    assert (found.outcome, found.response_id, found.store) == (outcome, "r1", False)
    assert found.output == [json.dumps(item).encode() for item in streamed]


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"response.completed"}',
        b'{"type":"response.completed","response":7}',
        b'{"type":"response.completed","response":null}',
        b'{"type":"response.completed","response":"r"}',
        b'{"type":"response.completed","response":[]}',
        b'{"type":"response.failed","error":{"code":"c"}}',
        b'{"type":"response.done"}',
    ],
)
def test_a_terminal_event_without_a_response(data: bytes) -> None:
    assert read_terminal(ended(data), [done(message("m", "a"), 0)]) is None


# The status of a response that does not say how it ended.
STATUS = {"done": "completed", "cancelled": "cancelled", "canceled": "cancelled"}


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        *[
            (kind, status, expected)
            for kind in ("done", "cancelled", "canceled")
            for status, expected in [
                ('"completed"', "completed"),
                ('"incomplete"', "incomplete"),
                ('"failed"', "failed"),
                ('"cancelled"', "failed"),
                ('"canceled"', "failed"),
            ]
        ],
        ("done", '"in_progress"', "completed"),
        ("done", "null", "completed"),
        ("done", "7", "completed"),
        ("cancelled", '"in_progress"', "failed"),
        ("cancelled", "null", "failed"),
        ("canceled", "7", "failed"),
    ],
)
def test_other_terminal_events_become_standard_ones(kind: str, status: str, expected: str) -> None:
    """By the ``status`` of the response; without one, by the event's type."""
    response = f'{{"id":"r","status":{status},"x":"\\ud83d"}}'
    found = terminal(completed(response, f"response.{kind}"))
    assert found.event.type == f"response.{expected}".encode()
    assert found.outcome is Outcome(expected)
    value = json.loads(found.event.data)
    assert (value["type"], value["sequence_number"]) == (f"response.{expected}", 9)
    assert b'"x":1.0' in found.event.data
    assert b'"x":"\\ud83d"' in found.event.data
    # The object agrees with its event.
    told = value["response"]["status"]
    ended_as = json.loads(status)
    assert told == (STATUS[kind] if ended_as in ("in_progress", None, 7) else ended_as)
    assert bool(value["response"].get("error")) == (told in ("cancelled", "canceled"))
    assert final_response(found.event) == found.response
    assert (found.event.response, found.response_id) == ("r", "r")


@pytest.mark.parametrize("kind", ["done", "cancelled"])
def test_the_error_of_a_failed_response_is_kept(kind: str) -> None:
    why = '{"code":"server_error", "message":"Sorry."}'
    found = terminal(completed(f'{{"status":"failed","error":{why}}}', f"response.{kind}"))
    assert why.encode() in found.event.data


def test_a_failure_that_is_told_elsewhere_is_no_cancelled_response() -> None:
    """The Realtime API's shape: the error is in ``status_details``."""
    why = '{"error":{"code":"rate_limit_exceeded","message":"Slow down."}}'
    found = terminal(completed(f'{{"status":"failed","status_details":{why}}}', "response.done"))
    assert found.event.error.code == "rate_limit_exceeded"
    assert found.event.type == b"response.failed"


def texts(members: Mapping[str, Text]) -> dict[str, bytes]:
    return {name: bytes(value) for name, value in members.items()}


FAILURES = {
    "absent": "{}",
    "null": '{"error":null}',
    "text": '{"error":"Sorry."}',
    "empty": '{"error":{}}',
    "code null": '{"error":{"code":null,"message":"Sorry."}}',
    "code empty": '{"error":{"code":"","message":"Sorry.", "z":2.50}}',
    "code blank": '{"error":{"code":" ","message":"Sorry."}}',
    "code number": '{"error":{"code":7,"message":null,"half":"\\ud83d"}}',
    "code object": '{"error":{"code":{"a":1},"message":""}}',
}


@pytest.mark.parametrize("response", FAILURES.values(), ids=FAILURES)
def test_a_failed_response_gets_the_code_that_it_lacks(response: str) -> None:
    event = terminal(completed(response, "response.failed")).event
    assert lacks_error_code(event)
    found = with_error_code(event, "upstream_error", "It failed.", '{"y":2.0}')
    assert not lacks_error_code(found)
    before, after = json.loads(response).get("error"), json.loads(found.data)["response"]["error"]
    kept = before if isinstance(before, dict) else {}
    rest = kept or {"y": 2.0}
    words = kept.get("message") or "It failed."
    assert after == {**rest, "code": "upstream_error", "message": words}
    assert ("2.50" in response) == (b'"z":2.50' in found.data)
    assert ("half" in response) == (b'"half":"\\ud83d"' in found.data)
    assert (found.kind, found.type, found.response) == (event.kind, event.type, event.response)
    again = UpstreamEvent(found.kind, found.type, found.data)
    assert texts(found.members) == texts(again.members)
    assert texts(found.response_members or {}) == texts(again.response_members or {})
    assert found.error.code == "upstream_error"


def test_a_failed_response_with_a_code_lacks_none() -> None:
    event = terminal(completed('{"error":{"code":"x"}}', "response.failed")).event
    assert not lacks_error_code(event)


A, B, C = message("msg_a", "a"), message("msg_b", "b"), call("fc_c", "call_c")
R = {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "="}


@pytest.mark.parametrize(
    ("output", "streamed", "expected"),
    [
        # Nothing to repair.
        ([], [], []),
        ([A, C], [(A, 0), (C, 1)], [A, C]),
        # Absent, in any form: the repaired answer has a list.
        (None, [], []),
        ("missing", [], []),
        ("missing", [(A, 0), (C, 1)], [A, C]),
        (None, [(A, 0), (C, 1)], [A, C]),
        ([], [(A, 0), (C, 1)], [A, C]),
        ({}, [(A, 0)], [A]),
        ("words", [(A, 0)], [A]),
        (7, [(A, 0)], [A]),
        # Shorter, from either end or the middle.
        ([A], [(A, 0), (B, 1), (C, 2)], [A, B, C]),
        ([B], [(A, 0), (B, 1), (C, 2)], [A, B, C]),
        ([C], [(A, 0), (B, 1), (C, 2)], [A, B, C]),
        ([A, C], [(A, 0), (B, 1), (C, 2)], [A, B, C]),
        ([R], [(R, 0), (C, 1)], [R, C]),
        # Items that are not items, or that lack required members.
        ([None], [(A, 0)], [A]),
        ([A, 7], [(A, 0), (B, 1)], [A, B]),
        ([{"id": "msg_a"}], [(A, 0)], [A]),
        ([{**A, "content": None}], [(A, 0)], [A]),
        ([{"type": "message", "id": "msg_a"}, C], [(A, 0), (C, 1)], [A, C]),
        ([{**C, "arguments": None}], [(C, 0)], [C]),
        ([{**C, "call_id": None}], [(C, 0)], [C]),
        # Another id in each event: an item is identified by its call id, or by its place.
        (
            [{**A, "id": "x"}, {**C, "id": "y"}],
            [(A, 0), (C, 1)],
            [{**A, "id": "x"}, {**C, "id": "y"}],
        ),
        (
            [{**C, "id": "y"}, {**A, "id": "x"}],
            [(C, 0), (A, 1)],
            [{**C, "id": "y"}, {**A, "id": "x"}],
        ),
        ([{**C, "id": "y"}], [(A, 0), (C, 1)], [A, {**C, "id": "y"}]),
        # Two calls are two calls, whatever their ids.
        ([{**C, "call_id": "call_d"}], [(C, 0)], [C, {**C, "call_id": "call_d"}]),
        # Never streamed: it is kept.
        ([A, R], [(A, 0)], [A, R]),
        ([R, A], [(A, 1)], [R, A]),
        ([A], [], [A]),
        # Out of order, without an index, twice.
        ([], [(C, 1), (A, 0)], [A, C]),
        ([], [(A, None), (C, None)], [A, C]),
        ([], [(A, True), (C, "1")], [A, C]),
        ([], [({**A, "content": []}, 0), (A, 0)], [A]),
        ([], [(A, 10**30), (C, 2)], [C, A]),
        # What was streamed is not an item.
        ([], [("words", 0), (A, 1), ({"id": "x"}, 2)], [A]),
        ([A], [(None, 0)], [A]),
    ],
)
def test_the_final_output_equals_the_streamed_one(
    output: object, streamed: list[tuple[object, object]], expected: list[Json]
) -> None:
    response = {"id": "r", "output": output, "x": 1}
    if output == "missing":
        del response["output"]
    data = completed(json.dumps(response))
    found = terminal(data, [done(item, index) for item, index in streamed])
    said = json.loads(found.response).get("output")
    assert said == expected
    assert found.output is not None
    assert [json.loads(item) for item in found.output] == expected
    if expected == output:
        assert found.event.data == data
    assert final_response(found.event) == found.response
    assert json.loads(found.event.data)["response"] == json.loads(found.response)


_ODD_ITEMS = st.sampled_from(
    [
        json.dumps(A),
        json.dumps(C, separators=(",", ":")),
        json.dumps({**B, "id": "msg_a"}),
        json.dumps({**C, "call_id": "call_d"}),
        json.dumps(R),
        '{"type":"message","id":"m"}',
        '{"type":"message","id":"","content":[]}',
        '{"type":"","id":"m"}',
        '{"type":"message","id":7,"content":[]}',
        '{"type":"message","type":"reasoning","id":"a","id":"b"}',
        '{"type":"message","id":"\\ud83d","content":[]}',
        '{"type":"message","id":"e","\\ud83d":1}',
        '{"id":"x"}',
        "null",
        "7",
        "[]",
    ]
)
_ODD_RESPONSES = st.sampled_from(
    ["", '"id":"r"', '"id":7', '"id":""', '"id":null', '"id":"a","id":"b"', '"\\ud83d":1,"id":"r"']
)
_ODD_MEMBERS = st.sampled_from(
    [
        *("", '"store":true', '"store":false', '"store":null', '"store":1', '"output":7'),
        *('"usage":{"input_tokens":5,"output_tokens":1.0}', '"usage":null', '"usage":[]'),
        *('"usage":{"input_tokens":true,"output_tokens":-1}', '"status":"failed"', '"x":"\\n"'),
        f'"usage":{{"input_tokens":{10**30}}}',
    ]
)


@given(
    st.sampled_from(["completed", "completed", "incomplete", "failed", "done", "cancelled"]),
    _ODD_RESPONSES,
    st.lists(_ODD_ITEMS, max_size=3),
    st.lists(_ODD_MEMBERS, max_size=2),
    st.data(),
)
@settings(max_examples=300)
def test_the_usual_terminal_event_is_read_like_any_other(
    kind: str, name: str, items: list[str], more: list[str], data: st.DataObject
) -> None:
    output = data.draw(st.sampled_from([f'"output":[{",".join(items)}]', '"output":null', ""]))
    members = ",".join(filter(None, [name, output, *more]))
    again = data.draw(st.sampled_from(["", ',"response":null', ',"response":{"output":[]}']))
    text = f'{{"type":"response.{kind}","response":{{{members}}}{again}}}'
    if (event := read_event(text.encode())) is None:
        return
    index = st.sampled_from(["0", "1", "2", "1.0", "true", "null", "-1"])
    streamed = [
        b'{"output_index":%b,"item":%b}'
        % (
            data.draw(index | st.just(str(number))).encode(),
            data.draw(_ODD_ITEMS | st.just(item)).encode(),
        )
        for number, item in enumerate(items[: data.draw(st.integers(0, 3))])
    ]
    usual = read_terminal(event, streamed)
    other = read_event(text.encode())
    assert other is not None
    any_ = read_terminal(other, streamed, shortcuts=False)
    assert (usual is None) == (any_ is None)
    if usual is None or any_ is None:
        return
    assert usual.event == any_.event
    assert usual.response == any_.response
    for field in ("outcome", "response_id", "output", "items", "store", "usage"):
        assert getattr(usual, field) == getattr(any_, field), field


def test_mended_items_are_as_they_came() -> None:
    item = b'{ "type":"message" , "id":"m","content":[ {"t":1.50,"text":"\\ud83d"} ] }'
    event = b'{"type":"response.output_item.done" ,"item": ' + item + b' ,"output_index":0}'
    found = terminal(completed('{"id":"\\u0072","output":[ ]}'), [event])
    assert found.output == [item]
    assert found.response == b'{"id":"\\u0072","output":[' + item + b"]}"


def test_a_failed_response_is_not_mended() -> None:
    data = completed('{"id":"r","output":[]}', "response.failed")
    assert terminal(data, [done(A, 0)]).event.data == data


@given(
    st.lists(st.sampled_from([A, B, C, R]), unique_by=json.dumps),
    st.data(),
)
def test_missing_output_is_restored_from_the_stream(items: list[Json], data: st.DataObject) -> None:
    """Stream and final response have the same items, in the same order, each once."""
    kept = data.draw(
        st.lists(st.sampled_from(items), unique_by=json.dumps) if items else st.just([])
    )
    kept.sort(key=items.index)
    order = data.draw(st.permutations(range(len(items))))
    streamed = [done(items[index], index) for index in order]
    found = terminal(completed(json.dumps({"output": kept})), streamed)
    assert json.loads(found.response)["output"] == items
    # What is complete is not changed.
    again = terminal(found.event.data, streamed)
    assert again.event.data == found.event.data


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (f'{{"input_tokens":{2**53 - 1},"output_tokens":{2**53}}}', (2**53 - 1, 0)),
        (f'{{"input_tokens":{10**30},"output_tokens":3}}', (0, 3)),  # no store could keep it
        ('{"input_tokens":5,"output_tokens":7}', (5, 7)),
        ('{"input_tokens":5}', (5, 0)),
        ('{"input_tokens":null,"output_tokens":null,"total_tokens":null}', (0, 0)),
        ('{"input_tokens":-5,"output_tokens":true}', (0, 0)),
        ('{"input_tokens":"5","output_tokens":1.5}', (0, 0)),
        ("null", (0, 0)),
        ("[]", (0, 0)),
        ('"words"', (0, 0)),
    ],
)
def test_usage(usage: str, expected: tuple[int, int]) -> None:
    assert terminal(completed(f'{{"id":"r","usage":{usage}}}')).usage == expected


@pytest.mark.parametrize(
    ("response", "name", "store"),
    [
        ("{}", None, None),
        ('{"id":7,"store":1}', None, None),
        ('{"id":"","store":null}', None, None),
        ('{"id":"r","store":true}', "r", True),
        ('{"id":"r","store":false}', "r", False),
    ],
)
def test_the_id_and_store_flag_of_a_response_are_read(
    response: str, name: str | None, store: bool | None
) -> None:
    found = terminal(completed(response))
    assert (found.response_id, found.store) == (name, store)
