"""The tree of held responses of one credential, and the paths in it that a request repeats.

What belongs here: linking responses into the tree and its indexes, and ``Tree.prefixes``, which
follows the items of a request through it. Limits of memory and age are in ``transcript``, where the
whole is described.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

import attrs

from bridgecore.continuity.items import (
    DIGEST_SIZE,
    ROOT,
    Prompt,
    has_id,
    read_head,
)
from bridgecore.continuity.lru import LruHeap
from bridgecore.continuity.nodes import Node
from bridgecore.continuity.prefixes import (
    PREFIX_OVERHEAD,
    PrefixTable,
)
from bridgecore.continuity.templates import TemplateTable

# Memory of a tree besides its nodes and templates, measured like ``NODE_OVERHEAD``.
TREE_OVERHEAD: Final = 1700  # bytes

# Responses with equal context, or that continue one response, that are compared, latest first. A
# client that asks the same thing thousands of times would otherwise make each look-up slower.
TRIES: Final = 64


@attrs.define(eq=False)
class Tree:
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
    lru: LruHeap[Node] = attrs.Factory(lambda: LruHeap[Node]())

    @property
    def size(self) -> int:
        """The memory of the scope, in bytes, as accounted."""
        return TREE_OVERHEAD + self.table.size + self.taken

    @property
    def evictable(self) -> bool:
        """Whether anything is held. Then its least recently used leaf can be evicted."""
        return self.count > 0

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
        if node.named:
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

    def find(self, parent: Node | None, response_id: str, end: bytes) -> Node | None:
        """The response with that id and context that continues ``parent``, even if its id names
        another one now."""
        latest = self.ends.get(end)
        for node in () if latest is None else latest.same_context():
            if node.response_id == response_id and node.parent is parent:
                return node
        return None

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

    def rename(self, node: Node) -> None:
        """Give ``node`` its id, which names no other response now."""
        node.named = True
        self.nodes[node.response_id] = node

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
            next_up = [] if self.root is None else list(islice(self.root.siblings(), TRIES))
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
                    _learn(prompt, count, islice(latest.same_context(), TRIES))
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
    """At most ``TRIES`` responses that continue ``latest`` or one with an equal context, latest
    first. Loops instead of nested generators, because it runs for each response of a history."""
    found: list[Node] = []
    equal: Node | None = latest
    while equal is not None and len(found) < TRIES:
        child = equal.child
        while child is not None and len(found) < TRIES:
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
