"""A variant that is recovered in its user's own code: pulled, trained, put back, and measured beside the one it came from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Fleet

WAIT_S = 900


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_variant_is_pulled_trained_put_back_and_measured(make_fleet: Callable[..., Fleet], goods: Path) -> None:
    fleet = make_fleet("--method", "quick", state=goods / "state")
    fleet.start_agent("left")
    (fleet.root / "own.yaml").write_text(
        "{name: own, steps: [activation_pruning: {ratio: 0.5}, quantize: {mode: static}]}\n"
    )
    asked = ["compress", "dense", "--data", "dense", "--on", "left"]
    asked += ["--minimize", "size", "--max-drop", "100%", "--wait", "--json"]

    def candidates(*more: str) -> tuple[str, dict[str, Any]]:
        found = fleet.run(*asked, *more, timeout_s=WAIT_S).json
        device = found["report"]["devices"][0]
        return found["job"]["job_id"], {c["recipe"]: c for c in device["candidates"]}

    _, first = candidates("--recipe", "own.yaml")
    own = first["own"]
    variant = own["variant"]
    pulled = fleet.run("models", "pull", variant, "--trainable", "-o", "mine", "--json").json
    train = [sys.executable, "mine/train.py", str(goods / "dense.npz")]
    done = subprocess.run(
        train, cwd=fleet.root, env=fleet.environment, capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    hint = done.stdout.strip().splitlines()[-1].removeprefix("next: fleetfit ").split()
    assert hint[:2] == ["models", "push"] and hint[-2:] == ["--recovers", variant]

    pushed = fleet.run(*hint, "--json", timeout_s=WAIT_S).json["recovered"]
    assert pushed["variant"] == pulled["variant"] and pushed["recipe"] == "own"
    assert 0 < int(pushed["changed"]) <= int(pushed["tensors"])
    wrong = fleet.run("models", "push", str(goods / "dense.pt2"), "--recovers", variant, code=1, timeout_s=WAIT_S)
    assert "it is not the variant's network: at " in wrong.err and "fleetfit.trainable" in wrong.err

    job, second = candidates("--recipe", "original", "--recovered", pushed["recovered"][:10])
    assert set(second) == {"original", "own-recovered"}
    recovered = second["own-recovered"]
    assert (second["original"]["variant"], recovered["status"]) == (first["original"]["variant"], "measured")
    assert recovered["recovered"]["variant"] == variant
    assert recovered["recovered"]["file"] == pushed["artifact"]["sha256"]
    assert [step["pass_name"] for step in recovered["lineage"]] == [
        "original",
        "activation_pruning",
        "recovered",
        "quantize",
    ]
    for figure in ("parameters", "macs", "integer_operators"):
        assert recovered[figure] == own[figure], "the same network, quantized alike"
    assert recovered["metric"]["n"] == own["metric"]["n"] and recovered["drop"]["against"] == "original"
    assert "whether the original would gain as much" in recovered["notes"][0]
    text = fleet.run("report", job).out
    assert "own-recovered" in text
    fetched = fleet.run(
        "pull", job, "--device", "left", "--variant", recovered["variant"], "-o", "build", "--json", timeout_s=WAIT_S
    )
    assert (fleet.root / "build" / "run.py").exists(), fetched.out
    assert "Traceback" not in fleet.log("server")
