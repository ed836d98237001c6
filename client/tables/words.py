"""Figures as people read them: bytes, lengths of time, moments, counts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from fleetfit.core import figures
from fleetfit.core.durations import duration as duration


def size(count: int | float | None) -> str:
    """Bytes in decimal units (1 kB is 1000 bytes): `812 B`, `1.24 MB`; `-` where unknown."""
    if count is None:
        return "-"
    return f"{count:.0f} B" if abs(count) < 999.5 else figures.size(count)


def count(number: int | None) -> str:
    """A whole number with thousands marked, `-` where unknown."""
    return "-" if number is None else f"{number:,}"


def ago(unix_ms: int) -> str:
    """How long ago a moment was, `never` for 0."""
    if unix_ms <= 0:
        return "never"
    seconds = time.time() - unix_ms / 1000
    return "now" if seconds < 5 else f"{duration(seconds)} ago"


def significant(value: float, digits: int = 3) -> str:
    """A number with so many digits that carry something: 0.9 -> `0.900`, 12.34 -> `12.3`, 1234.5 -> `1234`."""
    return figures.number(value, digits, plain_below=1e15)


def shape(sizes: Sequence[int]) -> str:
    """A tensor's shape, with `N` for the batch and `?` for other sizes that may vary."""
    shown = ["N" if n < 0 and not at else "?" if n < 0 else str(n) for at, n in enumerate(sizes)]
    return "(" + ", ".join(shown) + ("," if len(shown) == 1 else "") + ")"


def job_id(text: str) -> str:
    """The end of a job's id, which names it as well as the whole does."""
    return text[-8:]


class Conditioned(Protocol):
    """What is measured with some threads and some batch."""

    @property
    def threads(self) -> int | None:
        """Threads of the inference."""

    @property
    def batch(self) -> int | None:
        """Samples in one inference."""


def condition(one: Conditioned, among: Sequence[Conditioned]) -> str:
    """Threads and batch as ` 2 thr batch 8`, each only where the others' differ."""
    threads = f" {one.threads} thr" if len({other.threads for other in among}) > 1 else ""
    batch = f" batch {one.batch}" if len({other.batch for other in among}) > 1 else ""
    return threads + batch
