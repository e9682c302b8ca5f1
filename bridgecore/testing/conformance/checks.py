"""What checks of all kinds have in common: their exception, and running them without pytest.

What belongs here: nothing about drivers or stores. A *check* is a method of a suite whose name
begins with ``test_``, so that pytest finds it. It raises ``ConformanceError`` with the requirement
and what was seen instead; it has no ``assert``, because outside of pytest that shows no values, and
``python -O`` removes it.
"""

from __future__ import annotations

import unittest
from collections.abc import Iterator, Mapping

import attrs

from bridgecore.errors import BridgecoreError


class ConformanceError(BridgecoreError, AssertionError):
    """A driver or a store does not do what it must. The text says what, and what was seen."""


def expect(condition: object, requirement: str) -> None:
    """Raise ``ConformanceError`` unless ``condition`` is true."""
    if not condition:
        raise ConformanceError(requirement)


def equal(seen: object, expected: object, requirement: str) -> None:
    """Raise ``ConformanceError`` unless ``seen`` is ``expected``."""
    if seen != expected:
        lines = [requirement, f"expected: {_short(expected)}", f"seen:     {_short(seen)}"]
        raise ConformanceError("\n".join(lines))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 2000 else f"{text[:1000]} ... {text[-1000:]}"


def skip(reason: str) -> None:
    """End the check that calls this. pytest and ``run_checks`` report it as skipped."""
    raise unittest.SkipTest(reason)


@attrs.frozen
class CheckReport:
    """What became of the checks of a suite, in their order.

    ``passed``: names; ``failed``: what each has raised; ``skipped``: why. As a text it has a line
    for each, and each failure in full.
    """

    passed: tuple[str, ...]
    failed: Mapping[str, Exception]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"passed   {name}" for name in self.passed]
        lines += [f"skipped  {name}: {why}" for name, why in self.skipped.items()]
        for name, error in self.failed.items():
            lines.append(f"FAILED   {name}: {type(error).__name__}")
            lines += [f"         {line}" for line in str(error).splitlines()]
        return "\n".join(lines)


def checks_of(suite: object) -> Iterator[str]:
    """The names of the checks of a suite: those of its base classes first, in the order of the
    code."""
    names: dict[str, None] = {}
    for base in reversed(type(suite).__mro__):
        names.update(dict.fromkeys(name for name in vars(base) if name.startswith("test_")))
    return iter(names)


def run_checks(suite: object, *names: str) -> CheckReport:
    """Run the checks of ``suite``, an instance of a class derived from ``DriverConformance`` or
    ``StoreConformance``; with ``names`` only these. It needs no pytest, and raises nothing that a
    check has raised."""
    passed: list[str] = []
    failed: dict[str, Exception] = {}
    skipped: dict[str, str] = {}
    for name in names or checks_of(suite):
        try:
            getattr(suite, name)()
        except unittest.SkipTest as why:
            skipped[name] = str(why)
        except Exception as error:
            failed[name] = error
        else:
            passed.append(name)
    return CheckReport(tuple(passed), failed, skipped)
