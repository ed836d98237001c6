"""The chain of a model with parts as it is stored: see fleetfit.proto.chains. Needs NumPy, so for children of the server only."""

from __future__ import annotations

from fleetfit.core.statistics_latency import median_interval, percentile_interval
from fleetfit.proto.chains import PART_LINKS, chain_ratio, chain_samples
from fleetfit.proto.figures import bounds
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.chains import NOT_MEASURED
from fleetfit.server.report.figures import figure
from fleetfit.server.report.summary import Chain, PartTime


def summarize_chain(raw: measurement_pb2.MeasurementResult, notes: list[str]) -> Chain | None:
    """End to end and each part with its interval, and the ratio; why something is missing is added to `notes`."""
    if raw.no_chain_because:
        notes.append(f"{NOT_MEASURED}{raw.no_chain_because}")
    processes = chain_samples(raw)
    if not processes:
        return None
    p95, p99 = percentile_interval(95, processes), percentile_interval(99, processes)
    count, ratio = sum(map(len, processes)), chain_ratio(raw)
    if p95 is None:
        notes.append(f"p95 end to end is not given: {count} samples cannot carry it")
    steady = all(run.steady for run in raw.chains)
    if not steady:
        notes.append("the chain still drifted when the warm-up's time was over")
    parts = {name: chain_samples(raw, link) for name, link in PART_LINKS.items()}
    return Chain(
        p50_ms=figure(median_interval(processes)),
        p95_ms=p95.value if p95 else None,
        p99_ms=p99.value if p99 else None,
        p95_bounds=bounds(p95),
        p99_bounds=bounds(p99),
        samples=count,
        processes=len(processes),
        steady=steady,
        ratio=figure(ratio) if ratio is not None else None,
        parts={
            name: PartTime(p50_ms=figure(median_interval(found)), samples=sum(map(len, found)))
            for name, found in parts.items()
            if found
        },
    )
