"""fleetfit fits one trained model to every device of a fleet.

The public names load what they need when they are first used, so that `import fleetfit` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fleetfit.client.client import Client, connect
    from fleetfit.client.export import export
    from fleetfit.compress.trainable import trainable
    from fleetfit.core.errors import FleetfitError

__all__ = ["Client", "FleetfitError", "__version__", "connect", "export", "trainable"]

_HOMES = {
    "Client": "fleetfit.client.client",
    "FleetfitError": "fleetfit.core.errors",
    "connect": "fleetfit.client.client",
    "export": "fleetfit.client.export",
    "trainable": "fleetfit.compress.trainable",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'fleetfit' has no attribute {name!r}")
    try:
        value = getattr(import_module(home), name)
    except ModuleNotFoundError as missing:
        if not home.startswith(missing.name or home):
            raise
        from fleetfit.core.errors import UnsupportedHere

        raise UnsupportedHere(
            f"fleetfit.{name} is not part of what a device is given; use it where the server is, or in an environment of your own "
            "(`pip install fleetfit`)"
        ) from missing
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
