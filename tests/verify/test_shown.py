"""Tests of verify/shown.py, and that what a violation says is made with it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from bridgecore.recovery.effects import RequestForm, SendTurn
from bridgecore.recovery.events import (
    ConnectionLost,
    ConnectionOpened,
    FrameSent,
    Outcome,
    Remembers,
    ResponseEnded,
    Standing,
)
from bridgecore.recovery.failure import Closed, ErrorFrame
from bridgecore.recovery.policy import PR397, V1_12, Policy
from bridgecore.verify import diagram
from bridgecore.verify.environment import BOUNDS
from bridgecore.verify.explore import Report, explore
from bridgecore.verify.model import ModelTurn
from bridgecore.verify.properties import Property
from bridgecore.verify.shown import shown
from bridgecore.verify.story import tell

PART = BOUNDS["quick"][0]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (ConnectionOpened(1), "ConnectionOpened(generation=1)"),
        (
            ConnectionOpened(1, remembers=Remembers.STORED),
            "ConnectionOpened(generation=1, remembers=stored)",
        ),
        (SendTurn(1, 2, RequestForm.AS_IS), "SendTurn(generation=1, turn=2, form=as_is)"),
        (FrameSent(3, whole=False), "FrameSent(generation=3, whole=False)"),
        (
            ConnectionLost(2, Closed(1006)),
            "ConnectionLost(generation=2, cause=Closed(code=1006))",
        ),
        (
            ResponseEnded(1, Outcome.FAILED, "resp_1", ErrorFrame(status=400, code="x")),
            "ResponseEnded(generation=1, outcome=failed, response='resp_1', "
            "cause=ErrorFrame(status=400, code='x'))",
        ),
        (
            ModelTurn(1, Standing.HELD, "old", 1),
            "ModelTurn(id=1, standing=held, anchor='old', due=1)",
        ),
        ((Standing.HELD,), "(held,)"),
        ((), "()"),
        (None, "None"),
        ("connecting", "'connecting'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_a_value_as_text(value: object, text: str) -> None:
    assert shown(value) == text


# One process for all tests of a policy, which is explored once then.
POLICIES = [
    pytest.param(policy, id=policy.name, marks=pytest.mark.xdist_group(f"shown-{policy.name}"))
    for policy in (V1_12, PR397)
]


@pytest.fixture(scope="module", params=POLICIES)
def broken(request: pytest.FixtureRequest) -> tuple[Policy, Report]:
    policy: Policy = request.param
    return policy, explore(policy, PART, most=len(Property))


def test_no_violation_has_enumerations_as_python_shows_them(
    broken: tuple[Policy, Report],
) -> None:
    policy, report = broken
    assert len(report.counterexamples) > 3
    for found in report.counterexamples:
        story = tell(policy, PART, found)
        forms = (found.text, str(story), diagram.mermaid(story), diagram.text(story))
        for form in forms:
            assert not re.search(r"<\w+\.\w+: ", form), form
            assert "early=0" not in form


def test_no_text_of_a_picture_is_cut_off(broken: tuple[Policy, Report]) -> None:
    policy, report = broken
    for found in report.counterexamples:
        root = ElementTree.fromstring(diagram.svg(tell(policy, PART, found)))
        width, height = int(root.attrib["width"]), int(root.attrib["height"])
        for text in root.iter(f"{SVG}text"):
            lines = list(text.iter(f"{SVG}tspan")) or [text]
            last = int(text.attrib["y"]) + sum(int(line.get("dy", "0")) for line in lines)
            assert last < height
            half = 0.5 if text.get("text-anchor") == "middle" else 0
            for line in lines:
                long = 8 * len(line.text or "")  # of 13 pixels; monospaced fonts have 0.6 of it
                left = int(text.attrib["x"]) - half * long
                assert left >= 0, line.text
                assert left + long <= width, line.text


def test_a_wrapped_text_is_whole(broken: tuple[Policy, Report]) -> None:
    policy, report = broken
    wrapped = 0
    for found in report.counterexamples:
        story = tell(policy, PART, found)
        root = ElementTree.fromstring(diagram.svg(story))
        texts = {"".join(text.itertext()) for text in root.iter(f"{SVG}text")}
        assert {arrow.text for arrow in diagram.arrows(story)} <= texts
        wrapped += len(list(root.iter(f"{SVG}tspan")))
    assert wrapped
