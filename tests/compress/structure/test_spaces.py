"""Units along an axis: coupling, dividing and gathering them never lets two axes disagree about an element."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.compress.structure.shapes import blocks
from fleetfit.compress.structure.spaces import (
    Layout,
    Segment,
    Space,
    divided_at,
    gathered,
    kept_elements,
    resolved,
    spaces_of,
    unite_layouts,
    whole,
)

SIZES = st.sampled_from([1, 2, 3, 4, 6])


@st.composite
def layouts(draw: st.DrawFn, name: str) -> Layout:
    segments = draw(st.lists(st.tuples(SIZES, SIZES, SIZES), min_size=1, max_size=3))
    return tuple(Segment(Space(size, f"{name}{i}", "linear"), o, n) for i, (o, size, n) in enumerate(segments))


def _length(layout: Layout) -> int:
    return sum(segment.elements() for segment in layout)


def _masks(*axes: Layout, seed: int) -> dict[Space, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = dict.fromkeys(space.root() for layout in axes for space in spaces_of(resolved(layout)))
    return {space: torch.rand(space.size, generator=generator) < 0.5 for space in found if not space.locks}


@given(a=layouts("a"), b=layouts("b"), seed=st.integers(0, 1000))
def test_coupled_axes_keep_the_same_elements(a: Layout, b: Layout, seed: int) -> None:
    n, m = _length(a), _length(b)
    a, b = (*a, Segment(Space(m, "rest", "linear"))), (Segment(Space(n, "begin", "linear")), *b)
    unite_layouts(a, b, "they differ")
    assert _length(resolved(a)) == _length(resolved(b)) == n + m
    masks = _masks(a, b, seed=seed)
    assert torch.equal(kept_elements(a, masks), kept_elements(b, masks))


@given(o1=SIZES, i1=SIZES, o2=SIZES, i2=SIZES, times=SIZES)
def test_units_that_lie_differently_meet_in_the_finest_that_fit_both(
    o1: int, i1: int, o2: int, i2: int, times: int
) -> None:
    outer, inner = math.lcm(o1, o2), math.lcm(i1, i2)
    n = outer * inner * times
    a, b = (Segment(Space(n // (o * i), "x", "linear"), o, i) for o, i in ((o1, i1), (o2, i2)))
    unite_layouts((a,), (b,), "they differ")
    (left,), (right,) = resolved((a,)), resolved((b,))
    assert left == right
    assert left.space is not None and not left.space.locks
    assert (left.outer, left.space.size, left.inner) == (outer, times, inner)


@given(layout=layouts("a"), data=st.data())
def test_what_is_cut_in_two_stays_the_same_axis(layout: Layout, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, _length(layout)))
    halves = divided_at(layout, at)
    if halves is None:
        return
    masks = _masks(layout, *halves, seed=at)
    first, rest = (kept_elements(half, masks) for half in halves)
    assert torch.equal(kept_elements(layout, masks), torch.cat([first, rest + at]))


def test_a_lock_reaches_the_parts_whenever_it_comes() -> None:
    before, after = Space(8, "before", "linear"), Space(8, "after", "linear")
    before.lock("early")
    heads = gathered(whole(before), 1, 4, "heads"), gathered(whole(after), 1, 4, "heads")
    after.lock("late")
    assert [space.root().locks for space in heads if space is not None] == [["early"], ["late"]]


def test_units_that_cannot_be_gathered_are_locked() -> None:
    space = Space(9, "odd", "linear")
    assert gathered(whole(space), 2, 1, "nine in two") is None
    assert space.root().locks == ["nine in two"]


@given(st.lists(SIZES, min_size=1, max_size=4), st.data())
def test_blocks_of_a_reshape_have_as_many_elements_on_both_sides(before: list[int], data: st.DataObject) -> None:
    after = data.draw(st.permutations(before))
    pieces = list(blocks(before, after))
    assert [i for ins, _ in pieces for i in ins] == list(range(len(before)))
    assert [j for _, outs in pieces for j in outs] == list(range(len(after)))
    for ins, outs in pieces:
        assert math.prod(before[i] for i in ins) == math.prod(after[j] for j in outs)
