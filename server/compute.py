"""Where a server lets training compute: found out once, when it starts, by a child that is confined as those that train are."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from fleetfit.compress.tasks import WAITING_FOR_HOST, CudaDevice, FindDevice, Task, TaskProgress
from fleetfit.core.children import Limits
from fleetfit.core.errors import UnsupportedHere
from fleetfit.server.engine.executor import Finished, LocalExecutor

Compute = Literal["auto", "cpu", "cuda"]
_log: Final = logging.getLogger("fleetfit.server")
# Importing PyTorch from a slow disk and starting CUDA on many GPUs take tens of seconds; what takes longer than this hangs.
_LONGEST_S: Final = 180.0


@dataclass(frozen=True)
class Found:
    """The CUDA device that training takes, or None for the processor; then, where CUDA was looked for, why not."""

    device: CudaDevice | None
    reason: str = ""

    def sentence(self) -> str:
        """For people."""
        if self.device is not None:
            return f"training computes on {self.device.described()}"
        return "training computes on the processor" + (f": {self.reason}" if self.reason else "")


async def find_compute(asked: Compute, folder: Path, limits: Limits) -> Found:
    """Look for CUDA unless `asked` is `cpu`, in a child with these limits and a new folder `folder`.

    What works is tried under the limits and the confinement of a child that trains, so it is not first seen when a job fails.
    Raises UnsupportedHere where `cuda` is asked for and does not work.
    """
    if asked == "cpu":
        return Found(None)
    _log.info("looking for a CUDA device")
    executor = LocalExecutor(folder, _nothing_to_copy, replace(limits, wall_s=_LONGEST_S))
    async with executor.run(Task(task_id="find-device", work=FindDevice()), {}, _Waiting()) as finished:
        device, reason = _read(finished)
    if device is None and asked == "cuda":
        raise UnsupportedHere(
            f"training cannot compute on CUDA: {reason}; or start with --compute cpu", field="compute"
        )
    return Found(device, reason)


def _read(finished: Finished) -> tuple[CudaDevice | None, str]:
    result = finished.result
    if result is not None and result.device is not None:
        return result.device, ""
    if result is not None and result.error is not None:
        _log.debug("no CUDA device: %s\n%s", result.error.message, result.error.private)
        return None, result.error.message
    _log.warning("the process that tries CUDA ended as %s: %s", finished.outcome.kind, finished.outcome)
    kind = finished.outcome.kind.replace("_", " ")
    return None, (
        f"the process that tries it ended badly ({kind}); look at the log for what it said, and try "
        "`python -c 'import torch; torch.ones(1).cuda()'`"
    )


class _Waiting:
    """Says once that another process has the machine: a start that only hangs would be a riddle."""

    def __init__(self) -> None:
        self._told = False

    def __call__(self, progress: TaskProgress) -> None:
        if progress.activity == WAITING_FOR_HOST and not self._told:
            self._told = True
            _log.info("%s, before CUDA can be tried", WAITING_FOR_HOST)


def _nothing_to_copy(digest: str, target: Path) -> None:
    raise AssertionError("the task has no inputs")
