"""A table with one rule for each pair of a stage and an event type, for ``lease`` and ``claims``.

What belongs here: registration and the check that a table is complete. Both machines have a state
with a stage, and no policy; a session's rules are in ``bridgecore.recovery.rules``, which also
knows events that are illegal and timers.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar, get_args

import attrs

S = TypeVar("S", bound=enum.Enum)
A = TypeVar("A", bound=Callable[..., Any])


@attrs.frozen(eq=False)
class Rule(Generic[S, A]):
    """One rule. ``doc``: what it does, or why it does nothing (``apply`` is None then)."""

    id: str
    stages: tuple[S, ...]
    on: type
    doc: str
    apply: A | None


_Key: TypeAlias = tuple[S, type]


class RuleTable(Generic[S, A]):
    """The rules of one machine. ``stages``: all of its stages; ``events``: the union of its
    events."""

    def __init__(self, stages: type[S], events: Any) -> None:
        self._pairs = [(stage, event) for stage in stages for event in get_args(events)]
        self.rules: dict[_Key[S], Rule[S, A]] = {}

    def rule(self, rule_id: str, on: type, *stages: S) -> Callable[[A], A]:
        """Register the decorated function as the rule for ``on`` in ``stages``. The first paragraph
        of its docstring says what the rule does."""

        def register(apply: A) -> A:
            doc = " ".join((apply.__doc__ or "").split("\n\n")[0].split())
            self._register(Rule(rule_id, stages, on, doc, apply))
            return apply

        return register

    def ignore(self, rule_id: str, on: type, doc: str, *stages: S) -> None:
        """Have ``on`` do nothing in ``stages``, for the reason ``doc``."""
        self._register(Rule(rule_id, stages, on, doc, None))

    def _register(self, rule: Rule[S, A]) -> None:
        for stage in rule.stages:
            if (stage, rule.on) in self.rules:
                raise ValueError(f"{rule.id} and {self.rules[stage, rule.on].id} rule one pair")
            self.rules[stage, rule.on] = rule

    def close(self) -> None:
        """Check that each pair has a rule. Called where the table ends, so that a machine with a
        gap cannot be imported."""
        if missing := [pair for pair in self._pairs if pair not in self.rules]:
            raise ValueError(f"no rule for {missing}")
