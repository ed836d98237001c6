from __future__ import annotations

import asyncio
import os
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fleetfit.compress.tasks import WAITING_FOR_HOST, IntakeModel, Task, TaskProgress, TaskResult
from fleetfit.core.children import Limits
from fleetfit.core.hostlock import host_lock
from fleetfit.server.engine.executor import LocalExecutor
from fleetfit.server.storage.artifacts import ArtifactStore

TASK = Task(task_id="one", work=IntakeModel(format="pt2"))


def ignore(_: TaskProgress) -> None: ...


def our_children(taskdir: Path) -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if str(taskdir) in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tasks"


@pytest.fixture
def executor(folder: Path, store: ArtifactStore) -> LocalExecutor:
    return LocalExecutor(folder, store.copy, Limits(memory_bytes=4 << 30, wall_s=100))


def test_a_refusal_is_a_result(executor: LocalExecutor, folder: Path, keep: Callable[[bytes], str]) -> None:
    async def run() -> None:
        async with executor.run(TASK, {"model": keep(b"PK but no zip")}, ignore) as finished:
            assert finished.outcome.kind == "ok"
            assert finished.result is not None
            assert finished.result.error is not None
            assert finished.result.error.code == "INVALID_MODEL"
            assert finished.result.held, "the time in which the host was held is known"
            assert (folder / "one").exists()

    asyncio.run(run())
    assert list(folder.iterdir()) == []


def test_a_system_that_cannot_confine_is_told_of_once(
    executor: LocalExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    executor._warn_once(TaskResult(task_id="one", confinement=["landlock", "seccomp", "rlimits"]))
    assert not caplog.records
    for _ in range(2):
        executor._warn_once(TaskResult(task_id="one", confinement=["seccomp", "rlimits"]))
    (record,) = caplog.records
    assert "not confined by landlock" in record.getMessage()


def _big_enough_to_take_a_while(tmp_path: Path) -> bytes:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"x")
    return path.read_bytes()


def test_a_killed_child_is_seen_and_its_folder_goes(
    executor: LocalExecutor, folder: Path, keep: Callable[[bytes], str], tmp_path: Path
) -> None:
    digest = keep(_big_enough_to_take_a_while(tmp_path))

    async def kill() -> None:
        while not (children := our_children(folder / "one")):
            await asyncio.sleep(0.01)
        os.kill(children[0].pid, signal.SIGKILL)

    async def run() -> None:
        killing = asyncio.create_task(kill())
        async with executor.run(TASK, {"model": digest}, ignore) as finished:
            assert finished.result is None
            assert finished.outcome.exit_code == -signal.SIGKILL
        await killing

    asyncio.run(run())
    assert list(folder.iterdir()) == []


def test_cancelling_ends_the_child(
    executor: LocalExecutor, folder: Path, keep: Callable[[bytes], str], tmp_path: Path
) -> None:
    digest = keep(_big_enough_to_take_a_while(tmp_path))

    async def run() -> None:
        async def use() -> None:
            async with executor.run(TASK, {"model": digest}, ignore):
                raise AssertionError("it must not come so far")

        using = asyncio.create_task(use())
        while not (children := our_children(folder / "one")):
            await asyncio.sleep(0.01)
        using.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await using
        assert time.monotonic() - began < 5
        assert not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE

    asyncio.run(run())
    assert list(folder.iterdir()) == []


def test_what_an_earlier_life_left_is_removed(folder: Path, store: ArtifactStore) -> None:
    (folder / "old" / "in").mkdir(parents=True)
    LocalExecutor(folder, store.copy, Limits())
    assert list(folder.iterdir()) == []


def test_a_child_cannot_change_the_store(
    executor: LocalExecutor, folder: Path, keep: Callable[[bytes], str], store: ArtifactStore
) -> None:
    digest = keep(b"content")

    async def run() -> None:
        async with executor.run(TASK, {"model": digest}, ignore):
            inside = folder / "one" / "in" / "model"
            assert not inside.samefile(store.path(digest))

    asyncio.run(run())


def test_only_work_is_charged_to_a_task(
    executor: LocalExecutor, folder: Path, keep: Callable[[bytes], str], store: ArtifactStore
) -> None:
    digest = keep(b"PK but no zip")
    told: list[str] = []
    hasty = LocalExecutor(folder, store.copy, Limits(wall_s=6.0))

    async def run() -> None:
        with host_lock():
            waiting = asyncio.create_task(_outcome(hasty, digest, told))
            # Longer than the limit: had waiting been charged, it would be over now.
            await asyncio.sleep(7.0)
            assert not waiting.done()
        assert (await waiting) == "ok"

    asyncio.run(run())
    assert told[0] == WAITING_FOR_HOST


async def _outcome(executor: LocalExecutor, digest: str, told: list[str]) -> str:
    async with executor.run(TASK, {"model": digest}, lambda progress: told.append(progress.activity)) as finished:
        return finished.outcome.kind


def test_work_that_takes_too_long_is_ended(
    folder: Path, store: ArtifactStore, keep: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetfit.server.engine.executor.WAITING_FOR_HOST", "something else")
    hasty = LocalExecutor(folder, store.copy, Limits(wall_s=0.5))

    async def run() -> None:
        with host_lock():
            assert await _outcome(hasty, keep(b"x"), []) == "timed_out"

    asyncio.run(run())
