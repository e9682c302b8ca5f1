"""The simulator: safe policies pass, unsafe ones and planted bugs are caught, and every run can be
had again.

What belongs here: runs with few clients and fixed seeds. The big ones are the command's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import attrs
import pytest

from bridgecore.endpoint import Endpoint
from bridgecore.recovery.draft import Draft
from bridgecore.recovery.effects import Answer
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
from bridgecore.testing.faults import CATALOGUE
from bridgecore.verify.sim_clients import PROFILES, AnswerError, AnswerReader, Head
from bridgecore.verify.sim_clients import Answer as ClientAnswer
from bridgecore.verify.sim_growth import Experiment, grow, plot, summary, table
from bridgecore.verify.sim_network import Rng
from bridgecore.verify.simulate import Report, Scenario, run, run_many, shrink, trouble
from bridgecore.wire import transport as tp
from bridgecore_cli import simulate as command
from bridgecore_cli.arguments import parser

SMALL = Scenario(seed=7, clients=8, turns=6, fault_every=3)


def properties(report: Report) -> set[str]:
    return {violation.prop for violation in report.violations}


# ------------------------------------------------------------------ policies


def test_the_default_policy_violates_nothing() -> None:
    total = Report()
    for _, report in run_many(attrs.evolve(SMALL, clients=16, turns=10), 80):
        total.add(report)
    assert [str(violation) for violation in total.violations] == []
    # It was not for want of trouble.
    assert total.conversations == 80
    assert total.turns + total.given_up + total.probes == 800
    assert total.probes > 10
    assert sum(total.troubles.values()) > 200
    assert len(total.troubles) > 30
    assert total.attempts > total.turns


def test_warmed_sockets_know_what_was_said() -> None:
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
    cell = Remedy(Action.RESEND, Answer.STREAM_INCOMPLETE)
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
    """An endpoint whose every effect goes through ``change``; None drops it."""

    class Tampering(Endpoint):
        def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
            changed = map(change, super().handle(event, now))
            return [effect for effect in changed if effect is not None]

    return Tampering


def replacing(old: bytes, new: bytes) -> type[Endpoint]:
    """An endpoint that says ``new`` where it should say ``old``; of equal length, for framing."""
    assert len(old) == len(new)

    def change(effect: tp.TransportEffect) -> tp.TransportEffect:
        if isinstance(effect, tp.Send):
            return tp.Send(effect.conn, effect.data.replace(old, new), effect.notify)
        return effect

    return tampering(change)


def dropping(*kinds: type[tp.TransportEffect]) -> type[Endpoint]:
    return tampering(lambda effect: None if isinstance(effect, kinds) else effect)


def swallowing(text: bytes, *kinds: type[tp.TransportEffect]) -> type[Endpoint]:
    """An endpoint that never sends what holds ``text``, and does nothing of ``kinds``."""

    def change(effect: tp.TransportEffect) -> tp.TransportEffect | None:
        swallowed = isinstance(effect, tp.Send) and text in effect.data
        return None if swallowed or isinstance(effect, kinds) else effect

    return tampering(change)


class Raising(Endpoint):
    """It cannot bear an end of stream."""

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        if isinstance(event, tp.EofReceived):
            raise RuntimeError("planted")
        return super().handle(event, now)


class Sleepless(Endpoint):
    """A deadline that was handled stays where it was."""

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
        (replacing(b"HTTP/1.1 502", b"HTTP/1.1 500"), "status", "out of the blue"),
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
    """A deadline that is a second late does no client any harm that could be told from outside."""
    set_timer = Draft.set_timer

    def late(draft: Draft, timer: Timer, after: int) -> None:
        set_timer(draft, timer, after + (NS_PER_SECOND if timer is Timer.IDLE else 0))

    monkeypatch.setattr(Draft, "set_timer", late)
    report = run(SMALL)
    assert properties(report) == {"session"}
    assert report.violations[0].text.startswith("DEADLINES_ARE_KEPT: idle is due at ")


# ------------------------------------------------------------------ the same again, and smaller


def test_a_run_can_be_had_again() -> None:
    first, again = run(SMALL), run(SMALL)
    assert first.digest == again.digest
    assert attrs.asdict(first) == attrs.asdict(again)
    assert run(attrs.evolve(SMALL, seed=8)).digest != first.digest


def test_being_watched_changes_nothing() -> None:
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
    # What it shows is the loss and the untruth, and it is what the small run really does.
    text = str(shrunk)
    assert "code=previous_response_not_found" in text
    assert "VIOLATION of not-found" in text
    assert properties(run(small)) >= {"not-found"}
    # One trouble is left; without it nothing goes wrong.
    assert run(attrs.evolve(small, fault_every=None)).violations == []
    assert len(shrunk.timeline) < 40


def test_only_what_fails_can_be_shrunk() -> None:
    violation = run(attrs.evolve(SMALL, clients=24, policy=V1_12)).violations[0]
    with pytest.raises(ValueError, match="does not break"):
        shrink(SMALL, violation)


def test_the_generator_is_splitmix64() -> None:
    """The numbers that the published reference code gives for the seed 0."""
    rng = Rng()
    assert [rng.bits() for _ in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_keys_give_unrelated_numbers() -> None:
    numbers = {Rng(a, b).bits() for a in range(30) for b in range(30)}
    assert len(numbers) == 900
    rolls = [Rng(5, n).between(1, 6) for n in range(6000)]
    assert all(850 < rolls.count(side) < 1150 for side in range(1, 7))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx : y\r\n\r\n",
        b"HTTP/2 200\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\r\n\r\n",
    ],
)
def test_the_clients_are_strict(answer: bytes) -> None:
    with pytest.raises(AnswerError):
        AnswerReader().feed(answer)


def test_the_clients_read_answers_in_any_pieces() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\nno"
    )
    for size in (1, 2, 7, len(answer)):
        reader = AnswerReader()
        parts: list[Any] = []
        for start in range(0, len(answer), size):
            parts += reader.feed(answer[start : start + size])
        bodies = b"".join(part for part in parts if isinstance(part, bytes))
        assert bodies == b"abcdeno"
        assert [part.status for part in parts if hasattr(part, "status")] == [200, 502]
        assert reader.untouched


def streamed(*events: bytes) -> ClientAnswer:
    """An answer whose stream has these events."""
    answer = ClientAnswer(Head(200, {b"content-type": b"text/event-stream"}))
    for event in events:
        name = event.split(b'"')[3]
        answer.feed(b"event: %b\ndata: %b\n\n" % (name, event))
    return answer


def test_the_clients_notice_what_only_an_altered_stream_may_have() -> None:
    created = b'{"type":"response.created","sequence_number":0,"response":{"id":"a"}}'
    same = b'{"type":"response.completed","sequence_number":1,"response":{"id":"a","output":[]}}'
    other = same.replace(b'"id":"a"', b'"id":"b"')
    bare = same.replace(b'"sequence_number":1,', b"")
    found = [streamed(created, event) for event in (same, other, bare)]
    assert [answer.renamed for answer in found] == [False, True, False]
    assert [answer.unnumbered for answer in found] == [False, False, True]
    assert all(answer.final()["output"] == [] for answer in found)


@pytest.mark.parametrize("output", [b"null", b"[null]", b"[{}]", b'["x"]', b"7"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_clients_want_a_list_of_items(output: bytes, stream: bool) -> None:
    response = b'{"id":"a","status":"completed","output":%b}' % output
    answer = streamed(
        b'{"type":"response.created","sequence_number":0,"response":{"id":"a"}}',
        b'{"type":"response.completed","sequence_number":1,"response":%b}' % response,
    )
    if not stream:
        answer = ClientAnswer(Head(200, {b"content-type": b"application/json"}))
        answer.feed(response)
    with pytest.raises(AnswerError, match="no list of items"):
        answer.final()


def test_events_of_no_response_need_no_number() -> None:
    answer = streamed(
        b'{"type":"response.created","sequence_number":0,"response":{"id":"a"}}',
        b'{"type":"codex.rate_limits"}',
        b'{"type":"response.completed","sequence_number":1,"response":{"id":"a","output":[]}}',
    )
    assert not answer.unnumbered


def test_the_clients_read_half_a_surrogate_pair() -> None:
    answer = streamed(
        b'{"type":"response.created","sequence_number":0,"response":{"id":"a"}}',
        b'{"type":"response.output_item.done","sequence_number":1,"item":{"type":"\\ud83d"}}',
        b'{"type":"response.completed","sequence_number":2,'
        b'"response":{"id":"a","output":[{"type":"\\ud83d"}]}}',
    )
    assert answer.final()["output"] == [{"type": "\ud83d"}]
    with pytest.raises(AnswerError):
        streamed(b'{"type":"response.created","sequence_number":"\\ud83d"}')


# ------------------------------------------------------------------ faults of real services


def drawn(odd: bool) -> set[object]:
    turns = [trouble(1, client, turn, 1, odd=odd) for client in range(100) for turn in range(100)]
    return {found.what for found in turns if found is not None}


def test_the_faults_of_real_services_are_drawn_if_they_are_wanted() -> None:
    missing = {name for name, named in CATALOGUE.items() if named.fault not in drawn(True)}
    assert missing == {"slow-reader", "too-large-while-receiving", "chain-id"}
    usual = {name for name, named in CATALOGUE.items() if named.fault in drawn(False)}
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


# ------------------------------------------------------------------ growth


def test_the_context_grows_by_what_is_new_under_default() -> None:
    growth = grow(Experiment())
    assert growth.sound
    assert len(growth.rows) == 200
    assert all(row.grown == 2_300 for row in growth.rows[1:])
    assert all(row.sent == 2_000 for row in growth.rows[1:])
    assert all(row.errors == ("502 stream_incomplete",) for row in growth.rows[1:])


def test_the_context_blows_up_under_v1_12() -> None:
    growth = grow(Experiment(policy=V1_12))
    assert growth.full is not None
    assert 10 <= growth.full < 20
    assert 60_000 <= growth.per_turn <= 75_000
    assert not growth.sound
    assert all(
        row.errors == ("400 previous_response_not_found",) and row.grown == row.sent + 300
        for row in growth.rows[1:]
    )


def test_without_losses_the_policies_are_alike() -> None:
    calm = Experiment(turns=10, fault_every=None)
    assert grow(calm).rows == grow(attrs.evolve(calm, policy=V1_12)).rows


def test_a_window_can_be_too_small_for_anybody() -> None:
    growth = grow(Experiment(turns=10, window=60_000))
    assert growth.full == 5
    assert "full at turn 5" in summary(growth)


def test_without_storage_the_context_is_what_it_must_be() -> None:
    growth = grow(Experiment(turns=6, store=False))
    assert growth.sound
    # What is rehydrated goes without the service's ids, which no model reads.
    assert all(row.grown == 2_300 and row.sent == 2_000 for row in growth.rows[1:])


def test_the_plot_can_be_read() -> None:
    growths = [
        grow(Experiment(turns=30, fault_every=3)),
        grow(Experiment(turns=30, policy=V1_12, fault_every=3)),
    ]
    root = ElementTree.fromstring(plot(growths))
    space = "{http://www.w3.org/2000/svg}"
    texts = ["".join(text.itertext()) for text in root.iter(f"{space}text")]
    assert {"turn", "context, tokens", "window, 876 K", "0 K", "0"} <= set(texts)
    assert all(summary(growth) in texts for growth in growths)
    lines = [line.attrib["points"].split() for line in root.iter(f"{space}polyline")]
    assert [len(line) for line in lines] == [len(growth.rows) for growth in growths]
    # Higher is more, and nothing leaves the picture.
    heights = [float(point.split(",")[1]) for point in lines[1]]
    assert heights == sorted(heights, reverse=True)
    _, _, width, height = (float(number) for number in root.attrib["viewBox"].split())
    for line in lines:
        for point in line:
            x, y = map(float, point.split(","))
            assert 0 < x < width
            assert 0 < y < height


def test_a_long_table_is_shortened() -> None:
    growth = grow(Experiment(turns=60, new_tokens=500, system_tokens=500))
    lines = table(growth).splitlines()
    assert len(lines) < 32
    assert lines[1].split()[0] == "1"
    assert lines[-1].split()[0] == "60"


# ------------------------------------------------------------------ the command


def invoke(*arguments: str) -> int:
    return command.run(parser().parse_args(["simulate", *arguments]))


def test_the_command_shows_both_policies(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    svg = tmp_path / "context.svg"
    assert invoke("--policy", "both", "--turns", "20", "--svg", str(svg)) == 0
    out = capsys.readouterr().out
    assert "default: 20 turns use" in out
    assert "v1_12: the window of 876,000 tokens is full at turn 14" in out
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


def test_the_command_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    code = invoke(
        "--policy", "v1_12", "--turns", "8", "--conversations", "32", "--faults", "2", "--json"
    )
    found = json.loads(capsys.readouterr().out)
    assert code == 1
    assert found["sound"] is False
    assert len(found["growth"]["v1_12"]["turns"]) == 8
    storm = found["conversations"]["v1_12"]
    assert storm["violations"]
    assert storm["conversation_hours_per_minute"] > 0
    assert "VIOLATION" in storm["shrunk"]


def test_the_command_reports_a_sound_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("--turns", "5", "--conversations", "8", "--seed", "3") == 0
    out = capsys.readouterr().out
    assert "8 conversations of 5 turns" in out
    assert "0 violations" in out
    assert "a minute" in out
    assert "sockets warmed" not in out


def test_the_command_warms_sockets(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("--turns", "5", "--conversations", "8", "--warm") == 0
    assert "sockets warmed" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_the_command_fails_if_the_plot_cannot_be_written_after_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """That its place is a wrong one is found out before the run: tests/cli/test_cli.py."""
    assert invoke("--turns", "2", "--svg", "/dev/full") == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--turns", "0"], ["--faults", "often"], ["--seed", "-1"], ["--policy", "none"]]
)
def test_the_command_refuses_bad_flags(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        invoke(*arguments)
    assert caught.value.code == 2


def test_a_client_that_comes_back_at_once_is_not_due_again() -> None:
    """Found after some millions of events: a client drew a pause of no length at all."""
    report = run(Scenario(seed=162, fault_every=3, only=frozenset({15})))
    assert report.violations == []
