"""How each kind of layer treats the units that come in, and which it makes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx, nn

from fleetfit.compress.graph.kinds import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED
from fleetfit.compress.structure.spaces import (
    Axes,
    Layout,
    Segment,
    gathered,
    lock_axes,
    lock_layout,
    product,
    resolved,
    stretch,
    unite_layouts,
    whole,
)
from fleetfit.compress.structure.walk import Count, Walk

_POINTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.SELU,
    nn.CELU,
    nn.ELU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.LogSigmoid,
)
_UNCHANGED = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_POOLS = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.Upsample,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def follow_layer(walk: Walk, node: fx.Node) -> Axes:
    """The axes of what a layer gives, from those of what it reads. An unknown kind locks what it reads."""
    leaf = walk.leaf(node)
    name = str(node.target)
    follow = _rule(leaf)
    source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
    if follow is None or not isinstance(source, fx.Node) or not walk.shape(source):
        return walk.lock_inputs(node, f"it is read by {name}, a {type(leaf).__name__}")
    given = walk.of(source)
    if name in walk.calls and _stores(leaf):
        return _again(walk, node, given)
    made = follow(walk, node, leaf, given, walk.shape(source))
    if name in walk.shared:
        lock_axes(given, f"{name} shares a weight with another layer")
        lock_axes(made, f"{name} shares a weight with another layer")
    walk.calls[name] = (given, made)
    return made


_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Rule = Callable[[Walk, fx.Node, nn.Module, Axes, tuple[int, ...]], Axes]


def _rule(leaf: nn.Module) -> _Rule | None:
    rules: list[tuple[tuple[type[nn.Module], ...], _Rule]] = [
        (CONVOLUTIONS, _convolution),
        (TRANSPOSED, _transposed),
        ((nn.Linear,), _linear),
        (BATCH_NORMS, _batch_norm),
        ((nn.PReLU,), _prelu),
        ((nn.Embedding,), _embedding),
        (_POINTWISE, _nonlinear),
        (_UNCHANGED, _unchanged),
        (_POOLS, _pool),
        ((nn.Flatten,), _flatten),
        ((nn.Softmax, nn.LogSoftmax), _softmax),
        (_INSTANCE_NORMS, _instance_norm),
        ((nn.GroupNorm,), _group_norm),
        ((nn.LSTM, nn.GRU), _recurrent),
    ]
    # Exactly these types: a subclass may do anything.
    return next((rule for kinds, rule in rules if type(leaf) in kinds), None)


def _stores(leaf: nn.Module) -> bool:
    return any(True for _ in leaf.parameters()) or any(True for _ in leaf.buffers())


def _again(walk: Walk, node: fx.Node, given: Axes) -> Axes:
    """A layer called a second time reads the same units, or those it reads are locked; it makes the same units."""
    name = str(node.target)
    first_given, first_made = walk.calls[name]
    reason = f"{name} is called on different units"
    for axis in {*given, *first_given}:
        if axis in given and axis in first_given:
            unite_layouts(first_given[axis], given[axis], reason)
        else:
            lock_layout(given.get(axis, ()), reason)
            lock_layout(first_given.get(axis, ()), reason)
    return dict(first_made)


def _others(axes: Axes, *used: int) -> Axes:
    return {axis: layout for axis, layout in axes.items() if axis not in used}


def _tensor(leaf: nn.Module, name: str) -> torch.Tensor | None:
    value = getattr(leaf, name)
    return value if isinstance(value, torch.Tensor) else None


def _convolution(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    assert isinstance(leaf, CONVOLUTIONS)  # noqa: S101 - for the type checker
    name = str(node.target)
    lock_axes(_others(given, 1), f"it is read along another axis by {name}")
    read = given.get(1)
    depthwise = leaf.groups == leaf.in_channels and leaf.groups > 1
    if depthwise and read is not None:
        walk.counts.append(Count(name, "groups", read))
    if depthwise:
        # Channel i is made from channel i alone: the units go on, each in `out / in` copies.
        if read is None:
            return {}
        made = stretch(read, 1, leaf.out_channels // leaf.in_channels)
        if made is None:
            return walk.lock_inputs(node, f"it is read by {name} in copies")
    else:
        made = whole(walk.new_space(leaf.out_channels, name, "convolution"))
        if leaf.groups > 1:
            made = _grouped(walk, node, leaf, read, made)
        elif read is not None:
            walk.cut(name, "weight", 1, read, given=read)
    walk.cut(name, "weight", 0, made)
    if leaf.bias is not None:
        walk.cut(name, "bias", 0, made)
    return {1: made}


def _grouped(walk: Walk, node: fx.Node, leaf: _Convolution, read: Layout | None, made: Layout) -> Layout:
    """What a grouped convolution makes: the same places of every group go together, or else whole groups do."""
    name = str(node.target)
    reason = f"{name} has {leaf.groups} groups"
    inputs, outputs = leaf.in_channels // leaf.groups, leaf.out_channels // leaf.groups
    if walk.choose(node, 2, (*made, *(read or ()))) == 1 and read is not None:
        ins, outs = gathered(read, 1, inputs, reason), gathered(made, 1, outputs, reason)
        if ins is not None and outs is not None:
            outs.unite(ins)
            walk.counts.append(Count(name, "groups", whole(outs)))
        return resolved(made)
    if read is not None and (ins := gathered(read, leaf.groups, 1, reason)) is not None:
        walk.cut(name, "weight", 1, whole(ins), given=read)
    gathered(made, leaf.groups, 1, reason)
    return resolved(made)


def _instance_norm(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    if 1 in given:
        for tensor in ("weight", "bias"):
            if _tensor(leaf, tensor) is not None:
                walk.cut(str(node.target), tensor, 0, given[1])
        walk.counts.append(Count(str(node.target), "num_features", given[1]))
    lock_axes(_others(given, 1), f"it is read across units by {node.target}")
    return dict(given)


def _group_norm(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    """Each group has statistics of its own, so only whole groups can go without a change to the others."""
    assert isinstance(leaf, nn.GroupNorm)  # noqa: S101 - for the type checker
    name = str(node.target)
    lock_axes(_others(given, 1), f"it is read across units by {name}")
    if 1 not in given:
        return dict(given)
    reason = f"{name} takes the mean over several of its units"
    space = gathered(given[1], 1, leaf.num_channels // leaf.num_groups, reason)
    if space is None:
        return dict(given)
    made = resolved(given[1])
    for tensor in ("weight", "bias"):
        if _tensor(leaf, tensor) is not None:
            walk.cut(name, tensor, 0, made)
    walk.counts.append(Count(name, "num_groups", whole(space)))
    walk.counts.append(Count(name, "num_channels", made))
    return {**given, 1: made}


def _recurrent(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    """Hidden unit i of every layer and direction goes together, since PyTorch keeps one size for all.

    Each gate has a row for every hidden unit; the next step, the next layer and whoever reads the output read it.
    """
    assert isinstance(leaf, (nn.LSTM, nn.GRU))  # noqa: S101 - for the type checker
    name, last = str(node.target), len(shape) - 1
    lock_axes(_others(given, last), f"it is read along another axis by {name}")
    if leaf.proj_size or len(shape) != 3:
        return walk.lock_inputs(node, f"it is read by {name}, which projects its states")
    space = walk.new_space(leaf.hidden_size, name, "recurrent")
    gates = 4 if isinstance(leaf, nn.LSTM) else 3
    directions = 2 if leaf.bidirectional else 1
    states = (Segment(space, directions),)
    for at in range(leaf.num_layers):
        read = states if at else given.get(last)
        for end in (f"_l{at}", f"_l{at}_reverse")[:directions]:
            if read is not None:
                walk.cut(name, f"weight_ih{end}", 1, read, given=() if at else read)
            walk.cut(name, f"weight_hh{end}", 1, whole(space), given=())
            for tensor in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if leaf.bias else ())):
                walk.cut(name, f"{tensor}{end}", 0, (Segment(space, gates),))
    if last in given:
        walk.counts.append(Count(name, "input_size", given[last]))
    walk.counts.append(Count(name, "hidden_size", whole(space)))
    hidden: Axes = {2: whole(space)}
    walk.tuples[node] = [{2: states}, hidden, hidden]
    return {}


def _transposed(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    assert isinstance(leaf, TRANSPOSED)  # noqa: S101 - for the type checker
    name = str(node.target)
    lock_axes(_others(given, 1), f"it is read along another axis by {name}")
    space = walk.new_space(leaf.out_channels, name, "convolution")
    made = whole(space)
    if leaf.groups > 1:
        lock_axes(given, f"{name} reads its inputs in {leaf.groups} groups")
        space.lock(f"{name} has {leaf.groups} groups")
        return {1: made}
    if 1 in given:
        walk.cut(name, "weight", 0, given[1], given=given[1])
    walk.cut(name, "weight", 1, made)
    if leaf.bias is not None:
        walk.cut(name, "bias", 0, made)
    return {1: made}


def _linear(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    assert isinstance(leaf, nn.Linear)  # noqa: S101 - for the type checker
    name, last = str(node.target), len(shape) - 1
    if last in given:
        walk.cut(name, "weight", 1, given[last], given=given[last])
    made = whole(walk.new_space(leaf.out_features, name, "linear"))
    walk.cut(name, "weight", 0, made)
    if leaf.bias is not None:
        walk.cut(name, "bias", 0, made)
    return {**_others(given, last), last: made}


def _batch_norm(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    if 1 in given:
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            if _tensor(leaf, tensor) is not None:
                walk.cut(str(node.target), tensor, 0, given[1])
    return dict(given)


def _prelu(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    assert isinstance(leaf, nn.PReLU)  # noqa: S101 - for the type checker
    if 1 in given and leaf.num_parameters > 1:
        walk.cut(str(node.target), "weight", 0, given[1])
    walk.nonlinear.append(node)
    return dict(given)


def _embedding(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    assert isinstance(leaf, nn.Embedding)  # noqa: S101 - for the type checker
    name = str(node.target)
    made = whole(walk.new_space(leaf.embedding_dim, name, "embedding"))
    walk.cut(name, "weight", 1, made)
    return {len(shape): made}


def _nonlinear(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    walk.nonlinear.append(node)
    return dict(given)


def _unchanged(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    return dict(given)


def _pool(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    if any(axis > 1 for axis in given) or len(walk.shape(node)) != len(shape):
        return walk.lock_inputs(node, f"it is read across units by {node.target}")
    return dict(given)


def _softmax(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    axis = int(getattr(leaf, "dim", -1)) % len(shape)
    if axis in given:
        lock_layout(given[axis], f"it is read across units by {node.target}")
    return dict(given)


def _flatten(walk: Walk, node: fx.Node, leaf: nn.Module, given: Axes, shape: tuple[int, ...]) -> Axes:
    assert isinstance(leaf, nn.Flatten)  # noqa: S101 - for the type checker
    return merge_axes(walk, node, given, shape, leaf.start_dim, leaf.end_dim)


def merge_axes(walk: Walk, node: fx.Node, given: Axes, shape: tuple[int, ...], start: int, end: int) -> Axes:
    """The axes after `start` to `end` (included) became one."""
    start, end = start % len(shape), end % len(shape)
    inside = [axis for axis in given if start <= axis <= end]
    gone = end - start
    made: Axes = {}
    for axis, layout in given.items():
        if axis < start:
            made[axis] = layout
        elif axis > end:
            made[axis - gone] = layout
    if not inside:
        return made
    axis = inside[0]
    stretched: Layout | None = None
    # Merged with the batch, the units would lie in as many stretches as there are samples.
    if len(inside) == 1 and start > 0:
        stretched = stretch(given[axis], product(shape[start:axis]), product(shape[axis + 1 : end + 1]))
    if stretched is None:
        return walk.lock_inputs(node, f"it is flattened together with other units by {node.name}")
    made[start] = stretched
    return made
