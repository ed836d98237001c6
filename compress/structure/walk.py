"""The state of the analysis on its way through a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fleetfit.compress.graph import LayeredModel
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


@dataclass
class Walk:
    """What is known so far: along which axes of each node's tensor units lie, and the weights that make or read them."""

    module: fx.GraphModule
    shapes: dict[fx.Node, Any]
    shared: set[str] = field(default_factory=set)
    """Modules with a weight that something else reads too."""
    axes: dict[fx.Node, Axes] = field(default_factory=dict)
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

    def new_space(self, size: int, name: str, kind: str) -> Space:
        """A space for the units that the layer `name` makes."""
        space = Space(size, name, kind)
        self.spaces.append(space)
        return space

    def cut(self, module: str, tensor: str, axis: int, layout: Layout, *, reads: bool = False) -> None:
        """Remember that units lie along an axis of a stored tensor."""
        self.cuts.append(Cut(module, tensor, axis, layout, reads))

    def leaf(self, node: fx.Node) -> nn.Module:
        """The layer that a node calls."""
        return self.module.get_submodule(str(node.target))

    def lock_inputs(self, node: fx.Node, reason: str) -> Axes:
        """Lock all units that a node reads; what it gives carries none."""
        for source in node.all_input_nodes:
            lock_axes(self.of(source), reason)
        return {}


def shapes_of(model: LayeredModel) -> dict[fx.Node, Any]:
    """Every node's shape (None for what is no tensor) when the sample inputs run through the model."""
    found: dict[fx.Node, Any] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            found[n] = value.shape if isinstance(value, torch.Tensor) else None
            return value

    training = model.module.training
    model.module.eval()
    try:
        with torch.no_grad():
            Shapes(model.module).run(*(model.sample_inputs[tensor.name] for tensor in model.inputs))
    finally:
        model.module.train(training)
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
