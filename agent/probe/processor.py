"""The processor: what /proc/cpuinfo, the device tree and the control groups say."""

from __future__ import annotations

import math
import os
from typing import Final

from fleetfit.agent.probe.files import Tree
from fleetfit.core.arm import ARM_CORES
from fleetfit.proto.v1 import snapshot_pb2

_MIDR: Final = "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1"


def read_processor(tree: Tree) -> snapshot_pb2.Processor:
    """Everything that names the processor, and how much of it this process may use."""
    first, count = _cpuinfo(tree)
    implementer, part = _arm_ids(tree, first)
    flags = (first.get("flags") or first.get("Features") or "").split()
    processor = snapshot_pb2.Processor(
        model=processor_name(tree),
        vendor=first.get("vendor_id", ""),
        flags=sorted(set(flags)),
        arm_implementer=implementer,
        arm_part=part,
        usable_cores=_usable(tree, count),
        physical_cores=_physical(tree) or count,
    )
    khz = tree.number("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if khz is not None:
        processor.max_frequency_hz = khz * 1000
    return processor


def processor_name(tree: Tree) -> str:
    """The model's name; on Arm the core's, where its part number is known."""
    first, _ = _cpuinfo(tree)
    implementer, part = _arm_ids(tree, first)
    arm = ARM_CORES.get(part, "") if implementer == "0x41" else ""
    # The kernels of some boards say no more as a model than that it is an Arm ("ARMv7 Processor rev 3 (v7l)").
    return arm or first.get("model name") or first.get("Hardware") or first.get("Model", "")


def _arm_ids(tree: Tree, first: dict[str, str]) -> tuple[str, str]:
    """Implementer and part of an Arm core, empty elsewhere.

    From /proc/cpuinfo, else from the register that it prints: bits 31 to 24 and 15 to 4. Source: Linux,
    Documentation/arch/arm64/cpu-feature-registers.rst, MIDR_EL1.
    """
    implementer, part = first.get("CPU implementer", ""), first.get("CPU part", "")
    register = tree.number(_MIDR)
    if part or register is None:
        return implementer, part
    return f"0x{register >> 24 & 0xFF:02x}", f"0x{register >> 4 & 0xFFF:03x}"


def _cpuinfo(tree: Tree) -> tuple[dict[str, str], int]:
    """The first value of each key, and the number of logical processors."""
    first: dict[str, str] = {}
    count = 0
    for line in tree.lines("/proc/cpuinfo"):
        key, separator, value = line.partition(":")
        if separator:
            count += key.strip() == "processor"
            first.setdefault(key.strip(), value.strip())
    return first, count


def _usable(tree: Tree, count: int) -> int:
    """Logical processors that this process may use: by affinity, and by the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if tree.real else count
    quota = cpu_quota(tree)
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def cpu_quota(tree: Tree) -> float | None:
    """Processors' worth of time that the control group allows (a container's `--cpus`), None without a limit."""
    words = (tree.text("/sys/fs/cgroup/cpu.max") or "").split()
    if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
        return int(words[0]) / int(words[1])
    quota, period = (tree.number(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota / period if quota is not None and period and quota > 0 else None


def _physical(tree: Tree) -> int:
    cores = {
        (tree.text(path), tree.text(path.replace("physical_package_id", "core_id")))
        for path in tree.paths("/sys/devices/system/cpu/cpu[0-9]*/topology/physical_package_id")
    }
    return len(cores)
