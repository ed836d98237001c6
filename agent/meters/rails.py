"""The INA3221 of Jetson modules: three supply rails per chip, voltage and current."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final

from fleetfit.agent.meters.base import Meter, Reach, milliseconds
from fleetfit.agent.probe.files import Tree

# Source: Linux, Documentation/hwmon/ina3221.rst: in[123]_label, in[123]_input in mV, curr[123]_input in mA; in7 and curr4
# are sums of channels. JetPack 4's driver has rail_name_N and in_powerN_input in mW instead (as jetson-stats reads them).
_CHIPS: Final = "/sys/class/hwmon/hwmon*/name"
_OLD_NAMES: Final = "/sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*"
# "VDD_IN is the total power of module." (NVIDIA, forums.developer.nvidia.com/t/200883). Jetson Nano calls it POM_5V_IN, and
# jetson-stats takes the sum of all rails where neither is there.
_WHOLE: Final = ("VDD_IN", "POM_5V_IN")
_UNUSED: Final = "NC"


@dataclass(frozen=True)
class _Rail:
    name: str
    millivolts: str
    milliamperes: str
    milliwatts: str = ""


class Rails(Meter):
    """The module's input where it has a rail of its own, else the sum of its rails."""

    counts: ClassVar[bool] = False
    reach: Reach = "module"

    def __init__(self, tree: Tree, rails: list[_Rail]) -> None:
        whole = [rail for rail in rails if rail.name in _WHOLE][:1]
        self._tree = tree
        self._rails = whole or rails
        # How long a conversion of all channels takes, averaging included (ina3221.rst).
        folders = {rail.millivolts.rpartition("/")[0] for rail in self._rails if rail.millivolts}
        self.lag_s = max((milliseconds(tree, f"{folder}/update_interval", 0.0) for folder in folders), default=0.0)
        names = ", ".join(rail.name for rail in self._rails)
        self.covers = f"module input ({names})" if whole else f"sum of the module's rails {names}"

    @classmethod
    def find(cls, tree: Tree) -> Rails | str | None:
        """See Meter."""
        rails = [*_new_rails(tree), *_old_rails(tree)]
        if not rails:
            return None
        found = cls(tree, rails)
        if found.read() is None:
            return f"the power rails ({', '.join(rail.name for rail in rails)}) are there but cannot be read"
        return found

    def read(self) -> int | None:
        """See Meter."""
        total = 0
        for rail in self._rails:
            microwatts = self._microwatts(rail)
            if microwatts is None:
                return None
            total += microwatts
        return total

    def _microwatts(self, rail: _Rail) -> int | None:
        if rail.milliwatts:
            power = self._tree.number(rail.milliwatts)
            return None if power is None else power * 1000
        volts, amperes = self._tree.number(rail.millivolts), self._tree.number(rail.milliamperes)
        return None if volts is None or amperes is None else volts * amperes


def _new_rails(tree: Tree) -> list[_Rail]:
    rails = []
    for chip in tree.paths(_CHIPS):
        if tree.text(chip) != "ina3221":
            continue
        folder = chip.removesuffix("/name")
        for channel in (1, 2, 3):
            name = tree.text(f"{folder}/in{channel}_label") or ""
            if name and not name.startswith(_UNUSED):
                rails.append(_Rail(name, f"{folder}/in{channel}_input", f"{folder}/curr{channel}_input"))
    return rails


def _old_rails(tree: Tree) -> list[_Rail]:
    rails = []
    for path in tree.paths(_OLD_NAMES):
        number = re.search(r"\d+$", path)
        name = tree.text(path) or ""
        if number and name and not name.startswith(_UNUSED):
            folder = path.rpartition("/")[0]
            rails.append(_Rail(name, "", "", f"{folder}/in_power{number[0]}_input"))
    return rails
