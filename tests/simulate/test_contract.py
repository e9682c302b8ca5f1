"""Tests of simulate/contract.py: which faulty answers a client detects."""

from __future__ import annotations

import pytest

from bridgecore.simulate.contract import CheckedAnswer
from bridgecore.testing.client import HttpHead, ReadError


def streamed(*events: bytes) -> CheckedAnswer:
    """An answer whose stream has these events."""
    answer = CheckedAnswer(HttpHead(200, {"content-type": "text/event-stream"}))
    for event in events:
        name = event.split(b'"')[3]
        answer.feed(b"event: %b\ndata: %b\n\n" % (name, event))
    return answer


def test_clients_detect_altered_streams() -> None:
    created = b'{"type":"response.created","sequence_number":0,"response":{"id":"a"}}'
    same = b'{"type":"response.completed","sequence_number":1,"response":{"id":"a","output":[]}}'
    other = same.replace(b'"id":"a"', b'"id":"b"')
    bare = same.replace(b'"sequence_number":1,', b"")
    found = [streamed(created, event) for event in (same, other, bare)]
    assert [answer.renamed for answer in found] == [False, True, False]
    assert [answer.unnumbered for answer in found] == [False, False, True]
    assert all(answer.final()["output"] == [] for answer in found)


@pytest.mark.parametrize("output", [b"null", b"[null]", b"[{}]", b'["x"]', b"7"])
@pytest.mark.parametrize("stream", [True, False])
def test_clients_require_a_list_of_items(output: bytes, stream: bool) -> None:
    response = b'{"id":"a","status":"completed","output":%b}' % output
    answer = streamed(
        b'{"type":"response.created","sequence_number":0,"response":{"id":"a"}}',
        b'{"type":"response.completed","sequence_number":1,"response":%b}' % response,
    )
    if not stream:
        answer = CheckedAnswer(HttpHead(200, {"content-type": "application/json"}))
        answer.feed(response)
    with pytest.raises(ReadError, match="no list of items"):
        answer.final()


def test_events_of_no_response_need_no_number() -> None:
    answer = streamed(
        b'{"type":"response.created","sequence_number":0,"response":{"id":"a"}}',
        b'{"type":"codex.rate_limits"}',
        b'{"type":"response.completed","sequence_number":1,"response":{"id":"a","output":[]}}',
    )
    assert not answer.unnumbered


def test_clients_accept_half_a_surrogate_pair() -> None:
    answer = streamed(
        b'{"type":"response.created","sequence_number":0,"response":{"id":"a"}}',
        b'{"type":"response.output_item.done","sequence_number":1,"item":{"type":"\\ud83d"}}',
        b'{"type":"response.completed","sequence_number":2,'
        b'"response":{"id":"a","output":[{"type":"\\ud83d"}]}}',
    )
    assert answer.final()["output"] == [{"type": "\ud83d"}]
    with pytest.raises(ReadError):
        streamed(b'{"type":"response.created","sequence_number":"\\ud83d"}')
