"""What a tenant may name at an upstream whose credential it shares with other tenants.

What belongs here: refusing requests that name what the upstream may have stored for another tenant,
with ``Config.shared_credential``. The upstream does not keep such tenants apart, so nothing may
reach it that this bridge has not seen itself: an id of another tenant is answered like one that
does not exist.
"""

from __future__ import annotations

from typing import Final

from bridgecore.api_error import ApiError, api_error, render_answer
from bridgecore.continuity.items import read_heads, referred
from bridgecore.continuity.memory import Memory
from bridgecore.recovery.effects import FailureReply
from bridgecore.wire.jsontext import NULL, begins
from bridgecore.wire.requests import CreateRequest

_NO_REFERENCE: Final = (
    "is not supported: tenants of this server share one account of the upstream, which would look"
    " for it among what it keeps for all of them."
)


def foreign_reference(
    memory: Memory, scope: str, request: CreateRequest, now: int
) -> ApiError | None:
    """The error for a request that names what is not known to be of ``scope``; None if it names
    nothing of the kind."""
    named = request.previous_response_id
    if named and not memory.has(scope, named, now):
        return render_answer(FailureReply.NOT_FOUND, None, None, named)
    return unsupported_reference(request)


def unsupported_reference(request: CreateRequest) -> ApiError | None:
    """The error for a request that names something of which the bridge does not know whose it is,
    whoever sends it; None if it names nothing of the kind."""
    if request.members.get("conversation", NULL) != NULL:
        message = f"'conversation' {_NO_REFERENCE} Continue by 'previous_response_id'."
        return api_error(400, "unsupported_value", message, param="conversation")
    given = request.members.get("input", NULL)
    if begins(given, b"["):
        for head in read_heads(bytes(given).strip()[1:-1]):
            # What cannot be read here might be read at the upstream.
            if head is None or referred(head) is not None or head.type == "item_reference":
                message = f"An 'item_reference' in the input {_NO_REFERENCE} Send the item itself."
                return api_error(400, "unsupported_value", message, param="input")
    return None


def response_not_found(response: str) -> ApiError:
    """The error for a request to the path of ``response``, which is not known to be of its
    tenant."""
    return api_error(404, "not_found", f"Response with id '{response}' not found.")
