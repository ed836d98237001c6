"""Calls that change a tensor in place become calls that return a new one, where nothing else sees the change."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fleetfit.core.errors import InvalidModel

aten = torch.ops.aten


def is_inplace(node: fx.Node) -> bool:
    """Whether a node's operator changes one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def make_functional(graph: fx.Graph, weights: set[fx.Node], counters: set[fx.Node]) -> bool:
    """Rewrite `graph` in place; True if no in-place call is left.

    Args:
        graph: The exported graph.
        weights: Placeholders of parameters, buffers and constants.
        counters: Those of `num_batches_tracked`, whose updates are dropped.

    Raises:
        InvalidModel: The model changes its own weights or buffers while it runs.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    clean = True
    for node in list(graph.nodes):
        if node.op != "call_function" or not is_inplace(node):
            continue
        changed = node.args[0] if node.args else None
        if not isinstance(changed, fx.Node):
            clean = False
            continue
        base = _base(changed)
        if base in counters:
            node.replace_all_uses_with(changed)
            graph.erase_node(node)
            continue
        if base in weights:
            raise InvalidModel(
                f"The model changes its own {base.name!r} while it runs, so two calls differ; call model.eval() before "
                "exporting it, and let forward compute from its inputs only."
            )
        functional = _functional(node.target)
        later = [user for user in _aliases(base) if order[user] > order[node] and user is not node]
        readers_of_views = changed is not base or any(_is_view(user) for user in changed.users if user is not node)
        if functional is None or (readers_of_views and later):
            clean = False
            continue
        node.target = functional
        for user in list(changed.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(changed, node)
    graph.lint()
    return clean


def _functional(target: Any) -> Any:
    """The operator that returns what `target` writes, with the same arguments; None if there is none."""
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.rstrip("_"), None) if name.endswith("_") and not name.endswith("__") else None
    if packet is None or target._overloadname not in packet.overloads():
        return None
    functional = getattr(packet, target._overloadname)
    same = [a.name for a in functional._schema.arguments] == [a.name for a in target._schema.arguments]
    return functional if same and not functional._schema.is_mutable else None


def _is_view(node: fx.Node) -> bool:
    """Whether a node's result may share memory with its first argument."""
    if node.op != "call_function":
        return False
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True  # getitem of a list of views
    if target._schema.is_mutable:
        return True
    # These alias without saying so in their schema.
    composite = ("reshape", "flatten", "contiguous", "dropout", "to", "unflatten", "chunk", "type_as")
    return any(r.alias_info is not None for r in target._schema.returns) or target._opname in composite


def _base(node: fx.Node) -> fx.Node:
    """The node whose memory `node` may be a view of."""
    while _is_view(node) and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _aliases(base: fx.Node) -> set[fx.Node]:
    """Every node that reads memory of `base`, itself or through views."""
    found: set[fx.Node] = set()
    waiting = [base]
    while waiting:
        for user in waiting.pop().users:
            if user not in found:
                found.add(user)
                if _is_view(user):
                    waiting.append(user)
    return found
