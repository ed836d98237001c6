"""Building a TensorRT engine, in a process of its own: it takes minutes, and may crash, hang or eat memory.

`python -m fleetfit.runtimes.tensorrt_builder FOLDER` reads FOLDER/request.json and FOLDER/build.onnx and writes
FOLDER/engine, or one sentence to FOLDER/refused. FOLDER/progress has how far it is, from 0 to 1.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fleetfit.core.children import EXIT_OUT_OF_MEMORY, Limits, child_environment, limit_self
from fleetfit.core.errors import FleetfitError, InvalidModel, TimedOut
from fleetfit.runtimes.cuda import find_cuda
from fleetfit.runtimes.refusal import lines, raise_memory
from fleetfit.runtimes.tensorrt_library import allowed_formats, creation_flags, import_tensorrt

Shapes = Mapping[str, Sequence[int]]
EXIT_REFUSED: Final = 3
# A path below a file: a weight kept outside the build is looked for beside the build's path, and there can be none.
_NOWHERE: Final = "/dev/null/build.onnx"
# What onnx-tensorrt says of weights in other files (parseExternalWeights in its WeightsContext.cpp).
_OUTSIDE: Final = ("/dev/null", "external weights")
_LOOK_S: Final = 0.2
# Of the memory that is free while nothing is loaded: weights, activations and the processor's side need the rest.
_WORKSPACE_SHARE: Final = 0.5


def build_engine(
    build: bytes, shapes: Shapes, *, limit_s: float, memory_bytes: int | None, progress: Callable[[float], None]
) -> bytes:
    """An engine for an ONNX build with inputs of exactly `shapes`; without shapes, of one sample.

    `progress` hears fractions from 0 to 1, and again each time something can be told or time has passed. Raises
    InvalidModel, TimedOut after `limit_s` seconds, and MemoryError where `memory_bytes` or the device's memory are too few.
    """
    with tempfile.TemporaryDirectory(prefix="fleetfit-") as name:
        folder = Path(name)
        (folder / "build.onnx").write_bytes(build)
        request = {"shapes": {port: list(shape) for port, shape in shapes.items()}, "memory_bytes": memory_bytes}
        (folder / "request.json").write_text(json.dumps(request))
        with (folder / "said").open("wb") as said:
            child = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "fleetfit.runtimes.tensorrt_builder", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=child_environment(Limits(memory_bytes=memory_bytes)),
            )
        try:
            code = _watch(child, folder / "progress", limit_s, progress)
        finally:
            child.kill()
            child.wait()
        return _outcome(folder, code)


def _watch(child: subprocess.Popen[bytes], told: Path, limit_s: float, progress: Callable[[float], None]) -> int:
    began, fraction = time.monotonic(), 0.0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(_LOOK_S)
        spent = (time.monotonic() - began) / limit_s
        if spent > 1:
            raise TimedOut(
                f"TensorRT did not finish the build's engine within {limit_s / 60:.0f} minutes; try a smaller build, or a "
                "faster power mode"
            )
        with contextlib.suppress(OSError, ValueError):
            fraction = max(fraction, float(told.read_text()))
        # Versions before 10 tell nothing: the share of the time that has passed is a sign of life at least.
        progress(max(fraction, spent))


def _outcome(folder: Path, code: int) -> bytes:
    if code == 0:
        return (folder / "engine").read_bytes()
    if code == EXIT_OUT_OF_MEMORY:
        raise MemoryError("TensorRT could not allocate what building the engine needs")
    if code == EXIT_REFUSED:
        raise InvalidModel((folder / "refused").read_text())
    tail = (folder / "said").read_text(errors="replace").strip().splitlines()[-1:]
    raise_memory(RuntimeError(*tail))
    raise InvalidModel(
        f"TensorRT crashed while it built the engine ({(tail or ['it said nothing'])[0][:200]}); "
        "try another recipe or runtime"
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


def make_engine(trt: Any, build: bytes, shapes: Shapes, workspace_bytes: int, tell: Callable[[float], None]) -> bytes:
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


def _monitor(trt: Any, tell: Callable[[float], None]) -> Any:
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


def main(arguments: list[str]) -> int:
    """Build what the folder asks for."""
    folder = Path(arguments[0])
    request = json.loads((folder / "request.json").read_text())

    def tell(fraction: float) -> None:
        with contextlib.suppress(OSError):
            (folder / "progress").write_text(f"{fraction:.3f}")

    try:
        trt = import_tensorrt()
        free = find_cuda().free_memory()
        allowed = min(free, request["memory_bytes"] or free)
        build = (folder / "build.onnx").read_bytes()
        plan = make_engine(trt, build, request["shapes"], int(allowed * _WORKSPACE_SHARE), tell)
        (folder / "engine").write_bytes(plan)
    except MemoryError:
        return EXIT_OUT_OF_MEMORY
    except FleetfitError as error:
        (folder / "refused").write_text(error.message)
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    limit_self()
    sys.exit(main(sys.argv[1:]))
