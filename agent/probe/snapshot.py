"""The immutable facts about this device."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from pathlib import Path

import psutil

from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.readings import host_digest, meters, power_mode
from fleetfit.proto.v1 import snapshot_pb2
from fleetfit.runtimes.base import Availability
from fleetfit.runtimes.registry import runtimes


def take_snapshot(
    tree: Tree, *, threads: int = 0, emulated: bool = False, disk: Path | None = None
) -> snapshot_pb2.DeviceSnapshot:
    """Everything that tells what this device is. What cannot be read is absent."""
    processor = _processor(tree)
    usable = processor.usable_cores or 1
    snapshot = snapshot_pb2.DeviceSnapshot(
        machine=platform.machine() if tree.real else (tree.text("/fleetfit/machine") or platform.machine()),
        device_tree_model=(tree.text("/proc/device-tree/model") or "").strip(),
        device_tree_compatible=[line for line in tree.lines("/proc/device-tree/compatible") if line],
        processor=processor,
        os=_operating_system(tree),
        python_version=platform.python_version(),
        host_name=socket.gethostname(),
        emulated=emulated or _looks_emulated(tree),
        host_digest=host_digest(tree),
        threads=min(threads, usable) if threads else usable,
        power_mode=power_mode(tree),
        meters=meters(tree),
        runtimes=_runtimes(),
    )
    memory = _memory(tree)
    if memory is not None:
        snapshot.memory_bytes = memory
    snapshot.disk_free_bytes = shutil.disk_usage(disk or Path.cwd()).free
    for accelerator in _accelerators(tree):
        snapshot.accelerators.append(accelerator)
    return snapshot


def _processor(tree: Tree) -> snapshot_pb2.Processor:
    first: dict[str, str] = {}
    whole: dict[str, str] = {}
    count = 0
    for line in tree.lines("/proc/cpuinfo"):
        key, separator, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not separator:
            continue
        count += key == "processor"
        first.setdefault(key, value)
        whole[key] = value
    flags = (first.get("flags") or first.get("Features") or "").split()
    processor = snapshot_pb2.Processor(
        model=first.get("model name") or first.get("Hardware") or whole.get("Model", ""),
        vendor=first.get("vendor_id", ""),
        flags=sorted(set(flags)),
        arm_implementer=first.get("CPU implementer", ""),
        arm_part=first.get("CPU part", ""),
        usable_cores=len(os.sched_getaffinity(0)) if tree.real else count,
        physical_cores=(psutil.cpu_count(logical=False) or 0) if tree.real else count,
    )
    khz = tree.number("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if khz is not None:
        processor.max_frequency_hz = khz * 1000
    return processor


def _memory(tree: Tree) -> int | None:
    for line in tree.lines("/proc/meminfo"):
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _operating_system(tree: Tree) -> snapshot_pb2.OperatingSystem:
    name = ""
    for line in tree.lines("/etc/os-release"):
        if line.startswith("PRETTY_NAME="):
            name = line.partition("=")[2].strip('"')
    release = tree.lines("/etc/nv_tegra_release")
    return snapshot_pb2.OperatingSystem(
        name=name,
        kernel=platform.release() if tree.real else (tree.text("/proc/sys/kernel/osrelease") or ""),
        l4t=release[0].lstrip("# ") if release else "",
        libc=" ".join(platform.libc_ver()),
    )


def _looks_emulated(tree: Tree) -> bool:
    # qemu-user runs one program of another architecture: the kernel then names the host's own.
    if not tree.real:
        return False
    return "qemu" in (tree.text("/proc/self/exe") or "") or "QEMU_CPU" in os.environ


def _runtimes() -> list[snapshot_pb2.Runtime]:
    found = []
    for name, adapter in runtimes().items():
        availability = adapter if isinstance(adapter, Availability) else adapter.availability()
        found.append(
            snapshot_pb2.Runtime(
                name=name,
                version=availability.version,
                available=availability.available,
                reason=availability.reason,
                formats=[] if isinstance(adapter, Availability) else adapter.formats,
                providers=availability.providers,
            )
        )
    return found


def _accelerators(tree: Tree) -> list[snapshot_pb2.Accelerator]:
    found = []
    for path in tree.paths("/proc/driver/nvidia/gpus/*/information"):
        for line in tree.lines(path):
            if line.startswith("Model:"):
                found.append(snapshot_pb2.Accelerator(kind="gpu", name=line.partition(":")[2].strip()))
    if not found and tree.paths("/sys/devices/platform/*gpu*") and tree.text("/etc/nv_tegra_release"):
        found.append(snapshot_pb2.Accelerator(kind="gpu", name="NVIDIA Tegra (integrated)"))
    return found
