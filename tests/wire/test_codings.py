"""Tests of wire/codings.py: what compressed bodies decode to, and what they must not cost.

What belongs here: the decoder in bytes alone. That it is used for requests is shown in
tests/endpoint/test_http.py.
"""

from __future__ import annotations

import gzip
import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.wire.codings import (
    ACCEPTED,
    MAX_MEMBERS,
    BodyDecoder,
    BodyTooLargeError,
    UndecodableBodyError,
    UnsupportedCodingError,
    parse_codings,
)
from tests.encoders import CODING, ENCODERS, zstd
from tests.memory import peak

BODY = b'{"model":"m","input":"' + b"hello, " * 300 + b'"}'


SKIPPABLE = struct.pack("<II", 0x184D2A53, 4) + b"note"


def decode(data: bytes, *codings: str, max_size: int = 10_000, sizes: object = None) -> bytes:
    """The body, from pieces of the given sizes; the last size is repeated. Default: all at once."""
    decoder = BodyDecoder(codings, max_size)
    left = list(sizes) if isinstance(sizes, list | tuple) else [max(1, len(data))]
    while data:
        size = left.pop(0) if len(left) > 1 else left[0]
        decoder.receive(data[:size])
        data = data[size:]
    return decoder.finish()


# ---------------------------------------------------------------------- which codings


@pytest.mark.parametrize(
    ("values", "codings"),
    [
        ([], []),
        ([b""], []),
        ([b"identity"], []),
        ([b"Identity, identity"], []),
        ([b"gzip"], ["gzip"]),
        ([b" X-GZip\t"], ["gzip"]),
        ([b"ZSTD"], ["zstd"]),
        ([b"deflate, identity,, zstd"], ["deflate", "zstd"]),
        ([b"deflate", b"gzip"], ["deflate", "gzip"]),
    ],
)
def test_codings_are_listed_in_the_order_of_their_application(
    values: list[bytes], codings: list[str]
) -> None:
    assert parse_codings(values) == codings


@pytest.mark.parametrize(
    "values",
    [
        [b"br"],
        [b"compress"],
        [b"gzip;q=1"],
        [b"\xff"],
        [b"gzip, br"],
        [b"gzip, gzip, gzip"],
        [b"gzip", b"deflate", b"zstd"],
    ],
)
def test_other_codings_are_refused_with_those_that_are_accepted(values: list[bytes]) -> None:
    with pytest.raises(UnsupportedCodingError) as refused:
        parse_codings(values)
    assert all(name in str(refused.value) for name in ACCEPTED)


# ---------------------------------------------------------------------- lawful bodies


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("body", [b"", b"{}", BODY, random.Random(1).randbytes(200_000)])
def test_a_body_is_decoded(name: str, body: bytes) -> None:
    encoded = ENCODERS[name](body)
    for sizes in ([len(encoded)], [1], [65_536], [65_535, 2, 70_000]):
        assert decode(encoded, CODING[name], max_size=200_000, sizes=sizes) == body


@pytest.mark.parametrize("inner", ENCODERS)
@pytest.mark.parametrize("outer", ENCODERS)
def test_the_coding_that_was_applied_last_comes_off_first(inner: str, outer: str) -> None:
    body = random.Random(2).randbytes(150_000)
    encoded = ENCODERS[outer](ENCODERS[inner](body))
    assert decode(encoded, CODING[inner], CODING[outer], max_size=160_000) == body


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_several_members_are_one_body(name: str) -> None:
    encoded = b"".join(ENCODERS[name](bytes([n])) for n in range(MAX_MEMBERS))
    assert decode(encoded, name) == bytes(range(MAX_MEMBERS))
    assert decode(encoded, name, sizes=[3]) == bytes(range(MAX_MEMBERS))


def test_zstd_frames_to_be_skipped_are() -> None:
    assert decode(SKIPPABLE + zstd.compress(BODY) + SKIPPABLE, "zstd") == BODY


# ---------------------------------------------------------------------- bodies that are not


@pytest.mark.parametrize("name", ENCODERS)
def test_a_body_that_ends_too_early_is_refused(name: str) -> None:
    encoded = ENCODERS[name](BODY)
    for size in range(len(encoded)):
        with pytest.raises(UndecodableBodyError, match=f"{CODING[name]} data .* is incomplete"):
            decode(encoded[:size], CODING[name])


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("extra", [b"\0", b"\x1f", b"{}", b"\x28\xb5\x2f", b"\0" * 1000])
def test_a_body_that_something_follows_is_refused(name: str, extra: bytes) -> None:
    encoded = ENCODERS[name](BODY) + extra
    for sizes in ([len(encoded)], [1]):
        with pytest.raises(UndecodableBodyError, match=f"{CODING[name]} data .* followed"):
            decode(encoded, CODING[name], sizes=sizes)


def test_deflate_has_no_second_member() -> None:
    with pytest.raises(UndecodableBodyError, match="followed"):
        decode(zlib.compress(b"{}") * 2, "deflate")


@pytest.mark.parametrize("coding", ACCEPTED)
@pytest.mark.parametrize("data", [BODY, b"\x00" * 50, b"\x1f\x8b" + b"\xff" * 50])
def test_a_body_in_another_coding_is_refused(coding: str, data: bytes) -> None:
    with pytest.raises(UndecodableBodyError, match=f"not valid {coding}"):
        decode(data, coding)


def test_damaged_bodies_are_refused() -> None:
    encoded = bytearray(gzip.compress(BODY))
    encoded[-6] ^= 1  # of the checksum
    with pytest.raises(UndecodableBodyError, match="not valid gzip"):
        decode(bytes(encoded), "gzip")


def test_a_doubly_encoded_body_is_refused_where_either_coding_is_wrong() -> None:
    with pytest.raises(UndecodableBodyError, match="not valid gzip"):
        decode(zstd.compress(BODY), "gzip", "zstd")
    with pytest.raises(UndecodableBodyError, match=r"zstd data .* incomplete"):
        decode(zstd.compress(gzip.compress(BODY))[:-1], "gzip", "zstd")
    with pytest.raises(UndecodableBodyError, match=r"gzip data .* incomplete"):
        decode(zstd.compress(gzip.compress(BODY)[:-1]), "gzip", "zstd")


# ---------------------------------------------------------------------- bounds


@pytest.mark.parametrize("name", ENCODERS)
def test_the_bound_is_exact(name: str) -> None:
    encoded = ENCODERS[name](BODY)
    assert decode(encoded, CODING[name], max_size=len(BODY)) == BODY
    for sizes in ([len(encoded)], [1]):
        with pytest.raises(BodyTooLargeError):
            decode(encoded, CODING[name], max_size=len(BODY) - 1, sizes=sizes)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_bomb_is_given_up_at_the_bound(name: str) -> None:
    bomb = ENCODERS[name](b"\0" * 100_000_000)
    assert len(bomb) < 100_000
    decoder = BodyDecoder([CODING[name]], 1_000_000)

    def receive() -> None:
        # zstd puts all of it in one block, which waits for its end or for more input.
        decoder.receive(bomb + bytes(65_536))

    def refused() -> None:
        with pytest.raises(BodyTooLargeError):
            receive()

    assert peak(refused) < 5_000_000
    assert decoder.buffered <= 65_536


def test_a_bomb_in_a_bomb_is_given_up_at_the_bound_of_either() -> None:
    inner = gzip.compress(b"\0" * 3_000_000)
    with pytest.raises(BodyTooLargeError):
        decode(zstd.compress(inner), "gzip", "zstd", max_size=1_000_000)
    # What is between two codings has the same limit, whatever becomes of it.
    between = gzip.compress(b"") + zlib.compress(b"\0" * 2_000_000)
    with pytest.raises(BodyTooLargeError):
        decode(zstd.compress(b"\0" * 2_000_000 + between), "deflate", "zstd", max_size=1_000_000)


@pytest.mark.parametrize("name", ["gzip", "zstd"])
@pytest.mark.parametrize("content", [b"", b"x"])
def test_members_are_bounded(name: str, content: bytes) -> None:
    encoded = ENCODERS[name](content) * (MAX_MEMBERS + 1)
    for sizes in ([len(encoded)], [1]):
        with pytest.raises(UndecodableBodyError, match="more than 64"):
            decode(encoded, name, sizes=sizes)


def test_frames_to_be_skipped_count_too() -> None:
    with pytest.raises(UndecodableBodyError, match="more than 64"):
        decode(SKIPPABLE * MAX_MEMBERS + zstd.compress(BODY), "zstd")


def zstd_frame(body: bytes = BODY, size: int | None = None, **options: int) -> bytes:
    """A frame. ``size``: of the content, as its header says; None if it does not."""
    by_number = {zstd.CompressionParameter[name].value: n for name, n in options.items()}
    encoder = zstd.ZstdCompressor(options=by_number)
    if size is not None:
        encoder.set_pledged_input_size(size)
    return encoder.compress(body) + encoder.flush()


def test_the_window_of_zstd_is_bounded() -> None:
    assert decode(zstd_frame(window_log=23), "zstd") == BODY
    with pytest.raises(UnsupportedCodingError, match="a window of more than 8 MiB"):
        decode(zstd_frame(window_log=24), "zstd")


def test_the_window_of_zstd_can_be_the_content() -> None:
    size = 1 << 23
    frame = zstd_frame(bytes(size), size, compression_level=22)
    assert frame[4] & 0x20  # a single segment
    assert decode(frame, "zstd", max_size=size) == bytes(size)
    frame = zstd_frame(bytes(size + 1), size + 1, compression_level=22)
    for max_size in (1000, size + 1):
        with pytest.raises(UnsupportedCodingError, match="a window of more than 8 MiB"):
            decode(frame, "zstd", max_size=max_size)


def test_unsupported_zstd_features_are_refused() -> None:
    with_id = bytes([*b"\x28\xb5\x2f\xfd", 0x21, 7, 2, 0x11, 0, 0, *b"{}"])
    with pytest.raises(UnsupportedCodingError, match="a dictionary"):
        decode(with_id, "zstd")
    later = b"\x28\xb5\x2f\xfd" + BODY
    with pytest.raises(UnsupportedCodingError, match="a later version") as refused:
        decode(later, "zstd")
    assert all(name in str(refused.value) for name in ACCEPTED)


# ---------------------------------------------------------------------- any cut


@st.composite
def _encoded(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """A body as it could come: valid, cut off, damaged, or followed by something."""
    names = draw(st.lists(st.sampled_from(sorted(ENCODERS)), min_size=1, max_size=2))
    data = draw(st.binary(max_size=300)) * draw(st.sampled_from([1, 1, 50, 2000]))
    for name in names:
        data = ENCODERS[name](data)
        if name in ("gzip", "zstd"):
            data *= draw(st.integers(1, 3))
    flaw = draw(st.sampled_from(["none", "cut", "damage", "extra"]))
    if flaw == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    elif flaw == "damage":
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
    elif flaw == "extra":
        data += draw(st.binary(max_size=20))
    return data, [CODING[name] for name in names]


@given(_encoded(), st.lists(st.integers(1, 500), min_size=1, max_size=20))
def test_the_outcome_does_not_depend_on_how_the_body_is_cut(
    encoded: tuple[bytes, list[str]], sizes: list[int]
) -> None:
    data, codings = encoded

    def outcome(sizes: list[int] | None) -> object:
        try:
            return decode(data, *codings, max_size=100_000, sizes=sizes)
        except (UndecodableBodyError, UnsupportedCodingError, BodyTooLargeError) as refused:
            return type(refused), str(refused)

    assert outcome(sizes) == outcome(None)
