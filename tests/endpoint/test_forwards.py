"""Turns that one replica forwards to another, which owns what they continue.

What belongs here: forwards and their failures, seen by clients of whole endpoints in virtual time.
How a forward is signed is tested in tests/ownership, what is lost when in tests/recovery.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridgecore.config import Continuity, PeerUrl
from bridgecore.continuity.aliases import credential_scope
from bridgecore.ownership.forwards import PATH, SIGNATURE, Forward, ForwardSigner, digest_of
from bridgecore.testing import Abort, Alter, Change, Emulator, Error, Point, Silence, Text
from tests.endpoint_clients import Historian, Talker, strike, user
from tests.endpoint_world import SECOND, World, read_answers, request
from tests.replica_world import PEERS, SECRET, Cluster, Replica


def pair(**settings: Any) -> tuple[Cluster, Replica, Replica]:
    cluster = Cluster(forwards=True)
    return cluster, cluster.start("a", **settings), cluster.start("b", **settings)


def moved(talker: Talker, to: World) -> Talker:
    """The same client, which another replica serves from now on."""
    talker.world = to
    return talker


def say(talker: Talker, text: str, at: World | None = None) -> Any:
    """A turn that is answered at once, at the replica ``at``."""
    if at is not None:
        talker.world = at
    return talker.attempt(user(text))


def sockets(cluster: Cluster) -> int:
    """How many connections the upstream has."""
    return cluster.net.open_connections(cluster.emulator)


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_turn_is_answered_by_the_owner_of_its_conversation(store: bool, stream: bool) -> None:
    cluster, a, b = pair()
    talker = Talker(a, store=store, stream=stream)
    for number, replica in enumerate([a, b, a, b, b]):
        say(talker, f"turn {number}", replica)
    assert talker.outcomes == ["200"] * 5
    assert sockets(cluster) == 1  # the owner's, which has the context cached
    assert [len(frame["input"]) for frame in a.frames] == [1] * 5


def test_the_store_is_asked_once_for_a_forwarded_conversation() -> None:
    cluster, a, b = pair()
    talker = Talker(a)
    say(talker, "one")
    say(talker, "two", b)
    asked = len(b.store.asked)
    for number in range(5):
        say(talker, f"more {number}")
    assert len(b.store.asked) == asked
    assert cluster.net.open_connections(b.endpoint) == 1


def test_a_request_of_the_largest_size_can_be_forwarded() -> None:
    _, a, b = pair(max_header=1000, max_body=1000)
    talker = Talker(a)
    say(talker, "one")
    body = {"model": "m", "input": "", "stream": True, "previous_response_id": talker.last}
    body["input"] = "x" * (1000 - len(json.dumps(body)))
    head = len(request(body).partition(b"\r\n\r\n")[0]) + len("\r\nuser-agent: \r\n\r\n")
    client = b.client()
    client.send(request(body, headers=f"user-agent: {'x' * (1000 - head)}\r\n"))
    assert b.read(client).status == 200


def test_tenants_share_no_connection_to_another_replica() -> None:
    cluster, a, b = pair()
    for key in ("sk-1", "sk-2"):
        talker = Talker(a, key=key)
        say(talker, "one")
        say(talker, "two", b)
    assert cluster.net.open_connections(b.endpoint) == 2


def test_a_killed_owner_is_waited_for_and_then_replaced() -> None:
    _, a, b = pair()
    talker = Talker(a)
    say(talker, "one")
    say(talker, "two", b)
    a.kill()
    refused = say(talker, "three")
    assert (refused.status, refused.error["code"]) == (502, "bridge_owner_unreachable")
    wait = int(refused.headers["retry-after"])
    assert 1 <= wait <= 15
    b.advance(wait)
    say(talker, "three")
    assert talker.outcomes == ["200", "200", "502", "200"]


def answer_of_a_killed_owner(at: Point) -> Any:
    """The answer to a forwarded turn whose owner is killed at ``at``."""
    cluster, a, b = pair()
    talker = Talker(a)
    say(talker, "one")
    strike(a, at, Silence())
    moved(talker, b)
    client = talker.begin([user("two")], talker.last)
    a.kill()
    answer = b.read(client)
    assert len(cluster.emulator.requests) == 2  # the turn was not sent again
    return answer


def test_an_owner_that_dies_with_a_turn_leaves_it_to_its_client() -> None:
    answer = answer_of_a_killed_owner(Point.BEFORE_CREATED)
    assert (answer.status, answer.error["code"]) == (502, "bridge_owner_unreachable")
    assert "not known" in answer.error["message"]


def test_an_owner_that_dies_in_mid_answer_ends_the_stream() -> None:
    answer = answer_of_a_killed_owner(Point.MID_OUTPUT)
    assert answer.complete
    assert answer.response["status"] == "failed"
    assert answer.response["error"]["code"] == "stream_incomplete"


def test_a_drained_owner_is_replaced_at_the_first_try() -> None:
    _, a, b = pair()
    talker = Talker(a)
    say(talker, "one")
    say(talker, "two", b)
    a.drain()
    say(talker, "three")
    assert talker.outcomes == ["200"] * 3


def test_an_owner_that_gives_up_a_conversation_says_so() -> None:
    """It is still alive, so the turn is not ambiguous."""
    _, a, b = pair(session_idle=60 * SECOND)
    talker = Talker(a)
    say(talker, "one")
    b.advance(30)
    say(talker, "two", b)
    b.advance(70)  # the owner's session has expired, and the conversation is free
    say(talker, "three")
    say(talker, "four", a)
    assert talker.outcomes == ["200"] * 4


def test_a_replica_without_its_lease_takes_no_forward() -> None:
    _, a, b = pair()
    talker = Talker(a)
    say(talker, "one")
    say(talker, "two", b)
    a.store.answers = False
    b.advance(20)
    say(talker, "three")
    assert talker.outcomes == ["200"] * 3
    assert [log.fields["code"] for log in b.net.logs if log.event == "turn.refused"] == [
        "bridge_not_dispatched"
    ]


def test_a_client_that_leaves_cancels_its_turn_at_the_owner() -> None:
    cluster, a, b = pair()
    talker = Talker(a)
    say(talker, "one")
    strike(a, Point.MID_OUTPUT, Silence())
    client = moved(talker, b).begin([user("two")], talker.last)
    assert a.endpoint.bridge.turns == b.endpoint.bridge.turns == 1
    client.abort()
    assert a.endpoint.bridge.turns == b.endpoint.bridge.turns == 0
    assert sockets(cluster) == 0  # the upstream would have gone on writing


def test_a_client_that_reads_slowly_pauses_the_upstream_of_the_owner() -> None:
    cluster, a, b = pair(idle_timeout=30 * SECOND)
    talker = Talker(a)
    say(talker, "one")
    deltas = tuple("x" * 20_000 for _ in range(60))
    cluster.emulator.answer = lambda _: [Text("".join(deltas), deltas)]
    cluster.emulator.delta_interval = SECOND
    client = moved(talker, b).world.client()
    client.send(request(talker.body([user("two")], talker.last)))
    client.pause()
    b.advance(200)
    held = cluster.emulator.turns[1].unsent
    assert held  # no deadline of the owner applies while a client does not read
    b.advance(200)
    assert cluster.emulator.turns[1].unsent == held
    client.resume()
    b.advance(100)
    assert talker.end(client, [user("two")], talker.last).text == "".join(deltas)


def test_a_forwarded_turn_has_one_budget_of_time() -> None:
    """What it has used up before it is forwarded is not given again, by no clock but durations."""
    _, a, b = pair(turn_timeout=60 * SECOND, created_timeout=90 * SECOND)
    talker = Talker(a)
    say(talker, "one")
    strike(a, Point.BEFORE_CREATED, Silence())
    b.store.latency = 3 * SECOND // 4  # it has to be asked who the owner is
    client = moved(talker, b).begin([user("two")], talker.last)
    b.advance(58)
    assert a.endpoint.bridge.turns == 1
    b.advance(2)
    assert a.endpoint.bridge.turns == b.endpoint.bridge.turns == 0
    assert b.read(client).response["error"]["code"] == "upstream_request_timeout"


def test_errors_of_the_upstream_reach_the_client_as_they_are() -> None:
    _, a, b = pair()
    talker = Talker(a)
    say(talker, "one")
    moved(talker, b)
    busy = Error(429, "rate_limit_exceeded", members=(("resets_in_seconds", 7),))
    strike(a, Point.BEFORE_CREATED, busy)
    answer = say(talker, "two")
    assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
    assert answer.headers["retry-after"] == "7"
    strike(a, Point.BEFORE_CREATED, Abort())
    answer = say(talker, "two")
    assert (answer.status, answer.error["code"]) == (502, "stream_incomplete")
    strike(a, Point.BEFORE_CREATED, Error(400, "invalid_prompt", message="No."))
    answer = say(talker, "two")
    assert (answer.status, answer.error["message"]) == (400, "No.")
    assert b.net.open_connections(b.endpoint) == 1  # all over one connection


def test_a_forward_may_wait_for_another_turn_of_its_conversation() -> None:
    """Longer than an upstream may take for ``response.created``: the owner keeps that time."""
    _, a, b = pair(continuity=Continuity.PASSTHROUGH)
    talker = Talker(a)
    say(talker, "one")
    first = talker.last
    strike(a, Point.MID_OUTPUT, Silence())
    running = talker.begin([user("two")], first)
    waiting = moved(talker, b).begin([user("also two")], first)
    b.advance(200)
    assert not b.read(waiting).complete
    running.abort()
    answer = b.read(waiting)
    assert answer.complete
    assert answer.response["error"]["code"] == "upstream_unavailable"  # what the owner says


# ------------------------------------------------------------------ reports about other bridges


@pytest.mark.parametrize("stream", [False, True])
def test_a_soft_key_does_not_beat_the_id_that_a_turn_names(stream: bool) -> None:
    """https://github.com/Soju06/codex-lb/issues/2035: the cache key of a turn led to the replica
    that it came to, which did not ask the live owner of the response that the turn names."""
    cluster, a, b = pair()
    common = {"prompt_cache_key": "k"}
    one, other = (Talker(each, fields=common, stream=stream) for each in (a, b))
    say(one, "one")
    say(other, "other")
    say(one, "two", b)
    say(other, "more", a)
    assert one.outcomes == other.outcomes == ["200", "200"]
    assert sockets(cluster) == 2
    assert [len(frame["input"]) for frame in a.frames] == [1] * 4


def test_a_live_lease_is_not_stolen_from_a_draining_owner() -> None:
    """https://github.com/Soju06/codex-lb/pull/1722: a conversation was marked as draining while a
    turn of it ran, and another replica claimed it, although the lease was valid."""
    cluster, a, b = pair()
    talker = Talker(a)
    say(talker, "one")
    first = talker.last
    strike(a, Point.MID_OUTPUT, Silence())
    running = talker.begin([user("two")], first)
    a.drain()
    refused = moved(talker, b).attempt(user("also two"), after=first)
    assert (refused.status, refused.error["code"]) == (502, "bridge_owner_unreachable")
    assert refused.headers["retry-after"] == "1"  # the owner lives, and is about to end
    b.advance(20)  # longer than a lease: the owner renews it as long as the turn runs
    refused = talker.attempt(user("also two"), after=first)
    assert (refused.status, refused.error["code"]) == (502, "bridge_owner_unreachable")
    assert len(cluster.emulator.requests) == 2
    assert not running.closed
    running.abort()
    say(talker, "also two")
    assert talker.outcomes == ["200", "502", "502", "200"]


def test_replicas_whose_keys_differ_say_so_and_how_long_the_owner_stays() -> None:
    """The owner keeps its lease, so the client has to wait for its end. That of a replica that
    drains ends at once."""
    cluster = Cluster(forwards=True)
    a = cluster.start("a", cluster_secrets=(b"a secret that only one of them knows",))
    b = cluster.start("b")
    talker = Talker(a)
    say(talker, "one")
    refused = moved(talker, b).attempt(user("two"))
    assert (refused.status, refused.error["code"]) == (502, "bridge_owner_unreachable")
    assert int(refused.headers["retry-after"]) > 10
    (said,) = [log for log in cluster.net.logs if log.event == "forward.rejected"]
    assert "cluster_keys" in str(said.fields["detail"])


@pytest.mark.parametrize("change", [Change.TWO_IDS, Change.NO_CREATED])
def test_each_id_that_was_shown_is_known_to_every_replica(change: Change) -> None:
    """Also if the upstream names the response differently at its beginning and at its end."""
    _, a, b = pair()
    strike(a, Point.BEFORE_CREATED, Alter(change))
    answer = a.ask("one", store=False)
    shown = {event.json["response"]["id"] for event in answer.events if "response" in event.json}
    assert len(shown) == 2
    for replica in (b, a, b):
        for response in sorted(shown):
            assert replica.ask("two", previous_response_id=response, store=False).status == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_an_id_that_was_shown_is_known_to_every_other_replica_at_once(
    killed: bool, stream: bool
) -> None:
    """https://github.com/Soju06/codex-lb/pull/1900: an id was published in the memory of one
    replica and shown, although the store had not taken it."""
    cluster, a, b = pair()
    a.advance(1)
    a.store.latency = SECOND // 10
    talker = Talker(a, stream=stream)
    client = talker.begin([user("one")], None)
    a.advance(0.199)  # the commit has to reach the store, and its answer to come back
    assert (b"response.completed" if stream else b"HTTP") not in bytes(client.received)
    assert len(cluster.model) == 1
    a.advance(0.001)
    talker.end(client, [user("one")], None)
    a.store.latency = 0
    if killed:
        a.kill()
        b.advance(16)
    say(talker, "two", b)
    assert talker.outcomes == ["200", "200"]


# ------------------------------------------------------------------ clients that repeat everything


def test_a_history_is_recognised_by_the_owner_of_its_conversation() -> None:
    _, a, b = pair()
    client = Historian(a)
    client.attempt(user("one"))
    for replica in (b, a, b):
        client.world = replica
        client.attempt(user("more"))
    assert client.outcomes == ["200"] * 4
    assert [len(frame["input"]) for frame in a.frames] == [1] * 4


def test_a_history_is_recognised_after_a_restart() -> None:
    cluster, a, _ = pair()
    client = Historian(a)
    for text in ("one", "two"):
        client.attempt(user(text))
    a.drain()
    client.world = cluster.start("a")
    for text in ("three", "four"):
        client.attempt(user(text))
    # The first new connection needs the whole context, the next turn does not.
    assert [len(frame["input"]) for frame in a.frames] == [1, 1, 5, 1]
    assert len(cluster.model.snapshot()[1]) == 1  # still one conversation


def test_a_history_needs_no_owner() -> None:
    """Nothing that is stored is needed to answer it."""
    _, a, b = pair()
    client = Historian(a)
    client.attempt(user("one"))
    a.kill()
    client.world = b
    client.attempt(user("two"))
    b.store.answers = False
    client.attempt(user("three"), wait=3)
    other = Historian(b, key="sk-2", history=[user("one"), {"role": "assistant", "content": "x"}])
    other.attempt(user("two"), wait=5)
    assert client.outcomes == ["200"] * 3
    assert other.outcomes == ["200"]


# ------------------------------------------------------------------ what is no forward


def forward(owner: Replica, body: bytes, **changes: Any) -> bytes:
    """A forward to ``owner``, as another replica would send it."""
    secret = changes.pop("secret", SECRET)
    fields = {
        "to": owner.lease,
        "sender": "f" * 32,
        "sequence": 1,
        "conversation": bytes(16),
        "epoch": 1,
        "scope": "0" * 64,
        "budget": 10**12,
        "digest": digest_of(body),
        **changes,
    }
    headers = [(b"authorization", b"Bearer sk-1")]
    signature = ForwardSigner([secret]).sign(Forward(**fields), headers).decode()
    lines = f"{SIGNATURE.decode()}: {signature}\r\n"
    return request(body, path=PATH, headers=lines, key="sk-1")


BODY = b'{"model": "m", "input": "hi"}'


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        ({"secret": b"another cluster's secret, also long"}, "rejected", "cluster_keys"),
        ({"digest": digest_of(b"another body")}, "rejected", "another body"),
        ({"to": "0" * 32}, "not-dispatched", "does not own"),
    ],
)
def test_what_is_not_signed_for_this_replica_is_refused(
    change: dict[str, Any], verdict: str, words: str
) -> None:
    cluster, a, _ = pair()
    client = cluster.net.connect(a.host, PEERS)
    client.send(forward(a, BODY, **change))
    (answer,) = read_answers(bytes(client.received))
    assert answer.status in (403, 421)
    assert answer.headers["x-bridgecore-forward"] == verdict
    assert words in answer.error["message"]
    assert not cluster.emulator.requests


def test_a_forward_is_taken_once() -> None:
    cluster, a, _ = pair()
    client = cluster.net.connect(a.host, PEERS)
    client.send(forward(a, BODY) + forward(a, BODY))
    taken, repeated = read_answers(bytes(client.received))
    assert (taken.status, taken.headers["x-bridgecore-forward"]) == (200, "taken")
    assert (repeated.status, repeated.headers["x-bridgecore-forward"]) == (403, "rejected")
    assert "come before" in repeated.error["message"]
    assert len(cluster.emulator.requests) == 1


def test_a_forward_is_not_forwarded() -> None:
    cluster, a, b = pair()
    talker = Talker(b, key="sk-1")
    say(talker, "one")
    scope = credential_scope([(b"authorization", b"Bearer sk-1")])
    body = json.dumps({"model": "m", "input": "two", "previous_response_id": talker.last})
    client = cluster.net.connect(a.host, PEERS)
    client.send(forward(a, body.encode(), scope=scope))
    (answer,) = read_answers(bytes(client.received))
    assert (answer.status, answer.headers["x-bridgecore-forward"]) == (421, "not-dispatched")
    assert "turn.forwarded" not in a.logged()
    assert len(cluster.emulator.requests) == 1


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request({"model": "m", "input": "hi"}), 404),
        (request({"model": "m", "input": "hi"}, path=PATH), 403),
        (b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n", 404),
    ],
)
def test_the_port_for_replicas_takes_nothing_else(sent: bytes, status: int) -> None:
    cluster, a, _ = pair()
    client = cluster.net.connect(a.host, PEERS)
    client.send(sent)
    (answer,) = read_answers(bytes(client.received))
    assert (answer.status, answer.headers["x-bridgecore-forward"]) == (status, "rejected")


def test_clients_cannot_forward() -> None:
    cluster, a, _ = pair()
    client = a.client()
    client.send(forward(a, BODY))
    (answer,) = read_answers(bytes(client.received))
    assert answer.status == 404
    assert not cluster.emulator.requests


def elsewhere(to: str, port: int) -> tuple[Cluster, Talker, Replica]:
    """A conversation whose owner advertises a wrong address, and another replica, b."""
    cluster = Cluster(forwards=True)
    a = cluster.start("a", advertise=PeerUrl.parse(f"http://{to}:{port}"))
    b = cluster.start("b")
    talker = Talker(a)
    say(talker, "one")
    return cluster, moved(talker, b), a


def warnings(cluster: Cluster, event: str = "forward.misdirected") -> list[dict[str, object]]:
    return [dict(log.fields) for log in cluster.net.logs if log.event == event]


def test_an_address_that_leads_to_the_sender_is_noticed() -> None:
    """The sender does not own what it is asked for, and says so to itself."""
    cluster, talker, _ = elsewhere("b-1", PEERS)
    for _ in range(2):
        refused = talker.attempt(user("two"))
        assert (refused.status, refused.error["code"]) == (502, "bridge_owner_unreachable")
        # Nobody gives the conversation up soon, so there is no use in trying again at once.
        assert int(refused.headers["retry-after"]) > 10
    assert len(cluster.emulator.requests) == 1
    (said,) = warnings(cluster)  # not one for each turn
    assert (said["owner"], said["advertise"]) == ("a", f"http://b-1:{PEERS}")
    assert said["answered"] == "replica b"
    assert "back to this replica" in str(said["detail"])


def test_an_address_that_leads_to_another_replica_is_noticed() -> None:
    cluster, talker, _ = elsewhere("c-2", PEERS)
    cluster.start("c")
    refused = talker.attempt(user("two"))
    assert (refused.status, refused.error["code"]) == (502, "bridge_owner_unreachable")
    assert "not sent" in refused.error["message"]
    assert int(refused.headers["retry-after"]) > 10
    assert len(cluster.emulator.requests) == 1
    (said,) = warnings(cluster)
    assert (said["owner"], said["advertise"]) == ("a", f"http://c-2:{PEERS}")
    assert said["answered"] == "replica c"
    assert "to another replica" in str(said["detail"])


def test_an_address_that_leads_to_something_else_is_unknown() -> None:
    """What that has done with the turn is not known, so it is left to the client."""
    cluster, talker, _ = elsewhere("up", 80)
    for _ in range(2):
        refused = talker.attempt(user("two"))
        assert (refused.status, refused.error["code"]) == (502, "bridge_owner_unreachable")
        assert "not known" in refused.error["message"]
        assert int(refused.headers["retry-after"]) > 10
    lost = [log.fields for log in cluster.net.logs if log.event == "turn.refused"]
    assert lost[-1]["cause"] == "the answer is not a replica's"
    (said,) = warnings(cluster)
    assert (said["owner"], said["advertise"]) == ("a", "http://up:80")
    assert said["answered"] == "no replica"


def test_an_address_that_leads_to_the_port_for_clients_is_unknown() -> None:
    cluster, talker, _ = elsewhere("a-0", 80)
    refused = talker.attempt(user("two"))
    assert (refused.status, refused.error["code"]) == (502, "bridge_owner_unreachable")
    (said,) = warnings(cluster)
    assert "'port'" in str(said["detail"])
    assert len(cluster.emulator.requests) == 1


def test_a_replica_that_was_restarted_under_its_name_is_not_misdirected() -> None:
    """It refuses what is meant for the lease before, and has nothing wrong in its settings."""
    cluster, a, b = pair()
    talker = Talker(b)
    say(talker, "one")
    say(talker, "two", a)  # a remembers which lease of b has it
    b.kill()
    again = cluster.start("b", advertise=None)
    cluster.net.listen_for_peers(again.endpoint, b.host, PEERS)
    a.advance(20)  # the lease of the killed one is over
    say(talker, "three", a)
    assert warnings(cluster) == []


def test_the_store_is_asked_again_after_an_owner_has_failed() -> None:
    """Its address may be another program's by now, which never says that it is not the owner."""
    cluster, a, b = pair()
    talker = Talker(b)
    say(talker, "one")
    say(talker, "two", a)  # a remembers who owns it
    b.kill()
    cluster.net.add(Emulator(), b.host, PEERS)
    refused = talker.attempt(user("three"))
    assert (refused.status, refused.error["code"]) == (502, "bridge_owner_unreachable")
    a.advance(int(refused.headers["retry-after"]))
    answer = say(talker, "three")
    assert answer.status == 200
