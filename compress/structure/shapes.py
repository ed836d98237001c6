"""How operators that cut, join and reshape axes, and products of computed tensors, treat the units along them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx

from fleetfit.compress.structure.spaces import (
    Axes,
    Layout,
    Segment,
    divided_at,
    gathered,
    lock_layout,
    product,
    resolved,
    spaces_of,
    stretch,
    unite_layouts,
    whole,
)
from fleetfit.compress.structure.walk import Extent, Walk


def blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The axes before and after a reshape, in the smallest pieces that have as many elements on both sides."""
    i = j = 0
    while i < len(before) or j < len(after):
        first, second = i, j
        n = m = 1
        if i < len(before):
            n, i = before[i], i + 1
        if j < len(after):
            m, j = after[j], j + 1
        while n != m:
            if n < m and i < len(before):
                n, i = n * before[i], i + 1
            elif j < len(after):
                m, j = m * after[j], j + 1
            else:
                n, i = n * before[i], i + 1
        yield range(first, i), range(second, j)


def reshape_axes(
    walk: Walk, node: fx.Node, source: fx.Node, sizes: Sequence[Any], argument: int, first: int = 0
) -> Axes:
    """The axes after a reshape; the sizes in the call that say how many units there are follow a cut.

    An axis that is cut into several carries its units along one of them: as blocks of consecutive elements (attention heads)
    along the first, or as the same place of every block (channel shuffle) along the last. The analysis tries both.

    Args:
        walk: The state.
        node: The call.
        source: What is reshaped.
        sizes: The sizes as they stand in the call.
        argument: Where in the call's arguments they stand.
        first: Which axis of the result the first of them is.
    """
    before, after, given = walk.shape(source), walk.shape(node), walk.of(source)
    if 0 in before or 0 in after:
        return walk.lock_inputs(node, f"it is empty in {node.name}")
    made: Axes = {}
    for ins, outs in blocks(before, after):
        labelled = [axis for axis in ins if axis in given]
        if not labelled:
            continue
        reason = f"{node.name} reshapes it together with other units"
        layout: Layout | None = None
        if len(labelled) == 1:
            axis = labelled[0]
            layout = stretch(given[axis], product(before[ins.start : axis]), product(before[axis + 1 : ins.stop]))
        if layout is None:
            for axis in labelled:
                lock_layout(given[axis], reason)
            continue
        real = [axis for axis in outs if after[axis] > 1] or list(outs)[:1]
        if len(real) > 1:
            # The last axis of a tensor is usually cut into heads; channels in front of places are shuffled.
            order = real if outs.stop == len(after) else real[::-1]
            about = layout
            at = order[min(walk.choose(node, len(order), about), len(order) - 1)]
            space = gathered(
                layout,
                product(after[outs.start : at]),
                product(after[at + 1 : outs.stop]),
                f"{node.name} cuts its units",
            )
            if space is None:
                continue
            made[at] = resolved(whole(space))
        elif real:
            made[real[0]] = layout
    for axis, layout in made.items():
        if not first <= axis < first + len(sizes):
            continue
        size = sizes[axis - first]
        if isinstance(size, fx.Node):
            lock_layout(layout, f"{node.name} computes its number of units")
        elif size != -1:
            walk.extents.append(Extent(node.name, (argument, axis - first), layout))
    return made


def reshape(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    """`reshape` and `view` with sizes."""
    return reshape_axes(walk, node, arguments["self"], arguments.get("shape") or arguments["size"], 1)


def unflatten(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    """One axis as several."""
    source = arguments["self"]
    axis = arguments["dim"] % len(walk.shape(source))
    return reshape_axes(walk, node, source, arguments["sizes"], 2, axis)


def part(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    """A slice of an axis; its ends follow a cut."""
    source = arguments["self"]
    shape, given = walk.shape(source), walk.of(source)
    axis = arguments["dim"] % len(shape)
    size = shape[axis]
    if axis not in given or walk.shape(node) == shape:
        return dict(given)
    ends = arguments["start"] or 0, size if arguments["end"] is None else arguments["end"]
    if arguments["step"] != 1 or not all(isinstance(end, int) for end in ends) or len(node.args) < 4:
        return walk.lock_inputs(node, f"{node.name} takes some of its units")
    begin, end = (min(size, at + size if at < 0 else at) for at in ends)
    halves = divided_at(given[axis], end)
    inner = divided_at(halves[0], begin) if halves is not None else None
    if halves is None or inner is None:
        lock_layout(given[axis], f"{node.name} cuts its units")
        return {at: layout for at, layout in given.items() if at != axis}
    walk.extents.append(Extent(node.name, (2,), inner[0]))
    walk.extents.append(Extent(node.name, (3,), halves[0]))
    return {**given, axis: inner[1]}


def select(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    """One position of an axis."""
    given = walk.of(arguments["self"])
    axis = arguments["dim"] % len(walk.shape(arguments["self"]))
    lock_layout(given.get(axis, ()), f"{node.name} takes one of its units")
    return {at - (at > axis): layout for at, layout in given.items() if at != axis}


def split(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    """An axis in several stretches of given sizes, which follow a cut."""
    source, sizes = arguments["self"], arguments["split_sizes"]
    given, axis = walk.of(source), arguments["dim"] % len(walk.shape(source))
    others = {at: layout for at, layout in given.items() if at != axis}
    if axis not in given:
        walk.tuples[node] = [dict(given) for _ in sizes]
        return {}
    if not all(isinstance(size, int) for size in sizes):
        return walk.lock_inputs(node, f"{node.name} computes its number of units")
    rest: Layout = given[axis]
    found = []
    for at, size in enumerate(sizes):
        halves = divided_at(rest, size)
        if halves is None:
            lock_layout(given[axis], f"{node.name} cuts its units")
            walk.tuples[node] = [dict(others) for _ in sizes]
            return {}
        found.append({**others, axis: halves[0]})
        walk.extents.append(Extent(node.name, (1, at), halves[0]))
        rest = halves[1]
    walk.tuples[node] = found
    return {}


def unbind(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    """All positions of an axis, one by one."""
    source = arguments["self"]
    axis = arguments.get("dim", 0) % len(walk.shape(source))
    made = select(walk, node, {**arguments, "dim": axis})
    walk.tuples[node] = [dict(made) for _ in range(walk.shape(source)[axis])]
    return {}


def product_of(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    """A matrix product of two computed tensors: the axes in front are aligned, the inner one must stay."""
    a, b = list(node.all_input_nodes)[:2] if len(node.all_input_nodes) == 2 else (node.args[0], node.args[1])
    rank = len(walk.shape(node))
    if not (len(walk.shape(a)) == len(walk.shape(b)) == rank >= 2):
        return walk.lock_inputs(node, f"it is read by {node.name}")
    left, right = walk.of(a), walk.of(b)
    reason = f"{node.name} multiplies along its units"
    lock_layout(left.get(rank - 1, ()), reason)
    lock_layout(right.get(rank - 2, ()), reason)
    made = _aligned(walk, node, [a, b], rank - 2)
    if rank - 2 in left:
        made[rank - 2] = left[rank - 2]
    if rank - 1 in right:
        made[rank - 1] = right[rank - 1]
    return made


def attention(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    """Scaled dot-product attention: whole heads go, the same of queries, keys and values."""
    three = [arguments[name] for name in ("query", "key", "value")]
    rank = len(walk.shape(node))
    if any(len(walk.shape(one)) != rank for one in three) or arguments.get("enable_gqa") or rank < 3:
        return walk.lock_inputs(node, f"it is read by {node.name}")
    for one in three:
        for axis in (rank - 2, rank - 1):
            lock_layout(walk.of(one).get(axis, ()), f"{node.name} multiplies along its units")
    mask = arguments.get("attn_mask")
    sources = [*three, mask] if isinstance(mask, fx.Node) else three
    return _aligned(walk, node, sources, rank - 2)


def _aligned(walk: Walk, node: fx.Node, sources: Sequence[Any], count: int) -> Axes:
    """The first `count` axes, aligned from the last of them: units are coupled, and locked beside what has none."""
    made: Axes = {}
    rank = len(walk.shape(node))
    reason = f"{node.name} combines it with something else"
    for axis in range(count):
        foreign = False
        for source in sources:
            shape = walk.shape(source)
            at = axis - (rank - len(shape))
            if at < 0 or (shape[at] == 1 and at not in walk.of(source)):
                continue
            layout = walk.of(source).get(at)
            if layout is None:
                foreign = True
            else:
                made[axis] = unite_layouts(made[axis], layout, reason) if axis in made else layout
        if foreign:
            lock_layout(made.get(axis, ()), reason)
    return made


def follow_tensor(walk: Walk, node: fx.Node, axis: int, layout: Layout) -> bool:
    """Let a tensor that the graph reads by itself (a scale for each channel, say) follow the units along an axis."""
    path, _, name = str(node.target).rpartition(".")
    key = f"{node.target}:{axis}"
    module = walk.module
    tensor = getattr(module.get_submodule(path), name)
    stored = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    tied = sum(other is tensor for _, other in stored) > 1
    if len(node.users) > 1 or tied or not spaces_of(layout):
        return False
    if key not in walk.tensors:
        walk.tensors[key] = layout
        walk.cut(path, name, axis, layout)
    return True


def concatenate(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    """Tensors one after the other along an axis; along the others they are aligned."""
    sources = list(arguments["tensors"])
    rank = len(walk.shape(node))
    joined = arguments["dim"] % rank if isinstance(arguments["dim"], int) and rank else None
    reason = f"{node.name} joins it with something else"
    if joined is None or any(len(walk.shape(source)) != rank for source in sources):
        return walk.lock_inputs(node, reason)
    made: Axes = {}
    for axis in range(rank):
        layouts = [walk.of(source).get(axis) for source in sources]
        known = [layout for layout in layouts if layout is not None]
        if not known:
            continue
        if axis == joined:
            made[axis] = tuple(
                segment
                for source, layout in zip(sources, layouts, strict=True)
                for segment in (layout or (Segment(None, length=walk.shape(source)[axis]),))
            )
            continue
        made[axis] = known[0]
        for layout in known[1:]:
            unite_layouts(made[axis], layout, reason)
        for source, given in zip(sources, layouts, strict=True):
            if given is None and not (source.op == "get_attr" and follow_tensor(walk, source, axis, made[axis])):
                lock_layout(made[axis], reason)
    return made
