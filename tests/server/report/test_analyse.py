from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.analyse import read_result, summarize
from fleetfit.server.report.summary import MeasurementSummary

from .raw import raw_result, write_raw


def test_figures_come_from_the_samples() -> None:
    found = summarize(raw_result(scores=[1.0] * 90 + [0.0] * 10))
    assert found.status == "measured" and found.trust == "clean"
    assert found.ratio is not None and found.ratio.low is not None and found.ratio.high is not None
    assert found.ratio.low < 2.0 < found.ratio.high < found.ratio.low * 1.1
    latency = found.latency
    assert latency is not None and latency.p50_ms.low is not None
    assert latency.p50_ms.low < 1.0 < (latency.p50_ms.high or 0)
    assert latency.p95_ms is not None and latency.p99_ms is not None
    assert latency.p50_ms.value < latency.p95_ms < latency.p99_ms
    assert (latency.samples, latency.processes) == (700 + 5 * 6 * 5, 6)
    assert (latency.load_ms, latency.first_ms) == (5.0, 2.0)
    assert found.peak_memory_bytes == 10_000_000
    assert found.metric is not None and found.metric.n == 100
    # From the scores, whatever the device says their mean is.
    assert found.metric.figure.value == pytest.approx(90.0)
    assert found.condition == {"threads": "1", "governor": "performance"}


@pytest.mark.parametrize(
    ("samples", "p95", "p99"), [(129, False, False), (130, True, False), (661, True, False), (662, True, True)]
)
def test_percentiles_only_where_the_samples_carry_them(samples: int, p95: bool, p99: bool) -> None:
    found = summarize(raw_result(processes=0, samples=samples))
    assert found.latency is not None
    assert (found.latency.p95_ms is not None, found.latency.p99_ms is not None) == (p95, p99)
    assert [f"{name} is not given" in " ".join(found.notes) for name in ("p95", "p99")] == [not p95, not p99]


def test_one_process_gives_no_interval() -> None:
    found = summarize(raw_result(processes=1))
    assert found.ratio is not None and (found.ratio.low, found.ratio.high) == (None, None)
    assert any("ratio has no interval" in note for note in found.notes)
    alone = summarize(raw_result(processes=0))
    assert alone.ratio is None
    assert alone.latency is not None and alone.latency.p50_ms.low is None
    # What is stored can be read again.
    assert MeasurementSummary.model_validate_json(alone.model_dump_json()) == alone


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("precise", ""),
        ("time", "the time for pairs was used up after 6 processes"),
        ("processes", "all processes for pairs"),
    ],
)
def test_how_sampling_ended_is_told(end: str, words: str) -> None:
    raw = raw_result(processes=6)
    raw.pairs_end = measurement_pb2.SamplingEnd.Value(f"SAMPLING_END_{end.upper()}")
    raw.precision = 0.001
    found = summarize(raw)
    assert found.ratio is not None and found.sampling is not None
    assert (found.sampling.end, found.sampling.asked, found.sampling.processes) == (end, 0.001, 6)
    low, high = found.ratio.low or 0, found.ratio.high or 0
    assert found.sampling.reached == pytest.approx((high / low) ** 0.5 - 1)
    (note,) = [note for note in found.notes if "asked for" in note] or [""]
    assert words in note and bool(note) == bool(words)


def with_engines(count: int, apart: float = 1.1) -> measurement_pb2.MeasurementResult:
    """Six pairs of processes whose engines differ, on either side."""
    raw = raw_result(processes=6)
    raw.solo.engine, raw.solo.engine_ns = 1, 84_000_000_000
    for number, run in enumerate(raw.pairs):
        run.candidate_engine = number // 2 % count + 1
        run.baseline_engine = run.candidate_engine
        for block in run.blocks:
            if block.candidate:
                slower = apart ** (run.candidate_engine - 1)
                block.latency_ns[:] = [int(ns * slower) for ns in block.latency_ns]
    return raw


def test_engines_are_counted_and_how_far_they_lie_apart_is_told() -> None:
    raw = with_engines(3)
    raw.pairs_end, raw.precision = measurement_pb2.SAMPLING_END_ENGINES, 0.01
    found, as_processes = summarize(raw), raw_result(processes=6)
    assert (
        found.engines is not None
        and found.ratio is not None
        and found.sampling is not None
        and found.latency is not None
    )
    assert (found.engines.built, found.engines.seconds) == (3, 84.0)
    assert found.engines.apart == pytest.approx(1.21, rel=0.03)
    notes = " ".join(found.notes)
    assert "3 engines were built of it, and the slowest takes 1." in notes
    assert "more processes would not narrow it, and no more engines were built" in notes
    assert found.sampling.end == "engines"
    # Three engines, not six processes, are what the interval is of: the steps between them are as large as they are.
    low, high = found.ratio.low or 0, found.ratio.high or 0
    half = 4.303 * math.log(1.1) / math.sqrt(3)
    assert math.log(high / low) / 2 == pytest.approx(half, rel=0.15)
    usual = summarize(as_processes)
    assert usual.engines is None and usual.latency is not None
    wide, narrow = (f.latency.p50_ms for f in (found, usual) if f.latency is not None)
    assert (wide.high or 0) / (wide.low or 1) > (narrow.high or 0) / (narrow.low or 1)


def test_one_engine_tells_nothing_of_others() -> None:
    found = summarize(with_engines(1))
    assert found.engines is not None and (found.engines.built, found.engines.apart) == (1, None)
    assert any(
        "how much another one of the same network would differ is in no interval" in note for note in found.notes
    )


def test_an_older_agent_says_nothing_of_sampling() -> None:
    assert summarize(raw_result()).sampling is None
    raw = raw_result()
    raw.pairs_end, raw.precision = measurement_pb2.SAMPLING_END_PRECISE, float("nan")
    assert summarize(raw).sampling is None


def test_percentiles_have_bounds_from_both_levels() -> None:
    latency = summarize(raw_result()).latency
    assert latency is not None and latency.p95_ms and latency.p99_ms
    for value, (low, high) in ((latency.p95_ms, latency.p95_bounds), (latency.p99_ms, latency.p99_bounds)):
        assert low is not None and high is not None and low < value < high
    alone = summarize(raw_result(processes=0)).latency
    assert alone is not None and alone.p95_ms and alone.p95_bounds == (None, None)


def test_cool_and_warm_are_two_figures() -> None:
    """1 ms in the first seconds; then a long run that slows down to 1.5 ms, of which the last third counts."""
    raw = raw_result()
    assert summarize(raw).sustained is None
    chance = np.random.default_rng(3)
    run = raw.solo.sustained
    ms = np.concatenate([np.linspace(1.0, 1.5, 3000), np.full(3000, 1.5)]) * chance.lognormal(0, 0.02, 6000)
    run.latency_ns.extend(int(1e6 * one) for one in ms)
    run.every, run.calls = 10, 60_000
    run.window.begin_monotonic_ns, run.window.end_monotonic_ns = 5_000_000_000, 95_000_000_000
    raw.readings.add(temperature_celsius=41.2)
    raw.readings.add(temperature_celsius=79.8)
    found = summarize(raw)
    warm = found.sustained
    assert warm is not None and warm.seconds == 90 and warm.p95_ms is not None
    assert warm.burst_ms.value == pytest.approx(1.0, rel=0.01) and warm.p50_ms.value == pytest.approx(1.5, rel=0.01)
    assert warm.slowdown.low is not None and warm.slowdown.high is not None
    assert 1.45 < warm.slowdown.low < 1.5 < warm.slowdown.high < 1.55
    assert warm.p50_ms.value < warm.p95_ms < 1.6
    (note,) = [note for note in found.notes if "without a pause" in note]
    assert note.startswith(
        "after 90 s without a pause a call takes 1.50 ms, 1.50 times as long as in the first seconds (1.4"
    )
    assert note.endswith("; the device went from 41 °C to 80 °C")
    # The usual figures are those of the first seconds still.
    assert found.latency == summarize(raw_result()).latency


def test_trust() -> None:
    raw = raw_result()
    raw.quiet, raw.disturbance = False, "other processes used 40 % of the processors"
    assert summarize(raw).trust == "noisy"
    assert "the device was not quiet: other processes used 40 % of the processors" in summarize(raw).notes
    raw = raw_result()
    raw.readings.add(other_cpu_percent=3.0)
    assert summarize(raw).trust == "clean"
    raw.readings.add(steal_percent=9.0)
    assert summarize(raw).trust == "noisy"
    raw.readings.add(throttled=True, temperature_celsius=84.6)
    assert summarize(raw).trust == "throttled"
    assert "the device throttled its clocks at up to 85 °C, in 1 of 3 looks at it" in summarize(raw).notes


def test_drifting_samples_are_told() -> None:
    raw = raw_result()
    raw.pairs[2].steady = False
    found = summarize(raw)
    assert found.latency is not None and not found.latency.steady
    assert any("drifted" in note for note in found.notes)


def test_what_went_wrong_is_kept() -> None:
    raw = measurement_pb2.MeasurementResult(
        status=measurement_pb2.MEASUREMENT_STATUS_OUT_OF_MEMORY, message="the build needs more memory than is free"
    )
    found = summarize(raw)
    assert (found.status, found.message) == ("out_of_memory", "the build needs more memory than is free")
    assert (found.latency, found.ratio, found.metric, found.peak_memory_bytes) == (None, None, None, None)
    assert summarize(measurement_pb2.MeasurementResult()).status == "crashed"


def test_a_clock_that_stands_still_is_no_catastrophe() -> None:
    raw = raw_result()
    for run in raw.pairs:
        for block in run.blocks:
            block.latency_ns[:] = [0] * 5
    found = summarize(raw)
    assert found.ratio is not None and found.ratio.value == pytest.approx(1.0)


def test_a_metric_only_run() -> None:
    raw = raw_result(scores=np.ones(10).tolist())
    raw.ClearField("solo")
    del raw.pairs[:]
    raw.quiet = False
    found = summarize(raw)
    assert found.latency is None and found.metric is not None and found.trust == "clean"


def test_the_child(tmp_path: Path) -> None:
    source, out = write_raw(tmp_path / "in.pb.gz", raw_result()), tmp_path / "out.json"
    command = [sys.executable, "-m", "fleetfit.server.report.analyse", str(source), str(out)]
    subprocess.run(command, check=True, capture_output=True)
    assert MeasurementSummary.model_validate_json(out.read_text()) == summarize(read_result(source))
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")] == []


def test_what_is_no_result_ends_the_child_without_output(tmp_path: Path) -> None:
    source, out = tmp_path / "in.pb.gz", tmp_path / "out.json"
    source.write_bytes(b"not gzip")
    command = [sys.executable, "-m", "fleetfit.server.report.analyse", str(source), str(out)]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    assert not out.exists()
