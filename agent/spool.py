"""Results that the server has not acknowledged yet, kept on disk so that neither side's restart loses them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NAME = re.compile(r"(?P<task>[A-Za-z0-9_-]+)\.(?P<fence>\d+)\.pb\.gz")

OUTPUTS: Final = "outputs.npz"
"""What a measuring child calls the outputs that go with its result."""
DIGESTS: Final = "digests.json"
"""Where a measuring child finds the SHA-256 of what lies in `in`, by name."""
PROGRESS: Final = "progress.json"
"""Where a measuring child says what it does, and how far it is."""
WAITING: Final = "waiting for this device to be free"
"""What it says while it waits for the host's lock, for which there is no limit."""
PARTIAL_VARIABLE: Final = "FLEETFIT_PARTIAL"
"""Names the folder in which measuring children keep what is to outlive them: the scores of metrics that are not whole yet."""


def tell_progress(taskdir: Path, said: Mapping[str, object]) -> None:
    """Write `PROGRESS` of a task's folder: whole or not at all, since others read it at any time."""
    fresh = taskdir / "progress.new"
    fresh.write_text(json.dumps(said))
    fresh.replace(taskdir / PROGRESS)


@dataclass(frozen=True)
class Spooled:
    """One finished task's result."""

    task_id: str
    fence: int
    path: Path

    @property
    def outputs(self) -> Path:
        """Where the outputs lie that the result names, if it names any."""
        return self.path.with_name(f"{self.task_id}.{self.fence}.npz")


class Spool:
    """A folder of results; a name holds the task and the fencing token, so the file alone says what to report."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, task_id: str, fence: int, result: Path, outputs: Path | None = None) -> Spooled:
        """Move a result, and the outputs that it names, into the spool, durably."""
        spooled = Spooled(task_id, fence, self._folder / f"{task_id}.{fence}.pb.gz")
        # The result last: it is what says that there is something to report.
        for source, target in ((outputs, spooled.outputs), (result, spooled.path)):
            if source is not None and source.exists():
                with source.open("rb") as file:
                    os.fsync(file.fileno())
                source.replace(target)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return spooled

    def __iter__(self) -> Iterator[Spooled]:
        for path in sorted(self._folder.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match:
                yield Spooled(match["task"], int(match["fence"]), path)

    def drop(self, spooled: Spooled) -> None:
        """Forget a result: it was acknowledged, or is no longer wanted."""
        spooled.path.unlink(missing_ok=True)
        spooled.outputs.unlink(missing_ok=True)
