"""Figures as text for people, the same wherever they are read."""

from __future__ import annotations

import math
from typing import Final

_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")


def number(value: float, digits: int = 3, *, plain_below: float = 1e9) -> str:
    """So many significant digits, as a power of ten only below 1e-4 and from `plain_below` on: 2.31, 0.0123, 1240."""
    rounded = abs(float(f"{value:.{digits}g}"))
    if rounded == 0:
        return "0"
    if not 1e-4 <= rounded < plain_below:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(rounded)))}f}"


def joules(value: float) -> str:
    """Energy with the prefix that keeps it readable: `812 µJ`, `12.4 mJ`, `1.24 J`."""
    for limit, factor, unit in ((1e-3, 1e6, "µJ"), (1.0, 1e3, "mJ")):
        if abs(value) < limit * 0.9995:
            return f"{number(value * factor)} {unit}"
    return f"{number(value)} J"


def size(count: float) -> str:
    """Bytes in decimal units: `812 bytes`, `1.24 MB`."""
    value, at = float(count), 0
    while abs(value) >= 999.5 and at < len(_UNITS) - 1:
        value, at = value / 1000, at + 1
    return f"{value:.0f} byte{'' if value == 1 else 's'}" if at == 0 else f"{number(value)} {_UNITS[at]}"
