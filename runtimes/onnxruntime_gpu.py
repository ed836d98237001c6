"""ONNX Runtime on an NVIDIA GPU: its CUDA provider, and its TensorRT provider.

Which operators run where is known from a profiled run in a process of its own, before anything is timed; the TensorRT provider
leaves its engines there too. Options: onnxruntime.ai/docs/execution-providers/ (CUDA, TensorRT).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fleetfit.core.children import limit_self
from fleetfit.core.digests import sha256_bytes
from fleetfit.core.errors import FleetfitError, InvalidModel, UnsupportedHere
from fleetfit.runtimes.base import Arrays, Availability, LoadedModel, Runtime, ignore_progress
from fleetfit.runtimes.building import BUILD_LIMIT_S, Shapes, Tell, build_apart, memory_limit, serve, workspace_bytes
from fleetfit.runtimes.cuda import Cuda, find_cuda, free_bytes
from fleetfit.runtimes.engines import Engines
from fleetfit.runtimes.onnxruntime import CPU, Provider, Session, open_session, package_with, session_options
from fleetfit.runtimes.onnxruntime_profile import Placement, placement_of
from fleetfit.runtimes.operators import NoProfile
from fleetfit.runtimes.pieces import pieces
from fleetfit.runtimes.refusal import guarded
from fleetfit.runtimes.tensorrt_library import library_version, version_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
_TITLES: Final = {CUDA: "CUDA", TENSORRT: "TensorRT", CPU: "the processor"}
# What ONNX Runtime's own converter calls the casts around a build of half floats (onnxruntime/transformers/float16.py).
_HALF_CASTS: Final = (b"graph_input_cast", b"graph_output_cast")
_PLACEMENT, _SHAPES = "placement.json", "shapes.json"
# tools/ci_build/build_args.py of ONNX Runtime: "Enable CUDA kernel profiling (requires CUPTI in PATH)".
_NO_PROFILE: Final = (
    "ONNX Runtime times what runs on a GPU only where it was built with --enable_cuda_profiling; its events tell when "
    "operators were handed over"
)


class _OnGpu(Runtime):
    """One provider first, and the others for operators that it does not take."""

    formats: ClassVar[Sequence[str]] = ("onnx",)
    uses_gpu: ClassVar[bool] = True
    providers: ClassVar[Sequence[str]]

    def availability(self) -> Availability:
        """Whether the package has the providers, and CUDA's library finds a GPU."""
        found = package_with(self.providers, "onnxruntime-gpu")
        if not found.available:
            return found
        try:
            find_cuda().require_gpu()
        except FleetfitError as error:
            return Availability(False, error.message)
        return Availability(True, "", self._version(found.version), found.providers)

    def gpu_free_bytes(self) -> int | None:
        """As CUDA tells."""
        return free_bytes()

    def prepare(
        self, build: bytes, feeds: Arrays, *, threads: int, attempt: int = 0, progress: Tell = ignore_progress
    ) -> None:
        """Run the build once in a process of its own, for these inputs: what it compiles and where it runs are kept."""
        self._made(build, {name: tuple(values.shape) for name, values in feeds.items()}, attempt, progress)

    def load(self, build: bytes, *, threads: int) -> LoadedModel:
        """A session over the bytes, for the shapes that it was prepared for last, else for one sample.

        Raises InvalidModel where nothing of the build runs on the GPU.
        """
        here = self.availability()
        if not here.available:
            raise UnsupportedHere(here.reason)
        path = Engines.here().last(self._build_key(build, find_cuda())) or self._made(build, {}, 0, ignore_progress)
        placement = Placement.from_json((path / _PLACEMENT).read_text())
        if not placement.count(self.providers[0]):
            raise InvalidModel(
                f"ONNX Runtime runs no operator of the build by {_TITLES[self.providers[0]]}: {placement.told(_TITLES)}; "
                "use another runtime"
            )

        def open_at(where: Path) -> tuple[Shapes, Session]:
            shapes: Shapes = json.loads((where / _SHAPES).read_text()) if self.compiles else {}
            return shapes, Session(_open(build, self._chain(build, where), threads, shapes), copies_in=True)

        return _Model(open_at, lambda shapes: self._made(build, shapes, 0, ignore_progress), path, placement)

    def profile(self, build: bytes, feeds: Arrays, *, threads: int, progress: Tell = ignore_progress) -> NoProfile:
        """None: what its events would say is not how long operators took."""
        return NoProfile(_NO_PROFILE)

    def _made(self, build: bytes, shapes: Shapes, attempt: int, progress: Tell) -> Path:
        cuda = find_cuda()

        def make(path: Path) -> None:
            path.mkdir()
            chain = [[name, dict(options)] for name, options in self._chain(build, path)]
            request = {
                "shapes": {name: list(shape) for name, shape in shapes.items()},
                "providers": chain,
                "fixed": self.compiles,
            }
            made = build_apart(
                "fleetfit.runtimes.onnxruntime_gpu",
                build,
                request,
                title=f"ONNX Runtime's {_TITLES[self.providers[0]]} provider",
                limit_s=BUILD_LIMIT_S,
                memory_bytes=memory_limit(),
                progress=progress,
            )
            with made as folder:
                for name in (_PLACEMENT, _SHAPES):
                    (path / name).write_bytes((folder / name).read_bytes())

        return Engines.here().find(self._build_key(build, cuda), shapes, attempt, make)

    def _build_key(self, build: bytes, cuda: Cuda) -> list[str]:
        return [self.name, sha256_bytes(build), self.availability().version, cuda.version(), cuda.gpu()]

    def _version(self, package: str) -> str:
        return package

    def _chain(self, build: bytes, folder: Path) -> list[Provider]:
        """The providers with their options; what is compiled goes into the folder."""
        raise NotImplementedError


class OnnxRuntimeCuda(_OnGpu):
    """ONNX files by the kernels of ONNX Runtime's CUDA provider. float32 is not TF32."""

    name: ClassVar[str] = "onnxruntime-cuda"
    providers: ClassVar[Sequence[str]] = (CUDA, CPU)

    def _chain(self, build: bytes, folder: Path) -> list[Provider]:
        return [_cuda(), (CPU, {})]


class OnnxRuntimeTensorRt(_OnGpu):
    """ONNX files in parts: those that TensorRT takes as its engines, built once and kept, the others by CUDA.

    An engine is for one batch, because that is what gives the shortest latency; other batches are run in pieces of it.
    """

    name: ClassVar[str] = "onnxruntime-tensorrt"
    providers: ClassVar[Sequence[str]] = (TENSORRT, CUDA, CPU)
    compiles: ClassVar[bool] = True

    def _version(self, package: str) -> str:
        return f"{package} with TensorRT {library_version() or 'of an unknown version'}"

    def _chain(self, build: bytes, folder: Path) -> list[Provider]:
        options = {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(folder),
            "trt_max_workspace_size": str(workspace_bytes(find_cuda().free_memory(), memory_limit())),
            # With it a second engine of one network would be the first one again.
            "trt_timing_cache_enable": "False",
            **precisions(build, library_version()),
        }
        return [(TENSORRT, options), _cuda(), (CPU, {})]


def precisions(build: bytes, tensorrt: str) -> Mapping[str, str]:
    """The switches of the TensorRT provider by which a build is computed in its own number formats, for a version of TensorRT.

    Quantized operators are computed in floats without theirs. Half floats need one up to TensorRT 8 alone: beyond, a network
    holds to the build's formats as long as no switch is set (`kSTRONGLY_TYPED` in ONNX Runtime's
    tensorrt_execution_provider.cc), and with one TensorRT could take them for float layers too.
    """
    older = 0 < version_of(tensorrt)[0] <= 8
    return {
        "trt_int8_enable": str(b"QuantizeLinear" in build),
        "trt_fp16_enable": str(older and any(cast in build for cast in _HALF_CASTS)),
    }


def _cuda() -> Provider:
    limit = memory_limit()
    return CUDA, {"use_tf32": "0"} | ({"gpu_mem_limit": str(limit)} if limit else {})


def _open(build: bytes, chain: Sequence[Provider], threads: int, shapes: Shapes, profile: Path | None = None) -> Any:
    """A session in which each input has its one shape, where its free sizes have names."""
    # What says float32 is computed in float32, also in engines (TensorRT's and cuBLAS's own documentation of the variable).
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    _preload()
    options = session_options(threads)
    for name, size in _free_sizes(build, shapes).items():
        options.add_free_dimension_override_by_name(name, size)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return open_session(build, chain, options)


def _free_sizes(build: bytes, shapes: Shapes) -> dict[str, int]:
    """What each named size is, by the shapes of the inputs that have it. Raises InvalidModel where two of them differ."""
    if not shapes:
        return {}
    found: dict[str, int] = {}
    for port in _ports(build):
        for declared, size in zip(port.shape, shapes.get(port.name, ()), strict=False):
            if isinstance(declared, str) and found.setdefault(declared, size) != size:
                raise InvalidModel(f"the inputs of the build must agree in the size '{declared}'; give inputs that do")
    return found


def _ports(build: bytes) -> Sequence[Any]:
    import onnxruntime

    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    ports: Sequence[Any] = open_session(build, [(CPU, {})], options).get_inputs()
    return ports


def _preload() -> None:
    """Load CUDA's libraries from NVIDIA's wheels where they came with such; on a Jetson they are the system's."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls") and not Path("/etc/nv_tegra_release").exists():
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


class _Model(LoadedModel):
    """The sessions of one build that are open: one, unless it was compiled for other shapes than inputs have that come."""

    def __init__(
        self,
        open_at: Callable[[Path], tuple[Shapes, Session]],
        make: Callable[[Shapes], Path],
        path: Path,
        placement: Placement,
    ) -> None:
        self._open_at, self._make, self._placement = open_at, make, placement
        self._sessions = [open_at(path)]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        import numpy as np

        shapes, first = self._sessions[0]
        counts = {len(values) if values.ndim else 0 for values in feeds.values()}
        batches = {shape[0] if shape else 0 for shape in shapes.values()}
        if not shapes or counts == batches or len(counts) != 1 or len(batches) != 1 or not min(counts | batches):
            return self._session_for(feeds).run(feeds)
        (count,), (batch,) = counts, batches
        found = [first.run(piece) for piece in pieces(feeds, batch)]
        if any(values.shape[:1] != (batch,) for values in found[0].values()):
            return self._session_for(feeds).run(feeds)
        return {name: np.concatenate([part[name] for part in found])[:count] for name in found[0]}

    def bind(self, feeds: Arrays) -> Callable[[], None]:
        return self._session_for(feeds).bind(feeds)

    def close(self) -> None:
        for _, session in self._sessions:
            session.close()

    def notes(self) -> Sequence[str]:
        return self._placement.notes(_TITLES)

    def _session_for(self, feeds: Arrays) -> Session:
        wanted = {name: list(values.shape) for name, values in feeds.items()}
        for shapes, session in self._sessions:
            if not shapes or {name: list(shape) for name, shape in shapes.items()} == wanted:
                return session
        self._sessions.append(self._open_at(self._make(wanted)))
        return self._sessions[-1][1]


def work(folder: Path, request: Mapping[str, Any], tell: Tell) -> None:
    """Open the build in this process, run it once on zeros, and keep which operators ran where."""
    import numpy as np

    build = (folder / "build").read_bytes()
    shapes: dict[str, list[int]] = {
        port.name: request["shapes"].get(port.name)
        or [size if isinstance(size, int) and size > 0 else 1 for size in port.shape]
        for port in _ports(build)
    }
    chain = [(name, options) for name, options in request["providers"]]
    session = _open(build, chain, 1, shapes if request["fixed"] else {}, folder / "profile")
    tell(0.9)
    kinds = {port.name: _numpy(port.type) for port in session.get_inputs()}
    zeros = {name: np.zeros(shape, kinds[name]) for name, shape in shapes.items()}
    guarded(lambda: session.run(None, zeros), 0)
    placement = placement_of(Path(session.end_profiling()).read_text(), first=chain[0][0])
    (folder / _PLACEMENT).write_text(placement.to_json())
    (folder / _SHAPES).write_text(json.dumps(shapes))


def _numpy(kind: str) -> str:
    """NumPy's name of a type as ONNX Runtime says it: `tensor(float)`."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


if __name__ == "__main__":
    limit_self()
    sys.exit(serve(Path(sys.argv[1]), work))
