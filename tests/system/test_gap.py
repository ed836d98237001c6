"""A device whose runtime computes something else is named; one that computes the same is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..runtimes.builds import WEIGHTS, affine
from .conftest import Fleet

# Constructed: takes ONNX Runtime's name on one device only, and is wrong where the first input is large.
_WRONG = """
import numpy as np
from fleetfit.runtimes.onnxruntime import OnnxRuntime
class Wrong(OnnxRuntime):
    def load(self, build, *, threads):
        loaded = super().load(build, threads=threads)
        run = loaded.run
        def wrongly(feeds):
            outputs = run(feeds)
            large = feeds["x"][:, 0] > 1.2
            return {name: np.where(large[:, None], -values, values) for name, values in outputs.items()}
        loaded.run = wrongly
        return loaded
"""


def wrong_site(folder: Path) -> Path:
    facts = folder / "wrong-1.0.dist-info"
    facts.mkdir(parents=True)
    (folder / "wrong_adapter.py").write_text(_WRONG)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[fleetfit.runtimes]\nonnxruntime = wrong_adapter:Wrong\n")
    return folder


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_device_that_computes_something_else_is_named(
    make_fleet: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(4)
    x = generator.standard_normal((2000, 4)).astype(np.float32)
    targets = (x @ WEIGHTS).argmax(axis=1)
    targets[::10] = generator.integers(0, 3, 200)
    np.savez(tmp_path / "data.npz", x=x, targets=targets)
    (tmp_path / "model.onnx").write_bytes(affine())
    fleet = make_fleet("--method", "quick")
    fleet.run("models", "push", "model.onnx", "--name", "net", "--json", cwd=tmp_path)
    fleet.run("data", "push", "data.npz", "--name", "points", "--model", "net", "--json", cwd=tmp_path)
    fleet.start_agent("right")
    with monkeypatch.context() as changed:
        changed.setenv("PYTHONPATH", str(wrong_site(tmp_path / "site")))
        fleet.start_agent("wrong")

    asked = [
        "bench",
        "net",
        "--data",
        "points",
        "--on",
        "right",
        "wrong",
        "--device-samples",
        "200",
        "--wait",
        "--json",
    ]
    job = fleet.run(*asked, timeout_s=250).json["job"]["job_id"]
    report = fleet.run("report", job, "--json").json
    found: dict[str, Mapping[str, Any]] = {one["device"]: one for one in report["devices"]}
    assert found["right"]["warnings"] == []
    same = found["right"]["candidates"][0]["metric"]
    assert (same["n"], same["of"]) == (200, 300)
    assert same["value"] == same["server"]["value"] and same["gap"]["compared"] == same["n"]
    assert (same["gap"]["flagged"], same["gap"]["differing"], same["gap"]["p"]) == (False, 0, 1.0)

    (warning,) = found["wrong"]["warnings"]
    other = found["wrong"]["candidates"][0]["metric"]
    gap = other["gap"]
    assert gap["flagged"] and gap["p"] < 0.01 and gap["value"] > 3 and gap["beyond"] > 5
    assert other["server"] == same["server"] and other["value"] < same["value"]
    worst = gap["worst_sample"]
    assert (worst["here"], worst["there"]) == (0.0, 1.0) and worst["distance"] > gap["tolerance"]
    assert f"the worst sample is {worst['index']}" in warning and "no chance" in warning
    table = " ".join(fleet.run("report", job).out.split())
    assert "Warning: original does not do on this device what it did on the server" in table
    verified = fleet.run("report", job, "--verify", "--json").json
    assert verified["holds"] and not verified["differences"], json.dumps(verified)[:2000]

    # On the target: with NumPy and ONNX Runtime alone, in the right runtime and in the constructed one.
    fleet.run("pull", job, "--device", "right", "--variant", found["right"]["candidates"][0]["variant"], "-o", "pulled")
    command = [sys.executable, str(fleet.root / "pulled" / "run.py"), "--check", "--json"]
    alike = subprocess.run([*command, "--no-time"], capture_output=True, text=True, timeout=60)
    assert alike.returncode == 0, alike
    said = json.loads(alike.stdout)
    assert [one["name"] for one in said["outputs"]] == ["scores", "positive"] and said["conditions"] == []
    timed = json.loads(
        subprocess.run([*command, "--processes", "2"], capture_output=True, text=True, timeout=100).stdout
    )
    assert timed["time"]["inside"] in (True, False) and timed["time"]["report"]["p50"] > 0
