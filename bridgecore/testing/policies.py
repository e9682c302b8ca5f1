"""Proves in a test that a policy keeps every property of a session, within bounds.

What belongs here: ``assert_policy_holds``, and the text of its failure. The search is that of
``bridgecore.verify``, which is imported when it is called: ``bridgecore.testing`` is also imported
by ``bridgecore serve``, for the emulator, and that must not load the explorer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import attrs

from bridgecore.errors import BridgecoreError
from bridgecore.recovery.policy import Policy

if TYPE_CHECKING:
    from bridgecore.verify.environment import Bounds
    from bridgecore.verify.properties import Property
    from bridgecore.verify.results import Finding


class PolicyError(BridgecoreError, AssertionError):
    """A policy breaks properties, ``broken``: of ``bridgecore.verify.properties.Property``. The
    text has a shortest way to a violation of each, as a sequence diagram."""

    def __init__(self, message: str, broken: tuple[Property, ...]) -> None:
        super().__init__(message)
        self.broken = broken


def assert_policy_holds(
    policy: Policy, bounds: str = "quick", *, without: Collection[Property] = ()
) -> None:
    """Explore every state that a session with ``policy`` can reach, and check every property in it.

    ``quick`` takes 10 to 15 s. It is what ``bridgecore verify`` does first; bridges of several
    sessions, and replicas, are explored by that command only.

    Args:
        policy: the policy, such as ``DEFAULT.with_cell(...)``.
        bounds: what to explore: ``quick``, ``small``, ``ci`` or ``nightly``.
        without: properties that are not checked, because the policy breaks them on purpose.

    Raises:
        PolicyError: the policy breaks a property. pytest shows its text as the failure.
        ValueError: there are no such bounds.
    """
    __tracebackhide__ = True  # pytest: the failure is at the caller's line
    from bridgecore.verify.environment import BOUNDS

    if bounds not in BOUNDS:
        raise ValueError(f"no bounds are named {bounds!r}; there are {', '.join(BOUNDS)}")
    check(policy, bounds, BOUNDS[bounds], without)


def check(
    policy: Policy, name: str, parts: Sequence[Bounds], without: Collection[Property]
) -> None:
    """Explore each of ``parts``, the bounds named ``name``.

    Raises:
        PolicyError: a property is broken, or a part has more states than it may.
    """
    __tracebackhide__ = True
    from bridgecore.verify.blame import Blamer
    from bridgecore.verify.explore import explore
    from bridgecore.verify.properties import Property
    from bridgecore.verify.results import Finding, by_cost
    from bridgecore.verify.story import tell

    judged = [prop for prop in Property if prop not in without]
    blamer = Blamer(policy, effort=0)  # what would hold instead takes longer to find out
    best: dict[Property, Finding] = {}
    states = 0
    whole = True
    for part in parts:
        report = explore(
            policy, part, most=len(judged), without=frozenset(without), local_first=True
        )
        states += report.states
        whole = whole and report.complete
        for one in report.counterexamples:
            found = Finding(one.prop, one.text, one.path, one.remote)
            if one.prop not in best or by_cost([best[one.prop], found])[0] is found:
                story, blame = tell(policy, part, one), blamer.blame(part, one)
                best[one.prop] = attrs.evolve(found, story=story, blame=blame)
    where = f"within the bounds {name!r}, in {states:,} states"
    if best:
        ranked = by_cost(best.values())
        broken = tuple(sorted(best, key=lambda prop: ranked.index(best[prop])))
        names = ", ".join(prop.name for prop in broken)
        head = f"policy {policy.name!r} breaks {len(broken)} of {len(judged)} properties: {names}"
        told = [_told(one, in_full=one is ranked[0]) for one in ranked]
        raise PolicyError("\n\n".join([f"{head} ({where})", *told]), broken)
    if not whole:
        text = f"policy {policy.name!r} is not proven: not all states were explored {where}"
        raise PolicyError(text, ())


def _told(found: Finding, *, in_full: bool) -> str:
    """A violation as a diagram, with what it costs and what is responsible. ``in_full``: with the
    rules and phases on the way, too."""
    from bridgecore.verify import diagram

    drawn = "" if found.story is None else diagram.text(found.story)
    if in_full:
        return f"{found.told()}\n\n{drawn}"
    lines = [f"{found.prop.name}: {found.prop.value}", "", drawn, f"costs:  {found.prop.cost}"]
    if found.blame is not None:
        lines += found.blame.lines()
    return "\n".join(lines)
