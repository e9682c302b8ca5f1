"""What every store must do: the meaning of the questions of ``bridgecore.ownership.store``.

What belongs here: what is visible in answers. What is peculiar to a database, what happens when it
is lost, and what can be read in its files needs tests of its own. ``StoreModel`` is the reference:
the last check compares a store with it.
"""

from __future__ import annotations

import hashlib
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import attrs

from bridgecore.ownership import store as st
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.testing.conformance.asking import (
    SCOPE,
    A,
    Asking,
    B,
    commit,
    key_of,
    look_up,
    response,
    resume,
)
from bridgecore.testing.conformance.checks import ConformanceError, equal, expect
from bridgecore.testing.store import StoreModel
from bridgecore.transport.driver import StoreClient

NS = NS_PER_SECOND
SHORT = NS // 5  # a lease whose end a check waits for
LONG = 10_000 * NS
AGAIN = attrs.evolve(A, incarnation="again")
ONE, TWO, THREE, FOUR = (b"payload of %d" % number for number in range(1, 5))
T = TypeVar("T")


class StoreConformance(ABC):
    """Checks of a store. Derive a class from it, and say in ``store`` how to open the store.

    pytest runs the checks if the name of the class begins with ``Test``, ``run_checks`` without
    pytest.

    ``patience``: seconds that a check waits for an answer. ``sequences``: how many sequences of
    questions are compared with the model.
    """

    patience: float = 20.0
    sequences: int = 30

    @abstractmethod
    def store(self) -> AbstractContextManager[StoreClient]:
        """A client of a store that is empty. Entered once by each check, and once for each sequence
        of questions by the last one."""

    @contextmanager
    def _asking(self) -> Iterator[Asking]:
        with self.store() as client:
            yield Asking(client, self.patience)

    # ------------------------------------------------------------ answering

    def test_each_question_is_answered_once(self) -> None:
        """The machine waits for an answer under the number of its question. Questions are asked
        without waiting for the answers of those before."""
        with self._asking() as ask:
            ask.join(A)
            answers: queue.SimpleQueue[tuple[int, st.Answer]] = queue.SimpleQueue()
            for number in range(50):
                ask.client.ask(st.Renew(A, LONG), _numbered(number, answers))
            try:
                found = [answers.get(timeout=self.patience) for _ in range(50)]
            except queue.Empty:
                raise ConformanceError("each question must be answered") from None
            ask.gets(st.Renew(A, LONG), st.Renewed(), "a live lease is renewed")
            found += [answers.get() for _ in range(answers.qsize())]
        expected = [(number, st.Renewed()) for number in range(50)]
        equal(sorted(found, key=lambda each: each[0]), expected, "each question is answered once")

    def test_commits_and_releases_keep_their_order(self) -> None:
        """Of two responses with one id the later one counts, and a release that overtook a commit
        would have it refused. So commits are carried out in the order in which they were asked, and
        a release after the commits before it, also if they are asked without waiting for the
        answers."""
        with self._asking() as ask:
            ask.join(A)
            ask.join(B)
            answers: queue.SimpleQueue[st.Answer] = queue.SimpleQueue()
            for n in range(1, 31):
                each = response(str(n), ids=("same",))
                ask.client.ask(commit(A, "c", int(n > 1), each), answers.put)
            ask.client.ask(st.Release(A, ((key_of("c"), 1),)), answers.put)
            try:
                found = [answers.get(timeout=self.patience) for _ in range(31)]
            except queue.Empty:
                raise ConformanceError("each question must be answered") from None
            expected = [st.Committed(1)] * 30 + [st.Done()]
            equal(found, expected, "commits and releases must be carried out in their order")
            claimed = st.Claimed(key_of("c"), 2, (b"payload of 30",))
            ask.gets(resume(B, "same"), claimed, "the last commit must count")

    # ------------------------------------------------------------ leases

    def test_a_name_is_taken_as_long_as_its_lease_lasts(self) -> None:
        """Two processes with one name would both take the conversations for theirs."""
        later = st.Join(st.Owner("a", "later"), None, SHORT)
        with self._asking() as ask:
            ask.join(A, SHORT)
            taken = ask.gets_one_of(later, st.NameTaken, "the name of a live lease is taken")
            expect(0 < taken.remaining <= SHORT, f"{taken} must say how long the lease lasts")
            ask.until(later, st.Joined)
            ask.gets(st.Renew(A, SHORT), st.LeaseEnded(), "a lease that was replaced has ended")

    def test_a_process_can_begin_a_lease_instead_of_its_own(self) -> None:
        """It has given up the one before, which the store may have extended too late."""
        with self._asking() as ask:
            ask.join(A)
            ask.join(B)
            ask.begin(A, "c", response("1"))
            again = st.Owner("a", "again")
            other = st.Join(again, None, LONG, "of another process")
            ask.gets_one_of(other, st.NameTaken, "the name of a live lease is taken")
            instead = st.Join(again, None, LONG, A.incarnation)
            for _ in range(2):  # if the first answer was lost
                ask.gets(instead, st.Joined(), "a lease can take the place of the one before")
            ask.gets(st.Renew(A, LONG), st.LeaseEnded(), "a lease that was replaced has ended")
            ask.gets(st.Renew(again, LONG), st.Renewed(), "the one in its place is held")
            claimed = st.Claimed(key_of("c"), 2, (b"payload of 1",))
            ask.gets(resume(B, "1"), claimed, "what it owned can be claimed")

    def test_joining_twice_is_harmless(self) -> None:
        """If the first answer was lost, the same owner joins again."""
        with self._asking() as ask:
            ask.join(A)
            ask.join(A)
            ask.gets(st.Renew(A, NS), st.Renewed(), "a live lease is renewed")

    def test_a_lease_that_has_ended_is_not_renewed(self) -> None:
        """Another replica may have claimed its conversations since."""
        with self._asking() as ask:
            ask.join(A, SHORT)
            ask.gets(st.Renew(A, SHORT), st.Renewed(), "a live lease is renewed")
            ask.until(resume(A, "none"), st.LeaseEnded)
            ask.gets(st.Renew(A, SHORT), st.LeaseEnded(), "a lease that has ended stays so")

    def test_a_renewal_counts_from_now(self) -> None:
        """The new end is ``ttl`` from now, even if the lease would have lasted longer."""
        with self._asking() as ask:
            ask.join(A, 1000 * NS)
            ask.gets(st.Renew(A, SHORT), st.Renewed(), "a live lease is renewed")
            ask.until(resume(A, "none"), st.LeaseEnded)

    def test_leaving_ends_the_lease_and_only_ones_own(self) -> None:
        """A process that ends late must not end the lease of the one that has replaced it."""
        with self._asking() as ask:
            ask.join(A)
            ask.gets(st.Leave(st.Owner("a", "other")), st.Done(), "Leave is always Done")
            ask.gets(st.Renew(A, NS), st.Renewed(), "another owner's Leave ends no lease")
            ask.gets(st.Leave(A), st.Done(), "Leave is always Done")
            ask.gets(st.Leave(A), st.Done(), "Leave can be repeated")
            ask.gets(st.Renew(A, NS), st.LeaseEnded(), "Leave ends the lease")

    # ------------------------------------------------------------ looking up

    def test_a_response_is_looked_up_whoever_owns_it(self) -> None:
        """A request about a context continues nothing, so it needs neither the conversation nor a
        lease. With ``load=False`` only the payload of the response itself is needed."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1", ids=("1", "one")), response("2", "1"))
            for name, expected in (("2", (ONE, TWO)), ("one", (ONE,))):
                for owner in (A, B):  # B has no lease
                    found = st.Found(key_of("c"), expected)
                    ask.gets(look_up(owner, name), found, "the path begins with the first")
            alone = look_up(B, "2", load=False)
            ask.gets(alone, st.Found(key_of("c"), (TWO,)), "without load: one payload")
            ask.gets(look_up(A, "unknown"), st.NotStored(), "what is no id names nothing")
            other = look_up(A, "1", scope="other")
            ask.gets(other, st.NotStored(), "scopes are kept apart")
            ask(commit(A, "c", 1, response("3", "swept")))
            ask.gets(look_up(A, "3"), st.NotStored(), "half a transcript is not stored")
            ask.gets(st.Leave(A), st.Done(), "Leave is always Done")
            whole = st.Found(key_of("c"), (ONE, TWO))
            ask.gets(look_up(A, "2"), whole, "a look-up needs no lease")

    def test_what_was_looked_up_belongs_to_whom_it_belonged(self) -> None:
        """A look-up changes no owner and no epoch: the owner's next commit must not be fenced."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1"))
            ask.begin(A, "d", response("2"))
            ask.gets(st.Release(A, ((key_of("d"), 1),)), st.Done(), "Release is always Done")
            for name in "12":
                ask.gets_one_of(look_up(B, name), st.Found, "the response is stored")
            ask.gets(commit(A, "c", 1, response("3", "1")), st.Committed(1), "the owner stays")
            ask.join(B)
            claimed = st.Claimed(key_of("d"), 2, (TWO,))
            ask.gets(resume(B, "2"), claimed, "what has no owner can be claimed")

    # ------------------------------------------------------------ resuming and claims

    def test_a_whole_transcript_comes_back(self) -> None:
        """A turn is sent with all that it continues, from the first response on; with
        ``load=False`` only the payload of the response itself is needed."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1"), response("2", "1"))
            third = commit(A, "c", 1, response("3", "2", payload=b""))
            ask.gets(third, st.Committed(1), "the owner may commit")
            path = (ONE, TWO, b"")
            for name, load, expected in (("3", True, path), ("2", True, path[:2])):
                claimed = st.Claimed(key_of("c"), 1, expected)
                ask.gets(resume(A, name, load=load), claimed, "the path begins with the first")
            claimed = st.Claimed(key_of("c"), 1, (TWO,))
            ask.gets(resume(A, "2", load=False), claimed, "without load: one payload")

    def test_half_a_transcript_is_none(self) -> None:
        """What a response continues may have been swept: then it is not stored either."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1"))
            third = commit(A, "c", 1, response("3", "swept"))
            done = st.Committed(1, missing=True)
            ask.gets(third, done, "a response whose parent is gone can be committed")
            ask.gets(resume(A, "3"), st.NotStored(), "half a transcript is not stored")
            ask.gets_one_of(resume(A, "1"), st.Claimed, "the others are still there")

    def test_a_commit_says_that_what_it_continues_is_missing(self) -> None:
        """The store may have gone back to an older copy of itself. The owner, which has the whole
        conversation, then commits it once more, so that other replicas can continue it, too."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1"))
            lost = (response("3", "2"), response("4", "3"))
            done = st.Committed(1, missing=True)
            ask.gets(commit(A, "c", 1, *lost), done, "'2' is not stored")
            new = commit(A, "d", 0, response("5", "2"))
            ask.gets(new, done, "nor is it for a conversation that branches off")
            ask.gets(resume(A, "4"), st.NotStored(), "half a transcript is not stored")
            whole = commit(A, "c", 1, response("1"), response("2", "1"), *lost)
            ask.gets(whole, st.Committed(1), "now nothing is missing")
            ask.gets_one_of(resume(A, "4"), st.Claimed, "the path is whole again")
            ask.gets_one_of(resume(A, "5"), st.Claimed, "and so is every other one")

    def test_every_id_of_a_response_names_it(self) -> None:
        """Some upstreams use another id in each event."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1", ids=("one", "un", "eins")))
            for name in ("one", "un", "eins"):
                claimed = st.Claimed(key_of("c"), 1, (ONE,))
                ask.gets(resume(A, name), claimed, "each id of a response must name it")
            ask.gets(resume(A, "1"), st.NotStored(), "what is no id names nothing")

    def test_an_id_of_another_scope_is_not_stored(self) -> None:
        """Scopes are tenants: one must never see what another has said."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1", context=b"context"))
            ask.gets(resume(A, "1", scope="other"), st.NotStored(), "scopes are kept apart")
            other = resume(A, None, contexts=(b"context",), scope="other")
            ask.gets(other, st.NotStored(), "scopes are kept apart")

    def test_the_first_context_that_is_known_counts(self) -> None:
        """``contexts`` begins with the longest, which saves the most. An ``id`` is looked up
        alone."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1", context=b"short"), response("2", "1", context=b"long"))
            found = resume(A, None, contexts=(b"unknown", b"long", b"short"), load=False)
            claimed = st.Claimed(key_of("c"), 1, (TWO,))
            ask.gets(found, claimed, "the first context that is known counts")
            other = resume(A, "unknown", contexts=(b"long",))
            ask.gets(other, st.NotStored(), "with an id the contexts do not count")
            ask.gets(resume(A, None), st.NotStored(), "without id and contexts nothing is found")

    def test_of_two_responses_with_one_id_the_later_counts(self) -> None:
        """Some upstreams use one id for all responses of a chain. The same holds for contexts."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1", ids=("same",)), response("2", "1", ids=("same",)))
            same = resume(A, "same", load=False)
            ask.gets(same, st.Claimed(key_of("c"), 1, (TWO,)), "the later response counts")
            ask(commit(A, "c", 1, response("3", "2", ids=("same",), context=b"x")))
            ask(commit(A, "c", 1, response("4", "2", ids=(), context=b"x")))
            ask.gets(same, st.Claimed(key_of("c"), 1, (THREE,)), "the later response counts")
            found = resume(A, None, contexts=(b"x",), load=False)
            ask.gets(found, st.Claimed(key_of("c"), 1, (FOUR,)), "the later context counts")

    def test_a_response_that_is_stored_stays_as_it_is_and_gets_new_ids(self) -> None:
        """A replica that has lost its lease cannot change what another has written."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1"))
            ask(commit(A, "c", 1, response("1", ids=("new",), payload=b"changed")))
            for name in ("1", "new"):
                claimed = st.Claimed(key_of("c"), 1, (ONE,))
                ask.gets(resume(A, name), claimed, "a payload never changes; ids are added")

    def test_branches_share_their_beginning_across_conversations(self) -> None:
        """A client may continue one response twice. Each branch is a conversation of its own."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "trunk", response("1"), response("2", "1"))
            ask.begin(A, "left", response("3", "1"))
            ask.begin(A, "right", response("4", "3"))
            claimed = st.Claimed(key_of("right"), 1, (ONE, THREE, FOUR))
            ask.gets(resume(A, "4"), claimed, "a path crosses conversations")
            claimed = st.Claimed(key_of("trunk"), 1, (ONE, TWO))
            ask.gets(resume(A, "2"), claimed, "a branch leaves the others as they are")

    def test_a_conversation_of_a_live_owner_stays_with_it(self) -> None:
        """Its connection upstream is there: a turn is forwarded to the owner instead."""
        with self._asking() as ask:
            ask.join(A, 1000 * NS, "http://a.test:1")
            ask.join(B)
            ask.begin(A, "c", response("1"))
            found = ask.gets_one_of(resume(B, "1"), st.OwnedElsewhere, "A owns it")
            expect(0 < found.remaining <= 1000 * NS, f"{found} must say how long the lease lasts")
            expected = st.OwnedElsewhere(key_of("c"), 1, A, "http://a.test:1", found.remaining)
            equal(found, expected, "OwnedElsewhere must say who owns it, and where it is reached")
            claimed = st.Claimed(key_of("c"), 1, (ONE,))
            ask.gets(resume(A, "1", load=False), claimed, "the owner keeps its epoch")

    def test_an_owner_without_a_lease_claims_nothing(self) -> None:
        """Or a process that was paused would take conversations from those that are alive."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1"))
            ask(st.Release(A, ((key_of("c"), 1),)))
            ask.gets(resume(B, "1"), st.LeaseEnded(), "B has never joined")
            other = st.Owner("a", "other")
            ask.gets(resume(other, "1"), st.LeaseEnded(), "a lease is that of one incarnation")

    def test_a_conversation_is_claimed_when_its_owner_has_left(self) -> None:
        """With a new epoch, which keeps the commits of the former owner out."""
        with self._asking() as ask:
            ask.join(A)
            ask.join(B)
            ask.begin(A, "c", response("1"))
            ask(st.Leave(A))
            ask.gets(resume(B, "1"), st.Claimed(key_of("c"), 2, (ONE,)), "B claims it")
            late = commit(A, "c", 1, response("2", "1"))
            ask.gets(late, st.Fenced(2), "a former owner may not commit")
            ask.gets(resume(B, "2"), st.NotStored(), "what is fenced is not stored")

    def test_a_conversation_is_claimed_when_the_lease_of_its_owner_has_ended(self) -> None:
        """The owner has crashed, or cannot reach the store."""
        with self._asking() as ask:
            ask.join(A, SHORT)
            ask.join(B)
            ask.begin(A, "c", response("1"))
            ask.gets_one_of(resume(B, "1"), st.OwnedElsewhere, "A owns it while its lease lasts")
            claimed = ask.until(resume(B, "1"), st.Claimed)
            equal(claimed.epoch, 2, "a claim has a new epoch")
            ask.gets(st.Renew(A, SHORT), st.LeaseEnded(), "a lease that has ended stays so")
            ask.join(AGAIN)
            ask.gets_one_of(resume(AGAIN, "1"), st.OwnedElsewhere, "it is another's by now")

    def test_what_an_earlier_lease_of_the_same_name_owned_is_claimed_anew(self) -> None:
        """An incarnation knows nothing of what an earlier one has under way."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1"))
            ask(st.Leave(A))
            ask.join(AGAIN)
            claimed = st.Claimed(key_of("c"), 2, (ONE,))
            ask.gets(resume(AGAIN, "1"), claimed, "a new incarnation claims with a new epoch")
            ask.gets(commit(A, "c", 1), st.Fenced(2), "the earlier incarnation is fenced")

    def test_a_released_conversation_can_be_claimed(self) -> None:
        """By anyone, and only if it was its owner, at that epoch, who gave it up."""
        with self._asking() as ask:
            ask.join(A)
            ask.join(B)
            ask.begin(A, "c", response("1"))
            ask.begin(A, "d", response("2"))
            wrong = ((key_of("c"), 2), (key_of("none"), 1))
            ask.gets(st.Release(A, wrong), st.Done(), "Release is always Done")
            ask.gets(st.Release(B, ((key_of("c"), 1),)), st.Done(), "Release is always Done")
            ask.gets_one_of(resume(B, "1"), st.OwnedElsewhere, "it was not released")
            right = ((key_of("c"), 1), (key_of("d"), 1))
            ask.gets(st.Release(A, right), st.Done(), "Release is always Done")
            ask.gets(st.Release(A, ()), st.Done(), "Release is always Done")
            late = commit(A, "c", 1, response("3", "1"))
            ask.gets(late, st.Fenced(1), "who has released may not commit")
            claimed = st.Claimed(key_of("c"), 2, (ONE,))
            ask.gets(resume(B, "1", load=False), claimed, "anyone claims what was released")
            claimed = st.Claimed(key_of("d"), 2, (TWO,))
            ask.gets(resume(A, "2", load=False), claimed, "anyone claims what was released")

    def test_a_claim_is_above_every_epoch_that_was_seen(self) -> None:
        """``floor`` is what the replica has seen: a store that has lost memory in a failover must
        not give out an epoch twice."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1"))
            claimed = st.Claimed(key_of("c"), 2, (ONE,))
            ask.gets(resume(A, "1", floor=1, load=False), claimed, "the epoch is above floor")
            claimed = st.Claimed(key_of("c"), 8, (ONE,))
            for _ in range(2):
                ask.gets(resume(A, "1", floor=7), claimed, "the epoch is above floor, and no more")
            late = commit(A, "c", 1, response("2", "1"))
            ask.gets(late, st.Fenced(8), "an earlier epoch is fenced")

    # ------------------------------------------------------------ commits

    def test_commits_can_be_repeated(self) -> None:
        """If an answer was lost, the replica does not know whether the commit was carried out."""
        with self._asking() as ask:
            ask.join(A)
            for _ in range(2):
                ask.begin(A, "c", response("1"))
            second = commit(A, "c", 1, response("2", "1"))
            for _ in range(2):
                ask.gets(second, st.Committed(1), "a commit can be repeated")
            claimed = st.Claimed(key_of("c"), 1, (ONE, TWO))
            ask.gets(resume(A, "2"), claimed, "a repeated commit changes nothing")

    def test_a_conversation_that_is_not_stored_has_no_epoch(self) -> None:
        """It was swept, or lost in a failover. The owner begins it anew."""
        with self._asking() as ask:
            ask.join(A)
            first = commit(A, "c", 1, response("1"))
            ask.gets(first, st.Fenced(0), "a conversation begins with epoch 0")
            ask.gets(resume(A, "1"), st.NotStored(), "what is fenced is not stored")

    def test_a_conversation_of_another_is_not_begun_again(self) -> None:
        """Epoch 0 is for conversations that are not stored, and takes none from its owner."""
        with self._asking() as ask:
            ask.join(A)
            ask.join(B)
            ask.begin(A, "c", response("1"))
            ask.gets(commit(B, "c", 0, response("2")), st.Fenced(1), "it is A's")
            ask.gets(resume(B, "2"), st.NotStored(), "what is fenced is not stored")

    # ------------------------------------------------------------ notices

    def test_renewals_return_notices_to_every_replica(self) -> None:
        """By a notice an owner learns that a client has deleted a response at another replica.
        Returned more than once, because the answer to a renewal can be lost."""
        with self._asking() as ask:
            ask.join(A)
            ask.join(B)
            ask.begin(A, "c", response("1", notice=b"notice of 1"), response("2"))
            noticed = st.Renewed((b"notice of 1",))
            for owner in (A, B, B):
                ask.gets(st.Renew(owner, LONG), noticed, "every renewal has the notices of late")
            refused = commit(B, "c", 1, response("3", notice=b"notice of 3"))
            ask.gets(refused, st.Fenced(1), "what another owner has is not changed")
            ask.gets(st.Renew(A, LONG), noticed, "what was refused has no notice")
            also = commit(A, "c", 1, response("4", notice=b"notice of 4"))
            ask.gets(also, st.Committed(1), "the owner of a conversation goes on with it")
            renewed = ask.gets_one_of(st.Renew(B, LONG), st.Renewed, "a live lease is renewed")
            notices = sorted(renewed.notices)
            equal(notices, [b"notice of 1", b"notice of 4"], "every renewal has the notices")

    def test_renewals_do_not_return_old_notices(self) -> None:
        """Each live replica has had them with an earlier renewal. Without this limit every renewal
        would return all notices that were ever stored."""
        end = time.monotonic() + self.patience
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1", notice=b"notice"))
            # A lease so short may end before it is renewed, on a busy machine.
            while ask(st.Renew(A, SHORT)) != st.Renewed():
                expect(
                    time.monotonic() < end, "notices older than twice the lease are not returned"
                )
                ask.join(A)

    def test_a_notice_that_is_committed_again_is_returned_again(self) -> None:
        """Each purge has to reach every replica, and all of them have one record in a store."""
        end = time.monotonic() + self.patience
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1", notice=b"notice"))
            while ask(st.Renew(A, SHORT)) != st.Renewed():
                expect(
                    time.monotonic() < end, "notices older than twice the lease are not returned"
                )
                ask.join(A)
            again = commit(B, "d", 0, response("1", notice=b"notice"))
            ask(again)
            while ask(st.Renew(A, SHORT)) != st.Renewed((b"notice",)):
                expect(time.monotonic() < end, "what is committed again has its notice again")
                ask.join(A)
                ask(again)

    # ------------------------------------------------------------ sweeping

    def test_a_sweep_deletes_leaves_first_and_everything_that_is_old(self) -> None:
        """A response goes when nothing continues it any more, which may be in the same sweep."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1", context=b"x"), response("2", "1"), response("3", "1"))
            ask.begin(A, "d", response("4", "3"))
            ask.gets(st.Sweep(A, 1000 * NS), st.Swept(0), "what is not old is kept")
            ask.gets(st.Sweep(A, 0), st.Swept(4), "everything that is old is swept at once")
            ask.gets(st.Sweep(A, 0), st.Swept(0), "a sweep can be repeated")
            for name in "1234":
                ask.gets(resume(A, name), st.NotStored(), "what was swept is not stored")
            found = resume(A, None, contexts=(b"x",))
            ask.gets(found, st.NotStored(), "what was swept is not found by its context")

    def test_what_a_used_response_continues_is_kept(self) -> None:
        """Looking a response up counts as use, and what it continues is needed with it."""
        with self._asking() as ask:
            ask.join(A)
            chain = (response("1"), response("2", "1"), response("3", "2"), response("4", "3"))
            ask.begin(A, "c", *chain)
            ask.begin(A, "d", response("5"))
            ask.sweeps_while_used(A, resume(A, "3"), st.Claimed, 2)
            claimed = st.Claimed(key_of("c"), 1, (ONE, TWO, THREE))
            ask.gets(resume(A, "3"), claimed, "what a used response continues is kept")
            for name in "45":
                ask.gets(resume(A, name), st.NotStored(), "what was not used is swept")

    def test_what_is_looked_up_is_used(self) -> None:
        """Who has looked up a response relies on it as on one that was just claimed."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "c", response("1"), response("2", "1"), response("3"))
            ask.gets(st.Release(A, ((key_of("c"), 1),)), st.Done(), "Release is always Done")
            ask.sweeps_while_used(A, look_up(B, "2", load=False), st.Found, 1)
            whole = st.Found(key_of("c"), (ONE, TWO))
            ask.gets(look_up(B, "2"), whole, "what is looked up is kept whole")
            ask.gets(look_up(B, "3"), st.NotStored(), "what was not used is swept")

    def test_a_sweep_of_many_is_complete(self) -> None:
        """Also if a store deletes in batches, and in the middle of chains."""
        with self._asking() as ask:
            ask.join(A)
            chain = [response(str(n), str(n - 1) if n % 40 else None) for n in range(640)]
            for n in range(0, 640, 64):
                ask.begin(A, f"c{n}", *chain[n : n + 64])
            ask.gets(st.Sweep(A, 0), st.Swept(640), "everything that is old is swept at once")
            ask.gets(resume(A, "639"), st.NotStored(), "what was swept is not stored")

    def test_a_swept_conversation_without_an_owner_is_forgotten(self) -> None:
        """Or a store would grow for ever. One that has an owner keeps its epoch."""
        with self._asking() as ask:
            ask.join(A)
            ask.begin(A, "released", response("1"))
            ask.begin(A, "owned", response("2"))
            ask(st.Release(A, ((key_of("released"), 1),)))
            ask.gets(st.Sweep(A, 0), st.Swept(2), "everything that is old is swept at once")
            ask.gets(commit(A, "released", 1), st.Fenced(0), "it is forgotten")
            ask.gets(commit(A, "owned", 1), st.Committed(1), "its owner still has it")
            ask(st.Leave(A))
            ask.gets(st.Sweep(A, 0), st.Swept(0), "no response was left")
            ask.gets(commit(A, "owned", 1), st.Fenced(0), "it is forgotten without an owner")

    # ------------------------------------------------------------ whatever is asked

    def test_answers_are_those_of_the_model(self) -> None:
        """Whatever is asked, in any order, the answers are those of ``StoreModel``. The sequences
        of questions are the same in each run. One whose answers differ is shown without the
        questions that do not matter."""
        for seed in range(self.sequences):
            questions = sequence(seed)
            if self._difference(questions) is None:
                continue
            for index in reversed(range(len(questions))):
                fewer = questions[:index] + questions[index + 1 :]
                if self._difference(fewer) is not None:
                    questions = fewer
            asked = "\n".join(map(str, questions))
            raise ConformanceError(f"{self._difference(questions)}\nafter the questions\n{asked}")

    def _difference(self, questions: Sequence[st.Question]) -> str | None:
        """The first answer that is not the model's, as a text."""
        model = StoreModel()
        with self._asking() as ask:
            for now, question in enumerate(questions, 1):
                asked = _sound(question, model)
                expected = model.handle(asked, now)
                answer = ask(asked)
                if _without_times(answer) != _without_times(expected):
                    return f"question: {asked}\nthe model: {expected}\nthe store: {answer}"
        return None


def _numbered(
    number: int, answers: queue.SimpleQueue[tuple[int, st.Answer]]
) -> Callable[[st.Answer], None]:
    return lambda answer: answers.put((number, answer))


class _Draw:
    """Numbers that follow from a seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._count = 0

    def below(self, count: int) -> int:
        self._count += 1
        digest = hashlib.sha256(f"{self._seed}/{self._count}".encode()).digest()
        return int.from_bytes(digest[:8]) % count

    def of(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]


def sequence(seed: int) -> list[st.Question]:
    """Questions about few owners, conversations and responses, so that they meet."""
    draw = _Draw(seed)
    # Without leases nothing can be resumed, and without responses nothing be found: most sequences
    # would be about nothing.
    first: list[st.Question] = [
        st.Join(A, None, LONG),
        st.Join(B, "u", LONG),
        attrs.evolve(_commit(draw, A), conversation=key_of("c"), epoch=0),
    ]
    questions = first + [_question(draw) for _ in range(10 + draw.below(21))]
    # Drawn apart, because they change nothing that the others ask about.
    draw = _Draw(-1 - seed)
    for place in range(len(questions), 0, -1):
        if not draw.below(4):
            questions.insert(place, _look_up(draw))
    # Drawn apart, too, so that the other questions stay as they are.
    draw = _Draw(-1_000_000 - seed)
    return [
        attrs.evolve(each, instead=draw.of((None, A.incarnation, AGAIN.incarnation)))
        if isinstance(each, st.Join)
        else each
        for each in questions
    ]


def _look_up(draw: _Draw) -> st.LookUp:
    name = draw.of(("1", "2", "3", "4", "5", "6", "same", "other"))
    scope, load = draw.of((SCOPE, SCOPE, SCOPE, "other")), draw.of((True, True, False))
    return st.LookUp(draw.of((A, B, AGAIN)), scope, name, load)


def _question(draw: _Draw) -> st.Question:
    owner = draw.of((A, A, B, AGAIN))
    match draw.below(20):
        case 0 | 1:
            return st.Join(owner, draw.of((None, "u")), LONG)
        case 2:
            return st.Renew(owner, LONG)
        case 3:
            return st.Leave(owner)
        case 4:
            pairs = (key_of(draw.of("cd")), 1 + draw.below(3)), (key_of("c"), 1 + draw.below(3))
            return st.Release(owner, pairs[: draw.below(3)])
        case 5:
            return st.Sweep(owner, draw.of((0, LONG)))
        case number if number < 14:
            name = draw.of((None, None, "1", "2", "3", "4", "5", "6", "same", "other"))
            contexts = (draw.of((b"x", b"y")), draw.of((b"x", b"y")))[: draw.below(3)]
            scope, load = draw.of((SCOPE, SCOPE, SCOPE, "other")), draw.of((True, True, False))
            return st.Resume(owner, scope, name, contexts, draw.of((0, 0, 1, 3)), load)
        case _:
            return _commit(draw, owner)


def _commit(draw: _Draw, owner: st.Owner) -> st.Commit:
    scope = draw.of((SCOPE, SCOPE, SCOPE, "other"))
    names = sorted({1 + draw.below(6) for _ in range(draw.below(6))})
    responses = tuple(
        response(
            # The scope is part of the key, as no response is in two.
            f"{scope}{name}",
            # A parent is a smaller one, so that there is no circle.
            f"{scope}{1 + draw.below(name - 1)}" if name > 1 and draw.below(4) else None,
            ids=(str(name), draw.of(("same", "other"))),
            context=draw.of((None, b"x", b"y")),
            scope=scope,
            payload=b"%d" % draw.below(100),
            notice=f"notice of {scope}{name}".encode() if name % 3 == 0 else None,
        )
        for name in names
    )
    return st.Commit(owner, key_of(draw.of("cd")), draw.of((0, 1, 1, 2)), responses)


def _sound(question: st.Question, model: StoreModel) -> st.Question:
    """The same question, but what continues a response that is not stored begins a transcript."""
    if not isinstance(question, st.Commit):
        return question
    responses: list[st.StoredResponse] = []
    for each in question.responses:
        parent = each.parent
        new = any(before.key == parent for before in responses)
        if parent is not None and not new and model.response(parent) is None:
            parent = None
        responses.append(attrs.evolve(each, parent=parent))
    return attrs.evolve(question, responses=tuple(responses))


def _without_times(answer: st.Answer) -> st.Answer:
    if isinstance(answer, st.NameTaken | st.OwnedElsewhere):
        expect(0 < answer.remaining <= LONG, f"{answer} must say how long the lease lasts")
        return attrs.evolve(answer, remaining=0)
    if isinstance(answer, st.Renewed):
        return attrs.evolve(answer, notices=tuple(sorted(answer.notices)))  # they have no order
    return answer
