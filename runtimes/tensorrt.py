"""TensorRT on an NVIDIA GPU: on a Jetson the one that JetPack has installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fleetfit.core.errors import FleetfitError
from fleetfit.runtimes.base import Arrays, Availability, LoadedModel, Runtime, ignore_progress
from fleetfit.runtimes.building import BUILD_LIMIT_S, Shapes, Tell, memory_limit
from fleetfit.runtimes.cuda import free_bytes
from fleetfit.runtimes.operators import NoProfile, Profile
from fleetfit.runtimes.tensorrt_builder import build_engine
from fleetfit.runtimes.tensorrt_engine import Here


class TensorRt(Runtime):
    """ONNX files through an engine that TensorRT builds on the device, kept for the next time.

    Computes in the build's own number formats: float32 is not TF32, and int8 is where the build has it. An engine is built
    for one batch, because that is what gives the shortest latency; other batches are run in pieces of it.
    """

    name: ClassVar[str] = "tensorrt"
    formats: ClassVar[Sequence[str]] = ("onnx",)
    compiles: ClassVar[bool] = True
    uses_gpu: ClassVar[bool] = True

    def availability(self) -> Availability:
        """Whether TensorRT's module, CUDA's library and a GPU are here."""
        try:
            here = _Here.find()
        except FleetfitError as error:
            return Availability(False, error.message)
        return Availability(True, "", here.version, (here.gpu,))

    def gpu_free_bytes(self) -> int | None:
        """As CUDA tells."""
        return free_bytes()

    def prepare(
        self, build: bytes, feeds: Arrays, *, threads: int, attempt: int = 0, progress: Tell = ignore_progress
    ) -> None:
        """Build the engine for these inputs, unless there is one. It takes minutes, at most half an hour."""
        _Here.find().engine(build, {name: tuple(values.shape) for name, values in feeds.items()}, progress, attempt)

    def load(self, build: bytes, *, threads: int) -> LoadedModel:
        """The engine that was used last for this build, else one for a single sample. The processor uses one thread."""
        return _Here.find().open(build)

    def profile(
        self, build: bytes, feeds: Arrays, *, threads: int, progress: Tell = ignore_progress
    ) -> Profile | NoProfile:
        """Layer by layer, of the engine for these inputs, as TensorRT tells it; no operator types, no number formats."""
        return _Here.find().profile(build, feeds, progress)


class _Here(Here):
    """TensorRT reads the ONNX file by itself."""

    def compile(self, build: bytes, shapes: Shapes, progress: Tell) -> bytes:
        return build_engine(build, shapes, limit_s=BUILD_LIMIT_S, memory_bytes=memory_limit(), progress=progress)
