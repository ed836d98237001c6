"""Whether another processor plays this one: what an emulator does not hide."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from fleetfit.agent.probe.files import Tree

# Machines of one family run each other's programs without an emulator: a 32-bit system on a 64-bit kernel is no emulation.
_FAMILIES: Final[Mapping[str, str]] = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}
# qemu-user answers for /proc/self and /proc/PID with the guest's program, but not for a thread's own entry.
_PROGRAMS: Final = ("/proc/thread-self/exe", "/proc/self/exe")
_EMULATOR: Final = "qemu"
_VARIABLE: Final = "QEMU_CPU"
# The kernel's own word on its architecture, which emulators of user space leave as it is. Source: Linux 6.1,
# Documentation/admin-guide/sysctl/kernel.rst, `arch`: "The machine hardware name, the same output as uname -m".
_KERNEL: Final = "/proc/sys/kernel/arch"


def seen_emulation(tree: Tree, machine: str, environment: Mapping[str, str] = os.environ) -> str:
    """What shows that this process is emulated, empty where nothing does; `machine` is what uname says.

    An emulated kernel (a virtual machine without hardware support) cannot be told apart from inside; its owner says `--emulated`.
    """
    for path in _PROGRAMS:
        program = (tree.link(path) or "").rpartition("/")[2]
        if _EMULATOR in program:
            return f"{path} is {program}"
    kernel = tree.text(_KERNEL) or ""
    if kernel and machine and _family(kernel) != _family(machine):
        return f"the kernel runs on {kernel}, this process on {machine}"
    if _VARIABLE in environment:
        return f"{_VARIABLE} is set"
    return ""


def _family(machine: str) -> str:
    if machine.startswith("arm"):
        return "arm"
    # i386 to i686
    return "x86" if machine[:1] == "i" and machine[2:] == "86" else _FAMILIES.get(machine, machine)
