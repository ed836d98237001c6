"""Waiting for a measuring child: it ends a trial that falls silent, and may fall silent itself, by a sensor that hangs, say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from fleetfit.agent.spool import WAITING
from fleetfit.core.children import ChildOutcome
from fleetfit.proto.v1 import measurement_pb2

# To start on a busy device, to end a trial that gave no sign of life, to write what is known: all take seconds.
_GRACE_S: Final = 90.0
_LOOK_S: Final = 5.0


def silence_limit_s(method: measurement_pb2.Method) -> float:
    """For how long a measuring child may say nothing new: as long as a trial may give it nothing to say, and some more."""
    return max(method.child_limit_ns / 1e9, 1.0) + _GRACE_S


async def while_it_tells(child: Coroutine[Any, Any, ChildOutcome], progress: Path, limit_s: float) -> ChildOutcome:
    """How a measuring child ended; `timed_out` where it was ended after saying nothing new in `progress` for so many seconds.

    How long it may take in all depends on the build, the samples and the device, and is not limited. Waiting for the host is no
    silence.
    """
    working = asyncio.create_task(child)
    said, alive = _said(progress), time.monotonic()
    try:
        while not working.done():
            await asyncio.wait({working}, timeout=min(_LOOK_S, limit_s / 4))
            before, said = said, _said(progress)
            activity = _activity(progress)
            if said != before or activity == WAITING:
                alive = time.monotonic()
            elif time.monotonic() - alive > limit_s and not working.done():
                return ChildOutcome("timed_out", -9, f"no sign of life for {limit_s:g} s while {activity}")
        return working.result()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


def _said(progress: Path) -> tuple[int, int]:
    """What changes whenever the file is written."""
    with contextlib.suppress(OSError):
        found = progress.stat()
        return found.st_mtime_ns, found.st_ino
    return 0, 0


def _activity(progress: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(progress.read_text())["activity"])
    return "starting"
