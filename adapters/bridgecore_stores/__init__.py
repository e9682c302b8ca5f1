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

from bridgecore_stores.backend import StoreError
from bridgecore_stores.sealing import Keys, read_keys, read_secrets
from bridgecore_stores.worker import Store

__all__ = ["Keys", "Store", "StoreError", "open_store", "read_keys", "read_secrets"]


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
    scheme, colon, _ = url.partition(":")
    match scheme.lower() if colon else "":
        case "sqlite":
            from bridgecore_stores.sqlite import connector as connector_of
        case "postgresql" | "postgres":
            try:
                from bridgecore_stores.postgresql import connector as connector_of
            except ImportError as error:
                raise _missing("postgresql", error) from error
        case "valkey" | "valkeys" | "redis" | "rediss":
            try:
                from bridgecore_stores.valkey import connector as connector_of
            except ImportError as error:
                raise _missing("valkey", error) from error
        case _:
            raise StoreError(
                "the URL of a store must begin with sqlite:, postgresql:// or valkey://"
            )
    connector = connector_of(url, keys, timeout)
    first = connector.connect()
    try:
        first.open(first=True)
    except Exception as error:
        raise StoreError(first.reason(error)) from error
    finally:
        first.close()
    return Store(connector, timeout)


def _missing(extra: str, error: ImportError) -> StoreError:
    return StoreError(
        f"this store needs a package that is not installed ({error.name or error}): "
        f"pip install 'bridgecore[{extra}]'"
    )
