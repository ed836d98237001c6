"""What only a Jetson can prove, beside the contract of runtimes and the calls of TensorRT: `make test-jetson`.

The record of it is the file of `fleetfit selfproof`, which that command makes at its end.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.snapshot import take_snapshot
from fleetfit.core.children import ENGINES_VARIABLE
from fleetfit.device_profiles.matching import facts_of, match
from fleetfit.proto.v1 import measurement_pb2, snapshot_pb2
from fleetfit.runtimes.samples import WEIGHTS
from fleetfit.runtimes.tensorrt import TensorRt

from ..agent.measuring.tasks import MS, measure, prepare
from .builds import affine

pytestmark = pytest.mark.jetson


@pytest.fixture(scope="module")
def board() -> snapshot_pb2.DeviceSnapshot:
    snapshot = take_snapshot(Tree())
    if not snapshot.os.l4t:
        pytest.skip("this is no Jetson: it has no /etc/nv_tegra_release")
    return snapshot


def test_the_probe_knows_this_board(board: snapshot_pb2.DeviceSnapshot) -> None:
    assert match(facts_of(board)).profile.name.startswith("jetson-"), (
        board.device_tree_model,
        list(board.device_tree_compatible),
    )
    assert [accelerator.kind for accelerator in board.accelerators] == ["gpu"]
    assert board.os.l4t.startswith("R") and board.machine == "aarch64" and not board.emulated
    # Not the governor: its power mode.
    assert board.power_mode and board.power_mode != (
        Tree().text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    )
    assert {"thermal", "cpufreq"} <= set(board.meters)
    assert board.energy or board.no_energy_because
    found = {runtime.name: runtime for runtime in board.runtimes}["tensorrt"]
    assert found.available, found.reason


def test_a_build_is_measured_beside_the_original_in_onnx_runtime(
    board: snapshot_pb2.DeviceSnapshot, tmp_path: Path
) -> None:
    rows = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    data = {"x": rows, "y": (rows @ WEIGHTS).argmax(axis=1).astype(np.int64)}
    engines = {"engines": 2, "pair_processes": 4, "engines_limit_ns": 600_000 * MS}
    prepare(tmp_path, affine(), baseline=affine(), data=data, runtime="tensorrt", method=engines)
    began = time.monotonic()
    result = measure(tmp_path, **{ENGINES_VARIABLE: str(tmp_path / "engines")})
    assert result.status == measurement_pb2.MEASUREMENT_STATUS_MEASURED, result.message
    assert result.runtime_version == TensorRt().availability().version
    assert min(result.solo.latency_ns) > 0 and [run.candidate_engine for run in result.pairs] == [1, 1, 2, 2]
    # The build is exact: another answer would be another computation.
    assert (result.metric.value, result.metric.count) == (1.0, 40)
    # The engine was built before anything was timed.
    assert result.solo.load_ns < (time.monotonic() - began) * 1e9 / 2
    assert len(list((tmp_path / "engines").glob("*.engine"))) == 2 and result.solo.engine_ns > result.solo.load_ns
