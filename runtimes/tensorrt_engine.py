"""Engines of TensorRT at work, whoever built them: one batch in pinned memory, copied in, computed, copied out."""

from __future__ import annotations

import ctypes
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fleetfit.core.digests import sha256_bytes
from fleetfit.core.errors import InvalidModel, UnsupportedHere
from fleetfit.runtimes.base import Arrays, LoadedModel, ignore_progress
from fleetfit.runtimes.building import Shapes, Tell, memory_limit
from fleetfit.runtimes.cuda import Cuda, find_cuda
from fleetfit.runtimes.engines import Engines
from fleetfit.runtimes.operators import NoProfile, Profile
from fleetfit.runtimes.pieces import pieces
from fleetfit.runtimes.refusal import Port, check_feeds, lines
from fleetfit.runtimes.tensorrt_library import DTYPES, OLDEST, import_tensorrt, version_of
from fleetfit.runtimes.tensorrt_profile import profile_context

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

_MISSING: Final = (
    "TensorRT's Python module is not here ({}); on a Jetson: sudo apt install python3-libnvinfer, and an agent on the "
    "system's own Python"
)


@dataclass(frozen=True)
class Here(ABC):
    """What there is on this device: TensorRT's module, CUDA, and the engines that were built. How they are, subclasses say."""

    trt: Any
    cuda: Cuda
    version: str
    gpu: str
    engines: Engines

    @classmethod
    def find(cls) -> Self:
        """Raises UnsupportedHere."""
        try:
            trt = import_tensorrt()
        except ImportError as error:
            raise UnsupportedHere(_MISSING.format(lines(error)[0])) from error
        version = str(trt.__version__)
        if version_of(version) < OLDEST:
            raise UnsupportedHere(f"TensorRT {version} is too old; it takes 8.5 or newer, which JetPack 5.1 has")
        cuda = find_cuda()
        cuda.require_gpu()
        return cls(trt, cuda, version, cuda.gpu(), Engines.here())

    @abstractmethod
    def compile(self, build: bytes, shapes: Shapes, progress: Tell) -> bytes:
        """An engine for inputs of exactly `shapes`; without shapes, of one sample. Raises as `build_apart`."""

    def compiler(self) -> Sequence[str]:
        """What names the compiler beside TensorRT's version: engines of two compilers are two."""
        return ()

    def engine(self, build: bytes, shapes: Shapes, progress: Tell, attempt: int = 0) -> bytes:
        """The engine for these shapes, built if need be."""

        def make(path: Path) -> None:
            path.write_bytes(self.compile(build, shapes, progress))

        return self.engines.find(self._build_key(build), shapes, attempt, make).read_bytes()

    def last_engine(self, build: bytes) -> bytes | None:
        """The one of this build that was used last."""
        found = self.engines.last(self._build_key(build))
        return found.read_bytes() if found else None

    def open(self, build: bytes, batched: bool | None = None) -> _Model:
        """The engine that was used last for this build, else one for a single sample.

        `batched`: whether every input and output of the build has a row for each sample; None where its engines say that.
        """
        model = _Model(self, build, batched)
        try:
            model.open(self.last_engine(build) or self.engine(build, {}, ignore_progress))
        except BaseException:
            # Whatever ends it, the GPU's memory goes back.
            model.close()
            raise
        return model

    def profile(self, build: bytes, feeds: Arrays, progress: Tell, batched: bool | None = None) -> Profile | NoProfile:
        """Layer by layer, of the engine for these inputs, as TensorRT tells it."""
        model = self.open(build, batched)
        try:
            call = model.bind(feeds)
            return profile_context(self.trt, model.context_for(feeds), call, progress)
        finally:
            model.close()

    def _build_key(self, build: bytes) -> list[str]:
        # An engine runs where it was built: with that version, on that kind of GPU.
        return [sha256_bytes(build), self.version, self.cuda.version(), self.gpu, *self.compiler()]


class _Model(LoadedModel):
    """The engines of one build that are open: one, unless inputs come that it does not take."""

    def __init__(self, here: Here, build: bytes, batched: bool | None) -> None:
        self._here, self._build, self._batched = here, build, batched
        self._engines: list[_Engine] = []
        self._buffers: dict[int, _Buffers] = {}
        self._bound: list[_Buffers] = []

    def open(self, plan: bytes) -> _Engine:
        """Load an engine."""
        engine = _Engine(self._here, plan, self._batched)
        self._engines.append(engine)
        return engine

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        import numpy as np

        fed = self._fed(feeds)
        first = self._engines[0]
        count = len(next(iter(fed.values()))) if all(values.ndim for values in fed.values()) else 0
        if first.takes(fed) or not first.takes_pieces_of(fed):
            return self._run(self._engine_for(fed), fed)
        parts = [self._run(first, piece) for piece in pieces(fed, first.batch)]
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}

    def bind(self, feeds: Arrays) -> Callable[[], None]:
        fed = self._fed(feeds)
        engine = self._engine_for(fed)
        buffers = _Buffers(self._here.cuda, engine, fed)
        self._bound.append(buffers)
        buffers.fill(fed)
        buffers.call()

        def call() -> None:
            buffers.call()

        call.held = feeds  # type: ignore[attr-defined]
        return call

    def context_for(self, feeds: Arrays) -> Any:
        """TensorRT's context that calls with these inputs run in."""
        return self._engine_for(self._fed(feeds)).context

    def close(self) -> None:
        for buffers in [*self._bound, *self._buffers.values()]:
            buffers.close()
        for engine in self._engines:
            engine.close()
        self._bound, self._buffers, self._engines = [], {}, []

    def _run(self, engine: _Engine, fed: Arrays) -> dict[str, NDArray[Any]]:
        at = id(engine)
        if at not in self._buffers:
            self._buffers[at] = _Buffers(self._here.cuda, engine, fed)
        buffers = self._buffers[at]
        buffers.fill(fed)
        buffers.call()
        return buffers.outputs()

    def _engine_for(self, fed: Arrays) -> _Engine:
        for engine in self._engines:
            if engine.takes(fed):
                return engine
        shapes = {name: tuple(values.shape) for name, values in fed.items()}
        return self.open(self._here.engine(self._build, shapes, ignore_progress))

    def _fed(self, feeds: Arrays) -> Arrays:
        """The inputs in the types that the engine takes: 8.x makes every int64 of a build an int32."""
        ports = self._engines[0].inputs
        kinds = {port.name: port.dtype for port in ports}
        narrowed = {
            name: values.astype("int32") if values.dtype.name == "int64" and kinds.get(name) == "int32" else values
            for name, values in feeds.items()
        }
        check_feeds(narrowed, ports)
        return narrowed


class _Engine:
    """An engine with its one context."""

    def __init__(self, here: Here, plan: bytes, batched: bool | None) -> None:
        trt = here.trt
        self._batched = batched
        self._logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise InvalidModel(
                "TensorRT cannot load the engine that was built here; delete the folder of engines and retry"
            )
        names = [self._engine.get_tensor_name(at) for at in range(self._engine.num_io_tensors)]
        fed = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.inputs = [self._port(name) for name in fed]
        needed = _device_memory(self._engine)
        limit = memory_limit()
        if needed > (limit or needed):
            raise MemoryError(f"the engine needs {needed} bytes to run, and {limit} are allowed")
        self.context = self._engine.create_execution_context()
        if self.context is None:
            raise MemoryError(f"TensorRT made no context for the engine, which needs {needed} bytes to run")
        self.addressed: _Buffers | None = None
        # The only shape that the engine was built for.
        self._shapes = {name: self._built_for(name) for name in fed}
        for name, shape in self._shapes.items():
            if not self.context.set_input_shape(name, shape):
                raise InvalidModel(
                    f"TensorRT does not take '{name}' as {list(shape)}; delete the folder of engines and retry"
                )
        self.batch = next((shape[0] for shape in self._shapes.values() if shape), 0)
        self.outputs = [self._output(name) for name in names if name not in fed]

    def takes(self, feeds: Arrays) -> bool:
        """Whether inputs have exactly the shapes that the engine was built for."""
        return all(tuple(feeds[name].shape) == shape for name, shape in self._shapes.items())

    def takes_pieces_of(self, feeds: Arrays) -> bool:
        """Whether samples can be run some at a time: nothing but the batch differs, and each output has a row per sample."""
        counts = {values.shape[0] if values.ndim else 0 for values in feeds.values()}
        rows = all(map(self._varies, self.inputs))
        same = all(tuple(feeds[name].shape[1:]) == shape[1:] for name, shape in self._shapes.items())
        return rows and same and len(counts) == 1 and min(counts) > 0 and all(map(self._has_rows, self.outputs))

    def close(self) -> None:
        """Free everything."""
        self.context = self._engine = self._runtime = self.addressed = None

    def _has_rows(self, port: Port) -> bool:
        # One row may be one for all samples; then its number does not vary with theirs.
        return port.shape[:1] == (self.batch,) and self._varies(port)

    def _varies(self, port: Port) -> bool:
        """Whether a tensor has as many rows as there are samples."""
        shape = self._engine.get_tensor_shape(port.name)
        return bool(len(shape)) and (shape[0] == -1 if self._batched is None else self._batched)

    def _built_for(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._engine.get_tensor_shape(name))
        # Least, best and most are the same.
        return tuple(self._engine.get_tensor_profile_shape(name, 0)[1]) if -1 in shape else shape

    def _port(self, name: str) -> Port:
        dtype = self._engine.get_tensor_dtype(name).name
        if dtype not in DTYPES:
            raise InvalidModel(f"the build has '{name}' as {dtype.lower()}, which NumPy has not; export it as float32")
        shape = tuple(self._engine.get_tensor_shape(name))
        # Engines of fixed sizes do not say that their batch is one of many; who says it for them has checked the inputs.
        return Port(name, DTYPES[dtype], (-1, *shape[1:]) if self._batched is not None and shape else shape)

    def _output(self, name: str) -> Port:
        shape = tuple(self.context.get_tensor_shape(name))
        if -1 in shape:
            raise InvalidModel(
                f"the size of '{name}' depends on the values of the inputs, which this runtime does not run; use another"
            )
        return Port(name, self._port(name).dtype, shape)


def _device_memory(engine: Any) -> int:
    # The older name was removed in 11, the newer came with 10.
    return int(engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size)


class _Buffers:
    """Memory for the inputs and outputs of an engine: on the device, and pinned in this process, for copies by the GPU."""

    def __init__(self, cuda: Cuda, engine: _Engine, feeds: Arrays) -> None:
        self._cuda, self._engine = cuda, engine
        self._stream = 0
        self._device: dict[str, int] = {}
        self._host: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._views: Mapping[str, NDArray[Any]] = {}
        inputs = [Port(port.name, port.dtype, tuple(feeds[port.name].shape)) for port in engine.inputs]
        try:
            self._stream = cuda.create_stream()
            self._views = {port.name: self._allocate(port) for port in [*inputs, *engine.outputs]}
        except BaseException:
            self.close()
            raise

    def fill(self, feeds: Arrays) -> None:
        """Take inputs over."""
        for name, values in feeds.items():
            self._views[name][...] = values

    def call(self) -> None:
        """Copy the inputs in, compute, copy the outputs out, wait: what a caller on the processor waits for."""
        engine, cuda, stream = self._engine, self._cuda, self._stream
        if engine.addressed is not self:
            for name, address in self._device.items():
                engine.context.set_tensor_address(name, address)
            engine.addressed = self
        for port in engine.inputs:
            cuda.to_device(self._device[port.name], self._host[port.name], self._sizes[port.name], stream)
        if not engine.context.execute_async_v3(stream):
            raise InvalidModel("the build loads but does not run: TensorRT refused to execute it; use another runtime")
        for port in engine.outputs:
            cuda.to_host(self._host[port.name], self._device[port.name], self._sizes[port.name], stream)
        cuda.synchronize(stream)

    def outputs(self) -> dict[str, NDArray[Any]]:
        """Copies of the outputs."""
        return {port.name: self._views[port.name].copy() for port in self._engine.outputs}

    def close(self) -> None:
        """Free everything."""
        self._views = {}
        for address in self._device.values():
            self._cuda.free(address)
        for address in self._host.values():
            self._cuda.free_host(address)
        if self._stream:
            self._cuda.destroy_stream(self._stream)
        self._device, self._host, self._stream = {}, {}, 0

    def _allocate(self, port: Port) -> NDArray[Any]:
        import numpy as np

        size = math.prod(port.shape) * np.dtype(port.dtype).itemsize
        self._sizes[port.name] = size
        self._device[port.name] = self._cuda.allocate(size)
        self._host[port.name] = self._cuda.allocate_host(size)
        memory: Any = (ctypes.c_char * max(size, 1)).from_address(self._host[port.name])
        return np.ndarray(port.shape, np.dtype(port.dtype), memory)
