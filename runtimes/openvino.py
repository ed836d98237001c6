"""OpenVINO on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fleetfit.core.errors import InvalidModel, UnsupportedHere
from fleetfit.runtimes.archive import unpack
from fleetfit.runtimes.base import Arrays, Availability, LoadedModel, Runtime
from fleetfit.runtimes.refusal import Port, check_feeds, guarded, lines, raise_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DEVICE: Final = "CPU"
MEMBERS: Final = ("model.xml", "model.bin")
"""The two files of OpenVINO's intermediate representation, as they are named in a build."""


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
        try:
            core = openvino.Core()
            model = core.read_model(model=members["model.xml"], weights=members["model.bin"])
            compiled = core.compile_model(model, _DEVICE, options)
            return _Request(compiled)
        except (MemoryError, InvalidModel):
            raise
        except Exception as error:
            raise_memory(error)
            raise InvalidModel(f"OpenVINO {_version(openvino)} cannot load the build: {lines(error)[-1]}") from error


class _Request(LoadedModel):
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
        request = guarded(self._compiled.create_infer_request, -1)
        held = self._set(request, feeds)
        self._infer(request)

        def call() -> None:
            request.infer(share_outputs=True)

        # The request holds the addresses of the arrays.
        call.held = held  # type: ignore[attr-defined]
        return call

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
