"""Moments in a fleet's life, seen from outside: who measures, who compresses, who is left."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil

from fleetfit.compress.tasks import WAITING_FOR_HOST

from .conftest import Fleet, wait_for

# Much longer than it takes: other work may share the machine.
WAIT_S: Final = 180.0


def lines(fleet: Fleet) -> str:
    """The command lines of all processes of a fleet, one a line."""
    found = []
    for process in fleet.relatives():
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return "\n".join(found)


def measuring(fleet: Fleet) -> tuple[str, str, int] | None:
    """The device in whose measuring process a pair trial runs, the task and its fencing token.

    Pair trials, because some follow each of the first: between the look and the kill the task does not end.
    """
    for process in fleet.relatives():
        line = " ".join(process.cmdline())
        found = re.search(r"trials \S*/agents/(\w+)/tasks/(\w+)\.(\d+) \S+ pair [01] \d+$", line)
        if found:
            return found[1], found[2], int(found[3])
    return None


def compressing(fleet: Fleet) -> tuple[psutil.Process, str] | None:
    """A compression child that works, neither waiting for the host nor about to end, and its task's name."""
    for process in fleet.relatives():
        line = process.cmdline()
        if "fleetfit.compress.run" in line:
            told = json.loads((Path(line[-1]) / "progress.json").read_text())
            if told["activity"] != WAITING_FOR_HOST and 0 < told["fraction"] < 0.8:
                return process, Path(line[-1]).name
    return None


def seen(fleet: Fleet, look: Callable[[Fleet], Any]) -> Any:
    """Wait for what `look` looks for, which may vanish while it looks."""

    def once() -> Any:
        try:
            return look(fleet)
        except psutil.Error:
            return None

    return wait_for(once, f"a moment of {look.__name__}", WAIT_S)
