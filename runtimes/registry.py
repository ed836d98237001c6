"""The runtimes there are: ours and third parties', through the same entry point group `fleetfit.runtimes`."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from fleetfit.core.errors import UnsupportedHere
from fleetfit.runtimes.base import Availability, Runtime

GROUP = "fleetfit.runtimes"
_UNKNOWN = "this agent knows no runtime '{}'; update fleetfit here, or install the plug-in that has it"


def runtime_names() -> list[str]:
    """The names of all installed adapters. Nothing of theirs is imported."""
    return list(dict.fromkeys(entry.name for entry in entry_points(group=GROUP)))


def runtimes() -> dict[str, Runtime | Availability]:
    """Every installed adapter by name; one that cannot be imported is shown with its reason, never dropped."""
    return {name: adapter_of(name) for name in runtime_names()}


def adapter_of(name: str) -> Runtime | Availability:
    """The adapter of that name, or why there is none; of several with one name the one that is found first."""
    for entry in entry_points(group=GROUP, name=name):
        return _adapter(entry)
    return Availability(False, _UNKNOWN.format(name))


def _adapter(entry: EntryPoint) -> Runtime | Availability:
    try:
        adapter: Runtime = entry.load()()
    except Exception as error:  # whatever a third party's import raises
        return Availability(False, f"its adapter {entry.value} cannot be imported: {error}")
    return adapter


def runtime(name: str) -> Runtime:
    """The adapter of that name. Raises UnsupportedHere where it is unknown or cannot be used here."""
    for entry in entry_points(group=GROUP, name=name):
        adapter = _adapter(entry)
        availability = adapter if isinstance(adapter, Availability) else adapter.availability()
        if isinstance(adapter, Availability) or not availability.available:
            raise UnsupportedHere(f"{name} cannot be used on this device: {availability.reason}")
        return adapter
    raise UnsupportedHere(_UNKNOWN.format(name))
