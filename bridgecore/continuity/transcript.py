"""Transcripts: stores the responses of each conversation as a tree, and looks up requests in it.

Two questions are answered from it:

* ``expand``: what is the full input of a turn that names a held response? The turn can then be sent
  without its anchor, on any connection (rehydration).
* ``recognise``: which held response does a request with a full history continue? The turn can then
  be sent with that response as its anchor and only its new items (reduction).

A node is one response that can be continued. It stores its own items only, and the path from the
root to it is its whole input, so a conversation of n turns is stored once, however often its client
repeats it. Only leaves are evicted, so whatever is held is complete up to its root.

Histories are looked up by chain digests (items.py): a digest for each item, made of the item and
the digest before it, so that one pass over the items of a request finds the longest held path.
Digesting an item means decoding it. Most items of a history were seen before, spelled the same way,
so items are first compared as bytes with what is held (templates.py). Those at the beginning that
came in the same bytes in an earlier request are not even read (prefixes.py).

Everything is kept per credential scope: an id or a history of another credential looks like one
that was never seen (FOREIGN_IS_UNKNOWN). Times are integer nanoseconds of one monotonic clock,
sizes are bytes.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

import attrs

from bridgecore.continuity.items import (
    DIGEST_SIZE,
    ROOT,
    Prompt,
    Proof,
    calls,
    chain_digest,
    has_id,
    input_form,
    prove,
    read_head,
    read_heads,
)
from bridgecore.continuity.prefixes import (
    PREFIX_OVERHEAD,
    SHORTEST,
    KnownStart,
    Prefix,
    PrefixTable,
)
from bridgecore.continuity.templates import SPARE, TemplateTable
from bridgecore.wire.jsontext import Text
from bridgecore.wire.requests import CreateRequest

# Memory of a node besides its items, their digests and its id, and of a scope besides its nodes and
# templates. Measured on 64-bit CPython (benchmarks/continuity.py); tests check the values.
NODE_OVERHEAD: Final = 600  # bytes
SCOPE_OVERHEAD: Final = 1700  # bytes

# Responses with equal context, or that continue one response, that are compared, latest first. A
# client that asks the same thing thousands of times would otherwise make each look-up slower.
_TRIES: Final = 64


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

    @property
    def size(self) -> int:
        """The memory of the node, in bytes, as accounted."""
        name = len(self.response_id) * (1 if self.response_id.isascii() else 4)
        prefix = 0 if self.prefix is None else PREFIX_OVERHEAD
        return NODE_OVERHEAD + len(self.encoded) + len(self.chain) + name + prefix

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
    """A rehydrated turn: its ``response.create`` frame, without an anchor, and the proof of it.

    It may be sent only if ``proof.self_contained``: otherwise its input refers to something that
    only the anchor's connection has (FORM_IS_POSSIBLE).
    """

    frame: bytes
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
    return Expansion(prompt.frame(_joined((before, prompt.meant_text())), None), proof)


def _has_calls(node: Node, orphans: Iterable[str]) -> bool:
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


class Transcripts:
    """The transcripts of every credential, within limits of memory and age.

    Args:
        max_bytes: the limit of all transcripts together, overhead included.
        max_age_ns: how long a response is kept after it, or a response that continues it, was used.
        max_scope_bytes: the limit for one credential, so that one client cannot evict all others.
        shortest_prefix: the beginning of an input is recognised as a whole if it has at least so
            many bytes (see prefixes.py). Results do not depend on it.

    Methods take ``now`` in ns; a time earlier than the last one counts as the last one.
    """

    def __init__(
        self,
        max_bytes: int,
        max_age_ns: int,
        max_scope_bytes: int,
        *,
        shortest_prefix: int = SHORTEST,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_age = max_age_ns
        self._shortest_prefix = shortest_prefix
        self._max_scope = min(max_scope_bytes, max_bytes)
        self._scopes: dict[str, _Scope] = {}
        self._lru: _LruHeap[_Scope] = _LruHeap()
        self._size = 0
        self._now = 0
        # Nothing expires before this time (ns). Only grows while something is held, because the
        # last use of the least recently used leaf does not decrease.
        self._none_before = 0

    @property
    def size(self) -> int:
        """The memory of all transcripts, in bytes, overhead included."""
        return self._size

    def scope_size(self, scope: str) -> int:
        """The memory of the transcripts of ``scope``, in bytes, overhead included."""
        held = self._scopes.get(scope)
        return 0 if held is None else held.size

    def __len__(self) -> int:
        """The number of responses."""
        return sum(scope.count for scope in self._scopes.values())

    def snapshot(self) -> tuple[tuple[str, str, int, tuple[bool, ...]], ...]:
        """The responses as a value for the explorer: scope, id, last use (ns), and flags."""
        return tuple(
            (
                scope.name,
                node.response_id,
                node.used,
                (node.named, node.continued, node.injectable, node.rebuildable),
            )
            for scope in self._scopes.values()
            for node in scope.nodes.values()
        )

    # -------------------------------------------------------------- look-up

    def get(self, scope: str, response_id: str, now: int) -> Node | None:
        """The response with that id, which counts as used now; None if it is not held."""
        node = self.peek(scope, response_id, now)
        if node is not None:
            node.used = self._now
        return node

    def peek(self, scope: str, response_id: str, now: int) -> Node | None:
        """The response with that id, without counting as a use; None if it is not held."""
        self.expire(now)
        held = self._scopes.get(scope)
        return None if held is None else held.nodes.get(response_id)

    def recognise(self, scope: str, prompt: Prompt, now: int) -> list[Match]:
        """The responses at which the turn of ``prompt`` can be anchored, because its history begins
        with their whole context and goes on after it.

        All of them have the same context, the longest that is held; the latest comes first. The
        caller chooses the one that an idle connection can continue.

        The history of a prompt is its items or, if it has an anchor that is held, the context of
        the anchor and then its items. (The Vercel AI SDK names the response before the user's
        message, and repeats the steps since then at each step of a tool loop.)

        The upstream must see exactly the context that the client means (CONTEXT_IS_MEANT), and two
        conversations must not share an anchor. So a response is left out if

        * its settings, narrowing keys or credential differ, or the request has context besides its
          items (``Prompt.whole``);
        * a turn was anchored at it already, in this or another conversation. A turn that only
          repeated it as history does not count, because it did not use the response as an anchor;
        * the upstream refused it as an anchor, or its id names another response now.

        Responses with equal context are interchangeable, whichever conversation made them; each is
        used as an anchor once.
        """
        self.expire(now)
        held = self._scopes.get(scope)
        if held is None or not prompt.whole:
            return []
        base = None if prompt.anchor is None else held.nodes.get(prompt.anchor)
        if base is None and prompt.anchor is not None:
            return []
        matches = _fitting(prompt, held.prefixes(prompt, base))
        if not matches and prompt.known:
            prompt.read_all()  # a shorter part of what was recognised may fit
            matches = _fitting(prompt, held.prefixes(prompt, base))
        if matches:
            matches[0].node.used = self._now
        return matches

    def known_start(self, scope: str, request: CreateRequest) -> KnownStart | None:
        """The beginning of the ``input`` of ``request``, if its bytes were sent before and lead to
        a response that is held. Only requests without an anchor repeat such a beginning."""
        held = self._scopes.get(scope)
        if held is None or request.input_text is None or request.previous_response_id is not None:
            return None
        text, begin = request.input_text
        size = len(request.members["input"])
        if size < held.starts.shortest or not text.startswith(b"[", begin):
            return None
        found = held.starts.find(text, begin + 1, begin + size - 1, store=request.store)
        return None if found is None or held.latest(found.prefix.end) is None else found

    # -------------------------------------------------------------- insertion

    def put(
        self,
        scope: str,
        response_id: str,
        prompt: Prompt,
        output: Sequence[Text],
        now: int,
        *,
        match: Match | None = None,
        stored: bool | None = None,
    ) -> Node | None:
        """Add the response to ``prompt``, the client's request. It must be one that can be
        continued.

        Its parent is the response of ``match`` if the turn was anchored there. Otherwise it is the
        longest held path that the history of ``prompt`` begins with, under any settings: storing a
        repeated item twice would cost memory, and settings matter for anchors only.

        Args:
            output: the items of the response, as raw JSON.
            match: the result of ``recognise`` that was used for the turn, if one was.
            stored: whether the upstream says that it stored the response; None: as requested.

        Returns:
            The node; None if the response cannot be held: its anchor is not held, the request has
            context besides its items, or the conversation exceeds the limit of its credential.

        Raises:
            ValueError: an item of ``output`` is not JSON.
        """
        self.expire(now)
        held = self._scopes.get(scope)
        parent: Node | None = None
        repeated = 0
        if held is not None and prompt.whole:
            parent, repeated = self._continues(held, prompt, match)
        stale = None if held is None else held.nodes.get(response_id)
        if held is not None and stale is not None:
            if parent is not None and stale in parent.path():
                # Some upstreams use one id for all responses of a chain: it names the latest.
                held.unname(stale)
            else:
                # Duplicate response id: drop the older node and its descendants.
                self._drop_all(scope, stale)
                held = self._scopes.get(scope)
        if not prompt.whole or (prompt.anchor is not None and parent is None):
            return None
        fresh = held is None
        if held is None:
            table = TemplateTable(min(SPARE, self._max_scope // 32))
            held = _Scope(scope, table, PrefixTable(self._shortest_prefix))
        before = 0 if fresh else held.size
        stored = prompt.request.store if stored is None else stored
        node = self._node(response_id, parent, prompt, repeated, output, held.table, stored)
        held.table.grow()
        room = self._max_scope - SCOPE_OVERHEAD - held.table.size - node.size
        # The node needs its whole path in memory. Its size is summed only if the scope is so full
        # that it could matter.
        fits = held.taken <= room or (
            sum(each.size for each in (parent.path() if parent is not None else ())) <= room
        )
        if fits:
            held.add(node)
            if parent is not None:
                parent.used = self._now
                held.note_prefix(parent, prompt, repeated)
            if fresh:
                if not self._scopes:
                    self._none_before = self._now + self._max_age
                self._scopes[scope] = held
                self._lru.add(held)
        elif fresh:
            return None
        self._size += held.size - before  # learning new templates takes memory, too
        while held.size > self._max_scope and (victim := held.lru.first()) is not None:
            self._drop(held, victim)
        while self._size > self._max_bytes and (oldest := self._lru.first()) is not None:
            self._drop_oldest(oldest)
        return node if fits and node.held else None

    def _continues(
        self, held: _Scope, prompt: Prompt, match: Match | None
    ) -> tuple[Node | None, int]:
        """The parent of a response to ``prompt``, and how many items of ``prompt`` lead to it."""
        if match is not None and match.node.held:
            match.node.continued = True
            return match.node, match.repeated
        base = None if prompt.anchor is None else held.nodes.get(prompt.anchor)
        if base is not None:
            base.continued = True
        elif prompt.anchor is not None:
            return None, 0
        found = held.prefixes(prompt, base)
        if not found:
            return base, 0
        repeated, latest = found[-1]
        return max(latest.same_context(), key=_last_use), repeated

    def _node(
        self,
        response_id: str,
        parent: Node | None,
        prompt: Prompt,
        repeated: int,
        output: Sequence[Text],
        table: TemplateTable,
        stored: bool,
    ) -> Node:
        if repeated < prompt.known:
            prompt.read_all()  # what its known items lead to is not held any more
        forms = [input_form(item, stored=stored) for item in output]
        said = [form for form in forms if form is not None]
        prompt.complete_chain()
        places = [n for n in range(repeated, len(prompt.items)) if not prompt.leaves_out(n)]
        own = [prompt.meant(place) for place in places]
        digests = [prompt.chain[repeated], *(prompt.chain[place + 1] for place in places)]
        for form in said:
            digests.append(chain_digest(digests[-1], form, stored=stored))
        heads = [read_head(form) for form in said]
        made = [number for number, head in enumerate(heads) if head and head.kind == "compaction"]
        cut = len(own) + made[-1] if made else -1
        pruned = None
        if made:
            pruned = ROOT
            for form in said[made[-1] :]:
                pruned = chain_digest(pruned, form, stored=stored)
        settings = prompt.settings
        if parent is not None and parent.settings == settings:
            settings = parent.settings  # share one object along a conversation, to save memory
        shown = heads[made[-1] :] if made else [*map(prompt.meant_head, places), *heads]
        proof = prove(shown)
        node = Node(
            response_id=response_id,
            parent=parent,
            encoded=table.encode((*own, *said)),
            table=table,
            chain=b"".join(digests[1:-1]),
            end=digests[-1],
            settings=settings,
            readable=(bool(made) or parent is None or parent.readable) and not proof.opaque,
            cut=cut,
            pruned=pruned,
            used=self._now,
        )
        node.readable = node.readable and _has_calls(node, proof.orphans)
        return node

    # -------------------------------------------------------------- eviction

    def expire(self, now: int) -> int:
        """Evict responses that were unused for longer than ``max_age_ns``; returns how many."""
        self._now = max(self._now, now)
        count = 0
        if self._now < self._none_before:
            return 0
        while (scope := self._lru.first()) is not None:
            self._none_before = scope.used + self._max_age
            if self._none_before > self._now:
                break
            count += self._drop_oldest(scope)
        return count

    def next_expiry(self) -> int | None:
        """The time (ns) of the next expiry if nothing is used before; None if nothing is held."""
        scope = self._lru.first()
        return None if scope is None else scope.used + self._max_age

    def _drop_oldest(self, scope: _Scope) -> int:
        node = scope.lru.first()
        if node is None:
            return 0
        self._drop(scope, node)
        return 1

    def _drop(self, scope: _Scope, node: Node) -> None:
        """Remove a leaf; and its scope, if that was its last node."""
        scope.remove(node)
        self._size -= node.size
        if not scope.held:
            del self._scopes[scope.name]
            self._size -= scope.size

    def _drop_all(self, scope: str, node: Node) -> None:
        """Remove ``node`` and its descendants: they can no longer be rebuilt up to their root."""
        held = self._scopes[scope]
        below = [node]
        for each in below:
            below += each.child.siblings() if each.child is not None else ()
        for each in reversed(below):
            self._drop(held, each)
        held.lru.tidy()


def _fitting(prompt: Prompt, prefixes: Sequence[tuple[int, Node]]) -> list[Match]:
    """The responses of the longest of ``prefixes`` at which the turn can be anchored, latest first.
    ``prefixes``: of the prompt's items, shortest first. See ``Transcripts.recognise``."""
    for repeated, latest in reversed(prefixes):
        fitting = [
            Match(node, repeated)
            for node in islice(latest.same_context(), _TRIES)
            if node.named
            and node.injectable
            and not node.continued
            and node.settings == prompt.settings
        ]
        if fitting and prompt.chain[repeated] != prompt.chain[-1]:  # it goes on
            return fitting
    return []


# ------------------------------------------------------------------ one credential


def _last_use(node: Node) -> int:
    return node.used


@attrs.define(eq=False)
class _Scope:
    """The tree of one credential, with its indexes."""

    name: str
    table: TemplateTable
    starts: PrefixTable  # the prefixes of all nodes
    nodes: dict[str, Node] = attrs.Factory(dict)  # by id; without those that lost theirs (unname)
    count: int = 0  # of all nodes
    root: Node | None = None  # the latest node without a parent; the others are its siblings
    # By the chain digest of a whole context: the latest response that has it.
    ends: dict[bytes, Node] = attrs.Factory(dict)
    # By the chain digest of the items from a compaction on: the response that made it. A client may
    # drop everything before a compaction, and then has just those items as its history.
    pruned: dict[bytes, Node] = attrs.Factory(dict)
    # The chain digests after the first item, of all paths from the root, and how many have it. A
    # history that begins with none of them is not held.
    beginnings: Counter[bytes] = attrs.Factory(Counter)
    taken: int = 0  # bytes of all nodes
    lru: _LruHeap[Node] = attrs.Factory(lambda: _LruHeap[Node]())

    @property
    def size(self) -> int:
        """The memory of the scope, in bytes, as accounted."""
        return SCOPE_OVERHEAD + self.table.size + self.taken

    @property
    def held(self) -> bool:
        return self.count > 0

    @property
    def child(self) -> None:
        return None

    @property
    def used(self) -> int:
        """The time (ns) of last use of its least recently used leaf. Never decreases."""
        node = self.lru.first()
        return 0 if node is None else node.used

    def add(self, node: Node) -> None:
        """Link ``node`` into the tree and the indexes."""
        parent = node.parent
        node.older_sibling = self.root if parent is None else parent.child
        if node.older_sibling is not None:
            node.older_sibling.newer_sibling = node
        if parent is None:
            self.root = node
        else:
            parent.child = node
        self.nodes[node.response_id] = node
        self.count += 1
        if node.pruned is not None:
            self.pruned[node.pruned] = node
        node.older_same_context = self.ends.get(node.end)
        if node.older_same_context is not None:
            node.older_same_context.newer_same_context = node
        self.ends[node.end] = node
        if (beginning := _beginning(node)) is not None:
            self.beginnings[beginning] += 1
        self.taken += node.size
        self.lru.add(node)

    def remove(self, node: Node) -> None:
        """Unlink ``node``, a leaf."""
        parent = node.parent
        older_sibling, newer_sibling = node.older_sibling, node.newer_sibling
        if older_sibling is not None:
            older_sibling.newer_sibling = newer_sibling
        if newer_sibling is not None:
            newer_sibling.older_sibling = older_sibling
        elif parent is None:
            self.root = older_sibling
        else:
            parent.child = older_sibling
        if parent is not None:
            parent.used = max(parent.used, node.used)  # using a response uses its path
            if parent.child is None:
                self.lru.add(parent)
        node.held = False
        self.count -= 1
        if node.named:
            del self.nodes[node.response_id]
        if node.pruned is not None and self.pruned.get(node.pruned) is node:
            del self.pruned[node.pruned]
        older_sibling, newer_sibling = node.older_same_context, node.newer_same_context
        if older_sibling is not None:
            older_sibling.newer_same_context = newer_sibling
        if newer_sibling is not None:
            newer_sibling.older_same_context = older_sibling
        elif older_sibling is not None:
            self.ends[node.end] = older_sibling
        else:
            del self.ends[node.end]
        if (beginning := _beginning(node)) is not None:
            self.beginnings[beginning] -= 1
            if not self.beginnings[beginning]:
                del self.beginnings[beginning]
        self.taken -= node.size
        if node.prefix is not None:
            self.starts.remove(node.prefix)

    def latest(self, chain: bytes) -> Node | None:
        """The latest response with the context, or the pruned context, of this chain digest."""
        node = self.ends.get(chain)
        return self.pruned.get(chain) if node is None and self.pruned else node

    def _is_new(self, chain: Sequence[bytes], count: int) -> bool:
        """Whether a history whose first ``count`` items have the digests ``chain``, and lead to
        nothing that is held, cannot lead to anything held by its further items either. Those need
        not be compared then."""
        first = chain[0] == ROOT and chain[count] != ROOT and not self.pruned
        return first and chain[count - 1] == ROOT and chain[count] not in self.beginnings

    def note_prefix(self, node: Node, prompt: Prompt, count: int) -> None:
        """Note how the client of ``prompt`` spells the context of ``node``: its first ``count``
        items. One prefix is kept along a path, the latest, since the next request has that one."""
        if prompt.bounds[count] - prompt.bounds[0] <= self.starts.shortest:
            return
        if (prefix := prompt.prefix(count)) is None:
            return
        for each in (node, node.parent):
            if each is not None and each.prefix is not None:
                self.starts.remove(each.prefix)
                each.prefix = None
                self.taken -= PREFIX_OVERHEAD
        node.prefix = prefix
        self.starts.add(prefix)
        self.taken += PREFIX_OVERHEAD

    def unname(self, node: Node) -> None:
        """Take its id from ``node``: from now on it names a response that continues ``node``."""
        node.named = False
        del self.nodes[node.response_id]

    def prefixes(self, prompt: Prompt, base: Node | None) -> list[tuple[int, Node]]:
        """The prefixes of the items of ``prompt`` that are held paths, shortest first, each as the
        number of items and the latest response that it leads to.

        ``base``: the paths start after this response rather than at the root. References to items
        of responses on the way are resolved.

        Each step tries the cheapest comparison first: digests that an earlier call computed; then
        the bytes of a continuation of the latest response found; then the digest of one more item.
        """
        found: list[tuple[int, Node]] = []
        prompt.begin_chain(ROOT if base is None else base.end)
        known = self.latest(prompt.chain[prompt.known]) if prompt.known else None
        if known is None:
            prompt.read_all()  # what its known items lead to was evicted in the meantime
        chain = prompt.chain
        total = len(prompt.items)
        count = prompt.known
        if known is not None:
            found.append((count, known))
            next_up = _continuations(known)
        elif base is not None:
            next_up = _continuations(base)
        else:
            next_up = [] if self.root is None else list(islice(self.root.siblings(), _TRIES))
        near, since = next_up, count  # continuations of the latest response found
        while count < total:
            start = count
            learning = False
            if len(chain) - 1 > start:
                count = start + 1  # the digest is known from an earlier call
            elif next_up and _leap(prompt, next_up):
                count = len(chain) - 1
            else:
                _look_up(prompt, start, near, since)
                prompt.extend_chain()
                count = start + 1
                learning = True
            latest: Node | None = None
            for here in range(start + 1, count + 1):
                latest = self.latest(chain[here])
                # An unchanged digest: all items so far are left out, so nothing is repeated.
                if latest is not None and chain[here] != chain[0]:
                    found.append((here, latest))
            if latest is None and not found and self._is_new(chain, count):
                break
            next_up = []
            if latest is not None:
                next_up = _continuations(latest)
                near, since = next_up, count
                if learning:
                    _learn(prompt, count, islice(latest.same_context(), _TRIES))
        return found


def _beginning(node: Node) -> bytes | None:
    """The chain digest after the first item of ``node``, if its path begins with it; else None."""
    if node.parent is not None and node.parent.end != ROOT:
        return None
    for at in range(0, len(node.chain), DIGEST_SIZE):
        digest = node.chain[at : at + DIGEST_SIZE]
        if digest != ROOT:  # the digest of an item that is left out is unchanged
            return digest
    return None if node.end == ROOT else node.end


def _look_up(prompt: Prompt, place: int, near: Iterable[Node], since: int) -> None:
    """Resolve the item at ``place``, if it is a reference, to the item that stands at its place in
    those responses of ``near`` that begin with the items of ``prompt`` from ``since`` on."""
    name = prompt.reference(place)
    if name is None or place in prompt.resolved:
        return
    number = place - since
    digests = b"".join(prompt.chain[since + 1 : place + 1])
    found = {
        item
        for node in near
        if number < node.items and node.chain.startswith(digests)
        for item in node.table.items(node.encoded)[number : number + 1]
        if has_id(read_head(item), name)
    }
    if len(found) == 1:
        prompt.resolved[place] = found.pop()


def _continuations(latest: Node) -> list[Node]:
    """At most ``_TRIES`` responses that continue ``latest`` or one with an equal context, latest
    first. Loops instead of nested generators, because it runs for each response of a history."""
    found: list[Node] = []
    equal: Node | None = latest
    while equal is not None and len(found) < _TRIES:
        child = equal.child
        while child is not None and len(found) < _TRIES:
            found.append(child)
            child = child.older_sibling
        equal = equal.older_same_context
    return found


def _leap(prompt: Prompt, next_up: Iterable[Node]) -> bool:
    """Extend the prompt's chain by the items of the response in ``next_up`` that the prompt repeats
    furthest, as far as they can be compared as bytes; False if none can."""
    start = len(prompt.chain) - 1
    best: Node | None = None
    reach = 0
    for node in next_up:
        items = node.items
        count = _repeated(prompt, start, node, items)
        if count > reach:
            best, reach = node, count
            if count == items:
                break
    if best is None:
        return False
    whole = reach == best.items
    stop = (reach - whole) * DIGEST_SIZE
    prompt.chain += [best.chain[at : at + DIGEST_SIZE] for at in range(0, stop, DIGEST_SIZE)]
    if whole:
        prompt.chain.append(best.end)
    return True


def _repeated(prompt: Prompt, start: int, node: Node, items: int) -> int:
    """How many items of ``node``, which has ``items`` of them, the prompt repeats byte for byte (by
    a known template or wording) from its item ``start`` on."""
    count = node.table.is_at(node.encoded, prompt.text, prompt.bounds, start)
    if count == items or node.wording is None or start + items > len(prompt.items):
        return count
    return items if prompt.wording(start + count, start + items) == node.wording else count


def _learn(prompt: Prompt, end: int, nodes: Iterable[Node]) -> None:
    """Learn how the client spells the items of ``nodes``, so that they compare as bytes next time.

    The digests have shown that the items of each node are the last ones before item ``end``.
    """
    for node in nodes:
        items = node.items
        start = end - items
        if start < 0 or b"".join(prompt.chain[start + 1 : end]) != node.chain:
            continue  # not the same items one by one: some have no digest of their own
        places = range(start, end)
        if any(place in prompt.resolved or prompt.leaves_out(place) for place in places):
            continue
        if _repeated(prompt, start, node, items) < items:
            node.table.learn(node.encoded, prompt.items[start:end])
            if (count := _repeated(prompt, start, node, items)) < items:
                node.wording = prompt.wording(start + count, end)


# ------------------------------------------------------------------ eviction order


class _Usable(Protocol):
    """An entry of the heap: a node or a scope. ``used`` in ns, never decreasing."""

    @property
    def used(self) -> int: ...
    @property
    def held(self) -> bool: ...
    @property
    def child(self) -> Node | None: ...


T = TypeVar("T", bound=_Usable)


class _LruHeap(Generic[T]):
    """A heap of leaves in order of last use, for LRU eviction.

    Entries have the time of last use as of when they were pushed. Using a leaf does not touch the
    heap; an outdated entry is pushed again when it comes to the top. So a use costs nothing, and
    uses are far more frequent than evictions.
    """

    # An entry is one number, ``used`` and then the serial number of its leaf. Tuples would be
    # visited by every full garbage collection, one for each response.
    __slots__ = ("_entries", "_leaves", "_limit", "_serial")

    def __init__(self) -> None:
        self._entries: list[int] = []
        self._leaves: dict[int, T] = {}  # by serial number, one for each entry
        self._limit = 64
        self._serial = 0

    def add(self, leaf: T) -> None:
        self._serial += 1
        self._leaves[self._serial] = leaf
        heapq.heappush(self._entries, leaf.used << _SERIAL_BITS | self._serial)
        if len(self._entries) > self._limit:
            self.tidy()

    def first(self) -> T | None:
        entries, leaves = self._entries, self._leaves
        while entries:
            entry = entries[0]
            serial = entry & _SERIAL_MASK
            leaf = leaves[serial]
            if not leaf.held or leaf.child is not None:
                heapq.heappop(entries)
                del leaves[serial]
            elif (latest := leaf.used << _SERIAL_BITS | serial) != entry:
                heapq.heapreplace(entries, latest)
            else:
                return leaf
        return None

    def tidy(self) -> None:
        """Rebuild the heap without outdated and duplicate entries, so that its size stays within a
        constant factor of the leaves."""
        latest = {
            leaf: serial
            for serial, leaf in self._leaves.items()
            if leaf.held and leaf.child is None
        }
        self._leaves = {serial: leaf for leaf, serial in latest.items()}
        self._entries = [
            leaf.used << _SERIAL_BITS | serial for serial, leaf in self._leaves.items()
        ]
        heapq.heapify(self._entries)
        self._limit = 64 + 4 * len(self._entries)


_SERIAL_BITS: Final = 64
_SERIAL_MASK: Final = (1 << _SERIAL_BITS) - 1
