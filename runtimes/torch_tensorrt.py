"""TensorRT's engines as torch_tensorrt makes them of PyTorch's own graphs, where the torch that is here matches a release."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fleetfit.core.errors import FleetfitError, UnsupportedHere
from fleetfit.runtimes.aten import Network, placeholder, read
from fleetfit.runtimes.base import Arrays, Availability, LoadedModel, Runtime, ignore_progress
from fleetfit.runtimes.building import BUILD_LIMIT_S, Shapes, Tell, memory_limit
from fleetfit.runtimes.cuda import free_bytes
from fleetfit.runtimes.operators import NoProfile, Profile
from fleetfit.runtimes.refusal import check_feeds
from fleetfit.runtimes.tensorrt_engine import Here
from fleetfit.runtimes.torch_tensorrt_builder import build_engine
from fleetfit.runtimes.torch_tensorrt_library import Facts, facts_here, installed, unmatched

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TorchTensorRt(Runtime):
    """Networks of PyTorch's operators through an engine that torch_tensorrt builds on the device, kept for the next time.

    torch is there only while an engine is built, in a process of its own; the engine is loaded and run as those of
    `tensorrt` are, so that nothing but the compiler differs. The whole network is one engine or is refused. It computes in
    the build's own number formats: float32 is not TF32.
    """

    name: ClassVar[str] = "torch_tensorrt"
    formats: ClassVar[Sequence[str]] = ("aten",)
    compiles: ClassVar[bool] = True
    uses_gpu: ClassVar[bool] = True

    def availability(self) -> Availability:
        """Whether a GPU is here, and torch, torch_tensorrt and TensorRT of one release for this machine."""
        try:
            here = _find()
        except FleetfitError as error:
            return Availability(False, error.message)
        return Availability(True, "", here.told, (here.gpu,))

    def gpu_free_bytes(self) -> int | None:
        """As CUDA tells."""
        return free_bytes()

    def prepare(
        self, build: bytes, feeds: Arrays, *, threads: int, attempt: int = 0, progress: Tell = ignore_progress
    ) -> None:
        """Build the engine for these inputs, unless there is one. It takes minutes, at most half an hour."""
        here, network = _find(), read(build)
        check_feeds(feeds, network.inputs)
        shapes = {placeholder(at): tuple(feeds[port.name].shape) for at, port in enumerate(network.inputs)}
        here.engine(build, shapes, progress, attempt)

    def load(self, build: bytes, *, threads: int) -> LoadedModel:
        """The engine that was used last for this build, else one for a single sample. The processor uses one thread."""
        here, network = _find(), read(build)
        return _Named(here.open(build, _batched(network)), network)

    def profile(
        self, build: bytes, feeds: Arrays, *, threads: int, progress: Tell = ignore_progress
    ) -> Profile | NoProfile:
        """Layer by layer, of the engine for these inputs, as TensorRT tells it; layers have torch_tensorrt's names."""
        here, network = _find(), read(build)
        check_feeds(feeds, network.inputs)
        fed = {placeholder(at): feeds[port.name] for at, port in enumerate(network.inputs)}
        return here.profile(build, fed, progress, _batched(network))


@dataclass(frozen=True)
class _Here(Here):
    """Beside TensorRT: the torch and torch_tensorrt that engines are built with."""

    facts: Facts | None = None

    @property
    def told(self) -> str:
        """The versions, as reports say them."""
        assert self.facts is not None  # noqa: S101 - `_find` has set it
        return f"{self.facts.torch_tensorrt} with torch {self.facts.torch} and TensorRT {self.version}"

    def compiler(self) -> Sequence[str]:
        return ["torch_tensorrt", self.told]

    def compile(self, build: bytes, shapes: Shapes, progress: Tell) -> bytes:
        return build_engine(build, shapes, limit_s=BUILD_LIMIT_S, memory_bytes=memory_limit(), progress=progress)


def _find() -> _Here:
    """Raises UnsupportedHere."""
    # Asked first: where neither is, the sentence is about them and not about TensorRT.
    installed("torch-tensorrt")
    found = _Here.find()
    facts = facts_here(found.version, found.cuda.version(), found.gpu)
    if reason := unmatched(facts):
        raise UnsupportedHere(reason)
    return replace(found, facts=facts)


def _batched(network: Network) -> bool:
    """Whether samples can be run some at a time: every input and every output has a row for each."""
    return all(port.shape[:1] == (-1,) for port in network.inputs) and all(network.batched.values())


class _Named(LoadedModel):
    """A model whose engine numbers inputs and outputs, by the names that the build has for them."""

    def __init__(self, model: LoadedModel, network: Network) -> None:
        self._model, self._ports = model, network.inputs
        self._inputs = {port.name: placeholder(at) for at, port in enumerate(network.inputs)}
        # torch_tensorrt's own (dynamo/conversion/_TRTInterpreter.py).
        self._outputs = {f"output{at}": name for at, name in enumerate(network.outputs)}

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        found = self._model.run(self._renamed(feeds))
        return {name: found[number] for number, name in self._outputs.items()}

    def bind(self, feeds: Arrays) -> Callable[[], None]:
        return self._model.bind(self._renamed(feeds))

    def close(self) -> None:
        self._model.close()

    def _renamed(self, feeds: Arrays) -> Mapping[str, NDArray[Any]]:
        check_feeds(feeds, self._ports)
        return {self._inputs[name]: values for name, values in feeds.items()}
