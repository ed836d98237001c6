"""ONNX Runtime on the CPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fleetfit.core.errors import InvalidModel, UnsupportedHere
from fleetfit.runtimes.base import Arrays, Availability, LoadedModel, Runtime
from fleetfit.runtimes.refusal import guarded, lines, raise_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PROVIDER = "CPUExecutionProvider"
# Builds are files of IR version 10, which this was the first to read (onnxruntime.ai/docs/reference/compatibility.html).
_OLDEST = (1, 18)


class OnnxRuntime(Runtime):
    """ONNX files through ONNX Runtime's CPU provider."""

    name: ClassVar[str] = "onnxruntime"
    formats: ClassVar[Sequence[str]] = ("onnx",)

    def availability(self) -> Availability:
        """Whether the package is there and has the CPU provider."""
        try:
            import onnxruntime
        except ImportError as error:
            return Availability(False, f'pip install "fleetfit[onnxruntime]" ({error})')
        found = str(onnxruntime.__version__)
        if _release(found) < _OLDEST:
            oldest = ".".join(map(str, _OLDEST))
            return Availability(
                False, f"onnxruntime {found} is too old to read builds; pip install 'onnxruntime>={oldest}'", found
            )
        providers = tuple(onnxruntime.get_available_providers())
        if _PROVIDER not in providers:
            return Availability(False, f"this onnxruntime has no {_PROVIDER}; install the package 'onnxruntime'")
        return Availability(True, "", found, (_PROVIDER,))

    def load(self, build: bytes, *, threads: int) -> LoadedModel:
        """A session over the bytes: never from a path, so that external data cannot be reached."""
        try:
            import onnxruntime
        except ImportError as error:
            raise UnsupportedHere('onnxruntime is not installed; pip install "fleetfit[onnxruntime]"') from error
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Threads may spin within a run, where it pays, but not after it: two builds are timed in turn in one process.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # External data of a build given as bytes is looked for in the working folder; below a file there is none.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/dev/null")
        try:
            session = onnxruntime.InferenceSession(build, options, providers=[_PROVIDER])
        except MemoryError:
            raise
        except Exception as error:  # its exceptions have no common root
            raise_memory(error)
            first = lines(error)[0]
            if "external data" in first.lower():
                raise InvalidModel(
                    "the build keeps weights outside itself, where they cannot be reached; save it as one file"
                ) from error
            raise InvalidModel(f"ONNX Runtime {onnxruntime.__version__} cannot load the build: {first}") from error
        return _Session(session)


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; those of a version without numbers are taken for new ones."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else _OLDEST


class _Session(LoadedModel):
    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        values = guarded(lambda: self._session.run(self._outputs, dict(feeds)), 0)
        return dict(zip(self._outputs, values, strict=False))

    def bind(self, feeds: Arrays) -> Callable[[], None]:
        session = self._session
        binding = session.io_binding()
        held: Mapping[str, NDArray[Any]] = dict(feeds)

        def prepare() -> None:
            for name, values in held.items():
                binding.bind_cpu_input(name, values)
            for name in self._outputs:
                binding.bind_output(name)
            session.run_with_iobinding(binding)

        guarded(prepare, 0)

        def call() -> None:
            session.run_with_iobinding(binding)

        # The arrays must outlive the binding, which holds only their addresses.
        call.held = held  # type: ignore[attr-defined]
        return call

    def close(self) -> None:
        self._session = None
