"""The trials themselves, each in a fresh process: solo (with the metric), pair, chain, energy and profile.

`python -m fleetfit.agent.measuring.trials TASKDIR OUT KIND NUMBER ENGINE`, where KIND is solo, pair, chain, chain-alone, energy
or profile, writes one serialized message to OUT. What it cannot do for a reason that a person can act on is said in OUT.error; how
far it is stands in OUT.step.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

from fleetfit.core.children import limit_self

if __name__ == "__main__":
    limit_self()

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from fleetfit.agent.measuring.chain import time_chain
from fleetfit.agent.measuring.endings import write_or_tell
from fleetfit.agent.measuring.energy import LAG_VARIABLE, rest_and_work
from fleetfit.agent.measuring.gpu import GpuMemory
from fleetfit.agent.measuring.inputs import fixed_batch, metric_batches
from fleetfit.agent.measuring.kept import Batch, kept_scores
from fleetfit.agent.measuring.memory import Forked, forks_now, look_at_forks, memory_bytes, reset_peak
from fleetfit.agent.measuring.outputs import OutputsFile
from fleetfit.agent.measuring.profiling import profile_build
from fleetfit.agent.measuring.seats import Seat, SeatApart, SeatHere, feeds_of, prepared
from fleetfit.agent.measuring.split import open_split
from fleetfit.agent.measuring.timing import (
    FOR_P95,
    Call,
    call_without_pause,
    take_samples,
    take_until,
    time_once,
    warm_up,
)
from fleetfit.agent.spool import OUTPUTS
from fleetfit.core.digests import sha256_file
from fleetfit.core.errors import InvalidData, InvalidModel
from fleetfit.core.figures import size
from fleetfit.core.metrics import metric_info
from fleetfit.core.statistics import metric_point, score_samples
from fleetfit.core.statistics_gap import compared_rows
from fleetfit.core.statistics_latency import process_spread
from fleetfit.core.statistics_scores import judged_output
from fleetfit.proto.figures import milliseconds
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.runtimes.base import LoadedModel
from fleetfit.runtimes.registry import runtime

_METRIC_BATCH: Final = 64
# As float32 32 MiB: what a report may weigh, several times over.
_MOST_SCORES: Final = 8 << 20
_STEP_NS: Final = 200_000_000
# Of a solo trial's progress: the rest of it is told by samples.
_PREPARED: Final = 0.19
# A median of fewer says too little, however slow the build.
_FEWEST_SAMPLES: Final = 5
# Of a child's time, what samples for a slow build's p95 may take.
_SHARE_FOR_P95: Final = 4
_FEWEST_ROUNDS: Final = 3
# A process that has slept while the other one's runtime worked may wake on another core: its first calls must be few of a block.
_BLOCK_APART_NS: Final = 12_000_000


class Trial:
    """One trial of a task."""

    def __init__(self, taskdir: Path, out: Path) -> None:
        self._taskdir = taskdir
        self._step_file = out.with_suffix(".step")
        self._stepped = 0
        self._task = measurement_pb2.MeasureTask()
        self._task.ParseFromString((taskdir / "task.pb").read_bytes())

    def solo(self) -> measurement_pb2.MeasurementResult:
        """One build alone: load, first inference, warm-up, samples, memory, and then the metric."""
        task, before = self._task, forks_now()
        adapter = runtime(task.candidate.runtime)
        version = adapter.availability().version
        result = measurement_pb2.MeasurementResult(runtime=task.candidate.runtime, runtime_version=version)
        build = self._build(task.candidate)
        if task.metric_only:
            model = adapter.load(build, threads=task.threads)
        else:
            feeds = feeds_of(task, self._taskdir)
            run = result.solo
            run.engine, run.engine_ns = prepared(
                adapter, build, feeds, task.threads, 0, lambda done: self._step(_PREPARED * done)
            )
            gpu = GpuMemory(adapter)
            run.floor_memory_bytes = memory_bytes("VmRSS") + look_at_forks(before).private_bytes
            reset_peak()
            run.window.begin_monotonic_ns = time.monotonic_ns()
            model = adapter.load(build, threads=task.threads)
            run.load_ns = time.monotonic_ns() - run.window.begin_monotonic_ns
            result.notes.extend(model.notes())
            run.load_peak_memory_bytes = memory_bytes("VmHWM")
            # Looking takes some memory itself.
            loaded = look_at_forks(before)
            run.load_peak_memory_bytes += loaded.private_bytes
            reset_peak()
            run.first_inference_ns = time_once(lambda: _discard(model.run(feeds)))
            call = model.bind(feeds)
            run.warmup_samples, run.steady = warm_up(call, task.method.warmup_limit_ns)
            method = task.method
            samples = take_until(
                call, method.solo_samples, method.solo_limit_ns, method.precision, least=_FEWEST_SAMPLES
            )
            missing = FOR_P95 - len(samples) - self._of_pairs()
            # What is sustained has a p95 of its own, and the first seconds must stay the first seconds.
            if missing > 0 and method.precision > 0 and not method.sustained_ns:
                samples += take_samples(call, missing, method.child_limit_ns // _SHARE_FOR_P95)
            run.latency_ns.extend(samples)
            run.window.end_monotonic_ns = time.monotonic_ns()
            run.run_peak_memory_bytes = memory_bytes("VmHWM")
            ran = look_at_forks(before)
            run.run_peak_memory_bytes += ran.private_bytes
            run.peak_memory_bytes = max(run.load_peak_memory_bytes, run.run_peak_memory_bytes)
            run.shared_in_part_bytes = memory_bytes("Pss") + ran.proportional_bytes
            _tell_forks(result, max(loaded, ran, key=lambda one: one.private_bytes))
            gpu.tell(run)
            if method.sustained_ns > 0:
                self._sustain(call, run.sustained)
            del call
        self._step(0.2, now=True)
        if task.data_artifact_name and task.return_outputs:
            self._outputs(model, result)
        elif task.data_artifact_name and task.metric:
            self._metric(model, result)
        model.close()
        return result

    def _of_pairs(self) -> int:
        """How many samples of the candidate the pairs will have at the fewest."""
        method = self._task.method
        return method.pair_processes * method.blocks_per_process if self._task.HasField("baseline") else 0

    def pair(self, number: int, engine: int = 0) -> measurement_pb2.PairRun:
        """Candidate and baseline in blocks whose order is drawn anew for each round: in one process, or one for each runtime.

        `engine` says which is taken of those that are built of each, from 0.
        """
        task, method = self._task, self._task.method
        apart = task.baseline.runtime != task.candidate.runtime
        run = measurement_pb2.PairRun(candidate_loaded_first=number % 2 == 0)
        attempts = {True: engine, False: engine}
        if (task.baseline.build_id, task.baseline.runtime) == (task.candidate.build_id, task.candidate.runtime):
            # Beside itself a build has engines of its own on either side: the same one twice would not tell what engines do.
            attempts[False] += max(method.engines, 1)
        run.window.begin_monotonic_ns = time.monotonic_ns()
        seats: dict[bool, Seat] = {}
        try:
            for which in (run.candidate_loaded_first, not run.candidate_loaded_first):
                there = apart and not which
                ref = task.candidate if which else task.baseline
                at = attempts[which]
                seats[which] = (SeatApart if there else SeatHere)(task, ref, self._taskdir, at, self._tell_building)
            run.candidate_engine, run.baseline_engine = seats[True].engine, seats[False].engine
            run.engines_ns = sum(seat.engine_ns for seat in seats.values())
            # Both are warmed up, also where the first is not steady.
            warm = [seat.warm_up(method.warmup_limit_ns // 2) for seat in seats.values()]
            run.steady = all(warm)
            block_ns = max(method.block_ns, _BLOCK_APART_NS if apart else 0)
            sizes = {which: seat.size(block_ns) for which, seat in seats.items()}
            order = random.Random(f"{task.candidate.build_id}/{number}")  # noqa: S311 - an order, not a secret
            half = run.window.begin_monotonic_ns + method.child_limit_ns // 2
            rounds, began = max(method.blocks_per_process, 1), time.monotonic_ns()
            look_ns = method.rounds_ns
            for round_number in itertools.count():
                if round_number >= _FEWEST_ROUNDS and time.monotonic_ns() > half:
                    break
                lasted = time.monotonic_ns() - began
                if round_number >= rounds and lasted >= look_ns:
                    if self._enough_rounds(run, lasted):
                        break
                    # Looking costs more than a round of a fast build.
                    look_ns = lasted + lasted // 8
                for which in order.sample((True, False), 2):
                    samples = seats[which].block(sizes[which], block_ns * 4)
                    run.blocks.add(candidate=which).latency_ns.extend(samples)
                self._step(min((round_number + 1) / rounds, (lasted + 1) / max(method.rounds_ns, 1), 1.0))
            run.window.end_monotonic_ns = time.monotonic_ns()
        finally:
            for seat in seats.values():
                seat.close()
        return run

    def _tell_building(self, fraction: float) -> None:
        # Never ahead of the rounds, which tell anew how far the trial is.
        self._step(fraction * 1e-3)

    def _sustain(self, call: Call, run: measurement_pb2.SustainedRun) -> None:
        run.window.begin_monotonic_ns = time.monotonic_ns()
        kept, run.every, run.calls = call_without_pause(
            call, self._task.method.sustained_ns, lambda done: self._step(0.2 * done)
        )
        run.latency_ns.extend(kept)
        run.window.end_monotonic_ns = time.monotonic_ns()

    def _enough_rounds(self, run: measurement_pb2.PairRun, lasted_ns: int) -> bool:
        """Whether this process has told its ratio as well as asked, or has taken as long as it may.

        Beginning anew costs more than a round, so what is uncertain within a process is cured within it.
        """
        method = self._task.method
        if method.precision <= 0 or lasted_ns > method.rounds_ns + method.more_rounds_limit_ns:
            return True
        ours, theirs = ([milliseconds(b.latency_ns) for b in run.blocks if b.candidate is w] for w in (True, False))
        return process_spread(ours, theirs) <= method.precision

    def chain(self, number: int, *, both: bool) -> measurement_pb2.ChainRun:
        """The build between the model's other parts, and, with `both`, the baseline between them in turn with it."""
        return time_chain(self._task, self._taskdir, number, self._step, both=both)

    def energy(self) -> measurement_pb2.EnergyRun:
        """The build at rest and at work in turn."""
        task = self._task
        model = runtime(task.candidate.runtime).load(self._build(task.candidate), threads=task.threads)
        try:
            lag_ns = int(os.environ.get(LAG_VARIABLE, 0))
            call = model.bind(feeds_of(task, self._taskdir))
            return rest_and_work(call, task.method, self._step, lag_ns=lag_ns)
        finally:
            model.close()

    def profile(self) -> measurement_pb2.ProfileRun:
        """The time of each operator of the build, by its runtime's profiler."""
        return profile_build(self._task, self._taskdir, self._step)

    def _metric(self, model: LoadedModel, result: measurement_pb2.MeasurementResult) -> None:
        task, run = self._task, result.metric
        run.metric, run.split = task.metric, task.split
        run.window.begin_monotonic_ns = time.monotonic_ns()
        size = fixed_batch(task.candidate) or _METRIC_BATCH
        wanted = [spec.name for spec in task.candidate.outputs]
        original = self._original(model)
        kept = kept_scores(task, self._taskdir, version=result.runtime_version, batch=size)
        run.resumed = kept.resumed
        with open_split(self._taskdir / "in" / task.data_artifact_name) as split:
            batches = metric_batches(task, split, size, targets_needed=original is None, done=kept.done)
            for feeds, targets, real in batches:
                judged = _judged(model, feeds, real, wanted)
                beside = judged if original is model else _judged(original, feeds, real, wanted) if original else None
                scores = score_samples(task.metric, judged, targets, beside)
                if scores[0].size * split.count > _MOST_SCORES:
                    raise InvalidData(
                        f"{task.metric} needs {scores[0].size} numbers for each of the {split.count} samples, more than a "
                        "report holds; choose a metric such as accuracy, or push fewer samples"
                    )
                first = judged_output(metric_info(task.metric), judged)
                values = first.reshape(len(first), -1)
                broken = int(np.isnan(values).any(axis=1).sum()) if first.dtype.kind == "f" else 0
                kept.add(Batch(scores, compared_rows(values, kept.done), broken))
                self._step(0.2 + 0.8 * kept.done / split.count)
        if not kept.batches:
            raise InvalidData(f"the {task.split} split is empty; push data with more samples")
        scores = np.concatenate([batch.scores for batch in kept.batches])
        strange = sum(batch.strange for batch in kept.batches)
        kind = metric_info(task.metric).kind
        if kind == "mean" and not np.isfinite(scores).all():
            broken = int((~np.isfinite(scores)).sum())
            raise InvalidModel(f"the build's outputs are not finite numbers for {broken} of {len(scores)} samples")
        if strange and kind != "mean":
            result.notes.append(f"{strange} of {len(scores)} outputs are not numbers (NaN) and count as wrong")
        run.scores.extend(scores.reshape(-1).tolist())
        run.count = len(scores)
        run.value = metric_point(task.metric, scores)
        compared = np.concatenate([batch.judged for batch in kept.batches])
        run.judged.extend(compared.reshape(-1).tolist())
        run.judged_width = compared.shape[1]
        run.window.end_monotonic_ns = time.monotonic_ns()
        kept.forget()
        if original is not None and original is not model:
            original.close()

    def _outputs(self, model: LoadedModel, result: measurement_pb2.MeasurementResult) -> None:
        """The outputs for the split, for somebody else to score."""
        task, run = self._task, result.metric
        run.split = task.split
        run.window.begin_monotonic_ns = time.monotonic_ns()
        wanted = [spec.name for spec in task.candidate.outputs]
        size = fixed_batch(task.candidate) or _METRIC_BATCH
        with open_split(self._taskdir / "in" / task.data_artifact_name) as split:
            if not split.count:
                raise InvalidData(f"the {task.split} split is empty; push data with more samples")
            kept = OutputsFile(self._taskdir, split.count)
            for feeds, _, real in metric_batches(task, split, size, targets_needed=False):
                kept.add(_judged(model, feeds, real, wanted), real)
                self._step(0.2 + 0.8 * kept.done / split.count)
        path = self._taskdir / OUTPUTS
        kept.close(path)
        run.outputs.sha256, run.outputs.size_bytes = sha256_file(path), path.stat().st_size
        run.count = kept.done
        run.window.end_monotonic_ns = time.monotonic_ns()

    def _original(self, model: LoadedModel) -> LoadedModel | None:
        """What the metric compares with: the original, loaded only where a metric needs it. It may be the candidate."""
        task = self._task
        if metric_info(task.metric).needs_targets:
            return None
        if not task.HasField("baseline"):
            raise InvalidData(
                f"{task.metric} needs the original beside the build, which the server did not send; update it"
            )
        if task.baseline.build_id == task.candidate.build_id:
            return model
        return runtime(task.baseline.runtime).load(self._build(task.baseline), threads=task.threads)

    def _build(self, ref: measurement_pb2.BuildRef) -> bytes:
        return (self._taskdir / "in" / ref.artifact_name).read_bytes()

    def _step(self, fraction: float, *, now: bool = False) -> None:
        """Tell how far the trial is, at most some times per second: also its sign of life."""
        if now or time.monotonic_ns() - self._stepped > _STEP_NS:
            self._step_file.write_text(f"{fraction:.5f}")
            self._stepped = time.monotonic_ns()


def _tell_forks(result: measurement_pb2.MeasurementResult, found: Forked) -> None:
    """Whoever reads a peak should know that a part of it was looked at twice, and not followed."""
    result.solo.forks, result.solo.forks_bytes = found.count, found.private_bytes
    if found.count:
        more = f"{found.count} more process{'es' if found.count > 1 else ''}"
        result.notes.append(
            f"the runtime works in {more}, whose memory ({size(found.private_bytes)}) is in its peak as it was after loading and "
            "after the samples"
        )


def _judged(
    model: LoadedModel, feeds: dict[str, NDArray[Any]], real: int, wanted: list[str]
) -> dict[str, NDArray[Any]]:
    """The outputs for the samples that are real, in the declared order."""
    fed = len(next(iter(feeds.values())))
    outputs = {name: _unpadded(values, fed, real) for name, values in model.run(feeds).items()}
    return {name: outputs[name] for name in wanted if name in outputs} or outputs


def _unpadded(values: NDArray[Any], fed: int, wanted: int) -> NDArray[Any]:
    """An output without the rows of the padding. One that has not a row per sample is left for the metric to refuse."""
    return values[:wanted] if np.ndim(values) and len(values) == fed else values


def _discard(_: object) -> None:
    pass


def main(arguments: list[str]) -> int:
    """Run one trial."""
    taskdir, out, kind = Path(arguments[0]), Path(arguments[1]), arguments[2]

    def message() -> Message:
        trial = Trial(taskdir, out)
        if kind == "energy":
            return trial.energy()
        if kind == "profile":
            return trial.profile()
        if kind in ("chain", "chain-alone"):
            return trial.chain(int(arguments[3]), both=kind == "chain")
        return trial.pair(*map(int, arguments[3:5])) if kind == "pair" else trial.solo()

    return write_or_tell(out, message)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
