"""The immutable facts about this device."""

from __future__ import annotations

import platform
import re
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fleetfit.agent.caps import memory_cap
from fleetfit.agent.meters.base import FoundMeter, find_meter
from fleetfit.agent.probe.emulation import seen_emulation
from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.processor import read_processor
from fleetfit.agent.probe.readings import host_digest, memory_limits, meters, power_mode
from fleetfit.agent.probe.runtimes import ask_together
from fleetfit.proto.v1 import snapshot_pb2

_DMI: Final = "/sys/devices/virtual/dmi/id"
# A Jetson's own GPU among the devices whose clock changes: by the chip's name up to JetPack 5, `gpu` since. Source:
# jetson-stats, jtop/core/gpu.py (names gv11b, gp10b, ga10b, gpu); on Thor `gpu-gpc-0`, as people read its clock there.
_INTEGRATED_GPU: Final = re.compile(r"[0-9a-f]+\.(gpu|gp10b|gv11b|ga10b)|gpu-gpc-\d+")
_EC2_INSTANCE: Final = re.compile(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})")


def take_snapshot(
    tree: Tree,
    *,
    threads: int = 0,
    emulated: bool = False,
    disk: Path | None = None,
    runtimes: Iterable[snapshot_pb2.Runtime] | None = None,
) -> snapshot_pb2.DeviceSnapshot:
    """Everything that tells what this device is. What cannot be read is absent.

    `disk` is a folder on the disk that the agent uses; the working folder if None. `runtimes` are those that were asked
    already; None: they are asked in this process.
    """
    processor = read_processor(tree)
    usable = processor.usable_cores or 1
    energy = find_meter(tree)
    machine = platform.machine() if tree.real else (tree.text("/fleetfit/machine") or platform.machine())
    # A tree is read on another machine than it stands for.
    told = (seen_emulation(tree, machine) if tree.real else "") or ("its owner says so" if emulated else "")
    if isinstance(energy, FoundMeter):
        energy.meter.close()
    snapshot = snapshot_pb2.DeviceSnapshot(
        machine=machine,
        device_tree_model=(tree.text("/proc/device-tree/model") or "").strip(),
        device_tree_compatible=[line for line in tree.lines("/proc/device-tree/compatible") if line],
        processor=processor,
        os=_operating_system(tree),
        python_version=platform.python_version(),
        host_name=socket.gethostname(),
        emulated=bool(told),
        emulated_because=told,
        host_digest=host_digest(tree),
        threads=min(threads, usable) if threads else usable,
        power_mode=power_mode(tree),
        meters=[*meters(tree), *([energy.name] if isinstance(energy, FoundMeter) else [])],
        energy=energy.meter.covers if isinstance(energy, FoundMeter) else "",
        no_energy_because="" if isinstance(energy, FoundMeter) else energy.reason,
        runtimes=ask_together() if runtimes is None else runtimes,
        product=_product(tree),
    )
    memory = _memory(tree)
    if memory is not None:
        snapshot.memory_bytes = memory
    snapshot.disk_free_bytes = shutil.disk_usage(disk or Path.cwd()).free
    for accelerator in _accelerators(tree):
        snapshot.accelerators.append(accelerator)
    return snapshot


def _memory(tree: Tree) -> int | None:
    """The machine's memory, or the limit of this container or of the owner where that is lower."""
    total = tree.kibibytes("/proc/meminfo", "MemTotal")
    known = [value for value in (total, *memory_limits(tree), memory_cap()) if value is not None and value > 0]
    return min(known, default=None)


def _product(tree: Tree) -> str:
    # An instance of EC2 has its id here (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html).
    if _EC2_INSTANCE.fullmatch((tree.text(f"{_DMI}/board_asset_tag") or "").strip()):
        return "EC2 instance"
    return " ".join(
        filter(None, ((tree.text(f"{_DMI}/{name}") or "").strip() for name in ("sys_vendor", "product_name")))
    )


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


def _accelerators(tree: Tree) -> list[snapshot_pb2.Accelerator]:
    found = []
    for path in tree.paths("/proc/driver/nvidia/gpus/*/information"):
        for line in tree.lines(path):
            if line.startswith("Model:"):
                found.append(snapshot_pb2.Accelerator(kind="gpu", name=line.partition(":")[2].strip()))
    # Its place in the tree differs between releases of the board's system.
    integrated = tree.paths("/sys/devices/platform/*gpu*") or tree.paths("/sys/devices/platform/bus@0/*gpu*")
    scaled = [path for path in tree.paths("/sys/class/devfreq/*") if _INTEGRATED_GPU.fullmatch(path.rpartition("/")[2])]
    if not found and (integrated or scaled) and tree.text("/etc/nv_tegra_release"):
        found.append(snapshot_pb2.Accelerator(kind="gpu", name="NVIDIA Tegra (integrated)"))
    return found
