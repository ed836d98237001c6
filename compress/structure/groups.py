"""Which units of a model can be removed, and every weight that goes with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeVar

from torch import nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.layerwise import LayerwisePass
from fleetfit.compress.structure.functions import follow_function
from fleetfit.compress.structure.layers import follow_layer
from fleetfit.compress.structure.spaces import Space, resolved, spaces_of, whole
from fleetfit.compress.structure.walk import Count, Cut, Extent, Walk, shapes_of, shared_modules
from fleetfit.core.errors import InvalidRecipe

_MOST_TRIALS: Final = 6
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

    blocks: bool = False
    """Whether a unit is several of a layer's outputs at once, such as an attention head."""
    foldable: bool = True
    """Whether all readers multiply the units by one plain matrix, so that some can stand in for others."""

    def narrowed_to(self, count: int) -> str:
        """What is left of it, for the lineage: `conv: 32 -> 16 channels`."""
        one = "channels" if self.kind == "convolution" else "neurons"
        return f"{self.name}: {self.size} -> {count} {f'blocks of {one}' if self.blocks else one}"


@dataclass
class Structure:
    """What the analysis found."""

    groups: list[Group]
    cuts: list[Cut]
    locked: dict[str, str]
    """Layers whose units must stay, with the reason."""
    extents: list[Extent] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)

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

    def planned(self, step: _Step, layers: str, *, foldable: bool = False) -> list[tuple[Group, _Step]]:
        """The groups of this kind of layer that a pass may cut, each with its own settings; with `foldable` only such.

        Raises InvalidRecipe where there are none, or a pattern of the pass names no layer.
        """
        asking = step.pass_name()
        groups = self.prunable(layers, asking)
        if foldable and not (groups := [group for group in groups if group.foldable]):
            raise InvalidRecipe(f"{asking} finds no layer whose units could be folded into others; leave the step out")
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
    shapes, shared = shapes_of(model), shared_modules(model.module)
    choices: dict[str, int] = {}
    best: tuple[tuple[int, int], Structure] | None = None
    for _ in range(_MOST_TRIALS):
        walk = _walk(model, Walk(model.module, shapes, shared, dict(choices)))
        structure = _collect(walk)
        free = sum(group.size > 1 for group in structure.groups), -len(structure.locked)
        if best is None or free > best[0]:
            best = free, structure
        # Where what was chosen came to nothing, the next way is tried.
        turned = {
            name: choices.get(name, 0) + 1
            for name, (count, about) in walk.alternatives.items()
            if choices.get(name, 0) + 1 < count and all(space.root().locks for space in spaces_of(resolved(about)))
        }
        if not turned:
            break
        choices |= turned
    assert best is not None  # noqa: S101 - for the type checker
    return best[1]


def _walk(model: LayeredModel, walk: Walk) -> Walk:
    for node in model.module.graph.nodes:
        if node.op == "call_module":
            walk.axes[node] = follow_layer(walk, node)
        elif node.op == "call_function":
            walk.axes[node] = follow_function(walk, node)
        elif node.op == "output":
            walk.lock_inputs(node, "it is an output of the model")
        elif node.op == "call_method":
            walk.axes[node] = walk.lock_inputs(node, f"it is read by the method {node.target}")
    return walk


def _collect(walk: Walk) -> Structure:
    locked: dict[str, str] = {}
    cuts = [
        Cut(cut.module, cut.tensor, cut.axis, resolved(cut.layout), cut.reads, resolved(cut.given)) for cut in walk.cuts
    ]
    # The layers' names and kinds behind each space that nothing divided further.
    made: dict[Space, list[tuple[str, str, Space]]] = {}
    for space in walk.spaces:
        layout, begin = resolved(whole(space)), 0
        for segment in layout:
            end = begin + segment.elements()
            if segment.space is not None:
                name = space.name if len(layout) == 1 else f"{space.name}[{begin}:{end}]"
                made.setdefault(segment.space.root(), []).append((name, space.name, space))
            begin = end
    groups: list[Group] = []
    for space, origins in made.items():
        if space.locks:
            locked |= {name: space.locks[0] for name, _, _ in origins}
            continue
        readers = reading_cuts(cuts, space)
        if space.size < 2 or not readers:
            continue
        kinds = [origin.kind for _, _, origin in origins]
        blocks = any(s.inner * s.outer > 1 for _, _, o in origins for s in resolved(whole(o)) if s.space is space)
        copies = _points(walk, cuts, space, blocks)
        if not copies:
            locked |= {name: "its units cannot be looked at alone" for name, _, _ in origins}
            continue
        name = " + ".join(dict.fromkeys(name for name, _, _ in origins))
        layers = tuple(dict.fromkeys(layer for _, layer, _ in origins))
        kind = "convolution" if "convolution" in kinds else kinds[0]
        foldable = not blocks and all(_plain(walk.module.get_submodule(cut.module)) for cut in readers)
        groups.append(Group(space, name, layers, kind, space.size, list(copies), copies, blocks, foldable))
    return Structure(groups, cuts, locked, walk.extents, walk.counts)


def _plain(leaf: nn.Module) -> bool:
    return isinstance(leaf, nn.Linear) or getattr(leaf, "groups", 0) == 1


def reading_cuts(cuts: list[Cut], space: Space) -> list[Cut]:
    """Those of the cuts that read the units of a space, named by its root."""
    return [cut for cut in cuts if cut.reads and space in [one.root() for one in spaces_of(cut.layout)]]


def _points(walk: Walk, cuts: list[Cut], space: Space, blocks: bool) -> dict[tuple[str, int], tuple[int, int]]:
    """After the nonlinearities, where a neuron's activation is usually meant; before its readers where there are none.

    What a block (a head) gives is what its reader reads: between lie scores that are no activations.
    """
    readers = {cut.module for cut in reading_cuts(cuts, space)}
    called = [node for node in walk.module.graph.nodes if node.op == "call_module"]
    before = [source for node in called if str(node.target) in readers for source in node.all_input_nodes]
    # A node with all units comes before one with a part of them.
    first = (before, walk.nonlinear) if blocks else (walk.nonlinear, before)
    for nodes in (*first, called, walk.axes):
        found = {}
        for node in nodes:
            for axis, layout in walk.of(node).items():
                alone = resolved(layout)
                if len(alone) == 1 and alone[0].space is space:
                    found[node.name, axis] = (alone[0].outer, alone[0].inner)
        if found:
            return found
    return {}


__all__ = ["Count", "Cut", "Extent", "Group", "Structure", "analyse", "reading_cuts"]
