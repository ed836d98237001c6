"""When each holder held the host, from what a server keeps; and what may not be: two at once, or a sample outside."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.storage.artifacts import ArtifactStore


@dataclass(frozen=True)
class Held:
    """One stretch in which one process held the host's lock, and the windows of its samples; monotonic nanoseconds."""

    holder: str
    begin: int
    end: int
    samples: tuple[tuple[int, int], ...] = ()


def query(state: Path, sql: str, *parameters: str) -> list[dict[str, Any]]:
    """Rows of a server's database, running or not."""
    with closing(sqlite3.connect(f"file:{state / 'fleetfit.db'}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(sql, parameters)]


def raw_results(state: Path) -> dict[str, measurement_pb2.MeasurementResult]:
    """Every accepted measurement's raw result, by the measurement's id."""
    store = ArtifactStore(state / "artifacts")
    return {
        row["id"]: measurement_pb2.MeasurementResult.FromString(
            gzip.decompress(store.path(row["raw_sha256"]).read_bytes())
        )
        for row in query(state, "SELECT id, raw_sha256 FROM measurement")
    }


def recorded(state: Path) -> list[Held]:
    """Every window of compression and of measuring that a server keeps."""
    found = []
    for row in query(state, "SELECT key, held FROM variant WHERE held IS NOT NULL"):
        for window in json.loads(row["held"])["windows"]:
            begin, end = window["begin_monotonic_ns"], window["end_monotonic_ns"]
            found.append(Held(f"compressing {row['key'][:10]}", begin, end))
    for name, result in raw_results(state).items():
        runs = [run for run in (result.solo, *result.pairs, result.metric) if run.HasField("window")]
        samples = tuple((run.window.begin_monotonic_ns, run.window.end_monotonic_ns) for run in runs)
        held = result.held
        found.append(Held(f"measuring {name}", held.begin_monotonic_ns, held.end_monotonic_ns, samples))
    return found


def together(windows: Sequence[Held]) -> list[tuple[str, str]]:
    """The pairs of holders that held the host at the same time. One may begin at the moment in which another ends."""
    ordered = sorted(windows, key=lambda held: (held.begin, held.end))
    found, longest = [], ordered[:1]
    for later in ordered[1:]:
        found += [(earlier.holder, later.holder) for earlier in longest if later.begin < earlier.end]
        longest = [earlier for earlier in longest if earlier.end > later.begin] + [later]
    return found


def outside(windows: Sequence[Held]) -> list[str]:
    """The holders that have a sample window which is not wholly inside their own hold, or is no window at all."""
    return [
        held.holder
        for held in windows
        if any(not held.begin <= begin < end <= held.end for begin, end in held.samples) or held.begin >= held.end
    ]
