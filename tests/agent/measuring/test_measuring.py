"""Whole measurements in real children: `python -m fleetfit.agent.measuring TASKDIR`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest

import fleetfit
from fleetfit.agent.measuring.endings import Status
from fleetfit.core.hostlock import host_lock
from fleetfit.proto.methods import METHOD_VERSION
from fleetfit.proto.v1 import measurement_pb2

from ...runtimes.builds import WEIGHTS, affine, endless, hungry
from .tasks import MS, command, measure, prepare

X = np.random.default_rng(1).standard_normal((70, 4)).astype(np.float32)


def test_a_build_is_measured_alone_beside_the_original_and_on_its_metric(tmp_path: Path) -> None:
    targets = (X @ WEIGHTS).argmax(axis=1)
    targets[:7] = (targets[:7] + 1) % 3
    prepare(tmp_path, affine(), baseline=affine(-WEIGHTS), data={"x": X, "targets": targets})
    result = measure(tmp_path)

    assert (result.status, result.message) == (Status.MEASUREMENT_STATUS_MEASURED, "")
    assert (result.method_version, result.agent_version) == (METHOD_VERSION, fleetfit.__version__)
    assert result.metric.value == pytest.approx(90)
    assert list(result.metric.scores) == [0.0] * 7 + [1.0] * 63
    assert len(result.solo.latency_ns) == 20
    assert [run.candidate_loaded_first for run in result.pairs] == [True, False]
    assert all(len(run.blocks) == 6 and all(block.latency_ns for block in run.blocks) for run in result.pairs)

    windows = [result.solo.window, result.metric.window, *(run.window for run in result.pairs)]
    assert all(window.begin_monotonic_ns < window.end_monotonic_ns for window in windows)
    assert all(a.end_monotonic_ns <= b.begin_monotonic_ns for a, b in pairwise(windows))
    assert result.held.begin_monotonic_ns < windows[0].begin_monotonic_ns
    assert windows[-1].end_monotonic_ns < result.held.end_monotonic_ns
    # Before, after the build alone, after the pairs.
    moments = [reading.monotonic_ns for reading in result.readings]
    assert len(moments) == 3 and moments == sorted(moments)

    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (result.boot_id, len(result.host_digest)) == (boot_id, 32)
    expected = {"threads": "1", "batch": "1", "runtime": "onnxruntime", "boot_id": boot_id}
    assert expected.items() <= dict(result.condition).items()
    assert {"processor", "power_mode", "governor", "kernel", "runtime_version"} <= set(result.condition)
    assert result.quiet or result.disturbance

    progress = json.loads((tmp_path / "progress.json").read_text())
    assert progress["activity"] == "measuring the build beside the original"
    assert 0 < progress["fraction"] <= 1


@pytest.mark.parametrize(
    ("precision", "most", "limit_ns", "pairs", "end"),
    [
        (1e9, 16, 60_000 * MS, 4, measurement_pb2.SAMPLING_END_PRECISE),
        (1e-9, 6, 60_000 * MS, 6, measurement_pb2.SAMPLING_END_PROCESSES),
        (1e-9, 16, 1, 4, measurement_pb2.SAMPLING_END_TIME),
        (0, 16, 60_000 * MS, 4, measurement_pb2.SAMPLING_END_UNSPECIFIED),
    ],
)
def test_pairs_go_on_until_the_ratio_is_known(
    tmp_path: Path, precision: float, most: int, limit_ns: int, pairs: int, end: measurement_pb2.SamplingEnd.ValueType
) -> None:
    asked = {"precision": precision, "most_pair_processes": most, "pair_limit_ns": limit_ns, "pair_processes": 4}
    prepare(tmp_path, affine(), baseline=affine(-WEIGHTS), method=asked)
    result = measure(tmp_path)
    assert (len(result.pairs), result.pairs_end, result.precision) == (pairs, end, precision)
    assert [run.candidate_loaded_first for run in result.pairs] == [True, False] * (pairs // 2)


def test_only_the_metric_needs_one_child_and_no_quiet_device(tmp_path: Path) -> None:
    data = {"x": X, "targets": np.zeros((70, 3), np.float32)}
    prepare(tmp_path, affine(), baseline=affine(), data=data, metric="mean_absolute_error", metric_only=True)
    result = measure(tmp_path)
    assert result.status == Status.MEASUREMENT_STATUS_MEASURED
    assert result.metric.value == pytest.approx(np.abs(X @ WEIGHTS).mean(), rel=1e-4)
    assert not result.HasField("solo") and not result.pairs


@pytest.mark.parametrize(
    ("build", "status", "words"),
    [
        (b"not a build", Status.MEASUREMENT_STATUS_NOT_LOADABLE, "cannot load the build"),
        (hungry(), Status.MEASUREMENT_STATUS_OUT_OF_MEMORY, "needs more memory than the device has free"),
    ],
)
def test_a_build_that_does_not_run_is_a_result(
    tmp_path: Path, build: bytes, status: Status.ValueType, words: str
) -> None:
    prepare(tmp_path, build, baseline=affine())
    result = measure(tmp_path)
    assert result.status == status and words in result.message
    assert not result.HasField("solo") and not result.pairs
    # What the device was like is known all the same.
    assert result.readings and result.condition["threads"] == "1"
    assert result.held.begin_monotonic_ns < result.held.end_monotonic_ns


def test_a_runtime_that_crashes_is_a_result(tmp_path: Path, crashing_runtime: Path) -> None:
    prepare(tmp_path, affine(), runtime="crashing")
    result = measure(tmp_path, PYTHONPATH=str(crashing_runtime))
    assert result.status == Status.MEASUREMENT_STATUS_CRASHED
    assert result.message == "the runtime crashed on the build; try another recipe or runtime"


def test_a_build_that_never_ends_is_timed_out(tmp_path: Path) -> None:
    prepare(tmp_path, endless(), method={"child_limit_ns": 1})
    result = measure(tmp_path)
    assert result.status == Status.MEASUREMENT_STATUS_TIMED_OUT
    assert "did not finish" in result.message


def test_two_builds_that_do_not_fit_together_leave_the_one_measured(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), baseline=hungry())
    result = measure(tmp_path)
    assert result.status == Status.MEASUREMENT_STATUS_MEASURED
    assert result.solo.latency_ns and not result.pairs
    (note,) = result.notes
    assert "do not fit into this device's memory together" in note


def test_a_disk_that_is_full_is_a_result(small_disk: Path) -> None:
    prepare(small_disk, affine(), data={"x": X, "targets": np.zeros(70, np.int64)})
    with pytest.raises(OSError, match="No space"), (small_disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    result = measure(small_disk)
    assert result.status == Status.MEASUREMENT_STATUS_DISK_FULL
    assert result.message == "the device's disk is full; make room, then resume the job"


def test_what_cannot_be_understood_is_still_a_result(tmp_path: Path) -> None:
    (tmp_path / "task.pb").write_bytes(b"\xff\xff\xff")
    ended = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=60)
    # The log has the traceback; people get the sentence.
    assert ended.returncode == 0 and "DecodeError" in ended.stderr
    assert (tmp_path / "result.pb.gz").exists()


def test_being_killed_ends_the_trial_and_frees_the_host(tmp_path: Path) -> None:
    prepare(tmp_path, endless())
    with subprocess.Popen(command(tmp_path), stderr=subprocess.DEVNULL) as process:
        trial: list[psutil.Process] = []
        deadline = time.monotonic() + 30
        while not trial and time.monotonic() < deadline:
            trial = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.02)
        assert trial
        with pytest.raises(TimeoutError), host_lock(0):
            pass
        os.kill(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(trial, timeout=30)
    assert not alive
    with host_lock(30):
        pass
