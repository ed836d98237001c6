"""The state of the device at one moment: temperature, clocks, pressure, who else is working."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator

from fleetfit.agent.caps import memory_cap
from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.throttling import Throttling
from fleetfit.proto.v1 import measurement_pb2

_CPUFREQ = "/sys/devices/system/cpu/cpu0/cpufreq"
# The rest keeps the device alive.
_MEMORY_SHARE = 0.9
_ZONES = "/sys/class/thermal/thermal_zone*"


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


def clocks(tree: Tree) -> str:
    """What the governor may choose from, in MHz, or the one clock that is pinned (as jetson_clocks does); empty if unknown."""
    low, high = (tree.number(f"{_CPUFREQ}/scaling_{end}_freq") for end in ("min", "max"))
    if low is None or high is None:
        return ""
    return f"pinned at {high // 1000} MHz" if low == high else f"{low // 1000} to {high // 1000} MHz"


def temperature_celsius(tree: Tree) -> float | None:
    """The hottest thermal zone."""
    return _hottest(tree, tree.paths(f"{_ZONES}/temp"))


def _hottest(tree: Tree, paths: list[str]) -> float | None:
    values = [tree.number(path) for path in paths]
    real = [value / 1000 for value in values if value is not None and 0 < value < 200_000]
    return max(real, default=None)


def heat_left(tree: Tree) -> tuple[float, float] | None:
    """The zone nearest to where it slows the processor: its temperature and that limit, both in °C; None where none tells.

    Source: Linux, Documentation/driver-api/thermal/sysfs-api.rst: trip points have a type, `passive` slows clocks, and a
    temperature in millidegrees.
    """
    found: list[tuple[float, float]] = []
    for path in tree.paths(f"{_ZONES}/trip_point_*_type"):
        if tree.text(path) != "passive":
            continue
        limit, now = tree.number(path.replace("_type", "_temp")), tree.number(path.rpartition("/")[0] + "/temp")
        if limit is not None and now is not None and limit > 0 and now > 0:
            found.append((now / 1000, limit / 1000))
    return min(found, key=lambda one: one[1] - one[0], default=None)


def frequency_hz(tree: Tree) -> int | None:
    """The present clock of the first core."""
    khz = tree.number(f"{_CPUFREQ}/scaling_cur_freq")
    return khz * 1000 if khz is not None else None


def allowed_memory_bytes(tree: Tree) -> int | None:
    """What the children of a measurement may use together: most of what is free, and no more than the owner's cap."""
    free = free_memory_bytes(tree)
    share = int(free * _MEMORY_SHARE) if free is not None else None
    return min((value for value in (share, memory_cap()) if value is not None), default=None)


def free_memory_bytes(tree: Tree) -> int | None:
    """What may still be used: of the machine, and of every control group that this process is in and that has a limit.

    In a group, pages of files that nobody used lately count as free. Source: Linux, Documentation/admin-guide/cgroup-v2.rst:
    `memory.max`, `memory.current`, `inactive_file` of `memory.stat`; Documentation/admin-guide/cgroup-v1/memory.rst:
    `memory.limit_in_bytes`, `memory.usage_in_bytes`, `total_inactive_file`.
    """
    free = [tree.kibibytes("/proc/meminfo", "MemAvailable")]
    for folder, most, used, idle in _memory_groups(tree):
        limit, taken = tree.number(f"{folder}/{most}"), tree.number(f"{folder}/{used}")
        if limit is not None and taken is not None:
            stat = dict(line.split(" ", 1) for line in tree.lines(f"{folder}/memory.stat") if " " in line)
            kept = stat.get(idle, "0")
            free.append(max(0, limit - taken + (int(kept) if kept.isdigit() else 0)))
    return min((value for value in free if value is not None), default=None)


def memory_limits(tree: Tree) -> list[int]:
    """The limits on memory, in bytes, of the control groups that this process is in; what is as good as none is among them."""
    found = [tree.number(f"{folder}/{most}") for folder, most, _, _ in _memory_groups(tree)]
    return [limit for limit in found if limit is not None]


def _memory_groups(tree: Tree) -> Iterator[tuple[str, str, str, str]]:
    """Folders of this process's groups, from the root: each with its files of limit and use, and the name of what is idle."""
    own: dict[str, str] = {}
    for line in tree.lines("/proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers or "memory" in controllers.split(","):
            own["memory" if controllers else ""] = path
    # In a container the path may be the host's, of which nothing is mounted here but its end, as the root.
    for folder in _from_root("/sys/fs/cgroup", own.get("", "")):
        yield folder, "memory.max", "memory.current", "inactive_file"
    for folder in _from_root("/sys/fs/cgroup/memory", own.get("memory", "")):
        yield folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def _from_root(root: str, path: str) -> list[str]:
    parts = [part for part in path.split("/") if part and part != ".."]
    return ["/".join((root, *parts[:depth])) for depth in range(len(parts) + 1)]


def cpu_pressure_percent(tree: Tree) -> float | None:
    """PSI: the share of the last ten seconds in which some task waited for a processor."""
    return _pressure(tree, "cpu")


def _pressure(tree: Tree, resource: str) -> float | None:
    for line in tree.lines(f"/proc/pressure/{resource}"):
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


def _set(reading: measurement_pb2.Reading, **values: float | int | bool | None) -> None:
    for name, value in values.items():
        if value is not None:
            setattr(reading, name, value)


class Readings:
    """Takes readings one after another: shares of time are counted since the one before."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._times = self._cpu_times()
        self._throttling = Throttling(tree)
        self._zones = tree.paths(f"{_ZONES}/temp")

    def take(self) -> measurement_pb2.Reading:
        """The state now."""
        tree = self._tree
        reading = measurement_pb2.Reading(
            monotonic_ns=time.monotonic_ns(),
            load_1m=_load(tree),
            governor=governor(tree),
            power_mode=power_mode(tree),
        )
        _set(
            reading,
            cpu_pressure_percent=cpu_pressure_percent(tree),
            memory_pressure_percent=_pressure(tree, "memory"),
            io_pressure_percent=_pressure(tree, "io"),
        )
        self._look(reading)
        now = self._cpu_times()
        if now is not None and self._times is not None:
            total, busy, stolen, ours = (after - before for after, before in zip(now, self._times, strict=True))
            if total > 0:
                reading.steal_percent = 100 * stolen / total
                reading.other_cpu_percent = max(0.0, 100 * (busy - ours) / total)
        self._times = now
        return reading

    def glance(self) -> measurement_pb2.Reading:
        """What may change during a trial, and is read quickly: heat, clock, throttling, free memory."""
        reading = measurement_pb2.Reading(monotonic_ns=time.monotonic_ns())
        self._look(reading)
        return reading

    def _look(self, reading: measurement_pb2.Reading) -> None:
        reasons = self._throttling.look()
        _set(
            reading,
            temperature_celsius=_hottest(self._tree, self._zones),
            frequency_hz=frequency_hz(self._tree),
            available_memory_bytes=free_memory_bytes(self._tree),
            throttled=None if reasons is None else bool(reasons),
        )
        reading.throttled_by.extend(sorted(reasons or ()))

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
