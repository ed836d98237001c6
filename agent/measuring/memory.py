"""The memory of this process and of what it forked, as the kernel counts it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from fleetfit.core.forks import forks, held_bytes, proportional_bytes
from fleetfit.core.stragglers import MARK_VARIABLE, marked


def memory_bytes(key: str) -> int:
    """`VmRSS` (resident now), `VmHWM` (its peak) or `Pss` (shared pages in part), in bytes; 0 where the kernel does not tell."""
    if key == "Pss":
        return proportional_bytes(os.getpid())
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Let VmHWM begin anew; where the kernel forbids it, the peak also covers what came before."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@dataclass(frozen=True)
class Forked:
    """Processes that this one started and that live: how many, and the bytes that they share with no other, and in part."""

    count: int
    private_bytes: int
    proportional_bytes: int


def forks_now() -> frozenset[int]:
    """The processes that this one has started, daemons among them. Takes milliseconds: for moments that nothing times."""
    mark = os.environ.get(MARK_VARIABLE, "")
    return frozenset((*forks(os.getpid()), *(marked(mark) if mark else ())))


def look_at_forks(but: frozenset[int] = frozenset()) -> Forked:
    """What this process keeps in others now, without those that are not meant."""
    # One that has ended and was not waited for holds nothing.
    living = [held for held in map(held_bytes, forks_now() - but) if held[0]]
    return Forked(len(living), sum(private for private, _ in living), sum(proportional for _, proportional in living))
