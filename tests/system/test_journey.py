"""What the README promises, with models none like the demo's, and with nothing but its commands."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(400)]

SAMPLES = 1500
# The largest that an agent may be at rest, with mutual TLS up and a task behind it.
AT_REST_BYTES = 45 << 20
JOURNEYS = {
    "two_inputs": ("accuracy", ["pruned-int8"]),
    "signals": ("accuracy", ["low-rank", "int8-dynamic"]),
    "regression": ("mean_absolute_error", ["small-and-quick"]),
}


@pytest.fixture(scope="module")
def fleet(module_fleet: Callable[..., Any]) -> Any:
    """A server and one device; the model of every example registered with its data."""
    made = module_fleet("--method", "quick")
    made.start_agent("edge", 1)
    return made


@pytest.fixture
def example(fleet: Any, repository: Path) -> Callable[[str], Path]:
    """A copy of an example's folder, as a user would have it, its model and data registered."""

    def ready(name: str) -> Path:
        folder: Path = fleet.root / name
        if not folder.exists():
            shutil.copytree(repository / "examples" / name, folder, ignore=shutil.ignore_patterns("data.npz", "__*"))
            # As `make_data.py` does, but fewer: what is tried here is the way through, not how good the result is.
            save = f"import numpy, make_data; numpy.savez('data.npz', **make_data.make_data({SAMPLES}))"
            subprocess.run([sys.executable, "-c", save], cwd=folder, check=True)
            fleet.run("models", "push", "model:make", "--name", name, cwd=folder)
            fleet.run("data", "push", "data.npz", "--name", name, "--model", name, cwd=folder)
        return folder

    return ready


@pytest.mark.parametrize("name", JOURNEYS)
def test_from_a_models_source_to_a_build_that_runs(fleet: Any, example: Callable[[str], Path], name: str) -> None:
    metric, recipes = JOURNEYS[name]
    folder = example(name)
    asked = [name, "--data", name, "--on", "edge", "--recipe", *recipes, "--max-drop", "900%", "--minimize", "size"]
    profiled = name == "two_inputs"
    asked += ["--profile"] if profiled else []
    planned = fleet.run("compress", *asked, "--plan", "--json").json["plan"]
    assert {c["recipe"] for c in planned["candidates"]} >= {"original", *recipes}
    fleet.run("compress", *asked, "--wait", timeout_s=300)
    report = fleet.run("report", "last", "--json").json
    assert report["metric"]["name"] == metric
    (device,) = report["devices"]
    assert all(c["status"] == "measured" for c in device["candidates"])
    for candidate in device["candidates"]:
        low, high = candidate["latency_ms"]["ci95"]
        assert 0 < low <= candidate["latency_ms"]["p50"] <= high
        assert candidate["metric"]["split"] == "validation"
        assert candidate["metric"]["where"] == "device"
        assert candidate["peak_memory_bytes"] > 0
    assert device["controls"]
    finalists = {c["recipe"]: c["profile"] for c in device["candidates"] if c["profile"]}
    assert set(finalists) == ({"original", *recipes} if profiled else set())
    for profile in finalists.values():
        assert profile["not_offered_because"] == "" and profile["operators"][0]["placed"] == "CPU"
        assert abs(sum(one["share"] for one in profile["operators"]) - 1) < 1e-9
        # One thread works on one operator at a time.
        assert 0 < profile["operators_ms"] <= profile["call_ms"]
    table = fleet.run("report", "last").out
    assert ("Where the time goes:" in table) is profiled and max(map(len, table.splitlines())) <= 80
    again = fleet.run("report", "last", "--verify", "--json").json
    assert again["holds"] and not again["skipped"] and again["results"] >= len(device["candidates"])
    smallest = min(c["size_bytes"] for c in device["candidates"])
    assert smallest < device["candidates"][0]["size_bytes"]
    chosen = device["selected"] or next(c["variant"] for c in device["candidates"] if c["size_bytes"] == smallest)
    build = folder / "build"
    fleet.run("pull", "last", "--variant", chosen, "-o", str(build))
    ran = subprocess.run(
        [sys.executable, build / "run.py", folder / "data.npz"], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert "output" in ran.stdout


def test_a_report_in_every_form(fleet: Any, example: Callable[[str], Path]) -> None:
    folder = example("regression")
    fleet.run(
        "bench", "regression", "--data", "regression", "--on", "edge", "--sustained", "10s", "--scaling", "--wait"
    )
    table = fleet.run("report", "last").out
    assert "A/A control: timed beside itself the original came out" in " ".join(table.split())
    assert "after 10 s without a pause a call takes" in " ".join(table.split())
    (device,) = fleet.run("report", "last", "--json").json["devices"]
    scaling = device["candidates"][0]["scaling"]
    assert scaling["threads"]["points"][0]["throughput"]["value"] > 0 and "How original scales:" in table
    assert all(scaling[curve]["ended"] for curve in ("threads", "batch", "instances"))
    assert ": all come out as printed" in fleet.run("report", "last", "--verify").out
    assert max(map(len, table.splitlines())) <= 80
    rows = list(csv.DictReader(io.StringIO(fleet.run("report", "last", "--format", "csv").out)))
    assert [row["recipe"] for row in rows] == ["original"]
    assert "| " in fleet.run("report", "last", "--format", "md").out
    fleet.run("report", "last", "-o", str(folder / "report.html"))
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "How it scales" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert json.loads(fleet.run("report", "last", "--format", "json").out)["kind"] == "bench"


def test_an_emulated_device_is_measured_and_never_chosen_for(fleet: Any, example: Callable[[str], Path]) -> None:
    example("regression")
    fleet.start_agent("paper-pi", 1, "--emulated")
    asked = ["compress", "regression", "--data", "regression", "--on", "paper-pi", "--recipe", "small-and-quick"]
    planned = fleet.run(*asked, "--plan", "--json").json["plan"]
    assert any("--accept-emulated" in note for note in planned["notes"])
    fleet.run(*asked, "--max-drop", "50%", "--wait", timeout_s=300)
    (device,) = fleet.run("report", "last", "--json").json["devices"]
    assert device["emulated"]
    assert device["selected"] is None
    assert "emulated" in device["why"]
    assert "emulated" in fleet.run("report", "last").out
    fleet.run(*asked, "--max-drop", "900%", "--minimize", "size", "--accept-emulated", "--wait", timeout_s=300)
    (device,) = fleet.run("report", "last", "--json").json["devices"]
    assert device["emulated"] and device["selected"]
    fleet.run("pull", "last", "-o", str(fleet.root / "paper-build"))
    assert json.loads((fleet.root / "paper-build" / "manifest.json").read_text())["emulated"] is True
    fleet.stop("paper-pi")


def test_an_agent_at_rest_is_small(fleet: Any, example: Callable[[str], Path]) -> None:
    example("regression")
    fleet.run("bench", "regression", "--data", "regression", "--on", "edge", "--wait")
    process = psutil.Process(fleet.processes["edge"].pid)
    resident = process.memory_info().rss
    assert not process.children()
    assert resident <= AT_REST_BYTES, f"{resident / 2**20:.1f} MiB"
