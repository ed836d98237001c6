"""What the device is like during a measurement, with real trials beside a constructed tree that changes meanwhile."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from fleetfit.agent.caps import MEMORY_VARIABLE
from fleetfit.agent.hooks import APPLICATION_VARIABLE
from fleetfit.agent.measuring.endings import Status
from fleetfit.agent.measuring.measurer import Measurer
from fleetfit.agent.probe.files import Tree
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.analyse import summarize

from ...runtimes.builds import affine
from ..plugins import install
from ..probe.trees import RASPBERRY_PI_4, plant
from .tasks import MS, prepare

FIRMWARE = "/sys/devices/platform/soc/soc:firmware/get_throttled"
ZONE = "/sys/class/thermal/thermal_zone0"
HOT = {
    f"{ZONE}/temp": "79000\n",
    f"{ZONE}/trip_point_0_type": "passive\n",
    f"{ZONE}/trip_point_0_temp": "80000\n",
}


def measure(folder: Path, tree: Tree, **method: int | str) -> measurement_pb2.MeasurementResult:
    task = prepare(folder / "task", affine(), method=method)
    return asyncio.run(Measurer(folder / "task", task, tree).measure())


def test_what_throttles_only_during_a_trial_marks_the_measurement(tmp_path: Path) -> None:
    tree = plant(tmp_path / "root", RASPBERRY_PI_4)
    calm = measure(tmp_path, tree)
    assert calm.during and not any(look.throttled for look in [*calm.readings, *calm.during])
    assert summarize(calm).trust != "throttled"

    task = tmp_path / "task" / "progress.json"
    task.unlink()
    ended = threading.Event()

    def slow_down() -> None:
        # From the trial's begin to its end; before and after all is well.
        while not ended.is_set() and not (task.exists() and "alone" in task.read_text()):
            ended.wait(0.002)
        plant(tmp_path / "root", {FIRMWARE: "4\n", f"{ZONE}/temp": "81500\n"})

    thread = threading.Thread(target=slow_down)
    thread.start()
    throttled = measure(tmp_path, tree, solo_samples=100_000, solo_limit_ns=2_500 * MS)
    ended.set()
    thread.join()
    assert not throttled.readings[0].throttled
    summary = summarize(throttled)
    assert summary.trust == "throttled"
    assert any("throttled its clocks at up to 82 °C (throttled by firmware)" in note for note in summary.notes)
    assert summary.seen is not None and summary.seen.throttled_by == ["throttled by firmware"]
    assert summary.seen.celsius == (48.199, 81.5) and summary.seen.clock_hz == (600_000_000, 600_000_000)


def test_a_hot_device_cools_down_first(tmp_path: Path) -> None:
    tree = plant(tmp_path / "root", HOT)
    cooling = threading.Timer(1.0, lambda: plant(tmp_path / "root", {f"{ZONE}/temp": "60000\n"}))
    cooling.start()
    result = measure(tmp_path, tree, cool_limit_ns=60_000 * MS)
    cooling.join()
    assert (result.quiet, result.disturbance) == (True, "")
    assert result.readings[0].temperature_celsius == 60


def test_a_device_that_stays_hot_is_measured_and_marked(tmp_path: Path) -> None:
    result = measure(tmp_path, plant(tmp_path / "root", HOT), cool_limit_ns=300 * MS)
    assert result.status == Status.MEASUREMENT_STATUS_MEASURED
    assert (result.quiet, result.disturbance) == (False, "it began at 79 °C and slows down at 80 °C")
    summary = summarize(result)
    assert summary.trust == "noisy"
    assert "the device was not quiet: it began at 79 °C and slows down at 80 °C" in summary.notes


def test_a_job_may_refuse_a_device_that_stays_hot(tmp_path: Path) -> None:
    tree = plant(tmp_path / "root", HOT)
    result = measure(tmp_path, tree, cool_limit_ns=300 * MS, refuse_unfit=True)
    assert result.status == Status.MEASUREMENT_STATUS_REFUSED and not result.HasField("solo")
    assert result.message == (
        "not measured, as the job asks of a device that is not fit: it began at 79 °C and slows down at 80 °C; see to it, then "
        "resume the job"
    )
    # What was in the way can be read.
    assert result.readings[0].temperature_celsius == 79 and result.condition["threads"] == "1"
    summary = summarize(result)
    assert (summary.status, summary.message, summary.latency) == ("refused", result.message, None)


def test_a_device_in_another_power_mode_is_marked_or_refused(tmp_path: Path) -> None:
    tree = plant(tmp_path / "root", RASPBERRY_PI_4)
    marked = measure(tmp_path, tree, power_mode="performance")
    assert marked.status == Status.MEASUREMENT_STATUS_MEASURED
    said = "its power mode is ondemand, not performance"
    assert f"{said} as is declared; its figures hold for that mode" in summarize(marked).notes
    # Another condition, not a doubtful one.
    assert marked.quiet and summarize(marked).trust != "noisy"
    refused = measure(tmp_path, tree, power_mode="performance", refuse_unfit=True)
    assert refused.status == Status.MEASUREMENT_STATUS_REFUSED and said in refused.message
    fit = measure(tmp_path, tree, power_mode="ondemand", refuse_unfit=True)
    assert fit.status == Status.MEASUREMENT_STATUS_MEASURED and not fit.notes


def test_a_metric_is_computed_whatever_the_device_is_like(tmp_path: Path) -> None:
    x = np.ones((4, 4), np.float32)
    task = prepare(
        tmp_path / "task",
        affine(),
        data={"x": x, "targets": np.zeros(4, np.int64)},
        method={"refuse_unfit": True},
        metric_only=True,
    )
    tree = plant(tmp_path / "root", HOT)
    result = asyncio.run(Measurer(tmp_path / "task", task, tree).measure())
    assert result.status == Status.MEASUREMENT_STATUS_MEASURED and result.metric.count == 4


_GREEDY = """
import mmap, time
from fleetfit.runtimes.base import Availability, Runtime
class Greedy(Runtime):
    name, formats = "greedy", ("onnx",)
    def availability(self): return Availability(True, "", "1.0", ("CPU",))
    def load(self, build, *, threads):
        kept = []
        for _ in range(2000):
            # Shared memory: no resource limit of a process counts it.
            block = mmap.mmap(-1, 4 << 20)
            block.write(b"x" * (4 << 20))
            kept.append(block)
            time.sleep(0.005)
"""


@pytest.mark.parametrize("whose", ["device", "owner"])
def test_a_build_that_eats_memory_which_no_limit_counts_is_ended_and_its_parent_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    facts = tmp_path / "site" / "greedy-1.0.dist-info"
    facts.mkdir(parents=True)
    (tmp_path / "site" / "greedy_adapter.py").write_text(_GREEDY)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: greedy\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[fleetfit.runtimes]\ngreedy = greedy_adapter:Greedy\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    # A device of which 400 MB are free, or one of many of which its owner allows 400.
    free = "390625" if whose == "device" else "99000000"
    tree = plant(tmp_path / "root", {"/proc/meminfo": f"MemAvailable: {free} kB\n"})
    if whose == "owner":
        monkeypatch.setenv(MEMORY_VARIABLE, "400000000")
    task = prepare(tmp_path / "task", affine(), runtime="greedy")
    result = asyncio.run(Measurer(tmp_path / "task", task, tree).measure())
    assert result.status == Status.MEASUREMENT_STATUS_OUT_OF_MEMORY
    assert "needs more memory than the device has free" in result.message
    assert not result.HasField("solo")


def test_loading_and_running_have_peaks_of_their_own(tmp_path: Path) -> None:
    result = measure(tmp_path, Tree(tmp_path / "nothing"))
    solo = result.solo
    assert solo.peak_memory_bytes == max(solo.load_peak_memory_bytes, solo.run_peak_memory_bytes)
    assert 0 < solo.shared_in_part_bytes <= solo.run_peak_memory_bytes
    memory = summarize(result).memory
    assert memory is not None and memory.load_bytes == solo.load_peak_memory_bytes - solo.floor_memory_bytes


_FORKING = """
import os, time
from fleetfit.runtimes.onnxruntime import OnnxRuntime
class Forking(OnnxRuntime):
    name = "forking"
    def load(self, build, *, threads):
        for daemon in (False, True):
            if os.fork() == 0:
                if daemon:
                    os.setsid()
                    if os.fork():
                        os._exit(0)
                own = bytearray(40 << 20)
                own[::4096] = bytes(10240)
                time.sleep(600)
        time.sleep(0.5)
        return super().load(build, threads=threads)
"""


def test_the_memory_of_what_a_runtime_forks_is_in_its_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = install(tmp_path / "site", "forking_adapter", _FORKING, {"fleetfit.runtimes": {"forking": "Forking"}})
    monkeypatch.setenv("PYTHONPATH", str(site))
    task = prepare(tmp_path / "task", affine(), runtime="forking")
    result = asyncio.run(Measurer(tmp_path / "task", task, Tree(tmp_path / "nothing")).measure())
    solo = result.solo
    assert (result.status, solo.forks) == (Status.MEASUREMENT_STATUS_MEASURED, 2), result.message
    assert 80 << 20 <= solo.forks_bytes < 120 << 20
    assert min(solo.load_peak_memory_bytes, solo.run_peak_memory_bytes) - solo.floor_memory_bytes >= 80 << 20
    assert solo.shared_in_part_bytes >= 80 << 20
    (note,) = (note for note in result.notes if "processes" in note)
    assert note.startswith("the runtime works in 2 more processes, whose memory (") and "is in its peak" in note
    alone = prepare(tmp_path / "alone", affine())
    plain = asyncio.run(Measurer(tmp_path / "alone", alone, Tree(tmp_path / "nothing")).measure())
    assert (plain.solo.forks, plain.solo.forks_bytes) == (0, 0) and not plain.notes


def test_an_application_that_goes_on_beside_is_a_condition_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(APPLICATION_VARIABLE, "beside camera")
    assert measure(tmp_path, Tree(tmp_path / "nothing")).condition["application"] == "beside camera"
