"""`python -m fleetfit.agent.measuring TASKDIR`: measure what `task.pb` asks for, and write `result.pb.gz`, always.

Holds the host's lock from the first look at the device to the last sample, so that nothing else of fleetfit works here
meanwhile. Being killed, by whatever signal, is how it is cancelled: each trial asked the kernel to die with it.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

import fleetfit
from fleetfit.agent.measuring.endings import DISK_FULL, Status
from fleetfit.agent.measuring.measurer import Measurer
from fleetfit.agent.probe.files import Tree
from fleetfit.agent.spool import WAITING, tell_progress
from fleetfit.core.children import limit_self
from fleetfit.core.hostlock import host_lock
from fleetfit.proto.v1 import measurement_pb2


def measure(taskdir: Path) -> measurement_pb2.MeasurementResult:
    """Wait for the host, measure, and say when the host was held."""
    task = measurement_pb2.MeasureTask()
    task.ParseFromString((taskdir / "task.pb").read_bytes())
    _tell(taskdir, WAITING)
    with host_lock() as held:
        _tell(taskdir, "looking at this device")
        result = asyncio.run(Measurer(taskdir, task, Tree()).measure())
        result.held.begin_monotonic_ns = held.begin_monotonic_ns
        result.held.end_monotonic_ns = time.monotonic_ns()
    return result


def _tell(taskdir: Path, activity: str) -> None:
    tell_progress(taskdir, {"activity": activity, "fraction": 0})


def main(taskdir: Path) -> int:
    """Measure, and write the result whatever happens."""
    try:
        result = measure(taskdir)
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full:
            traceback.print_exc()  # for the agent's log; people get the sentence
        result = measurement_pb2.MeasurementResult(
            status=Status.MEASUREMENT_STATUS_DISK_FULL if full else Status.MEASUREMENT_STATUS_CRASHED,
            message=DISK_FULL if full else f"measuring met an unexpected error ({type(error).__name__}: {error})",
            agent_version=fleetfit.__version__,
        )
    _write(taskdir, gzip.compress(result.SerializeToString(), compresslevel=6, mtime=0))
    return 0


def _write(taskdir: Path, content: bytes) -> None:
    fresh = taskdir / "result.new"
    try:
        fresh.write_bytes(content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # What was measured is worth more than what it was measured on.
        shutil.rmtree(taskdir / "in", ignore_errors=True)
        fresh.write_bytes(content)
    os.replace(fresh, taskdir / "result.pb.gz")


if __name__ == "__main__":
    limit_self()
    sys.exit(main(Path(sys.argv[1]).resolve()))
