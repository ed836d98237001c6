"""An emulated Raspberry Pi 4 as a device of a real server: enrolled, matched, measured in two runtimes, and never chosen for.

`make test-standin` runs this alone and writes benchmarks/results/run-raspberry-pi-4-emulated.json, on which the device's
profile rests where it says `emulated`.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.standin import RUNTIMES, StandIn, stand_in
from fleetfit.core.errors import Unavailable, UnsupportedHere

from . import workload
from .conftest import Fleet, wait_for
from .sites import other_method
from .windows import query

# Starting a process takes ten times as long there, and more where other tests are at work.
SLOW_S = 400.0
pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1500)]

NAME, PROFILE, MODEL = "pi", "raspberry-pi-4", "pictures"
MARK = "its timings mean nothing"


@dataclass
class Measured:
    """A fleet of one emulated board after its job, in which the agent was killed and started again."""

    fleet: Fleet
    job: str
    report: dict[str, Any]

    @property
    def device(self) -> dict[str, Any]:
        (found,) = self.report["devices"]
        return dict(found)


@pytest.fixture(scope="module")
def board() -> StandIn:
    """The stand-in, made the first time; skips where it cannot be."""
    try:
        return stand_in()
    except (UnsupportedHere, Unavailable) as error:
        pytest.skip(error.message)


@pytest.fixture(scope="module")
def measured(board: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """One job in both runtimes. Nothing says to the agent that it is emulated."""
    root = tmp_path_factory.mktemp("fleet")
    fleet = Fleet(root, ("--method", "quick"))
    # Starting processes is what takes long there; that either build is loaded first in turn is tried in tests/agent.
    fleet.surroundings = {"server": {"PYTHONPATH": str(other_method(root / "brief", pair_processes=1))}}
    try:
        fleet.start_server()
        yield _measure(fleet, board, tmp_path_factory)
    finally:
        fleet.close()


def _measure(fleet: Fleet, board: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    goods = tmp_path_factory.mktemp("goods")
    workload.make_goods(goods, [MODEL])
    fleet.start_agent(NAME, python=board.python, ready_s=SLOW_S)
    fleet.run("models", "push", f"{MODEL}.pt2", cwd=goods)
    fleet.run("data", "push", f"{MODEL}.npz", "--model", MODEL, cwd=goods)
    asked = ["compress", MODEL, "--data", MODEL, "--on", NAME, "--recipe", "int8-dynamic", "--runtime", *RUNTIMES]
    job = fleet.run(*asked, "--max-drop", "100%", "--minimize", "size", "--json").json["job"]["job_id"]
    wait_for(lambda: _at_work(fleet, "agent.measuring.trials"), "the emulated board at work", SLOW_S)
    fleet.kill(NAME)
    wait_for(lambda: not _at_work(fleet, "fleetfit.agent"), "the end of all that the agent had started")
    fleet.start_agent(NAME, python=board.python, ready_s=SLOW_S)
    fleet.run("jobs", "watch", job, timeout_s=1200)
    return Measured(fleet, job, fleet.run("report", job, "--json").json)


def _at_work(fleet: Fleet, module: str) -> list[str]:
    """Command lines of this module's processes on the board."""
    found = []
    for one in fleet.relatives():
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(one.cmdline()))
    return [line for line in found if "qemu" in line and module in line]


def test_the_board_is_matched_from_its_device_tree_and_seen_to_be_emulated(measured: Measured) -> None:
    fleet = measured.fleet
    (listed,) = fleet.run("devices", "list", "--json").json["devices"]
    assert (listed["profile"], listed["emulated"]) == (PROFILE, True)
    assert "raspberrypi,4-model-b" in listed["profile_reason"]
    snapshot = listed["snapshot"]
    assert (snapshot["machine"], snapshot["emulated"]) == ("aarch64", True)
    # Newer releases call the program qemu-aarch64.
    assert snapshot["emulated_because"].startswith("/proc/thread-self/exe is qemu-aarch64")
    assert snapshot["device_tree_model"].startswith("Raspberry Pi 4 Model B")
    assert snapshot["processor"]["model"] == "Cortex-A72"
    available = {one["name"]: one.get("available", False) for one in snapshot["runtimes"]}
    assert {name for name, here in available.items() if here} == set(RUNTIMES)
    assert f"{PROFILE} (emulated)" in fleet.run("devices", "list").out
    assert MARK in " ".join(fleet.run("devices", "show", NAME).out.split())


def test_its_builds_ran_in_both_runtimes(measured: Measured) -> None:
    found = {(c["recipe"], c["runtime"]): c for c in measured.device["candidates"]}
    assert set(found) == {("original", "onnxruntime"), ("original", "ncnn"), ("int8-dynamic", "onnxruntime")}
    for (_, runtime), c in found.items():
        assert c["status"] == "measured", c["notes"]
        assert (c["condition"]["runtime"], c["condition"]["processor"]) == (runtime, "Cortex-A72")
        assert c["latency_ms"]["p50"] > 0 and c["metric"]["where"] == "device" and c["metric"]["value"] > 50
    # What is proven equal to one PyTorch model scores alike on another architecture too.
    ours, theirs = (found["original", runtime]["metric"]["value"] for runtime in RUNTIMES)
    assert ours == pytest.approx(theirs, abs=1)
    again = measured.fleet.run("report", measured.job, "--verify", "--json").json
    assert again["holds"] and not again["skipped"]


def test_every_form_of_the_report_says_emulated_and_nothing_is_chosen(measured: Measured, tmp_path: Path) -> None:
    fleet, job = measured.fleet, measured.job
    assert measured.device["emulated"] is True and measured.device["selected"] is None
    assert MARK.replace("its", "so its") in measured.device["why"] and "--accept-emulated" in measured.device["why"]
    table = " ".join(fleet.run("report", job).out.split())
    assert f"This device is emulated: {MARK}" in table and "Nothing was chosen" in table
    assert f"**This device is emulated: {MARK}.**" in fleet.run("report", job, "--format", "md").out
    rows = list(csv.DictReader(io.StringIO(fleet.run("report", job, "--format", "csv").out)))
    assert len(rows) == 3 and {row["emulated"].lower() for row in rows} == {"true"}
    assert not any(row["selected"].lower() == "true" for row in rows)
    fleet.run("report", job, "-o", str(tmp_path / "report.html"))
    assert "Emulated: the timings of this device mean nothing." in (tmp_path / "report.html").read_text()
    # A build that is not chosen is had by its variant, and says where its figures are from.
    variant = measured.device["candidates"][-1]["variant"]
    fleet.run("pull", job, "--variant", variant, "-o", str(tmp_path / "build"))
    assert json.loads((tmp_path / "build" / "manifest.json").read_text())["emulated"] is True


def test_an_agent_that_is_killed_leaves_nothing_and_does_its_task_again(measured: Measured) -> None:
    attempts = [row["attempts"] for row in query(measured.fleet.root / "state", "SELECT attempts FROM task")]
    assert max(attempts) == 2 and len(attempts) >= 3
    assert measured.fleet.log(NAME).count("connected to") == 2
    assert "Traceback" not in measured.fleet.log(NAME) + measured.fleet.log("server")


def test_what_was_seen_is_recorded_on_request(measured: Measured, repository: Path) -> None:
    snapshot = measured.fleet.run("devices", "show", NAME, "--json").json["device"]["snapshot"]
    versions = {one["name"]: one["version"] for one in snapshot["runtimes"] if one["name"] in RUNTIMES}
    emulator = subprocess.run(["qemu-aarch64-static", "--version"], capture_output=True, text=True, check=True)
    record = {
        "emulated": "enrolment, matching, measuring in both runtimes, a killed agent, the report: make test-standin",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "profile": PROFILE,
        "model": snapshot["device_tree_model"],
        "because": snapshot["emulated_because"],
        "emulator": emulator.stdout.splitlines()[0],
        "system": snapshot["os"]["name"],
        "python": snapshot["python_version"],
        "runtimes": versions,
        "measured": sorted(f"{c['recipe']} in {c['runtime']}" for c in measured.device["candidates"]),
    }
    assert all(record.values())
    if os.environ.get("FLEETFIT_TEST_STANDIN"):
        path = repository / "benchmarks" / "results" / f"run-{PROFILE}-emulated.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
