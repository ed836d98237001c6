"""`python -m fleetfit.compress.run TASKDIR`: one task of `fleetfit.compress.tasks` in a process that locks itself in.

The exit code is 0 whenever `result.json` says how the task ended, also where it says that it failed; 86 where the memory
limit was met. Anything else is a crash.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from pathlib import Path

from fleetfit.core.children import EXIT_OUT_OF_MEMORY, limit_self

if __name__ == "__main__":
    limit_self()

from fleetfit.compress.confine import confine
from fleetfit.compress.tasks import Compress, IntakeData, IntakeModel, Task, TaskError, TaskProgress, TaskResult, Window
from fleetfit.core.errors import ExhaustedResource, FleetfitError, InternalError
from fleetfit.core.hostlock import host_lock, lock_path


def main(taskdir: Path) -> int:
    """Run the task in `taskdir` and write its result."""
    task = Task.model_validate_json((taskdir / "task.json").read_text())
    (taskdir / "out").mkdir(exist_ok=True)
    lock_path().touch(exist_ok=True)
    confined = confine(taskdir, writable=(lock_path(),))
    held: list[Window] = []
    progress = _Progress(taskdir)
    try:
        progress(TaskProgress(activity="waiting for this machine to be free", fraction=0.0))
        with host_lock() as lock:
            progress.begin()
            try:
                result = _carry_out(task, taskdir, progress)
            finally:
                held.append(Window(begin_monotonic_ns=lock.begin_monotonic_ns, end_monotonic_ns=time.monotonic_ns()))
    except MemoryError:
        return EXIT_OUT_OF_MEMORY
    except Exception as error:
        if "out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower():
            return EXIT_OUT_OF_MEMORY
        result = TaskResult(task_id=task.task_id, error=_failure(error))
    result = result.model_copy(update={"held": held, "confinement": [*confined, "rlimits"]})
    _replace(taskdir / "result.json", result.model_dump_json())
    return 0


def _carry_out(task: Task, taskdir: Path, progress: _Progress) -> TaskResult:
    work = task.work
    if isinstance(work, IntakeModel):
        from fleetfit.compress.intake.handlers import intake_model

        return TaskResult(task_id=task.task_id, model=intake_model(task, taskdir, progress))
    if isinstance(work, IntakeData):
        from fleetfit.compress.intake.handlers import intake_data

        return TaskResult(task_id=task.task_id, data=intake_data(task, taskdir, progress))
    assert isinstance(work, Compress)  # noqa: S101 - the union has three members
    from fleetfit.compress.pipeline import Sources, run_recipe

    def existing(name: str) -> Path | None:
        path = taskdir / "in" / name
        return path if path.exists() else None

    sources = Sources(taskdir / "in" / "model", existing("train.npz"), existing("validation.npz"))
    facts = run_recipe(
        work, sources, taskdir / "out", lambda part, activity: progress(TaskProgress(activity=activity, fraction=part))
    )
    return TaskResult(task_id=task.task_id, compress=facts)


def _failure(error: Exception) -> TaskError:
    if isinstance(error, FleetfitError):
        return TaskError(code=error.code, message=error.message, field=error.field, private=error.private)
    private = "".join(traceback.format_exception(error))[-8000:]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        message = "the server's disk is full or the result is larger than allowed; make room, then resume the job"
        return TaskError(code=ExhaustedResource.code, message=message, private=private)
    message = (
        f"an unexpected {type(error).__name__} stopped the work; the server's log has the details, please report it"
    )
    return TaskError(code=InternalError.code, message=message, private=private)


class _Progress:
    """Keeps `progress.json` up to date, with the time left estimated from the pace so far."""

    def __init__(self, taskdir: Path) -> None:
        self._path = taskdir / "progress.json"
        self._began = time.monotonic()

    def begin(self) -> None:
        """Count from now: waiting was not work."""
        self._began = time.monotonic()

    def __call__(self, progress: TaskProgress) -> None:
        """Publish how far the task is."""
        if progress.remaining_s is None and progress.fraction > 0.02:
            elapsed = time.monotonic() - self._began
            left = elapsed * (1 - progress.fraction) / progress.fraction
            progress = progress.model_copy(update={"remaining_s": round(left, 1)})
        _replace(self._path, progress.model_dump_json())


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    os.replace(fresh, path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
