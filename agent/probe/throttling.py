"""Whether the device slows its processor down, and why: now, or since the look before."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Final

from fleetfit.agent.probe.files import Tree

# The firmware's word on a Raspberry Pi, in hexadecimal without a prefix. Bits 0 to 3 are what is now, 16 to 19 the same since
# somebody cleared them. Source: raspberrypi.com/documentation/computers/os.html, `vcgencmd get_throttled`. The kernel's copy is
# two seconds old at most, and its driver clears the bits of the past each time (Linux, drivers/hwmon/raspberrypi-hwmon.c).
_FIRMWARE: Final = "/sys/devices/platform/soc/soc:firmware/get_throttled"
_VCGENCMD: Final = "/usr/bin/vcgencmd"
_MAILBOX: Final = "/dev/vcio"
_NOW: Final = ("under-voltage", "capped clock", "throttled by firmware", "soft temperature limit")
_PAST_BITS: Final = 16
_PATIENCE_S: Final = 2.0
# Counters of x86 cores and packages that were slowed down for heat, since boot.
_X86: Final = {
    "core_throttle_count": "a core too hot",
    "package_throttle_count": "the processor package too hot",
}
# Names of cooling devices that slow the processor. Source: Linux, drivers/thermal/cpufreq_cooling.c ("cpufreq-%s", in older
# kernels "thermal-cpufreq-%d"); a fan is a cooling device too.
_SLOWER_CLOCKS: Final = ("cpufreq-", "thermal-cpufreq-")
# Jetson Orin and later: over-current events. Source: NVIDIA's driver for them, which names the chip `soctherm_oc` and gives
# `oc1_event_cnt` to `oc3_event_cnt`.
_EVENTS_CHIP: Final = "soctherm_oc"


class Throttling:
    """Looks again and again; paths are found once, so that a look is some dozens of microseconds."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._cooling = [
            path.replace("/type", "/cur_state")
            for path in tree.paths("/sys/class/thermal/cooling_device*/type")
            if (tree.text(path) or "").startswith(_SLOWER_CLOCKS)
        ]
        self._counters = {
            path: reason
            for name, reason in _X86.items()
            for path in tree.paths(f"/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/{name}")
        }
        for path in tree.paths("/sys/class/hwmon/hwmon*/name"):
            if tree.text(path) == _EVENTS_CHIP:
                folder = path.removesuffix("name")
                self._counters |= dict.fromkeys(tree.paths(f"{folder}oc[0-9]_event_cnt"), "over-current")
        self._counts = self._read_counters()
        self._past = (self._word() or 0) >> _PAST_BITS

    def look(self) -> frozenset[str] | None:
        """The reasons, empty where there is none; None where this device does not tell."""
        found: set[str] = set()
        word = self._word()
        if word is not None:
            past = word >> _PAST_BITS
            bits = word | (past & ~self._past)
            self._past = past
            found |= {reason for at, reason in enumerate(_NOW) if bits >> at & 1}
        for path, count in self._read_counters().items():
            if count > self._counts.get(path, count):
                found.add(self._counters[path])
            self._counts[path] = count
        states = [self._tree.number(path) for path in self._cooling]
        if any(state for state in states):
            found.add("clocks lowered to cool down")
        told = word is not None or self._counts or any(state is not None for state in states)
        return frozenset(found) if told else None

    def _read_counters(self) -> dict[str, int]:
        read = {path: self._tree.number(path) for path in self._counters}
        return {path: count for path, count in read.items() if count is not None}

    def _word(self) -> int | None:
        text = self._tree.text(_FIRMWARE)
        if text is None and (self._tree.root / _MAILBOX.lstrip("/")).exists():
            text = self._asked()
        with contextlib.suppress(ValueError):
            return int(text, 16) if text else None
        return None

    def _asked(self) -> str | None:
        """What `vcgencmd get_throttled` says (`throttled=0x50000`), for kernels without the file."""
        command = [str(self._tree.root / _VCGENCMD.lstrip("/")), "get_throttled"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)  # noqa: S603 - a fixed path
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip().partition("=")[2] or None
