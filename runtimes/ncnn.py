"""ncnn on the CPU."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fleetfit.core.errors import InvalidModel, UnsupportedHere
from fleetfit.runtimes.archive import unpack
from fleetfit.runtimes.base import Arrays, Availability, LoadedModel, Runtime, ignore_progress
from fleetfit.runtimes.operators import NoProfile
from fleetfit.runtimes.refusal import Port, check_feeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEMBERS: Final = ("model.param", "model.bin", "ports.json")
"""ncnn's two files, and `ports.json`: lists `inputs` and `outputs` of objects with `blob`, `name`, `dtype`, `shape`, and
`batched`: whether the first dimension is ncnn's batch; if not, the network itself works on matrices of all samples."""
_NO_BATCH: Final = 233
"""ncnn's own word for it."""
_MAGIC: Final = b"7767517\n"
_OUT_OF_MEMORY: Final = -100
_HALVES: Final = ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage")


@dataclass(frozen=True)
class _Blob(Port):
    """A port, and which dimension ncnn takes for the batch."""

    batch_index: int


class Ncnn(Runtime):
    """ncnn's files in one archive, with the inputs and outputs under the model's names; computes in float32."""

    name: ClassVar[str] = "ncnn"
    formats: ClassVar[Sequence[str]] = ("ncnn",)

    def availability(self) -> Availability:
        """Whether the package is there and new enough to run batches."""
        try:
            import ncnn
        except ImportError as error:
            return Availability(False, f'pip install "fleetfit[ncnn]" ({error})')
        if not hasattr(ncnn.Mat, "n"):
            return Availability(False, f'ncnn {ncnn.__version__} runs no batches; pip install "fleetfit[ncnn]"')
        return Availability(True, "", str(ncnn.__version__), ("CPU",))

    def load(self, build: bytes, *, threads: int) -> LoadedModel:
        """A net over the archive's files, which are never looked for anywhere else."""
        here = self.availability()
        if not here.available:
            raise UnsupportedHere(f"ncnn cannot be used here: {here.reason}")
        import ncnn

        members = unpack(build, MEMBERS)
        inputs, outputs = _ports(members["ports.json"])
        if not members["model.param"].startswith(_MAGIC):
            raise InvalidModel("the build's model.param is not a description of an ncnn network; build it again")
        net = ncnn.Net()
        net.opt.use_vulkan_compute = False
        net.opt.num_threads = threads
        for kind in _HALVES:
            setattr(net.opt, f"use_{kind}", False)
        # Through files, not from memory: there it does not know where the bytes end.
        with _file(members["model.param"]) as param, _file(members["model.bin"]) as weights:
            codes = [net.load_param(param)]
            if codes == [0]:
                codes.append(net.load_model(weights))
        if _OUT_OF_MEMORY in codes:
            raise MemoryError("ncnn could not allocate the network")
        if any(codes):
            raise InvalidModel(f"ncnn {ncnn.__version__} cannot load the build; build it again, or update ncnn here")
        blobs = set(net.input_names()), set(net.output_names())
        if set(inputs) != blobs[0] or not set(outputs) <= blobs[1]:
            raise InvalidModel(
                "the build's ports.json does not name the inputs and outputs of its network; build it again"
            )
        return _Net(net, inputs, outputs)

    def profile(
        self, build: bytes, feeds: Arrays, *, threads: int, progress: Callable[[float], None] = ignore_progress
    ) -> NoProfile:
        """None: the layers' times are a compile-time option of ncnn (NCNN_BENCHMARK), which prints them."""
        return NoProfile("ncnn's package times no layers: it is built without NCNN_BENCHMARK")


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """A path that holds the bytes for as long as it is needed, in memory."""
    number = os.memfd_create("fleetfit")
    with os.fdopen(number, "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{number}"


def _ports(content: bytes) -> tuple[dict[str, _Blob], dict[str, _Blob]]:
    try:
        listed = json.loads(content)
        inputs, outputs = (
            {
                str(port["blob"]): _Blob(
                    str(port["name"]),
                    str(port["dtype"]),
                    tuple(int(size) for size in port["shape"]),
                    0 if port["batched"] else _NO_BATCH,
                )
                for port in listed[side]
            }
            for side in ("inputs", "outputs")
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidModel("the build's ports.json does not list inputs and outputs; build it again") from error
    if not inputs or not outputs or any(not 2 <= len(port.shape) <= 5 for port in inputs.values()):
        raise InvalidModel("ncnn takes inputs of two to five dimensions, the batch among them; use another runtime")
    return inputs, outputs


class _Net(LoadedModel):
    def __init__(self, net: Any, inputs: Mapping[str, _Blob], outputs: Mapping[str, _Blob]) -> None:
        self._net, self._inputs, self._outputs = net, inputs, outputs

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        mats = self._mats(feeds)
        count = next(iter(feeds.values())).shape[0]
        # Arrays of its outputs look into memory that goes with the extractor: they are copied before.
        with self._net.create_extractor() as extractor:
            found = _extract(extractor, mats, self._outputs)
            return {
                port.name: _array(mat, port, count) for mat, port in zip(found, self._outputs.values(), strict=True)
            }

    def bind(self, feeds: Arrays) -> Callable[[], None]:
        net, outputs, mats = self._net, tuple(self._outputs), self._mats(feeds)

        def call() -> None:
            # An extractor computes each value once: it takes a new one to compute it again.
            with net.create_extractor() as extractor:
                _extract(extractor, mats, outputs)

        call()
        call.held = feeds  # type: ignore[attr-defined]
        return call

    def close(self) -> None:
        self._net = None

    def _mats(self, feeds: Arrays) -> dict[str, Any]:
        import ncnn
        import numpy as np

        check_feeds(feeds, list(self._inputs.values()))
        mats = {}
        for blob, port in self._inputs.items():
            # It has one kind of whole number.
            dtype = np.float32 if port.dtype.startswith("float") else np.int32
            values = np.ascontiguousarray(feeds[port.name], dtype=dtype)
            mats[blob] = ncnn.Mat(values, batch_index=port.batch_index).clone()
            if mats[blob].empty():
                raise MemoryError("ncnn could not allocate an input")
        return mats


def _extract(extractor: Any, mats: Mapping[str, Any], outputs: Sequence[str] | Mapping[str, _Blob]) -> list[Any]:
    for blob, mat in mats.items():
        _check(extractor.input(blob, mat))
    found = []
    for blob in outputs:
        code, mat = extractor.extract(blob)
        _check(code)
        found.append(mat)
    return found


def _check(code: int) -> None:
    if code == _OUT_OF_MEMORY:
        raise MemoryError("ncnn could not allocate what the build needs to run")
    if code:
        raise InvalidModel(f"the build loads but does not run: ncnn stopped with {code}; use another runtime")


def _array(mat: Any, port: _Blob, count: int) -> NDArray[Any]:
    values = mat.numpy(batch_index=port.batch_index).copy()
    sizes = [count if at == 0 else size for at, size in enumerate(port.shape)]
    if -1 not in sizes and values.size == math.prod(sizes):
        values = values.reshape(sizes)  # it drops dimensions of one
    array: NDArray[Any] = values.astype(port.dtype, copy=False)
    return array
