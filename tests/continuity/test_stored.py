"""Tests of continuity/stored.py: what comes back from a store is what never left memory.

What belongs here: one conversation, with branches, compactions and one id for several responses, in
two memories. One keeps everything; the other is forgotten now and then, also while a turn runs, and
reads it back. Each turn has to be the same in both, byte for byte.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridgecore.config import Config, Store, UpstreamUrl
from bridgecore.continuity.memory import Memory, TurnContext
from bridgecore.continuity.stored import (
    VERSION,
    Notice,
    Payload,
    deletion,
    is_deletion,
    read_notice,
    unpack,
)
from bridgecore.ownership.store import Claimed, Commit, Join, Owner, Resume
from bridgecore.recovery.effects import RequestForm
from bridgecore.testing.store import StoreModel
from bridgecore.wire.requests import parse_create

Item = dict[str, Any]
SCOPE, KEY = "scope", b"conversation"
OWNER = Owner("a", "1")
CONFIG = Config(upstream=UpstreamUrl.parse("ws://up/"), store=Store.DRIVER)
SMALL = attrs.evolve(CONFIG, transcript_bytes=100_000, transcript_scope_bytes=100_000)
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "done"}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A"}]}
COMPACTION = {"type": "compaction", "id": "cmp", "encrypted_content": "x"}
ASKED: list[list[Item]] = [
    [{"role": "user", "content": "a"}],
    [{"role": "user", "content": "é \ud83d\ude00"}, {"role": "developer", "content": "b"}],
    [OUTPUT],
    [],
]
ANSWERED: list[list[Item]] = [[SAID], [CALL], [CALL, SAID], [COMPACTION], [COMPACTION, SAID], []]


@attrs.define
class Stored:
    """A memory whose responses are committed to a store."""

    store: StoreModel
    memory: Memory = attrs.Factory(lambda: Memory(SMALL))
    epoch: int = 0

    def remember(self, recall: TurnContext, ids: list[str], output: list[bytes]) -> None:
        unstored = self.memory.remember(recall, ids, output, 1, 10, 0)
        assert unstored is not None
        assert unstored.whole
        self.store.handle(Commit(OWNER, KEY, self.epoch, unstored.responses), 0)
        unstored.committed()
        self.epoch = 1

    def evict(self) -> None:
        """Hold something else that takes all the room."""
        body = {"model": "m", "input": [{"role": "user", "content": "x" * 90_000}]}
        request = parse_create(json.dumps(body).encode())
        self.memory.remember(self.memory.recall("other", request, [], 0), ["big"], [], 1, 10, 0)

    def knows(self, named: str) -> bool:
        alias = self.memory.alias(SCOPE, named)
        return alias is not None and self.memory.holds(SCOPE, alias, 0)

    def resume(self, named: str) -> None:
        answer = self.store.handle(Resume(OWNER, SCOPE, named), 0)
        assert isinstance(answer, Claimed)
        self.memory.restore(SCOPE, answer.path, 1, 0)


def forms(recall: TurnContext) -> tuple[object, ...]:
    """What is known about a turn, and the frames that it can be sent as."""
    rebuilt = recall.frame(RequestForm.REHYDRATED) if recall.node is not None else None
    return recall.standing, recall.anchor, recall.frame(RequestForm.AS_IS), rebuilt


turns = st.lists(
    st.tuples(
        st.integers(0, 9),  # which response the turn continues
        st.sampled_from(ASKED),
        st.sampled_from(ANSWERED),
        st.sampled_from(["keep", "read", "restart", "evict"]),
        st.booleans(),  # the response has the id of the one before, or a second id: see ``chain``
    ),
    min_size=1,
    max_size=8,
)


# The path of one response has another whose id has been used again, by one that was evicted.
USED_AGAIN = [
    (0, ASKED[0], [SAID], "keep", False),
    (0, ASKED[0], [SAID], "keep", False),
    (0, ASKED[0], [SAID], "keep", False),
    (0, ASKED[1], [], "keep", False),
    (1, ASKED[1], [SAID], "keep", True),
    (0, ASKED[0], [SAID], "evict", True),
    (1, ASKED[0], [SAID], "keep", True),
    (0, ASKED[0], [SAID], "keep", False),
]


@given(turns, st.booleans())
@example(USED_AGAIN, True)
@settings(max_examples=200)
def test_what_was_stored_is_continued_like_what_never_left(
    drawn: list[tuple[int, list[Item], list[Item], str, bool]], chain: bool
) -> None:
    """``chain``: the upstream uses one id for several responses of a chain. Not together with
    second ids, which would be ambiguous then."""
    store = StoreModel()
    store.handle(Join(OWNER, None, 1), 0)
    kept, stored = Memory(CONFIG), Stored(store)
    names: list[str] = []
    for number, (which, asked, answered, event, odd) in enumerate(drawn):
        body: Item = {"model": "m", "store": False, "input": asked}
        named = names[-1 - which % len(names)] if names else None
        if named is not None:
            body["previous_response_id"] = named
            if event == "restart":
                stored.memory = Memory(SMALL)
            if event == "read" or not stored.knows(named):
                stored.resume(named)
        request = parse_create(json.dumps(body).encode())
        here, there = (one.recall(SCOPE, request, [], 0) for one in (kept, stored.memory))
        assert forms(there) == forms(here)
        if event == "evict":  # while the turn runs
            stored.evict()
        name = named if chain and odd and named is not None else f"r{number}"
        ids = [name, f"created{number}"] if odd and not chain else [name]
        output = [json.dumps(item).encode() for item in answered]
        kept.remember(here, ids, output, 1, 10, 0)
        stored.remember(there, ids, output)
        names += [each for each in ids if each not in names]


@pytest.mark.parametrize("name", ["\ud800x", "\udfff", "é\x00\n", " ", "x" * 5000])
def test_an_upstream_may_choose_any_string_as_an_id(name: str) -> None:
    memory = Memory(SMALL)
    request = parse_create(json.dumps({"model": "m", "input": "hi"}).encode())
    recall = memory.recall(SCOPE, request, [], 0)
    unstored = memory.remember(recall, [name, "other"], [json.dumps(SAID).encode()], 1, 10, 0)
    assert unstored is not None
    (response,) = unstored.responses
    found = unpack(response.payload)
    assert found is not None
    assert found.ids == (name, "other")
    deleted = deletion(SCOPE, [name])
    assert is_deletion(deleted.payload)
    assert deleted.notice is not None
    assert read_notice(deleted.notice) == Notice(SCOPE, (name,))


def test_a_payload_of_another_version_or_a_damaged_one_is_unknown() -> None:
    good = Payload(VERSION, ["r"], False, 0, None)
    assert unpack(msgspec.msgpack.encode(good)) is not None
    other = Payload(VERSION + 1, ["r"], False, 0, None)
    assert unpack(msgspec.msgpack.encode(other)) is None
    assert unpack(b"damaged") is None
    assert unpack(b"") is None
