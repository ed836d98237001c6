"""Memory of a GPU, told by an adapter that has one (constructed) and by real ones that have none."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from fleetfit.agent.measuring.gpu import GpuMemory
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.runtimes.onnxruntime import OnnxRuntime
from fleetfit.server.report.analyse import summarize

from ...runtimes.builds import affine
from .tasks import prepare, solo_here


class OnGpu(OnnxRuntime):
    """Tells what is free, one number after the other."""

    uses_gpu: ClassVar[bool] = True

    def __init__(self, *free: int | None) -> None:
        self._free = list(free)

    def gpu_free_bytes(self) -> int | None:
        return self._free.pop(0)


@pytest.mark.parametrize(
    ("free", "taken", "why"),
    [
        ((900, 640), 260, ""),
        ((900, 900), 0, ""),
        # Somebody else gave memory back meanwhile: not less than nothing is taken.
        ((900, 1000), 0, ""),
        ((None,), None, "CUDA does not tell how much of it is free"),
        ((900, None), None, "CUDA does not tell how much of it is free"),
    ],
)
def test_what_less_is_free_is_what_was_taken(free: tuple[int | None, ...], taken: int | None, why: str) -> None:
    run = measurement_pb2.SoloRun()
    GpuMemory(OnGpu(*free)).tell(run)
    assert (run.gpu_memory_bytes if run.HasField("gpu_memory_bytes") else None) == taken
    assert run.no_gpu_memory_because == why


def test_a_runtime_on_the_processor_says_why_there_is_none(tmp_path: Path) -> None:
    prepare(tmp_path, affine())
    result = solo_here(tmp_path)
    assert not result.solo.HasField("gpu_memory_bytes")
    memory = summarize(result).memory
    assert memory is not None
    assert (memory.gpu_bytes, memory.no_gpu_bytes_because) == (None, "the runtime uses no GPU")


def test_the_report_has_it_with_what_it_means(tmp_path: Path) -> None:
    prepare(tmp_path, affine())
    result = solo_here(tmp_path)
    result.solo.gpu_memory_bytes, result.solo.no_gpu_memory_because = 5_000_000, ""
    summary = summarize(result)
    assert summary.memory is not None and summary.memory.gpu_bytes == 5_000_000
    assert any(note.startswith("GPU memory is what less of it was free") for note in summary.notes)
