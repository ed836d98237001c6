"""The state of the analysis on its way through a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.modes import evaluating
from fleetfit.compress.structure.spaces import Axes, Layout, Space, lock_axes


@dataclass(frozen=True)
class Cut:
    """One axis of one stored tensor along which units lie."""

    module: str
    tensor: str
    axis: int
    layout: Layout
    reads: bool
    """Whether the weights along this axis read the units (and do not make or merely follow them)."""
    given: Layout = ()
    """Where they do, what lies along that axis of the layer's input; empty where they read its own earlier state."""


@dataclass(frozen=True)
class Extent:
    """A number in a node's arguments that says how many elements lie along an axis, and must follow a cut."""

    node: str
    path: tuple[int, ...]
    """Where in the arguments: `(1, 2)` is the third entry of the second."""
    layout: Layout


@dataclass(frozen=True)
class Count:
    """A layer's own account of how many elements lie along an axis, which its weights alone do not tell."""

    module: str
    attribute: str
    layout: Layout


@dataclass
class Walk:
    """What is known so far: along which axes of each node's tensor units lie, and the weights that make or read them."""

    module: fx.GraphModule
    shapes: dict[fx.Node, Any]
    shared: set[str] = field(default_factory=set)
    """Modules with a weight that something else reads too."""
    choices: dict[str, int] = field(default_factory=dict)
    """For a node that could carry units in several ways, which one to take."""
    axes: dict[fx.Node, Axes] = field(default_factory=dict)
    tuples: dict[fx.Node, list[Axes]] = field(default_factory=dict)
    """For nodes that give several tensors, the axes of each."""
    alternatives: dict[str, tuple[int, Layout]] = field(default_factory=dict)
    """For such a node, how many ways there are, and the units that it was about."""
    extents: list[Extent] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    tensors: dict[str, Layout] = field(default_factory=dict)
    """Tensors that the graph reads by itself and that follow units along an axis: `name:axis`."""
    spaces: list[Space] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    calls: dict[str, tuple[Axes, Axes]] = field(default_factory=dict)
    """Axes of the input and the output at a module's first call."""
    nonlinear: list[fx.Node] = field(default_factory=list)

    def of(self, value: Any) -> Axes:
        """The labelled axes of an argument; none for what is no node."""
        return self.axes.get(value, {}) if isinstance(value, fx.Node) else {}

    def shape(self, value: Any) -> tuple[int, ...]:
        """The shape of an argument with the sample inputs; empty for what is no tensor."""
        found = self.shapes.get(value) if isinstance(value, fx.Node) else None
        return tuple(found) if isinstance(found, torch.Size) else ()

    def choose(self, node: fx.Node, count: int, about: Layout) -> int:
        """Which of `count` ways to take at this node for these units."""
        self.alternatives[node.name] = (count, about)
        return self.choices.get(node.name, 0)

    def new_space(self, size: int, name: str, kind: str) -> Space:
        """A space for the units that the layer `name` makes."""
        space = Space(size, name, kind)
        self.spaces.append(space)
        return space

    def cut(self, module: str, tensor: str, axis: int, layout: Layout, *, given: Layout | None = None) -> None:
        """Remember that units lie along an axis of a stored tensor, which reads them where `given` says as what."""
        self.cuts.append(Cut(module, tensor, axis, layout, given is not None, given or ()))

    def leaf(self, node: fx.Node) -> nn.Module:
        """The layer that a node calls."""
        return self.module.get_submodule(str(node.target))

    def lock_inputs(self, node: fx.Node, reason: str) -> Axes:
        """Lock all units that a node reads; what it gives carries none."""
        for source in node.all_input_nodes:
            for axes in (self.of(source), *self.tuples.get(source, ())):
                lock_axes(axes, reason)
        return {}


def shapes_of(model: LayeredModel) -> dict[fx.Node, Any]:
    """Every node's shape (None for what is no tensor) when the sample inputs run through the model."""
    found: dict[fx.Node, Any] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            found[n] = value.shape if isinstance(value, torch.Tensor) else None
            return value

    with evaluating(model), torch.no_grad():
        Shapes(model.module).run(*(model.sample_inputs[tensor.name] for tensor in model.inputs))
    return found


def shared_modules(module: fx.GraphModule) -> set[str]:
    """Modules one of whose tensors is read by another module, or by the graph itself (tied weights)."""
    owners: dict[int, set[str]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            leaf = module.get_submodule(str(node.target))
            for tensor in (*leaf.parameters(), *leaf.buffers()):
                owners.setdefault(id(tensor), set()).add(str(node.target))
        elif node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            owners.setdefault(id(getattr(module.get_submodule(path), name)), set()).add("")
    return {name for names in owners.values() if len(names) > 1 for name in names if name}
