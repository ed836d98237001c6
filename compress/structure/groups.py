"""Which units of a model can be removed, and every weight that goes with them."""

from __future__ import annotations

from dataclasses import dataclass

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.structure.functions import follow_function
from fleetfit.compress.structure.layers import follow_layer
from fleetfit.compress.structure.spaces import Space, spaces_of
from fleetfit.compress.structure.walk import Cut, Walk, shapes_of, shared_modules


@dataclass
class Group:
    """Units that go together: unit i of this group is unit i of every layer that is coupled to it."""

    space: Space
    name: str
    """The layers that make the units."""
    kind: str
    """`linear`, `convolution` or `embedding`."""
    size: int
    points: list[tuple[str, int]]
    """Names of nodes, and axes of their tensors, where the units' activations can be looked at."""
    copies: dict[tuple[str, int], tuple[int, int]]
    """For each point, how often all units lie along the axis, and how often each in a row."""


@dataclass
class Structure:
    """What the analysis found."""

    groups: list[Group]
    cuts: list[Cut]
    locked: dict[str, str]
    """Layers whose units must stay, with the reason."""


def analyse(model: LayeredModel) -> Structure:
    """Find the groups of units that can be removed.

    Units are followed from the layer that makes them through every operator to the layers that read them. Whatever is not
    known to keep units apart locks them; so does being an output of the model.
    """
    walk = Walk(model.module, shapes_of(model), shared_modules(model.module))
    for node in model.module.graph.nodes:
        if node.op == "call_module":
            walk.axes[node] = follow_layer(walk, node)
        elif node.op == "call_function":
            walk.axes[node] = follow_function(walk, node)
        elif node.op == "output":
            walk.lock_inputs(node, "it is an output of the model")
        elif node.op == "call_method":
            walk.axes[node] = walk.lock_inputs(node, f"it is read by the method {node.target}")
    return _collect(walk)


def _collect(walk: Walk) -> Structure:
    locked: dict[str, str] = {}
    groups: list[Group] = []
    for space in walk.spaces:
        root = space.root()
        if root.locks:
            locked[space.name] = root.locks[0]
        elif root is space and space.size > 1 and _readers(walk, space):
            coupled = [other for other in walk.spaces if other.root() is space]
            kinds = {other.kind for other in coupled}
            kind = "convolution" if "convolution" in kinds else space.kind
            name = " + ".join(dict.fromkeys(other.name for other in coupled))
            copies = _points(walk, space)
            groups.append(Group(space, name, kind, space.size, list(copies), copies))
    return Structure(groups, walk.cuts, locked)


def _readers(walk: Walk, space: Space) -> set[str]:
    return {cut.module for cut in walk.cuts if cut.reads and space in [s.root() for s in spaces_of(cut.layout)]}


def _points(walk: Walk, space: Space) -> dict[tuple[str, int], tuple[int, int]]:
    """After the nonlinearities, where a neuron's activation is usually meant; before its readers where there are none."""
    readers = _readers(walk, space)
    before = [
        source
        for node in walk.module.graph.nodes
        if node.op == "call_module" and str(node.target) in readers
        for source in node.all_input_nodes
    ]
    for nodes in (walk.nonlinear, before, walk.axes):
        found = {}
        for node in nodes:
            for axis, layout in walk.of(node).items():
                if len(layout) == 1 and layout[0].space is not None and layout[0].space.root() is space:
                    found[node.name, axis] = (layout[0].outer, layout[0].inner)
        if found:
            return found
    return {}


__all__ = ["Cut", "Group", "Structure", "analyse"]
