"""Processes that a child leaves behind, found by a mark in their environment.

A child's session is killed with it, but what it forked may have left that session, as every daemon does. The environment that a
program was started with is inherited by all that it starts, and stays readable in /proc/pid/environ.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

MARK_VARIABLE: Final = "FLEETFIT_CHILD"
"""One word for each `run_child` between a process and the first of them: `/a/b` was started by `/a`."""
# What forks without end is met while it forks; each round kills all that there are.
_MOST_ROUNDS: Final = 20


def mark_below(environment: Mapping[str, str]) -> str:
    """A new mark for a child of whoever has this environment."""
    return f"{environment.get(MARK_VARIABLE, '')}/{secrets.token_hex(8)}"


def kill_marked(mark: str) -> int:
    """SIGKILL to every process of this user that bears `mark` or one below it; how many there were."""
    killed: set[int] = set()
    for _ in range(_MOST_ROUNDS):
        found = set(marked(mark)) - killed
        if not found:
            break
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed |= found
    return len(killed)


def marked(mark: str) -> Iterator[int]:
    """Every living process of this user, but for this one, that bears `mark` or one below it."""
    wanted = f"{MARK_VARIABLE}={mark}".encode()
    user = os.getuid()
    for folder in Path("/proc").glob("[0-9]*"):
        # Gone, or another user's.
        with contextlib.suppress(OSError):
            if folder.stat().st_uid != user or int(folder.name) == os.getpid():
                continue
            environment = (folder / "environ").read_bytes()
            if any(one == wanted or one.startswith(wanted + b"/") for one in environment.split(b"\0")):
                yield int(folder.name)
