"""Clocks that jump by days, on a device and on the server, and a device that sleeps: nothing is lost or counted twice."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Fleet, wait_for
from .moments import WAIT_S, measuring, seen
from .refusals import check_log
from .sites import Clock
from .windows import query, raw_results

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


def begin(fleet: Fleet, name: str) -> str:
    return str(fleet.run("bench", "net", "--on", name, "--json").json["job"]["job_id"])


def task_of(fleet: Fleet, job: str) -> dict[str, Any]:
    (task,) = query(fleet.root / "state", "SELECT * FROM task WHERE job_id = ?", job)
    return task


def ended(fleet: Fleet, job: str) -> dict[str, Any]:
    """The only task of a job, once the job has ended; measured, and accepted once."""
    over = "SELECT 1 FROM job WHERE id = ? AND state != 'running'"
    wait_for(lambda: query(fleet.root / "state", over, job), f"the job {job}", WAIT_S)
    task = task_of(fleet, job)
    assert task["state"] == "done", query(fleet.root / "state", "SELECT reason FROM candidate WHERE job_id = ?", job)
    kept = query(fleet.root / "state", "SELECT id FROM measurement WHERE task_id = ?", task["id"])
    assert len(kept) == 1 and task["result_fence"] == task["fence"]
    return task


def check_times(fleet: Fleet) -> None:
    """No stretch of time is negative, in what is kept and in what is shown."""
    for result in raw_results(fleet.root / "state").values():
        for run in (result.solo, result.held, *result.pairs):
            window = run if run is result.held else run.window
            assert 0 < window.begin_monotonic_ns <= window.end_monotonic_ns
        assert result.solo.load_ns > 0 and min(result.solo.latency_ns) > 0
        looks = [reading.monotonic_ns for reading in result.readings]
        assert looks == sorted(looks)
    for command in (("jobs", "list"), ("jobs", "show", "last"), ("devices", "list"), ("report", "last")):
        said = fleet.run(*command).out
        assert not re.search(r"(?<![\w-])-\d", said), said


def test_a_fleet_lives_through_clocks_that_jump(files: Path, tmp_path: Path) -> None:
    here, there = Clock(tmp_path / "server-clock"), Clock(tmp_path / "device-clock")
    fleet = Fleet(tmp_path, ("--method", "quick"))
    fleet.surroundings = {"server": here.surroundings, "pi": there.surroundings}
    try:
        fleet.start_server()
        fleet.start_agent("pi")
        fleet.run("models", "push", str(files / "net.onnx"))

        # In the middle of a measurement, on both sides: leases and windows are by clocks that do not jump.
        jobs = []
        for device_days, server_days in ((20, 9), (0, 0.5)):
            jobs.append(begin(fleet, "pi"))
            seen(fleet, measuring)
            there.set(device_days)
            here.set(server_days)
            assert [ended(fleet, jobs[-1])[name] for name in ("fence", "attempts")] == [1, 1]
            check_times(fleet)

        # A server that starts again with a clock that is days behind what it was.
        fleet.kill("server")
        here.set(0)
        connected = fleet.log("pi").count("connected to")
        fleet.start_server()
        wait_for(lambda: fleet.log("pi").count("connected to") > connected, "the device to connect", WAIT_S)
        # Its newest job is the newest although earlier lives were days ahead.
        jobs.append(begin(fleet, "pi"))
        assert fleet.run("jobs", "show", "last", "--json").json["job"]["job_id"] == jobs[2]
        assert jobs == sorted(jobs)
        assert ended(fleet, jobs[2])["attempts"] == 1
        check_times(fleet)
        for name in ("pi", "server"):
            check_log(fleet, name)
        assert fleet.processes["pi"].poll() is None
    finally:
        fleet.close()


def test_what_a_device_reports_after_a_sleep_is_refused_where_its_task_was_done_again(
    make_fleet: Callable[..., Fleet], files: Path, tmp_path: Path
) -> None:
    """Asleep is the agent, not its measurement; its folder is copied to another board meanwhile, which takes over."""
    fleet = make_fleet("--method", "quick")
    fleet.start_agent("pi")
    fleet.run("models", "push", str(files / "net.onnx"))
    job = begin(fleet, "pi")
    _, task, fence = seen(fleet, measuring)
    fleet.processes["pi"].send_signal(signal.SIGSTOP)
    try:
        state = fleet.root / "state"
        free = "SELECT 1 FROM task WHERE id = ? AND state = 'waiting'"
        wait_for(lambda: query(state, free, task), "the lease to run out", WAIT_S)
        devices = ("devices", "list", "--json")
        wait_for(lambda: fleet.run(*devices).json["devices"][0]["state"] == "offline", "it to be missed", WAIT_S)
        (fleet.root / "agents" / "other").mkdir()
        shutil.copytree(fleet.root / "agents" / "pi" / "identity", fleet.root / "agents" / "other" / "identity")
        fleet.start_agent("other")
        assert ended(fleet, job)["fence"] == fence + 1
        kept = query(state, "SELECT raw_sha256 FROM measurement")
    finally:
        fleet.processes["pi"].send_signal(signal.SIGCONT)
    # The one that sleeps no more has the newest session; of the other, whose folder it is not, the device has no need.
    wait_for(lambda: "the result is no longer wanted" in fleet.log("pi"), "the late report to be refused", WAIT_S)
    assert f"the task {task} was leased again since (token {fence + 1}, not {fence})" in fleet.log("pi")
    assert query(state, "SELECT raw_sha256 FROM measurement") == kept
    assert ended(fleet, job)["attempts"] == 2
    wait_for(lambda: fleet.processes["other"].poll() is not None, "the other to end", WAIT_S)
    assert fleet.processes.pop("other").returncode == 1
    assert "one device is one agent: stop the other" in fleet.log("other")
    assert not any((fleet.root / "agents" / "pi" / "spool").iterdir())
    # It works on.
    assert ended(fleet, begin(fleet, "pi"))["attempts"] == 1
    for name in ("pi", "server"):
        check_log(fleet, name)
