"""What an exporter is: from a layered model to the one file that a runtime loads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes.base import Availability, LoadedModel
from fleetfit.runtimes.registry import runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fleetfit.compress.exporter import Session
    from fleetfit.compress.graph import LayeredModel


class Exporter(ABC):
    """Makes builds of one format. Implementations import what is heavy inside their methods."""

    runtime: ClassVar[str]
    """The runtime (entry point group `fleetfit.runtimes`) that loads them."""
    format: ClassVar[str]
    file: ClassVar[str]
    """The name of the build, beside those of other exporters."""
    title: ClassVar[str]
    """The runtime's name in sentences."""
    packages: ClassVar[Sequence[str]] = ()
    """The distributions it makes builds with, whose versions count in a build's name."""

    quantized: ClassVar[frozenset[str]] = frozenset()
    """The numbers (`Pass.numbers`) of quantized ONNX files that it makes builds of, too."""

    @abstractmethod
    def availability(self) -> Availability:
        """Whether builds can be made and proven here; if not, what to install. Never raises."""

    def programs(self) -> Sequence[Path]:
        """What it starts besides this process: a server lets its confined children start these and no others."""
        return ()

    @abstractmethod
    def export(self, model: LayeredModel, onnx: bytes) -> bytes:
        """The build of a model in evaluation mode. `onnx` is the same model, already proven equal.

        The same model gives the same bytes. Raises InvalidModel where the format cannot express it.
        """

    def export_quantized(self, onnx: bytes, model: LayeredModel) -> bytes:
        """The build of an ONNX file whose numbers are among `quantized`. Raises InvalidModel where it cannot be expressed.

        `model` is what was quantized, in floats.
        """
        raise InvalidModel(f"builds for {self.title} are made of floats; leave the quantizing step out")

    def session(self, build: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> Session:
        """The build as its runtime runs it, with one thread, to be compared with PyTorch."""
        return RuntimeSession(runtime(self.runtime).load(build, threads=1), inputs, outputs)


class RuntimeSession:
    """A build in one of our runtimes: for checks, not for timing."""

    def __init__(self, loaded: LoadedModel, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._loaded = loaded
        self.input_names, self.names = list(inputs), list(outputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs by name; InvalidModel where they have other names."""
        return named(self._loaded.run(inputs), self.names)


def named(found: Mapping[str, NDArray[Any]], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """`found` in the order of `names`, which must be its own."""
    if set(found) != set(names):
        raise InvalidModel(f"the build gives {', '.join(sorted(found))} instead of {', '.join(names)}; it is not used")
    return {name: found[name] for name in names}
