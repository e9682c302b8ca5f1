"""Tests of continuity/refused.py: a bounded record of frames that were too large, by scope."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridgecore.continuity.refused import RefusedFrames

LIMIT = 1024  # frames that are recorded


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.binary(max_size=2)), max_size=20),
    st.tuples(st.sampled_from("ab"), st.binary(max_size=2)),
)
def test_only_the_refused_frames_of_a_scope_are_contained(
    refused: list[tuple[str, bytes]], asked: tuple[str, bytes]
) -> None:
    """Only for one credential: the upstream may have other limits for others."""
    frames = RefusedFrames()
    for scope, frame in refused:
        frames.add(scope, frame)
    assert (asked in frames) == (asked in refused)
    assert len(frames.snapshot()) == len(set(refused))


@given(st.lists(st.binary(min_size=1, max_size=1), min_size=1, max_size=40), st.integers(0, 60))
def test_the_frame_refused_longest_ago_is_forgotten_first(again: list[bytes], more: int) -> None:
    frames = RefusedFrames()
    for one in again:
        frames.add("a", one)
    latest = list(dict.fromkeys(reversed(again)))  # each by its latest refusal
    room = LIMIT - len(latest)
    for n in range(room + more):
        frames.add("a", b"%05d" % n)
    assert len(frames.snapshot()) == LIMIT if more else room + len(latest)
    gone = min(more, len(latest))
    assert [("a", one) in frames for one in latest] == [True] * (len(latest) - gone) + [
        False
    ] * gone
    assert ("a", b"%05d" % (room + more - 1)) in frames


def test_sizes_are_forgotten_with_their_frames() -> None:
    """Only frames of a size that was refused are digested."""
    frames = RefusedFrames()
    frames.add("a", b"first")
    frames.add("a", b"first")
    for n in range(LIMIT):
        frames.add("a", b"%06d" % n)
    assert ("a", b"first") not in frames
    assert set(frames._sizes) == {6}
    assert frames._sizes[6] == LIMIT
