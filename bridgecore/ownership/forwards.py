"""A turn that one replica forwards to another: what the request says, and why it can be trusted.

What belongs here: signing a forward and checking one. A replica that gets a turn of a conversation
which another one owns sends it there as an HTTP request. It answers for the client: for whom the
turn is (``scope``) and how long it may still take. So the port that takes forwards
trusts only the replicas of its cluster: it takes nothing that is not signed with their secret.

The signature covers all headers that count, a digest of the body, and a number that the sender uses
once. So a recorded forward that is sent again is refused, nothing in it can be changed, and what is
not signed is refused before its body is read. A forward names the lease (``Owner.incarnation``) of
the replica that it is meant for: one that arrives late, when that lease is over, or at another
process, is not carried out.

A forward is never forwarded: the depth is one. Its receiver serves what it owns, or what it can
claim, and otherwise says that it has not sent the turn.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote, unquote

import attrs

PATH: Final = "/v1/forward"
"""The path of a forward. Other requests to the port for forwards are refused."""
SIGNATURE: Final = b"x-bridgecore-forward"
"""The header that has the signature, in a forward, and the verdict, in its answer."""
REPLICA: Final = b"x-bridgecore-replica"
"""The header with the name of the replica that answers a forward which it has not carried out. So
the sender can tell an owner that has given the conversation up from one whose URL leads to another
replica."""


class Verdict(enum.Enum):
    """What the answer to a forward says about it, in the header ``SIGNATURE``. Without a verdict it
    is unknown what became of the turn."""

    TAKEN = b"taken"  # the turn has begun at the receiver; the answer is its answer
    NOT_DISPATCHED = b"not-dispatched"  # it was not sent upstream, and will not be
    REJECTED = b"rejected"  # the same, because the forward itself was refused


@attrs.frozen
class Forward:
    """What a forward says besides the turn's body and its client's headers.

    ``to``: the incarnation of the owner that it is meant for; ``sender``: that of the replica that
    sends it; ``sequence``: a number that this sender uses once. ``conversation``, ``epoch``: what
    the sender believes that the receiver owns. ``scope``: the tenant's digest. ``budget``: ns that
    the turn may still take; a duration, because no clock of another host is believed. ``digest``:
    of the body, see ``digest_of``.
    """

    to: str
    sender: str
    sequence: int
    conversation: bytes
    epoch: int
    scope: str
    budget: int
    digest: str


def named_replica(name: str) -> bytes:
    """The value of the header ``REPLICA``: a name may have characters that no header can."""
    return quote(name, safe="").encode("ascii")


def read_replica(value: bytes) -> str:
    """The name in the header ``REPLICA``. Any program may have sent it, and it goes into the log,
    so it is made printable and is not long."""
    name = unquote(value.decode("latin-1"))[:_LONGEST_NAME]
    return "".join(char if char.isprintable() else "?" for char in name)


# Of what is read: names of replicas are host names with a suffix.
_LONGEST_NAME = 200


class Rejection(enum.Enum):
    """Why a forward is refused. The value ends the sentence of its error."""

    UNSIGNED = "has no signature"
    UNREADABLE = "has a signature that cannot be read"
    FOREIGN = "is not signed with a secret of this cluster"
    REPLAYED = "has come before"
    ALTERED = "has another body than the one that was signed"


_VERSION = b"v1"
_FORM = re.compile(
    rb"v1 ([0-9a-f]{32}) ([0-9a-f]{32}) ([0-9]{1,18}) ([0-9a-f]{32}) ([0-9]{1,18}) "
    rb"([0-9a-f]{64}) ([0-9]{1,18}) ([0-9a-f]{64}) ([0-9a-f]{64})"
)
# Forwards of one sender overtake each other, because it uses several connections. One that is
# this many behind the latest counts as a repetition.
_WINDOW = 4096
# Senders whose numbers are remembered: leases, not replicas, so a replica that restarts is a new
# one. To have one forgotten, an attacker would need that many signed forwards of different leases.
_SENDERS = 1024


class ForwardSigner:
    """Signs the forwards that a replica sends. ``secrets``: of the cluster, at least one, the
    newest first: that one signs."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._key = _key_of(secrets[0])
        self._sent = 0

    def next_sequence(self) -> int:
        """A number for a forward that no other one of this replica has."""
        self._sent += 1
        return self._sent

    def sign(self, forward: Forward, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The value of the header ``SIGNATURE`` for a request with ``headers``."""
        fields = (
            forward.to,
            forward.sender,
            forward.sequence,
            forward.conversation.hex(),
            forward.epoch,
            forward.scope,
            forward.budget,
            forward.digest,
        )
        said = b" ".join([_VERSION, *(str(field).encode("ascii") for field in fields)])
        return b"%b %b" % (said, _code(self._key, said, headers).encode("ascii"))


class ForwardVerifier:
    """Checks the forwards that a replica gets. ``secrets``: of the cluster. All are accepted, so
    that they can be replaced one replica after another."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._keys = [_key_of(secret) for secret in secrets]
        self._seen: OrderedDict[str, _Numbers] = OrderedDict()  # by sender

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> Forward | Rejection:
        """The forward whose request has ``headers`` (names in lower case), or why it is refused.

        A forward is accepted once: calling this again with the same one gives ``REPLAYED``. Whether
        its body has the digest that was signed is to be checked when that has come.
        """
        listed = list(headers)
        values = [value for name, value in listed if name == SIGNATURE]
        value = values[0] if len(values) == 1 else None
        if value is None:
            return Rejection.UNSIGNED
        found = _FORM.fullmatch(value)
        if found is None:
            return Rejection.UNREADABLE
        said, code = value[: found.start(9) - 1], found[9].decode("ascii")
        if not any(hmac.compare_digest(code, _code(key, said, listed)) for key in self._keys):
            return Rejection.FOREIGN
        to, sender, sequence, conversation, epoch, scope, budget, digest = (
            part.decode("ascii") for part in found.groups()[:8]
        )
        if not self._first_time(sender, int(sequence)):
            return Rejection.REPLAYED
        return Forward(
            to,
            sender,
            int(sequence),
            bytes.fromhex(conversation),
            int(epoch),
            scope,
            int(budget),
            digest,
        )

    def _first_time(self, sender: str, sequence: int) -> bool:
        numbers = self._seen.get(sender)
        if numbers is None:
            numbers = self._seen[sender] = _Numbers()
            if len(self._seen) > _SENDERS:
                self._seen.popitem(last=False)
        self._seen.move_to_end(sender)
        return numbers.add(sequence)


@attrs.define(eq=False)
class _Numbers:
    """The numbers of one sender that have come. ``seen``: bit i is set if ``latest - i`` has."""

    latest: int = 0
    seen: int = 0

    def add(self, number: int) -> bool:
        """Record ``number``; False if it has come before, or may have."""
        ahead = number - self.latest
        if ahead > 0:
            # Above the window nothing is left, however far the numbers have jumped.
            kept = self.seen << ahead if ahead < _WINDOW else 0
            self.latest, self.seen = number, (kept | 1) & _WINDOW_BITS
            return True
        if -ahead >= _WINDOW or self.seen >> -ahead & 1:
            return False
        self.seen |= 1 << -ahead
        return True


_WINDOW_BITS = (1 << _WINDOW) - 1


# Headers that are not signed: the signature itself, and those of the connection, which say nothing
# about the turn.
_UNSIGNED: Final = frozenset((SIGNATURE, b"host", b"content-length", b"content-type"))


def signed_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a request that its signature covers: those of the client."""
    return [header for header in headers if header[0] not in _UNSIGNED]


def digest_of(body: bytes) -> str:
    """The digest of a body, as ``Forward`` has it."""
    return hashlib.sha256(body).hexdigest()


def _key_of(secret: bytes) -> bytes:
    """A key for this purpose alone, which reveals nothing about the secret, and from which those
    that encrypt do not follow."""
    return hmac.digest(secret, b"bridgecore/forward", "sha256")


def _code(key: bytes, said: bytes, headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The authentication code of a forward. Each part is preceded by its length, so that different
    forwards never give the same text."""
    parts = [said, *(part for header in signed_headers(headers) for part in header)]
    text = b"".join(b"%d:%b" % (len(part), part) for part in parts)
    return hmac.digest(key, text, "sha256").hex()
