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
    return held_bytes(pid)[0]


def proportional_bytes(pid: int) -> int:
    """Memory of a process with what it shares counted in part (PSS); 0 where it is gone or cannot be looked into."""
    return held_bytes(pid)[1]


def held_bytes(pid: int) -> tuple[int, int]:
    """Both by one look, which has the kernel walk all of the process's pages: `private_bytes` and `proportional_bytes`."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("Private_Clean", "Private_Dirty", "Pss"):
                found[name] = int(rest.split()[0]) * 1024
    return found.get("Private_Clean", 0) + found.get("Private_Dirty", 0), found.get("Pss", 0)


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
