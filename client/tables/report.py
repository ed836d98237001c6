"""A report as people read it in a terminal: for each device a table, the choice and why, and why not the others."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fleetfit.client.tables.profile import profile_parts
from fleetfit.client.tables.report_rows import Row, Span, rows_of
from fleetfit.client.tables.scaling import scaling_parts
from fleetfit.client.tables.words import condition, job_id, significant, size
from fleetfit.core.figures import joules

if TYPE_CHECKING:
    from rich.console import RenderableType

_NAME_WIDTH: Final = 14


@dataclass(frozen=True)
class _Condition:
    threads: int | None
    batch: int | None


def report_parts(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What to print, from top to bottom."""
    metric = report.get("metric") or {}
    yield Text(f"job {job_id(report['job'])} of {report['model']}", style="bold")
    if metric.get("name"):
        better = "higher" if metric.get("higher_is_better") else "lower"
        yield Text(f"judged by {metric['name']}, in {metric.get('unit') or 'its own unit'}; {better} is better")
    if limits := limits_sentence(report.get("limits") or {}, parted=bool(report.get("parts"))):
        yield Text(limits)
    for device in report.get("devices") or []:
        yield Text()
        yield from _device_parts(report, device)
    yield Text()
    yield Text(
        "Below each figure stands its 95 % interval. A ratio of 2 means twice as fast; faster is only what has its whole "
        f"interval above 1; a tie is what has 1 in it{_margin(report)}.",
        style="dim",
    )


def _margin(report: Mapping[str, Any]) -> str:
    margin = report.get("tie_margin")
    return f", or all of it within {100 * margin:g} % of 1" if margin else ""


def limits_sentence(limits: Mapping[str, Any], *, parted: bool = False) -> str:
    """The job's limits in one line; empty where there are none. `parted`: the model has parts that count end to end only."""
    words = []
    if limits.get("max_drop_points") is not None:
        words.append(f"a drop of at most {limits['max_drop_points']:g}")
    if limits.get("max_drop_percent") is not None:
        words.append(f"a drop of at most {limits['max_drop_percent']:g} % of the original's value")
    if limits.get("p95_ms") is not None:
        words.append(f"p95{' of the model alone' if parted else ''} at most {limits['p95_ms']:g} ms")
    if limits.get("p95_end_to_end_ms") is not None:
        words.append(f"p95 end to end at most {limits['p95_end_to_end_ms']:g} ms")
    if limits.get("max_peak_memory_bytes") is not None:
        words.append(f"memory at most {size(limits['max_peak_memory_bytes'])}")
    if limits.get("max_size_bytes") is not None:
        words.append(f"size at most {size(limits['max_size_bytes'])}")
    return f"wanted: {', '.join(words)}" if words else ""


def _device_parts(report: Mapping[str, Any], device: Mapping[str, Any]) -> Iterator[RenderableType]:
    profile = f" ({device['profile']})" if device.get("profile") else ""
    yield Text(f"{device['device']}{profile}", style="bold underline")
    if device.get("emulated"):
        yield Text("This device is emulated: its timings mean nothing.", style="yellow")
    rows = rows_of(report, device)
    yield _table(rows)
    yield Text()
    yield from _ends(rows)
    yield from _energies(rows)
    yield from scaling_parts(device)
    yield from profile_parts(device)
    if device.get("doubt"):
        yield Text(str(device["doubt"]), style="bold yellow")
    for warning in device.get("warnings") or []:
        yield Text(f"Warning: {warning}", style="bold yellow")
    for control in device.get("controls") or []:
        where = condition(_Condition(control["threads"], control["batch"]), rows)
        yield Text(f"A/A control{where}: {control['words']}.", style="dim")
    chosen = next((row for row in rows if row.selected), None)
    verdict = f"Chosen: {chosen.recipe}. " if chosen is not None else "Nothing was chosen. "
    yield Text.assemble((verdict, "bold green" if chosen is not None else "bold yellow"), str(device.get("why") or ""))
    rejected = [row for row in rows if not row.selected and (row.rejected_because or row.status != "measured")]
    if rejected:
        yield Text("Not chosen:", style="bold")
        for row in rejected:
            reasons = "; ".join(row.rejected_because or row.notes) or row.status
            yield _item(f"{row.recipe}{_condition(row, rows)}: {reasons}")
    notes = dict.fromkeys(_notes(rows))
    if notes:
        yield Text("Notes:", style="bold")
        yield from (_item(note, style="dim") for note in notes)


def _table(rows: list[Row]) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    made.add_column(Text("RECIPE"), overflow="fold", min_width=12)
    for heading in ("P50 MS", "x ORIGINAL", "x BEST UNC."):
        made.add_column(Text(heading), justify="right", overflow="fold")
    for heading in ("DROP", "SIZE", "MEMORY"):
        made.add_column(Text(heading), justify="right", overflow="fold")
    for row in rows:
        style = "bold green" if row.selected else "dim" if row.status != "measured" else ""
        mark = "* " if row.selected else ""
        below = row.variant + _condition(row, rows)
        made.add_row(
            Text.assemble((_broken(mark + row.recipe), style), ("\n" + below, "dim")),
            _cell(row.p50_ms, style) if row.status == "measured" else Text(row.status, style="red"),
            _cell(row.versus_original, style),
            _cell(row.versus_best_uncompressed, style),
            _cell(row.drop, style, digits=2),
            Text(size(row.size_bytes), style=style),
            Text(size(row.peak_memory_bytes), style=style),
        )
    return made


def _broken(name: str) -> str:
    """A long name on several lines, parted behind hyphens: the column is too narrow for it, and rich parts anywhere."""
    lines = [""]
    for part in re.findall(r"[^-]+-?|-", name):
        if lines[-1] and len(lines[-1] + part) > _NAME_WIDTH:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _cell(span: Span | None, style: str, *, digits: int | None = None) -> Text:
    if span is None:
        return Text("-", style="dim")
    below = interval(span, digits) + ("\ntie" if span.tie else "")
    return Text.assemble((_figure(span.value, digits), style), ("\n" + below, "dim"))


def _ends(rows: list[Row]) -> Iterator[RenderableType]:
    """A list below the table, as for energy: the whole chain of a model with parts, and each part alone."""
    whole = [(row, row.end_to_end_ms) for row in rows if row.end_to_end_ms is not None]
    if whole:
        yield Text(
            "End to end, with the parts before and behind the model (P50 MS above is the model's alone):", style="bold"
        )
    for row, span in whole:
        ratio = row.end_to_end_speedup
        words = [f"{_with_bounds(span)} ms"]
        if row.end_to_end_p95_ms is not None:
            words.append(f"p95 {significant(row.end_to_end_p95_ms, 3)} ms")
        if ratio is not None and not row.baseline:
            words.append(f"{_with_bounds(ratio)} times as fast as the original's{', a tie' if ratio.tie else ''}")
        parts = (("pre", row.pre_ms), ("core", row.core_ms), ("post", row.post_ms))
        alone = ", ".join(f"{name} {significant(part, 3)}" for name, part in parts if part is not None)
        yield _item(f"{row.recipe}{_condition(row, rows)}: {', '.join(words)}{f'; alone {alone} ms' if alone else ''}")


def _with_bounds(span: Span) -> str:
    bounds = interval(span)
    return f"{significant(span.value, 3)}{f' ({bounds})' if bounds else ''}"


def _energies(rows: list[Row]) -> Iterator[RenderableType]:
    """A list below the table, which has no room for one more column in 80."""
    metered = [row for row in rows if row.energy_joules is not None]
    for meter in dict.fromkeys(row.energy_meter for row in metered):
        yield Text(f"Energy of a call above rest{f', by {meter}' if meter else ''}:", style="bold")
        for row in metered:
            span = row.energy_joules
            if span is None or row.energy_meter != meter:
                continue
            known = span.low is not None and span.high is not None
            bounds = f" ({joules(span.low or 0)} to {joules(span.high or 0)})" if known else ""
            yield _item(f"{row.recipe}{_condition(row, rows)}: {joules(span.value)}{bounds}")


def interval(span: Span, digits: int | None = None) -> str:
    """The interval as `0.41-0.43`; with ` to ` between where a bound is negative; empty where both are unknown."""
    if span.low is None and span.high is None:
        return ""
    low, high = (_figure(bound, digits) if bound is not None else "?" for bound in (span.low, span.high))
    negative = any(bound is not None and bound < 0 for bound in (span.low, span.high))
    return f"{low} to {high}" if negative else f"{low}-{high}"


def _figure(value: float, digits: int | None) -> str:
    if math.isinf(value):
        return "inf"
    if digits is None:
        return significant(value, 3)
    # A drop of accuracy reads best with fixed decimals; a regression's error may be tiny, or large.
    return f"{value:.{digits}f}" if 0.1 <= abs(value) < 1000 or value == 0 else significant(value, 2)


def _condition(row: Row, rows: list[Row]) -> str:
    """Runtime, threads and batch, where the rows differ in them."""
    runtime = f" {row.runtime}" if len({one.runtime for one in rows}) > 1 else ""
    return runtime + condition(row, rows)


def _notes(rows: list[Row]) -> Iterator[str]:
    for trust in dict.fromkeys(row.trust for row in rows if row.trust and row.trust != "clean"):
        names = dict.fromkeys(row.recipe for row in rows if row.trust == trust)
        yield f"measured on a {trust} device: {', '.join(names)}"
    names_of = {row.variant: row.recipe for row in rows}
    told: set[frozenset[str]] = set()
    for row in rows:
        others = [other for other in row.tie_with if frozenset((row.variant, other)) not in told]
        told.update(frozenset((row.variant, other)) for other in others)
        if others:
            others = [names_of.get(other, other) for other in others]
            yield f"{row.recipe} ties in speed with {', '.join(others)}"
    for row in rows:
        if row.status == "measured":
            yield from row.notes


def _item(text: str, style: str = "") -> Padding:
    return Padding(Text(f"- {text}", style=style), (0, 0, 0, 2))
