"""The scores of a metric as they come, kept on disk: whoever is interrupted goes on from the batches that are done.

A file is bound to everything that scores depend on: the bytes of the build and of the split, the metric, the runtime's
version. One that was cut short by a kill, or damaged by a loss of power, is good for the records before that.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.agent.spool import DIGESTS, PARTIAL_VARIABLE
from fleetfit.core.digests import key_of
from fleetfit.proto.v1 import measurement_pb2

Floats = NDArray[np.float32]
_SUFFIX: Final = ".scores"
# Magic, samples, numbers for each, samples with outputs, values of each, samples with NaN, CRC-32 of what follows.
_RECORD: Final = struct.Struct("<4sIIIIII")
_MAGIC: Final = b"ffs1"
# Memory cards wear out by writing: what may be lost by a kill is computed again in this time.
_EVERY_S: Final = 0.5
# Of tasks that were interrupted and never came back.
_MOST_FILES: Final = 8


@dataclass(frozen=True)
class Batch:
    """Scores (N,) or (N, several), the judged output of the first M of the samples (M, width), and how many had a NaN."""

    scores: Floats
    judged: Floats
    strange: int


class KeptScores:
    """The batches that are done, in order. Without a path they are in memory only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.batches: list[Batch] = []
        self._waiting: list[bytes] = []
        self._written = time.monotonic()
        if path is None:
            return
        good = 0
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            for batch, end in _read(path.read_bytes()):
                self.batches.append(batch)
                good = end
        # What follows the last whole record would make all that is added unreadable.
        with contextlib.suppress(OSError):
            os.truncate(path, good)
        _forget_others(path)
        self.resumed = self.done

    resumed = 0
    """So many samples were done before."""

    @property
    def done(self) -> int:
        """So many samples are done."""
        return sum(len(batch.scores) for batch in self.batches)

    def add(self, batch: Batch) -> None:
        """The next batch. A disk that takes it not is no reason to stop: then it is computed again after a kill."""
        self.batches.append(batch)
        if self._path is None:
            return
        self._waiting.append(_record(batch))
        if time.monotonic() - self._written > _EVERY_S:
            with contextlib.suppress(OSError), self._path.open("ab") as file:
                file.write(b"".join(self._waiting))
            self._waiting.clear()
            self._written = time.monotonic()

    def forget(self) -> None:
        """The metric is whole: it goes on in the result."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def kept_scores(task: measurement_pb2.MeasureTask, taskdir: Path, **depends: object) -> KeptScores:
    """What is kept of a task's metric on this device; nothing where the agent named no folder, or no digests.

    `depends` is whatever else scores depend on. Two tasks on the same build and data share what is kept, so that a task which
    is handed out anew, with another fencing token, goes on.
    """
    folder = os.environ.get(PARTIAL_VARIABLE, "")
    try:
        digests: Mapping[str, str] = json.loads((taskdir / DIGESTS).read_text())
        used = [digests[task.candidate.artifact_name], digests[task.data_artifact_name]]
        used += [digests[task.baseline.artifact_name]] if task.HasField("baseline") else []
    except (OSError, ValueError, KeyError):
        return KeptScores(None)
    if not folder:
        return KeptScores(None)
    condition = {"metric": task.metric, "runtime": task.candidate.runtime, "threads": task.threads}
    return KeptScores(Path(folder) / f"{key_of([used, condition, depends])}{_SUFFIX}")


def _record(batch: Batch) -> bytes:
    scores, judged = (np.ascontiguousarray(one, dtype="<f4") for one in (batch.scores, batch.judged))
    body = scores.tobytes() + judged.tobytes()
    # Of scores (N,) the width is 0, so that they come back as they were.
    width = 0 if scores.ndim == 1 else scores.shape[1]
    return _RECORD.pack(_MAGIC, len(scores), width, *judged.shape, batch.strange, zlib.crc32(body)) + body


def _read(content: bytes) -> Iterator[tuple[Batch, int]]:
    """The whole records from the front, each with where it ends."""
    at = 0
    while at + _RECORD.size <= len(content):
        magic, count, width, rows, values, strange, crc = _RECORD.unpack_from(content, at)
        at += _RECORD.size
        body = content[at : at + 4 * (count * max(width, 1) + rows * values)]
        if magic != _MAGIC or zlib.crc32(body) != crc or len(body) != 4 * (count * max(width, 1) + rows * values):
            return
        at += len(body)
        numbers: NDArray[Any] = np.frombuffer(body, dtype="<f4").astype(np.float32)
        scores, judged = np.split(numbers, [count * max(width, 1)])
        yield Batch(scores.reshape(count, width) if width else scores, judged.reshape(rows, values), strange), at


def _forget_others(path: Path) -> None:
    others = [one for one in path.parent.glob(f"*{_SUFFIX}") if one != path]
    with contextlib.suppress(OSError):
        for old in sorted(others, key=lambda one: one.stat().st_mtime)[: -(_MOST_FILES - 1)]:
            old.unlink(missing_ok=True)
