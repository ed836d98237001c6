"""Names of Arm's cores: processors of boards say no more of themselves than a number."""

from __future__ import annotations

from typing import Final

# Arm's kernel names parts by number only. Source: Linux, arch/arm64/include/asm/cputype.h, implementer 0x41.
ARM_CORES: Final = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
    "0xd83": "Neoverse-V3AE",
    "0xd84": "Neoverse-V3",
    "0xd8e": "Neoverse-N3",
}
