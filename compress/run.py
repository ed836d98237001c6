"""`python -m fleetfit.compress.run TASKDIR`: one task of `fleetfit.compress.tasks` in a process that locks itself in.

`result.json` says how the task ended, also where it failed. The exit code is 0 with it, or 86 where the memory limit was met
(then there is a result too, if there was memory left to write it). Anything else is a crash.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from fleetfit.core.children import EXIT_OUT_OF_MEMORY, limit_self

if __name__ == "__main__":
    limit_self()

from fleetfit.compress.confine import confine
from fleetfit.compress.tasks import (
    WAITING_FOR_HOST,
    Compress,
    FindDevice,
    IntakeData,
    IntakeModel,
    IntakeRecovered,
    Lower,
    Stopped,
    Task,
    TaskError,
    TaskProgress,
    TaskResult,
    Window,
)
from fleetfit.core.errors import ExhaustedResource, FleetfitError, InternalError, OutOfReach, UnsupportedHere
from fleetfit.core.hostlock import host_lock


def main(taskdir: Path) -> int:
    """Run the task in `taskdir` and write its result."""
    task = Task.model_validate_json((taskdir / "task.json").read_text())
    (taskdir / "out").mkdir(exist_ok=True)
    progress = _Progress(taskdir)
    progress(TaskProgress(activity=WAITING_FOR_HOST, fraction=0.0))
    with host_lock() as lock:
        progress.begin()
        programs = _programs(task)
        confined = [*confine(taskdir, cuda=task.wants_cuda(), programs=programs), "rlimits"]
        code = 0
        try:
            if programs and "landlock" not in confined:
                raise UnsupportedHere(_NO_PROGRAMS)
            result = _carry_out(task, taskdir, progress)
        except OutOfReach as stop:
            result = TaskResult(task_id=task.task_id, stopped=Stopped(reasons=list(stop.reasons)))
        except Exception as error:
            code = EXIT_OUT_OF_MEMORY if _met_memory_limit(error) else 0
            result = TaskResult(task_id=task.task_id, error=_failure(error))
            # What was half made is of no use, and a full disk has no room for the result otherwise.
            for name in ("out", "scratch"):
                shutil.rmtree(taskdir / name, ignore_errors=True)
        window = Window(begin_monotonic_ns=lock.begin_monotonic_ns, end_monotonic_ns=time.monotonic_ns())
        result = result.model_copy(update={"held": [window], "confinement": confined})
        _replace(taskdir / "result.json", result.model_dump_json())
    return code


_NO_PROGRAMS = (
    "this runtime's builds are made by a program of its own, which is started only where Landlock confines it; use a kernel that "
    "has it (5.13) for the server, or make the build on your machine with `fleetfit compress --local`"
)


def _programs(task: Task) -> Sequence[Path]:
    """What the task may start; an exporter that is not there is told of where the work begins."""
    if isinstance(task.work, Lower):
        from fleetfit.compress.export.registry import declared

        with contextlib.suppress(FleetfitError):
            return declared(task.work.runtime).programs()
    return ()


def _carry_out(task: Task, taskdir: Path, progress: _Progress) -> TaskResult:
    work = task.work
    if isinstance(work, IntakeModel):
        from fleetfit.compress.intake.handlers import intake_model

        return TaskResult(task_id=task.task_id, model=intake_model(task, taskdir, progress))
    if isinstance(work, IntakeData):
        from fleetfit.compress.intake.handlers import intake_data

        return TaskResult(task_id=task.task_id, data=intake_data(task, taskdir, progress))
    if isinstance(work, IntakeRecovered):
        from fleetfit.compress.intake.handlers import intake_recovered

        return TaskResult(task_id=task.task_id, recovered=intake_recovered(taskdir, progress))
    if isinstance(work, FindDevice):
        from fleetfit.compress.cuda import find_device

        # From now on its time is counted.
        progress(TaskProgress(activity="trying CUDA", fraction=0.0))
        return TaskResult(task_id=task.task_id, device=find_device())

    def existing(name: str) -> Path | None:
        path = taskdir / "in" / name
        return path if path.exists() else None

    def report(part: float, activity: str) -> None:
        progress(TaskProgress(activity=activity, fraction=part))

    given = taskdir / "in"
    if isinstance(work, Lower):
        from fleetfit.compress.lowering import lower

        onnx, original = given / "build.onnx", existing("original.onnx")
        build = lower(work, given / "model", onnx, existing("validation.npz"), taskdir / "out", report, original)
        return TaskResult(task_id=task.task_id, build=build)
    assert isinstance(work, Compress)  # noqa: S101 - the union has six members
    from fleetfit.compress.pipeline import Sources, run_recipe

    sources = Sources(given / "model", existing("train.npz"), existing("validation.npz"), existing("recovered.pt2"))
    facts = run_recipe(work, sources, taskdir / "out", report)
    return TaskResult(task_id=task.task_id, compress=facts)


_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "failed to allocate memory",
)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _met_memory_limit(error: Exception) -> bool:
    """Whether memory ran out; the libraries each say so in their own way, and what they raise may have been wrapped."""
    return any(
        isinstance(one, MemoryError) or any(words in str(one).lower() for words in _NO_MEMORY) for one in _causes(error)
    )


def _failure(error: Exception) -> TaskError:
    private = "".join(traceback.format_exception(error))[-8000:]
    if _met_memory_limit(error):
        message = (
            "the work needs more memory than the CUDA device has free; use a smaller batch, or let training compute on the "
            "processor with `fleetfit server --compute cpu`"
            if any("cuda out of memory" in str(one).lower() for one in _causes(error))
            else "the work needs more memory than a task may use; raise the server's limit or use a smaller model or batch"
        )
        return TaskError(code=ExhaustedResource.code, message=message, private=private)
    for one in _causes(error):
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message = "the server's disk is full or the result is larger than allowed; make room, then resume the job"
            return TaskError(code=ExhaustedResource.code, message=message, private=private)
    if isinstance(error, FleetfitError):
        return TaskError(code=error.code, message=error.message, field=error.field, private=error.private or private)
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
        # A disk too full for this is reported by whatever the work itself writes.
        with contextlib.suppress(OSError):
            _replace(self._path, progress.model_dump_json())


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    os.replace(fresh, path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
