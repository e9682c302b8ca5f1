"""``bridgecore check-config``: prints the settings that ``serve`` would have, and their sources.

What belongs here: the form in which they are printed, which is that of a configuration file, and
what is hidden of a value that may hold a secret. Reading them is ``bridgecore_cli.settings``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
from collections.abc import Mapping
from urllib.parse import urlsplit

from bridgecore_cli.configfile import toml_value
from bridgecore_cli.errors import did_you_mean
from bridgecore_cli.settings import (
    DEFAULT,
    GROUPS,
    HEADERS,
    ORIGINS,
    PATHS,
    SETTINGS,
    Chosen,
    Setting,
    checked,
    read_sources,
    unknown_variables,
)

_HIDDEN = "..."  # in place of what may be a password or a key


def run(options: argparse.Namespace) -> int:
    """Print the settings; return the exit code.

    Raises:
        SettingsError: ``serve`` would refuse them.
    """
    chosen = read_sources(vars(options), os.environ)
    checked(chosen)
    print(render(chosen))
    for name in unknown_variables(os.environ):
        print(f"bridgecore: warning: {unknown(name)}", file=sys.stderr)
    return 0


def unknown(name: str) -> str:
    """What is to be said about a variable that is no setting's."""
    shown = name if name.isprintable() else ascii(name)
    meant = did_you_mean(name, [setting.variable for setting in SETTINGS])
    return f"{shown} is not the variable of a setting, so it has no effect{meant}"


def render(chosen: dict[str, Chosen]) -> str:
    """The settings as a configuration file, each with its source in a comment."""
    by_name = {setting.name: setting for setting in SETTINGS}
    parts = []
    for title, names in GROUPS.items():
        lines = [(f"{n} = {_shown(by_name[n], chosen[n])}", chosen[n].source) for n in names]
        width = max([len(line) for line, _ in lines if len(line) <= _LONGEST], default=0)
        parts.append(f"# {title}")
        for line, source in lines:
            if "\n" in line or len(line) > _LONGEST:
                parts += [f"# {source}:", line]
            else:
                parts.append(f"{line.ljust(width)}  # {source}")
        parts.append("")
    return "\n".join(parts[:-1])


_WIDTH = 80  # characters of a line
_LONGEST = 50  # characters of a setting, beyond which its source is in a line above


def _shown(setting: Setting, chosen: Chosen) -> str:
    """The value as TOML."""
    if chosen.source == DEFAULT:
        text = setting.kind.show(setting.default)
    elif isinstance(chosen.given, Mapping):  # a policy
        return toml_value(chosen.given)
    elif isinstance(chosen.given, list):
        text = " ".join(map(str, chosen.given))
    else:
        text = str(chosen.given)
        if isinstance(chosen.given, bool):
            text = text.lower()
    if setting.kind in (HEADERS, PATHS, ORIGINS) and " " in text:
        names = ", ".join(json.dumps(name) for name in text.replace(",", " ").split())
        listed = textwrap.fill(
            *(names, _WIDTH),
            initial_indent="  ",
            subsequent_indent="  ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        return f"[\n{listed}\n]"
    if text in ("true", "false") or re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return text
    return json.dumps(_without_secrets(text))


def _without_secrets(text: str) -> str:
    """``text``; of a URL no password and no query."""
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
        secret = parts.username is not None or parts.password is not None
    except ValueError:
        return _HIDDEN
    host = parts.netloc.rpartition("@")[2]
    query = f"?{_HIDDEN}" if parts.query else ""
    return f"{parts.scheme}://{_HIDDEN + '@' if secret else ''}{host}{parts.path}{query}"
