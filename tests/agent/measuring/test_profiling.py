"""The time of each operator: whole measurements in real children."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fleetfit.agent.measuring.endings import Status
from fleetfit.proto.profile import profile_figures
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.runtimes.samples import SAMPLES, network_inputs

from ...runtimes.builds import affine
from .tasks import measure, prepare

_ABORTING = """
import os
from fleetfit.runtimes.onnxruntime import OnnxRuntime
class Aborting(OnnxRuntime):
    name = "aborting"
    def profile(self, build, feeds, *, threads, progress): os.abort()
"""


def profiled(
    folder: Path, build: bytes, *, runtime: str = "onnxruntime", **environment: str
) -> measurement_pb2.MeasurementResult:
    prepare(folder, build, runtime=runtime, profile=True)
    result = measure(folder, **environment)
    assert (result.status, result.message) == (Status.MEASUREMENT_STATUS_MEASURED, "")
    # Nothing else is measured: a profiler would be in it.
    assert not result.HasField("solo") and not result.pairs and not result.HasField("energy")
    assert not result.no_energy_because and len(result.readings) == 2
    return result


def network_task(folder: Path) -> None:
    """The sample network on real samples, in batches of 64."""
    task = prepare(folder, SAMPLES["onnx"].network(), data={"x": network_inputs(64)}, profile=True, batch=64)
    task.batch = 64
    del task.candidate.inputs[:]
    task.candidate.inputs.add(name="x", dtype="float32", shape=[-1, 1, 28, 28])
    (folder / "task.pb").write_bytes(task.SerializeToString())


def test_operators_of_a_build_are_timed_in_a_process_of_their_own(tmp_path: Path) -> None:
    network_task(tmp_path)
    result = measure(tmp_path)
    assert (result.status, result.message) == (Status.MEASUREMENT_STATUS_MEASURED, "")
    run = result.profile
    assert run.not_offered_because == "" and run.calls >= 2
    assert result.runtime_version == run.runtime_version != ""
    assert {"Conv"} <= {one.operator for one in run.operators} and run.operators[0].operator == "Conv"
    assert {one.placed for one in run.operators} == {"CPU"}
    found = profile_figures(run)
    assert found is not None and np.isclose(sum(one.share for one in found.operators), 1)
    # By one thread operators cannot take longer than the calls that they are part of.
    assert found.operators_ms <= found.call_ms
    window = run.window.end_monotonic_ns - run.window.begin_monotonic_ns
    assert result.held.begin_monotonic_ns < run.window.begin_monotonic_ns
    assert run.elapsed_ns < window < result.held.end_monotonic_ns - result.held.begin_monotonic_ns


def test_a_runtime_without_a_profiler_is_a_reason_and_no_failure(tmp_path: Path, crashing_runtime: Path) -> None:
    path = os.pathsep.join([str(crashing_runtime), os.environ.get("PYTHONPATH", "")])
    run = profiled(tmp_path / "task", affine(), runtime="crashing", PYTHONPATH=path).profile
    assert run.not_offered_because == "fleetfit knows no profiler of crashing"
    assert not run.operators and run.runtime_version == "1.0"


def test_a_profiler_that_crashes_is_a_reason_and_no_failure(tmp_path: Path, crashing_runtime: Path) -> None:
    (crashing_runtime / "crashing_adapter.py").write_text(_ABORTING.replace("Aborting", "Crashing"))
    path = os.pathsep.join([str(crashing_runtime), os.environ.get("PYTHONPATH", "")])
    run = profiled(tmp_path / "task", affine(), runtime="crashing", PYTHONPATH=path).profile
    assert run.not_offered_because.startswith("profiling it failed: the runtime crashed on the build")


def test_a_build_that_cannot_be_loaded_is_a_reason_and_no_failure(tmp_path: Path) -> None:
    run = profiled(tmp_path, b"no build").profile
    assert run.not_offered_because.startswith("profiling it failed: ONNX Runtime")
