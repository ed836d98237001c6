"""Figures of scaling curves from raw samples, those that a device should never send among them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.proto.scaling import curve_points, round_throughput
from fleetfit.proto.v1 import measurement_pb2

MEASURED = measurement_pb2.MEASUREMENT_STATUS_MEASURED
OUT_OF_MEMORY = measurement_pb2.MEASUREMENT_STATUS_OUT_OF_MEMORY


def add_point(
    run: measurement_pb2.ScalingRun,
    ms: float,
    *,
    threads: int = 1,
    batch: int = 1,
    instances: int = 1,
    rounds: int = 3,
    calls: int = 400,
    spread: float = 0.01,
    memory: int = 50_000_000,
) -> int:
    """A point whose calls take `ms`, each process a little different; its place."""
    chance = np.random.default_rng(len(run.points))
    point = run.points.add(threads=threads, batch=batch, instances=instances, status=MEASURED)
    for _ in range(rounds):
        one = point.rounds.add()
        for _ in range(instances):
            slow = ms * 1e6 * float(chance.lognormal(0, spread))
            samples = (slow * chance.lognormal(0, spread, calls)).astype(int).tolist()
            one.processes.add(latency_ns=samples, every=1, shared_in_part_bytes=memory, resident_bytes=2 * memory)
    return len(run.points) - 1


def test_throughput_is_of_all_instances_and_of_all_samples_of_a_batch() -> None:
    run = measurement_pb2.ScalingRun()
    run.instances.points.extend(
        [add_point(run, 2.0, threads=2, batch=8), add_point(run, 4.0, batch=8, instances=2, memory=45_000_000)]
    )
    (_, alone), (_, together) = curve_points(run, run.instances)
    assert alone is not None and together is not None
    assert alone.throughput.value == pytest.approx(8 / 0.002, rel=0.03)
    assert together.throughput.value == pytest.approx(2 * 8 / 0.004, rel=0.03)
    assert (alone.gain.value, alone.gain.low, alone.gain.high) == (1, 1, 1)
    assert together.gain.value == pytest.approx(together.throughput.value / alone.throughput.value)
    assert together.gain.low < 1 < together.gain.high
    assert together.p50_ms.value == pytest.approx(4, rel=0.03)
    assert together.p95_ms is not None and together.p95_ms.value > together.p50_ms.value
    assert together.memory is not None and together.memory.value == pytest.approx(45e6)
    assert (together.rounds, together.calls) == (3, 3 * 2 * 400)
    for figures in (alone, together):
        assert 0 < figures.throughput.low < figures.throughput.value < figures.throughput.high < math.inf


def test_one_round_says_nothing_about_the_spread_between_processes() -> None:
    run = measurement_pb2.ScalingRun()
    run.threads.points.append(add_point(run, 1.0, rounds=1, calls=100))
    ((_, figures),) = curve_points(run, run.threads)
    assert figures is not None
    assert (figures.throughput.low, figures.throughput.high) == (0, math.inf)
    assert figures.p95_ms is None, "100 samples cannot carry it"


def test_calls_that_were_not_kept_count_in_throughput() -> None:
    """9 of 10 calls took 1 ms and were not kept, each tenth 11 ms: 20 ms for ten."""
    run = measurement_pb2.ScalingRun()
    point = run.points.add(threads=1, batch=1, instances=1, status=MEASURED)
    point.rounds.add().processes.add(latency_ns=[11_000_000] * 50, every=10, elapsed_ns=[20_000_000] * 50)
    run.threads.points.append(0)
    ((_, figures),) = curve_points(run, run.threads)
    assert figures is not None
    assert figures.throughput.value == pytest.approx(500)
    assert figures.p50_ms.value == pytest.approx(11) and figures.calls == 500 and figures.memory is None


def test_a_point_that_failed_has_no_figures_and_the_gain_begins_with_the_first_that_has() -> None:
    run = measurement_pb2.ScalingRun()
    run.points.add(threads=1, batch=1, instances=1, status=OUT_OF_MEMORY)
    run.batch.points.extend([0, add_point(run, 1.0), add_point(run, 1.0, batch=2)])
    (_, failed), (_, first), (_, second) = curve_points(run, run.batch)
    assert failed is None and first is not None and second is not None
    assert first.gain.value == 1 and second.gain.value == pytest.approx(2, rel=0.05)


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    st.integers(-3, 3),
    st.integers(-2, 2),
    st.integers(-2, 2),
    st.integers(-5, 5),
)
def test_whatever_a_device_sends_gives_figures_or_none(
    latencies: list[int], elapsed: list[int], every: int, batch: int, instances: int, at: int
) -> None:
    run = measurement_pb2.ScalingRun()
    point = run.points.add(threads=1, batch=batch, instances=instances, status=MEASURED)
    point.rounds.add().processes.add(latency_ns=latencies, elapsed_ns=elapsed, every=every, shared_in_part_bytes=at)
    run.threads.points.extend([at, 0])
    for _, figures in curve_points(run, run.threads):
        if figures is not None:
            assert 0 < figures.throughput.value < math.inf and figures.p50_ms.value > 0
    assert round_throughput(point, 0) >= 0
