"""Scaling curves: whole measurements in real children, and what one process of a point records."""

from __future__ import annotations

import threading
import time
from array import array
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.agent.measuring import instance
from fleetfit.agent.measuring.endings import Status
from fleetfit.agent.measuring.instance import Meeting, call_in_company, keep
from fleetfit.agent.measuring.ladder import steps
from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.processor import read_processor
from fleetfit.proto.scaling import curve_points
from fleetfit.proto.v1 import measurement_pb2

from ...runtimes.builds import affine, hungry
from .tasks import MS, measure, prepare

# Dozens of processes are begun, which a busy machine takes its time for.
pytestmark = pytest.mark.timeout(300)

CORES = read_processor(Tree()).usable_cores
WHOLE = {"scaling_rounds": 2, "scaling_point_ns": 20 * MS, "scaling_limit_ns": 600_000 * MS}
ONE_ROUND = WHOLE | {"scaling_rounds": 1}


def keys(run: measurement_pb2.ScalingRun, curve: measurement_pb2.ScalingCurve) -> list[tuple[int, int, int]]:
    return [(p.threads, p.batch, p.instances) for p, _ in curve_points(run, curve)]


def test_threads_and_instances_of_a_build_of_one_batch(tmp_path: Path) -> None:
    prepare(tmp_path, affine(batch=4), batch=4, method=WHOLE, scaling=True)
    task = measurement_pb2.MeasureTask.FromString((tmp_path / "task.pb").read_bytes())
    task.batch = 4
    (tmp_path / "task.pb").write_bytes(task.SerializeToString())
    result = measure(tmp_path)
    assert (result.status, result.message) == (Status.MEASUREMENT_STATUS_MEASURED, "")
    assert result.runtime_version and not result.HasField("solo") and not result.pairs
    run = result.scaling
    assert run.cores == CORES
    assert keys(run, run.threads) == [(n, 4, 1) for n in steps(CORES)]
    assert keys(run, run.batch) == [(1, 4, 1)]
    assert run.batch.ended == "the build takes batches of 4 only"
    assert keys(run, run.instances) == [(CORES // n, 4, n) for n in steps(CORES)]
    assert f"all {CORES} usable core" in run.threads.ended and run.threads.ended == run.instances.ended
    # A point that stands in several curves is measured once.
    assert len(run.points) == len({(p.threads, p.batch, p.instances) for p in run.points})
    for point in run.points:
        assert (point.status, point.message, len(point.rounds)) == (Status.MEASUREMENT_STATUS_MEASURED, "", 2)
        for one in point.rounds:
            assert len(one.processes) == point.instances
            for process in one.processes:
                assert process.resident_bytes >= process.shared_in_part_bytes > 1 << 20
                elapsed = sum(process.elapsed_ns or process.latency_ns)
                window = process.window.end_monotonic_ns - process.window.begin_monotonic_ns
                # Calls fill the time from the first to the last that is kept.
                assert window - process.every * max(process.latency_ns) <= elapsed <= window
    # Rounds come one after another over all points, not point by point.
    begins = [[one.processes[0].window.begin_monotonic_ns for one in point.rounds] for point in run.points]
    assert max(first for first, _ in begins) < min(second for _, second in begins)
    assert not list(tmp_path.glob("scaling-*"))
    assert {"threads": "1", "batch": "4"}.items() <= dict(result.condition).items()


def test_batches_grow_until_memory_ends_it(tmp_path: Path) -> None:
    """A number per sample that no cap allows from some batch on: the curve ends, the measurement does not."""
    prepare(tmp_path, hungry(32 << 20), method=ONE_ROUND, scaling=True)
    result = measure(tmp_path, FLEETFIT_MEMORY_BYTES=str(600 << 20))
    assert result.status == Status.MEASUREMENT_STATUS_MEASURED
    run = result.scaling
    points = curve_points(run, run.batch)
    assert [p.batch for p, _ in points] == [2**n for n in range(len(points))] and 2 <= len(points) <= 4
    *before, (last, figures) = points
    assert all(found is not None for _, found in before) and figures is None
    assert last.status == Status.MEASUREMENT_STATUS_OUT_OF_MEMORY and "more memory" in last.message
    assert run.batch.ended == "the next needs more memory than there is"


@pytest.mark.skipif(CORES < 2, reason="one core has one instance")
def test_instances_are_not_begun_where_memory_will_not_do(tmp_path: Path) -> None:
    """One process holds 250 MB for its numbers, so two of them are over this cap, which one is not."""
    prepare(tmp_path, hungry(60 << 20), batch=1, method=ONE_ROUND, scaling=True)
    run = measure(tmp_path, FLEETFIT_MEMORY_BYTES=str(480 << 20)).scaling
    assert len(run.instances.points) == 2
    last = run.points[run.instances.points[-1]]
    assert last.status == Status.MEASUREMENT_STATUS_OUT_OF_MEMORY
    assert last.message.startswith("not begun: 2 instances would hold about")
    assert run.instances.ended == "the next needs more memory than there is"


def test_time_that_is_over_leaves_what_was_measured(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), method=WHOLE | {"scaling_limit_ns": 1 * MS}, scaling=True)
    result = measure(tmp_path)
    assert result.status == Status.MEASUREMENT_STATUS_MEASURED
    run = result.scaling
    assert run.points[0].status == Status.MEASUREMENT_STATUS_MEASURED and len(run.points[0].rounds) == 1
    assert run.batch.ended == "the time for it was over"
    assert {p.status for p in run.points[1:]} <= {Status.MEASUREMENT_STATUS_TIMED_OUT}
    assert all(p.message.startswith("not begun") for p in run.points[1:])


def test_a_build_of_which_no_point_can_be_measured_fails_with_the_first_reason(tmp_path: Path) -> None:
    prepare(tmp_path, b"not a build", method=ONE_ROUND, scaling=True)
    result = measure(tmp_path)
    assert result.status == Status.MEASUREMENT_STATUS_NOT_LOADABLE and "cannot load the build" in result.message
    assert not result.HasField("scaling")


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=60), st.integers(1, 12))
def test_what_is_kept_of_many_calls_adds_up(latencies: list[int], most: int) -> None:
    moments = array("q", np.cumsum([7, *latencies]).tolist())
    run = measurement_pb2.ScalingProcess()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instance, "_MOST_KEPT", most)
        keep(run, moments)
    assert 1 <= len(run.latency_ns) <= most
    counted = run.every * len(run.latency_ns)
    assert len(latencies) - run.every < counted <= len(latencies)
    assert list(run.latency_ns) == latencies[run.every - 1 :: run.every]
    if run.every > 1:
        assert sum(run.elapsed_ns) == sum(latencies[:counted]) and len(run.elapsed_ns) == len(run.latency_ns)
    else:
        assert not run.elapsed_ns
    assert run.window.end_monotonic_ns - run.window.begin_monotonic_ns == sum(latencies)


def test_processes_of_a_point_begin_together_and_keep_each_other_company(tmp_path: Path) -> None:
    """One is three times as slow, and has to make its fewest calls: the quick one goes on until it has them."""
    found: dict[int, measurement_pb2.ScalingProcess] = {}
    calls: dict[int, list[int]] = {0: [], 1: []}

    def take_part(number: int, sleep_s: float) -> None:
        def call() -> None:
            time.sleep(sleep_s)
            calls[number].append(time.monotonic_ns())

        found[number] = call_in_company(call, 30 * MS, Meeting(tmp_path, number, 2))

    threads = [threading.Thread(target=take_part, args=item) for item in ((0, 0.01), (1, 0.1))]
    for thread in threads:
        thread.start()
    while not all((tmp_path / f"{n}.ready").exists() for n in (0, 1)):
        time.sleep(0.001)
    begin = time.monotonic_ns() + 20 * MS
    (tmp_path / "go.new").write_text(str(begin))
    (tmp_path / "go.new").replace(tmp_path / "go")
    for thread in threads:
        thread.join()
    quick, slow = found[0], found[1]
    assert len(slow.latency_ns) == 3 and all(ns >= 100 * MS for ns in slow.latency_ns)
    assert len(quick.latency_ns) >= 2 and all(ns >= 10 * MS for ns in quick.latency_ns)
    assert min(run.window.begin_monotonic_ns for run in found.values()) >= begin
    # Long after what it recorded.
    assert calls[0][-1] > quick.window.end_monotonic_ns
    assert all(a < b for a, b in pairwise(calls[0]))
