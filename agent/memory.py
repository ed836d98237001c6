"""Keeping the resident agent small."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps it otherwise, and a resident agent is at rest most of the time."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
