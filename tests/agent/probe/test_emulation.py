"""What gives an emulator away, on trees that stand for a process's view of /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetfit.agent.probe.emulation import seen_emulation
from fleetfit.agent.probe.files import Tree

KERNEL = "proc/sys/kernel/arch"


def tree(folder: Path, *, kernel: str = "", program: str = "", thread: str = "") -> Tree:
    for path, target in (("proc/self/exe", program), ("proc/thread-self/exe", thread)):
        if target:
            (folder / path).parent.mkdir(parents=True)
            (folder / path).symlink_to(target)
    if kernel:
        (folder / KERNEL).parent.mkdir(parents=True)
        (folder / KERNEL).write_text(f"{kernel}\n")
    return Tree(folder)


@pytest.mark.parametrize(
    ("kernel", "machine"),
    [
        ("x86_64", "x86_64"),
        ("aarch64", "aarch64"),
        # A 32-bit system on a 64-bit kernel.
        ("x86_64", "i686"),
        ("aarch64", "armv7l"),
        ("aarch64", "armv8l"),
        # A kernel before 6.1 does not say.
        ("", "aarch64"),
        ("riscv64", "riscv64"),
    ],
)
def test_a_real_machine_is_none(tmp_path: Path, kernel: str, machine: str) -> None:
    seen = tree(tmp_path, kernel=kernel, program="/usr/bin/python3.11", thread="/usr/bin/python3.11")
    assert seen_emulation(seen, machine, {}) == ""


@pytest.mark.parametrize(
    ("kernel", "machine"), [("x86_64", "aarch64"), ("aarch64", "x86_64"), ("x86_64", "armv7l"), ("x86_64", "riscv64")]
)
def test_a_kernel_of_another_architecture_gives_any_emulator_away(tmp_path: Path, kernel: str, machine: str) -> None:
    seen = tree(tmp_path, kernel=kernel, program="/usr/bin/python3.11", thread="/usr/bin/python3.11")
    assert seen_emulation(seen, machine, {}) == f"the kernel runs on {kernel}, this process on {machine}"


def test_the_programs_own_name_is_enough_where_the_kernel_does_not_say(tmp_path: Path) -> None:
    seen = tree(tmp_path, program="/root/usr/bin/python3.11", thread="/usr/bin/qemu-aarch64-static")
    assert seen_emulation(seen, "aarch64", {}) == "/proc/thread-self/exe is qemu-aarch64-static"


def test_a_folder_called_after_the_emulator_is_none(tmp_path: Path) -> None:
    seen = tree(tmp_path, program="/opt/qemu/bin/python3.11", thread="/opt/qemu/bin/python3.11")
    assert seen_emulation(seen, "x86_64", {}) == ""


def test_an_emulators_variable_counts_where_nothing_else_is_seen(tmp_path: Path) -> None:
    assert seen_emulation(tree(tmp_path), "aarch64", {"QEMU_CPU": "max"}) == "QEMU_CPU is set"
