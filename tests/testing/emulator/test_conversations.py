"""Conversations of the emulator: their paths, and turns that name one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.conversations import Conversation, ConversationItemList

from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.testing import Emulator
from bridgecore.testing.client import HttpAnswer
from bridgecore.testing.network import ByteClient, Network
from bridgecore.wire.websocket import MessageReceived, Upgraded, WebSocketClient
from tests.testing.emulator.test_api import ask, connected

Json = dict[str, Any]
PATH = "/v1/conversations"
USER = {"role": "user", "content": "hi"}
SAID: Json = {"type": "message", "role": "assistant", "content": "yes"}
CALL: Json = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "sun"}


@pytest.fixture
def client() -> ByteClient:
    """A connection to an emulator over HTTP."""
    _, found = connected()
    return found


def begin(client: ByteClient, *items: Json, **fields: Any) -> Json:
    answer = ask(client, "POST", PATH, {"items": list(items), **fields})
    assert answer.status == 200
    return answer.json


def items_of(client: ByteClient, name: str, query: str = "") -> list[Json]:
    found: list[Json] = ask(client, "GET", f"{PATH}/{name}/items{query}").json["data"]
    return found


def turn(client: ByteClient, **body: Any) -> HttpAnswer:
    return ask(client, "POST", "/v1/responses", {"model": "m", **body})


class Socket:
    """A connection to an emulator over WebSocket."""

    def __init__(self, net: Network) -> None:
        self.client = net.connect("up", 80)
        self._ws = WebSocketClient(
            authority="up", target="/v1/responses", headers=[], max_message=1 << 20
        )
        self.client.send(self._ws.connect())
        (upgraded,) = self._ws.receive(self.client.take())
        assert isinstance(upgraded, Upgraded)

    def create(self, text: str, **fields: Any) -> list[Json]:
        """Send a create frame; the messages that come at once."""
        body = {"type": "response.create", "model": "m", "input": text, **fields}
        self.client.send(self._ws.send_text(json.dumps(body).encode()))
        received = self._ws.receive(self.client.take())
        return [json.loads(one.data) for one in received if isinstance(one, MessageReceived)]


def error(answer: HttpAnswer) -> tuple[int, object, object]:
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["message"]
    return answer.status, answer.error["code"], answer.error["param"]


# ------------------------------------------------------------------ the conversation


def test_a_conversation_is_created_changed_and_deleted(client: ByteClient) -> None:
    made = begin(client, USER, metadata={"topic": "weather"})
    name = made["id"]
    assert made == {
        "id": name,
        "object": "conversation",
        "created_at": made["created_at"],
        "metadata": {"topic": "weather"},
    }
    assert name.startswith("conv_")
    path = f"{PATH}/{name}"
    Conversation.model_validate(made, strict=True)
    assert ask(client, "GET", path).json == made
    assert ask(client, "HEAD", path).status == 200
    changed = ask(client, "POST", path, {"metadata": {"topic": "names"}}).json
    assert changed == {**made, "metadata": {"topic": "names"}} == ask(client, "GET", path).json
    assert ask(client, "POST", path, {"metadata": None}).json["metadata"] == {}
    (item,) = items_of(client, name)
    gone = ask(client, "DELETE", path).json
    assert gone == {"id": name, "object": "conversation.deleted", "deleted": True}
    for method in ("GET", "POST", "DELETE"):
        assert error(ask(client, method, path, {"metadata": {}})) == (404, None, None)
    assert error(ask(client, "GET", f"{path}/items")) == (404, None, None)
    # The items stay, for those who have their ids.
    referred = turn(client, input=[{"type": "item_reference", "id": item["id"]}])
    assert referred.json["output"][0]["content"][0]["text"] == "turn 1: hi"


def test_an_empty_body_makes_an_empty_conversation(client: ByteClient) -> None:
    made = ask(client, "POST", PATH)
    assert (made.status, made.json["metadata"]) == (200, {})
    listed = ask(client, "GET", f"{PATH}/{made.json['id']}/items").json
    assert listed == {"object": "list", "data": [], "has_more": False}
    assert begin(client)["id"] != made.json["id"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ([], "invalid_json", None),
        ({"items": {}}, "invalid_type", "items"),
        ({"items": ["x"]}, "invalid_type", "items[0]"),
        ({"items": [USER, {"type": 7}]}, "invalid_type", "items[1]"),
        ({"items": [{**USER, "id": 7}]}, "invalid_type", "items[0].id"),
        ({"items": [{"content": "hi"}]}, "missing_required_parameter", "items[0].role"),
        ({"items": [{**OUTPUT, "call_id": 7}]}, "invalid_type", "items"),
        ({"items": [USER] * 21}, "array_above_max_length", "items"),
        ({"items": [{**USER, "id": "msg_1"}] * 2}, None, "input"),
        ({"metadata": []}, "invalid_type", "metadata"),
        ({"metadata": {"n": 7}}, "invalid_type", "metadata.n"),
        ({"metadata": {"k" * 65: "v"}}, "string_above_max_length", "metadata"),
        ({"metadata": {"k": "v" * 513}}, "string_above_max_length", "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "object_above_max_properties", "metadata"),
    ],
)
def test_bad_parameters_are_refused(
    client: ByteClient, body: Any, code: str | None, param: str | None
) -> None:
    assert error(ask(client, "POST", PATH, body)) == (400, code, param)
    name = begin(client)["id"]
    if body == [] or "metadata" in body:
        assert error(ask(client, "POST", f"{PATH}/{name}", body)) == (400, code, param)
    if body == [] or "items" in body:
        assert error(ask(client, "POST", f"{PATH}/{name}/items", body)) == (400, code, param)
    assert items_of(client, name) == []


def test_what_is_to_be_changed_must_be_given(client: ByteClient) -> None:
    path = f"{PATH}/{begin(client)['id']}"
    missing = "missing_required_parameter"
    assert error(ask(client, "POST", path, {})) == (400, missing, "metadata")
    assert error(ask(client, "POST", f"{path}/items", {})) == (400, missing, "items")


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", ""), ("PATCH", "/items"), ("POST", "/items/msg_1/x"), ("GET", "/messages")],
)
def test_other_methods_and_paths_are_refused(client: ByteClient, method: str, path: str) -> None:
    name = begin(client)["id"]
    assert error(ask(client, method, f"{PATH}/{name}{path}")) == (405, None, None)


def test_there_is_no_list_of_conversations(client: ByteClient) -> None:
    assert ask(client, "GET", PATH).status == 404


def test_a_conversation_belongs_to_its_credential() -> None:
    net, client = connected()
    name = begin(client)["id"]
    other = net.connect("up", 80)
    other.send(
        f"GET {PATH}/{name} HTTP/1.1\r\nhost: up\r\nauthorization: Bearer x\r\n\r\n".encode()
    )
    assert other.received.startswith(b"HTTP/1.1 404 ")


# ------------------------------------------------------------------ items


def test_items_are_listed_with_every_member(client: ByteClient) -> None:
    name = begin(client, USER)["id"]
    given: list[Json] = [SAID, CALL, OUTPUT, {"type": "reasoning", "id": "rs_1", "summary": []}]
    added = ask(client, "POST", f"{PATH}/{name}/items", {"items": given}).json
    assert (added["object"], added["has_more"]) == ("list", False)
    user, *rest = ConversationItemList.model_validate(
        ask(client, "GET", f"{PATH}/{name}/items?order=asc").json, strict=True
    ).model_dump(exclude_unset=True)["data"]
    assert rest == added["data"]
    assert [added["first_id"], added["last_id"]] == [rest[0]["id"], "rs_1"]
    ids = [item.pop("id") for item in (user, *rest)]
    assert [one.split("_")[0] for one in ids] == ["msg", "msg", "fc", "fco", "rs"]
    assert len(set(ids)) == 5
    done = {"status": "completed"}
    text: list[Json] = [{"type": "input_text", "text": "hi"}]
    assert user == {"type": "message", **done, "role": "user", "content": text}
    text = [{"type": "output_text", "annotations": [], "text": "yes"}]
    assert rest[0] == {**SAID, **done, "content": text}
    assert rest[1:3] == [{**CALL, **done}, {**OUTPUT, **done}]


def test_an_item_is_retrieved_and_deleted(client: ByteClient) -> None:
    made = begin(client, USER, SAID)
    name = made["id"]
    first, second = items_of(client, name, "?order=asc")
    path = f"{PATH}/{name}/items/{first['id']}"
    assert ask(client, "GET", path).json == first
    assert ask(client, "HEAD", path).status == 200
    assert ask(client, "DELETE", path).json == made
    assert items_of(client, name) == [second]
    for method in ("GET", "DELETE"):
        answer = ask(client, method, path)
        assert error(answer) == (404, None, None)
        message = f"Item with id '{first['id']}' not found in conversation."
        assert answer.error["message"] == message


def test_items_are_listed_by_pages(client: ByteClient) -> None:
    name = begin(client, *({"role": "user", "content": f"{n}"} for n in range(20)))["id"]
    more = {"items": [{"role": "user", "content": f"{n}"} for n in range(20, 25)]}
    ask(client, "POST", f"{PATH}/{name}/items", more)

    def texts(query: str) -> list[int]:
        return [int(item["content"][0]["text"]) for item in items_of(client, name, query)]

    assert texts("") == [*range(24, 4, -1)]
    assert texts("?order=asc&limit=100") == [*range(25)]
    seen: list[int] = []
    after, has_more = "", True
    while has_more:
        page = ask(client, "GET", f"{PATH}/{name}/items?order=asc&limit=10{after}").json
        seen += [int(item["content"][0]["text"]) for item in page["data"]]
        after, has_more = f"&after={page['last_id']}", page["has_more"]
    assert seen == [*range(25)]
    assert texts(f"?order=asc{after}") == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("order=up", "order"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("limit=%C2%B2", "limit"),
        ("after=msg_none", "after"),
    ],
)
def test_a_list_has_an_order_a_limit_and_a_cursor(
    client: ByteClient, query: str, param: str
) -> None:
    name = begin(client, USER)["id"]
    answer = ask(client, "GET", f"{PATH}/{name}/items?{query}")
    assert error(answer) == (400, "invalid_value", param)
    stored = turn(client, input="hi").json["id"]
    answer = ask(client, "GET", f"/v1/responses/{stored}/input_items?{query}")
    assert error(answer) == (400, "invalid_value", param)


# ------------------------------------------------------------------ turns


@pytest.mark.parametrize("store", [True, False])
def test_a_turn_reads_the_conversation_and_is_added_to_it(client: ByteClient, store: bool) -> None:
    name = begin(client, USER, SAID)["id"]
    first = turn(client, input="two", conversation=name, store=store)
    assert first.json["conversation"] == {"id": name}
    assert first.json["output"][0]["content"][0]["text"] == "turn 2: two"
    assert first.json["usage"]["input_tokens_details"]["cached_tokens"] > 0
    second = turn(client, input="call tool f", conversation={"id": name}, store=store)
    (call,) = second.json["output"]
    output = {**OUTPUT, "call_id": call["call_id"]}
    third = turn(client, input=[output], conversation=name, store=store).json
    assert third["output"][0]["content"][0]["text"] == "turn 3: f returned sun"
    listed = items_of(client, name, "?order=asc")
    assert [item.get("role", item["type"]) for item in listed] == [
        *("user", "assistant", "user", "assistant"),
        *("user", "function_call", "function_call_output", "assistant"),
    ]
    # The output is that of the responses, with its ids.
    outputs = [*first.json["output"], call, *third["output"]]
    assert [listed[n] for n in (3, 5, 7)] == outputs
    assert len({item["id"] for item in listed}) == 8


def test_a_response_without_a_conversation_names_none(client: ByteClient) -> None:
    assert "conversation" not in turn(client, input="hi").json


def test_a_deleted_item_is_no_longer_read(client: ByteClient) -> None:
    name = begin(client, {"role": "user", "content": "a long question"}, SAID)["id"]

    def count() -> int:
        body = {"input": "two", "conversation": name}
        counted = ask(client, "POST", "/v1/responses/input_tokens", body).json["input_tokens"]
        assert isinstance(counted, int)
        return counted

    before = count()
    (first, _) = items_of(client, name, "?order=asc")
    ask(client, "DELETE", f"{PATH}/{name}/items/{first['id']}")
    assert count() < before
    answer = turn(client, input="two", conversation=name).json
    assert answer["output"][0]["content"][0]["text"] == "turn 1: two"


def test_items_of_the_conversation_may_be_referred_to_elsewhere_only(client: ByteClient) -> None:
    name = begin(client, USER)["id"]
    (item,) = items_of(client, name)
    for given in ({"type": "item_reference", "id": item["id"]}, item):
        refused = turn(client, input=[given], conversation=name)
        assert error(refused) == (400, None, "input")
        assert refused.error["message"].startswith(f"Duplicate item found with id {item['id']}.")
    assert turn(client, input=[{"type": "item_reference", "id": item["id"]}]).status == 200
    assert items_of(client, name) == [item]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"conversation": "conv_none"}, (404, None, None)),
        ({"conversation": {"id": "conv_none"}}, (404, None, None)),
        ({"conversation": 7}, (400, "invalid_type", "conversation")),
        ({"conversation": {}}, (400, "invalid_type", "conversation")),
        (
            {"conversation": "conv_none", "previous_response_id": "resp_none"},
            (400, "mutually_exclusive_parameters", None),
        ),
    ],
)
def test_a_conversation_that_cannot_be_used_is_refused(
    client: ByteClient, body: Json, expected: object
) -> None:
    assert error(turn(client, input="hi", **body)) == expected
    counted = ask(client, "POST", "/v1/responses/input_tokens", {"input": "hi", **body})
    assert error(counted) == expected


def test_a_call_without_its_output_is_refused_and_adds_nothing(client: ByteClient) -> None:
    name = begin(client, USER, CALL)["id"]
    assert error(turn(client, input="and?", conversation=name)) == (400, None, "input")
    assert len(items_of(client, name)) == 2
    assert turn(client, input=[OUTPUT], conversation=name).status == 200


def test_an_incomplete_turn_is_added(client: ByteClient) -> None:
    name = begin(client)["id"]
    cut = turn(client, input="a" * 200, conversation=name, max_output_tokens=16)
    assert cut.json["status"] == "incomplete"
    assert [item["status"] for item in items_of(client, name)] == ["incomplete", "completed"]


def test_a_compaction_replaces_what_is_read_but_not_what_is_listed(client: ByteClient) -> None:
    name = begin(client, USER, SAID)["id"]
    turn(client, input=[{"type": "compaction_trigger"}], conversation=name)
    kinds = [item["type"] for item in items_of(client, name, "?order=asc")]
    assert kinds == ["message", "message", "compaction"]
    answer = turn(client, input="two", conversation=name).json
    assert answer["output"][0]["content"][0]["text"] == "turn 2: two"


def test_one_turn_at_a_time_and_a_lost_one_leaves_nothing() -> None:
    """Over WebSocket: on two connections, and in two lanes of one."""
    net, web = connected(Emulator(delta_interval=NS_PER_SECOND))
    name = begin(web)["id"]
    one, two = Socket(net), Socket(net)
    (begun, *_) = one.create("a", conversation=name, stream_id="x")
    assert begun["response"]["conversation"] == {"id": name}
    for socket in (one, two):
        (refused,) = socket.create("b", conversation=name, stream_id="y")
        assert refused["error"]["code"] == "conversation_locked"
        assert (refused["status"], refused["error"]["param"]) == (400, "conversation")
    one.client.abort()
    assert items_of(web, name) == []
    two.create("c", conversation=name)
    net.advance(10 * NS_PER_SECOND)
    assert [item["role"] for item in items_of(web, name)] == ["assistant", "user"]


def test_turns_of_other_conversations_run_at_the_same_time() -> None:
    net, web = connected(Emulator(delta_interval=NS_PER_SECOND))
    first, second = begin(web)["id"], begin(web)["id"]
    socket = Socket(net)
    socket.create("a", conversation=first, stream_id="x")
    socket.create("b", conversation=second, stream_id="y")
    net.advance(10 * NS_PER_SECOND)
    for name, text in ((first, "a"), (second, "b")):
        answer, question = items_of(web, name)
        assert answer["content"][0]["text"] == f"turn 1: {text}"
        assert question["content"][0]["text"] == text
