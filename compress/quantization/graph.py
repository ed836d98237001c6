"""Reading ONNX graphs: inputs, the names of layers, which nodes a pattern means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

import onnx

from fleetfit.compress.quantization.operators import HEAVY
from fleetfit.core.errors import InvalidRecipe

_Names = Callable[[onnx.NodeProto], Iterable[str]]


def inputs_of(content: bytes) -> tuple[list[str], int | None]:
    """The names of the inputs, and the batch size that the graph insists on, None where it is dynamic."""
    graph = onnx.load_model_from_string(content).graph
    # Before IR version 4 weights were inputs, too.
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    sizes = [dims[0].dim_value for value in inputs if (dims := value.type.tensor_type.shape.dim)]
    return [value.name for value in inputs], next((int(size) for size in sizes if size > 0), None)


def with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, in which every node has a name of its own: quantizers tell nodes apart by it."""
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{number}"
        seen.add(node.name)
    return model


def layer_of(node: onnx.NodeProto) -> str:
    """The name of the layer that a node came from, as far as its weight tells; else the node's own."""
    for name in node.input[1:2] if node.op_type in HEAVY else ():
        if name.endswith(".weight"):
            return name.removesuffix(".weight")
    return node.name


def ends(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """The names of those of the nodes that are first or last: products that have no other product before, or none after, them."""
    forwards = _unreached(model.graph.node, lambda node: node.input, lambda node: node.output)
    backwards = _unreached(reversed(model.graph.node), lambda node: node.output, lambda node: node.input)
    return {node.name for node in nodes} & (forwards | backwards)


def _unreached(nodes: Iterable[onnx.NodeProto], read: _Names, given: _Names) -> set[str]:
    """The names of the products that come before every other product on their way."""
    found, reached = set(), set[str]()
    for node in nodes:
        behind = not reached.isdisjoint(read(node))
        if node.op_type in HEAVY and not behind:
            found.add(node.name)
        if node.op_type in HEAVY or behind:
            reached.update(given(node))
    return found


def matching(nodes: Iterable[onnx.NodeProto], patterns: Sequence[str]) -> set[str]:
    """The names of the nodes whose name, or whose layer's name, any glob pattern matches.

    Raises InvalidRecipe for a pattern that matches none, with names that there are.
    """
    names = {node.name: layer_of(node) for node in nodes}
    found: set[str] = set()
    for pattern in patterns:
        met = {name for name, layer in names.items() if fnmatchcase(name, pattern) or fnmatchcase(layer, pattern)}
        if not met:
            some = (
                ", ".join(dict.fromkeys(names.values()))
                if len(names) <= 12
                else ", ".join([*names.values()][:12]) + ", ..."
            )
            raise InvalidRecipe(f"'keep_float' names '{pattern}', and no operator is called so; there are {some}")
        found |= met
    return found
