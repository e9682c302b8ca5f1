"""Forwards turns to the replicas that own what they continue: the sender's side.

What belongs here: which owner a turn is forwarded to, how often, and what its client is answered if
no owner can be reached. How a forward is signed is in ``bridgecore.ownership.forwards``; what
follows from the loss of an owner is decided in ``bridgecore.recovery``; the receiver's side is in
``bridgecore.replica``.

Who owns a conversation is known from the store. The answer is remembered for the responses that a
forwarded turn has made, so the next turn of its client needs no question. That memory may be out of
date: then the replica that it names says that it has not sent the turn, and the store is asked.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from bridgecore.api_error import ApiError, owner_unreachable
from bridgecore.config import PeerUrl
from bridgecore.conversation import ForwardTarget
from bridgecore.errors import ConfigError
from bridgecore.intake import Arriving
from bridgecore.ownership.forwards import SIGNATURE, Forward, ForwardSigner, digest_of
from bridgecore.ownership.store import OwnedElsewhere, Owner
from bridgecore.recovery.failure import Failure, FailureKind
from bridgecore.wire.headers import Headers

# Owners that one turn is forwarded to. One can have lost the conversation to another in the
# meantime; a turn that meets this a second time is refused, and its client's retry begins anew.
_MOST_TRIES: Final = 2
# Responses whose owner is remembered: about 10 MB.
_MOST_KNOWN: Final = 32_768
# Leases whose owners are known to have a wrong setting. With more, one is reported again.
_MOST_WRONG: Final = 1024


class Forwarding:
    """The turns that this replica forwards. ``secrets``: see ``ForwardSigner``; without any, no
    turn is forwarded."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._signer = ForwardSigner(secrets) if secrets else None
        self._known: OrderedDict[bytes, OwnedElsewhere] = OrderedDict()  # by response
        self._owners: dict[int, OwnedElsewhere] = {}  # of turns that are forwarded, by turn
        self._wrong: OrderedDict[str, None] = OrderedDict()  # leases

    def owner_of(self, turn: Arriving) -> OwnedElsewhere | None:
        """The replica that is believed to own what ``turn`` continues; None: ask the store."""
        named = turn.request.previous_response_id
        return self._known.get(_key(turn.scope, named)) if named else None

    def forward(self, turn: Arriving, owner: OwnedElsewhere) -> ForwardTarget | None:
        """Where to forward ``turn``, which continues what ``owner`` has; None if that cannot be
        reached or has been tried. A turn that has been forwarded to this replica stays here."""
        lease, url = owner.owner.incarnation, _url_of(owner)
        if self._signer is None or url is None or turn.forward is not None:
            return None
        if lease in turn.tried or len(turn.tried) >= _MOST_TRIES:
            return None
        turn.tried = (*turn.tried, lease)
        self._owners[turn.id] = owner
        return ForwardTarget(url, lease, owner.owner.replica, owner.remaining)

    def sign(self, turn: Arriving, sender: Owner, frame: bytes, now: int) -> Headers:
        """The headers of the forward of ``turn``, with its signature. ``frame``: its body, which
        would otherwise be sent upstream; ``sender``: this replica; ``now``: ns."""
        signer, owner = self._signer, self._owners[turn.id]
        assert signer is not None, "without secrets nothing is forwarded"
        forward = Forward(
            owner.owner.incarnation,
            sender.incarnation,
            signer.next_sequence(),
            owner.conversation,
            owner.epoch,
            turn.scope,
            max(0, turn.deadline - now),
            digest_of(frame),
        )
        headers = [(b"x-request-id", turn.request_id.encode("ascii")), *turn.forwarded_headers]
        return [*headers, (SIGNATURE, signer.sign(forward, headers))]

    def declined(self, turn: Arriving, failure: Failure | None, *, by_owner: bool) -> None:
        """The owner has not sent ``turn``: what was believed about it is wrong. ``failure``: how
        that became known. ``by_owner``: it has said so itself, and has not refused the forward
        whatever it owns."""
        named = turn.request.previous_response_id
        if named:
            self._known.pop(_key(turn.scope, named), None)
        # Else it could not be reached, or takes no forward from here.
        answered = failure is not None and failure.kind is FailureKind.NOT_DISPATCHED
        turn.declined = answered and by_owner

    def ended(self, turn: int, scope: str, responses: Iterable[str] = ()) -> None:
        """A turn that was forwarded is over; its owner can continue ``responses``, all ids of the
        one that it has made."""
        owner = self._owners.pop(turn, None)
        if owner is None:
            return
        for response in responses:
            key = _key(scope, response)
            self._known[key] = owner
            self._known.move_to_end(key)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)

    def note_wrong(self, lease: str) -> bool:
        """The owner of ``lease`` has a wrong setting; whether that was not known before."""
        if lease in self._wrong:
            return False
        self._wrong[lease] = None
        if len(self._wrong) > _MOST_WRONG:
            self._wrong.popitem(last=False)
        return True

    def forget(self, scope: str, response: str) -> None:
        """Ask the store who owns ``response``: a client has deleted it, or its owner has failed."""
        self._known.pop(_key(scope, response), None)

    @staticmethod
    def unreachable(turn: Arriving, owner: OwnedElsewhere) -> ApiError:
        """The error of a turn that its owner has not got. One that has answered is about to give
        the conversation up, so the rest of its lease is no measure of the wait."""
        return owner_unreachable(0 if turn.declined else owner.remaining)


def _key(scope: str, response: str) -> bytes:
    """The key of a response: of one size, because an id can have any."""
    text = b"%b:%b" % (scope.encode(), response.encode("utf-8", "surrogatepass"))
    return hashlib.blake2b(text, digest_size=16).digest()


def _url_of(owner: OwnedElsewhere) -> PeerUrl | None:
    """Where ``owner`` takes forwards; None if it does not, or has stored what cannot be used."""
    if owner.advertise is None:
        return None
    try:
        return PeerUrl.parse(owner.advertise)
    except ConfigError:
        return None
