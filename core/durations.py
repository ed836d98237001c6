"""Lengths of time as people write and read them."""

from __future__ import annotations

import re
from typing import Final

from fleetfit.core.errors import InvalidInput

_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")


def milliseconds(text: str, *, field: str = "") -> int:
    """Milliseconds of `90s`, `30m`, `1.5h` or `1d`; a bare number is seconds. Raises InvalidInput."""
    match = _DURATION.fullmatch(text.strip().lower())
    found = round(float(match[1]) * _UNITS_S[match[2] or "s"] * 1000) if match is not None else 0
    if not 0 < found < 2**63:
        raise InvalidInput(f"'{text}' is not a length of time; write for example 90s, 30m or 2h", field=field)
    return found


def duration(seconds: float | None) -> str:
    """A length of time: `8 s`, `2 min`, `1 h 20 min`; `-` where unknown."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes // 1440} d"
