"""`view`, `reshape` and `expand` with the exported sizes in them become calls that follow the batch and the channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

aten = torch.ops.aten
RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are the same number or the same symbol."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return type(a) is type(b) and str(a) == str(b)


def _product(sizes: list[Any]) -> Any:
    result: Any = 1
    for size in sizes:
        result = result * size
    return result


def merged(before: list[Any], after: list[Any]) -> tuple[int, int] | None:
    """First and last axis of `before` that `after` has as one; None if it is not a plain merge of two or more."""
    if len(after) >= len(before):
        return None
    extra = len(before) - len(after)
    for start in range(len(after)):
        if not all(_same(a, b) for a, b in zip(before[:start], after[:start], strict=True)):
            return None
        end = start + extra
        tail = all(_same(a, b) for a, b in zip(before[end + 1 :], after[start + 1 :], strict=True))
        if tail and _same(_product(before[start : end + 1]), after[start]):
            return start, end
    return None


def reshape(
    graph: fx.Graph, node: fx.Node, x: fx.Node, arguments: list[Any], add_module: Callable[[str, nn.Module], str]
) -> fx.Node:
    """The node that stands for a view or reshape of `x`.

    Args:
        graph: The new graph.
        node: The exported call.
        x: Its first argument in the new graph.
        arguments: Its sizes, in the new graph.
        add_module: Registers a leaf and returns its path.
    """
    before, after = list(node.args[0].meta["val"].shape), list(node.meta["val"].shape)  # type: ignore[union-attr]
    if len(before) == len(after) and all(_same(a, b) for a, b in zip(before, after, strict=True)):
        return x
    axes = merged(before, after)
    # Merging the batch with another axis needs no size either, so it is batch-safe too.
    if axes == (1, len(before) - 1):
        return graph.call_module(add_module(node.name, nn.Flatten(1)), (x,))
    if axes is not None:
        return graph.call_function(aten.flatten.using_ints, (x, *axes))
    sizes = list(arguments)
    if before and after and _same(before[0], after[0]):
        rest = after[1:]
        if all(isinstance(size, int) for size in rest):
            differing = next((i for i, size in enumerate(rest, 1) if i >= len(before) or not _same(before[i], size)), 1)
            batch = graph.call_function(aten.sym_size.int, (x, 0))
            sizes = [batch, *(-1 if i == differing else size for i, size in enumerate(rest, 1))]
    elif all(isinstance(size, int) for size in after) and -1 not in sizes and before and isinstance(before[0], int):
        # The batch is part of the first size: what the other sizes leave.
        sizes = [-1, *after[1:]]
    # One size that is computed is what the others leave: no number of channels is hidden in its computation then.
    computed = [i for i, size in enumerate(sizes) if isinstance(size, fx.Node)]
    if len(computed) == 1 and -1 not in sizes:
        sizes[computed[0]] = -1
    return graph.call_function(aten.reshape.default, (x, sizes))


def sizes_of_parts(node: fx.Node) -> tuple[list[int], int] | None:
    """For `chunk` and `split` along an axis of known size: how long each part is, and the axis."""
    before = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    parts = node.meta["val"]
    dim: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    axis = int(dim) % len(before)
    sizes = [part.shape[axis] for part in parts]
    return (sizes, axis) if all(isinstance(size, int) for size in sizes) else None


def expand_batch(node: fx.Node, arguments: list[Any], batch: fx.Node | None, batch_size: Any) -> list[Any]:
    """Sizes of an `expand` whose first one is the exported batch, following the real batch instead."""
    before = list(node.args[0].meta["val"].shape)  # type: ignore[union-attr]
    constant = bool(arguments) and isinstance(arguments[0], int) and isinstance(batch_size, int)
    grows = len(arguments) > len(before) or (bool(before) and before[0] == 1)
    if constant and batch is not None and batch_size > 1 and arguments[0] == batch_size and grows:
        return [batch, *arguments[1:]]
    return arguments
