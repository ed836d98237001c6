"""A real device that begins to compute wrongly: found by its health check, set aside, and given work when it was repaired."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Fleet, wait_for
from .moments import WAIT_S
from .windows import query

# What a broken chip does, in every process of the device: numbers come out wrong.
_BROKEN = """
import onnxruntime
right = onnxruntime.InferenceSession.run
def wrong(self, *arguments, **options):
    return [values * 1.01 for values in right(self, *arguments, **options)]
onnxruntime.InferenceSession.run = wrong
"""


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_device_that_computes_wrongly_gets_no_work_until_it_is_well(
    make_fleet: Callable[..., Fleet], goods: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet("--method", "quick", "--health-every", "6h", state=goods / "state")
    state = fleet.root / "state"

    def judged(count: int, what: str) -> dict[str, Any]:
        """The newest check, once so many were judged."""
        sql = "SELECT * FROM health_check WHERE verdict != '' ORDER BY id"
        rows = wait_for(lambda: (found := query(state, sql))[count - 1 :] and found, what, WAIT_S)
        newest: dict[str, Any] = dict(rows[-1])
        return newest

    def device() -> dict[str, Any]:
        found: dict[str, Any] = fleet.run("devices", "show", "left", "--json").json["device"]
        return found

    fleet.start_agent("left")
    # A machine that is not quiet is checked all the same; only its speed cannot be judged, so it is checked twice.
    first = judged(1, "the check at the start")
    assert first["verdict"] in ("new", "unclear") and first["outputs_right"], first
    assert first["p50_ms"] > 0 and first["runtime"] == "onnxruntime", first
    before = len(query(state, "SELECT id FROM health_check"))

    # Broken, and started anew, as after a loss of power.
    fleet.kill("left")
    (fleet.root / "broken").mkdir()
    (fleet.root / "broken" / "sitecustomize.py").write_text(_BROKEN)
    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", str(fleet.root / "broken"))
        fleet.start_agent("left")
    wait_for(lambda: query(state, "SELECT id FROM device WHERE set_aside != ''"), "the failed check", WAIT_S)
    found = device()
    assert found["set_aside"].startswith("its outputs are wrong: ") and found["last_check"]["verdict"] == "failed"
    assert [event["text"] for event in found["events"]] == [f"set aside: {found['set_aside']}"]
    assert "set aside" in fleet.run("devices", "list").out
    job = fleet.run("bench", "dense", "--on", "left", "--json").json["job"]["job_id"]
    wait_for(lambda: query(state, "SELECT id FROM task WHERE state = 'waiting'"), "the job's task", WAIT_S)
    activity = fleet.run("jobs", "show", job, "--json").json["job"]["progress"]["activity"]
    assert "waiting for left, which is set aside (its outputs are wrong" in activity
    assert fleet.run("devices", "check", "left", "--wait", "2m", code=1).out.startswith("left failed")
    assert query(state, "SELECT state, fence FROM task")[0] == {"state": "waiting", "fence": 0}

    # Repaired: its next check says so itself, or, where the machine is not quiet, a person does.
    count = len(query(state, "SELECT id FROM health_check WHERE verdict != ''"))
    assert count >= before
    fleet.kill("left")
    fleet.start_agent("left")
    assert judged(count + 1, "a check that is right again")["outputs_right"]
    if query(state, "SELECT id FROM device WHERE set_aside != ''"):
        fleet.run("devices", "clear", "left")
    assert fleet.run("jobs", "watch", job, "--json", timeout_s=WAIT_S).json["job"]["state"] == "done"
    texts = [event["text"] for event in device()["events"]]
    assert {"passes again, and takes work again", "cleared by a person"} & set(texts)
    assert "Traceback" not in fleet.log("server") + fleet.log("left")
