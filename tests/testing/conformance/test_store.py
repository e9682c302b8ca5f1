"""Broken stores, one for each check of ``StoreConformance``: the check must notice it.

Each is the model with one thing changed. The last check, which compares answers with those of the
model, must notice all that are about answers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import attrs
import pytest

from bridgecore.ownership import store as st
from bridgecore.testing.conformance import ConformanceError, StoreConformance
from bridgecore.testing.conformance.store import sequence
from bridgecore.transport.driver import StoreClient
from bridgecore.verify.store_model import StoreModel, _Conversation, _Lease, _Row

MS = 1_000_000


class Client:
    """A model, with the interface of a store. Each question takes 10 ms."""

    def __init__(self, model: StoreModel) -> None:
        self.model = model
        self.now = 1

    def ask(self, question: st.Question, answered: Callable[[st.Answer], None]) -> None:
        self.now += 10 * MS
        answered(self.model.handle(question, self.now))


class AnswersTwice(Client):
    def ask(self, question: st.Question, answered: Callable[[st.Answer], None]) -> None:
        super().ask(question, answered)
        if self.now % (7 * 10 * MS) == 1:
            super().ask(question, answered)


class ReleasesFirst(Client):
    """Commits wait until something else than a release is asked."""

    def __init__(self, model: StoreModel) -> None:
        super().__init__(model)
        self.waiting: list[tuple[st.Question, Callable[[st.Answer], None]]] = []

    def ask(self, question: st.Question, answered: Callable[[st.Answer], None]) -> None:
        if isinstance(question, st.Commit) and question.epoch:
            self.waiting.append((question, answered))
            if len(self.waiting) < 29:
                return
        super_ask = super().ask
        if isinstance(question, st.Commit) and self.waiting:
            for each, then in reversed(self.waiting):
                super_ask(each, then)
            self.waiting.clear()
            return
        super_ask(question, answered)


class Changed(StoreModel):
    """The model with other answers or questions."""

    def handle(self, question: st.Question, now: int) -> st.Answer:
        return self.answer(question, super().handle(self.question(question), now))

    def question(self, question: st.Question) -> st.Question:
        return question

    def answer(self, question: st.Question, answer: st.Answer) -> st.Answer:
        return answer


class GivesNamesTwice(StoreModel):
    def _join(self, join: st.Join, now: int) -> st.Answer:
        self._leases.pop(join.owner.replica, None)
        return super()._join(join, now)


class RefusesItsOwnName(StoreModel):
    def _join(self, join: st.Join, now: int) -> st.Answer:
        lease = self._leases.get(join.owner.replica)
        if lease is not None and now < lease.until:
            return st.NameTaken(lease.until - now)
        return super()._join(join, now)


class RefusesItsOwnSuccessor(StoreModel):
    def _join(self, join: st.Join, now: int) -> st.Answer:
        return super()._join(attrs.evolve(join, instead=None), now)


class RenewsWhatHasEnded(StoreModel):
    def handle(self, question: st.Question, now: int) -> st.Answer:
        if isinstance(question, st.Renew):
            lease = self._leases.get(question.owner.replica)
            if lease is not None and lease.owner == question.owner:
                until = now + question.ttl
                self._leases[question.owner.replica] = attrs.evolve(lease, until=until)
                return st.Renewed()
        return super().handle(question, now)


class OnlyExtends(StoreModel):
    def handle(self, question: st.Question, now: int) -> st.Answer:
        before = dict(self._leases)
        answer = super().handle(question, now)
        if isinstance(question, st.Renew) and isinstance(answer, st.Renewed):
            name = question.owner.replica
            self._leases[name] = max(before[name], self._leases[name], key=_end)
        return answer


def _end(lease: _Lease) -> int:
    return lease.until


class LeavesForOthers(StoreModel):
    def handle(self, question: st.Question, now: int) -> st.Answer:
        if isinstance(question, st.Leave):
            self._leases.pop(question.owner.replica, None)
        return super().handle(question, now)


class ReversesPaths(Changed):
    def answer(self, question: st.Question, answer: st.Answer) -> st.Answer:
        if isinstance(answer, st.Claimed):
            return attrs.evolve(answer, path=answer.path[::-1])
        return answer


class MissesNothing(Changed):
    def answer(self, question: st.Question, answer: st.Answer) -> st.Answer:
        return st.Committed(answer.epoch) if isinstance(answer, st.Committed) else answer


class HalfTranscripts(StoreModel):
    def _path(self, row: _Row) -> list[_Row] | None:
        path = [row]
        while (parent := self._rows.get(path[-1].response.parent or b"")) is not None:
            path.append(parent)
        return path[::-1]


class OnlyTheFirstId(Changed):
    def question(self, question: st.Question) -> st.Question:
        if isinstance(question, st.Commit):
            responses = tuple(attrs.evolve(r, ids=r.ids[:1]) for r in question.responses)
            return attrs.evolve(question, responses=responses)
        return question


class OneScope(Changed):
    def question(self, question: st.Question) -> st.Question:
        if isinstance(question, st.Commit):
            responses = tuple(attrs.evolve(r, scope="") for r in question.responses)
            return attrs.evolve(question, responses=responses)
        return attrs.evolve(question, scope="") if isinstance(question, st.Resume) else question


class TheLastContext(Changed):
    def question(self, question: st.Question) -> st.Question:
        if isinstance(question, st.Resume):
            return attrs.evolve(question, contexts=question.contexts[::-1])
        return question


class TheFirstOfTwo(StoreModel):
    def _commit(self, commit: st.Commit, now: int) -> st.Answer:
        named, contexts = dict(self._named), dict(self._contexts)
        answer = super()._commit(commit, now)
        self._named |= named
        self._contexts |= contexts
        return answer


class Overwrites(StoreModel):
    def _commit(self, commit: st.Commit, now: int) -> st.Answer:
        answer = super()._commit(commit, now)
        if isinstance(answer, st.Committed):
            for each in commit.responses:
                row = self._rows[each.key]
                self._rows[each.key] = attrs.evolve(row, response=each)
        return answer


class StaysInItsConversation(StoreModel):
    def _path(self, row: _Row) -> list[_Row] | None:
        path = super()._path(row)
        return path and [each for each in path if each.conversation == row.conversation]


class LooksUpOnlyWhatIsFree(StoreModel):
    def _look_up(self, look_up: st.LookUp, now: int) -> st.Answer:
        found = self.conversation_of(look_up.scope, look_up.response)
        if found is not None and self.owner(found, now) is not None:
            return st.NotStored()
        return super()._look_up(look_up, now)


class LookingUpReleases(StoreModel):
    def _look_up(self, look_up: st.LookUp, now: int) -> st.Answer:
        found = self.conversation_of(look_up.scope, look_up.response)
        if found is not None:
            self._conversations[found] = _Conversation(self.epoch(found) + 1, None)
        return super()._look_up(look_up, now)


class LookingUpIsNoUse(StoreModel):
    def _look_up(self, look_up: st.LookUp, now: int) -> st.Answer:
        rows = dict(self._rows)
        answer = super()._look_up(look_up, now)
        self._rows = rows
        return answer


class TakesFromTheLiving(StoreModel):
    def _resume(self, resume: st.Resume, now: int) -> st.Answer:
        answer = super()._resume(resume, now)
        if isinstance(answer, st.OwnedElsewhere):
            taken = _Conversation(answer.epoch, None)
            self._conversations[answer.conversation] = taken
            return super()._resume(resume, now)
        return answer


class ClaimsWithoutALease(StoreModel):
    def _resume(self, resume: st.Resume, now: int) -> st.Answer:
        if not self._live(resume.owner, now):
            self._leases[resume.owner.replica] = _Lease(resume.owner, None, now + 1)
        return super()._resume(resume, now)


class KeepsTheEpoch(StoreModel):
    """Of a conversation whose owner has no lease."""

    def _resume(self, resume: st.Resume, now: int) -> st.Answer:
        for key, each in [*self._conversations.items()]:
            if each.owner is not None and not self._live(each.owner, now):
                self._conversations[key] = _Conversation(each.epoch, resume.owner)
        return super()._resume(resume, now)


class NeverClaims(StoreModel):
    """From an owner whose lease has ended by itself."""

    def _resume(self, resume: st.Resume, now: int) -> st.Answer:
        found = self.conversation_of(resume.scope, resume.response or "")
        owner = self._conversations[found].owner if found is not None else None
        if found is not None and owner is not None and owner.replica in self._leases:
            lease = self._leases[owner.replica]
            if lease.owner == owner and owner != resume.owner:
                return st.OwnedElsewhere(found, self.epoch(found), owner, None, 1)
        return super()._resume(resume, now)


class KnowsNamesOnly(StoreModel):
    """An owner is its name: whatever its incarnation."""

    def _resume(self, resume: st.Resume, now: int) -> st.Answer:
        for key, each in [*self._conversations.items()]:
            if each.owner is not None and each.owner.replica == resume.owner.replica:
                self._conversations[key] = _Conversation(each.epoch, resume.owner)
        return super()._resume(resume, now)


class ReleasesForAnyone(StoreModel):
    def handle(self, question: st.Question, now: int) -> st.Answer:
        if isinstance(question, st.Release):
            for key, _ in question.conversations:
                if (found := self._conversations.get(key)) is not None:
                    self._conversations[key] = _Conversation(found.epoch, None)
        return super().handle(question, now)


class IgnoresTheFloor(Changed):
    def question(self, question: st.Question) -> st.Question:
        return attrs.evolve(question, floor=0) if isinstance(question, st.Resume) else question


class RefusesRepeatedCommits(StoreModel):
    def _commit(self, commit: st.Commit, now: int) -> st.Answer:
        if any(each.key in self._rows for each in commit.responses):
            return st.Fenced(self.epoch(commit.conversation))
        return super()._commit(commit, now)


class BeginsWithAnyEpoch(StoreModel):
    def _commit(self, commit: st.Commit, now: int) -> st.Answer:
        if commit.conversation not in self._conversations:
            commit = attrs.evolve(commit, epoch=0)
        return super()._commit(commit, now)


class BeginsAnew(StoreModel):
    def _commit(self, commit: st.Commit, now: int) -> st.Answer:
        if commit.epoch == 0:
            self._conversations.pop(commit.conversation, None)
        return super()._commit(commit, now)


class SweepsOneLayer(StoreModel):
    def _sweep(self, before: int, now: int) -> int:
        parents = {row.response.parent for row in self._rows.values()}
        kept = {key: row for key, row in self._rows.items() if key in parents or row.used >= before}
        count = len(self._rows) - len(kept)
        self._rows = kept
        self._named = {name: key for name, key in self._named.items() if key in kept}
        self._contexts = {name: key for name, key in self._contexts.items() if key in kept}
        return count


class SweepsWhatIsContinued(StoreModel):
    def _sweep(self, before: int, now: int) -> int:
        rows = self._rows
        self._rows = {
            key: attrs.evolve(row, response=attrs.evolve(row.response, parent=None))
            for key, row in rows.items()
        }
        count = super()._sweep(before, now)
        self._rows = {key: rows[key] for key in self._rows}
        return count


class ReturnsNoticesOnce(StoreModel):
    def handle(self, question: st.Question, now: int) -> st.Answer:
        answer = super().handle(question, now)
        if isinstance(question, st.Renew):
            self._notices.clear()
        return answer


class ReturnsOldNotices(StoreModel):
    def handle(self, question: st.Question, now: int) -> st.Answer:
        if isinstance(question, st.Renew):
            latest = {key: (now, notice) for key, (_, notice) in self._notices.items()}
            self._notices = latest
        return super().handle(question, now)


class KeepsFirstNotices(StoreModel):
    def _commit(self, commit: st.Commit, now: int) -> st.Answer:
        before = self._notices.copy()
        answer = super()._commit(commit, now)
        self._notices |= before
        return answer


class SweepsABatch(StoreModel):
    def _sweep(self, before: int, now: int) -> int:
        return min(super()._sweep(before, now), 500)


class NeverForgets(StoreModel):
    def _sweep(self, before: int, now: int) -> int:
        conversations = dict(self._conversations)
        count = super()._sweep(before, now)
        self._conversations = conversations
        return count


MUTANTS: dict[str, type[StoreModel] | type[Client]] = {
    "each_question_is_answered_once": AnswersTwice,
    "commits_and_releases_keep_their_order": ReleasesFirst,
    "a_name_is_taken_as_long_as_its_lease_lasts": GivesNamesTwice,
    "a_process_can_begin_a_lease_instead_of_its_own": RefusesItsOwnSuccessor,
    "joining_twice_is_harmless": RefusesItsOwnName,
    "a_lease_that_has_ended_is_not_renewed": RenewsWhatHasEnded,
    "a_renewal_counts_from_now": OnlyExtends,
    "leaving_ends_the_lease_and_only_ones_own": LeavesForOthers,
    "a_whole_transcript_comes_back": ReversesPaths,
    "half_a_transcript_is_none": HalfTranscripts,
    "a_commit_says_that_what_it_continues_is_missing": MissesNothing,
    "every_id_of_a_response_names_it": OnlyTheFirstId,
    "an_id_of_another_scope_is_not_stored": OneScope,
    "the_first_context_that_is_known_counts": TheLastContext,
    "of_two_responses_with_one_id_the_later_counts": TheFirstOfTwo,
    "a_response_that_is_stored_stays_as_it_is_and_gets_new_ids": Overwrites,
    "branches_share_their_beginning_across_conversations": StaysInItsConversation,
    "a_response_is_looked_up_whoever_owns_it": LooksUpOnlyWhatIsFree,
    "what_was_looked_up_belongs_to_whom_it_belonged": LookingUpReleases,
    "a_conversation_of_a_live_owner_stays_with_it": TakesFromTheLiving,
    "an_owner_without_a_lease_claims_nothing": ClaimsWithoutALease,
    "a_conversation_is_claimed_when_its_owner_has_left": KeepsTheEpoch,
    "a_conversation_is_claimed_when_the_lease_of_its_owner_has_ended": NeverClaims,
    "what_an_earlier_lease_of_the_same_name_owned_is_claimed_anew": KnowsNamesOnly,
    "a_released_conversation_can_be_claimed": ReleasesForAnyone,
    "a_claim_is_above_every_epoch_that_was_seen": IgnoresTheFloor,
    "commits_can_be_repeated": RefusesRepeatedCommits,
    "a_conversation_that_is_not_stored_has_no_epoch": BeginsWithAnyEpoch,
    "a_conversation_of_another_is_not_begun_again": BeginsAnew,
    "renewals_return_notices_to_every_replica": ReturnsNoticesOnce,
    "renewals_do_not_return_old_notices": ReturnsOldNotices,
    "a_notice_that_is_committed_again_is_returned_again": KeepsFirstNotices,
    "a_sweep_deletes_leaves_first_and_everything_that_is_old": SweepsOneLayer,
    "what_a_used_response_continues_is_kept": SweepsWhatIsContinued,
    "what_is_looked_up_is_used": LookingUpIsNoUse,
    "a_sweep_of_many_is_complete": SweepsABatch,
    "a_swept_conversation_without_an_owner_is_forgotten": NeverForgets,
    "answers_are_those_of_the_model": ReversesPaths,
}

# In sequences time stands still, there are few responses, and none that continues what is not
# stored: the comparison cannot see these.
BEYOND_COMPARISON = {
    AnswersTwice,
    ReleasesFirst,
    RenewsWhatHasEnded,
    OnlyExtends,
    HalfTranscripts,
    LookingUpIsNoUse,
    MissesNothing,
    NeverClaims,
    SweepsABatch,
    SweepsWhatIsContinued,
    ReturnsOldNotices,
    KeepsFirstNotices,
}


class MutantConformance(StoreConformance):
    patience = 0.5

    def __init__(self, mutant: type[StoreModel] | type[Client]) -> None:
        self._mutant = mutant

    @contextlib.contextmanager
    def store(self) -> Iterator[StoreClient]:
        if issubclass(self._mutant, Client):
            yield self._mutant(StoreModel())
        else:
            yield Client(self._mutant())


def test_each_check_has_a_mutant() -> None:
    assert {f"test_{name}" for name in MUTANTS} == {
        name for name in vars(StoreConformance) if name.startswith("test_")
    }


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_store_is_noticed(name: str) -> None:
    with pytest.raises(ConformanceError):
        getattr(MutantConformance(MUTANTS[name]), f"test_{name}")()


@pytest.mark.parametrize("mutant", sorted({*MUTANTS.values()} - BEYOND_COMPARISON, key=str))
def test_the_comparison_notices_it_too(mutant: type[StoreModel]) -> None:
    with pytest.raises(ConformanceError):
        MutantConformance(mutant).test_answers_are_those_of_the_model()


def test_a_difference_is_shown_without_what_does_not_matter() -> None:
    with pytest.raises(ConformanceError) as caught:
        MutantConformance(ReversesPaths).test_answers_are_those_of_the_model()
    difference, asked = str(caught.value).split("\nafter the questions\n")
    assert [line.split(":")[0] for line in difference.splitlines()] == [
        "question",
        "the model",
        "the store",
    ]
    # A lease, a transcript of two, and the question whose answer differs; not the other twenty.
    kinds = [line.split("(")[0] for line in asked.splitlines()]
    assert kinds == ["Join", "Commit", "Commit", "Resume"]


def test_sequences_are_the_same_in_each_run_and_differ() -> None:
    assert sequence(5) == sequence(5)
    assert len({tuple(sequence(seed)) for seed in range(30)}) == 30
