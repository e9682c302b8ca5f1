"""Requests about a context that only the store has: compacting it, or counting its tokens.

What belongs here: ``POST /v1/responses/compact`` and ``.../input_tokens`` at endpoints that share a
store, in virtual time. Wherever a turn could continue a response, they work with its id; where a
turn is refused, they are. What goes upstream in place of the id is tested in test_resources.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore import transport as tp
from bridgecore.config import HttpUrl
from bridgecore.continuity.stored import PURGE, purge_record
from bridgecore.ownership.store import Answer as StoreAnswer
from bridgecore.ownership.store import Commit, LookUp, Owner, Question, Resume, Sweep
from bridgecore.testing import Fault, Point
from bridgecore.testing.client import HttpAnswer
from bridgecore.testing.faults import Alter, Change
from bridgecore.testing.network import ByteClient
from bridgecore.testing.store import VirtualStore
from tests.endpoint_clients import AGE, Historian, Talker, user
from tests.endpoint_world import KEY, SECOND, World, call, request
from tests.http_upstream import HttpUpstream
from tests.replica_world import Cluster, Replica

PATHS = ["/v1/responses/compact", "/v1/responses/input_tokens"]
COUNT = PATHS[1]
NOT_FOUND = (400, "previous_response_not_found")
UNAVAILABLE = (503, "bridge_store_unavailable")
LEASE = 15  # seconds, the default of lease_ttl


def conversation(world: World, turns: int = 2, **fields: Any) -> Talker:
    """A client with a conversation that the upstream does not store."""
    talker = Talker(world, **fields)
    for number in range(1, turns + 1):
        talker.attempt(user(f"say {number}"))
    return talker


def about(talker: Talker, response: str | None = None) -> dict[str, Any]:
    return {"model": "m", "input": "more", "previous_response_id": response or talker.last}


def begin(world: World, body: dict[str, Any], path: str = COUNT, key: str = KEY) -> ByteClient:
    client = world.client()
    client.send(request(body, path=path, key=key))
    return client


def refusal(answer: HttpAnswer) -> tuple[int, str]:
    return answer.status, answer.error["code"]


def looked_up(replica: Replica) -> list[bool]:
    """For each look-up of a replica, whether it has asked for the whole transcript."""
    return [asked.load for asked in replica.store.asked if isinstance(asked, LookUp)]


def whole(talker: Talker) -> list[str]:
    """The texts of the latest request about a context, as the upstream got it."""
    body = HttpAnswer(200, {}, talker.world.emulator.http_requests[-1].body).json
    assert "previous_response_id" not in body
    return [text for item in body["input"] for text in texts_of(item)]


def texts_of(item: dict[str, Any]) -> list[str]:
    content = item["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content]


def texts(turns: int) -> list[str]:
    said = [(f"say {n}", f"turn {n}: say {n}") for n in range(1, turns + 1)]
    return [*(text for pair in said for text in pair), "more"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("end", ["drain", "kill"])
def test_a_context_is_known_after_a_restart(path: str, end: str) -> None:
    cluster = Cluster()
    first = cluster.start()
    talker = conversation(first)
    getattr(first, end)()
    second = cluster.start()  # after a kill it waits for a lease, which reading does not need
    answer = call(second, "POST", path, about(talker))
    assert answer.status == 200, answer.body
    assert whole(talker) == texts(2)


@pytest.mark.parametrize("forwards", [False, True])
def test_a_context_is_known_to_each_replica_and_stays_its_owners(forwards: bool) -> None:
    cluster = Cluster(forwards=forwards)
    first, second = cluster.start("a"), cluster.start("b")
    talker = conversation(first)
    frames = len(cluster.emulator.requests)
    for turns in (2, 3):
        assert call(second, "POST", COUNT, about(talker)).status == 200
        assert whole(talker) == texts(turns)
        if turns == 2:
            talker.attempt(user("say 3"))  # its owner has kept the conversation
    # The upstream knew what was continued: the connection of the first turns was used.
    assert cluster.emulator.requests[frames].body["previous_response_id"]
    assert talker.outcomes == ["200"] * 3


def test_a_context_that_was_evicted_is_read_back() -> None:
    cluster = Cluster()
    replica = cluster.start(transcript_bytes=300_000, transcript_scope_bytes=100_000)
    talker = conversation(replica)
    for number in range(10):  # other clients, until there is no room for the first
        Talker(replica, key=f"sk-{number}").attempt(user("x" * 30_000))
    assert call(replica, "POST", COUNT, about(talker)).status == 200
    assert whole(talker) == texts(2)
    assert looked_up(replica) == [True]  # it was not there
    frames = len(cluster.emulator.requests)
    talker.attempt(user("say 3"))
    assert talker.outcomes == ["200"] * 3
    # On the connection that has the context: reading it back has not parted it from its session.
    assert cluster.emulator.requests[frames].body["previous_response_id"]


def test_a_context_that_was_read_is_kept() -> None:
    """The next request does not load it again, and a turn finds it, too."""
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("b")
    talker = conversation(first)
    for _ in range(2):
        assert call(second, "POST", COUNT, about(talker)).status == 200
    assert looked_up(second) == [True, False]
    first.drain()
    talker.world = second
    talker.attempt(user("say 3"))
    assert talker.outcomes == ["200"] * 3


def test_a_context_that_was_read_is_forgotten_when_its_time_is_over() -> None:
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("b")
    talker = conversation(first)
    assert call(second, "POST", COUNT, about(talker)).status == 200
    assert second.endpoint.bridge.memory.size > 0
    second.advance(AGE + 1)
    assert second.endpoint.bridge.memory.size == 0


def test_a_store_that_is_silent_is_a_503_and_sends_nothing() -> None:
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("b")
    talker = conversation(first)
    second.store.answers = False
    client = begin(second, about(talker))
    second.advance(1.9)
    assert not client.received
    second.advance(0.2)
    refused = second.read(client)
    assert refusal(refused) == UNAVAILABLE
    assert "retry-after" in refused.headers
    assert "passage.failed" in second.logged()
    assert cluster.emulator.http_requests == []
    client.send(request({"model": "m", "input": "x"}, path=COUNT))  # the connection is kept
    assert second.net.open_connections(second.endpoint) > 0
    second.store.answers = True
    assert call(second, "POST", COUNT, about(talker)).status == 200


def test_an_answer_that_comes_too_late_is_ignored() -> None:
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("b")
    talker = conversation(first)
    second.store.latency = 2 * SECOND
    client = begin(second, about(talker))
    second.advance(5)
    assert refusal(second.read(client)) == UNAVAILABLE
    assert cluster.emulator.http_requests == []


def test_what_is_owned_here_does_not_depend_on_the_store() -> None:
    cluster = Cluster()
    replica = cluster.start()
    talker = conversation(replica)
    replica.store.answers = False
    client = begin(replica, about(talker))
    replica.advance(2.1)
    assert replica.read(client).status == 200
    assert whole(talker) == texts(2)
    replica.advance(20)  # the lease is over: another replica may have gone on with it
    client = begin(replica, about(talker))
    replica.advance(2.1)
    assert refusal(replica.read(client)) == UNAVAILABLE


def test_what_the_upstream_stores_is_its_own_to_know() -> None:
    cluster = Cluster()
    replica = cluster.start()
    talker = conversation(replica, store=True)
    replica.store.answers = False
    assert call(replica, "POST", COUNT, about(talker)).status == 200
    sent = HttpAnswer(200, {}, cluster.emulator.http_requests[-1].body).json
    assert sent["previous_response_id"] == talker.last


def test_what_is_not_durable_yet_is_known_where_it_is() -> None:
    cluster = Cluster()
    replica = cluster.start()
    replica.store.answers = False
    talker = Talker(replica)
    client = talker.begin([user("say 1")], None)
    replica.advance(2.1)
    talker.end(client, [user("say 1")], None)
    replica.store.answers = True
    assert len(cluster.model) == 0
    assert call(replica, "POST", COUNT, about(talker)).status == 200
    assert whole(talker) == texts(1)


def test_a_foreign_credential_sees_what_an_unknown_id_shows() -> None:
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("b")
    talker = conversation(first)
    foreign = call(second, "POST", COUNT, about(talker), key="sk-other")
    unknown = call(second, "POST", COUNT, about(talker, "resp_unknown"), key="sk-other")
    assert refusal(foreign) == refusal(unknown) == NOT_FOUND
    last = str(talker.last).encode()
    assert foreign.body.replace(last, b"ID") == unknown.body.replace(b"resp_unknown", b"ID")
    assert second.endpoint.bridge.memory.size == 0


# ------------------------------------------------------------------ deleting


@pytest.mark.parametrize("at", ["its owner", "another"])
@pytest.mark.parametrize("path", PATHS)
def test_a_response_that_was_deleted_at_one_replica_is_not_found_at_another(
    at: str, path: str
) -> None:
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("b")
    talker = conversation(first, store=True)
    here, there = (first, second) if at == "its owner" else (second, first)
    deleted = call(here, "DELETE", f"/v1/responses/{talker.last}")
    assert deleted.json["deleted"] is True
    assert refusal(call(there, "POST", path, about(talker))) == NOT_FOUND


class Quiet(VirtualStore):
    """``quiet``: it does not answer whether it was purged."""

    quiet = False

    def __call__(self, question: Question, answered: Callable[[StoreAnswer], None]) -> None:
        about = question.scope if isinstance(question, LookUp) else ""
        if not (self.quiet and about == PURGE):
            super().__call__(question, answered)


class Agreeable(Cluster):
    """Replicas ``a`` and ``b`` with an HTTP API beside the upstream that agrees to each request,
    also to delete what it does not store. Then only the bridge knows that a response is gone."""

    kind = Quiet

    def __init__(self, *, forwards: bool = False) -> None:
        super().__init__(forwards=forwards)
        self.api = HttpUpstream()
        self.net.add(self.api, "api", 80)
        base = {"upstream_http": HttpUrl.parse("http://api/v1")}
        self.a, self.b = self.start("a", **base), self.start("b", **base)

    def agree(self, replica: Replica, method: str, path: str, body: object = None) -> Any:
        """Carry out a request; its body as the API got it."""
        client = replica.client()
        client.send(request(body, method=method, path=path))
        sent = bytes(self.api.received[self.api.latest])
        agreed = tp.Send(self.api.latest, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        self.net.carry_out(self.api, [agreed, tp.Close(self.api.latest)])
        assert replica.read(client).status == 200
        content = sent.partition(b"\r\n\r\n")[2]
        return HttpAnswer(200, {}, content).json if content else None

    def delete(self, replica: Replica, response: str | None) -> None:
        self.agree(replica, "DELETE", f"/v1/responses/{response}")

    def has(self, replica: Replica, talker: Talker) -> bool:
        """Whether a replica puts the whole context in place of the id of the latest response."""
        sent = self.agree(replica, "POST", COUNT, about(talker))
        assert ("previous_response_id" in sent) is (sent["input"] == "more")
        return "previous_response_id" not in sent


@pytest.mark.parametrize("at", ["its owner", "another"])
@pytest.mark.parametrize("read", [False, True], ids=["not read before", "read before"])
def test_no_replica_sends_a_context_that_was_deleted_at_another(at: str, read: bool) -> None:
    cluster = Agreeable()
    talker = conversation(cluster.a)
    if read:  # the other replica has it in memory, too
        assert cluster.has(cluster.b, talker)
    cluster.delete(cluster.a if at == "its owner" else cluster.b, talker.last)
    assert not cluster.has(cluster.b, talker)
    assert not cluster.has(cluster.a, talker)


def test_a_turn_does_not_continue_from_memory_what_was_deleted_elsewhere() -> None:
    """A replica has the context of a session that has ended, and claims its conversation again."""
    cluster = Agreeable()
    talker = conversation(cluster.a)
    cluster.a.advance(901)
    cluster.delete(cluster.b, talker.last)
    refused = cluster.a.ask("say 3", store=False, previous_response_id=talker.last)
    assert refusal(refused) == NOT_FOUND


def test_an_owner_that_has_seen_a_deletion_continues_no_more() -> None:
    cluster = Agreeable()
    talker = conversation(cluster.a)
    cluster.delete(cluster.b, talker.last)
    assert not cluster.has(cluster.a, talker)
    refused = cluster.a.ask("say 3", store=False, previous_response_id=talker.last)
    assert refusal(refused) == NOT_FOUND


@pytest.mark.parametrize("last", [True, False], ids=["the last response", "an earlier one"])
def test_an_owner_is_told_of_a_deletion(last: bool) -> None:
    """It has the response in memory and on a connection, so it would not ask the store."""
    cluster = Agreeable()
    talker = conversation(cluster.a, 1)
    gone = talker.last
    talker.attempt(user("say 2"))
    kept = talker.last
    if last:
        gone, kept = kept, gone
    cluster.delete(cluster.b, gone)
    cluster.a.advance(LEASE / 3)  # a renewal
    refused = cluster.a.ask("more", store=False, previous_response_id=gone)
    assert refusal(refused) == NOT_FOUND
    asked = len(cluster.a.store.asked)
    assert cluster.a.ask("more", store=False, previous_response_id=kept).status == 200
    # Only what was deleted is asked for; a turn ends with a commit.
    assert [type(each) for each in cluster.a.store.asked[asked:]] == [Commit]


def test_a_deletion_is_noticed_if_the_lease_was_lost_in_the_meantime() -> None:
    """Notices are not told for ever. A turn that began under the earlier lease still runs, so its
    session is there, when its conversation is claimed once more."""
    cluster = Agreeable()
    talker = conversation(cluster.a, 1)
    gone = talker.last
    talker.attempt(user("say 2"))
    cluster.emulator.delta_interval = 400 * SECOND
    talker.begin([user("think")], talker.last)
    cluster.a.store.answers = False
    cluster.a.advance(LEASE)
    cluster.delete(cluster.b, gone)
    cluster.b.advance(3 * LEASE)
    cluster.a.store.answers = True
    cluster.a.advance(LEASE)
    cluster.emulator.delta_interval = 0
    talker.attempt(user("say 3"))
    refused = cluster.a.ask("more", store=False, previous_response_id=gone)
    assert refusal(refused) == NOT_FOUND
    assert talker.outcomes == ["200"] * 3


@pytest.mark.parametrize("before", [True, False], ids=["drain", "renewal"])
def test_a_late_commit_does_not_bring_back_what_was_deleted_elsewhere(before: bool) -> None:
    """The store did not answer at the end of the turn; another replica deletes the response before
    it does."""
    cluster = Agreeable()
    talker = Talker(cluster.a)
    talker.attempt(user("say 1"))
    cluster.a.store.fails = "disk full"
    talker.attempt(user("say 2"))
    assert talker.outcomes == ["200"] * 2
    cluster.delete(cluster.b, talker.last)
    cluster.a.store.fails = ""
    if before:
        cluster.a.drain()
    cluster.a.advance(LEASE)
    # One that has not deleted it itself knows of it what the store says.
    replica = cluster.start("c") if before else cluster.a
    refused = replica.ask("more", store=False, previous_response_id=talker.last)
    assert refusal(refused) == NOT_FOUND


def purge(cluster: Cluster) -> None:
    """What ``bridgecore store purge --all`` does, at this moment."""
    now, record, purger = cluster.net.now, purge_record(), Owner("purge", "1")
    cluster.model.handle(Sweep(purger, 0), now + 1)
    cluster.model.handle(Commit(purger, b"purge", 0, (record,)), now + 1)


@pytest.mark.parametrize("forwards", [False, True], ids=["owner", "forwarded"])
def test_what_was_purged_is_not_continued_from_memory(forwards: bool) -> None:
    """Once the owner has renewed its lease. What comes after the purge is stored as ever."""
    cluster = Agreeable(forwards=forwards)
    talker = conversation(cluster.a)
    if forwards:
        talker.world = cluster.b
        talker.attempt(user("say 3"))  # from now on this replica knows the owner
    purge(cluster)
    cluster.a.advance(LEASE / 3)  # a renewal
    refused = talker.world.ask("more", store=False, previous_response_id=talker.last)
    assert refusal(refused) == NOT_FOUND
    assert not cluster.has(cluster.a, talker)
    again = conversation(cluster.a)
    cluster.a.kill()
    cluster.b.advance(2 * LEASE)
    assert cluster.b.ask("more", store=False, previous_response_id=again.last).status == 200


def test_a_turn_that_continues_what_was_purged_does_not_store_it_again() -> None:
    """Before its owner knows. Its client is answered, and begins anew with the next turn."""
    cluster = Agreeable(forwards=True)
    talker = conversation(cluster.a)
    gone = talker.last
    purge(cluster)
    talker.attempt(user("say 3"))
    assert talker.outcomes[-1] == "200"
    # The record, and what was said since, which cannot be continued.
    assert len(cluster.model) == 2
    for replica in (cluster.a, cluster.b):
        for response in (talker.last, gone):
            refused = replica.ask("more", store=False, previous_response_id=response)
            assert refusal(refused) == NOT_FOUND
    assert "store.lost_responses" not in cluster.a.logged()
    assert len(cluster.model) == 2


def test_a_history_that_is_repeated_after_a_purge_is_stored_as_a_new_one() -> None:
    """It comes from its client, who can go on with it."""
    cluster = Agreeable()
    historian = Historian(cluster.a)
    historian.attempt(user("one"))
    purge(cluster)
    historian.attempt(user("two"))
    answer = historian.attempt(user("three"))
    cluster.a.kill()
    cluster.b.advance(2 * LEASE)
    last = answer.response["id"]
    assert cluster.b.ask("more", store=False, previous_response_id=last).status == 200


@pytest.mark.parametrize("what", ["a turn", "a request", "a commit"])
def test_nothing_is_guessed_about_a_purge_if_the_store_is_silent(what: str) -> None:
    cluster = Agreeable()
    talker = conversation(cluster.a)
    purge(cluster)
    if what != "a commit":
        cluster.a.advance(LEASE / 3)
    store = cluster.a.store
    assert isinstance(store, Quiet)
    store.quiet = True
    if what == "a turn":
        client = cluster.a.start("more", store=False, previous_response_id=talker.last)
        cluster.a.advance(3)
        assert refusal(cluster.a.read(client)) == UNAVAILABLE
    elif what == "a request":
        client = begin(cluster.a, about(talker))
        cluster.a.advance(3)
        assert refusal(cluster.a.read(client)) == UNAVAILABLE
    else:
        client = talker.begin([user("say 3")], talker.last)
        cluster.a.advance(3)
        answer = cluster.a.read(client)
        assert answer.status == 200
        assert "store.unavailable" in cluster.a.logged()
    store.quiet = False
    cluster.a.advance(LEASE)
    # It is committed once more, and now it is known that it cannot be continued.
    assert len(cluster.model) == 1 + (what == "a commit")
    refused = cluster.a.ask("more", store=False, previous_response_id=talker.last)
    assert refusal(refused) == NOT_FOUND


def test_a_response_that_is_doubted_without_reason_is_continued() -> None:
    """The upstream has used the id of a deleted response again. It is asked for once."""
    cluster = Agreeable()
    talker = conversation(cluster.a, 1)
    cluster.delete(cluster.b, talker.last)
    again = Fault(Point.BEFORE_CREATED, Alter(Change.CHAIN_ID))
    cluster.emulator.faults.add(2, again)
    client = cluster.a.start("say 2", store=False, previous_response_id=talker.last)
    assert cluster.a.read(client).response["id"] == talker.last
    cluster.a.advance(LEASE / 3)
    asked = len(cluster.a.store.asked)
    assert cluster.a.ask("more", store=False, previous_response_id=talker.last).status == 200
    assert cluster.a.ask("more", store=False, previous_response_id=talker.last).status == 200
    kinds = [type(each) for each in cluster.a.store.asked[asked:]]
    assert kinds.count(Resume) == 1


def test_a_request_about_a_context_settles_whether_it_was_deleted_for_the_next_turn() -> None:
    """The store has just been asked. If it fails then, the turn does not depend on it."""
    cluster = Agreeable()
    talker = conversation(cluster.a)
    cluster.model.handle(Commit(Owner("p", "1"), b"p", 0, (purge_record(),)), cluster.net.now + 1)
    cluster.a.advance(LEASE / 3)  # a renewal: from now on anything may be deleted
    assert cluster.has(cluster.a, talker)
    cluster.a.store.fails = "disk full"
    talker.attempt(user("say 3"))
    assert talker.outcomes == ["200"] * 3
    assert Resume not in [type(each) for each in cluster.a.store.asked]


def test_a_turn_that_is_forwarded_by_habit_continues_nothing_deleted() -> None:
    """Where a client has deleted it, its owner is not asked any more."""
    cluster = Agreeable(forwards=True)
    talker = conversation(cluster.a, 1)
    talker.world = cluster.b
    talker.attempt(user("say 2"))  # forwarded: from now on this replica knows the owner
    cluster.delete(cluster.b, talker.last)
    refused = cluster.b.ask("more", store=False, previous_response_id=talker.last)
    assert refusal(refused) == NOT_FOUND


def test_a_response_under_the_id_of_a_deleted_one_is_kept() -> None:
    """The upstream has used the id again, and the store does not have the later response yet."""
    cluster = Agreeable()
    talker = conversation(cluster.a, 1)
    cluster.delete(cluster.b, talker.last)
    cluster.a.store.answers = False
    again = Fault(Point.BEFORE_CREATED, Alter(Change.CHAIN_ID))
    cluster.emulator.faults.add(2, again)
    client = cluster.a.start("say 2", store=False, previous_response_id=talker.last)
    cluster.a.advance(2.1)
    assert cluster.a.read(client).response["id"] == talker.last
    cluster.a.store.answers = True
    assert cluster.has(cluster.a, talker)


# ------------------------------------------------------------------ one id for a chain


@pytest.mark.parametrize("then", ["request", "turn"])
def test_what_another_replica_has_added_under_the_same_id_is_read(then: str) -> None:
    """Some upstreams use one id for all responses of a chain: what is held under it can be old."""
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("b")
    talker = conversation(first, 1)
    assert call(second, "POST", COUNT, about(talker)).status == 200
    assert whole(talker) == texts(1)
    cluster.emulator.faults.add(2, Fault(Point.BEFORE_CREATED, Alter(Change.CHAIN_ID)))
    again = first.ask("say 2", store=False, previous_response_id=talker.last).response
    assert again["id"] == talker.last
    if then == "request":
        assert call(second, "POST", COUNT, about(talker)).status == 200
        assert whole(talker) == texts(2)
    else:
        first.drain()
        answer = second.ask("more", store=False, previous_response_id=talker.last)
        assert answer.status == 200
        said = [item["content"] for item in cluster.emulator.requests[-1].body["input"]]
        assert len(said) == len(texts(2))


# ------------------------------------------------------------------ clients and drains


def with_a_slow_store() -> tuple[Cluster, Replica, Talker]:
    """Two replicas whose store takes half a second, the second of them, and a conversation of one
    turn with the first."""
    cluster = Cluster(latency=SECOND // 2)
    first, second = cluster.start("a"), cluster.start("b")
    first.advance(2)
    talker = Talker(first)
    client = talker.begin([user("say 1")], None)
    first.advance(2)
    talker.end(client, [user("say 1")], None)
    return cluster, second, talker


def test_a_client_that_leaves_while_the_store_is_asked_leaves_nothing() -> None:
    cluster, second, talker = with_a_slow_store()
    client = begin(second, about(talker))
    client.abort()
    second.advance(5)
    assert cluster.emulator.http_requests == []
    assert second.endpoint.clients == 0
    assert second.net.open_connections(second.endpoint) == 0


def test_requests_on_one_connection_wait_for_each_other() -> None:
    cluster, second, talker = with_a_slow_store()
    client = second.client()
    for path in PATHS:
        client.send(request(about(talker), path=path))
    second.advance(5)
    assert [one.path for one in cluster.emulator.http_requests] == PATHS


def test_a_drain_waits_for_a_request_whose_store_is_asked() -> None:
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("b")
    talker = conversation(first)
    second.store.latency = SECOND // 2
    client = begin(second, about(talker))
    second.drain()
    assert second.endpoint not in cluster.net.stopped
    second.advance(3)
    assert second.read(client).status == 200
    assert second.endpoint in cluster.net.stopped


# ------------------------------------------------------------------ whatever happens before


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["turn", "turn", "request", "branch"]), st.integers(0, 1)),
            st.tuples(st.sampled_from(["drain", "kill"]), st.integers(0, 1)),
            st.tuples(st.just("wait"), st.sampled_from([1, 20, 901])),
            st.tuples(st.just("crowd"), st.integers(0, 1)),
        ),
        max_size=20,
    ),
    st.booleans(),
)
def test_every_replica_knows_every_context_at_any_time(
    steps: list[tuple[str, int]], forwards: bool
) -> None:
    """What a request about a context sends upstream is the history that its client has seen."""
    cluster = Cluster(forwards=forwards)
    limits = {"transcript_bytes": 200_000, "transcript_scope_bytes": 100_000}
    replicas = [cluster.start(name, **limits) for name in "ab"]
    talker, others = Talker(replicas[0]), 0
    for number, (what, at) in enumerate(steps):
        if what == "wait":
            replicas[0].advance(at)
            continue
        replica = talker.world = replicas[at]
        if what == "turn":
            talker.attempt(user(f"say {number}"))
        elif what == "branch":
            talker.attempt(user(f"say {number}"), after=next(iter([*talker.past][1:]), None))
        elif what == "crowd":
            for _ in range(4):
                others += 1
                Talker(replica, key=f"sk-{others}").attempt(user("x" * 30_000))
        elif what != "request":
            getattr(replica, what)()
            # Under a name of its own: it has a lease at once, and what it answers is durable.
            replicas[at] = cluster.start(f"{number}", **limits)
        elif talker.last is not None:
            assert call(replica, "POST", COUNT, about(talker)).status == 200
            believed = [*talker.past[talker.last], user("more")]
            assert whole(talker) == [text for each in believed for text in texts_of(each)]
    replicas[0].advance(20)
    for replica in replicas:
        for response, past in talker.past.items():
            if response is not None:
                assert call(replica, "POST", COUNT, about(talker, response)).status == 200
                assert whole(talker)[:-1] == [text for each in past for text in texts_of(each)]
