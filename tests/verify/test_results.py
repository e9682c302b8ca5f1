"""Tests of verify/results.py, junit.py and cost.py: order, verdict, and the results as data."""

from __future__ import annotations

import json
import pickle
from xml.etree import ElementTree

import pytest

from bridgecore.recovery.policy import V1_12
from bridgecore.verify import diagram
from bridgecore.verify.blame import Blamer
from bridgecore.verify.cost import CostedProperty, Rank
from bridgecore.verify.environment import BOUNDS
from bridgecore.verify.explore import Counterexample
from bridgecore.verify.explore_bridge import BridgeProperty
from bridgecore.verify.junit import junit
from bridgecore.verify.ownership_world import OwnershipProperty
from bridgecore.verify.pair_properties import PairProperty
from bridgecore.verify.properties import Property
from bridgecore.verify.results import Finding, Results, SectionResult, by_cost
from bridgecore.verify.story import tell

KINDS: tuple[type[CostedProperty], ...] = (
    Property,
    BridgeProperty,
    OwnershipProperty,
    PairProperty,
)
QUICK = BOUNDS["quick"][0]
LOST = Property.NOT_FOUND_IS_EARNED
PATH = ("submit held old", "opened")


@pytest.fixture(scope="module")
def lost() -> Finding:
    """The violation that costs most of ``v1_12``, as the command has it."""
    found = Counterexample(LOST, "a held <anchor>", PATH)
    blame = Blamer(V1_12, effort=0).blame(QUICK, found)
    return Finding(LOST, found.text, PATH, story=tell(V1_12, QUICK, found), blame=blame)


def section(*findings: Finding, **more: object) -> SectionResult:
    result = SectionResult("sessions", (LOST, Property.ONE_END), 10_000, 30, 1.25)
    result.findings = list(findings)
    for name, value in more.items():
        setattr(result, name, value)
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_every_property_has_a_rank_and_a_sentence(kind: type[CostedProperty]) -> None:
    for prop in kind:
        assert isinstance(prop.rank, Rank)
        assert prop.cost.strip() == prop.cost
        assert len(prop.cost.split()) > 4
        assert not prop.cost.endswith(".")
        assert pickle.loads(pickle.dumps(prop)) is prop  # --mutants sends them between processes


def test_every_rank_is_used() -> None:
    assert {prop.rank for kind in KINDS for prop in kind} == set(Rank)
    assert [rank for rank in Rank if not rank.words] == []


def test_the_costliest_comes_first() -> None:
    long = Finding(Property.NO_AMBIGUOUS_RESEND, "", ("a", "b", "c"))
    remote = Finding(Property.OWNER_LOSS_REBINDS, "", ("a",), remote=True)
    short = Finding(LOST, "", ("a", "b"))
    cheap = Finding(Property.SOUND_SOCKETS_STAY, "", ())
    assert by_cost([cheap, remote, long, short]) == [short, long, remote, cheap]


def test_verdicts(lost: Finding) -> None:
    skipped = SectionResult("bridges", tuple(BridgeProperty), skipped="of that")
    assert Results("p", "quick", [section(lost), skipped]).verdict == (
        "1 of 2 properties broken, 10,000 states, 1.2 s"
    )
    sound = Results("p", "quick", [section(), section()])
    assert (sound.verdict, sound.sound) == (
        "all 4 properties hold within the quick bounds, 20,000 states, 2.5 s",
        True,
    )
    one = SectionResult("sessions", (LOST,), 1)
    assert Results("p", "quick", [one]).verdict == (
        "the property holds within the quick bounds, 1 states, 0.0 s"
    )
    partly = Results("p", "quick", [section(complete=False)])
    assert ", not all that there are, " in partly.verdict
    assert not partly.sound


def test_as_junit(lost: Finding) -> None:
    skipped = SectionResult("bridges", (BridgeProperty.ONE_END,), skipped="of <that>")
    part = section(complete=False)
    root = ElementTree.fromstring(junit(Results("p", "quick", [section(lost), skipped, part])))
    assert (root.get("tests"), root.get("failures")) == ("6", "1")
    assert (root.get("errors"), root.get("skipped")) == ("1", "1")
    cases = root.findall("testsuite/testcase")
    assert len(cases) == 6
    failure = cases[0].find("failure")
    assert failure is not None
    assert failure.get("message") == "a held <anchor>"
    assert failure.text is not None
    assert "submit 1 held resp_0" in failure.text
    assert LOST.cost in failure.text
    assert list(cases[1]) == []
    left = cases[2].find("skipped")
    assert left is not None
    assert left.get("message") == "of <that>"
    assert cases[-1].find("error") is not None


def test_as_data(lost: Finding) -> None:
    data = Results("p", "quick", [section(lost)]).as_data()
    data = json.loads(json.dumps(data))
    assert (data["policy"], data["states"], data["edges"]) == ("p", 10_000, 30)
    assert data["found"] == ["NOT_FOUND_IS_EARNED"]
    broken, held = data["properties"]
    assert (held["status"], broken["status"], broken["rank"]) == ("holds", "broken", 1)
    assert broken["path"] == list(PATH)
    assert broken["cell"]["situation"] == "SEND_SKIPPED"
    assert broken["story"][-1]["cells"] == ["send_skipped/held=refuse"]
    assert broken["would_hold"] == []
    assert "path" not in held


def test_mermaid(lost: Finding) -> None:
    assert lost.story is not None
    head, title, *lines = diagram.mermaid(lost.story).splitlines()
    assert (head, title) == ("sequenceDiagram", "    title NOT_FOUND_IS_EARNED")
    assert lines[:3] == [f"    participant {who}" for who in ("client", "bridge", "upstream")]
    assert "    client->>bridge: submit 1 held resp_0" in lines
    assert "    upstream->>bridge: opened generation=1" in lines
    assert "    bridge->>client: fail turn 1: previous_response_not_found" in lines
    because = next(line for line in lines if "because: socket" in line)
    assert because.startswith("    Note over bridge: ")
    assert "#59;" in because  # a semicolon would end the statement
    assert not any(c in line.replace("->>", "") for line in lines for c in "<>%")
