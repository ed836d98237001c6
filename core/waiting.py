"""Waiting with a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def within(waited: Coroutine[Any, Any, object], seconds: float | None) -> bool:
    """Whether `waited` ended within so many seconds (None: however long it takes); it is cancelled where it did not.

    Cancelling always raises. Before Python 3.12 `asyncio.wait_for` returns where it is cancelled just as the wait ends, and
    a loop around it then never stops.
    """
    task = asyncio.ensure_future(waited)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
    return bool(done)
