"""kill -9 of each kind of process in the middle of three jobs: nothing is lost, nothing is measured twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import workload
from .conftest import Fleet, Undisturbed, wait_for
from .moments import WAIT_S, compressing, lines, measuring, seen
from .windows import outside, query, recorded, together

DEVICES = ("left", "right")


def states(fleet: Fleet) -> list[str]:
    jobs = fleet.run("jobs", "list", "--json").json["jobs"]
    return [candidate["state"] for job in jobs for candidate in job["candidates"]]


def kill_server(fleet: Fleet) -> tuple[str, int]:
    """While an agent measures; it ends that alone, and reports when the server is back. The task and its token."""
    # Looked for in the database: a command for each look would take a core from what is looked at.
    first = "SELECT id FROM candidate WHERE state = 'measured'"
    wait_for(lambda: query(fleet.root / "state", first), "a first measurement", WAIT_S)
    device, task, fence = seen(fleet, measuring)
    fleet.kill("server")
    spool = fleet.root / "agents" / device / "spool"
    wait_for(lambda: (spool / f"{task}.{fence}.pb.gz").exists(), "the result in the spool", WAIT_S)
    assert "fleetfit.compress.run" not in lines(fleet)
    fleet.start_server()
    wait_for(lambda: not any(spool.iterdir()), "the report of what was measured meanwhile", WAIT_S)
    return task, fence


def kill_agent(fleet: Fleet) -> tuple[str, int]:
    """In the middle of a task, which is leased again. The task and its token at the kill."""
    device, task, fence = seen(fleet, measuring)
    fleet.kill(device)
    wait_for(lambda: f"/agents/{device}/" not in lines(fleet), "its children's end")
    assert {"measured", "measuring"} <= set(states(fleet))
    fleet.start_agent(device)
    return task, fence


def kill_compression(fleet: Fleet) -> str:
    """While it works; the variant is made again. The task's name."""
    process, name = seen(fleet, compressing)
    process.kill()
    return str(name)


def check_ledger(state: Path) -> None:
    """One accepted measurement for each task, reported under the newest token, and nothing left open."""
    tasks = query(state, "SELECT id, candidate_id, split, state, fence, result_fence, result_sha256 FROM task")
    kept = query(state, "SELECT task_id, candidate_id, split, raw_sha256 FROM measurement")
    assert {task["state"] for task in tasks} == {"done"}
    assert all(task["fence"] == task["result_fence"] > 0 for task in tasks)
    assert {(t["id"], t["candidate_id"], t["split"], t["result_sha256"]) for t in tasks} == {
        (m["task_id"], m["candidate_id"], m["split"], m["raw_sha256"]) for m in kept
    }
    assert len(kept) == len(tasks) == len({m["raw_sha256"] for m in kept})
    assert len({(m["candidate_id"], m["split"]) for m in kept}) == len(kept)
    candidates = query(state, "SELECT id, state FROM candidate")
    assert {one["state"] for one in candidates} == {"measured"}
    judged = sorted(m["candidate_id"] for m in kept if m["split"] == "validation")
    assert judged == sorted(one["id"] for one in candidates)
    assert {one["state"] for one in query(state, "SELECT state FROM variant")} == {"done"}


def check_figures(report: dict[str, Any]) -> None:
    """Each candidate stands in the report once, with every figure that it can have."""
    for device in report["devices"]:
        recipes = [candidate["recipe"] for candidate in device["candidates"]]
        assert len(set(recipes)) == len(recipes)
        assert [c["recipe"] for c in device["candidates"] if c["selected"]], device["why"]
        for one in device["candidates"]:
            assert one["status"] == "measured"
            names = ("metric", "drop", "size_bytes", "parameters", "latency_ms", "peak_memory_bytes")
            assert all(one[name] is not None for name in names), one
            assert one["speedup"]["original"]["ratio"] > 0 and one["latency_ms"]["processes"] > 1
            # The test split is read for the originals and the selected one only.
            assert (one["test_metric"] is not None) == (one["baseline"] or one["selected"]), one


def builds(state: Path) -> dict[str, str]:
    return {row["variant_key"]: row["sha256"] for row in query(state, "SELECT variant_key, sha256 FROM build")}


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_jobs_survive_kills_of_server_agent_and_compression_with_the_same_results(
    goods: Path, undisturbed: Undisturbed, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet("--method", "quick", state=goods / "state")
    for name in DEVICES:
        fleet.start_agent(name)
    jobs = workload.start_jobs(fleet, goods)

    reported_late = kill_server(fleet)
    leased_again = kill_agent(fleet)
    made_again = kill_compression(fleet)
    reports = workload.finish_jobs(fleet, jobs)

    state = fleet.root / "state"
    expected = undisturbed.finish()
    for model in jobs:
        assert workload.settled(reports[model]) == workload.settled(expected[model])
        check_figures(reports[model])
    check_ledger(state)
    assert builds(state) == builds(undisturbed.fleet.root / "state")
    # What was measured while the server was dead was taken as it was, not measured once more.
    assert [task_row(state, reported_late[0])[name] for name in ("fence", "attempts")] == [reported_late[1], 1]
    again = task_row(state, leased_again[0])
    assert again["fence"] == leased_again[1] + 1 and again["attempts"] == 2
    key, _, attempt = made_again.rpartition(".")
    tried = query(state, "SELECT attempts FROM variant WHERE substr(key, 1, ?) = ?", str(len(key)), key)
    assert [row["attempts"] for row in tried] == [int(attempt) + 1]
    # The kernel frees a dead holder's lock, and only then: kills let nobody in beside a sample.
    assert together(recorded(state)) == [] and outside(recorded(state)) == []


def task_row(state: Path, task: str) -> dict[str, Any]:
    (row,) = query(state, "SELECT fence, attempts FROM task WHERE id = ?", task)
    return row
