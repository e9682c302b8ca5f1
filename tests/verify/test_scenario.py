"""Tests of verify/scenario.py: the reader, its errors, and the printer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given

from bridgecore.errors import LocalProtocolError
from bridgecore.recovery.events import (
    ConnectionLost,
    Event,
    EvictionRequested,
    Outcome,
    OutputReceived,
    ResponseCreated,
    ResponseEnded,
    UpstreamRefused,
)
from bridgecore.recovery.failure import Closed, ErrorFrame, Malformed
from bridgecore.recovery.policy import DEFAULT
from bridgecore.recovery.session import Session
from bridgecore.testing.strategies import History, histories
from bridgecore.verify.scenario import ScenarioError, command_of, describe, replay, rules_of


def test_a_text_that_is_up_to_date_replays_to_itself() -> None:
    text = (
        "# A comment.\npolicy default\n\nsubmit 1\n----\n  open connection 1\n\nopened\n----\n"
        "  send turn 1 as_is on connection 1\n\nsent\n"
    )
    assert replay(text) == text
    assert replay("# A comment.\npolicy default\n\nsubmit 1\n\nopened\n\nsent") == text


def test_a_replay_keeps_the_source_and_replaces_the_output() -> None:
    text = "policy default\nsubmit 1\n----\nlies\n  more lies\n# Then:\nsubmit 2\nevict\n"
    assert replay(text) == (
        "policy default\nsubmit 1\n----\n  open connection 1\n\n# Then:\nsubmit 2\nevict\n----\n"
        "  ignore: a turn is running or waiting\n"
    )
    assert replay(replay(text)) == replay(text)


SHOWN = """\
submit 1
----
closed -> reconnecting by submit
  open connection 1
next: connect in 10s

submit 2
----
reconnecting -> reconnecting by submit-busy
next: connect in 10s; waiting: 2

advance 10s
----
after 10s, connect: reconnecting -> reconnecting by connect-deadline
  close connection 1
  fail turn 1: upstream_unavailable (timed_out: connect deadline)
  open connection 2
next: connect in 10s
"""


@pytest.mark.parametrize("shown", ["rules", "next", "rules next", "next rules", ""])
def test_rules_and_deadlines_are_printed_where_the_text_asks_for_them(shown: str) -> None:
    text = SHOWN
    if "rules" not in shown:
        text = re.sub(r"^\w+ -> \w+ by [\w-]+\n", "", text, flags=re.MULTILINE)
        text = re.sub(r":.* by [\w-]+$", ":", text, flags=re.MULTILINE)
    if "next" not in shown:
        text = re.sub(r"^next: .*\n", "", text, flags=re.MULTILINE)
    if not shown:
        text = text.replace("submit 2\n----\n", "submit 2\n")
    head = f"show {shown}\n\n" if shown else ""
    assert replay(head + text) == head + text
    assert rules_of(head + text) == ("submit", "submit-busy", "connect-deadline")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("dance", "unknown command"),
        ("policy nobody", "no policy is named nobody"),
        ("policy default replay=2", "unknown option replay"),
        ("policy default connect=10", "10 is no duration"),
        ("policy default connect=0s", "connect must be more than 0"),
        ("policy default replays=-1", "-1 is no number"),
        ("remote control", "remote takes 0 argument"),
        ("show", "show takes 1 argument"),
        ("show rules phases", "what can be shown is rules and next, not phases"),
        ("show rules=1", "unknown option rules"),
        ("submit", "submit takes 3 argument"),
        ("submit one", "one is no number"),
        ("submit 1 dreamt resp_1", "no anchored turn is dreamt"),
        ("submit 1 unanchored resp_1", "no anchored turn is unanchored"),
        ("opened 3", "opened takes 0 argument"),
        ("opened generation=last", "last is no number"),
        ("opened generation=1 generation=2", "generation is given twice"),
        ("lost", "lost takes 2 argument"),
        ("lost interest completely", "no connection is lost by interest"),
        ("lost close 1006 retry_after=3", "retry_after is for an upgrade"),
        ("lost timeout never", "no timer is named never"),
        ("lost close 1006 unsent=perhaps", "perhaps is no number"),
        ("created resp_1 resp_2", "created takes 1 argument"),
        ("created resp_1 room=0", "unknown option room"),
        ("output resp_1 resp_2", "output takes 1 argument"),
        ("progress room=some", "some is no number"),
        ("sent unsent=1", "unknown option unsent"),
        ("ended happily", "no response ends as happily"),
        ("ended completed resp_1 malformed=x", "unknown option malformed"),
        ("refused stats=400", "unknown option stats"),
        ("refused status=bad", "bad is no number"),
        ('refused message="no end', "cannot read from column 9 on"),
        ("advance", "advance takes 1 argument"),
        ("advance 10", "10 is no duration"),
        ("deadline supper", "no timer is named supper"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, complaint: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        replay(f"# One.\n\n{line}\n", "some/file.txt")
    assert str(caught.value).startswith("some/file.txt:3: ")
    assert complaint in str(caught.value)
    assert repr(line) in str(caught.value)


def test_the_number_of_a_line_counts_output_too() -> None:
    with pytest.raises(ScenarioError, match=r"^x:6: unknown command"):
        replay("submit 1\n----\nsome\noutput\n\ndance\n", "x")


def test_settings_stand_before_commands() -> None:
    for setting in ("policy default", "remote", "show next"):
        with pytest.raises(ScenarioError, match="before the first command"):
            replay(f"submit 1\n\n{setting}\n")


@given(histories())
def test_events_can_be_written_as_commands(history: History) -> None:
    """A drawn history, written as commands and replayed, has the same effects."""
    lines, rules, effects = ["policy default"], list[str](), list[str]()
    session = Session(DEFAULT)
    for event in [item.event for item in history]:
        try:
            done = session.handle(event, 0)  # time is written as commands of its own
        except LocalProtocolError:
            continue
        effects += map(describe, done)
        lines += ["", command_of(event)]
        rules.append(session.rule)
    text = replay("\n".join(lines))
    assert list(rules_of(text)) == rules
    assert re.findall(r"^  (.*)$", text, re.MULTILINE) == effects


@pytest.mark.parametrize(
    ("event", "command"),
    [
        (ResponseCreated(1, "resp 1"), 'created "resp 1" generation=1'),
        (OutputReceived(2), "output generation=2"),
        (OutputReceived(2, False, False, "r"), "progress r room=0 generation=2"),
        (ResponseEnded(1, Outcome.INCOMPLETE, "r"), "ended incomplete r generation=1"),
        (
            ResponseEnded(1, Outcome.FAILED, None, Malformed("no response")),
            'ended failed malformed="no response" generation=1',
        ),
        (ConnectionLost(3, Closed(1009), unsent=True), "lost close 1009 unsent=1 generation=3"),
        (UpstreamRefused(1, ErrorFrame(413), True), "refused status=413 unsent=1 generation=1"),
    ],
)
def test_commands_have_all_fields_of_an_event(event: Event, command: str) -> None:
    assert command_of(event) == command


def test_events_without_a_command_are_refused() -> None:
    with pytest.raises(ValueError, match="refused by an error frame"):
        command_of(UpstreamRefused(1, Closed(1006)))
    with pytest.raises(ValueError, match="refused by an error frame"):
        command_of(ResponseEnded(1, Outcome.FAILED, "resp_1", Closed(1006)))
    assert command_of(EvictionRequested()) == "evict"
