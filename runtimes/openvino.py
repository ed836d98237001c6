"""OpenVINO on the CPU."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fleetfit.core.errors import InvalidModel, UnsupportedHere
from fleetfit.runtimes.archive import unpack
from fleetfit.runtimes.base import Arrays, Availability, LoadedModel, Runtime, ignore_progress
from fleetfit.runtimes.operators import (
    WARM_CALLS,
    NoProfile,
    OperatorRun,
    Profile,
    ProfiledCall,
    call_repeatedly,
    profile_of,
)
from fleetfit.runtimes.refusal import Port, check_feeds, guarded, lines, raise_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DEVICE: Final = "CPU"
_WHOLE_MICROSECONDS: Final = "OpenVINO's counters are means in whole microseconds: an operator's time may be off by one"
MEMBERS: Final = ("model.xml", "model.bin")
"""The two files of OpenVINO's intermediate representation, as they are named in a build."""
# The last part of a kernel's name, such as brgconv_avx512_f32.
_FORMATS: Final = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i8": "int8",
    "u8": "uint8",
    "i32": "int32",
    "i64": "int64",
}


def import_openvino() -> Any:
    """The package `openvino`, silent: left alone, importing it reports the use to its makers, from a thread that stays."""
    # None stands for a package that is not there; openvino then has a silent stand-in of its own.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


class OpenVino(Runtime):
    """OpenVINO's intermediate representation (an archive of `model.xml` and `model.bin`) through its CPU plug-in.

    Computes in float32 where the build does: left alone, the plug-in takes bfloat16 on processors that have it.
    """

    name: ClassVar[str] = "openvino"
    formats: ClassVar[Sequence[str]] = ("openvino",)

    def availability(self) -> Availability:
        """Whether the package is there and its CPU plug-in runs on this processor."""
        try:
            openvino = import_openvino()
        except ImportError as error:
            return Availability(False, f'pip install "fleetfit[openvino]" ({error})')
        try:
            devices = tuple(openvino.Core().available_devices)
        except Exception as error:  # its exceptions have no common root
            return Availability(False, f"this openvino does not start: {lines(error)[-1]}")
        if _DEVICE not in devices:
            return Availability(
                False, "this openvino has no plug-in for this processor; install the package 'openvino'"
            )
        return Availability(True, "", _version(openvino), (_DEVICE,))

    def load(self, build: bytes, *, threads: int) -> LoadedModel:
        """A compiled model with one stream: what gives the shortest latency."""
        return self._compiled(build, threads)

    def profile(
        self, build: bytes, feeds: Arrays, *, threads: int, progress: Callable[[float], None] = ignore_progress
    ) -> Profile | NoProfile:
        """From the counters that a model compiled with PERF_COUNT keeps, less what they were when it was warm."""
        model = self._compiled(build, threads, profiled=True)
        try:
            request, call = model.bound(feeds)
            for _ in range(WARM_CALLS):
                call()
            # Binding is a call too.
            before, cold = _mean_ns(request), WARM_CALLS + 1
            taken = call_repeatedly(call, progress)
            after = _mean_ns(request)
        finally:
            model.close()
        runs = []
        for key, mean in after.items():
            # Its counters are means over all calls so far (Graph::GetPerfData of the CPU plug-in), in whole microseconds.
            ns = max(mean * (cold + len(taken)) - before.get(key, 0) * cold, 0)
            runs.append(OperatorRun(*key, ns=ns, runs=len(taken)))
        # They are one profiled call where a runtime tells call by call.
        found = profile_of([ProfiledCall(runs, sum(taken))], _WHOLE_MICROSECONDS)
        return dataclasses.replace(found, calls=len(taken)) if isinstance(found, Profile) else found

    def _compiled(self, build: bytes, threads: int, *, profiled: bool = False) -> _Model:
        try:
            openvino = import_openvino()
        except ImportError as error:
            raise UnsupportedHere('openvino is not installed; pip install "fleetfit[openvino]"') from error
        members = unpack(build, MEMBERS)
        # It reads other formats too, whose weights may lie elsewhere on the disk.
        if not members["model.xml"].startswith(b"<?xml"):
            raise InvalidModel("the build's model.xml is not OpenVINO's intermediate representation; build it again")
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if profiled:
            options["PERF_COUNT"] = True
        try:
            core = openvino.Core()
            model = core.read_model(model=members["model.xml"], weights=members["model.bin"])
            compiled = core.compile_model(model, _DEVICE, options)
            return _Model(compiled)
        except (MemoryError, InvalidModel):
            raise
        except Exception as error:
            raise_memory(error)
            raise InvalidModel(f"OpenVINO {_version(openvino)} cannot load the build: {lines(error)[-1]}") from error


def _mean_ns(request: Any) -> dict[tuple[str, str, str, str], int]:
    """Of each operator that ran, by what it is: the mean over all calls of the model, in nanoseconds."""
    found: dict[tuple[str, str, str, str], int] = {}
    for info in request.get_profiling_info():
        ns = round(info.real_time.total_seconds() * 1e6) * 1000
        # What is folded into another operator, or was never begun, has no time.
        if ns:
            number_format = _FORMATS.get(str(info.exec_type).rpartition("_")[2].lower(), "")
            key = (str(info.node_name), str(info.node_type), _DEVICE, number_format)
            found[key] = found.get(key, 0) + ns
    return found


class _Model(LoadedModel):
    """One infer request: making a new one for each call costs more than many a small model."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._inputs = [_port(value) for value in compiled.inputs]
        self._outputs = [_port(value).name for value in compiled.outputs]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        self._set(self._request, feeds)
        self._infer(self._request)
        return {name: self._request.get_tensor(name).data.copy() for name in self._outputs}

    def bind(self, feeds: Arrays) -> Callable[[], None]:
        return self.bound(feeds)[1]

    def bound(self, feeds: Arrays) -> tuple[Any, Callable[[], None]]:
        """A request of its own, and a bound call of that request."""
        request = guarded(self._compiled.create_infer_request, -1)
        held = self._set(request, feeds)
        self._infer(request)

        def call() -> None:
            request.infer(share_outputs=True)

        # The request holds the addresses of the arrays.
        call.held = held  # type: ignore[attr-defined]
        return request, call

    def close(self) -> None:
        self._request = self._compiled = None

    def _set(self, request: Any, feeds: Arrays) -> list[NDArray[Any]]:
        """Hand the inputs over without copying; the arrays that must be kept."""
        import numpy as np

        openvino = import_openvino()

        check_feeds(feeds, self._inputs)
        held = [np.ascontiguousarray(feeds[port.name]) for port in self._inputs]
        for port, values in zip(self._inputs, held, strict=True):
            request.set_tensor(port.name, openvino.Tensor(values, shared_memory=True))
        return held

    def _infer(self, request: Any) -> None:
        guarded(lambda: request.infer(share_outputs=True), -1)
        # Where memory for a step cannot be had, the plug-in says nothing and gives outputs of no samples.
        if any(request.get_tensor(name).shape[:1] == [0] for name in self._outputs):
            raise MemoryError("OpenVINO could not allocate what the build needs to run")


def _version(openvino: Any) -> str:
    """`2026.4.1`, without the build's number and branch."""
    return str(openvino.__version__).split("-")[0]


def _port(value: Any) -> Port:
    shape = value.get_partial_shape()
    if not shape.rank.is_static:
        raise InvalidModel("the build has an input or output of no fixed number of dimensions; build it again")
    sizes = tuple(int(size.get_length()) if size.is_static else -1 for size in shape)
    return Port(value.any_name, value.get_element_type().to_dtype().name, sizes)
