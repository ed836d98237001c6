"""The exporters there are: ours and third parties', through the same entry point group `fleetfit.exporters`."""

from __future__ import annotations

from importlib.metadata import entry_points

from fleetfit.compress.export.base import Exporter
from fleetfit.core.errors import UnsupportedHere, UsageError

GROUP = "fleetfit.exporters"
DEFAULT = "onnxruntime"
"""What every recipe makes a build for unless told otherwise; ONNX is also what passes quantize."""


def known() -> list[str]:
    """The runtimes that builds can be made for, whether or not the parts are installed here."""
    return sorted({DEFAULT, *(entry.name for entry in entry_points(group=GROUP))})


def exporter(name: str) -> Exporter:
    """The exporter for the runtime of that name.

    Raises UsageError where there is none, UnsupportedHere with what to install where it cannot be used.
    """
    found = declared(name)
    here = found.availability()
    if not here.available:
        raise UnsupportedHere(f"builds for {name} cannot be made here: {here.reason}")
    return found


def declared(name: str) -> Exporter:
    """The same without a look at whether it works here, which imports what is heavy."""
    for entry in entry_points(group=GROUP, name=name):
        try:
            found: Exporter = entry.load()()
        except Exception as error:  # whatever a third party's import raises
            raise UnsupportedHere(f"builds for {name} cannot be made here: {entry.value} fails ({error})") from error
        return found
    raise UsageError(f"no builds can be made for '{name}'; choose among {', '.join(known())}", field="runtime")
