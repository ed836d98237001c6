"""What a meter of energy is to fleetfit, and which there are on this device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import ClassVar, Final, Literal

from fleetfit.agent.probe.files import Tree

GROUP: Final = "fleetfit.meters"
Reach = Literal["device", "module", "processor", "part"]
_REACHES: Final[tuple[Reach, ...]] = ("device", "module", "processor", "part")


class Meter(ABC):
    """A meter that was found on this device.

    Subclasses are named in the entry point group `fleetfit.meters`; the name of the entry is the meter's. `find` and `read`
    never raise for what the device lacks, and import nothing heavy. `read` is called up to fifty times a second.
    """

    counts: ClassVar[bool]
    """True: `read` gives energy counted up from any start, in microjoules. False: power at this moment, in microwatts."""
    covers: str
    """What of the device is measured, in a few words for people."""
    reach: Reach
    """How much of the device that is; of several meters the one that covers most is used."""
    lag_s: float = 0.0
    """How long a change takes to be seen whole: the time over which values are averaged, or between two of them."""

    @classmethod
    @abstractmethod
    def find(cls, tree: Tree) -> Meter | str | None:
        """The meter; a sentence where there is one that cannot be read, and what to do; None where there is none."""

    @abstractmethod
    def read(self) -> int | None:
        """Microjoules or microwatts now; None where it cannot be read at this moment."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what reading needs. Twice is once."""


def milliseconds(tree: Tree, path: str, otherwise_s: float) -> float:
    """A file with an interval in milliseconds, in seconds; `otherwise_s` where it cannot be read."""
    found = tree.number(path)
    return found / 1000 if found is not None and 0 <= found <= 60_000 else otherwise_s


@dataclass(frozen=True)
class FoundMeter:
    """The meter to use, with its name."""

    name: str
    meter: Meter


@dataclass(frozen=True)
class NoMeter:
    """That there is none is a value: `reason` is a clause that follows "energy was not measured: "."""

    reason: str


def find_meter(tree: Tree) -> FoundMeter | NoMeter:
    """The installed meter that covers most of this device. One that fails is told in the reason, never dropped."""
    found: list[FoundMeter] = []
    reasons: list[str] = []
    for entry in entry_points(group=GROUP):
        try:
            kind: type[Meter] = entry.load()
            answer = kind.find(tree)
        except Exception as error:  # whatever a third party's code raises
            reasons.append(f"the meter plug-in {entry.value} failed ({type(error).__name__}: {error})")
            continue
        if isinstance(answer, str):
            reasons.append(answer)
        elif answer is not None:
            found.append(FoundMeter(entry.name, answer))
    if not found:
        return NoMeter("; ".join(reasons) or "this device has no meter that fleetfit knows")
    chosen = min(found, key=lambda one: (_REACHES.index(one.meter.reach), one.name))
    for other in found:
        if other is not chosen:
            other.meter.close()
    return chosen
