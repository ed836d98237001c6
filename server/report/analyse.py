"""`python -m fleetfit.server.report.analyse IN.pb.gz OUT.json [AGAINST]`: raw samples to a summary with intervals.

AGAINST is an `Against` as JSON: what the metric is compared with.

A child of the server, because NumPy has no place in the server's process. The input came from a device: it is read as data.
"""

from __future__ import annotations

import gzip
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fleetfit.core.figures import number
from fleetfit.core.statistics import metric_value
from fleetfit.core.statistics_latency import half_width, median_interval, percentile_interval
from fleetfit.proto.figures import (
    bounds,
    candidate_engines,
    candidate_samples,
    pair_ratio,
    peak_memory,
    scores_of,
    warmth,
)
from fleetfit.proto.methods import QUIET_OTHERS_PERCENT, QUIET_STEAL_PERCENT
from fleetfit.proto.printable import make_printable
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.chain_summary import summarize_chain
from fleetfit.server.report.energy import energy_of_a_call
from fleetfit.server.report.engines import engines_of, what_engines_left
from fleetfit.server.report.figures import figure
from fleetfit.server.report.gaps import Against, with_gap
from fleetfit.server.report.profiles import summarize_profile
from fleetfit.server.report.scaling_figures import scaling_of
from fleetfit.server.report.summary import (
    EnergySummary,
    Figure,
    Latency,
    MeasurementSummary,
    MemorySummary,
    MetricSummary,
    OutputsSummary,
    Sampling,
    Seen,
    Sustained,
)
from fleetfit.server.selection.words import interval

_MS: Final = 1e-6
_ENDS: Final = {
    measurement_pb2.SAMPLING_END_PRECISE: "precise",
    measurement_pb2.SAMPLING_END_TIME: "time",
    measurement_pb2.SAMPLING_END_PROCESSES: "processes",
    measurement_pb2.SAMPLING_END_ENGINES: "engines",
}
_GPU_MEMORY: Final = (
    "GPU memory is what less of it was free after the samples than before loading; where the GPU shares the processor's memory, "
    "as on a Jetson, what others took or gave back meanwhile is in it"
)
# A device sends what its lease allows; more than this is not a measurement.
_MOST_BYTES: Final = 256 << 20


def read_result(path: Path) -> measurement_pb2.MeasurementResult:
    """A stored raw result. Raises ValueError where it is none."""
    with gzip.open(path) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"the result has more than {_MOST_BYTES >> 20} MiB; it is no measurement")
    result = measurement_pb2.MeasurementResult.FromString(content)
    make_printable(result)
    return result


def summarize(raw: measurement_pb2.MeasurementResult) -> MeasurementSummary:
    """Every figure that the raw samples carry, each with its interval; what they cannot carry is None and noted."""
    status = measurement_pb2.MeasurementStatus.Name(raw.status).removeprefix("MEASUREMENT_STATUS_").lower()
    if status == "unspecified":
        status = "crashed"
    notes = list(raw.notes)
    latency = _latency(raw, notes)
    ratio, sampling = _ratio(raw, notes)
    return MeasurementSummary(
        status=status,
        message=raw.message,
        latency=latency,
        ratio=ratio,
        sampling=sampling,
        engines=engines_of(raw, notes),
        sustained=_sustained(raw, notes),
        chain=summarize_chain(raw, notes),
        peak_memory_bytes=_memory(raw, notes),
        memory=_memory_apart(raw),
        energy=_energy(raw, notes),
        metric=_metric(raw, notes),
        outputs=_outputs(raw),
        scaling=scaling_of(raw),
        profile=summarize_profile(raw),
        trust=_trust(raw, notes),
        runtime=raw.runtime,
        runtime_version=raw.runtime_version,
        agent_version=raw.agent_version,
        method_version=raw.method_version,
        condition=dict(raw.condition),
        seen=_seen(raw),
        notes=notes,
    )


def _latency(raw: measurement_pb2.MeasurementResult, notes: list[str]) -> Latency | None:
    """p50 knows the spread between processes; percentiles are of all processes' samples, so that they know it too."""
    processes = candidate_samples(raw)
    if not processes:
        return None
    count = sum(len(samples) for samples in processes)
    engines = candidate_engines(raw)
    p95, p99 = (percentile_interval(percent, processes, engines) for percent in (95, 99))
    for name, found in (("p95", p95), ("p99", p99)):
        if found is None:
            notes.append(f"{name} is not given: {count} samples cannot carry it")
    p50 = figure(median_interval(processes, engines))
    if p50.low is None:
        notes.append("the median has no interval: one process says nothing about the spread between processes")
    steady = (not raw.HasField("solo") or raw.solo.steady) and all(run.steady for run in raw.pairs)
    if not steady:
        notes.append("the samples still drifted when the warm-up's time was over")
    return Latency(
        p50_ms=p50,
        p95_ms=p95.value if p95 else None,
        p99_ms=p99.value if p99 else None,
        p95_bounds=bounds(p95),
        p99_bounds=bounds(p99),
        samples=count,
        processes=len(processes),
        load_ms=raw.solo.load_ns * _MS,
        first_ms=raw.solo.first_inference_ns * _MS,
        steady=steady,
    )


def _ratio(raw: measurement_pb2.MeasurementResult, notes: list[str]) -> tuple[Figure | None, Sampling | None]:
    found = pair_ratio(raw.pairs)
    if found is None:
        return None, None
    ratio, reached = figure(found), half_width(found)
    if ratio.low is None:
        notes.append("the ratio has no interval: one process says nothing about the spread between processes")
    if raw.pairs_end not in _ENDS or not 0 < raw.precision < math.inf:
        return ratio, None
    sampling = Sampling(
        end=_ENDS[raw.pairs_end],
        asked=raw.precision,
        reached=reached if math.isfinite(reached) else None,
        processes=len(raw.pairs),
    )
    if sampling.end == "engines" and sampling.reached is not None:
        notes.append(what_engines_left(sampling))
    elif sampling.end != "precise" and sampling.reached is not None:
        used = "the time for pairs was" if sampling.end == "time" else "all processes for pairs were"
        notes.append(
            f"its speed beside the original's is known within {100 * sampling.reached:.2g} % either way, not within the "
            f"{100 * sampling.asked:.2g} % asked for: {used} used up after {sampling.processes}"
            f"{' processes' if sampling.end == 'time' else ''}"
        )
    return ratio, sampling


def _sustained(raw: measurement_pb2.MeasurementResult, notes: list[str]) -> Sustained | None:
    found = warmth(raw)
    if found is None:
        return None
    # Taken right before and right after the build ran alone.
    before, after = (
        next((f"{r.temperature_celsius:.0f} °C" for r in some if r.HasField("temperature_celsius")), "")
        for some in (raw.readings[:1], raw.readings[1:2])
    )
    notes.append(
        f"after {found.seconds:.0f} s without a pause a call takes {number(found.sustained.value)} ms, "
        f"{number(found.slowdown.value)} times as long as in the first seconds{interval(figure(found.slowdown))}"
        + (f"; the device went from {before} to {after}" if before and after else "")
    )
    return Sustained(
        burst_ms=figure(found.burst),
        p50_ms=figure(found.sustained),
        p95_ms=found.sustained_p95,
        slowdown=figure(found.slowdown),
        seconds=found.seconds,
    )


def _memory(raw: measurement_pb2.MeasurementResult, notes: list[str]) -> int | None:
    found = peak_memory(raw)
    if found is None and raw.HasField("solo"):
        notes.append("peak memory is not given: the device does not tell it")
    if raw.solo.HasField("gpu_memory_bytes"):
        notes.append(_GPU_MEMORY)
    return found


def _memory_apart(raw: measurement_pb2.MeasurementResult) -> MemorySummary | None:
    solo = raw.solo
    if solo.floor_memory_bytes <= 0 or solo.load_peak_memory_bytes <= 0 or solo.run_peak_memory_bytes <= 0:
        return None
    return MemorySummary(
        load_bytes=max(0, solo.load_peak_memory_bytes - solo.floor_memory_bytes),
        run_bytes=max(0, solo.run_peak_memory_bytes - solo.floor_memory_bytes),
        proportional_bytes=solo.shared_in_part_bytes or None,
        gpu_bytes=solo.gpu_memory_bytes if solo.HasField("gpu_memory_bytes") else None,
        no_gpu_bytes_because=solo.no_gpu_memory_because,
    )


def _energy(raw: measurement_pb2.MeasurementResult, notes: list[str]) -> EnergySummary | None:
    if raw.no_energy_because:
        notes.append(f"energy was not measured: {raw.no_energy_because}")
    if not raw.HasField("energy"):
        return None
    found = energy_of_a_call(raw.energy)
    if found is None:
        notes.append(f"energy is not given: the meter {raw.energy.meter} said too little meanwhile")
    elif found.joules.low is not None and found.joules.low <= 0:
        notes.append(f"the energy of a call cannot be told apart from nothing by the meter {found.meter}")
    return found


def _metric(raw: measurement_pb2.MeasurementResult, notes: list[str]) -> MetricSummary | None:
    if not raw.HasField("metric") or not raw.metric.scores:
        return None
    # From the scores, not from the value beside them: every figure can be computed again.
    scores = scores_of(raw)
    if raw.metric.resumed > 0:
        notes.append(
            f"{raw.metric.metric} was interrupted on the device, and went on after {raw.metric.resumed} samples"
        )
    value = metric_value(raw.metric.metric, scores)
    return MetricSummary(name=raw.metric.metric, split=raw.metric.split, figure=figure(value), n=len(scores))


def _outputs(raw: measurement_pb2.MeasurementResult) -> OutputsSummary | None:
    if not raw.metric.HasField("outputs"):
        return None
    named = raw.metric.outputs
    return OutputsSummary(sha256=named.sha256, size_bytes=named.size_bytes, split=raw.metric.split, n=raw.metric.count)


def _seen(raw: measurement_pb2.MeasurementResult) -> Seen | None:
    looks = [*raw.readings, *raw.during]
    if not looks:
        return None

    present = [{field.name: value for field, value in look.ListFields()} for look in looks]

    def told(name: str) -> list[Any]:
        return [fields[name] for fields in present if name in fields]

    heat, clock, free = told("temperature_celsius"), told("frequency_hz"), told("available_memory_bytes")
    return Seen(
        celsius=(min(heat), max(heat)) if heat else None,
        clock_hz=(min(clock), max(clock)) if clock else None,
        cpu_pressure_percent=max(told("cpu_pressure_percent"), default=None),
        memory_pressure_percent=max(told("memory_pressure_percent"), default=None),
        steal_percent=max(told("steal_percent"), default=None),
        least_free_memory_bytes=min(free, default=None),
        throttled_by=sorted({reason for look in looks for reason in look.throttled_by}),
    )


def _trust(raw: measurement_pb2.MeasurementResult, notes: list[str]) -> str:
    """`throttled` where the device said so, `noisy` where others worked beside it, else `clean`."""
    noisy = False
    if raw.disturbance:
        notes.append(f"the device was not quiet: {raw.disturbance}")
        noisy = True
    if raw.HasField("solo") and not raw.quiet and not raw.disturbance:
        noisy = True
    others = [r.other_cpu_percent for r in raw.readings if r.HasField("other_cpu_percent")]
    stolen = [r.steal_percent for r in raw.readings if r.HasField("steal_percent")]
    if max(others, default=0.0) > QUIET_OTHERS_PERCENT and not raw.disturbance:
        notes.append(f"other processes used up to {max(others):.0f} % of the processors meanwhile")
        noisy = True
    if max(stolen, default=0.0) > QUIET_STEAL_PERCENT and not raw.disturbance:
        notes.append(f"the hypervisor took up to {max(stolen):.0f} % of the processor time meanwhile")
        noisy = True
    looks = [*raw.readings, *raw.during]
    if any(reading.throttled for reading in looks):
        temperatures = [r.temperature_celsius for r in looks if r.HasField("temperature_celsius")]
        at = f" at up to {max(temperatures):.0f} °C" if temperatures else ""
        reasons = dict.fromkeys(reason for reading in looks for reason in reading.throttled_by)
        why = f" ({', '.join(reasons)})" if reasons else ""
        seen = sum(reading.throttled for reading in looks)
        notes.append(f"the device throttled its clocks{at}{why}, in {seen} of {len(looks)} looks at it")
        return "throttled"
    return "noisy" if noisy else "clean"


def write(content: str, out: Path) -> None:
    """Put a result where the server looks for it, whole or not at all."""
    fresh = out.with_name(out.name + ".new")
    fresh.write_text(content)
    os.replace(fresh, out)


def main(arguments: Sequence[str]) -> int:
    """Summarize one result."""
    source, out = Path(arguments[0]), Path(arguments[1])
    raw = read_result(source)
    summary = summarize(raw)
    if len(arguments) > 2 and summary.metric is not None:
        metric, notes = with_gap(summary.metric, raw, Against.model_validate_json(arguments[2]))
        summary = summary.model_copy(update={"metric": metric, "notes": [*summary.notes, *notes]})
    write(summary.model_dump_json(), out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
