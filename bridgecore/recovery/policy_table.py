"""Reads a policy from a table of names, as a TOML file has it, and writes one as such a table.

A table says what differs from a named policy: ``base`` names it, ``cells`` has the remedies of some
cells, by row and column, and ``budgets`` and ``timeouts`` some of those numbers. In TOML::

    [policy]
    base = "default"
    [policy.budgets]
    refusals = 5
    [policy.cells]
    lost_sent.unanchored = "resend"
    silent.usually = "refuse (upstream_request_timeout)"

What belongs here: the names, and what is wrong with a table, said with its place in it. Names are
those of log records (``lost_sent/held=refuse``): a row is a ``Situation``, a column a ``Standing``
and an action an ``Action``, by ``name_of``; an answer is a ``FailureReply``, by its value. Files
are read elsewhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final, NoReturn, TypeAlias

import attrs

from bridgecore.errors import ConfigError, did_you_mean
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import (
    DEFAULT,
    NEEDS,
    POLICIES,
    Action,
    Budgets,
    Policy,
    Remedy,
    Situation,
    Timeouts,
    can_carry_out,
    name_of,
)
from bridgecore.recovery.timers import NS_PER_SECOND

USUALLY: Final = "usually"
"""In place of a column: all columns of the row that are not named."""
ROWS: Final[Mapping[str, Situation]] = {name_of(row): row for row in Situation}
"""The rows of a policy by the names that tables and log records have for them."""
COLUMNS: Final[Mapping[str, Standing]] = {name_of(column): column for column in Standing}
"""The columns, likewise."""
ACTIONS: Final[Mapping[str, Action]] = {name_of(action): action for action in Action}
"""The actions, likewise."""
ANSWERS: Final[Mapping[str, FailureReply]] = {answer.value: answer for answer in FailureReply}
"""The answers, likewise: the error codes that clients get."""

KEYS: Final = ("name", "summary", "base", "budgets", "timeouts", "cells")
"""The keys of a table."""
_BUDGETS = tuple(field.name for field in attrs.fields(Budgets))
_TIMEOUTS = tuple(field.name for field in attrs.fields(Timeouts))
_REMEDY = re.compile(r"([^()]*?) *(?:\(([^()]*)\))?")
_MOST = 1000  # characters of a name or a summary
_LONGEST = 10**9  # seconds, as in ``Config``

_Cells: TypeAlias = dict[tuple[Situation, Standing], Remedy]


# ------------------------------------------------------------------ reading


def policy_from(table: Mapping[str, Any], *, name: str = "own") -> Policy:
    """The policy that ``table`` describes, such as the table ``[policy]`` of a TOML file.

    A table without a name, a summary and a difference is the named policy ``base`` itself. Times
    are seconds.

    Args:
        table: keys are ``base`` (the name of a policy; by default ``default``), ``name``,
            ``summary``, ``budgets`` and ``timeouts`` (by the fields of those classes), and
            ``cells``: for each row a table from columns to remedies, ``"ACTION"`` or
            ``"ACTION (ANSWER)"``. Without an answer, that of the base's cell is kept. ``usually``
            is the remedy of all columns of the row that are not named.
        name: of the policy, if the table has none.

    Raises:
        ConfigError: the table cannot be used. The message begins with the place in it, such as
            ``policy.cells.lost_sent.held``, and lists the names that are possible there.
    """
    _require_names("policy", "key", table, KEYS)
    base = POLICIES[_member("policy.base", "policy", table.get("base", DEFAULT.name), POLICIES)]
    cells = _cells(base, table.get("cells", {}))
    budgets, timeouts = _budgets(base, table), _timeouts(base, table)
    same = cells == base.cells and (budgets, timeouts) == (base.budgets, base.timeouts)
    if same and "name" not in table and "summary" not in table:
        return base
    named = _text("policy.name", table.get("name", name))
    if named in POLICIES:
        wrong = f"policy.name: {named!r} is the name of another policy"
        raise ConfigError(f"{wrong}: give this one a name of its own")
    policy = Policy(named, "", cells, budgets, timeouts)
    summary = table.get("summary", summary_of(policy, base))
    return attrs.evolve(policy, summary=_text("policy.summary", summary))


def summary_of(policy: Policy, base: Policy = DEFAULT) -> str:
    """One sentence: how much of ``policy`` differs from ``base``."""
    cells, budgets, timeouts = differences(policy, base)
    found = {"cell": len(cells), "budget": len(budgets), "timeout": len(timeouts)}
    counts = [f"{n} {noun}{'' if n == 1 else 's'}" for noun, n in found.items() if n]
    if not counts:
        return f"The table of {base.name}, with another name."
    *most, last = counts
    listed = f"{', '.join(most)} and {last}" if most else last
    return f"The table of {base.name} with {listed} changed."


def differences(
    policy: Policy, base: Policy
) -> tuple[list[tuple[Situation, Standing]], list[str], list[str]]:
    """The cells, the names of the budgets and those of the timeouts that differ."""
    return (
        [key for key in _ALL if policy.cells[key] != base.cells[key]],
        [name for name in _BUDGETS if getattr(policy.budgets, name) != getattr(base.budgets, name)],
        [
            name
            for name in _TIMEOUTS
            if getattr(policy.timeouts, name) != getattr(base.timeouts, name)
        ],
    )


_ALL = tuple((row, column) for row in Situation for column in Standing)


def _cells(base: Policy, table: object) -> _Cells:
    cells = dict(base.cells)
    rows = _table_of("policy.cells", table, "rows")
    _require_names("policy.cells", "row", rows, ROWS)
    for row_name, found in rows.items():
        place, row = f"policy.cells.{row_name}", ROWS[row_name]
        if isinstance(found, str):
            why = f'is not a table of columns; for the whole row write {row_name}.{USUALLY} = "..."'
            _refuse(place, found, why)
        columns = _table_of(place, found, "columns")
        _require_names(place, "column", columns, (*COLUMNS, USUALLY))
        for column_name, column in COLUMNS.items():
            given = column_name if column_name in columns else USUALLY
            if given in columns:
                here = f"{place}.{given}"
                remedy = _remedy(here, columns[given], base.remedy(row, column))
                _require_possible(here, remedy.action, column)
                cells[row, column] = remedy
    return cells


def _remedy(place: str, found: object, before: Remedy) -> Remedy:
    """The remedy written as ``found``. ``before``: that of the base, whose answer is kept if
    ``found`` has none."""
    parts = _REMEDY.fullmatch(found) if isinstance(found, str) else None
    if parts is None or not parts[1]:
        _refuse(place, found, 'is no remedy; write "ACTION" or "ACTION (ANSWER)"')
    words = {action.value: name for name, action in ACTIONS.items()}
    hint = words.get(parts[1], "")  # as ``bridgecore rules --all`` prints it
    action = ACTIONS[_member(place, "action", parts[1], ACTIONS, hint)]
    if parts[2] is None:
        if before.action is Action.SURFACE and action is not Action.SURFACE:
            # The answer of such a cell is the upstream's own: not what a refusal should say.
            why = f"needs an answer here, because the base has surface: write {parts[1]} (ANSWER)"
            _refuse(place, found, f"{why}. The answers are {', '.join(ANSWERS)}")
        return Remedy(action, before.answer)
    names = {each.name.lower(): each.value for each in FailureReply}
    hint = names.get(parts[2], "")
    return Remedy(action, ANSWERS[_member(place, "answer", parts[2], ANSWERS, hint)])


def _require_possible(place: str, action: Action, column: Standing) -> None:
    """Raise ConfigError if no bridge can do ``action`` for a turn of ``column``."""
    if not can_carry_out(action, column):
        able = " and ".join(name_of(each) for each in NEEDS[action])
        columns = "columns" if len(NEEDS[action]) > 1 else "column"
        has = "a context that the bridge holds"
        if Standing.INJECTED in NEEDS[action]:
            has = "the client's own full input"
        here = (
            "" if place.endswith(f".{name_of(column)}") else f", and this is for {name_of(column)}"
        )
        raise ConfigError(
            f"{place}: {name_of(action)!r} needs {has}, so it is possible in the {columns} {able} "
            f"only{here}: give the cell another action (bridgecore rules --all explains each)"
        )


def _budgets(base: Policy, table: Mapping[str, Any]) -> Budgets:
    place = "policy.budgets"
    found = _table_of(place, table.get("budgets", {}), "budgets")
    _require_names(place, "budget", found, _BUDGETS)
    for name, value in found.items():
        if isinstance(getattr(Budgets(), name), bool):
            if not isinstance(value, bool):
                _refuse(f"{place}.{name}", value, "is not true or false")
        elif type(value) is not int or value < 0:
            _refuse(f"{place}.{name}", value, "is not a whole number of at least 0")
    return attrs.evolve(base.budgets, **found)


def _timeouts(base: Policy, table: Mapping[str, Any]) -> Timeouts:
    place = "policy.timeouts"
    found = _table_of(place, table.get("timeouts", {}), "timeouts")
    _require_names(place, "timeout", found, _TIMEOUTS)
    durations = {name: _seconds(f"{place}.{name}", value) for name, value in found.items()}
    return attrs.evolve(base.timeouts, **durations)


def _seconds(place: str, value: object) -> int:
    """``value``, a number of seconds, in ns. Computed in Decimal: a float of 0.1 is not exact."""
    number = Decimal("NaN")
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        number = Decimal(str(value))
    if not number.is_finite() or not 1 <= number * NS_PER_SECOND <= _LONGEST * NS_PER_SECOND:
        _refuse(place, value, f"is not a time (seconds, above 0 and at most {_LONGEST})")
    return int(number * NS_PER_SECOND)


# ------------------------------------------------------------------ what is wrong


def require_possible(policy: Policy) -> None:
    """Check that a bridge can carry out each cell of ``policy``, however that was made.

    Raises:
        ConfigError: it cannot. The message is that for the same cell in a table.
    """
    for (row, column), remedy in policy.cells.items():
        place = f"policy.cells.{name_of(row)}.{name_of(column)}"
        _require_possible(place, remedy.action, column)


def require_texts(name: str, summary: str) -> None:
    """Check the texts of a policy, however that was made: they are printed in one line, and a table
    that ``policy_table`` makes has to be read again.

    Raises:
        ConfigError: one is no text of one line. The message is that for the same text in a table.
    """
    _text("policy.name", name)
    _text("policy.summary", summary)


def _table_of(place: str, found: object, of: str) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        _refuse(place, found, f"is not a table of {of}")
    return found


def _text(place: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        _refuse(place, value, "is not a text of one line")
    if len(value) > _MOST:
        raise ConfigError(f"{place}: the text has more than {_MOST} characters")
    return value


def _require_names(place: str, noun: str, table: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise ConfigError if a key of ``table`` is not in ``names``. ``noun``: what the keys are."""
    known = list(names)
    for key in table:
        if key not in known:
            _member(f"{place}.{key}", noun, key, known)


def _member(place: str, noun: str, found: object, names: Iterable[str], hint: str = "") -> str:
    """``found``, which must be in ``names``. ``noun``: what it is; ``hint``: the name that was most
    likely meant, if that is known.

    Raises:
        ConfigError: it is not; the message has the name that is most like it, and all names.
    """
    known = list(names)
    if not isinstance(found, str) or found not in known:
        likely = did_you_mean(hint or found, known) or "."
        nouns = {"policy": "policies"}.get(noun, f"{noun}s")
        _refuse(place, found, f"is no {noun}{likely} The {nouns} are {', '.join(known)}")
    return found


def _refuse(place: str, found: object, why: str) -> NoReturn:
    shown = repr(found) if isinstance(found, str) else _plain(found)
    raise ConfigError(f"{place}: {shown[:100]} {why}")


def _plain(found: object) -> str:
    return str(found).lower() if isinstance(found, bool) else str(found)


# ------------------------------------------------------------------ writing


def policy_table(policy: Policy, base: Policy | None = None) -> dict[str, Any]:
    """``policy`` as a table that ``policy_from`` reads: what differs from ``base``.

    The name is left out if it is that of a named policy. Times are seconds, as Decimal.

    Args:
        policy: a policy that a bridge can carry out.
        base: a named policy; by default the one from which the fewest cells differ.
    """
    if base is None:
        base = min(POLICIES.values(), key=lambda each: len(differences(policy, each)[0]))
    table: dict[str, Any] = {"base": base.name}
    if policy is base:
        return table
    if policy.name not in POLICIES:
        table = {"name": policy.name, "summary": policy.summary, **table}
    cells, budgets, timeouts = differences(policy, base)
    if budgets:
        table["budgets"] = {name: getattr(policy.budgets, name) for name in budgets}
    if timeouts:
        table["timeouts"] = {
            name: Decimal(getattr(policy.timeouts, name)) / NS_PER_SECOND for name in timeouts
        }
    rows: dict[str, dict[str, str]] = {}
    for row, column in cells:
        remedy = written(policy.remedy(row, column))
        rows.setdefault(name_of(row), {})[name_of(column)] = remedy
    for row_name, columns in rows.items():
        if len(columns) == len(Standing):
            ((usual, _),) = Counter(columns.values()).most_common(1)
            others = {name: remedy for name, remedy in columns.items() if remedy != usual}
            rows[row_name] = {USUALLY: usual, **others}
    if rows:
        table["cells"] = rows
    return table


def written(remedy: Remedy) -> str:
    """``remedy`` as a table has it: ``refuse (stream_incomplete)``."""
    return f"{name_of(remedy.action)} ({remedy.answer.value})"
