"""Tests of verify/observed_ids.py: in a foreign log each response id is used for its response."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from bridgecore.verify.cost import CostedProperty
from bridgecore.verify.explore_bridge import BridgeProperty
from bridgecore.verify.foreign import check_trace
from bridgecore.verify.properties import Property
from bridgecore.verify.replay import MalformedLog
from bridgecore.verify.trace import Wrong
from tests.verify.foreign_logs import encoded
from tests.verify.test_foreign import TRACES, Log, broken

_CONTEXT = BridgeProperty.CONTEXT_IS_MEANT
_CLIENTS = BridgeProperty.CREDENTIALS_ARE_KEPT_APART
Fields = dict[str, Any]


def _wrong(log: Log) -> Wrong:
    found = log.check().wrong
    assert found is not None
    return found


def _sound() -> list[Fields]:
    return [json.loads(line) for line in (TRACES / "sound.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize("anchor", ["resp_1", "resp_9"])
def test_another_anchor_than_the_client_named_is_rejected_at_its_line(anchor: str) -> None:
    rows = _sound()
    assert rows[17]["event"] == "sent"
    rows[17]["previous_response_id"] = anchor
    assert broken(check_trace(encoded(rows))) == (18, _CONTEXT)


def test_an_altered_store_is_noticed_where_it_matters() -> None:
    """What the upstream stores is known on any connection: it need not go in full."""
    rows = _sound()
    rows[1]["store"] = True
    assert broken(check_trace(encoded(rows))) == (12, Property.FORM_IS_POSSIBLE)


def test_the_text_says_whose_response_was_sent() -> None:
    log = Log().turn("1").turn("2", "r-1")
    log.add("turn_submitted", "3", previous_response_id="r-2")
    log.add("sent", "3", previous_response_id="r-1")
    found = _wrong(log)
    assert (found.line, found.title) == (len(log.rows), "CONTEXT_IS_MEANT")
    assert found.text == (
        "turn 3 continues r-2, but is sent with r-1: "
        "line 5 has it as the response of turn 1 of session s"
    )
    assert found.seen  # and the diagram ends with what was sent
    assert "SendTurn" in str(found.seen[-1].transition.effects)


# ------------------------------------------------------------------ another id, on purpose


def test_a_client_may_have_another_id_for_its_response() -> None:
    log = Log().turn("1")
    log.rows[-1]["response"] = "ours-1"
    log.add("turn_submitted", "2", previous_response_id="ours-1")
    log.add("sent", "2", previous_response_id="r-1").answer("2")
    assert log.check().wrong is None
    del log.rows[7]["response"]
    assert broken(log.check()) == (10, _CONTEXT)


def test_two_responses_have_two_ids_for_the_client() -> None:
    log = Log().turn("1").turn("2", "r-1")
    log.rows[-1]["response"] = "r-1"
    assert broken(log.check()) == (len(log.rows), Property.DELIVERED_TO_ITS_TURN)


def test_a_preloaded_connection_has_another_id_for_the_same_context() -> None:
    log = (
        Log().turn("1", store=False).add("upstream_lost").add("turn_submitted", "p", preloads="r-1")
    )
    log.add("upstream_opened").add("sent", "p").answer("p")
    log.add("turn_submitted", "2", previous_response_id="r-1")
    log.add("sent", "2", previous_response_id="r-p").answer("2")
    assert log.check().wrong is None
    del log.rows[9]["preloads"]
    assert broken(log.check()) == (18, _CONTEXT)


def test_a_preload_makes_its_id_no_other_responses() -> None:
    log = Log().turn("1", store=False).turn("2", "r-1", store=False).add("upstream_lost")
    log.add("turn_submitted", "p", preloads="r-1").add("upstream_opened").add("sent", "p")
    log.answer("p").add("turn_submitted", "3", previous_response_id="r-2")
    log.add("sent", "3", previous_response_id="r-p")
    assert broken(log.check()) == (len(log.rows), _CONTEXT)


def test_a_preload_may_be_of_a_response_from_before_the_log() -> None:
    log = Log().add("turn_submitted", "p", preloads="r-0").add("upstream_opened").add("sent", "p")
    log.answer("p").add("turn_submitted", "1", previous_response_id="r-0")
    log.add("sent", "1", previous_response_id="r-p").answer("1")
    assert log.check().wrong is None


# ------------------------------------------------------------------ what is injected


def _in(session: str, log: Log) -> list[Fields]:
    return [{**row, "session": session} for row in log.rows[1:]]


def test_what_is_injected_is_of_the_same_conversation() -> None:
    other = Log().turn("u")
    log = Log().turn("1").add("turn_submitted", "2").add("sent", "2", previous_response_id="r-1")
    rows = [log.rows[0], *_in("t", other), *log.rows[1:]]
    assert check_trace(encoded(rows)).wrong is None
    rows[-1]["previous_response_id"] = "r-u"
    assert broken(check_trace(encoded(rows))) == (len(rows), _CONTEXT)
    rows[-1]["previous_response_id"] = "r-9"
    assert broken(check_trace(encoded(rows))) == (len(rows), _CONTEXT)


def test_each_injection_of_a_turn_is_compared() -> None:
    log = Log().turn("1").turn("2", "r-1").add("turn_submitted", "3")
    log.add("sent", "3", previous_response_id="r-2").add("upstream_lost", sent=False)
    log.add("upstream_opened").add("sent", "3", previous_response_id="r-1")
    assert broken(log.check()) == (len(log.rows), Property.ANCHOR_IS_KNOWN)


def test_a_response_that_failed_cannot_be_injected() -> None:
    log = Log().turn("1").add("turn_submitted", "2").add("sent", "2")
    log.rows[-4]["outcome"] = "failed"
    log.rows[-3]["code"] = "server_error"
    assert log.check().wrong is None
    log.rows[-1]["previous_response_id"] = "r-1"
    found = _wrong(log)
    assert (found.line, found.prop) == (len(log.rows), _CONTEXT)
    assert "and that did not complete" in found.text


# ------------------------------------------------------------------ what the log lacks


def test_only_a_context_that_the_log_has_or_that_is_stated_can_be_sent_in_full() -> None:
    log = Log().turn("1").add("turn_submitted", "2", previous_response_id="r-0")
    log.add("sent", "2").answer("2")
    assert broken(log.check()) == (10, Property.FORM_IS_POSSIBLE)
    log.rows[8]["holds"] = True
    assert log.check().wrong is None


def test_what_its_own_session_has_made_is_known_to_a_bridge() -> None:
    """A bridge cannot pass on not-found for it, and say that it never saw the id."""
    log = Log().turn("1", store=False).add("upstream_lost")
    log.add("turn_submitted", "2", wait=60, previous_response_id="r-1", knows=False)
    log.add("upstream_opened").add("sent", "2", previous_response_id="r-1")
    assert broken(log.check()) == (len(log.rows), Property.ANCHOR_IS_KNOWN)


def test_a_response_is_known_once_it_is_there() -> None:
    """Line 2 names an id that no line before it has: the upstream makes it only later."""
    log = Log().add("turn_submitted", "1", previous_response_id="r-2", store=False)
    log.add("upstream_opened").add("sent", "1", previous_response_id="r-2")
    log.answer("1").turn("2", store=False)
    assert log.check().wrong is None


# ------------------------------------------------------------------ whose answer it is


def _answered_by(change: Callable[[list[Fields]], None]) -> list[Fields]:
    """Two sessions; the last turn, of the first one, gets the response of the other one."""
    first, other = Log().turn("1"), Log().turn("u")
    rows = [first.rows[0], *_in("s", first), *_in("t", other)]
    first.turn("2", "r-1")
    rows += _in("s", first)[7:]
    change(rows)
    return rows


def _all(rows: list[Fields]) -> None:
    for row in rows[-4:]:
        if "response" in row:
            row["response"] = "r-u"


def _only_created(rows: list[Fields]) -> None:
    rows[-4]["response"] = "r-u"
    del rows[-2]["response"]


@pytest.mark.parametrize("change", [_all, _only_created])
def test_the_answer_to_a_turn_of_another_session_is_rejected(
    change: Callable[[list[Fields]], None],
) -> None:
    rows = _answered_by(change)
    found = check_trace(encoded(rows)).wrong
    assert found is not None
    assert (found.line, found.prop) == (len(rows), Property.DELIVERED_TO_ITS_TURN)
    assert "line 12 has it as the response of turn u of session t" in found.text
    allowed = frozenset([Property.DELIVERED_TO_ITS_TURN])
    assert check_trace(encoded(rows), allowed).wrong is None


def test_what_comes_for_another_turn_may_be_ignored() -> None:
    rows = _answered_by(lambda _: None)
    stray = {**rows[-2], "response": "r-u"}
    assert check_trace(encoded([*rows[:-2], stray, *rows[-2:]])).wrong is None


def test_a_response_of_an_earlier_connection_answers_no_other_turn() -> None:
    log = Log().turn("1").add("upstream_lost").add("turn_submitted", "2").add("upstream_opened")
    log.add("sent", "2").add("response_ended", response="r-1").add("answered", "2", status=200)
    assert broken(log.check()) == (len(log.rows), Property.DELIVERED_TO_ITS_TURN)


# ------------------------------------------------------------------ clients


def _of_client(client: str, **fields: Any) -> list[Fields]:
    """Client a has r-1 in session s; then ``client`` sends a turn that names it in session t."""
    first = Log().turn("1", client="a")
    log = Log(timeouts={"idle": 60})
    log.add("turn_submitted", "2", client=client, wait=20, previous_response_id="r-1", **fields)
    log.add("upstream_opened").add("sent", "2", previous_response_id="r-1").answer("2")
    return [first.rows[0], *_in("s", first), *_in("t", log)]


@pytest.mark.parametrize(("client", "prop"), [("a", None), ("b", _CLIENTS)])
def test_what_one_client_has_got_is_rebuilt_for_no_other(
    client: str, prop: CostedProperty | None
) -> None:
    rows = _of_client(client, store=False)
    rows[1]["store"] = False
    del rows[-5]["previous_response_id"]
    found = check_trace(encoded(rows)).wrong
    assert (found and found.prop) is prop


def test_an_id_of_another_client_is_like_one_that_does_not_exist() -> None:
    assert check_trace(encoded(_of_client("b"))).wrong is None


def test_a_session_has_one_client() -> None:
    log = Log().turn("1", client="a").add("turn_submitted", "2", client="b").add("sent", "2")
    assert broken(log.check()) == (len(log.rows), _CLIENTS)


def test_another_clients_context_is_not_preloaded() -> None:
    rows = _of_client("b")
    rows[-6] = {key: value for key, value in rows[-6].items() if key != "previous_response_id"}
    for row in rows[-7:]:
        row.pop("previous_response_id", None)
        if row["event"] == "turn_submitted":
            row["preloads"] = "r-1"
    assert broken(check_trace(encoded(rows))) == (len(rows) - 4, _CLIENTS)


# ------------------------------------------------------------------ names of turns


def test_the_name_of_a_turn_is_used_once() -> None:
    log = Log().turn("1").add("turn_submitted", "1")
    with pytest.raises(MalformedLog, match="line 9: turn 1 of s was submitted in line 2 already"):
        log.check()


def test_a_turn_that_was_not_submitted_cannot_leave() -> None:
    log = Log().turn("1").add("turn_abandoned", "2")
    with pytest.raises(MalformedLog, match="line 9: turn 2 of s was not submitted"):
        log.check()
