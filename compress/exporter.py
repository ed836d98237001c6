"""From a layered model to an ONNX file, with the proof that ONNX Runtime computes what PyTorch does."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.base import Arrays
from fleetfit.core.errors import InvalidModel

OPSET: Final = 18
# Relative to the largest output. A float32 sum in another order differs by about 1e-6 of it per layer; halves keep 3 digits.
TOLERANCE: Final[Mapping[str, float]] = {"float64": 1e-3, "float32": 1e-3, "float16": 2e-2, "bfloat16": 6e-2}
# Whole numbers come from comparisons of floats (`argmax`): where two are equal but for rounding, either is right.
_DIFFERENT_INTEGERS: Final = 0.02
# Two batches, so that a batch size that the exporter took for a constant is found.
_CHECKED_SAMPLES: Final = (16, 3)
_PREDICTED_BATCH: Final = 256
_ONNX: Final = "ONNX Runtime"
_ADVICE: Final = "push an ONNX file of your own export to measure the model as it is"
_OTHERWISE: Final = "use another runtime"


def export_onnx(model: LayeredModel) -> bytes:
    """The model in evaluation mode as ONNX, inputs and outputs under their names, the batch dynamic where it is.

    Raises InvalidModel where the exporter cannot express it.
    """
    with quiet():
        try:
            exported = torch.onnx.export(
                contiguous(model.exported()),
                input_names=[tensor.name for tensor in model.inputs],
                output_names=[tensor.name for tensor in model.outputs],
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                optimize=True,
                verbose=False,
            )
            assert exported is not None  # noqa: S101 - tells the type checker
            content: bytes = exported.model_proto.SerializeToString()
        except Exception as error:
            raise InvalidModel(
                "the compressed model cannot be expressed in ONNX; push an ONNX file of the model to measure it as it is",
                private=f"{type(error).__name__}: {error}",
            ) from error
    return _cleaned(content)


def contiguous(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program, in place, with what attention gives laid out in order.

    How scaled_dot_product_attention lays out its result depends on the kernel. A view that fits the kernel of the export does
    not fit what the exporter puts in its place (with a mask, `view size is not compatible`). The copy is an Identity in ONNX.
    """
    graph = program.graph_module.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default):
        with graph.inserting_after(node):
            copy = graph.call_function(
                torch.ops.aten.clone.default, (node,), {"memory_format": torch.contiguous_format}
            )
        copy.meta = {**node.meta, "val": node.meta["val"].clone(memory_format=torch.contiguous_format)}
        node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
    program.graph_module.recompile()
    return program


def _cleaned(content: bytes) -> bytes:
    """Without what no runtime reads: the exporter writes stack traces and paths into every node."""
    proto: Any = onnx.load_model_from_string(content)
    del proto.metadata_props[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    # Shapes of intermediate values are inferred again by every runtime, and bind what should stay free.
    del proto.graph.value_info[:]
    cleaned: bytes = proto.SerializeToString(deterministic=True)
    return cleaned


class Session(Protocol):
    """A build as its runtime runs it."""

    names: list[str]
    input_names: list[str]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs by name."""
        ...


class OnnxSession:
    """An ONNX file in ONNX Runtime on the CPU, for checks and metrics; not for timing."""

    def __init__(self, content: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.names: list[str] = [output.name for output in self._session.get_outputs()]
        self.input_names: list[str] = [value.name for value in self._session.get_inputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs by name."""
        return dict(zip(self.names, self._session.run(self.names, dict(inputs)), strict=True))


def predict_onnx(content: bytes, data: Arrays, batch: int | None) -> dict[str, NDArray[Any]]:
    """`predict` for an ONNX file."""
    return predict(OnnxSession(content), data, batch)


def predict(session: Session, data: Arrays, batch: int | None) -> dict[str, NDArray[Any]]:
    """All outputs of a build over a split, by name.

    Where it takes only batches of `batch`, the last one is filled up with its last sample, which then does not count.
    """
    size = batch or _PREDICTED_BATCH
    parts = []
    for at in range(0, len(data), size):
        rows = np.arange(at, min(at + size, len(data)))
        real = len(rows)
        if batch is not None:
            rows = np.concatenate([rows, np.full(batch - real, rows[-1])])
        outputs = session.run({name: data.inputs[name][rows] for name in session.input_names})
        parts.append({name: values[:real] for name, values in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def largest_difference(model: LayeredModel, content: bytes, data: Arrays | None) -> float:
    """The largest absolute difference of any output between ONNX Runtime and PyTorch, on real inputs where there are any.

    Raises InvalidModel where names or shapes differ, or a value is not finite where PyTorch's is.
    """
    return max((found.difference for found in _compare(model, OnnxSession(content), data)), default=0.0)


def prove_equal(model: LayeredModel, content: bytes, data: Arrays | None) -> float:
    """`largest_difference`, refused with InvalidModel where it is more than rounding explains."""
    return prove_session(model, OnnxSession(content), data)


def prove_session(model: LayeredModel, session: Session, data: Arrays | None, title: str = _ONNX) -> float:
    """`prove_equal` for a build that runs in any runtime, which is called `title` in messages."""
    largest = 0.0
    for found in _compare(model, session, data, title):
        largest = max(largest, found.difference)
        if found.dtype in TOLERANCE:
            wrong = found.difference > TOLERANCE[found.dtype] * max(found.scale, 1.0)
        else:
            wrong = found.unequal > _DIFFERENT_INTEGERS
        if wrong:
            raise InvalidModel(
                f"{title} and PyTorch differ by {found.difference:.2g} on the output '{found.name}' of the built model "
                f"(values up to {found.scale:.2g}); it is not used: {_ADVICE if title == _ONNX else _OTHERWISE}"
            )
    return largest


@dataclass(frozen=True)
class _Compared:
    """One output over one batch. `unequal` is the share of its values that differ at all."""

    name: str
    dtype: str
    difference: float
    scale: float
    unequal: float


def _compare(model: LayeredModel, session: Session, data: Arrays | None, title: str = _ONNX) -> Iterator[_Compared]:
    wanted_names = [tensor.name for tensor in model.outputs]
    if session.names != wanted_names or set(session.input_names) - {tensor.name for tensor in model.inputs}:
        raise InvalidModel(
            "the built model's inputs or outputs lost their names; push an ONNX file of your own export to measure the model "
            "as it is",
            private=f"{session.input_names} -> {session.names}, wanted {wanted_names}",
        )
    model.module.eval()
    for inputs in _real_inputs(model, data):
        with torch.no_grad():
            wanted = model.call({name: torch.from_numpy(values) for name, values in inputs.items()})
        # An input that nothing reads is none of the exported file's.
        got = _run(session, {name: values for name, values in inputs.items() if name in session.input_names}, title)
        for name, tensor in wanted.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            expected = (tensor.float() if dtype == "bfloat16" else tensor).numpy().astype(np.float64)
            actual = got[name].astype(np.float64)
            finite = np.isfinite(expected)
            if expected.shape != actual.shape or not np.isfinite(actual[finite]).all():
                raise InvalidModel(
                    f"{title} and PyTorch disagree on the output '{name}' of the built model; it is not used"
                )
            distance = np.abs(expected[finite] - actual[finite])
            yield _Compared(
                name,
                dtype,
                float(distance.max(initial=0.0)),
                float(np.abs(expected[finite]).max(initial=0.0)),
                float((distance > 0).mean()) if distance.size else 0.0,
            )


def _run(session: Session, inputs: dict[str, NDArray[Any]], title: str) -> dict[str, NDArray[Any]]:
    try:
        return session.run(inputs)
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime's have no common root
        count = len(next(iter(inputs.values()), ()))
        raise InvalidModel(
            f"the built model does not run in {title} with a batch of {count}; it is not used: "
            + (_ADVICE if title == _ONNX else _OTHERWISE),
            private=getattr(error, "private", "") or str(error),
        ) from error


def _real_inputs(model: LayeredModel, data: Arrays | None) -> Iterator[dict[str, NDArray[Any]]]:
    wanted = _CHECKED_SAMPLES if model.dynamic_batch else (model.sample_batch(),)
    if data is None or len(data) < wanted[0]:
        samples = {name: value.numpy() for name, value in model.sample_inputs.items()}
        yield samples
        if model.dynamic_batch:
            yield {name: np.concatenate([value, value[:1]]) for name, value in samples.items()}
        return
    names = [tensor.name for tensor in model.inputs]
    for count in wanted:
        yield {name: np.ascontiguousarray(data.inputs[name][:count]) for name in names}


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters' own remarks are for their developers."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # Some are printed, among what a command prints for other programs.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
