"""Policies of one's own: found by name, in a module, or in a TOML file.

What belongs here: ``load_policy``, which every command and the setting ``policy`` use, and what
only files and modules need. What a table in a file may say is ``bridgecore.recovery.policy_table``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final

import attrs

from bridgecore.config import Fallback, OnAmbiguousLoss
from bridgecore.errors import ConfigError, did_you_mean
from bridgecore.recovery.policy import (
    DEFAULT,
    POLICIES,
    Policy,
    Timeouts,
    cell_name,
    falling_back,
    is_named,
    replaying,
)
from bridgecore.recovery.policy_table import (
    KEYS,
    policy_from,
    policy_table,
    require_possible,
    require_texts,
    summary_of,
)
from bridgecore_cli.configfile import read_file, toml_value
from bridgecore_cli.errors import SettingsError

SUFFIX: Final = ".toml"


def load_policy(text: str) -> Policy:
    """The policy that ``text`` names: one of ``POLICIES``; the attribute of a module, as
    ``MODULE:ATTR``; or a TOML file with a table ``[policy]``, by its path, which ends in ``.toml``.

    The working directory is searched for the module first, as ``python -m`` does. The file can be
    the configuration file of ``serve``: its other settings are not used.

    Raises:
        ConfigError: there is none, or it is wrong. The message, one line, says why.
    """
    if text in POLICIES:
        return POLICIES[text]
    if text.endswith(SUFFIX):
        return _of_file(text)
    if ":" in text:
        return _of_module(text)
    hint = did_you_mean(text, POLICIES) or "."
    named = ", ".join(POLICIES)
    raise ConfigError(
        f"{text!r} is no policy{hint} There are {named}; your own is MODULE:ATTR or FILE{SUFFIX}"
    )


def require_servable(policy: Policy) -> None:
    """Check a policy, one that ``load_policy`` has returned, before it is served.

    Raises:
        ConfigError: it has times of its own.
    """
    for name in (field.name for field in attrs.fields(Timeouts)):
        if getattr(policy.timeouts, name) != getattr(Timeouts(), name):
            raise ConfigError(
                f"policy {policy.name}: timeouts.{name} has no effect here, the times are settings "
                f"of their own: set {_SETTINGS[name]} instead"
            )


def overridden(policy: Policy, core: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The settings of ``core`` that replace what ``policy`` says otherwise than ``default``, each
    with the cells, as log records name them."""
    for name, value, change in (
        ("ambiguous", OnAmbiguousLoss.REPLAY, replaying),
        ("fallback", Fallback.HTTP, falling_back),
    ):
        if core[name] is value:
            changed = change(policy)
            cells = [
                cell_name(row, column)
                for (row, column), remedy in policy.cells.items()
                if remedy.action is not DEFAULT.remedy(row, column).action
                and remedy.action is not changed.remedy(row, column).action
            ]
            if cells:
                yield f"{name}={value.value}", cells


# The settings that take the place of a policy's timeouts.
_SETTINGS: Final = {
    "connect": "connect_timeout",
    "created": "created_timeout",
    "idle": "idle_timeout",
    "turn": "turn_timeout",
    "lifetime": "upstream_lifetime",
    "expiry": "session_idle",
}


# ------------------------------------------------------------------ modules and files


def _of_module(text: str) -> Policy:
    module, _, attribute = text.partition(":")
    if module.endswith(".py"):
        likely = f"{module.removesuffix('.py').replace(os.sep, '.')}:{attribute}"
        raise ConfigError(f"cannot load {text!r}: a module, not a file: did you mean {likely}?")
    if not module or not attribute:
        raise ConfigError(f"{text!r} does not have the form MODULE:ATTR")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        # What a module prints would be taken for a part of the results on standard output.
        with contextlib.redirect_stdout(sys.stderr):
            found = getattr(importlib.import_module(module), attribute)
    except SystemExit as exc:  # a script without ``if __name__ == "__main__"``
        why = f"the module ends the process when it is imported: {exc!r}"
        raise ConfigError(f"cannot load {text!r}: {' '.join(why.split())}") from None
    except Exception as exc:  # whatever a module of the user's raises
        said = str(exc) if isinstance(exc, ImportError | AttributeError) else f"{exc!r}"
        raise ConfigError(f"cannot load {text!r}: {' '.join(said.split())}") from None
    finally:
        with contextlib.suppress(ValueError):  # the module has removed it
            sys.path.remove(here)
    if not isinstance(found, Policy):
        raise ConfigError(f"{text!r} is no Policy, but a value of type {type(found).__name__}")
    # A summary may be a text of some lines, as docstrings are, or empty.
    summary = " ".join(found.summary.split()) or summary_of(found)
    try:
        require_possible(found)
        require_texts(found.name, summary)
    except ConfigError as exc:
        raise ConfigError(f"{text}: {exc}") from None
    if summary != found.summary:  # a policy that is one of ``POLICIES`` has to stay that object
        found = attrs.evolve(found, summary=summary)
    if found.name in POLICIES and not is_named(found):
        # Made from a named one with ``with_cell``, which keeps the name: it would be taken for it.
        summary = summary_of(found, POLICIES[found.name])
        return attrs.evolve(found, name=text, summary=summary)
    return found


def _of_file(path: str) -> Policy:
    try:
        table = read_file(path)
    except SettingsError as exc:
        raise ConfigError(str(exc)) from None
    found = table.get("policy")
    for key, value in table.items():
        # Other keys are settings of ``serve``, none of which is a table or has such a name.
        if key in KEYS or (isinstance(value, Mapping) and value is not found):
            raise ConfigError(f"{path}: {key!r} is not in a table [policy], where it belongs")
    if isinstance(found, Mapping):
        try:
            return policy_from(found, name=PurePath(path).stem)
        except ConfigError as exc:
            raise ConfigError(f"{path}: {exc}") from None
    if isinstance(found, str) and not found.endswith(SUFFIX):  # else a file could name itself
        return load_policy(found)
    raise ConfigError(f"{path} has no table [policy]")


# ------------------------------------------------------------------ writing


def as_toml(policy: Policy, base: Policy | None = None) -> str:
    """The text of a file that describes ``policy``, for ``load_policy``."""
    table = policy_table(policy, base)
    cells = table.pop("cells", {})
    parts = ["[policy]", *_assignments("", table)]
    for name in ("budgets", "timeouts"):
        if name in table:
            parts += ["", f"[policy.{name}]", *_assignments("", table[name])]
    if cells:
        parts += ["", "[policy.cells]"]
        for row, columns in cells.items():
            parts += _assignments(f"{row}.", columns)
    return "\n".join(parts) + "\n"


def _assignments(prefix: str, table: Mapping[str, Any]) -> list[str]:
    return [
        f"{prefix}{name} = {toml_value(value)}"
        for name, value in table.items()
        if not isinstance(value, Mapping)
    ]
