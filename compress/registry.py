"""The passes there are: ours and third parties', through the same entry point group `fleetfit.passes`."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from fleetfit.core.errors import InternalError

if TYPE_CHECKING:
    from fleetfit.compress.passes.base import Pass

GROUP = "fleetfit.passes"


@cache
def passes() -> dict[str, type[Pass]]:
    """Every installed pass by its name. A plug-in that cannot be imported is an error with its reason, never dropped."""
    from fleetfit.compress.passes.base import Pass

    found: dict[str, type[Pass]] = {}
    for entry in entry_points(group=GROUP):
        try:
            kind = entry.load()
        except Exception as error:  # whatever a third party's import raises
            raise InternalError(f"the pass '{entry.name}' ({entry.value}) cannot be imported: {error}") from error
        if not (isinstance(kind, type) and issubclass(kind, Pass)):
            raise InternalError(f"the entry point '{entry.name}' ({entry.value}) is not a Pass")
        if found.get(entry.name, kind) is not kind:
            raise InternalError(
                f"two installed packages register a pass '{entry.name}' ({found[entry.name].__module__} and {entry.value}); "
                "uninstall one"
            )
        found[entry.name] = kind
    return found


def name_of(kind: type[Pass]) -> str:
    """The name under which a pass is registered."""
    for name, known in passes().items():
        if known is kind:
            return name
    raise InternalError(f"{kind.__qualname__} is not registered in the entry point group {GROUP}")
