"""One process of a scaling point: a loaded build that is called without a pause while the others of the point are too.

`python -m fleetfit.agent.measuring.instance TASKDIR FOLDER NUMBER INSTANCES THREADS BATCH`. The processes of a point and their
parent meet in FOLDER: each says `NUMBER.ready`, the parent then writes the moment to begin into `go`, and each writes what it
found to `NUMBER.pb`. `NUMBER.step` is touched as a sign of life.
"""

from __future__ import annotations

import sys
import time
from array import array
from pathlib import Path
from typing import Final

from fleetfit.core.children import limit_self

if __name__ == "__main__":
    limit_self()

from fleetfit.agent.measuring.endings import write_or_tell
from fleetfit.agent.measuring.memory import look_at_forks, memory_bytes
from fleetfit.agent.measuring.seats import feeds_of
from fleetfit.agent.measuring.timing import Call, warm_up
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.runtimes.registry import runtime

# From here on all compete; before it some still wake up.
_LEAD_NS: Final = 50_000_000
# Fewer calls say too little, however slow the build.
_FEWEST_CALLS: Final = 3
_MOST_CALLS: Final = 4_000_000
_MOST_KEPT: Final = 10_000
_LOOK_S: Final = 0.002

_clock = time.monotonic_ns


class Meeting:
    """Where the processes of a point wait for each other."""

    def __init__(self, folder: Path, number: int, instances: int) -> None:
        self._folder = folder
        self._number = number
        self._instances = instances

    def alive(self, _: float = 0.0) -> None:
        """A sign of life."""
        (self._folder / f"{self._number}.step").touch()

    def begin(self) -> int:
        """Say that this process is ready, and wait for the moment to begin, in nanoseconds of the monotonic clock."""
        (self._folder / f"{self._number}.ready").touch()
        go = self._folder / "go"
        while not go.exists():
            time.sleep(_LOOK_S)
        return int(go.read_text())

    def recorded(self) -> None:
        """Say that this process needs the others' company no longer."""
        (self._folder / f"{self._number}.recorded").touch()

    def others_record(self) -> bool:
        """Whether somebody still records."""
        numbers = (n for n in range(self._instances) if n != self._number)
        return not all((self._folder / f"{n}.recorded").exists() for n in numbers)


def call_in_company(call: Call, lasting_ns: int, meeting: Meeting) -> measurement_pb2.ScalingProcess:
    """Call without a pause for so long, from the common moment on, and further until everybody has recorded as long."""
    begin_ns = meeting.begin()
    forked = look_at_forks()
    run = measurement_pb2.ScalingProcess(
        shared_in_part_bytes=memory_bytes("Pss") + forked.proportional_bytes,
        resident_bytes=memory_bytes("VmRSS") + forked.private_bytes,
    )
    time.sleep(max(begin_ns - _clock(), 0) / 1e9)
    call()
    while _clock() < begin_ns + _LEAD_NS:
        call()
    now = _clock()
    # The end of each call: one look at the clock between two calls, and no time that belongs to none.
    moments = array("q", (now,))
    end = now + lasting_ns
    while (now < end or len(moments) <= _FEWEST_CALLS) and len(moments) <= _MOST_CALLS:
        call()
        now = _clock()
        moments.append(now)
    meeting.recorded()
    while meeting.others_record():
        call()
    keep(run, moments)
    return run


def keep(run: measurement_pb2.ScalingProcess, moments: array[int]) -> None:
    """Put the ends of calls (the first is where recording began) into `run`, of so many that a message can hold them."""
    calls = len(moments) - 1
    run.every = -(-calls // _MOST_KEPT)
    kept = range(run.every, calls + 1, run.every)
    run.latency_ns.extend(moments[at] - moments[at - 1] for at in kept)
    if run.every > 1:
        run.elapsed_ns.extend(moments[at] - moments[at - run.every] for at in kept)
    run.window.begin_monotonic_ns, run.window.end_monotonic_ns = moments[0], moments[calls]


def measure(task: measurement_pb2.MeasureTask, taskdir: Path, meeting: Meeting) -> measurement_pb2.ScalingProcess:
    """Load the build, warm it up, and call it together with the others."""
    feeds = feeds_of(task, taskdir)
    adapter = runtime(task.candidate.runtime)
    build = (taskdir / "in" / task.candidate.artifact_name).read_bytes()
    meeting.alive()
    adapter.prepare(build, feeds, threads=task.threads, progress=meeting.alive)
    model = adapter.load(build, threads=task.threads)
    try:
        meeting.alive()
        call = model.bind(feeds)
        warm_up(call, task.method.warmup_limit_ns // 2)
        run = call_in_company(call, task.method.scaling_point_ns, meeting)
        run.runtime_version = adapter.availability().version
        del call
        return run
    finally:
        model.close()


def main(arguments: list[str]) -> int:
    """Run one process of a point."""
    taskdir, folder = Path(arguments[0]), Path(arguments[1])
    number, instances, threads, batch = map(int, arguments[2:6])
    task = measurement_pb2.MeasureTask.FromString((taskdir / "task.pb").read_bytes())
    task.threads, task.batch = threads, batch
    meeting = Meeting(folder, number, instances)
    return write_or_tell(folder / f"{number}.pb", lambda: measure(task, taskdir, meeting))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
