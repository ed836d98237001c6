"""The trials themselves, each in a fresh process: solo, pair, metric.

`python -m fleetfit.agent.measuring.trials TASKDIR OUT solo|metric|pair NUMBER` writes one serialized message to OUT.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fleetfit.core.children import EXIT_OUT_OF_MEMORY, limit_self

if __name__ == "__main__":
    limit_self()

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from fleetfit.agent.measuring.inputs import TARGETS, batches, read_arrays, timing_feeds
from fleetfit.core.errors import FleetfitError
from fleetfit.core.statistics import metric_value, score_samples, steady
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.runtimes.base import LoadedModel
from fleetfit.runtimes.registry import runtime

EXIT_NOT_LOADABLE: Final = 3
_WARMUP_WINDOW: Final = 24


def solo(taskdir: Path, task: measurement_pb2.MeasureTask) -> measurement_pb2.MeasurementResult:
    """One build alone: load, first inference, warm-up, samples, memory, and then the metric."""
    adapter = runtime(task.candidate.runtime)
    result = measurement_pb2.MeasurementResult(
        runtime=task.candidate.runtime, runtime_version=adapter.availability().version
    )
    build = _build(taskdir, task.candidate)
    feeds = _feeds(taskdir, task)
    if not task.metric_only:
        run = measurement_pb2.SoloRun(floor_memory_bytes=_memory("VmRSS"))
        _reset_peak()
        run.window.begin_monotonic_ns = time.monotonic_ns()
        model = adapter.load(build, threads=task.threads)
        run.load_ns = time.monotonic_ns() - run.window.begin_monotonic_ns
        began = time.perf_counter_ns()
        model.run(feeds)
        run.first_inference_ns = time.perf_counter_ns() - began
        call = model.bind(feeds)
        run.warmup_samples, run.steady = warm_up(call, task.method.warmup_limit_ns)
        run.latency_ns.extend(_samples(call, task.method.solo_samples, task.method.solo_limit_ns))
        run.window.end_monotonic_ns = time.monotonic_ns()
        run.peak_memory_bytes = _memory("VmHWM")
        result.solo.CopyFrom(run)
    else:
        model = adapter.load(build, threads=task.threads)
    if task.data_artifact_name and task.metric:
        result.metric.CopyFrom(_metric(taskdir, task, model))
    model.close()
    return result


def _metric(taskdir: Path, task: measurement_pb2.MeasureTask, model: LoadedModel) -> measurement_pb2.MetricRun:
    run = measurement_pb2.MetricRun(metric=task.metric, split=task.split)
    run.window.begin_monotonic_ns = time.monotonic_ns()
    data = read_arrays(taskdir / "in" / task.data_artifact_name)
    scores = []
    at = 0
    for feeds, count in batches(task, data):
        outputs = {name: values[:count] for name, values in model.run(feeds).items()}
        ordered = {spec.name: outputs[spec.name] for spec in task.candidate.outputs if spec.name in outputs} or outputs
        scores.append(score_samples(task.metric, ordered, data[TARGETS][at : at + count]))
        at += count
    all_scores = np.concatenate(scores)
    run.scores.extend(all_scores.tolist())
    run.count = len(all_scores)
    run.value = metric_value(task.metric, all_scores).value
    run.window.end_monotonic_ns = time.monotonic_ns()
    return run


def pair(taskdir: Path, task: measurement_pb2.MeasureTask, number: int) -> measurement_pb2.PairRun:
    """Candidate and baseline in one process, in blocks whose order is drawn anew for each two."""
    adapter = runtime(task.candidate.runtime)
    run = measurement_pb2.PairRun(candidate_loaded_first=number % 2 == 0)
    feeds = _feeds(taskdir, task)
    run.window.begin_monotonic_ns = time.monotonic_ns()
    refs = {True: task.candidate, False: task.baseline}
    models, calls = {}, {}
    for which in (run.candidate_loaded_first, not run.candidate_loaded_first):
        models[which] = adapter.load(_build(taskdir, refs[which]), threads=task.threads)
        calls[which] = models[which].bind(feeds)
    method = task.method
    warm = {which: warm_up(call, method.warmup_limit_ns // 2)[1] for which, call in calls.items()}
    run.steady = all(warm.values())
    sizes = {which: _block_size(call, method.block_ns) for which, call in calls.items()}
    order = random.Random(f"{task.candidate.build_id}/{number}")  # noqa: S311 - an order, not a secret
    for _ in range(method.blocks_per_process):
        for which in order.sample((True, False), 2):
            block = run.blocks.add(candidate=which)
            call = calls[which]
            # The first after the other's turn meets cold caches; it is not what a deployment sees.
            call()
            block.latency_ns.extend(_samples(call, sizes[which], method.block_ns * 4))
    run.window.end_monotonic_ns = time.monotonic_ns()
    for model in models.values():
        model.close()
    return run


def warm_up(call: Callable[[], None], limit_ns: int) -> tuple[int, bool]:
    """Run until the last samples show no drift, or the limit passes: how many it took, and whether they are steady."""
    began = time.perf_counter_ns()
    samples: list[int] = []
    while True:
        samples += _samples(call, _WARMUP_WINDOW // 2, limit_ns)
        if len(samples) >= _WARMUP_WINDOW and steady(samples[-_WARMUP_WINDOW:]):
            return len(samples), True
        if time.perf_counter_ns() - began > limit_ns:
            return len(samples), False


def _samples(call: Callable[[], None], count: int, limit_ns: int) -> list[int]:
    clock = time.perf_counter_ns
    samples = []
    end = clock() + limit_ns
    for _ in range(max(count, 1)):
        before = clock()
        call()
        after = clock()
        samples.append(after - before)
        if after > end:
            break
    return samples


def _block_size(call: Callable[[], None], block_ns: int) -> int:
    samples = sorted(_samples(call, 5, block_ns))
    return max(1, -(-block_ns // max(samples[len(samples) // 2], 1)))


def _build(taskdir: Path, ref: measurement_pb2.BuildRef) -> bytes:
    return (taskdir / "in" / ref.artifact_name).read_bytes()


def _feeds(taskdir: Path, task: measurement_pb2.MeasureTask) -> dict[str, NDArray[Any]]:
    """The inputs to time with; the first child cuts them from the split, the others read the cut."""
    cut = taskdir / "sample.npz"
    if cut.exists():
        return timing_feeds(task, read_arrays(cut))
    if not task.data_artifact_name:
        return timing_feeds(task, None)
    data = read_arrays(taskdir / "in" / task.data_artifact_name)
    feeds = timing_feeds(task, data)
    fresh = cut.with_name("sample.new.npz")
    np.savez(fresh, allow_pickle=False, **feeds)
    fresh.replace(cut)
    return feeds


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then the peak also covers reading the build, which is the smaller part


def main(arguments: list[str]) -> int:
    """Run one trial."""
    taskdir, out, kind = Path(arguments[0]), Path(arguments[1]), arguments[2]
    task = measurement_pb2.MeasureTask()
    task.ParseFromString((taskdir / "task.pb").read_bytes())
    message: Message
    try:
        message = pair(taskdir, task, int(arguments[3])) if kind == "pair" else solo(taskdir, task)
    except MemoryError:
        return EXIT_OUT_OF_MEMORY
    except FleetfitError as error:
        out.with_suffix(".error").write_text(json.dumps({"code": error.code, "message": error.message}))
        return EXIT_NOT_LOADABLE
    fresh = out.with_suffix(".new")
    fresh.write_bytes(message.SerializeToString())
    fresh.replace(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
