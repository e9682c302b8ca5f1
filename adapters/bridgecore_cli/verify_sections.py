"""What ``bridgecore verify`` explores, section by section: sessions, bridges, ownership, pairs.

What belongs here: one description of each section, and one function that explores any of them and
prints what it does. The explorations themselves are ``bridgecore.verify``; what their results mean
is ``bridgecore.verify.results``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs

from bridgecore.bridge import Bridge
from bridgecore.recovery.policy import Policy
from bridgecore.recovery.timers import Timer
from bridgecore.verify.blame import Blamer
from bridgecore.verify.cost import CostedProperty
from bridgecore.verify.environment import BOUNDS, Bounds
from bridgecore.verify.explore import (
    PAIRS,
    Counterexample,
    Report,
    explore,
    never_fired,
    never_met,
)
from bridgecore.verify.explore_bridge import (
    BRIDGE_BOUNDS,
    BridgeBounds,
    BridgeProperty,
    BridgeReport,
    explore_bridge,
)
from bridgecore.verify.explore_ownership import (
    OWNERSHIP_BOUNDS,
    OwnershipReport,
    explore_ownership,
)
from bridgecore.verify.explore_pair import PAIR_BOUNDS, PairReport, explore_pair
from bridgecore.verify.ownership_world import OwnershipBounds, OwnershipProperty
from bridgecore.verify.pair_properties import PairProperty
from bridgecore.verify.pair_records import PairBounds
from bridgecore.verify.properties import Property
from bridgecore.verify.results import Finding, SectionResult, Status, by_cost
from bridgecore.verify.story import tell
from bridgecore_cli.colour import Colour, paint
from bridgecore_cli.progress import bar, show

Say: TypeAlias = Callable[[str], None]  # prints a line; with --json it prints nothing
_Report: TypeAlias = Report | BridgeReport | OwnershipReport | PairReport


@attrs.frozen
class Part:
    """What was found within the bounds of one part of a section."""

    bounds: Any
    report: _Report
    states: int
    findings: Sequence[Finding]
    checked: Mapping[Any, int] = attrs.Factory(dict)


@attrs.frozen
class Work:
    """What a part needs: the policy, the properties to judge, what takes a violation as soon as it
    is found, and what takes the figures so far, as text, every few thousand states."""

    policy: Policy
    judged: frozenset[Any]
    found: Callable[[Finding], None]
    progressed: Callable[[str], None]


@attrs.frozen
class Section:
    """One kind of subject that is explored, in parts, each with bounds of its own.

    ``limits`` says what the bounds of a part are. ``closer`` is called with all parts at the end
    and returns further lines to print. ``explain`` adds to the findings what takes longer to find
    out.
    """

    name: str
    title: str
    properties: Iterable[CostedProperty]
    bounds: Mapping[str, Sequence[Any]]
    explore: Callable[[Work, Any], Part]
    limits: Callable[[Any], str]
    closer: Callable[[Sequence[Part]], Iterable[str]] = lambda _: ()
    explain: Callable[[Policy, list[tuple[Finding, Any]]], list[Finding]] = lambda _, found: [
        one for one, _ in found
    ]


# ---------------------------------------------------------------- sessions


def _session(work: Work, part: Bounds) -> Part:
    report = explore(
        work.policy,
        part,
        most=len(work.judged),
        without=frozenset(Property) - work.judged,
        local_first=True,
        progress=lambda report: work.progressed(_session_figures(report)),
        found=lambda one: work.found(_of_session(one)),
    )
    return Part(part, report, report.states, [_of_session(one) for one in report.counterexamples])


def _of_session(found: Counterexample) -> Finding:
    return Finding(found.prop, found.text, found.path, found.remote)


def _session_figures(report: Report) -> str:
    """The progress: how many of the states found so far have been explored."""
    done = (report.states - report.ahead) / report.states
    return f"{bar(done)} {report.states:,} states, {report.edges:,} edges"


def _session_limits(part: Bounds) -> str:
    times = part.timeouts
    return (
        f"{part.waiting} waiting, {part.refusals} bounded refusals, ticks: connect "
        f"{times.connect}, created {times.created}, idle {times.idle}, turn {times.turn}, "
        f"lifetime {times.lifetime}, expiry {times.expiry}"
    )


def _session_closer(parts: Sequence[Part]) -> Iterable[str]:
    """Which rules and which pairs of phase and event occurred."""
    reports = [part.report for part in parts if isinstance(part.report, Report)]
    fired = set().union(*[report.rules_fired for report in reports])
    pairs = [
        f"{phase.value}/{key.value if isinstance(key, Timer) else key.__name__}"
        for phase, key in never_met(reports)
    ]
    yield f"rules fired: {len(fired)}; never fired: {', '.join(never_fired(reports)) or 'none'}"
    yield f"pairs ruled: {PAIRS} of {PAIRS}; never met: {', '.join(pairs) or 'none'}"


def _explain_sessions(policy: Policy, found: list[tuple[Finding, Any]]) -> list[Finding]:
    """Each finding with its story and with what is responsible for it."""
    blamer = Blamer(policy, findings=len(found))
    explained = []
    for number, (one, part) in enumerate(found, 1):
        show(f"what is responsible, {number} of {len(found)}")
        assert isinstance(one.prop, Property)
        counterexample = Counterexample(one.prop, one.text, one.path, one.remote)
        story = tell(policy, part, counterexample)
        blame = blamer.blame(part, counterexample)
        explained.append(attrs.evolve(one, story=story, blame=blame))
    show("")
    return explained


# ---------------------------------------------------------------- bridges and replicas


def _bridge(work: Work, part: BridgeBounds) -> Part:
    make = _made_with(work.policy)
    progress = _progress_of(work)
    return _part(part, explore_bridge(part, make=make, judged=work.judged, progress=progress))


def _bridge_limits(part: BridgeBounds) -> str:
    return f"{part.turns} turns, {part.depth} moves, {part.continuity.value}"


def _ownership(work: Work, part: OwnershipBounds) -> Part:
    progress = _progress_of(work)
    return _part(part, explore_ownership(part, judged=work.judged, progress=progress))


def _ownership_limits(part: OwnershipBounds) -> str:
    return f"{part.turns} turns, {part.faults} faults"


def _pair(work: Work, part: PairBounds) -> Part:
    make = _made_with(work.policy)
    progress = _progress_of(work)
    return _part(part, explore_pair(part, make=make, judged=work.judged, progress=progress))


def _pair_limits(part: PairBounds) -> str:
    return (
        f"{part.clients} clients, {part.turns} turns, {part.attempts} attempts, "
        f"{part.faults} faults"
    )


def _made_with(policy: Policy) -> Callable[..., Bridge]:
    return lambda config, **more: Bridge(attrs.evolve(config, policy=policy), **more)


def _part(bounds: Any, report: BridgeReport | OwnershipReport | PairReport) -> Part:
    findings = [Finding(one.prop, one.text, one.path) for one in report.counterexamples]
    return Part(bounds, report, report.worlds, findings, report.checked)


def _progress_of(work: Work) -> Callable[[BridgeReport | OwnershipReport | PairReport], None]:
    return lambda report: work.progressed(f"{report.worlds:,} states, {report.edges:,} edges")


# ---------------------------------------------------------------- all of them

_SESSIONS: Final = Section(
    "sessions",
    "sessions: every event in every state",
    Property,
    BOUNDS,
    _session,
    _session_limits,
    _session_closer,
    _explain_sessions,
)
SECTIONS: Final = (
    _SESSIONS,
    Section(
        "bridges",
        "bridges: a few turns of two clients",
        BridgeProperty,
        BRIDGE_BOUNDS,
        _bridge,
        _bridge_limits,
    ),
    Section(
        "ownership",
        "ownership: two replicas over one store",
        OwnershipProperty,
        OWNERSHIP_BOUNDS,
        _ownership,
        _ownership_limits,
    ),
    Section(
        "pairs",
        "pairs: two bridges over one store",
        PairProperty,
        PAIR_BOUNDS,
        _pair,
        _pair_limits,
    ),
)


def names() -> list[str]:
    """The names of all properties, each once."""
    return sorted({prop.name for section in SECTIONS for prop in section.properties})


def explore_sections(
    policy: Policy,
    bounds: str,
    judged: Collection[str],
    say: Say,
    sections: Sequence[Section] = SECTIONS,
) -> list[SectionResult]:
    """Explore every section that has a property in ``judged`` (names; empty: all).

    The sections after that of sessions are skipped if it is not sound: a bridge whose sessions do
    the wrong thing breaks its own properties, too, and says less about the reason.
    """
    results: list[SectionResult] = []
    for section in sections:
        wanted = [prop for prop in section.properties if not judged or prop.name in judged]
        if not wanted:
            continue
        if results and results[0].name == _SESSIONS.name and not results[0].sound:
            why = (
                "a property of sessions is broken"
                if results[0].findings
                else "not all sessions were explored"
            )
            results.append(SectionResult(section.name, tuple(wanted), skipped=why))
            continue
        results.append(_explore_section(section, policy, bounds, wanted, say))
    skipped = [result for result in results if result.skipped]
    if skipped:
        say(f"\nnot explored: {', '.join(one.name for one in skipped)}, as {skipped[0].skipped}")
    return results


def _explore_section(
    section: Section, policy: Policy, bounds: str, wanted: Sequence[CostedProperty], say: Say
) -> SectionResult:
    """Explore the parts of ``section`` and print what each was; its properties at the end."""
    began = time.perf_counter()
    costliest = Costliest(say)
    say(f"\n{paint(section.title, Colour.HEAD)}")
    parts: list[Part] = []
    room = max(len(limits.name) for limits in section.bounds[bounds])
    for limits in section.bounds[bounds]:
        part_began = time.perf_counter()

        def progressed(figures: str, name: str = limits.name) -> None:
            costliest.tell()
            show(f"{name}: {figures}{costliest.count}")

        work = Work(policy, frozenset(wanted), costliest.found, progressed)
        show(f"{limits.name}{costliest.count}")
        part = section.explore(work, limits)
        show("")
        for one in part.findings:
            costliest.found(one)
        costliest.tell()
        say(f"  {limits.name:<{room}} {_figures(part, time.perf_counter() - part_began)}")
        say(f"    {section.limits(limits)}")
        parts.append(part)
    for line in section.closer(parts):
        say(f"  {line}")
    complete = all(part.report.complete for part in parts)
    best = _best(parts)
    result = SectionResult(
        section.name,
        tuple(wanted),
        states=sum(part.states for part in parts),
        edges=sum(part.report.edges for part in parts),
        complete=complete,
        findings=section.explain(policy, best),
    )
    result.seconds = time.perf_counter() - began
    _say_properties(result, parts, say)
    return result


class Costliest:
    """The costliest of the violations found so far. It is printed every few thousand states, and
    not each violation as it is found: the first ones found are those that take few moves, which may
    cost users little."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._broken: set[CostedProperty] = set()
        self._best: Finding | None = None
        self._told: Finding | None = None

    @property
    def count(self) -> str:
        """How many properties are broken, for a line of progress."""
        return f", {len(self._broken)} broken" if self._broken else ""

    def found(self, one: Finding) -> None:
        """Take a violation."""
        self._broken.add(one.prop)
        self._best = one if self._best is None else by_cost([self._best, one])[0]

    def tell(self) -> None:
        """Print the costliest one, unless it was printed."""
        best = self._best
        if best is None or best is self._told:
            return
        if self._told is None or self._told.prop is not best.prop:
            show("")
            self._say(
                f"  {paint('broken', Colour.BAD)}, the costliest so far: {best.prop.name} "
                f"(rank {int(best.prop.rank)}), after {len(best.path)} moves"
            )
            self._say(f"    {'; '.join(best.path)}")
            self._say(f"    costs: {best.prop.cost}")
        self._told = best


def _figures(part: Part, seconds: float) -> str:
    partly = "" if part.report.complete else ", not all that there are"
    return f"{part.states:,} states{partly}, {part.report.edges:,} edges, {seconds:.1f} s"


def _best(parts: Sequence[Part]) -> list[tuple[Finding, Any]]:
    """For each broken property the best path of all parts, with the bounds of its part; the
    costliest first."""
    places = {id(one): part.bounds for part in parts for one in part.findings}
    best: dict[CostedProperty, Finding] = {}
    for one in by_cost(one for part in parts for one in part.findings):
        best.setdefault(one.prop, one)
    return [(one, places[id(one)]) for one in best.values()]


def _say_properties(result: SectionResult, parts: Sequence[Part], say: Say) -> None:
    checked: Counter[Any] = Counter()
    for part in parts:
        checked.update(part.checked)
    for prop in result.properties:
        broken = result.status(prop) is Status.BROKEN
        word = paint("BROKEN", Colour.BAD) if broken else paint("holds ", Colour.GOOD)
        count = f" ({checked[prop]:,} checks)" if checked else ""
        say(f"{word}  {prop.name}{count}")
