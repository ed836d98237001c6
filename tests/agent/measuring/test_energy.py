"""Energy trials with real builds in real children, and a constructed counter that is fed by what the child really works."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fleetfit.agent.measuring.endings import Status
from fleetfit.agent.measuring.measurer import Measurer
from fleetfit.agent.probe.files import Tree
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.energy import energy_of_a_call

from ...runtimes.builds import affine, hungry
from ..probe.trees import plant
from .tasks import MS, prepare

ROUNDS = {"energy_rounds": 3, "energy_rest_ns": 250 * MS, "energy_busy_ns": 300 * MS}
COUNTER = "/sys/class/powercap/intel-rapl:0/energy_uj"
REST_W, PER_CORE_W = 2.0, 10.0


@contextlib.contextmanager
def counting(root: Path, worked_until: list[tuple[int, float]] | None = None) -> Iterator[Tree]:
    """A package that takes 2 W at rest and 10 W more for each processor that children of this process keep busy."""
    zone = {"name": "package-0\n", "max_energy_range_uj": "262143328850\n", "energy_uj": "0\n"}
    tree = plant(root, {f"/sys/class/powercap/intel-rapl:0/{name}": value for name, value in zone.items()})
    path, done = root / COUNTER.lstrip("/"), threading.Event()

    def count() -> None:
        began, worked, seen = time.monotonic(), 0.0, {}
        while not done.wait(0.002):
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    times = child.cpu_times()
                    now = times.user + times.system
                    worked += now - seen.get(child.pid, 0.0)
                    seen[child.pid] = now
            if worked_until is not None:
                worked_until.append((time.monotonic_ns(), worked))
            joules = REST_W * (time.monotonic() - began) + PER_CORE_W * worked
            fresh = path.with_name("fresh")
            fresh.write_text(str(int(joules * 1e6)))
            fresh.replace(path)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield tree
    finally:
        done.set()
        thread.join()


def measure(folder: Path, task: measurement_pb2.MeasureTask, tree: Tree) -> measurement_pb2.MeasurementResult:
    return asyncio.run(Measurer(folder, task, tree).measure())


def test_a_call_costs_what_its_work_costs_above_rest(tmp_path: Path) -> None:
    task = prepare(tmp_path / "task", affine(), method=ROUNDS)
    worked: list[tuple[int, float]] = []
    with counting(tmp_path / "root", worked) as tree:
        result = measure(tmp_path / "task", task, tree)
    assert (result.status, result.no_energy_because) == (Status.MEASUREMENT_STATUS_MEASURED, "")
    run = result.energy
    assert (run.meter, run.covers, run.counts) == ("rapl", "processor packages", True)
    assert [stretch.calls > 0 for stretch in run.stretches] == [False, True, False, True, False, True, False]
    assert list(run.monotonic_ns) == sorted(run.monotonic_ns) and list(run.value) == sorted(run.value)
    energy = energy_of_a_call(run)
    assert energy is not None and energy.rounds == 3
    # On a busy machine the meter's thread and the child are late, now and then for much of a stretch.
    assert energy.idle_watts == pytest.approx(REST_W, rel=0.5)
    # What the child really worked, however much of a processor it got.
    busy = [stretch for stretch in run.stretches if stretch.calls]
    seconds = sum(
        max(done for at, done in worked if at <= stretch.window.end_monotonic_ns)
        - max(done for at, done in worked if at <= stretch.window.begin_monotonic_ns)
        for stretch in busy
    )
    assert energy.joules.value == pytest.approx(PER_CORE_W * seconds / sum(s.calls for s in busy), rel=0.5)


def test_a_device_without_a_meter_is_measured_all_the_same(tmp_path: Path) -> None:
    task = prepare(tmp_path / "task", affine(), method=ROUNDS)
    result = measure(tmp_path / "task", task, Tree(tmp_path / "nothing"))
    assert result.status == Status.MEASUREMENT_STATUS_MEASURED and result.solo.latency_ns
    assert result.no_energy_because == "this device has no meter that fleetfit knows"
    assert not result.HasField("energy")


def test_without_rounds_nothing_is_said_of_energy(tmp_path: Path) -> None:
    with counting(tmp_path / "root") as tree:
        result = measure(tmp_path / "task", prepare(tmp_path / "task", affine()), tree)
    assert not result.HasField("energy") and not result.no_energy_because


def test_a_build_that_fails_is_not_tried_again_for_its_energy(tmp_path: Path) -> None:
    task = prepare(tmp_path / "task", hungry(), method=ROUNDS)
    with counting(tmp_path / "root") as tree:
        result = measure(tmp_path / "task", task, tree)
    assert result.status == Status.MEASUREMENT_STATUS_OUT_OF_MEMORY
    assert not result.HasField("energy")
