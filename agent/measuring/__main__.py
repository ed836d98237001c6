"""`python -m fleetfit.agent.measuring TASKDIR`: measure what `task.pb` asks for, and write `result.pb.gz`, always.

Holds the host's lock from the first look at the device to the last sample, so that nothing else of fleetfit works here
meanwhile. The builds are loaded in fresh children only: one that crashes, hangs or eats the memory is a result.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Final

import psutil

import fleetfit
from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.readings import Readings, governor, host_digest, power_mode
from fleetfit.core.children import ChildOutcome, Limits, limit_self, run_child
from fleetfit.core.hostlock import host_lock
from fleetfit.proto.methods import METHOD_VERSION
from fleetfit.proto.v1 import measurement_pb2

Status = measurement_pb2.MeasurementStatus
# Above this share of all processors, or this much stolen by the hypervisor, a device is not quiet.
_OTHERS_PERCENT: Final = 20.0
_STEAL_PERCENT: Final = 5.0
_LOOK_S: Final = 0.25
# A child may use this share of the memory that is free; the rest keeps the device alive.
_MEMORY_SHARE: Final = 0.9
_SENTENCES: Final = {
    "out_of_memory": (Status.MEASUREMENT_STATUS_OUT_OF_MEMORY, "the build needs more memory than the device has free"),
    "timed_out": (Status.MEASUREMENT_STATUS_TIMED_OUT, "the build did not finish within the time a trial may take"),
    "crashed": (Status.MEASUREMENT_STATUS_CRASHED, "the runtime crashed on the build"),
    "failed": (Status.MEASUREMENT_STATUS_CRASHED, "the trial ended in an unexpected error"),
    "cancelled": (Status.MEASUREMENT_STATUS_CRASHED, "the trial was stopped from outside"),
}


class _Failed(Exception):
    def __init__(self, status: Status.ValueType, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Measurer:
    """Measures one task."""

    def __init__(self, taskdir: Path, task: measurement_pb2.MeasureTask, tree: Tree) -> None:
        self._taskdir = taskdir
        self._task = task
        self._tree = tree
        self._readings = Readings(tree)
        self._began = time.monotonic()
        self._trials = 1 if task.metric_only or not task.HasField("baseline") else 1 + task.method.pair_processes
        self._done = 0.0

    async def measure(self) -> measurement_pb2.MeasurementResult:
        """All trials, one after another, and what the device was like before, between and after."""
        task = self._task
        result = measurement_pb2.MeasurementResult(
            method_version=METHOD_VERSION,
            agent_version=fleetfit.__version__,
            runtime=task.candidate.runtime,
            boot_id=self._tree.text("/proc/sys/kernel/random/boot_id") or "",
            host_digest=host_digest(self._tree),
        )
        try:
            await self._wait_for_quiet(result)
            self._progress("measuring the build alone" if not task.metric_only else "computing the metric")
            alone = measurement_pb2.MeasurementResult()
            alone.ParseFromString(await self._trial("solo", 0))
            result.MergeFrom(alone)
            result.readings.append(self._readings.take())
            if self._trials > 1:
                for number in range(task.method.pair_processes):
                    self._progress("measuring the build beside the original")
                    result.pairs.add().ParseFromString(await self._trial("pair", number))
                result.readings.append(self._readings.take())
            result.status = Status.MEASUREMENT_STATUS_MEASURED
        except _Failed as failure:
            result.status, result.message = failure.status, failure.message
        result.condition.update(self._condition(result))
        return result

    async def _wait_for_quiet(self, result: measurement_pb2.MeasurementResult) -> None:
        deadline = time.monotonic() + self._task.method.quiet_limit_ns / 1e9
        while True:
            self._readings.take()
            await asyncio.sleep(_LOOK_S)
            reading = self._readings.take()
            busy = reading.other_cpu_percent if reading.HasField("other_cpu_percent") else 0.0
            stolen = reading.steal_percent if reading.HasField("steal_percent") else 0.0
            result.quiet = busy <= _OTHERS_PERCENT and stolen <= _STEAL_PERCENT
            if result.quiet or time.monotonic() > deadline or self._task.metric_only:
                break
            self._progress("waiting for the device to be quiet")
        result.readings.append(reading)
        if not result.quiet:
            result.disturbance = (
                f"other processes used {busy:.0f} % of the processors"
                if busy > _OTHERS_PERCENT
                else f"the hypervisor took {stolen:.0f} % of the processor time"
            )

    async def _trial(self, kind: str, number: int) -> bytes:
        out = self._taskdir / f"{kind}-{number}.pb"
        limits = Limits(
            memory_bytes=int(psutil.virtual_memory().available * _MEMORY_SHARE),
            wall_s=max(self._task.method.child_limit_ns / 1e9, 1.0),
        )
        arguments = ["-m", "fleetfit.agent.measuring.trials", str(self._taskdir), str(out), kind, str(number)]
        threads = str(self._task.threads)
        outcome = await run_child(
            arguments, limits, environment={"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": "1"}
        )
        # A crash at the process's exit, after the result was written, is not the build's fault (onnxruntime #28301).
        if not out.exists():
            raise self._explain(out, outcome)
        self._done += 1 / self._trials
        return out.read_bytes()

    def _explain(self, out: Path, outcome: ChildOutcome) -> _Failed:
        said = out.with_suffix(".error")
        if said.exists():
            return _Failed(Status.MEASUREMENT_STATUS_NOT_LOADABLE, str(json.loads(said.read_text())["message"]))
        status, sentence = _SENTENCES.get(outcome.kind, _SENTENCES["failed"])
        last = (outcome.stderr_tail.strip().splitlines() or [""])[-1]
        if "No space left on device" in outcome.stderr_tail:
            return _Failed(
                Status.MEASUREMENT_STATUS_DISK_FULL, "the device's disk is full; make room, then resume the job"
            )
        return _Failed(status, f"{sentence} ({last[:200]})" if outcome.kind == "failed" and last else sentence)

    def _condition(self, result: measurement_pb2.MeasurementResult) -> dict[str, str]:
        return {
            "threads": str(self._task.threads),
            "batch": str(self._task.batch),
            "power_mode": power_mode(self._tree),
            "governor": governor(self._tree),
            "kernel": platform.release(),
            "runtime": result.runtime,
            "runtime_version": result.runtime_version,
            "boot_id": result.boot_id,
        }

    def _progress(self, activity: str) -> None:
        said: dict[str, object] = {"activity": activity, "fraction": round(self._done, 3)}
        if self._done > 0:
            said["remaining_ms"] = int((time.monotonic() - self._began) * 1000 * (1 - self._done) / self._done)
        fresh = self._taskdir / "progress.new"
        fresh.write_text(json.dumps(said))
        fresh.replace(self._taskdir / "progress.json")


def main(taskdir: Path) -> int:
    """Measure, and write the result whatever happens."""
    task = measurement_pb2.MeasureTask()
    task.ParseFromString((taskdir / "task.pb").read_bytes())
    (taskdir / "progress.json").write_text(
        json.dumps({"activity": "waiting for this device to be free", "fraction": 0})
    )
    # SIGKILL of this process kills the trials too: each asked the kernel for that in `limit_self`.
    with host_lock() as held:
        try:
            result = asyncio.run(Measurer(taskdir, task, Tree()).measure())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            result = measurement_pb2.MeasurementResult(
                status=Status.MEASUREMENT_STATUS_DISK_FULL,
                message="the device's disk is full; make room, then resume the job",
            )
        result.held.begin_monotonic_ns = held.begin_monotonic_ns
        result.held.end_monotonic_ns = time.monotonic_ns()
    content = gzip.compress(result.SerializeToString(), compresslevel=6, mtime=0)
    fresh = taskdir / "result.new"
    fresh.write_bytes(content)
    os.replace(fresh, taskdir / "result.pb.gz")
    return 0


if __name__ == "__main__":
    limit_self()
    sys.exit(main(Path(sys.argv[1]).resolve()))
