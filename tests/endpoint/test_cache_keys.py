"""Conversations with one ``prompt_cache_key``: which of them use which upstream connection.

What belongs here: admission/placement.py, observed at a whole endpoint.
"""

from __future__ import annotations

import attrs
import pytest

from bridgecore.config import Continuity
from tests.endpoint_clients import Historian, Talker, anchors, assert_empty, held, user
from tests.endpoint_world import Json, World, in_segments


@attrs.define
class Stranger(Historian):
    """A client whose history is never recognised, because it numbers its requests in what it sends
    back."""

    def stranger_turn(self, text: str) -> None:
        self.history = [{**item, "request": len(self.sizes)} for item in self.history]
        client = self.begin(user(text))
        answer = self.world.read(client)
        client.half_close()
        assert answer.status == 200
        self.history += [user(text), *answer.response["output"]]


@pytest.mark.parametrize("continuity", Continuity)
@pytest.mark.parametrize("store", [True, False])
def test_a_client_that_is_never_recognised_keeps_to_its_socket(
    store: bool, continuity: Continuity
) -> None:
    world = World(continuity=continuity, split=in_segments)
    stranger = Stranger(world, store, fields={"prompt_cache_key": "k"})
    for n in range(30):
        stranger.stranger_turn(f"text {n}")
    assert anchors(world) == []
    assert world.net.connects <= 2
    assert world.endpoint.bridge.links <= 2
    assert_empty(world)


def test_sockets_are_not_used_across_keys_threads_and_credentials() -> None:
    world = held()
    strangers = [
        Stranger(world, key=key, headers=headers, fields=fields)
        for key in ("sk-one", "sk-two")
        for headers in ("", "thread-id: t\r\n")
        for fields in ({}, {"prompt_cache_key": "k"}, {"prompt_cache_key": "l"})
    ]
    for n in range(4):
        for stranger in strangers:
            stranger.stranger_turn(f"text {n}")
    users: dict[int, set[object]] = {}
    for seen in world.emulator.requests:
        heads = dict(seen.headers)
        thread = heads.get(b"thread-id")
        who = (heads.get(b"authorization"), thread, seen.body.get("prompt_cache_key"))
        users.setdefault(seen.conn, set()).add(who)
    assert all(len(whose) == 1 for whose in users.values())
    assert len(users) == 8 + 4 * 4  # those without a key have a connection for each turn
    assert_empty(world)


def test_conversations_that_share_a_key_keep_their_sockets() -> None:
    """One key for all: conversations that are recognised, or that send ids, keep their
    connections."""
    world = held()
    fields: Json = {"prompt_cache_key": "shared"}
    talkers = [Talker(world, fields=fields) for _ in range(20)]
    historians = [Historian(world, fields=fields) for _ in range(20)]
    for n in range(4):
        for number in range(20):
            talkers[number].attempt(user(f"talker {number} says {n}"))
            historians[number].attempt(user(f"historian {number} says {n}"))
    assert all(one.outcomes == ["200"] * 4 for one in talkers)
    assert all(one.outcomes == ["200"] * 4 for one in historians)
    # A few lost theirs to others that began after them; none did after that.
    assert sum("previous_response_id" not in sent for sent in world.frames[40:80]) <= 8
    assert all("previous_response_id" in sent for sent in world.frames[80:])
    assert_empty(world)


def test_single_turns_of_one_key_leave_few_sockets() -> None:
    world = held()
    for n in range(80):
        assert world.ask(f"classify {n}", prompt_cache_key="k", store=False).status == 200
    assert world.endpoint.bridge.links <= 32
    assert_empty(world)


def test_a_socket_with_an_unstored_response_is_not_taken_over() -> None:
    """No transcript is held, and the client that knows the response's id may come back."""
    world = World(continuity=Continuity.PASSTHROUGH, split=in_segments)
    fields: Json = {"prompt_cache_key": "k"}
    first = world.ask("a", store=False, **fields).response
    stranger = Stranger(
        world, fields=fields, history=[user("x"), {"role": "assistant", "content": "y"}]
    )
    for n in range(3):
        stranger.stranger_turn(f"text {n}")
    assert world.net.connects == 2
    again = world.ask("b", store=False, previous_response_id=first["id"], **fields)
    assert again.status == 200
    assert world.net.connects == 2
