"""Building a TensorRT engine, in a process of its own (see building.py)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fleetfit.core.children import limit_self
from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes.building import Shapes, Tell, engine_apart, serve, workspace_bytes
from fleetfit.runtimes.cuda import find_cuda
from fleetfit.runtimes.refusal import lines, raise_memory
from fleetfit.runtimes.tensorrt_library import allowed_formats, creation_flags, import_tensorrt

# A path below a file: a weight kept outside the build is looked for beside the build's path, and there can be none.
_NOWHERE: Final = "/dev/null/build.onnx"
# What onnx-tensorrt says of weights in other files (parseExternalWeights in its WeightsContext.cpp).
_OUTSIDE: Final = ("/dev/null", "external weights")


def build_engine(build: bytes, shapes: Shapes, *, limit_s: float, memory_bytes: int | None, progress: Tell) -> bytes:
    """An engine for an ONNX build with inputs of exactly `shapes`; without shapes, of one sample. Raises as `build_apart`."""
    module = "fleetfit.runtimes.tensorrt_builder"
    return engine_apart(
        module, build, shapes, title="TensorRT", limit_s=limit_s, memory_bytes=memory_bytes, progress=progress
    )


@dataclass
class Phases:
    """How far nested phases are, told from several threads. The fraction never falls."""

    fraction: float = 0.0
    _steps: dict[str, tuple[int, int]] = field(default_factory=dict)
    _parents: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, name: str, parent: str | None, steps: int) -> float:
        """A phase of so many steps begins, within another or as the first."""
        with self._lock:
            self._steps[name] = (0, max(steps, 1))
            self._parents[name] = parent or ""
            return self._told()

    def step(self, name: str, number: int) -> float:
        """Step `number`, counted from 0, is done."""
        with self._lock:
            if name in self._steps:
                steps = self._steps[name][1]
                self._steps[name] = (min(number + 1, steps), steps)
            return self._told()

    def finish(self, name: str) -> float:
        """A phase has ended, whatever steps are left."""
        with self._lock:
            self._steps.pop(name, None)
            self._parents.pop(name, None)
            return self._told()

    def _told(self) -> float:
        first = [name for name, parent in self._parents.items() if parent not in self._steps]
        self.fraction = max([self.fraction, *(self._part(name, frozenset()) for name in first)])
        return self.fraction

    def _part(self, name: str, above: frozenset[str]) -> float:
        done, steps = self._steps[name]
        below = [one for one, parent in self._parents.items() if parent == name and one not in above | {name}]
        return min((done + max((self._part(one, above | {name}) for one in below), default=0.0)) / steps, 1.0)


def make_engine(trt: Any, build: bytes, shapes: Shapes, workspace_bytes: int, tell: Tell) -> bytes:
    """The engine, in this process, by `trt`, TensorRT's module. Raises InvalidModel."""
    logger = _logger(trt)
    builder = trt.Builder(logger)
    kinds = trt.NetworkDefinitionCreationFlag
    flags = creation_flags(list(kinds.__members__))
    network = builder.create_network(sum(1 << int(kinds.__members__[name]) for name in flags))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(build, path=_NOWHERE):
        said = [parser.get_error(at).desc() for at in range(parser.num_errors)]
        raise InvalidModel(_cannot_read(trt.__version__, [*said, *logger.errors]))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    # What the build says is float32 is computed in float32, as by the other runtimes.
    config.clear_flag(trt.BuilderFlag.TF32)
    layers = [network.get_layer(at) for at in range(network.num_layers)]
    dtypes = [layer.get_output(at).dtype.name for layer in layers for at in range(layer.num_outputs)]
    for name in allowed_formats(flags, [layer.type.name for layer in layers], dtypes):
        config.set_flag(trt.BuilderFlag.__members__[name])
    inputs = [network.get_input(at) for at in range(network.num_inputs)]
    fixed = {tensor.name: fixed_shape(tensor.name, list(tensor.shape), shapes) for tensor in inputs}
    if any(-1 in tensor.shape for tensor in inputs):
        profile = builder.create_optimization_profile()
        for name, shape in fixed.items():
            profile.set_shape(name, min=shape, opt=shape, max=shape)
        config.add_optimization_profile(profile)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt, tell)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        words = logger.errors[0] if logger.errors else "it does not say why"
        raise_memory(RuntimeError(words))
        raise InvalidModel(f"TensorRT {trt.__version__} reads the build but makes no engine of it: {words}")
    return bytes(plan)


def fixed_shape(name: str, declared: Sequence[int], shapes: Shapes) -> tuple[int, ...]:
    """The one shape that an engine is built for: as asked, else one sample. Raises InvalidModel."""
    asked = shapes.get(name)
    if asked is not None:
        if len(asked) != len(declared) or any(want not in (-1, got) for want, got in zip(declared, asked, strict=True)):
            raise InvalidModel(f"the build takes '{name}' as {list(declared)}, not as {list(asked)}")
        return tuple(asked)
    if -1 in declared[1:]:
        raise InvalidModel(
            f"the build takes '{name}' as {list(declared)}, and an engine needs sizes beside the batch that are known; export "
            "the model with fixed sizes"
        )
    return tuple(1 if size == -1 else size for size in declared)


def _cannot_read(version: str, said: Sequence[str]) -> str:
    if any(hint in words for words in said for hint in _OUTSIDE):
        return "the build keeps weights outside itself, where they cannot be reached; save it as one file"
    words = lines(ValueError(said[0]))[0] if said else "it does not say why"
    return f"TensorRT {version} cannot read the build: {words}"


def _logger(trt: Any) -> Any:
    class Errors(trt.ILogger):  # type: ignore[misc]
        """What goes wrong, for a sentence; everything else is of no interest to anybody."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(lines(RuntimeError(msg))[0])

    return Errors()


def _monitor(trt: Any, tell: Tell) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases = Phases()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tell(self._phases.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            tell(self._phases.step(phase_name, step))
            return True

        def phase_finish(self, phase_name: str) -> None:
            tell(self._phases.finish(phase_name))

    return Monitor()


def work(folder: Path, request: Mapping[str, Any], tell: Tell) -> None:
    """Build what the folder asks for."""
    trt = import_tensorrt()
    workspace = workspace_bytes(find_cuda().free_memory(), request["memory_bytes"])
    plan = make_engine(trt, (folder / "build").read_bytes(), request["shapes"], workspace, tell)
    (folder / "engine").write_bytes(plan)


if __name__ == "__main__":
    limit_self()
    sys.exit(serve(Path(sys.argv[1]), work))
