"""SIGTERM ends server and agents in order, whatever they are doing, and a job goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from . import workload
from .conftest import Fleet, wait_for
from .moments import WAIT_S, lines, measuring, seen
from .windows import query

DEVICES = ("left", "right")
# The other device's agent has nothing to do: it must end as well.
ORDER = workload.Order("waves", ("flat.yaml",), DEVICES[:1])


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_watched_job_outlives_orderly_stops_of_the_server_and_of_all_agents(
    goods: Path, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet("--method", "quick", state=goods / "state")
    for name in DEVICES:
        fleet.start_agent(name)
    job = workload.start_jobs(fleet, goods, [ORDER])["waves"]
    watch = fleet.begin("watch", "jobs", "watch", job, "--json")

    wait_for(lambda: fleet.log("watch").startswith("{"), "the watch's first line", WAIT_S)
    wait_for(lambda: "fleetfit.compress.run" in lines(fleet), "a compression child", WAIT_S)
    assert fleet.stop("server") == 0
    assert "fleetfit.compress.run" not in lines(fleet)
    assert watch.poll() is None
    fleet.start_server()

    seen(fleet, measuring)
    for name in DEVICES:
        assert fleet.stop(name) == 0
        # A trial is the child of the agent's child: the kernel ends it with its parent, a moment after the agent.
        wait_for(lambda name=name: f"/agents/{name}" not in lines(fleet), f"the end of {name}'s children")
    assert fleet.stop("server") == 0
    (left,) = lines(fleet).splitlines()
    assert left.endswith(f"fleetfit jobs watch {job} --json")

    fleet.start_server()
    for name in DEVICES:
        fleet.start_agent(name)
    assert watch.wait(WAIT_S) == 0, fleet.log("watch")
    del fleet.processes["watch"]

    told = [json.loads(line)["job"] for line in fleet.log("watch").splitlines() if line.startswith("{")]
    assert told[-1]["state"] == "done"
    assert {one["state"] for one in told[-1]["candidates"]} == {"measured"}
    assert "Traceback" not in fleet.log("watch") + fleet.log("server") + fleet.log("left") + fleet.log("right")
    # A stop is nobody's fault: the variant that was being made is not one attempt nearer to failing.
    assert {row["attempts"] for row in query(fleet.root / "state", "SELECT attempts FROM variant")} == {1}

    # Idle now, a full cycle behind it; nobody stays.
    for name in (*DEVICES, "server"):
        assert fleet.stop(name) == 0
    wait_for(lambda: lines(fleet) == "", "the last process to be gone")
