"""Intel's and AMD's running average power limit: counters of energy in the processor's packages."""

from __future__ import annotations

from typing import ClassVar

from fleetfit.agent.meters.base import Meter, Reach
from fleetfit.agent.probe.files import Tree

# Source: Linux, Documentation/power/powercap/powercap.rst: one zone per package with subzones, `energy_uj` in microjoules,
# which begins anew after `max_energy_range_uj`, and `name`. intel-rapl-mmio counts the same packages again.
_ZONES = "/sys/class/powercap/intel-rapl:*"


class Rapl(Meter):
    """The packages of the processor, and the memory where it has a counter beside them."""

    counts: ClassVar[bool] = True
    reach: Reach = "processor"

    def __init__(self, tree: Tree, zones: dict[str, str]) -> None:
        self._tree = tree
        self._ranges = {path: tree.number(f"{path}/max_energy_range_uj") or 0 for path in zones}
        self._last: dict[str, int] = {}
        self._counted = 0
        self.covers = "processor packages and memory" if "dram" in zones.values() else "processor packages"

    @classmethod
    def find(cls, tree: Tree) -> Rapl | str | None:
        """See Meter."""
        named = {path: tree.text(f"{path}/name") or "" for path in tree.paths(_ZONES)}
        zones = {path: name for path, name in named.items() if name.startswith("package-") or name == "dram"}
        if not zones:
            return None
        if any(tree.number(f"{path}/energy_uj") is None for path in zones):
            return (
                "the counters in /sys/class/powercap are for root only; let the agent's user read each energy_uj there, "
                "or run the agent as root"
            )
        return cls(tree, zones)

    def read(self) -> int | None:
        """See Meter."""
        now = {path: self._tree.number(f"{path}/energy_uj") for path in self._ranges}
        known = {path: value for path, value in now.items() if value is not None}
        if len(known) < len(now):
            return None
        for path, value in known.items():
            step = value - self._last.get(path, value)
            # A counter that began anew; without its range, what it counted before that is lost.
            self._counted += step if step >= 0 else max(step + self._ranges[path], 0)
        self._last = known
        return self._counted
