"""The state of the device at one moment: temperature, clocks, pressure, who else is working."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import time

from fleetfit.agent.probe.files import Tree
from fleetfit.proto.v1 import measurement_pb2

# The firmware's word on a Raspberry Pi, in hexadecimal without a prefix (`%x` in its kernel's
# drivers/firmware/raspberrypi.c): bits 0 to 3 are under-voltage, capped clock, throttled and soft temperature limit, now.
# Source: raspberrypi.com/documentation/computers/os.html, `vcgencmd get_throttled`.
_RASPBERRY_THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"
_RASPBERRY_NOW = 0b1111


def host_digest(tree: Tree) -> str:
    """The digest of what names this host in this boot: agents that share a host share it."""
    identity = tree.text("/etc/machine-id") or tree.text("/var/lib/dbus/machine-id") or socket.gethostname()
    boot = tree.text("/proc/sys/kernel/random/boot_id") or ""
    # Containers share a boot id and differ in their machine id, and the other way round for cloned images.
    return hashlib.sha256(f"{identity}|{boot}".encode()).hexdigest()[:32]


def governor(tree: Tree) -> str:
    """The frequency governor's name, empty where there is none."""
    return tree.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or ""


def power_mode(tree: Tree) -> str:
    """The power mode in the device's own words: the name of the Jetson's nvpmodel, else the governor."""
    mode = re.search(r"\bpmode:(\d+)", tree.text("/var/lib/nvpmodel/status") or "")
    if mode is None:
        return governor(tree)
    # The status has the number only, and what a number means differs between boards and releases.
    models = re.finditer(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)", tree.text("/etc/nvpmodel.conf") or "")
    names: dict[int, str] = {int(model[1]): model[2] for model in models}
    return names.get(int(mode[1]), f"nvpmodel {int(mode[1])}")


def temperature_celsius(tree: Tree) -> float | None:
    """The hottest thermal zone."""
    values = [tree.number(path) for path in tree.paths("/sys/class/thermal/thermal_zone*/temp")]
    real = [value / 1000 for value in values if value is not None and 0 < value < 200_000]
    return max(real, default=None)


def frequency_hz(tree: Tree) -> int | None:
    """The present clock of the first core."""
    khz = tree.number("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    return khz * 1000 if khz is not None else None


def cpu_pressure_percent(tree: Tree) -> float | None:
    """PSI: the share of the last ten seconds in which some task waited for a processor."""
    for line in tree.lines("/proc/pressure/cpu"):
        if line.startswith("some") and "avg10=" in line:
            return float(line.split("avg10=")[1].split()[0])
    return None


def meters(tree: Tree) -> list[str]:
    """Which states of the device can be read here."""
    found = {
        "thermal": temperature_celsius(tree) is not None,
        "cpufreq": frequency_hz(tree) is not None,
        "pressure": cpu_pressure_percent(tree) is not None,
        "steal": bool(tree.lines("/proc/stat")),
    }
    return [name for name, readable in found.items() if readable]


def _load(tree: Tree) -> float:
    words = (tree.text("/proc/loadavg") or "0").split()
    return float(words[0])


def _throttle_count(tree: Tree) -> int | None:
    """How often x86 cores were slowed down for heat since boot."""
    paths = tree.paths("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    counts = [count for count in map(tree.number, paths) if count is not None]
    return sum(counts) if counts else None


class Readings:
    """Takes readings one after another: shares of time are counted since the one before."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._times = self._cpu_times()
        self._throttles = _throttle_count(tree)

    def take(self) -> measurement_pb2.Reading:
        """The state now."""
        tree = self._tree
        reading = measurement_pb2.Reading(
            monotonic_ns=time.monotonic_ns(),
            load_1m=_load(tree),
            governor=governor(tree),
            power_mode=power_mode(tree),
        )
        for name, value in (
            ("temperature_celsius", temperature_celsius(tree)),
            ("frequency_hz", frequency_hz(tree)),
            ("cpu_pressure_percent", cpu_pressure_percent(tree)),
            ("available_memory_bytes", tree.kibibytes("/proc/meminfo", "MemAvailable")),
            ("throttled", self._throttled()),
        ):
            if value is not None:
                setattr(reading, name, value)
        now = self._cpu_times()
        if now is not None and self._times is not None:
            total, busy, stolen, ours = (after - before for after, before in zip(now, self._times, strict=True))
            if total > 0:
                reading.steal_percent = 100 * stolen / total
                reading.other_cpu_percent = max(0.0, 100 * (busy - ours) / total)
        self._times = now
        return reading

    def _throttled(self) -> bool | None:
        """Whether the processor is slowed down for heat or lack of power: now, or since the reading before."""
        with contextlib.suppress(ValueError):
            return bool(int(self._tree.text(_RASPBERRY_THROTTLED) or "", 16) & _RASPBERRY_NOW)
        before, self._throttles = self._throttles, _throttle_count(self._tree)
        return None if before is None or self._throttles is None else self._throttles > before

    def _cpu_times(self) -> tuple[float, float, float, float] | None:
        """Seconds since boot, over all processors: all, busy, stolen; and what we and our ended children used."""
        for line in self._tree.lines("/proc/stat"):
            if line.startswith("cpu "):
                values = [int(word) for word in line.split()[1:]]
                ticks = os.sysconf("SC_CLK_TCK")
                stolen = values[7] if len(values) > 7 else 0
                idle = values[3] + values[4]
                used = os.times()
                ours = used.user + used.system + used.children_user + used.children_system
                total = sum(values[:8])
                return total / ticks, (total - idle - stolen) / ticks, stolen / ticks, ours
        return None
