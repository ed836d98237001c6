"""One job in every runtime that a device has: a real server builds, a real agent measures each and compares them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import Fleet
from .windows import outside, query, raw_results, recorded, together

ORT, VINO, NCNN = "onnxruntime", "openvino", "ncnn"


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_job_in_all_runtimes_ends_with_measured_candidates_in_each(
    make_fleet: Callable[..., Fleet], goods: Path, tmp_path: Path
) -> None:
    for package in (VINO, NCNN, "pnnx"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    fleet = make_fleet("--method", "quick", state=goods / "state")
    fleet.start_agent("left")
    asked = ["compress", "pictures", "--data", "pictures", "--on", "left", "--recipe", "flat.yaml"]
    refused = fleet.run(*asked, "--runtime", "abacus", cwd=goods, code=None)
    assert refused.code != 0 and "choose among onnxruntime, ncnn, onnxruntime-cuda" in refused.text
    planned = fleet.run(*asked, "int8-dynamic", "--runtime", "all", "--plan", "--json", cwd=goods).json["plan"]
    assert any("built for onnxruntime alone" in note for note in planned["notes"])

    limits = ["--max-drop", "100%", "--minimize", "size"]
    ended = fleet.run(*asked, "--runtime", "all", *limits, "--wait", "--json", cwd=goods, timeout_s=1000).json
    job = ended["job"]["job_id"]
    (device,) = fleet.run("report", job, "--json").json["devices"]
    found = {(c["recipe"], c["runtime"]): c for c in device["candidates"]}
    assert {key: c["status"] for key, c in found.items()} == {
        (recipe, runtime): "measured" for recipe in ("original", "flat") for runtime in (ORT, VINO, NCNN)
    }, {key: c["notes"] for key, c in found.items()}
    for (recipe, runtime), c in found.items():
        assert c["condition"]["runtime"] == runtime and c["latency_ms"]["p50"] > 0 and c["metric"]["value"] > 50
        if recipe == "original":
            assert c["speedup"]["original"]["ratio"] == 1
        assert c["speedup"]["best_uncompressed"]["ratio"] > 0
        # What is proven equal to one PyTorch model scores alike.
        assert c["metric"]["value"] == pytest.approx(found[recipe, ORT]["metric"]["value"], abs=1)
        # And each runtime gives here what it gave where the build was made.
        gap = c["metric"]["gap"]
        assert gap["compared"] == c["metric"]["n"] and not gap["flagged"], gap
    assert device["warnings"] == []
    assert sum(c["speedup"]["best_uncompressed"]["ratio"] == 1 for c in found.values() if c["baseline"]) == 1
    assert len({c["variant"] for (recipe, _), c in found.items() if recipe == "flat"}) == 1

    state = fleet.root / "state"
    pairs = {(r.runtime, len(r.pairs)) for r in raw_results(state).values() if r.pairs}
    assert {runtime for runtime, _ in pairs} == {ORT, VINO, NCNN}
    assert together(recorded(state)) == [] and outside(recorded(state)) == []
    assert {row["state"] for row in query(state, "SELECT state FROM build")} == {"done"}
    assert len(query(state, "SELECT id FROM build WHERE runtime = 'ncnn'")) == 2

    for runtime in (ORT, VINO, NCNN):
        folder = tmp_path / runtime
        variant = found["flat", runtime]["variant"]
        fleet.run("pull", job, "--variant", variant, "--runtime", runtime, "-o", str(folder))
        assert _outputs(folder, goods / "pictures.npz").shape == (1, 4)
        checked = subprocess.run(
            [sys.executable, "run.py", "--check", "--no-time", "--json"], cwd=folder, capture_output=True
        )
        assert checked.returncode == 0, checked
        assert [one["same"] for one in json.loads(checked.stdout)["outputs"]] == [True]
    one, other = (_outputs(tmp_path / runtime, goods / "pictures.npz") for runtime in (ORT, NCNN))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
    assert "Traceback" not in fleet.log("server") + fleet.log("left")


def _outputs(folder: Path, inputs: Path) -> Any:
    """What the pulled `run.py` prints, for the first sample."""
    done = subprocess.run(
        [sys.executable, "run.py", str(inputs)], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    (values,) = eval(done.stdout, {"__builtins__": {}}).values()
    return np.array(values)
