"""What the device's owner lets the agent and all its children use: processors and memory."""

from __future__ import annotations

import os
from typing import Final

from fleetfit.core.errors import UsageError

# Read by the measuring child; an environment, because every child of the agent inherits it.
MEMORY_VARIABLE: Final = "FLEETFIT_MEMORY_BYTES"


def parse_cores(text: str) -> frozenset[int]:
    """`0-3,6` as the numbers of processors, as taskset(1) writes them. Raises UsageError."""
    cores: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if (
            not low.isdecimal()
            or (dash and not high.isdecimal())
            or (dash and int(high) < int(low))
            or int(high or 0) > 4095
        ):
            raise UsageError(f"'{text[:80]}' names no processors; write them as 0-3,6", field="cores")
        cores.update(range(int(low), int(high or low) + 1))
    return frozenset(cores)


def apply_caps(cores: str, memory_mb: int) -> None:
    """Keep this process and all its children to these processors and so much memory; nothing for '' and 0.

    Raises UsageError for processors that are not there.
    """
    if cores:
        try:
            os.sched_setaffinity(0, parse_cores(cores))
        except OSError:
            there = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
            raise UsageError(
                f"--cores {cores}: this agent may use the processors {there} only", field="cores"
            ) from None
    if memory_mb:
        os.environ[MEMORY_VARIABLE] = str(memory_mb << 20)


def memory_cap() -> int | None:
    """The most memory that the owner allows; None where there is no cap."""
    text = os.environ.get(MEMORY_VARIABLE, "")
    return int(text) if text.isdecimal() and int(text) > 0 else None
