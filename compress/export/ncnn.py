"""Builds for ncnn: its two files, made by pnnx from a trace of the model."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fleetfit.compress.export.base import Exporter, named
from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes.archive import pack
from fleetfit.runtimes.base import Availability
from fleetfit.runtimes.ncnn import MEMBERS, Ncnn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fleetfit.compress.exporter import Session
    from fleetfit.compress.graph import LayeredModel
    from fleetfit.compress.tasks import Tensor

_PNNX_S: Final = 300.0
_TRIAL_S: Final = 120.0
_DTYPES: Final[Mapping[str, str]] = {"float32": "f32", "int64": "i64", "int32": "i32"}
# Layers that ncnn has are named in letters; what pnnx could not translate keeps PyTorch's name, with a dot or colon.
_LAYER: Final = re.compile(r"^(\S*[.:]\S*)\s+\S+\s+\d+\s+\d+", re.MULTILINE)


class NcnnExporter(Exporter):
    """Through pnnx, a program of its own. Both it and ncnn can crash on a graph they do not expect: each has a process."""

    runtime: ClassVar[str] = "ncnn"
    format: ClassVar[str] = "ncnn"
    file: ClassVar[str] = "build.ncnn"
    title: ClassVar[str] = "ncnn"
    packages: ClassVar[Sequence[str]] = ("ncnn", "pnnx")

    def availability(self) -> Availability:
        """Whether ncnn and pnnx are here."""
        if _program() is None:
            return Availability(False, 'pip install "fleetfit[pnnx]"')
        return Ncnn().availability()

    def programs(self) -> Sequence[Path]:
        """Pnnx, and Python for the trial of the build."""
        return [path for path in (_program(), Path(sys.executable)) if path is not None]

    def export(self, model: LayeredModel, onnx: bytes) -> bytes:
        """With weights as floats of 32 bits: pnnx's default would halve them silently."""
        for tensor in model.inputs:
            if tensor.dtype not in _DTYPES or not 2 <= len(tensor.shape) <= 5:
                raise InvalidModel(
                    f"ncnn cannot take the input '{tensor.name}' ({tensor.dtype} {tensor.shape}); use another runtime"
                )
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _trace(model, folder / "model.pt")
            (folder / "model.onnx").write_bytes(onnx)
            missing: list[str] = []
            # Its reader of PyTorch knows recurrent layers and attention better, that of ONNX some rearrangements.
            for file in ("model.pt", "model.onnx"):
                _convert(model, folder, file)
                made = [folder / name for name in ("model.ncnn.param", "model.ncnn.bin", "model_ncnn.py")]
                if not all(path.exists() for path in made):
                    continue
                param, weights, script = (path.read_bytes() for path in made)
                found = sorted(set(_LAYER.findall(param.decode(errors="replace"))))
                if not found:
                    return pack(dict(zip(MEMBERS, [param, weights, _ports(model, script.decode())], strict=True)))
                missing = missing or found
                for path in made:
                    path.unlink()
        what = f"it has no {', '.join(missing[:5])}" if missing else "pnnx made nothing of it"
        raise InvalidModel(f"the model cannot be expressed for ncnn: {what}; use another runtime")

    def session(self, build: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> Session:
        """In a process of its own."""
        return _Apart(build, [*inputs], [*outputs])


class _Apart:
    """Runs a build for each call in a new process."""

    def __init__(self, build: bytes, inputs: list[str], outputs: list[str]) -> None:
        self._build, self.input_names, self.names = build, inputs, outputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        import numpy as np

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "build").write_bytes(self._build)
            np.savez(folder / "inputs.npz", allow_pickle=False, **dict(inputs))
            command = [sys.executable, "-m", "fleetfit.compress.export.trial", "ncnn", name]
            ended = _run(command, folder, _TRIAL_S, "ncnn")
            if not (folder / "outputs.npz").exists():
                raise InvalidModel(
                    "the model's build for ncnn does not run; use another runtime", private=ended[-4000:]
                )
            with np.load(folder / "outputs.npz", allow_pickle=False) as found:
                return named(dict(found), self.names)


def _program() -> Path | None:
    """Pnnx's program, beside its Python module, which is not imported."""
    found = importlib.util.find_spec("pnnx")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).with_name("pnnx")
    return path if path.exists() else None


def _trace(model: LayeredModel, path: Path) -> None:
    """TorchScript of the model in evaluation mode: what pnnx reads."""
    import torch

    from fleetfit.compress.exporter import quiet

    module = model.clone().module.eval()
    with quiet(), torch.no_grad():
        try:
            trace: Any = torch.jit.trace
            traced = trace(module, tuple(_samples(model, 2).values()), check_trace=False, strict=False)
            torch.jit.save(traced, path)
        except Exception as error:  # the tracer runs the whole model, which may raise anything
            raise InvalidModel(
                "the model cannot be traced for ncnn; use another runtime", private=f"{type(error).__name__}: {error}"
            ) from error


def _samples(model: LayeredModel, count: int) -> dict[str, Any]:
    """The samples, repeated or cut to `count` where the batch may vary."""
    samples = {tensor.name: model.sample_inputs[tensor.name] for tensor in model.inputs}
    if not model.dynamic_batch:
        return samples
    return {name: value[:1].repeat(count, *[1] * (value.ndim - 1)) for name, value in samples.items()}


def _convert(model: LayeredModel, folder: Path, file: str) -> None:
    program = _program()
    assert program is not None  # noqa: S101 - availability said so
    command = [str(program), file, f"inputshape={_shapes(model, 2)}", "fp16=0"]
    if model.dynamic_batch:
        # Two sizes tell it which dimension may vary.
        command.append(f"inputshape2={_shapes(model, 3)}")
    _run(command, folder, _PNNX_S, "pnnx")


def _shapes(model: LayeredModel, count: int) -> str:
    dtypes: dict[str, Tensor] = {tensor.name: tensor for tensor in model.inputs}
    return ",".join(
        f"[{','.join(str(size) for size in value.shape)}]{_DTYPES[dtypes[name].dtype]}"
        for name, value in _samples(model, count).items()
    )


def _run(command: list[str], folder: Path, limit_s: float, what: str) -> str:
    """Run a program in `folder`; what it said. How it ended shows in what it made."""
    try:
        ended = subprocess.run(  # noqa: S603 - our own program, with arguments of our own making
            command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InvalidModel(f"{what} took longer than {limit_s:g} s for this model; use another runtime") from error
    return (ended.stdout + ended.stderr).decode(errors="replace")


def _ports(model: LayeredModel, script: str) -> bytes:
    """What pnnx's own example says of inputs and outputs: whether their first dimension became ncnn's batch."""

    def listed(prefix: str, call: str, tensors: Sequence[Tensor]) -> list[dict[str, object]]:
        ports: list[dict[str, object]] = []
        for at, tensor in enumerate(tensors):
            batched = re.search(call.format(blob=f"{prefix}{at}"), script) is not None
            ports.append(
                {
                    "blob": f"{prefix}{at}",
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": tensor.shape,
                    "batched": batched,
                }
            )
        return ports

    ports = {
        "inputs": listed("in", r"Mat\({blob}\.numpy\(\), batch_index=0\)", model.inputs),
        "outputs": listed("out", r"{blob}\.numpy\(batch_index=0\)", model.outputs),
    }
    return json.dumps(ports, sort_keys=True).encode()
