"""A graph that is run piece by piece over data, so that weights can be changed behind what has already run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from fleetfit.compress.quantization.calibration import Batches, session_of


class Stepwise:
    """Every node runs once, over all batches, as late as it can; only values that are still to be read are held.

    A layer's constants may be changed in the graph until the layer runs. Nothing is fused, so the arithmetic is that of the
    operators as they are written: products of 8-bit numbers do not saturate, whatever the processor.
    """

    def __init__(self, model: onnx.ModelProto, batches: Batches) -> None:
        self._model = model
        self._nodes = list(model.graph.node)
        self._producers = {name: at for at, node in enumerate(self._nodes) for name in node.output if name}
        self._reads = [_reads(node) for node in self._nodes]
        self._constant = self._constants()
        self._unread = dict.fromkeys(self._producers, 0)
        self._held: dict[str, list[NDArray[Any]]] = {}
        for inputs in batches:
            for name, array in inputs.items():
                self._held.setdefault(name, []).append(array)
        self._kept = frozenset(self._held)
        for at in range(len(self._nodes)):
            if at not in self._constant:
                for name in self._reads[at]:
                    self._unread[name] = self._unread.get(name, 0) + 1

    def until(self, name: str) -> list[NDArray[Any]]:
        """A value by batches; what it needs runs now. It is held until everything that reads it has run."""
        if name not in self._held:
            self._run(name)
        return self._held[name]

    def shift(self, name: str, by: NDArray[Any]) -> None:
        """Add to a value that is held, by channel (axis 1), what a change of its layer's bias would."""
        for array in self._held[name]:
            array += by.reshape(1, -1, *[1] * (array.ndim - 2)).astype(array.dtype)

    def forget(self, name: str) -> None:
        """Let go of a value that nothing reads any more."""
        if name not in self._kept and not self._unread.get(name, 0):
            self._held.pop(name, None)

    def _run(self, wanted: str) -> None:
        piece, read = self._piece(wanted)
        fresh = {name for at in piece for name in self._nodes[at].output if name}
        for at in piece - self._constant:
            for name in self._reads[at]:
                self._unread[name] -= 1
        names = sorted(name for name in fresh if name == wanted or (self._varies(name) and self._unread[name]))
        session = session_of(self._part(piece, read, names))
        found: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
        for number in range(len(next(iter(self._held.values())))):
            outputs = session.run(names, {name: self._held[name][number] for name in read})
            for name, array in zip(names, outputs, strict=True):
                found[name].append(array)
        self._held |= found
        for name in read:
            self.forget(name)

    def _piece(self, wanted: str) -> tuple[set[int], list[str]]:
        """The nodes that must run for a value, and the held values that they read."""
        piece, read, waiting = set[int](), set[str](), [wanted]
        while waiting:
            name = waiting.pop()
            if name in self._held:
                read.add(name)
                continue
            at = self._producers.get(name)
            if at is not None and at not in piece:
                piece.add(at)
                waiting += self._reads[at]
        return piece, sorted(read)

    def _part(self, piece: set[int], read: Iterable[str], names: Iterable[str]) -> onnx.ModelProto:
        nodes = [self._nodes[at] for at in sorted(piece)]
        needed = {name for at in piece for name in self._reads[at]}
        part = onnx.ModelProto()
        part.ir_version = self._model.ir_version
        part.opset_import.extend(self._model.opset_import)
        part.functions.extend(self._model.functions)
        graph = part.graph
        graph.name = "piece"
        graph.node.extend(nodes)
        graph.initializer.extend(tensor for tensor in self._model.graph.initializer if tensor.name in needed)
        for name in read:
            array = self._held[name][0]
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.input.append(helper.make_tensor_value_info(name, kind, [None] * array.ndim))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return part

    def _varies(self, name: str) -> bool:
        return self._producers[name] not in self._constant

    def _constants(self) -> frozenset[int]:
        """Nodes that read no data, such as those that widen weights: they run again with whatever reads them."""
        found: set[int] = set()
        known = {tensor.name for tensor in self._model.graph.initializer} | {""}
        while True:
            more = {at for at, names in enumerate(self._reads) if at not in found and names <= known}
            if not more:
                return frozenset(found)
            found |= more
            known.update(name for at in more for name in self._nodes[at].output)


def _reads(node: onnx.NodeProto) -> set[str]:
    """The values that a node reads, those of the graphs inside it included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names |= set[str]().union(*map(_reads, graph.node)) - {
                name for inner in graph.node for name in inner.output
            }
    return names - {""}
