"""What devices of every profile tell about themselves: constructed from the pages that the profiles name, not recorded."""

from __future__ import annotations

from typing import Final

from fleetfit.device_profiles.matching import DeviceFactsForMatching


def _board(model: str = "", *compatible: str, part: str = "", implementer: str = "0x41") -> DeviceFactsForMatching:
    return DeviceFactsForMatching(
        machine="aarch64",
        device_tree_model=model,
        device_tree_compatible=compatible,
        arm_implementer=implementer if part else "",
        arm_part=part,
    )


def _arm(part: str, product: str = "") -> DeviceFactsForMatching:
    return DeviceFactsForMatching(
        machine="aarch64", arm_implementer="0x41", arm_part=part, product=product, cpu_flags=frozenset({"asimd"})
    )


def _x86(*flags: str) -> DeviceFactsForMatching:
    return DeviceFactsForMatching(machine="x86_64", cpu_flags=frozenset({"sse2", "fma", *flags}))


_AVX512: Final = ("avx2", "avx512f", "avx512bw", "avx512vl")

BOARDS: Final[list[tuple[str, DeviceFactsForMatching]]] = [
    (
        "raspberry-pi-3b-plus",
        _board("Raspberry Pi 3 Model B+", "raspberrypi,3-model-b-plus", "brcm,bcm2837", part="0xd03"),
    ),
    ("raspberry-pi-3b-plus", _board("Raspberry Pi 3 Model B Plus Rev 1.3")),
    (
        "raspberry-pi-zero-2-w",
        _board("Raspberry Pi Zero 2 W", "raspberrypi,model-zero-2-w", "brcm,bcm2837", part="0xd03"),
    ),
    (
        "raspberry-pi-4",
        _board("Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b", "brcm,bcm2711", part="0xd08"),
    ),
    ("raspberry-pi-4", _board("Raspberry Pi 400 Rev 1.0", "raspberrypi,400", "brcm,bcm2711", part="0xd08")),
    (
        "raspberry-pi-cm4",
        _board("Raspberry Pi Compute Module 4 Rev 1.0", "raspberrypi,4-compute-module", "brcm,bcm2711", part="0xd08"),
    ),
    (
        "raspberry-pi-cm4",
        _board("Raspberry Pi Compute Module 4S Rev 1.0", "raspberrypi,4-compute-module-s", "brcm,bcm2711"),
    ),
    ("raspberry-pi-5", _board("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712")),
    (
        "raspberry-pi-5",
        _board("Raspberry Pi Compute Module 5 Rev 1.0", "raspberrypi,5-compute-module", "brcm,bcm2712", part="0xd0b"),
    ),
    ("raspberry-pi-5", _board("Raspberry Pi 500 Rev 1.0", "raspberrypi,500", "brcm,bcm2712", part="0xd0b")),
    ("jetson-nano", _board("NVIDIA Jetson Nano Developer Kit", "nvidia,p3450-0000", "nvidia,tegra210", part="0xd07")),
    ("jetson-nano", _board("", "nvidia,p3449-0000-b00+p3448-0002-b00", "nvidia,jetson-nano", "nvidia,tegra210")),
    ("jetson-nano", _board("", "nvidia,p3541-0000", "nvidia,tegra210")),
    ("jetson-tx2", _board("NVIDIA Jetson TX2 Developer Kit", "nvidia,p2771-0000", "nvidia,tegra186", part="0xd07")),
    ("jetson-tx2", _board("", "nvidia,p2597-0000+p3310-1000", "nvidia,tegra186")),
    ("jetson-tx2", _board("", "nvidia,p2597-0000+p3489-0000", "nvidia,tegra186")),
    ("jetson-tx2", _board("NVIDIA Jetson TX2 NX Developer Kit", "nvidia,p3509-0000+p3636-0001", "nvidia,tegra186")),
    (
        "jetson-xavier-nx",
        _board(
            "NVIDIA Jetson Xavier NX Developer Kit (SD-card)",
            *("nvidia,p3509-0000+p3668-0000", "nvidia,tegra194"),
            part="0x004",
            implementer="0x4e",
        ),
    ),
    ("jetson-xavier-nx", _board("", "nvidia,p3509-0000+p3668-0001", "nvidia,tegra194")),
    (
        "jetson-agx-xavier",
        _board(
            "NVIDIA Jetson AGX Xavier Developer Kit",
            *("nvidia,p2972-0000", "nvidia,tegra194"),
            part="0x004",
            implementer="0x4e",
        ),
    ),
    ("jetson-agx-xavier", _board("", "nvidia,p2822-0000+p2888-0001", "nvidia,tegra194")),
    (
        "jetson-orin-nano",
        _board(
            "NVIDIA Jetson Orin Nano Developer Kit",
            *("nvidia,p3768-0000+p3767-0005", "nvidia,p3767-0005", "nvidia,tegra234"),
            part="0xd42",
        ),
    ),
    ("jetson-orin-nano", _board("", "nvidia,p3768-0000+p3767-0005-super", "nvidia,tegra234")),
    ("jetson-orin-nano", _board("", "nvidia,p3768-0000+p3767-0003", "nvidia,tegra234")),
    # An AGX Orin that emulates an Orin Nano is to be treated as one.
    ("jetson-orin-nano", _board("", "nvidia,p3737-0000+p3701-0000-as-p3767-0004", "nvidia,tegra234")),
    (
        "jetson-orin-nx",
        _board(
            "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
            *("nvidia,p3768-0000+p3767-0000", "nvidia,p3767-0000", "nvidia,tegra234"),
            part="0xd42",
        ),
    ),
    ("jetson-orin-nx", _board("", "nvidia,p3768-0000+p3767-0001", "nvidia,p3767-0001", "nvidia,tegra234")),
    (
        "jetson-agx-orin",
        _board(
            "NVIDIA Jetson AGX Orin Developer Kit",
            *("nvidia,p3737-0000+p3701-0008", "nvidia,p3701-0008", "nvidia,tegra234"),
            part="0xd42",
        ),
    ),
    ("jetson-agx-orin", _board("", "nvidia,p3737-0000+p3701-0000", "nvidia,p3701-0000", "nvidia,tegra234")),
    ("jetson-agx-orin", _board("", "nvidia,p3737-0000+p3701-0004", "nvidia,tegra234")),
    ("jetson-agx-orin", _board("", "nvidia,p3737-0000+p3701-0005", "nvidia,tegra234")),
    (
        "jetson-thor",
        _board(
            "NVIDIA Jetson AGX Thor Developer Kit",
            *("nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"),
            part="0xd83",
        ),
    ),
    ("neoverse-n1", _arm("0xd0c")),
    ("neoverse-n1", _arm("0xd0c", "GIGABYTE R272-P30-00")),
    ("neoverse-v1", _arm("0xd40")),
    ("neoverse-n2", _arm("0xd49")),
    ("neoverse-v2", _arm("0xd4f", "NVIDIA Grace")),
    ("graviton-2", _arm("0xd0c", "EC2 instance")),
    ("graviton-3", _arm("0xd40", "EC2 instance")),
    ("graviton-4", _arm("0xd4f", "EC2 instance")),
    ("ampere-altra", _arm("0xd0c", "ADLINK Ampere Altra Developer Platform ES2")),
    ("arm-server", _arm("0xd84", "EC2 instance")),
    ("arm-server", _arm("0xd8e")),
    ("x86-avx2", _x86("avx2")),
    ("x86-avx-vnni", _x86("avx2", "avx_vnni")),
    ("x86-avx512", _x86(*_AVX512)),
    ("x86-avx512-vnni", _x86(*_AVX512, "avx512_vnni")),
    ("x86-avx512-vnni", _x86(*_AVX512, "avx512_vnni", "avx_vnni")),
    ("x86-amx", _x86(*_AVX512, "avx512_vnni", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16")),
]
