"""The comparison of a device's metric with the server's, computed again from what both gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fleetfit.proto.evidence import Compared, Evidence, compared, read_evidence, read_rows
from fleetfit.proto.figures import bounds
from fleetfit.proto.v1 import measurement_pb2

# Fetches content by digest and size, and gives what a function reads from it.
Read = Callable[[str, int, Callable[[Path], Any]], Any]


def verified_gap(
    name: str, printed: Mapping[str, Any], raw: measurement_pb2.MeasurementResult, skipped: list[str], read: Read | None
) -> Iterator[tuple[str, Any, Any]]:
    """Every figure of a gap: its name, as it is printed, and as it comes out."""
    if read is None:
        skipped.append(f"{name}.gap: what the build gave on the server was not fetched")
        return
    found = _compared(printed["gap"], raw, read)
    if found is None:
        yield f"{name}.gap", printed["gap"], None
        return
    server, gap, shown = printed.get("server") or {}, found.gap, printed["gap"]
    yield f"{name}.server.value", server.get("value"), found.server.value
    yield f"{name}.server.ci95", server.get("ci95"), list(bounds(found.server))
    yield f"{name}.gap.value", shown.get("value"), gap.loss.value
    yield f"{name}.gap.ci95", shown.get("ci95"), list(bounds(gap.loss))
    for key in ("p", "test", "flagged", "differing", "compared", "distance", "tolerance", "beyond"):
        yield f"{name}.gap.{key}", shown.get(key), getattr(gap, key)
    worst = shown.get("worst_sample") or {}
    yield f"{name}.gap.worst_sample.index", worst.get("index"), found.index
    for key in ("here", "there", "distance"):
        yield f"{name}.gap.worst_sample.{key}", worst.get(key), getattr(gap.worst, key, None)


def _compared(shown: Mapping[str, Any], raw: measurement_pb2.MeasurementResult, read: Read) -> Compared | None:
    named, rows = shown["evidence"], shown.get("rows")
    evidence: Evidence | None = read(str(named["sha256"]), int(named["size_bytes"]), read_evidence)
    if evidence is None:
        return None
    given = read(str(rows["sha256"]), int(rows["size_bytes"]), read_rows) if rows else None
    return compared(raw, evidence, given)
