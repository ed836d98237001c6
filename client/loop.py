"""The one event loop of a client process, in a thread of its own.

gRPC's asyncio interface has one poller per process and misbehaves with several loops (grpc#25364), and a caller may have a
loop already (a notebook does). So all clients of a process share this loop; it ends with the last of them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class SharedLoop:
    """A running event loop that counts its users."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def enter(self) -> None:
        """Start the loop if it does not run yet. Every call is matched by one of `leave`."""
        with self._lock:
            self._users += 1
            if self._thread is None:
                loop = asyncio.new_event_loop()
                self._loop = loop
                self._thread = threading.Thread(target=_run, args=(loop,), name="fleetfit-client", daemon=True)
                self._thread.start()

    def leave(self) -> None:
        """End the loop if nobody uses it any more."""
        with self._lock:
            self._users -= 1
            if self._users > 0 or self._loop is None or self._thread is None:
                return
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)
            self._loop = self._thread = None

    def start(self, work: Coroutine[Any, Any, _Result]) -> concurrent.futures.Future[_Result]:
        """Begin `work` on the loop."""
        if self._loop is None:
            work.close()
            raise RuntimeError("the loop has no user; enter it first")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Carry `work` out on the loop and wait for it; an interrupt in the caller's thread cancels it."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


SHARED_LOOP = SharedLoop()
