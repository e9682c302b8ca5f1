"""Templates of items: stores items compactly, and compares them as bytes with what clients send.

An item is split into a template and values. The template is the JSON that is the same for all items
of a kind: member names, punctuation, bookkeeping. The values are its strings: texts, arguments,
call ids. A template is stored once for all items that have it.

A client sends an item back in a spelling of its own: members in another order, some left out, an id
added. Digests (items.py) tell that two spellings are the same item, but computing one means
decoding the item. So once digests have matched a held item with a client's spelling of it, the
client's template is learnt (a ``_Spelling``). From then on a held item is written in that spelling
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
TEMPLATE_OVERHEAD: Final = 760
SPELLING_OVERHEAD: Final = 560
SEQUENCE_OVERHEAD: Final = 380
SPARE: Final = 6000  # reserved for what is learnt between two responses

# Limits for one credential. A client has few kinds of items, and usually one spelling of each;
# the limits keep a client that varies its spelling from filling the table or slowing comparisons
# down.
_MAX_TEMPLATES: Final = 31  # below 256, because their numbers are stored as bytes
_MAX_SPELLINGS: Final = 3  # learnt spellings of one template, or of one sequence of templates
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


class _Spelling:
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
        return SPELLING_OVERHEAD + sum(map(len, self.words))

    def same_as(self, other: _Spelling) -> bool:
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


def _joined(spellings: Iterable[tuple[int, _Spelling]]) -> _Spelling:
    """The spelling of a sequence of items.

    ``spellings``: for each item, the index of its first value in the sequence, and its spelling.
    """
    words: list[bytes] = []
    uses: list[int | None] = []
    for first, spelling in spellings:
        words[-1:] = [b"%b,%b" % (words[-1], spelling.words[0]) if words else spelling.words[0]]
        words += spelling.words[1:]
        uses += [None if number is None else first + number for number in spelling.uses]
    return _Spelling(tuple(words), tuple(uses))


class TemplateTable:
    """The templates of one credential's items, and its clients' spellings of them.

    Items are encoded as one byte string: the numbers of their templates, then their values.

    ``size`` is the memory of the table in bytes, including a reserve for what is learnt while
    requests are compared, because the limit of transcripts is enforced only when a response is
    added. The reserve is ``spare``, and grows by that amount whenever it was too small.
    """

    __slots__ = ("_sequences", "_spare", "_spellings", "_step", "_templates", "_wanting", "size")

    def __init__(self, spare: int = SPARE) -> None:
        self._templates = [PLAIN]
        self._spellings: list[list[_Spelling]] = [[_own_spelling(PLAIN)]]
        self._sequences: dict[bytes, list[_Spelling]] = {}  # by the numbers of their templates
        self._step = self._spare = self.size = spare
        self._wanting = False

    def encode(self, items: Iterable[Text]) -> bytes:
        """Encode ``items``; new templates are added to the table while there is room.

        Raises:
            ValueError: an item is not JSON.
        """
        numbers = bytearray()
        fields = [b""]
        for item in items:
            number, values = self._encode_item(bytes(item))
            numbers.append(number)
            fields += values
        fields[0] = bytes(numbers)
        encoded = _GAP.join(fields)
        if encoded.count(_GAP) != len(fields) - 1:
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
            _written(self._templates[number - 1].words, values)
            for number, values in self._read(encoded)
        ]

    def is_at(self, encoded: bytes, text: bytes, bounds: Sequence[int], start: int) -> int:
        """How many items of ``encoded``, from its first on, ``text`` has in known spellings, one
        after another, from its item ``start`` on.

        Item n of ``text`` begins at ``bounds[n]`` and ends before the byte ``bounds[n + 1] - 1``.
        """
        if not self._begins_at(encoded, text, bounds, start):
            return 0
        numbers, *values = encoded.split(_GAP)
        stop = start + len(numbers)
        if stop < len(bounds):
            for spelling in self._sequences.get(numbers, ()):
                if spelling.is_at(text, bounds[start], bounds[stop] - 1, values):
                    return len(numbers)
        found: list[tuple[int, _Spelling]] = []
        first = 0
        places = pairwise(bounds[start : stop + 1])
        for number, (begin, end) in zip(numbers, places, strict=False):
            after = first + len(self._templates[number - 1].names)
            said = values[first:after]
            for spelling in self._spellings[number - 1]:
                if spelling.is_at(text, begin, end - 1, said):
                    found.append((first, spelling))
                    break
            else:
                break
            first = after
        if len(found) == len(numbers):
            self._remember(numbers, found)
        return len(found)

    def _begins_at(self, encoded: bytes, text: bytes, bounds: Sequence[int], start: int) -> bool:
        """Whether ``text`` has the first item of ``encoded`` as its item ``start``.

        Looked at alone, because most comparisons end here: a new conversation is compared with the
        beginnings of many others, and splitting their long answers would take longer.
        """
        if not encoded or start + 1 >= len(bounds):
            return False
        number = encoded[0] - 1
        count = len(self._templates[number].names)
        values = encoded.split(_GAP, count + 1)[1 : count + 1]
        end = bounds[start + 1] - 1
        spellings = self._spellings[number]
        return any(each.is_at(text, bounds[start], end, values) for each in spellings)

    def learn(self, encoded: bytes, items: Iterable[Text]) -> None:
        """Learn the spellings of ``items``, whose digests equal those of the items of ``encoded``,
        in the same order."""
        for (number, values), raw in zip(self._read(encoded), items, strict=True):
            item = bytes(raw)
            spellings = self._spellings[number - 1]
            if any(spelling.is_at(item, 0, len(item), values) for spelling in spellings):
                continue
            spelling = _spelling(self._templates[number - 1], item)
            if spelling is None or any(spelling.same_as(known) for known in spellings):
                continue  # a value itself is spelled differently: arguments with white space, say
            if len(spellings) <= _MAX_SPELLINGS and self._has_room(spelling.size):
                spellings.insert(0, spelling)

    def _remember(self, numbers: bytes, found: Sequence[tuple[int, _Spelling]]) -> None:
        """Learn the spelling of a sequence that was found, to compare it in one piece next time."""
        known = self._sequences.get(numbers, [])
        if not 1 < len(numbers) <= _MAX_SEQUENCE or len(known) == _MAX_SPELLINGS:
            return
        if not known and len(self._sequences) == _MAX_SEQUENCES:
            return
        spelling = _joined(found)
        if self._has_room(SEQUENCE_OVERHEAD + spelling.size):
            self._sequences[numbers] = [spelling, *known]

    def _has_room(self, size: int) -> bool:
        """Reserve ``size`` bytes; if too few are left, note that ``grow`` has to add some."""
        self._wanting |= size > self._spare
        if size > self._spare:
            return False
        self._spare -= size
        return True

    def _encode_item(self, item: bytes) -> tuple[int, list[bytes]]:
        """The number of the item's template, and its values; PLAIN's if the table is full."""
        for number, known in enumerate(self._templates[1:], start=2):
            if (found := known.values(item)) is not None:
                return number, found
        if not _TIGHT.match(item):
            return 1, [item]
        template, values = split(item)
        if template is not PLAIN and len(self._templates) < _MAX_TEMPLATES:
            self._templates.append(template)
            self._spellings.append([_own_spelling(template)])
            self.size += TEMPLATE_OVERHEAD + sum(map(len, template.words))
            return len(self._templates), values
        return 1, [item]

    def _read(self, encoded: bytes) -> Iterator[tuple[int, list[bytes]]]:
        numbers, *values = encoded.split(_GAP)
        first = 0
        for number in numbers:
            after = first + len(self._templates[number - 1].names)
            yield number, values[first:after]
            first = after


def _own_spelling(template: ItemTemplate) -> _Spelling:
    return _Spelling(template.words, tuple(range(len(template.names))))


def _spelling(template: ItemTemplate, item: bytes) -> _Spelling | None:
    """The spelling of ``item`` for the values of ``template``; None if it has other values."""
    other, _ = split(item)
    if PLAIN in (template, other) or ({*template.names} ^ {*other.names}) - _UNREAD_NAMES:
        return None
    uses = (None if name in _UNREAD_NAMES else template.names.index(name) for name in other.names)
    return _Spelling(other.words, tuple(uses))
