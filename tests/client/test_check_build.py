"""`run.py --check` in a pulled folder: files, outputs, time and conditions, with nothing but NumPy and the runtime."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.agent.measuring import timing
from fleetfit.agent.probe import processor, readings
from fleetfit.agent.probe.files import Tree
from fleetfit.client import check_build
from fleetfit.client.pulling import place_build
from fleetfit.core.arm import ARM_CORES
from fleetfit.core.errors import IntegrityError
from fleetfit.core.statistics_latency import geometric_interval, quotient_interval
from fleetfit.core.statistics_student import Interval, student_quantile
from fleetfit.core.ties import EQUIVALENCE_MARGIN, is_even
from fleetfit.proto.v1 import common_pb2, reports_pb2

from ..runtimes.builds import affine

BUILD = affine()
INPUT = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)


def put(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


@pytest.fixture
def pull(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Pull a build into a folder: with samples, and a manifest that says what it was measured as."""

    def place(
        *,
        wrong: float = 0.0,
        samples: bool = True,
        runtime: str = "onnxruntime",
        emulated: bool = False,
        **measured: Any,
    ) -> Path:
        outputs = onnxruntime.InferenceSession(BUILD).run(None, {"x": INPUT})
        arrays = {"inputs/x": INPUT, "outputs/scores": outputs[0] + wrong, "outputs/positive": outputs[1]}
        with (tmp_path / "kept.npz").open("wb") as file:
            np.savez(file, **arrays)
        stored = (tmp_path / "kept.npz").read_bytes()
        manifest: dict[str, Any] = {
            "schema": 1,
            "device": "pi",
            "emulated": emulated,
            "runtime": runtime,
            "files": {"m.onnx": put(BUILD)},
            "check": {},
            "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 4]}],
            "options": {"threads": 1, "batch": 1},
            "measured": measured,
        }
        contents = {hashlib.sha256(BUILD).hexdigest(): BUILD}
        if samples:
            manifest["files"]["samples.npz"] = put(stored)
            manifest["check"] = {"samples": "samples.npz", "tolerance": 1e-3}
            contents[hashlib.sha256(stored).hexdigest()] = stored
        answer = reports_pb2.GetBuildResponse(manifest_json=json.dumps(manifest))
        answer.build.name = "m.onnx"
        answer.build.artifact.sha256, answer.build.artifact.size_bytes = put(BUILD).values()
        if samples:
            answer.samples.name = "samples.npz"
            answer.samples.artifact.sha256, answer.samples.artifact.size_bytes = put(stored).values()

        def download(artifact: common_pb2.ArtifactRef, path: Path) -> None:
            path.write_bytes(contents[artifact.sha256])

        return place_build(answer, tmp_path / f"out{len(list(tmp_path.iterdir()))}", download).folder

    yield place


def check(folder: Path, *arguments: str, code: int | None = None) -> Any:
    """What `run.py --check --json` says where fleetfit is not installed."""
    guard = "import sys; [sys.modules.__setitem__(n, None) for n in ('fleetfit', 'torch', 'onnx')]; sys.argv = sys.argv[1:]; "
    run = "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", guard + run, str(folder / "run.py"), "--check", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=100)
    assert "Traceback" not in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["holds"] else 1)
    assert code is None or done.returncode == code, found
    return found


def test_a_build_that_is_what_its_report_says(pull: Callable[..., Path]) -> None:
    folder = pull()
    # Wide enough for any machine, so that the verdict does not depend on this one.
    first = check(folder, "--processes", "3", code=0)
    assert first["time"]["words"] == "the report has no interval of the median to compare with"
    here = first["time"]["here"]
    assert here["processes"] == 3 and here["ci95"][0] <= here["p50"] <= here["ci95"][1]
    p50 = here["p50"]
    folder = pull(
        latency_ms={"p50": p50, "ci95": [p50 / 3, p50 * 3]},
        condition={"runtime_version": onnxruntime.__version__, "kernel": "6.1.0-none", "processor": "Cortex-A76"},
    )
    found = check(folder, "--processes", "2", code=0)
    assert found["time"]["inside"] is True and "inside the report's interval" in found["time"]["words"]
    assert {one["name"]: one["same"] for one in found["files"]} == {"m.onnx": True, "samples.npz": True}
    assert all(one["same"] and one["distance"] < 1e-6 for one in found["outputs"])
    assert [one["name"] for one in found["outputs"]] == ["scores", "positive"]
    assert {one["name"] for one in found["conditions"]} == {"kernel", "processor"}
    assert any("turns with the original" in note for note in found["notes"]), "it says what it cannot say"


@pytest.mark.parametrize(("p50", "code", "word"), [(1e-9, 1, "slower"), (1e9, 0, "faster")])
def test_outside_the_interval_only_slower_fails(pull: Callable[..., Path], p50: float, code: int, word: str) -> None:
    folder = pull(latency_ms={"p50": p50, "ci95": [p50 * 0.99, p50 * 1.01]})
    found = check(folder, "--processes", "2", code=code)
    assert found["time"]["inside"] is False and found["time"]["slower"] == bool(code)
    assert f"outside the report's interval: {word}" in found["time"]["words"]


def test_times_of_an_emulated_device_count_for_nothing(pull: Callable[..., Path]) -> None:
    folder = pull(latency_ms={"p50": 1e-9, "ci95": [0.9e-9, 1.1e-9]}, emulated=True)
    found = check(folder, "--processes", "2", code=0)
    assert any("emulated" in note for note in found["notes"])


def test_other_outputs_than_stored_fail_and_are_named(pull: Callable[..., Path]) -> None:
    found = check(pull(wrong=0.5), "--no-time", code=1)
    assert {one["name"]: one["same"] for one in found["outputs"]} == {"scores": False, "positive": True}
    assert found["time"] is None and found["outputs"][0]["distance"] > found["outputs"][0]["tolerance"]


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_a_file_that_is_not_as_sent_is_not_run(pull: Callable[..., Path], harm: str) -> None:
    folder = pull()
    path = folder / "m.onnx"
    path.write_bytes(BUILD[:-1]) if harm == "changed" else path.unlink()
    found = check(folder, code=1)
    assert [one["name"] for one in found["files"] if not one["same"]] == ["m.onnx"]
    assert found["outputs"] == [] and found["time"] is None
    assert any("pull the build again" in note for note in found["notes"])


def test_from_an_older_server_there_are_no_outputs_to_compare(pull: Callable[..., Path]) -> None:
    found = check(pull(samples=False), "--no-time", code=0)
    assert found["outputs"] == [] and any("without samples" in note for note in found["notes"])


def test_a_runtime_that_is_not_here_is_said_in_a_sentence(pull: Callable[..., Path]) -> None:
    found = check(pull(runtime="openvino"), "--no-time", code=1)
    assert 'builds for openvino need fleetfit here: pip install "fleetfit[openvino]"' in found["error"]


def test_people_get_lines(pull: Callable[..., Path]) -> None:
    done = subprocess.run(
        [sys.executable, str(pull() / "run.py"), "--check", "--no-time"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.endswith("It is what the report says.\n"), done
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith("note"))


def test_samples_of_another_build_are_refused(tmp_path: Path) -> None:
    answer = reports_pb2.GetBuildResponse(manifest_json=json.dumps({"files": {"m.onnx": put(BUILD)}}))
    answer.build.name = "m.onnx"
    answer.build.artifact.sha256, answer.build.artifact.size_bytes = put(BUILD).values()
    answer.samples.artifact.sha256 = "0" * 64
    with pytest.raises(IntegrityError, match="digests differ"):
        place_build(answer, tmp_path / "out", lambda artifact, path: path.write_bytes(BUILD) and None)
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.floats(0.5, 2), min_size=2, max_size=16), st.floats(0.3, 3), st.floats(1.0001, 1.3))
def test_the_verdict_is_what_our_statistics_say(medians: list[float], p50: float, width: float) -> None:
    told = iter(medians)

    def fake(*_: Any, **__: Any) -> Any:
        said = json.dumps({"median_ms": next(told), "steady": True})
        return subprocess.CompletedProcess([], 0, said + "\n", "")

    reported = Interval(p50, p50 / width, p50 * width)
    manifest = {
        "options": {"threads": 1},
        "measured": {"latency_ms": {"p50": p50, "ci95": [reported.low, reported.high]}},
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subprocess, "run", fake)
        found = check_build.time_as_reported(manifest, len(medians))
    ours = quotient_interval(geometric_interval(medians), reported)
    assert found["ratio"]["value"] == pytest.approx(ours.value)
    assert found["ratio"]["ci95"] == pytest.approx([ours.low, ours.high], rel=2e-3)
    if min(abs(math.log(bound)) for bound in (ours.low, ours.high)) > 0.02:
        assert found["inside"] == is_even(ours.low, ours.high)


def test_the_rules_are_ours_and_what_is_read_of_the_machine_too() -> None:
    assert check_build._EVEN == EQUIVALENCE_MARGIN
    for freedom, value in enumerate(check_build._STUDENT, 1):
        assert value == pytest.approx(student_quantile(0.975, freedom), abs=5e-4)
    assert check_build._STRETCH_S * 1e9 == timing._STRETCH_NS
    assert check_build._STRETCH_CALLS == timing._STRETCH_SAMPLES
    tree = Tree()
    assert check_build._processor(ARM_CORES) == processor.processor_name(tree)
    assert check_build._power_mode() == readings.power_mode(tree)
    assert check_build._clocks() == readings.clocks(tree)
