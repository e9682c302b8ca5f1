"""Endpoints that share a store: what a client was shown can be continued by each, and later.

What belongs here: restarts, kills, drains and stores that are gone, seen by clients of whole
endpoints in virtual time. The rules of leases and claims are tested in tests/ownership.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bridgecore import transport as tp
from bridgecore.errors import LocalProtocolError
from bridgecore.ownership.store import Answer, Commit, Done, Question
from bridgecore.testing import Point, Silence
from bridgecore.testing.store import VirtualStore
from tests.endpoint_clients import Talker, strike, user
from tests.endpoint_world import SECOND, World, request
from tests.replica_world import Cluster, Replica

MS = SECOND // 1000


def moved(talker: Talker, to: World) -> Talker:
    """The same client, which another replica serves from now on."""
    talker.world = to
    return talker


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on_after_a_restart(store: bool, stream: bool) -> None:
    cluster = Cluster()
    talker = Talker(cluster.start(), store=store, stream=stream)
    say(talker, "one")
    say(talker, "two")
    talker.world.drain()
    assert cluster.net.stopped == [talker.world.endpoint]
    say(moved(talker, cluster.start()), "three")
    assert talker.outcomes == ["200"] * 3


def test_a_conversation_goes_on_after_a_kill() -> None:
    cluster = Cluster()
    first = cluster.start()
    talker = Talker(first)
    say(talker, "one")
    first.kill()
    second = cluster.start("b")
    moved(talker, second)
    refused = second.ask("two", previous_response_id=talker.last)
    assert refused.status == 502
    assert refused.error["code"] == "bridge_owner_unreachable"
    wait = int(refused.headers["retry-after"])
    assert 1 <= wait <= 15
    second.advance(wait)
    say(talker, "two")
    assert talker.outcomes[-1] == "200"


def test_a_draining_replica_releases_what_is_idle_at_once() -> None:
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("b")
    idle, busy = Talker(first), Talker(first, key="sk-other")
    say(idle, "one")
    strike(first, Point.AFTER_CREATED, Silence())
    running = busy.begin([user("one")], None)
    first.drain()
    assert first.endpoint not in cluster.net.stopped
    say(moved(idle, second), "two")
    assert idle.outcomes == ["200", "200"]
    assert not running.closed


def test_the_end_of_a_turn_waits_for_its_commit() -> None:
    cluster = Cluster(latency=50 * MS)
    replica = cluster.start()
    replica.advance(1)
    client = replica.start("one")
    assert not replica.read(client).complete
    replica.advance(0.05)
    assert len(cluster.model) == 1
    assert not replica.read(client).complete
    replica.advance(0.05)
    assert replica.read(client).complete


def test_no_first_event_waits_for_the_store() -> None:
    """Neither that of a new conversation, nor that of one that is owned here."""
    cluster = Cluster(latency=SECOND)
    replica = cluster.start()
    replica.advance(3)
    strike(replica, Point.AFTER_CREATED, Silence())
    first = replica.start("one", key="sk-1")
    assert [event.name for event in replica.read(first).events] == ["response.created"]
    talker = Talker(replica)
    with_delay(talker, "one")
    strike(replica, Point.AFTER_CREATED, Silence())
    client = talker.begin([user("two")], talker.last)
    assert [event.name for event in replica.read(client).events] == ["response.created"]


def test_a_turn_that_ends_before_the_lease_has_begun_is_durable() -> None:
    cluster = Cluster(latency=50 * MS)
    replica = cluster.start()
    client = replica.start("one")
    replica.advance(0.19)
    assert not replica.read(client).complete
    replica.advance(0.02)
    assert replica.read(client).complete
    assert len(cluster.model) == 1


def test_a_silent_store_delays_the_end_by_its_timeout_and_is_logged_once() -> None:
    cluster = Cluster()
    replica = cluster.start()
    replica.store.silent = True
    clients = [replica.start("one", key="sk-1"), replica.start("two", key="sk-2")]
    replica.advance(1.9)
    assert not any(replica.read(client).complete for client in clients)
    replica.advance(0.2)
    assert all(replica.read(client).complete for client in clients)
    assert replica.logged().count("store.unavailable") == 1
    replica.store.silent = False
    replica.start("three", key="sk-3")
    assert replica.logged().count("store.back") == 1


def test_what_was_not_durable_is_committed_with_the_next_turn() -> None:
    cluster = Cluster()
    replica = cluster.start()
    talker = Talker(replica)
    say(talker, "one")
    replica.store.answers = False
    with_delay(talker, "two")
    replica.store.answers = True
    replica.advance(30)  # the lease was lost, and is begun again
    say(talker, "three")
    assert len(cluster.model) == 3
    replica.kill()
    moved(talker, cluster.start("b"))
    talker.world.advance(16)
    say(talker, "four")
    assert talker.outcomes[-1] == "200"


@pytest.mark.parametrize("outage", [4, 30])
def test_what_was_not_durable_is_committed_when_the_store_is_back(outage: int) -> None:
    """Without another turn of its conversation; whether the lease was lost meanwhile, or not."""
    cluster = Cluster()
    replica = cluster.start()
    talker, other = Talker(replica), Talker(replica, key="sk-other")
    say(talker, "one")
    replica.store.answers = False
    with_delay(talker, "two")
    replica.advance(outage)
    replica.store.answers = True
    replica.advance(5)
    say(other, "hello")
    replica.kill()
    moved(talker, cluster.start("b"))
    talker.world.advance(16)
    say(talker, "three")
    assert talker.outcomes == ["200"] * 3
    assert len(cluster.model) == 4


@pytest.mark.parametrize("kept", [0, 1])
def test_what_a_failover_has_lost_is_committed_again_with_what_continues_it(kept: int) -> None:
    """The store went back to a copy without a response; its owner has shown the next one as
    durable, and is then killed. If the conversation is lost, too, it begins anew."""
    cluster = Cluster()
    replica = cluster.start()
    talker, other = Talker(replica), Talker(replica, key="sk-other")
    say(other, "hello")
    backups = [cluster.model.copy()]
    say(talker, "one")
    backups.append(cluster.model.copy())
    say(talker, "two")
    cluster.model = replica.store.model = backups[kept]
    say(talker, "three")
    say(other, "still there")
    assert len(cluster.model) == 5
    assert replica.logged().count("store.lost_responses") == 1
    assert "turn.not_durable" not in replica.logged()
    replica.kill()
    moved(talker, cluster.start("b"))
    talker.world.advance(16)
    say(talker, "four")
    assert talker.outcomes == ["200"] * 4


@pytest.mark.parametrize("ends", ["kill", "drain"])
def test_a_store_that_is_back_gets_what_it_missed_without_another_turn(ends: str) -> None:
    """The lease goes on, and no turn ends; or the process ends before it is renewed."""
    cluster = Cluster()
    replica = cluster.start(metrics=True)
    talker = Talker(replica)
    say(talker, "one")
    replica.store.answers = False
    with_delay(talker, "two")
    replica.store.answers = True
    if ends == "kill":
        replica.advance(7)  # a third of the lease, and the time for the question that is open
        replica.kill()
    else:
        replica.drain()
        replica.advance(3)
        assert cluster.net.stopped == [replica.endpoint]
    moved(talker, cluster.start("b"))
    talker.world.advance(16)
    say(talker, "three")
    assert talker.outcomes == ["200"] * 3


def test_the_log_says_why_a_turn_is_not_durable() -> None:
    cluster = Cluster()
    replica = cluster.start()
    talker = Talker(replica)
    say(talker, "one")
    replica.store.fails = "the disk is full"
    say(talker, "two")
    (said,) = [log for log in cluster.net.logs if log.event == "store.unavailable"]
    assert said.fields["reason"] == "the disk is full"


def test_a_conversation_that_is_too_large_to_be_held_is_said_to_be_not_durable() -> None:
    cluster = Cluster()
    replica = cluster.start(transcript_bytes=30_000, transcript_scope_bytes=30_000)
    talker = Talker(replica)
    for _ in range(5):
        say(talker, "x" * 9_000)
    lines = [log for log in cluster.net.logs if log.event == "turn.not_durable"]
    assert [log.fields["cause"] for log in lines] == ["no transcript"] * 4
    assert talker.outcomes == ["200"] * 5  # its connection knows it


def test_what_is_too_old_is_deleted_although_no_turn_ends() -> None:
    cluster = Cluster()
    replica = cluster.start(transcript_age=60 * SECOND)
    say(Talker(replica), "one")
    replica.advance(130)
    assert len(cluster.model) == 0


def drained(cluster: Cluster) -> tuple[Talker, Replica]:
    """A client whose replica has drained after one turn, and another replica."""
    first = cluster.start("a")
    talker = Talker(first)
    say(talker, "one")
    first.drain()
    return talker, cluster.start("b")


def say(talker: Talker, text: str) -> None:
    """A turn that is answered at once."""
    talker.attempt(user(text))


def with_delay(talker: Talker, text: str) -> None:
    """A turn whose end is not shown at once."""
    client = talker.world.client()
    client.send(request(talker.body([user(text)], talker.last)))
    talker.world.advance(3)
    answer = talker.world.read(client)
    talker.note(answer, [user(text)], talker.last)


def test_a_claim_of_what_is_held_leaves_its_transcript_whole() -> None:
    """The store is then asked for the conversation only, and names its last response."""
    cluster = Cluster()
    replica = cluster.start()
    talker = Talker(replica)
    for _ in range(4):
        say(talker, "more")
        replica.advance(901)  # its session is over, and given back
    assert talker.outcomes == ["200"] * 4


def test_what_was_not_used_for_too_long_is_deleted() -> None:
    cluster = Cluster()
    replica = cluster.start(transcript_age=3600 * SECOND)
    old, kept = Talker(replica), Talker(replica)
    say(old, "one")
    say(kept, "one")
    for _ in range(5):
        replica.advance(900)
        say(kept, "more")
    assert len(cluster.model) == len(kept.outcomes)  # only a path that is still used


@pytest.mark.parametrize("outage", [False, True], ids=["at once", "after an outage"])
@pytest.mark.parametrize("last", [True, False], ids=["the last response", "an earlier one"])
def test_a_deleted_response_is_not_continued_by_another_replica(last: bool, outage: bool) -> None:
    cluster = Cluster()
    replica = cluster.start("a")
    talker = Talker(replica, store=True)
    say(talker, "one")
    gone = first = talker.last
    say(talker, "two")
    if last:
        gone = talker.last
    replica.store.answers = not outage
    client = replica.client()
    client.send(request(None, method="DELETE", path=f"/v1/responses/{gone}"))
    assert b'"deleted":true' in bytes(client.received)
    if outage:
        replica.advance(5)  # the store does not answer in time
        replica.store.answers = True
        say(Talker(replica, key="sk-other"), "hello")  # and its commit shows that the store is back
    replica.drain()
    other = cluster.start("b")
    moved(talker, other)
    refused = other.ask("three", previous_response_id=gone)
    assert (refused.status, refused.error["code"]) == (400, "previous_response_not_found")
    if last:
        assert talker.attempt(user("four"), after=first).status == 200
    else:  # the context of the response after it still has its items
        say(talker, "three")


class LateCommits(VirtualStore):
    """Carries out commits, and answers them only when that is asked for. Other questions are
    answered meanwhile, as by a store that has several connections."""

    late: list[Callable[[], None]]

    def __call__(self, question: Question, answered: Callable[[Answer], None]) -> None:
        self.late = getattr(self, "late", [])
        if isinstance(question, Commit) and self.answers:
            answer = self.model.handle(question, self._network.now)
            self.late.append(lambda: answered(answer))
        else:
            super().__call__(question, answered)


def test_a_conversation_that_a_turn_has_claimed_is_not_given_back_by_an_earlier_commit() -> None:
    """A response that was not durable is committed by itself when there is a lease again, to a
    conversation that no session has. A turn can claim that before the commit is answered."""
    cluster = Cluster()
    cluster.kind = LateCommits
    replica = cluster.start("a")
    assert isinstance(replica.store, LateCommits)
    replica.store.answers = False
    talker = Talker(replica)
    with_delay(talker, "one")
    replica.advance(15)  # its lease is over
    replica.store.answers = True
    while not replica.store.late:
        replica.advance(0.1)
    cluster.emulator.delta_interval = SECOND
    replica.start("two", store=False, previous_response_id=talker.last)
    (committed,) = replica.store.late
    committed()
    other = cluster.start("b")
    refused = other.ask("three", store=False, previous_response_id=talker.last)
    assert (refused.status, refused.error["code"]) == (502, "bridge_owner_unreachable")


def test_a_turn_that_outlives_what_it_continues_stores_all_of_it() -> None:
    """The store deletes a response that is not used there, while it is used here."""
    cluster = Cluster()
    # Sessions that last, so that no claim of the conversation counts as a use in the store.
    ages = {"transcript_age": 3600 * SECOND, "session_idle": 36_000 * SECOND}
    replica, other = (cluster.start(name, **ages) for name in "ab")
    talker = Talker(replica)
    say(talker, "one")
    replica.advance(3000)
    cluster.emulator.delta_interval = 400 * SECOND
    client = talker.begin([user("two")], talker.last)
    replica.advance(900)
    cluster.emulator.delta_interval = 0
    say(Talker(other, key="sk-other"), "hello")  # and with its commit, a sweep
    assert len(cluster.model) == 1
    replica.advance(2000)
    talker.end(client, [user("two")], talker.last)
    replica.kill()
    other.advance(16)
    say(moved(talker, other), "three")
    assert talker.outcomes == ["200"] * 3


@pytest.mark.parametrize("later", [15, 901])
def test_a_response_that_was_unknown_is_looked_up_again(later: int) -> None:
    """A miss is no knowledge: the store may get the response later. The session that it was about
    may still exist then, or not."""
    cluster = Cluster(forwards=True)
    first, second = cluster.start("a"), cluster.start("b")
    talker = Talker(first)
    first.store.answers = False
    with_delay(talker, "one")
    one = talker.last
    missed = second.ask("two", store=False, previous_response_id=one)
    assert missed.status == 400
    first.store.answers = True
    first.advance(later)
    say(talker, "two")  # and with it, what was missing
    first.drain()
    assert moved(talker, second).attempt(user("three"), after=one).status == 200


def test_a_store_that_is_gone_is_a_503_for_what_only_it_knows() -> None:
    talker, second = drained(Cluster())
    second.store.answers = False
    client = second.start("two", previous_response_id=talker.last)
    second.advance(2.1)
    refused = second.read(client)
    assert refused.status == 503
    assert refused.error["code"] == "bridge_store_unavailable"
    assert "retry-after" in refused.headers
    second.store.answers = True
    say(moved(talker, second), "two")


def test_another_credential_does_not_find_a_stored_response() -> None:
    talker, second = drained(Cluster())
    foreign = second.ask("two", key="sk-other", previous_response_id=talker.last)
    unknown = second.ask("two", key="sk-other", previous_response_id="resp_unknown")
    assert foreign.status == unknown.status == 400
    assert foreign.body.replace(str(talker.last).encode(), b"ID") == unknown.body.replace(
        b"resp_unknown", b"ID"
    )


def test_a_replica_that_was_paused_sends_nothing_of_what_another_has_claimed() -> None:
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("b")
    talker = Talker(first)
    say(talker, "one")
    first.store.answers = False  # as if it were paused: it does not renew
    first.advance(20)
    say(moved(talker, second), "two")
    sent = len(cluster.emulator.requests)
    client = first.start("late", previous_response_id=talker.last)
    first.advance(3)
    assert first.read(client).status == 503
    assert len(cluster.emulator.requests) == sent
    assert "replica.lease_lost" in first.logged()


def test_a_turn_that_ends_after_its_lease_is_durable() -> None:
    """Its conversation is anybody's by then, so the response becomes one of its own."""
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("b")
    talker = Talker(first)
    say(talker, "one")
    cluster.emulator.delta_interval = 10 * SECOND
    client = talker.begin([user("two")], talker.last)
    first.store.answers = False
    first.advance(15)
    first.store.answers = True
    assert not first.read(client).complete
    first.advance(30)
    assert "replica.lease_lost" in first.logged()
    talker.end(client, [user("two")], talker.last)
    assert len(cluster.model) == 2
    first.kill()
    cluster.emulator.delta_interval = 0
    say(moved(talker, second), "three")
    assert talker.outcomes == ["200"] * 3


def test_two_replicas_of_one_name_are_reported() -> None:
    cluster = Cluster()
    first, second = cluster.start("a"), cluster.start("a")
    second.advance(40)
    assert "replica.name_in_use" in second.logged()
    talker = Talker(first)
    say(talker, "one")
    assert len(cluster.model) == 1


def test_an_answer_to_a_question_that_was_never_asked_is_a_mistake_of_the_driver() -> None:
    with_store, without = Cluster().start().endpoint, World().endpoint
    for endpoint in (with_store, without):
        with pytest.raises(LocalProtocolError, match="never asked"):
            endpoint.handle(tp.StoreAnswered(7, Done()), 2 * SECOND)
