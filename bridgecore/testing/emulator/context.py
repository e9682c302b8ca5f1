"""Contexts: which responses and items the service knows, and a create frame read against them.

What belongs here: what can be continued and referred to, and what the effective context of a turn
is: the context of its anchor, then its own input, from the latest compaction item on.

As the real service:

* ``item_reference`` is resolved against the context of the anchor and the stored items; 404 if it
  cannot be, as for a reasoning item that has an id and no encrypted content;
* reasoning items with ``encrypted_content`` are bound to the context before them and to the model.
  In another context they are dropped, and ``input_transformations`` says so;
* every tool output needs its call, and every call its output;
* what precedes the latest compaction item is no longer part of the context.

Sizes are those of what a model reads of the items (``count_tokens``), and of instructions and
tools. Ids, statuses and the like cost nothing, so a context costs the same in whichever form it was
sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import attrs

from bridgecore.testing import answers
from bridgecore.testing.answers import CreateFrame, Json
from bridgecore.testing.emulator.conversations import Conversation
from bridgecore.testing.emulator.jsontext import encode
from bridgecore.testing.emulator.resource import bad
from bridgecore.testing.faults import Error


@attrs.frozen
class PriorResponse:
    """A completed or incomplete response, which can be continued, and its context."""

    ids: tuple[str, ...]  # one, except with ``Change.TWO_IDS``
    items: tuple[Json, ...]
    size: int  # bytes that a model reads of the items


@attrs.frozen
class Resource:
    """A stored response as it is retrieved. ``given``: the items that it was made from."""

    response: Json
    given: tuple[Json, ...]


NO_RESPONSE = PriorResponse((), (), 0)
"""What a turn without an anchor continues."""


def context_of(conversation: Conversation) -> PriorResponse:
    """What a turn in ``conversation`` continues."""
    return PriorResponse((), tuple(conversation.items), conversation.size)


@attrs.define(eq=False)
class Storage:
    """Responses and items that outlive their connection (``store``), and conversations, apart for
    each value of ``Authorization``."""

    _responses: dict[tuple[bytes | None, str], PriorResponse] = attrs.field(
        factory=dict, init=False
    )
    _items: dict[tuple[bytes | None, str], Json] = attrs.field(factory=dict, init=False)

    _resources: dict[tuple[bytes | None, str], Resource] = attrs.field(factory=dict, init=False)
    _conversations: dict[tuple[bytes | None, str], Conversation] = attrs.field(
        factory=dict, init=False
    )

    def response(self, authorization: bytes | None, response_id: str) -> PriorResponse | None:
        """The stored response with that id."""
        return self._responses.get((authorization, response_id))

    def item(self, authorization: bytes | None, item_id: str) -> Json | None:
        """The stored item with that id."""
        return self._items.get((authorization, item_id))

    def add_response(self, authorization: bytes | None, response: PriorResponse) -> None:
        """Store ``response`` and the items of its context."""
        for name in response.ids:
            self._responses[authorization, name] = response
        for item in response.items:
            self.add_item(authorization, item)

    def add_item(self, authorization: bytes | None, item: Json) -> None:
        """Store ``item``, if it has an id."""
        if isinstance(item.get("id"), str):
            self._items[authorization, item["id"]] = item

    def resource(self, authorization: bytes | None, response_id: str) -> Resource | None:
        """The stored response with that id, as it is retrieved."""
        return self._resources.get((authorization, response_id))

    def add_resource(
        self, authorization: bytes | None, prior: PriorResponse, resource: Resource
    ) -> None:
        """Store how ``prior`` is retrieved."""
        for name in prior.ids:
            self._resources[authorization, name] = resource

    def delete(self, authorization: bytes | None, response_id: str) -> None:
        """Forget the response with that id, under each id that it has."""
        del self._resources[authorization, response_id]
        prior = self._responses.get((authorization, response_id))
        for name in () if prior is None else prior.ids:
            self._responses.pop((authorization, name), None)
            self._resources.pop((authorization, name), None)

    def conversation(self, authorization: bytes | None, name: str) -> Conversation | None:
        """The conversation with that id."""
        return self._conversations.get((authorization, name))

    def add_conversation(self, authorization: bytes | None, conversation: Conversation) -> None:
        """Store ``conversation``."""
        self._conversations[authorization, conversation.id] = conversation

    def delete_conversation(self, authorization: bytes | None, name: str) -> None:
        """Forget the conversation with that id, but not its items."""
        del self._conversations[authorization, name]

    def extend(
        self,
        authorization: bytes | None,
        conversation: Conversation,
        items: Sequence[Json],
        mark: str,
    ) -> list[Json]:
        """Add ``items`` to ``conversation``, and store them; ``mark``: see ``Conversation.add``.

        Returns:
            The items as they are listed.
        """
        added = conversation.add(items, mark)
        for item in added:
            self.add_item(authorization, item)
        return added

    def clear_responses(self) -> None:
        """Forget all responses, as a service does with expired ones."""
        self._responses.clear()


@attrs.frozen
class Prepared:
    """A create frame read in its context; the context itself is in the frame."""

    size: int  # bytes that a model reads of the context's items
    cached: int  # tokens of them that belong to the anchor, unless a compaction intervened
    compact_only: bool  # the input asks for a compaction and nothing else
    given: tuple[Json, ...]  # the frame's own input, as the model reads it
    # Which reasoning items were dropped; None if the input has none with an encrypted content.
    transformations: list[Json] | None


def prepare(
    frame: CreateFrame,
    parent: PriorResponse,
    cached: Collection[PriorResponse],
    storage: Storage,
    authorization: bytes | None,
) -> Prepared | Error:
    """Read ``frame`` in its context; sets ``context`` and ``context_tokens`` of the frame.

    Args:
        frame: a create frame whose settings are valid.
        parent: the response that it continues.
        cached: the responses in the connection's cache.
        storage: where items are found that are not in ``cached``.
        authorization: the header's value at the connection's upgrade.

    Returns:
        What there is to know of the context, or the error for a request that does not fit it.
    """
    given: list[Json] = []
    for item in frame.input:
        resolved = _resolve(item, (parent, *cached), storage, authorization)
        if isinstance(resolved, Error):
            return resolved
        given.append(resolved)
    given, transformations = _without_foreign_reasoning(frame, parent, given)
    triggered = any(item.get("type") == "compaction_trigger" for item in given)
    given = [item for item in given if item.get("type") != "compaction_trigger"]
    shown = answers.since_compaction((*parent.items, *given))
    frame.context = tuple(shown)
    whole = len(shown) == len(parent.items) + len(given)
    # Adding to the parent's size keeps the cost of a turn independent of the conversation's length.
    size = parent.size + answers.read_size(given) if whole else answers.read_size(shown)
    fixed = answers.read_size([frame.body.get("instructions")])
    tools = frame.body.get("tools")  # the model reads the schemas unchanged
    fixed += len(encode(tools)) if tools else 0
    frame.context_tokens = answers.tokens(size + fixed)
    error = _unpaired(frame.context)
    if error is not None:
        return error
    read = answers.tokens(parent.size) if whole else 0
    return Prepared(size, read, triggered, tuple(given), transformations)


def digest(items: Sequence[Json]) -> str:
    """A digest of a context as a model reads it. Reasoning is left out, as clients may do."""
    read = [answers.as_read(item) for item in items if item.get("type") != "reasoning"]
    return hashlib.blake2b(encode(read), digest_size=8).hexdigest()


def compact_threshold(body: Json) -> int | None:
    """The token count above which a context is compacted first, set by ``context_management``."""
    for entry in body.get("context_management") or []:
        if isinstance(entry, dict) and entry.get("type") == "compaction":
            threshold = entry.get("compact_threshold")
            return threshold if isinstance(threshold, int) else None
    return None


def _resolve(
    item: Json,
    known: Collection[PriorResponse],
    storage: Storage,
    authorization: bytes | None,
) -> Json | Error:
    """The input item; if it is a reference, the item that it names; 404 if that is unknown."""
    name = item.get("id")
    reference = item.get("type") == "item_reference" or item.keys() == {"id"}
    # A reasoning item without content is a reference to a stored one.
    reasoning = item.get("type") == "reasoning" and not (
        item.get("encrypted_content") or item.get("content")
    )
    if not reference and not (reasoning and name):
        return item
    named = (one for prior in known for one in prior.items if one.get("id") == name)
    found = next(named, None) or storage.item(authorization, str(name))
    if found is not None:
        return found
    message = f"Item with id '{name}' not found. Items are not kept when 'store' is false."
    return attrs.evolve(bad(None, message, "input"), status=404)


def _without_foreign_reasoning(
    frame: CreateFrame, parent: PriorResponse, given: list[Json]
) -> tuple[list[Json], list[Json] | None]:
    """``given`` without reasoning that was made in another context, or by another model; and the
    ``input_transformations`` that say so."""
    kept: list[Json] = []
    transformations: list[Json] | None = None
    for item in given:
        bound = answers.unseal(item.get("encrypted_content"))
        if item.get("type") != "reasoning" or not bound:
            kept.append(item)
            continue
        if transformations is None:
            transformations = []
        reason = None
        if bound.get("model") != frame.body.get("model"):
            reason = "model_mismatch"
        elif bound.get("prefix") != digest((*parent.items, *kept)):
            reason = "prefix_mismatch"
        if reason is None:
            kept.append(item)
        else:
            entry = {"type": "reasoning_dropped", "item_id": item.get("id"), "reason": reason}
            transformations.append(entry)
    return kept, transformations


def _unpaired(items: Sequence[Json]) -> Error | None:
    """The error for a tool output without its call, or a call without its output."""
    calls: set[object] = set()
    pending: dict[object, None] = {}
    for item in items:
        call_id = item.get("call_id")
        if answers.is_call(item):
            calls.add(call_id)
            pending[call_id] = None
        elif answers.is_output(item):
            if call_id not in calls:
                message = f"No tool call found for function call output with call_id {call_id}."
                return bad(None, message, "input")
            pending.pop(call_id, None)
    for call_id in pending:
        message = f"No tool output found for function call {call_id}."
        return bad(None, message, "input")
    return None
