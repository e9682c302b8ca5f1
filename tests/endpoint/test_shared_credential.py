"""Tenants that have one credential at the upstream, which does not keep them apart.

What belongs here: what a tenant can reach of another one with ``Config.shared_credential``.
Requests come from a server around the bridge, which names their tenants.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from bridgecore.config import Continuity
from bridgecore.gateway import Gateway
from bridgecore.testing.network import RequestClient
from tests.endpoint_world import KEY, World, read_answers, request
from tests.replica_world import Cluster

HEADERS = [(b"authorization", b"Bearer " + KEY.encode())]
HELLO = {"model": "m", "input": "hi"}


def world(*, shared: bool = True, **settings: Any) -> World:
    settings.setdefault("continuity", Continuity.TRANSCRIPT)
    return World(shared_credential=shared, **settings)


def ask(
    w: World, tenant: str, body: object = None, path: str = "/v1/responses", method: str = "POST"
) -> RequestClient:
    client = w.net.request(w.endpoint, method.encode(), path.encode(), HEADERS, scope=tenant)
    if body is not None:
        client.send(body if isinstance(body, bytes) else json.dumps(body).encode())
    client.end()
    return client


def answer(client: RequestClient) -> Any:
    return json.loads(client.body)


def made(w: World, tenant: str, **fields: Any) -> str:
    """The id of a response of ``tenant``."""
    client = ask(w, tenant, {**HELLO, **fields})
    assert client.status == 200
    return str(answer(client)["id"])


def same_but(client: RequestClient, unknown: RequestClient, given: str, absent: str) -> bool:
    """Whether two answers cannot be told apart, except for the id that was asked for."""
    text = bytes(client.body).replace(given.encode(), absent.encode())
    return (client.status, text) == (unknown.status, bytes(unknown.body))


# ------------------------------------------------------------------ turns


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("continuity", list(Continuity))
def test_a_tenant_continues_its_own_responses_only(continuity: Continuity, store: bool) -> None:
    w = world(continuity=continuity)
    first = made(w, "a", store=store)
    frames = len(w.frames)
    theirs = ask(w, "b", {**HELLO, "previous_response_id": first})
    absent = ask(w, "b", {**HELLO, "previous_response_id": "resp_absent"})
    error = answer(theirs)["error"]
    assert (theirs.status, error["code"], error["param"]) == (
        400,
        "previous_response_not_found",
        "previous_response_id",
    )
    assert same_but(theirs, absent, first, "resp_absent")
    assert len(w.frames) == frames
    second = made(w, "a", previous_response_id=first, store=store)
    assert made(w, "a", previous_response_id=second, store=store)


def test_without_the_setting_the_upstream_finds_what_it_has_stored_for_another_tenant() -> None:
    """Why there is the setting."""
    w = world(shared=False)
    first = made(w, "a")
    assert ask(w, "b", {**HELLO, "previous_response_id": first}).status == 200
    assert ask(w, "b", None, f"/v1/responses/{first}", "GET").status == 200


def test_an_id_that_was_refused_stays_unknown() -> None:
    w = world()
    first = made(w, "a")
    for _ in range(6):
        assert ask(w, "b", {**HELLO, "previous_response_id": first}).status == 400
    assert ask(w, "b", None, f"/v1/responses/{first}", "GET").status == 404
    w.assert_idle()


def test_a_message_is_a_turn_like_others() -> None:
    w = world(websocket=True)
    first = made(w, "a")
    upgrade = [
        *HEADERS,
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAA=="),
    ]
    client = w.net.request(w.endpoint, b"GET", b"/v1/responses", upgrade, scope="b", messages=True)
    client.end()
    body = {"type": "response.create", **HELLO, "previous_response_id": first}
    client.send_message(json.dumps(body).encode())
    (error,) = map(json.loads, client.messages)
    assert (error["status"], error["error"]["code"]) == (400, "previous_response_not_found")


REFERENCES = [
    ({"conversation": "conv_1"}, "conversation"),
    ({"conversation": {"id": "conv_1"}}, "conversation"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
    ({"input": [{"id": "msg_1"}]}, "input"),
    ({"input": [{"role": "user", "content": "x"}, {"id": "msg_1", "type": None}]}, "input"),
    ({"input": [{"role": "user", "type": "item_reference", "id": "msg_1"}]}, "input"),
    ({"input": [7]}, "input"),
]


@pytest.mark.parametrize(("fields", "param"), REFERENCES)
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/input_tokens"])
def test_what_the_bridge_cannot_know_to_be_the_tenants_is_refused(
    path: str, fields: dict[str, Any], param: str
) -> None:
    w = world()
    first = made(w, "a")
    frames = len(w.frames)
    for more in ({}, {"previous_response_id": first}):
        client = ask(w, "a", {**HELLO, **fields, **more}, path)
        error = answer(client)["error"]
        assert (client.status, error["code"], error["param"]) == (400, "unsupported_value", param)
    assert len(w.frames) == frames


def test_items_with_ids_are_no_references() -> None:
    w = world()
    first = answer(ask(w, "a", HELLO))
    history = [{"role": "user", "content": "hi"}, *first["output"]]
    assert ask(w, "a", {**HELLO, "input": history, "conversation": None}).status == 200


def test_tenants_may_be_those_of_credentials() -> None:
    """With a client's connection to the bridge itself: what is unknown is refused as well."""
    w = world()
    assert w.ask("one").status == 200
    (refused,) = read_answers(bytes(w.start("two", previous_response_id="resp_x").received))
    assert (refused.status, refused.error["code"]) == (400, "previous_response_not_found")


# ------------------------------------------------------------------ other paths


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize(
    ("method", "below"), [("GET", ""), ("GET", "/input_items"), ("DELETE", ""), ("POST", "/cancel")]
)
def test_a_tenant_reaches_its_own_responses_only(method: str, below: str, store: bool) -> None:
    w = world()
    first = made(w, "a", store=store)
    theirs = ask(w, "b", None, f"/v1/responses/{first}{below}", method)
    absent = ask(w, "b", None, f"/v1/responses/resp_absent{below}", method)
    assert (theirs.status, answer(theirs)["error"]["code"]) == (404, "not_found")
    assert same_but(theirs, absent, first, "resp_absent")
    ours = ask(w, "a", None, f"/v1/responses/{first}{below}", method)
    assert ours.status == (400 if below == "/cancel" and store else 200 if store else 404)
    if method != "DELETE":
        assert made(w, "a", previous_response_id=first)


@pytest.mark.parametrize("path", ["/v1/responses/compact", "/v1/responses/input_tokens"])
def test_a_context_is_prepared_from_the_tenants_own_responses_only(path: str) -> None:
    w = world()
    for store in (True, False):
        first = made(w, "a", store=store)
        theirs = ask(w, "b", {"model": "m", "previous_response_id": first}, path)
        absent = ask(w, "b", {"model": "m", "previous_response_id": "resp_absent"}, path)
        error = answer(theirs)["error"]
        assert (theirs.status, error["code"]) == (400, "previous_response_not_found")
        assert same_but(theirs, absent, first, "resp_absent")
        assert ask(w, "a", {"model": "m", "previous_response_id": first}, path).status == 200
    assert ask(w, "b", HELLO, path).status == 200
    assert ask(w, "b", b"{", path).status == 400


def hidden(w: World, path: str, method: str) -> bool:
    client = ask(w, "a", None, path, method)
    return client.status == 404 and "Unknown path" in answer(client)["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/conversations/conv_1"),
        ("POST", "/v1/conversations"),
        ("GET", "/v1/files"),
        ("POST", "/v1/files"),
        ("GET", "/v1/chat/completions"),
        ("DELETE", "/v1/models/ft:mine"),
        ("GET", "/v1/batches"),
    ],
)
def test_paths_of_what_the_upstream_keeps_are_not_passed(method: str, path: str) -> None:
    assert hidden(world(), path, method)
    assert not hidden(world(shared=False), path, method)


def test_paths_of_what_it_does_not_keep_are() -> None:
    w = world()
    assert ask(w, "a", None, "/v1/models", "GET").status == 200
    assert ask(w, "a", None, "/v1/models/emulator", "GET").status == 200
    assert not hidden(w, "/v1/embeddings", "POST")
    assert not hidden(w, "/v1/chat/completions", "POST")
    assert hidden(world(pass_through=()), "/v1/models", "GET")


def test_a_request_that_is_refused_is_followed_by_others_of_its_connection() -> None:
    """With and without a body, of which nothing was read yet."""
    w = world()
    client = w.client()
    get = request(None, method="GET", path="/v1/responses/resp_x")
    many = 1000  # in one segment, more than calls could be nested
    client.send(get * many + request(None, method="GET", path="/livez"))
    assert [each.status for each in read_answers(bytes(client.received))] == [404] * many + [200]
    client = w.client()
    head = request(None, path="/v1/responses/resp_x/cancel", headers="content-length: 2\r\n")
    client.send(head)
    (refused,) = read_answers(bytes(client.received))
    assert refused.status == 404
    client.send(b"{}")
    client.half_close()
    w.settle()
    w.assert_empty()


# ------------------------------------------------------------------ with a store


def test_what_a_store_has_is_known_after_a_restart() -> None:
    """Of the tenant itself only, in turns and in requests about a context."""
    cluster = Cluster()
    w = cluster.start(shared_credential=True)
    stored, held = made(w, "a"), made(w, "a", store=False)
    w.kill()
    w = cluster.start(shared_credential=True)
    w.advance(20)  # until the lease of the first process has ended
    for first in (stored, held):
        about = {"model": "m", "input": "more", "previous_response_id": first}
        for path in ("/v1/responses/input_tokens", "/v1/responses"):
            theirs = ask(w, "b", about, path)
            assert theirs.status == 400
            assert answer(theirs)["error"]["code"] == "previous_response_not_found"
            assert ask(w, "a", about, path).status == 200
        assert ask(w, "b", about).status == 400


def test_a_turn_that_is_refused_gives_back_what_was_claimed_for_it() -> None:
    cluster = Cluster()
    one = cluster.start("one", shared_credential=True)
    first = made(one, "a")
    one.kill()
    two = cluster.start("two", shared_credential=True)
    two.advance(20)
    refused = ask(two, "a", {**HELLO, "previous_response_id": first, "conversation": "c"})
    assert refused.status == 400
    three = cluster.start("three", shared_credential=True)
    three.advance(1)
    assert made(three, "a", previous_response_id=first)


# ------------------------------------------------------------------ for an embedder


def test_a_gateway_says_whose_response_it_is() -> None:
    w = world()
    first = made(w, "a")
    gateway: Gateway = w.endpoint._gateway
    has: Callable[..., bool] = gateway.has
    assert has(first, [], w.net.now, scope="a")
    assert not has(first, [], w.net.now, scope="b")
    assert not has(first, HEADERS, w.net.now)
