"""Resources of the API through the bridge: stored responses, and what is computed of a context.

What belongs here: requests that are passed through and concern what the bridge itself knows of
responses. The upstream is the emulator, over WebSocket and HTTP on one port.
"""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from bridgecore.config import Continuity
from bridgecore.testing import Emulator
from bridgecore.testing.client import HttpAnswer
from tests.endpoint_world import KEY, World, call, read_answers, request

OTHER = "sk-another"


def world(**settings: Any) -> World:
    settings.setdefault("continuity", Continuity.TRANSCRIPT)
    return World(**settings)


def test_models_are_those_of_the_upstream() -> None:
    w = world()
    listed = call(w, "GET", "/v1/models").json
    assert [model["id"] for model in listed["data"]] == ["emulator", "emulator-mini"]
    assert call(w, "GET", "/models/emulator").json["object"] == "model"
    assert call(w, "GET", "/v1/models/none").status == 404


def test_a_wrong_key_is_refused_by_the_upstream() -> None:
    w = world(emulator=Emulator(tokens=frozenset({KEY})))
    assert call(w, "GET", "/v1/models").status == 200
    refused = call(w, "GET", "/v1/models", key=OTHER)
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")


def test_a_stored_response_is_retrieved_with_its_input() -> None:
    w = world()
    first = w.ask("one", store=True).response
    second = w.ask("two", store=True, previous_response_id=first["id"]).response
    path = f"/v1/responses/{second['id']}"
    assert call(w, "GET", path).json == second
    items = call(w, "GET", f"{path}/input_items?order=asc&limit=1").json
    assert items["has_more"]
    assert items["data"][0]["content"][0]["text"] == "one"
    assert call(w, "GET", path, key=OTHER).status == 404
    cancelled = call(w, "POST", f"{path}/cancel")
    assert (cancelled.status, cancelled.error["type"]) == (400, "invalid_request_error")
    assert call(w, "GET", f"/v1/responses/{w.ask('x', store=False).response['id']}").status == 404


# ------------------------------------------------------------------ deleting


@pytest.mark.parametrize("last", [True, False], ids=["the last response", "an earlier one"])
def test_a_deleted_response_is_not_continued(last: bool) -> None:
    w = world()
    first = w.ask("one", store=True).response["id"]
    second = w.ask("two", store=True, previous_response_id=first).response["id"]
    gone = second if last else first
    assert call(w, "DELETE", f"/v1/responses/{gone}").json["deleted"] is True
    client = w.start("three", previous_response_id=gone)
    (answer,) = read_answers(bytes(client.received))
    assert (answer.status, answer.error["code"]) == (400, "previous_response_not_found")
    if not last:  # the context of the response after it still has its items
        assert w.ask("three", previous_response_id=second).text.startswith("turn 3")
    assert call(w, "GET", f"/v1/responses/{gone}").status == 404


def test_a_response_is_deleted_only_for_its_client() -> None:
    w = world()
    first = w.ask("one", store=True).response["id"]
    assert call(w, "DELETE", f"/v1/responses/{first}", key=OTHER).status == 404
    assert w.ask("three", previous_response_id=first).text.startswith("turn 2")


def test_a_response_that_only_the_bridge_has_can_be_deleted() -> None:
    """The upstream does not know it, and says so; here it is forgotten all the same."""
    w = world()
    held = w.ask("two", store=False).response["id"]
    assert call(w, "DELETE", f"/v1/responses/{held}").status == 404
    (answer,) = read_answers(bytes(w.start("three", previous_response_id=held).received))
    assert (answer.status, answer.error["code"]) == (400, "previous_response_not_found")


def test_a_response_is_kept_if_its_deletion_fails() -> None:
    w = world()
    held = w.ask("two", store=False).response["id"]
    w.emulator.tokens = frozenset()
    assert call(w, "DELETE", f"/v1/responses/{held}").status == 401
    w.emulator.tokens = None
    assert w.ask("three", previous_response_id=held).text.startswith("turn 2")


def test_a_deleted_history_is_not_recognised() -> None:
    w = world()
    hello = {"role": "user", "content": "hello"}
    said = w.ask([hello], store=True).response
    call(w, "DELETE", f"/v1/responses/{said['id']}")
    assert w.ask([hello, *said["output"], {"role": "user", "content": "more"}]).status == 200
    assert w.frames[-1].get("previous_response_id") is None


# ------------------------------------------------------------------ contexts


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/responses/compact", {"model": "m"}),
        ("/responses/input_tokens", {"model": "m"}),
        ("/responses/input_tokens", {}),
    ],
)
def test_a_context_that_only_the_bridge_has_goes_in_place_of_its_id(
    path: str, model: dict[str, str]
) -> None:
    w = world()
    first = w.ask("one", store=False).response
    second = w.ask("two", store=False, previous_response_id=first["id"]).response
    asked = {**model, "previous_response_id": second["id"], "extra": {"a": [1]}}
    answer = call(w, "POST", path, asked)
    assert answer.status == 200, answer.body
    (sent,) = w.emulator.http_requests
    body = HttpAnswer(200, {}, sent.body).json
    assert body.keys() == {*model, "input", "extra"}
    assert body["extra"] == {"a": [1]}
    texts = [item["content"][0]["text"] for item in body["input"]]
    assert texts == ["one", "turn 1: one", "two", "turn 2: two"]


def test_counted_and_compacted_contexts_are_those_of_a_turn() -> None:
    w = world()
    first = w.ask("one", store=False).response
    body = {"model": "m", "input": "two", "previous_response_id": first["id"]}
    counted = call(w, "POST", "/v1/responses/input_tokens", body).json["input_tokens"]
    compacted = call(w, "POST", "/v1/responses/compact", body).json["output"]
    turn = w.ask("two", store=False, previous_response_id=first["id"]).response
    assert counted == turn["usage"]["input_tokens"]
    assert [item["type"] for item in compacted] == ["message", "message", "compaction"]
    assert w.ask([*compacted, {"role": "user", "content": "go on"}]).text == "turn 3: go on"


def test_an_id_that_the_upstream_knows_goes_as_it_is() -> None:
    w = world()
    first = w.ask("one", store=True).response
    body = {"model": "m", "input": "two", "previous_response_id": first["id"]}
    assert call(w, "POST", "/v1/responses/input_tokens", body).status == 200
    assert HttpAnswer(200, {}, w.emulator.http_requests[0].body).json == body


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"previous_response_id":7}', b'{"a":1}'])
def test_a_body_that_cannot_be_read_is_the_upstreams_to_refuse(body: bytes) -> None:
    w = world()
    call(w, "POST", "/v1/responses/input_tokens", body)
    assert w.emulator.http_requests[0].body == body


def test_another_clients_context_is_not_sent() -> None:
    w = world()
    first = w.ask("one", store=False).response
    body = {"model": "m", "input": "two", "previous_response_id": first["id"]}
    refused = call(w, "POST", "/v1/responses/compact", body, key=OTHER)
    assert (refused.status, refused.error["code"]) == (400, "previous_response_not_found")
    assert b"one" not in w.emulator.http_requests[0].body


def test_a_body_that_is_read_here_is_limited_and_decoded() -> None:
    w = world(max_body=1000)
    large = call(w, "POST", "/v1/responses/compact", b" " * 1001)
    assert (large.status, large.error["code"]) == (413, "body_too_large")
    first = w.ask("one", store=False).response
    body = b'{"model":"m","previous_response_id":"%b"}' % first["id"].encode()
    packed = gzip.compress(body)
    answer = call(
        w, "POST", "/v1/responses/input_tokens", packed, headers="content-encoding: gzip\r\n"
    )
    assert answer.status == 200, answer.body
    assert b"content-encoding" not in dict(w.emulator.http_requests[-1].headers)


def test_a_client_that_leaves_before_its_context_is_sent() -> None:
    w = world()
    w.net.swallow_connects("up", 80)
    client = w.client()
    client.send(request({"model": "m"}, path="/v1/responses/compact"))
    client.abort()
    w.assert_empty()
