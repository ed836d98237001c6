"""ONNX Runtime: its processor's provider here, and what the adapters of its other providers share with it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fleetfit.core.errors import InvalidModel, UnsupportedHere
from fleetfit.runtimes.base import Arrays, Availability, LoadedModel, Runtime, ignore_progress
from fleetfit.runtimes.onnxruntime_profile import calls_in
from fleetfit.runtimes.operators import (
    WARM_CALLS,
    NoProfile,
    Profile,
    call_repeatedly,
    calls_of,
    profile_of,
    quicker_half,
)
from fleetfit.runtimes.refusal import guarded, lines, raise_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

Provider = tuple[str, Mapping[str, str]]
"""An execution provider's name and its options."""
CPU: Final = "CPUExecutionProvider"
_WHOLE_MICROSECONDS: Final = "ONNX Runtime's profiler cuts each operator's time off to whole microseconds"
# Builds are files of IR version 10, which this was the first to read (onnxruntime.ai/docs/reference/compatibility.html).
_OLDEST = (1, 18)


class OnnxRuntime(Runtime):
    """ONNX files through ONNX Runtime's CPU provider."""

    name: ClassVar[str] = "onnxruntime"
    formats: ClassVar[Sequence[str]] = ("onnx",)

    def availability(self) -> Availability:
        """Whether the package is there and has the CPU provider."""
        return package_with([CPU], "onnxruntime")

    def load(self, build: bytes, *, threads: int) -> LoadedModel:
        """A session over the bytes: never from a path, so that external data cannot be reached."""
        return Session(open_session(build, [(CPU, {})], session_options(threads)))

    def profile(
        self, build: bytes, feeds: Arrays, *, threads: int, progress: Callable[[float], None] = ignore_progress
    ) -> Profile | NoProfile:
        """From the events that a profiling session writes, of the quicker half of its calls."""
        options = session_options(threads)
        with tempfile.TemporaryDirectory() as folder:
            options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
            session = open_session(build, [(CPU, {})], options)
            call = Session(session).bind(feeds)
            for _ in range(WARM_CALLS):
                call()
            taken = call_repeatedly(call, progress)
            with open(session.end_profiling(), encoding="utf-8", errors="replace") as events:
                heard = calls_in(events)
        return profile_of(quicker_half(calls_of(heard, taken)), _WHOLE_MICROSECONDS)


def package_with(providers: Sequence[str], package: str) -> Availability:
    """Whether ONNX Runtime is there, new enough, and was built with these providers, which come with `package`."""
    try:
        import onnxruntime
    except ImportError as error:
        wanted = '"fleetfit[onnxruntime]"' if package == "onnxruntime" else package
        return Availability(False, f"pip install {wanted} ({error})")
    found = str(onnxruntime.__version__)
    if _release(found) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        return Availability(False, f"onnxruntime {found} is too old to read builds; pip install '{package}>={oldest}'")
    missing = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if missing:
        return Availability(
            False, f"this onnxruntime has no {missing[0]}; install the package '{package}' in its place"
        )
    return Availability(True, "", found, tuple(providers))


def session_options(threads: int) -> Any:
    """What every session is opened with. Raises UnsupportedHere where the package is missing."""
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
    return options


def open_session(build: bytes, providers: Sequence[Provider], options: Any) -> Any:
    """A session with exactly these providers. Raises InvalidModel, MemoryError, or UnsupportedHere where one does not start.

    ONNX Runtime goes on without a provider whose libraries it cannot load, and says so in its log alone (onnxruntime #23372).
    """
    import onnxruntime

    wanted = [name for name, _ in providers]
    given = [(name, dict(chosen)) if chosen else name for name, chosen in providers]
    try:
        session = onnxruntime.InferenceSession(build, options, providers=given, enable_fallback=0)
    except MemoryError:
        raise
    except Exception as error:  # its exceptions have no common root
        raise_memory(error)
        first = lines(error)[0]
        if "external data" in first.lower():
            raise InvalidModel(
                "the build keeps weights outside itself, where they cannot be reached; save it as one file"
            ) from error
        if "please install" in first.lower():
            raise _not_started(wanted[0]) from error
        raise InvalidModel(f"ONNX Runtime {onnxruntime.__version__} cannot load the build: {first}") from error
    absent = [name for name in wanted if name not in session.get_providers()]
    if absent:
        raise _not_started(absent[0])
    return session


def _not_started(provider: str) -> UnsupportedHere:
    import onnxruntime

    return UnsupportedHere(
        f"ONNX Runtime {onnxruntime.__version__} has {provider} and cannot start it, most likely because libraries that it "
        "needs (CUDA, cuDNN, TensorRT) are missing or of another version; install those that its release names"
    )


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; those of a version without numbers are taken for new ones."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else _OLDEST


class Session(LoadedModel):
    """A session that is called from the processor's memory. Where `copies_in`, a timed call copies its inputs too."""

    def __init__(self, session: Any, *, copies_in: bool = False) -> None:
        self._session = session
        self._copies_in = copies_in
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """See LoadedModel."""
        values = guarded(lambda: self._session.run(self._outputs, dict(feeds)), 0)
        return dict(zip(self._outputs, values, strict=False))

    def bind(self, feeds: Arrays) -> Callable[[], None]:
        """See LoadedModel."""
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

        def call_with_copies() -> None:
            # Binding is what copies an input to a GPU (IOBinding::BindInput); the outputs are bound to the processor's memory.
            for name, values in held.items():
                binding.bind_cpu_input(name, values)
            session.run_with_iobinding(binding)

        chosen = call_with_copies if self._copies_in else call
        # The arrays must outlive the binding, which holds only their addresses.
        chosen.held = held  # type: ignore[attr-defined]
        return chosen

    def close(self) -> None:
        """See LoadedModel."""
        self._session = None
