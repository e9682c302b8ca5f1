"""Counts the bytes and tokens that continuity saves and costs."""

from __future__ import annotations

import operator

import attrs

from bridgecore.continuity.memory import TurnContext
from bridgecore.recovery.effects import RequestForm


@attrs.frozen
class Accounts:
    """Bytes and tokens saved and spent, summed over completed turns.

    Saved: the context that was not sent because an injected anchor replaced repeated history.
    Spent: the context that was sent although the client's anchor covered it. Tokens are those that
    the upstream counted for the response that the anchor names. Bytes are the difference between
    the client's frame and the frame that was sent.
    """

    turns: int = 0
    reduced: int = 0
    rehydrated: int = 0
    warmed: int = 0  # preloaded connections; their bytes and tokens are spent, too
    bytes_saved: int = 0
    bytes_spent: int = 0
    tokens_saved: int = 0
    tokens_spent: int = 0

    def __add__(self, other: Accounts) -> Accounts:
        return Accounts(*map(operator.add, _amounts(self), _amounts(other)))


_amounts = operator.attrgetter(*[field.name for field in attrs.fields(Accounts)])
_UNCHANGED = Accounts(1)  # a turn that was sent as its client sent it


def account_of(recall: TurnContext, form: RequestForm, sent: int) -> Accounts:
    """The accounts of one completed turn.

    Args:
        form: the form in which it was sent last.
        sent: the size of that frame, in bytes.
    """
    asked = recall.request.size
    tokens = 0 if recall.alias is None else recall.alias.tokens
    if form is RequestForm.CLIENT_FULL and recall.named is not None:
        # The input was rebuilt behind the client's own anchor, so it counts as a rehydration.
        form, tokens = RequestForm.REHYDRATED, recall.named.tokens
    if form is RequestForm.REHYDRATED:
        return Accounts(1, rehydrated=1, bytes_spent=sent - asked, tokens_spent=tokens)
    if form is RequestForm.AS_IS and recall.match is not None:
        if recall.named is not None:
            # The client's own anchor saved these already.
            tokens = max(0, tokens - recall.named.tokens)
        return Accounts(1, reduced=1, bytes_saved=asked - sent, tokens_saved=tokens)
    return _UNCHANGED
