"""``bridgecore store``: checks a store, counts what it has, deletes from it, and changes its keys.

What belongs here: what is printed, the question before everything is deleted, and exit codes. The
work is that of ``bridgecore_stores``; all of it can be done while other processes serve.

Exit codes: 0: done, and for ``check``: the store can be used; 1: it failed, or something in it is
damaged; 2: wrong flags; 78: wrong URL or keys. Each fault is one line on standard error.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from bridgecore.continuity.stored import purge_record
from bridgecore.ownership.store import Owner
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore_cli.errors import CONFIGURATION, FAILURE, USAGE, CommandError, SettingsError
from bridgecore_cli.output import fitted, print_error, print_text, printable
from bridgecore_cli.progress import show
from bridgecore_cli.settings import MEMORY, Settings, load

if TYPE_CHECKING:
    from bridgecore_stores.maintenance import KeyUse, LiveLease, Maintenance, Stats
    from bridgecore_stores.sealing import Keys


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code.

    Raises:
        CommandError: it cannot go on; for a setting, ``SettingsError``.
    """
    settings = load(vars(options), os.environ)
    if settings.store == MEMORY or settings.cluster_keys is None:
        raise SettingsError(
            "store: a store in memory has nothing for this command: name another one with --store, "
            "BRIDGECORE_STORE or the configuration file",
            CONFIGURATION,
        )
    try:
        from bridgecore_stores import (
            StoreError,
            StoreUnavailableError,
            open_maintenance,
            read_keys,
        )
    except ImportError:
        raise SettingsError(
            "a store needs a package that is not installed: pip install 'bridgecore[store]'",
            CONFIGURATION,
        ) from None
    run_action = {"check": check, "stats": stats, "purge": purge, "rotate-keys": rotate_keys}
    try:
        keys = read_keys(settings.cluster_keys)
        timeout = settings.core["store_timeout"]
        with open_maintenance(settings.store, keys, timeout=timeout) as store:
            text, faults = run_action[options.action](store, keys, settings, options)
    except StoreUnavailableError as exc:
        raise CommandError(f"store: {exc}", FAILURE) from None
    except StoreError as exc:
        raise SettingsError(f"store: {exc}", CONFIGURATION) from None
    finally:
        show("")
    if getattr(options, "json", False):
        print(text, flush=True)  # as the next lines: so that what both go to has them in this order
    else:
        print_text(text)
    for fault in faults:
        print_error(f"bridgecore: error: store: {fault}")
    return max((fault.exit_code for fault in faults), default=0)


_Done = tuple[str, list[CommandError]]
"""What an action prints, and the faults that it has found."""


def check(store: Maintenance, keys: Keys, settings: Settings, options: argparse.Namespace) -> _Done:
    """Find out whether the store can be used: it is open already, so it has the right version. Try
    to write, and to read with the keys."""
    from bridgecore_stores.maintenance import read_responses

    store.try_writing()
    found = read_responses(store, keys, options.all, _progress("responses"))
    which = "all" if options.all else "those used last"
    rows = [
        ("store", f"{settings.store.partition(':')[0]}, can be written"),
        ("responses", f"{found.newest + found.older:,} of {found.total:,} can be read ({which})"),
    ]
    if found.older:
        rows.append(
            (
                "older secrets",
                f"{found.older:,} of them need one: run 'bridgecore store rotate-keys' before you "
                "remove it",
            )
        )
    faults: list[CommandError] = []
    if found.foreign:
        faults.append(
            SettingsError(
                f"{found.foreign:,} of {found.total:,} responses are sealed with a secret that "
                f"{settings.cluster_keys} does not have: add it as the last line",
                CONFIGURATION,
            )
        )
    if found.damaged:
        faults.append(
            CommandError(
                f"{found.damaged:,} of {found.total:,} responses are damaged and count as not "
                "stored: restore the database from a backup, or let them expire",
                FAILURE,
            )
        )
    return _table([*rows, *_leases(store.live_leases())]), faults


def stats(store: Maintenance, keys: Keys, settings: Settings, options: argparse.Namespace) -> _Done:
    """Count what is stored."""
    from bridgecore_stores.maintenance import count

    found = count(store, keys, _progress("rows"))
    return json.dumps(_as_json(found)) if options.json else _as_text(found), []


def purge(store: Maintenance, keys: Keys, settings: Settings, options: argparse.Namespace) -> _Done:
    """Delete what was not used for some time and what no kept response continues, and tell the
    processes that have it in memory.

    Raises:
        CommandError: it would delete everything and that is not confirmed, or another process
            deletes at the moment.
    """
    from bridgecore_stores.maintenance import purge_responses

    age, record = 0 if options.all else options.older_than, purge_record()
    unused_for = store.unused_for(record.key)
    if unused_for is not None and unused_for >= age and not options.yes:
        _confirm()
    name = f"bridgecore store purge {os.urandom(8).hex()}"
    shown = _progress("responses deleted")
    deleted = purge_responses(store, Owner(name, name), record, os.urandom(16), age, shown)
    if deleted is None:
        raise CommandError(
            "store: another process deletes what has expired at the moment, so nothing was "
            "deleted: try again in a minute",
            FAILURE,
        )
    store.finish()
    return _table([("deleted", _count(deleted, "response"))]), []


def rotate_keys(
    store: Maintenance, keys: Keys, settings: Settings, options: argparse.Namespace
) -> _Done:
    """Have nothing need another secret than the newest one, and count what is left."""
    from bridgecore_stores.maintenance import count, rotate

    done = rotate(store, keys, _progress("rows sealed again"))
    left = count(store, keys, _progress("rows counted"))
    rows = [
        ("sealed again", _count(done.responses, "response")),
        ("named again", _count(done.contexts, "context")),
        *_keys(left),
    ]
    faults: list[CommandError] = []
    if done.unreadable:
        faults.append(
            CommandError(
                f"{done.unreadable:,} responses or contexts can be read with no secret of "
                f"{settings.cluster_keys}, and stay as they are: 'bridgecore store check --all' "
                "says why",
                FAILURE,
            )
        )
    if left.older > done.unreadable:
        faults.append(
            CommandError(
                f"{left.older - done.unreadable:,} rows were written with an older secret "
                "meanwhile: restart the processes whose file has not the newest one first, then "
                "run this again",
                FAILURE,
            )
        )
    return _table(rows), faults


def _confirm() -> None:
    """Ask on the terminal whether everything is to be deleted.

    Raises:
        CommandError: the answer is no, or standard input is no terminal.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise CommandError(
            "store: this would delete every stored response: give --yes if that is wanted", USAGE
        )
    question = "This deletes every stored response. Continue? [y/N]"
    print(fitted(question, sys.stderr), end=" ", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("store: nothing was deleted", FAILURE)


# ------------------------------------------------------------------ output


def _progress(what: str) -> Any:
    return lambda done: show(f"{done:,} {what}")


def _as_text(found: Stats) -> str:
    rows = [
        ("conversations", f"{found.conversations:,}"),
        ("responses", f"{found.responses:,}"),
        ("bytes", f"{found.size:,}"),
        ("oldest use", _time(found.oldest) or "-"),
        ("newest use", _time(found.newest) or "-"),
    ]
    return _table([*rows, *_keys(found), *_leases(found.leases)])


def _keys(found: Stats) -> list[tuple[str, str]]:
    rows = []
    for place, (key_id, use) in enumerate(found.keys.items(), 1):
        if place > found.secrets:
            which = "a secret that is not in the file"
        elif use.responses or use.contexts or place == 1:
            which = f"secret {place} of the file"
        else:
            which = f"secret {place} of the file, which can be removed"
        rows.append((f"key {key_id.hex()}", f"{_use(use)} ({which})"))
    return rows


def _use(use: KeyUse) -> str:
    responses, contexts = _count(use.responses, "response"), _count(use.contexts, "context")
    return f"{responses}, {use.size:,} bytes, {contexts}"


def _leases(leases: list[LiveLease]) -> list[tuple[str, str]]:
    rows = []
    for lease in leases:
        left = f"{lease.remaining / NS_PER_SECOND:.1f} s left"
        where = lease.advertise or "no URL for forwards"
        rows.append(("replica", printable(f"{lease.replica}: {left}, {where}")))
    return rows or [("replica", "none has a lease")]


def _as_json(found: Stats) -> dict[str, Any]:
    return {
        "conversations": found.conversations,
        "responses": found.responses,
        "bytes": found.size,
        "oldest_use": _time(found.oldest),
        "newest_use": _time(found.newest),
        "keys": [
            {
                "id": key_id.hex(),
                "secret": place if place <= found.secrets else None,
                "responses": use.responses,
                "bytes": use.size,
                "contexts": use.contexts,
            }
            for place, (key_id, use) in enumerate(found.keys.items(), 1)
        ],
        "leases": [
            {
                "replica": lease.replica,
                "advertise": lease.advertise,
                "seconds": round(lease.remaining / NS_PER_SECOND, 3),
            }
            for lease in found.leases
        ],
    }


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<18} {value}" for name, value in rows)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _time(ns: int | None) -> str | None:
    """A time in ns since 1970 as ISO 8601, in UTC."""
    if ns is None:
        return None
    at = datetime.datetime.fromtimestamp(ns // NS_PER_SECOND, datetime.UTC)
    return at.isoformat().replace("+00:00", "Z")
