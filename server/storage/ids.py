"""Identifiers that sort by the time they were made."""

from __future__ import annotations

import secrets
import time
from typing import Final

_DIGITS: Final = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id() -> str:
    """26 characters: 48 bits of milliseconds since 1970, then 80 random bits (as ULIDs, in Crockford's base 32)."""
    value = (now_ms() << 80) | secrets.randbits(80)
    return "".join(_DIGITS[(value >> shift) & 31] for shift in range(125, -1, -5))


def now_ms() -> int:
    """Milliseconds since 1970, by the wall clock: for people, never for leases."""
    return time.time_ns() // 1_000_000
