"""Trees of files as devices have them. Each is a fixture: written from documentation and published listings, not recorded.

- Raspberry Pi 4: the /proc/cpuinfo of a 64-bit system as people publish it (no `model name`, part 0xd08, Model line),
  1.5 GHz, `get_throttled` in hexadecimal without a prefix (drivers/firmware/raspberrypi.c of the board's kernel).
- Jetson Orin Nano: device tree names and nvpmodel's files as published for JetPack 6 (L4T 36.4); the memory that a developer
  kit of 8 GB reports.
- The x86 server and the container: proc(5), and the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fleetfit.agent.probe.files import Tree

BOOT_ID = "8c9a2b1e-0000-4000-8000-1234567890ab"
_ARM_CORE = (
    "processor\t: {n}\nBogoMIPS\t: {mips}\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
)
_OS_RELEASE = 'NAME="{name}"\nPRETTY_NAME="{name}"\n'


def _arm(cores: int, part: str, mips: str, features: str) -> str:
    return "".join(_ARM_CORE.format(n=n, part=part, mips=mips, features=features) for n in range(cores))


RASPBERRY_PI_4: Mapping[str, str] = {
    "/fleetfit/machine": "aarch64",
    "/proc/cpuinfo": _arm(4, "0xd08", "108.00", "fp asimd evtstrm crc32 cpuid")
    + "Revision\t: c03114\nSerial\t\t: 10000000deadbeef\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n",
    "/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "/proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
    "/proc/meminfo": "MemTotal:        3885396 kB\nMemAvailable:    3421000 kB\nShmem:             11000 kB\n",
    "/proc/loadavg": "0.42 0.30 0.20 1/200 999\n",
    "/proc/pressure/cpu": "some avg10=1.50 avg60=0.50 avg300=0.10 total=12345\n",
    "/proc/stat": "cpu  1000 0 500 8000 100 0 0 0 0 0\ncpu0 250 0 125 2000 25 0 0 0 0 0\n",
    "/proc/sys/kernel/osrelease": "6.6.31+rpt-rpi-v8\n",
    "/proc/sys/kernel/random/boot_id": BOOT_ID + "\n",
    "/etc/os-release": _OS_RELEASE.format(name="Debian GNU/Linux 12 (bookworm)"),
    "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "/sys/class/thermal/thermal_zone0/temp": "48199\n",
    "/sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "/sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
    **{
        f"/sys/devices/system/cpu/cpu{n}/{name}": value
        for n in range(4)
        for name, value in {
            "cpufreq/cpuinfo_min_freq": "600000\n",
            "cpufreq/cpuinfo_max_freq": "1500000\n",
            "cpufreq/scaling_cur_freq": "600000\n",
            "cpufreq/scaling_governor": "ondemand\n",
            "topology/physical_package_id": "0\n",
            "topology/core_id": f"{n}\n",
        }.items()
    },
}

JETSON_ORIN_NANO: Mapping[str, str] = {
    "/fleetfit/machine": "aarch64",
    "/proc/cpuinfo": _arm(
        6, "0xd42", "62.50", "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp"
    ).replace("BogoMIPS", "model name\t: ARMv8 Processor rev 1 (v8l)\nBogoMIPS"),
    "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "/proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "/proc/meminfo": "MemTotal:        7802984 kB\nMemAvailable:    4910000 kB\n",
    "/proc/sys/kernel/osrelease": "5.15.148-tegra\n",
    "/etc/os-release": _OS_RELEASE.format(name="Ubuntu 22.04.5 LTS"),
    "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64, DATE: Thu Sep 18\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
    "/etc/nvpmodel.conf": "< PM_CONFIG DEFAULT=1 >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< POWER_MODEL ID=3 NAME=7W >\n",
    "/var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    "/sys/class/thermal/thermal_zone0/temp": "49500\n",
    "/sys/class/thermal/thermal_zone1/temp": "51250\n",
    "/sys/class/thermal/thermal_zone2/temp": "-256000\n",
    "/sys/devices/platform/bus@0/17000000.gpu/load": "0\n",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600\n",
    "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1728000\n",
}

X86_SERVER: Mapping[str, str] = {
    "/fleetfit/machine": "x86_64",
    "/proc/cpuinfo": "".join(
        f"processor\t: {n}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Gold 6226R CPU @ 2.90GHz\n"
        "flags\t\t: fpu sse2 avx2 avx512f avx512_vnni fpu\n\n"
        for n in range(4)
    ),
    "/proc/meminfo": "MemTotal:       65536000 kB\nMemAvailable:   60000000 kB\n",
    "/proc/stat": "cpu  100 0 100 800 0 0 0 0 0 0\n",
    "/proc/sys/kernel/osrelease": "6.1.0-18-amd64\n",
    "/proc/sys/kernel/random/boot_id": BOOT_ID + "\n",
    "/etc/machine-id": "ffffffffffffffffffffffffffffffff\n",
    "/sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "/sys/class/powercap/intel-rapl:0/energy_uj": "123456789\n",
    "/proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA L4\nIRQ:   \t\t 100\n",
    **{
        # Two threads on each of two cores.
        f"/sys/devices/system/cpu/cpu{n}/{name}": value
        for n in range(4)
        for name, value in {
            "topology/physical_package_id": "0\n",
            "topology/core_id": f"{n % 2}\n",
            "thermal_throttle/core_throttle_count": "3\n",
        }.items()
    },
}

CONTAINER_V2: Mapping[str, str] = {
    **X86_SERVER,
    "/sys/fs/cgroup/cpu.max": "250000 100000\n",
    "/sys/fs/cgroup/memory.max": "2147483648\n",
}

CONTAINER_V1: Mapping[str, str] = {
    **X86_SERVER,
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
    "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n",
}


def plant(root: Path, files: Mapping[str, str]) -> Tree:
    """Write the files below `root`, over what is there."""
    for path, content in files.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode())
    return Tree(root)
