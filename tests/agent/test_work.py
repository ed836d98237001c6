from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest

from fleetfit.agent import silence, work
from fleetfit.agent.cache import Cache
from fleetfit.agent.spool import DIGESTS, PARTIAL_VARIABLE, Spool, Spooled
from fleetfit.agent.work import Worker
from fleetfit.core.children import ChildOutcome
from fleetfit.core.digests import sha256_file
from fleetfit.core.errors import InvalidInput, Unavailable
from fleetfit.core.stragglers import MARK_VARIABLE
from fleetfit.proto import transfer
from fleetfit.proto.v1 import artifacts_pb2_grpc, common_pb2, measurement_pb2, work_pb2

from ..runtimes.builds import affine
from .desk import PaperChild
from .measuring.tasks import QUICK, build_ref
from .plugins import install
from .shelf import Shelf

Status = measurement_pb2.MeasurementStatus


def lease_of(*artifacts: common_pb2.NamedArtifact, **measure: Any) -> work_pb2.TaskLease:
    return work_pb2.TaskLease(
        task_id="t1", fence=2, lease_ms=1000, measure=measurement_pb2.MeasureTask(**measure), artifacts=artifacts
    )


def carry_out(
    folder: Path, shelf: Shelf, lease: work_pb2.TaskLease, use: Callable[[Worker], None] | None = None
) -> Any:
    """The spooled result of a lease, with contents from `shelf` over a real socket."""

    async def run() -> Spooled:
        server = grpc.aio.server()
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(shelf, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            worker = Worker(
                folder / "tasks",
                Cache(folder / "cache", 1 << 20),
                Spool(folder / "spool"),
                lambda: grpc.aio.insecure_channel(f"127.0.0.1:{port}"),
            )
            if use is not None:
                use(worker)
            return await worker.carry_out(lease)
        finally:
            await server.stop(None)

    return asyncio.run(run())


def result_of(spooled: Spooled) -> measurement_pb2.MeasurementResult:
    return measurement_pb2.MeasurementResult.FromString(gzip.decompress(spooled.path.read_bytes()))


def left(folder: Path) -> list[Path]:
    return list((folder / "tasks").iterdir())


def test_a_lease_becomes_a_spooled_result_and_leaves_nothing_else(tmp_path: Path, shelf: Shelf) -> None:
    """With the real measuring child."""
    artifact = common_pb2.NamedArtifact(name="candidate.onnx", artifact=shelf.put(affine()))
    lease = lease_of(artifact, candidate=build_ref("candidate.onnx"), threads=1, batch=3, method=QUICK)
    spooled = carry_out(tmp_path, shelf, lease)
    assert (spooled.task_id, spooled.fence) == ("t1", 2)
    result = result_of(spooled)
    assert (result.status, result.condition["batch"]) == (Status.MEASUREMENT_STATUS_MEASURED, "3")
    assert not left(tmp_path)


def test_what_a_metric_keeps_outlives_the_agent_and_is_bound_to_what_the_task_reads(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Path] = []

    async def child(arguments: list[str], limits: Any, *, cwd: Path, environment: Any) -> ChildOutcome:
        digests = json.loads((cwd / DIGESTS).read_text())
        assert digests == {path.name: sha256_file(path) for path in (cwd / "in").iterdir()}
        kept.append(Path(environment[PARTIAL_VARIABLE]))
        kept[-1].mkdir(exist_ok=True)
        (kept[-1] / "one.scores").touch()
        return await PaperChild()(arguments, limits, cwd=cwd)

    monkeypatch.setattr(work, "run_child", child)
    names = {"candidate.onnx": b"one", "validation.npz": b"two"}
    artifacts = [common_pb2.NamedArtifact(name=name, artifact=shelf.put(content)) for name, content in names.items()]
    # Each call is an agent of its own, which clears what its predecessor left half done.
    for _ in range(2):
        carry_out(tmp_path, shelf, lease_of(*artifacts))
        assert (kept[-1] / "one.scores").exists()
    assert kept == [tmp_path / "partial"] * 2


@pytest.mark.parametrize("linkable", [True, False])
def test_the_child_finds_what_the_task_names(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, linkable: bool
) -> None:
    found: dict[str, bytes] = {}

    async def child(arguments: list[str], limits: Any, *, cwd: Path, environment: Any) -> ChildOutcome:
        assert arguments == ["-m", "fleetfit.agent.measuring", str(cwd)]
        found.update({path.name: path.read_bytes() for path in (cwd / "in").iterdir()})
        found["task"] = (cwd / "task.pb").read_bytes()
        return await PaperChild()(arguments, limits, cwd=cwd)

    def no_link(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(work, "run_child", child)
    if not linkable:
        monkeypatch.setattr(os, "link", no_link)
    names = {"candidate.onnx": b"one", "validation.npz": b"two"}
    artifacts = [common_pb2.NamedArtifact(name=name, artifact=shelf.put(content)) for name, content in names.items()]
    lease = lease_of(*artifacts, threads=4)
    carry_out(tmp_path, shelf, lease)
    assert found == {**names, "task": lease.measure.SerializeToString()}


def test_a_child_that_leaves_no_result_is_a_result(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def child(*_: Any, **__: Any) -> ChildOutcome:
        return ChildOutcome("crashed", -11, "one\nthe last words\n")

    monkeypatch.setattr(work, "run_child", child)
    result = result_of(carry_out(tmp_path, shelf, lease_of()))
    assert result.status == Status.MEASUREMENT_STATUS_CRASHED
    assert result.message == "the measuring process ended as crashed without a result: the last words"
    assert not left(tmp_path)


_HANGING = """
import time
class Sensor:
    @classmethod
    def find(cls, tree): time.sleep(600)
"""


def test_a_measuring_process_that_hangs_by_itself_is_ended_and_is_a_result(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real one, on a device where a third party's meter never answers: no trial is begun that could time out."""
    site = install(tmp_path / "site", "hanging", _HANGING, {"fleetfit.meters": {"hanging": "Sensor"}})
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setattr(silence, "_GRACE_S", 5.0)
    method = measurement_pb2.Method()
    method.CopyFrom(QUICK)
    method.child_limit_ns, method.energy_rounds = 1_000_000_000, 1
    artifact = common_pb2.NamedArtifact(name="candidate.onnx", artifact=shelf.put(affine()))
    lease = lease_of(artifact, candidate=build_ref("candidate.onnx"), threads=1, batch=1, method=method)
    result = result_of(carry_out(tmp_path, shelf, lease))
    assert result.status == Status.MEASUREMENT_STATUS_TIMED_OUT
    assert result.message.startswith(
        "the measuring process ended as timed_out without a result: no sign of life for 6 s while "
    )
    assert not left(tmp_path)
    assert not [p for p in psutil.Process().children(recursive=True) if "fleetfit.agent.measuring" in p.cmdline()]


def test_content_without_room_is_a_result(tmp_path: Path, shelf: Shelf, paper: PaperChild) -> None:
    huge = common_pb2.ArtifactRef(sha256="0" * 64, size_bytes=1 << 60)
    result = result_of(carry_out(tmp_path, shelf, lease_of(common_pb2.NamedArtifact(name="a", artifact=huge))))
    assert result.status == Status.MEASUREMENT_STATUS_DISK_FULL
    assert "no room for 1152922 TB" in result.message and paper.started == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_a_result(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    async def child(*_: Any, **__: Any) -> ChildOutcome:
        raise OSError(number, "no room")

    monkeypatch.setattr(work, "run_child", child)
    result = result_of(carry_out(tmp_path, shelf, lease_of()))
    assert result.status == Status.MEASUREMENT_STATUS_DISK_FULL
    assert f"make room in {tmp_path}" in result.message


def test_a_child_that_could_not_write_its_result_met_a_full_disk(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def child(*_: Any, **__: Any) -> ChildOutcome:
        return ChildOutcome("failed", 1, "OSError: [Errno 28] No space left on device: 'result.new'")

    monkeypatch.setattr(work, "run_child", child)
    assert result_of(carry_out(tmp_path, shelf, lease_of())).status == Status.MEASUREMENT_STATUS_DISK_FULL


@pytest.mark.parametrize("name", ["", ".", "..", "../evil", "/etc/evil", "a/b", "a\0b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(
    tmp_path: Path, shelf: Shelf, paper: PaperChild, name: str
) -> None:
    artifact = common_pb2.NamedArtifact(name=name, artifact=shelf.put(b"evil"))
    with pytest.raises(InvalidInput, match="is not a plain file name"):
        carry_out(tmp_path, shelf, lease_of(artifact))
    task = lease_of()
    task.task_id = name
    with pytest.raises(InvalidInput, match="is not a plain file name"):
        carry_out(tmp_path, shelf, task)
    assert not left(tmp_path) and not list(tmp_path.rglob("*evil*"))


def test_a_server_that_cannot_be_reached_is_for_the_session(
    tmp_path: Path, shelf: Shelf, paper: PaperChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_ATTEMPTS", 1)
    monkeypatch.setattr(work, "_LINK_PATIENCE_S", -1.0)
    shelf.break_after = 1000
    artifact = common_pb2.NamedArtifact(name="a", artifact=shelf.put(b"x" * 5000))
    with pytest.raises(Unavailable):
        carry_out(tmp_path, shelf, lease_of(artifact))
    assert not left(tmp_path) and not list(Spool(tmp_path / "spool"))
    # What arrived is kept for the next time.
    carry_out(tmp_path, shelf, lease_of(artifact))
    assert shelf.downloads == [0, 1000]


def test_a_link_that_is_down_is_waited_for_where_the_download_was(
    tmp_path: Path, shelf: Shelf, paper: PaperChild, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transfer, "_ATTEMPTS", 1)
    monkeypatch.setattr(work, "_FIRST_WAIT_S", 0.01)
    shelf.break_after = 3000
    artifact = common_pb2.NamedArtifact(name="a", artifact=shelf.put(b"x" * 5000))
    carry_out(tmp_path, shelf, lease_of(artifact))
    assert shelf.downloads == [0, 3000] and paper.started == 1
    assert "3000 of 5000 bytes are here" in caplog.text


def test_what_an_earlier_life_left_half_done_is_removed(tmp_path: Path, shelf: Shelf, paper: PaperChild) -> None:
    (tmp_path / "tasks" / "t0.1" / "in").mkdir(parents=True)
    (tmp_path / "tasks" / "t0.1" / "in" / "candidate.onnx").write_bytes(b"old")
    carry_out(tmp_path, shelf, lease_of())
    assert not left(tmp_path)


def test_what_an_earlier_life_left_running_is_ended(tmp_path: Path) -> None:
    """A measuring process that was killed takes its trials along, and not what a trial forked away."""
    marker = tmp_path / "pid"
    away = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    open({str(marker)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        worker = Worker(tmp_path / "tasks", Cache(tmp_path / "cache", 1), Spool(tmp_path / "spool"), _no_channel)
        environment = dict(os.environ) | {MARK_VARIABLE: f"{worker._mark}/4711/0815"}
        subprocess.run([sys.executable, "-c", away], env=environment, check=True)
        while not (marker.exists() and marker.read_text()):
            time.sleep(0.02)
        orphan = psutil.Process(int(marker.read_text()))
        Worker(tmp_path / "elsewhere", Cache(tmp_path / "cache", 1), Spool(tmp_path / "spool"), _no_channel)
        assert orphan.is_running()
        Worker(tmp_path / "tasks", Cache(tmp_path / "cache", 1), Spool(tmp_path / "spool"), _no_channel)
        deadline = time.monotonic() + 10
        while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_task_that_is_stopped_leaves_neither_child_nor_files(tmp_path: Path, paper: PaperChild) -> None:
    async def run() -> None:
        paper.gate.clear()
        worker = Worker(tmp_path / "tasks", Cache(tmp_path / "cache", 1), Spool(tmp_path / "spool"), _no_channel)
        job = asyncio.create_task(worker.carry_out(lease_of()))
        while not paper.started:
            await asyncio.sleep(0.001)
        job.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await job

    asyncio.run(run())
    assert paper.killed == 1 and not left(tmp_path) and not list(Spool(tmp_path / "spool"))


def _no_channel() -> grpc.aio.Channel:
    raise AssertionError("nothing is to be fetched")
