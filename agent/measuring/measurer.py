"""One measurement: the trials in their order, and what the device was like before, between and after."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Final

import fleetfit
from fleetfit.agent.hooks import APPLICATION_VARIABLE
from fleetfit.agent.measuring.endings import Status, TrialFailed, explain
from fleetfit.agent.measuring.energy import LAG_VARIABLE, read_until_cancelled
from fleetfit.agent.measuring.engines import EnginesInTurn, several_engines
from fleetfit.agent.measuring.fitness import judge
from fleetfit.agent.measuring.scaling import Scaling
from fleetfit.agent.meters.base import FoundMeter, NoMeter, find_meter
from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.processor import processor_name
from fleetfit.agent.probe.readings import (
    Readings,
    allowed_memory_bytes,
    clocks,
    governor,
    heat_left,
    host_digest,
    power_mode,
)
from fleetfit.agent.spool import tell_progress
from fleetfit.core.children import ChildOutcome, Limits, run_child
from fleetfit.core.statistics_latency import half_width
from fleetfit.proto.figures import pair_ratio, pair_spread_within_engines
from fleetfit.proto.methods import METHOD_VERSION, PAIR_PROCESSES_MORE
from fleetfit.proto.v1 import measurement_pb2

_LOOK_S: Final = 0.25
_GLANCE_S: Final = 1.0
_WATCH_S: Final = 0.2
SamplingEnd = measurement_pb2.SamplingEnd
_NO_ROOM_FOR_TWO: Final = (
    "the build and the original do not fit into this device's memory together, so no ratio was measured; "
    "compare their latencies"
)


class Measurer:
    """Measures one task. The builds are loaded in fresh children only: one that crashes or hangs is a result."""

    def __init__(self, taskdir: Path, task: measurement_pb2.MeasureTask, tree: Tree) -> None:
        self._taskdir = taskdir
        self._task = task
        self._tree = tree
        self._readings = Readings(tree)
        self._during: list[measurement_pb2.Reading] = []
        self._began = time.monotonic()
        paired = task.HasField("baseline") and not task.metric_only
        self._pairs = task.method.pair_processes if paired else 0
        timed = not (task.metric_only or task.scaling or task.profile)
        energy = task.method.energy_rounds > 0 and timed
        parted = (task.HasField("pre") or task.HasField("post")) and timed
        self._chains = task.method.chain_processes if parted else 0
        self._meter: FoundMeter | NoMeter | None = find_meter(tree) if energy else None
        self._done = 0
        self._told = 0.0

    async def measure(self) -> measurement_pb2.MeasurementResult:
        """All trials, one after another."""
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
            if task.scaling:
                await self._scale(result)
                return self._finished(result)
            if task.profile:
                await self._profile(result)
                return self._finished(result)
            alone = "computing the metric" if task.metric_only else "measuring the build alone"
            result.MergeFromString(await self._trial("solo", 0, alone))
            result.readings.append(self._readings.take())
            if self._pairs:
                await self._pair_trials(result)
                result.readings.append(self._readings.take())
            if self._chains:
                await self._chain_trials(result)
                result.readings.append(self._readings.take())
            await self._energy_trial(result)
            result.status = Status.MEASUREMENT_STATUS_MEASURED
        except TrialFailed as failure:
            result.status, result.message = failure.status, failure.message
        if isinstance(self._meter, FoundMeter):
            self._meter.meter.close()
        return self._finished(result)

    def _finished(self, result: measurement_pb2.MeasurementResult) -> measurement_pb2.MeasurementResult:
        result.during.extend(self._during)
        result.condition.update(self._condition(result))
        return result

    async def _scale(self, result: measurement_pb2.MeasurementResult) -> None:
        looking = asyncio.create_task(self._look_on())
        try:
            run = await Scaling(self._taskdir, self._task, self._tree, self._progress).measure()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        measured = [one for one in run.points if one.rounds]
        if not measured:
            raise TrialFailed(run.points[0].status, run.points[0].message)
        result.scaling.CopyFrom(run)
        result.runtime_version = measured[0].rounds[0].processes[0].runtime_version
        result.readings.append(self._readings.take())
        result.status = Status.MEASUREMENT_STATUS_MEASURED

    async def _profile(self, result: measurement_pb2.MeasurementResult) -> None:
        """What cannot be profiled is measured all the same: there is no profile of it, and why."""
        try:
            result.profile.ParseFromString(await self._trial("profile", 0, "timing each operator"))
        except TrialFailed as failure:
            result.profile.not_offered_because = f"profiling it failed: {failure.message}"
        result.runtime_version = result.profile.runtime_version
        result.readings.append(self._readings.take())
        result.status = Status.MEASUREMENT_STATUS_MEASURED

    async def _pair_trials(self, result: measurement_pb2.MeasurementResult) -> None:
        """Fresh processes until the ratio is known as precisely as asked, or their number or time is used up.

        In twos, so that half of them load either build first.
        """
        began = time.monotonic()
        result.precision = self._task.method.precision
        number, ended = 0, SamplingEnd.SAMPLING_END_UNSPECIFIED
        engines = EnginesInTurn(self._task.method, result.solo.engine_ns)
        while ended == SamplingEnd.SAMPLING_END_UNSPECIFIED and number < self._pairs:
            try:
                told = "measuring the build beside the original"
                trial = await self._trial("pair", number, told, engines.of(number))
            except TrialFailed as failure:
                # The build alone is measured; it is the two together that the device cannot hold.
                if failure.status != Status.MEASUREMENT_STATUS_OUT_OF_MEMORY:
                    raise
                result.ClearField("pairs")
                result.notes.append(_NO_ROOM_FOR_TWO)
                return
            run = result.pairs.add()
            run.ParseFromString(trial)
            engines.heard(run)
            number += 1
            if number == self._pairs and result.precision > 0:
                ended = self._pairs_end(result, time.monotonic() - began - engines.spent_s)
                if ended == SamplingEnd.SAMPLING_END_UNSPECIFIED:
                    self._pairs += PAIR_PROCESSES_MORE
        result.pairs_end = ended

    def _pairs_end(self, result: measurement_pb2.MeasurementResult, spent_s: float) -> SamplingEnd.ValueType:
        ratio, method = pair_ratio(result.pairs), self._task.method
        if ratio is not None and half_width(ratio) <= method.precision:
            return SamplingEnd.SAMPLING_END_PRECISE
        if several_engines(result.pairs) and pair_spread_within_engines(result.pairs) <= method.precision:
            return SamplingEnd.SAMPLING_END_ENGINES
        if self._pairs + PAIR_PROCESSES_MORE > method.most_pair_processes:
            return SamplingEnd.SAMPLING_END_PROCESSES
        # What more would take is what the same number took.
        more_s = spent_s * PAIR_PROCESSES_MORE / self._pairs
        return (
            SamplingEnd.SAMPLING_END_TIME
            if spent_s + more_s > method.pair_limit_ns / 1e9
            else SamplingEnd.SAMPLING_END_UNSPECIFIED
        )

    async def _chain_trials(self, result: measurement_pb2.MeasurementResult) -> None:
        """The build between the model's other parts; beside the original where that is another build of the same runtime.

        What goes wrong with the parts is no fault of the build, which is measured: it is said why end to end is not known.
        """
        task = self._task
        apart = task.baseline.build_id != task.candidate.build_id
        both = bool(result.pairs) and apart and task.baseline.runtime == task.candidate.runtime
        for kind in ("chain", "chain-alone") if both else ("chain-alone",):
            del result.chains[:]
            result.no_chain_because = ""
            try:
                for number in range(self._chains):
                    trial = await self._trial(kind, number, "measuring the whole chain")
                    result.chains.add().ParseFromString(trial)
                return
            except TrialFailed as failure:
                del result.chains[:]
                result.no_chain_because = failure.message
                # The chain with one build between may fit where it does not with two.
                if failure.status != Status.MEASUREMENT_STATUS_OUT_OF_MEMORY:
                    return

    async def _energy_trial(self, result: measurement_pb2.MeasurementResult) -> None:
        if isinstance(self._meter, NoMeter):
            result.no_energy_because = self._meter.reason
        if not isinstance(self._meter, FoundMeter):
            return
        reading = asyncio.create_task(read_until_cancelled(self._meter, result.energy))
        try:
            trial = await self._trial("energy", 0, "measuring energy")
            result.energy.MergeFromString(trial)
        except TrialFailed as failure:
            # Everything else is measured.
            result.ClearField("energy")
            result.no_energy_because = failure.message
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _wait_for_quiet(self, result: measurement_pb2.MeasurementResult) -> None:
        """Wait until nobody else works and the device is cool, each with its own limit; say what is left in the way.

        Raises TrialFailed where the job would rather have no measurement than one of a device that is not fit.
        """
        method = self._task.method
        began = time.monotonic()
        quiet_until = began + method.quiet_limit_ns / 1e9
        cool_until = began + method.cool_limit_ns / 1e9
        while True:
            self._readings.take()
            await asyncio.sleep(_LOOK_S)
            reading = self._readings.take()
            found = judge(reading, heat_left(self._tree), power_mode(self._tree), method.power_mode)
            now = time.monotonic()
            waits = (bool(found.busy) and now <= quiet_until) or (bool(found.hot) and now <= cool_until)
            # A metric does not depend on who else is working.
            if not waits or self._task.metric_only:
                break
            self._progress(f"waiting for the device to {'be quiet' if found.busy else 'cool down'}", 0)
        result.readings.append(reading)
        result.quiet = not found.disturbance
        result.disturbance = found.disturbance
        if self._task.metric_only:
            return
        if found.reasons and method.refuse_unfit:
            raise TrialFailed(
                Status.MEASUREMENT_STATUS_REFUSED,
                f"not measured, as the job asks of a device that is not fit: {found.reasons}; see to it, then resume the job",
            )
        if found.other_mode:
            result.notes.append(f"{found.other_mode} as is declared; its figures hold for that mode")

    async def _trial(self, kind: str, number: int, activity: str, engine: int = 0) -> bytes:
        out = self._taskdir / f"{kind}-{number}.pb"
        limits = Limits(memory_bytes=allowed_memory_bytes(self._tree), expendable=True)
        arguments = [
            "-m",
            "fleetfit.agent.measuring.trials",
            str(self._taskdir),
            str(out),
            kind,
            str(number),
            str(engine),
        ]
        environment = {"OMP_NUM_THREADS": str(self._task.threads), "OPENBLAS_NUM_THREADS": "1"}
        if isinstance(self._meter, FoundMeter):
            environment[LAG_VARIABLE] = str(int(self._meter.meter.lag_s * 1e9))
        child = asyncio.create_task(run_child(arguments, limits, environment=environment))
        looking = asyncio.create_task(self._look_on())
        try:
            outcome = await self._watch(child, out.with_suffix(".step"), activity)
        finally:
            child.cancel()
            looking.cancel()
            await asyncio.gather(child, looking, return_exceptions=True)
        # A crash at the process's exit, after the result was written, is not the build's fault (onnxruntime #28301).
        if not out.exists():
            raise explain(out, outcome)
        self._done += 1
        content = out.read_bytes()
        out.unlink()
        return content

    async def _look_on(self) -> None:
        """Glance at the device while a trial runs: what throttles for a moment is seen, and one look costs next to nothing."""
        while True:
            self._during.append(self._readings.glance())
            await asyncio.sleep(_GLANCE_S)

    async def _watch(self, child: asyncio.Task[ChildOutcome], step: Path, activity: str) -> ChildOutcome:
        """Wait for a child, telling how far it is. One that shows no sign of life for the limit has timed out.

        A fixed limit would refuse a large split on a slow device, or let a hang last as long as the largest split.
        """
        limit_s = max(self._task.method.child_limit_ns / 1e9, 1.0)
        fraction, alive = 0.0, time.monotonic()
        self._progress(activity, 0)
        while not child.done():
            await asyncio.wait({child}, timeout=_WATCH_S)
            told = fraction
            with contextlib.suppress(OSError, ValueError):
                told = float(step.read_text())
            if told != fraction:
                fraction, alive = told, time.monotonic()
                self._progress(activity, fraction)
            elif time.monotonic() - alive > limit_s and not child.done():
                return ChildOutcome("timed_out", -9)
        return child.result()

    def _condition(self, result: measurement_pb2.MeasurementResult) -> dict[str, str]:
        return {
            "threads": str(self._task.threads),
            "batch": str(self._task.batch),
            "processor": processor_name(self._tree),
            "power_mode": power_mode(self._tree),
            "governor": governor(self._tree),
            "clocks": clocks(self._tree),
            "application": os.environ.get(APPLICATION_VARIABLE, ""),
            "kernel": platform.release(),
            "runtime": result.runtime,
            "runtime_version": result.runtime_version,
            "boot_id": result.boot_id,
        }

    def _progress(self, activity: str, of_trial: float) -> None:
        # More pairs than were foreseen hold progress up, and never turn it back.
        trials = 1 + self._pairs + self._chains + isinstance(self._meter, FoundMeter)
        done = self._told = max(self._told, min((self._done + of_trial) / trials, 1.0))
        said: dict[str, object] = {"activity": activity, "fraction": round(done, 3)}
        if done > 0:
            said["remaining_ms"] = int((time.monotonic() - self._began) * 1000 * (1 - done) / done)
        tell_progress(self._taskdir, said)
