"""Tenants are kept apart: they share neither connections nor transcripts, with any front.

What belongs here: what distinguishes tenants (credential headers in any case, the scope that an
embedder names), and what is sent upstream of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridgecore.bridge import Bridge
from bridgecore.config import Config, Continuity, UpstreamUrl
from bridgecore.messages import (
    AnswerEvents,
    BridgeEffect,
    BridgeEvent,
    LinkFrameSent,
    LinkLost,
    LinkOpened,
    MessagesReceived,
    OpenLink,
    SendFrame,
    TurnReceived,
)
from bridgecore.recovery.failure import Closed
from bridgecore.wire.headers import FORWARDED_HEADERS
from bridgecore.wire.requests import parse_create
from tests.endpoint_world import World, read_answers

Headers = list[tuple[bytes, bytes]]
Json = dict[str, Any]

UPSTREAM = UpstreamUrl.parse("ws://up/")
CREDENTIALS = [
    b"authorization",
    b"api-key",
    b"openai-organization",
    b"openai-project",
    b"chatgpt-account-id",
    b"x-tenant",  # forwarded because the operator configured it
]
FORWARDED = (*FORWARDED_HEADERS, "x-tenant")


@attrs.frozen
class Step:
    """One turn. ``past``: whose history it continues, by id or (``full``) by repeating it."""

    tenant: int
    past: int | None
    full: bool
    store: bool
    casing: tuple[bool, ...]  # which letters of header names are capitals
    socket_lost: bool  # before the turn


STEPS = st.lists(
    st.builds(
        Step,
        tenant=st.integers(0, 1),
        past=st.sampled_from([None, 0, 1]),
        full=st.booleans(),
        store=st.booleans(),
        casing=st.tuples(*[st.booleans()] * 5),
        socket_lost=st.booleans(),
    ),
    max_size=8,
)


def cased(name: bytes, casing: Sequence[bool]) -> bytes:
    letters = name.decode("ascii")
    upper = [casing[n % len(casing)] for n in range(len(letters))]
    return "".join(c.upper() if up else c for c, up in zip(letters, upper, strict=True)).encode()


@attrs.define
class History:
    """The history of one tenant. ``knows``: it has sent texts of the other tenant itself."""

    items: list[Json] = attrs.Factory(list)
    response: str | None = None
    knows: bool = False

    def says(self, words: str) -> Json:
        return {"type": "message", "role": "user", "content": words}

    def hears(self, response: Json, asked: list[Json]) -> None:
        self.items = [*asked, *response["output"]]
        self.response = response["id"]


def body_of(step: Step, histories: list[History]) -> tuple[Json, list[Json]]:
    """The create body of ``step``, and the texts in its context."""
    past = None if step.past is None else histories[step.past]
    new = [histories[step.tenant].says(f"asked by {step.tenant}")]
    body: Json = {"model": "m", "store": step.store, "input": new}
    if past is None or past.response is None:
        return body, new
    if step.full:
        body["input"] = [*past.items, *new]
        histories[step.tenant].knows |= strangers_words(json.dumps(body), step.tenant)
        return body, [*past.items, *new]
    body["previous_response_id"] = past.response
    return body, [*(past.items if step.past == step.tenant else []), *new]


def strangers_words(text: str, tenant: int) -> bool:
    return f"by {1 - tenant}" in text


# ------------------------------------------------------------------ the door for messages


class Embedder:
    """A driver of a ``Bridge`` whose upstream answers each frame at once."""

    def __init__(self, forwarded: tuple[str, ...]) -> None:
        self.bridge = Bridge(Config(upstream=UPSTREAM, forward_headers=forwarded))
        self.opened: dict[int, Headers] = {}
        self.sent: list[tuple[int, Json]] = []  # link, frame
        self.answers: dict[int, list[Json]] = {}
        self.turn = 0

    def ask(self, body: Json, headers: Headers, scope: str | None = None) -> Json | None:
        """The response of a turn; None if it is refused."""
        self.turn += 1
        request = parse_create(json.dumps(body).encode())
        self.tell(TurnReceived(self.turn, request, headers, scope=scope))
        events = self.answers.get(self.turn)
        return None if events is None else events[-1]["response"]

    def lose_all(self) -> None:
        for link in list(self.opened):
            del self.opened[link]
            self.tell(LinkLost(link, Closed(1006)))

    def tell(self, event: BridgeEvent) -> None:
        for effect in self.bridge.handle(event, self.turn):
            self.carry_out(effect)

    def carry_out(self, effect: BridgeEffect) -> None:
        if isinstance(effect, OpenLink):
            self.opened[effect.link] = effect.headers
            self.tell(LinkOpened(effect.link))
        elif isinstance(effect, SendFrame):
            frame = json.loads(effect.data)
            self.sent.append((effect.link, frame))
            self.tell(LinkFrameSent(effect.link))
            asked = frame["input"][-1]["content"]
            item = {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": asked.replace("asked", "told")}],
            }
            response: Json = {"id": f"resp_{len(self.sent)}", "output": []}
            created = {"type": "response.created", "response": response}
            response = {**response, "output": [item]}
            done = {"type": "response.completed", "response": response}
            data = [json.dumps(event).encode() for event in (created, done)]
            self.tell(MessagesReceived(effect.link, data))
        elif isinstance(effect, AnswerEvents):
            found = [json.loads(event.data) for event in effect.events]
            self.answers.setdefault(effect.turn, []).extend(found)


def run(steps: list[Step], credentials: list[Headers], scopes: list[str | None]) -> None:
    embedder = Embedder(FORWARDED)
    histories = [History(), History()]
    own: list[set[str]] = [set(), set()]  # ids of each tenant's responses
    used: dict[int, int] = {}  # link -> tenant
    for step in steps:
        if step.socket_lost:
            embedder.lose_all()
        body, asked = body_of(step, histories)
        headers = [(cased(name, step.casing), value) for name, value in credentials[step.tenant]]
        before = len(embedder.sent)
        response = embedder.ask(body, headers, scopes[step.tenant])
        for link, frame in embedder.sent[before:]:
            assert used.setdefault(link, step.tenant) == step.tenant, "a socket of both"
            assert embedder.opened[link] == credentials[step.tenant]
            # No text of the other tenant is added to what the client sent.
            if not histories[step.tenant].knows:
                assert not strangers_words(json.dumps(frame), step.tenant)
            anchor = frame.get("previous_response_id")
            assert anchor in {None, body.get("previous_response_id"), *own[step.tenant]}
        if response is not None:
            histories[step.tenant].hears(response, asked)
            own[step.tenant].add(response["id"])


TOLD_APART = [
    Step(0, None, False, False, (False,) * 5, False),
    Step(1, 0, False, False, (True,) * 5, False),
    Step(1, 0, True, False, (True, False) * 2 + (True,), False),
    Step(1, 0, False, True, (True,) * 5, True),
]


@pytest.mark.parametrize("name", CREDENTIALS)
@given(STEPS)
@example(TOLD_APART)
def test_credentials_keep_tenants_apart(name: bytes, steps: list[Step]) -> None:
    common = [] if name == b"authorization" else [(b"authorization", b"Bearer of both")]
    run(steps, [[*common, (name, b"one")], [*common, (name, b"two")]], [None, None])


@given(STEPS)
@example(TOLD_APART)
def test_an_embedder_can_name_the_tenants(steps: list[Step]) -> None:
    shared = [(b"authorization", b"the gateway's own")]
    run(steps, [shared, shared], ["one", "two"])
    run(steps, [[], []], ["one", None])


def test_a_named_tenant_keeps_its_conversation_when_its_key_changes() -> None:
    embedder = Embedder(FORWARDED)
    first = embedder.ask({"model": "m", "input": [History().says("asked by 0")]}, [], "one")
    assert first is not None
    body = {
        "model": "m",
        "input": [History().says("asked by 0 again")],
        "previous_response_id": first["id"],
    }
    assert embedder.ask(body, [(b"Authorization", b"new")], "one") is not None
    assert len(embedder.opened) == 1


@pytest.mark.parametrize("name", [b"thread-id", b"Thread-Id", b"SESSION-ID"])
def test_scope_headers_are_read_in_any_case(name: bytes) -> None:
    words = History().says("asked by 0")
    key = (b"authorization", b"one")
    for other, joined in ((b"1", True), (b"2", False)):
        embedder = Embedder(FORWARDED)
        first = embedder.ask({"model": "m", "input": [words]}, [key, (name, b"1")])
        assert first is not None
        again = {"model": "m", "input": [words, *first["output"], words]}
        embedder.ask(again, [key, (name.lower(), other)])
        assert ("previous_response_id" in embedder.sent[-1][1]) == joined


@pytest.mark.parametrize("casing", [(False,), (True,), (True, False, False)])
def test_headers_sent_upstream_by_the_bridge(casing: tuple[bool, ...]) -> None:
    embedder = Embedder(FORWARDED_HEADERS)
    wanted = [
        (b"authorization", b"Bearer k"),
        (b"api-key", b"k"),
        (b"openai-beta", b"responses_websockets=2026-02-06"),
        (b"x-codex-window-id", b"w"),
    ]
    rest = [
        (b"cookie", b"c"),
        (b"x-tenant", b"t"),
        (b"openai-beta", b"responses=experimental"),
        (b"connection", b"api-key"),
        (b"sec-websocket-key", b"s"),
    ]
    headers = [(cased(name, casing), value) for name, value in [*rest, *wanted]]
    embedder.ask({"model": "m", "input": [History().says("asked by 0")]}, headers)
    (opened,) = embedder.opened.values()
    assert opened == wanted


# ------------------------------------------------------------------ the door for bytes


@pytest.mark.parametrize("name", [b"authorization", b"api-key", b"x-tenant"])
@given(STEPS)
@example(TOLD_APART)
def test_tenants_of_an_endpoint(name: bytes, steps: list[Step]) -> None:
    world = World(continuity=Continuity.TRANSCRIPT, forward_headers=FORWARDED)
    histories = [History(), History()]
    for step in steps:
        if step.socket_lost:
            world.advance(1000)  # longer than idle connections are kept
        body, asked = body_of(step, histories)
        data = json.dumps(body).encode()
        head = b"POST /v1/responses HTTP/1.1\r\nhost: bridge\r\ncontent-length: %d\r\n" % len(data)
        field = b"%b: tenant-%d\r\n" % (cased(name, step.casing), step.tenant)
        client = world.client()
        before = len(world.emulator.requests)
        client.send(head + field + b"\r\n" + data)
        (answer,) = read_answers(bytes(client.received))
        client.half_close()
        for request in world.emulator.requests[before:]:
            assert dict(request.headers)[name] == b"tenant-%d" % step.tenant
            if not histories[step.tenant].knows:
                assert not strangers_words(json.dumps(request.body), step.tenant)
        if answer.status == 200:
            histories[step.tenant].hears(answer.json, asked)
