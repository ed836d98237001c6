"""How candidates scale, as people read it in a terminal: a table for each, one line for each point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fleetfit.client.tables.report_rows import CURVES
from fleetfit.client.tables.words import significant, size

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDTH: Final = 11


def scaling_parts(device: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What a device's candidates show of scaling; nothing where nothing was measured of it."""
    found = [c for c in device.get("candidates") or [] if c.get("scaling")]
    several = len({c.get("runtime") for c in found}) > 1
    for candidate in found:
        name = str(candidate.get("recipe", "")) + (f" in {candidate.get('runtime')}" if several else "")
        yield Text(f"How {name} scales:", style="bold")
        yield _table(candidate["scaling"])
        for clause in _endings(candidate["scaling"]):
            yield Padding(Text(f"- {clause}", style="dim"), (0, 0, 0, 2))
        yield Text()


def _table(scaling: Mapping[str, Any]) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    made.add_column(Text("MORE"))
    for heading in ("PROC.", "THR.", "BATCH", "SAMPLES/S", "x FIRST", "P50 MS", "P95 MS", "EACH HOLDS"):
        made.add_column(Text(heading), justify="right", overflow="fold")
    for key, name in CURVES:
        for at, point in enumerate((scaling.get(key) or {}).get("points") or []):
            where = [str(point.get(part, "")) for part in ("instances", "threads", "batch")]
            memory = point.get("memory_bytes")
            made.add_row(
                Text("" if at else name, style="bold"),
                *where,
                *(_cell(point.get(part)) for part in ("throughput", "gain", "p50_ms", "p95_ms")),
                Text(size(memory["value"]) if memory else "-"),
            )
    return made


def _cell(figure: Mapping[str, Any] | None) -> Text:
    if not figure:
        return Text("-", style="dim")
    low, high = figure.get("ci95") or (None, None)
    text = Text(significant(figure["value"], 3))
    if low is not None and high is not None and low != high:
        ends = f"{significant(low, 3)}-", significant(high, 3)
        # Two rounds may have an interval over decades, which would be parted within a number.
        wide = sum(map(len, ends)) > _WIDTH
        text.append("\n" + ("\n" if wide else "").join(ends), style="dim")
    return text


def _endings(scaling: Mapping[str, Any]) -> Iterator[str]:
    for key, name in CURVES:
        curve = scaling.get(key) or {}
        if curve.get("ended"):
            yield f"{name}: {curve['ended']}"
        for point in curve.get("points") or []:
            if point.get("status") != "measured":
                what = f"{point.get('instances')} x {point.get('threads')} thr batch {point.get('batch')}"
                yield f"{what}: {point.get('message') or str(point.get('status')).replace('_', ' ')}"
    if scaling.get("trust") not in ("clean", None):
        yield f"measured on a {scaling['trust']} device"
