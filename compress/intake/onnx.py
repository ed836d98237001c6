"""Check of an uploaded ONNX file, which can be measured and quantized but not trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from fleetfit.compress.tasks import ModelFacts, Tensor
from fleetfit.core.errors import InvalidModel

_MAX_BYTES = (2 << 30) - 1
_MAX_NODES = 100_000
_MAX_ELEMENTS = 1 << 31
_CURE = (
    "export it again, for example with torch.onnx.export(model, args, 'model.onnx', dynamo=True, external_data=False)"
)
_STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_BATCH = 2
# What stands for a free size that is not the batch (a length, say), where nothing else tells it.
_UNKNOWN_SIZE = 8


def _refuse(problem: str, private: str = "") -> NoReturn:
    raise InvalidModel(f"The ONNX file {problem}; {_CURE}.", private=private)


def check_onnx(path: Path, *, given: Sequence[Tensor] = (), finite: bool = True) -> ModelFacts:
    """Check an ONNX file and run it once in ONNX Runtime.

    `given` are tensors whose sizes the inputs of the same names get where their own are free. What comes out for numbers between
    0 and 1 may be infinite, or no number, only without `finite`.

    Raises:
        InvalidModel: It is damaged, reads other files, holds numbers that are not finite, or does not run.
    """
    if path.stat().st_size > _MAX_BYTES:
        _refuse("is larger than 2 GiB")
    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as failure:
        _refuse("is damaged or is no ONNX file", str(failure))
    _check_contents(model)
    try:
        onnx.checker.check_model(model)
        # Shapes that contradict each other are found here; unknown ones are no error.
        inferred = onnx.shape_inference.infer_shapes(_for_one_sample(model, given), strict_mode=False, data_prop=True)
    except Exception as failure:  # noqa: BLE001 - the checker raises types of its own, and of its C++ part
        _refuse(f"breaks the ONNX standard ({' '.join(str(failure).split())[:120]})", str(failure))
    weights = {tensor.name for tensor in model.graph.initializer}
    parameters = _check_weights(model)
    inputs = [_tensor(value) for value in model.graph.input if value.name not in weights]
    outputs = [_tensor(value) for value in model.graph.output]
    if not inputs or not outputs:
        _refuse("takes no input or gives no output")
    notes = [
        "An ONNX file is measured and quantized; pruning and training need the PyTorch model, see fleetfit.export."
    ]
    outputs, dynamic = _run(content, inputs, outputs, given, finite)
    inputs = [
        tensor.model_copy(update={"shape": [-1 if dynamic else tensor.shape[0], *tensor.shape[1:]]})
        for tensor in inputs
    ]
    if not dynamic:
        notes.append("The model has a fixed batch size; export it with a dynamic first axis to measure others.")
    return ModelFacts(
        inputs=inputs,
        outputs=outputs,
        parameters=parameters,
        macs=_macs(inferred),
        recognised_share=0.0,
        trainable=False,
        notes=notes,
    )


# A function's body has nodes as a graph has, and so all that hangs on them.
_Body = onnx.GraphProto | onnx.FunctionProto


def _bodies(model: onnx.ModelProto) -> Iterator[_Body]:
    waiting: list[_Body] = [model.graph, *model.functions]
    while waiting:
        current = waiting.pop()
        yield current
        for node in current.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def _tensors(body: _Body) -> Iterator[onnx.TensorProto]:
    sparse: list[onnx.SparseTensorProto] = []
    if isinstance(body, onnx.GraphProto):
        yield from body.initializer
        sparse += body.sparse_initializer
    for node in body.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                sparse.append(attribute.sparse_tensor)
            sparse += attribute.sparse_tensors
    for tensor in sparse:
        yield tensor.values
        yield tensor.indices


def _check_contents(model: onnx.ModelProto) -> None:
    """No other files, no unknown operators, no absurd sizes."""
    count = 0
    own = {function.domain for function in model.functions}
    for body in _bodies(model):
        count += len(body.node)
        for tensor in _tensors(body):
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                _refuse("keeps weights in another file, which is not read")
            elements = 1
            for size in tensor.dims:
                elements *= size
                if size < 0 or elements > _MAX_ELEMENTS:
                    _refuse(f"has a tensor {tensor.name[:60]!r} of an absurd size")
        if isinstance(body, onnx.GraphProto) and body.sparse_initializer:
            _refuse("holds sparse weights")
        for node in body.node:
            if node.domain not in _STANDARD_DOMAINS and node.domain not in own:
                _refuse(
                    f"uses the operator {node.op_type[:60]!r} of {node.domain[:60]!r}, which ONNX Runtime does not have"
                )
    if count > _MAX_NODES:
        _refuse(f"has {count} operators where {_MAX_NODES} are allowed")


def _check_weights(model: onnx.ModelProto) -> int:
    total = 0
    for tensor in model.graph.initializer:
        try:
            values = numpy_helper.to_array(tensor)
        except Exception as failure:  # noqa: BLE001 - a length that does not fit, an unknown type
            _refuse(f"has an unreadable weight {tensor.name[:60]!r}", str(failure))
        if values.dtype.kind == "f":
            if not np.isfinite(values.astype(np.float32, copy=False)).all():
                _refuse(f"holds NaN or infinity in its weight {tensor.name[:60]!r}")
            total += values.size
        elif values.dtype.itemsize == 1:
            total += values.size
    return total


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        _refuse(f"has {value.name[:60]!r}, which is not a tensor")
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    except (KeyError, TypeError):
        _refuse(f"has {value.name[:60]!r} of an unknown type")
    shape = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else -1 for dim in kind.shape.dim]
    return Tensor(name=value.name, dtype=dtype, shape=shape)


def _free_size(given: Sequence[Tensor], name: str, axis: int) -> int:
    """What stands for a free size that is not the batch: that of the tensor which is given under this name, if it has one."""
    known = next((tensor.shape for tensor in given if tensor.name == name), [])
    return known[axis] if axis < len(known) and known[axis] > 0 else _UNKNOWN_SIZE


def _samples(inputs: list[Tensor], batch: int, given: Sequence[Tensor]) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for tensor in inputs:
        if not tensor.shape:
            _refuse(f"has an input {tensor.name!r} without a batch axis")
        shape = [
            batch if i == 0 and size == -1 else (_free_size(given, tensor.name, i) if size == -1 else size)
            for i, size in enumerate(tensor.shape)
        ]
        if int(np.prod(shape, dtype=np.float64)) > _MAX_ELEMENTS:
            _refuse(f"has an input {tensor.name!r} of an absurd size")
        dtype = np.dtype(tensor.dtype)
        values = generator.random(shape) if dtype.kind == "f" else np.zeros(shape)
        feeds[tensor.name] = values.astype(dtype)
    return feeds


def _run(
    content: bytes, inputs: list[Tensor], outputs: list[Tensor], given: Sequence[Tensor], finite: bool
) -> tuple[list[Tensor], bool]:
    """The outputs as they come out of ONNX Runtime, and whether the batch may vary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    feeds = _samples(inputs, _BATCH, given)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        results = session.run(None, feeds)
    except Exception as failure:  # noqa: BLE001 - ONNX Runtime raises a type per status
        said = " ".join(str(failure).split())
        _refuse(f"does not run in ONNX Runtime {onnxruntime.__version__} ({said[:200]})", said)
    batch = next(iter(feeds.values())).shape[0]
    dynamic = all(tensor.shape[0] == -1 for tensor in inputs)
    found = []
    for tensor, value in zip(outputs, results, strict=True):
        if not isinstance(value, np.ndarray):
            _refuse(f"gives {tensor.name!r}, which is not a tensor")
        if finite and value.dtype.kind == "f" and not np.isfinite(value).all():
            _refuse(f"gives NaN or infinity in {tensor.name!r} for inputs between 0 and 1")
        shape = list(value.shape)
        if dynamic and shape and shape[0] == batch:
            shape[0] = -1
        found.append(Tensor(name=tensor.name, dtype=value.dtype.name, shape=shape))
    return found, dynamic


def _for_one_sample(model: onnx.ModelProto, given: Sequence[Tensor]) -> onnx.ModelProto:
    """A copy whose inputs hold one sample, so that every size in it can be worked out."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value <= 0:
                dim.dim_value = 1 if axis == 0 else _free_size(given, value.name, axis)
    # What the exporter wrote down for the symbolic batch would contradict it.
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return copy


def _macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of convolutions and matrix products for one sample, as far as shapes are known; else 0."""
    shapes: dict[str, list[int]] = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        # An unknown size counts once: it is the batch.
        shapes.setdefault(value.name, [dim.dim_value if dim.dim_value > 0 else 1 for dim in dims])
    total = 0
    for node in model.graph.node:
        if not node.output or node.output[0] not in shapes or len(node.input) < 2 or node.input[1] not in shapes:
            continue
        out, weight = shapes[node.output[0]], shapes[node.input[1]]
        positions = int(np.prod(out, dtype=np.int64))
        if node.op_type == "Conv":
            total += positions * int(np.prod(weight[1:], dtype=np.int64))
        elif node.op_type == "ConvTranspose" and node.input[0] in shapes:
            total += int(np.prod(shapes[node.input[0]], dtype=np.int64)) * int(np.prod(weight[1:], dtype=np.int64))
        elif (
            node.op_type in ("MatMul", "Gemm", "MatMulInteger", "QGemm")
            and len(weight) >= 2
            and node.input[0] in shapes
        ):
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            total += positions * (weight[-1] if transposed else weight[-2])
    return total
