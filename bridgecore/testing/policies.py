"""Proves in a test that a policy keeps every property of a session, within bounds.

What belongs here: ``assert_policy_holds``, and the text of its failure. The search is that of
``bridgecore.verify``, which is imported when it is called: ``bridgecore.testing`` is also imported
by ``bridgecore serve``, for the emulator, and that must not load the explorer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from bridgecore.errors import BridgecoreError
from bridgecore.recovery.policy import Policy

if TYPE_CHECKING:
    from bridgecore.verify.environment import Bounds
    from bridgecore.verify.explore import Counterexample
    from bridgecore.verify.properties import Property
    from bridgecore.verify.story import Story


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

    ``quick`` takes about 10 s. It is what ``bridgecore verify`` does first; bridges of several
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
    from bridgecore.verify.explore import explore
    from bridgecore.verify.properties import Property
    from bridgecore.verify.story import tell

    judged = [prop for prop in Property if prop not in without]
    found: dict[Property, tuple[Bounds, Counterexample]] = {}
    states = 0
    whole = True
    for part in parts:
        report = explore(policy, part, most=len(judged), without=frozenset(without))
        states += report.states
        whole = whole and report.complete
        for prop, one in report.broken.items():
            found.setdefault(prop, (part, one))
    where = f"within the bounds {name!r}, in {states:,} states"
    if found:
        # A path on which another replica owns the session is harder to read.
        first = sorted(found.values(), key=lambda each: (each[1].remote, len(each[1].path)))
        stories = [tell(policy, part, one) for part, one in first]
        names = ", ".join(story.prop.name for story in stories)
        head = f"policy {policy.name!r} breaks {len(found)} of {len(judged)} properties: {names}"
        text = "\n\n".join([f"{head} ({where})", *_told(stories)])
        raise PolicyError(text, tuple(story.prop for story in stories))
    if not whole:
        text = f"policy {policy.name!r} is not proven: not all states were explored {where}"
        raise PolicyError(text, ())


def _told(stories: Sequence[Story]) -> list[str]:
    """The first story by its rules and as a diagram, the others as diagrams."""
    from bridgecore.verify import diagram
    from bridgecore.verify.story import explain

    drawn = [diagram.text(story) for story in stories]
    heads = [f"{story.prop.name}: {story.prop.value}" for story in stories]
    others = [f"{head}\n\n{each}" for head, each in zip(heads[1:], drawn[1:], strict=True)]
    return [explain(stories[0]), drawn[0], *others]
