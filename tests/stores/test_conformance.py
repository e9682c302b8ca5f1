"""What every store must do, run on the model and on each back end with a real server.

What belongs here: the meaning of questions. What is peculiar to one back end, what happens when a
server is lost, and what can be read in its files have tests of their own.
"""

from __future__ import annotations

import attrs
import hypothesis
from hypothesis import strategies

from bridgecore.ownership import store as st
from bridgecore.testing.store import StoreModel
from tests.stores.asking import (
    NS,
    SCOPE,
    A,
    Asking,
    B,
    Place,
    commit,
    key_of,
    response,
    resume,
)

SHORT = NS // 5  # a lease whose end a test waits for

# ------------------------------------------------------------ leases


def test_a_name_is_taken_as_long_as_its_lease_lasts(ask: Asking) -> None:
    again = st.Join(st.Owner("a", "later"), None, SHORT)
    ask.join(A, SHORT)
    taken = ask(again)
    assert isinstance(taken, st.NameTaken)
    assert 0 < taken.remaining <= SHORT
    ask.until(again, st.Joined)
    assert ask(st.Renew(A, SHORT)) == st.LeaseEnded()


def test_joining_twice_is_harmless(ask: Asking) -> None:
    ask.join(A)
    ask.join(A)
    assert ask(st.Renew(A, NS)) == st.Renewed()


def test_a_lease_that_has_ended_is_not_renewed(ask: Asking) -> None:
    ask.join(A, SHORT)
    assert ask(st.Renew(A, SHORT)) == st.Renewed()
    ask.until(resume(A, "none"), st.LeaseEnded)
    assert ask(st.Renew(A, SHORT)) == st.LeaseEnded()


def test_a_renewal_counts_from_now(ask: Asking) -> None:
    ask.join(A, 1000 * NS)
    assert ask(st.Renew(A, SHORT)) == st.Renewed()
    ask.until(resume(A, "none"), st.LeaseEnded)


def test_leaving_ends_the_lease_and_only_ones_own(ask: Asking) -> None:
    ask.join(A)
    assert ask(st.Leave(st.Owner("a", "other"))) == st.Done()
    assert ask(st.Renew(A, NS)) == st.Renewed()
    assert ask(st.Leave(A)) == st.Done()
    assert ask(st.Leave(A)) == st.Done()
    assert ask(st.Renew(A, NS)) == st.LeaseEnded()


# ------------------------------------------------------------ resuming and claims


def test_a_whole_transcript_comes_back(ask: Asking) -> None:
    ask.join(A)
    ask.begin(A, "c", response("1"), response("2", "1"))
    assert ask(commit(A, "c", 1, response("3", "2", payload=b""))) == st.Committed(1)
    path = (b"payload of 1", b"payload of 2", b"")
    assert ask(resume(A, "3")) == st.Claimed(key_of("c"), 1, path)
    assert ask(resume(A, "2")) == st.Claimed(key_of("c"), 1, path[:2])
    assert ask(resume(A, "2", load=False)) == st.Claimed(key_of("c"), 1, path[1:2])


def test_every_id_of_a_response_names_it(ask: Asking) -> None:
    ask.join(A)
    ask.begin(A, "c", response("1", ids=("one", "un", "eins")))
    for name in ("one", "un", "eins"):
        assert ask(resume(A, name)) == st.Claimed(key_of("c"), 1, (b"payload of 1",))
    assert ask(resume(A, "1")) == st.NotStored()


def test_an_id_of_another_scope_is_not_stored(ask: Asking) -> None:
    ask.join(A)
    ask.begin(A, "c", response("1", context=b"context"))
    assert ask(resume(A, "1", scope="other")) == st.NotStored()
    assert ask(resume(A, None, contexts=(b"context",), scope="other")) == st.NotStored()


def test_the_first_context_that_is_known_counts(ask: Asking) -> None:
    ask.join(A)
    ask.begin(A, "c", response("1", context=b"short"), response("2", "1", context=b"long"))
    found = ask(resume(A, None, contexts=(b"unknown", b"long", b"short"), load=False))
    assert found == st.Claimed(key_of("c"), 1, (b"payload of 2",))
    assert ask(resume(A, "unknown", contexts=(b"long",))) == st.NotStored()
    assert ask(resume(A, None)) == st.NotStored()


def test_of_two_responses_with_one_id_the_later_counts(ask: Asking) -> None:
    ask.join(A)
    ask.begin(A, "c", response("1", ids=("same",)), response("2", "1", ids=("same",)))
    assert ask(resume(A, "same", load=False)) == st.Claimed(key_of("c"), 1, (b"payload of 2",))
    ask(commit(A, "c", 1, response("3", "2", ids=("same",), context=b"x")))
    ask(commit(A, "c", 1, response("4", "2", ids=(), context=b"x")))
    assert ask(resume(A, "same", load=False)) == st.Claimed(key_of("c"), 1, (b"payload of 3",))
    found = ask(resume(A, None, contexts=(b"x",), load=False))
    assert found == st.Claimed(key_of("c"), 1, (b"payload of 4",))


def test_a_response_that_is_stored_stays_as_it_is_and_gets_new_ids(ask: Asking) -> None:
    ask.join(A)
    ask.begin(A, "c", response("1"))
    ask(commit(A, "c", 1, response("1", ids=("new",), payload=b"changed")))
    for name in ("1", "new"):
        assert ask(resume(A, name)) == st.Claimed(key_of("c"), 1, (b"payload of 1",))


def test_branches_share_their_beginning_across_conversations(ask: Asking) -> None:
    ask.join(A)
    ask.begin(A, "trunk", response("1"), response("2", "1"))
    ask.begin(A, "left", response("3", "1"))
    ask.begin(A, "right", response("4", "3"))
    found = ask(resume(A, "4"))
    assert found == st.Claimed(
        key_of("right"), 1, (b"payload of 1", b"payload of 3", b"payload of 4")
    )
    found = ask(resume(A, "2"))
    assert found == st.Claimed(key_of("trunk"), 1, (b"payload of 1", b"payload of 2"))


def test_a_conversation_of_a_live_owner_stays_with_it(ask: Asking) -> None:
    ask.join(A, 1000 * NS, "http://a.test:1")
    ask.join(B)
    ask.begin(A, "c", response("1"))
    found = ask(resume(B, "1"))
    assert isinstance(found, st.OwnedElsewhere)
    assert 0 < found.remaining <= 1000 * NS
    expected = st.OwnedElsewhere(key_of("c"), 1, A, "http://a.test:1", found.remaining)
    assert found == expected
    assert ask(resume(A, "1", load=False)) == st.Claimed(key_of("c"), 1, (b"payload of 1",))


def test_an_owner_without_a_lease_claims_nothing(ask: Asking) -> None:
    ask.join(A)
    ask.begin(A, "c", response("1"))
    ask(st.Release(A, ((key_of("c"), 1),)))
    assert ask(resume(B, "1")) == st.LeaseEnded()
    assert ask(resume(st.Owner("a", "other"), "1")) == st.LeaseEnded()


def test_a_conversation_is_claimed_when_its_owner_has_left(ask: Asking) -> None:
    ask.join(A)
    ask.join(B)
    ask.begin(A, "c", response("1"))
    ask(st.Leave(A))
    assert ask(resume(B, "1")) == st.Claimed(key_of("c"), 2, (b"payload of 1",))
    assert ask(commit(A, "c", 1, response("2", "1"))) == st.Fenced(2)
    assert ask(resume(B, "2")) == st.NotStored()


def test_a_conversation_is_claimed_when_the_lease_of_its_owner_has_ended(ask: Asking) -> None:
    ask.join(A, SHORT)
    ask.join(B)
    ask.begin(A, "c", response("1"))
    found = ask(resume(B, "1"))
    assert isinstance(found, st.OwnedElsewhere)
    assert ask.until(resume(B, "1"), st.Claimed).epoch == 2
    assert ask(st.Renew(A, SHORT)) == st.LeaseEnded()
    # It comes back, and finds the conversation to be another's.
    again = attrs.evolve(A, incarnation="again")
    ask.join(again)
    assert isinstance(ask(resume(again, "1")), st.OwnedElsewhere)


def test_what_an_earlier_lease_of_the_same_name_owned_is_claimed_anew(ask: Asking) -> None:
    ask.join(A)
    ask.begin(A, "c", response("1"))
    ask(st.Leave(A))
    again = attrs.evolve(A, incarnation="again")
    ask.join(again)
    assert ask(resume(again, "1")) == st.Claimed(key_of("c"), 2, (b"payload of 1",))
    assert ask(commit(A, "c", 1)) == st.Fenced(2)


def test_a_released_conversation_can_be_claimed(ask: Asking) -> None:
    ask.join(A)
    ask.join(B)
    ask.begin(A, "c", response("1"))
    ask.begin(A, "d", response("2"))
    wrong = ((key_of("c"), 2), (key_of("none"), 1))
    assert ask(st.Release(A, wrong)) == st.Done()
    assert ask(st.Release(B, ((key_of("c"), 1),))) == st.Done()
    assert isinstance(ask(resume(B, "1")), st.OwnedElsewhere)
    right = ((key_of("c"), 1), (key_of("d"), 1))
    assert ask(st.Release(A, right)) == st.Done()
    assert ask(st.Release(A, ())) == st.Done()
    assert ask(commit(A, "c", 1, response("3", "1"))) == st.Fenced(1)
    assert ask(resume(B, "1", load=False)) == st.Claimed(key_of("c"), 2, (b"payload of 1",))
    assert ask(resume(A, "2", load=False)) == st.Claimed(key_of("d"), 2, (b"payload of 2",))


def test_a_claim_is_above_every_epoch_that_was_seen(ask: Asking) -> None:
    ask.join(A)
    ask.begin(A, "c", response("1"))
    assert ask(resume(A, "1", floor=1, load=False)) == st.Claimed(
        key_of("c"), 2, (b"payload of 1",)
    )
    assert ask(resume(A, "1", floor=7)) == st.Claimed(key_of("c"), 8, (b"payload of 1",))
    assert ask(resume(A, "1", floor=7)) == st.Claimed(key_of("c"), 8, (b"payload of 1",))
    assert ask(commit(A, "c", 1, response("2", "1"))) == st.Fenced(8)


# ------------------------------------------------------------ commits


def test_commits_can_be_repeated(ask: Asking) -> None:
    ask.join(A)
    for _ in range(2):
        ask.begin(A, "c", response("1"))
    for _ in range(2):
        assert ask(commit(A, "c", 1, response("2", "1"))) == st.Committed(1)
    assert ask(resume(A, "2")) == st.Claimed(key_of("c"), 1, (b"payload of 1", b"payload of 2"))


def test_a_conversation_that_is_not_stored_has_no_epoch(ask: Asking) -> None:
    ask.join(A)
    assert ask(commit(A, "c", 1, response("1"))) == st.Fenced(0)
    assert ask(resume(A, "1")) == st.NotStored()


def test_a_conversation_of_another_is_not_begun_again(ask: Asking) -> None:
    ask.join(A)
    ask.join(B)
    ask.begin(A, "c", response("1"))
    assert ask(commit(B, "c", 0, response("2"))) == st.Fenced(1)
    assert ask(resume(B, "2")) == st.NotStored()


# ------------------------------------------------------------ sweeping


def test_a_sweep_deletes_leaves_first_and_everything_that_is_old(ask: Asking) -> None:
    ask.join(A)
    ask.begin(A, "c", response("1", context=b"x"), response("2", "1"), response("3", "1"))
    ask.begin(A, "d", response("4", "3"))
    assert ask(st.Sweep(A, 1000 * NS)) == st.Swept(0)
    assert ask(st.Sweep(A, 0)) == st.Swept(4)
    assert ask(st.Sweep(A, 0)) == st.Swept(0)
    for name in "1234":
        assert ask(resume(A, name)) == st.NotStored()
    assert ask(resume(A, None, contexts=(b"x",))) == st.NotStored()


def test_what_a_used_response_continues_is_kept(ask: Asking) -> None:
    ask.join(A)
    ask.begin(A, "c", response("1"), response("2", "1"), response("3", "2"), response("4", "3"))
    ask.begin(A, "d", response("5"))
    # Asked again and again, with an age that only what is not used exceeds.
    end, swept = 2, 0
    while swept < end:
        assert isinstance(ask(resume(A, "3")), st.Claimed)
        answer = ask(st.Sweep(A, NS // 10))
        assert isinstance(answer, st.Swept)
        swept += answer.count
    assert swept == end
    path = (b"payload of 1", b"payload of 2", b"payload of 3")
    assert ask(resume(A, "3")) == st.Claimed(key_of("c"), 1, path)
    assert ask(resume(A, "4")) == ask(resume(A, "5")) == st.NotStored()


def test_a_sweep_of_more_than_a_batch(ask: Asking) -> None:
    ask.join(A)
    chain = [response(str(n), str(n - 1) if n % 40 else None) for n in range(640)]
    for n in range(0, 640, 64):
        ask.begin(A, f"c{n}", *chain[n : n + 64])
    assert ask(st.Sweep(A, 0)) == st.Swept(640)
    assert ask(resume(A, "639")) == st.NotStored()


def test_a_swept_conversation_without_an_owner_is_forgotten(ask: Asking) -> None:
    ask.join(A)
    ask.begin(A, "released", response("1"))
    ask.begin(A, "owned", response("2"))
    ask(st.Release(A, ((key_of("released"), 1),)))
    assert ask(st.Sweep(A, 0)) == st.Swept(2)
    assert ask(commit(A, "released", 1)) == st.Fenced(0)
    assert ask(commit(A, "owned", 1)) == st.Committed(1)
    ask(st.Leave(A))
    assert ask(st.Sweep(A, 0)) == st.Swept(0)
    assert ask(commit(A, "owned", 1)) == st.Fenced(0)


# ------------------------------------------------------------ whatever is asked

OWNERS = [A, B, attrs.evolve(A, incarnation="again")]
_LONG = 10_000 * NS
_NAMES = ["1", "2", "3", "4", "5", "6"]
_CONVERSATIONS = ["c", "d"]
_owners = strategies.sampled_from(OWNERS)
_scopes = strategies.sampled_from([SCOPE, "other"])
_contexts = strategies.sampled_from([b"x", b"y"])


@strategies.composite
def _commits(draw: strategies.DrawFn) -> st.Commit:
    names = draw(strategies.lists(strategies.sampled_from(_NAMES), max_size=3, unique=True))
    scope = draw(_scopes)
    responses = tuple(
        response(
            # The scope is part of the key, as no response is in two.
            scope + name,
            # A parent is a smaller one, so that there is no circle.
            scope + str(draw(strategies.integers(1, int(name) - 1)))
            if name > "1" and draw(strategies.booleans())
            else None,
            ids=(name, draw(strategies.sampled_from(["same", "other"]))),
            context=draw(strategies.none() | _contexts),
            scope=scope,
        )
        for name in sorted(names)
    )
    return st.Commit(
        draw(_owners),
        key_of(draw(strategies.sampled_from(_CONVERSATIONS))),
        draw(strategies.integers(0, 3)),
        responses,
    )


_questions = strategies.one_of(
    strategies.builds(
        st.Join, _owners, strategies.sampled_from([None, "u"]), strategies.just(_LONG)
    ),
    strategies.builds(st.Renew, _owners, strategies.just(_LONG)),
    strategies.builds(st.Leave, _owners),
    _commits(),
    _commits(),
    strategies.builds(
        st.Resume,
        _owners,
        _scopes,
        strategies.none() | strategies.sampled_from([*_NAMES, "same", "other"]),
        strategies.lists(_contexts, max_size=2).map(tuple),
        strategies.integers(0, 3),
        strategies.booleans(),
    ),
    strategies.builds(
        st.Release,
        _owners,
        strategies.lists(
            strategies.tuples(
                strategies.sampled_from(_CONVERSATIONS).map(key_of), strategies.integers(1, 3)
            ),
            max_size=2,
        ).map(tuple),
    ),
    strategies.builds(st.Sweep, _owners, strategies.sampled_from([0, _LONG])),
)


def _sound(question: st.Question, stored: set[bytes]) -> st.Question:
    """The same question, but what continues a response that is not stored begins a transcript."""
    if not isinstance(question, st.Commit):
        return question
    responses: list[st.StoredResponse] = []
    for each in question.responses:
        known = stored | {before.key for before in responses}
        parent = each.parent if each.parent in known else None
        responses.append(attrs.evolve(each, parent=parent))
    return attrs.evolve(question, responses=tuple(responses))


def _without_times(answer: st.Answer) -> st.Answer:
    if isinstance(answer, st.NameTaken | st.OwnedElsewhere):
        assert 0 < answer.remaining <= _LONG
        return attrs.evolve(answer, remaining=0)
    return answer


@hypothesis.settings(
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(questions=strategies.lists(_questions, max_size=30))
def test_answers_are_those_of_the_model(real: Place, questions: list[st.Question]) -> None:
    real.clear()
    ask = real.open()
    try:
        _compare(ask, questions)
    finally:
        real.close()


def _compare(ask: Asking, questions: list[st.Question]) -> None:
    model, now = StoreModel(), 1
    # Without leases nothing can be resumed, so most sequences would be about nothing.
    for question in [st.Join(A, None, _LONG), st.Join(B, "u", _LONG), *questions]:
        asked = _sound(question, set(model._rows))
        now += 1
        expected = model.handle(asked, now)
        assert _without_times(ask(asked)) == _without_times(expected), asked


def test_half_a_transcript_is_none(ask: Asking) -> None:
    """What a response continues may have been swept: then it is not stored either."""
    ask.join(A)
    ask.begin(A, "c", response("1"))
    assert ask(commit(A, "c", 1, response("3", "swept"))) == st.Committed(1)
    assert ask(resume(A, "3")) == st.NotStored()
    assert isinstance(ask(resume(A, "1")), st.Claimed)
