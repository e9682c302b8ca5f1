"""The results of all explorations of a policy as values: what holds, what is broken, at what cost.

What belongs here: the order in which violations are told, the verdict, and the results as plain
data for JSON. The text of a violation is made from these values, too; JUnit's XML is junit.py.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.verify.blame import Blame
from bridgecore.verify.cost import CostedProperty
from bridgecore.verify.scenario import command_of
from bridgecore.verify.story import Story, explain


class Status(enum.Enum):
    """What is known of a property. The value is its word in print."""

    HOLDS = "holds"
    BROKEN = "broken"
    SKIPPED = "skipped"  # its section was not explored


@attrs.frozen
class Finding:
    """A violation, with a shortest path to it: the names of the moves.

    ``remote``: the path starts with a session that another replica owns. ``story`` and ``blame``
    are there for properties of sessions.
    """

    prop: CostedProperty
    text: str
    path: tuple[str, ...]
    remote: bool = False
    story: Story | None = None
    blame: Blame | None = None

    def told(self) -> str:
        """The violation as lines of text: what must hold, the path, what was broken, what it costs,
        what is responsible, and what would hold in its place."""
        if self.story is not None:
            lines = [explain(self.story)]
        else:
            way = [f"  {move}" for move in self.path]
            head = f"{self.prop.name}: {self.prop.value}"
            lines = [head, "", *way, "", f"broken: {self.text}", f"costs:  {self.prop.cost}"]
        if self.blame is not None:
            lines += self.blame.lines()
        return "\n".join(lines)


def by_cost(findings: Iterable[Finding]) -> list[Finding]:
    """The costliest first; among equals, a path without other replicas first, then a short one."""
    return sorted(findings, key=lambda one: (one.prop.rank, one.remote, len(one.path)))


@attrs.define
class SectionResult:
    """The results of one section, such as that of sessions: its name, the properties that were
    judged, and what was found. ``seconds`` is measured by the caller. ``skipped``: why it was not
    explored; empty if it was."""

    name: str
    properties: tuple[CostedProperty, ...]
    states: int = 0
    edges: int = 0
    seconds: float = 0.0
    complete: bool = True
    skipped: str = ""
    findings: list[Finding] = attrs.Factory(list)

    @property
    def sound(self) -> bool:
        """Whether it was explored, all of it within its bounds, and every property holds."""
        return self.complete and not self.findings and not self.skipped

    def status(self, prop: CostedProperty) -> Status:
        """What is known of ``prop``."""
        if self.skipped:
            return Status.SKIPPED
        broken = any(found.prop is prop for found in self.findings)
        return Status.BROKEN if broken else Status.HOLDS


@attrs.frozen
class Results:
    """The results of ``bridgecore verify`` for a policy."""

    policy: str
    bounds: str
    sections: Sequence[SectionResult]

    @property
    def findings(self) -> list[Finding]:
        """All violations, the costliest first."""
        return by_cost(found for section in self.sections for found in section.findings)

    @property
    def sound(self) -> bool:
        """Whether every property of every section holds."""
        return all(section.sound for section in self.sections)

    @property
    def verdict(self) -> str:
        """The results in one line."""
        explored = [section for section in self.sections if not section.skipped]
        judged = sum(len(section.properties) for section in explored)
        broken = len(self.findings)
        states = sum(section.states for section in explored)
        seconds = sum(section.seconds for section in explored)
        if broken:
            words = f"{broken} of {judged} {_properties(judged)} broken"
        elif judged == 1:
            words = f"the property holds within the {self.bounds} bounds"
        else:
            words = f"all {judged} properties hold within the {self.bounds} bounds"
        partly = "" if all(one.complete for one in explored) else ", not all that there are"
        return f"{words}, {states:,} states{partly}, {seconds:.1f} s"

    def as_data(self) -> dict[str, Any]:
        """The results as plain data, for JSON."""
        return {
            "policy": self.policy,
            "bounds": self.bounds,
            "sound": self.sound,
            "verdict": self.verdict,
            "states": sum(section.states for section in self.sections),
            "edges": sum(section.edges for section in self.sections),
            "seconds": round(sum(section.seconds for section in self.sections), 3),
            "sections": [
                {
                    "name": section.name,
                    "states": section.states,
                    "edges": section.edges,
                    "seconds": round(section.seconds, 3),
                    "complete": section.complete,
                    "skipped": section.skipped or None,
                }
                for section in self.sections
            ],
            "found": [found.prop.name for found in self.findings],  # the costliest first
            "properties": [
                _property_as_data(section, prop)
                for section in self.sections
                for prop in section.properties
            ],
        }


def _properties(number: int) -> str:
    return "property" if number == 1 else "properties"


def _property_as_data(section: SectionResult, prop: CostedProperty) -> dict[str, Any]:
    data: dict[str, Any] = {
        "section": section.name,
        "name": prop.name,
        "requires": prop.value,
        "status": section.status(prop).value,
        "rank": int(prop.rank),
        "cost": prop.cost,
    }
    for found in section.findings:
        if found.prop is prop:
            data |= _finding_as_data(found)
    return data


def _finding_as_data(found: Finding) -> dict[str, Any]:
    data: dict[str, Any] = {
        "broken": found.text,
        "path": list(found.path),
        "remote": found.remote,
        "told": found.told(),
    }
    if found.story is not None:
        data["scenario"] = found.story.scenario
        data["story"] = [
            {
                "seconds": one.at / NS_PER_SECOND,
                "event": command_of(one.event),
                "before": one.before.value,
                "after": one.transition.state.phase.value,
                "rule": one.transition.rule,
                "cells": [str(cell) for cell in one.transition.cells],
            }
            for one in found.story.seen
        ]
    if found.blame is not None:
        data |= _blame_as_data(found.blame)
    return data


def _blame_as_data(blame: Blame) -> dict[str, Any]:
    cell = blame.cell
    return {
        "because": blame.because,
        "cell": None
        if cell is None
        else {
            "situation": cell.situation.name,
            "standing": cell.standing.name,
            "action": cell.remedy.action.name,
            "answer": cell.remedy.answer.name,
        },
        "budget": blame.budget or None,
        "rule": blame.rule or None,
        "would_hold": [
            {
                "remedy": str(trial.remedy),
                "action": trial.remedy.action.name,
                "answer": trial.remedy.answer.name,
                "states": trial.states,
            }
            for trial in blame.holding
        ]
        + ([{"remedy": blame.value, "states": blame.states}] if blame.value else []),
        "would_break": [
            {"remedy": str(trial.remedy), "property": trial.breaks.name}
            for trial in blame.failing
            if trial.breaks is not None
        ],
        "tried": blame.tried or None,
    }
