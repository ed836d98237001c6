"""What an inference runtime is to fleetfit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fleetfit.runtimes.operators import NoProfile, Profile

if TYPE_CHECKING:
    from numpy.typing import NDArray

Arrays = Mapping[str, "NDArray[Any]"]


@dataclass(frozen=True)
class Availability:
    """Whether a runtime can be used here; if not, `reason` says why and what to install."""

    available: bool
    reason: str = ""
    version: str = ""
    providers: tuple[str, ...] = ()


class LoadedModel(ABC):
    """One build in memory, ready to run. To be closed; used by one thread at a time."""

    @abstractmethod
    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name for the inputs by name, batch first. Arrays are not kept."""

    @abstractmethod
    def bind(self, feeds: Arrays) -> Callable[[], None]:
        """A call that runs the same inputs again and again without copying or allocating: what latency is measured on."""

    @abstractmethod
    def close(self) -> None:
        """Free everything. Twice is once."""

    def notes(self) -> Sequence[str]:
        """What a reader of its figures should know, each in a clause: such as which part runs elsewhere than asked."""
        return ()


def ignore_progress(_: float) -> None:
    """For those who do not ask how far something is."""


class Runtime(ABC):
    """An inference runtime.

    Implementations import the runtime's package only inside their methods. `load` raises InvalidModel with one sentence for
    a build that the runtime cannot read or run, UnsupportedHere where the runtime is not available, and lets MemoryError
    through.
    """

    name: ClassVar[str]
    formats: ClassVar[Sequence[str]]
    compiles: ClassVar[bool] = False
    """Whether `prepare` makes something that comes out faster or slower from one time to the next, as engines do."""
    uses_gpu: ClassVar[bool] = False
    """Whether builds run on a GPU."""

    @abstractmethod
    def availability(self) -> Availability:
        """Whether it can be used here. Never raises."""

    def gpu_free_bytes(self) -> int | None:
        """Bytes of the GPU's memory that are free now; None where no GPU is used, or nothing tells. Never raises."""
        return None

    def prepare(  # noqa: B027 - most have nothing to do
        self,
        build: bytes,
        feeds: Arrays,
        *,
        threads: int,
        attempt: int = 0,
        progress: Callable[[float], None] = ignore_progress,
    ) -> None:
        """Do once on this device what `load` would otherwise do first, such as compiling, for inputs of these shapes.

        Called before anything is timed. What it makes is kept, and the next `load` of this build takes it. Of a runtime that
        `compiles`, each `attempt` is made and kept for itself. `progress` hears fractions from 0 to 1, often. Raises what
        `load` raises, and TimedOut. By default there is nothing to do.
        """

    @abstractmethod
    def load(self, build: bytes, *, threads: int) -> LoadedModel:
        """Load a build; inference uses at most `threads` threads."""

    def profile(
        self, build: bytes, feeds: Arrays, *, threads: int, progress: Callable[[float], None] = ignore_progress
    ) -> Profile | NoProfile:
        """The time of each operator of a build for these inputs, by the runtime's own profiler.

        Loads the build anew, with the options of `load` and the profiler on, after `prepare`; to be called in a process of its
        own, since a profiler may stay on. `progress` hears fractions from 0 to 1. Raises what `load` raises. Optional: by default
        there is none, and that is said.
        """
        return NoProfile(f"fleetfit knows no profiler of {self.name}")
