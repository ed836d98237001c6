"""Builds for torch_tensorrt: the network as a list of PyTorch's operators, which the device's own torch exports anew."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fleetfit.compress.export.base import Exporter, named
from fleetfit.core.errors import FleetfitError, InvalidModel
from fleetfit.runtimes.aten import DTYPES, Node, read, write
from fleetfit.runtimes.aten_module import rebuild
from fleetfit.runtimes.aten_operators import is_allowed_operator
from fleetfit.runtimes.base import Availability
from fleetfit.runtimes.refusal import Port

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from fleetfit.compress.exporter import Session
    from fleetfit.compress.graph import LayeredModel

_TITLE: Final = "torch_tensorrt"
# Checks of what export has found out, which say nothing to a device.
_DROPPED: Final = (
    "aten._assert",
    "aten._functional_assert",
    "aten.sym_constrain_range",
    "aten._functional_sym_constrain_range",
)
_NOT_SAID: Final = "the model cannot be expressed for torch_tensorrt: {}; use another runtime"


class TorchTensorRtExporter(Exporter):
    """Through torch.export. What is proven equal to PyTorch is the list made anew, on the processor; a server has no GPU."""

    runtime: ClassVar[str] = "torch_tensorrt"
    format: ClassVar[str] = "aten"
    file: ClassVar[str] = "build.torch_tensorrt.aten"
    title: ClassVar[str] = _TITLE
    packages: ClassVar[Sequence[str]] = ("torch",)
    # No int8: torch_tensorrt knows pairs of Q and DQ as the operators of NVIDIA's modelopt alone
    # (dynamo/conversion/aten_ops_converters.py of 2.8 to 2.14), which none of our networks has.
    quantized: ClassVar[frozenset[str]] = frozenset({"fp16"})

    def availability(self) -> Availability:
        """Always: it needs nothing of NVIDIA's here."""
        return Availability(True)

    def export(self, model: LayeredModel, onnx: bytes) -> bytes:
        """In the model's own numbers."""
        return _written(model)

    def export_quantized(self, onnx: bytes, model: LayeredModel) -> bytes:
        """All of the model in half floats, with inputs and outputs in their dtypes."""
        if kept := _kept_in_floats(onnx):
            raise InvalidModel(
                f"the build keeps '{kept}' in 32 bits, which half floats for torch_tensorrt cannot; leave keep_float out"
            )
        return _written(_halved(model))

    def session(self, build: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> Session:
        """In PyTorch."""
        return _Rebuilt(build, outputs)


class _Rebuilt:
    """A build made anew in this process' PyTorch: for checks, not for timing."""

    def __init__(self, build: bytes, outputs: Sequence[str]) -> None:
        self._network = read(build)
        self._module = rebuild(self._network)
        # ONNX has lost those that nothing reads.
        self.input_names, self.names = [port.name for port in self._network.inputs], list(outputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs by name; InvalidModel where they have other names."""
        import torch

        given = [torch.from_numpy(inputs[port.name]) for port in self._network.inputs]
        with torch.no_grad():
            found = self._module(*given)
        return named(
            {name: values.numpy() for name, values in zip(self._network.outputs, found, strict=True)}, self.names
        )


def _halved(model: LayeredModel) -> LayeredModel:
    """The model in half floats, with a cast behind each input and before each output that has 32 bits."""
    import torch

    half = model.clone()
    half.module.half()
    graph, cast = half.module.graph, torch.ops.aten.to.dtype
    inputs = graph.find_nodes(op="placeholder")
    whole = {one.name for one in model.inputs if one.dtype == "float32"}
    with graph.inserting_after(inputs[-1]):
        for node, one in zip(inputs, model.inputs, strict=True):
            if one.name in whole:
                narrowed = graph.call_function(cast, (node, torch.float16))
                node.replace_all_uses_with(narrowed, delete_user_cb=lambda user, own=narrowed: user is not own)
    (output,) = graph.find_nodes(op="output")
    with graph.inserting_before(output):
        found = output.args[0] if isinstance(output.args[0], (tuple, list)) else (output.args[0],)
        values = [
            graph.call_function(cast, (value, torch.float32)) if one.dtype == "float32" else value
            for value, one in zip(found, model.outputs, strict=True)
        ]
        output.args = (tuple(values) if isinstance(output.args[0], (tuple, list)) else values[0],)
    half.module.recompile()
    return half


def _kept_in_floats(onnx: bytes) -> str:
    """The name of a product or convolution whose weights a half build has left in 32 bits; empty where there is none."""
    from onnx import TensorProto, load_model_from_string

    graph = load_model_from_string(onnx).graph
    whole = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT and tensor.dims}
    products = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return next(
        (node.name or node.op_type for node in graph.node if node.op_type in products and whole & set(node.input)), ""
    )


def _written(model: LayeredModel) -> bytes:
    import torch

    from fleetfit.compress.exporter import contiguous, quiet

    with quiet():
        try:
            # Without a table nothing is taken apart; what writes in place no longer does.
            program = contiguous(model.exported()).run_decompositions({})
            return _Writer(model, program).build()
        except (FleetfitError, MemoryError):
            raise
        except Exception as error:  # the exporter runs the whole model, which may raise anything
            raise InvalidModel(
                _NOT_SAID.format(f"torch {torch.__version__} does not export it"),
                private=f"{type(error).__name__}: {error}",
            ) from error


class _Writer:
    """A program of `torch.export` as inputs, weights, and calls."""

    def __init__(self, model: LayeredModel, program: torch.export.ExportedProgram) -> None:
        self._model, self._program = model, program
        self._values: dict[str, dict[str, int]] = {}
        self._weights: list[NDArray[Any]] = []
        self._at: dict[int, int] = {}
        self._nodes: list[Node] = []

    def build(self) -> bytes:
        signature = self._program.graph_signature
        if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
            raise InvalidModel(_NOT_SAID.format("it changes its own weights or inputs while it runs"))
        given = {name: at for at, name in enumerate(map(str, signature.user_inputs))}
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._values[node.name] = (
                    {"input": given[node.name]} if node.name in given else {"weight": self._weight(node.name)}
                )
            elif node.op == "call_function":
                self._call(node)
            elif node.op != "output":
                raise InvalidModel(_NOT_SAID.format(f"its graph has a nested one, '{node.name}'"))
        inputs = [Port(one.name, one.dtype, tuple(one.shape)) for one in self._model.inputs]
        names = [one.name for one in self._model.outputs]
        outputs = {name: self._values[str(value)] for name, value in zip(names, signature.user_outputs, strict=True)}
        batched = {one.name: bool(one.shape) and one.shape[0] == -1 for one in self._model.outputs}
        return write(inputs, outputs, batched, self._weights, self._nodes)

    def _weight(self, name: str) -> int:
        signature, program = self._program.graph_signature, self._program
        if name in signature.inputs_to_parameters:
            tensor = program.state_dict[signature.inputs_to_parameters[name]]
        elif name in signature.inputs_to_buffers:
            buffer = signature.inputs_to_buffers[name]
            tensor = program.state_dict[buffer] if buffer in program.state_dict else program.constants[buffer]
        else:
            tensor = program.constants[signature.inputs_to_lifted_tensor_constants[name]]
        # Tied weights are one.
        at = self._at.setdefault(id(tensor), len(self._weights))
        if at == len(self._weights):
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype not in DTYPES:
                raise InvalidModel(_NOT_SAID.format(f"it has weights of {dtype}"))
            self._weights.append(tensor.detach().contiguous().numpy())
        return at

    def _call(self, node: torch.fx.Node) -> None:
        name = _name_of(node.target)
        if any(part in name for part in _DROPPED) and not node.users:
            return
        if not is_allowed_operator(name):
            raise InvalidModel(_NOT_SAID.format(f"it calls '{name}'"))
        args = [self._value(value) for value in node.args]
        kwargs = {key: self._value(value) for key, value in node.kwargs.items()}
        self._values[node.name] = {"node": len(self._nodes)}
        self._nodes.append(Node(name, args, kwargs))

    def _value(self, value: Any) -> Any:
        import torch

        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, torch.fx.Node):
            return self._values[value.name]
        if isinstance(value, (list, tuple)):
            return [self._value(part) for part in value]
        if isinstance(value, str):
            return {"text": value}
        if isinstance(value, torch.device):
            return {"device": None}
        for kind, type_ in (("dtype", torch.dtype), ("memory_format", torch.memory_format), ("layout", torch.layout)):
            if isinstance(value, type_):
                return {kind: str(value).removeprefix("torch.")}
        raise InvalidModel(_NOT_SAID.format(f"a {type(value).__name__} is given to one of its operators"))


def _name_of(target: Any) -> str:
    """An operator as an export archive names it."""
    import torch

    if isinstance(target, torch._ops.OpOverload):
        return f"torch.ops.{str(target)}"
    name = str(getattr(target, "__name__", ""))
    for module, home in ((operator, "_operator"), (math, "math"), (torch, "torch")):
        if getattr(module, name, None) is target:
            return f"{home}.{name}"
    return str(target)
