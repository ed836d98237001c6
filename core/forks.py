"""The processes below one, and the memory that they hold by themselves: what a runtime forks is no part of its own figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path


def forks(pid: int) -> list[int]:
    """All living processes below one: its children, theirs, and so on. What its parent left behind is not found.

    Source: proc(5): /proc/pid/task/tid/children, of kernels with CONFIG_PROC_CHILDREN; else the parents in /proc/pid/stat.
    """
    found, waiting = [], [pid]
    while waiting:
        below = list(_children(waiting.pop()))
        found += below
        waiting += below
    return found


def private_bytes(pid: int) -> int:
    """Memory that a process shares with no other; 0 where it is gone or cannot be looked into.

    Pages that a fork still shares with its parent are in the parent's figures. Source: proc(5), smaps_rollup.
    """
    return memory_part(pid, "Private_Clean") + memory_part(pid, "Private_Dirty")


def proportional_bytes(pid: int) -> int:
    """Memory of a process with what it shares counted in part (PSS); 0 where it is gone or cannot be looked into."""
    return memory_part(pid, "Pss")


def memory_part(pid: int, key: str) -> int:
    """A line of /proc/pid/smaps_rollup, in bytes; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return 0


@cache
def _lists_children() -> bool:
    return Path("/proc/thread-self/children").exists()


def _children(pid: int) -> Iterator[int]:
    if not _lists_children():
        yield from _by_parent(pid)
        return
    with contextlib.suppress(OSError):
        # A child is listed with the thread that made it.
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                yield from map(int, (task / "children").read_text().split())


def _by_parent(pid: int) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The second field is a program's name in brackets, and may hold any.
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                yield int(folder.name)
