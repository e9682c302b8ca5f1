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

What belongs here: the limits of memory and age, and the order of look-up and insertion. One
response and its forms are in ``nodes``, the tree of one credential in ``tree``.

Everything is kept per credential scope: an id or a history of another credential looks like one
that was never seen (FOREIGN_IS_UNKNOWN). Times are integer nanoseconds of one monotonic clock,
sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from operator import attrgetter

from bridgecore.continuity.items import (
    DIGEST_SIZE,
    ROOT,
    Prompt,
    chain_digest,
    input_form,
    prove,
    read_head,
)
from bridgecore.continuity.lru import LruHeap
from bridgecore.continuity.nodes import Match, Node, has_calls
from bridgecore.continuity.prefixes import (
    SHORTEST,
    KnownStart,
    PrefixTable,
)
from bridgecore.continuity.stored import Segment
from bridgecore.continuity.templates import SPARE, TemplateTable
from bridgecore.continuity.tree import TREE_OVERHEAD, TRIES, Tree
from bridgecore.wire.jsontext import Text
from bridgecore.wire.requests import CreateRequest


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
        self._scopes: dict[str, Tree] = {}
        self._lru: LruHeap[Tree] = LruHeap()
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
                (node.named, node.continued, node.injectable, node.rebuildable, node.durable > 0),
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
            held = self._new_tree(scope)
        before = 0 if fresh else held.size
        stored = prompt.request.store if stored is None else stored
        node = self._node(response_id, parent, prompt, repeated, output, held.table, stored)
        held.table.grow()
        room = self._max_scope - TREE_OVERHEAD - held.table.size - node.size
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
                self._keep(held)
        elif fresh:
            return None
        self._make_room(held, before)
        return node if fits and node.held else None

    def beside(
        self,
        response_id: str,
        base: Node,
        prompt: Prompt,
        output: Sequence[Text],
        *,
        stored: bool,
    ) -> Node | None:
        """The response to a turn that was anchored at ``base``, which was evicted while the turn
        ran. It is not held, but it is whole: a store can be given it. None: the request has context
        besides its items, or the conversation exceeds the limit of its credential, so that it could
        not be taken back."""
        if not prompt.whole:
            return None
        prompt.begin_chain(base.end)
        node = self._node(response_id, base, prompt, 0, output, base.table, stored)
        room = min(self._max_scope, self._max_bytes) - TREE_OVERHEAD
        return node if sum(each.size for each in node.path()) <= room else None

    def restore(
        self, scope: str, path: Sequence[tuple[str, Segment]], now: int, durable: int
    ) -> bool:
        """Add a transcript that came back from a store, from its first response to its last, each
        with its id. Responses of it that are held already stay as they are. ``durable``: until when
        the store certainly keeps it, ns.

        Returns:
            Whether all of it is held now. Otherwise nothing of it was added: it exceeds the limit
            of its credential, or it is not whole. A part of a conversation must never be taken for
            all of it.
        """
        self.expire(now)
        end = ROOT
        for _, segment in path:
            if segment.start != end:
                return False
            end = segment.end
        fresh = (held := self._scopes.get(scope)) is None
        if held is None:
            held = self._new_tree(scope)
        before = 0 if fresh else held.size
        whole: list[Node] = []
        added: list[Node] = []
        for response_id, segment in path:
            parent = whole[-1] if whole else None
            node = held.find(parent, response_id, segment.end)
            if node is None:
                node = _restored(response_id, parent, segment, held.table, self._now, durable)
                added.append(node)
            whole.append(node)
        held.table.grow()
        room = self._max_scope - TREE_OVERHEAD - held.table.size
        if not whole or sum(node.size for node in whole) > room:
            return False
        last = whole[-1]
        for node in added:
            # Some upstreams use one id for all responses of a chain, which names the latest of
            # them. Which one that is, the store has said of the last one only: the id of one before
            # it may name a response that is not held.
            node.named = False
            held.add(node)
        if last in added and (holder := held.nodes.get(last.response_id)) is not None:
            held.unname(holder)
        if last.response_id not in held.nodes:
            held.rename(last)
        last.used = self._now
        if fresh:
            self._keep(held)
        self._make_room(held, before)
        return whole[-1].held

    def _new_tree(self, scope: str) -> Tree:
        table = TemplateTable(min(SPARE, self._max_scope // 32))
        return Tree(scope, table, PrefixTable(self._shortest_prefix))

    def _keep(self, held: Tree) -> None:
        """Enter a new tree, which has its first response, into the indexes."""
        if not self._scopes:
            self._none_before = self._now + self._max_age
        self._scopes[held.name] = held
        self._lru.add(held)

    def _make_room(self, held: Tree, before: int) -> None:
        """Account for the growth of ``held``, which had ``before`` bytes, and evict what exceeds a
        limit. Learning new templates takes memory, too."""
        self._size += held.size - before
        while held.size > self._max_scope and (victim := held.lru.first()) is not None:
            self._drop(held, victim)
        while self._size > self._max_bytes and (oldest := self._lru.first()) is not None:
            self._drop_oldest(oldest)

    def _continues(
        self, held: Tree, prompt: Prompt, match: Match | None
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
        return max(latest.same_context(), key=attrgetter("used")), repeated

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
        node.readable = node.readable and has_calls(node, proof.orphans)
        return node

    def forget(self, scope: str, response_id: str) -> None:
        """Let the response with that id be continued no more. It is dropped; if other responses
        continue it, only its id is, because their context contains its items."""
        held = self._scopes.get(scope)
        node = None if held is None else held.nodes.get(response_id)
        if held is None or node is None:
            return
        if node.child is None:
            self._drop_all(scope, node)
        else:
            held.unname(node)

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

    def _drop_oldest(self, scope: Tree) -> int:
        node = scope.lru.first()
        if node is None:
            return 0
        self._drop(scope, node)
        return 1

    def _drop(self, scope: Tree, node: Node) -> None:
        """Remove a leaf; and its scope, if that was its last node."""
        scope.remove(node)
        self._size -= node.size
        if not scope.evictable:
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
            for node in islice(latest.same_context(), TRIES)
            if node.named
            and node.injectable
            and not node.continued
            and node.settings == prompt.settings
        ]
        if fitting and prompt.chain[repeated] != prompt.chain[-1]:  # it goes on
            return fitting
    return []


def _restored(
    response_id: str,
    parent: Node | None,
    segment: Segment,
    table: TemplateTable,
    now: int,
    durable: int,
) -> Node:
    settings = segment.settings
    if parent is not None and parent.settings == settings:
        settings = parent.settings  # one object along a conversation, to save memory
    return Node(
        response_id=response_id,
        parent=parent,
        encoded=table.encode(segment.items),
        table=table,
        chain=segment.chain[:-DIGEST_SIZE],
        end=segment.end,
        settings=settings,
        readable=segment.readable,
        cut=segment.cut,
        pruned=segment.pruned,
        used=now,
        durable=durable,
    )
