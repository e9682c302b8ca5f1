"""Tests of ownership/claims.py: each rule is met once."""

from __future__ import annotations

import pytest

from bridgecore.ownership import claims as cl
from bridgecore.ownership import store as st
from bridgecore.ownership.claims import ClaimEffect as E
from bridgecore.ownership.claims import ClaimStage as S

NONE, SEEN = cl.Claim(), cl.Claim(seen=4)
NEW, OFFERED = cl.Claim(S.NEW), cl.Claim(S.NEW, offered=True)
OWNED = cl.Claim(S.OWNED, 4, 4)

CASES: list[tuple[cl.Claim, cl.ClaimEvent, str, cl.Claim, tuple[E, ...]]] = [
    (NONE, cl.Begun(), "begin", NEW, ()),
    (SEEN, cl.Granted(5, True), "granted", cl.Claim(S.OWNED, 5, 5), ()),
    (SEEN, cl.Granted(4, True), "granted", SEEN, (E.DISTRUST,)),
    (SEEN, cl.Granted(5, False), "granted", cl.Claim(S.NONE, 5, 5), (E.RELEASE,)),
    (OWNED, cl.Granted(4, True), "granted-again", OWNED, ()),
    (OWNED, cl.Granted(5, False), "granted-again", cl.Claim(S.OWNED, 5, 5), ()),
    (OWNED, cl.Granted(3, True), "granted-again", OWNED, (E.DISTRUST,)),
    (OWNED, cl.Contradicted(5), "contradicted", cl.Claim(seen=5), (E.FENCE,)),
    (SEEN, cl.Contradicted(5), "seen", cl.Claim(seen=5), ()),
    (NEW, cl.Offered(), "offered", OFFERED, ()),
    (OFFERED, cl.CommitAnswered(0, st.Committed(1)), "commit-answered",
     cl.Claim(S.OWNED, 1, 1), ()),
    (OWNED, cl.CommitAnswered(4, st.Committed(4)), "commit-answered", OWNED, ()),
    (OWNED, cl.CommitAnswered(4, st.Fenced(5)), "commit-answered", cl.Claim(seen=5), (E.FENCE,)),
    (OWNED, cl.LeaseLost(), "lease-lost", SEEN, (E.FENCE,)),
    (NEW, cl.LeaseLost(), "lease-lost-new", NEW, ()),
    (OFFERED, cl.LeaseLost(), "lease-lost-new", NONE, (E.FENCE,)),
    (OWNED, cl.Unused(), "unused", cl.Claim(S.NONE, 4, 4), (E.RELEASE,)),
    (NEW, cl.Unused(), "unused-new", NONE, ()),
    (OWNED, cl.Begun(), "begun-twice", OWNED, ()),
    (OWNED, cl.Offered(), "offered-again", OWNED, ()),
    (SEEN, cl.CommitAnswered(4, st.Committed(4)), "commit-late", SEEN, ()),
    (SEEN, cl.LeaseLost(), "lease-lost-before", SEEN, ()),
    (SEEN, cl.Unused(), "unused-before", SEEN, ()),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "event", "rule", "after", "effects"), CASES)
def test_a_rule(
    claim: cl.Claim, event: cl.ClaimEvent, rule: str, after: cl.Claim, effects: tuple[E, ...]
) -> None:
    done = cl.step(claim, event)
    assert (done.rule, done.state, done.effects) == (rule, after, effects)


def test_every_rule_has_an_example() -> None:
    assert {case[2] for case in CASES} == {rule.id for rule in cl.CLAIM_RULES.values()}


def test_every_pair_has_a_rule() -> None:
    assert set(cl.CLAIM_RULES) == {(stage, on) for stage in S for on in cl.ClaimEvent.__args__}
    assert all(rule.doc for rule in cl.CLAIM_RULES.values())


def test_a_late_answer_to_a_commit_of_an_earlier_claim_changes_nothing() -> None:
    for answer in (st.Committed(2), st.Fenced(4)):
        done = cl.step(OWNED, cl.CommitAnswered(2, answer))
        assert (done.state, done.effects) == (OWNED, ())


def test_a_late_answer_that_names_a_newer_owner_fences() -> None:
    done = cl.step(OWNED, cl.CommitAnswered(2, st.Fenced(5)))
    assert (done.state, done.effects) == (cl.Claim(seen=5), (E.FENCE,))
