"""The user's service is stopped and started by real hooks in real processes, which may be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fleetfit.agent.hooks import AFTER, BEFORE, HookFailed, service_stopped, start_what_was_left
from fleetfit.proto.v1 import common_pb2, measurement_pb2

from ..runtimes.builds import affine
from .measuring.tasks import QUICK, build_ref
from .shelf import Shelf
from .test_work import carry_out, lease_of, result_of

MARK = "service-is-stopped"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    hook(folder, BEFORE, "echo stopped")
    hook(folder, AFTER, "echo started")
    return folder


def hook(state: Path, name: str, script: str) -> Path:
    path = state / "hooks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n({script}) >> {state}/said\n")
    path.chmod(0o755)
    return path


def said(state: Path) -> list[str]:
    path = state / "said"
    return path.read_text().split() if path.exists() else []


def stop(state: Path) -> bool:
    async def run() -> bool:
        async with service_stopped(state) as stopped:
            with (state / "said").open("a") as file:
                file.write("measured\n")
            return stopped

    return asyncio.run(run())


def wait_for(state: Path, words: list[str]) -> None:
    deadline = time.monotonic() + 60
    while said(state) != words and time.monotonic() < deadline:
        time.sleep(0.02)
    assert said(state) == words


def test_the_service_is_stopped_while_it_measures(state: Path) -> None:
    assert stop(state) is True
    assert said(state) == ["stopped", "measured", "started"]
    assert not (state / "hooks" / MARK).exists()


def test_without_hooks_nothing_is_stopped(tmp_path: Path) -> None:
    async def run() -> bool:
        async with service_stopped(tmp_path) as stopped:
            return stopped

    assert asyncio.run(run()) is False and not list(tmp_path.iterdir())


@contextlib.contextmanager
def stopping_agent(state: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has stopped the service, and does not end by itself."""
    code = (
        "import asyncio, sys; from pathlib import Path; from fleetfit.agent.hooks import service_stopped\n"
        "async def run():\n"
        "    async with service_stopped(Path(sys.argv[1])):\n"
        "        print('inside', flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(run())"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(state)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "inside\n"
        try:
            yield process
        finally:
            process.kill()


def test_an_agent_that_is_killed_leaves_the_service_running(state: Path) -> None:
    with stopping_agent(state) as agent:
        assert said(state) == ["stopped"] and (state / "hooks" / MARK).exists()
        os.kill(agent.pid, signal.SIGKILL)
    wait_for(state, ["stopped", "started"])


def test_a_manager_that_ends_everything_leaves_the_service_running(state: Path) -> None:
    with stopping_agent(state) as agent:
        (guardian,) = psutil.Process(agent.pid).children()
        guardian.send_signal(signal.SIGTERM)
        wait_for(state, ["stopped", "started"])


def test_what_a_loss_of_power_left_is_started_when_the_agent_starts(state: Path) -> None:
    (state / "hooks" / MARK).touch()
    asyncio.run(start_what_was_left(state))
    asyncio.run(start_what_was_left(state))
    assert said(state) == ["started"] and not (state / "hooks" / MARK).exists()


def test_a_service_that_does_not_start_is_tried_again(state: Path) -> None:
    hook(state, AFTER, "echo tried; exit 1")
    stop(state)
    assert said(state) == ["stopped", "measured"] or (state / "hooks" / MARK).exists()
    hook(state, AFTER, "echo started")
    asyncio.run(start_what_was_left(state))
    assert said(state)[-1] == "started" and not (state / "hooks" / MARK).exists()


def test_a_service_that_cannot_be_stopped_is_not_measured_beside(state: Path) -> None:
    (state / "hooks" / BEFORE).write_text("#!/bin/sh\necho no such unit >&2; exit 5\n")
    with pytest.raises(HookFailed, match=r"before-measuring ended with 5 \(no such unit\); mend it"):
        stop(state)
    # Half stopped is started again.
    assert said(state) == ["started"]


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        (BEFORE, 0o777, "may be written by others"),
        (AFTER, 0o777, "may be written by others"),
        (AFTER, 0o644, "is not executable"),
        (AFTER, None, "the service would stay stopped"),
    ],
)
def test_hooks_that_are_not_safe_stop_nothing(state: Path, name: str, mode: int | None, words: str) -> None:
    path = state / "hooks" / name
    path.unlink() if mode is None else path.chmod(mode)
    with pytest.raises(HookFailed, match=words):
        stop(state)
    assert "stopped" not in said(state)


def test_a_service_that_a_hook_starts_itself_holds_nothing_up(state: Path) -> None:
    (state / "hooks" / AFTER).write_text(
        f"#!/bin/sh\nsleep 300 &\necho $! > {state}/pid\necho started >> {state}/said\n"
    )
    began = time.monotonic()
    stop(state)
    assert said(state)[-1] == "started" and time.monotonic() - began < 60
    os.kill(int((state / "pid").read_text()), signal.SIGKILL)


def test_a_measurement_says_that_the_application_was_stopped(state: Path, shelf: Shelf) -> None:
    artifact = common_pb2.NamedArtifact(name="candidate.onnx", artifact=shelf.put(affine()))
    lease = lease_of(artifact, candidate=build_ref("candidate.onnx"), threads=1, batch=1, method=QUICK)
    result = result_of(carry_out(state, shelf, lease))
    assert result.status == measurement_pb2.MEASUREMENT_STATUS_MEASURED
    assert result.condition["application"] == "stopped" and said(state) == ["stopped", "started"]

    hook(state, BEFORE, "exit 1")
    result = result_of(carry_out(state, shelf, lease))
    assert result.status == measurement_pb2.MEASUREMENT_STATUS_REFUSED
    assert "the hook before-measuring ended with 1" in result.message
