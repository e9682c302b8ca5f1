"""The tree of responses that the bridge holds, and the two ways to use it.

What belongs here: which response continues which, with what items; how much of it is kept and what
goes first; and the two questions a turn asks of it:

* ``expand``: a turn that names a held response, as a request that needs no anchor (rehydration);
* ``recognise``: a turn that repeats a held chain, as a place to anchor it at (reduction).

A node is one completed response. It holds only its own items, so a conversation of n turns is held
once, however often its client repeats it; the way up to the root gives the whole input. A node goes
only when nothing hangs on it, so whatever is held is complete to the root, and what is gone is
honestly unknown. Lists of items are found by chain digests (items.py): one per item, each made of
the one before, so that a history is looked up in one pass over its items. Most items of a history
were seen before in the same words, and those are compared as bytes instead.

Everything is kept per credential scope: an id or a history of somebody else is a miss like any
other (invariant 39). Times are integer nanoseconds of one monotonic clock, sizes bytes.
"""

from __future__ import annotations

import heapq
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
from bridgecore.continuity.templates import SPARE, TemplateTable
from bridgecore.wire.jsontext import Text

# What a node costs besides its items, their digests and its id, and a scope besides its nodes and
# phrases. Measured (benchmarks/continuity.py) on 64-bit CPython; the tests hold them to it.
NODE_OVERHEAD: Final = 600  # bytes
SCOPE_OVERHEAD: Final = 1700  # bytes

_TRIES: Final = 64  # continuations of one response that are compared as bytes, latest first


@attrs.define(eq=False, weakref_slot=False)
class Node:
    """One completed response: what it was asked, what it said, and what it continues.

    Its items are those of the request as they came, then those of the response in input form.
    """

    response_id: str
    parent: Node | None = attrs.field(repr=False)
    encoded: bytes = attrs.field(
        repr=False
    )  # the items, as book keeps them: no output shows bodies
    book: TemplateTable = attrs.field(repr=False)
    chain: bytes  # the chain digests after each item but the last
    end: bytes  # the last one, or the parent's if there are no items
    settings: bytes
    # Its text can be sent anew: no item is one that only the upstream can resolve, and no output is
    # without its call (some upstreams take such an output, and most refuse it).
    readable: bool
    cut: int  # which of its items is the latest compaction that it made; -1: it made none
    pruned: bytes | None  # the digest of its items from there on, as a list of their own
    used: int  # ns
    named: bool = True  # False: a response that continues it has its id now
    continued: bool = False  # a turn was anchored at it and completed
    injectable: bool = True  # False: the upstream refused it in place of a history
    rebuildable: bool = True  # False: the upstream refused its text as the input of a turn
    # Who stands by it. Lists by links, because some are long and their middles are taken out.
    child: Node | None = attrs.field(default=None, repr=False)  # the latest that continues it
    older_sibling: Node | None = attrs.field(
        default=None, repr=False
    )  # of those that continue the same
    newer_sibling: Node | None = attrs.field(default=None, repr=False)
    older_same_context: Node | None = attrs.field(
        default=None, repr=False
    )  # of those of the same context
    newer_same_context: Node | None = attrs.field(default=None, repr=False)
    # The digest of its last items as the client words them, from the first on in words not known.
    wording: bytes | None = None
    held: bool = True

    @property
    def size(self) -> int:
        """What the node takes, in bytes, as accounted."""
        name = len(self.response_id) * (1 if self.response_id.isascii() else 4)
        return NODE_OVERHEAD + len(self.encoded) + len(self.chain) + name

    @property
    def items(self) -> int:
        """How many items the node itself has."""
        return len(self.chain) // DIGEST_SIZE + bool(self.encoded)

    def own_text(self) -> bytes:
        """The items of the node itself, as the inside of an ``input`` array."""
        return b",".join(self.book.items(self.encoded))

    def siblings(self) -> Iterator[Node]:
        """This response, and those that are older and continue the same."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.older_sibling

    def same_context(self) -> Iterator[Node]:
        """This response, and those of the same context that are older."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.older_same_context

    def path(self) -> list[Node]:
        """The node and all before it, from the root on."""
        nodes = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    def text(self, *, whole: bool = False) -> bytes:
        """The items up to and with this response, as the inside of an ``input`` array, from the
        latest compaction on that a response on the path made, because that item stands for all
        before it; or every item, if ``whole``."""
        parts: list[bytes] = []
        node: Node | None = self
        while node is not None:
            if node.cut >= 0 and not whole:
                parts.append(b",".join(node.book.items(node.encoded)[node.cut :]))
                break
            parts.append(node.own_text())
            node = node.parent
        return _joined(reversed(parts))


def _joined(parts: Iterable[bytes]) -> bytes:
    return b",".join(part for part in parts if part)


@attrs.frozen
class Expansion:
    """A turn as a request of its own: the ``response.create`` frame, and what it rests on.

    It is to be sent only if ``proof.self_contained`` (invariant 7).
    """

    frame: bytes
    proof: Proof


def expand(node: Node, prompt: Prompt) -> Expansion:
    """The turn of ``prompt``, anchored at ``node``, without its anchor and with the whole input.

    What stands before the latest compaction is left out, unless an output needs a call from there.
    """
    before, new = node.text(), prompt.meant_heads()
    proof = prove([*read_heads(before), *new])
    if proof.orphans:
        whole = node.text(whole=True)
        if (all_proof := prove([*read_heads(whole), *new])).self_contained:
            before, proof = whole, all_proof
    return Expansion(prompt.frame(_joined((before, prompt.meant_text())), None), proof)


def _has_calls(node: Node, orphans: Iterable[str]) -> bool:
    """Whether what stands before the items of ``node`` has the calls ``orphans``, whose outputs are
    among those."""
    missing = set(orphans)
    before: Node | None = node
    while missing and before is not None:
        if before.cut >= 0:
            # What stands before a compaction is sent again only for a call that it has.
            return prove(read_heads(node.text(whole=True))).self_contained
        if before is not node:
            missing -= calls(read_heads(before.own_text()))
        before = before.parent
    return not missing


def resolve(node: Node, prompt: Prompt) -> None:
    """Find the items that references of ``prompt`` name, on the path of ``node``.

    An id that two different items have resolves to neither: some upstreams number their items anew
    in each response.
    """
    for place in range(len(prompt.items)):
        name = prompt.reference(place)
        if name is not None:
            found = {each for one in node.path() for each in _of_id(one, name)}
            if len(found) == 1:
                prompt.resolved[place] = found.pop()


def _of_id(node: Node, name: str) -> list[bytes]:
    """The items of ``node`` itself that have the id ``name``."""
    if name.encode(errors="replace") not in node.encoded:
        return []
    return [item for item in node.book.items(node.encoded) if has_id(read_head(item), name)]


@attrs.frozen
class Match:
    """A held chain that a request repeats: its first ``repeated`` items, after its anchor if it
    names one, are the path of ``node``."""

    node: Node
    repeated: int


def reduce(prompt: Prompt, match: Match, stand_in: str | None = None) -> bytes:
    """The ``response.create`` frame that says what ``prompt`` says, as a continuation of the held
    response, or of ``stand_in`` that has the same context."""
    return prompt.frame(prompt.text_from(match.repeated), stand_in or match.node.response_id)


class Transcripts:
    """What is held, for every credential.

    Args:
        max_bytes: of everything held, overhead included.
        max_age_ns: how long a response is held after it, or one that continues it, was last used.
        max_scope_bytes: of what is held for one credential.

    ``now`` never goes backwards: an earlier time than the last one is taken for that.
    """

    def __init__(self, max_bytes: int, max_age_ns: int, max_scope_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_age = max_age_ns
        self._max_scope = min(max_scope_bytes, max_bytes)
        self._scopes: dict[str, _Scope] = {}
        self._idlest: _Idlest[_Scope] = _Idlest()
        self._size = 0
        self._now = 0

    @property
    def size(self) -> int:
        """The bytes of everything held, overhead included."""
        return self._size

    def scope_size(self, scope: str) -> int:
        """The bytes of everything held for ``scope``, overhead included."""
        held = self._scopes.get(scope)
        return 0 if held is None else held.size

    def __len__(self) -> int:
        """How many responses are held."""
        return sum(scope.count for scope in self._scopes.values())

    def snapshot(self) -> tuple[tuple[str, str, int, tuple[bool, ...]], ...]:
        """What is held as a value: scope, id, when it was last used, in ns, and what became of
        it."""
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

    # -------------------------------------------------------------- asking

    def get(self, scope: str, response_id: str, now: int) -> Node | None:
        """The held response of that id; asking for it is using it."""
        node = self.peek(scope, response_id, now)
        if node is not None:
            node.used = self._now
        return node

    def peek(self, scope: str, response_id: str, now: int) -> Node | None:
        """The held response of that id; its conversation grows no younger by it."""
        self.expire(now)
        held = self._scopes.get(scope)
        return None if held is None else held.nodes.get(response_id)

    def recognise(self, scope: str, prompt: Prompt, now: int) -> list[Match]:
        """The held responses at which ``prompt`` can be anchored because it repeats all that was
        said up to them, and adds to it. They have one context, the longest; the latest comes first.

        The history of a prompt is its items; of one with an anchor that is held, what was said up
        to the anchor, then its items (the Vercel AI SDK names the response before the user's
        message and repeats the steps since, at each step of a tool loop).

        It has to be beyond doubt that the upstream would see the same context
        (``CONTEXT_IS_MEANT``), and no two conversations may come to share an anchor ('sibling'). So
        these are left out:

        * responses under other settings, narrowing keys or another credential; and all of them, if
          the request has context besides its items;
        * responses that a turn was anchored at already, in this or another conversation. That they
          were repeated in full does not count: such a turn has no part in the anchor;
        * responses that the upstream refused as an anchor, or whose id has passed to another.

        Responses of equal context are as good as each other, whoever's they are: each is an anchor
        once. Which of them a socket has at hand, the caller knows.
        """
        self.expire(now)
        held = self._scopes.get(scope)
        if held is None or not prompt.whole:
            return []
        base = None if prompt.anchor is None else held.nodes.get(prompt.anchor)
        if base is None and prompt.anchor is not None:
            return []
        for repeated, latest in reversed(held.prefixes(prompt, base)):
            fitting = [
                Match(node, repeated)
                for node in islice(latest.same_context(), _TRIES)
                if node.named
                and node.injectable
                and not node.continued
                and node.settings == prompt.settings
            ]
            if fitting and prompt.chain[repeated] != prompt.chain[-1]:  # something is added
                fitting[0].node.used = self._now
                return fitting
        return []

    # -------------------------------------------------------------- holding

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
        """Hold a response that can be continued, to the client's request ``prompt``.

        It continues the response of ``match``, if the turn was anchored there; else the one that
        ``prompt`` names and of those that continue it the last whose items ``prompt`` repeats; if
        it names none, the longest held chain whose items it repeats, be it under other settings.
        What is repeated is held once.

        Args:
            match: of those that ``recognise`` gave for ``prompt``, the one that was made use of.
            stored: whether the upstream says that it stored the response; None: as requested.

        Returns:
            The node; None if the response cannot be held: what it continues is not held, the
            request has context besides its items, or the conversation is larger than allowed.

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
                # Some upstreams call all responses of a chain by one id: it names the latest.
                held.unname(stale)
            else:
                # The id names another response now: what continued the old one is unknown.
                self._drop_all(scope, stale)
                held = self._scopes.get(scope)
        if not prompt.whole or (prompt.anchor is not None and parent is None):
            return None
        fresh = held is None
        held = held or _Scope(scope, TemplateTable(min(SPARE, self._max_scope // 32)))
        before = 0 if fresh else held.size
        stored = prompt.request.store if stored is None else stored
        node = self._node(response_id, parent, prompt, repeated, output, held.book, stored)
        held.book.grow()
        room = self._max_scope - SCOPE_OVERHEAD - held.book.size - node.size
        # If everything fits, what it continues does.
        fits = held.taken <= room or (
            sum(each.size for each in (parent.path() if parent is not None else ())) <= room
        )
        if fits:
            held.add(node)
            if parent is not None:
                parent.used = self._now
            if fresh:
                self._scopes[scope] = held
                self._idlest.add(held)
        elif fresh:
            return None
        self._size += held.size - before  # the book may have grown, too
        while held.size > self._max_scope and (victim := held.idlest.first()) is not None:
            self._drop(held, victim)
        while self._size > self._max_bytes and (oldest := self._idlest.first()) is not None:
            self._drop_idlest(oldest)
        return node if fits and node.held else None

    def _continues(
        self, held: _Scope, prompt: Prompt, match: Match | None
    ) -> tuple[Node | None, int]:
        """What a response to ``prompt`` continues, and how many items of the prompt that has."""
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
        book: TemplateTable,
        stored: bool,
    ) -> Node:
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
            settings = parent.settings  # one object for a whole conversation
        shown = heads[made[-1] :] if made else [*map(prompt.meant_head, places), *heads]
        proof = prove(shown)
        node = Node(
            response_id=response_id,
            parent=parent,
            encoded=book.note((*own, *said)),
            book=book,
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

    # -------------------------------------------------------------- letting go

    def expire(self, now: int) -> int:
        """Let go of what was not used for too long; how many responses that were."""
        self._now = max(self._now, now)
        count = 0
        while (scope := self._idlest.first()) is not None:
            if scope.used + self._max_age > self._now:
                break
            count += self._drop_idlest(scope)
        return count

    def next_expiry(self) -> int | None:
        """When ``expire`` has something to do, in ns, if nothing is used until then."""
        scope = self._idlest.first()
        return None if scope is None else scope.used + self._max_age

    def _drop_idlest(self, scope: _Scope) -> int:
        node = scope.idlest.first()
        if node is None:
            return 0
        self._drop(scope, node)
        return 1

    def _drop(self, scope: _Scope, node: Node) -> None:
        """Let go of a node that nothing hangs on."""
        scope.remove(node)
        self._size -= node.size
        if not scope.held:
            del self._scopes[scope.name]
            self._size -= scope.size

    def _drop_all(self, scope: str, node: Node) -> None:
        """Let go of ``node`` and everything that continues it."""
        held = self._scopes[scope]
        below = [node]
        for each in below:
            below += each.child.siblings() if each.child is not None else ()
        for each in reversed(below):
            self._drop(held, each)
        held.idlest.tidy()


# ------------------------------------------------------------------ one credential


def _last_use(node: Node) -> int:
    return node.used


@attrs.define(eq=False)
class _Scope:
    """What is held for one credential."""

    name: str
    book: TemplateTable
    nodes: dict[str, Node] = attrs.Factory(dict)  # by id; those that have lost theirs are not here
    count: int = 0  # of all nodes
    root: Node | None = None  # the latest
    ends: dict[bytes, Node] = attrs.Factory(dict)  # by chain digest: the latest of the twins
    # Those that made a compaction, by the digest of their items from there on: a client that
    # drops what stands before it has that as its history.
    pruned: dict[bytes, Node] = attrs.Factory(dict)
    taken: int = 0  # bytes, by nodes
    idlest: _Idlest[Node] = attrs.Factory(lambda: _Idlest[Node]())

    @property
    def size(self) -> int:
        """What the scope takes, in bytes, as accounted."""
        return SCOPE_OVERHEAD + self.book.size + self.taken

    @property
    def held(self) -> bool:
        return self.count > 0

    @property
    def child(self) -> None:
        return None

    @property
    def used(self) -> int:
        """When the idlest conversation was last used, in ns. Never goes backwards."""
        node = self.idlest.first()
        return 0 if node is None else node.used

    def add(self, node: Node) -> None:
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
        self.taken += node.size
        self.idlest.add(node)

    def remove(self, node: Node) -> None:
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
            parent.used = max(parent.used, node.used)  # using a response is using its path
            if parent.child is None:
                self.idlest.add(parent)
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
        self.taken -= node.size

    def unname(self, node: Node) -> None:
        """The id of ``node`` is that of a response that continues it from now on."""
        node.named = False
        del self.nodes[node.response_id]

    def prefixes(self, prompt: Prompt, base: Node | None) -> list[tuple[int, Node]]:
        """Each number of items at the beginning of ``prompt`` that are a held path, after that of
        ``base`` if there is one, rising; and the latest of the responses that those paths lead to.

        References to items of the responses that are passed on the way are resolved.
        """
        found: list[tuple[int, Node]] = []
        prompt.begin_chain(ROOT if base is None else base.end)
        chain, ends = prompt.chain, self.ends
        total = len(prompt.items)
        count = 0
        if base is not None:
            next_up = _continuations(base)
        else:
            next_up = [] if self.root is None else list(islice(self.root.siblings(), _TRIES))
        near, since = next_up, 0  # what may go on from the latest response that was passed
        while count < total:
            start = count
            learning = False
            if len(chain) - 1 > start:
                count = start + 1  # known from an earlier look
            elif next_up and _leap(prompt, next_up):
                count = len(chain) - 1
            else:
                _look_up(prompt, start, near, since)
                prompt.extend_chain()
                count = start + 1
                learning = True
            latest: Node | None = None
            for here in range(start + 1, count + 1):
                latest = ends.get(chain[here])
                if latest is None and self.pruned:
                    latest = self.pruned.get(chain[here])
                if latest is not None and chain[here] != chain[0]:  # some of it is repeated
                    found.append((here, latest))
            next_up = []
            if latest is not None:
                next_up = _continuations(latest)
                near, since = next_up, count
                if learning:
                    _learn(prompt, count, islice(latest.same_context(), _TRIES))
        return found


def _look_up(prompt: Prompt, place: int, near: Iterable[Node], since: int) -> None:
    """Resolve the item at ``place``, if it is a reference: by those of ``near`` whose items are the
    prompt's from ``since`` on."""
    name = prompt.reference(place)
    if name is None or place in prompt.resolved:
        return
    number = place - since
    told = b"".join(prompt.chain[since + 1 : place + 1])
    found = {
        item
        for node in near
        if number < node.items and node.chain.startswith(told)
        for item in node.book.items(node.encoded)[number : number + 1]
        if has_id(read_head(item), name)
    }
    if len(found) == 1:
        prompt.resolved[place] = found.pop()


def _continuations(latest: Node) -> list[Node]:
    """What continues ``latest`` and its twins, the latest first, as far as it is tried. Written
    out, for it is done once for each response of a history."""
    found: list[Node] = []
    twin: Node | None = latest
    while twin is not None and len(found) < _TRIES:
        child = twin.child
        while child is not None and len(found) < _TRIES:
            found.append(child)
            child = child.older_sibling
        twin = twin.older_same_context
    return found


def _leap(prompt: Prompt, next_up: Iterable[Node]) -> bool:
    """Take into the prompt's chain the items that a held response has in words that are known."""
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
    """How many of the ``items`` of ``node``, beginning with the first, the prompt has from item
    ``start`` on."""
    count = node.book.is_at(node.encoded, prompt.text, prompt.bounds, start)
    if count == items or node.wording is None or start + items > len(prompt.items):
        return count
    return items if prompt.wording(start + count, start + items) == node.wording else count


def _learn(prompt: Prompt, end: int, nodes: Iterable[Node]) -> None:
    """Remember how the client words ``nodes``, each of which its items up to ``end`` end with."""
    for node in nodes:
        items = node.items
        start = end - items
        if start < 0 or b"".join(prompt.chain[start + 1 : end]) != node.chain:
            continue  # item by item they are not the same: some are left out
        places = range(start, end)
        if any(place in prompt.resolved or prompt.leaves_out(place) for place in places):
            continue
        if _repeated(prompt, start, node, items) < items:
            node.book.learn(node.encoded, prompt.items[start:end])
            if (count := _repeated(prompt, start, node, items)) < items:
                node.wording = prompt.wording(start + count, end)


# ------------------------------------------------------------------ who goes first


class _Usable(Protocol):
    """What can be idle: ``used`` in ns, never going backwards."""

    @property
    def used(self) -> int: ...
    @property
    def held(self) -> bool: ...
    @property
    def child(self) -> Node | None: ...


T = TypeVar("T", bound=_Usable)


class _Idlest(Generic[T]):
    """Which of the things that are held, and that nothing hangs on, was used longest ago.

    A heap of when each was used when last looked at. Using a thing costs nothing: it is looked at
    again when its turn seems to have come.
    """

    __slots__ = ("_entries", "_limit", "_serial")

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, T]] = []
        self._limit = 64
        self._serial = 0

    def add(self, thing: T) -> None:
        self._serial += 1
        heapq.heappush(self._entries, (thing.used, self._serial, thing))
        if len(self._entries) > self._limit:
            self.tidy()

    def first(self) -> T | None:
        entries = self._entries
        while entries:
            used, serial, thing = entries[0]
            if not thing.held or thing.child is not None:
                heapq.heappop(entries)
            elif thing.used != used:
                heapq.heapreplace(entries, (thing.used, serial, thing))
            else:
                return thing
        return None

    def tidy(self) -> None:
        """Forget what is not to be looked at: memory follows what is held."""
        latest = {thing: serial for _, serial, thing in self._entries}
        self._entries = [
            (thing.used, serial, thing)
            for thing, serial in latest.items()
            if thing.held and thing.child is None
        ]
        heapq.heapify(self._entries)
        self._limit = 64 + 4 * len(self._entries)
