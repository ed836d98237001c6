"""Whether a device is fit to be measured now: quiet, cool, in its declared power mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fleetfit.proto.methods import QUIET_OTHERS_PERCENT, QUIET_STEAL_PERCENT
from fleetfit.proto.v1 import measurement_pb2

# Nearer to the heat at which it slows down a device is not cool.
_COOL_BELOW_CELSIUS: Final = 10.0


@dataclass(frozen=True)
class Fitness:
    """What stands in the way, each as a clause; empty where nothing does. The first two may pass by waiting."""

    busy: str = ""
    hot: str = ""
    other_mode: str = ""

    @property
    def disturbance(self) -> str:
        """What makes samples doubtful. Another power mode makes them another condition's instead."""
        return ", and ".join(filter(None, (self.busy, self.hot)))

    @property
    def reasons(self) -> str:
        """All of it."""
        return ", and ".join(filter(None, (self.busy, self.hot, self.other_mode)))


def judge(
    reading: measurement_pb2.Reading, heat: tuple[float, float] | None, power_mode: str, wanted_mode: str
) -> Fitness:
    """What a reading says; `heat` is a temperature and where it slows the processor, in °C, None where nothing tells.

    `wanted_mode` is empty where no power mode was declared. What cannot be read stands in no way.
    """
    busy = hot = other = ""
    if reading.other_cpu_percent > QUIET_OTHERS_PERCENT:
        busy = f"other processes used {reading.other_cpu_percent:.0f} % of the processors"
    elif reading.steal_percent > QUIET_STEAL_PERCENT:
        busy = f"the hypervisor took {reading.steal_percent:.0f} % of the processor time"
    if heat is not None and heat[0] > heat[1] - _COOL_BELOW_CELSIUS:
        hot = f"it began at {heat[0]:.0f} °C and slows down at {heat[1]:.0f} °C"
    if wanted_mode and power_mode != wanted_mode:
        other = f"its power mode is {power_mode or 'unknown'}, not {wanted_mode}"
    return Fitness(busy, hot, other)
