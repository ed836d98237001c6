"""A report as CSV and as Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, Final

from fleetfit.client.tables.report import interval, limits_sentence
from fleetfit.client.tables.report_rows import TABLES, Row, Span, operator_rows, rows_of, scaling_rows
from fleetfit.client.tables.words import significant, size

_FORMULA = ("=", "+", "-", "@")
_OPERATORS_SHOWN: Final = 10


def report_csv(report: Mapping[str, Any], table: str = "candidates") -> str:
    """One line for each of what `TABLES` names; an interval becomes two columns, `_low` and `_high`."""
    kind, rows = TABLES[table]
    names = [field.name for field in dataclasses.fields(kind)]
    spans = {field.name for field in dataclasses.fields(kind) if "Span" in str(field.type)}
    header = [part for name in names for part in ((name, f"{name}_low", f"{name}_high") if name in spans else (name,))]
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["job", *header])
    for device in report.get("devices") or []:
        for row in rows(report, device):
            cells: list[Any] = [report.get("job", "")]
            for name in names:
                cells += _cells(getattr(row, name), name in spans)
            writer.writerow(cells)
    return target.getvalue()


def _cells(value: Any, is_span: bool) -> list[Any]:
    if is_span:
        return ["", "", ""] if value is None else [value.value, _blank(value.low), _blank(value.high)]
    if isinstance(value, tuple):
        value = "; ".join(value)
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, str) and value.startswith(_FORMULA):
        # A spreadsheet would take such a text for a formula.
        return [f"'{value}"]
    return [_blank(value)]


def _blank(value: Any) -> Any:
    return "" if value is None else value


def report_markdown(report: Mapping[str, Any]) -> str:
    """Headings, one table for each device, the choice and the reasons."""
    metric = report.get("metric") or {}
    lines = [f"# {report.get('model', '')}: job {report.get('job', '')}", ""]
    if metric.get("name"):
        lines += [f"Judged by {metric['name']} ({metric.get('unit', '')}).", ""]
    if limits := limits_sentence(report.get("limits") or {}, parted=bool(report.get("parts"))):
        lines += [f"{limits[:1].upper()}{limits[1:]}.", ""]
    for device in report.get("devices") or []:
        profile = f" ({device['profile']})" if device.get("profile") else ""
        lines += [f"## {_plain(str(device['device']) + profile)}", ""]
        if device.get("emulated"):
            lines += ["**This device is emulated: its timings mean nothing.**", ""]
        lines += [f"{_plain(str(device.get('why') or ''))}", ""]
        lines += _table(rows_of(report, device))
        if device.get("doubt"):
            lines += [f"**{_plain(str(device['doubt']))}**", ""]
        for warning in device.get("warnings") or []:
            lines += [f"**Warning: {_plain(str(warning))}**", ""]
        lines += [f"A/A control: {_plain(str(control['words']))}." for control in device.get("controls") or []] + [""]
        lines += _scaling(device) + _operators(device)
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: list[Row]) -> list[str]:
    whole = ["end to end ms", "end to end x original"] if any(row.end_to_end_ms for row in rows) else []
    head = ["", "recipe", "variant", "threads", "batch", "p50 ms", "x original", "x best uncompressed", *whole]
    head += ["drop", "size", "memory", "not chosen because"]
    lines = _head(head)
    several = len({row.runtime for row in rows}) > 1
    for row in rows:
        cells = [
            "**chosen**" if row.selected else "",
            f"{row.recipe}, {row.runtime}" if several else row.recipe,
            row.variant,
            str(_blank(row.threads)),
            str(_blank(row.batch)),
            *(_span(span) for span in (row.p50_ms, row.versus_original, row.versus_best_uncompressed)),
            *(_span(span) for span in ((row.end_to_end_ms, row.end_to_end_speedup) if whole else ())),
            _span(row.drop),
            size(row.size_bytes),
            size(row.peak_memory_bytes),
            "; ".join(row.rejected_because or (() if row.status == "measured" else (row.status, *row.notes))),
        ]
        lines.append("| " + " | ".join(cell if cell == "**chosen**" else _plain(cell) for cell in cells) + " |")
    return [*lines, ""]


_NAME = attrgetter("variant", "recipe", "runtime")


def _scaling(device: Mapping[str, Any]) -> list[str]:
    lines = []
    head = ["more", "processes", "threads", "batch", "samples/s", "x first", "p50 ms", "p95 ms", "memory of each"]
    for (_, recipe, runtime), rows in groupby(scaling_rows(device), key=_NAME):
        lines += [f"### How {_plain(recipe)} scales in {_plain(runtime)}", "", *_head(head)]
        for row in rows:
            figures = row.samples_per_second, row.times_the_first, row.p50_ms, row.p95_ms
            memory = row.memory_bytes_each
            found = [_span(figure) for figure in figures]
            if row.status != "measured":
                found = [row.message or row.status, *"---"]
            where = row.more, str(row.processes), str(row.threads), str(row.batch)
            lines.append(_line(*where, *found, size(memory.value) if memory else "-"))
        lines.append("")
    return lines


def _operators(device: Mapping[str, Any]) -> list[str]:
    lines = []
    for (_, recipe, runtime), rows in groupby(operator_rows(device), key=_NAME):
        lines += [f"### The largest operators of {_plain(recipe)} in {_plain(runtime)}", ""]
        lines += _head(["operator", "name", "format", "placed", "ms in a call", "share"])
        for row in islice(rows, _OPERATORS_SHOWN):
            share = f"{100 * row.share:.1f} %"
            lines.append(_line(row.operator, row.name, row.number_format, row.placed, significant(row.ms), share))
        lines += [
            "",
            "By the runtime's own profiler, which slows what it looks at: these times do not add up to the latency.",
            "",
        ]
    return lines


def _head(names: list[str]) -> list[str]:
    return ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]


def _line(*cells: str) -> str:
    return "| " + " | ".join(map(_plain, cells)) + " |"


def _span(span: Span | None) -> str:
    if span is None:
        return "-"
    bounds = interval(span)
    tie = ", a tie" if span.tie else ""
    return f"{significant(span.value)} ({bounds}{tie})" if bounds else significant(span.value)


def _plain(text: str) -> str:
    """Text that cannot end a cell or start markup."""
    for character in "\\|*_`<>[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
