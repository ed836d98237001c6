"""Which units of a model can be removed, and every weight that goes with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.layerwise import LayerwisePass
from fleetfit.compress.structure.functions import follow_function
from fleetfit.compress.structure.layers import follow_layer
from fleetfit.compress.structure.spaces import Space, spaces_of
from fleetfit.compress.structure.walk import Cut, Walk, shapes_of, shared_modules
from fleetfit.core.errors import InvalidRecipe

_Step = TypeVar("_Step", bound=LayerwisePass)


@dataclass
class Group:
    """Units that go together: unit i of this group is unit i of every layer that is coupled to it."""

    space: Space
    name: str
    """The layers that make the units, joined."""
    layers: tuple[str, ...]
    """The same, one by one."""
    kind: str
    """`linear`, `convolution` or `embedding`."""
    size: int
    points: list[tuple[str, int]]
    """Names of nodes, and axes of their tensors, where the units' activations can be looked at."""
    copies: dict[tuple[str, int], tuple[int, int]]
    """For each point, how often all units lie along the axis, and how often each in a row."""

    def narrowed_to(self, count: int) -> str:
        """What is left of it, for the lineage: `conv: 32 -> 16 channels`."""
        return f"{self.name}: {self.size} -> {count} {'channels' if self.kind == 'convolution' else 'neurons'}"


@dataclass
class Structure:
    """What the analysis found."""

    groups: list[Group]
    cuts: list[Cut]
    locked: dict[str, str]
    """Layers whose units must stay, with the reason."""

    def prunable(self, layers: str, asking: str) -> list[Group]:
        """The groups of this kind of layer (`all` for any). Raises InvalidRecipe where there are none."""
        groups = [group for group in self.groups if layers in ("all", group.kind)]
        if not groups:
            kind = "" if layers == "all" else f" {layers}"
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(self.locked.items())[:3])
            raise InvalidRecipe(
                f"{asking} finds no{kind} layer whose units could be removed in this model"
                + (f" ({reasons})" if reasons else "")
                + "; leave the step out"
            )
        return groups

    def planned(self, step: _Step, layers: str) -> list[tuple[Group, _Step]]:
        """The groups of this kind of layer that a pass may cut, each with its own settings.

        Raises InvalidRecipe where there are none, or a pattern of the pass names no layer.
        """
        asking = step.pass_name()
        groups = self.prunable(layers, asking)
        step.check_patterns(name for group in groups for name in group.layers)
        planned = [(group, step.for_layers(group.layers)) for group in groups]
        chosen = [(group, settings) for group, settings in planned if settings is not None]
        if not chosen:
            raise InvalidRecipe(f"{asking} skips every layer that it could cut in this model; skip fewer")
        return chosen


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
        elif root is space and space.size > 1 and reading_cuts(walk.cuts, space):
            coupled = [other for other in walk.spaces if other.root() is space]
            kinds = {other.kind for other in coupled}
            kind = "convolution" if "convolution" in kinds else space.kind
            layers = tuple(dict.fromkeys(other.name for other in coupled))
            copies = _points(walk, space)
            groups.append(Group(space, " + ".join(layers), layers, kind, space.size, list(copies), copies))
    return Structure(groups, walk.cuts, locked)


def reading_cuts(cuts: list[Cut], space: Space) -> list[Cut]:
    """Those of the cuts that read the units of a space, named by its root."""
    return [cut for cut in cuts if cut.reads and space in [one.root() for one in spaces_of(cut.layout)]]


def _points(walk: Walk, space: Space) -> dict[tuple[str, int], tuple[int, int]]:
    """After the nonlinearities, where a neuron's activation is usually meant; before its readers where there are none."""
    readers = {cut.module for cut in reading_cuts(walk.cuts, space)}
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


__all__ = ["Cut", "Group", "Structure", "analyse", "reading_cuts"]
