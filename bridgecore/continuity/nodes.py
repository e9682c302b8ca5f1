"""A held response, and the two forms in which it stands in for items of a request.

What belongs here: one response and its path. A node stores its own items only, and the path from
the root to it is its whole input. ``expand`` puts that input in place of an anchor (rehydration);
``reduce`` puts an anchor in place of the items that a request repeats. Which node a request leads
to is found in ``tree``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import attrs

from bridgecore.continuity.items import (
    DIGEST_SIZE,
    Prompt,
    Proof,
    calls,
    has_id,
    prove,
    read_head,
    read_heads,
)
from bridgecore.continuity.prefixes import (
    PREFIX_OVERHEAD,
    Prefix,
)
from bridgecore.continuity.templates import TemplateTable

# Memory of a node besides its items, their digests and its id. Measured on 64-bit CPython
# (benchmarks/continuity.py); tests check the value.
NODE_OVERHEAD: Final = 600  # bytes


@attrs.define(eq=False, weakref_slot=False)
class Node:
    """One response in the tree: its request's new items, its own items, and what it continues.

    The items of the request are stored as they came, those of the response in input form (see
    ``input_form``).
    """

    response_id: str
    parent: Node | None = attrs.field(repr=False)
    encoded: bytes = attrs.field(
        repr=False
    )  # the items, encoded by ``table``; not in repr, as it is user data
    table: TemplateTable = attrs.field(repr=False)
    chain: bytes  # the chain digests after each item but the last
    end: bytes  # the last one, or the parent's if there are no items
    settings: bytes
    # Its full input can be sent as a new request: no item refers to something that only the
    # upstream has, and every output has its call (most upstreams refuse an output without one).
    readable: bool
    cut: int  # index of the latest compaction among the items that it made; -1: none
    pruned: bytes | None  # the chain digest of its items from ``cut`` on, starting at ROOT
    used: int  # ns: when it was last used
    named: bool = True  # False: its id now names a response that continues it
    continued: bool = False  # a turn that was anchored at it has completed
    injectable: bool = True  # False: the upstream refused it as an injected anchor
    rebuildable: bool = True  # False: the upstream refused its text as the input of a turn
    # Neighbours in the tree. Linked lists, because some are long and nodes are removed from
    # anywhere.
    child: Node | None = attrs.field(default=None, repr=False)  # the latest response after it
    older_sibling: Node | None = attrs.field(
        default=None, repr=False
    )  # among the responses with the same parent
    newer_sibling: Node | None = attrs.field(default=None, repr=False)
    older_same_context: Node | None = attrs.field(
        default=None, repr=False
    )  # among the responses with an equal context
    newer_same_context: Node | None = attrs.field(default=None, repr=False)
    # The digest of the bytes that the client sends for its last items, from the first one that no
    # template matches to the end.
    wording: bytes | None = None
    # The bytes that the client sends for its whole context, if they are the latest on its path.
    prefix: Prefix | None = attrs.field(default=None, repr=False)
    held: bool = True  # False: it was evicted
    # ns: until then a store has it, and everything before it; 0: it was not stored. Later it may
    # have been deleted there, for it has no part in what is used only in memory.
    durable: int = 0

    @property
    def size(self) -> int:
        """The memory of the node, in bytes, as accounted."""
        name = len(self.response_id) * (1 if self.response_id.isascii() else 4)
        prefix = 0 if self.prefix is None else PREFIX_OVERHEAD
        return NODE_OVERHEAD + len(self.encoded) + len(self.chain) + name + prefix

    @property
    def evictable(self) -> bool:
        """Whether it is held and a leaf."""
        return self.held and self.child is None

    @property
    def items(self) -> int:
        """The number of the node's own items."""
        return len(self.chain) // DIGEST_SIZE + bool(self.encoded)

    def own_text(self) -> bytes:
        """The node's own items, as the inside of an ``input`` array."""
        return b",".join(self.table.items(self.encoded))

    def siblings(self) -> Iterator[Node]:
        """This response and the older ones with the same parent, latest first."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.older_sibling

    def same_context(self) -> Iterator[Node]:
        """This response and the older ones with an equal context, latest first."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.older_same_context

    def path(self) -> list[Node]:
        """The responses from the root to this one."""
        nodes = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    def text(self, *, whole: bool = False) -> bytes:
        """The items of the path up to and including this response, as the inside of an ``input``
        array.

        They begin at the latest compaction that a response on the path made, because that item
        replaces everything before it; ``whole``: at the root all the same.
        """
        parts: list[bytes] = []
        node: Node | None = self
        while node is not None:
            if node.cut >= 0 and not whole:
                parts.append(b",".join(node.table.items(node.encoded)[node.cut :]))
                break
            parts.append(node.own_text())
            node = node.parent
        return _joined(reversed(parts))


def _joined(parts: Iterable[bytes]) -> bytes:
    return b",".join(part for part in parts if part)


@attrs.frozen
class Expansion:
    """A rehydrated turn: its whole input, as the inside of an ``input`` array, its
    ``response.create`` frame, without an anchor, and the proof of it.

    It may be sent only if ``proof.self_contained``: otherwise its input refers to something that
    only the anchor's connection has (FORM_IS_POSSIBLE).
    """

    text: bytes = attrs.field(repr=False)
    frame: bytes = attrs.field(repr=False)
    proof: Proof


def expand(node: Node, prompt: Prompt) -> Expansion:
    """Rehydrate the turn of ``prompt``, which is anchored at ``node``: drop its anchor and prepend
    the items that the anchor covers.

    Items before the latest compaction are left out, unless an output needs a call among them: an
    output without its call is refused (OUTPUTS_HAVE_CALLS).
    """
    before, new = node.text(), prompt.meant_heads()
    proof = prove([*read_heads(before), *new])
    if proof.orphans:
        whole = node.text(whole=True)
        if (all_proof := prove([*read_heads(whole), *new])).self_contained:
            before, proof = whole, all_proof
    text = _joined((before, prompt.meant_text()))
    return Expansion(text, prompt.frame(text, None), proof)


def has_calls(node: Node, orphans: Iterable[str]) -> bool:
    """Whether the path before ``node`` has the calls ``orphans``, answered by outputs in it."""
    missing = set(orphans)
    before: Node | None = node
    while missing and before is not None:
        if before.cut >= 0:
            # ``expand`` sends items before a compaction only if that completes every output.
            return prove(read_heads(node.text(whole=True))).self_contained
        if before is not node:
            missing -= calls(read_heads(before.own_text()))
        before = before.parent
    return not missing


def resolve(node: Node, prompt: Prompt) -> None:
    """Resolve the ``item_reference`` items of ``prompt`` to items on the path of ``node``.

    An id that two different items have resolves to neither, because some upstreams restart the
    numbering of their items in each response. Results are stored in ``prompt.resolved``.
    """
    for place in range(len(prompt.items)):
        name = prompt.reference(place)
        if name is not None:
            found = {each for one in node.path() for each in _of_id(one, name)}
            if len(found) == 1:
                prompt.resolved[place] = found.pop()


def _of_id(node: Node, name: str) -> list[bytes]:
    """The items among the node's own that have the id ``name``."""
    if name.encode(errors="replace") not in node.encoded:
        return []
    return [item for item in node.table.items(node.encoded) if has_id(read_head(item), name)]


@attrs.frozen
class Match:
    """A response that a request's history leads to.

    The first ``repeated`` items of the request, following its anchor if it names one, are the path
    of ``node``.
    """

    node: Node
    repeated: int


def reduce(prompt: Prompt, match: Match, stand_in: str | None = None) -> bytes:
    """The ``response.create`` frame of a reduced turn: the matched response as the anchor, and the
    items after the match.

    ``stand_in``: the id of a response with the same context to name instead, because it is the one
    that the connection can continue. The context is unchanged (CONTEXT_IS_MEANT).
    """
    return prompt.frame(prompt.text_from(match.repeated), stand_in or match.node.response_id)
