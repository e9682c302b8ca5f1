"""What continuity saves and costs.

What belongs here: the sums, and what one turn adds to them.
"""

from __future__ import annotations

import attrs

from bridgecore.continuity.memory import TurnContext
from bridgecore.recovery.effects import RequestForm


@attrs.frozen
class Accounts:
    """What continuity saved and cost, over all turns that were completed.

    Saved are the tokens of the context that did not have to be sent because an anchor was put in
    place of repeated history; spent are those that had to be sent although the client's anchor
    stood for them. Both are as the upstream counted when it made the response that the anchor
    names. Bytes are the difference between the client's frame and the one that was sent.
    """

    turns: int = 0
    reduced: int = 0
    rehydrated: int = 0
    warmed: int = 0  # sockets; their bytes and tokens are spent, too
    bytes_saved: int = 0
    bytes_spent: int = 0
    tokens_saved: int = 0
    tokens_spent: int = 0

    def __add__(self, other: Accounts) -> Accounts:
        mine, others = attrs.astuple(self), attrs.astuple(other)
        return Accounts(*[one + more for one, more in zip(mine, others, strict=True)])


def account_of(recall: TurnContext, form: RequestForm, sent: int) -> Accounts:
    """What continuity saved and cost in a turn that was completed. ``form``: in which it was sent
    last; ``sent``: the bytes of that frame."""
    asked = len(recall.request.frame)
    tokens = 0 if recall.alias is None else recall.alias.tokens
    if form is RequestForm.CLIENT_FULL and recall.named is not None:
        form, tokens = (
            RequestForm.REHYDRATED,
            recall.named.tokens,
        )  # the client's anchor stood for those
    if form is RequestForm.REHYDRATED:
        return Accounts(1, rehydrated=1, bytes_spent=sent - asked, tokens_spent=tokens)
    if form is RequestForm.AS_IS and recall.match is not None:
        if recall.named is not None:
            tokens = max(0, tokens - recall.named.tokens)  # the client's own anchor stood for those
        return Accounts(1, reduced=1, bytes_saved=asked - sent, tokens_saved=tokens)
    return Accounts(1)
