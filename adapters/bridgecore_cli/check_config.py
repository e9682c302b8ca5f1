"""``bridgecore check-config``: prints the settings that ``serve`` would have, and their sources.

What belongs here: the form in which they are printed, which is that of a configuration file, and
what is hidden of a value that may hold a secret. Reading them is ``bridgecore_cli.settings``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from bridgecore.errors import did_you_mean
from bridgecore_cli.configfile import folded, toml_value
from bridgecore_cli.output import columns, print_error
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
    print(render(chosen, columns()), flush=True)
    for name in unknown_variables(os.environ):
        print_error(f"bridgecore: warning: {unknown(name)}")
    return 0


def unknown(name: str) -> str:
    """What is to be said about a variable that is no setting's."""
    shown = name if name.isprintable() else ascii(name)
    meant = did_you_mean(name, [setting.variable for setting in SETTINGS])
    return f"{shown} is not the variable of a setting, so it has no effect{meant}"


def render(chosen: dict[str, Chosen], width: int | None = None) -> str:
    """The settings as a configuration file, each with its source in a comment.

    ``width``: the columns of a line at most; None: as many as a value has. The source of a long
    value is in a line above.
    """
    by_name = {setting.name: setting for setting in SETTINGS}
    parts = []
    for title, names in GROUPS.items():
        lines = [(_assigned(by_name[name], chosen[name], width), chosen[name]) for name in names]
        beside = [line for line, one in lines if _has_room(line, one, 0, width)]
        pad = max(map(len, beside), default=0)
        parts.append(f"# {title}")
        for line, one in lines:
            if _has_room(line, one, pad, width):
                parts.append(f"{line.ljust(pad)}  # {one.source}")
            elif _has_room(line, one, 0, width):
                parts.append(f"{line}  # {one.source}")
            else:
                parts += [f"# {one.source}:", line]
        parts.append("")
    return folded("\n".join(parts[:-1]), width)


def _has_room(line: str, one: Chosen, pad: int, width: int | None) -> bool:
    """Whether the source of ``one`` goes beside ``line``, which is filled up to ``pad``."""
    whole = max(pad, len(line)) + len("  # ") + len(one.source)
    return "\n" not in line and len(line) <= _LONGEST and (width is None or whole <= width)


_WIDTH = 80  # characters of a line
_LONGEST = 50  # characters of a setting, beyond which its source is in a line above


def _assigned(setting: Setting, chosen: Chosen, width: int | None) -> str:
    """The setting with its value, as TOML has it. A policy is a line for each of its keys, since a
    table in one line can be of any length and one with a heading would have to be the last."""
    if chosen.source != DEFAULT and isinstance(chosen.given, Mapping):
        return "\n".join(_flat(setting.name, chosen.given))
    return f"{setting.name} = {_shown(setting, chosen, width)}"


def _flat(key: str, value: object) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for name, each in value.items():
            yield from _flat(f"{key}.{name}", each)
    else:
        yield f"{key} = {toml_value(value)}"


def _shown(setting: Setting, chosen: Chosen, width: int | None) -> str:
    """The value as TOML."""
    if chosen.source == DEFAULT:
        text = setting.kind.show(setting.default)
    elif isinstance(chosen.given, list):
        text = " ".join(map(str, chosen.given))
    else:
        text = str(chosen.given)
        if isinstance(chosen.given, bool):
            text = text.lower()
    if setting.kind in (HEADERS, PATHS, ORIGINS) and " " in text:
        names = ", ".join(json.dumps(name) for name in text.replace(",", " ").split())
        listed = textwrap.fill(
            *(names, min(_WIDTH, width or _WIDTH)),
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
