"""How each kind of operator treats the units that come in. What is not known here locks them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fleetfit.compress.structure.layers import merge_axes
from fleetfit.compress.structure.shapes import (
    attention,
    concatenate,
    follow_tensor,
    part,
    product_of,
    reshape,
    select,
    split,
    unbind,
    unflatten,
)
from fleetfit.compress.structure.spaces import Axes, Layout, lock_axes, lock_layout, unite_layouts
from fleetfit.compress.structure.walk import Walk

_COPIES = {
    "aten::clone",
    "aten::contiguous",
    "aten::alias",
    "aten::detach",
    "aten::to",
    "aten::_to_copy",
    "aten::dropout",
    "aten::feature_dropout",
    "aten::alpha_dropout",
    "aten::lift_fresh_copy",
}
_SPATIAL = (
    "aten::adaptive_avg_pool",
    "aten::adaptive_max_pool",
    "aten::_adaptive_avg_pool",
    "aten::avg_pool",
    "aten::max_pool",
    "aten::upsample_",
    "aten::constant_pad_nd",
    "aten::pad",
    "aten::reflection_pad",
    "aten::replication_pad",
    "aten::instance_norm",
)
_REDUCTIONS = {"aten::mean", "aten::sum", "aten::amax", "aten::amin", "aten::std", "aten::var", "aten::logsumexp"}


def follow_function(walk: Walk, node: fx.Node) -> Axes:
    """The axes of what an operator gives, from those of what it reads."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        if target is operator.getitem and node.args[0] in walk.tuples:
            return _pick(walk, node)
        if target in (operator.getitem,) or walk.shape(node):
            return walk.lock_inputs(node, f"it is read by {getattr(target, '__name__', target)}")
        return {}
    name = target._schema.name
    arguments = _bind(node)
    if name in ("aten::sym_size", "aten::size"):
        axis = arguments.get("dim")
        for at, layout in walk.of(arguments["self"]).items():
            if axis is None or at == axis % max(len(walk.shape(arguments["self"])), 1):
                lock_layout(layout, "its number of units is read")
        return {}
    rule = _RULES.get(name)
    if rule is not None:
        return rule(walk, node, arguments)
    if name in _COPIES:
        return dict(walk.of(arguments.get("self", arguments.get("input"))))
    if name in _REDUCTIONS:
        return _reduce(walk, node, arguments)
    if name.startswith(_SPATIAL):
        return _spatial(walk, node)
    if torch.Tag.pointwise in target.tags:
        return _pointwise(walk, node)
    return walk.lock_inputs(node, f"it is read by the operator {name}")


def _pick(walk: Walk, node: fx.Node) -> Axes:
    source, at = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)  # noqa: S101 - for the type checker
    several = walk.tuples[source]
    if walk.shape(node):
        return (
            dict(several[at]) if isinstance(at, int) and at < len(several) else walk.lock_inputs(node, "it is picked")
        )
    # A tuple in a tuple: the states of an LSTM.
    walk.tuples[node] = several[1:]
    return {}


def _bind(node: fx.Node) -> dict[str, Any]:
    schema = node.target._schema  # type: ignore[union-attr]
    return {
        argument.name: node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        for i, argument in enumerate(schema.arguments)
    }


def _pointwise(walk: Walk, node: fx.Node) -> Axes:
    """Tensors are aligned at their last axes; units on both sides of one axis are coupled."""
    made: Axes = {}
    rank = len(walk.shape(node))
    tensors = [source for source in node.all_input_nodes if walk.shapes.get(source) is not None]
    reason = f"{node.name} combines it with something else"
    for axis in range(rank):
        labelled: list[Layout] = []
        foreign: list[fx.Node] = []
        for source in tensors:
            shape = walk.shape(source)
            at = axis - (rank - len(shape))
            if at < 0 or shape[at] == 1 and at not in walk.of(source):
                continue
            layout = walk.of(source).get(at)
            if layout is not None:
                labelled.append(layout)
            else:
                foreign.append(source)
        if labelled:
            made[axis] = labelled[0]
            for layout in labelled[1:]:
                made[axis] = unite_layouts(made[axis], layout, reason)
            for source in foreign:
                at = axis - (rank - len(walk.shape(source)))
                if source.op != "get_attr" or not follow_tensor(walk, source, at, made[axis]):
                    lock_layout(made[axis], reason)
    if len(tensors) == 1:
        walk.nonlinear.append(node)
    return made


def _spatial(walk: Walk, node: fx.Node) -> Axes:
    source = node.all_input_nodes[0]
    before, after = walk.shape(source), walk.shape(node)
    given = walk.of(source)
    # Pooling and padding act on the last axes: batch and channels stay.
    if len(before) != len(after) or any(axis > 1 for axis in given) or before[1:2] != after[1:2]:
        return walk.lock_inputs(node, f"it is read across units by {node.name}")
    for other in node.all_input_nodes[1:]:
        lock_axes(walk.of(other), f"it is read by {node.name}")
    return dict(given)


def _reduce(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    source = arguments["self"]
    rank = len(walk.shape(source))
    dims = arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    if dims is not None and not all(isinstance(d, int) for d in dims):
        return walk.lock_inputs(node, f"it is read by {node.name}")
    gone = {d % rank for d in dims} if dims else set(range(rank))
    keep = bool(arguments.get("keepdim"))
    made: Axes = {}
    for axis, layout in walk.of(source).items():
        if axis in gone:
            lock_layout(layout, f"{node.name} reduces over its units")
        else:
            made[axis if keep else axis - sum(d < axis for d in gone)] = layout
    return made


def _flatten(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    source = arguments["self"]
    given, shape = walk.of(source), walk.shape(source)
    return merge_axes(walk, node, given, shape, arguments["start_dim"], arguments["end_dim"]) if shape else {}


def _permute(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    given, rank = walk.of(arguments["self"]), len(walk.shape(arguments["self"]))
    if "dims" in arguments:
        order = [d % rank for d in arguments["dims"]]
    else:
        first, second = arguments.get("dim0", 0) % max(rank, 1), arguments.get("dim1", 1) % max(rank, 1)
        order = list(range(rank))
        if rank > 1:
            order[first], order[second] = order[second], order[first]
    return {new: given[old] for new, old in enumerate(order) if old in given}


def _unsqueeze(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    new = arguments["dim"] % len(walk.shape(node))
    return {axis + (axis >= new): layout for axis, layout in walk.of(arguments["self"]).items()}


def _squeeze(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    shape, dims = walk.shape(arguments["self"]), arguments.get("dim")
    given = walk.of(arguments["self"])
    if dims is None:
        return walk.lock_inputs(node, f"it is read by {node.name}")
    dims = [dims] if isinstance(dims, int) else list(dims)
    gone = {d % len(shape) for d in dims if shape[d % len(shape)] == 1}
    if any(axis in gone for axis in given):
        return walk.lock_inputs(node, f"{node.name} removes its axis")
    return {axis - sum(d < axis for d in gone): layout for axis, layout in given.items()}


def _softmax(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    given = walk.of(arguments["self"])
    axis = arguments["dim"] % len(walk.shape(arguments["self"]))
    lock_layout(given.get(axis, ()), f"{node.name} reads across its units")
    return dict(given)


def _expand(walk: Walk, node: fx.Node, arguments: dict[str, Any]) -> Axes:
    given = walk.of(arguments["self"])
    more = len(walk.shape(node)) - len(walk.shape(arguments["self"]))
    sizes = arguments.get("size", [])
    for axis, layout in given.items():
        # A written-out number of units would be wrong after a cut; -1 follows.
        if not (len(sizes) > axis + more and sizes[axis + more] == -1):
            lock_layout(layout, f"{node.name} holds its number of units")
    return {axis + more: layout for axis, layout in given.items()}


_Rule = Callable[[Walk, fx.Node, dict[str, Any]], Axes]
_RULES: dict[str, _Rule] = {
    "aten::cat": concatenate,
    "aten::concat": concatenate,
    "aten::reshape": reshape,
    "aten::view": reshape,
    "aten::unflatten": unflatten,
    "aten::split_with_sizes": split,
    "aten::unbind": unbind,
    "aten::matmul": product_of,
    "aten::bmm": product_of,
    "aten::scaled_dot_product_attention": attention,
    "aten::flatten": _flatten,
    "aten::permute": _permute,
    "aten::transpose": _permute,
    "aten::t": _permute,
    "aten::unsqueeze": _unsqueeze,
    "aten::squeeze": _squeeze,
    "aten::slice": part,
    "aten::select": select,
    "aten::softmax": _softmax,
    "aten::log_softmax": _softmax,
    "aten::expand": _expand,
}
