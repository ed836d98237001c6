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

    def root(self) -> Space:
        """The representative of all spaces united with this one."""
        space = self
        while space.parent is not None:
            space = space.parent
        return space

    def lock(self, reason: str) -> None:
        """No unit of this space may go."""
        self.root().locks.append(reason)

    def unite(self, other: Space) -> None:
        """From now on unit i of one is unit i of the other."""
        mine, theirs = self.root(), other.root()
        if mine is theirs:
            return
        if mine.size != theirs.size:
            raise ValueError(f"{mine.name} has {mine.size} units and {theirs.name} has {theirs.size}")
        theirs.parent = mine
        mine.locks.extend(theirs.locks)


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


def unite_layouts(a: Layout, b: Layout, reason: str) -> Layout:
    """Two axes that an operator reads element by element: their units are coupled, or locked where they do not match."""

    def alike(x: Segment, y: Segment) -> bool:
        if x.space is None or y.space is None:
            return x.space is y.space and x.length == y.length
        return (x.space.size, x.outer, x.inner) == (y.space.size, y.outer, y.inner)

    if len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True)):
        for x, y in zip(a, b, strict=True):
            if x.space is not None and y.space is not None:
                x.space.unite(y.space)
    else:
        lock_layout(a, reason)
        lock_layout(b, reason)
    return a


def stretch(layout: Layout, before: int, after: int) -> Layout | None:
    """The axis after being merged with `before` elements of earlier axes and `after` of later ones; None: not expressible."""
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
    masks = []
    for segment in layout:
        mask = kept.get(segment.space.root()) if segment.space is not None else None
        if mask is None:
            masks.append(torch.ones(segment.elements(), dtype=torch.bool))
        else:
            masks.append(mask.repeat_interleave(segment.inner).repeat(segment.outer))
    return torch.cat(masks).nonzero().flatten()


def unit_elements(layout: Layout, space: Space) -> torch.Tensor:
    """Where along the axis each unit of `space` lies: shape (copies, size), int64."""
    found, begin = [], 0
    for segment in layout:
        count = segment.elements()
        if segment.space is not None and segment.space.root() is space.root():
            places = torch.arange(begin, begin + count).reshape(segment.outer, space.root().size, segment.inner)
            found.append(places.movedim(1, -1).reshape(-1, space.root().size))
        begin += count
    return torch.cat(found)


def product(sizes: Iterable[int]) -> int:
    """The number of elements."""
    return math.prod(sizes)
