"""Units (neurons or channels) that must stay or go together, and where they lie along a tensor's axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch


@dataclass(eq=False)
class Space:
    """`size` units that some layer makes. Spaces that an operator couples are united; `root` is their representative."""

    size: int
    name: str
    kind: str
    """`linear`, `convolution` or `embedding`: what makes the units."""
    parent: Space | None = None
    locks: list[str] = field(default_factory=list)
    """Why no unit may go, on the root."""
    parts: Layout | None = None
    """On the root: other units that these turned out to consist of (heads, halves), which then stand for them."""

    def root(self) -> Space:
        """The representative of all spaces united with this one."""
        space = self
        while space.parent is not None:
            space = space.parent
        return space

    def lock(self, reason: str) -> None:
        """No unit of this space may go."""
        root = self.root()
        root.locks.append(reason)
        for part in root.parts or ():
            if part.space is not None:
                part.space.lock(reason)

    def divide(self, parts: Layout) -> None:
        """From now on these units are those of `parts`, which have as many elements as this space has units."""
        root = self.root()
        root.parts = parts
        for reason in root.locks:
            lock_layout(parts, reason)

    def unite(self, other: Space) -> None:
        """From now on unit i of one is unit i of the other."""
        mine, theirs = self.root(), other.root()
        if mine is theirs:
            return
        if mine.size != theirs.size:
            raise ValueError(f"{mine.name} has {mine.size} units and {theirs.name} has {theirs.size}")
        theirs.parent = mine
        for reason in theirs.locks:
            mine.lock(reason)
        if mine.parts is None and theirs.parts is not None:
            mine.divide(theirs.parts)
        elif mine.parts is not None and theirs.parts is not None:
            unite_layouts(mine.parts, theirs.parts, f"units of {mine.name} and {theirs.name} lie differently")


@dataclass(frozen=True)
class Segment:
    """A stretch of an axis: `outer` times all units of `space`, each `inner` times in a row.

    Without a space it is a stretch of `length` elements that belong to nobody, such as a model's input.
    """

    space: Space | None
    outer: int = 1
    inner: int = 1
    length: int = 0

    def elements(self) -> int:
        """How long the stretch is."""
        return self.length if self.space is None else self.outer * self.space.size * self.inner


Layout = tuple[Segment, ...]
"""What lies along one axis of a tensor."""

Axes = dict[int, Layout]
"""The axes of a tensor along which units lie; all others are batch, place or time."""


def whole(space: Space) -> Layout:
    """An axis with exactly the units of one space."""
    return (Segment(space),)


def spaces_of(layout: Layout) -> list[Space]:
    """The spaces along an axis."""
    return [segment.space for segment in layout if segment.space is not None]


def lock_axes(axes: Axes, reason: str) -> None:
    """Lock everything that lies along any axis."""
    for layout in axes.values():
        lock_layout(layout, reason)


def lock_layout(layout: Layout, reason: str) -> None:
    """Lock everything that lies along one axis."""
    for space in spaces_of(layout):
        space.lock(reason)


def resolved(layout: Layout) -> Layout:
    """The same elements in terms of the units that nothing has divided further."""
    found: list[Segment] = []
    for segment in layout:
        root = segment.space.root() if segment.space is not None else None
        if root is None or root.parts is None:
            found.append(segment if root is None else Segment(root, segment.outer, segment.inner))
            continue
        parts = resolved(root.parts)
        if len(parts) == 1:
            found.append(_nested(parts[0], segment.outer, segment.inner))
        else:
            found += [_nested(part, 1, segment.inner) for part in parts] * segment.outer
    return tuple(found)


def _nested(part: Segment, outer: int, inner: int) -> Segment:
    if part.space is None:
        return Segment(None, length=part.length * outer * inner)
    return Segment(part.space, part.outer * outer, part.inner * inner)


def unite_layouts(a: Layout, b: Layout, reason: str) -> Layout:
    """Two axes that an operator reads element by element: their units are coupled, or locked where they cannot be.

    Where units lie differently (heads here, single elements there; two halves here, one whole there), both are divided or
    gathered into the finest units that fit both.
    """
    left, right = list(resolved(a)), list(resolved(b))
    while left and right:
        n, m = left[0].elements(), right[0].elements()
        if n == m:
            _match(left.pop(0), right.pop(0), reason)
        else:
            longer = left if n > m else right
            halves = _split(longer[0], min(n, m))
            if halves is None:
                break
            longer[:1] = halves
        # What was just divided may lie further on, too.
        left, right = list(resolved(tuple(left))), list(resolved(tuple(right)))
    lock_layout((*left, *right), reason)
    return resolved(a)


def _match(x: Segment, y: Segment, reason: str) -> None:
    """Couple two stretches of the same number of elements."""
    if x.space is None or y.space is None:
        lock_layout((x, y), reason)
        return
    if (x.space.size, x.outer, x.inner) == (y.space.size, y.outer, y.inner):
        x.space.unite(y.space)
        return
    outer, inner = math.lcm(x.outer, y.outer), math.lcm(x.inner, y.inner)
    size, rest = divmod(x.elements(), outer * inner)
    if rest or x.space.root() is y.space.root():
        lock_layout((x, y), reason)
        return
    common = Space(size, x.space.name, x.space.kind)
    for one in (x, y):
        assert one.space is not None  # noqa: S101 - for the type checker
        part = Segment(common, outer // one.outer, inner // one.inner)
        if (part.outer, part.inner) == (1, 1):
            common.unite(one.space)
        else:
            one.space.divide((part,))


def _split(segment: Segment, at: int) -> tuple[Segment, Segment] | None:
    """A stretch in two, the first of `at` elements; None where that would cut a unit."""
    space = segment.space
    if space is None:
        return Segment(None, length=at), Segment(None, length=segment.length - at)
    copy = space.size * segment.inner
    if at % copy == 0:
        first = at // copy
        return Segment(space, first, segment.inner), Segment(space, segment.outer - first, segment.inner)
    if segment.outer > 1 or at % segment.inner:
        return None
    count = at // segment.inner
    head, tail = (Space(size, space.name, space.kind) for size in (count, space.size - count))
    space.divide((Segment(head), Segment(tail)))
    return Segment(head, 1, segment.inner), Segment(tail, 1, segment.inner)


def divided_at(layout: Layout, at: int) -> tuple[Layout, Layout] | None:
    """The first `at` elements and the others; None where that would cut a unit."""
    first: list[Segment] = []
    rest = list(resolved(layout))
    while at:
        count = rest[0].elements()
        if count > at:
            halves = _split(rest[0], at)
            if halves is None:
                return None
            rest[:1] = halves
            rest = list(resolved(tuple(rest)))
            continue
        first.append(rest.pop(0))
        at -= count
    return resolved(tuple(first)), tuple(rest)


def gathered(layout: Layout, outer: int, inner: int, reason: str) -> Space | None:
    """The units of an axis gathered so that they lie `outer` times, `inner` in a row; None (and locked) if they cannot be."""
    size, rest = divmod(sum(segment.elements() for segment in layout), outer * inner)
    if rest:
        lock_layout(layout, reason)
        return None
    first = next((space for space in spaces_of(resolved(layout))), None)
    if first is None:
        return None
    space = Space(size, first.name, first.kind)
    unite_layouts(layout, (Segment(space, outer, inner),), reason)
    return space


def stretch(layout: Layout, before: int, after: int) -> Layout | None:
    """The axis after being merged with `before` elements of earlier axes and `after` of later ones; None: not expressible."""
    layout = resolved(layout)
    if before > 1 and len(layout) > 1:
        return None
    return tuple(
        Segment(s.space, s.outer * before, s.inner * after)
        if s.space is not None
        else Segment(None, length=s.length * before * after)
        for s in layout
    )


def kept_elements(layout: Layout, kept: Mapping[Space, torch.Tensor]) -> torch.Tensor:
    """Indices along the axis that stay. `kept` has a mask of units for each root from which something goes."""
    masks = [torch.ones(0, dtype=torch.bool)]
    for segment in resolved(layout):
        mask = kept.get(segment.space.root()) if segment.space is not None else None
        if mask is None:
            masks.append(torch.ones(segment.elements(), dtype=torch.bool))
        else:
            masks.append(mask.repeat_interleave(segment.inner).repeat(segment.outer))
    return torch.cat(masks).nonzero().flatten()


def unit_elements(layout: Layout, space: Space) -> torch.Tensor:
    """Where along the axis each unit of `space` lies: shape (copies, size), int64."""
    found, begin = [], 0
    for segment in resolved(layout):
        count = segment.elements()
        if segment.space is not None and segment.space.root() is space.root():
            places = torch.arange(begin, begin + count).reshape(segment.outer, space.root().size, segment.inner)
            found.append(places.movedim(1, -1).reshape(-1, space.root().size))
        begin += count
    return torch.cat(found)


def product(sizes: Iterable[int]) -> int:
    """The number of elements."""
    return math.prod(sizes)
