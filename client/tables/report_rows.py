"""A report's candidates, scaling points and operators as flat rows: what its table, its CSV and its Markdown are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

# A scaling report's curves, and what there is more of from point to point.
CURVES: Final = (("threads", "threads"), ("batch", "batch"), ("instances", "processes"))


@dataclass(frozen=True)
class Span:
    """A figure with its 95 % interval; a bound that is not known is None."""

    value: float
    low: float | None
    high: float | None
    tie: bool = False


@dataclass(frozen=True)
class Row:
    """One candidate. Figures that were not measured are None."""

    device: str
    emulated: bool
    variant: str
    recipe: str
    runtime: str
    threads: int | None
    batch: int | None
    status: str
    baseline: bool
    selected: bool
    meets_limits: bool
    p50_ms: Span | None
    p95_ms: float | None
    p99_ms: float | None
    versus_original: Span | None
    versus_best_uncompressed: Span | None
    metric: Span | None
    test_metric: Span | None
    drop: Span | None
    size_bytes: int | None
    parameters: int | None
    peak_memory_bytes: int | None
    energy_joules: Span | None
    energy_meter: str
    end_to_end_ms: Span | None
    end_to_end_p95_ms: float | None
    end_to_end_speedup: Span | None
    pre_ms: float | None
    core_ms: float | None
    post_ms: float | None
    trust: str
    tie_with: tuple[str, ...]
    rejected_because: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ScalingRow:
    """One point of one curve of a candidate. `more` says of what: threads, batch or processes."""

    device: str
    emulated: bool
    variant: str
    recipe: str
    runtime: str
    more: str
    processes: int
    threads: int
    batch: int
    status: str
    samples_per_second: Span | None
    times_the_first: Span | None
    p50_ms: Span | None
    p95_ms: Span | None
    memory_bytes_each: Span | None
    rounds: int
    calls: int
    message: str
    trust: str


@dataclass(frozen=True)
class OperatorRow:
    """One operator of a candidate, as the runtime's profiler timed it: `share` is that of all operators' time."""

    device: str
    emulated: bool
    variant: str
    recipe: str
    runtime: str
    name: str
    operator: str
    placed: str
    number_format: str
    runs_per_call: float
    ms: float
    share: float
    calls: int
    trust: str


def scaling_rows(device: Mapping[str, Any]) -> Iterator[ScalingRow]:
    """Every point of every candidate whose scaling was measured, curve by curve."""
    for c in device.get("candidates") or []:
        scaling = c.get("scaling") or {}
        for key, more in CURVES:
            for point in (scaling.get(key) or {}).get("points") or []:
                yield ScalingRow(
                    **_whose(device, c),
                    more=more,
                    processes=int(point.get("instances") or 0),
                    threads=int(point.get("threads") or 0),
                    batch=int(point.get("batch") or 0),
                    status=str(point.get("status", "")),
                    samples_per_second=_span(point.get("throughput")),
                    times_the_first=_span(point.get("gain")),
                    p50_ms=_span(point.get("p50_ms")),
                    p95_ms=_span(point.get("p95_ms")),
                    memory_bytes_each=_span(point.get("memory_bytes")),
                    rounds=int(point.get("rounds") or 0),
                    calls=int(point.get("calls") or 0),
                    message=str(point.get("message") or ""),
                    trust=str(scaling.get("trust") or ""),
                )


def operator_rows(device: Mapping[str, Any]) -> Iterator[OperatorRow]:
    """Every operator of every candidate that was profiled, the largest of each first."""
    for c in device.get("candidates") or []:
        profile = c.get("profile") or {}
        for one in profile.get("operators") or []:
            yield OperatorRow(
                **_whose(device, c),
                name=str(one.get("name") or ""),
                operator=str(one.get("operator") or ""),
                placed=str(one.get("placed") or ""),
                number_format=str(one.get("number_format") or ""),
                runs_per_call=one.get("runs") or 0.0,
                ms=one.get("ms") or 0.0,
                share=one.get("share") or 0.0,
                calls=int(profile.get("calls") or 0),
                trust=str(profile.get("trust") or ""),
            )


def _whose(device: Mapping[str, Any], c: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "device": str(device.get("device", "")),
        "emulated": bool(device.get("emulated")),
        **{key: str(c.get(key, "")) for key in ("variant", "recipe", "runtime")},
    }


def rows_of(report: Mapping[str, Any], device: Mapping[str, Any]) -> list[Row]:
    """The rows of one device of a report, in the report's order."""
    higher_is_better = bool((report.get("metric") or {}).get("higher_is_better", True))
    candidates = device.get("candidates") or []
    reference = next((_span(c.get("metric")) for c in candidates if c.get("baseline")), None)
    return [_row(device, candidate, reference, higher_is_better) for candidate in candidates]


def _row(device: Mapping[str, Any], c: Mapping[str, Any], reference: Span | None, higher_is_better: bool) -> Row:
    condition, latency = c.get("condition") or {}, c.get("latency_ms") or {}
    speedup = c.get("speedup") or {}
    whole, parts = c.get("end_to_end_ms") or {}, c.get("parts_ms") or {}
    metric = _span(c.get("metric"))
    drop = _span(c.get("drop"))
    if drop is None and metric is not None and reference is not None:
        worse = reference.value - metric.value if higher_is_better else metric.value - reference.value
        drop = Span(worse, None, None)
    selected = device.get("selected")
    return Row(
        **_whose(device, c),
        threads=condition.get("threads"),
        batch=condition.get("batch"),
        status=str(c.get("status", "")),
        baseline=bool(c.get("baseline")),
        selected=_is_selected(device, c) if selected else False,
        meets_limits=bool(c.get("meets_limits")),
        p50_ms=_span(latency, "p50"),
        p95_ms=latency.get("p95"),
        p99_ms=latency.get("p99"),
        versus_original=_span(speedup.get("original"), "ratio"),
        versus_best_uncompressed=_span(speedup.get("best_uncompressed"), "ratio"),
        metric=metric,
        test_metric=_span(c.get("test_metric")),
        drop=drop,
        size_bytes=c.get("size_bytes"),
        parameters=c.get("parameters"),
        peak_memory_bytes=c.get("peak_memory_bytes"),
        energy_joules=_span(c.get("energy"), "joules"),
        energy_meter=_meter(c.get("energy") or {}),
        end_to_end_ms=_span(whole, "p50"),
        end_to_end_p95_ms=whole.get("p95"),
        end_to_end_speedup=_span(whole.get("speedup"), "ratio"),
        pre_ms=(parts.get("pre") or {}).get("p50"),
        core_ms=(parts.get("core") or {}).get("p50"),
        post_ms=(parts.get("post") or {}).get("p50"),
        trust=str(c.get("trust") or ""),
        tie_with=tuple(c.get("tie_with") or ()),
        rejected_because=tuple(c.get("rejected_because") or ()),
        notes=tuple(c.get("notes") or ()),
    )


def _is_selected(device: Mapping[str, Any], c: Mapping[str, Any]) -> bool:
    """Whether a candidate is the chosen one: the variant, in the runtime and under the condition that it was chosen for."""
    if "selected" in c:
        return bool(c["selected"])
    if c.get("variant") != device.get("selected"):
        return False
    same = [one for one in device.get("candidates") or [] if one.get("variant") == device.get("selected")]
    if len(same) == 1:
        return True
    # The same variant under several conditions: the one that no reason speaks against.
    accepted = [one for one in same if not one.get("rejected_because") and one.get("meets_limits")]
    return c is (accepted or same)[0]


def _span(figure: Mapping[str, Any] | None, key: str = "value") -> Span | None:
    if not figure or figure.get(key) is None:
        return None
    low, high = _bounds(figure)
    return Span(figure[key], low, high, tie=bool(figure.get("tie")))


def _meter(energy: Mapping[str, Any]) -> str:
    return ": ".join(str(energy[key]) for key in ("meter", "covers") if energy.get(key))


def _bounds(figure: Mapping[str, Any]) -> Sequence[float | None]:
    bounds = figure.get("ci95") or (None, None)
    return bounds[0], bounds[1]


TABLES: Final[Mapping[str, tuple[type, Callable[[Mapping[str, Any], Mapping[str, Any]], Iterable[Any]]]]] = {
    "candidates": (Row, rows_of),
    "scaling": (ScalingRow, lambda report, device: scaling_rows(device)),
    "operators": (OperatorRow, lambda report, device: operator_rows(device)),
}
"""What a CSV may have a line for, as `report --table` calls it, from a report and one of its devices."""
