"""Power monitors in front of a whole device: those of ACPI servers, and the INA chips of boards and hats."""

from __future__ import annotations

from typing import ClassVar, Final

from fleetfit.agent.meters.base import Meter, Reach, milliseconds
from fleetfit.agent.probe.files import Tree

# Source: Linux, Documentation/hwmon/acpi_power_meter.rst (`power_meter` returns "average power use over a configurable
# interval", power1_average) and ina2xx.rst and ina238.rst (power1_input); microwatts, Documentation/hwmon/sysfs-interface.rst.
# Graphics cards and disks have power inputs too; what they use is not what an inference costs the device.
_FILES: Final = {"power_meter": "power1_average"} | dict.fromkeys(
    ("ina219", "ina220", "ina226", "ina230", "ina231", "ina228", "ina237", "ina238"), "power1_input"
)
# On a Jetson Thor this chip stands before the whole board. Source: NVIDIA, forums.developer.nvidia.com/t/366461 ("Removing
# INA238 is technically possible [...] but you lose total VIN monitoring").
_THOR: Final = "nvidia,tegra264"
_THORS_CHIP: Final = "ina238"
# Of a server's power meter that does not tell; they average over about a second.
_SLOW_S: Final = 2.0


class Supply(Meter):
    """One monitor, named by its chip."""

    counts: ClassVar[bool] = False

    def __init__(self, tree: Tree, chip: str, path: str) -> None:
        self._tree = tree
        self._path = path
        # `power1_average_interval` and `update_interval` are in milliseconds (sysfs-interface.rst).
        folder = path.rpartition("/")[0]
        if chip == "power_meter":
            self.lag_s = milliseconds(tree, f"{folder}/power1_average_interval", _SLOW_S)
        else:
            self.lag_s = milliseconds(tree, f"{folder}/update_interval", 0.0)
        thors = chip == _THORS_CHIP and _THOR in tree.lines("/proc/device-tree/compatible")
        self.reach: Reach = "device" if chip == "power_meter" or thors else "module"
        self.covers = f"what {chip} is wired to"
        if chip == "power_meter":
            self.covers = "the whole machine (ACPI power meter)"
        elif thors:
            self.covers = "the board's input (VIN)"

    @classmethod
    def find(cls, tree: Tree) -> Supply | str | None:
        """See Meter."""
        for path in tree.paths("/sys/class/hwmon/hwmon*/name"):
            chip = tree.text(path) or ""
            if chip in _FILES:
                found = cls(tree, chip, path.removesuffix("name") + _FILES[chip])
                return found if found.read() is not None else f"the power monitor {chip} is there but cannot be read"
        return None

    def read(self) -> int | None:
        """See Meter."""
        return self._tree.number(self._path)
