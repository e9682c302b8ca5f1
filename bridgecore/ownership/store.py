"""Questions to the store that replicas share, and its answers.

What belongs here: these classes. Each question is one transaction: the store carries out all of it
or nothing. The driver passes it to a store (``bridgecore_stores``, or ``testing.StoreModel``) and
reports the answer. An answer that does not come, or says ``Failed``, is *unknown*: the question may
have been carried out or not. So each question can be asked again without harm.

What a store keeps:

* a **lease** for each replica: its owner, its URL, and the time at which it ends by the store's own
  clock. Leases are the replica's and not the conversation's, so that ten thousand idle
  conversations cost one renewal and not ten thousand;
* an **owner** and an **epoch** for each conversation. It is owned as long as its owner
  has a lease; the epoch grows with every claim and never shrinks;
* **responses**: what is needed to continue each; and which response an id of a scope names. A
  response is only ever added, so a replica that has lost its lease cannot change what another has
  written;
* **notices**: short messages about responses, which reach every replica with its next renewal. A
  deletion has one, so that an owner does not continue from memory what was deleted elsewhere.

Times are durations in ns, never times of another host's clock.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs


@attrs.frozen
class Owner:
    """A replica that holds a lease. ``replica``: its name. ``incarnation``: a random text, new for
    each lease, so that what was claimed under an earlier lease of the same replica is not taken for
    its present property."""

    replica: str
    incarnation: str


@attrs.frozen
class StoredResponse:
    """One response, as a store keeps it.

    ``key``: names it in the store for ever, because an id does not: some upstreams use one id for
    all responses of a chain. ``scope``: the tenant's digest. ``ids``: all ids of the response, that
    of its terminal event first; each names this response from now on. ``parent``: the key of the
    stored response that it continues, None if it begins a transcript. ``context``: a digest of its
    whole context, by which a client that repeats its history is recognised; None if that is not
    possible. ``payload``: what is known about it. ``notice``: what renewals
    return about it to every replica; None: nothing. The store encrypts both and reads neither.
    """

    key: bytes
    scope: str
    ids: tuple[str, ...]
    parent: bytes | None
    context: bytes | None
    payload: bytes = attrs.field(repr=False)
    notice: bytes | None = attrs.field(default=None, repr=False)


# ---------------------------------------------------------------- questions


@attrs.frozen
class Join:
    """Begin a lease of ``ttl`` for ``owner``. ``advertise``: its URL for forwards, None if it has
    none. ``instead``: the incarnation of the lease that this process had before and uses no more;
    if that has not ended in the store, it ends now. Answers: ``Joined``, ``NameTaken``."""

    owner: Owner
    advertise: str | None
    ttl: int
    instead: str | None = None


@attrs.frozen
class Renew:
    """Extend the lease of ``owner`` to ``ttl`` from now, unless it has ended: another replica may
    have claimed its conversations since. Answers: ``Renewed``, ``LeaseEnded``."""

    owner: Owner
    ttl: int


@attrs.frozen
class Leave:
    """End the lease of ``owner`` now: all that it owned can be claimed. Answer: ``Done``."""

    owner: Owner


@attrs.frozen
class Resume:
    """Look up a response and claim its conversation for ``owner``, unless another replica owns it.

    ``response``: its id, or None; then it is the first of ``contexts`` that the store knows. An id
    is hard evidence and is looked up alone. ``floor``: the highest epoch of the conversation that
    this replica has seen, 0 if none; the new epoch is above it, even if the store has lost memory.
    ``load``: answer with the whole transcript.

    Answers: ``Claimed``, ``OwnedElsewhere``, ``NotStored``, ``LeaseEnded`` (of ``owner``).
    """

    owner: Owner
    scope: str
    response: str | None
    contexts: tuple[bytes, ...] = ()
    floor: int = 0
    load: bool = True


@attrs.frozen
class LookUp:
    """Look up a response by its id, for a request that is about its context and continues nothing.

    Nothing is claimed: it does not matter who owns the conversation, and ``owner`` needs no lease.
    It counts as a use, like a claim: whoever is answered may rely on the response being stored for
    as long as one that was just used. ``load``: answer with the whole transcript. Answers:
    ``Found``, ``NotStored``.
    """

    owner: Owner
    scope: str
    response: str
    load: bool = True


@attrs.frozen
class Commit:
    """Store responses of a conversation that ``owner`` holds with ``epoch``.

    ``epoch`` 0: the conversation is new and known to ``owner`` alone, which gets it with epoch 1.
    ``responses``: parents before those that continue them; one that is stored already stays as it
    is. Answers: ``Committed``, ``Fenced``.
    """

    owner: Owner
    conversation: bytes
    epoch: int
    responses: tuple[StoredResponse, ...]


@attrs.frozen
class Release:
    """Give up conversations, each with the epoch of its claim, if ``owner`` still has it. Answer:
    ``Done``."""

    owner: Owner
    conversations: tuple[tuple[bytes, int], ...]


@attrs.frozen
class Sweep:
    """Delete responses that were not used for ``age`` and that no stored response continues. Only
    one replica sweeps at a time; another one is answered at once. Answer: ``Swept``."""

    owner: Owner
    age: int


Question: TypeAlias = Join | Renew | Leave | Resume | LookUp | Commit | Release | Sweep
"""What a driver passes to a store."""

# ---------------------------------------------------------------- answers


@attrs.frozen
class Joined:
    """The lease has begun."""


@attrs.frozen
class NameTaken:
    """Another process has a lease under the same name, for ``remaining`` ns more. It may be an
    earlier process of this replica that was killed."""

    remaining: int


@attrs.frozen
class Renewed:
    """The lease is extended. ``notices``: those of the responses that any replica has stored within
    the last two lengths of the lease. That covers the time since the previous renewal, also if an
    answer was lost, so each notice arrives, and most arrive several times."""

    notices: tuple[bytes, ...] = attrs.field(default=(), repr=False)


@attrs.frozen
class LeaseEnded:
    """The owner has no lease, or not any more."""


@attrs.frozen
class Claimed:
    """The conversation belongs to the owner that asked, with ``epoch``. ``path``: the payloads of
    the response and of those before it, the first one of the transcript first; with
    ``load=False`` only its own."""

    conversation: bytes
    epoch: int
    path: tuple[bytes, ...] = attrs.field(repr=False)


@attrs.frozen
class OwnedElsewhere:
    """Another replica owns the conversation. ``advertise``: its URL for forwards, if it has one.
    ``remaining``: ns until its lease ends unless it is renewed."""

    conversation: bytes
    epoch: int
    owner: Owner
    advertise: str | None
    remaining: int


@attrs.frozen
class Found:
    """The response is stored, in ``conversation``. ``path``: as that of ``Claimed``."""

    conversation: bytes
    path: tuple[bytes, ...] = attrs.field(repr=False)


@attrs.frozen
class NotStored:
    """No such response is stored for that scope, or it cannot be read with the present keys."""


@attrs.frozen
class Committed:
    """The responses are stored. ``epoch``: that of the conversation. ``missing``: one that they
    continue is not stored, so they cannot be read: the store has lost it, for example when it went
    back to an older copy of itself. A commit of the whole path mends that."""

    epoch: int
    missing: bool = False


@attrs.frozen
class Fenced:
    """Nothing was stored: the conversation has been claimed by another owner. ``epoch``: its
    present epoch."""

    epoch: int


@attrs.frozen
class Done:
    """The question was carried out."""


@attrs.frozen
class Swept:
    """``count`` responses were deleted."""

    count: int


@attrs.frozen
class Failed:
    """The store could not be asked, or its answer was lost: what became of the question is unknown.
    ``reason``: a short text for the log, without data of a request."""

    reason: str


Answer: TypeAlias = (
    Joined
    | NameTaken
    | Renewed
    | LeaseEnded
    | Claimed
    | OwnedElsewhere
    | Found
    | NotStored
    | Committed
    | Fenced
    | Done
    | Swept
    | Failed
)
"""What a store answers."""

# ---------------------------------------------------------------- asking


@attrs.frozen
class AskStore:
    """Ask the store ``question``, and report the answer by ``StoreAnswered`` with this ``query``,
    however late."""

    query: int
    question: Question


@attrs.frozen
class StoreAnswered:
    """The store has answered the ``AskStore`` with the same ``query``. Reported once for each;
    ``Failed`` if the store could not be asked."""

    query: int
    answer: Answer
