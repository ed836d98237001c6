"""jetson-stats, where its service runs and the rails themselves cannot be read (in a container, for example). Never required."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, Final

from fleetfit.agent.meters.base import Meter, Reach
from fleetfit.agent.meters.rails import Rails
from fleetfit.agent.probe.files import Tree

# Its service reads every half second unless another client asked for another interval first; twice that, a change is whole.
_LAG_S: Final = 1.0


class JetsonStats(Meter):
    """The total of jetson-stats: `power["tot"]["power"]` in milliwatts (its release 4; jtop/core/power.py)."""

    counts: ClassVar[bool] = False
    reach: Reach = "module"
    covers = "module input, or the sum of its rails (jetson-stats)"
    lag_s = _LAG_S

    def __init__(self, client: Any) -> None:
        self._client = client

    @classmethod
    def find(cls, tree: Tree) -> JetsonStats | str | None:
        """See Meter."""
        if not tree.text("/etc/nv_tegra_release") or isinstance(Rails.find(tree), Rails):
            return None
        try:
            module = importlib.import_module("jtop")
        except ImportError:
            return None
        try:
            found = cls(module.jtop())
            found._client.start()
        except Exception as error:  # whatever its service says
            return f"jetson-stats is installed and cannot be read ({error})"
        if found.read() is None:
            found.close()
            return "jetson-stats is installed and tells no total power; release 4 or newer does"
        return found

    def read(self) -> int | None:
        """See Meter."""
        try:
            return int(self._client.power["tot"]["power"]) * 1000 if self._client.ok() else None
        except (KeyError, TypeError, ValueError):
            return None

    def close(self) -> None:
        """See Meter."""
        client, self._client = self._client, None
        if client is not None:
            # It is a thread that would keep the process from its end.
            client.close()
