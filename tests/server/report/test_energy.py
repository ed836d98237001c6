"""Energy from invented traces with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.analyse import summarize
from fleetfit.server.report.energy import energy_of_a_call

from .raw import raw_result

S = 1_000_000_000


def trace(
    *, rest: float = 5.0, work: float = 15.0, calls: int = 80, rounds: int = 6, counts: bool = True,
    drift: float = 0.0, noise: float = 0.0, every_ms: int = 20, seed: int = 0,
) -> measurement_pb2.EnergyRun:  # fmt: skip
    """0.4 s of rest and 0.8 s of work in turn; a counter, or power at moments. `drift` is watts per second."""
    chance = np.random.default_rng(seed)
    run = measurement_pb2.EnergyRun(meter="rapl", covers="processor packages", counts=counts)
    borders, busy = [0.0], []
    for _ in range(rounds):
        borders += [borders[-1] + 0.4, borders[-1] + 1.2]
        busy += [False, True]
    borders.append(borders[-1] + 0.4)
    busy.append(False)
    for begin, end, works in zip(borders, borders[1:], busy, strict=False):
        stretch = run.stretches.add(calls=calls if works else 0)
        stretch.window.begin_monotonic_ns, stretch.window.end_monotonic_ns = round(begin * S), round(end * S)
    levels = [(work if works else rest) + float(chance.normal(0, noise)) for works in busy]
    step, joules, at = every_ms / 1e3, 0.0, 0.0
    while at <= borders[-1]:
        stretch_at = min(int(np.searchsorted(borders, at, side="right")) - 1, len(levels) - 1)
        watts = levels[stretch_at] + drift * at
        run.monotonic_ns.append(round(at * S))
        run.value.append(round((joules if counts else watts) * 1e6))
        joules += watts * step
        at += step
    return run


@pytest.mark.parametrize("counts", [True, False])
def test_work_above_rest_is_shared_among_the_calls(counts: bool) -> None:
    found = energy_of_a_call(trace(counts=counts))
    assert found is not None
    # 10 W above rest for 0.8 s, in 80 calls.
    assert found.joules.value == pytest.approx(0.1, rel=0.01)
    assert (found.idle_watts, found.busy_watts) == (pytest.approx(5, rel=0.01), pytest.approx(15, rel=0.01))
    assert (found.rounds, found.meter, found.covers) == (6, "rapl", "processor packages")
    assert found.joules.low is not None and found.joules.low <= found.joules.value


@settings(deadline=None, max_examples=30)
@given(rest=st.floats(0.5, 50), drift=st.floats(-1, 1), counts=st.booleans())
def test_a_steady_drift_of_the_board_cancels(rest: float, drift: float, counts: bool) -> None:
    found = energy_of_a_call(trace(rest=rest, work=rest + 10, drift=drift, counts=counts))
    assert found is not None
    # Half of what is left out at the begin of a stretch remains of the drift.
    assert found.joules.value == pytest.approx(0.1, abs=0.1 * abs(drift) * 0.05 + 0.002)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        found = energy_of_a_call(trace(noise=0.5, seed=seed))
        assert found is not None and found.joules.low is not None and found.joules.high is not None
        held += found.joules.low <= 0.1 <= found.joules.high
    assert 180 <= held <= 198


@pytest.mark.parametrize(("lag", "right"), [(0, False), (300, True)])
def test_a_meter_that_averages_is_right_only_where_its_lag_is_left_out(lag: int, right: bool) -> None:
    run = trace(counts=False, every_ms=10)
    # What a monitor says that averages over the last 300 ms.
    values = [sum(run.value[max(0, at - 29) : at + 1]) / min(30, at + 1) for at in range(len(run.value))]
    run.value[:] = [round(value) for value in values]
    run.lag_ns = lag * 1_000_000
    found = energy_of_a_call(run)
    assert found is not None
    assert (found.joules.value == pytest.approx(0.1, rel=0.01)) is right


def test_fewer_than_three_rounds_have_no_interval() -> None:
    found = energy_of_a_call(trace(rounds=2))
    assert found is not None and (found.joules.low, found.joules.high) == (None, None)


@pytest.mark.parametrize(
    "run",
    [measurement_pb2.EnergyRun(), trace(every_ms=500), trace(calls=0)],
    ids=["empty", "too few values", "no call"],
)
def test_what_a_trace_cannot_carry_is_not_given(run: measurement_pb2.EnergyRun) -> None:
    assert energy_of_a_call(run) is None


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_a_strange_trace_raises_nothing(content: bytes) -> None:
    run = measurement_pb2.EnergyRun()
    run.monotonic_ns.extend(content)
    run.value.extend(content[::-1])
    for at in range(0, len(content) - 2, 3):
        stretch = run.stretches.add(calls=content[at])
        stretch.window.begin_monotonic_ns, stretch.window.end_monotonic_ns = content[at + 1], content[at + 2] << 30
    found = energy_of_a_call(run)
    assert found is None or math.isfinite(found.joules.value)


def test_a_summary_says_why_there_is_no_energy() -> None:
    raw = raw_result()
    assert summarize(raw).energy is None
    raw.no_energy_because = "this device has no meter that fleetfit knows"
    assert "energy was not measured: this device has no meter that fleetfit knows" in summarize(raw).notes
    raw.ClearField("no_energy_because")
    raw.energy.CopyFrom(trace(work=5.0, noise=0.3))
    summary = summarize(raw)
    assert summary.energy is not None and summary.energy.joules.low is not None and summary.energy.joules.low < 0
    assert "the energy of a call cannot be told apart from nothing by the meter rapl" in summary.notes
