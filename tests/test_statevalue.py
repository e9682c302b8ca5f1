"""Tests of statevalue.py: a bridge's state value has all fields except the listed ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest

from bridgecore import bridge as bridges
from bridgecore.bridge import Bridge
from bridgecore.config import Config, Rotation, Store, UpstreamUrl
from bridgecore.continuity.memory import Memory
from bridgecore.conversation import Conversation
from bridgecore.forwarding import Forwarding
from bridgecore.intake import Intake
from bridgecore.messages import LinkFrameSent, LinkOpened, MessagesReceived, OpenLink, TurnReceived
from bridgecore.replica import Replica
from bridgecore.statevalue import COMPARED, At, Ref, state_of
from bridgecore.wire.requests import parse_create


def running() -> Bridge:
    """A bridge with a turn that had its first delta, with events held back."""
    bridge = Bridge(Config(upstream=UpstreamUrl.parse("ws://up/"), rotation=Rotation.WARM))
    body = json.dumps({"model": "m", "input": "x", "prompt_cache_key": "k"}).encode()
    effects = bridge.handle(TurnReceived(1, parse_create(body), []), 0)
    (link,) = [effect.link for effect in effects if isinstance(effect, OpenLink)]
    bridge.handle(LinkOpened(link), 0)
    bridge.handle(LinkFrameSent(link), 0)
    bridge.handle(MessagesReceived(link, [b'{"type":"x"}']), 0)
    return bridge


def only(bridge: Bridge) -> Conversation:
    (conversation,) = bridge._conversations.values()
    return conversation


def owned(bridge: Bridge) -> list[object]:
    """An object of each class that is compared field by field."""
    conversation = only(bridge)
    (turn,) = conversation.turns.values()
    link = conversation.link
    assert link is not None
    return [conversation, turn, turn.recall, link, link.held, link.stragglers, bridge._families]


def fields() -> list[tuple[int, str, bool]]:
    """The fields of those objects, and whether each is listed as left out."""
    found = []
    for place, value in enumerate(owned(running())):
        listed = COMPARED[type(value)].left_out
        kind: Any = type(value)
        found += [(place, field.name, field.name in listed) for field in attrs.fields(kind)]
    return found


@pytest.mark.parametrize(("place", "name", "left_out"), fields())
def test_every_field_counts_but_those_listed(place: int, name: str, left_out: bool) -> None:
    bridge = running()
    before = bridge.snapshot()
    assert running().snapshot() == before
    assert hash(before) == hash(running().snapshot())
    value: Any = owned(bridge)[place]
    if isinstance(getattr(value, name), Mapping):
        getattr(value, name)[77] = "another"
    else:
        setattr(value, name, 77)
    assert (bridge.snapshot() == before) is left_out


def test_a_new_field_counts() -> None:
    @attrs.define(eq=False)
    class Grown(Conversation):
        mood: str = "good"

    moods = []
    for mood in ("good", "bad"):
        bridge = running()
        old = only(bridge)
        own = {field.name: getattr(old, field.name) for field in attrs.fields(Conversation)}
        bridge._conversations[old.id] = Grown(
            **{name.lstrip("_"): part for name, part in own.items()}, mood=mood
        )
        moods.append(bridge.snapshot())
    assert moods[0] != moods[1]


def test_a_new_attribute_of_the_bridge_counts() -> None:
    one, other = running(), running()
    one.mood, other.mood = "good", "bad"  # type: ignore[attr-defined]  # a new one
    assert one.snapshot() != other.snapshot()


def test_an_unlisted_field_is_reported() -> None:
    bridge = running()
    bridge.mood = object()  # type: ignore[attr-defined]  # a new one
    with pytest.raises(TypeError, match="object: say in"):
        bridge.snapshot()


def replicated() -> Replica:
    config = Config(upstream=UpstreamUrl.parse("ws://up/"), store=Store.DRIVER)
    return Replica(config, Memory(config), b"seed")


# Classes that declare no fields, and an object of each.
PLAIN: dict[type, Callable[[], object]] = {
    Intake: lambda: running()._intake,
    Replica: replicated,
    Forwarding: lambda: Forwarding([]),
}


def test_what_a_replica_has_counts() -> None:
    """The lease, open questions and what it knows of other owners, too."""
    seen = set()
    replica = replicated()
    for change in (
        lambda: None,
        lambda: replica.start(None, 0),
        lambda: replica.adopt(1, None),
        lambda: setattr(replica, "gone", True),
    ):
        change()
        seen.add(state_of(replica))
    assert len(seen) == 4
    assert state_of(replica._holdings) != state_of(replicated()._holdings)


def test_listed_fields_exist() -> None:
    for kind, compared in COMPARED.items():
        if kind in PLAIN:
            known = set(vars(PLAIN[kind]()))
        elif (names := getattr(kind, "__struct_fields__", None)) is not None:
            known = set(names)
        else:
            assert attrs.has(kind)
            known = {field.name for field in attrs.fields(kind)}
        assert {*compared.names, *compared.times, *compared.left_out} <= known
    assert {*bridges.COMPARED.names, *bridges.COMPARED.left_out} <= set(vars(running()))


def test_names_and_times_are_marked() -> None:
    bridge = running()
    conversation = only(bridge)
    conversation.session.touch(5)
    state: Any = state_of(conversation)
    assert dict(state)["session"] == (conversation.session.state, At(5))
    assert dict(state)["id"] == Ref("conversation", conversation.id)
