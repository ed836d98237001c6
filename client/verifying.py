"""A report's figures computed again from the raw samples: whoever reads a report need not believe who printed it.

Needs NumPy, as whatever computes figures does.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fleetfit.client.verifying_gap import Read, verified_gap
from fleetfit.client.verifying_profile import profile_figures
from fleetfit.client.verifying_scaling import scaling_figures
from fleetfit.core.errors import InvalidData
from fleetfit.core.statistics import metric_value, paired_drop
from fleetfit.core.statistics_latency import Floats, half_width, median_interval, percentile_interval, quotient_interval
from fleetfit.core.statistics_student import Interval
from fleetfit.proto.chains import PART_LINKS, chain_ratio, chain_samples
from fleetfit.proto.energy import energy_of_a_call
from fleetfit.proto.figures import (
    bounds,
    candidate_engines,
    candidate_samples,
    engines_apart,
    pair_ratio,
    peak_memory,
    scores_of,
    warmth,
)
from fleetfit.proto.v1 import measurement_pb2

Raw = measurement_pb2.MeasurementResult
# Where a raw result can be had: its digest and its size in bytes.
Fetch = Callable[[str, int], Raw]
_UNITY: Final = Interval(1.0, 1.0, 1.0)
_NOTHING: Final = Interval(0.0, 0.0, 0.0)
# The same samples give the same figures to the last digits, whatever the processor.
_RELATIVE: Final = 1e-9
_MOST_BYTES: Final = 256 << 20


@dataclass(frozen=True)
class Difference:
    """A figure that does not come out as it is printed; `figure` is its place in the candidate's part of the report."""

    device: str
    candidate: str
    figure: str
    printed: Any
    computed: Any


@dataclass
class Verification:
    """What came of it: how many figures were computed again from how many raw results, and which differ.

    `skipped` says of figures that cannot be computed again here why.
    """

    figures: int = 0
    results: int = 0
    differences: list[Difference] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every figure that could be computed again came out as printed, and there were any."""
        return self.figures > 0 and not self.differences


@dataclass(frozen=True)
class _Row:
    """One candidate of a device, with what was measured of it."""

    report: Mapping[str, Any]
    raw: Raw
    test: Raw | None
    scaling: Raw | None
    profile: Raw | None
    ratio: Interval | None

    @property
    def condition(self) -> tuple[int, int]:
        return int(self.report["condition"]["threads"]), int(self.report["condition"]["batch"])

    @property
    def name(self) -> str:
        threads, batch = self.condition
        return f"{self.report['recipe']} ({self.report['runtime']}, {threads} thr, batch {batch})"

    @property
    def is_original(self) -> bool:
        return bool(self.report.get("role") == "original")


def read_raw(path: Path) -> Raw:
    """A raw result as agents send it. Raises InvalidData where it is none."""
    try:
        with gzip.open(path) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise InvalidData(f"a raw result has more than {_MOST_BYTES >> 20} MiB; it is no measurement")
        return Raw.FromString(content)
    except (OSError, EOFError, ValueError) as error:
        raise InvalidData(f"a raw result cannot be read ({error}); its server is newer, or lost it") from error


def verify_report(report: Mapping[str, Any], fetch: Fetch, read: Read | None = None) -> Verification:
    """Compute every figure of `report` (schema 1) again that follows from raw samples, and compare.

    Without `read`, which gives what builds gave on the server, the comparisons with it are skipped.
    """
    found = Verification()
    for device in report.get("devices") or []:
        rows = []
        for candidate in device.get("candidates") or []:
            row = _fetched(candidate, fetch, found)
            if row is not None:
                rows.append(row)
            elif candidate.get("status") == "measured":
                found.skipped.append(f"{device['device']}: {candidate['recipe']}: the report names no raw samples")
        for row in rows:
            _compare(found, str(device["device"]), row, _figures_of(device, row, rows, found, read))
    found.skipped = list(dict.fromkeys(found.skipped))
    return found


def _fetched(candidate: Mapping[str, Any], fetch: Fetch, found: Verification) -> _Row | None:
    named = candidate.get("raw") or {}
    if "measured" not in named:
        return None
    raws = {kind: fetch(str(one["sha256"]), int(one["size_bytes"])) for kind, one in named.items()}
    found.results += len(raws)
    raw = raws["measured"]
    return _Row(candidate, raw, raws.get("test"), raws.get("scaling"), raws.get("profile"), pair_ratio(raw.pairs))


def _compare(found: Verification, device: str, row: _Row, figures: Iterator[tuple[str, Any, Any]]) -> None:
    for name, printed, computed in figures:
        found.figures += 1
        if not _agree(printed, computed):
            found.differences.append(Difference(device, row.name, name, printed, computed))


def _agree(printed: Any, computed: Any) -> bool:
    if isinstance(printed, list | tuple) and isinstance(computed, list | tuple):
        return len(printed) == len(computed) and all(map(_agree, printed, computed))
    if printed is None or computed is None or isinstance(printed, str):
        return bool(printed == computed)
    return math.isclose(printed, computed, rel_tol=_RELATIVE, abs_tol=1e-12)


def _figures_of(
    device: Mapping[str, Any], row: _Row, rows: Sequence[_Row], found: Verification, read: Read | None
) -> Iterator[tuple[str, Any, Any]]:
    """Every figure of a candidate: its name, as it is printed, and as it comes out."""
    yield from _latency(row)
    yield from _speed(device, row, rows)
    yield from _sustained(row)
    yield from _chain(row)
    yield from _memory(row)
    yield from _energy(row)
    yield from scaling_figures(row.report.get("scaling"), row.scaling)
    yield from profile_figures(row.report.get("profile"), row.profile)
    for name, raw in (("metric", row.raw), ("test_metric", row.test)):
        printed = row.report.get(name)
        if raw is None or printed is None:
            continue
        if not raw.metric.scores:
            found.skipped.append(f"{name}: its scores came from the user's own metric")
            continue
        yield from _with_bounds(name, printed, metric_value(raw.metric.metric, scores_of(raw)))
        yield f"{name}.n", printed.get("n"), len(scores_of(raw))
        if printed.get("gap") is not None:
            yield from verified_gap(name, printed, raw, found.skipped, read)
    yield from _drop("drop", row, rows, lambda one: one.raw)
    yield from _drop("test_drop", row, rows, lambda one: one.test)


def _with_bounds(
    name: str, printed: Mapping[str, Any], computed: Interval, key: str = "value"
) -> Iterator[tuple[str, Any, Any]]:
    yield f"{name}.{key}", printed.get(key), computed.value
    yield f"{name}.ci95", printed.get("ci95"), list(bounds(computed))


def _latency(row: _Row) -> Iterator[tuple[str, Any, Any]]:
    printed, processes = row.report.get("latency_ms"), candidate_samples(row.raw)
    if printed is None or not processes:
        yield "latency_ms", printed, None if not processes else "samples"
        return
    engines = candidate_engines(row.raw)
    yield from _times("latency_ms", printed, processes, engines)
    built = row.report.get("engines")
    if built is not None:
        yield "engines.built", built.get("built"), len(set(engines))
        yield "engines.apart", built.get("apart"), engines_apart(row.raw)
    yield "latency_ms.load", printed.get("load"), row.raw.solo.load_ns * 1e-6
    yield "latency_ms.first", printed.get("first"), row.raw.solo.first_inference_ns * 1e-6


def _times(
    name: str, printed: Mapping[str, Any], processes: Sequence[Floats], engines: Sequence[int] = ()
) -> Iterator[tuple[str, Any, Any]]:
    """Median and percentiles of a call, with what they are of."""
    yield from _with_bounds(name, printed, median_interval(processes, engines), "p50")
    for percent in (95, 99):
        computed = percentile_interval(percent, processes, engines)
        yield f"{name}.p{percent}", printed.get(f"p{percent}"), computed.value if computed else None
        yield f"{name}.p{percent}_ci95", printed.get(f"p{percent}_ci95"), list(bounds(computed))
    yield f"{name}.samples", printed.get("samples"), sum(map(len, processes))
    yield f"{name}.processes", printed.get("processes"), len(processes)


def _sustained(row: _Row) -> Iterator[tuple[str, Any, Any]]:
    printed, computed = row.report.get("sustained_ms"), warmth(row.raw)
    if printed is None or computed is None:
        yield "sustained_ms", printed, None if computed is None else "samples"
        return
    for name, interval in (("burst", computed.burst), ("slowdown", computed.slowdown)):
        yield f"sustained_ms.{name}", printed.get(name), interval.value
        yield f"sustained_ms.{name}_ci95", printed.get(f"{name}_ci95"), list(bounds(interval))
    yield from _with_bounds("sustained_ms", printed, computed.sustained, "p50")
    yield "sustained_ms.p95", printed.get("p95"), computed.sustained_p95
    yield "sustained_ms.seconds", printed.get("seconds"), computed.seconds


def _chain(row: _Row) -> Iterator[tuple[str, Any, Any]]:
    """End to end, and part by part."""
    printed, processes = row.report.get("end_to_end_ms"), chain_samples(row.raw)
    if printed is None or not processes:
        yield "end_to_end_ms", printed, None if not processes else "samples"
        return
    yield from _times("end_to_end_ms", printed, processes)
    speedup, ratio = printed.get("speedup"), _UNITY if row.is_original else chain_ratio(row.raw)
    if speedup is not None and ratio is not None:
        yield from _with_bounds("end_to_end_ms.speedup", speedup, ratio, "ratio")
    else:
        yield "end_to_end_ms.speedup", speedup, ratio
    for name, link in PART_LINKS.items():
        part, found = (row.report.get("parts_ms") or {}).get(name), chain_samples(row.raw, link)
        if part is None or not found:
            yield f"parts_ms.{name}", part, None if not found else "samples"
            continue
        yield from _with_bounds(f"parts_ms.{name}", part, median_interval(found), "p50")
        yield f"parts_ms.{name}.samples", part.get("samples"), sum(map(len, found))


def _memory(row: _Row) -> Iterator[tuple[str, Any, Any]]:
    yield "peak_memory_bytes", row.report.get("peak_memory_bytes"), peak_memory(row.raw)
    printed, solo = row.report.get("memory"), row.raw.solo
    if printed is not None:
        yield (
            "memory.load_bytes",
            printed.get("load_bytes"),
            max(0, solo.load_peak_memory_bytes - solo.floor_memory_bytes),
        )
        if "gpu_bytes" in printed:
            told = solo.gpu_memory_bytes if solo.HasField("gpu_memory_bytes") else None
            yield "memory.gpu_bytes", printed["gpu_bytes"], told
        yield "memory.run_bytes", printed.get("run_bytes"), max(0, solo.run_peak_memory_bytes - solo.floor_memory_bytes)


def _energy(row: _Row) -> Iterator[tuple[str, Any, Any]]:
    printed = row.report.get("energy")
    computed = energy_of_a_call(row.raw.energy) if row.raw.HasField("energy") else None
    if printed is None or computed is None:
        yield "energy", printed, None if computed is None else "samples"
        return
    yield from _with_bounds("energy", printed, computed.joules, "joules")
    yield "energy.idle_watts", printed.get("idle_watts"), computed.idle_watts
    yield "energy.busy_watts", printed.get("busy_watts"), computed.busy_watts


def _speed(device: Mapping[str, Any], row: _Row, rows: Sequence[_Row]) -> Iterator[tuple[str, Any, Any]]:
    speedup = row.report.get("speedup") or {}
    control = _control(device, row)
    if control is not None and row.ratio is not None:
        yield from _with_bounds("control", control["ratio"], row.ratio, "ratio")
    group = _Group(device, [one for one in rows if one.condition == row.condition])
    for name, computed in (("original", group.versus_original(row)), ("best_uncompressed", group.versus_best(row))):
        printed = speedup.get(name)
        if printed is not None and computed is not None:
            yield from _with_bounds(f"speedup.{name}", printed, computed, "ratio")
        else:
            yield f"speedup.{name}", printed, computed
    sampling = row.report.get("sampling")
    if sampling is not None and row.ratio is not None:
        reached = half_width(row.ratio)
        yield "sampling.reached", sampling.get("reached"), reached if math.isfinite(reached) else None
        yield "sampling.processes", sampling.get("processes"), len(row.raw.pairs)


def _control(device: Mapping[str, Any], row: _Row) -> Mapping[str, Any] | None:
    """The control that an original is: those of other runtimes than the first were timed beside the first's instead."""
    if not row.is_original:
        return None
    wanted = (row.report["runtime"], *row.condition)
    controls: Sequence[Mapping[str, Any]] = device.get("controls") or []
    return next((one for one in controls if (one["runtime"], one["threads"], one["batch"]) == wanted), None)


class _Group:
    """The candidates of one condition, and how their speeds compare: what docs/measurement.md says of chains of ratios."""

    def __init__(self, device: Mapping[str, Any], rows: Sequence[_Row]) -> None:
        self._originals = {row.report["runtime"]: row for row in rows if row.is_original}
        self._reference = next((row for row in rows if _control(device, row) is not None), None)
        # Which build is the best uncompressed one the report says: the one that is compared with itself.
        self._best = next((row for row in rows if row.report.get("baseline") and _is_itself(row)), None)

    def versus_original(self, row: _Row) -> Interval | None:
        return _UNITY if row.is_original else row.ratio

    def versus_best(self, row: _Row) -> Interval | None:
        best = self._best
        if best is None:
            return None
        if row is best:
            return _UNITY
        ratio_of = self.versus_original if row.report["runtime"] == best.report["runtime"] else self._speed
        ours, theirs = ratio_of(row), ratio_of(best)
        if ours is None or theirs is None:
            return None
        return ours if theirs is _UNITY else quotient_interval(ours, theirs)

    def _speed(self, row: _Row) -> Interval | None:
        """Against the original that the others were timed beside, by way of the original in the row's runtime."""
        reference, own = self._reference, self._originals.get(row.report["runtime"])
        if row is reference:
            return _UNITY
        if reference is None or row is own or row.report["runtime"] == reference.report["runtime"]:
            return row.ratio
        if row.ratio is None or own is None or own.ratio is None:
            return None
        of_own = own.ratio
        if of_own.low <= 0 or math.isinf(of_own.high):
            return Interval(row.ratio.value * of_own.value, 0.0, math.inf)
        return quotient_interval(row.ratio, Interval(1 / of_own.value, 1 / of_own.high, 1 / of_own.low))


def _is_itself(row: _Row) -> bool:
    printed = (row.report.get("speedup") or {}).get("best_uncompressed")
    return printed is not None and printed.get("ratio") == 1 and list(printed.get("ci95") or ()) == [1, 1]


def _drop(
    name: str, row: _Row, rows: Sequence[_Row], raw_of: Callable[[_Row], Raw | None]
) -> Iterator[tuple[str, Any, Any]]:
    """The loss against the baseline that the report names; it may be the one in another runtime or condition."""
    printed, raw = row.report.get(name), raw_of(row)
    if printed is None or raw is None or not raw.metric.scores:
        return
    computed = []
    for one in sorted(
        rows, key=lambda one: (one.condition != row.condition, one.report["runtime"] != row.report["runtime"])
    ):
        other = raw_of(one)
        if one.report["recipe"] != printed["against"] or not one.report.get("baseline") or other is None:
            continue
        if one is row:
            computed.append(_NOTHING)
        elif len(scores_of(other)) == len(scores_of(raw)):
            computed.append(paired_drop(raw.metric.metric, scores_of(raw), scores_of(other)))
    options = [list(_with_bounds(name, printed, one)) for one in computed]
    fitting = [option for option in options if all(_agree(a, b) for _, a, b in option)]
    yield from (fitting or options or [[(name, printed, None)]])[0]
