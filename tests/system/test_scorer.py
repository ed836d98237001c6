"""A job judged by a user's own metric: a scorer that is killed while it holds outputs, and another that finishes the job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Fleet, wait_for
from .moments import WAIT_S
from .windows import query

METRIC = """
import os, time
import numpy as np

def margin(outputs, targets):
    while os.path.exists("slow"):
        time.sleep(0.05)
    scores = next(iter(outputs.values()))
    return scores[np.arange(len(scores)), targets] - scores.mean(axis=1)

margin.unit = "logits"
"""


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_scorer_s_outputs_are_scored_by_another(make_fleet: Callable[..., Fleet], goods: Path) -> None:
    fleet = make_fleet("--method", "quick", state=goods / "state")
    fleet.start_agent("left")
    (fleet.root / "judge.py").write_text(METRIC)
    (fleet.root / "slow").touch()
    asked = ["compress", "dense", "--data", "dense", "--on", "left", "--recipe", "flat.yaml", "--metric", "user:margin"]
    job = fleet.run(*asked, "--max-drop", "100%", "--minimize", "size", "--json", cwd=goods).json["job"]["job_id"]

    def state() -> dict[str, Any]:
        found: dict[str, Any] = fleet.run("jobs", "show", job, "--json").json["job"]
        return found

    wait_for(lambda: query(fleet.root / "state", "SELECT id FROM task WHERE state = 'scoring'"), "outputs", WAIT_S)
    wait_for(
        lambda: "run `fleetfit scorer MODULE:FUNCTION --name margin`" in state()["progress"]["activity"], "the hint"
    )

    fleet.begin("scorer", "scorer", "judge:margin", "--server", fleet.address)
    leased = "SELECT id, fence FROM scoring WHERE state = 'leased'"
    held = wait_for(lambda: query(fleet.root / "state", leased), "a lease", WAIT_S)[0]
    assert held["fence"] == 1
    fleet.kill("scorer")
    (fleet.root / "slow").unlink()

    said = fleet.run("scorer", "judge:margin", "--once", "--json", "--server", fleet.address, timeout_s=150)
    assert fleet.run("jobs", "watch", job, "--json").json["job"]["state"] == "done"
    rows = {row["id"]: row for row in query(fleet.root / "state", "SELECT id, state, fence FROM scoring")}
    assert {row["state"] for row in rows.values()} == {"done"}
    assert rows[held["id"]]["fence"] == 2 and said.out.count('"scored"') == len(rows)

    report = fleet.run("report", job, "--json").json
    assert report["metric"] == {"name": "user:margin", "unit": "logits", "higher_is_better": True}
    original, flat = (
        next(c for c in report["devices"][0]["candidates"] if c["recipe"] == name) for name in ("original", "flat")
    )
    assert original["metric"]["value"] > 0 and original["test_metric"] is not None
    assert flat["drop"]["value"] == pytest.approx(original["metric"]["value"] - flat["metric"]["value"], abs=1e-6)
    assert any("scored by user:margin on its user's machine" in note for note in flat["notes"])
    assert "Traceback" not in fleet.log("server")
