"""Where a server trains: what it finds, what it says, and that it refuses to start rather than to train elsewhere."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from fleetfit.compress.tasks import WAITING_FOR_HOST, CudaDevice, TaskProgress
from fleetfit.core.children import Limits
from fleetfit.core.errors import UnsupportedHere
from fleetfit.server.compute import Compute, Found, _Waiting, find_compute

HERE = Path("/dev/nvidiactl").exists()
needs_none = pytest.mark.skipif(HERE, reason="there is an NVIDIA driver here")
LIMITS = Limits(memory_bytes=8 << 30, wall_s=60)
DEVICE = CudaDevice(name="GPU", capability="9.0", cuda="12.8", cudnn="91002", driver="570.86.15", memory_bytes=1)


def find(asked: Compute, folder: Path, limits: Limits = LIMITS) -> Found:
    return asyncio.run(find_compute(asked, folder, limits))


def test_a_server_that_trains_on_the_processor_asks_nobody(tmp_path: Path) -> None:
    assert find("cpu", tmp_path / "children") == Found(None)
    assert not (tmp_path / "children").exists()


@needs_none
def test_the_processor_is_taken_where_there_is_no_cuda_and_the_reason_is_known(tmp_path: Path) -> None:
    found = find("auto", tmp_path / "children")
    assert found.device is None and "/dev/nvidiactl" in found.reason
    assert found.sentence() == f"training computes on the processor: {found.reason}"
    assert list((tmp_path / "children").iterdir()) == []


@needs_none
def test_cuda_that_is_asked_for_and_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedHere, match="cannot compute on CUDA: .*/dev/nvidiactl.*; or start with --compute cpu"
    ) as refused:
        find("cuda", tmp_path / "children")
    assert refused.value.field == "compute"


def test_a_child_that_dies_is_a_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = find("auto", tmp_path / "children", Limits(memory_bytes=1 << 20))
    assert found.device is None and "ended badly" in found.reason
    assert "the process that tries CUDA ended as" in caplog.text


def test_waiting_for_the_machine_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tell = _Waiting()
    for activity in ("working", WAITING_FOR_HOST, WAITING_FOR_HOST):
        tell(TaskProgress(activity=activity, fraction=0.0))
    assert [record.getMessage() for record in caplog.records] == [f"{WAITING_FOR_HOST}, before CUDA can be tried"]


def test_what_is_found_is_said_in_full() -> None:
    said = Found(DEVICE).sentence()
    assert all(fact in said for fact in ("GPU", "9.0", "12.8", "91002", "570.86.15"))
    assert Found(None).sentence() == "training computes on the processor"


@pytest.mark.gpu
@pytest.mark.skipif(not HERE, reason="there is no NVIDIA driver here")
@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_cuda_is_found_under_a_servers_limits(tmp_path: Path, asked: Compute) -> None:
    found = find(asked, tmp_path / "children")
    assert found.device is not None, found.reason
