"""Tests of observed.py, foreign.py and its parts (foreign_search.py, foreign_courses.py and
foreign_answers.py): the log of another bridge is accepted if there is a course of events in which
it does nothing wrong, and else rejected at its first wrong line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.config import Continuity
from bridgecore.recovery import events as ev
from bridgecore.recovery.failure import Closed
from bridgecore.simulate import Scenario, checks, run
from bridgecore.verify.cost import CostedProperty
from bridgecore.verify.foreign import check_trace, is_decision_log
from bridgecore.verify.observed import HEADER, LINES, Says, read_log
from bridgecore.verify.properties import Property
from bridgecore.verify.replay import MalformedLog, Replay
from bridgecore.verify.trace import TraceReport, check_decisions
from tests.verify.foreign_logs import encoded, translated
from tests.verify.test_replay import eventful, lines_of

Json = dict[str, Any]
TRACES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "traces"
HEAD: Json = {"trace": "bridge events", "format": 1}
OPTIONAL = ("connect", "upstream_opened", "upstream_closed", "frame_sent", "delivered")


class Log:
    """Writes a log line by line, one second after the other."""

    def __init__(self, **header: Any) -> None:
        self.rows: list[Json] = [{**HEAD, **header}]
        self.at = 0

    def add(self, event: str, turn: str | None = None, *, wait: int = 1, **fields: Any) -> Log:
        self.at += wait * 1000
        row: Json = {"at": self.at, "session": "s", "event": event, **fields}
        if event == "log_ended":
            del row["session"]
        if turn is not None:
            row["turn"] = turn
        self.rows.append(row)
        return self

    def turn(self, name: str, anchor: str | None = None, **fields: Any) -> Log:
        """A turn that gets its answer, ``r-NAME``, on the open connection."""
        previous: Json = {} if anchor is None else {"previous_response_id": anchor}
        self.add("turn_submitted", name, **previous, **fields)
        if len(self.rows) == 2:
            self.add("upstream_opened")
        return self.add("sent", name, **previous).answer(name)

    def answer(self, name: str) -> Log:
        self.add("response_created", response=f"r-{name}").add("output")
        self.add("response_ended", response=f"r-{name}")
        return self.add("answered", name, status=200)

    def check(self, *without: CostedProperty) -> TraceReport:
        return check_trace(encoded(self.rows), frozenset(without))


def broken(report: TraceReport) -> tuple[int, CostedProperty | None]:
    assert report.wrong is not None
    return report.wrong.line, report.wrong.prop


# ------------------------------------------------------------------ the examples of the docs


@pytest.mark.parametrize(
    ("name", "line", "prop"),
    [
        ("answers_not_found", 12, Property.NOT_FOUND_IS_EARNED),
        ("sends_again", 13, Property.NO_AMBIGUOUS_RESEND),
        ("gets_stuck", 12, Property.TURNS_END),
    ],
)
def test_an_example_is_rejected_at_its_line(name: str, line: int, prop: Property) -> None:
    lines = (TRACES / f"{name}.jsonl").read_bytes().splitlines()
    assert broken(check_trace(lines)) == (line, prop)
    assert check_trace(lines, frozenset([prop])).wrong is None


def test_the_sound_example_is_accepted() -> None:
    report = check_trace((TRACES / "sound.jsonl").read_bytes().splitlines())
    assert (report.wrong, report.sessions, report.policies) == (None, 1, ())


# ------------------------------------------------------------------ logs of a bridge that is known


@pytest.mark.parametrize("continuity", Continuity)
def test_what_is_seen_of_our_own_bridge_is_accepted(continuity: Continuity) -> None:
    rows = translated(lines_of(eventful(continuity=continuity)))
    assert {row["event"] for row in rows} >= {*LINES} - {"log_ended", "turn_abandoned"}
    report = check_trace(encoded(rows))
    assert report.wrong is None
    assert report.steps == len(rows)


def test_the_cells_that_it_meets_are_those_that_decided() -> None:
    own, foreign = check_decisions(lines_of(eventful())), check_trace(encoded(_SEEN))
    assert foreign.cells == own.cells
    assert foreign.rules.keys() - own.rules.keys() == {"evict-idle"}  # of ours: expiry
    assert own.rules["submit"] == foreign.rules["submit"] > 40
    without = check_trace(encoded(row for row in _SEEN if row["event"] != "frame_sent"))
    assert without.cells == own.cells


def test_what_is_met_follows_a_bridge_that_decides_otherwise() -> None:
    """It gives up a turn where ``default`` tries again, and goes on on the connection it has."""
    log = Log().turn("1").add("turn_submitted", "2").add("sent", "2").add("upstream_lost")
    log.add("answered", "2", status=502, code="stream_incomplete")
    log.add("turn_submitted", "3", wait=20).add("upstream_opened").add("sent", "3").answer("3")
    log.add("turn_submitted", "4", previous_response_id="r-3")
    log.add("sent", "4", previous_response_id="r-3").answer("4")
    report = log.check()
    assert (report.wrong, report.losses) == (None, 0)
    assert report.cells == {"lost_sent/unanchored": 1}
    assert (report.rules["submit"], report.rules["ended"]) == (4, 3)
    assert report.rules["connection-opened"] == 2


@settings(max_examples=4)
@given(silent=st.sets(st.sampled_from([*OPTIONAL, "timed_out", "upstream_lost"])))
def test_it_is_accepted_whatever_the_log_is_silent_about(silent: set[str]) -> None:
    rows = [row for row in _SEEN if row["event"] not in silent]
    assert check_trace(encoded(rows)).wrong is None


_SEEN = translated(lines_of(eventful()))


@settings(max_examples=4)
@given(silent=st.sets(st.sampled_from([*OPTIONAL, "timed_out"])))
def test_the_broken_policy_is_rejected_whatever_the_log_is_silent_about(silent: set[str]) -> None:
    rows = [row for row in _BROKEN if row["event"] not in silent]
    wrong = check_trace(encoded(rows)).wrong
    assert wrong is not None
    assert wrong.prop is Property.NOT_FOUND_IS_EARNED
    assert rows[wrong.line - 1]["code"] == "previous_response_not_found"


_BROKEN = translated(lines_of(eventful("v1_12")))


def test_a_log_of_the_simulator_is_accepted_in_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[bytes] = []

    class Recording(Replay):
        def take(self, line: bytes, number: int | None = None) -> Any:
            lines.append(line)
            return super().take(line, number)

    monkeypatch.setattr(checks, "Replay", Recording)
    run(Scenario(seed=3, clients=6, turns=5, fault_every=2))
    own = check_decisions(lines)
    assert own.wrong is None
    assert len(own.rules) > 12
    assert len(own.cells) > 5
    rows = translated(lines)
    foreign = check_trace(encoded([{**HEAD, "wedged_after": 4000}, *rows]))
    assert foreign.wrong is None
    assert foreign.sessions > 3
    assert foreign.states[0] < 200


# ------------------------------------------------------------------ what a log is silent about


def test_a_loss_that_nobody_wrote_down_is_assumed() -> None:
    log = Log().turn("1", store=False).add("turn_submitted", "2").add("sent", "2")
    log.add("answered", "2", status=502).add("turn_submitted", "3").add("upstream_opened")
    log.add("sent", "3").answer("3")
    report = log.check()
    assert report.wrong is None
    assert report.states[0] > 1
    log.rows[0]["unlogged"] = 0
    assert broken(log.check()) == (11, Property.ONE_END)


def _refused_for_ever(**header: Any) -> Log:
    """After a loss all turns get the same 502, and the log shows no connect that failed."""
    log = Log(**header).turn("1", store=False).add("upstream_lost")
    for number in range(2, 10):
        log.add("turn_submitted", str(number), wait=10, previous_response_id="r-1")
        log.add("answered", str(number), status=502, code="stream_incomplete")
    return log


def test_the_losses_that_a_log_must_lack_are_counted() -> None:
    """Each excuses one answer, and none is free of charge: who reads the verdict has to know."""
    report = _refused_for_ever().check()
    assert (report.wrong, report.losses, report.deadlines) == (None, 8, 0)
    report = Log().turn("1").turn("2", "r-1").check()
    assert (report.wrong, report.losses, report.deadlines) == (None, 0, 0)


@pytest.mark.parametrize("header", [{"logs": ["upstream_lost", "timed_out"]}, {"unlogged": 0}])
def test_without_them_a_turn_is_not_given_up_before_it_was_tried(header: Json) -> None:
    assert broken(_refused_for_ever(**header).check()) == (11, Property.CONTINUED_AT_ONCE)


@pytest.mark.parametrize("logged", ["upstream_lost", "timed_out"])
def test_what_the_bridge_always_logs_is_not_assumed(logged: str) -> None:
    report = _refused_for_ever(logs=[logged]).check()
    assert report.wrong is None
    assert (report.losses, report.deadlines) == ((0, 8) if logged == "upstream_lost" else (8, 0))


def test_the_same_refusal_on_an_open_connection_is_bounded() -> None:
    log = _refused_for_ever(logs=["upstream_lost", "timed_out"])
    opened = {"at": log.rows[10]["at"] - 1, "session": "s", "event": "upstream_opened"}
    log.rows.insert(10, opened)
    assert broken(log.check()) == (18, Property.REFUSALS_ARE_BOUNDED)


def test_an_assumed_loss_excuses_no_resend() -> None:
    log = Log().turn("1").add("turn_submitted", "2").add("sent", "2")
    log.add("upstream_opened").add("sent", "2")
    assert broken(log.check()) == (len(log.rows), Property.ONE_AT_A_TIME)
    log.rows.insert(-2, {**log.rows[-2], "event": "upstream_lost"})
    assert broken(log.check()) == (len(log.rows), Property.NO_AMBIGUOUS_RESEND)


def test_a_bridge_may_be_late() -> None:
    """The loss of the connection is written down before the bridge notices it: it sends on it."""
    log = Log(unlogged=0).turn("1").add("upstream_lost").add("turn_submitted", "2", wait=0)
    log.add("sent", "2").add("answered", "2", status=502)
    assert log.check().wrong is None
    log.rows[0]["late"] = 1  # now it has to have noticed it before
    log.rows[-2]["at"] += 3000
    log.rows[-1]["at"] += 3000
    assert broken(log.check()) == (len(log.rows) - 1, Property.OPEN_IS_OPEN)


def _noticed_late(**header: Any) -> Log:
    """The bridge sends a turn on a connection that was lost 3.5 s before."""
    log = Log(unlogged=0, **header).turn("1").add("upstream_lost")
    log.add("turn_submitted", "2", wait=0).add("sent", "2").add("answered", "2", status=502)
    log.rows[-2]["at"] += 2500
    log.rows[-1]["at"] += 2500
    return log


def test_what_is_noticed_late_is_counted() -> None:
    """It is an assumption as a loss that is not logged is: without it the log would be wrong."""
    report = _noticed_late().check()
    assert (report.wrong, report.late, report.latest) == (None, 1, 3_500_000_000)
    assert report.as_data()["late"] == {"reactions": 1, "seconds": 3.5, "to_come": 0}


@pytest.mark.parametrize("silent", [set(), {"connect"}, {"delivered"}, set(OPTIONAL)])
def test_a_bridge_that_reacts_at_once_is_never_late(silent: set[str]) -> None:
    report = check_trace(encoded(row for row in _SEEN if row["event"] not in silent))
    assert (report.wrong, report.late, report.latest, report.to_come) == (None, 0, 0, 0)


def test_a_reaction_that_is_too_late_names_the_limit_to_raise() -> None:
    log = _noticed_late(late=2)
    report = log.check()
    assert broken(report) == (11, Property.OPEN_IS_OPEN)
    assert report.wrong is not None
    hint = "; it would be right if this bridge may take 3.5 s to react: then state `late` as "
    assert report.wrong.text.endswith(f"{hint}at least 4 in the header, not 2")
    log.rows[0]["late"] = 5
    assert log.check().wrong is None
    log.rows[0] |= {"late": 2, "wedged_after": 3}  # then it is stuck rather than late
    report = log.check()
    assert report.wrong is not None
    assert "late" not in report.wrong.text


def test_what_no_lateness_explains_names_no_limit() -> None:
    log = Log().turn("1").add("turn_submitted", "2").add("sent", "2").add("upstream_lost")
    report = log.add("upstream_opened").add("sent", "2").check()
    assert report.wrong is not None
    assert "`late`" not in report.wrong.text


def test_a_reaction_that_does_not_come_is_missed_at_its_event() -> None:
    log = Log(unlogged=0).turn("1").add("turn_submitted", "2").add("log_ended", wait=9)
    report = log.check()
    assert broken(report) == (9, Property.NOTHING_IS_STRANDED)
    assert report.wrong is not None
    assert "; nothing followed within 5 s: if this bridge may take longer" in report.wrong.text
    assert "state a larger `late` in the header" in report.wrong.text
    log.rows[0]["late"] = 60
    report = log.check()
    assert (report.wrong, report.late, report.to_come) == (None, 0, 1)


def test_a_turn_that_does_not_end_is_stuck() -> None:
    log = Log(wedged_after=30).turn("1").add("turn_submitted", "2").add("sent", "2")
    log.add("response_created", response="r").add("log_ended", wait=28)
    assert log.check().wrong is None
    log.rows[-1]["at"] += 2000
    assert broken(log.check()) == (11, Property.TURNS_END)
    log.rows.insert(-1, {"at": 30_000, "session": "s", "event": "turn_abandoned", "turn": "2"})
    assert log.check().wrong is None


def test_a_connection_may_be_made_before_there_is_a_turn_for_it() -> None:
    log = Log().add("connect").add("upstream_opened").add("turn_submitted", "1").add("sent", "1")
    log.answer("1").add("upstream_lost", code=1001).add("connect").add("upstream_opened")
    log.add("upstream_lost").add("connect").add("upstream_opened")
    log.add("turn_submitted", "2", wait=90).add("sent", "2").answer("2")
    assert log.check().wrong is None


def test_what_a_bridge_says_that_it_logs_is_not_filled_in() -> None:
    """Left in mid-answer, and the connection kept: the rest of the answer could reach anybody."""
    log = Log().turn("1").add("turn_submitted", "2").add("sent", "2")
    log.add("response_created", response="r").add("turn_abandoned", "2").add("log_ended", wait=9)
    assert log.check().wrong is None
    log.rows[0]["logs"] = ["upstream_closed"]
    assert broken(log.check()) == (len(log.rows) - 1, Property.ONE_AT_A_TIME)


# ------------------------------------------------------------------ what a bridge can do wrong


def _injects_again(log: Log) -> None:
    for name in ("2", "3"):
        log.add("turn_submitted", name).add("sent", name, previous_response_id="r-1")
        if name == "2":
            log.add("upstream_error", status=400).add("sent", name).answer(name)


def _answers_another(log: Log) -> None:
    """A copy of the end of turn 1 comes while turn 2 runs."""
    log.add("turn_submitted", "2").add("sent", "2").add("response_ended", response="r-1")
    log.add("answered", "2", status=200)


def _retries_what_is_too_large(log: Log) -> None:
    log.add("turn_submitted", "2").add("sent", "2").add("upstream_lost", code=1009)
    log.rows.insert(2, {"at": 1000, "session": "s", "event": "connect"})
    log.add("connect").add("upstream_opened").add("sent", "2")


def _blames_the_client(log: Log) -> None:
    log.add("turn_submitted", "2").add("sent", "2").add("upstream_lost")
    log.add("answered", "2", status=400, code="invalid_request_error")


def _sends_an_anchor_elsewhere(log: Log) -> None:
    log.rows[1]["store"] = False
    log.add("upstream_lost").add("turn_submitted", "2", wait=60, previous_response_id="r-1")
    log.add("upstream_opened").add("sent", "2", previous_response_id="r-1")


@pytest.mark.parametrize(
    ("write", "prop"),
    [
        (_injects_again, Property.REFUSED_PLAN_ENDS),
        (_answers_another, Property.DELIVERED_TO_ITS_TURN),
        (_retries_what_is_too_large, Property.RECOVERY_DESCENDS),
        (_blames_the_client, Property.ANSWER_TELLS_WHAT_HAPPENED),
        (_sends_an_anchor_elsewhere, Property.ANCHOR_IS_KNOWN),
    ],
)
def test_a_wrong_bridge_is_rejected_at_its_line(
    write: Callable[[Log], None], prop: Property
) -> None:
    log = Log().turn("1")
    write(log)
    after = 2 if write is _retries_what_is_too_large else 0  # it is wrong to connect for that
    assert broken(log.check()) == (len(log.rows) - after, prop)


_QUOTA: Json = {"status": 429, "code": "insufficient_quota"}
_RATE: Json = {"status": 429, "code": "rate_limit_exceeded"}
_FAILED: Json = {"response": "r", "outcome": "failed"}


def _answered(event: str, fields: Json, status: int, code: str = "x") -> Log:
    """A turn that ``event`` ends, and whose client gets ``status``."""
    log = Log(logs=["upstream_lost", "timed_out"]).add("turn_submitted", "1")
    if event != "upstream_lost":
        log.add("upstream_opened").add("sent", "1")
    if event == "response_ended":
        log.add("response_created", response="r")
    return log.add(event, **fields).add("answered", "1", status=status, code=code)


@pytest.mark.parametrize(
    ("event", "fields", "status"),
    [
        ("response_ended", {"response": "r"}, 400),
        ("upstream_error", _RATE, 400),
        ("upstream_error", _RATE, 401),
        ("upstream_error", {"status": 500, "code": "server_error"}, 400),
        ("upstream_error", {"status": 503, "code": "overloaded"}, 422),
        ("upstream_error", {"status": 400, "code": "invalid_prompt"}, 502),
        ("response_ended", {**_FAILED, **_RATE}, 400),
        ("response_ended", {**_FAILED, "code": "server_error"}, 400),
        ("response_ended", {**_FAILED, "status": 400, "code": "invalid_prompt"}, 502),
        ("upstream_lost", {"status": 429}, 400),
    ],
)
def test_an_answer_says_of_a_retry_what_the_failure_says(
    event: str, fields: Json, status: int
) -> None:
    """After the contrary answer a client gives up what would succeed, or repeats what cannot."""
    log = _answered(event, fields, status)
    assert broken(log.check()) == (len(log.rows), Property.ANSWER_TELLS_WHAT_HAPPENED)


@pytest.mark.parametrize(
    ("event", "fields", "status"),
    [
        ("upstream_error", _RATE, 429),
        ("upstream_error", _QUOTA, 429),
        ("upstream_error", _QUOTA, 402),  # no retry pays the bill
        ("upstream_error", {**_RATE, "status": 400}, 400),  # passed on as it is
        ("upstream_error", {"status": 408}, 408),
        ("upstream_error", {"status": 503}, 502),
        ("upstream_error", {"code": "unheard_of"}, 400),  # it could be anything
        ("upstream_error", {"code": "unheard_of"}, 502),
        ("upstream_lost", {"status": 429}, 429),
        ("response_ended", {**_FAILED, **_RATE}, 429),
        ("response_ended", {**_FAILED, "code": "invalid_prompt"}, 400),
        ("response_ended", {**_FAILED, "code": "invalid_prompt"}, 200),  # in the stream
        ("response_ended", _FAILED, 400),
        ("response_ended", _FAILED, 502),
    ],
)
def test_a_failure_may_be_answered_in_the_words_of_the_bridge(
    event: str, fields: Json, status: int
) -> None:
    assert _answered(event, fields, status).check().wrong is None


def test_an_action_without_any_cause_is_rejected() -> None:
    report = Log().add("sent", "1").check()
    assert broken(report) == (2, Property.OPEN_IS_OPEN)
    assert report.wrong is not None
    assert "turn 1 was not submitted in an earlier line: if the log does not" in report.wrong.text


@pytest.mark.parametrize(
    ("event", "fields", "prop"),
    [
        ("sent", {}, Property.OPEN_IS_OPEN),
        ("delivered", {}, Property.DELIVERED_TO_ITS_TURN),
        ("answered", {"status": 200}, Property.ONE_END),
        ("answered", {"status": 502, "code": "stream_incomplete"}, Property.ONE_END),
    ],
)
@pytest.mark.parametrize("place", [4, 7])
@pytest.mark.parametrize("later", [False, True])
def test_what_is_done_for_a_turn_that_is_not_there_names_it(
    event: str, fields: Json, prop: Property, place: int, later: bool
) -> None:
    """Whatever else goes on in the session: while another turn waits to be sent, or is over."""
    log = Log().turn("1")
    row = {"at": log.rows[place - 1]["at"], "session": "s", "event": event, "turn": "2", **fields}
    log.rows.insert(place, row)
    if later:
        log.turn("2")  # the line that submits it is too late
    report = log.check()
    assert broken(report) == (place + 1, prop)
    assert report.wrong is not None
    assert "turn 2 was not submitted in an earlier line: if the log does not" in report.wrong.text


def test_the_history_tells_what_was_assumed() -> None:
    log = Log().turn("1").add("turn_submitted", "two").add("sent", "two")
    wrong = log.add("answered", "two", status=400, code="x").check().wrong
    assert wrong is not None
    notes = {type(seen.event): seen.note for seen in wrong.seen if seen.note}
    assert notes[ev.TurnSubmitted] == " (two)"
    for seen in wrong.seen:
        if isinstance(seen.event, ev.ConnectionLost):
            assert (seen.event.cause, seen.note) == (Closed(1006), " (not in the log)")


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "it is not JSON in UTF-8"),
        (b"\xff", "it is not JSON in UTF-8"),
        (b"[]", "it is not an object"),
        (b"{}", "event is None, which is no kind of line"),
        (b'{"event":"sung"}', "event is 'sung', which is no kind of line"),
        (b'{"event":"sent","at":1}', "sent lacks session"),
        (b'{"event":"sent","at":1,"session":"s"}', "sent lacks turn"),
        (b'{"event":"sent","at":-1,"session":"s","turn":"t"}', "at of sent is not a whole number"),
        (b'{"event":"sent","at":1,"session":2,"turn":"t"}', "session of sent is not text"),
        (b'{"event":"connect","at":1,"session":"s","why":1}', "connect has unknown 'why'"),
        (b'{"event":"turn_submited"}', "no kind of line; did you mean turn_submitted?"),
        (
            b'{"event":"sent","at":1,"session":"s","trun":"t","turn":"t"}',
            "sent has unknown 'trun'; did you mean turn?",
        ),
        (
            b'{"event":"response_ended","at":1,"session":"s","outcome":"x"}',
            "outcome is 'x'",
        ),
        (
            b'{"event":"response_ended","at":1,"session":"s","outcome":"complete"}',
            "outcome is 'complete'; did you mean completed?",
        ),
        (
            b'{"event":"timed_out","at":1,"session":"s","timer":"create"}',
            "timer is 'create'; did you mean created?",
        ),
        (
            b'{"trace":"bridge events","format":1,"timeouts":{"idel":1}}',
            "timeouts has 'idel': 1; did you mean idle?",
        ),
        (b'{"event":"timed_out","at":1,"session":"s","timer":"drain"}', "timer is 'drain'"),
        (b'{"trace":"bridge events"}', "the header lacks format"),
        (b'{"trace":"bridge events","format":9}', "it is not the header of bridge events"),
        (b'{"trace":"bridge events","format":1,"logs":["x"]}', "logs has 'x'"),
        (b'{"trace":"bridge events","format":1,"logs":[{}]}', "logs has {}, which is no event"),
        (b'{"trace":"bridge events","format":1,"logs":[1]}', "logs has 1, which is no event"),
        (b'{"trace":"bridge events","format":1,"timeouts":{"x":1}}', "timeouts has 'x': 1"),
        (b'{"trace":"bridge events","format":1,"timeouts":{"idle":0}}', "timeouts has 'idle': 0"),
        (  # less than a nanosecond
            b'{"trace":"bridge events","format":1,"timeouts":{"idle":1e-12}}',
            "timeouts has 'idle': 1e-12",
        ),
        (  # more than any
            b'{"trace":"bridge events","format":1,"timeouts":{"idle":1e308}}',
            "timeouts has 'idle': 1e+308",
        ),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: bytes, reason: str) -> None:
    with pytest.raises(MalformedLog, match="line 1: ") as caught:
        check_trace([line])
    assert reason in str(caught.value)
    assert not is_decision_log(line)


def test_a_line_that_was_cut_off_is_left_out() -> None:
    log = Log().turn("1")
    lines = encoded(log.rows)
    report = check_trace([b"\n", *lines, b"\n", b'{"at": 9000, "ses'])
    assert (report.wrong, report.lines) == (None, len(lines) + 1)
    assert report.incomplete == (len(lines) + 3,)
    with pytest.raises(MalformedLog, match="line 2: it is not JSON"):
        check_trace([lines[0], b"{\n", *lines[1:]])


def test_time_does_not_go_backwards_in_a_session() -> None:
    log = Log().turn("1")
    log.rows[3]["at"] = 1
    with pytest.raises(MalformedLog, match="line 4: its time is before"):
        log.check()
    with pytest.raises(MalformedLog, match="line 1: the log is empty"):
        check_trace([])


def test_a_header_states_times_in_seconds() -> None:
    rows = [{**HEAD, "late": 2, "timeouts": {"created": 1.5}}]
    header, lines = read_log(encoded(rows))
    assert (header.late, lines) == (2 * 10**9, [])
    assert list(header.timeouts.values()) == [1_500_000_000]


def test_every_kind_of_line_is_documented_and_read() -> None:
    assert {kind.says for kind in LINES.values()} == {*Says}
    for name, kind in LINES.items():
        assert kind.doc
        row: Json = {"at": 0, "event": name, **({} if name == "log_ended" else {"session": "s"})}
        for field, what in kind.fields.items():
            row[field] = {str: "created" if field == "timer" else "failed", int: 1, bool: True}[
                what.kind
            ]
        (read,) = read_log([json.dumps(row).encode()])[1]
        assert read.kind == name
    assert all(field.doc for field in HEADER.values())
