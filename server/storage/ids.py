"""Identifiers that sort by the time they were made."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Final

_DIGITS: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS: Final = 80
_making: Final = threading.Lock()
_newest_ms = 0


def new_id() -> str:
    """26 characters: 48 bits of milliseconds since 1970, then 80 random bits (as ULIDs, in Crockford's base 32).

    Each sorts after those before it, also where the clock was set back: then it says a later time than the clock.
    """
    global _newest_ms
    with _making:
        _newest_ms = max(now_ms(), _newest_ms + 1)
        value = (_newest_ms << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
    return "".join(_DIGITS[(value >> shift) & 31] for shift in range(125, -1, -5))


def start_after(newest: str) -> None:
    """Let all later ids sort after `newest`, which an earlier life made, perhaps by another clock."""
    global _newest_ms
    value = 0
    for digit in newest:
        value = value << 5 | _DIGITS.index(digit)
    with _making:
        _newest_ms = max(_newest_ms, value >> _RANDOM_BITS)


def now_ms() -> int:
    """Milliseconds since 1970, by the wall clock: for people, never for leases."""
    return time.time_ns() // 1_000_000
