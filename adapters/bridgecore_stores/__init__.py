"""Stores that outlive a process: SQLite, PostgreSQL and Valkey.

What belongs here: ``open_store``, which finds the back end of a URL. The questions and answers are
those of ``bridgecore.ownership.store``; what they mean is shown by ``testing.StoreModel``. A store
carries questions out in threads of its own, so that the drivers of asyncio and of trio use it
alike.

====================================  ============================  ==========================
URL                                   is kept in                    needs the extra
====================================  ============================  ==========================
``sqlite:PATH``                       a file, for one host          ``bridgecore[store]``
``postgresql://...``                  a PostgreSQL database         ``bridgecore[postgresql]``
``valkey://...``, ``redis://...``     a Valkey or Redis server      ``bridgecore[valkey]``
====================================  ============================  ==========================
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bridgecore_stores.backend import Connector, StoreError, StoreUnavailableError
from bridgecore_stores.maintenance import Maintenance
from bridgecore_stores.sealing import Keys, read_keys, read_secrets
from bridgecore_stores.worker import Store

__all__ = [
    "Keys",
    "Store",
    "StoreError",
    "StoreUnavailableError",
    "open_store",
    "read_keys",
    "read_secrets",
]


def open_store(url: str, keys: Keys, *, timeout: int) -> Store:
    """Connect to the store at ``url``, create or update its tables, and start its threads.

    Args:
        url: ``sqlite:PATH``, ``postgresql://...`` or ``valkey://...`` (also ``postgres://``,
            ``redis://``; ``valkeys://`` and ``rediss://`` use TLS).
        keys: what is stored is sealed with them (``read_keys``).
        timeout: ns that one question may take; the same for its wait before it is carried out.

    Raises:
        StoreError: the store cannot be used. The message says why and what to do, and has no
            password.
    """
    connector = _connector(url, keys, timeout)
    first = connector.connect()
    try:
        first.open(first=True)
    except StoreError:
        raise
    except Exception as error:
        raise StoreUnavailableError(first.reason(error)) from error
    finally:
        first.close()
    return Store(connector, timeout)


@contextlib.contextmanager
def open_maintenance(url: str, keys: Keys, *, timeout: int) -> Iterator[Maintenance]:
    """Connect to the store at ``url``, which must be there, for what an operator does with it.

    Takes what ``open_store`` takes, and starts no threads. What fails in the store as long as the
    context lasts is raised from it as ``StoreUnavailableError``.

    Raises:
        StoreError: the URL is wrong, there is no store, or it has another version.
        StoreUnavailableError: it cannot be reached, or fails.
    """
    connector = _connector(url, keys, timeout)
    store = connector.connect()
    try:
        store.open_existing()
        yield store
    except store.errors as error:
        raise StoreUnavailableError(store.reason(error)) from error
    finally:
        store.close()
        connector.closed()


def _connector(url: str, keys: Keys, timeout: int) -> Connector[Maintenance]:
    scheme, colon, _ = url.partition(":")
    match scheme.lower() if colon else "":
        case "sqlite":
            from bridgecore_stores import sqlite

            return sqlite.connector(url, keys, timeout)
        case "postgresql" | "postgres":
            try:
                from bridgecore_stores import postgresql
            except ImportError as error:
                raise _missing("postgresql", error) from error
            return postgresql.connector(url, keys, timeout)
        case "valkey" | "valkeys" | "redis" | "rediss":
            try:
                from bridgecore_stores import valkey
            except ImportError as error:
                raise _missing("valkey", error) from error
            return valkey.connector(url, keys, timeout)
        case _:
            raise StoreError(
                "the URL of a store must begin with sqlite:, postgresql:// or valkey://"
            )


def _missing(extra: str, error: ImportError) -> StoreError:
    return StoreError(
        f"this store needs a package that is not installed ({error.name or error}): "
        f"pip install 'bridgecore[{extra}]'"
    )
