"""From an exported graph of ATen calls back to a trainable graph of ordinary layers."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from fleetfit.compress.intake.inplace import make_functional
from fleetfit.compress.intake.layers import BUILDERS, Layer, bind
from fleetfit.compress.intake.recurrent import recurrent_layer
from fleetfit.compress.intake.views import RESHAPES, expand_batch, reshape, sizes_of_parts
from fleetfit.compress.intake.weights import Namespace, Weight, weights_of
from fleetfit.core.errors import InvalidModel

aten = torch.ops.aten

_DROPOUTS = {
    "aten::dropout",
    "aten::feature_dropout",
    "aten::alpha_dropout",
    "aten::feature_alpha_dropout",
    "aten::native_dropout",
}
_COPIES = {"aten::clone", "aten::contiguous", "aten::alias", "aten::lift_fresh_copy", "aten::lift_fresh"}
_PARTS = (aten.chunk.default, aten.split.Tensor, aten.split.sizes)
_CHECKS = ("aten::_assert", "aten::sym_constrain", "aten::_functional_assert", "aten::_make_dep_token")


def relayer(program: torch.export.ExportedProgram, input_names: list[str]) -> fx.GraphModule:
    """The program as a module of layers, in evaluation mode. The program's own graph is used up.

    The module takes the program's tensors in their order and returns its tensor, or a tuple of its tensors.

    Raises:
        InvalidModel: The model was exported in training mode, keeps state, or takes or returns something but tensors.
    """
    return _Relayering(program, input_names).run()


class _Relayering:
    def __init__(self, program: torch.export.ExportedProgram, input_names: list[str]) -> None:
        self.program = program
        self.input_names = list(input_names)
        self.names = Namespace()
        self.graph = fx.Graph()
        # Old node -> new node or constant.
        self.environment: dict[fx.Node, Any] = {}
        self.weights: dict[fx.Node, Weight] = {}
        self.layers: dict[tuple[Any, ...], str] = {}
        self.reads: dict[int, fx.Node] = {}
        # The batch's size, the first node after the inputs; reads of plain tensors go before it.
        self.batch: fx.Node | None = None
        self.batch_size: Any = None
        self.functional = False

    def run(self) -> fx.GraphModule:
        signature = self.program.graph_signature
        unwanted = {OutputKind.USER_OUTPUT}
        if any(spec.kind not in unwanted for spec in signature.output_specs):
            raise InvalidModel(
                "The model changes its own weights or inputs while it runs, so two calls differ; let forward compute from its "
                "inputs only, and export it again."
            )
        by_name = weights_of(self.program)
        self.weights = {node: by_name[node.name] for node in self.program.graph.nodes if node.name in by_name}
        counters = {node for node, weight in self.weights.items() if weight.name.endswith("num_batches_tracked")}
        self.functional = make_functional(self.program.graph, set(self.weights), counters)
        constants = {
            spec.arg.name: spec.arg.value
            for spec in signature.input_specs
            if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, ConstantArgument)
        }
        names = iter(self.input_names)
        placeholders = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        for node in placeholders:
            if node.name in constants:
                self.environment[node] = constants[node.name]
            elif node not in self.weights:
                self._input(node, next(names))
        first = next(node for node in placeholders if isinstance(self.environment.get(node), fx.Node))
        self.batch_size = first.meta["val"].shape[0]
        self.batch = self.graph.call_function(aten.sym_size.int, (self.environment[first], 0))
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self._output(node)
            else:
                raise InvalidModel(
                    f"The model holds {node.op} {node.target!s:.60}, control flow perhaps; write it without."
                )
        module = fx.GraphModule(self.names.root, self.graph, "LayeredModel")
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.delete_all_unused_submodules()
        module.recompile()
        return module.eval()

    def _input(self, node: fx.Node, name: str) -> None:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise InvalidModel(
                f"The model's input {name} is not a tensor; give numbers as tensors, or fix them in the model."
            )
        self.environment[node] = self.graph.placeholder(name)

    def _new(self, value: Any) -> Any:
        """An argument of the old graph in the new one."""

        def translate(node: fx.Node) -> Any:
            if node in self.weights:
                return self._read(self.weights[node])
            return self.environment[node]

        return fx.map_arg(value, translate)

    def _read(self, weight: Weight) -> fx.Node:
        """The node that reads a tensor which no leaf owns."""
        if id(weight) not in self.reads:
            path = self.names.add_tensor(weight)
            with self.graph.inserting_before(self.batch):
                self.reads[id(weight)] = self.graph.get_attr(path)
        return self.reads[id(weight)]

    def _call(self, node: fx.Node) -> None:
        target = node.target
        if node in self.environment:
            return
        if not isinstance(target, torch._ops.OpOverload):
            assert callable(target)  # noqa: S101 - what a call_function node holds; tells the type checker
            self.environment[node] = self.graph.call_function(target, self._new(node.args), self._new(node.kwargs))
            return
        name = target._schema.name
        if name.startswith(_CHECKS):
            return
        self._refuse_training(node, name)
        if name.rstrip("_") in _DROPOUTS or (self.functional and name in _COPIES):
            if "memory_format" not in node.kwargs or name in _DROPOUTS:
                self.environment[node] = self._new(node.args[0])
                return
        builder = BUILDERS.get(target)
        layer = builder(bind(node, self.weights)) if builder is not None else None
        if layer is not None:
            self.environment[node] = self._place(node, layer)
        elif target in RESHAPES and self.functional and isinstance(node.args[0], fx.Node):
            new = self._new(node.args)
            self.environment[node] = reshape(self.graph, node, new[0], list(new[1]), self.names.add_module)
        elif target is aten.flatten.using_ints and self._flattens_all(node):
            path = self.names.add_module(node.name, nn.Flatten(1))
            self.environment[node] = self.graph.call_module(path, (self._new(node.args[0]),))
        elif target in _PARTS and (parts := sizes_of_parts(node)) is not None:
            new = self._new(node.args[0])
            self.environment[node] = self.graph.call_function(aten.split_with_sizes.default, (new, *parts))
        elif target in (aten.lstm.input, aten.gru.input) and (recurrent := recurrent_layer(bind(node, self.weights))):
            self._recurrent(node, recurrent)
        elif target is aten.expand.default:
            new = self._new(node.args)
            sizes = expand_batch(node, list(new[1]), self.batch, self.batch_size)
            self.environment[node] = self.graph.call_function(target, (new[0], sizes), self._new(node.kwargs))
        else:
            self.environment[node] = self.graph.call_function(target, self._new(node.args), self._new(node.kwargs))

    def _recurrent(self, node: fx.Node, layer: Layer) -> None:
        """A recurrent layer, whose module gives `(output, state)` where the call gives `output, h, c`."""
        made = self._place(node, layer)
        for user in node.users:
            at = user.args[1]
            if at == 0 or isinstance(layer.module, nn.GRU):
                picked = self.graph.call_function(operator.getitem, (made, at))
            else:
                states = self.graph.call_function(operator.getitem, (made, 1))
                picked = self.graph.call_function(operator.getitem, (states, at - 1))  # type: ignore[operator]
            self.environment[user] = picked
        self.environment[node] = made

    @staticmethod
    def _flattens_all(node: fx.Node) -> bool:
        arguments = bind(node, {}).arguments
        rank = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
        return arguments["start_dim"] == 1 and arguments["end_dim"] in (-1, rank - 1) and rank > 1

    @staticmethod
    def _refuse_training(node: fx.Node, operator: str) -> None:
        arguments = bind(node, {}).arguments
        dropout = operator.rstrip("_") in _DROPOUTS and arguments.get("train") and arguments.get("p")
        norm = operator == "aten::batch_norm" and arguments["training"] and arguments["running_mean"] is not None
        if dropout or norm:
            raise InvalidModel(
                f"The model was exported in training mode (its {operator.removeprefix('aten::')} still learns or drops); call "
                "model.eval() and export it again."
            )

    def _place(self, node: fx.Node, layer: Layer) -> fx.Node:
        """A call of the layer; one weight used in two equal calls is one layer called twice."""
        data = tuple(self._new(value) for value in layer.data)
        first = layer.tensors.get("weight") or next(iter(layer.tensors.values()), None)
        if first is None:
            return self.graph.call_module(self.names.add_module(node.name, layer.module), data)
        key = (repr(layer.module), layer.transposed, *((name, id(weight)) for name, weight in layer.tensors.items()))
        if key not in self.layers:
            for name, weight in layer.tensors.items():
                tensor = weight.tensor
                if layer.transposed and name == "weight":
                    tensor = nn.Parameter(tensor.detach().t().contiguous())
                self._set(layer.module, name, tensor)
            # The original's name, `encoder.0` of `encoder.0.weight`.
            owner, _, last = first.name.rpartition(".")
            stem = last.removesuffix("_ih_l0").removesuffix("weight").removesuffix("running_mean").rstrip("_")
            self.layers[key] = self.names.add_module(
                ".".join(part for part in (owner, stem) if part) or node.name, layer.module
            )
        return self.graph.call_module(self.layers[key], data)

    @staticmethod
    def _set(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
        if name in module._parameters:
            # A buffer in a parameter's place (a frozen weight) stays frozen.
            parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
            module.register_parameter(name, parameter)
        else:
            module.register_buffer(name, tensor.detach())

    def _output(self, node: fx.Node) -> None:
        results = self._new(node.args[0])
        tensors = [value for value in results if isinstance(value, fx.Node)]
        if not tensors or any(value is not None and not isinstance(value, fx.Node) for value in results):
            raise InvalidModel("The model returns something that is not a tensor; let forward return only tensors.")
        self.graph.output(tensors[0] if len(tensors) == 1 else tuple(tensors))
