"""The time of each operator of a build, by its runtime's own profiler: in a process of its own, behind everything that is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fleetfit.agent.measuring.seats import feeds_of
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.runtimes.operators import NoProfile
from fleetfit.runtimes.registry import runtime

# The rest of the progress is the profiled calls'.
_PREPARED: Final = 0.5


def profile_build(
    task: measurement_pb2.MeasureTask, taskdir: Path, step: Callable[[float], None]
) -> measurement_pb2.ProfileRun:
    """Profile the task's candidate on what it was timed on. `step` hears how far it is."""
    adapter = runtime(task.candidate.runtime)
    run = measurement_pb2.ProfileRun(runtime_version=adapter.availability().version)
    build = (taskdir / "in" / task.candidate.artifact_name).read_bytes()
    feeds = feeds_of(task, taskdir)
    adapter.prepare(build, feeds, threads=task.threads, progress=lambda done: step(_PREPARED * done))
    run.window.begin_monotonic_ns = time.monotonic_ns()
    found = adapter.profile(
        build, feeds, threads=task.threads, progress=lambda done: step(_PREPARED + (1 - _PREPARED) * done)
    )
    run.window.end_monotonic_ns = time.monotonic_ns()
    if isinstance(found, NoProfile):
        run.not_offered_because = found.reason
        return run
    run.calls, run.elapsed_ns = found.calls, found.elapsed_ns
    run.notes.extend(found.notes)
    for one in found.operators:
        run.operators.add(
            name=one.name,
            operator=one.operator,
            placed=one.placed,
            number_format=one.number_format,
            runs=one.runs,
            total_ns=one.ns,
        )
    return run
