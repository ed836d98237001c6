"""Where compression and intake children run: here, one folder per task."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from fleetfit.compress.tasks import WAITING_FOR_HOST, Task, TaskProgress, TaskResult
from fleetfit.core.children import ChildOutcome, Limits, run_child

_log: Final = logging.getLogger(__name__)
_CONFINED_BY: Final = ("landlock", "seccomp")
# Copies content into a task's folder: digest, target.
Copy = Callable[[str, Path], None]
_POLL_S: Final = 0.3


@dataclass(frozen=True)
class Finished:
    """A child's end: its result where it wrote one, and how the process ended in any case."""

    result: TaskResult | None
    outcome: ChildOutcome
    out: Path


class Executor(Protocol):
    """Places tasks of `fleetfit.compress.tasks`. One at a time per call; cancelling the call ends the child."""

    def run(
        self, task: Task, inputs: Mapping[str, str], progress: Callable[[TaskProgress], None]
    ) -> contextlib.AbstractAsyncContextManager[Finished]:
        """Run the task over content given as name -> digest; what it made can be read until the context ends."""
        ...


class LocalExecutor:
    """Children of this process, with limits, each in a folder below `folder` that lives as long as its task."""

    def __init__(self, folder: Path, copy: Copy, limits: Limits) -> None:
        self._folder = folder
        self._copy = copy
        self._limits = limits
        self._warned = False
        # Left by an earlier life, whose children died with it.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    @asynccontextmanager
    async def run(
        self, task: Task, inputs: Mapping[str, str], progress: Callable[[TaskProgress], None]
    ) -> AsyncIterator[Finished]:
        """See Executor."""
        taskdir = self._folder / task.task_id
        shutil.rmtree(taskdir, ignore_errors=True)
        (taskdir / "in").mkdir(parents=True)
        try:
            for name, digest in inputs.items():
                await asyncio.to_thread(self._copy, digest, taskdir / "in" / name)
            (taskdir / "task.json").write_text(task.model_dump_json())
            outcome = await self._child(taskdir, progress)
            result = None
            with contextlib.suppress(OSError, ValueError):
                result = TaskResult.model_validate_json((taskdir / "result.json").read_text())
                self._warn_once(result)
            yield Finished(result, outcome, taskdir / "out")
        finally:
            await asyncio.to_thread(shutil.rmtree, taskdir, ignore_errors=True)

    def _warn_once(self, result: TaskResult) -> None:
        lacking = [name for name in _CONFINED_BY if name not in result.confinement]
        if lacking and not self._warned:
            self._warned = True
            _log.warning(
                "uploaded files are read by processes that are not confined by %s, which this system lacks; use a kernel that "
                "has it (Landlock: 5.13), or take files only from people you trust",
                " and ".join(lacking),
            )

    async def _child(self, taskdir: Path, progress: Callable[[TaskProgress], None]) -> ChildOutcome:
        # The wall-clock limit is ours to watch: waiting for the host is not charged to the task.
        limits = replace(self._limits, wall_s=None)
        child = asyncio.create_task(run_child(["-m", "fleetfit.compress.run", str(taskdir)], limits, cwd=taskdir))
        watching = asyncio.create_task(self._watch(taskdir, progress))
        try:
            await asyncio.wait({child, watching}, return_when=asyncio.FIRST_COMPLETED)
            return child.result() if child.done() else ChildOutcome("timed_out", -signal.SIGKILL)
        finally:
            for task in (child, watching):
                task.cancel()
            await asyncio.gather(child, watching, return_exceptions=True)

    async def _watch(self, taskdir: Path, progress: Callable[[TaskProgress], None]) -> None:
        """Pass progress on; returns when the child has worked for longer than it may."""
        seen = ""
        began: float | None = None
        while True:
            await asyncio.sleep(_POLL_S)
            with contextlib.suppress(OSError, ValueError):
                text = (taskdir / "progress.json").read_text()
                if text != seen:
                    seen = text
                    told = TaskProgress.model_validate_json(text)
                    if began is None and told.activity != WAITING_FOR_HOST:
                        began = time.monotonic()
                    progress(told)
            if began is not None and self._limits.wall_s is not None and time.monotonic() - began > self._limits.wall_s:
                return
