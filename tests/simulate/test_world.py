"""Tests of the simulator: safe policies pass, unsafe ones and planted bugs are detected, and every
run can be repeated.

What belongs here: runs with few clients and fixed seeds. Large runs are made with the command.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from bridgecore import transport as tp
from bridgecore.endpoint import Endpoint
from bridgecore.recovery.builder import TransitionBuilder
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import (
    DEFAULT,
    PR397,
    V1_12,
    Action,
    Policy,
    Remedy,
    Situation,
)
from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.simulate import (
    PROFILES,
    Report,
    Scenario,
    run,
    run_many,
    shrink,
)
from bridgecore.simulate.troubles import trouble
from bridgecore.testing.faults import CATALOGUE

SMALL = Scenario(seed=7, clients=8, turns=6, fault_every=3)


def properties(report: Report) -> set[str]:
    return {violation.prop for violation in report.violations}


# ------------------------------------------------------------------ policies


def test_the_default_policy_violates_nothing() -> None:
    total = Report()
    for _, report in run_many(attrs.evolve(SMALL, clients=16, turns=10), 80):
        total.add(report)
    assert [str(violation) for violation in total.violations] == []
    # There were faults to recover from.
    assert total.conversations == 80
    assert total.turns + total.given_up + total.probes == 800
    assert total.probes > 10
    assert sum(total.troubles.values()) > 200
    assert len(total.troubles) > 30
    assert total.attempts > total.turns


def test_preloaded_connections_have_the_context() -> None:
    warm = attrs.evolve(SMALL, clients=24, turns=12, warm=True)
    report = run(warm)
    assert [str(violation) for violation in report.violations] == []
    assert report.ledger.warmed > 50


def test_without_faults_every_turn_succeeds_at_once() -> None:
    profiles = tuple(profile for profile in PROFILES if profile.anchored and profile.store)
    calm = attrs.evolve(SMALL, fault_every=None, profiles=profiles)
    patient = tuple(attrs.evolve(profile, impatient=False) for profile in profiles)
    report = run(attrs.evolve(calm, profiles=patient))
    assert report.violations == []
    assert report.turns == report.attempts == report.upstream_turns == 48


def resends_ambiguous() -> Policy:
    cell = Remedy(Action.RESEND, FailureReply.STREAM_INCOMPLETE)
    policy = DEFAULT
    for standing in Standing:
        policy = policy.with_cell(Situation.LOST_SENT, standing, cell)
    return attrs.evolve(policy, name="resends ambiguous")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (V1_12, {"not-found", "execution"}),
        (PR397, {"execution"}),
        (resends_ambiguous(), {"execution"}),
    ],
    ids=lambda value: value.name if isinstance(value, Policy) else "",
)
def test_an_unsafe_policy_is_caught(policy: Policy, expected: set[str]) -> None:
    found: set[str] = set()
    for _, report in run_many(attrs.evolve(SMALL, clients=32, policy=policy, fault_every=2), 64):
        found |= properties(report)
    assert found == expected


# ------------------------------------------------------------------ planted bugs


def tampering(change: Callable[[tp.TransportEffect], tp.TransportEffect | None]) -> type[Endpoint]:
    """An endpoint whose effects are replaced by ``change``; None drops one."""

    class Tampering(Endpoint):
        def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
            changed = map(change, super().handle(event, now))
            return [effect for effect in changed if effect is not None]

    return Tampering


def replacing(old: bytes, new: bytes) -> type[Endpoint]:
    """An endpoint that sends ``new`` instead of ``old``; of equal length, so that framing stays
    right."""
    assert len(old) == len(new)

    def change(effect: tp.TransportEffect) -> tp.TransportEffect:
        if isinstance(effect, tp.Send):
            return tp.Send(effect.conn, effect.data.replace(old, new), effect.notify)
        return effect

    return tampering(change)


def dropping(*kinds: type[tp.TransportEffect]) -> type[Endpoint]:
    return tampering(lambda effect: None if isinstance(effect, kinds) else effect)


def swallowing(text: bytes, *kinds: type[tp.TransportEffect]) -> type[Endpoint]:
    """An endpoint that never sends bytes with ``text``, and drops effects of ``kinds``."""

    def change(effect: tp.TransportEffect) -> tp.TransportEffect | None:
        swallowed = isinstance(effect, tp.Send) and text in effect.data
        return None if swallowed or isinstance(effect, kinds) else effect

    return tampering(change)


class Raising(Endpoint):
    """It raises at an end of stream."""

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        if isinstance(event, tp.EofReceived):
            raise RuntimeError("planted")
        return super().handle(event, now)


class Sleepless(Endpoint):
    """A deadline that was handled stays due."""

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        return [] if isinstance(event, tp.TimeoutReached) else super().handle(event, now)


@pytest.mark.parametrize(
    ("endpoint", "prop", "words"),
    [
        (replacing(b"<c1t", b"<c0t"), "isolation", "has texts of clients [0]"),
        (replacing(b'"text":"turn 2: ', b'"text":"turn 9: '), "context", "user messages"),
        (replacing(b'"role":"assistant"', b'"role":"assistent"'), "context", "is not what it"),
        (replacing(b'"sequence_number":3}', b'"sequence_number":1}'), "stream", "does not rise"),
        (replacing(b"event: response.created", b"event: response.queued_"), "stream", "its data"),
        (replacing(b"response.completed", b"response.compIeted"), "stream", "terminal event"),
        (replacing(b"retry-after:", b"x-try-after:"), "stream", "Retry-After"),
        (replacing(b"HTTP/1.1 502", b"HTTP/1.1 500"), "status", "without a cause"),
        (replacing(b"HTTP/1.1 200", b"HTTP/1.0 200"), "stream", "status line"),
        (replacing(b"\r\n0\r\n", b"\r\nz\r\n"), "stream", "chunk size"),
        (swallowing(b"HTTP/1.1 502"), "stream", "cut short"),
        (swallowing(b"HTTP/1.1 502", tp.Close, tp.Abort), "liveness", "no answer for two hours"),
        (dropping(tp.Abort), "leak", "three hours after"),
        (dropping(tp.Stop), "drain", "does not stop"),
        (Raising, "machine", "RuntimeError: planted"),
        (Sleepless, "machine", "is due again"),
    ],
)
def test_a_planted_bug_is_caught(endpoint: type[Endpoint], prop: str, words: str) -> None:
    report = run(attrs.evolve(SMALL, clients=10, turns=8, endpoint=endpoint))
    assert any(words in found.text for found in report.violations if found.prop == prop), [
        str(violation) for violation in report.violations
    ]


def test_a_bug_that_only_the_model_of_a_session_sees_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An idle deadline that is a second late is not visible to clients."""
    set_timer = TransitionBuilder.set_timer

    def late(builder: TransitionBuilder, timer: Timer, after: int) -> None:
        set_timer(builder, timer, after + (NS_PER_SECOND if timer is Timer.IDLE else 0))

    monkeypatch.setattr(TransitionBuilder, "set_timer", late)
    report = run(SMALL)
    assert properties(report) == {"session"}
    assert report.violations[0].text.startswith("DEADLINES_ARE_KEPT: idle is set to ")


# ------------------------------------------------------------------ the same again, and smaller


def test_a_run_can_be_repeated() -> None:
    first, again = run(SMALL), run(SMALL)
    assert first.digest == again.digest
    assert attrs.asdict(first) == attrs.asdict(again)
    assert run(attrs.evolve(SMALL, seed=8)).digest != first.digest


def test_recording_a_run_changes_nothing() -> None:
    lines: list[str] = []
    assert run(SMALL, lines.append).digest == run(SMALL).digest
    assert len(lines) > 100


def test_a_violation_is_shrunk_to_a_timeline() -> None:
    scenario = attrs.evolve(SMALL, clients=24, policy=V1_12)
    violation = next(v for v in run(scenario).violations if v.prop == "not-found")
    shrunk = shrink(scenario, violation)
    small = shrunk.scenario
    assert small.only is not None
    assert len(small.only) == 1
    assert small.turns <= violation.turn
    assert not small.restarts
    # The timeline has the loss and the wrong answer, and is that of the small run.
    text = str(shrunk)
    assert "code=previous_response_not_found" in text
    assert "VIOLATION of not-found" in text
    assert properties(run(small)) >= {"not-found"}
    # One fault is left; without it there is no violation.
    assert run(attrs.evolve(small, fault_every=None)).violations == []
    assert len(shrunk.timeline) < 40


def test_only_a_failing_run_can_be_shrunk() -> None:
    violation = run(attrs.evolve(SMALL, clients=24, policy=V1_12)).violations[0]
    with pytest.raises(ValueError, match="does not break"):
        shrink(SMALL, violation)


def test_a_client_that_comes_back_at_once_is_not_due_again() -> None:
    """A regression found after some million events: a client drew a pause of length zero."""
    report = run(Scenario(seed=162, fault_every=3, only=frozenset({15})))
    assert report.violations == []


# ------------------------------------------------------------------ faults of real services


def drawn(odd: bool) -> set[object]:
    turns = [trouble(1, client, turn, 1, odd=odd) for client in range(100) for turn in range(100)]
    return {found.what for found in turns if found is not None}


def test_the_faults_of_real_services_are_drawn_if_they_are_wanted() -> None:
    all_of_them, some = drawn(True), drawn(False)
    missing = {name for name, named in CATALOGUE.items() if named.fault not in all_of_them}
    assert missing == {"slow-reader", "too-large-while-receiving", "chain-id"}
    usual = {name for name, named in CATALOGUE.items() if named.fault in some}
    assert all(name.startswith(("not-found", "server-error", "closed-with")) for name in usual)
    assert Scenario(seed=1).odd


def test_an_upstream_that_reads_slowly_changes_nothing() -> None:
    profiles = tuple(profile for profile in PROFILES if not profile.impatient)
    slow = attrs.evolve(SMALL, fault_every=None, odd=True, profiles=profiles)
    reports = [run(attrs.evolve(slow, seed=seed)) for seed in range(8)]
    assert [str(violation) for report in reports for violation in report.violations] == []
    usual = [run(attrs.evolve(slow, seed=seed, odd=False)) for seed in range(8)]
    assert [report.turns for report in reports] == [report.turns for report in usual]
    # Some of these upstreams are slow, others are not.
    same = [report.digest == other.digest for report, other in zip(reports, usual, strict=True)]
    assert 0 < sum(same) < 8
