"""How a build scales: more threads, larger batches, several processes at once. Each point runs in fresh processes.

Curves are climbed once, each until something ends it; then all points are measured again, round by round, so that what
changes over minutes touches all of them alike. A point that fails is a point with a reason, and nothing else is lost.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from fleetfit.agent.measuring.endings import Status, TrialFailed, explain
from fleetfit.agent.measuring.inputs import fixed_batch
from fleetfit.agent.measuring.ladder import batch_steps, grows_no_longer, instance_steps, steps
from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.processor import read_processor
from fleetfit.agent.probe.readings import allowed_memory_bytes
from fleetfit.core.children import ChildOutcome, Limits, run_child
from fleetfit.core.figures import size
from fleetfit.proto.scaling import round_throughput
from fleetfit.proto.v1 import measurement_pb2

# Calls of a process of a slow build: to warm it up, to begin together, to be recorded.
_CALLS: Final = 8
_WAIT_S: Final = 0.02
_WATCH_S: Final = 0.2
# From the word to the common begin: long enough for every process to have read its own memory.
_NOTICE_NS: Final = 100_000_000
_ENDED: Final = {
    Status.MEASUREMENT_STATUS_OUT_OF_MEMORY: "the next needs more memory than there is",
    Status.MEASUREMENT_STATUS_TIMED_OUT: "the time for it was over",
}


class Scaling:
    """Measures the curves of one task. `told` hears what is done and which share of it is over."""

    def __init__(
        self, taskdir: Path, task: measurement_pb2.MeasureTask, tree: Tree, told: Callable[[str, float], None]
    ) -> None:
        self._taskdir = taskdir
        self._task = task
        self._tree = tree
        self._told = told
        self._run = measurement_pb2.ScalingRun(cores=max(read_processor(tree).usable_cores, 1))
        self._known: dict[tuple[int, int, int], int] = {}
        self._began = time.monotonic()
        self._limit_s = task.method.scaling_limit_ns / 1e9
        self._last_s = 0.0
        self._done = 0
        self._expected = 1
        self._number = 0

    async def measure(self) -> measurement_pb2.ScalingRun:
        """All curves."""
        task, run, cores = self._task, self._run, self._run.cores
        threads, batch = max(task.threads, 1), max(task.batch, 1)
        fixed = fixed_batch(task.candidate)
        by_threads = [(n, batch, 1) for n in steps(cores)]
        by_batch = [(threads, n, 1) for n in batch_steps(batch, fixed)]
        by_instances = [(each, batch, n) for n, each in instance_steps(cores)]
        rounds = max(task.method.scaling_rounds, 1)
        self._expected = rounds * len({*by_threads, *by_batch, *by_instances})
        usable = f"that is all {cores} usable core{'s' if cores > 1 else ''}"
        await self._climb(run.threads, by_threads, usable, self._limit_s / 3)
        largest = (
            f"larger batches than {by_batch[-1][1]} are not tried"
            if fixed is None
            else f"the build takes batches of {fixed} only"
        )
        await self._climb(run.batch, by_batch, largest, self._limit_s * 2 / 3, stop=self._flat)
        await self._climb(run.instances, by_instances, usable, self._limit_s)
        # What was left out is not waited for.
        self._expected = self._done * rounds
        for _ in range(1, rounds):
            for point in run.points:
                if point.status == Status.MEASUREMENT_STATUS_MEASURED and not point.message:
                    if self._spent_s() + self._last_s > self._limit_s:
                        return run
                    await self._again(point)
        return run

    async def _climb(
        self,
        curve: measurement_pb2.ScalingCurve,
        wanted: Iterable[tuple[int, int, int]],
        ended: str,
        until_s: float,
        *,
        stop: Callable[[measurement_pb2.ScalingCurve], str] = lambda curve: "",
    ) -> None:
        """One round of a curve's points, until one fails, `stop` says why to, or there are no more: then it `ended`."""
        curve.ended = ended
        for threads, batch, instances in wanted:
            key = (threads, batch, instances)
            at = self._known.get(key, len(self._run.points))
            if at == len(self._run.points):
                point = self._run.points.add(threads=threads, batch=batch, instances=instances)
                if await self._first(point, self._before(curve), until_s):
                    self._known[key] = at
            curve.points.append(at)
            point = self._run.points[at]
            if point.status != Status.MEASUREMENT_STATUS_MEASURED:
                curve.ended = _ENDED.get(point.status, "the next failed")
                return
            if reason := stop(curve):
                curve.ended = reason
                return

    def _before(self, curve: measurement_pb2.ScalingCurve) -> measurement_pb2.ScalingPoint | None:
        return self._run.points[curve.points[-1]] if curve.points else None

    def _flat(self, curve: measurement_pb2.ScalingCurve) -> str:
        found = [round_throughput(self._run.points[at], 0) for at in curve.points]
        return "throughput grows no longer" if grows_no_longer(found) else ""

    async def _first(
        self, point: measurement_pb2.ScalingPoint, before: measurement_pb2.ScalingPoint | None, until_s: float
    ) -> bool:
        """A point's first round; whether it was begun at all."""
        point.status = Status.MEASUREMENT_STATUS_MEASURED
        if len(self._run.points) > 1 and self._spent_s() + self._expected_s(before) > until_s:
            point.status = Status.MEASUREMENT_STATUS_TIMED_OUT
            point.message = "not begun: the time that this may take would not have been enough"
            return False
        if short := self._too_little_memory(point, before):
            point.status, point.message = Status.MEASUREMENT_STATUS_OUT_OF_MEMORY, short
            return False
        try:
            point.rounds.append(await self._together(point))
        except TrialFailed as failure:
            point.status, point.message = failure.status, failure.message
        return True

    def _expected_s(self, before: measurement_pb2.ScalingPoint | None) -> float:
        """As long as the last point took; and where calls are slow, twice as slow ones will add to that."""
        per_s = round_throughput(before, 0) if before is not None and before.rounds else 0.0
        call_s = before.batch * before.instances / per_s if before is not None and per_s > 0 else 0.0
        return self._last_s + _CALLS * call_s

    async def _again(self, point: measurement_pb2.ScalingPoint) -> None:
        try:
            point.rounds.append(await self._together(point))
        except TrialFailed as failure:
            point.message = failure.message

    def _too_little_memory(
        self, point: measurement_pb2.ScalingPoint, before: measurement_pb2.ScalingPoint | None
    ) -> str:
        """Why so many instances are not begun, by what fewer hold; empty where they may be."""
        allowed = allowed_memory_bytes(self._tree)
        if allowed is None or before is None or not before.rounds or point.instances <= before.instances:
            return ""
        each = max(p.shared_in_part_bytes for p in before.rounds[0].processes)
        needed = each * point.instances
        if needed <= allowed:
            return ""
        return (
            f"not begun: {point.instances} instances would hold about {size(needed)}, and {size(allowed)} may be used"
        )

    def _spent_s(self) -> float:
        return time.monotonic() - self._began

    async def _together(self, point: measurement_pb2.ScalingPoint) -> measurement_pb2.ScalingRound:
        """One round of a point. Raises TrialFailed."""
        began = time.monotonic()
        folder = self._taskdir / f"scaling-{self._number}"
        self._number += 1
        self._progress(point)
        folder.mkdir()
        children = [asyncio.create_task(self._child(point, folder, n)) for n in range(point.instances)]
        try:
            await self._watch(point, folder, children)
            found = [folder / f"{n}.pb" for n in range(point.instances)]
            contents = [measurement_pb2.ScalingProcess.FromString(path.read_bytes()) for path in found]
            self._done += 1
            return measurement_pb2.ScalingRound(processes=contents)
        finally:
            for child in children:
                child.cancel()
            await asyncio.gather(*children, return_exceptions=True)
            shutil.rmtree(folder, ignore_errors=True)
            self._last_s = time.monotonic() - began

    async def _child(self, point: measurement_pb2.ScalingPoint, folder: Path, number: int) -> ChildOutcome:
        allowed = allowed_memory_bytes(self._tree)
        each = None if allowed is None else allowed // point.instances
        numbers = (number, point.instances, point.threads, point.batch)
        arguments = ["-m", "fleetfit.agent.measuring.instance", str(self._taskdir), str(folder), *map(str, numbers)]
        environment = {"OMP_NUM_THREADS": str(point.threads), "OPENBLAS_NUM_THREADS": "1"}
        return await run_child(arguments, Limits(memory_bytes=each, expendable=True), environment=environment)

    async def _watch(
        self, point: measurement_pb2.ScalingPoint, folder: Path, children: list[asyncio.Task[ChildOutcome]]
    ) -> None:
        """Give the word once all are ready, and wait for all. Raises TrialFailed for the first that brings nothing.

        One that shows no sign of life for the limit has timed out.
        """
        limit_s = max(self._task.method.child_limit_ns / 1e9, 1.0)
        seen, alive, begun = 0, time.monotonic(), False
        while waiting := {child for child in children if not child.done()}:
            await asyncio.wait(waiting, timeout=_WATCH_S if begun else _WAIT_S, return_when=asyncio.FIRST_COMPLETED)
            for number, child in enumerate(children):
                # A crash at the process's exit, after its result was written, is not the build's fault.
                if child.done() and not (folder / f"{number}.pb").exists():
                    raise explain(folder / f"{number}.pb", child.result())
            if not begun and all((folder / f"{n}.ready").exists() for n in range(point.instances)):
                fresh = folder / "go.new"
                fresh.write_text(str(time.monotonic_ns() + _NOTICE_NS))
                fresh.replace(folder / "go")
                begun = True
            latest = max((path.stat().st_mtime_ns for path in folder.iterdir()), default=0)
            if latest != seen:
                seen, alive = latest, time.monotonic()
                self._progress(point)
            elif time.monotonic() - alive > limit_s:
                raise explain(folder / "0.pb", ChildOutcome("timed_out", -9))

    def _progress(self, point: measurement_pb2.ScalingPoint) -> None:
        beside = f", {point.instances} processes" if point.instances > 1 else ""
        what = f"measuring {point.threads} thread{'s' if point.threads > 1 else ''}, batch {point.batch}{beside}"
        share = max(self._done / self._expected, min(self._spent_s() / self._limit_s, 1.0) if self._limit_s else 0.0)
        self._told(what, min(share, 1.0))
