"""The memory of this process, as the kernel counts it."""

from __future__ import annotations

import contextlib
from pathlib import Path


def memory_bytes(key: str) -> int:
    """`VmRSS` (resident now), `VmHWM` (its peak) or `Pss` (shared pages in part), in bytes; 0 where the kernel does not tell."""
    source = "/proc/self/smaps_rollup" if key == "Pss" else "/proc/self/status"
    with contextlib.suppress(OSError):
        for line in Path(source).read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Let VmHWM begin anew; where the kernel forbids it, the peak also covers what came before."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
