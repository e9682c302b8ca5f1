"""The sessions that lead to other replicas, by the replica and the tenant.

What belongs here: the index in which a turn that is forwarded finds a session. It is apart from
those of conversations (``families``), because any session to the right replica will do: the
conversation, and what is known of it, are the replica's.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs


@attrs.define(eq=False)
class Peers:
    """The sessions to each replica. Turns of different tenants share none, as with the upstream.

    A replica is named by its lease: after a restart it is another one.
    """

    _key_of: dict[int, tuple[str, str]] = attrs.Factory(dict)
    _members: dict[tuple[str, str], dict[int, None]] = attrs.Factory(dict)

    def add(self, session: int, lease: str, scope: str) -> None:
        """Record a new ``session`` that leads to the replica with ``lease``."""
        key = self._key_of[session] = lease, scope
        self._members.setdefault(key, {})[session] = None

    def leave(self, session: int) -> None:
        """Remove ``session``, which has ended, if it leads to a replica."""
        key = self._key_of.pop(session, None)
        if key is None:
            return
        members = self._members[key]
        del members[session]
        if not members:
            del self._members[key]

    def members(self, lease: str, scope: str) -> Iterator[int]:
        """The sessions to the replica with ``lease`` for turns of ``scope``, oldest first: the
        others become idle, and end when there are fewer turns."""
        return iter(self._members.get((lease, scope), {}))
