"""How a trial's process ends, and what that means for the measurement: a status and one sentence."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from google.protobuf.message import Message

from fleetfit.core.children import EXIT_OUT_OF_MEMORY, ChildOutcome
from fleetfit.core.errors import FleetfitError
from fleetfit.proto.v1 import measurement_pb2

EXIT_NOT_LOADABLE: Final = 3
Status = measurement_pb2.MeasurementStatus
DISK_FULL: Final = "the device's disk is full; make room, then resume the job"
_SENTENCES: Final = {
    "out_of_memory": (
        Status.MEASUREMENT_STATUS_OUT_OF_MEMORY,
        "the build needs more memory than the device has free; try a smaller build or batch",
    ),
    "timed_out": (
        Status.MEASUREMENT_STATUS_TIMED_OUT,
        "the build did not finish within the time a trial may take; try a smaller build or batch",
    ),
    "crashed": (Status.MEASUREMENT_STATUS_CRASHED, "the runtime crashed on the build; try another recipe or runtime"),
    "failed": (Status.MEASUREMENT_STATUS_CRASHED, "the trial ended in an unexpected error"),
    "cancelled": (Status.MEASUREMENT_STATUS_CRASHED, "the trial was stopped from outside; resume the job"),
}
# A native library that gets no memory aborts, and Python's own error may come before a trial can name it.
_OUT_OF_MEMORY_WORDS: Final = (
    "std::bad_alloc",
    "MemoryError",
    "Cannot allocate memory",
    "Failed to allocate memory",
)


class TrialFailed(Exception):
    """A trial ended without a result."""

    def __init__(self, status: Status.ValueType, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def write_or_tell(out: Path, make: Callable[[], Message]) -> int:
    """For a trial's process: write what `make` gives to `out`, or why there is nothing; what to exit with. See `explain`."""
    try:
        message = make()
    except MemoryError:
        return EXIT_OUT_OF_MEMORY
    except FleetfitError as error:
        out.with_suffix(".error").write_text(json.dumps({"code": error.code, "message": error.message}))
        return EXIT_NOT_LOADABLE
    except Exception as error:  # runtimes' have no common root
        traceback.print_exc()
        # The last line is what people get, and a runtime's own words may have many.
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    fresh = out.with_suffix(".new")
    fresh.write_bytes(message.SerializeToString())
    fresh.replace(out)
    return 0


def explain(out: Path, outcome: ChildOutcome) -> TrialFailed:
    """Why the trial that should have written `out` did not."""
    # A full disk leaves an empty file.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        error = json.loads(out.with_suffix(".error").read_text())
        return TrialFailed(Status.MEASUREMENT_STATUS_NOT_LOADABLE, str(error["message"]))
    if outcome.met_full_disk:
        return TrialFailed(Status.MEASUREMENT_STATUS_DISK_FULL, DISK_FULL)
    kind = outcome.kind
    if kind in ("failed", "crashed") and any(words in outcome.stderr_tail for words in _OUT_OF_MEMORY_WORDS):
        kind = "out_of_memory"
    known = kind if kind in _SENTENCES else "failed"
    status, sentence = _SENTENCES[known]
    if known == "failed":
        last = (outcome.stderr_tail.strip().splitlines() or [""])[-1]
        sentence += f" ({last[:200] or f'exit code {outcome.exit_code}, and not a word'})"
    return TrialFailed(status, sentence)
