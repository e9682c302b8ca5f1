"""Templates of items: stores items compactly, and compares them as bytes with what clients send.

An item is split into a template and values. The template is the JSON that is the same for all items
of a kind: member names, punctuation, bookkeeping. The values are its strings: texts, arguments,
call ids. A template is stored once for all items that have it.

A client sends an item back in a spelling of its own: members in another order, some left out, an id
added. Digests (items.py) tell that two spellings are the same item, but computing one means
decoding the item. So once digests have matched a held item with a client's spelling of it, the
client's template is learnt (a ``_Manner``). From then on a held item is written in that spelling
and compared with the request as bytes, at a small part of the cost. Sequences of templates that
were found next to each other are learnt, too, and then compared in one piece.

This is as reliable as the digests. A value here is either a whole JSON string that a model reads,
or an id that it does not read, so the digest depends on it in the same way whatever it is. If one
item has the same digest in two spellings, so has every other item with those templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

import attrs

from bridgecore.continuity.items import (
    CLIENT_MEMBERS,
    ignored,
    is_bare_thought,
    kind_of,
)
from bridgecore.wire.jsontext import (
    Text,
    UnreadableError,
    read_array,
    read_members,
    reader,
)

# Memory of templates in bytes, besides their text; measured like the overheads in transcript.py.
PHRASE_OVERHEAD: Final = 760
MANNER_OVERHEAD: Final = 560
SEQUENCE_OVERHEAD: Final = 380
SPARE: Final = 6000  # reserved for what is learnt between two responses

# Limits for one credential. A client has few kinds of items, and usually one spelling of each;
# the limits keep a client that varies its spelling from filling the table or slowing comparisons
# down.
_MAX_PHRASES: Final = 31  # templates; below 256, because their numbers are stored as bytes
_MAX_MANNERS: Final = 3  # learnt spellings of one template, or of one sequence of templates
_MAX_SEQUENCE: Final = 8  # templates in a sequence
_MAX_SEQUENCES: Final = 16
_MAX_WORDS: Final = 512  # bytes of a template
_MAX_WORD: Final = 32  # bytes of a member's value that becomes a part of the template

_GAP: Final = b"\0"  # separates values: JSON contains no NUL byte
_VALUES: Final = frozenset(
    {"arguments", "call_id", "encrypted_content", "input", "name", "output", "text"}
)
_CONTENT: Final = "encrypted_content"  # of reasoning; an empty one is the same as none
_PARTS: Final = frozenset({"content", "summary"})  # lists of objects with a ``text``
# An object without white space at its beginning. Others have no template, see ``split``.
_TIGHT: Final = re.compile(rb'\{"[^"\\]*":[^ \t\n\r]')
_ANY_ID: Final = re.compile(rb'"[^"\\]{,128}"')
# Values that no model reads, so that they are not compared: an id, or the flat object that a client
# adds. Bounded, so that matching takes linear time.
_FLAT: Final = rb'\{[^{}"\\]{,64}(?:"[^"\\]{,128}"[^{}"\\]{,64}){,32}\}'
_UNREAD: Final = re.compile(_ANY_ID.pattern + rb"|" + _FLAT)
_UNREAD_NAMES: Final = CLIENT_MEMBERS | {"id"}


@attrs.frozen(eq=False)
class ItemTemplate:
    """The constant part of an item.

    ``words``: the text before, between and after the values. ``names``: the names of the values, by
    their place in the item. With empty words and one value, the value is the whole item.
    """

    words: tuple[bytes, ...]
    names: tuple[str, ...]

    def values(self, item: bytes) -> list[bytes] | None:
        """The values of ``item``; None if it does not have this template."""
        first, *others, last = self.words
        if not (item.startswith(first) and item.endswith(last)):
            return None
        values = []
        here = len(first)
        for word in others:
            there = item.find(word, here)
            if there < 0:
                return None
            values.append(item[here:there])
            here = there + len(word)
        values.append(item[here : len(item) - len(last)])
        for name, value in zip(self.names, values, strict=True):
            if name in CLIENT_MEMBERS:
                if not _UNREAD.fullmatch(value):
                    return None
            elif not _is_text(value) or (name == _CONTENT and value == b'""'):
                return None
        return values


_read_text: Final = reader(str)


def _is_text(value: bytes) -> bool:
    """Whether ``value`` is exactly one JSON string."""
    if not (value.startswith(b'"') and value.endswith(b'"')):
        return False
    try:
        _read_text(value)
    except UnreadableError:
        return False
    return True


# For items that have no useful template: the whole item is the value.
PLAIN: Final = ItemTemplate((b"", b""), ("",))


def split(item: bytes) -> tuple[ItemTemplate, list[bytes]]:
    """Split ``item`` into a template and values; PLAIN if its type is unknown or its template would
    be rarely shared."""
    try:
        members = read_members(item)
        kind = kind_of(members)
        unread = ignored(kind)
        if not unread or is_bare_thought(kind, members):
            return PLAIN, [item]
        reading = _Reading()
        for name, raw in members.items():
            value = bytes(raw)
            is_id = name == "id" and name in unread and _ANY_ID.fullmatch(value)
            if is_id or (name in CLIENT_MEMBERS and _UNREAD.fullmatch(value)):
                reading.value(name, name, value)
            elif name in _PARTS and value.startswith(b"["):
                reading.parts(name, value)
            elif name == "content" and value.startswith(b'"'):
                reading.value(name, "content.0.text", value)
            elif name in _VALUES and value.startswith(b'"'):
                reading.value(name, name, value)
            else:
                reading.word(name, value)
        words = reading.end()
    except (UnreadableError, _LongWordError):
        return PLAIN, [item]
    template = ItemTemplate(words, tuple(reading.names))
    # Items with white space, escaped names or duplicate names do not split into what they were made
    # of. They are rare, so they are stored whole.
    if (
        not reading.names
        or sum(map(len, words)) > _MAX_WORDS
        or _written(words, reading.values) != item
    ):
        return PLAIN, [item]
    return template, reading.values


class _LongWordError(Exception):
    """A member that would become a part of the template is too long: it probably varies."""


class _Reading:
    """Collects the words and values of an item while its members are read."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: list[bytes] = []
        self._words: list[bytes] = []
        self._open = bytearray(b"{")

    def word(self, name: str, value: bytes) -> None:
        if len(value) > _MAX_WORD:
            raise _LongWordError
        self._open += b'"%b":%b,' % (name.encode(), value)

    def value(self, member: str, name: str, value: bytes) -> None:
        self._open += b'"%b":' % member.encode()
        self._words.append(bytes(self._open))
        self.names.append(name)
        self.values.append(value)
        self._open = bytearray(b",")

    def parts(self, name: str, value: bytes) -> None:
        self._open += b'"%b":[' % name.encode()
        for number, part in enumerate(read_array(value)):
            self._open += b"{"
            for member, raw in read_members(part).items():
                inner = bytes(raw)
                if member == "text" and inner.startswith(b'"'):
                    self.value(member, f"{name}.{number}.{member}", inner)
                else:
                    self.word(member, inner)
            self._close(b"},")
        self._close(b"],")

    def _close(self, mark: bytes) -> None:
        if self._open.endswith(b","):
            del self._open[-1]
        self._open += mark

    def end(self) -> tuple[bytes, ...]:
        self._close(b"}")
        return (*self._words, bytes(self._open))


def _written(words: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    parts = [b""] * (len(words) + len(values))
    parts[::2] = words
    parts[1::2] = values
    return b"".join(parts)


class _Manner:
    """One spelling of a template's values.

    ``words``: the text around the values. ``uses``: the indexes of the values between the words, in
    order; None: a value that is not compared, such as an id.
    """

    __slots__ = ("_pieces", "uses", "words")

    def __init__(self, words: tuple[bytes, ...], uses: tuple[int | None, ...]) -> None:
        self.words = words
        self.uses = uses
        # The text is compared in pieces, which end at values that are not compared. A piece has its
        # words, with an empty place after each for a value, and the indexes of those values.
        pieces: list[tuple[list[bytes], list[int]]] = [([words[0]], [])]
        for word, number in zip(words[1:], uses, strict=True):
            if number is None:
                pieces.append(([word], []))
            else:
                pieces[-1][0].extend((b"", word))
                pieces[-1][1].append(number)
        self._pieces = tuple((tuple(parts), tuple(numbers)) for parts, numbers in pieces)

    @property
    def size(self) -> int:
        """The memory it takes, in bytes."""
        return MANNER_OVERHEAD + sum(map(len, self.words))

    def same_as(self, other: _Manner) -> bool:
        """Whether both spell all values alike."""
        return self.words == other.words and self.uses == other.uses

    def is_at(self, text: bytes, begin: int, end: int, values: Sequence[bytes]) -> bool:
        """Whether ``text`` from ``begin`` to ``end`` is ``values`` in this spelling."""
        at = begin
        for place, (words, numbers) in enumerate(self._pieces):
            if place > 0:
                unread = _UNREAD.match(text, at)
                if unread is None:
                    return False
                at = unread.end()
            parts = [*words]
            room = 1
            for number in numbers:
                parts[room] = values[number]
                room += 2
            piece = b"".join(parts)
            if not text.startswith(piece, at):
                return False
            at += len(piece)
        return at == end


def _joined(manners: Iterable[tuple[int, _Manner]]) -> _Manner:
    """The spelling of a sequence of items. ``manners``: for each item, the index of its first value
    in the sequence, and its spelling."""
    words: list[bytes] = []
    uses: list[int | None] = []
    for first, manner in manners:
        words[-1:] = [b"%b,%b" % (words[-1], manner.words[0]) if words else manner.words[0]]
        words += manner.words[1:]
        uses += [None if number is None else first + number for number in manner.uses]
    return _Manner(tuple(words), tuple(uses))


class TemplateTable:
    """The templates of one credential's items, and its clients' spellings of them.

    Items are encoded as one byte string: the numbers of their templates, then their values.

    ``size`` is the memory of the table in bytes, including a reserve for what is learnt while
    requests are compared, because the limit of transcripts is enforced only when a response is
    added. The reserve is ``spare``, and grows by that amount whenever it was too small.
    """

    __slots__ = ("_manners", "_phrases", "_sequences", "_spare", "_step", "_wanting", "size")

    def __init__(self, spare: int = SPARE) -> None:
        self._phrases = [PLAIN]
        self._manners: list[list[_Manner]] = [[_as_it_is(PLAIN)]]
        self._sequences: dict[bytes, list[_Manner]] = {}  # by the numbers of their phrases
        self._step = self._spare = self.size = spare
        self._wanting = False

    def note(self, items: Iterable[Text]) -> bytes:
        """Encode ``items``; new templates are added to the table while there is room.

        Raises:
            ValueError: an item is not JSON.
        """
        numbers = bytearray()
        noted = [b""]
        for item in items:
            number, values = self._noted(bytes(item))
            numbers.append(number)
            noted += values
        noted[0] = bytes(numbers)
        encoded = _GAP.join(noted)
        if encoded.count(_GAP) != len(noted) - 1:
            raise ValueError("an item is not JSON")
        return encoded

    def grow(self) -> None:
        """Extend the reserve if it was too small to learn a spelling since the last call."""
        if self._wanting:
            self._wanting = False
            self._spare += self._step
            self.size += self._step

    def items(self, encoded: bytes) -> list[bytes]:
        """Decode ``encoded``: its items, byte for byte as they were."""
        return [
            _written(self._phrases[number - 1].words, values)
            for number, values in self._read(encoded)
        ]

    def is_at(self, encoded: bytes, text: bytes, bounds: Sequence[int], start: int) -> int:
        """How many items of ``encoded``, from its first on, ``text`` has in known spellings, one
        after another, from its item ``start`` on.

        Item n of ``text`` begins at ``bounds[n]`` and ends before the byte ``bounds[n + 1] - 1``.
        """
        numbers, *values = encoded.split(_GAP)
        stop = start + len(numbers)
        if stop < len(bounds):
            for manner in self._sequences.get(numbers, ()):
                if manner.is_at(text, bounds[start], bounds[stop] - 1, values):
                    return len(numbers)
        found: list[tuple[int, _Manner]] = []
        first = 0
        places = pairwise(bounds[start : stop + 1])
        for number, (begin, end) in zip(numbers, places, strict=False):
            after = first + len(self._phrases[number - 1].names)
            said = values[first:after]
            for manner in self._manners[number - 1]:
                if manner.is_at(text, begin, end - 1, said):
                    found.append((first, manner))
                    break
            else:
                break
            first = after
        if len(found) == len(numbers):
            self._remember(numbers, found)
        return len(found)

    def learn(self, encoded: bytes, items: Iterable[Text]) -> None:
        """Learn the spellings of ``items``, whose digests equal those of the items of ``encoded``,
        in the same order."""
        for (number, values), raw in zip(self._read(encoded), items, strict=True):
            item = bytes(raw)
            manners = self._manners[number - 1]
            if any(manner.is_at(item, 0, len(item), values) for manner in manners):
                continue
            manner = _manner(self._phrases[number - 1], item)
            if manner is None or any(manner.same_as(known) for known in manners):
                continue  # a value itself is spelled differently: arguments with white space, say
            if len(manners) <= _MAX_MANNERS and self._has_room(manner.size):
                manners.insert(0, manner)

    def _remember(self, numbers: bytes, found: Sequence[tuple[int, _Manner]]) -> None:
        """Learn the spelling of a sequence that was found, to compare it in one piece next time."""
        known = self._sequences.get(numbers, [])
        if not 1 < len(numbers) <= _MAX_SEQUENCE or len(known) == _MAX_MANNERS:
            return
        if not known and len(self._sequences) == _MAX_SEQUENCES:
            return
        manner = _joined(found)
        if self._has_room(SEQUENCE_OVERHEAD + manner.size):
            self._sequences[numbers] = [manner, *known]

    def _has_room(self, size: int) -> bool:
        """Reserve ``size`` bytes; if too few are left, note that ``grow`` has to add some."""
        self._wanting |= size > self._spare
        if size > self._spare:
            return False
        self._spare -= size
        return True

    def _noted(self, item: bytes) -> tuple[int, list[bytes]]:
        """The number of the item's template, and its values; PLAIN's if the table is full."""
        for number, known in enumerate(self._phrases[1:], start=2):
            if (found := known.values(item)) is not None:
                return number, found
        if not _TIGHT.match(item):
            return 1, [item]
        template, values = split(item)
        if template is not PLAIN and len(self._phrases) < _MAX_PHRASES:
            self._phrases.append(template)
            self._manners.append([_as_it_is(template)])
            self.size += PHRASE_OVERHEAD + sum(map(len, template.words))
            return len(self._phrases), values
        return 1, [item]

    def _read(self, encoded: bytes) -> Iterator[tuple[int, list[bytes]]]:
        numbers, *values = encoded.split(_GAP)
        first = 0
        for number in numbers:
            after = first + len(self._phrases[number - 1].names)
            yield number, values[first:after]
            first = after


def _as_it_is(template: ItemTemplate) -> _Manner:
    return _Manner(template.words, tuple(range(len(template.names))))


def _manner(template: ItemTemplate, item: bytes) -> _Manner | None:
    """The spelling of ``item`` for the values of ``template``; None if it has other values."""
    other, _ = split(item)
    if PLAIN in (template, other) or ({*template.names} ^ {*other.names}) - _UNREAD_NAMES:
        return None
    uses = (None if name in _UNREAD_NAMES else template.names.index(name) for name in other.names)
    return _Manner(other.words, tuple(uses))
