"""Boards as trees of files: *constructed* from the pages named with each, never recorded on a board.

Numbers that change from moment to moment (temperatures, clocks, currents, free memory) are made up; names, places and forms are
from the pages. Strings of device trees are those of the profiles' rules, which name their pages themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

LINUX: Final = "https://github.com/torvalds/linux/blob/master/"
DTS: Final = f"{LINUX}arch/arm64/boot/dts/nvidia/"
CPUTYPE: Final = f"{LINUX}arch/arm64/include/asm/cputype.h"
DEVFREQ: Final = "https://github.com/rbonghi/jetson_stats/blob/master/jtop/core/gpu.py"
_HWMON: Final = "/sys/class/hwmon"
_CPU: Final = "/sys/devices/system/cpu"
_FEATURES: Final = "fp asimd evtstrm crc32 cpuid"
_V82: Final = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


@dataclass(frozen=True)
class Board:
    """A tree, where its names were read, and what the probe is to say of it."""

    profile: str
    files: Mapping[str, str]
    sources: Sequence[str]
    processor: str
    power_mode: str = ""
    energy: str = ""
    """What its meter covers; empty: it has none."""
    microwatts: int = 0
    gpu: bool = False
    celsius: float | None = None
    meters: Sequence[str] = field(default=("thermal", "cpufreq"))


def _cpuinfo(cores: int, part: str, features: str = _FEATURES, implementer: str = "0x41", tail: str = "") -> str:
    core = "processor\t: {n}\nBogoMIPS\t: 100.00\nFeatures\t: {features}\nCPU implementer\t: {implementer}\nCPU part\t: {part}\n\n"
    return "".join(core.format(n=n, features=features, implementer=implementer, part=part) for n in range(cores)) + tail


def _cpus(governor: str, lowest: int, highest: int) -> dict[str, str]:
    clock = f"{_CPU}/cpu0/cpufreq"
    return {
        f"{clock}/scaling_governor": f"{governor}\n",
        f"{clock}/scaling_cur_freq": f"{lowest}\n",
        f"{clock}/scaling_min_freq": f"{lowest}\n",
        f"{clock}/scaling_max_freq": f"{highest}\n",
        f"{clock}/cpuinfo_max_freq": f"{highest}\n",
    }


def _zones(**celsius: float) -> dict[str, str]:
    zones = {}
    for at, (name, value) in enumerate(celsius.items()):
        folder = f"/sys/class/thermal/thermal_zone{at}"
        zones |= {f"{folder}/type": name.replace("_", "-") + "\n", f"{folder}/temp": f"{int(value * 1000)}\n"}
    return zones


def _rails(chip: int, *rails: tuple[str, int, int]) -> dict[str, str]:
    """An INA3221: name, millivolts and milliamperes of each channel."""
    folder = f"{_HWMON}/hwmon{chip}"
    files = {f"{folder}/name": "ina3221\n"}
    for channel, (name, volts, amperes) in enumerate(rails, 1):
        files |= {
            f"{folder}/in{channel}_label": f"{name}\n",
            f"{folder}/in{channel}_input": f"{volts}\n",
            f"{folder}/curr{channel}_input": f"{amperes}\n",
        }
    return files


def _nvpmodel(mode: int, *names: str) -> dict[str, str]:
    models = "".join(f"< POWER_MODEL ID={at} NAME={name} >\nCPU_ONLINE CORE_0 1\n\n" for at, name in enumerate(names))
    return {
        "/etc/nvpmodel.conf": f"# FORMAT:\n# < POWER_MODEL ID=id_num NAME=mode_name >\n\n{models}< PM_CONFIG DEFAULT=0 >\n",
        "/var/lib/nvpmodel/status": f"pmode:{mode:04d} fmode:quiet\n",
    }


def _jetson(model: str, compatible: Sequence[str], release: str, kibibytes: int) -> dict[str, str]:
    return {
        "/fleetfit/machine": "aarch64\n",
        "/proc/device-tree/model": f"{model}\0",
        "/proc/device-tree/compatible": "".join(f"{one}\0" for one in compatible),
        "/proc/meminfo": f"MemTotal: {kibibytes:>14} kB\nMemAvailable: {kibibytes // 2:>10} kB\n",
        "/etc/nv_tegra_release": f"# {release}, GCID: 1, BOARD: generic, EABI: aarch64\n",
        "/etc/os-release": 'PRETTY_NAME="Ubuntu"\n',
    }


def _raspberry(model: str, compatible: Sequence[str], part: str, kibibytes: int, highest: int) -> dict[str, str]:
    tail = f"Revision\t: 000000\nSerial\t\t: 10000000deadbeef\nModel\t\t: {model}\n"
    return {
        "/fleetfit/machine": "aarch64\n",
        "/proc/cpuinfo": _cpuinfo(4, part, tail=tail),
        "/proc/device-tree/model": f"{model}\0",
        "/proc/device-tree/compatible": "".join(f"{one}\0" for one in compatible),
        "/proc/meminfo": f"MemTotal: {kibibytes:>14} kB\nMemAvailable: {kibibytes // 2:>10} kB\n",
        "/etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        "/sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
        f"{_HWMON}/hwmon0/name": "cpu_thermal\n",
        f"{_HWMON}/hwmon1/name": "rpi_volt\n",
        f"{_HWMON}/hwmon1/in0_lcrit_alarm": "0\n",
        **_zones(cpu_thermal=44.5),
        **_cpus("ondemand", 600_000, highest),
    }


def _server(part: str, cores: int, product: Mapping[str, str], features: str = _V82) -> dict[str, str]:
    return {
        "/fleetfit/machine": "aarch64\n",
        "/proc/cpuinfo": _cpuinfo(cores, part, features),
        "/proc/meminfo": "MemTotal:       65536000 kB\nMemAvailable:   60000000 kB\n",
        **{f"/sys/devices/virtual/dmi/id/{name}": f"{text}\n" for name, text in product.items()},
    }


_OLD: Final = "/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
_EC2: Final = {"sys_vendor": "Amazon EC2", "board_asset_tag": "i-0af01c0123456789a"}
_PI: Final = (
    "https://www.raspberrypi.com/documentation/computers/os.html",
    f"{LINUX}drivers/hwmon/raspberrypi-hwmon.c",
)

JETSONS: Final = (
    Board(
        profile="jetson-nano",
        files={
            **_jetson(
                "NVIDIA Jetson Nano Developer Kit",
                ("nvidia,p3450-0000", "nvidia,jetson-nano", "nvidia,tegra210"),
                "R32 (release), REVISION: 7.1",
                4059712,
            ),
            "/proc/cpuinfo": _cpuinfo(4, "0xd07"),
            **_nvpmodel(1, "MAXN", "5W"),
            # The names of JetPack 4.
            **_zones(AO_therm=42.5, CPU_therm=35.0, GPU_therm=33.5, PLL_therm=33.0, thermal_fan_est=34.2),
            "/sys/class/devfreq/57000000.gpu/cur_freq": "76800000\n",
            f"{_OLD}/rail_name_0": "POM_5V_IN\n",
            f"{_OLD}/in_power0_input": "2600\n",
            f"{_OLD}/rail_name_1": "POM_5V_GPU\n",
            f"{_OLD}/in_power1_input": "120\n",
            f"{_OLD}/rail_name_2": "POM_5V_CPU\n",
            f"{_OLD}/in_power2_input": "480\n",
            **_cpus("schedutil", 102_000, 918_000),
        },
        sources=(
            "https://github.com/jfey/SmallThings/blob/master/jetson-nano.md",
            "https://github.com/jozefchutka/jetson-nano/blob/master/performance.md",
            DEVFREQ,
        ),
        processor="Cortex-A57",
        power_mode="5W",
        energy="module input (POM_5V_IN)",
        microwatts=2_600_000,
        gpu=True,
        celsius=42.5,
    ),
    Board(
        profile="jetson-tx2",
        files={
            **_jetson(
                "NVIDIA Jetson TX2 Developer Kit",
                ("nvidia,p2771-0000", "nvidia,tegra186"),
                "R32 (release), REVISION: 7.6",
                8040000,
            ),
            "/proc/cpuinfo": _cpuinfo(1, "0xd07") + _cpuinfo(2, "0x003", implementer="0x4e") + _cpuinfo(3, "0xd07"),
            **_nvpmodel(3, "MAXN", "MAXQ", "MAXP_CORE_ALL", "MAXP_CORE_ARM", "MAXP_CORE_DENVER"),
            **_zones(BCPU_therm=41.0, MCPU_therm=40.5, GPU_therm=39.0),
            "/sys/class/devfreq/17000000.gp10b/cur_freq": "114750000\n",
            **_rails(0, ("VDD_SYS_GPU", 19000, 8), ("VDD_SYS_SOC", 19000, 24), ("VDD_3V8_WIFI", 4800, 0)),
            **_rails(1, ("VDD_IN", 19000, 150), ("VDD_SYS_CPU", 19000, 16), ("VDD_5V0_DDR", 19000, 30)),
            **_cpus("schedutil", 345_600, 2_035_200),
        },
        sources=(
            f"{DTS}tegra186-p3310.dtsi",
            "https://jetsonhacks.com/2017/03/25/nvpmodel-nvidia-jetson-tx2-development-kit/",
            DEVFREQ,
            CPUTYPE,
        ),
        processor="Cortex-A57",
        power_mode="MAXP_CORE_ARM",
        energy="module input (VDD_IN)",
        microwatts=2_850_000,
        gpu=True,
        celsius=41.0,
    ),
    Board(
        profile="jetson-xavier-nx",
        files={
            **_jetson(
                "NVIDIA Jetson Xavier NX Developer Kit",
                ("nvidia,p3509-0000+p3668-0000", "nvidia,tegra194"),
                "R35 (release), REVISION: 4.1",
                7100000,
            ),
            # The kernel has no name for NVIDIA's own core.
            "/proc/cpuinfo": _cpuinfo(6, "0x004", _V82, implementer="0x4e").replace(
                "BogoMIPS", "model name\t: ARMv8 Processor rev 0 (v8l)\nBogoMIPS"
            ),
            **_nvpmodel(
                8,
                *("MODE_15W_2CORE", "MODE_15W_4CORE", "MODE_15W_6CORE", "MODE_10W_2CORE", "MODE_10W_4CORE"),
                *("MODE_10W_DESKTOP", "MODE_20W_2CORE", "MODE_20W_4CORE", "MODE_20W_6CORE"),
            ),
            **_zones(CPU_therm=45.0, GPU_therm=43.5, AUX_therm=44.0),
            "/sys/class/devfreq/17000000.gv11b/cur_freq": "114750000\n",
            **_rails(2, ("VDD_IN", 4936, 800), ("VDD_CPU_GPU_CV", 4936, 120), ("VDD_SOC", 4936, 200)),
            **_cpus("schedutil", 115_200, 1_907_200),
        },
        sources=(f"{DTS}tegra194-p3668.dtsi", DEVFREQ),
        processor="ARMv8 Processor rev 0 (v8l)",
        power_mode="MODE_20W_6CORE",
        energy="module input (VDD_IN)",
        microwatts=3_948_800,
        gpu=True,
        celsius=45.0,
    ),
    Board(
        profile="jetson-agx-orin",
        files={
            **_jetson(
                "NVIDIA Jetson AGX Orin Developer Kit",
                ("nvidia,p3737-0000+p3701-0000", "nvidia,p3701-0000", "nvidia,tegra234"),
                "R35 (release), REVISION: 4.1",
                31_000_000,
            ),
            "/proc/cpuinfo": _cpuinfo(12, "0xd42", _V82),
            **_nvpmodel(2, "MAXN", "MODE_15W", "MODE_30W", "MODE_50W"),
            **_zones(
                **{"cpu_thermal": 48.0, "gpu_thermal": 45.0, "cv0_thermal": -256.0, "soc0_thermal": 46.0},
                **{"soc1_thermal": 46.5, "soc2_thermal": 45.5, "tj_thermal": 48.0},
            ),
            "/sys/class/devfreq/17000000.ga10b/cur_freq": "306000000\n",
            **_rails(3, ("VDD_GPU_SOC", 19000, 200), ("VDD_CPU_CV", 19000, 100), ("VIN_SYS_5V0", 5000, 900)),
            **_rails(4, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 200), ("NC", 0, 0)),
            **_cpus("schedutil", 115_200, 2_201_600),
        },
        sources=(
            f"{DTS}tegra234-p3701.dtsi",
            "https://forums.developer.nvidia.com/t/maximum-power-consumption-bounds-for-orin-agx/323456",
            DEVFREQ,
        ),
        processor="Cortex-A78AE",
        power_mode="MODE_30W",
        energy="sum of the module's rails VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0, VDDQ_VDD2_1V8AO",
        microwatts=19000 * 300 + 5000 * 1100,
        gpu=True,
        celsius=48.0,
    ),
    Board(
        profile="jetson-orin-nano",
        files={
            **_jetson(
                "NVIDIA Jetson Orin Nano Developer Kit",
                ("nvidia,p3768-0000+p3767-0005", "nvidia,p3767-0005", "nvidia,tegra234"),
                "R36 (release), REVISION: 4.7",
                7_802_984,
            ),
            "/proc/cpuinfo": _cpuinfo(6, "0xd42", _V82),
            **_nvpmodel(1, "15W", "25W", "MAXN_SUPER", "7W"),
            **_zones(cpu_thermal=49.5, gpu_thermal=50.0, soc0_thermal=48.7, tj_thermal=50.0),
            "/sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
            **_rails(1, ("VDD_IN", 4984, 1100), ("VDD_CPU_GPU_CV", 4984, 160), ("VDD_SOC", 4984, 280)),
            **_cpus("schedutil", 729_600, 1_728_000),
        },
        sources=(f"{DTS}tegra234-p3767.dtsi", "https://forums.developer.nvidia.com/t/200883", DEVFREQ),
        processor="Cortex-A78AE",
        power_mode="25W",
        energy="module input (VDD_IN)",
        microwatts=4984 * 1100,
        gpu=True,
        celsius=50.0,
    ),
    Board(
        profile="jetson-thor",
        files={
            **_jetson(
                "NVIDIA Jetson AGX Thor Developer Kit",
                ("nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"),
                "R38 (release), REVISION: 2.0",
                125_000_000,
            ),
            "/proc/cpuinfo": _cpuinfo(14, "0xd83", _V82 + " sve sve2 i8mm bf16"),
            **_nvpmodel(1, "MAXN", "120W", "90W", "70W"),
            # The GPU tells no temperature while its power is off.
            **_zones(cpu_thermal=53.7, tj_thermal=55.1, soc012_thermal=55.1, soc345_thermal=53.7, gpu_thermal=-256.0),
            "/sys/class/devfreq/gpu-gpc-0/cur_freq": "315000000\n",
            "/sys/class/devfreq/gpu-nvd-0/cur_freq": "315000000\n",
            **_rails(2, ("VDD_GPU", 12000, 100), ("VDD_CPU_SOC_MSS", 12000, 540), ("VIN_SYS_5V0", 5000, 1300)),
            f"{_HWMON}/hwmon3/name": "ina238\n",
            f"{_HWMON}/hwmon3/power1_input": "23100000\n",
            **_cpus("schedutil", 972_000, 2_601_000),
        },
        sources=(
            "https://forums.developer.nvidia.com/t/question-about-power-monitor-with-additional-load-on-jetson-thor/366461",
            "https://github.com/anduril/jetpack-nixos/pull/460",
            CPUTYPE,
        ),
        processor="Neoverse-V3AE",
        power_mode="120W",
        energy="the board's input (VIN)",
        microwatts=23_100_000,
        gpu=True,
        celsius=55.1,
    ),
)

RASPBERRIES: Final = (
    Board(
        "raspberry-pi-3b-plus",
        _raspberry(
            "Raspberry Pi 3 Model B Plus Rev 1.3",
            ("raspberrypi,3-model-b-plus", "brcm,bcm2837"),
            *("0xd03", 945_000, 1_400_000),
        ),
        _PI,
        processor="Cortex-A53",
        power_mode="ondemand",
        celsius=44.5,
    ),
    Board(
        "raspberry-pi-zero-2-w",
        _raspberry(
            "Raspberry Pi Zero 2 W Rev 1.0",
            ("raspberrypi,model-zero-2-w", "brcm,bcm2837"),
            *("0xd03", 425_000, 1_000_000),
        ),
        _PI,
        processor="Cortex-A53",
        power_mode="ondemand",
        celsius=44.5,
    ),
    Board(
        "raspberry-pi-cm4",
        _raspberry(
            "Raspberry Pi Compute Module 4 Rev 1.0",
            ("raspberrypi,4-compute-module", "brcm,bcm2711"),
            *("0xd08", 3_885_396, 1_500_000),
        ),
        _PI,
        processor="Cortex-A72",
        power_mode="ondemand",
        celsius=44.5,
    ),
    Board(
        "raspberry-pi-5",
        _raspberry(
            "Raspberry Pi 5 Model B Rev 1.0",
            ("raspberrypi,5-model-b", "brcm,bcm2712"),
            *("0xd0b", 8_245_000, 2_400_000),
        ),
        _PI,
        processor="Cortex-A76",
        power_mode="ondemand",
        celsius=44.5,
    ),
)

_INSTANCE: Final = "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html"
SERVERS: Final = (
    Board("graviton-2", _server("0xd0c", 4, _EC2), (CPUTYPE, _INSTANCE), processor="Neoverse-N1", meters=()),
    Board(
        "graviton-3",
        _server("0xd40", 4, _EC2, _V82 + " sve i8mm bf16"),
        (CPUTYPE, _INSTANCE),
        processor="Neoverse-V1",
        meters=(),
    ),
    Board(
        "graviton-4",
        _server("0xd4f", 4, _EC2, _V82 + " sve sve2 i8mm bf16"),
        (CPUTYPE, _INSTANCE),
        processor="Neoverse-V2",
        meters=(),
    ),
    Board(
        "ampere-altra",
        _server("0xd0c", 80, {"sys_vendor": "ADLINK", "product_name": "Ampere Altra Developer Platform ES2"}),
        (CPUTYPE,),
        processor="Neoverse-N1",
        meters=(),
    ),
    Board("neoverse-n2", _server("0xd49", 8, {"sys_vendor": "Maker"}), (CPUTYPE,), processor="Neoverse-N2", meters=()),
    # /proc/cpuinfo of some containers has no part; the register has it.
    Board(
        "neoverse-v2",
        {
            **_server("", 8, {}),
            "/proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\n",
            f"{_CPU}/cpu0/regs/identification/midr_el1": "0x00000000410fd4f0\n",
        },
        (CPUTYPE, f"{LINUX}Documentation/arch/arm64/cpu-feature-registers.rst"),
        processor="Neoverse-V2",
        meters=(),
    ),
)
BOARDS: Final = (*JETSONS, *RASPBERRIES, *SERVERS)
